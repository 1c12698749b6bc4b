"""From uint8 to what the net sees: augmented in training, scaled, standardised."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_tricks._base import UserInputError, check_choice, check_range, warn_once
from lightning_tricks.data._loading import Source
from lightning_tricks.data.augment import BatchAugment

Statistics = tuple[Sequence[float], Sequence[float]]


class Prepare:
    """Turn uint8 pictures into standardised floats, augmented if there is an augment.

    Args:
        mean: per channel, of pictures in [0, 1].
        std: likewise, above 0.
        augment: a ``BatchAugment`` that also standardises, or None.
    """

    def __init__(self, mean: Tensor, std: Tensor, augment: BatchAugment | None = None) -> None:
        self.mean = mean
        self.std = std
        self.augment = augment
        self._on: dict[torch.device, tuple[Tensor, Tensor]] = {}  # a copy to the device in every step would wait

    def scale(self, images: Tensor) -> Tensor:
        """Return ``(B, C, H, W)`` standardised floats; pictures that are floats already come back as they are."""
        if images.dtype != torch.uint8:
            return images
        if images.device not in self._on:
            factors = (1 / (255 * self.std), -self.mean / self.std)
            self._on[images.device] = (
                factors[0].view(-1, 1, 1).to(images.device),
                factors[1].view(-1, 1, 1).to(images.device),
            )
        scale, shift = self._on[images.device]
        return images.float().mul_(scale).add_(shift)

    def __call__(self, images: Tensor, labels: Tensor, index: Tensor, epoch: Tensor | int) -> tuple[Tensor, Tensor]:
        """Return prepared pictures and labels; ``index`` and ``epoch`` key the augmentation."""
        if self.augment is None:
            return self.scale(images), labels
        batch = self.augment(images, index=index, epoch=epoch, labels=labels)
        return batch.images, labels if batch.labels is None else batch.labels

    def for_display(self, images: Tensor) -> Tensor:
        """Return pictures in [0, 1] from standardised ones."""
        return (images * self.std.view(-1, 1, 1) + self.mean.view(-1, 1, 1)).clamp(0, 1)


class InWorker:
    """Prepare a batch where it is read."""

    def __init__(self, prepare: Prepare) -> None:
        self.prepare = prepare

    def __call__(self, batch: Any, rows: list[int], epoch: int) -> tuple[Tensor, Tensor]:
        """Return the prepared batch."""
        images, labels = batch
        return self.prepare(images, labels, torch.as_tensor(rows), epoch)


class WithKeys:
    """Send row and epoch of every sample along, for the augmentation on the device."""

    def __call__(self, batch: Any, rows: list[int], epoch: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return the batch and ``int64 (B, 2)`` keys."""
        images, labels = batch
        index = torch.as_tensor(rows)
        return images, labels, torch.stack([index, torch.full_like(index, epoch)], dim=1)


def channel_statistics(source: Source, rows: Sequence[int], chunk: int = 256) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation per channel of uint8 pictures, in units of [0, 1].

    Sums are of integers, so that the result is exact and independent of order and chunks.
    """
    pixels = 0
    total = squares = torch.zeros(1, dtype=torch.long)
    for start in range(0, len(rows), chunk):
        x, _ = source.read(rows[start : start + chunk], 0)
        pixels += x.numel() // x.shape[1]
        wide = x.to(torch.int32)
        total = total + wide.sum(dim=(0, 2, 3))
        squares = squares + (wide * wide).sum(dim=(0, 2, 3))
    mean = total.double() / pixels
    std = (squares.double() / pixels - mean**2).clamp_min(0).sqrt()
    constant = (std == 0).nonzero().flatten().tolist()
    if constant:
        warn_once(
            f"Channel {', '.join(map(str, constant))} has the same value in every training picture: it is shifted to "
            "0 but not scaled. Check that the pictures were read as meant."
        )
        std[constant] = 255
    return (mean / 255).float(), (std / 255).float()


def per_channel(statistics: Statistics, channels: int) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of each channel, given for each or once for all."""
    mean, std = (torch.tensor(values, dtype=torch.float32) for values in statistics)
    if len(mean) not in (1, channels) or len(std) != len(mean):
        raise UserInputError(
            f"mean and std need one number per channel, {channels} or 1, but got {len(mean)} and {len(std)}."
        )
    return mean.expand(channels).clone(), std.expand(channels).clone()


def check_normalize(normalize: Literal["train", "none"] | Statistics) -> Literal["train", "none"] | Statistics:
    """Return the option if it is a known name, or numbers with every deviation above 0."""
    if isinstance(normalize, str):
        return check_choice("normalize", normalize, ("train", "none"))
    try:
        mean, std = ([float(value) for value in values] for values in normalize)
    except (TypeError, ValueError):
        raise UserInputError(
            f"normalize must be 'train', 'none' or (mean, std) with a number per channel, but got {normalize!r}."
        ) from None
    for value in std:
        check_range("every std of normalize", value, low=0, open_low=True)
    return mean, std
