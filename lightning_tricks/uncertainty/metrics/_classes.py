"""torchmetrics classes over the pure functions: the same number from one process or from many.

What torchmetrics has is used as it is: ``CalibrationError`` (bins of equal width), ``MeanMetric`` over
:func:`mixture_log_likelihood` or :func:`crps`, ``ContinuousRankedProbabilityScore``. A NaN among the rows makes the
result NaN; it does not stop a run. (``MeanMetric`` drops NaN unless it is told ``nan_strategy="disable"``.)
"""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from lightning_tricks._base import UserInputError, check_range
from lightning_tricks.uncertainty.measures._classification import as_float, check_probabilities, check_shape
from lightning_tricks.uncertainty.metrics import _selective as selective
from lightning_tricks.uncertainty.metrics._calibration import expected_calibration_error
from lightning_tricks.uncertainty.metrics._regression import inside_interval


class _Rows(Metric, ABC):
    """Keeps two numbers per row until the end, for what is no mean over rows."""

    full_state_update = False
    is_differentiable = False
    first: list[Tensor]
    second: list[Tensor]

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("first", default=[], dist_reduce_fx="cat")
        self.add_state("second", default=[], dist_reduce_fx="cat")

    def update(self, first: Tensor, second: Tensor) -> None:
        """Add rows: two tensors of one shape."""
        if first.shape != second.shape:
            raise UserInputError(
                f"expected two tensors of one shape, but got {tuple(first.shape)} and {tuple(second.shape)}."
            )
        # One type everywhere: a process without rows joins in with empty float32.
        self.first.append(first.detach().flatten().float())
        self.second.append(second.detach().flatten().float())

    def compute(self) -> Tensor:
        """Return the number over all rows of all processes."""
        first, second = dim_zero_cat(self.first), dim_zero_cat(self.second)
        if bool(first.isnan().any()) or bool(second.isnan().any()):
            return torch.full((), torch.nan, device=first.device)
        return self._value(first, second)

    @abstractmethod
    def _value(self, first: Tensor, second: Tensor) -> Tensor: ...


