"""Which axis of a tensor inside a net counts the rows of the batch."""

from typing import NamedTuple

from torch import Tensor

Shapes = dict[str, tuple[int, ...]]  # by call site


class RowLayout(NamedTuple):
    """Rows lie along ``axis``; each row has ``groups`` consecutive entries there (attention heads, windows)."""

    axis: int
    groups: int


def find_rows(shape: tuple[int, ...], n_rows: int | None) -> RowLayout | None:
    """Guess where the rows are: the first axis, else the second (time first), else groups of rows in the first.

    Args:
        shape: of a tensor somewhere inside the net.
        n_rows: size of the batch; None if unknown.

    Returns:
        The layout, or None if the tensor has no rows, such as a weight that is dropped out.

    Example:
        >>> find_rows((8, 3), 8), find_rows((50, 8, 3), 8), find_rows((32, 50, 50), 8)
        (RowLayout(axis=0, groups=1), RowLayout(axis=1, groups=1), RowLayout(axis=0, groups=4))
        >>> find_rows((10, 3), 8) is None
        True
    """
    if n_rows is None or not shape:
        return None
    for axis in (0, 1):
        if len(shape) > axis and shape[axis] == n_rows:
            return RowLayout(axis, 1)
    if shape[0] > 0 and shape[0] % n_rows == 0:
        return RowLayout(0, shape[0] // n_rows)
    return None


class RowAxes:
    """Knows for each call site the axis whose size changes with the number of rows; guesses where nothing is known.

    Example:
        >>> axes = RowAxes()
        >>> axes.layout("drop#0", (8, 8, 3), n_rows=8)
        RowLayout(axis=0, groups=1)
        >>> axes.learn({"drop#0": (8, 8, 3)}, 8, {"drop#0": (8, 4, 3)}, 4)  # time first, as long as the batch
        True
        >>> axes.layout("drop#0", (8, 8, 3), n_rows=8)
        RowLayout(axis=1, groups=1)
    """

    def __init__(self) -> None:
        self._axes: dict[str, int | None] = {}  # None: the tensor has no rows

    def learn(self, shapes: Shapes, n_rows: int, others: Shapes, other_rows: int) -> bool:
        """Compare the shapes of two passes with different numbers of rows; tell whether a guess was wrong."""
        for site in shapes.keys() & others.keys():
            shape, other = shapes[site], others[site]
            if len(shape) != len(other):
                continue
            changed = [axis for axis, size in enumerate(shape) if size != other[axis]]
            counting = [axis for axis in changed if shape[axis] * other_rows == other[axis] * n_rows]
            if counting or not changed:
                self._axes[site] = counting[0] if counting else None
        return any(self.layout(site, shape, n_rows) != find_rows(shape, n_rows) for site, shape in shapes.items())

    def layout(self, site: str, shape: tuple[int, ...], n_rows: int | None) -> RowLayout | None:
        """Return where the rows of a tensor are that random numbers go into."""
        axis = self._axes.get(site, -1)
        if axis is None or n_rows is None:
            return None
        if 0 <= axis < len(shape) and shape[axis] % n_rows == 0:
            return RowLayout(axis, shape[axis] // n_rows)
        return find_rows(shape, n_rows)


def row_shape(shape: tuple[int, ...], layout: RowLayout | None) -> tuple[int, ...]:
    """Return the shape of one row's part, its groups first."""
    if layout is None:
        return tuple(shape)
    return (layout.groups, *shape[: layout.axis], *shape[layout.axis + 1 :])


def to_layout(numbers: Tensor, shape: tuple[int, ...], layout: RowLayout | None) -> Tensor:
    """Turn ``(S, rows, size)`` into ``(S, *shape)``; with one row for many, the row axis is 1 and broadcasts.

    Groups cannot broadcast along the axis that they share with the rows, so there the rows are repeated.
    """
    s, rows = numbers.shape[:2]
    if layout is None:
        return numbers.reshape(s, *shape)
    rest = row_shape(shape, layout)[1:]
    if layout.groups > 1 and rows == 1:
        rows = shape[layout.axis] // layout.groups
        numbers = numbers.expand(s, rows, -1)
    return numbers.reshape(s, rows * layout.groups, *rest).movedim(1, 1 + layout.axis)
