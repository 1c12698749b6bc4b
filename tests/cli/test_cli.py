"""The command line: the demo, exit codes, one-sentence errors."""

import csv
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from wandb_file import WandbRun

from lightning_tricks._base import UserInputError
from lightning_tricks.cli import _main, _usage, main
from lightning_tricks.cli._demo import _make_folder, digits, run_demo
from lightning_tricks.modules import Classifier
from lightning_tricks.nets import ConvNet


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    os.environ["WANDB_MODE"] = "offline"
    folder = tmp_path_factory.mktemp("demo") / "out"
    return folder, run_demo(folder, seed=0, quick=True, samples=20, wandb="offline")


def test_the_demo_learns_the_digits(demo):
    _, result = demo
    off, mc = result.scores
    assert off.accuracy >= 0.97
    assert mc.accuracy >= 0.97
    assert 0 <= off.calibration_error < 0.1
    assert "dropout off" in result.as_text()
    assert "mean of 20 passes" in result.as_text()


def test_the_demo_writes_what_it_says(demo):
    folder, result = demo
    assert all(path.stat().st_size > 0 for path in result.files.values())
    page = (folder / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 5
    assert "http" not in page.split("</style>")[1], "nothing in the page is fetched"
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {"train_loss", "val_loss", "val_acc"} <= set(rows[0])


def test_the_demo_logs_to_wandb_too(demo):
    import wandb

    wandb.finish()
    run = WandbRun(demo[0])
    assert len(run.rows("val_loss")) >= 5
    assert any("norm" in key for row in run.history for key in row)


def test_the_checkpoint_holds_the_net_of_the_scores(demo):
    folder, result = demo
    net = ConvNet(1, 10, channels=(32, 64))
    model = Classifier.load_from_checkpoint(folder / "best.ckpt", net=net, weights_only=True).eval()
    data = digits(seed=0)
    data.setup()
    x, y = (torch.cat(parts) for parts in zip(*data.test_dataloader(), strict=True))
    with torch.no_grad():
        accuracy = (model(x).argmax(-1) == y).float().mean()
    assert float(accuracy) == pytest.approx(result.scores[0].accuracy)


def test_the_same_seed_gives_the_same_numbers(demo, tmp_path):
    assert run_demo(tmp_path / "again", seed=0, quick=True, samples=20).scores == demo[1].scores


def test_an_earlier_demo_is_replaced_but_other_files_never(demo, tmp_path, capsys, monkeypatch):
    (tmp_path / "thesis.tex").write_text("precious")
    assert main(["demo", "--out", str(tmp_path)]) == 1
    assert "holds files that no demo wrote. Choose an empty or new folder with --out." in capsys.readouterr().err
    assert (tmp_path / "thesis.tex").read_text() == "precious"


def test_an_unwritable_folder_is_one_sentence(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["demo", "--out", str(tmp_path / "file" / "demo")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("lightning-tricks: error: the demo must be able to write into")
    assert "Not a directory" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--samples", "1"], r"samples must be in \[2, inf\), but got 1"),
        (["--seed", "-1"], r"seed must be in \[0, 4294967295\], but got -1"),
    ],
)
def test_numbers_out_of_range_are_one_sentence(arguments, message, capsys, tmp_path):
    import re

    assert main(["demo", "--out", str(tmp_path / "demo"), *arguments]) == 1
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "demo").exists(), "nothing was begun"


def failing(error):
    def run(arguments):
        raise error

    return run


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (RuntimeError("of\nmany lines"), 1, "RuntimeError: of many lines (run again with --debug for the traceback)"),
        (PermissionError(13, "Permission denied", "/there"), 1, "Permission denied: /there"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_errors_are_one_sentence_unless_debug(error, code, message, monkeypatch, capsys):
    monkeypatch.setattr(_main, "_run_demo", failing(error))
    assert main(["demo"]) == code
    assert message in capsys.readouterr().err
    if code == 1:
        with pytest.raises(type(error)):
            main(["demo", "--debug"])


def test_a_reader_that_has_gone_is_no_error(monkeypatch):
    closed = []
    monkeypatch.setattr(sys, "stderr", SimpleNamespace(close=lambda: closed.append(True)))
    monkeypatch.setattr(_main, "_run", raising(BrokenPipeError()))
    assert main(["demo"]) == 1
    assert closed == [True]


def raising(error):
    def run(_):
        raise error

    return run


def test_a_package_that_is_missing_is_said():
    assert _main._installed("no such package") == "not installed"


def test_a_configuration_that_does_not_fit_is_one_sentence_and_other_errors_stay():
    error = ValueError("Does not validate: something")
    assert isinstance(_usage.complaint(error), _usage.UsageError)
    other = ValueError("of another kind")
    assert _usage.complaint(other) is other
    with pytest.raises(UserInputError, match="too small"):
        _usage.make(SimpleNamespace(instantiate_classes=refuse), None)


def refuse(config):
    try:
        raise UserInputError("too small")
    except UserInputError as error:
        raise ValueError("Problem with given class") from error


def test_an_earlier_demo_is_emptied(tmp_path):
    logger = SimpleNamespace(experiment=None)
    _make_folder(tmp_path / "out", logger)
    (tmp_path / "out" / "old.txt").touch()
    _make_folder(tmp_path / "out", logger)
    assert not (tmp_path / "out" / "old.txt").exists()


def test_wrong_arguments_exit_with_two(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["dmeo"])
    assert exit_.value.code == 2
    assert "demo" in capsys.readouterr().err


def test_version_names_what_a_bug_report_needs(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["--version"])
    assert exit_.value.code == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in ("lightning-tricks", "python", f"torch {torch.__version__.split('+')[0]}"))


def test_python_dash_m_is_the_same_and_help_loads_nothing_heavy():
    code = "import sys; sys.argv = ['x', '--help']\nimport runpy\n"
    code += "try: runpy.run_module('lightning_tricks', run_name='__main__')\nexcept SystemExit: pass\n"
    code += "print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "demo" in out
    assert out.strip().endswith("False")
