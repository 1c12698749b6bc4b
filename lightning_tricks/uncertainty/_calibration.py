"""Mend predictions with held-out data: temperature, scale of the spread, split-conformal intervals and sets.

Each is fitted once, then applied; what was fitted is a handful of numbers, so it goes into any checkpoint.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lightning_tricks._base import UserInputError, check_choice, check_range
from lightning_tricks.uncertainty.measures._classification import as_float, check_probabilities, check_shape

_GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True)
class TemperatureScaling:
    """Flatten (above 1) or sharpen (below 1) probabilities: ``softmax(log p / temperature)``; their order stays.

    Attributes:
        temperature: above 0.

    Example:
        >>> probs = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.9, 0.1]])
        >>> scaling = TemperatureScaling.fit(probs, torch.tensor([0, 0, 1]))  # right in two of three
        >>> scaling(probs)[0]
        tensor([0.6667, 0.3333])

    Reference:
        Guo et al., "On calibration of modern neural networks" (2017), section 4.2.
    """

    temperature: float

    def __post_init__(self) -> None:
        check_range("temperature", self.temperature, low=0, open_low=True)

    @classmethod
    def fit(
        cls, probs: Float[Tensor, "*lead C"], target: Int[Tensor, "*shape"], *, low: float = 0.05, high: float = 20.0
    ) -> "TemperatureScaling":
        """Find the temperature with the least negative log-likelihood of held-out truths.

        Args:
            probs: probabilities ``(N, C)``, or passes ``(S, N, C)`` that are scaled first and averaged then.
            target: classes ``(N,)``.
            low: lowest temperature to consider, above 0.
            high: highest one.

        Raises:
            UserInputError: if the shapes do not fit, there is no row, or the values are no probabilities or classes.
        """
        if probs.ndim not in (2, 3) or target.shape != probs.shape[-2:-1] or not target.numel():
            raise UserInputError(
                "expected probabilities (N, C) or (S, N, C) and classes (N,), N at least 1, but got "
                f"{tuple(probs.shape)} and {tuple(target.shape)}."
            )
        _check_answers(probs, target)
        probs, target = probs.detach().cpu().double(), target.cpu()  # Apple's GPUs have no double precision

        def loss(log_temperature: float) -> float:
            scaled = cls(math.exp(log_temperature))(probs)
            mean = scaled.mean(dim=0) if scaled.ndim == 3 else scaled
            tiny = torch.finfo(torch.float64).tiny
            return -mean.gather(-1, target.unsqueeze(-1)).clamp_min(tiny).log().mean().item()

        return cls(math.exp(_minimise(loss, math.log(low), math.log(high))))

    def __call__(self, probs: Float[Tensor, "*shape"], *, class_dim: int | None = -1) -> Float[Tensor, "*shape"]:
        """Return scaled probabilities; ``class_dim=None`` if every number is the probability of a yes."""
        probs = as_float(probs)
        if class_dim is None:
            return (torch.logit(probs) / self.temperature).sigmoid()
        return (probs.log() / self.temperature).softmax(dim=class_dim)


@dataclass(frozen=True)
class SpreadScaling:
    """Multiply predictive standard deviations by one factor.

    Attributes:
        factor: above 0.

    Example:
        >>> SpreadScaling.fit(torch.zeros(4), torch.ones(4), torch.tensor([2.0, -2.0, 2.0, -2.0]))
        SpreadScaling(factor=2.0)

    Reference:
        Laves et al., "Well-calibrated regression uncertainty in medical imaging with deep learning" (2020), equation 8.
    """

    factor: float

    def __post_init__(self) -> None:
        check_range("factor", self.factor, low=0, open_low=True)

    @classmethod
    def fit(
        cls, mean: Float[Tensor, "*shape"], std: Float[Tensor, "*shape"], target: Float[Tensor, "*shape"]
    ) -> "SpreadScaling":
        """Find the factor with the greatest Gaussian likelihood of held-out targets, in closed form.

        Args:
            mean: predictions.
            std: their standard deviations, above 0.
            target: observed values.

        Raises:
            UserInputError: if the shapes differ, there is no row, a deviation is not above 0, or every prediction is
                exactly right.
        """
        check_shape("std", std, mean.shape)
        check_shape("target", target, mean.shape)
        if not target.numel() or not bool((std > 0).all()):
            raise UserInputError("expected at least one row, and standard deviations above 0 without NaN.")
        return cls(((target - mean) / std).detach().cpu().double().square().mean().sqrt().item())

    def __call__(self, std: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Return scaled standard deviations."""
        return std * self.factor


@dataclass(frozen=True)
class ConformalInterval:
    """Intervals that hold the next target with probability ``level`` or more, whatever the model, on average over rows.

    The one assumption is that calibration rows and new rows are exchangeable (drawn alike, unused in training).

    Attributes:
        level: the promise, above 0 and below 1.
        radius: half the width, in units of ``std`` where one was given, else of the target.

    Example:
        >>> conformal = ConformalInterval.fit(torch.zeros(9), torch.arange(1.0, 10.0), level=0.8)
        >>> conformal(torch.tensor([5.0]))
        (tensor([-3.]), tensor([13.]))

    Reference:
        Lei et al., "Distribution-free predictive inference for regression" (2018), algorithm 2 and section 5.2.
    """

    level: float
    radius: float

    @classmethod
    def fit(
        cls,
        mean: Float[Tensor, "*shape"],
        target: Float[Tensor, "*shape"],
        *,
        std: Float[Tensor, "*shape"] | None = None,
        level: float = 0.9,
    ) -> "ConformalInterval":
        """Measure how far held-out targets lie from their predictions.

        Args:
            mean: predictions for the calibration rows.
            target: what was observed.
            std: spread of each prediction, above 0; intervals are then wide where the net is unsure.
            level: share to cover, above 0 and below 1.

        Raises:
            UserInputError: if the shapes differ, ``level`` is out of its range, the rows are too few for it, or a value
                is NaN.
        """
        check_shape("target", target, mean.shape)
        if std is not None:
            check_shape("std", std, mean.shape)
        distance = (target - mean).abs()
        return cls(level, _conformal_radius(distance if std is None else distance / std, level))

    def __call__(
        self, mean: Float[Tensor, "*shape"], std: Float[Tensor, "*shape"] | None = None
    ) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"]]:
        """Return lower and upper ends; give ``std`` exactly if ``fit`` was given it."""
        if std is None:
            return mean - self.radius, mean + self.radius
        check_shape("std", std, mean.shape)
        reach = self.radius * std
        return mean - reach, mean + reach


