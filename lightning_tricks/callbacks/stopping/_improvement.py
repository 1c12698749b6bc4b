"""What "improved" means, without a Trainer: one class for early stopping and for plateaus."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

from lightning_tricks._base import check_choice, check_range

Margin = Literal["absolute", "relative"]
Smooth = Literal["ema", "median"]


@dataclass(frozen=True)
class Verdict:
    """What one value meant.

    Args:
        finite: neither NaN nor infinite.
        counted: it moved the patience (it was neither in the warm-up nor an ignored NaN).
        new_best: strictly better than every counted value before.
        improved: better than the reference by more than the margin.
        exhausted: patience is used up.
    """

    finite: bool = True
    counted: bool = False
    new_best: bool = False
    improved: bool = False
    exhausted: bool = False


class Improvement:
    """Follows one metric: its best, how long it has not improved, and whether patience is used up.

    Two values are followed. ``best`` is the true best, to the last bit. ``reference`` is what a new value must beat by
    more than the margin to renew the patience. Positions (of checks, epochs, steps or minutes) are 1-based and never
    decrease; ``since`` is the position from which misses count, so that a cooldown is nothing but a ``since`` that
    lies ahead.

    Args:
        mode: whether smaller or larger is better.
        patience: positions without improvement, at which :attr:`Verdict.exhausted` becomes true, at least 0; at 0
            as at 1, the first value that does not improve does it.
        margin: by how much a value must beat the reference, at least 0; strictly.
        margin_kind: ``"absolute"``, or ``"relative"`` to the size of the reference (``margin * abs(reference)``, right
            for negative values too).
        start_from: values up to this position are neither counted nor candidates for the best.
        baseline: the first reference; None for the first value.
        nan: ``"ignore"`` drops a value that is not finite; otherwise it is a miss. It is never an improvement, not
            even ``-inf`` of a loss.
        smooth: judge the reference by an exponential moving average (``2 / (window + 1)`` new) or the running median
            of the last values; the true best is always the raw value.
        window: number of values for ``smooth``, at least 1.

    Example:
        >>> rule = Improvement(mode="min", patience=2)
        >>> [rule.update(value).exhausted for value in (3.0, 2.0, 2.5, 2.0)]
        [False, False, False, True]
        >>> rule.best, rule.wait
        (2.0, 2)
    """

    def __init__(
        self,
        *,
        mode: Literal["min", "max"],
        patience: float,
        margin: float = 0.0,
        margin_kind: Margin = "absolute",
        start_from: float = 0,
        baseline: float | None = None,
        nan: str = "count",
        smooth: Smooth | None = None,
        window: int = 5,
    ) -> None:
        self.mode = check_choice("mode", mode, ["min", "max"])
        self.patience = check_range("patience", patience, low=0)
        self.margin = check_range("margin", margin, low=0, high=math.inf, open_high=True)
        self.margin_kind = check_choice("margin_kind", margin_kind, ["absolute", "relative"])
        self.start_from = check_range("start_from", start_from, low=0)
        self.baseline = baseline
        self.nan = nan
        self.smooth = check_choice("smooth", smooth, ["ema", "median"]) if smooth else None
        self.window = int(check_range("window", window, low=1))
        self.reset()

    def reset(self) -> None:
        """Forget everything seen."""
        self.checks = 0
        self.best: float | None = None
        self.reference = self.baseline
        self.position: float = 0
        self.since: float = self.start_from
        self._recent: list[float] = []

    @property
    def wait(self) -> float:
        """Positions since the last improvement (or since a cooldown ended), at least 0."""
        return max(0, self.position - self.since)

    @property
    def exhausted(self) -> bool:
        """Whether patience is used up; never at an improvement, in the warm-up or in a cooldown."""
        return self.position > self.since and self.wait >= self.patience

    def update(self, value: float, at: float | None = None) -> Verdict:
        """Take a new value.

        Args:
            value: the metric.
            at: its position; the number of values so far, this one included, if not given.
        """
        finite = math.isfinite(value)
        if not finite and self.nan == "ignore":
            return Verdict(finite=False)
        self.checks += 1
        self.position = self.checks if at is None else at
        if self.position <= self.start_from:
            return Verdict(finite=finite)
        new_best = improved = False
        if finite:
            new_best = self.best is None or self._better(value, self.best)
            smoothed = self._smoothed(value)
            improved = self.reference is None or self._better(smoothed, self._bar(self.reference))
            if new_best:
                self.best = value
            if improved:
                self.reference = smoothed
                self.renew()
        return Verdict(finite, True, new_best, improved, self.exhausted)

    def renew(self, *, cooldown: float = 0) -> None:
        """Give the full patience again, counted from ``cooldown`` positions ahead."""
        self.since = max(self.since, self.position + cooldown)

    def adopt(self, reference: float | None, wait: int) -> None:
        """Go on from the value to beat and the number of misses of a run that was counted elsewhere; warm-up is over.

        Args:
            reference: the value to beat; None if there is none yet.
            wait: checks since it was earned, at least 0.
        """
        self.reset()
        self.reference = self.baseline if reference is None else reference
        self.checks = int(self.start_from) + wait
        self.position, self.since = self.start_from + wait, self.start_from

    def beats(self, value: float, bound: float) -> bool:
        """Whether ``value`` is strictly better than ``bound``, margins aside."""
        return self._better(value, bound)

    def state_dict(self) -> dict[str, Any]:
        """Return what was seen, as plain numbers."""
        names = ("checks", "best", "reference", "position", "since")
        return {name: getattr(self, name) for name in names} | {"recent": list(self._recent)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what :meth:`state_dict` returned; the settings stay those of the constructor."""
        self.checks, self.best, self.reference = state["checks"], state["best"], state["reference"]
        self.position, self.since = state["position"], state["since"]
        self._recent = list(state["recent"])[-self.window :]

    def _better(self, value: float, bound: float) -> bool:
        return value < bound if self.mode == "min" else value > bound

    def _bar(self, reference: float) -> float:
        direction = -1 if self.mode == "min" else 1
        if self.margin_kind == "absolute":
            return reference + direction * self.margin
        # One product, as in torch, so that positive metrics give torch's answer to the last bit.
        return reference * (1 + direction * math.copysign(1, reference) * self.margin)

    def _smoothed(self, value: float) -> float:
        if self.smooth is None:
            return value
        if self.smooth == "median":
            self._recent = [*self._recent, value][-self.window :]
            return median(self._recent)
        share = 2 / (self.window + 1)
        self._recent = [value if not self._recent else share * value + (1 - share) * self._recent[-1]]
        return self._recent[-1]


def combined(exhausted: Iterable[bool], require: Literal["all", "any"]) -> bool:
    """Whether several metrics together have run out of patience."""
    return all(exhausted) if require == "all" else any(exhausted)
