"""Dropout with a rate of its own for every net of a stack."""

import math

import torch
from torch import Tensor


def drop_mask(shape: tuple[int, ...], rate: Tensor) -> Tensor:
    """Return what inputs are multiplied with: zeros (dropped) and ``1 / (1 - rate)`` (kept), drawn anew.

    A rate of 1 drops everything, as torch's own dropout does.
    """
    return keep_mask(shape, rate) / (1 - rate).clamp(min=torch.finfo(rate.dtype).tiny)


def keep_mask(shape: tuple[int, ...], rate: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Return zeros (dropped) and ones (kept), drawn anew.

    On the CPU a unit is decided by 16 random bits, in a tenth of the time of ``bernoulli_``; a rate is met to
    1 / 131,072.

    Args:
        shape: of the mask.
        rate: probability of a zero, in [0, 1]; of a shape that broadcasts against the mask's.
        generator: stream to draw from; torch's global one if None.

    Example:
        >>> rate = torch.tensor([0.0, 0.5]).view(2, 1)
        >>> keep_mask((2, 10_000), rate, torch.Generator().manual_seed(0)).mean(1).round(decimals=1)
        tensor([1.0000, 0.5000])
    """
    if rate.device.type != "cpu":
        return (torch.rand(shape, device=rate.device, generator=generator) >= rate).to(rate.dtype)
    size = math.prod(shape)
    bits = torch.empty(-(-size // 4), dtype=torch.int64)
    bits.random_(-(2**63), None, generator=generator)
    numbers = bits.view(torch.int16)[:size].view(shape).to(rate.dtype)
    # Of 2^16 equally likely integers, those from the threshold on keep a unit.
    return numbers.sub_((rate * 2**16).round() - (2**15 + 1)).clamp_(0, 1)
