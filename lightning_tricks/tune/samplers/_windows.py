"""Coarse to fine, the rule itself: from finished points to the next window. Nothing here knows Optuna."""

from collections.abc import Sequence
from dataclasses import dataclass

# Weights of the best points in a window's centre. Against two points this lowers the regret of 64 trials by a fifth
# (benchmarks/search.py, seeds other than those that are reported): the mean of several is less noisy than the best.
CENTRE_WEIGHTS = (0.4, 0.3, 0.2, 0.1)


@dataclass(frozen=True)
class UnitWindow:
    """A window in unit coordinates, 0 <= low < high <= 1, and why it is what it is."""

    low: float
    high: float
    reason: str = "first window"

    @property
    def width(self) -> float:
        """Share of the parameter's range."""
        return self.high - self.low


def shrunk(
    window: UnitWindow, best_first: Sequence[float], lowest: float | None = None, *, shrink: float, margin: float
) -> UnitWindow:
    """Return the window of the next round for a number.

    The lecture's rule: if the best point lies near an edge of the window, centre the window on it, else take a
    smaller window around it. Edges that are also hard limits do not count: there is nothing beyond them.

    Args:
        window: the round's window.
        best_first: unit coordinates of finished points, the best first; not empty.
        lowest: where a fitted parabola is lowest, if known: the smaller window's centre is then half-way between it and
            the weighted mean of the best points.
        shrink: factor on the width, in (0, 1].
        margin: share of the width that counts as near an edge, in [0, 0.5).

    Example:
        >>> shrunk(UnitWindow(0, 1), [0.5, 0.5], shrink=0.5, margin=0.2)
        UnitWindow(low=0.25, high=0.75, reason='shrunk')
        >>> shrunk(UnitWindow(0.25, 0.75), [0.6875, 0.7], shrink=0.5, margin=0.2)
        UnitWindow(low=0.4375, high=0.9375, reason='moved up')
        >>> shrunk(UnitWindow(0, 1), [0.5, 0.5], 0.25, shrink=0.5, margin=0.2)
        UnitWindow(low=0.125, high=0.625, reason='shrunk')
    """
    best = best_first[0]
    weights = CENTRE_WEIGHTS[: len(best_first)]
    centre = sum(w * x for w, x in zip(weights, best_first, strict=False)) / sum(weights)
    if lowest is not None:
        centre = (centre + lowest) / 2
    near = margin * window.width
    if window.high < 1 and best > window.high - near:
        return _placed(best, window.width, "moved up")
    if window.low > 0 and best < window.low + near:
        return _placed(best, window.width, "moved down")
    return _placed(centre, window.width * shrink, "shrunk")


def _placed(centre: float, width: float, reason: str) -> UnitWindow:
    """Return a window of a width around a centre, pushed back inside the hard limits."""
    low = min(max(centre - width / 2, 0.0), 1.0 - width)
    return UnitWindow(low, low + width, reason)


def kept_choices(choices: Sequence[int], tried_best_first: Sequence[int]) -> tuple[int, ...]:
    """Return the choices of the next round: without the worse half of those that were tried.

    Args:
        choices: indices that the round could draw.
        tried_best_first: those that were tried, ordered by their best result.

    Example:
        >>> kept_choices((0, 1, 2, 3), (2, 0, 3, 1)), kept_choices((0, 1, 2), (2, 0)), kept_choices((0,), (0,))
        ((0, 2), (1, 2), (0,))
    """
    tried = [choice for choice in tried_best_first if choice in choices]
    dropped = set(tried[(len(tried) + 1) // 2 :])
    return tuple(choice for choice in choices if choice not in dropped)
