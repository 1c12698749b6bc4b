"""Tables: from arrays, data frames, CSV and parquet to numbers and categories, with a sentence for what cannot be."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lightning_tricks._base import UserInputError, warn_once
from lightning_tricks.data.tables._columns import DATE_PARTS, Category, Numbers, date_part
from lightning_tricks.data.tables._files import read_file
from lightning_tricks.data.tables._roles import ColumnRole, Feature, Kind, find_features, left_out_warning, parse
from lightning_tricks.data.tables._targets import as_array, numbers_in_objects, target_values


@dataclass
class Plan:
    """How the columns of a table are read, so that another table can be read alike.

    Attributes:
        features: name and kind of every column to learn from; empty if the table was an array.
        parts: numbers that are taken of each column of dates.
        width: of an array.
        comma: how a comma in numbers is read.
        id_column: which names the rows, if one does.
    """

    features: list[tuple[Any, Kind]] = field(default_factory=list)
    parts: dict[Any, list[str]] = field(default_factory=dict)
    width: int | None = None
    comma: str | None = None
    id_column: Any = None


@dataclass
class Table:
    """Columns by kind.

    Attributes:
        numbers: one float64 ``(N,)`` per column of numbers, missing values as NaN.
        number_names: of these columns.
        categories: one per categorical column.
        category_names: of these columns.
        target: ``(N,)`` or ``(N, T)``, as it came; of new data without one ``(N, 0)``.
        extra: further columns that were asked for (groups, time), by name.
        target_names: of the columns of the target, if they have names.
        row_names: of the rows, if they have names.
        roles: what became of each column.
        plan: how the columns were read.
    """

    numbers: list[npt.NDArray[np.float64]]
    number_names: list[str]
    categories: list[Category]
    category_names: list[str]
    target: npt.NDArray[Any]
    extra: dict[str, list[Any]] = field(default_factory=dict)
    target_names: list[str] = field(default_factory=list)
    row_names: list[str] = field(default_factory=list)
    roles: list[ColumnRole] = field(default_factory=list)
    plan: Plan = field(default_factory=Plan)

    def __len__(self) -> int:
        return len(self.target)


def read_table(
    data: Any,
    target: Any,
    *,
    roles: Mapping[Any, str] | None = None,
    used: Mapping[Any, str] | None = None,
    encoding: str = "utf-8",
) -> Table:
    """Return the table in an array, a data frame, or a CSV, TSV or parquet file.

    Args:
        data: the table.
        target: values, or the name of its column or columns.
        roles: what the user says of columns: ``"number"``, ``"category"``, ``"date"``, ``"id"`` or ``"drop"``.
        used: columns that are no features, with their role: ``"group"`` or ``"time"``.
        encoding: of a text file.

    Raises:
        UserInputError: if the file or a column is missing, in another encoding, or of a kind to learn nothing from.
    """
    frame, comma = as_frame(data, encoding)
    if frame is not None:
        return _from_frame(frame, target, roles or {}, used or {}, comma)
    if roles:
        raise UserInputError(f"an array has no named columns, but {next(iter(roles))!r} was named. Give a DataFrame.")
    return _from_arrays(data, target)


def read_new(data: Any, plan: Plan, *, encoding: str = "utf-8") -> Table:
    """Return another table, without a target, read as the first one was.

    Raises:
        UserInputError: if a column is missing, or holds something else than it did.
    """
    frame, _ = as_frame(data, encoding)
    if frame is None:
        x = _features(data)
        if plan.width is None or x.shape[1] != plan.width:
            wanted = f"a table with the columns {[name for name, _ in plan.features]}"
            wanted = wanted if plan.width is None else f"{plan.width} columns"
            raise UserInputError(f"new data needs {wanted}, but got an array of shape {x.shape}.")
        return Table([*x.T], [f"x{i}" for i in range(x.shape[1])], [], [], np.empty((len(x), 0)), plan=plan)
    if plan.width is not None:
        return read_new(frame.to_numpy(), plan)
    _check_names(frame, [])
    missing = [name for name, _ in plan.features if name not in frame.columns]
    if missing:
        raise UserInputError(
            f"new data lacks {len(missing)} columns that the training table had: {missing}. Its columns are: "
            f"{_listed(frame)}."
        )
    features = [parse(frame[name], name, kind, comma=plan.comma) for name, kind in plan.features]
    table = _assembled(features, np.empty((len(frame), 0)), plan)
    table.row_names = _row_names(frame, plan.id_column)
    return table


def as_frame(data: Any, encoding: str) -> tuple[Any, str | None]:
    """Return a data frame of a file or of any table with named columns, else None; and how it writes decimals."""
    if isinstance(data, str | Path):
        return read_file(Path(data), encoding)
    if hasattr(data, "columns") and not hasattr(data, "iloc") and callable(getattr(data, "to_pandas", None)):
        data = data.to_pandas()  # such as polars
    return (data if hasattr(data, "columns") and hasattr(data, "iloc") else None), None


def _from_frame(frame: Any, target: Any, roles: Mapping[Any, str], used: Mapping[Any, str], comma: str | None) -> Table:
    names = [target] if isinstance(target, str) else None
    if names is None and isinstance(target, Sequence) and all(isinstance(name, str) for name in target):
        names = list(target) if len(target) < len(frame) else None
    _check_names(frame, [*(names or ()), *roles, *used])
    values = _target(frame, target, names, comma)
    taken = {**dict.fromkeys(names or (), "target"), **used}
    taken.update({name: "id" if role == "id" else "left out" for name, role in roles.items() if role in ("id", "drop")})
    candidates = [name for name in frame.columns if name not in taken]
    one = values if values.ndim == 1 else None
    features, left_out = find_features(frame, candidates, roles=roles, target=one, comma=comma)
    if left_out:
        warn_once(left_out_warning(left_out, len(frame.columns)))
    ids = [name for name, role in roles.items() if role == "id"]
    plan = Plan([(f.name, f.kind) for f in features], comma=comma, id_column=ids[0] if ids else None)
    plan.parts = {f.name: _parts(f.parsed) for f in features if f.kind == "date"}
    table = _assembled(features, values, plan)
    whys = {**left_out, **{f.name: f.why for f in features}, **dict.fromkeys(taken, "chosen")}
    kinds = {**dict.fromkeys(left_out, "left out"), **{f.name: f.kind for f in features}, **taken}
    table.roles = [ColumnRole(str(name), kinds[name], whys[name]) for name in frame.columns]
    table.extra = {name: _plain_values(frame[name]) for name in used}
    table.target_names = [*map(str, names or ())]
    table.row_names = _row_names(frame, plan.id_column)
    return table


def _assembled(features: Sequence[Feature], target: npt.NDArray[Any], plan: Plan) -> Table:
    names: list[str] = []
    columns: list[npt.NDArray[np.float64]] = []
    categories: dict[str, Category] = {}
    for name, _, _, parsed in features:
        if isinstance(parsed, Numbers):
            names.append(str(name))
            columns.append(parsed.values)
        elif isinstance(parsed, Category):
            categories[str(name)] = parsed
        else:
            names += [f"{name}:{part}" for part in plan.parts[name]]
            columns += [date_part(parsed, part) for part in plan.parts[name]]
    return Table(columns, names, [*categories.values()], [*categories], target, plan=plan)


def _parts(moments: Any) -> list[str]:
    """Return the numbers of a date that vary: without a time of day there is no hour."""
    return [part for part in DATE_PARTS if part == "days" or len(np.unique(date_part(moments, part))) > 1]


def _target(frame: Any, target: Any, names: Sequence[str] | None, comma: str | None) -> npt.NDArray[Any]:
    if names is None:
        _check_given(target, "a table")
        values = target_values(target, comma)
        if len(values) != len(frame):
            raise UserInputError(f"the target needs one value per row: {len(frame)} rows, but got {len(values)}.")
        return values
    if not names:
        raise UserInputError("a table needs a target: the name of a column, but got an empty list.")
    columns = [target_values(frame[name], comma) for name in names]
    return columns[0] if len(columns) == 1 else np.stack(columns, axis=1)


def _check_given(target: Any, what: str) -> None:
    if target is None:
        raise UserInputError(
            f"{what} needs a target to learn: the name of its column, or one value per row, but got None. For a table "
            "without target use new_data(table) of the DataModule that was trained on."
        )


def _from_arrays(features: Any, target: Any) -> Table:
    _check_given(target, "an array of features")
    if isinstance(target, str):
        raise UserInputError(f"features in an array need a target array with one value per row, but got {target!r}.")
    x, y = _features(features), target_values(target)
    if y.ndim not in (1, 2) or len(y) != len(x):
        raise UserInputError(f"the target needs one value per row: {len(x)} rows, but got shape {y.shape}.")
    names = [f"x{i}" for i in range(x.shape[1])]
    roles = [ColumnRole(name, "number", "a column of an array") for name in names]
    return Table([*x.T], names, [], [], y, roles=roles, plan=Plan(width=x.shape[1]))


def _features(features: Any) -> npt.NDArray[np.float64]:
    x = numbers_in_objects(as_array(features))
    if x.dtype.kind not in "buif":
        raise UserInputError(
            f"an array of features must hold numbers, but got {x.dtype}. Give a pandas.DataFrame for columns of text."
        )
    if x.ndim != 2:
        raise UserInputError(f"features must have axes (rows, columns), but got shape {x.shape}. Reshape them.")
    return x.astype(np.float64)


def _check_names(frame: Any, names: Sequence[Any]) -> None:
    twice = [str(name) for name in dict.fromkeys(frame.columns[frame.columns.duplicated()])]
    if twice:
        raise UserInputError(f"columns need different names, but these come twice: {', '.join(twice)}. Rename them.")
    for name in names:
        if name not in frame.columns:
            raise UserInputError(f"there is no column {name!r} in the table. Its columns are: {_listed(frame)}.")


def _listed(frame: Any) -> str:
    return ", ".join(map(str, frame.columns[:20]))


def _plain_values(column: Any) -> list[Any]:
    """Return the values as they are, missing ones as None."""
    if not column.isna().any():
        return list(column.to_numpy().tolist())
    return [None if missing else value for value, missing in zip(column.tolist(), column.isna(), strict=True)]


def _row_names(frame: Any, id_column: Any) -> list[str]:
    if id_column is not None:
        return [str(value) for value in frame[id_column]] if id_column in frame.columns else []
    plain = type(frame.index).__name__ == "RangeIndex"
    return [] if plain else [str(value) for value in frame.index]
