"""Weights & Biases that never costs a run."""

from argparse import Namespace
from collections.abc import Callable, Mapping
from typing import Any

from lightning.fabric.loggers.logger import _DummyExperiment, rank_zero_experiment
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from lightning_tricks._base import warn_once


class TolerantWandbLogger(WandbLogger):
    """Lightning's ``WandbLogger``, except that its failures never stop training: they are said once.

    Lightning's own stops the run when W&B is not logged in, cannot be reached, or can no longer write. Here a run that
    cannot be begun is given up with a warning, and so is a line that cannot be written; training goes on.
    :class:`~lightning_tricks.ExactResume` and everything else are as with Lightning's logger.

    Args:
        **options: of :class:`lightning.pytorch.loggers.WandbLogger`, such as ``project``, ``name``, ``save_dir``,
            ``offline``, ``group``, and ``id`` to go on with a run.

    Attributes:
        gave_up: whether there is no run to write to.

    Example:
        >>> import lightning as L, lightning_tricks as lt
        >>> trainer = L.Trainer(logger=lt.TolerantWandbLogger(project="digits", offline=True), accelerator="cpu")
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.gave_up = False

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The W&B run; one that swallows everything if there is none."""
        if not self.gave_up:
            try:
                return super().experiment
            except Exception as error:
                self.gave_up = True
                warn_once(f"Weights & Biases could not begin a run: {_short(error)}. Training goes on without it.")
        return _DummyExperiment()

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Write numbers, or say once that they cannot be written."""
        self._try(super().log_metrics, metrics, step)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace) -> None:
        """Write settings, or say once that they cannot be written."""
        self._try(super().log_hyperparams, params)

    def after_save_checkpoint(self, checkpoint_callback: ModelCheckpoint) -> None:
        """Send a checkpoint, if that was asked for."""
        self._try(super().after_save_checkpoint, checkpoint_callback)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Send the last checkpoints, if that was asked for."""
        self._try(super().finalize, status)

    def _try(self, write: Callable[..., Any], *args: Any) -> None:
        if self.gave_up:
            return
        try:
            write(*args)
        except Exception as error:
            warn_once(
                f"Weights & Biases could not write: {_short(error)}. Training goes on; this is not said again.",
                key=f"logger failed: {type(self).__name__}",  # as where pictures and tables are written
            )


def _short(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