@dataclass(frozen=True)
class ConformalSet:
    """Sets of classes that hold the truth with probability ``level`` at least, on average over rows.

    The one assumption is that calibration rows and new rows are exchangeable (drawn alike, unused in training).

    Attributes:
        level: the promise, above 0 and below 1.
        threshold: a class belongs to the set if its score is at most this.
        score: ``"threshold"``: 1 less the class's probability, the smallest sets on average; ``"cumulative"``: the
            probability of all classes up to and including it, most probable first, sets that grow with difficulty.

    Example:
        >>> probs = torch.tensor([[0.6, 0.3, 0.1]] * 9)
        >>> conformal = ConformalSet.fit(probs, torch.tensor([0, 0, 0, 0, 0, 0, 0, 1, 1]), level=0.8)
        >>> conformal(probs[:1])
        tensor([[ True,  True, False]])

    Reference:
        Sadinle, Lei & Wasserman, "Least ambiguous set-valued classifiers with bounded error levels" (2019); cumulative:
        Romano, Sesia & Candès, "Classification with valid and adaptive coverage" (2020), without randomisation.
    """

    level: float
    threshold: float
    score: Literal["threshold", "cumulative"] = "threshold"

    @classmethod
    def fit(
        cls,
        probs: Float[Tensor, "N C"],
        target: Int[Tensor, " N"],
        *,
        level: float = 0.9,
        score: Literal["threshold", "cumulative"] = "threshold",
    ) -> "ConformalSet":
        """Score the held-out truths.

        Args:
            probs: mean probabilities for the calibration rows.
            target: their classes.
            level: share to cover, above 0 and below 1.
            score: see the class.

        Raises:
            UserInputError: if an option is out of its range, there is not one class per row, the rows are too few for
                the level, or the values are no probabilities or classes.
        """
        check_choice("score", score, ["threshold", "cumulative"])
        if probs.ndim != 2 or target.shape != probs.shape[:1]:
            raise UserInputError(
                f"expected probabilities (N, C) and classes (N,), but got {tuple(probs.shape)} and "
                f"{tuple(target.shape)}."
            )
        _check_answers(probs, target)
        scores = _set_scores(probs, score).gather(1, target.unsqueeze(1))
        return cls(level, _conformal_radius(scores, level), score)

    def __call__(self, probs: Float[Tensor, "N C"]) -> Bool[Tensor, "N C"]:
        """Return which classes belong to each row's set."""
        return _set_scores(probs, self.score) <= self.threshold


def _check_answers(probs: Tensor, target: Tensor) -> None:
    check_probabilities(probs)
    if bool(probs.isnan().any()):
        raise UserInputError("calibration probabilities must not hold NaN. Leave such rows out.")
    classes = probs.shape[-1]
    if bool(((target < 0) | (target >= classes)).any()):
        raise UserInputError(
            f"calibration targets must be classes from 0 to {classes - 1}, but got values from {target.min().item()} "
            f"to {target.max().item()}. Leave rows without a target out."
        )


def _set_scores(probs: Tensor, score: str) -> Tensor:
    probs = as_float(probs)
    if score == "threshold":
        return 1 - probs
    ordered, order = probs.sort(dim=1, descending=True, stable=True)
    return torch.empty_like(probs).scatter_(1, order, ordered.cumsum(dim=1))


def _conformal_radius(scores: Tensor, level: float) -> float:
    """The ceil((n + 1) level)-th smallest score: a fresh one is at most that with probability ``level``."""
    check_range("level", level, low=0, high=1, open_low=True, open_high=True)
    scores = scores.detach().flatten().cpu().double()
    if bool(scores.isnan().any()):
        raise UserInputError("calibration predictions and targets must not hold NaN.")
    rank = math.ceil((len(scores) + 1) * level - 1e-9)  # 0.9 * 10 is 9.000000000000002 for a float
    if rank > len(scores):
        raise UserInputError(
            f"level {level} needs at least {math.ceil(level / (1 - level) - 1e-9)} calibration rows, "
            f"but got {len(scores)}. Give more rows or lower the level."
        )
    return scores.kthvalue(rank).values.item()


def _minimise(loss: Callable[[float], float], low: float, high: float, *, grid: int = 33) -> float:
    """Golden-section search around the best of a grid, which keeps it out of another valley of a mixture's loss."""
    step = (high - low) / (grid - 1)
    best = low + step * min(range(grid), key=lambda i: loss(low + i * step))
    low, high = max(low, best - step), min(high, best + step)
    while high - low > 1e-5:
        left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
        low, high = (low, right) if loss(left) <= loss(right) else (left, high)
    return (low + high) / 2
