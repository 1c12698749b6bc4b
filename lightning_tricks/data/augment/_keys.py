"""Random numbers as a function of a key: (seed, epoch, sample index, slot) in, a uniform number out."""

from collections.abc import Sequence
from functools import lru_cache
from typing import TypeVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from lightning_tricks._base import derive_seed

# SplitMix64's increment and finaliser (Steele, Lea & Flood 2014, "Fast splittable pseudorandom number generators",
# with Stafford's variant 13 of the mixer), as signed 64-bit numbers.
_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
_FIRST = 0xBF58476D1CE4E5B9 - (1 << 64)
_SECOND = 0x94D049BB133111EB - (1 << 64)
_MASK = (1 << 64) - 1

T = TypeVar("T")


def _mixed(z: Tensor) -> Tensor:
    """Return a bijection of 64-bit integers in which every output bit depends on every input bit."""
    z = (z ^ ((z >> 30) & ((1 << 34) - 1))) * _FIRST  # torch's shift of int64 keeps the sign: mask to make it logical
    z = (z ^ ((z >> 27) & ((1 << 37) - 1))) * _SECOND
    return z ^ ((z >> 31) & ((1 << 33) - 1))


def sample_keys(seed: int, epoch: int | Int64[Tensor, " B"], index: Int64[Tensor, " B"]) -> Int64[Tensor, " B"]:
    """Return one 64-bit key per sample, a pure function of the arguments on any device.

    Args:
        seed: of the run.
        epoch: the number of the epoch, one for all or one per sample.
        index: the samples' positions in their dataset.

    Example:
        >>> sample_keys(0, 3, torch.tensor([7, 8]))[1] == sample_keys(0, 3, torch.tensor([8]))[0]
        tensor(True)
    """
    start = derive_seed("augment", seed)
    if isinstance(epoch, Tensor):
        by_epoch = _mixed(epoch.to(index.device) * _GOLDEN + start)
        return _mixed(by_epoch + index * _GOLDEN)
    # An index tensor is mixed with a number, so that a plain epoch costs no copy to the device.
    return _mixed(index * _GOLDEN + int(_mixed(torch.tensor(epoch) * _GOLDEN + start)))


def slot_words(keys: Int64[Tensor, " B"], slots: Sequence[int]) -> Int64[Tensor, "B S"]:
    """Return one 64-bit random word per sample and slot."""
    return _mixed(keys[:, None] + _steps(tuple(slots), keys.device))


@lru_cache(maxsize=256)
def _steps(slots: tuple[int, ...], device: torch.device) -> Tensor:
    steps = [_signed((slot + 1) * _GOLDEN) for slot in slots]
    return torch.tensor(steps, dtype=torch.int64).to(device, non_blocking=True)


def uniforms(keys: Int64[Tensor, " B"], slots: Sequence[int]) -> Float[Tensor, "B S"]:
    """Return one number in [0, 1) per sample and slot, a multiple of 2**-24.

    Example:
        >>> keys = sample_keys(0, 0, torch.arange(4))
        >>> bool((uniforms(keys, [5, 9])[:, 1] == uniforms(keys, [9])[:, 0]).all())
        True
    """
    words = slot_words(keys, slots)
    return ((words >> 40) & 0xFFFFFF).float() * 2.0**-24


class Draws:
    """Random numbers for one sample in plain Python, one after the other; keyed like :func:`sample_keys`.

    Args:
        seed: of the run.
        epoch: the number of the epoch.
        index: the sample's position in its dataset.

    Example:
        >>> a, b = Draws(0, 1, 2), Draws(0, 1, 2)
        >>> a.uniform() == b.uniform() and a.below(10) == b.below(10)
        True
    """

    def __init__(self, seed: int, epoch: int, index: int) -> None:
        by_epoch = _mixed_number(epoch * _GOLDEN + derive_seed("augment", seed))
        self._key = _mixed_number(by_epoch + index * _GOLDEN)
        self._slot = 0

    def word(self) -> int:
        """Return 64 random bits."""
        self._slot += 1
        return _mixed_number(self._key + self._slot * _GOLDEN)

    def uniform(self) -> float:
        """Return a number in [0, 1), a multiple of 2**-24."""
        return (self.word() >> 40) / (1 << 24)

    def below(self, count: int) -> int:
        """Return one of 0 .. count - 1."""
        return self.word() * count >> 64

    def sample(self, items: Sequence[T], count: int) -> list[T]:
        """Return up to ``count`` different items."""
        pool = list(items)
        return [pool.pop(self.below(len(pool))) for _ in range(min(count, len(pool)))]


def _mixed_number(z: int) -> int:
    z &= _MASK
    z = (z ^ (z >> 30)) * _FIRST & _MASK
    z = (z ^ (z >> 27)) * _SECOND & _MASK
    return z ^ (z >> 31)


def _signed(value: int) -> int:
    value &= _MASK
    return value - (1 << 64) if value >> 63 else value


def words_of(keys: Int64[Tensor, " B"], count: int) -> Int64[Tensor, "B count"]:
    """Return ``count`` further words for each word, by counting."""
    return _mixed(_mixed(keys)[:, None] + torch.arange(1, count + 1, device=keys.device) * _GOLDEN)
