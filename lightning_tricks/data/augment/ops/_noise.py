"""Gaussian noise of each sample's own: exact, or cut from a bank of ready numbers."""

from dataclasses import KW_ONLY, dataclass
from functools import lru_cache
from math import pi
from typing import ClassVar, Literal

import torch
from torch import Tensor

from lightning_tricks._base import check_choice, check_range
from lightning_tricks.data.augment._keys import words_of
from lightning_tricks.data.augment.ops._op import Params, PixelOp, Size, Space, check_p, chosen, constant


@dataclass(frozen=True)
class GaussianNoise(PixelOp):
    """Add Gaussian noise to every pixel of every channel.

    Args:
        sigma: standard deviation, as a fraction of full brightness.
        p: probability that a sample gets noise.
        source: ``"bank"`` cuts each sample's noise, at a place and with a sign of its own, out of a fixed sequence of
            about a million Gaussian numbers: much faster, and the same on every device, but two samples may share a
            stretch at different pixels. ``"exact"`` draws each number anew, on the CPU and on an accelerator from
            different generators.

    Example:
        >>> GaussianNoise(0.1, p=0.5).draw(torch.tensor([[0.2], [0.7]]), (8, 8))
        {'sigma': tensor([0.1000, 0.0000])}
    """

    sigma: float = 0.05
    _: KW_ONLY
    p: float = 1.0
    source: Literal["bank", "exact"] = "bank"
    draws: ClassVar[int] = 1
    any_space: ClassVar[bool] = True
    overshoots: ClassVar[bool] = True
    takes_word: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_range("sigma", self.sigma, low=0)
        check_p(self.p)
        check_choice("source", self.source, ["bank", "exact"])

    def draw(self, u: Tensor, size: Size) -> Params:
        """Return ``sigma``: 0 where nothing happens."""
        return {"sigma": self.sigma * chosen(u[:, 0], self.p)}

    def apply(self, images: Tensor, params: Params, space: Space) -> Tensor:
        """Add the noise in place."""
        flat = images.flatten(2)
        self.added_to(flat, params, space, flat)
        return images

    def added_to(self, base: Tensor, params: Params, space: Space, out: Tensor) -> Tensor:
        """Return ``base`` (broadcastable) plus the noise, written to ``out`` ``(B, C, pixels)``."""
        channels, pixels = out.shape[1:]
        sign = 1 - 2 * (params["word"] & 1)  # doubles what the bank offers
        sigma = (params["sigma"] * sign)[:, None] * constant(space.gain, out)  # (B, C)
        noise = (_from_bank if self.source == "bank" else _exact)(params["word"], channels * pixels)
        return torch.addcmul(base, noise.view_as(out), sigma[:, :, None], out=out)


def _from_bank(words: Tensor, count: int) -> Tensor:
    """Return ``(B, count)`` numbers: the stretch of the bank that each word points at, with the word's sign."""
    size = max(1 << 20, 1 << (4 * count).bit_length())
    bank = _bank(size, words.device)
    start = ((words >> 2) & ((1 << 40) - 1)) % (size - count)
    # Windows of a sequence are a view; selecting rows of it copies stretches, without a loop and without a wait.
    return bank.unfold(0, count, 1).index_select(0, start)


@lru_cache(maxsize=4)
def _bank(size: int, device: torch.device) -> Tensor:
    fixed = torch.Generator().manual_seed(0x6E6F697365)
    return torch.randn(size, generator=fixed).to(device, non_blocking=True)


def _exact(words: Tensor, count: int) -> Tensor:
    """Return ``(B, count)`` fresh numbers, a function of each word alone."""
    return _by_generator(words, count) if words.device.type == "cpu" else _by_counter(words, count)


def _by_generator(words: Tensor, count: int) -> Tensor:
    out = torch.empty(len(words), count)
    generator = torch.Generator()
    for row, word in zip(out.unbind(0), words.tolist(), strict=True):
        row.normal_(generator=generator.manual_seed(word))
    return out


def _by_counter(words: Tensor, count: int) -> Tensor:
    """Hash a counter and transform by Box and Muller (1958): no generator state, so nothing to wait for."""
    half = (count + 1) // 2
    bits = words_of(words, half)  # (B, half)
    # 32 bits for the radius, never zero; 24 for the angle, which is all that float32 resolves.
    radius = (((bits >> 32) & 0xFFFFFFFF).float() + 0.5).mul_(2.0**-32).log_().mul_(-2).sqrt_()
    angle = (bits & 0xFFFFFF).float().mul_(2 * pi * 2.0**-24)
    return torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)[:, :count]
