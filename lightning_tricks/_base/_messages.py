"""Validation that answers with a sentence: what was expected, what came, what to do."""

import math
from collections.abc import Iterable
from difflib import get_close_matches
from typing import TypeVar

T = TypeVar("T", bound=str)

_said: set[str] = set()


class UserInputError(ValueError):
    """A mistake in what the user passed; the command line prints it as one sentence, without a traceback."""


def check_choice(what: str, value: T, choices: Iterable[str]) -> T:
    """Return ``value`` if it is one of ``choices``.

    Raises:
        UserInputError: with the list of choices and the nearest name.

    Example:
        >>> check_choice("optimizer", "adm", ["adam", "sgd"])
        Traceback (most recent call last):
        ...
        lightning_tricks._base._messages.UserInputError: optimizer must be one of adam, sgd, but got 'adm'. Did you ...
    """
    names = sorted(choices)
    if value in names:
        return value
    nearest = get_close_matches(str(value), names, n=1)
    hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
    raise UserInputError(f"{what} must be one of {', '.join(names)}, but got {value!r}.{hint}")


def check_range(
    what: str,
    value: float,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    open_low: bool = False,
    open_high: bool = False,
) -> float:
    """Return ``value`` if it lies between ``low`` and ``high``; NaN never does.

    Raises:
        UserInputError: with the range and the value that came.

    Example:
        >>> check_range("dropout", 1.5, low=0, high=1, open_high=True)
        Traceback (most recent call last):
        ...
        lightning_tricks._base._messages.UserInputError: dropout must be in [0, 1), but got 1.5.
    """
    above = value > low if open_low else value >= low
    below = value < high if open_high else value <= high
    if above and below:
        return value
    left = "(" if open_low or low == -math.inf else "["
    right = ")" if open_high or high == math.inf else "]"
    raise UserInputError(f"{what} must be in {left}{low}, {high}{right}, but got {value}.")


def warn_once(message: str, *, key: str | None = None, stacklevel: int = 2) -> None:
    """Warn the first time that ``key`` (by default the message) comes up in this process, on rank zero only."""
    from lightning_utilities.core.rank_zero import rank_zero_warn

    if (key or message) in _said:
        return
    _said.add(key or message)
    rank_zero_warn(message, category=UserWarning, stacklevel=stacklevel + 3)


def forget_warnings() -> None:
    """Make every warning new again (for tests)."""
    _said.clear()
