"""Links to files outside `docs/`: relative paths in the pages, pages of their own on the site.

A link such as `../benchmarks/init.py` works where the code is hosted. For the site, the file becomes a page (Markdown
as it is, code as a listing, a folder as a list; an example, its page in the gallery), and so does whatever that page
links to in turn.
"""

import re
from pathlib import Path
from urllib.parse import urlsplit

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
ALWAYS = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")
LANGUAGES = {".py": "python", ".toml": "toml", ".yml": "yaml", ".yaml": "yaml", ".ipynb": "json"}
LINK = re.compile(r"(?<!!)\[((?:[^\]\\]|\\.)*)\]\(([^)\s]+)\)")
FENCE = re.compile(r"^(```|~~~).*?^\1[^\n]*$", re.DOTALL | re.MULTILINE)


def outside(text, page):
    """Return the files outside `docs/` that the text of `page` links to."""
    targets = (_target(link, page) for _, link in LINK.findall(FENCE.sub("", text)))
    return {target for target in targets if target and DOCS not in target.parents and target != DOCS}


def rewrite(text, page):
    """Lead links that leave `docs/` to the pages made of their targets."""

    def lead(match):
        target = _target(match[2], page)
        if target is None or (DOCS in target.parents and page.parent == DOCS):
            return match[0]
        fragment = urlsplit(match[2]).fragment
        return f"[{match[1]}](/{_page_of(target)}{'#' + fragment if fragment else ''})"

    # Code is left as it is.
    pieces, position = [], 0
    for fence in FENCE.finditer(text):
        pieces += [LINK.sub(lead, text[position : fence.start()]), fence[0]]
        position = fence.end()
    return "".join([*pieces, LINK.sub(lead, text[position:])])


def write(folder):
    """Write a page for every file outside `docs/` that a page links to."""
    pages = list(DOCS.glob("*.md"))
    waiting = {ROOT / name for name in ALWAYS if (ROOT / name).exists()}
    waiting |= {target for page in pages for target in outside(page.read_text(encoding="utf-8"), page)}
    done: set[Path] = set()
    while waiting:
        target = waiting.pop()
        done.add(target)
        if _page_of(target).startswith("generated/gallery/"):
            continue
        text, linked = _render(target)
        path = (DOCS / _page_of(target)).with_suffix(".md")
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_if_changed(path, text)
        waiting |= linked - done
    for stale in set(folder.rglob("*.md")) - {(DOCS / _page_of(target)).with_suffix(".md") for target in done}:
        stale.unlink()


def _target(link, page):
    parts = urlsplit(link)
    if parts.scheme or parts.netloc or not parts.path or parts.path.startswith("/"):
        return None
    target = (page.parent / parts.path).resolve()
    if ROOT not in target.parents:
        raise SystemExit(f"{page.relative_to(ROOT)} links to {link}, which is outside of the project")
    if not target.exists():
        raise SystemExit(f"{page.relative_to(ROOT)} links to {link}, which does not exist")
    return target


def _page_of(target):
    relative = target.relative_to(ROOT)
    if relative.as_posix() in {"examples", "examples/README.md"}:
        return "generated/gallery/index.md"
    if relative.parts[0] == "examples" and target.suffix == ".py" and not target.name.startswith("_"):
        return f"generated/gallery/{target.stem}.md"
    if DOCS in target.parents:
        return relative.relative_to("docs").as_posix()
    if target.is_dir():
        return f"generated/files/{relative.as_posix()}/index.md"
    name = relative.as_posix()
    return f"generated/files/{name if name.endswith('.md') else name + '.md'}"


def _render(target):
    name = target.relative_to(ROOT).as_posix()
    if target.is_dir():
        files = sorted(path for path in target.iterdir() if path.suffix in {".py", ".ipynb"} and path.name[:2] != "__")
        rows = "\n".join(f"- [{path.name}](/{_page_of(path)}): {_first_line(path)}" for path in files)
        return f"---\norphan: true\n---\n\n# {name}\n\n{rows}\n", set(files)
    text = target.read_text(encoding="utf-8")
    if target.suffix == ".md":
        head = "" if name in ALWAYS else "---\norphan: true\n---\n\n"
        return head + rewrite(text, target), outside(text, target)
    up = "../" * (len(Path(_page_of(target)).parts) - 1) + "../"
    language = LANGUAGES.get(target.suffix, "text")
    listing = f"```{{literalinclude}} {up}{name}\n:language: {language}\n```"
    return f"---\norphan: true\n---\n\n# {name}\n\n{listing}\n", set()


def _first_line(path):
    if path.suffix == ".ipynb":
        return "a notebook"
    match = re.match(r'"""(.+?)(?:\n|""")', path.read_text(encoding="utf-8"))
    return match[1] if match else ""


def _write_if_changed(path, text):
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")
