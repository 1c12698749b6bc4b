"""Times as something that sorts as time does: numbers and dates; text is read as one of them, never sorted as text."""

from collections.abc import Collection, Sequence
from datetime import date, datetime, timezone
from decimal import Decimal
from itertools import product
from numbers import Real
from typing import Any

import numpy as np
import numpy.typing as npt

from lightning_tricks._base import UserInputError

_DATES = ("%d.%m.%Y", "%Y/%m/%d", "%Y%m%d", "%m/%d/%Y", "%d/%m/%Y", "%d %b %Y", "%d-%b-%Y", "%b %d, %Y", "%B %d, %Y")
_CLOCKS = ("", " %H:%M", " %H:%M:%S")
_UNKNOWN = frozenset({"", "nan", "nat", "none", "null"})
_CURE = "Parse it first, for example with pandas.to_datetime(column, format=...)."


def sortable_times(values: Sequence[Any] | npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return one sortable value per row.

    Args:
        values: numbers, dates, ``datetime64``, or text: numbers, ISO dates (``2024-01-31``, perhaps with a time), or
            all in one format of day, month and year that only one reading fits.

    Returns:
        ``(n,)`` numbers or ``datetime64``, in the order of time.

    Raises:
        UserInputError: if a value is missing, or text cannot be read as times, or can be read in two ways.

    Example:
        >>> sortable_times(["31.12.2023", "01.02.2024"])
        array(['2023-12-31T00:00:00.000000', '2024-02-01T00:00:00.000000'],
              dtype='datetime64[us]')
        >>> sortable_times(["9", "10"])
        array([ 9., 10.])
    """
    array = np.asarray(values, dtype=object if isinstance(values, list | tuple) else None)  # as they are, not as text
    if array.ndim != 1:
        raise UserInputError(f"time must have one axis with one value per row, but has the shape {array.shape}.")
    check_known("time", array, texts=_UNKNOWN)
    if array.dtype.kind in "biufMm":
        return array
    items = [value.item() if isinstance(value, np.generic) else value for value in array]
    if all(isinstance(value, Real) for value in items):
        return np.array(items)
    if all(isinstance(value, Real | Decimal) for value in items):
        return np.array([float(value) for value in items])
    if all(isinstance(value, date) for value in items):
        return _moments([_as_datetime(value) for value in items])
    if all(isinstance(value, str) for value in items):
        return _read([value.strip() for value in items])
    kinds = sorted({type(value).__name__ for value in items})
    raise UserInputError(f"time must hold numbers, dates or text, one kind for all rows, but holds {', '.join(kinds)}.")


def check_known(name: str, values: Sequence[Any] | npt.NDArray[Any], *, texts: Collection[str] = ()) -> None:
    """Refuse values that are missing: None, NaN, NaT, NA.

    Args:
        name: of the argument, for the message.
        values: one per row.
        texts: what also counts as missing, in lower case and without spaces around it.

    Raises:
        UserInputError: with how many are missing and the first row.
    """
    array = np.asarray(values)
    if array.dtype.kind in "biu" or (array.dtype.kind in "SU" and not texts):
        return
    if array.dtype.kind in "Mm":
        missing = np.isnat(array)
    elif array.dtype.kind == "f" and array.ndim == 1:
        missing = np.isnan(array)
    else:
        missing = np.array([_is_missing(value, texts) for value in array], dtype=bool)
    if missing.any():
        raise UserInputError(
            f"{name} needs a value for every row, but {int(missing.sum())} of {len(array)} are missing (first in row "
            f"{int(missing.argmax())}). Fill them in or leave these rows out."
        )


def _is_missing(value: Any, texts: Collection[str]) -> bool:
    if value is None or type(value).__name__ in ("NaTType", "NAType"):
        return True
    if isinstance(value, str):
        return value.strip().lower() in texts
    return bool(np.any(value != value))  # NaN of any type, also within a row of several labels


def _as_datetime(value: date) -> datetime:
    return value if isinstance(value, datetime) else datetime(value.year, value.month, value.day)  # noqa: DTZ001


def _moments(moments: Sequence[datetime]) -> npt.NDArray[Any]:
    aware = [moment.tzinfo is not None for moment in moments]
    if any(aware) and not all(aware):
        raise UserInputError("time must be given with a time zone in all rows or in none, but holds both. " + _CURE)
    plain = [moment.astimezone(timezone.utc).replace(tzinfo=None) if moment.tzinfo else moment for moment in moments]
    return np.array(plain, dtype="datetime64[us]")


def _read(texts: Sequence[str]) -> npt.NDArray[Any]:
    iso = _try(texts, lambda text: datetime.fromisoformat(text.replace("Z", "+00:00")))
    if iso is not None and not all(text.isdigit() for text in texts):
        return _moments(iso)
    formats = [day + clock for day, clock in product(_DATES, _CLOCKS)]
    found: dict[str, list[datetime]] = {}
    for form in formats:
        read = _try(texts, lambda text, form=form: datetime.strptime(text, form))  # noqa: DTZ007  # most have no zone
        if read is not None:
            found[form] = read
    if not found:
        numbers = _try(texts, float)
        if numbers is not None:
            return np.array(numbers)
        raise UserInputError(
            f"time holds text that is no number and no date in one known format, such as {texts[0]!r}. {_CURE}"
        )
    orders = {tuple(np.argsort(_moments(read), kind="stable").tolist()) for read in found.values()}
    if len(orders) > 1:
        raise UserInputError(
            f"time holds dates such as {texts[0]!r} that can be read as {' and as '.join(found)}. {_CURE}"
        )
    return _moments(next(iter(found.values())))


def _try(texts: Sequence[str], read: Any) -> list[Any] | None:
    try:
        return [read(text) for text in texts]
    except (ValueError, OverflowError):
        return None
