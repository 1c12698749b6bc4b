"""Move pixels, class masks, boxes and points by one 3×3 map per sample from output to input positions.

The maps take and give pixels from the centre of the picture.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_tricks.data.augment.ops._geometry import inverse3
from lightning_tricks.data.augment.ops._op import Size, constant

Padding = Literal["zeros", "border", "reflection"]


def warp(images: Tensor, matrix: Tensor, size: Size, padding: Padding, *, affine: bool) -> Tensor:
    """Return pictures resampled bilinearly on one grid.

    Args:
        images: ``(B, C, H, W)`` floats.
        matrix: ``(B, 3, 3)``.
        size: of the result.
        padding: what lies outside.
        affine: the last row of every matrix is (0, 0, 1).
    """
    height, width = images.shape[2:]
    unit = matrix * constant(((2 / width,), (2 / height,), (1,)), matrix)  # grid_sample wants -1 to 1, edge to edge
    grid = _positions(unit, size, affine=affine)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode=padding, align_corners=False)


def _positions(matrix: Tensor, size: Size, *, affine: bool) -> Tensor:
    """Return ``(B, H, W, 2)``: the image of each output pixel's centre under ``(B, 3, 3)``.

    The row's part and the column's part meet in one broadcast sum of complex numbers: (x, y) side by side is what
    ``grid_sample`` wants, and a sum of pairs is one vectorised pass, several times faster than ``affine_grid``.
    """
    height, width = size
    at_x, at_y = _centres(width, matrix), _centres(height, matrix)
    by_column = at_x[:, None] * matrix[:, None, :, 0]  # (B, W, 3)
    by_row = at_y[:, None] * matrix[:, None, :, 1] + matrix[:, None, :, 2]  # (B, H, 3)
    grid = _pairs(by_row)[:, :, None] + _pairs(by_column)[:, None, :]  # (B, H, W)
    if not affine:
        grid = grid / (by_row[:, :, None, 2] + by_column[:, None, :, 2])
    return torch.view_as_real(grid)


def _pairs(points: Tensor) -> Tensor:
    return torch.view_as_complex(points[..., :2].contiguous())


def _centres(length: int, like: Tensor) -> Tensor:
    """Return where the middles of pixels lie, from the middle of them all."""
    return torch.arange(length, device=like.device, dtype=like.dtype) - (length - 1) / 2


def source_lines(matrix: Tensor, before: Size, after: Size) -> tuple[Tensor, Tensor]:
    """Return the input row of each output row ``(B, H)`` and column of each column ``(B, W)``, for whole-pixel maps."""
    lines = []
    for axis in range(2):  # rows are y
        at = _centres(after[axis], matrix)
        y = 1 - axis
        source = matrix[:, y, y, None] * at + matrix[:, y, 2, None]
        lines.append((source + before[axis] / 2).floor().long())
    return lines[0], lines[1]


def gather(images: Tensor, rows: Tensor, columns: Tensor, padding: Padding, *, fill: float = 0) -> Tensor:
    """Return ``(B, C, H', W')`` picked pixel by pixel, bit by bit what they were, in any dtype.

    Args:
        images: ``(B, C, H, W)``.
        rows: ``(B, H')`` row in the input, perhaps outside.
        columns: ``(B, W')`` column in the input, perhaps outside.
        padding: what lies outside.
        fill: what ``"zeros"`` stands for.
    """
    batch, channels, height, width = images.shape
    inside = (_inside(rows, height)[:, :, None] & _inside(columns, width)[:, None, :]) if padding == "zeros" else None
    place = _fold_in(rows, height, padding)[:, :, None] * width + _fold_in(columns, width, padding)[:, None, :]
    flat = place.flatten(1)[:, None].expand(-1, channels, -1)
    out = images.reshape(batch, channels, -1).gather(2, flat).view(batch, channels, rows.shape[1], columns.shape[1])
    return out if inside is None else out.masked_fill_(~inside[:, None], fill)


def pick(masks: Tensor, matrix: Tensor, size: Size, padding: Padding, fill: float) -> Tensor:
    """Return class masks ``(B, C, H, W)`` of the nearest pixel: values that were there, or ``fill``."""
    batch, channels, height, width = masks.shape
    middle = constant((width / 2, height / 2), matrix)
    at = (_positions(matrix, size, affine=False) + middle).floor().long()  # (B, H', W', 2)
    columns, rows = at.unbind(-1)
    inside = _inside(rows, height) & _inside(columns, width)
    place = _fold_in(rows, height, padding) * width + _fold_in(columns, width, padding)
    flat = place.flatten(1)[:, None].expand(-1, channels, -1)
    out = masks.reshape(batch, channels, -1).gather(2, flat).view(batch, channels, *size)
    return out.masked_fill_(~inside[:, None], fill) if padding == "zeros" else out


def move_points(points: Tensor, matrix: Tensor, before: Size, after: Size) -> Tensor:
    """Return where points ``(B, N, 2)`` as (x, y) land, with the first pixel covering [0, 1]².

    Args:
        points: in the picture before.
        matrix: ``(B, 3, 3)`` from the picture after to the one before.
        before: size of the picture before.
        after: size of the picture after.
    """
    old, new = (constant((size[1] / 2, size[0] / 2), points) for size in (before, after))
    forward = inverse3(matrix).to(points.dtype)
    ahead = F.pad(points - old, (0, 1), value=1.0) @ forward.transpose(1, 2)
    return ahead[..., :2] / ahead[..., 2:] + new


def move_boxes(boxes: Tensor, matrix: Tensor, before: Size, after: Size) -> Tensor:
    """Return the upright hull of moved boxes ``(B, N, 4)`` as (x1, y1, x2, y2), cut to the picture."""
    corners = boxes[..., [0, 1, 2, 1, 2, 3, 0, 3]].reshape(*boxes.shape[:2], 4, 2)
    moved = move_points(corners.flatten(1, 2), matrix, before, after).reshape(corners.shape)
    hull = torch.cat([moved.amin(2), moved.amax(2)], dim=-1)
    hull[..., 0::2] = hull[..., 0::2].clamp(0, after[1])
    hull[..., 1::2] = hull[..., 1::2].clamp(0, after[0])
    return hull


def _inside(place: Tensor, length: int) -> Tensor:
    return (place >= 0) & (place < length)


def _fold_in(place: Tensor, length: int, padding: Padding) -> Tensor:
    """Return places brought into [0, length): mirrored at the edge for reflection, else moved to the edge."""
    if padding == "reflection":
        place = place.remainder(2 * length)
        place = torch.minimum(place, 2 * length - 1 - place)
    return place.clamp(0, length - 1)
