"""What S stochastic passes of a regression net say about its uncertainty: pure functions of the samples."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_tricks._base import UserInputError, check_range
from lightning_tricks.uncertainty.measures._classification import as_float, check_shape


def mixture_log_likelihood(
    samples: Float[Tensor, "S *shape"],
    target: Float[Tensor, "*shape"],
    *,
    tau: float | Tensor | None = None,
    log_variance: Float[Tensor, "S *shape"] | None = None,
    event_dims: int = 0,
) -> Float[Tensor, "*rows"]:
    r"""Log-density of the target under the equal mixture of S Gaussians, in nats.

    .. math:: \log \tfrac1S \sum_s \mathcal N(y \mid \mu_s, \sigma_s^2)

    Give the noise once: as a precision ``tau`` (Gal & Ghahramani) or as the head's ``log_variance`` (Kendall & Gal).

    Args:
        samples: predicted means of S passes.
        target: the observed values.
        tau: precision of the noise, above 0, in 1 / target unit²; a number or anything that broadcasts to ``target``.
        log_variance: natural logarithm of each pass's predicted noise variance.
        event_dims: how many trailing axes form one joint observation (0: every number is one).

    Returns:
        One log-density per observation: the shape of ``target`` less its last ``event_dims`` axes.

    Raises:
        UserInputError: if the shapes do not fit, not exactly one of ``tau`` and ``log_variance`` is given, or
            ``event_dims`` is out of its range.

    Example:
        >>> mixture_log_likelihood(torch.zeros(5, 1), torch.zeros(1), tau=1.0)
        tensor([-0.9189])

    Reference:
        Gal & Ghahramani, "Dropout as a Bayesian approximation" (2016), equation 8.
    """
    if (tau is None) == (log_variance is None):
        raise UserInputError("expected exactly one of tau and log_variance, but got both or neither.")
    check_shape("target", target, samples.shape[1:])
    check_noise(samples, tau, log_variance)
    check_range("event_dims", event_dims, low=0, high=target.ndim)
    if log_variance is None:
        precision = torch.as_tensor(tau, dtype=samples.dtype, device=samples.device)
        if not bool((precision > 0).all()):
            raise UserInputError(f"tau must be above 0, but got {tau}.")
        log_variance = -precision.log()
    log_density = -0.5 * ((target - samples).square() * (-log_variance).exp() + log_variance + math.log(2 * math.pi))
    if event_dims:
        log_density = log_density.flatten(start_dim=-event_dims).sum(dim=-1)
    return log_density.logsumexp(dim=0) - math.log(len(samples))


def decompose_variance(
    samples: Float[Tensor, "S *shape"],
    *,
    tau: float | Tensor | None = None,
    log_variance: Float[Tensor, "S *shape"] | None = None,
) -> dict[str, Float[Tensor, "*shape"]]:
    """Split the predictive variance by the law of total variance, in target unit².

    Args:
        samples: predicted means of S passes, at least 2.
        tau: precision of the noise, above 0, in 1 / target unit².
        log_variance: natural logarithm of each pass's predicted noise variance.

    Returns:
        ``epistemic``: variance of the means, ddof 1. ``aleatoric``: mean of the noise variances (0 if neither noise is
        given). ``total``: their sum.

    Raises:
        UserInputError: if both noises are given or do not fit, or there is one pass only.

    Example:
        >>> decompose_variance(torch.tensor([[1.0], [3.0]]), tau=4.0)
        {'epistemic': tensor([2.]), 'aleatoric': tensor([0.2500]), 'total': tensor([2.2500])}

    Reference:
        Kendall & Gal, "What uncertainties do we need in Bayesian deep learning for computer vision?" (2017), eq. 9.
    """
    if len(samples) < 2:
        raise UserInputError(f"expected at least 2 stochastic passes along the first axis, but got {len(samples)}.")
    if tau is not None and log_variance is not None:
        raise UserInputError("expected one of tau and log_variance, but got both.")
    check_noise(samples, tau, log_variance)
    samples = as_float(samples)
    epistemic = (samples - samples[0]).var(dim=0)  # differences first: exact where the values are large and close
    aleatoric = torch.zeros_like(epistemic)
    if log_variance is not None:
        aleatoric = as_float(log_variance).exp().mean(dim=0)
    elif tau is not None:
        aleatoric = aleatoric + 1 / torch.as_tensor(tau, dtype=epistemic.dtype, device=epistemic.device)
    return {"epistemic": epistemic, "aleatoric": aleatoric, "total": epistemic + aleatoric}


def predictive_quantile(
    samples: Float[Tensor, "S *shape"],
    level: float,
    *,
    tau: float | Tensor | None = None,
    log_variance: Float[Tensor, "S *shape"] | None = None,
) -> Float[Tensor, "*shape"]:
    """Quantile of the next observation: of the mixture of S Gaussians, or of the passes if no noise is given.

    Args:
        samples: predicted means of S passes.
        level: below the quantile lies this share, above 0 and below 1.
        tau: precision of the noise, above 0, in 1 / target unit².
        log_variance: natural logarithm of each pass's predicted noise variance.

    Returns:
        The quantile, in the unit of the target; for a mixture solved by bisection.

    Raises:
        UserInputError: if both noises are given or do not fit, or ``level`` is out of its range.

    Example:
        >>> predictive_quantile(torch.zeros(8, 1), 0.975, tau=1.0)
        tensor([1.9600])
    """
    check_range("level", level, low=0, high=1, open_low=True, open_high=True)
    if tau is not None and log_variance is not None:
        raise UserInputError("expected one of tau and log_variance, but got both.")
    check_noise(samples, tau, log_variance)
    samples = as_float(samples)
    if tau is None and log_variance is None:
        return samples.quantile(level, dim=0)
    if log_variance is not None:
        scale = (0.5 * as_float(log_variance)).exp()
    else:
        scale = torch.as_tensor(tau, dtype=samples.dtype, device=samples.device).rsqrt().expand_as(samples)
    # The mixture's quantile lies between its components' smallest and largest.
    ends = samples + scale * torch.special.ndtri(torch.as_tensor(level, dtype=samples.dtype, device=samples.device))
    low, high = ends.amin(dim=0), ends.amax(dim=0)
    for _ in range(torch.finfo(samples.dtype).bits):
        middle = low + (high - low) / 2
        below: Tensor = torch.special.ndtr((middle - samples) / scale).mean(dim=0) < level
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    quantile: Tensor = low + (high - low) / 2
    return quantile


def check_noise(samples: Tensor, tau: float | Tensor | None, log_variance: Tensor | None) -> None:
    """Refuse noise that would give the samples another shape."""
    if log_variance is not None:
        check_shape("log_variance", log_variance, samples.shape)
    if isinstance(tau, Tensor):
        shape = samples.shape[1:]
        check_shape("tau, broadcast to them,", tau + tau.new_zeros(shape), shape)
