"""What each column of a table is good for: number, category or date, or nothing to learn from, and why."""

import re
from collections.abc import Collection, Mapping
from hashlib import blake2b
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from lightning_tricks._base import UserInputError, check_choice
from lightning_tricks.data.tables._columns import LOOK, Category, Numbers, category_of, moments_of, numbers_of

FEWEST = 20  # rows from which on it means something that all of their values differ
ROWS_PER_NAME = 3  # text whose values come less often than this on average tells little of other rows
Kind = Literal["number", "category", "date"]
Chosen = Literal["number", "category", "date", "id", "drop"]
Parsed = Numbers | Category | npt.NDArray[np.datetime64]
_SAVED_INDEX = re.compile(r"Unnamed: \d+|index|level_0|__index_level_\d+__")
_ID_NAME = re.compile(r"(?i:(.*[_\s.-])?(id|uid|uuid|guid|key|index|idx|nr|no|number|row))|.*[a-z](Id|ID)")


class ColumnRole(NamedTuple):
    """What became of a column of a table.

    Attributes:
        column: its name.
        role: ``"number"``, ``"category"`` or ``"date"`` (features), ``"id"``, ``"left out"``, ``"target"``, ``"group"``
            or ``"time"``.
        why: how the role was found.
        done: what the column was turned into.
    """

    column: str
    role: str
    why: str
    done: str = ""


class Feature(NamedTuple):
    """A column to learn from, and how its values are read."""

    name: Any
    kind: Kind
    why: str
    parsed: Parsed


def find_features(
    frame: Any, names: Collection[Any], *, roles: Mapping[Any, str], target: npt.NDArray[Any] | None, comma: str | None
) -> tuple[list[Feature], dict[Any, str]]:
    """Return the columns to learn from, and why each of the others is left out.

    Args:
        frame: a ``pandas.DataFrame``.
        names: columns that may be features.
        roles: what the user says of columns: ``"number"``, ``"category"`` or ``"date"``; these are never left out.
        target: of the rows, if there is one target.
        comma: see :func:`~lightning_tricks.data.tables._columns.numbers_of`.
    """
    features: list[Feature] = []
    left_out: dict[Any, str] = {}
    seen: dict[bytes, Any] = {}
    for name in names:
        chosen = roles.get(name)
        feature = parse(frame[name], name, chosen, comma=comma)
        left_out[name] = "" if chosen else _useless(feature, target)
        if not left_out[name]:
            first = seen.setdefault(_digest(feature.parsed), name)
            left_out[name] = "" if chosen or first == name else f"the same as column {first!r}"
        if not left_out[name]:
            features.append(feature)
    return features, {name: reason for name, reason in left_out.items() if reason}


def parse(column: Any, name: Any, kind: str | None, *, comma: str | None = None) -> Feature:
    """Return a column as the kind of feature that was chosen, or else that it looks like.

    Raises:
        UserInputError: if it does not hold what was chosen.
    """
    if kind == "category":
        return Feature(name, "category", "chosen", category_of(column))
    numbers = numbers_of(column, comma=comma) if kind != "date" else None
    if numbers is not None:
        return Feature(name, "number", "chosen" if kind else _told(numbers), numbers)
    moments = moments_of(column) if kind != "number" else None
    if moments is not None:
        return Feature(name, "date", "chosen" if kind else "holds dates", moments)
    category = category_of(column)
    if kind is None:
        return Feature(name, "category", "holds text" if category.names else "holds nothing", category)
    if not category.names:  # without any value it can be of any kind
        n = len(category.codes)
        nothing = Numbers(np.full(n, np.nan), []) if kind == "number" else np.full(n, np.datetime64("NaT", "us"))
        return Feature(name, "number" if kind == "number" else "date", "chosen", nothing)
    shown = ", ".join(map(repr, category.names[:3]))
    raise UserInputError(f"column {name!r} should hold {kind}s, but holds {column.dtype} such as {shown}.")


