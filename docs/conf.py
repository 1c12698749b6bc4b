"""How the pages of this folder become a site: `sphinx-build -W --keep-going -n docs docs/_build`.

Nothing is fetched while building. What is generated (the API reference, the gallery with the pictures that the examples
draw, listings of files that pages link to) goes to `docs/generated`, which git ignores.
"""

import sys
from pathlib import Path

DOCS = Path(__file__).parent
sys.path[:0] = [str(DOCS), str(DOCS.parent)]

from _site import api, gallery, links, navigation  # noqa: E402

import lightning_tricks  # noqa: E402

project = "lightning-tricks"
author = copyright = "the lightning-tricks authors"  # noqa: A001
version = release = lightning_tricks.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "_site"]
templates_path: list[str] = []
html_theme = "furo"
html_title = f"{project} {version}"
html_static_path = ["_site/static"]
html_css_files = ["site.css"]
html_copy_source = False

myst_heading_anchors = 3
myst_enable_extensions = ["dollarmath"]
highlight_language = "text"

add_module_names = False
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 80
napoleon_use_rtype = False
napoleon_use_ivar = True
# Only names of this package are held to resolve: there is no inventory of torch's and Lightning's without a network.
# Types that live in private files show in signatures, and have no page.
nitpick_ignore_regex = [("py:.*", r"(?!lightning_tricks).*"), ("py:.*", r"lightning_tricks\.(\w+\.)*_\w+(\.\w+)*")]


def setup(app):
    app.connect("builder-inited", generate)
    app.connect("env-get-outdated", lambda *_: ["index"])  # it holds the navigation
    app.connect("source-read", read)
    app.connect("autodoc-skip-member", api.skip_hooks)


def generate(app):
    target = DOCS / "generated"
    api.write(target / "api")
    gallery.write(target / "gallery")
    links.write(target / "files")


def read(app, docname, source):
    source[0] = links.rewrite(source[0], (DOCS / docname).with_suffix(".md"))
    if docname == "index":
        source[0] += navigation.toctrees(DOCS)
