"""What held-out rows teach a predictor: a temperature, and how wide its sets or intervals must be."""

from dataclasses import dataclass

from torch import Tensor

from lightning_tricks._base import UserInputError
from lightning_tricks.modules.monte_carlo._batches import Task
from lightning_tricks.modules.monte_carlo._metrics import fitting, told
from lightning_tricks.uncertainty import ConformalInterval, ConformalSet, TemperatureScaling


@dataclass(frozen=True)
class Calibration:
    """A fitted temperature and a conformal promise.

    Attributes:
        temperature: divides the logits; 1 for a regression.
        conformal: sets of classes, or intervals.
    """

    temperature: float
    conformal: ConformalSet | ConformalInterval

    @classmethod
    def fit(cls, task: Task, summary: dict[str, Tensor], target: Tensor, *, level: float) -> "Calibration":
        """Fit on the summaries of held-out rows; for classes they hold the ``samples``, ``(N, S, C)``.

        Rows whose class is below zero are left out, as in a test.
        """
        if task == "regression":
            target = target.reshape(summary["mean"].shape).to(summary["mean"].dtype)
            return cls(1.0, ConformalInterval.fit(summary["mean"], target, std=_spread(summary), level=level))
        if summary["mean"].ndim != 2:
            shape = tuple(summary["mean"].shape[1:])
            raise UserInputError(f"calibrate needs probabilities (N, C), but each row has {shape}.")
        samples, target = told(summary["samples"], fitting(target, summary["mean"], task))
        probs = samples.movedim(0, 1)  # (S, N, C)
        scaling = TemperatureScaling.fit(probs, target)
        mean = scaling(probs).mean(dim=0)
        return cls(scaling.temperature, ConformalSet.fit(mean, target, level=level))

    def bounds(self, summary: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return ``set``, or ``lower`` and ``upper``, for new rows."""
        if isinstance(self.conformal, ConformalSet):
            return {"set": self.conformal(summary["mean"])}
        low, high = self.conformal(summary["mean"], _spread(summary))
        return {"lower": low, "upper": high}


def _spread(summary: dict[str, Tensor]) -> Tensor:
    return summary["total_variance"].sqrt() if "total_variance" in summary else summary["std"]
