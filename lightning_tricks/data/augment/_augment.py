"""Plan, fold, apply: the class that users see."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from math import isfinite
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_tricks._base import UserInputError, check_choice
from lightning_tricks.data.augment._batch import ImageBatch, Plan, check_batch
from lightning_tricks.data.augment._keys import sample_keys, slot_words, uniforms
from lightning_tricks.data.augment._sampling import Padding
from lightning_tricks.data.augment._stages import Stage, Step, Warp, fold, settle, unit_space
from lightning_tricks.data.augment.ops._mix import MixOp, mix, partners
from lightning_tricks.data.augment.ops._op import GeometricOp, Op, PixelOp, Size, Space
from lightning_tricks.data.augment.ops._policies import Policy

# Numbers per chunk on the CPU: all passes over a chunk find it in the cache.
_CHUNK = 1 << 20
_SLOTS = 64  # per operation, so that an operation's numbers do not depend on the ones before it


class BatchAugment:
    """Augment a whole batch at once, every sample by its own reproducible draw.

    All geometry in a row becomes one sampling grid (or plain indexing, if every step moves by whole pixels); all colour
    in a row, the scaling from bytes and the normalisation become one matrix per picture. A sample's result depends on
    the seed, the epoch, the sample's index in the dataset and the operations, and on nothing else.

    Args:
        ops: operations, applied in order; MixUp and CutMix come last.
        seed: of all draws.
        where: ``"worker"`` runs in the DataLoader's workers, ``"device"`` after the batch was moved, ``"auto"`` in the
            worker on the CPU and on the device otherwise.
        mean: of each channel in [0, 1], to normalise the result with.
        std: of each channel.
        num_classes: needed to blend integer labels.
        padding: what lies outside the picture: black, the nearest border pixel, or the picture mirrored at its edge.
        mask_fill: class of mask pixels from outside, if ``padding="zeros"``; often the loss's ``ignore_index``.

    Raises:
        UserInputError: for arguments out of range, or an operation in the wrong place.

    Example:
        >>> import torch
        >>> from lightning_tricks.data.augment import BatchAugment, Brightness, HorizontalFlip, Rotate
        >>> augment = BatchAugment([HorizontalFlip(), Rotate(15), Brightness(0.2)], mean=(0.5,) * 3, std=(0.25,) * 3)
        >>> images = torch.randint(256, (8, 3, 32, 32), dtype=torch.uint8)
        >>> batch = augment(images, index=torch.arange(8), epoch=0)
        >>> batch.images.shape, batch.images.dtype
        (torch.Size([8, 3, 32, 32]), torch.float32)
        >>> alone = augment(images[5:6], index=torch.tensor([5]), epoch=0)
        >>> bool((alone.images[0] == batch.images[5]).all())
        True
    """

    def __init__(
        self,
        ops: Sequence[Op],
        *,
        seed: int = 0,
        where: Literal["auto", "device", "worker"] = "auto",
        mean: Sequence[float] | float | None = None,
        std: Sequence[float] | float | None = None,
        num_classes: int | None = None,
        padding: Padding = "zeros",
        mask_fill: int = 0,
    ) -> None:
        self.ops = tuple(_check_ops(ops))
        self.seed = int(seed)
        self.where = check_choice("where", where, ["auto", "device", "worker"])
        self.padding: Padding = check_choice("padding", padding, ["zeros", "border", "reflection"])
        self.mask_fill = mask_fill
        self.num_classes = num_classes
        self.mean, self.std = _check_statistics(mean, std)

    def __repr__(self) -> str:
        return f"BatchAugment({list(self.ops)}, seed={self.seed}, where={self.where!r})"

    @property
    def mixes(self) -> bool:
        """Whether labels come back as shares of classes."""
        return any(isinstance(op, MixOp) for op in self.ops)

    def place(self, device: str | torch.device) -> Literal["device", "worker"]:
        """Return where to run if the model is on ``device``: in the DataLoader's worker or on the device."""
        if self.where != "auto":
            return self.where
        return "worker" if torch.device(device).type == "cpu" else "device"

    def with_defaults(
        self,
        *,
        mean: Sequence[float] | float | None = None,
        std: Sequence[float] | float | None = None,
        num_classes: int | None = None,
    ) -> "BatchAugment":
        """Return a copy that has these where the user gave none."""
        if self.mean is not None:
            mean, std = self.mean, self.std
        return BatchAugment(
            self.ops,
            seed=self.seed,
            where=self.where,
            mean=mean,
            std=std,
            num_classes=num_classes if self.num_classes is None else self.num_classes,
            padding=self.padding,
            mask_fill=self.mask_fill,
        )

    def plan(self, index: Tensor, epoch: int | Tensor, shape: Sequence[int]) -> Plan:
        """Draw what each sample gets.

        Args:
            index: ``(B,)`` int64, the samples' positions in their dataset.
            epoch: one number, or ``(B,)`` int64.
            shape: of a picture or a batch; the last three numbers are channels, height and width.
        """
        if index.ndim != 1 or index.is_floating_point():
            raise UserInputError(
                f"index must be int64 (B,), the samples' positions in their dataset, but got {index.dtype} of shape "
                f"{tuple(index.shape)}."
            )
        if len(shape) < 3:
            raise UserInputError(f"shape must end in channels, height and width, but got {tuple(shape)}.")
        channels, height, width = shape[-3:]
        keys = sample_keys(self.seed, epoch, index.long())
        counts = [op.count() for op in self.ops]
        slots = [place * _SLOTS + i for place, count in enumerate(counts) for i in range(count)]
        drawn = torch.split(uniforms(keys, slots), counts, dim=1) if slots else ()
        steps: list[Step] = []
        size: Size = (height, width)
        for place, (op, u) in enumerate(zip(self.ops, drawn, strict=True)):
            steps += _steps(op, u, keys, place, size)
            size = op.out_size(size) if isinstance(op, GeometricOp) else size
        return Plan(tuple(steps), (channels, height, width), len(index))

    def apply(self, batch: ImageBatch, plan: Plan, *, normalized: bool = False) -> ImageBatch:
        """Carry out a plan. The batch that comes in is not changed.

        Args:
            batch: pictures and targets that the plan was made for.
            plan: of this augmentation.
            normalized: the (float) pictures are normalised already, with this augmentation's mean and std.

        Raises:
            UserInputError: if shapes or dtypes do not fit, or a target cannot follow (boxes under MixUp, for instance).
        """
        check_batch(batch, plan)
        if normalized and self.mean is None and not all(isinstance(op, GeometricOp) for op in self.ops):
            raise UserInputError(
                "operations on colours need the mean and std that the pictures were normalised with: give them to "
                "BatchAugment, or keep to flips, shifts, rotations and the like."
            )
        moves = [step for step in plan.steps if not isinstance(step[0], MixOp)]
        mixes = [step for step in plan.steps if isinstance(step[0], MixOp)]
        with torch.no_grad(), _full_precision(batch.images.device.type):
            stages = fold(moves, plan.shape[1:], plan.shape[0], self.padding)
            images = self._images(batch.images, stages, normalized)
            warps = [stage for stage in stages if isinstance(stage, Warp)]
            moved = replace(
                batch,
                images=images,
                masks=_through(batch.masks, warps, lambda warp, x: warp.move_masks(x, self.mask_fill)),
                boxes=_through(batch.boxes, warps, Warp.move_boxes),
                keypoints=_through(batch.keypoints, warps, Warp.move_keypoints),
            )
            return mix(moved, mixes, self.num_classes) if mixes else moved

    def __call__(
        self,
        images: Tensor,
        *,
        index: Tensor,
        epoch: int | Tensor,
        labels: Tensor | None = None,
        masks: Tensor | None = None,
        boxes: Tensor | None = None,
        keypoints: Tensor | None = None,
        normalized: bool = False,
    ) -> ImageBatch:
        """Plan and apply at once; see :class:`ImageBatch` for the shapes."""
        plan = self.plan(index, epoch, images.shape)
        return self.apply(ImageBatch(images, labels, masks, boxes, keypoints), plan, normalized=normalized)

    def _images(self, images: Tensor, stages: list[Stage], normalized: bool) -> Tensor:
        channels = images.shape[1]
        unit, target = unit_space(channels), self._target(channels)
        before = target if normalized else unit
        if images.dtype == torch.uint8:
            before = Space((255.0,) * channels, unit.offset)
        stages = settle(stages, before, target)
        size = [images.shape[2:], *(stage.size for stage in stages if isinstance(stage, Warp))][-1]
        out = torch.empty(*images.shape[:2], *size, device=images.device)
        rows = len(images)
        if images.device.type == "cpu":  # on an accelerator every launch costs: one chunk
            rows = max(1, _CHUNK // max(1, images[:1].numel()))
        for start in range(0, len(images), rows):
            part = slice(start, start + rows)
            _run(images[part], stages if rows >= len(images) else [s.cut(part) for s in stages], before, out[part])
        return out

    def _target(self, channels: int) -> Space:
        if self.mean is None or self.std is None:
            return unit_space(channels)
        mean, std = (part * channels if len(part) == 1 else part for part in (self.mean, self.std))
        if len(mean) != channels:
            raise UserInputError(
                f"mean and std are given for {len(mean)} channels, but the pictures have {channels}. Give one number, "
                "or one per channel."
            )
        return Space(tuple(1 / s for s in std), tuple(-m / s for m, s in zip(mean, std, strict=True)))


def _full_precision(device: str) -> AbstractContextManager[Any]:
    """Return a block in which autocast rests: bfloat16 would round every colour to 8 bits of mantissa."""
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.autocast(device, enabled=False)
    return nullcontext()


def _run(images: Tensor, stages: Sequence[Stage], space: Space, out: Tensor) -> None:
    """Send pictures through all passes, into ``out``."""
    last = max((i for i, stage in enumerate(stages) if stage.copies), default=-1)
    owned = False
    if last < 0:
        images, owned = out.copy_(images), True
    for i, stage in enumerate(stages):
        if not stage.copies and not (owned and images.dtype == torch.float32):
            images = images.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
        owned = True
        images = stage.run(images, space, out if i == last else None)
        space = stage.to or space
    if images.data_ptr() != out.data_ptr():
        out.copy_(images)


def _through(value: Tensor | None, warps: Sequence[Warp], move: Callable[[Warp, Tensor], Tensor]) -> Tensor | None:
    if value is None:
        return None
    out = value.clone()
    for warp in warps:
        out = move(warp, out)
    return out


def _steps(op: Op, u: Tensor, keys: Tensor, place: int, size: Size) -> list[Step]:
    """Return what one operation of the list stands for."""
    if isinstance(op, Policy):
        return op.steps(u, size)
    params = op.draw(u, size)
    if isinstance(op, MixOp) or (isinstance(op, PixelOp) and op.takes_word):
        word = slot_words(keys, [place * _SLOTS + _SLOTS - 1])[:, 0]
        params |= {"partner": partners(word)} if isinstance(op, MixOp) else {"word": word}
    return [(op, params)]


def _check_ops(ops: Sequence[Op]) -> list[Op]:
    out = list(ops)
    mixing = False
    for op in out:
        if not isinstance(op, Op):
            raise UserInputError(
                f"BatchAugment takes operations of lightning_tricks.data.augment, such as HorizontalFlip(), but got "
                f"{op!r}."
            )
        if mixing and not isinstance(op, MixOp):
            raise UserInputError(f"MixUp and CutMix must come last in the list, but {type(op).__name__} follows one.")
        mixing = isinstance(op, MixOp)
    return out


def _check_statistics(
    mean: Sequence[float] | float | None, std: Sequence[float] | float | None
) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    if (mean is None) != (std is None):
        raise UserInputError(f"mean and std come together, but got mean={mean} and std={std}.")
    if mean is None or std is None:
        return None, None
    means, stds = (tuple(map(float, x)) if isinstance(x, Iterable) else (float(x),) for x in (mean, std))
    if len(means) != len(stds) or not all(map(isfinite, means)) or not all(isfinite(s) and s > 0 for s in stds):
        raise UserInputError(
            f"mean and std must have one finite number per channel, std above 0, but got {mean=} and {std=}."
        )
    return means, stds
