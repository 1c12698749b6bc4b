"""Which learning rate a range test suggests."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, get_args

SuggestionRule = Literal["steepest", "minimum", "valley"]
RULES = get_args(SuggestionRule)

# The first tenth of a range test is noise of the first batches, the last points are the divergence.
_SKIP_BEGIN, _SKIP_END = 0.1, 1


def suggest_lr(rates: Sequence[float], losses: Sequence[float], rule: SuggestionRule) -> float | None:
    """Return the learning rate that a rule picks from a range test, or None from fewer than 5 finite losses.

    Args:
        rates: learning rates in rising order.
        losses: smoothed losses; those that are not finite are left out.
        rule: ``"steepest"``: where the loss falls fastest per decade (Smith 2017); ``"minimum"``: a tenth of the rate
            with the smallest loss; ``"valley"``: the middle of the longest falling subsequence (fastai 2.5).

    Example:
        >>> rates = [10.0**power for power in range(-6, 1)]
        >>> losses = [2.0, 2.0, 1.9, 1.2, 0.9, 0.8, 5.0]
        >>> [suggest_lr(rates, losses, rule) for rule in ("steepest", "minimum", "valley")]
        [0.001, 0.01, 0.001]
    """
    skip = int(len(rates) * _SKIP_BEGIN)
    pairs = zip(rates[skip : len(rates) - _SKIP_END], losses[skip : len(losses) - _SKIP_END], strict=True)
    points = [(rate, loss) for rate, loss in pairs if math.isfinite(loss)]
    if len(points) < 5:
        return None
    if rule == "steepest":
        return _steepest(points)
    if rule == "minimum":
        return min(points, key=lambda point: point[1])[0] / 10
    return _valley(points)


def _steepest(points: list[tuple[float, float]]) -> float:
    slopes = [(b[1] - a[1]) / math.log(b[0] / a[0]) for a, b in pairwise(points)]
    # The slope at a point is the mean of the slopes on both sides.
    centred = [(left + right) / 2 for left, right in pairwise(slopes)]
    return points[1 + min(range(len(centred)), key=centred.__getitem__)][0]


def _valley(points: list[tuple[float, float]]) -> float:
    length, before = [1] * len(points), [-1] * len(points)
    for i, (_, loss) in enumerate(points):
        for j in range(i):
            if loss < points[j][1] and length[j] + 1 > length[i]:
                length[i], before[i] = length[j] + 1, j
    at = max(range(len(points)), key=length.__getitem__)
    chain = [at]
    while before[chain[-1]] >= 0:
        chain.append(before[chain[-1]])
    return points[chain[len(chain) // 2]][0]
