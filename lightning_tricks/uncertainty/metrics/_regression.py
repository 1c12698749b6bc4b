"""How good whole predictive distributions of numbers are: pure functions."""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lightning_tricks._base import UserInputError
from lightning_tricks.uncertainty.measures._classification import as_float, check_shape
from lightning_tricks.uncertainty.measures._regression import check_noise


def inside_interval(
    low: Float[Tensor, "*shape"], high: Float[Tensor, "*shape"], target: Float[Tensor, "*shape"]
) -> Bool[Tensor, "*shape"]:
    """Whether each target lies in its interval, ends included.

    Args:
        low: lower ends.
        high: upper ends, not below the lower ones.
        target: observed values.

    Raises:
        UserInputError: if the shapes differ or an upper end lies below its lower end.

    Example:
        >>> inside_interval(torch.tensor([0.0]), torch.tensor([1.0]), torch.tensor([0.5]))
        tensor([True])
    """
    check_shape("high", high, low.shape)
    check_shape("target", target, low.shape)
    if bool((high < low).any()):
        raise UserInputError("an interval's upper end lies below its lower end. Were low and high swapped?")
    return (low <= target) & (target <= high)


def crps(
    samples: Float[Tensor, "S *shape"],
    target: Float[Tensor, "*shape"],
    *,
    tau: float | Tensor | None = None,
    log_variance: Float[Tensor, "S *shape"] | None = None,
) -> Float[Tensor, "*shape"]:
    r"""Continuous ranked probability score, in the target's unit; 0 is a certain and right prediction.

    .. math:: \operatorname{E}|Y-y| - \tfrac12\operatorname{E}|Y-Y'|

    for the S passes as they are (sorted: S log S), or for their mixture of Gaussians (closed form, S² terms one pass
    at a time). ``torchmetrics.regression.ContinuousRankedProbabilityScore`` averages the first over a data set.

    Args:
        samples: predicted means of S passes.
        target: the observed values.
        tau: precision of the noise, above 0, in 1 / target unit².
        log_variance: natural logarithm of each pass's predicted noise variance.

    Raises:
        UserInputError: if both noises are given, or the shapes do not fit.

    Example:
        >>> crps(torch.tensor([[0.0], [2.0]]), torch.tensor([1.0]))
        tensor([0.5000])

    Reference:
        Gneiting & Raftery, "Strictly proper scoring rules" (2007), section 4.2; mixtures: Grimit et al. (2006), eq. 5.
    """
    if tau is not None and log_variance is not None:
        raise UserInputError("expected one of tau and log_variance, but got both.")
    check_shape("target", target, samples.shape[1:])
    check_noise(samples, tau, log_variance)
    samples = as_float(samples)
    if tau is None and log_variance is None:
        return (samples - target).abs().mean(dim=0) - _half_mean_difference(samples)
    if log_variance is not None:
        variance = as_float(log_variance).exp()
    else:
        variance = 1 / torch.as_tensor(tau, dtype=samples.dtype, device=samples.device) + torch.zeros_like(samples)
    to_target = _mean_absolute(samples - target, variance).mean(dim=0)
    between = torch.zeros_like(to_target)
    for mean, own in zip(samples, variance, strict=True):
        between += _mean_absolute(samples - mean, variance + own).mean(dim=0)
    return to_target - between / (2 * len(samples))


def _half_mean_difference(samples: Tensor) -> Tensor:
    """Half the mean of |a - b| over all S² pairs, from the order statistics."""
    count = len(samples)
    weight = 2 * torch.arange(1, count + 1, dtype=samples.dtype, device=samples.device) - count - 1
    centred = samples.sort(dim=0).values - samples.mean(dim=0)
    return (weight @ centred.reshape(count, -1)).view(centred.shape[1:]) / count**2


def _mean_absolute(mean: Tensor, variance: Tensor) -> Tensor:
    """E|X| of a Gaussian."""
    scale = variance.sqrt()
    ratio = mean / scale
    density = (-0.5 * ratio.square()).exp() / math.sqrt(2 * math.pi)
    expected: Tensor = mean * torch.erf(ratio / math.sqrt(2)) + 2 * scale * density
    return expected
