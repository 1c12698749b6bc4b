"""MixUp and CutMix: pictures and labels blended with a partner from the same batch, each sample by its own amount."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_tricks._base import UserInputError, check_range
from lightning_tricks.data.augment._batch import ImageBatch
from lightning_tricks.data.augment._stages import Step
from lightning_tricks.data.augment.ops._op import Op, Params, Size, check_p, chosen, only
from lightning_tricks.data.augment.ops._pixels import in_box


class MixOp(Op):
    """Blends samples of one batch. ``weight`` is the share of the sample's own picture and label."""


@dataclass(frozen=True)
class MixUp(MixOp):
    """Blend each picture with a partner's, and the labels by the same share.

    Args:
        alpha: the share is drawn from Beta(alpha, alpha) for each sample; small values mostly keep one of the two.
        p: probability that a sample is blended.

    Reference:
        Zhang et al. 2018, "mixup: Beyond empirical risk minimization".

    Example:
        >>> MixUp(0.2).draw(torch.tensor([[0.0, 0.5], [0.0, 1.0]]), (8, 8))["weight"]
        tensor([0.5000, 1.0000])
    """

    alpha: float = 0.2
    p: float = 1.0
    draws: ClassVar[int] = 2

    def __post_init__(self) -> None:
        check_range("alpha", self.alpha, low=0, open_low=True)
        check_p(self.p)

    def draw(self, u: Tensor, size: Size) -> Params:
        """Return ``weight``: 1 where nothing happens."""
        return {"weight": only(u[:, 0], self.p, beta(u[:, 1], self.alpha), 1.0)}


@dataclass(frozen=True)
class CutMix(MixOp):
    """Paste a rectangle of a partner's picture, and blend the labels by the area that was really pasted.

    Args:
        alpha: the share to keep is drawn from Beta(alpha, alpha) for each sample; the rectangle has the rest of the
            area and the picture's aspect, its centre lies anywhere, and what sticks out is cut off.
        p: probability that a sample gets a rectangle.

    Reference:
        Yun et al. 2019, "CutMix: Regularization strategy to train strong classifiers with localizable features".

    Example:
        >>> op = CutMix(1.0)
        >>> params = op.draw(torch.tensor([[0.0, 0.75, 0.5, 0.5]]), (8, 8))
        >>> params["box"], params["weight"]
        (tensor([[2, 2, 6, 6]]), tensor([0.7500]))
    """

    alpha: float = 1.0
    p: float = 1.0
    draws: ClassVar[int] = 4

    def __post_init__(self) -> None:
        check_range("alpha", self.alpha, low=0, open_low=True)
        check_p(self.p)

    def draw(self, u: Tensor, size: Size) -> Params:
        """Return ``box`` ``(B, 4)`` as left, top, right, bottom in whole pixels, and the ``weight`` that is left."""
        height, width = size
        side = (1 - beta(u[:, 1], self.alpha)).clamp(0, 1).sqrt() * chosen(u[:, 0], self.p)
        edges = []
        for place, extent in ((u[:, 2], width), (u[:, 3], height)):
            centre, half = (place * extent).floor(), (side * extent / 2).floor()
            edges.append(((centre - half).clamp(0, extent), (centre + half).clamp(0, extent)))
        (left, right), (top, bottom) = edges
        area = (right - left) * (bottom - top)
        box = torch.stack([left, top, right, bottom], dim=1).long()
        return {"box": box, "weight": 1 - area / (height * width)}


def partners(words: Tensor) -> Tensor:
    """Return each sample's partner ``(B,)`` in its batch: the next one in the order of the keys, around a circle.

    Nobody is their own partner unless alone, whatever the batch's size, and the order of the batch does not matter.

    Example:
        >>> partners(torch.tensor([30, 10, 20]))
        tensor([1, 2, 0])
    """
    order = words.argsort()
    return torch.empty_like(order).scatter_(0, order, order.roll(-1))


def beta(u: Float[Tensor, " B"], alpha: float) -> Float[Tensor, " B"]:
    """Return Beta(alpha, alpha) numbers out of uniform ones, by the inverse of its distribution function."""
    table = _beta_table(float(alpha)).to(u.device, non_blocking=True)
    at = u * (len(table) - 1)
    low = at.floor().clamp(max=len(table) - 2)
    index = low.long()
    return torch.lerp(table[index], table[index + 1], at - low)


@lru_cache(maxsize=16)
def _beta_table(alpha: float) -> Tensor:
    """Return quantiles at even steps; a table, because an exact sampler rejects and so waits for the device."""
    import numpy as np
    from scipy.special import betaincinv

    return torch.from_numpy(betaincinv(alpha, alpha, np.linspace(0, 1, 4097))).float()


def mix(batch: ImageBatch, steps: Sequence[Step], num_classes: int | None) -> ImageBatch:
    """Return the batch with every mixing operation carried out, labels included."""
    for name in ("boxes", "keypoints"):
        if getattr(batch, name) is not None:
            raise UserInputError(f"MixUp and CutMix cannot blend {name}. Leave them out for this task.")
    for op, params in steps:
        batch = _mixed(batch, op, params, num_classes)
    return batch


def _mixed(batch: ImageBatch, op: Op, params: Params, num_classes: int | None) -> ImageBatch:
    partner, weight = params["partner"], params["weight"]
    images, masks = batch.images, batch.masks
    if "box" in params:
        size = (images.shape[2], images.shape[3])
        inside = in_box(params["box"], size)[:, None]
        images = torch.where(inside, images[partner], images)
        if masks is not None:
            inside = inside if masks.ndim == 4 else inside[:, 0]
            masks = torch.where(inside, masks[partner], masks)
    elif masks is not None:
        raise UserInputError("MixUp cannot blend masks of classes: use CutMix, or leave the masks out.")
    else:
        images = torch.lerp(images[partner], images, weight[:, None, None, None])
    labels = None if batch.labels is None else _mixed_labels(batch.labels, partner, weight, num_classes)
    return replace(batch, images=images, masks=masks, labels=labels)


def _mixed_labels(labels: Tensor, partner: Tensor, weight: Tensor, num_classes: int | None) -> Tensor:
    if not labels.is_floating_point():
        if num_classes is None or labels.ndim != 1:
            raise UserInputError(
                "MixUp and CutMix need to know how many classes there are, and one class number per picture: give "
                f"BatchAugment num_classes, or float targets. Got {num_classes=} and labels of shape "
                f"{tuple(labels.shape)}."
            )
        classes = torch.arange(num_classes, device=labels.device)
        labels = (labels[:, None] == classes).float()  # one_hot would wait for the device to check the range
    return torch.lerp(labels[partner], labels, weight.view(-1, *[1] * (labels.ndim - 1)).to(labels.dtype))