class _MeanOverRows(Metric, ABC):
    """Keeps a sum and a count."""

    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("total", default=torch.zeros(()), dist_reduce_fx="sum")
        self.add_state("count", default=torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def _add(self, values: Tensor) -> None:
        self.total = self.total + values.detach().sum()
        self.count = self.count + values.numel()

    def compute(self) -> Tensor:
        """Return the mean over all rows of all processes; NaN if there was none."""
        return self.total / self.count


class AdaptiveCalibrationError(_Rows):
    """Calibration error of the top answer with equally many answers per group, from 0 to 1, lower is better.

    ``update(probs, target)``: probabilities ``(B, C, ...)`` and classes ``(B, ...)``, or the probability of a yes and
    0/1, both of one shape.

    Args:
        bins: how many groups, at least 1.
        **kwargs: torchmetrics' own options.

    Raises:
        UserInputError: if ``bins`` is too small or the values do not fit.

    Example:
        >>> metric = AdaptiveCalibrationError(bins=1)
        >>> metric(torch.tensor([[0.9, 0.1], [0.7, 0.3]]), torch.tensor([0, 1]))
        tensor(0.3000)

    Reference:
        Nguyen & O'Connor, "Posterior calibration and exploratory analysis for NLP models" (2015), section 4.
    """

    higher_is_better = False

    def __init__(self, bins: int = 15, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.bins = int(check_range("bins", bins, low=1))

    def update(self, probs: Tensor, target: Tensor) -> None:
        """Add predictions and truths."""
        confidence, label = _class_probabilities(probs, target).max(dim=1)
        super().update(confidence, label == target)

    def _value(self, first: Tensor, second: Tensor) -> Tensor:
        error = expected_calibration_error(first, second > 0, bins=self.bins, binning="count")
        return torch.as_tensor(error, device=first.device)


class BrierScore(_MeanOverRows):
    """Squared distance between probabilities and the truth, summed over the classes: 0 to 2, lower is better.

    ``update(probs, target)`` as in :class:`AdaptiveCalibrationError`. For a yes/no it is the sum over both answers,
    twice what scikit-learn's ``brier_score_loss`` gives by default.

    Example:
        >>> metric = BrierScore()
        >>> metric(torch.tensor([[1.0, 0.0], [0.5, 0.5]]), torch.tensor([0, 1]))
        tensor(0.2500)

    Reference:
        Brier, "Verification of forecasts expressed in terms of probability" (1950), equation 2.
    """

    higher_is_better = False
    is_differentiable = False

    def update(self, probs: Tensor, target: Tensor) -> None:
        """Add predictions and truths."""
        probs = _class_probabilities(probs, target)
        truth = torch.zeros_like(probs).scatter_(1, target.long().unsqueeze(1), 1)
        self._add((probs - truth).square().sum(dim=1))


class NegativeLogLikelihood(_MeanOverRows):
    """Mean of ``-log(probability of the truth)``, in nats; lower is better.

    ``update(probs, target)`` as in :class:`AdaptiveCalibrationError`. Probabilities below single precision's epsilon
    (1.2e-7) count as that much, so one sure mistake costs 15.9 nats and not infinity. For numbers take
    ``torchmetrics.MeanMetric(nan_strategy="disable")`` over :func:`mixture_log_likelihood`.

    Example:
        >>> metric = NegativeLogLikelihood()
        >>> metric(torch.tensor([[0.5, 0.5]]), torch.tensor([0]))
        tensor(0.6931)
    """

    higher_is_better = False
    is_differentiable = False

    def update(self, probs: Tensor, target: Tensor) -> None:
        """Add predictions and truths."""
        truth = _class_probabilities(probs, target).gather(1, target.long().unsqueeze(1))
        self._add(-truth.clamp_min(torch.finfo(torch.float32).eps).log())


class AURC(_Rows):
    """Area under the risk-coverage curve, see :func:`aurc`; lower is better.

    ``update(confidence, error)``: two tensors of one shape; any score whose order is that of trust, and 0/1 or a loss.

    Example:
        >>> metric = AURC()
        >>> metric(torch.tensor([0.9, 0.8, 0.4]), torch.tensor([False, False, True]))
        tensor(0.1111)
    """

    higher_is_better = False

    def _value(self, first: Tensor, second: Tensor) -> Tensor:
        return selective.aurc(first, second)


class ExcessAURC(_Rows):
    """Area under the risk-coverage curve above the oracle's, see :func:`excess_aurc`; ``update(confidence, error)``.

    Example:
        >>> metric = ExcessAURC()
        >>> metric(torch.tensor([0.9, 0.8, 0.4]), torch.tensor([False, False, True]))
        tensor(0.)
    """

    higher_is_better = False

    def _value(self, first: Tensor, second: Tensor) -> Tensor:
        return selective.excess_aurc(first, second)


class AUGRC(_Rows):
    """Mean share of undetected mistakes, see :func:`augrc`; ``update(confidence, error)``; lower is better.

    Example:
        >>> metric = AUGRC()
        >>> metric(torch.tensor([0.9, 0.8, 0.4]), torch.tensor([False, False, True]))
        tensor(0.1111)
    """

    higher_is_better = False

    def _value(self, first: Tensor, second: Tensor) -> Tensor:
        return selective.augrc(first, second)


class CoverageAtRisk(_Rows):
    """Largest share answered at an error rate of at most ``risk``, see :func:`coverage_at_risk`.

    ``update(confidence, error)``; higher is better.

    Args:
        risk: highest error rate allowed, 0 or more.
        **kwargs: torchmetrics' own options.

    Example:
        >>> metric = CoverageAtRisk(risk=0.1)
        >>> metric(torch.tensor([0.9, 0.8, 0.4]), torch.tensor([False, False, True]))
        tensor(0.6667)
    """

    higher_is_better = True

    def __init__(self, risk: float = 0.05, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.risk = check_range("risk", risk, low=0)

    def _value(self, first: Tensor, second: Tensor) -> Tensor:
        return selective.coverage_at_risk(first, second, risk=self.risk)


class UncertaintyAUROC(_Rows):
    """How well uncertainty detects mistakes or foreign inputs, see :func:`uncertainty_auroc`; higher is better.

    ``update(uncertainty, positive)``: any unit, and whether it should be detected. (``BinaryAUROC`` would take
    entropies above 1 for logits, batch by batch.)

    Example:
        >>> metric = UncertaintyAUROC()
        >>> metric(torch.tensor([0.1, 2.0, 0.3]), torch.tensor([False, True, False]))
        tensor(1.)
    """

    higher_is_better = True

    def _value(self, first: Tensor, second: Tensor) -> Tensor:
        return selective.uncertainty_auroc(first, second > 0)


class IntervalCoverage(_MeanOverRows):
    """Share of targets inside their intervals, ends included; ``update(low, high, target)``. Compare with the level.

    Example:
        >>> metric = IntervalCoverage()
        >>> metric(torch.zeros(2), torch.ones(2), torch.tensor([0.5, 2.0]))
        tensor(0.5000)
    """

    higher_is_better = None
    is_differentiable = False

    def update(self, low: Tensor, high: Tensor, target: Tensor) -> None:
        """Add intervals and observed values of one shape."""
        inside = inside_interval(low, high, target).float()
        self._add(torch.where(low.isnan() | high.isnan() | target.isnan(), torch.nan, inside))


class IntervalWidth(_MeanOverRows):
    """Mean width of intervals, in the target's unit; ``update(low, high)``; lower is better at equal coverage.

    Example:
        >>> metric = IntervalWidth()
        >>> metric(torch.zeros(2), torch.tensor([1.0, 2.0]))
        tensor(1.5000)
    """

    higher_is_better = False
    is_differentiable = False

    def update(self, low: Tensor, high: Tensor) -> None:
        """Add intervals, their ends of one shape."""
        check_shape("high", high, low.shape)
        self._add(high - low)


def _class_probabilities(probs: Tensor, target: Tensor) -> Tensor:
    """Return ``(B, C, ...)`` for ``target (B, ...)``."""
    check_probabilities(probs)
    probs = as_float(probs.detach())
    if probs.shape == target.shape:
        return torch.stack([1 - probs, probs], dim=1)
    if probs.ndim == target.ndim + 1 and probs.shape[:1] + probs.shape[2:] == target.shape:
        return probs
    raise UserInputError(
        "expected probabilities (B, C, ...) with targets (B, ...), or both of one shape for yes/no, but got "
        f"{tuple(probs.shape)} and {tuple(target.shape)}."
    )
