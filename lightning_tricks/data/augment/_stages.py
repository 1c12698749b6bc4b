"""Fold a list of operations with their parameters into as few passes over the pixels as there are kinds in a row."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import torch
from torch import Tensor

from lightning_tricks.data.augment._sampling import (
    Padding,
    gather,
    move_boxes,
    move_points,
    pick,
    source_lines,
    warp,
)
from lightning_tricks.data.augment.ops._noise import GaussianNoise
from lightning_tricks.data.augment.ops._op import (
    ColourOp,
    GeometricOp,
    Linear,
    Op,
    Params,
    PixelOp,
    Size,
    Space,
    constant,
)

Step = tuple[Op, Params]


class Stage(ABC):
    """One pass over the pixels. Its parameters can be cut to some of the samples."""

    any_space: bool = False  # works on normalised pictures too
    overshoots: bool = False  # may leave the range from black to white
    to: Space | None = None  # the space that the result is in; the same one if None
    copies: bool = False  # leaves its input alone, whatever its dtype; others own theirs and may overwrite it

    @abstractmethod
    def cut(self, rows: slice) -> "Stage":
        """Return it for some of the samples."""

    @abstractmethod
    def run(self, images: Tensor, space: Space, out: Tensor | None = None) -> Tensor:
        """Return the new pictures, in ``out`` if that saves a copy."""


@dataclass(frozen=True)
class Warp(Stage):
    """All geometry in a row: one map, applied once."""

    matrix: Tensor
    before: Size
    size: Size
    affine: bool
    whole: bool  # whole pixels: pick them, do not resample
    padding: Padding
    copies = True

    def cut(self, rows: slice) -> "Warp":
        """Return it for some of the samples."""
        return replace(self, matrix=self.matrix[rows])

    def move_masks(self, masks: Tensor, fill: int) -> Tensor:
        """Pick for each pixel the nearest one: ``(B, H, W)`` or ``(B, K, H, W)``."""
        planes = masks[:, None] if masks.ndim == 3 else masks
        if self.whole:
            out = gather(planes, *source_lines(self.matrix, self.before, self.size), self.padding, fill=fill)
        else:
            out = pick(planes, self.matrix, self.size, self.padding, fill)
        return out[:, 0] if masks.ndim == 3 else out

    def move_boxes(self, boxes: Tensor) -> Tensor:
        """Return the upright hulls ``(B, N, 4)``, cut to the picture."""
        return move_boxes(boxes, self.matrix, self.before, self.size)

    def move_keypoints(self, points: Tensor) -> Tensor:
        """Return where ``(B, N, 2)`` land; they may lie outside."""
        return (
            move_points(points + 0.5, self.matrix, self.before, self.size) - 0.5
        )  # a keypoint's (0, 0) is the first pixel's centre

    def run(self, images: Tensor, space: Space, out: Tensor | None = None) -> Tensor:
        """Pick or resample."""
        if self.whole:
            return gather(images, *source_lines(self.matrix, self.before, self.size), self.padding)
        return warp(images.float(), self.matrix, self.size, self.padding, affine=self.affine)


@dataclass(frozen=True)
class Pixels(Stage):
    """One operation that does not fold."""

    op: PixelOp
    params: Params

    @property
    def any_space(self) -> bool:  # type: ignore[override]
        """Whether it works on normalised pictures."""
        return self.op.any_space

    @property
    def overshoots(self) -> bool:  # type: ignore[override]
        """Whether it may leave the range."""
        return self.op.overshoots

    def cut(self, rows: slice) -> "Pixels":
        """Return it for some of the samples."""
        return replace(self, params={name: value[rows] for name, value in self.params.items()})

    def run(self, images: Tensor, space: Space, out: Tensor | None = None) -> Tensor:
        """Compute, on the CPU for none but the samples that change; elsewhere, looking would wait for the device."""
        acts = self.op.acts(self.params) if images.device.type == "cpu" else None
        if acts is None or (count := int(acts.sum())) == len(images):
            return self.op.apply(images, self.params, space)
        if count:
            changed = {name: value[acts] for name, value in self.params.items()}
            images[acts] = self.op.apply(images[acts], changed, space)
        return images


@dataclass(frozen=True)
class Colour(Stage):
    """All linear colour in a row, with any change of space: one matrix and one shift."""

    linear: Linear
    to: Space | None = None
    noise: Pixels | None = None  # that follows; added with the shift, which saves a pass
    copies = True
    overshoots = True

    def cut(self, rows: slice) -> "Colour":
        """Return it for some of the samples."""
        m, n, t = self.linear.m, self.linear.n, self.linear.t
        linear = Linear(m[rows], None if n is None else n[rows], t[rows])
        return replace(self, linear=linear, noise=self.noise and self.noise.cut(rows))

    def run(self, images: Tensor, space: Space, out: Tensor | None = None) -> Tensor:
        """Multiply every pixel by the matrix and add the shift."""
        pixels = images.flatten(2).float()  # (B, C, H·W)
        matrix, shift = self._between(pixels, space, self.to or space)
        target = torch.empty_like(pixels) if out is None else out.view(pixels.shape)
        base = shift[:, :, None]
        if self.noise is not None and isinstance(self.noise.op, GaussianNoise):
            base = self.noise.op.added_to(base, self.noise.params, self.to or space, target)
        if matrix.shape[1] == 1:
            return torch.addcmul(base, pixels, matrix, out=target).view(images.shape)
        return torch.baddbmm(base, matrix, pixels, out=target).view(images.shape)

    def _between(self, pixels: Tensor, before: Space, after: Space) -> tuple[Tensor, Tensor]:
        """Return the matrix and the shift that take stored values to stored values."""
        m, n, t = self.linear.m, self.linear.n, self.linear.t
        gain, offset = (constant(part, t) for part in (before.gain, before.offset))
        gain_to, offset_to = (constant(part, t) for part in (after.gain, after.offset))
        shift = t
        if n is not None:
            mean = (pixels.mean(2) - offset) / gain  # (B, C) in units of the full range
            shift = shift + (n @ mean[:, :, None])[:, :, 0]
        matrix = gain_to[:, None] * m / gain
        return matrix, gain_to * shift + offset_to - matrix @ offset


@dataclass(frozen=True)
class Convert(Stage):
    """A change of space and nothing else."""

    to: Space
    any_space = True

    def cut(self, rows: slice) -> "Convert":
        """Return itself."""
        return self

    def run(self, images: Tensor, space: Space, out: Tensor | None = None) -> Tensor:
        """Scale and shift each channel."""
        gain = tuple(b / a for a, b in zip(space.gain, self.to.gain, strict=True))
        shift = tuple(b - g * a for a, b, g in zip(space.offset, self.to.offset, gain, strict=True))
        scale, shifts = (constant(part, images)[:, None, None] for part in (gain, shift))
        return torch.addcmul(shifts, images, scale, out=images)


@dataclass(frozen=True)
class Clamp(Stage):
    """Cut what overshot the range from black to white, once after a row of operations that can."""

    any_space = True

    def cut(self, rows: slice) -> "Clamp":
        """Return itself."""
        return self

    def run(self, images: Tensor, space: Space, out: Tensor | None = None) -> Tensor:
        """Cut in place."""
        if space.full is not None:
            return images.clamp_(0, space.full)
        for channel in range(images.shape[1]):
            images[:, channel].clamp_(*space.bounds(channel))
        return images


def fold(steps: Sequence[Step], size: Size, channels: int, padding: Padding) -> list[Stage]:
    """Return the passes that a list of operations needs, in order."""
    stages: list[Stage] = []
    for kind, group in groupby(steps, key=lambda step: _kind(step[0])):
        row = list(group)
        if kind is GeometricOp:
            stages.append(fold_geometry(row, size, padding))
            size = stages[-1].size  # type: ignore[attr-defined]
        elif kind is ColourOp:
            stages.append(Colour(_fold_colour(row, channels)))
        else:
            stages += [Pixels(op, params) for op, params in row if isinstance(op, PixelOp)]
    return _with_noise(stages)


def _with_noise(stages: Sequence[Stage]) -> list[Stage]:
    """Return the passes with every noise that directly follows a colour matrix taken into it."""
    out: list[Stage] = []
    for stage in stages:
        last = out[-1] if out else None
        noise = isinstance(stage, Pixels) and isinstance(stage.op, GaussianNoise)
        if noise and isinstance(stage, Pixels) and isinstance(last, Colour) and last.noise is None:
            out[-1] = replace(last, noise=stage)
        else:
            out.append(stage)
    return out


def settle(stages: Sequence[Stage], before: Space, after: Space) -> list[Stage]:
    """Return the passes with the cuts to the range and the changes of space that they need.

    The change to ``after`` goes into a colour matrix if one comes late enough, and is a pass of its own if none does.
    """
    bound = [not (stage.any_space or isinstance(stage, Colour)) for stage in stages]
    free = len(stages) - bound[::-1].index(True) if any(bound) else 0  # from here on all run on normalised pictures
    carrier = next((i for i in range(free, len(stages)) if isinstance(stages[i], Colour)), None)
    out: list[Stage] = []
    space, loose = before, False
    for i, stage in enumerate(stages):
        if loose and not stage.overshoots:
            out.append(Clamp())
        if i == free and carrier is None and space != after:
            out.append(Convert(after))
            space = after
        if isinstance(stage, Pixels) and not stage.any_space and space.full is None:
            space = unit_space(len(space.gain))
            out.append(Convert(space))
        if i == carrier and isinstance(stage, Colour):
            out.append(replace(stage, to=after))
            space = after
        else:
            out.append(stage)
        loose = stage.overshoots
    if loose:
        out.append(Clamp())
    return out if space == after else [*out, Convert(after)]


def fold_geometry(row: Sequence[Step], size: Size, padding: Padding) -> Warp:
    """Return one map from the last output to the first input."""
    matrix: Tensor | None = None
    before = size
    ops: list[GeometricOp] = []
    for op, params in row:
        if isinstance(op, GeometricOp):
            step = op.inverse(params, size)
            matrix = step if matrix is None else torch.bmm(matrix, step)
            size = op.out_size(size)
            ops.append(op)
    if matrix is None:
        raise ValueError("no geometry to fold")
    return Warp(
        matrix,
        before,
        size,
        affine=all(op.affine for op in ops),
        whole=all(op.integer for op in ops),
        padding=padding,
    )


def _fold_colour(row: Sequence[Step], channels: int) -> Linear:
    like = next(iter(row[0][1].values()))
    batch = len(like)
    eye = torch.eye(channels, dtype=torch.float32, device=like.device).expand(batch, -1, -1)
    linear = Linear(eye, None, eye.new_zeros(batch, channels))
    for op, params in row:
        if isinstance(op, ColourOp):
            linear = op.after(linear, params)
    return linear


def _kind(op: Op) -> type[Op]:
    return next(kind for kind in (GeometricOp, ColourOp, PixelOp) if isinstance(op, kind))


def unit_space(channels: int) -> Space:
    """Return the space of pictures in [0, 1]."""
    return Space((1.0,) * channels, (0.0,) * channels)
