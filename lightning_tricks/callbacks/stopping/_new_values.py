"""Which monitored values are new, and one number for all ranks."""

from collections.abc import Collection, Sequence

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from lightning_tricks._base import MissingMetricError, monitored_value, warn_once


class FreshValues:
    """Tells a metric that was logged anew from one that merely still stands in ``trainer.callback_metrics``.

    Lightning never clears ``callback_metrics``, but every computation of a metric is a new tensor. We hold the one
    that was counted last, so that its memory cannot be used again, and compare addresses. A metric that a validation
    has logged is from then on read after validation only: every look at ``callback_metrics`` makes Lightning go
    through all metrics.

    Args:
        monitors: names of the metrics to follow.
    """

    def __init__(self, monitors: Sequence[str]) -> None:
        self.monitors = tuple(monitors)
        self.known: set[str] = set()
        self._of_validation: set[str] = set()
        self._counted: dict[str, Tensor] = {}
        self._before: dict[str, Tensor] = {}

    def validation_starts(self, trainer: Trainer) -> None:
        """Note what stands before a validation run."""
        if self._all_of_validation:
            self._before = dict(self._counted)
            return
        metrics = trainer.callback_metrics
        self._before = {name: metrics[name] for name in self.monitors if name in metrics}

    def after_validation(self, trainer: Trainer, clock: float = 0.0) -> tuple[list[float | None], float]:
        """Return what this validation run logged (None: nothing), equal on all ranks, and rank zero's clock."""
        values, clock = self._take(trainer, self._before, clock)
        self._of_validation |= {name for name, value in zip(self.monitors, values, strict=True) if value is not None}
        return values, clock

    def after_training(self, trainer: Trainer, clock: float = 0.0) -> tuple[list[float | None], float]:
        """Return what was logged since the last count, equal on all ranks, and rank zero's clock."""
        if self._all_of_validation:
            return [None] * len(self.monitors), clock
        return self._take(trainer, self._counted, clock, leave_out=self._of_validation)

    @property
    def _all_of_validation(self) -> bool:
        return len(self._of_validation) == len(set(self.monitors))  # agreed on by all ranks, as the values are

    def _take(
        self, trainer: Trainer, old: dict[str, Tensor], clock: float, *, leave_out: Collection[str] = ()
    ) -> tuple[list[float | None], float]:
        metrics = trainer.callback_metrics
        local: list[Tensor | None] = []
        for name in self.monitors:
            value = metrics.get(name)
            stale = value is None or name in leave_out or (name in old and value.data_ptr() == old[name].data_ptr())
            local.append(None if stale else value)
            if value is not None and not stale:
                self._counted[name] = value
        values, clock = agree(trainer, local, clock)
        self.known |= {name for name, value in zip(self.monitors, values, strict=True) if value is not None}
        return values, clock


def agree(trainer: Trainer, local: Sequence[Tensor | None], clock: float) -> tuple[list[float | None], float]:
    """Average each value over the ranks that have it; take rank zero's clock.

    One collective, on every rank whether or not it has a value: a metric that is logged on one rank only must not
    leave the others waiting. Double precision, so that ranks that agree already keep their number to the last bit.
    """
    if trainer.world_size == 1:
        return [None if value is None else float(value) for value in local], clock
    numbers = [0.0 if value is None else float(value) for value in local]
    have = [float(value is not None) for value in local]
    mine = [*numbers, *have, clock if trainer.is_global_zero else 0.0]
    message = torch.tensor(mine, dtype=torch.float64, device=trainer.strategy.root_device)
    total = trainer.strategy.reduce(message, reduce_op="sum").tolist()
    n = len(local)
    return [total[i] / total[n + i] if total[n + i] else None for i in range(n)], total[-1]


def complain_if_missing(trainer: Trainer, monitor: str, *, who: str, strict: bool) -> None:
    """Say that a metric was never logged, and which were.

    Raises:
        MissingMetricError: if ``strict``.
    """
    try:
        monitored_value(trainer, monitor, who=who)
    except MissingMetricError as error:
        if strict:
            raise
        warn_once(str(error))
