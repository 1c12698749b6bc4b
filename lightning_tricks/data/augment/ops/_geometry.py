"""Flips, rotation, translation, scale, shear and perspective, each as a 3×3 map from output to input positions.

Positions are in pixels from the picture's centre, so that nearly everything is a plain 2×2 matrix.
"""

from dataclasses import KW_ONLY, dataclass
from math import pi
from typing import ClassVar

import torch
from torch import Tensor

from lightning_tricks._base import check_range
from lightning_tricks.data.augment.ops._op import (
    CoinDraw,
    GeometricOp,
    Params,
    Range,
    Size,
    between,
    check_bounds,
    check_p,
    constant,
    only,
)


@dataclass(frozen=True)
class _Flip(CoinDraw, GeometricOp):
    p: float = 0.5
    integer: ClassVar[bool] = True


@dataclass(frozen=True)
class HorizontalFlip(_Flip):
    """Mirror left and right.

    Args:
        p: probability that a sample is mirrored.

    Example:
        >>> HorizontalFlip().draw(torch.tensor([[0.2], [0.7]]), (8, 8))
        {'on': tensor([ True, False])}
    """

    def inverse(self, params: Params, size: Size) -> Tensor:
        """Map x to −x."""
        return matrix3(a=1 - 2 * params["on"].float())


@dataclass(frozen=True)
class VerticalFlip(_Flip):
    """Mirror top and bottom.

    Args:
        p: probability that a sample is mirrored.

    Example:
        >>> VerticalFlip(p=0.1).draw(torch.tensor([[0.2]]), (8, 8))
        {'on': tensor([False])}
    """

    def inverse(self, params: Params, size: Size) -> Tensor:
        """Map y to −y."""
        return matrix3(d=1 - 2 * params["on"].float())


@dataclass(frozen=True)
class Rotate(GeometricOp):
    """Rotate about the centre.

    Args:
        degrees: the angle is uniform in [−degrees, degrees]; positive turns clockwise, as torchvision's ``affine``.
        p: probability that a sample is rotated.

    Example:
        >>> Rotate(10).draw(torch.tensor([[0.0, 0.75]]), (8, 8))
        {'angle': tensor([5.])}
    """

    degrees: float = 15.0
    _: KW_ONLY
    p: float = 1.0
    draws: ClassVar[int] = 2

    def __post_init__(self) -> None:
        check_range("degrees", self.degrees, low=0, high=180)
        check_p(self.p)

    def draw(self, u: Tensor, size: Size) -> Params:
        """Return ``angle`` in degrees."""
        return {"angle": only(u[:, 0], self.p, between(u[:, 1], (-self.degrees, self.degrees)), 0.0)}

    def inverse(self, params: Params, size: Size) -> Tensor:
        """Rotate by minus the angle."""
        radians = params["angle"] * (pi / 180)
        cos, sin = radians.cos(), radians.sin()
        return matrix3(cos, sin, -sin, cos)


@dataclass(frozen=True)
class Translate(GeometricOp):
    """Shift by a fraction of the picture's size.

    Args:
        fraction: shifts are uniform in ±fraction of the width and of the height.
        p: probability that a sample is shifted.

    Example:
        >>> Translate(0.5).draw(torch.tensor([[0.0, 1.0, 0.5]]), (8, 20))
        {'x': tensor([10.]), 'y': tensor([0.])}
    """

    fraction: float = 0.1
    _: KW_ONLY
    p: float = 1.0
    draws: ClassVar[int] = 3

    def __post_init__(self) -> None:
        check_range("fraction", self.fraction, low=0, high=1)
        check_p(self.p)

    def draw(self, u: Tensor, size: Size) -> Params:
        """Return ``x`` and ``y`` in pixels."""
        height, width = size
        reach = only(u[:, :1], self.p, between(u[:, 1:], (-self.fraction, self.fraction)), 0.0)
        return {"x": reach[:, 0] * width, "y": reach[:, 1] * height}

    def inverse(self, params: Params, size: Size) -> Tensor:
        """Shift back."""
        return matrix3(tx=-params["x"], ty=-params["y"])


@dataclass(frozen=True)
class Scale(GeometricOp):
    """Zoom about the centre; above 1 the content grows.

    Args:
        factor: smallest and largest factor; its logarithm is uniform between them if ``log``, else the factor itself.
        p: probability that a sample is scaled.
        log: draw so that halving is as likely as doubling.

    Example:
        >>> Scale((0.5, 1.5)).draw(torch.tensor([[0.0, 0.5]]), (8, 8))
        {'factor': tensor([1.])}
    """

    factor: Range = (0.9, 1.1)
    _: KW_ONLY
    p: float = 1.0
    log: bool = False
    draws: ClassVar[int] = 2

    def __post_init__(self) -> None:
        check_bounds("factor", self.factor, low=1e-3)
        check_p(self.p)

    def draw(self, u: Tensor, size: Size) -> Params:
        """Return ``factor``."""
        low, high = self.factor
        value = low * (high / low) ** u[:, 1] if self.log else between(u[:, 1], self.factor)
        return {"factor": only(u[:, 0], self.p, value, 1.0)}

    def inverse(self, params: Params, size: Size) -> Tensor:
        """Divide by the factor."""
        shrink = params["factor"].reciprocal()
        return matrix3(a=shrink, d=shrink)


