"""What goes in and out of an augmentation, and the plan in between."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_tricks._base import UserInputError
from lightning_tricks.data.augment._stages import Step


@dataclass(frozen=True)
class ImageBatch:
    """Pictures and what goes with them.

    Attributes:
        images: ``(B, C, H, W)``, uint8 in [0, 255] or float.
        labels: ``(B,)`` class numbers, ``(B, C)`` shares or ``(B, ...)`` float targets.
        masks: ``(B, H, W)`` or ``(B, K, H, W)`` classes of pixels, of any integer dtype.
        boxes: ``(B, N, 4)`` as (x1, y1, x2, y2) in pixels, the first pixel covering [0, 1]².
        keypoints: ``(B, N, 2)`` as (x, y) in pixels, (0, 0) being the centre of the first pixel.
    """

    images: Tensor
    labels: Tensor | None = None
    masks: Tensor | None = None
    boxes: Tensor | None = None
    keypoints: Tensor | None = None


@dataclass(frozen=True)
class Plan:
    """What each sample of a batch gets: small tensors, to look at, to keep and to apply as often as wanted.

    Attributes:
        steps: each operation with its parameters; a policy stands here as what it chose.
        shape: channels, height and width that it was made for.
        batch: number of samples.
    """

    steps: tuple[Step, ...]
    shape: tuple[int, int, int]
    batch: int


def check_batch(batch: ImageBatch, plan: Plan) -> None:
    """Raise unless pictures and their targets have the shapes and dtypes that the plan and the pipeline expect."""
    images = batch.images
    if images.ndim != 4 or not (images.dtype == torch.uint8 or images.is_floating_point()):
        raise UserInputError(
            "images must be uint8 (B, C, H, W) in [0, 255] or float (B, C, H, W) in [0, 1], but got "
            f"{images.dtype} of shape {tuple(images.shape)}."
        )
    if (plan.batch, *plan.shape) != tuple(images.shape):
        raise UserInputError(
            f"the plan is for {plan.batch} pictures of shape {plan.shape}, but the batch has shape "
            f"{tuple(images.shape)}. Make the plan with this batch's index and shape."
        )
    expected = {
        "labels": (batch.labels, 0, "(B, ...)"),
        "masks": (batch.masks, 3, "(B, H, W) or (B, K, H, W) of integers"),
        "boxes": (batch.boxes, 3, "(B, N, 4) of floats"),
        "keypoints": (batch.keypoints, 3, "(B, N, 2) of floats"),
    }
    for name, (value, axes, words) in expected.items():
        if value is None:
            continue
        last = {"boxes": 4, "keypoints": 2}.get(name)
        fits = value.ndim >= axes and len(value) == plan.batch and (last is None or value.shape[-1] == last)
        if name == "masks":
            fits = fits and tuple(value.shape[-2:]) == plan.shape[1:] and not value.is_floating_point()
        elif last is not None:
            fits = fits and value.is_floating_point()
        if not fits:
            raise UserInputError(
                f"{name} must be {words} for {plan.batch} pictures of {plan.shape[1:]} pixels, but got {value.dtype} "
                f"of shape {tuple(value.shape)}."
            )
