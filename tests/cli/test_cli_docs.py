"""What docs/command_line.md shows is run: its files are written, its commands called, its errors compared."""

import csv
import re
import shlex
from pathlib import Path

import pytest

from lightning_tricks.cli import main

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/command_line.md").read_text(encoding="utf-8")
QUIET = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]


def blocks(kind):
    return re.findall(rf"```{kind}\n(.*?)```", PAGE, flags=re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the files that the page shows."""
    folder = tmp_path_factory.mktemp("page")
    for block in [*blocks("yaml"), *blocks("python")]:
        name = re.match(r"# (\S+)\n", block)[1]
        (folder / name).write_text(block)
    return folder


def commands():
    lines = [line for block in blocks("bash") for line in block.splitlines()]
    return [shlex.split(line)[1:] for line in lines if line.startswith("lightning-tricks")]


def test_the_commands_run_in_order(folder, monkeypatch):
    monkeypatch.chdir(folder)
    ran = commands()[1:]  # the demo has tests of its own
    assert len(ran) >= 8
    for command in ran:
        shortened = ["--trainer.limit_train_batches=3", "--trainer.limit_val_batches=1"]
        shortened += ["--trials=1"] if command[0] == "tune" else []
        assert main([*command, *QUIET, *shortened]) == 0, command
    assert (folder / "predictions.csv").read_text().startswith("index,row,mean_0,")
    assert (folder / "mine.npz").exists()
    with (folder / "digits-search/runs.csv").open() as file:
        (trial,) = csv.DictReader(file)
    assert 1e-4 <= float(trial["model.lr"]) <= 1e-1


def test_the_errors_are_as_shown(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    pairs = re.findall(r"\$ lightning-tricks (.*)\n(lightning-tricks: error: .*)\n", "".join(blocks("console")))
    assert len(pairs) >= 4
    for command, sentence in pairs:
        assert main([*shlex.split(command), *QUIET]) != 0
        shown = capsys.readouterr().err.strip().splitlines()[-1]
        assert shown.replace(f"{folder}/", "") == sentence


def test_the_configurations_of_the_examples_run_from_a_checkout(monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    config = ["--config=examples/configs/digits.yaml", "--trainer.fast_dev_run=true", "--trainer.logger=false"]
    before = set(ROOT.iterdir())
    assert main(["fit", *config, f"--trainer.default_root_dir={tmp_path}", *QUIET]) == 0
    assert set(ROOT.iterdir()) == before, "a dry run writes nothing"
    from lightning_tricks.tune import Choice, Float
    from lightning_tricks.tune._space import space_of

    search = __import__("yaml").safe_load(Path("examples/configs/search.yaml").read_text())
    space = space_of(search["space"], "space")
    assert {type(entry) for entry in space.values()} == {Float, Choice}
