"""What S stochastic passes of a classifier say about its uncertainty: pure functions of the probabilities.

Samples are ``(S, B, C, ...)``: passes, rows, classes, then anything (time steps, pixels). ``class_dim=-1`` reads
``(S, B, ..., C)`` instead, and ``class_dim=None`` means that every number is the probability of a yes (binary and
multilabel tasks). Entropies are in nats. NaN in, NaN out, for that row alone.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lightning_tricks._base import UserInputError, check_range


def predictive_entropy(probs: Float[Tensor, "S B *out"], *, class_dim: int | None = 2) -> Float[Tensor, "B *rest"]:
    """Entropy of the mean prediction, in nats: total uncertainty.

    Args:
        probs: probabilities of S stochastic passes.
        class_dim: axis of the classes in ``probs``; None if each number is the probability of a yes.

    Returns:
        One entropy per row (and pixel, ...), between 0 (certain) and ``log(C)`` (no idea).

    Raises:
        UserInputError: if the values are no probabilities.

    Example:
        >>> predictive_entropy(torch.full((1, 1, 2), 0.5))
        tensor([0.6931])
    """
    probs = _checked(probs, class_dim)
    return entropy(probs.mean(dim=0), _without_samples(probs, class_dim))


def expected_entropy(probs: Float[Tensor, "S B *out"], *, class_dim: int | None = 2) -> Float[Tensor, "B *rest"]:
    """Mean over the passes of each pass's entropy, in nats: what is noise in the data as far as the net can tell.

    Args:
        probs: probabilities of S stochastic passes.
        class_dim: axis of the classes in ``probs``; None if each number is the probability of a yes.

    Returns:
        One number per row (and pixel, ...), between 0 and :func:`predictive_entropy`.

    Raises:
        UserInputError: if the values are no probabilities.

    Example:
        >>> expected_entropy(torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]]))  # two passes, each sure of another class
        tensor([0.])
    """
    probs = _checked(probs, class_dim)
    return entropy(probs, class_dim).mean(dim=0)


def mutual_information(
    probs: Float[Tensor, "S B *out"], *, class_dim: int | None = 2, correct_bias: bool = True
) -> Float[Tensor, "B *rest"]:
    r"""Mutual information of prediction and thinned net (BALD), in nats: disagreement between the passes.

    The plug-in value ``predictive_entropy - expected_entropy`` is too low for few passes, because the mean of S passes
    is itself noisy (27 % at 4, 3 % at 32 in one example). The correction adds the leading term of what is missing,

    .. math:: \sum_c \frac{\operatorname{Var}_s(p_c)}{2 S\,\bar p_c}

    Args:
        probs: probabilities of S stochastic passes, at least 2.
        class_dim: axis of the classes in ``probs``; None if each number is the probability of a yes.
        correct_bias: add the term above.

    Returns:
        One number per row (and pixel, ...), 0 (all passes agree) or more. The plug-in value is at most ``log(C)``;
        the correction is right on average and may lift a single row above that if the passes are few.

    Raises:
        UserInputError: if the values are no probabilities or there is one pass only.

    Example:
        >>> passes = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])
        >>> mutual_information(passes, correct_bias=False)
        tensor([0.6931])

    Reference:
        Houlsby et al., "Bayesian active learning for classification and preference learning" (2011), equation 2. The
        correction is the delta method's (Miller 1955, for entropies).
    """
    probs = _checked(probs, class_dim, at_least=2)
    mean, dim = probs.mean(dim=0), _without_samples(probs, class_dim)
    information = entropy(mean, dim) - entropy(probs, class_dim).mean(dim=0)
    if correct_bias:
        information = information + entropy_bias(mean, probs.var(dim=0), len(probs), dim)
    return information.clamp_min(0)  # rounding


def variation_ratio(probs: Float[Tensor, "S B *out"], *, class_dim: int | None = 2) -> Float[Tensor, "B *rest"]:
    """Share of the passes that do not vote for the most frequent class.

    Args:
        probs: probabilities of S stochastic passes; a pass votes for its most probable class.
        class_dim: axis of the classes in ``probs``; None if each number is the probability of a yes.

    Returns:
        One share per row (and pixel, ...), between 0 (unanimous) and ``1 - 1 / C``.

    Raises:
        UserInputError: if the values are no probabilities.

    Example:
        >>> variation_ratio(torch.tensor([[[0.9, 0.1]], [[0.8, 0.2]], [[0.3, 0.7]], [[0.6, 0.4]]]))
        tensor([0.2500])

    Reference:
        Freeman, "Elementary applied statistics" (1965); Gal, "Uncertainty in deep learning" (2016), section 3.3.1.
    """
    probs = _checked(probs, class_dim)
    dim = _without_samples(probs, class_dim)
    ratio = vote_ratio(votes(probs, class_dim), len(probs), dim)
    return torch.where(entropy(probs.mean(dim=0), dim).isnan(), torch.nan, ratio)


def monte_carlo_error(samples: Float[Tensor, "S B *out"]) -> Float[Tensor, "B *out"]:
    """Standard error of the mean over the passes, ``std / sqrt(S)`` with ddof 1, in the unit of the samples.

    Args:
        samples: S stochastic passes, at least 2.

    Raises:
        UserInputError: if there is one pass only.

    Example:
        >>> monte_carlo_error(torch.tensor([[1.0], [3.0]]))
        tensor([1.])
    """
    _check_passes(samples, 2)
    return as_float(samples).std(dim=0) / math.sqrt(len(samples))


def credible_interval(
    samples: Float[Tensor, "S B *out"], level: float = 0.95
) -> tuple[Float[Tensor, "B *out"], Float[Tensor, "B *out"]]:
    """Central interval that holds ``level`` of the passes.

    It describes the mean prediction (or probability), not the next observation: see :func:`predictive_quantile`.

    Args:
        samples: S stochastic passes.
        level: share of the passes inside, above 0 and below 1.

    Returns:
        Lower and upper end, in the unit of the samples.

    Raises:
        UserInputError: if ``level`` is out of its range.

    Example:
        >>> low, high = credible_interval(torch.linspace(0, 1, 101)[:, None], 0.9)
        >>> round(low.item(), 4), round(high.item(), 4)
        (0.05, 0.95)
    """
    check_range("level", level, low=0, high=1, open_low=True, open_high=True)
    samples = as_float(samples)
    return samples.quantile((1 - level) / 2, dim=0), samples.quantile((1 + level) / 2, dim=0)


def as_float(samples: Tensor) -> Tensor:
    """Sums of half precision are kept in single precision."""
    return samples.float() if samples.dtype in (torch.float16, torch.bfloat16) else samples


def entropy(probs: Tensor, class_dim: int | None) -> Tensor:
    """Entropy over the class axis, or of each yes/no, in nats."""
    if class_dim is None:
        both = torch.stack([probs, 1 - probs])
        return -both.xlogy(both).sum(dim=0)
    return -probs.xlogy(probs).sum(dim=class_dim)


def entropy_bias(mean: Tensor, variance: Tensor, samples: int, class_dim: int | None) -> Tensor:
    """By how much the entropy of a mean of ``samples`` passes is too low, to first order, in nats."""
    if class_dim is None:
        weight = _ratio(variance, mean) + _ratio(variance, 1 - mean)
    else:
        weight = _ratio(variance, mean).sum(dim=class_dim)
    return weight / (2 * samples)


def votes(probs: Tensor, class_dim: int | None) -> Int[Tensor, "B *out"]:
    """How many passes vote for each class (or for yes)."""
    if class_dim is None:
        return (probs >= 0.5).sum(dim=0)
    chosen = probs.argmax(dim=class_dim, keepdim=True)
    return torch.zeros_like(probs, dtype=torch.int64).scatter_(class_dim, chosen, 1).sum(dim=0)


def vote_ratio(counts: Tensor, samples: int, class_dim: int | None) -> Tensor:
    """Turn votes into the share that is not for the winner."""
    winner = torch.maximum(counts, samples - counts) if class_dim is None else counts.amax(dim=class_dim)
    return 1 - winner / samples


def check_probabilities(probs: Tensor) -> None:
    """Refuse logits; NaN passes."""
    if bool(((probs < -1e-4) | (probs > 1 + 1e-3)).any()):
        raise UserInputError(
            "expected probabilities between 0 and 1, but got values from "
            f"{probs.min().item():.4g} to {probs.max().item():.4g}. Apply softmax (classes) or sigmoid (yes/no) first."
        )


def check_shape(what: str, values: Tensor, shape: Sequence[int]) -> None:
    """Refuse what would be broadcast, such as targets ``(N,)`` against predictions ``(N, 1)``: N² wrong pairs."""
    if tuple(values.shape) != tuple(shape):
        raise UserInputError(
            f"{what} must have the predictions' shape {tuple(shape)}, but got {tuple(values.shape)}. The two would be "
            "broadcast against each other: bring them to one shape first."
        )


def _ratio(variance: Tensor, mean: Tensor) -> Tensor:
    return torch.where(mean > 0, variance / mean, 0)  # a class that no pass considers adds nothing


def _checked(probs: Tensor, class_dim: int | None, *, at_least: int = 1) -> Tensor:
    _check_passes(probs, at_least)
    if class_dim is not None and not (2 <= class_dim < probs.ndim or 2 - probs.ndim <= class_dim <= -1):
        raise UserInputError(
            f"class_dim must be an axis after passes and rows, but got {class_dim=} for samples of shape "
            f"{tuple(probs.shape)}. Pass class_dim=None for the probability of a yes."
        )
    check_probabilities(probs)
    return as_float(probs).clamp(0, 1)


def _check_passes(samples: Tensor, at_least: int) -> None:
    if len(samples) < at_least:
        raise UserInputError(
            f"expected at least {at_least} stochastic passes along the first axis, but got {len(samples)}."
        )


def _without_samples(probs: Tensor, class_dim: int | None) -> int | None:
    return None if class_dim is None else class_dim % probs.ndim - 1
