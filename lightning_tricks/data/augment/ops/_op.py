"""What an operation is: parameters drawn from uniform numbers, and for each kind, what they mean to the pixels."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor

from lightning_tricks._base import UserInputError, check_range

Params = dict[str, Tensor]  # every tensor has the batch as its first axis
Size = tuple[int, int]  # height, width
Range = tuple[float, float]
Nested = tuple[float, ...] | tuple[tuple[float, ...], ...]


class Op(ABC):
    """One augmentation: parameters out of uniform numbers.

    The subclasses for each kind say how neighbours of that kind fold into one operation on pixels.
    """

    draws: ClassVar[int]

    def count(self) -> int:
        """Return how many uniform numbers each sample needs."""
        return self.draws

    @abstractmethod
    def draw(self, u: Tensor, size: Size) -> Params:
        """Return the parameters of each sample.

        Args:
            u: ``(B, draws)`` uniform numbers in [0, 1).
            size: height and width of the picture that the operation sees.
        """


class GeometricOp(Op):
    """Moves pixels. Described by the map from where a pixel lands to where it comes from."""

    affine: ClassVar[bool] = True  # parallels stay parallel
    integer: ClassVar[bool] = False  # every pixel comes from exactly one pixel: no resampling

    @abstractmethod
    def inverse(self, params: Params, size: Size) -> Tensor:
        """Return ``(B, 3, 3)``: output position to input position, in pixels, each from its picture's centre."""

    def out_size(self, size: Size) -> Size:
        """Return the size of the result."""
        return size


@dataclass(frozen=True)
class Linear:
    """``y = m·x + n·mean(x) + t`` over the channels of a pixel, in units of the full range.

    Attributes:
        m: ``(B, C, C)``.
        n: ``(B, C, C)`` applied to the picture's channel means, or None.
        t: ``(B, C)``.
    """

    m: Tensor
    n: Tensor | None
    t: Tensor

    def scaled(self, factor: Tensor) -> "Linear":
        """Return it times one number per sample ``(B,)``."""
        return Linear(
            self.m * factor[:, None, None],
            None if self.n is None else self.n * factor[:, None, None],
            self.t * factor[:, None],
        )

    def through(self, matrix: Tensor) -> "Linear":
        """Return it followed by a ``(B, C, C)`` matrix."""
        return Linear(
            matrix @ self.m, None if self.n is None else matrix @ self.n, (matrix @ self.t[:, :, None])[:, :, 0]
        )


class ColourOp(Op):
    """Maps the channels of each pixel linearly, the same way all over a picture."""

    @abstractmethod
    def after(self, first: Linear, params: Params) -> Linear:
        """Return ``first`` followed by this operation."""


@dataclass(frozen=True)
class Space:
    """In which units pictures are held: brightness ``v`` in [0, 1] is stored as ``gain·v + offset``, per channel.

    Normalising is a change of space, so it folds into the colour matrix and costs nothing.
    """

    gain: tuple[float, ...]
    offset: tuple[float, ...]

    @property
    def full(self) -> float | None:
        """The value of full brightness where black is 0 and all channels agree, else None."""
        return self.gain[0] if not any(self.offset) and len(set(self.gain)) == 1 else None

    def bounds(self, channel: int) -> Range:
        """Return what black and white are stored as."""
        return self.offset[channel], self.offset[channel] + self.gain[channel]


class PixelOp(Op):
    """Computes pixels from pixels in a way that does not fold."""

    any_space: ClassVar[bool] = False  # works on normalised pictures too; else black is 0 and the channels agree
    overshoots: ClassVar[bool] = False  # may leave the range from black to white
    takes_word: ClassVar[bool] = False  # gets 64 random bits per sample, ``params["word"]``

    @abstractmethod
    def apply(self, images: Tensor, params: Params, space: Space) -> Tensor:
        """Return the new pictures; ``images`` belongs to the pipeline and may be overwritten.

        Args:
            images: ``(B, C, H, W)`` floats.
            params: of these samples.
            space: the units of ``images``.
        """

    def acts(self, params: Params) -> Tensor | None:
        """Return which samples change, ``(B,)``, or None for all: the CPU computes no others."""
        return None


