"""The course's advice in one list."""

from typing import Literal

from lightning.pytorch import Callback

from lightning_tricks._base import check_range
from lightning_tricks.callbacks._exact_resume import ExactResume
from lightning_tricks.callbacks._weight_init import WeightInit
from lightning_tricks.callbacks.learning_rate._plateau import ReduceLROnPlateau
from lightning_tricks.callbacks.norms._norm_monitor import NormMonitor
from lightning_tricks.callbacks.stopping._early_stopping import EarlyStopping


def recipe(
    monitor: str = "val_loss", *, mode: Literal["auto", "min", "max"] = "auto", patience: int = 20
) -> list[Callback]:
    """Return the course's defaults together: initialise, lower the learning rate, stop and restore, watch, resume.

    In the list: :class:`WeightInit` for layers that still hold torch's default weights (loaded and hand-made weights
    are left alone), :class:`ReduceLROnPlateau` after half of the patience, :class:`EarlyStopping` that restores the
    best weights, :class:`NormMonitor`, and :class:`ExactResume`. Any of them may be removed, any other callback added,
    in any order.

    Args:
        monitor: the metric to watch, logged after each validation.
        mode: whether smaller or larger is better; from the name unless said.
        patience: checks without improvement after which training stops, at least 2.

    Raises:
        UserInputError: if ``patience`` is out of range.

    Example:
        >>> [type(callback).__name__ for callback in recipe("val_loss")]
        ['WeightInit', 'ReduceLROnPlateau', 'EarlyStopping', 'NormMonitor', 'ExactResume']
    """
    check_range("patience", patience, low=2)
    return [
        WeightInit("auto", only_new=True),
        ReduceLROnPlateau(monitor, mode=mode, patience=patience // 2),
        # A reduction that helps renews the patience by its improvement; one that does not must not prolong the run.
        EarlyStopping(monitor, mode=mode, patience=patience, after_lr_drop="ignore"),
        NormMonitor(),
        ExactResume(),
    ]
