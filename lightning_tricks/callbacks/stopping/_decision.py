"""Whether a run is to stop, decided from the values of its metrics, without a Trainer."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason

from lightning_tricks._base import check_choice
from lightning_tricks.callbacks.stopping._improvement import Improvement, Margin, Smooth, Verdict, combined
from lightning_tricks.callbacks.stopping._stop_reason import Limits

Unit = Literal["checks", "epochs", "steps", "minutes"]
AfterDrop = Literal["renew", "ignore"]
NanPolicy = Literal["stop", "count", "ignore", "restore"]


class StoppingDecision:
    """Follows the metrics of one run and says when it is to stop; what ``EarlyStopping`` and the stacks share.

    Args:
        monitor: names of the metrics; ``baseline`` and the thresholds are for the first one.
        mode: whether smaller or larger is better, for each name.
        patience: how long to go on without improvement, in ``unit``, at least 0.
        unit: what positions count.
        min_delta: what counts as an improvement: more than this much, at least 0.
        min_delta_mode: ``"absolute"``, or ``"relative"`` to the size of the value to beat.
        start_from: values up to this position are warm-up.
        baseline: value to beat from the start.
        stopping_threshold: stop as soon as the first metric is better than this.
        divergence_threshold: stop as soon as the first metric is worse than this.
        require: whether ``"all"`` metrics or ``"any"`` must have run out of patience.
        smooth: wait on an ``"ema"`` or running ``"median"``.
        smooth_window: number of values for ``smooth``.
        nan: ``"stop"`` at a value that is not finite, ``"ignore"`` it; otherwise it counts as a miss.
        after_lr_drop: ``"renew"`` gives a fresh patience when the learning rate was lowered; ``"ignore"`` does not.
        stop: False never stops.

    Attributes:
        rules: one :class:`Improvement` for each name.
        exhausted: whether each metric has run out of patience.
        last: the latest value of the first metric, None before.

    Example:
        >>> decision = StoppingDecision(["val_loss"], mode={"val_loss": "min"}, patience=2)
        >>> for value in (2.0, 1.0, 1.5, 1.2):
        ...     _ = decision.update({"val_loss": value})
        >>> decision.reason.name, decision.explain(decision.reason)
        ('PATIENCE_EXHAUSTED', 'val_loss has not improved for 2 checks.')
    """

    def __init__(
        self,
        monitor: Sequence[str],
        *,
        mode: Mapping[str, Literal["min", "max"]],
        patience: float,
        unit: Unit = "checks",
        min_delta: float = 0.0,
        min_delta_mode: Margin = "absolute",
        start_from: float = 0,
        baseline: float | None = None,
        stopping_threshold: float | None = None,
        divergence_threshold: float | None = None,
        require: Literal["all", "any"] = "all",
        smooth: Smooth | None = None,
        smooth_window: int = 5,
        nan: NanPolicy = "stop",
        after_lr_drop: AfterDrop = "renew",
        stop: bool = True,
    ) -> None:
        self.monitors = tuple(monitor)
        self.unit = check_choice("unit", unit, ["checks", "epochs", "steps", "minutes"])
        self.require = check_choice("require", require, ["all", "any"])
        self.after_lr_drop = check_choice("after_lr_drop", after_lr_drop, ["renew", "ignore"])
        check_choice("nan", nan, ["stop", "count", "ignore", "restore"])
        self.stop = stop
        self._limits = Limits(stopping_threshold, divergence_threshold, finite=nan == "stop")
        self.rules = {
            name: Improvement(
                mode=mode[name],
                patience=patience,
                margin=min_delta,
                margin_kind=min_delta_mode,
                start_from=start_from,
                baseline=baseline if name == self.monitors[0] else None,
                nan=nan,
                smooth=smooth,
                window=smooth_window,
            )
            for name in self.monitors
        }
        self.reset()

    def reset(self) -> None:
        """Forget everything seen."""
        for rule in self.rules.values():
            rule.reset()
        self.exhausted = dict.fromkeys(self.monitors, False)
        self.last: float | None = None
        self.drops_seen = 0

    @property
    def first(self) -> Improvement:
        """The rule of the metric that chooses the best weights."""
        return self.rules[self.monitors[0]]

    def update(self, values: Mapping[str, float | None], at: float | None = None, *, drops: int = 0) -> Verdict | None:
        """Take new values.

        Args:
            values: by name; None for a metric without a new value.
            at: their position, in ``unit``; the number of values so far if None.
            drops: how often the learning rate was lowered so far.

        Returns:
            What the first metric's value meant; None if it has no new one.
        """
        verdicts = {name: self.rules[name].update(value, at) for name, value in values.items() if value is not None}
        for name, verdict in verdicts.items():
            if verdict.counted:
                self.exhausted[name] = verdict.exhausted
        if self.monitors[0] in verdicts:
            self.last = values[self.monitors[0]]
        if drops > self.drops_seen and self.after_lr_drop == "renew":
            for name, rule in self.rules.items():
                rule.renew()
                self.exhausted[name] = False
        self.drops_seen = drops
        return verdicts.get(self.monitors[0])

    @property
    def reason(self) -> EarlyStoppingReason:
        """Why the run is to stop now; ``NOT_STOPPED`` if it is not."""
        if not self.stop:
            return EarlyStoppingReason.NOT_STOPPED
        reason = self._limits.reason(self.last, self.first)
        if reason == EarlyStoppingReason.NOT_STOPPED and combined(self.exhausted.values(), self.require):
            return EarlyStoppingReason.PATIENCE_EXHAUSTED
        return reason

    def explain(self, reason: EarlyStoppingReason) -> str:
        """Return the reason in one sentence."""
        several = f" ({self.require} of {', '.join(self.monitors)})" if len(self.monitors) > 1 else ""
        return self._limits.explain(reason, self.monitors[0], self.last, f"{self.first.wait:g} {self.unit}{several}")

    def adopt(self, reference: float | None, wait: int) -> None:
        """Go on from the first metric's value to beat and its checks without improvement, counted elsewhere."""
        self.first.adopt(reference, wait if self.unit == "checks" else 0)
        self.exhausted[self.monitors[0]] = self.first.exhausted

    def state_dict(self) -> dict[str, Any]:
        """Return what was seen, as plain numbers."""
        return {
            "rules": {name: rule.state_dict() for name, rule in self.rules.items()},
            "exhausted": dict(self.exhausted),
            "last": self.last,
            "drops_seen": self.drops_seen,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what :meth:`state_dict` returned; the settings stay those of the constructor."""
        for name, rule in self.rules.items():
            if name in state["rules"]:
                rule.load_state_dict(state["rules"][name])
                self.exhausted[name] = rule.exhausted
        self.last, self.drops_seen = state["last"], state["drops_seen"]
