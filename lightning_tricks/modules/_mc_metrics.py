"""The same metrics with dropout off and on, side by side."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric, MeanSquaredError

from lightning_tricks._base import UserInputError
from lightning_tricks.modules._mc_batches import Task
from lightning_tricks.uncertainty import (
    AURC,
    AdaptiveCalibrationError,
    BrierScore,
    IntervalCoverage,
    NegativeLogLikelihood,
    UncertaintyAUROC,
)

# Half the width of a Gaussian interval that holds 90 %.
_Z90 = 1.6448536


class OffAndOn(nn.Module):
    """Metrics of one stage, for the prediction with dropout off and the mean of the samples.

    Args:
        task: what the predictions are.
    """

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.task = task
        self.off = nn.ModuleDict(_metrics(task))
        self.on = nn.ModuleDict(_metrics(task))

    def update(self, off: Mapping[str, Tensor], on: Mapping[str, Tensor], target: Tensor) -> None:
        """Add a batch: summaries (``mean`` at least) with dropout off and on, and the truth."""
        for metrics, summary in ((self.off, off), (self.on, on)):
            if self.task == "regression":
                _update_regression(metrics, summary, target)
            else:
                _update_classification(metrics, summary["mean"], target, self.task)

    def compute(self) -> dict[str, Tensor]:
        """Return ``{metric}_dropout_off`` and ``{metric}_dropout_on`` over all rows of all ranks, and start anew."""
        values = {}
        for state, metrics in (("off", self.off), ("on", self.on)):
            for name, metric in metrics.items():
                if metric.update_called:
                    values[f"{name}_dropout_{state}"] = metric.compute()  # type: ignore[operator]
                    metric.reset()  # type: ignore[operator]
        return values


def _metrics(task: Task) -> dict[str, nn.Module]:
    if task == "regression":
        return {"rmse": MeanSquaredError(squared=False), "nll": MeanMetric(), "coverage90": IntervalCoverage()}
    return {
        "acc": MeanMetric(),
        "nll": NegativeLogLikelihood(),
        "brier": BrierScore(),
        "ace": AdaptiveCalibrationError(),
        "aurc": AURC(),
        "error_auroc": UncertaintyAUROC(),
    }


def _update_classification(metrics: nn.ModuleDict, probs: Tensor, target: Tensor, task: Task) -> None:
    probs, target = probs.detach().float(), target.reshape(_target_shape(probs, task)).long()
    if task != "multiclass":
        probs = torch.stack([1 - probs, probs], dim=1)
    confidence, label = probs.max(dim=1)
    wrong = label != target
    entropy = -torch.special.xlogy(probs, probs).sum(dim=1)
    metrics["acc"].update((~wrong).float())  # type: ignore[operator]
    for name in ("nll", "brier", "ace"):
        metrics[name].update(probs, target)  # type: ignore[operator]
    metrics["aurc"].update(confidence, wrong)  # type: ignore[operator]
    metrics["error_auroc"].update(entropy, wrong)  # type: ignore[operator]


def _target_shape(probs: Tensor, task: Task) -> tuple[int, ...]:
    return (probs.shape[0], *probs.shape[2:]) if task == "multiclass" else tuple(probs.shape)


def _update_regression(metrics: nn.ModuleDict, summary: Mapping[str, Tensor], target: Tensor) -> None:
    mean = summary["mean"].float()
    if mean.numel() != target.numel():
        raise UserInputError(
            f"targets must have the predictions' shape {tuple(mean.shape)}, but got {tuple(target.shape)}."
        )
    target = target.reshape(mean.shape).float()
    metrics["rmse"].update(mean.contiguous(), target)  # type: ignore[operator]
    variance = summary.get("total_variance")
    if variance is None:
        return
    reach = _Z90 * variance.sqrt()
    metrics["coverage90"].update(mean - reach, mean + reach, target)  # type: ignore[operator]
    nll = nn.functional.gaussian_nll_loss(mean, target, variance, full=True, reduction="none")
    metrics["nll"].update(nll)  # type: ignore[operator]
