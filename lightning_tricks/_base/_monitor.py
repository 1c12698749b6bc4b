"""Look up a monitored metric, and say what exists when it does not."""

import re
from difflib import get_close_matches
from typing import Literal

from lightning.pytorch import Trainer
from torch import Tensor

from lightning_tricks._base._messages import UserInputError

# Words of metrics that grow when the model gets better; every other metric is taken for a loss.
_LARGER_IS_BETTER = frozenset(
    {"acc", "accuracy", "auc", "auroc", "bleu", "dice", "f1", "iou"}
    | {"map", "miou", "precision", "psnr", "r2", "recall", "score", "ssim"}
)


class MissingMetricError(UserInputError):
    """The monitored metric was not logged."""


def monitored_value(trainer: Trainer, monitor: str, *, who: str) -> Tensor:
    """Return the latest value of a logged metric as a 0-d tensor.

    Args:
        trainer: the trainer whose ``callback_metrics`` to read.
        monitor: the metric's name.
        who: who asks, for the message ("EarlyStopping").

    Raises:
        MissingMetricError: with the names that do exist.
    """
    if monitor in trainer.callback_metrics:
        return trainer.callback_metrics[monitor]
    known = ", ".join(sorted(map(str, trainer.callback_metrics))) or "none yet"
    raise MissingMetricError(
        f"{who} monitors {monitor!r}, but that metric was not logged. Logged so far: {known}. "
        f"Log it with self.log({monitor!r}, value), or monitor one of these."
    )


def check_monitor_early(trainer: Trainer, monitor: str, *, who: str) -> None:
    """Look for a monitored validation metric right after the sanity check, before training starts.

    A metric may well be logged in training only, or be left out of the sanity check, so a missing one is an error only
    where the validation logged a name that it seems to be misspelt from.

    Args:
        trainer: the trainer, at ``on_sanity_check_end``.
        monitor: the metric's name.
        who: who asks, for the message ("EarlyStopping").

    Raises:
        MissingMetricError: with the names that do exist.
    """
    logged = sorted(map(str, trainer.callback_metrics))
    if monitor in logged or monitor.startswith("train"):
        return
    if nearest := get_close_matches(monitor, logged, n=1, cutoff=0.8):
        raise MissingMetricError(
            f"{who} monitors {monitor!r}, but the sanity check's validation logged {', '.join(logged)}. "
            f"Did you mean {nearest[0]!r}?"
        )


def infer_mode(monitor: str, mode: Literal["auto", "min", "max"] = "auto") -> Literal["min", "max"]:
    """Tell whether smaller or larger is better, from the name unless said.

    Example:
        >>> infer_mode("val_loss"), infer_mode("val_acc"), infer_mode("val_acc", "min")
        ('min', 'max', 'min')
    """
    if mode != "auto":
        return mode
    words = set(re.split(r"[^a-z0-9]+", monitor.lower()))
    if words & {"loss", "error"}:
        return "min"
    return "max" if words & _LARGER_IS_BETTER else "min"
