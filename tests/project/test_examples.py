"""Every numbered example runs, in shortened form, and draws its pictures. (Building the site runs all of them.)"""

import ast
import json
import re
import sys
import warnings
from importlib import import_module
from pathlib import Path

import pytest
from helpers import run_ranks

EXAMPLES = Path(__file__).parents[2] / "examples"
SCRIPTS = sorted(path for path in EXAMPLES.glob("*.py") if not path.name.startswith("_"))
NUMBERED = [path for path in SCRIPTS if path.name[0].isdigit()]
ALONE = {"08_multi_gpu"}


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))


@pytest.mark.parametrize("name", [path.stem for path in NUMBERED if path.stem not in ALONE])
def test_it_runs_and_draws(name, tmp_path):
    import_module(name).main(tmp_path, quick=True)
    pictures = [*tmp_path.glob("*.png")]
    assert pictures
    assert all(picture.read_bytes().startswith(b"\x89PNG") for picture in pictures)


def ddp(rank, out):
    sys.path.insert(0, str(EXAMPLES))
    warnings.simplefilter("ignore")
    return import_module("08_multi_gpu").main(Path(out), quick=True)


def test_ranks_of_the_multi_gpu_example_agree(tmp_path):
    first, second = run_ranks(ddp, str(tmp_path))
    assert first == second
    assert (tmp_path / "updates.png").exists()


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_it_says_how_to_run_it(path):
    title, run, *_ = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))).split("\n\n")
    assert title.endswith(".")
    assert run == f"Run: python examples/{path.name} [--out pictures] [--quick]"


def test_the_numbers_have_no_gap():
    assert [int(path.name[:2]) for path in NUMBERED] == list(range(1, len(NUMBERED) + 1))


def test_each_stands_in_the_list_of_examples():
    listed = re.findall(r"\]\((\w+\.py)\)", (EXAMPLES / "README.md").read_text(encoding="utf-8"))
    assert sorted(listed) == [path.name for path in SCRIPTS]


def test_the_notebook_has_these_cells_and_outputs_of_their_kind():
    notebook = import_module("_notebook")
    kept = json.loads(notebook.TARGET.read_text(encoding="utf-8"))["cells"]
    assert [(cell["cell_type"], "".join(cell["source"])) for cell in kept] == notebook.CELLS
    assert notebook.TARGET.stat().st_size < 300_000

    def kinds(cells):
        return [[[*output.get("data", ["text"])] for output in cell.get("outputs", [])] for cell in cells]

    def shorter(source):
        return source.replace("max_epochs=60", "max_epochs=2").replace("samples=100", "samples=4")

    run = notebook.run([(kind, shorter(source)) for kind, source in notebook.CELLS])["cells"]
    assert kinds(run) == kinds(kept)
    assert sum("image/png" in data for cell in kinds(kept) for data in cell) == 3