def check_roles(roles: Mapping[Any, str] | None) -> dict[Any, str]:
    """Return the chosen roles, checked."""
    chosen = dict(roles or {})
    for name, role in chosen.items():
        check_choice(f"the role of column {name!r}", role, ("number", "category", "date", "id", "drop"))
    return chosen


def left_out_warning(left_out: Mapping[Any, str], total: int) -> str:
    """Return the one warning that names the columns which are left out, and why."""
    said = "; ".join(f"{name!r} ({reason})" for name, reason in left_out.items())
    first = next(iter(left_out))
    return (
        f"TabularDataModule learns nothing from {len(left_out)} of {total} columns: {said}. If that is right, say "
        f"drop={list(left_out)!r}; to use one all the same, roles={{{first!r}: 'number'}} or 'category' or 'date'."
    )


def _told(numbers: Numbers) -> str:
    if not numbers.text:
        return "holds numbers"
    marked = f"; {', '.join(map(repr, numbers.markers))} taken for missing" if numbers.markers else ""
    return "holds text or objects that are all numbers" + marked


def _useless(feature: Feature, target: npt.NDArray[Any] | None) -> str:
    """Return why there is nothing to learn from a feature, or "" if there may be."""
    values, name = feature.parsed, str(feature.name)
    array = _array(values)
    known = array[array >= 0] if isinstance(values, Category) else array[~np.isnan(array)]
    different = len(np.unique(known))
    n = len(known)
    if n == 0:
        return "empty: all values are missing"
    if different == 1 and n == len(array):
        return "constant: one value in all rows"
    if isinstance(values, Category):
        if different > max(FEWEST, n / ROWS_PER_NAME):
            return f"ID-like text: {different} different values in {n} rows"
    elif isinstance(values, Numbers) and values.whole and different == n and (known == np.round(known)).all():
        running = n >= FEWEST and known[0] in (0, 1) and bool((np.diff(known) == 1).all())
        if _SAVED_INDEX.fullmatch(name) or running:
            return "a row number, perhaps a saved index, which tells the order of the table"
        if n >= FEWEST and _ID_NAME.fullmatch(name):
            return f"ID-like: {different} different whole numbers in {n} rows"
    if target is not None and _tells(feature, target):
        return "tells the target one to one, as if it were another form of it"
    return ""


def _tells(feature: Feature, target: npt.NDArray[Any]) -> bool:
    """Whether the target is known from the feature and the feature from the target."""
    if feature.kind == "date" or len(target) < FEWEST:
        return False
    values = _array(feature.parsed)
    if target.dtype.kind == "f":
        return isinstance(feature.parsed, Numbers) and np.array_equal(values, target)
    if target.dtype.kind in "iu" and isinstance(feature.parsed, Numbers) and np.array_equal(values, target):
        return True
    if not _one_to_one(values[:LOOK], target[:LOOK]):
        return False
    few = len(set(target.tolist())) <= len(target) / 2  # names that differ in each row tell each other anyway
    return few and _one_to_one(values, target)


def _one_to_one(values: npt.NDArray[Any], target: npt.NDArray[Any]) -> bool:
    pairs = set(zip(values.tolist(), target.tolist(), strict=True))
    return len(pairs) == len({value for value, _ in pairs}) == len({aim for _, aim in pairs})


def _array(parsed: Parsed) -> npt.NDArray[Any]:
    if isinstance(parsed, Numbers):
        return parsed.values
    return parsed.codes if isinstance(parsed, Category) else parsed


def _digest(parsed: Parsed) -> bytes:
    """Return a hash of the values; codes count the categories as they first come, so equal columns have equal codes."""
    found = blake2b(type(parsed).__name__.encode(), digest_size=16)
    found.update(np.ascontiguousarray(_array(parsed)).tobytes())
    if isinstance(parsed, Category):
        found.update("\0".join(parsed.names).encode("utf-8", "surrogatepass"))
    return found.digest()
