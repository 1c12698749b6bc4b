"""``--ckpt_path last``, Ctrl-C and SIGKILL: a run goes on, or says that it cannot."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cli_helpers import CSV, EVERYTHING

from lightning_tricks.cli import main

STOPPED = """
import os
import signal

from lightning.pytorch import Callback


class Stopped(Callback):
    def __init__(self, by: str):
        self.by = by

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.current_epoch == 2 and batch_idx == 1:
            os.kill(os.getpid(), getattr(signal, self.by))
"""
# Lightning says that its ModelCheckpoint goes on in another folder, or in one that holds files already: that is meant.
goes_on = pytest.mark.filterwarnings("ignore:The dirpath has changed", "ignore:Checkpoint directory .* not empty")
RUN = ["fit", *EVERYTHING, *CSV, "--trainer.max_epochs=4"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder to work in; Lightning ignores SIGINT after Ctrl-C, so that it is put back."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "stopped.py").write_text(STOPPED)
    handler = signal.getsignal(signal.SIGINT)
    yield tmp_path
    signal.signal(signal.SIGINT, handler)
    sys.modules.pop("stopped", None)


def weights(path):
    return torch.load(path, weights_only=True)["state_dict"]


def stopped_by(name):
    return ["--trainer.callbacks+=stopped.Stopped", f"--trainer.callbacks.by={name}"]


@goes_on
def test_after_a_kill_last_goes_on_in_the_next_version_and_ends_as_the_uninterrupted_run(folder):
    assert main([arg.replace("name=run", "name=whole") for arg in RUN]) == 0
    killed = [sys.executable, "-m", "lightning_tricks", *RUN, *stopped_by("SIGKILL")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    ended = subprocess.run(killed, capture_output=True, check=False, env=environment)
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()
    (saved,) = Path("logs/run/version_0/checkpoints").glob("*.ckpt")
    saved.with_name("epoch=9-step=999.ckpt").write_bytes(saved.read_bytes()[:-100])  # a newer one, cut off
    assert main([*RUN, "--ckpt_path=last"]) == 0
    expected, resumed = weights("logs/whole/version_0/final.ckpt"), weights("logs/run/version_1/final.ckpt")
    assert expected.keys() == resumed.keys()
    assert all(torch.equal(expected[name], resumed[name]) for name in expected)
    epochs = {line.split(",")[0] for line in Path("logs/run/version_1/metrics.csv").read_text().splitlines()[1:]}
    assert "0" not in epochs, "it began anew"


@goes_on
def test_ctrl_c_ends_with_130_and_the_run_can_go_on(folder, capsys):
    assert main([*RUN, *stopped_by("SIGINT")]) == 130
    assert "interrupted" in capsys.readouterr().err
    assert main([*RUN, "--ckpt_path=last"]) == 0
    state = torch.load(next(Path("logs/run/version_1/checkpoints").glob("*.ckpt")), weights_only=True)
    assert state["epoch"] == 3


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
def test_nothing_to_resume_is_an_error_and_nothing_is_written(command, folder, capsys):
    assert main([command, *EVERYTHING, *CSV, "--ckpt_path=last"]) == 1
    said = capsys.readouterr().err
    assert "There is nothing to resume" in said
    assert "Traceback" not in said
    assert not Path("logs").exists()


@goes_on
def test_without_a_logger_last_is_looked_for_where_the_trainer_writes(folder):
    quick = ["fit", *EVERYTHING, "--trainer.logger=false"]
    assert main([*quick, "--trainer.max_epochs=1", "--trainer.limit_train_batches=2"]) == 0
    assert main([*quick, "--trainer.max_epochs=2", "--trainer.limit_train_batches=3", "--ckpt_path=last"]) == 0
    assert Path("checkpoints/epoch=1-step=5.ckpt").exists(), "2 steps and then 3; begun anew it would be 6"


def test_an_exit_that_is_no_interruption_keeps_its_code(monkeypatch):
    monkeypatch.setattr("lightning_tricks.cli._main._run", lambda _: sys.exit(1))
    with pytest.raises(SystemExit) as end:
        main(["demo"])
    assert end.value.code == 1
