"""The pages of docs/: what a reader pastes works, links lead somewhere, every trick's page has the common shape."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.glob("*.md"), *ROOT.glob("*.md"), *(ROOT / "examples").glob("*.md")])
# What is about no single trick.
OTHER = {
    "index",
    "quickstart",
    "migrating",
    "multi_gpu",
    "bug_report",
    "benchmarks",
    "design",
    "peers_stopping",
    "faults",
    "command_line",
    "wandb",
    "uci_dropout",
}
SHAPE = ("problem", "advice", "exactly", "costs", "differ", "sources")
FENCES = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)


def code_of(page):
    return re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), flags=re.DOTALL)


def test_the_quickstart_runs_as_it_stands(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    namespace = {}
    for block in code_of("quickstart.md"):
        exec(block.replace("max_epochs=40", "max_epochs=2").replace("samples=100", "samples=4"), namespace)
    assert (tmp_path / "norms.png").exists()
    assert namespace["mean"].shape == (360, 10)
    assert namespace["covered"] > 0.8  # 0.9 is promised on average over splits
    assert "the set holds the truth in" in capsys.readouterr().out


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page):
    text = FENCES.sub("", page.read_text(encoding="utf-8"))
    for target, anchor in re.findall(r"\]\((?!\w+:|#)([^)#\s]+)(?:#([^)\s]+))?\)", text):
        assert (page.parent / target).exists(), f"{page.name} links to {target}, which does not exist"
        if anchor and target.endswith(".md"):
            headings = re.findall(r"^#+ (.+)$", (page.parent / target).read_text(encoding="utf-8"), flags=re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in slugs, (
                f"{page.name} links to {target}#{anchor}, but the headings there are {sorted(slugs)}"
            )


@pytest.mark.parametrize(
    "page", [page for page in DOCS.glob("*.md") if page.stem not in OTHER], ids=lambda page: page.stem
)
def test_every_tricks_page_has_the_common_shape(page):
    text = FENCES.sub("", page.read_text(encoding="utf-8"))
    parts = re.findall(r"^## (.+)$|^\*\*(.+?)\*\*", text, flags=re.MULTILINE)
    found = [(heading or bold).lower() for heading, bold in parts]
    missing = [part for part in SHAPE if not any(part in heading for heading in found)]
    assert not missing, f"{page.name} has nothing about {missing}"
    before, _, _ = page.read_text(encoding="utf-8").partition("exactly")
    assert "```" in before, f"{page.name} shows no line of code to use it before it says what that does"


def test_every_page_can_be_reached_from_the_index():
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    missing = [page.name for page in DOCS.glob("*.md") if page.stem != "index" and f"]({page.name})" not in index]
    assert not missing, f"docs/index.md does not link to {missing}"
