"""Does uncertainty know where the mistakes are? Risk-coverage curves, their areas, detection: pure functions.

Ties in confidence have no order, so every function here gives what a random order among them gives on average: nothing
depends on how rows are sorted or spread over processes. The arguments are the same throughout: see `risk_coverage`.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc

from lightning_tricks._base import UserInputError, check_range

Confidence = Float[Tensor, "*shape"] | Int[Tensor, "*shape"]
Mistakes = Bool[Tensor, "*shape"] | Float[Tensor, "*shape"]
Area = Float[Tensor, ""]


def risk_coverage(confidence: Confidence, error: Mistakes) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """Error rate among the k most certain answers, for every k.

    Args:
        confidence: of each answer; only its order counts (minus an uncertainty will do).
        error: whether it was wrong, or its loss.

    Returns:
        Coverage ``k / n`` and risk ``errors(k most certain) / k``, k = 1 … n.

    Raises:
        UserInputError: if there is no answer, or a NaN.

    Example:
        >>> coverage, risk = risk_coverage(torch.tensor([0.9, 0.8, 0.4]), torch.tensor([False, False, True]))
        >>> risk
        tensor([0.0000, 0.0000, 0.3333])

    Reference:
        Geifman & El-Yaniv, "Selective classification for deep neural networks" (2017).
    """
    errors = _errors_kept(confidence, error)
    kept = torch.arange(1, len(errors) + 1)
    return (kept / len(errors)).float().to(confidence.device), (errors / kept).float().to(confidence.device)


def aurc(confidence: Confidence, error: Mistakes) -> Area:
    """Area under the risk-coverage curve: mean of its risks, 0 or more, lower is better.

    Takes and raises what :func:`risk_coverage` does.

    Example:
        >>> aurc(torch.tensor([0.9, 0.8, 0.4]), torch.tensor([False, False, True]))
        tensor(0.1111)
    """
    return risk_coverage(confidence, error)[1].mean()


def excess_aurc(confidence: Confidence, error: Mistakes) -> Area:
    """Area under the risk-coverage curve above that of an oracle which knows the errors; 0 is perfect.

    Takes and raises what :func:`risk_coverage` does.

    Example:
        >>> excess_aurc(torch.tensor([0.9, 0.8, 0.4]), torch.tensor([False, False, True]))
        tensor(0.)

    Reference:
        Geifman, Uziel & El-Yaniv, "Bias-reduced uncertainty estimation for deep neural classifiers" (2019), section 3.
    """
    oracle = -error if error.is_floating_point() else -error.float()
    return aurc(confidence, error) - aurc(oracle, error)


def augrc(confidence: Confidence, error: Mistakes) -> Area:
    """Mean share of undetected mistakes, ``errors(k most certain) / n`` over k = 1 … n; lower is better.

    Takes and raises what :func:`risk_coverage` does.

    Example:
        >>> augrc(torch.tensor([0.9, 0.8, 0.4]), torch.tensor([False, False, True]))
        tensor(0.1111)

    Reference:
        Traub et al., "Overcoming common flaws in the evaluation of selective classification systems" (2024).
    """
    errors = _errors_kept(confidence, error)
    return (errors.mean() / len(errors)).float().to(confidence.device)


def coverage_at_risk(confidence: Confidence, error: Mistakes, *, risk: float) -> Area:
    """Largest share of answers that a threshold on confidence can give while the risk stays at or below ``risk``.

    Args:
        confidence: of each answer; only its order counts. Equal ones are given together or not at all.
        error: whether it was wrong, or its loss.
        risk: highest error rate allowed, 0 or more.

    Returns:
        The share, from 0 (no threshold will do) to 1.

    Raises:
        UserInputError: as :func:`risk_coverage`, or if ``risk`` is negative.

    Example:
        >>> coverage_at_risk(torch.tensor([0.9, 0.8, 0.4]), torch.tensor([False, False, True]), risk=0.1)
        tensor(0.6667)
    """
    check_range("risk", risk, low=0)
    coverage, risks = risk_coverage(confidence, error)
    ordered = confidence.flatten().sort(descending=True).values
    last_of_ties = torch.cat([ordered[1:] != ordered[:-1], ordered.new_ones(1, dtype=torch.bool)])
    good = coverage[last_of_ties & (risks <= risk + 1e-7)]
    return good.max() if len(good) else coverage.new_zeros(())


def risk_at_coverage(confidence: Confidence, error: Mistakes, *, coverage: float) -> Area:
    """Error rate among the most certain answers if this share of all (rounded up to whole answers) is given.

    Args:
        confidence: of each answer; only its order counts.
        error: whether it was wrong, or its loss.
        coverage: share that is answered, above 0, at most 1.

    Raises:
        UserInputError: as :func:`risk_coverage`, or if ``coverage`` is out of its range.

    Example:
        >>> risk_at_coverage(torch.tensor([0.9, 0.8, 0.4]), torch.tensor([False, True, True]), coverage=0.5)
        tensor(0.5000)
    """
    check_range("coverage", coverage, low=0, high=1, open_low=True)
    shares, risks = risk_coverage(confidence, error)
    return risks[(shares < coverage - 1e-7).sum().clamp_max(len(risks) - 1)]


def uncertainty_auroc(uncertainty: Float[Tensor, "*shape"], positive: Bool[Tensor, "*shape"]) -> Float[Tensor, ""]:
    """Chance that a positive input is more uncertain than another one: detection of mistakes or of foreign inputs.

    Args:
        uncertainty: of each input, in any unit; only its order counts.
        positive: whether it is what should be detected (a wrong answer, an input from elsewhere).

    Returns:
        The area under the receiver operating characteristic; 0.5 is chance, ties count half. NaN if all inputs are
        positive or none is.

    Raises:
        UserInputError: if there is a NaN.

    Example:
        >>> uncertainty_auroc(torch.tensor([0.1, 2.0, 0.3]), torch.tensor([False, True, False]))
        tensor(1.)
    """
    device = uncertainty.device
    uncertainty, positive = uncertainty.detach().flatten().cpu(), positive.flatten().cpu()
    _check_no_nan("uncertainty", uncertainty)
    if bool(positive.all()) or not bool(positive.any()):
        return torch.full((), torch.nan, device=device)
    # Ranks in place of values: torchmetrics takes what lies outside [0, 1] for logits.
    return binary_auroc(_dense_rank(uncertainty).double() / len(uncertainty), positive.long()).float().to(device)


def _errors_kept(confidence: Tensor, error: Tensor) -> Tensor:
    """Expected sum of errors among the k most certain answers, k = 1 … n, over random orders of ties."""
    # On the CPU, because Apple's GPUs have no double precision.
    confidence, error = confidence.detach().flatten().cpu(), error.detach().flatten().cpu().double()
    if not len(confidence):
        raise UserInputError("expected at least one answer, but got none.")
    _check_no_nan("confidence", confidence)
    _check_no_nan("error", error)
    place = _dense_rank(-confidence)
    size = torch.bincount(place)
    each = torch.bincount(place, weights=error) / size  # within a tie every place holds the group's mean error
    return each.repeat_interleave(size).cumsum(0)


def _dense_rank(values: Tensor) -> Tensor:
    """Position of each value among the distinct ones, from 0."""
    ordered, order = values.sort()
    new = (ordered[1:] != ordered[:-1]).long()
    return torch.empty_like(order).scatter_(0, order, torch.cat([new.new_zeros(1), new]).cumsum(0))


def _check_no_nan(what: str, values: Tensor) -> None:
    if bool(values.isnan().any()):
        raise UserInputError(f"{what} must not hold NaN, but {int(values.isnan().sum())} of {len(values)} values do.")
