"""Give up runs that will not become good, as a hyperparameter search tells."""

import math
from typing import Any, Literal, Protocol

from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_tricks._base import (
    MissingMetricError,
    UserInputError,
    check_choice,
    infer_mode,
    monitored_value,
    require_extra,
)
from lightning_tricks.callbacks._stop_request import StopRequest
from lightning_tricks.callbacks._trainer import resumes


class Reportable(Protocol):
    """What the callback needs of a trial; ``optuna.Trial`` has it."""

    def report(self, value: float, step: int) -> None:
        """Take note of an intermediate value."""

    def should_prune(self) -> bool:
        """Whether the run should be given up."""


class PruningCallback(Callback):
    """Report a metric to a trial after each validation, and stop the run when the trial's pruner says so.

    Rank zero alone talks to the trial, and all ranks stop together, so any Optuna storage and any strategy will do.
    The sanity check is not reported, several validations in one epoch are steps of their own. Without a validation loop
    each training epoch takes a validation's place. A metric that was not logged, and a run that ends before its first
    validation, are errors that name the metrics that exist. Training ends in the ordinary way (loggers and checkpoints
    are finished); :meth:`raise_if_pruned` then tells Optuna.

    Args:
        trial: anything with ``report(value, step)`` and ``should_prune()``, such as an ``optuna.Trial``; on ranks other
            than zero it is not touched.
        monitor: name of the metric, logged in validation, or in training if there is no validation loop.
        mode: ``"min"``, ``"max"``, or ``"auto"`` to tell by the metric's name.

    Attributes:
        pruned: whether the trial was given up.
        best_value: the best finite value so far; what an objective should return, rather than the last one.
        best_epoch: the epoch of the best value.
        validations: number of validations reported.

    Raises:
        UserInputError: for a trial that cannot be reported to.
        MissingMetricError: at the first validation without the metric, or at the end of a run without any validation;
            with the names that do exist.

    Example:
        >>> import lightning.pytorch as pl, lightning_tricks as lt
        >>> class Impatient:
        ...     def report(self, value, step): print(f"validation {step}")
        ...     def should_prune(self): return True
        >>> pruning = PruningCallback(Impatient(), "val_loss")
        >>> trainer = pl.Trainer(max_epochs=5, callbacks=[pruning], accelerator="cpu", logger=False,
        ...     enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
        >>> trainer.fit(lt.Classifier(lt.MLP(64, 10), 10), lt.DigitsDataModule(batch_size=512))
        validation 0
        >>> pruning.pruned, trainer.current_epoch
        (True, 1)
    """

    def __init__(self, trial: Reportable, monitor: str, *, mode: Literal["auto", "min", "max"] = "auto") -> None:
        if not (callable(getattr(trial, "report", None)) and callable(getattr(trial, "should_prune", None))):
            raise UserInputError(
                f"trial must have report(value, step) and should_prune(), as optuna.Trial has, but got {trial!r}."
            )
        check_choice("mode", mode, ("auto", "min", "max"))
        self.trial = trial
        self.monitor = monitor
        self.mode = infer_mode(monitor, mode)
        self._reset()

    def _reset(self) -> None:
        self.stop_request = StopRequest()
        self.pruned = False
        self.best_value: float | None = None
        self.best_epoch: int | None = None
        self.validations = 0

    def state_dict(self) -> dict[str, Any]:
        """Return the count of validations and the best value."""
        return {"validations": self.validations, "best_value": self.best_value, "best_epoch": self.best_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting where the checkpoint was written."""
        self.validations = state_dict["validations"]
        self.best_value = state_dict["best_value"]
        self.best_epoch = state_dict["best_epoch"]

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep what was seen when weights are loaded for a validation or test."""
        resumes(self, trainer, checkpoint)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Begin a new fit."""
        if stage == "fit":
            self._reset()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report, ask, and stop on all ranks together."""
        if not trainer.sanity_checking and trainer.state.fn == "fit":
            self._check(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Where there is no validation loop, do the same after each epoch of training."""
        if not trainer.enable_validation:
            self._check(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse a run that validated nothing: its trial would have no value."""
        if self.validations == 0:
            known = ", ".join(sorted(map(str, trainer.callback_metrics))) or "none"
            raise MissingMetricError(
                f"PruningCallback monitors {self.monitor!r}, but training ended before any validation. Logged in "
                f"training: {known}. Train longer, or validate earlier (check_val_every_n_epoch, val_check_interval)."
            )

    def _check(self, trainer: Trainer) -> None:
        value, missing, prune = float("nan"), None, False
        if trainer.is_global_zero:
            try:
                value = float(monitored_value(trainer, self.monitor, who="PruningCallback"))
            except MissingMetricError as error:
                missing = str(error)
            else:
                self.trial.report(value, self.validations)
                prune = bool(self.trial.should_prune())
        # One collective, whatever happened, so that no rank waits for another for ever.
        value, missing, prune = trainer.strategy.broadcast((value, missing, prune))
        if missing is not None:
            raise MissingMetricError(missing)
        self._note(value, trainer.current_epoch)
        self.validations += 1
        self.pruned = prune
        if prune:
            self.stop_request.ask(trainer)

    def _note(self, value: float, epoch: int) -> None:
        if not math.isfinite(value):
            return
        better = self.best_value is None or (value < self.best_value if self.mode == "min" else value > self.best_value)
        if better:
            self.best_value, self.best_epoch = value, epoch

    def raise_if_pruned(self) -> None:
        """Raise ``optuna.TrialPruned`` if the run was given up; to be called after ``trainer.fit``.

        Raises:
            optuna.TrialPruned: if so.
        """
        if self.pruned:
            optuna = require_extra("optuna", "tune", "PruningCallback.raise_if_pruned()")
            raise optuna.TrialPruned(f"given up after {self.validations} validations")
