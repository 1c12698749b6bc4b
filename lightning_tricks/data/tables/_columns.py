"""One column of a data frame as numbers or categories, whatever type it is held in."""

import re
from collections.abc import Sequence
from datetime import date
from decimal import Decimal
from numbers import Real
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lightning_tricks._base import UserInputError
from lightning_tricks.data._times import sortable_times

MISSING = frozenset({"", "?", "-", "--", ".", "na", "n/a", "#n/a", "nan", "none", "null", "nil", "<na>"})
LOOK = 1000  # rows of a long column that are looked at before all of them
_PLAIN = re.compile(r"[+-]?((?!0\d)\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")  # 007 is a code
_COMMA_GROUPS = re.compile(r"[+-]?[1-9]\d{0,2}(,\d{3})+(\.\d+)?")  # 1,234.5
_COMMA_DECIMAL = re.compile(r"[+-]?((?!0\d)\d+|[1-9]\d{0,2}(\.\d{3})+),\d+|[+-]?[1-9]\d{0,2}(\.\d{3}){2,}")  # 1.234,5
_WHOLE = re.compile(r"[+-]?(?!0\d)\d+")


class Category(NamedTuple):
    """A column of categories.

    Attributes:
        codes: ``int32 (N,)`` places in ``names``, -1 where the value is missing.
        names: the different values as text.
    """

    codes: npt.NDArray[np.int32]
    names: list[str]

    def known(self, rows: npt.NDArray[np.int64]) -> list[str]:
        """Return the sorted names that these rows hold."""
        found = np.unique(self.codes[rows])
        return sorted(self.names[code] for code in found[found >= 0])

    def coded(self, known: Sequence[str]) -> npt.NDArray[np.int32]:
        """Return ``int32 (N,)`` codes: 1 for the first known name, 0 for names that are not among them or missing."""
        place = {name: i for i, name in enumerate(known, start=1)}
        return np.array([*(place.get(name, 0) for name in self.names), 0], dtype=np.int32)[self.codes]

    def texts(self) -> npt.NDArray[Any]:
        """Return the values as an object array of text, missing ones as ""."""
        return np.array([*self.names, ""], dtype=object)[self.codes]


class Numbers(NamedTuple):
    """A column of numbers.

    Attributes:
        values: ``float64 (N,)``, missing values as NaN.
        markers: texts that were taken for missing values, such as ``?``.
        text: whether the column holds text, decimals or other objects.
        whole: whether the column holds whole numbers by its type, or text.
    """

    values: npt.NDArray[np.float64]
    markers: list[str]
    text: bool = False
    whole: bool = False


def category_of(column: Any) -> Category:
    """Return the column as categories; missing values and empty text have none, and 1.0 is the category ``1``."""
    codes, values = column.factorize()
    texts = [_name(value) for value in values.tolist()]
    names = list(dict.fromkeys(text for text in texts if text))  # 1 and "1" are one
    place = {name: i for i, name in enumerate(names)}
    return Category(np.array([*(place.get(text, -1) for text in texts), -1], dtype=np.int32)[codes], names)


def _name(value: Any) -> str:
    if isinstance(value, float) and value.is_integer():  # a column of whole numbers becomes one of floats by a gap
        return str(int(value))
    return "" if value is None else str(value)


def numbers_of(column: Any, *, comma: str | None = None) -> Numbers | None:
    """Return the column as numbers, or None if it holds something else.

    Text is read as numbers if all of it is: ``1234.5``, ``1,234.5`` or ``1.234,5``, one way for the whole column;
    ``?``, ``NA`` and their like are then missing values. Digits behind a leading zero are a code and no number.

    Args:
        column: a ``pandas.Series``.
        comma: ``"decimal"`` if 1,234 is a little more than one, else it is a thousand and more.
    """
    kind = getattr(column.dtype, "kind", "O")
    if kind in "iuf":
        return Numbers(column.to_numpy(dtype=np.float64, na_value=np.nan), [], whole=kind != "f")
    if kind == "m":
        seconds = column.to_numpy(dtype="timedelta64[us]") / np.timedelta64(1, "s")
        return Numbers(np.asarray(seconds, dtype=np.float64), [])
    if kind in "bMc" or hasattr(column.dtype, "categories"):
        return None
    if len(column) > LOOK and _as_numbers(column.iloc[:LOOK].dropna().tolist(), comma) is None:
        return None
    codes, values = column.factorize()
    items = values.tolist()
    read = _as_numbers(items, comma)
    if read is None or not items:
        return None
    markers = sorted({text for value in items if isinstance(value, str) and (text := value.strip()).lower() in MISSING})
    if len(markers) == len(items):
        return None
    found = [_number(value, read) for value in items]
    return Numbers(np.array([*found, np.nan])[codes], [text for text in markers if text], text=True, whole=True)


