"""Keep the best weights through a run, into its checkpoints and out of them."""

import re
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from torch import Tensor

from lightning_tricks._base import UserInputError, check_choice, warn_once
from lightning_tricks.callbacks._trainer import callbacks_of
from lightning_tricks.callbacks.stopping import _best_weights as weights
from lightning_tricks.callbacks.stopping._best_weights import Best, Keep
from lightning_tricks.callbacks.stopping._validated import (
    ValidatedWeights,
    optimizer_modes,
    put_back_modes,
    switch_back,
)

WRITTEN = (
    "something wrote the parameters between the validation and the end of it (the switch of a schedule-free optimizer, "
    "an average?), so the weights that earned this value are gone and are not kept. From the next validation on they "
    "are copied in time."
)


class BestKeeper:
    """Holds a :class:`Best` and moves it: from the module, to the module, into a checkpoint, out of a checkpoint.

    Args:
        who: the callback, for messages.
        key: name of the entry in a checkpoint.
        keep: ``"cpu"`` and ``"device"`` hold one copy in memory, each rank its own part; ``"disk"`` writes a file.
        hold: False keeps only the score and where it was earned.
        optimizer: keep the optimizers' memory too.
        folder: where files go; ``default_root_dir/best_weights`` if None.
    """

    def __init__(
        self, who: str, key: str, *, keep: Keep, hold: bool, optimizer: bool = False, folder: str | None = None
    ) -> None:
        self.who, self.key = who, key
        self.keep = check_choice("keep", keep, ["cpu", "device", "disk"])
        self.hold, self.optimizer, self.folder = hold, optimizer, folder
        self.best: Best | None = None
        self._validated = ValidatedWeights(self.keep)
        self._token: str | None = None
        self._last: dict[str, Tensor] | None = None
        self.reset()

    def reset(self) -> None:
        """Forget the best of an earlier fit."""
        self.best, self._token, self._last = None, None, None
        self._validated.reset()
        self._files: list[str] = []  # written in this fit
        self._in_checkpoints: list[str] = []

    def check(self, trainer: Trainer, module: LightningModule) -> None:
        """Refuse what cannot work, before training starts.

        Raises:
            UserInputError: for optimizer state of a sharded model.
        """
        if self.optimizer and weights.is_sharded(module):
            raise UserInputError(
                f"{self.who}(restore_optimizer=True) does not work with sharded parameters: their optimizer state is "
                "spread over the ranks. Leave restore_optimizer out; weights and buffers are restored."
            )

    def validation_batch_starts(self, trainer: Trainer, module: LightningModule, batch_idx: int, loader: int) -> None:
        """Note the weights with which a validation begins."""
        if self.hold and batch_idx == 0 and loader == 0 and not trainer.sanity_checking:
            self._validated.begin(trainer, module)

    def take(self, trainer: Trainer, module: LightningModule, score: float, *, validated: bool) -> bool:
        """Keep what earned ``score``; return False if it could not be written (the previous best then stays).

        Args:
            trainer: the running trainer.
            module: its module.
            score: the new best value.
            validated: the value comes from a validation run, which averaged weights (if any) went through.
        """
        best = Best(score, trainer.current_epoch, trainer.global_step)
        if not self.hold:
            self.best = best
            return True
        written, copied = self._validated.end(module) if validated else (False, None)
        if written and copied is None:
            warn_once(f"{self.who}: {WRITTEN}")
            return False
        best = replace(best, modes=self._validated.modes if validated else optimizer_modes(trainer))
        source = (weights.averaged(trainer) if validated else None) or module
        optimizers = weights.copy_optimizers(trainer) if self.optimizer else None
        if self.keep == "disk":
            return self._take_to_disk(trainer, module, replace(best, optimizers=optimizers), source, copied or {})
        tensors = weights.copy_tensors(source, self.keep) | (copied or {})
        self.best = replace(best, tensors=tensors, optimizers=optimizers)
        return True

    def put_back(self, trainer: Trainer, module: LightningModule, *, for_good: bool = False) -> bool:
        """Write the best weights into the module; tell whether there were any. ``for_good`` frees their memory."""
        if self.best is None or not self.has_weights:
            return False
        modes = optimizer_modes(trainer)
        weights.restore(trainer, module, self.best, average_too=True)
        put_back_modes(trainer, self.best.modes)
        if not for_good:
            switch_back(trainer, modes)
        if for_good:
            self.best = replace(self.best, tensors=None, file=None, optimizers=None, in_module=True)
        return True

    def put_back_after_exception(self, trainer: Trainer, module: LightningModule) -> bool:
        """Do the same; a checkpoint that another callback writes because of the exception gets the last weights."""
        if self.best is None or not self.has_weights:
            return False
        if any(_saves_on_exception(callback) for callback in callbacks_of(trainer)):
            self._last = weights.copy_tensors(module, "cpu")
        weights.restore(trainer, module, self.best, average_too=False)
        put_back_modes(trainer, self.best.modes)
        return True

    @property
    def has_weights(self) -> bool:
        """Whether there is something to put back."""
        return self.best is not None and (self.best.tensors is not None or self.best.file is not None)

    def save(self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Write into a checkpoint; called on every rank."""
        if self.best is None:
            return
        if self._last is not None:
            weights.put_back(module, self._last)
            state = {name: tensor.clone() for name, tensor in trainer.strategy.lightning_module_state_dict().items()}
            weights.restore(trainer, module, self.best, average_too=False)
            # where WeightAveraging moves the module's own weights to, if it came first
            checkpoint["current_model_state" if "current_model_state" in checkpoint else "state_dict"] = state
        entry = asdict(replace(self.best, tensors=None, optimizers=None))
        entry["optimizers"] = self.best.optimizers
        entry["tensors"] = None if self.best.tensors is None else weights.gather(module, self.best.tensors)
        checkpoint[self.key] = entry
        if self.best.file is not None:
            self._in_checkpoints = [*self._in_checkpoints, self.best.file][-2:]

    def load(self, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Read from a checkpoint; called on every rank."""
        entry = checkpoint.get(self.key)
        if entry is None:
            return
        best = Best(**entry)
        if best.file is not None and not Path(best.file).exists():
            warn_once(
                f"{self.who}: the best weights of the checkpoint (step {best.step}) were in {best.file}, which is "
                "gone. The best is looked for anew from here on.",
            )
            return
        if best.in_module:
            best = replace(best, tensors=weights.copy_tensors(module, "cpu") if self.hold else None, in_module=False)
        elif best.tensors is not None:
            best = replace(best, tensors=weights.scatter(module, best.tensors))
        if not self.hold or best.tensors is not None or best.file is not None:
            self.best = best  # otherwise it was saved without weights, and the best is looked for anew

    def _take_to_disk(
        self, trainer: Trainer, module: LightningModule, best: Best, source: Any, copied: dict[str, Tensor]
    ) -> bool:
        sharded = weights.is_sharded(module)
        path = self._path(trainer, best.step, sharded)
        writes = sharded or trainer.local_rank == 0
        tensors = weights.copy_tensors(source, "cpu") | copied if writes else {}
        content = {"tensors": tensors, "optimizers": best.optimizers} if writes else {}
        written = not writes or self._written(path, content)
        # all ranks keep the new best or all keep the old one
        if not trainer.strategy.reduce_boolean_decision(written, all=True):
            return False
        self.best = replace(best, file=str(path), optimizers=None)
        self._files.append(str(path))
        if writes:
            self._tidy()
        return True

    def _tidy(self) -> None:
        """Delete files that neither the present best nor the last two checkpoints need."""
        needed = {*self._in_checkpoints, self.best.file if self.best else None}
        for file in [file for file in self._files if file not in needed]:
            Path(file).unlink(missing_ok=True)
            self._files.remove(file)

    def _written(self, path: Path, content: dict[str, Any]) -> bool:
        try:
            weights.write_file(path, content)
        except (OSError, RuntimeError) as error:  # torch's zip writer turns a full disk into a RuntimeError
            kept = "no best weights are kept yet" if self.best is None else f"those of step {self.best.step} stay"
            warn_once(
                f"{self.who} could not write the best weights to {path}: {error}. Training goes on; {kept}.",
                key=f"best weights not written: {path}",
            )
            return False
        return True

    def _path(self, trainer: Trainer, step: int, sharded: bool) -> Path:
        if self._token is None:  # two runs in one folder must not overwrite each other
            self._token = trainer.strategy.broadcast(f"{time.time_ns():x}")
        folder = Path(self.folder or Path(trainer.default_root_dir) / "best_weights")
        name = re.sub(r"[^\w-]+", "_", self.key).strip("_")
        part = f"-rank{trainer.global_rank}" if sharded else ""
        return folder / f"{name}-{self._token}-step{step}{part}.pt"


def _saves_on_exception(callback: Callback) -> bool:
    return isinstance(callback, Checkpoint) and not (
        isinstance(callback, ModelCheckpoint) and not callback.save_on_exception
    )
