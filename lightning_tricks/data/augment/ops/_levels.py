"""Operations on levels of brightness: solarize, posterize, and two that look at all levels of a picture first."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lightning_tricks._base import check_range
from lightning_tricks.data.augment.ops._op import CoinDraw, Params, PixelOp, Size, Space, check_p, chosen, constant


@dataclass(frozen=True)
class Solarize(PixelOp):
    """Invert what is brighter than a threshold.

    Args:
        threshold: in [0, 1] of full brightness.
        p: probability that a sample is changed.

    Example:
        >>> Solarize(0.5, p=0.2).draw(torch.tensor([[0.1], [0.9]]), (8, 8))
        {'threshold': tensor([0.5000, inf])}
    """

    threshold: float = 0.5
    p: float = 0.1
    draws: ClassVar[int] = 1

    def __post_init__(self) -> None:
        check_range("threshold", self.threshold, low=0, high=1)
        check_p(self.p)

    def draw(self, u: Tensor, size: Size) -> Params:
        """Return ``threshold``: infinite where nothing happens."""
        value = torch.full_like(u[:, 0], self.threshold)
        return {"threshold": value.masked_fill(~chosen(u[:, 0], self.p), torch.inf)}

    def acts(self, params: Params) -> Tensor:
        """Return where the threshold is finite."""
        return params["threshold"].isfinite()

    def apply(self, images: Tensor, params: Params, space: Space) -> Tensor:
        """Invert."""
        full = _full(space)
        return torch.where(images >= params["threshold"][:, None, None, None] * full, full - images, images)


@dataclass(frozen=True)
class Posterize(PixelOp):
    """Keep the highest bits of each channel.

    Args:
        bits: how many are kept, 1 to 8; 8 changes nothing.
        p: probability that a sample is changed.

    Example:
        >>> Posterize(4, p=0.2).draw(torch.tensor([[0.1], [0.9]]), (8, 8))
        {'bits': tensor([4., 8.])}
    """

    bits: int = 4
    p: float = 0.1
    draws: ClassVar[int] = 1

    def __post_init__(self) -> None:
        check_range("bits", self.bits, low=1, high=8)
        check_p(self.p)

    def draw(self, u: Tensor, size: Size) -> Params:
        """Return ``bits``: 8 where nothing happens."""
        return {"bits": torch.where(chosen(u[:, 0], self.p), float(self.bits), 8.0)}

    def acts(self, params: Params) -> Tensor:
        """Return where bits are lost."""
        return params["bits"] < 8

    def apply(self, images: Tensor, params: Params, space: Space) -> Tensor:
        """Round down to a multiple of the lowest bit that is kept."""
        bits = params["bits"][:, None, None, None]
        full = _full(space)
        span = 256.0 if full == 255 else full  # bytes have 256 levels; floats are cut as torchvision cuts them
        levels = torch.exp2(bits)
        # A value that earlier passes rounded to just below its level must not lose that level; bytes lie farther apart.
        cut = (images * (levels / span) + 1e-4).floor_().minimum(levels - 1).mul_(span / levels)
        return torch.where(bits < 8, cut, images)


@dataclass(frozen=True)
class AutoContrast(CoinDraw, PixelOp):
    """Stretch each channel so that its darkest value becomes black and its brightest white.

    A channel whose values differ by less than half a step of a byte stays: that is rounding, not a picture.

    Args:
        p: probability that a sample is changed.

    Example:
        >>> AutoContrast(p=0.2).draw(torch.tensor([[0.1], [0.9]]), (8, 8))
        {'on': tensor([ True, False])}
    """

    any_space: ClassVar[bool] = True
    overshoots: ClassVar[bool] = True  # by a rounding error

    def acts(self, params: Params) -> Tensor:
        """Return where it happens."""
        return params["on"]

    def apply(self, images: Tensor, params: Params, space: Space) -> Tensor:
        """Stretch: one factor and one shift per channel."""
        black, gain = (constant(part, images)[:, None, None] for part in (space.offset, space.gain))
        low = images.amin((2, 3), keepdim=True)
        span = images.amax((2, 3), keepdim=True) - low
        stretched = params["on"][:, None, None, None] & (span > gain / 510)
        factor = torch.where(stretched, gain / span, 1.0)
        return torch.addcmul(torch.where(stretched, black - low * factor, 0.0), images, factor)


@dataclass(frozen=True)
class Equalize(CoinDraw, PixelOp):
    """Spread the levels of each channel so that all 256 are about equally frequent.

    The rule is PIL's, in whole numbers: the level of a pixel is the number of darker pixels, divided by a 255th of the
    number of pixels below the brightest level.

    Args:
        p: probability that a sample is changed.

    Example:
        >>> Equalize(p=0.2).draw(torch.tensor([[0.1], [0.9]]), (8, 8))
        {'on': tensor([ True, False])}
    """

    def acts(self, params: Params) -> Tensor:
        """Return where it happens."""
        return params["on"]

    def apply(self, images: Tensor, params: Params, space: Space) -> Tensor:
        """Count levels, look the new ones up."""
        full = _full(space)
        # Floats become bytes as torchvision makes them: 256 equal intervals, of which the last holds 1 too.
        levels = (images * (255.999 / full)).floor_().clamp_(0, 255).long().flatten(2)  # (B, C, N)
        counts = levels.new_zeros(*levels.shape[:2], 256).scatter_add_(2, levels, torch.ones_like(levels))
        every = torch.arange(256, device=images.device)
        brightest = torch.where(counts > 0, every, 0).amax(2, keepdim=True)
        step = (levels.shape[2] - counts.gather(2, brightest)) // 255  # (B, C, 1)
        darker = counts.cumsum(2) - counts
        table = ((darker + step // 2) // step.clamp(min=1)).clamp_(max=255)
        table = torch.where(step > 0, table, every)  # too few pixels to spread
        new = table.gather(2, levels).view(images.shape) * (full / 255)
        return torch.where(params["on"][:, None, None, None], new, images)


def _full(space: Space) -> float:
    if space.full is None:
        raise RuntimeError("the pipeline must bring pictures back to one range before this operation")
    return space.full
