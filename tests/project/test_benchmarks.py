"""The one entry point of the benchmarks: it runs, keeps and shows; the page is that of the kept runs."""

import json
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks import __main__, _catalogue, _page, _results  # noqa: E402

FAKE = '''"""Claim: two is more than one."""
import json, sys
print("ratio 2.0   1.9 .. 2.1", *sys.argv[1:])
print(json.dumps({"benchmark": "fake", "ratios": {"two": 2.0}}))
'''


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """A project with two benchmarks: one that works and one that fails."""
    folder = tmp_path / "benchmarks"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "works.py").write_text(FAKE)
    (folder / "breaks.py").write_text('"""Claim: nothing."""\nraise SystemExit(3)\n')
    monkeypatch.setattr(_catalogue, "FOLDER", folder)
    monkeypatch.setattr(_page, "FOLDER", folder)
    monkeypatch.setattr(_results, "ROOT", tmp_path)
    return ["--results", str(tmp_path / "results.jsonl"), "--docs", str(tmp_path / "benchmarks.md")]


def test_a_run_is_kept_with_its_command_machine_and_versions(fake, tmp_path):
    __main__.main(["works", *fake, "--", "--rounds", "3"])
    (kept,) = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert kept["found"] == [{"benchmark": "fake", "ratios": {"two": 2.0}}]
    assert kept["command"] == "python -m benchmarks.works --rounds 3"
    assert kept["printed"] == "ratio 2.0   1.9 .. 2.1 --rounds 3"
    assert kept["versions"].keys() >= {"Python", "torch", "lightning"}
    assert "cores" in kept["machine"]
    page = (tmp_path / "benchmarks.md").read_text()
    assert "## works\n\nClaim: two is more than one.\n\n`python -m benchmarks.works --rounds 3`" in page
    assert "ratio 2.0   1.9 .. 2.1 --rounds 3" in page
    assert "## breaks" in page
    assert "not kept" in page


def test_the_last_run_counts_and_a_failure_is_not_kept(fake, tmp_path):
    with pytest.raises(SystemExit, match="failed: breaks"):
        __main__.main(fake)
    __main__.main(["works", *fake, "--", "again"])
    assert [run["name"] for run in map(json.loads, (tmp_path / "results.jsonl").read_text().splitlines())] == [
        "works"
    ] * 2
    assert "2.1 again" in (tmp_path / "benchmarks.md").read_text()


def test_a_quick_run_keeps_nothing(fake, tmp_path, monkeypatch):
    monkeypatch.setitem(_catalogue.HOW, "works", ((), ("--short",), False))
    __main__.main(["works", "--quick", *fake])
    assert not (tmp_path / "results.jsonl").exists()
    assert not (tmp_path / "benchmarks.md").exists()


def test_an_unknown_name_lists_what_there_is():
    with pytest.raises(SystemExit, match=r"no benchmark 'penality'; there are .*penalty"):
        __main__.main(["penality"])


def test_folders_of_this_machine_are_not_kept(fake, tmp_path):
    __main__.main(["works", *fake, "--", "/somewhere/data"])
    assert "/somewhere" not in json.loads((tmp_path / "results.jsonl").read_text())["command"]


def test_every_entry_of_the_catalogue_is_a_module():
    assert {plan.name for plan in _catalogue.plans()} >= set(_catalogue.HOW)


def test_the_page_is_that_of_the_kept_runs():
    assert _page.PAGE.read_text(encoding="utf-8") == _page.render(_results.read(_results.FILE)), (
        "python -m benchmarks --page"
    )


def test_every_claim_links_to_its_line():
    pages = [
        ROOT / "README.md",
        *(path for path in (ROOT / "docs").glob("*.md") if path.stem not in {"benchmarks", "design"}),
    ]
    names = {plan.name for plan in _catalogue.plans()}
    for page in pages:
        text = page.read_text(encoding="utf-8")
        quoted = set(re.findall(r"python -m benchmarks\.(\w+)", text)) & names
        linked = set(re.findall(r"benchmarks\.md#(\w+)", text))
        assert quoted <= linked, f"{page.name} names {sorted(quoted - linked)} without a link to benchmarks.md#NAME"
