"""What a monitor has measured reaches the loggers exactly once, whatever comes between."""

import tempfile
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from helpers import quiet_trainer
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import Logger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_tricks as lt


class Points(Logger):
    """Remembers at which steps each family of numbers was logged."""

    name, version = "points", "0"

    def __init__(self):
        super().__init__()
        self.norms, self.activations = [], []

    def log_metrics(self, metrics, step=None):
        if any(name.startswith("norms/") for name in metrics):
            self.norms.append(step)
        if any(name.startswith("activations/") for name in metrics):
            self.activations.append(step)

    def log_hyperparams(self, *args, **kwargs): ...


class MachineBrokeError(Exception): ...


class Breaks(Callback):
    def __init__(self, at):
        self.at = at

    def on_train_batch_start(self, trainer, *args):
        if trainer.global_step == self.at:
            raise MachineBrokeError


def run(folder, *, steps, log_every, save_every, every, validate=None, breaks=None, resume=None):
    torch.manual_seed(0)
    model = lt.Classifier(nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 2)), 2, lr=1e-2)
    monitors = [lt.NormMonitor(every_n_steps=every), lt.ActivationMonitor(every_n_steps=every)]
    callbacks = [*monitors, ModelCheckpoint(folder, every_n_train_steps=save_every, save_top_k=-1, filename="{step}")]
    logger = Points()
    trainer = quiet_trainer(
        max_epochs=-1,
        max_steps=steps,
        callbacks=[*callbacks, *([] if breaks is None else [Breaks(breaks)])],
        logger=logger,
        log_every_n_steps=log_every,
        enable_checkpointing=True,
        val_check_interval=validate,
        num_sanity_val_steps=0,
    )
    data = TensorDataset(torch.randn(24, 2), torch.randint(2, (24,)))
    loader = DataLoader(data, batch_size=4)  # 6 batches
    with suppress(MachineBrokeError):
        trainer.fit(model, loader, loader, ckpt_path=resume)
    return monitors, logger


def measured(monitor):
    return sorted(set(monitor.table()["step"]))


def assert_each_once(logged, monitor, log_every):
    """Each measured step is a point; if more are measured than logged, the last one of each logging interval."""
    steps = measured(monitor)
    if monitor.every_n_steps < log_every:
        steps = {step // log_every: step for step in steps}.values()
    assert Counter(logged) == Counter(steps)


SCHEDULES = st.fixed_dictionaries(
    {
        "steps": st.integers(1, 20),
        "log_every": st.integers(1, 9),
        "save_every": st.integers(1, 9),
        "every": st.sampled_from([1, 3, 100]),
        "validate": st.sampled_from([None, 2, 5]),
    }
)


@settings(max_examples=12, deadline=None)
@given(SCHEDULES, st.integers(1, 20))
def test_whatever_checkpoints_validations_and_errors_come_between(schedule, at):
    with tempfile.TemporaryDirectory() as folder:
        (norms, activations), logger = run(Path(folder), **schedule, breaks=at)
        assert measured(norms), "the first step is always measured"
        assert_each_once(logger.norms, norms, schedule["log_every"])
        assert_each_once(logger.activations, activations, schedule["log_every"])


@pytest.mark.filterwarnings("ignore:Checkpoint directory", "ignore:You're resuming from a checkpoint that ended")
@settings(max_examples=8, deadline=None)
@given(SCHEDULES, st.integers(1, 20))
def test_a_resumed_run_logs_what_comes_after_its_checkpoint(schedule, at):
    with tempfile.TemporaryDirectory() as folder:
        _, first = run(Path(folder), **schedule, breaks=at)
        saved = sorted(Path(folder).glob("*.ckpt"), key=lambda path: int(path.stem.split("=")[1]))
        if not saved or schedule["steps"] <= int(saved[-1].stem.split("=")[1]):
            return
        begin = int(saved[-1].stem.split("=")[1])
        (norms, activations), second = run(Path(folder), **schedule, resume=saved[-1])
        every = schedule["log_every"]
        over = begin // every * every if schedule["every"] < every else begin  # what the resumed run does not do again
        assert_each_once([step for step in first.norms if step < over] + second.norms, norms, every)
        seen = [step for step in first.activations if step < over] + second.activations
        assert_each_once(seen, activations, every)


@pytest.mark.parametrize(("steps", "points"), [(85, 7), (204, 9)])
def test_the_default_trainer_which_writes_a_checkpoint_each_epoch(tmp_path, steps, points):
    (norms, _), logger = run(tmp_path, steps=steps, log_every=50, save_every=6, every=100)
    assert_each_once(logger.norms, norms, 50)
    assert len(logger.norms) == points, "steps 1, 2, 4, ... 64, 100, 200"
