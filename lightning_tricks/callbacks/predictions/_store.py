"""Rows of predictions on disk: appended batch by batch, read back in any order, never all in memory."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from lightning_tricks._base import UserInputError

Columns = dict[str, NDArray[Any]]

# What is read and written together; rows may be single numbers or maps of megabytes.
BLOCK_BYTES = 4 * 2**20


class ColumnStore:
    """One folder with one flat binary file per column, all rows of one shape.

    Args:
        folder: made if missing; must be empty.

    Example:
        >>> import tempfile
        >>> store = ColumnStore(Path(tempfile.mkdtemp()) / "part")
        >>> store.append({"index": np.array([1, 0]), "mean": np.array([[0.5], [0.25]])})
        >>> store.close()
        >>> StoredColumns(store.folder)["mean"].shape
        (2, 1)
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows = 0
        self._files: dict[str, BinaryIO] = {}
        self._layout: dict[str, tuple[str, list[int]]] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def append(self, columns: Mapping[str, NDArray[Any]]) -> None:
        """Add rows.

        Raises:
            UserInputError: if names, types or shapes differ from the rows before, or columns differ in length.
        """
        layout = {name: (values.dtype.str, list(values.shape[1:])) for name, values in columns.items()}
        if not self._layout:
            self._layout = layout
            self._files = {name: (self.folder / f"{at}.bin").open("wb") for at, name in enumerate(layout)}
        if layout != self._layout:
            raise UserInputError(
                f"every batch must give the same columns and shapes per row, but {self._news(layout)}."
            )
        lengths = {name: len(values) for name, values in columns.items()}
        if len(set(lengths.values())) != 1:
            raise UserInputError(f"every column must have one entry per row, but their lengths are {lengths}.")
        for name, values in columns.items():
            self._files[name].write(np.ascontiguousarray(values).tobytes())
        self.rows += next(iter(lengths.values()))

    def close(self) -> None:
        """Flush, and write down what the files hold; only a closed store can be read."""
        for file in self._files.values():
            file.close()
        self._files = {}
        (self.folder / "layout.json").write_text(json.dumps({"rows": self.rows, "columns": self._layout}))

    def _news(self, layout: Mapping[str, Any]) -> str:
        name = next(name for name in [*self._layout, *layout] if self._layout.get(name) != layout.get(name))
        return f"{name!r} was {_described(self._layout.get(name))} and now is {_described(layout.get(name))}"


def _described(column: tuple[str, list[int]] | None) -> str:
    return "missing" if column is None else f"{np.dtype(column[0]).name} of shape {tuple(column[1])}"


class StoredColumns:
    """The columns of a closed store, read in pieces.

    Args:
        folder: of the store.
    """

    def __init__(self, folder: Path) -> None:
        described = json.loads((folder / "layout.json").read_text())
        self.rows: int = described["rows"]
        self.layout = {name: (np.dtype(dtype), tuple(shape)) for name, (dtype, shape) in described["columns"].items()}
        self._files = {name: folder / f"{at}.bin" for at, name in enumerate(self.layout)}

    def __getitem__(self, name: str) -> NDArray[Any]:
        """Map one column into memory; a new map each time, so that what was read of the last one can be let go."""
        dtype, shape = self.layout[name]
        full = (self.rows, *shape)
        return np.empty(full, dtype) if 0 in full else np.memmap(self._files[name], dtype, "r", shape=full)


class MergedRows:
    """Rows of several stores in order of their ``index``, each index once.

    Memory for about 40 bytes per row, whatever the columns hold.

    Args:
        parts: columns of each store; those without rows are skipped.
    """

    def __init__(self, parts: Sequence[StoredColumns]) -> None:
        self._parts = [part for part in parts if part.rows]
        if any(part.layout != self._parts[0].layout for part in self._parts):
            raise UserInputError("the ranks predicted different columns or shapes per row.")
        index = [np.array(part["index"]) for part in self._parts]
        every = np.concatenate(index) if index else np.empty(0, np.int64)
        self.index, self._first = np.unique(every, return_index=True)  # a sampler may pad ranks with rows of others
        self._starts = np.cumsum([0, *(part.rows for part in self._parts)])

    def __len__(self) -> int:
        return len(self.index)

    @property
    def layout(self) -> dict[str, tuple[np.dtype[Any], tuple[int, ...]]]:
        """Type and shape per row of each column."""
        return self._parts[0].layout if self._parts else {}

    def column(self, name: str, rows: slice) -> NDArray[Any]:
        """Return some rows of one column."""
        dtype, shape = self.layout[name]
        first = self._first[rows]
        part = np.searchsorted(self._starts, first, side="right") - 1
        out = np.empty((len(first), *shape), dtype)
        for at in np.unique(part):
            here = part == at
            out[here] = self._parts[at][name][first[here] - self._starts[at]]
        return out

    def blocks(self) -> Iterator[slice]:
        """Cut the rows into pieces that fit into memory."""
        row = sum(dtype.itemsize * math.prod(shape) for dtype, shape in self.layout.values())
        step = max(1, BLOCK_BYTES // max(row, 1))
        for start in range(0, len(self), step):
            yield slice(start, min(start + step, len(self)))