@dataclass(frozen=True)
class FactorDraw(Op):
    """Draws a factor around 1."""

    amount: float = 0.2
    _: KW_ONLY
    p: float = 1.0
    draws: ClassVar[int] = 2

    def __post_init__(self) -> None:
        check_range("amount", self.amount, low=0)
        check_p(self.p)

    def draw(self, u: Tensor, size: Size) -> Params:
        """Return ``factor``, 1 where nothing happens."""
        value = between(u[:, 1], (max(0.0, 1 - self.amount), 1 + self.amount))
        return {"factor": only(u[:, 0], self.p, value, 1.0)}


@dataclass(frozen=True)
class TurnDraw(Op):
    """Draws a turn of the hue."""

    amount: float = 0.05
    _: KW_ONLY
    p: float = 1.0
    draws: ClassVar[int] = 2

    def __post_init__(self) -> None:
        check_range("amount", self.amount, low=0, high=0.5)
        check_p(self.p)

    def draw(self, u: Tensor, size: Size) -> Params:
        """Return ``turn``, a fraction of the circle; 0 where nothing happens."""
        return {"turn": only(u[:, 0], self.p, between(u[:, 1], (-self.amount, self.amount)), 0.0)}


@dataclass(frozen=True)
class CoinDraw(Op):
    """Draws whether something happens at all."""

    p: float = 0.1
    draws: ClassVar[int] = 1

    def __post_init__(self) -> None:
        check_p(self.p)

    def draw(self, u: Tensor, size: Size) -> Params:
        """Return ``on``."""
        return {"on": chosen(u[:, 0], self.p)}


def has_hue(name: str, channels: int) -> bool:
    """Whether pictures of so many channels have colours to turn: three do, one does not.

    Raises:
        UserInputError: for any other number, of which it is unknown which channels are red, green and blue.
    """
    if channels not in (1, 3):
        raise UserInputError(
            f"{name} needs pictures with 3 channels (red, green, blue) or 1 (grey, which stays), but got {channels}. "
            f"Leave {name} out, or drop the channels that are no colours, such as transparency."
        )
    return channels == 3


def chosen(u: Tensor, p: float) -> Tensor:
    """Return which samples an operation acts on: ``(B,)`` bool, each with probability ``p``."""
    return u < p


def only(u: Tensor, p: float, value: Tensor, neutral: float) -> Tensor:
    """Return ``value`` for the samples that an operation acts on, for the others what changes nothing."""
    return value if p >= 1 else torch.where(chosen(u, p), value, neutral)


def between(u: Tensor, bounds: Range) -> Tensor:
    """Return ``u`` stretched to ``bounds``."""
    low, high = bounds
    return low + (high - low) * u


def constant(values: Nested, like: Tensor) -> Tensor:
    """Return numbers as a tensor of the dtype and device of ``like``, without waiting for that device.

    The tensor is shared by all who ask for the same numbers: do not write to it.
    """
    return _constant(values, like.dtype, like.device)


@lru_cache(maxsize=1024)
def _constant(values: Nested, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=dtype).to(device, non_blocking=True)


def check_p(p: float) -> None:
    """Raise unless ``p`` is a probability."""
    check_range("p", p, low=0, high=1)


def check_bounds(what: str, bounds: Sequence[float], *, low: float = -torch.inf, high: float = torch.inf) -> None:
    """Raise unless ``bounds`` is an ordered pair inside [low, high]."""
    if len(bounds) != 2 or not low <= bounds[0] <= bounds[1] <= high:
        raise UserInputError(
            f"{what} must be (smallest, largest) with {low} <= smallest <= largest <= {high}, but got {bounds!r}."
        )
