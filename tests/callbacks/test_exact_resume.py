"""A run that is killed and resumed ends as the run that was not, to the last bit."""

import multiprocessing
import os
import random
import signal
import warnings
from copy import copy

import numpy as np
import pytest
import torch
from fault_scenarios import fit
from helpers import quiet_trainer, run_ranks
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from stopping_models import Noisy, Scripted, assert_same, dots, noise, tensors
from torch.utils.data import DataLoader, TensorDataset

import lightning_tricks as lt

warnings_off = pytest.mark.filterwarnings("ignore::UserWarning")


class Augmented(Noisy):
    """Draws from every global stream while training: Python's, NumPy's and (dropout, noise) torch's."""

    def __init__(self):
        super().__init__()
        self.rates = []

    def training_step(self, batch, batch_idx):
        self.rates.append((self.global_step, self.optimizers().param_groups[0]["lr"]))
        draws = random.random(), np.random.rand(), torch.randn_like(batch[0])  # noqa: NPY002
        return super().training_step((batch[0] + 0.1 * sum(draws), batch[1]), batch_idx)


class StatefulLoader:
    """Shuffles from the global stream and knows its place, like torchdata's loader."""

    def __init__(self, n=48, batch_size=8):
        self.data, self.batch_size = noise(0, n).dataset, batch_size
        self.order, self.place, self.loaded = [], 0, False

    def __len__(self):
        return len(self.data) // self.batch_size

    def __iter__(self):
        if not self.loaded:
            self.order, self.place = torch.randperm(len(self.data)).tolist(), 0
        self.loaded = False
        return self.rows()

    def rows(self):
        while self.place < len(self):
            rows = self.order[self.place * self.batch_size :][: self.batch_size]
            self.place += 1
            yield [torch.stack(column) for column in zip(*(self.data[row] for row in rows), strict=True)]

    def state_dict(self):
        return {"order": list(self.order), "place": self.place}

    def load_state_dict(self, state):
        self.order, self.place, self.loaded = state["order"], state["place"], True


class Kill(Callback):
    """The machine goes away: no handler runs, nothing is flushed."""

    def __init__(self, step):
        self.step, self.seen = step, 0

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


WAYS = {
    "epochs": ({}, {}, lambda: noise(0, shuffle=True)),
    "own generator, accumulation": (
        {"accumulate_grad_batches": 4},
        {},
        lambda: noise(0, shuffle=True, generator=torch.Generator().manual_seed(5)),
    ),
    "rare validation": ({"check_val_every_n_epoch": 2}, {}, lambda: noise(0, shuffle=True)),
    "mid-epoch": ({"val_check_interval": 3}, {"every_n_train_steps": 4}, StatefulLoader),
    "validation in mid-epoch": ({"val_check_interval": 2}, {}, StatefulLoader),
}


def run(folder, way, *, kill_at=None, ckpt=None, averaged=False, keep="cpu"):
    options, saving, loader = WAYS[way]
    module = Augmented()
    stopping = lt.EarlyStopping("val_loss", patience=4, keep=keep, dirpath=str(folder))
    plateau = lt.ReduceLROnPlateau("val_loss", factor=0.5, patience=1)
    saver = ModelCheckpoint(folder, filename="{step}", save_last=True, **saving)
    callbacks = [plateau, stopping, lt.ExactResume(), saver]
    callbacks += [Kill(kill_at)] if kill_at is not None else []
    callbacks += [EMAWeightAveraging(decay=0.8)] if averaged else []
    fit(
        module,
        callbacks,
        train=loader(),
        val=noise(1),
        max_epochs=10,
        enable_checkpointing=True,
        ckpt=ckpt,
        num_sanity_val_steps=0,
        **options,
    )
    return module, stopping, plateau


def die(*args, **options):
    """Run in a process of its own until it kills itself."""
    process = multiprocessing.get_context("fork").Process(target=run, args=args, kwargs=options)
    process.start()
    process.join(timeout=60)
    assert process.exitcode == -signal.SIGKILL


def check_same_end(whole, resumed):
    assert resumed[0].rates == whole[0].rates[-len(resumed[0].rates) :]
    assert len(resumed[0].rates) < len(whole[0].rates)
    assert resumed[2].reductions == whole[2].reductions
    for name in ("reason", "best_epoch", "best_step", "best_score", "wait_count", "stopped_epoch", "message"):
        assert getattr(resumed[1], name) == getattr(whole[1], name)
    assert_same(tensors(resumed[0]), tensors(whole[0]))


@warnings_off
@pytest.mark.parametrize("way", WAYS)
def test_killed_and_resumed_is_the_same_run(way, tmp_path):
    whole = run(tmp_path / "whole", way)
    steps = whole[0].trainer.global_step
    assert whole[2].reductions
    assert whole[1].best_step < steps
    places = [10] if way == "mid-epoch" else random.Random(way).sample(range(7, steps - 1), 1)
    if way == "epochs":
        places = random.Random(0).sample(range(7, steps - 1), 5)
    for place in places:
        folder = tmp_path / str(place)
        die(folder, way, kill_at=place)
        check_same_end(whole, run(folder, way, ckpt=folder / "last.ckpt"))


def test_a_checkpoint_that_skips_a_validation_is_told(tmp_path):
    """Lightning skips a validation that was due right after the checkpoint; nobody can count what is not measured."""
    saver = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=4, save_top_k=-1)
    options = {"max_epochs": 2, "enable_checkpointing": True, "val_check_interval": 2}
    with pytest.warns(UserWarning, match="a validation was due right after this checkpoint"):
        fit(Scripted(lambda m: 1.0), [lt.ExactResume(), saver], train=dots(16), **options)
    other = ModelCheckpoint(tmp_path / "other", every_n_train_steps=3, save_top_k=-1)
    fit(Scripted(lambda m: 1.0), [lt.ExactResume(), other], train=dots(16), **{**options, "max_epochs": 1})
    rare = ModelCheckpoint(tmp_path / "rare", every_n_train_steps=2, save_top_k=-1)
    options |= {"max_epochs": 1, "check_val_every_n_epoch": 2}
    fit(Scripted(lambda m: 1.0), [lt.ExactResume(), rare], train=dots(16), **options)


