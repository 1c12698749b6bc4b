"""How far probabilities are from frequencies: pure functions."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lightning_tricks._base import UserInputError, check_choice, check_range


@dataclass(frozen=True)
class CalibrationBins:
    """What a reliability diagram shows; all on the CPU.

    Attributes:
        edges: ends of the bins, ``(bins + 1,)``.
        confidence: mean confidence of each bin, NaN where it is empty, ``(bins,)``.
        accuracy: share of right answers of each bin, NaN where it is empty, ``(bins,)``.
        count: answers in each bin, ``(bins,)``.
    """

    edges: Tensor
    confidence: Tensor
    accuracy: Tensor
    count: Tensor


def calibration_bins(
    confidence: Float[Tensor, "*shape"],
    correct: Bool[Tensor, "*shape"],
    *,
    bins: int = 15,
    binning: Literal["width", "count"] = "width",
) -> CalibrationBins:
    """Group answers by confidence and compare with how often they were right.

    Args:
        confidence: of each answer, from 0 to 1.
        correct: whether it was right.
        bins: how many groups, at least 1.
        binning: ``"width"``: equal steps of confidence, each bin without its lower end, as Guo et al.;
            ``"count"``: equally many answers in each (adaptive); where a cut parts equal confidences, both sides get
            their mean accuracy, so nothing depends on the order of the rows.

    Raises:
        UserInputError: if there is nothing to group, or an option or a confidence is out of its range.

    Example:
        >>> groups = calibration_bins(torch.tensor([0.9, 0.9, 0.3]), torch.tensor([True, False, True]), bins=2)
        >>> groups.count, groups.accuracy
        (tensor([1, 2]), tensor([1.0000, 0.5000]))
    """
    check_range("bins", bins, low=1)
    check_choice("binning", binning, ["width", "count"])
    confidence, right = confidence.detach().flatten().cpu(), correct.flatten().cpu()
    if not len(confidence):
        raise UserInputError("expected at least one answer, but got none.")
    if bool(confidence.isnan().any()) or bool(((confidence < 0) | (confidence > 1 + 1e-3)).any()):
        raise UserInputError("confidence must be between 0 and 1 without NaN. Take the largest mean probability.")
    if binning == "width":
        edges = torch.linspace(0, 1, bins + 1, dtype=confidence.dtype)
        group = (torch.bucketize(confidence, edges) - 1).clamp(0, bins - 1)
    else:
        ordered, order = confidence.sort()
        tie = (ordered.diff(prepend=ordered[:1]) != 0).cumsum(0)
        right = (torch.bincount(tie, weights=right[order].double()) / torch.bincount(tie))[tie]
        cuts = torch.arange(bins + 1) * len(confidence) // bins
        group = torch.bucketize(torch.arange(len(order)), cuts[1:-1], right=True)
        edges = torch.cat([ordered[cuts[:-1].clamp_max(len(ordered) - 1)], ordered[-1:]])
        confidence = ordered
    return _grouped(edges, group, confidence, right)


def _grouped(edges: Tensor, group: Int[Tensor, " n"], confidence: Tensor, right: Tensor) -> CalibrationBins:
    bins = len(edges) - 1
    count = torch.bincount(group, minlength=bins)
    total = torch.bincount(group, weights=confidence.double(), minlength=bins)
    hits = torch.bincount(group, weights=right.double(), minlength=bins)
    return CalibrationBins(edges.float(), (total / count).float(), (hits / count).float(), count)


def expected_calibration_error(
    confidence: Float[Tensor, "*shape"],
    correct: Bool[Tensor, "*shape"],
    *,
    bins: int = 15,
    binning: Literal["width", "count"] = "width",
) -> float:
    """Mean gap between confidence and accuracy over groups of answers, weighted by their size.

    Args:
        confidence: of each answer, from 0 to 1.
        correct: whether it was right.
        bins: how many groups, at least 1.
        binning: ``"width"`` (Guo et al.) or ``"count"``, the adaptive error with equally many answers per group.

    Returns:
        The error, from 0 (calibrated) to 1.

    Raises:
        UserInputError: as :func:`calibration_bins`.

    Example:
        >>> round(expected_calibration_error(torch.tensor([0.9, 0.9]), torch.tensor([True, False])), 4)
        0.4

    Reference:
        Guo et al., "On calibration of modern neural networks" (2017), equation 3; adaptive: Nguyen & O'Connor (2015).
    """
    groups = calibration_bins(confidence, correct, bins=bins, binning=binning)
    gaps = (groups.accuracy - groups.confidence).abs().nan_to_num() * groups.count
    return (gaps.sum() / groups.count.sum()).item()
