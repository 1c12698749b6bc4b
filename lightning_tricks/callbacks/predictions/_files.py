"""Merged rows into one file: parquet, CSV or npz, block by block."""

import csv
import zipfile
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_tricks._base import UserInputError, require_extra
from lightning_tricks.callbacks.predictions._store import MergedRows

# A spreadsheet's limit (Excel's 16,384 columns); larger maps belong into the other two formats.
_MAX_CSV_COLUMNS = 16_384


def write_npz(rows: MergedRows, path: Path) -> None:
    """Write one array per column, as ``numpy.load`` reads it."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, (dtype, shape) in rows.layout.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                header = {"descr": dtype.str, "fortran_order": False, "shape": (len(rows), *shape)}
                np.lib.format.write_array_header_2_0(file, header)
                for block in rows.blocks():
                    file.write(rows.column(name, block).tobytes())


def write_csv(rows: MergedRows, path: Path) -> None:
    """Write one line per row; a column of shape ``(C,)`` becomes ``name_0``, ``name_1``, ..."""
    names = [
        "_".join([name, *map(str, place)])
        for name, (_, shape) in rows.layout.items()
        for place in product(*map(range, shape))
    ]
    if len(names) > _MAX_CSV_COLUMNS:
        raise UserInputError(f"CSV would need {len(names)} columns. Write to .parquet or .npz instead.")
    with path.open("w", newline="", encoding="utf-8") as file:
        lines = csv.writer(file)
        lines.writerow(names)
        for block in rows.blocks():
            cells = [_texts(rows.column(name, block)) for name in rows.layout]
            lines.writerows([cell for part in line for cell in part] for line in zip(*cells, strict=True))


def _texts(column: NDArray[Any]) -> list[list[str]]:
    flat = column.reshape(len(column), -1)
    # Nine digits bring a float32 back exactly, seventeen a float64.
    digits = {4: 9, 8: 17}.get(flat.dtype.itemsize, 9)
    if flat.dtype.kind == "f":
        return [[f"{value:.{digits}g}" for value in line] for line in flat.tolist()]
    return [[str(value) for value in line] for line in flat.tolist()]


def write_parquet(rows: MergedRows, path: Path) -> None:
    """Write one column per name; a column of shape ``(C,)`` holds lists of fixed size."""
    pa = require_extra("pyarrow", "all", "PredictionWriter to parquet")
    pq = require_extra("pyarrow.parquet", "all", "PredictionWriter to parquet")
    schema = pa.schema([(name, _arrow_type(pa, *column)) for name, column in rows.layout.items()])
    with pq.ParquetWriter(path, schema) as writer:
        for block in rows.blocks():
            arrays = [_arrow_array(pa, rows.column(name, block)) for name in rows.layout]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))


def _arrow_type(pa: Any, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Any:
    kind = pa.from_numpy_dtype(dtype)
    for size in reversed(shape):
        kind = pa.list_(kind, size)
    return kind


def _arrow_array(pa: Any, column: NDArray[Any]) -> Any:
    array = pa.array(column.reshape(-1))
    for size in reversed(column.shape[1:]):
        array = pa.FixedSizeListArray.from_arrays(array, size)
    return array


WRITERS: dict[str, Callable[[MergedRows, Path], None]] = {
    ".parquet": write_parquet,
    ".csv": write_csv,
    ".npz": write_npz,
}
