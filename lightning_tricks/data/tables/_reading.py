"""Tables: from arrays, data frames, CSV and parquet to numbers and categories, with a sentence for what cannot be."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from lightning_tricks._base import UserInputError, require_extra

SEPARATORS = {".csv": ",", ".tsv": "\t", ".txt": "\t"}
PARQUET = (".parquet", ".pq")


@dataclass
class Table:
    """Columns by kind.

    Attributes:
        numbers: ``(N, D)`` float64, missing values as NaN.
        number_names: of the D columns.
        categories: one array of N strings per categorical column, missing values as "".
        category_names: of these columns.
        target: ``(N,)`` or ``(N, T)``, as it came.
        extra: further columns that were asked for (groups, time), by name.
    """

    numbers: npt.NDArray[np.float64]
    number_names: list[str]
    categories: list[npt.NDArray[Any]]
    category_names: list[str]
    target: npt.NDArray[Any]
    extra: dict[str, npt.NDArray[Any]]

    def __len__(self) -> int:
        return len(self.target)


def read_table(
    data: Any,
    target: Any,
    *,
    categorical: Sequence[str] = (),
    drop: Sequence[str] = (),
    extra: Sequence[str] = (),
    encoding: str = "utf-8",
) -> Table:
    """Return the table in an array, a data frame, or a CSV, TSV or parquet file.

    Raises:
        UserInputError: if the file or a column is missing, in another encoding, or of a kind to learn nothing from.
    """
    if isinstance(data, str | Path):
        data = _read_file(Path(data), encoding)
    if hasattr(data, "columns") and hasattr(data, "iloc"):
        return _from_frame(data, target, categorical, drop, extra)
    return _from_arrays(data, target)


def _read_file(path: Path, encoding: str) -> Any:
    suffix = path.suffix.lower()
    if suffix not in (*SEPARATORS, *PARQUET):
        raise UserInputError(f"a table must be a file ending in .csv, .tsv, .txt or .parquet, but got {path.name}.")
    if not path.is_file():
        raise UserInputError(f"there is no file {path}. Check the path (the working folder is {Path.cwd()}).")
    pandas = require_extra("pandas", "all", f"reading {path.name}")
    if suffix in PARQUET:
        require_extra("pyarrow", "all", f"reading {path.name}")
        return pandas.read_parquet(path)
    try:
        return pandas.read_csv(path, sep=SEPARATORS[suffix], encoding=encoding)
    except UnicodeDecodeError as error:
        raise wrong_encoding(path, encoding, error) from None
    except pandas.errors.ParserError as error:
        raise UserInputError(f"{path} is not a table with a header and equally long rows: {error}.") from None
    except pandas.errors.EmptyDataError:
        raise UserInputError(f"{path} is empty.") from None


def wrong_encoding(path: Path, encoding: str, error: UnicodeDecodeError) -> UserInputError:
    """Return the sentence for a text file in another encoding."""
    return UserInputError(
        f"{path} is not {encoding} text: byte {error.object[error.start]:#04x} at {error.start} does not fit. "
        "Say its encoding, often encoding='latin-1' or 'cp1252', or save it as UTF-8."
    )


def _from_frame(
    frame: Any, target: Any, categorical: Sequence[str], drop: Sequence[str], extra: Sequence[str]
) -> Table:
    names = [target] if isinstance(target, str) else None
    if names is None and isinstance(target, Sequence) and all(isinstance(name, str) for name in target):
        names = list(target) if len(target) < len(frame) else None
    _check_names(frame, [*(names or ()), *categorical, *drop, *extra])
    if names is None:
        values = as_array(target)
        if len(values) != len(frame):
            raise UserInputError(f"the target needs one value per row: {len(frame)} rows, but got {len(values)}.")
    else:
        values = _values(frame[names[0]]) if len(names) == 1 else np.stack([_values(frame[n]) for n in names], axis=1)
    features = [name for name in frame.columns if name not in {*(names or ()), *drop, *extra}]
    kinds = {name: "category" if name in categorical else _kind(frame[name], name) for name in features}
    numeric = [name for name in features if kinds[name] == "number"]
    others = [name for name in features if kinds[name] == "category"]
    numbers = frame[numeric].to_numpy(dtype=np.float64, na_value=np.nan) if numeric else np.empty((len(frame), 0))
    categories = [_strings(frame[name]) for name in others]
    asked = {name: _values(frame[name]) for name in extra}
    return Table(numbers, [*map(str, numeric)], categories, [*map(str, others)], values, asked)


def _from_arrays(features: Any, target: Any) -> Table:
    if target is None or isinstance(target, str):
        raise UserInputError(f"features in an array need a target array with one value per row, but got {target!r}.")
    x, y = as_array(features), as_array(target)
    if x.dtype.kind not in "buif":
        raise UserInputError(
            f"an array of features must hold numbers, but got {x.dtype}. Give a pandas.DataFrame for columns of text."
        )
    x = x.astype(np.float64)
    if x.ndim != 2:
        raise UserInputError(f"features must have axes (rows, columns), but got shape {x.shape}. Reshape them.")
    if y.ndim not in (1, 2) or len(y) != len(x):
        raise UserInputError(f"the target needs one value per row: {len(x)} rows, but got shape {y.shape}.")
    return Table(x, [f"x{i}" for i in range(x.shape[1])], [], [], y, {})


def as_array(values: Any) -> npt.NDArray[Any]:
    """Return a tensor, series or sequence as an array."""
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


def _check_names(frame: Any, names: Sequence[str]) -> None:
    for name in names:
        if name not in frame.columns:
            known = ", ".join(map(str, frame.columns[:20]))
            raise UserInputError(f"there is no column {name!r} in the table. Its columns are: {known}.")


def _kind(column: Any, name: str) -> str:
    kind = getattr(column.dtype, "kind", "O")
    if kind in "Mm":
        raise UserInputError(
            f"column {name!r} holds times, which are no numbers to learn from. Derive numbers from it, use it with "
            f"time={name!r}, or leave it out with drop=[{name!r}]."
        )
    return "number" if kind in "iuf" else "category"


def _values(column: Any) -> npt.NDArray[Any]:
    kind = getattr(column.dtype, "kind", "O")
    if kind in "Mm":
        return np.asarray(column)
    if kind in "iufb" and not column.isna().any():
        return np.asarray(column.to_numpy())
    return np.asarray(column.to_numpy(dtype=np.float64, na_value=np.nan)) if kind in "iuf" else _strings(column)


def _strings(column: Any) -> npt.NDArray[Any]:
    return np.asarray(["" if missing else str(value) for value, missing in zip(column, column.isna(), strict=True)])
