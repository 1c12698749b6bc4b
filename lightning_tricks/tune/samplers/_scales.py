"""Between a parameter's own values and the unit interval, on the scale (linear or log) that it was declared with.

Distributions are read by their attributes (``low``, ``high``, ``log``, ``step``, ``choices``), so nothing here needs
Optuna.
"""

import math
from typing import Any


def is_categorical(distribution: Any) -> bool:
    """Whether a distribution is a list of choices."""
    return hasattr(distribution, "choices")


def to_unit(distribution: Any, value: float) -> float:
    """Return where a number lies between the limits, in [0, 1]; numbers outside are taken for the limit itself."""
    low, high = _limits(distribution)
    value = min(max(value, low), high)
    if distribution.log:
        return (math.log(value) - math.log(low)) / (math.log(high) - math.log(low))
    return (value - low) / (high - low)


def from_unit(distribution: Any, unit: float) -> float | int:
    """Return the number at a place in [0, 1]; steps and whole numbers get shares of equal length."""
    low, high = _limits(distribution)
    if distribution.log:
        value = math.exp(math.log(low) + unit * (math.log(high) - math.log(low)))
    else:
        value = low + unit * (high - low)
    if distribution.step is not None:
        steps = round((value - distribution.low) / distribution.step)
        value = distribution.low + steps * distribution.step
    value = min(max(value, distribution.low), distribution.high)
    return int(value) if isinstance(distribution.low, int) else float(value)


def _limits(distribution: Any) -> tuple[float, float]:
    """Return the limits, half a step wider on both sides, so that the outermost values get their full share."""
    half = 0.0 if distribution.step is None else distribution.step / 2
    return distribution.low - half, distribution.high + half
