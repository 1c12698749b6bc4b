"""Operations on pixels that do not fold: hue of HSV, blur, sharpness and erasing; for others see ``_levels``."""

from dataclasses import KW_ONLY, dataclass
from math import log
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_tricks._base import UserInputError, check_range
from lightning_tricks.data.augment.ops._op import (
    FactorDraw,
    Params,
    PixelOp,
    Range,
    Size,
    Space,
    TurnDraw,
    between,
    check_bounds,
    check_p,
    chosen,
    constant,
    has_hue,
    only,
)

_NO_BLUR = 1e-3  # pixels: the neighbours' weights vanish in float32


@dataclass(frozen=True)
class HueHSV(TurnDraw, PixelOp):
    """Turn the hue of HSV, as torchvision's ``adjust_hue`` does. Slower than :class:`Hue`: it does not fold.

    Nothing to do where there is one channel; pictures of 2, 4 or more channels are refused.

    Args:
        amount: the turn is uniform in [−amount, amount] of a full circle, at most 0.5.
        p: probability that a sample is changed.

    Example:
        >>> HueHSV(0.1).draw(torch.tensor([[0.0, 0.5]]), (8, 8))
        {'turn': tensor([0.])}
    """

    def acts(self, params: Params) -> Tensor:
        """Return where the hue turns."""
        return params["turn"] != 0

    def apply(self, images: Tensor, params: Params, space: Space) -> Tensor:
        """Turn the hue, keep value and saturation."""
        if not has_hue("HueHSV", images.shape[1]):
            return images
        red, green, blue = images.unbind(1)
        high, low = images.amax(1), images.amin(1)
        span = high - low
        safe = span.masked_fill(span == 0, 1)
        sixth = torch.where(
            high == red,
            (green - blue) / safe,
            torch.where(high == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
        )
        sixth += 6 * params["turn"][:, None, None]
        out = torch.empty_like(images)
        for channel, start in enumerate((5.0, 3.0, 1.0)):  # HSV to RGB without cases
            k = (sixth + start).remainder_(6)
            out[:, channel] = high - span * torch.minimum(k, 4 - k).clamp_(0, 1)
        return out


@dataclass(frozen=True)
class GaussianBlur(PixelOp):
    """Blur by a Gaussian whose width each sample draws.

    Args:
        kernel_size: odd number of pixels that the Gaussian is cut off to.
        sigma: smallest and largest standard deviation in pixels.
        p: probability that a sample is blurred.

    Example:
        >>> GaussianBlur(3, sigma=(1, 1)).draw(torch.tensor([[0.0, 0.5]]), (8, 8))
        {'sigma': tensor([1.])}
    """

    kernel_size: int = 5
    _: KW_ONLY
    sigma: Range = (0.1, 2.0)
    p: float = 0.5
    draws: ClassVar[int] = 2
    any_space: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_range("kernel_size", self.kernel_size, low=1)
        if self.kernel_size % 2 == 0:
            raise UserInputError(f"kernel_size must be odd, so that it has a middle, but got {self.kernel_size}.")
        check_bounds("sigma", self.sigma, low=_NO_BLUR)
        check_p(self.p)

    def draw(self, u: Tensor, size: Size) -> Params:
        """Return ``sigma``: nearly zero where nothing happens."""
        if min(size) <= self.kernel_size // 2:
            raise UserInputError(
                f"GaussianBlur mirrors {self.kernel_size // 2} pixels at the border, but the picture is {size}. "
                "Choose a smaller kernel_size."
            )
        return {"sigma": only(u[:, 0], self.p, between(u[:, 1], self.sigma), _NO_BLUR)}

    def acts(self, params: Params) -> Tensor:
        """Return where the Gaussian is wider than nothing."""
        return params["sigma"] > _NO_BLUR

    def apply(self, images: Tensor, params: Params, space: Space) -> Tensor:
        """Blur along x, then along y."""
        half = self.kernel_size // 2
        steps = torch.arange(-half, half + 1, device=images.device)
        weights = (-0.5 * (steps / params["sigma"][:, None]) ** 2).exp()  # (B, K)
        weights /= weights.sum(1, keepdim=True)
        padded = F.pad(images, (half, half, half, half), mode="reflect")
        return _weighted(_weighted(padded, weights, axis=3), weights, axis=2)


@dataclass(frozen=True)
class Sharpness(FactorDraw, PixelOp):
    """Blend with (below 1) or move away from (above 1) a slightly smoothed picture.

    Args:
        amount: the factor is uniform in [max(0, 1 − amount), 1 + amount].
        p: probability that a sample is changed.

    Example:
        >>> Sharpness(0.5).draw(torch.tensor([[0.0, 0.5]]), (8, 8))
        {'factor': tensor([1.])}
    """

    amount: float = 0.5
    any_space: ClassVar[bool] = True
    overshoots: ClassVar[bool] = True

    def acts(self, params: Params) -> Tensor:
        """Return where the factor is not 1."""
        return params["factor"] != 1

    def apply(self, images: Tensor, params: Params, space: Space) -> Tensor:
        """Blend; pixels at the border stay, as in PIL and torchvision."""
        if min(images.shape[2:]) <= 2:
            return images
        ones = images.new_ones(len(images), 3)
        inside = images[:, :, 1:-1, 1:-1]
        smooth = (_weighted(_weighted(images, ones, axis=3), ones, axis=2) + 4 * inside) / 13
        out = images.clone()
        out[:, :, 1:-1, 1:-1] = torch.lerp(smooth, inside, params["factor"][:, None, None, None])
        return out


@dataclass(frozen=True)
class Erase(PixelOp):
    """Overwrite a random rectangle.

    Args:
        p: probability that a sample is hit.
        scale: smallest and largest area of the rectangle, as a fraction of the picture's.
        ratio: smallest and largest height / width; uniform in the logarithm. A rectangle that would stick out is cut.
        value: brightness in [0, 1] that is written, one for all channels or one for each.

    Reference:
        Zhong et al. 2020, "Random erasing data augmentation".

    Example:
        >>> Erase(scale=(0.25, 0.25), ratio=(1, 1)).draw(torch.zeros(1, 5), (8, 8))["box"]
        tensor([[0, 0, 4, 4]])
    """

    p: float = 0.25
    _: KW_ONLY
    scale: Range = (0.02, 0.33)
    ratio: Range = (0.3, 3.3)
    value: float | tuple[float, ...] = 0.5
    draws: ClassVar[int] = 5
    any_space: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_bounds("scale", self.scale, low=0, high=1)
        check_bounds("ratio", self.ratio, low=1e-3)
        for level in self.value if isinstance(self.value, tuple) else (self.value,):
            check_range("value", level, low=0, high=1)
        check_p(self.p)

    def draw(self, u: Tensor, size: Size) -> Params:
        """Return ``box`` ``(B, 4)`` as left, top, right, bottom in whole pixels; empty where nothing happens."""
        height, width = size
        area = between(u[:, 1], self.scale) * (height * width) * chosen(u[:, 0], self.p)
        root = between(u[:, 2], (log(self.ratio[0]), log(self.ratio[1]))).mul(0.5).exp()
        h = (area.sqrt() * root).round().clamp(max=height)
        w = (area.sqrt() / root).round().clamp(max=width)
        top, left = (u[:, 3] * (height - h + 1)).floor(), (u[:, 4] * (width - w + 1)).floor()
        return {"box": torch.stack([left, top, left + w, top + h], dim=1).long()}

    def apply(self, images: Tensor, params: Params, space: Space) -> Tensor:
        """Overwrite."""
        levels = self.value if isinstance(self.value, tuple) else (self.value,) * images.shape[1]
        if len(levels) != images.shape[1]:
            raise UserInputError(
                f"Erase has a value for each of {len(levels)} channels, but pictures have {images.shape[1]}."
            )
        stored = tuple(g * v + o for g, v, o in zip(space.gain, levels, space.offset, strict=True))
        inside = in_box(params["box"], (images.shape[2], images.shape[3]))
        return torch.where(inside[:, None], constant(stored, images)[:, None, None], images)


def in_box(box: Tensor, size: Size) -> Tensor:
    """Return ``(B, H, W)``: which pixels lie in each sample's box ``(B, 4)`` of left, top, right, bottom."""
    rows = torch.arange(size[0], device=box.device)
    columns = torch.arange(size[1], device=box.device)
    left, top, right, bottom = box[:, :, None].unbind(1)  # (B, 1) each
    in_rows = (rows >= top) & (rows < bottom)
    in_columns = (columns >= left) & (columns < right)
    return in_rows[:, :, None] & in_columns[:, None, :]


def _weighted(images: Tensor, weights: Tensor, *, axis: int) -> Tensor:
    """Return the correlation with each sample's own kernel ``(B, K)`` along one axis, without padding."""
    taps = weights.shape[1]
    length = images.shape[axis] - taps + 1
    out = images.narrow(axis, 0, length) * weights[:, 0, None, None, None]
    for tap in range(1, taps):
        out.addcmul_(images.narrow(axis, tap, length), weights[:, tap, None, None, None])
    return out
