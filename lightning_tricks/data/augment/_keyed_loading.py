"""Carry the dataset index and the epoch with every sample, through sampler, worker and collation."""

from collections.abc import Callable, Iterator, Sequence, Sized
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.utils.data import Dataset, Sampler, default_collate

from lightning_tricks._base import UserInputError

if TYPE_CHECKING:
    from lightning_tricks.data.augment._augment import BatchAugment


class Key(NamedTuple):
    """What a sampler yields instead of a bare index: the sample's position in its dataset, and the epoch."""

    sample: int
    epoch: int


class KeyedSampler(Sampler[Key]):
    """Yield :class:`Key` ``(sample, epoch)`` for every index of another sampler.

    The epoch goes to the worker with each request, so a persistent worker, which keeps its copy of the dataset from the
    first epoch on, sees the right one. Lightning calls ``set_epoch`` before each epoch, after a resume too, and the
    wrapped sampler hears of it.

    Args:
        sampler: of integers.

    Example:
        >>> sampler = KeyedSampler(range(2))
        >>> sampler.set_epoch(5)
        >>> list(sampler)
        [Key(sample=0, epoch=5), Key(sample=1, epoch=5)]
    """

    def __init__(self, sampler: Sampler[int] | Sequence[int]) -> None:
        self.sampler = sampler
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Remember the epoch, and tell the wrapped sampler."""
        self.epoch = int(epoch)
        inner = getattr(self.sampler, "set_epoch", None)
        if callable(inner):
            inner(epoch)

    def __iter__(self) -> Iterator[Key]:
        epoch = self.epoch
        for index in self.sampler:
            yield Key(int(index), epoch)

    def __len__(self) -> int:
        if not isinstance(self.sampler, Sized):
            raise TypeError(f"{type(self.sampler).__name__} has no length")
        return len(self.sampler)


class KeyedDataset(Dataset[tuple[Any, int, int]]):
    """Answer a :class:`Key` with ``(sample, index, epoch)``; a bare index counts as epoch 0.

    Args:
        dataset: any dataset that takes an integer.

    Example:
        >>> KeyedDataset(["a", "b"])[Key(1, epoch=3)]
        ('b', 1, 3)
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __getitem__(self, key: Key | int) -> tuple[Any, int, int]:
        index, epoch = key if isinstance(key, tuple) else (key, 0)
        return self.dataset[index], index, epoch

    def __len__(self) -> int:
        return len(self.dataset)


class AugmentCollate:
    """Collate the samples of a :class:`KeyedDataset` and augment them, inside the worker.

    Samples are ``(image, label)`` or an image alone; the batch is ``(images, labels)`` or the images.

    Args:
        augment: the augmentation.
        collate: turns a list of samples into a batch; torch's own by default.

    Example:
        >>> from lightning_tricks.data.augment import BatchAugment, HorizontalFlip
        >>> data = KeyedDataset([(torch.zeros(3, 8, 8, dtype=torch.uint8), 1)])
        >>> images, labels = AugmentCollate(BatchAugment([HorizontalFlip()]))([data[Key(0, epoch=2)]])
        >>> images.dtype, labels
        (torch.float32, tensor([1]))
    """

    def __init__(self, augment: "BatchAugment", collate: Callable[[list[Any]], Any] = default_collate) -> None:
        self.augment = augment
        self.collate = collate

    def __call__(self, samples: Sequence[tuple[Any, int, int]]) -> Any:
        bare, indices, epochs = zip(*samples, strict=True)
        batch = self.collate(list(bare))
        index = torch.tensor(indices, dtype=torch.int64)
        epoch = torch.tensor(epochs, dtype=torch.int64)
        if isinstance(batch, torch.Tensor):
            return self.augment(batch, index=index, epoch=epoch).images
        if not (isinstance(batch, (tuple, list)) and len(batch) == 2):
            raise UserInputError(
                "AugmentCollate expects samples that are an image or (image, label), but the collated batch is a "
                f"{type(batch).__name__}. Call the BatchAugment in a collate function of your own."
            )
        images, labels = batch
        out = self.augment(images, index=index, epoch=epoch, labels=labels)
        return out.images, out.labels