@warnings_off
@pytest.mark.parametrize("options", [{"averaged": True}, {"keep": "disk"}], ids=["averaged", "disk"])
def test_best_weights_survive_the_kill(options, tmp_path):
    whole = run(tmp_path / "whole", "epochs", **options)
    place = whole[1].best_step + 4  # after the best, before the end: the best is only in the checkpoint
    die(tmp_path / "dies", "epochs", kill_at=place, **options)
    check_same_end(whole, run(tmp_path / "dies", "epochs", ckpt=tmp_path / "dies" / "last.ckpt", **options))


@warnings_off
def test_without_the_callback_the_run_is_another_one(tmp_path):
    """The test above can fail."""

    def train(callbacks, ckpt=None):
        module = Augmented()
        saver = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
        options = {"train": noise(0, shuffle=True), "val": noise(1), "max_epochs": 5, "enable_checkpointing": True}
        fit(module, [*callbacks, saver], ckpt=ckpt, **options)
        return tensors(module)

    whole = train([])
    resumed = train([], ckpt=tmp_path / "epoch=2.ckpt")
    assert not all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_checkpoints_load_with_weights_only(tmp_path):
    saver = ModelCheckpoint(tmp_path, filename="all")
    fit(Noisy(), [lt.ExactResume(), lt.EarlyStopping("val_loss", patience=3), lt.ReduceLROnPlateau("val_loss"), saver],
        train=noise(0), val=noise(1), max_epochs=2, enable_checkpointing=True)  # fmt: skip
    saved = torch.load(tmp_path / "all.ckpt", weights_only=True)
    assert set(saved["lightning_tricks.ExactResume"]["ranks"][0]) == {"streams", "generators", "loaders"}


@warnings_off
def test_it_moves_no_stream(tmp_path):
    def train(callbacks):
        module = Augmented()
        saver = ModelCheckpoint(tmp_path, save_last=True)
        fit(module, [*callbacks, saver], train=noise(0, shuffle=True), val=noise(1), max_epochs=3,
            enable_checkpointing=True)  # fmt: skip
        return tensors(module)

    assert_same(train([lt.ExactResume()]), train([]))


@warnings_off
def test_a_checkpoint_without_streams_is_told(tmp_path):
    saver = ModelCheckpoint(tmp_path, filename="plain")
    fit(Scripted(lambda m: 1.0), [saver], max_epochs=1, enable_checkpointing=True)
    with pytest.warns(UserWarning, match="written without ExactResume, so the resumed run is not exactly the same"):
        fit(Scripted(lambda m: 1.0), [lt.ExactResume(), copy(saver)], max_epochs=2, enable_checkpointing=True,
            ckpt=tmp_path / "plain.ckpt")  # fmt: skip


def test_a_validation_of_a_checkpoint_without_streams_is_no_resume(tmp_path):
    saver = ModelCheckpoint(tmp_path, filename="plain")
    fit(Scripted(lambda m: 1.0), [saver], max_epochs=1, enable_checkpointing=True)
    trainer = quiet_trainer(callbacks=[lt.ExactResume(), copy(saver)], enable_checkpointing=True)
    trainer.validate(Scripted(lambda m: 1.0), dots(), ckpt_path=tmp_path / "plain.ckpt", verbose=False)


class PerRank(Noisy):
    """Every rank draws its own numbers."""

    def training_step(self, batch, batch_idx):
        return super().training_step((batch[0] + torch.randn_like(batch[0]), batch[1]), batch_idx)


def _ranks(rank, folder):
    warnings.simplefilter("ignore")
    results = []
    for ckpt in (None, f"{folder}/epoch=2.ckpt"):
        module = PerRank()
        stopping, plateau = lt.EarlyStopping("val_loss", patience=3), lt.ReduceLROnPlateau("val_loss", patience=1)
        saver = ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1)

        class OwnSeed(Callback):
            def on_train_start(self, trainer, module):
                if ckpt is None:  # noqa: B023
                    torch.manual_seed(trainer.global_rank)

        fit(module, [OwnSeed(), stopping, plateau, lt.ExactResume(), saver], train=noise(0, shuffle=True), val=noise(1),
            max_epochs=6, strategy="ddp", devices=2, enable_checkpointing=True, ckpt=ckpt)  # fmt: skip
        results.append(tensors(module))
    assert_same(*results)


def test_every_rank_gets_its_own_streams_back(tmp_path):
    run_ranks(_ranks, str(tmp_path))


def test_loaders_that_are_combined_or_missing():
    exact = lt.ExactResume()
    both = {"a": dots(), "b": DataLoader(TensorDataset(torch.ones(8, 2)), 4, shuffle=True, generator=torch.Generator())}

    class Two(Scripted):
        def training_step(self, batch, batch_idx):
            return self.net(batch["a"][0]).sum() + self.net(batch["b"][0]).sum()

    saver = ModelCheckpoint(".", filename="two")
    fit(Two(lambda m: 1.0), [exact, saver], train=both, max_epochs=1, enable_checkpointing=True)
    saved = torch.load("two.ckpt", weights_only=True)["lightning_tricks.ExactResume"]["ranks"][0]
    assert len(saved["generators"]) == 1
