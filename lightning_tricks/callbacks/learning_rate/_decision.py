"""Whether the learning rate is to fall, decided from the values of a metric, without a Trainer."""

from collections.abc import Callable
from typing import Literal, NamedTuple

from lightning_tricks._base import check_choice, check_range
from lightning_tricks.callbacks.stopping._improvement import Improvement, Margin, Smooth, Verdict

Convention = Literal["torch", "keras"]
NanPolicy = Literal["count", "ignore", "stop"]


class PlateauStep(NamedTuple):
    """What one value leads to: the verdict on it, what is to be done, and why in one sentence."""

    verdict: Verdict
    action: Literal["go on", "reduce", "stop"]
    why: str


class PlateauDecision:
    """Follows one metric and says when to lower the learning rate; what callback, simulation and stacks share.

    Args:
        monitor: the metric's name, for messages.
        mode: whether smaller or larger is better.
        patience: checks without improvement that are tolerated, at least 0.
        cooldown: checks after a reduction that do not count, at least 0.
        threshold: margin by which a value must be better to count.
        threshold_mode: ``"relative"`` or ``"absolute"``.
        convention: how ``patience`` and ``cooldown`` are counted, ``"torch"`` or ``"keras"``.
        start_from: the first so many checks are warm-up.
        smooth: judge an ``"ema"`` or running ``"median"``.
        smooth_window: number of values for ``smooth``.
        nan: what a value that is not finite does.
        stop_after: stop at the plateau after so many reductions, or after ``"min_lr"`` is reached.

    Example:
        >>> decision = PlateauDecision("val_loss", mode="min", patience=1)
        >>> [decision.judge(value, reductions=0, at_floor=lambda: False).action for value in (1.0, 1.0, 1.0)]
        ['go on', 'go on', 'reduce']
    """

    def __init__(
        self,
        monitor: str,
        *,
        mode: Literal["min", "max"],
        patience: int = 10,
        cooldown: int = 0,
        threshold: float = 1e-4,
        threshold_mode: Margin = "relative",
        convention: Convention = "torch",
        start_from: int = 0,
        smooth: Smooth | None = None,
        smooth_window: int = 5,
        nan: NanPolicy = "count",
        stop_after: int | Literal["min_lr"] | None = None,
    ) -> None:
        check_choice("convention", convention, ["torch", "keras"])
        check_range("patience", patience, low=0)
        check_range("cooldown", cooldown, low=0)
        if stop_after is not None and stop_after != "min_lr":
            check_range("stop_after", stop_after, low=0)
        self.monitor = monitor
        self.nan = check_choice("nan", nan, ["count", "ignore", "stop"])
        self.stop_after = stop_after
        self._ignored_checks = cooldown if convention == "torch" else max(0, cooldown - 1)
        self.rule = Improvement(
            mode=mode,
            patience=patience + (convention == "torch"),
            margin=threshold,
            margin_kind=threshold_mode,
            start_from=start_from,
            nan=nan,
            smooth=smooth,
            window=smooth_window,
        )

    def judge(self, value: float, *, reductions: int, at_floor: Callable[[], bool]) -> PlateauStep:
        """Take a new value.

        Args:
            value: the metric.
            reductions: how many were made so far.
            at_floor: tells whether a reduction would change nothing; asked on a plateau only.
        """
        verdict = self.rule.update(value)
        if not verdict.finite and self.nan == "stop":
            return PlateauStep(verdict, "stop", f"{self.monitor} = {value} is not a finite number.")
        if not verdict.exhausted:
            return PlateauStep(verdict, "go on", "")
        floor = at_floor()
        if floor if self.stop_after == "min_lr" else self.stop_after is not None and reductions >= self.stop_after:
            done = "the learning rate is at its floor" if floor else f"{reductions} reductions are made"
            return PlateauStep(verdict, "stop", f"{self.monitor} is on a plateau again, and {done}.")
        self.rule.renew(cooldown=self._ignored_checks)
        return PlateauStep(verdict, "reduce", f"{self.monitor} is on a plateau")
