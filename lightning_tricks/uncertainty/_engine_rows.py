"""Which axis of a tensor inside a net counts the rows of the batch."""

from typing import NamedTuple

from torch import Tensor


class RowLayout(NamedTuple):
    """Rows lie along ``axis``; each row has ``groups`` consecutive entries there (attention heads, windows)."""

    axis: int
    groups: int


def find_rows(shape: tuple[int, ...], n_rows: int | None) -> RowLayout | None:
    """Tell where the rows are: the first axis, else the second (time first), else groups of rows in the first.

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
    if layout.axis == 0:
        return numbers.reshape(s, rows * layout.groups, *rest)
    return numbers.reshape(s, rows, *rest).movedim(1, 1 + layout.axis)