def moments_of(column: Any) -> npt.NDArray[np.datetime64] | None:
    """Return the column as ``datetime64[us] (N,)`` in UTC, missing values as NaT; None if it holds no dates.

    Text counts as dates if all of it has one known format that is read in one way.
    """
    kind = getattr(column.dtype, "kind", "O")
    if kind == "M":
        plain = column if getattr(column.dtype, "tz", None) is None else column.dt.tz_convert(None)
        return np.asarray(plain.to_numpy(dtype="datetime64[us]"))
    if kind in "biufcm" or hasattr(column.dtype, "categories"):
        return None
    if len(column) > LOOK and _read_moments(column.iloc[:LOOK].dropna().tolist()[:1]) is None:
        return None
    codes, values = column.factorize()
    found = _read_moments(values.tolist())
    if found is None or np.isnat(found).all():
        return None
    return np.asarray(np.append(found, np.datetime64("NaT", "us"))[codes])


def _read_moments(items: Sequence[Any]) -> npt.NDArray[np.datetime64] | None:
    """Return dates or text as ``datetime64[us]``, NaT for a text that says missing; None if they are something else."""
    if not all(isinstance(value, date | str) for value in items):
        return None
    known = np.array(
        [not isinstance(value, str) or value.strip().lower() not in MISSING for value in items], dtype=bool
    )
    found = np.full(len(items), np.datetime64("NaT", "us"))
    try:
        moments = sortable_times([value for value, knows in zip(items, known, strict=True) if knows])
    except UserInputError:
        return None
    if moments.dtype.kind == "M":
        found[known] = moments
    return found if moments.dtype.kind == "M" or not known.any() else None


DATE_PARTS = ("days", "month", "weekday", "hour")


def date_part(moments: npt.NDArray[np.datetime64], part: str) -> npt.NDArray[np.float64]:
    """Return a number of every moment, NaN where it is not known.

    Args:
        moments: ``datetime64[us] (N,)``.
        part: ``"days"`` since 1970 (fractions are the time of day), ``"month"`` 1 to 12, ``"weekday"`` 0 (Monday) to 6,
            ``"hour"`` of the day (with fractions).
    """
    days = moments.astype("datetime64[D]")
    within = (moments - days) / np.timedelta64(1, "h")
    number = days.astype(np.int64).astype(np.float64)
    if part == "days":
        found = number + within / 24
    elif part == "month":
        found = moments.astype("datetime64[M]").astype(np.int64) % 12 + 1.0
    elif part == "weekday":
        found = (number + 3) % 7  # the first of January 1970 was a Thursday
    else:
        found = within
    return np.where(np.isnat(moments), np.nan, found)


def _as_numbers(items: Sequence[Any], comma: str | None) -> str | None:
    """Return how values are read as numbers, see :func:`_reader`; None if they are something else."""
    if not all(isinstance(value, str | Decimal | Real) and not isinstance(value, bool | np.bool_) for value in items):
        return None
    texts = {value.strip() for value in items if isinstance(value, str)}
    return _reader({text for text in texts if text.lower() not in MISSING}, comma)


def _reader(texts: set[str], comma: str | None) -> str | None:
    """Return what all texts can have before the decimals, ``"point"`` or ``"comma"``; None if they are no numbers."""
    point = all(_PLAIN.fullmatch(text) or _COMMA_GROUPS.fullmatch(text) for text in texts)
    decimal_comma = all(_WHOLE.fullmatch(text) or _COMMA_DECIMAL.fullmatch(text) for text in texts)
    if decimal_comma and (comma == "decimal" or not point):
        return "comma"
    return "point" if point else None


def _number(value: Any, read: str) -> float:
    if not isinstance(value, str):
        return float(value)
    text = value.strip()
    if text.lower() in MISSING:
        return np.nan
    return float(text.replace(".", "").replace(",", ".") if read == "comma" else text.replace(",", ""))
