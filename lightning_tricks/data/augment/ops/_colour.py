"""Brightness, contrast, saturation, hue and greyscale: linear maps of a pixel's channels, folded into one matrix."""

from dataclasses import dataclass
from functools import lru_cache
from math import pi
from typing import ClassVar

import torch
from torch import Tensor

from lightning_tricks.data.augment.ops._op import (
    ColourOp,
    FactorDraw,
    Linear,
    Params,
    Size,
    TurnDraw,
    check_p,
    chosen,
    constant,
    has_hue,
)

# ITU-R BT.601 luma, as rounded by torchvision's rgb_to_grayscale.
LUMA = (0.2989, 0.587, 0.114)


@dataclass(frozen=True)
class Brightness(FactorDraw, ColourOp):
    """Multiply by a factor.

    Args:
        amount: the factor is uniform in [max(0, 1 − amount), 1 + amount].
        p: probability that a sample is changed.

    Example:
        >>> Brightness(0.2).draw(torch.tensor([[0.0, 0.5]]), (8, 8))
        {'factor': tensor([1.])}
    """

    def after(self, first: Linear, params: Params) -> Linear:
        """Scale everything."""
        return first.scaled(params["factor"])


@dataclass(frozen=True)
class Contrast(FactorDraw, ColourOp):
    """Scale the distance from the picture's mean grey.

    Args:
        amount: the factor is uniform in [max(0, 1 − amount), 1 + amount].
        p: probability that a sample is changed.

    Example:
        >>> Contrast(0.2).draw(torch.tensor([[0.0, 0.5]]), (8, 8))
        {'factor': tensor([1.])}
    """

    def after(self, first: Linear, params: Params) -> Linear:
        """Blend with the mean grey, which is itself linear in the means of the picture before ``first``."""
        factor = params["factor"]
        weights = grey_weights(first.t)
        scaled = first.scaled(factor)
        rest = (1 - factor)[:, None]
        mean_map = first.m if first.n is None else first.m + first.n
        pivot = rest * (weights @ mean_map)  # (B, C): of the picture's channel means
        n = pivot[:, None, :].expand_as(first.m)
        constant_part = rest * (first.t @ weights)[:, None]  # (B, 1)
        return Linear(scaled.m, n if scaled.n is None else scaled.n + n, scaled.t + constant_part)


@dataclass(frozen=True)
class Saturation(FactorDraw, ColourOp):
    """Blend with (or move away from) the grey picture; transparency stays. Nothing to do for grey pictures.

    Two channels are grey and transparency, four are red, green, blue and transparency.

    Args:
        amount: the factor is uniform in [max(0, 1 − amount), 1 + amount].
        p: probability that a sample is changed.

    Example:
        >>> Saturation(1.0).draw(torch.tensor([[0.0, 0.0]]), (8, 8))
        {'factor': tensor([0.])}
    """

    def after(self, first: Linear, params: Params) -> Linear:
        """Blend with the grey."""
        return towards_grey(first, params["factor"])


@dataclass(frozen=True)
class Grayscale(ColourOp):
    """Turn into grey, in all channels; transparency stays. Nothing to do for grey pictures.

    Two channels are grey and transparency, four are red, green, blue and transparency.

    Args:
        p: probability that a sample turns grey.

    Example:
        >>> Grayscale(p=0.1).draw(torch.tensor([[0.05], [0.5]]), (8, 8))
        {'factor': tensor([0., 1.])}
    """

    p: float = 0.1
    draws: ClassVar[int] = 1

    def __post_init__(self) -> None:
        check_p(self.p)

    def draw(self, u: Tensor, size: Size) -> Params:
        """Return ``factor``: the colour that is left."""
        return {"factor": 1.0 - chosen(u[:, 0], self.p).float()}

    def after(self, first: Linear, params: Params) -> Linear:
        """Blend with the grey."""
        return towards_grey(first, params["factor"])


@dataclass(frozen=True)
class Hue(TurnDraw, ColourOp):
    """Turn the colours around the grey axis: a rotation of the chroma plane of YIQ.

    This is linear, hence free when it folds; it keeps the luma. It is another operator than the hue of HSV that
    torchvision turns (the mean difference between the two is as large as their effect): for that one, see
    :class:`HueHSV`. Nothing to do where there is one channel; pictures of 2, 4 or more channels are refused.

    Args:
        amount: the turn is uniform in [−amount, amount] of a full circle, at most 0.5.
        p: probability that a sample is changed.

    Example:
        >>> Hue(0.1).draw(torch.tensor([[0.0, 0.5]]), (8, 8))
        {'turn': tensor([0.])}
    """

    def after(self, first: Linear, params: Params) -> Linear:
        """Rotate I and Q, keep Y."""
        if not has_hue("Hue", first.t.shape[1]):
            return first
        still, cosine, sine = (constant(part, first.t) for part in _yiq_parts())
        angle = (params["turn"] * (2 * pi))[:, None, None]
        return first.through(still + cosine * angle.cos() + sine * angle.sin())


def grey_weights(like: Tensor) -> Tensor:
    """Return the ``(C,)`` weights of grey: luma for three channels, else the mean."""
    channels = like.shape[1]
    return constant(LUMA if channels == 3 else (1 / channels,) * channels, like)


def towards_grey(first: Linear, factor: Tensor) -> Linear:
    """Return ``first`` followed by ``factor·x + (1 − factor)·grey(x)``, with transparency as it was."""
    channels = first.t.shape[1]
    if channels <= 2:  # grey, or grey and transparency
        return first
    eye = torch.eye(channels, dtype=first.t.dtype, device=first.t.device)
    grey = constant(_grey_rows(channels), first.t)  # (C, C)
    factor = factor[:, None, None]
    return first.through(factor * eye + (1 - factor) * grey)


def _grey_rows(channels: int) -> tuple[tuple[float, ...], ...]:
    """Return the matrix that makes every colour channel grey and keeps the transparency of red, green, blue, alpha."""
    if channels == 4:
        return ((*LUMA, 0.0),) * 3 + ((0.0, 0.0, 0.0, 1.0),)
    return (LUMA if channels == 3 else (1 / channels,) * channels,) * channels


@lru_cache(maxsize=1)
def _yiq_parts() -> tuple[tuple[tuple[float, ...], ...], ...]:
    """Return three 3×3 matrices: rotation of the chroma by an angle = still + cosine·cos + sine·sin."""
    # NTSC's YIQ (FCC 1953, 47 CFR 73.682), as in Python's colorsys but with the luma used everywhere else here, so
    # that a turn keeps exactly that luma.
    to_yiq = torch.tensor([LUMA, (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112)], dtype=torch.float64)
    back = torch.linalg.inv(to_yiq)
    keep = torch.diag(torch.tensor([1.0, 0, 0], dtype=torch.float64))
    plane = torch.diag(torch.tensor([0, 1.0, 1.0], dtype=torch.float64))
    turn = torch.zeros(3, 3, dtype=torch.float64)
    turn[1, 2], turn[2, 1] = -1, 1
    return tuple(tuple(map(tuple, (back @ part @ to_yiq).tolist())) for part in (keep, plane, turn))
