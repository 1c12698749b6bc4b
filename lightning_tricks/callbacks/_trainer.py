"""What Lightning's ``Trainer`` has but does not declare."""

from lightning.pytorch import Callback, Trainer


def callbacks_of(trainer: Trainer) -> list[Callback]:
    """Return the trainer's callbacks."""
    return trainer.callbacks  # type: ignore[attr-defined,no-any-return]  # set by its callback connector


def is_dry_run(trainer: Trainer) -> bool:
    """Tell whether this is a ``fast_dev_run``."""
    return bool(trainer.fast_dev_run)  # type: ignore[attr-defined]  # set by its debugging connector
