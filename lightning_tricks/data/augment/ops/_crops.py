"""Crops: with padding (whole pixels), and of a random size stretched to a fixed one."""

from dataclasses import KW_ONLY, dataclass
from math import log
from typing import ClassVar

import torch
from torch import Tensor

from lightning_tricks._base import UserInputError, check_range
from lightning_tricks.data.augment.ops._geometry import matrix3
from lightning_tricks.data.augment.ops._op import (
    GeometricOp,
    Params,
    Range,
    Size,
    between,
    check_bounds,
    check_p,
    chosen,
)


@dataclass(frozen=True)
class Crop(GeometricOp):
    """Pad by whole pixels and cut out a window at a random place.

    Args:
        padding: pixels added on each side.
        size: side of the square window, or (height, width); the picture's own size if not given.

    Example:
        >>> Crop(padding=4).draw(torch.tensor([[0.0, 0.5]]), (32, 32))
        {'top': tensor([-4.]), 'left': tensor([0.])}
    """

    padding: int = 4
    size: int | Size | None = None
    draws: ClassVar[int] = 2
    integer: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_range("padding", self.padding, low=0)
        _check_size(self.size)

    def out_size(self, size: Size) -> Size:
        """Return the window's size."""
        return size if self.size is None else _pair(self.size)

    def draw(self, u: Tensor, size: Size) -> Params:
        """Return ``top`` and ``left``: the window's corner in whole pixels, negative inside the padding."""
        places = [n + 2 * self.padding - m + 1 for n, m in zip(size, self.out_size(size), strict=True)]
        if min(places) < 1:
            raise UserInputError(
                f"Crop needs a window no larger than the padded picture, but the picture is {size}, padding "
                f"{self.padding} and the window {self.out_size(size)}. Choose more padding or a smaller size."
            )
        top, left = ((u[:, i] * n).floor() - self.padding for i, n in enumerate(places))
        return {"top": top, "left": left}

    def inverse(self, params: Params, size: Size) -> Tensor:
        """Shift from the window's centre to the picture's."""
        height, width = self.out_size(size)
        return matrix3(tx=params["left"] + (width - size[1]) / 2, ty=params["top"] + (height - size[0]) / 2)


@dataclass(frozen=True)
class RandomResizedCrop(GeometricOp):
    """Cut out a window of random area and aspect, and stretch it to a fixed size (bilinear, without antialiasing).

    Args:
        size: side of the square result, or (height, width); the picture's own size if not given.
        scale: smallest and largest area of the window, as a fraction of the picture's.
        ratio: smallest and largest width / height of the window; uniform in the logarithm.
        p: probability that a sample is cut; the others are stretched whole.

    Reference:
        Szegedy et al. 2015, "Going deeper with convolutions", section 6. A window that would stick out is clipped to
        the picture, where torchvision draws up to ten times and then takes the middle.

    Example:
        >>> op = RandomResizedCrop(16, scale=(0.25, 0.25), ratio=(1, 1))
        >>> {name: float(value) for name, value in op.draw(torch.zeros(1, 5), (32, 32)).items()}
        {'top': 0.0, 'left': 0.0, 'height': 16.0, 'width': 16.0}
    """

    size: int | Size | None = None
    _: KW_ONLY
    scale: Range = (0.08, 1.0)
    ratio: Range = (3 / 4, 4 / 3)
    p: float = 1.0
    draws: ClassVar[int] = 5

    def __post_init__(self) -> None:
        _check_size(self.size)
        check_bounds("scale", self.scale, low=1e-6, high=1)
        check_bounds("ratio", self.ratio, low=1e-3)
        check_p(self.p)

    def out_size(self, size: Size) -> Size:
        """Return the result's size."""
        return size if self.size is None else _pair(self.size)

    def draw(self, u: Tensor, size: Size) -> Params:
        """Return the window: ``top``, ``left``, ``height`` and ``width`` in whole pixels."""
        height, width = size
        area = between(u[:, 1], self.scale) * (height * width)
        root = between(u[:, 2], (log(self.ratio[0]), log(self.ratio[1]))).mul(0.5).exp()  # sqrt of the ratio
        act = chosen(u[:, 0], self.p)
        w = torch.where(act, (area.sqrt() * root).round().clamp(1, width), float(width))
        h = torch.where(act, (area.sqrt() / root).round().clamp(1, height), float(height))
        return {
            "top": (u[:, 3] * (height - h + 1)).floor(),
            "left": (u[:, 4] * (width - w + 1)).floor(),
            "height": h,
            "width": w,
        }

    def inverse(self, params: Params, size: Size) -> Tensor:
        """Shrink to the window and shift to its centre."""
        height, width = self.out_size(size)
        return matrix3(
            a=params["width"] / width,
            d=params["height"] / height,
            tx=params["left"] + (params["width"] - size[1]) / 2,
            ty=params["top"] + (params["height"] - size[0]) / 2,
        )


def _pair(size: int | Size) -> Size:
    return (size, size) if isinstance(size, int) else size


def _check_size(size: int | Size | None) -> None:
    if size is None:
        return
    if isinstance(size, int):
        check_range("size", size, low=1)
    elif len(size) != 2 or min(size) < 1:
        raise UserInputError(f"size must be one number or (height, width), each at least 1 pixel, but got {size!r}.")