@dataclass(frozen=True)
class Shear(GeometricOp):
    """Slant about the centre.

    Args:
        degrees: the angles along x and along y are uniform in [−degrees, degrees].
        p: probability that a sample is slanted.

    Example:
        >>> Shear(10).draw(torch.tensor([[0.0, 0.75, 0.5]]), (8, 8))
        {'x': tensor([5.]), 'y': tensor([0.])}
    """

    degrees: float = 10.0
    _: KW_ONLY
    p: float = 1.0
    draws: ClassVar[int] = 3

    def __post_init__(self) -> None:
        check_range("degrees", self.degrees, low=0, high=90, open_high=True)
        check_p(self.p)

    def draw(self, u: Tensor, size: Size) -> Params:
        """Return ``x`` and ``y`` in degrees."""
        angles = only(u[:, :1], self.p, between(u[:, 1:], (-self.degrees, self.degrees)), 0.0)
        return {"x": angles[:, 0], "y": angles[:, 1]}

    def inverse(self, params: Params, size: Size) -> Tensor:
        """Undo the slant: the inverse of the matrix of torchvision's ``affine``."""
        sx, sy = ((params[axis] * (pi / 180)).tan() for axis in "xy")
        return matrix3(1 + sx * sy, sx, sy)


@dataclass(frozen=True)
class Perspective(GeometricOp):
    """Move the four corners inwards, each by its own amount.

    Args:
        distortion: corners move by up to this fraction of half the width and half the height.
        p: probability that a sample is distorted.

    Example:
        >>> op = Perspective(0.5)
        >>> corners = op.draw(torch.zeros(1, 9), (8, 8))["corners"]
        >>> corners[0].tolist()
        [[0.0, 0.0], [8.0, 0.0], [8.0, 8.0], [0.0, 8.0]]
    """

    distortion: float = 0.5
    _: KW_ONLY
    p: float = 0.5
    draws: ClassVar[int] = 9
    affine: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_range("distortion", self.distortion, low=0, high=1, open_high=True)
        check_p(self.p)

    def draw(self, u: Tensor, size: Size) -> Params:
        """Return ``corners``: where the corners go, clockwise from the upper left, ``(B, 4, 2)`` as (x, y)."""
        extent = constant((size[1], size[0]), u)
        start = constant(((0, 0), (1, 0), (1, 1), (0, 1)), u)
        inwards = only(u[:, :1], self.p, u[:, 1:], 0.0).reshape(-1, 4, 2) * (self.distortion / 2)
        return {"corners": (start + (1 - 2 * start) * inwards) * extent}

    def inverse(self, params: Params, size: Size) -> Tensor:
        """Map the moved corners back to the picture's corners."""
        x, y = size[1] / 2, size[0] / 2
        to_unit = inverse3(square_to_quad(params["corners"] - constant((x, y), params["corners"])))
        return constant(((2 * x, 0, -x), (0, 2 * y, -y), (0, 0, 1)), to_unit) @ to_unit


def matrix3(
    a: Tensor | float = 1.0,
    b: Tensor | float = 0.0,
    c: Tensor | float = 0.0,
    d: Tensor | float = 1.0,
    *,
    tx: Tensor | float = 0.0,
    ty: Tensor | float = 0.0,
) -> Tensor:
    """Return ``(B, 3, 3)`` of ``[[a, b, tx], [c, d, ty], [0, 0, 1]]``; entries are ``(B,)``, or 0 or 1 for all."""
    entries = (a, b, tx, c, d, ty, 0.0, 0.0, 1.0)
    like = next(entry for entry in entries if isinstance(entry, Tensor))
    zero, one = torch.zeros_like(like), torch.ones_like(like)
    full = [entry if isinstance(entry, Tensor) else one if entry else zero for entry in entries]
    return torch.stack(full, dim=1).view(-1, 3, 3)


def square_to_quad(corners: Tensor) -> Tensor:
    """Return the homography from the unit square to a quadrilateral ``(B, 4, 2)``, clockwise from the upper left.

    Reference:
        Heckbert 1989, "Fundamentals of texture mapping and image warping", section 2.2.3.
    """
    x, y = corners.unbind(-1)  # (B, 4) each
    dx1, dx2, dx3 = x[:, 1] - x[:, 2], x[:, 3] - x[:, 2], x[:, 0] - x[:, 1] + x[:, 2] - x[:, 3]
    dy1, dy2, dy3 = y[:, 1] - y[:, 2], y[:, 3] - y[:, 2], y[:, 0] - y[:, 1] + y[:, 2] - y[:, 3]
    det = dx1 * dy2 - dx2 * dy1
    g = (dx3 * dy2 - dx2 * dy3) / det
    h = (dx1 * dy3 - dx3 * dy1) / det
    out = matrix3(
        x[:, 1] - x[:, 0] + g * x[:, 1],
        x[:, 3] - x[:, 0] + h * x[:, 3],
        y[:, 1] - y[:, 0] + g * y[:, 1],
        y[:, 3] - y[:, 0] + h * y[:, 3],
        tx=x[:, 0],
        ty=y[:, 0],
    )
    out[:, 2, 0] = g
    out[:, 2, 1] = h
    return out


def inverse3(matrix: Tensor) -> Tensor:
    """Return the inverse of ``(B, 3, 3)`` by cross products: unlike ``linalg.inv`` it does not wait for the device."""
    rows = matrix.unbind(1)
    columns = [torch.linalg.cross(rows[(i + 1) % 3], rows[(i + 2) % 3]) for i in range(3)]
    det = (rows[0] * columns[0]).sum(-1)
    adjugate: Tensor = torch.stack(columns, dim=2)
    return adjugate.div(det[:, None, None])
