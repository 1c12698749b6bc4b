"""RandAugment and TrivialAugment: each sample draws which operations it gets and, for the latter, how strong."""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from math import pi
from typing import ClassVar

import torch
from torch import Tensor

from lightning_tricks._base import check_range
from lightning_tricks.data.augment.ops._colour import Brightness, Contrast, Saturation
from lightning_tricks.data.augment.ops._geometry import Rotate, Shear, Translate
from lightning_tricks.data.augment.ops._levels import AutoContrast, Equalize, Posterize, Solarize
from lightning_tricks.data.augment.ops._op import Op, Params, Size
from lightning_tricks.data.augment.ops._pixels import Sharpness


class Policy(Op):
    """Stands for several operations of which each sample gets one per round; the others stay neutral for it."""

    @abstractmethod
    def steps(self, u: Tensor, size: Size) -> list[tuple[Op, Params]]:
        """Return the operations and their parameters, to be folded like any others."""

    def draw(self, u: Tensor, size: Size) -> Params:
        """Return nothing: see ``steps``."""
        return {}


@dataclass(frozen=True)
class RandAugment(Policy):
    """Give every sample ``rounds`` operations drawn with equal chances, all of one strength.

    The 14 choices are the paper's, with torchvision's scales: identity, shear and translation along x and y, rotation,
    brightness, saturation, contrast, sharpness, posterize, solarize, autocontrast and equalize.

    Args:
        rounds: operations per sample, 1 to 16.
        magnitude: 0 (nothing) to 30 (the most).

    Reference:
        Cubuk et al. 2020, "RandAugment: Practical automated data augmentation with a reduced search space".

    Example:
        >>> len(RandAugment(2).steps(torch.rand(4, 6), (32, 32)))
        22
    """

    rounds: int = 2
    magnitude: float = 9.0
    draws: ClassVar[int] = 3  # per round

    def count(self) -> int:
        """Return the numbers of all rounds."""
        return self.draws * self.rounds

    def __post_init__(self) -> None:
        check_range("rounds", self.rounds, low=1, high=16)
        check_range("magnitude", self.magnitude, low=0, high=30)

    def steps(self, u: Tensor, size: Size) -> list[tuple[Op, Params]]:
        """Return the steps of all rounds."""
        strength = torch.full_like(u[:, 0], self.magnitude / 30)
        out = []
        for turn in range(self.rounds):
            choice, _, sign = u[:, 3 * turn : 3 * turn + 3].unbind(1)
            out += _round(choice, strength, sign, size, _RAND)
        return out


@dataclass(frozen=True)
class TrivialAugment(Policy):
    """Give every sample one operation, drawn with equal chances, of a strength drawn from 31 steps.

    The choices are :class:`RandAugment`'s; the scales are those of the paper's wide space.

    Args:
        strongest: the largest step, up to 30.

    Reference:
        Müller & Hutter 2021, "TrivialAugment: Tuning-free yet state-of-the-art data augmentation".

    Example:
        >>> len(TrivialAugment().steps(torch.rand(4, 3), (32, 32)))
        11
    """

    strongest: int = 30
    draws: ClassVar[int] = 3

    def __post_init__(self) -> None:
        check_range("strongest", self.strongest, low=0, high=30)

    def steps(self, u: Tensor, size: Size) -> list[tuple[Op, Params]]:
        """Return the steps."""
        choice, strength, sign = u.unbind(1)
        return _round(choice, (strength * (self.strongest + 1)).floor() / 30, sign, size, _WIDE)


@dataclass(frozen=True)
class _Scale:
    """The strongest setting of each choice."""

    shear: float  # tangent
    translate: Callable[[int], float]  # pixels, from the side's length
    rotate: float  # degrees
    factor: float  # distance from 1
    bits: float  # taken away


_RAND = _Scale(shear=0.3, translate=lambda side: 150 / 331 * side, rotate=30, factor=0.9, bits=4)
_WIDE = _Scale(shear=0.99, translate=lambda side: 32.0, rotate=135, factor=0.99, bits=6)
_CHOICES = 14


def _round(u: Tensor, strength: Tensor, sign: Tensor, size: Size, scale: _Scale) -> list[tuple[Op, Params]]:
    """Return one step per kind of operation, neutral for the samples that drew another."""
    choice = (u * _CHOICES).floor()
    signed = strength * torch.where(sign < 0.5, -1.0, 1.0)

    def mine(number: int, value: Tensor) -> Tensor:
        return torch.where(choice == number, value, 0.0)

    # The published shears hold the upper left corner still, ours the centre: a shift makes up for the difference.
    along_x, along_y = mine(1, signed * scale.shear), mine(2, signed * scale.shear)
    shift_x = mine(3, (signed * scale.translate(size[1])).trunc()) - along_x * (size[0] / 2)
    shift_y = mine(4, (signed * scale.translate(size[0])).trunc()) - along_y * (size[1] / 2)
    factor = signed * scale.factor
    return [  # choice 0 is the identity
        (Shear(), {"x": along_x.atan() * (180 / pi), "y": along_y.atan() * (180 / pi)}),
        (Translate(), {"x": shift_x, "y": shift_y}),
        (Rotate(), {"angle": mine(5, signed * scale.rotate)}),
        (Brightness(), {"factor": 1 + mine(6, factor)}),
        (Saturation(), {"factor": 1 + mine(7, factor)}),
        (Contrast(), {"factor": 1 + mine(8, factor)}),
        (Sharpness(), {"factor": 1 + mine(9, factor)}),
        (Posterize(), {"bits": 8 - mine(10, (strength * scale.bits).round())}),
        (Solarize(), {"threshold": torch.where(choice == 11, 1 - strength, torch.inf)}),
        (AutoContrast(), {"on": choice == 12}),
        (Equalize(), {"on": choice == 13}),
    ]
