"""Why a run stops, decided and said without a Trainer."""

import math
from dataclasses import dataclass

from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason

from lightning_tricks.callbacks.stopping._best_weights import Best
from lightning_tricks.callbacks.stopping._improvement import Improvement


@dataclass(frozen=True)
class Limits:
    """Values at which a run stops at once.

    Args:
        stopping: stop when the metric is better than this; None for never.
        divergence: stop when the metric is worse than this; None for never.
        finite: stop when the metric is not finite.
    """

    stopping: float | None
    divergence: float | None
    finite: bool

    def reason(self, value: float | None, rule: Improvement) -> EarlyStoppingReason:
        """Whether ``value`` (None: not seen yet) is past a limit."""
        if value is None:
            return EarlyStoppingReason.NOT_STOPPED
        if not math.isfinite(value):
            return EarlyStoppingReason.NON_FINITE_METRIC if self.finite else EarlyStoppingReason.NOT_STOPPED
        if self.stopping is not None and rule.beats(value, self.stopping):
            return EarlyStoppingReason.STOPPING_THRESHOLD
        if self.divergence is not None and rule.beats(self.divergence, value):
            return EarlyStoppingReason.DIVERGENCE_THRESHOLD
        return EarlyStoppingReason.NOT_STOPPED

    def explain(self, reason: EarlyStoppingReason, name: str, value: float | None, waited: str) -> str:
        """Say the reason in one sentence.

        Args:
            reason: the reason.
            name: the metric.
            value: its last value.
            waited: how long it has not improved, with the unit.
        """
        value = math.nan if value is None else value
        return {
            EarlyStoppingReason.NOT_STOPPED: "Training ended without an early stop.",
            EarlyStoppingReason.PATIENCE_EXHAUSTED: f"{name} has not improved for {waited}.",
            EarlyStoppingReason.STOPPING_THRESHOLD: f"{name} = {value:.6g} is better than {self.stopping}.",
            EarlyStoppingReason.DIVERGENCE_THRESHOLD: (
                f"{name} = {value:.6g} is worse than divergence_threshold={self.divergence}."
            ),
            EarlyStoppingReason.NON_FINITE_METRIC: f"{name} = {value} is not a finite number.",
        }[reason]


def describe_end(name: str, best: Best | None, *, restored: bool, epochs: int, steps: int) -> str:
    """Say how long the run was and which weights the module has now.

    Example:
        >>> describe_end("val_loss", Best(0.25, epoch=3, step=40), restored=True, epochs=6, steps=60)
        'It ended after 6 epochs and 60 steps; the module has the weights of epoch 3 (step 40), val_loss = 0.25.'
    """
    length = f"It ended after {epochs} epochs and {steps} steps"
    if best is None:
        return f"{length} and the module keeps its last weights."
    earned = f"epoch {best.epoch} (step {best.step}), {name} = {best.score:.6g}"
    if restored:
        return f"{length}; the module has the weights of {earned}."
    return f"{length} and the module keeps its last weights; the best was {earned}."
