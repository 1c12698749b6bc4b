"""Put every random stream and the loaders' positions into checkpoints, so that a resumed run is the same run."""

from collections.abc import Iterator
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import CombinedLoader

from lightning_tricks._base import rng_state, set_rng_state, warn_once

_KEY = "lightning_tricks.ExactResume"


class ExactResume(Callback):
    """Make a run that was interrupted and resumed end bit-equal to one that was not.

    Lightning restores weights, optimizers, schedulers and counters, but no random-number state and, of several ranks,
    only rank zero's loader position. This callback saves with every checkpoint, for every rank: the streams of Python,
    NumPy, torch and CUDA, the generators given to training loaders and samplers, and the state of loaders that have
    one (``state_dict`` and ``load_state_dict``, such as torchdata's ``StatefulDataLoader``).

    Example:
        >>> import lightning.pytorch as pl, lightning_tricks as lt
        >>> trainer = pl.Trainer(callbacks=[lt.ExactResume()], logger=False, accelerator="cpu")
    """

    def __init__(self) -> None:
        self._pending: dict[str, Any] | None = None
        self._mid_epoch = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget an earlier fit."""
        self._pending = None

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Collect the streams and positions of all ranks."""
        if _validation_is_due(trainer):
            warn_once(
                "ExactResume: a validation was due right after this checkpoint, and Lightning skips it when resuming "
                f"(step {trainer.global_step}). Choose every_n_train_steps so that it does not meet a validation, or "
                "save after validation (ModelCheckpoint's default).",
                key="ExactResume: validation due",
            )
        loaders = list(_training_loaders(trainer))
        mine = {
            "streams": rng_state(),
            "generators": [generator.get_state() for generator in _generators(loaders)],
            "loaders": [loader.state_dict() for loader in loaders if _is_stateful(loader)],
        }
        epoch: Any = trainer.fit_loop.epoch_progress.current
        checkpoint[_KEY] = {"ranks": _gather(trainer, mine), "mid_epoch": epoch.processed < epoch.ready}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take this rank's part, and let the loaders of each rank find their own position."""
        if trainer.state.fn != TrainerFn.FITTING:
            return
        saved = checkpoint.get(_KEY)
        if saved is None or len(saved["ranks"]) != trainer.world_size:
            came = "without ExactResume" if saved is None else f"by {len(saved['ranks'])} processes"
            warn_once(f"ExactResume: the checkpoint was written {came}, so the resumed run is not exactly the same.")
            return
        self._pending, self._mid_epoch = saved["ranks"][trainer.global_rank], saved["mid_epoch"]
        if self._pending["loaders"]:
            checkpoint["loops"]["fit_loop"]["state_dict"]["combined_loader"] = self._pending["loaders"]
        set_rng_state(self._pending["streams"])

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the streams back once more: setting up the strategy may have drawn from them."""
        if self._pending is not None:
            set_rng_state(self._pending["streams"])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put everything back as it was when the checkpoint was written, now that the loaders exist.

        Between epochs the loader's iterator is made once more: making it draws a seed, and the first one was made
        before the loaders' own generators could be put back. Within an epoch there was nothing to draw.
        """
        if self._pending is None:
            return
        set_rng_state(self._pending["streams"])
        generators = _generators(_training_loaders(trainer))
        for generator, state in zip(generators, self._pending["generators"], strict=False):
            generator.set_state(state)
        fetcher = trainer.fit_loop._data_fetcher
        if not self._mid_epoch and fetcher is not None:
            iter(fetcher)
        self._pending = None


def _validation_is_due(trainer: Trainer) -> bool:
    """Whether a checkpoint at the end of a training batch comes just before a validation."""
    interval = trainer.val_check_batch
    if not trainer.training or not trainer.enable_validation or interval is None:
        return False
    epoch: Any = trainer.fit_loop.epoch_progress.current
    if epoch.processed == epoch.ready or not trainer.fit_loop.epoch_loop.batch_progress.current.ready:
        return False
    every = trainer.check_val_every_n_epoch
    if every is not None and (trainer.current_epoch + 1) % every:
        return False
    batches = trainer.fit_loop.total_batch_idx if every is None else trainer.fit_loop.batch_idx
    return trainer.is_last_batch if interval == float("inf") else (batches + 1) % interval == 0


def _training_loaders(trainer: Trainer) -> Iterator[Any]:
    loaders = trainer.train_dataloader
    if loaders is not None:
        yield from CombinedLoader(loaders).flattened


def _is_stateful(loader: Any) -> bool:
    return hasattr(loader, "state_dict") and hasattr(loader, "load_state_dict")


def _generators(loaders: Any) -> list[torch.Generator]:
    found: dict[int, torch.Generator] = {}
    for loader in loaders:
        sampler = getattr(loader, "sampler", None)
        for owner in (loader, sampler, getattr(loader, "batch_sampler", None)):
            generator = getattr(owner, "generator", None)
            if isinstance(generator, torch.Generator):
                found.setdefault(id(generator), generator)
    return list(found.values())


def _gather(trainer: Trainer, mine: dict[str, Any]) -> list[dict[str, Any]]:
    if trainer.world_size == 1:
        return [mine]
    ranks: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(ranks, mine)
    return ranks
