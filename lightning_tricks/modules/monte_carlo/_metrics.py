"""The same metrics with dropout off and on, side by side."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric, MeanSquaredError, Metric
from torchmetrics.utilities import dim_zero_cat

from lightning_tricks._base import UserInputError
from lightning_tricks.modules.monte_carlo._batches import Task
from lightning_tricks.uncertainty import (
    BrierScore,
    IntervalCoverage,
    NegativeLogLikelihood,
    aurc,
    expected_calibration_error,
    uncertainty_auroc,
)

# Half the width of a Gaussian interval that holds 90 %.
_Z90 = 1.6448536


class Answers(NamedTuple):
    """Every answer of a set, ``(N,)`` each.

    Attributes:
        confidence: probability of the answer that was given.
        entropy: of all answers that could have been given, in nats.
        wrong: whether it was a mistake.
    """

    confidence: Tensor
    entropy: Tensor
    wrong: Tensor


class KeptAnswers(Metric):
    """Keeps three numbers per answer, for what is no mean over answers; one store serves metrics and pictures."""

    full_state_update = False
    is_differentiable = False
    kept: list[Tensor]

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("kept", default=[], dist_reduce_fx="cat")

    def update(self, confidence: Tensor, entropy: Tensor, wrong: Tensor) -> None:
        """Add answers: three tensors of one shape."""
        self.kept.append(torch.stack([x.detach().flatten().float() for x in (confidence, entropy, wrong)], dim=1))

    def compute(self) -> Answers:
        """Return the answers of all ranks."""
        confidence, entropy, wrong = dim_zero_cat(self.kept).reshape(-1, 3).T
        return Answers(confidence, entropy, wrong.bool())


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

    def compute(self) -> tuple[dict[str, Tensor], dict[str, Answers]]:
        """Return ``{metric}_dropout_off`` and ``..._on`` over all rows of all ranks, and the answers; start anew.

        The answers come under ``"off"`` and ``"on"``; a regression has none.
        """
        values: dict[str, Tensor] = {}
        answers: dict[str, Answers] = {}
        for state, metrics in (("off", self.off), ("on", self.on)):
            for name, metric in metrics.items():
                if not metric.update_called:
                    continue
                result = metric.compute()  # type: ignore[operator]
                metric.reset()  # type: ignore[operator]
                if isinstance(result, Answers):
                    answers[state] = result
                    values |= {f"{key}_dropout_{state}": value for key, value in _ranking_scores(result).items()}
                else:
                    values[f"{name}_dropout_{state}"] = result
        return values, answers


def told(probs: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Leave out what has no target: below zero, as `torch.nn.CrossEntropyLoss` has it with its -100."""
    known = target >= 0
    return (probs, target) if bool(known.all()) else (probs[known], target[known])


def fitting(target: Tensor, probs: Tensor, task: Task) -> Tensor:
    """Return class targets in the shape that the probabilities ask for.

    Raises:
        UserInputError: if there are too many or too few, or a class is too large.
    """
    shape = (probs.shape[0], *probs.shape[2:]) if task == "multiclass" else tuple(probs.shape)
    if target.shape.numel() != torch.Size(shape).numel():
        raise UserInputError(
            f"targets must have the shape {shape} for probabilities {tuple(probs.shape)}, but got "
            f"{tuple(target.shape)}. If the model's classes are on another axis than 1, pass class_dim."
        )
    target = target.reshape(shape).long()
    if task == "multiclass" and bool((target >= probs.shape[1]).any()):
        raise UserInputError(
            f"targets must be classes from 0 to {probs.shape[1] - 1}, but got {int(target.max())}. "
            "Turn those to be left out into -100."
        )
    return target


def _metrics(task: Task) -> dict[str, nn.Module]:
    if task == "regression":
        nll = MeanMetric(nan_strategy="disable")  # its default drops NaN and gives the mean of the rest
        return {"rmse": MeanSquaredError(squared=False), "nll": nll, "coverage90": IntervalCoverage()}
    return {"nll": NegativeLogLikelihood(), "brier": BrierScore(), "answers": KeptAnswers()}


def _ranking_scores(answers: Answers) -> dict[str, Tensor]:
    confidence, entropy, wrong = answers
    scores = {"acc": 1 - wrong.float().mean()}
    if not len(confidence) or bool(confidence.isnan().any()):  # a diverged net is told by NaN, not by an error
        unknown = torch.full((), torch.nan, device=confidence.device)
        return scores | dict.fromkeys(("ece", "ace", "aurc", "error_auroc"), unknown)
    return scores | {
        "ece": confidence.new_tensor(expected_calibration_error(confidence, ~wrong)),
        "ace": confidence.new_tensor(expected_calibration_error(confidence, ~wrong, binning="count")),
        "aurc": aurc(confidence, wrong),
        "error_auroc": uncertainty_auroc(entropy, wrong),
    }


def _update_classification(metrics: nn.ModuleDict, probs: Tensor, target: Tensor, task: Task) -> None:
    probs, target = probs.detach().float(), fitting(target, probs, task)
    if task != "multiclass":
        probs = torch.stack([1 - probs, probs], dim=1)
    probs, target = told(probs.movedim(1, -1).reshape(-1, probs.shape[1]), target.flatten())
    confidence, label = probs.max(dim=1)
    entropy = -torch.special.xlogy(probs, probs).sum(dim=1)
    metrics["answers"].update(confidence, entropy, label != target)  # type: ignore[operator]
    for name in ("nll", "brier"):
        metrics[name].update(probs, target)  # type: ignore[operator]


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
