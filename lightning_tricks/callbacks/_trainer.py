"""What Lightning's ``Trainer`` has but does not declare."""

from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.trainer.states import TrainerFn


def callbacks_of(trainer: Trainer) -> list[Callback]:
    """Return the trainer's callbacks."""
    return trainer.callbacks  # type: ignore[attr-defined,no-any-return]  # set by its callback connector


def resumes(callback: Callback, trainer: Trainer, checkpoint: dict[str, Any]) -> bool:
    """Whether a checkpoint is loaded to go on training; else hide the callback's state in it.

    Lightning loads the state of callbacks for ``trainer.test(ckpt_path="best")`` as well, which would replace what the
    whole fit found by what was known when that checkpoint was written.
    """
    if trainer.state.fn == TrainerFn.FITTING:
        return True
    checkpoint.get("callbacks", {}).pop(callback.state_key, None)
    return False


def is_dry_run(trainer: Trainer) -> bool:
    """Whether this is a ``fast_dev_run``."""
    return bool(trainer.fast_dev_run)  # type: ignore[attr-defined]  # set by its debugging connector
