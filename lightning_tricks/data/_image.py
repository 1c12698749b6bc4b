"""Pictures with classes, from arrays, folders, datasets or torchvision's collection."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol, TypedDict

import torch
from torch import Tensor
from typing_extensions import Self, Unpack

from lightning_tricks._base import UserInputError, check_choice, check_range
from lightning_tricks.data._datamodule import Split, SplitBy, SplitDataModule
from lightning_tricks.data._image_arrays import ArrayImages, Layout
from lightning_tricks.data._image_prepare import InWorker, Prepare, WithKeys, channel_statistics
from lightning_tricks.data._loading import Source

Statistics = tuple[Sequence[float], Sequence[float]]


class ImageSource(Protocol):
    """Pictures and their classes."""

    labels: Tensor
    classes: list[str]
    given: dict[str, list[int]]

    def __len__(self) -> int: ...

    def read(self, rows: Sequence[int], epoch: int) -> tuple[Tensor, Tensor]:
        """Return pictures ``(B, C, H, W)``, uint8 unless they come prepared, and classes ``(B,)``."""


class ImageOptions(TypedDict, total=False):
    """What every constructor of :class:`ImageDataModule` takes, see there."""

    batch_size: int
    split: Split
    split_by: SplitBy
    groups: Sequence[Any] | None
    time: Sequence[Any] | None
    num_workers: int
    seed: int
    normalize: Literal["train", "none"] | Statistics
    where: Literal["auto", "device", "worker"]
    log_batch: bool


class ImageDataModule(SplitDataModule):
    """Pictures with classes: split, standardised by the training part, uint8 until they are on the device.

    Made by :meth:`from_arrays`, :meth:`from_folder`, :meth:`from_datasets` or :meth:`from_torchvision`. Batches are
    tuples of ``float32 (B, C, H, W)`` pictures and ``int64 (B,)`` classes. Under a Trainer with an accelerator the
    loaders give uint8 and the pictures are scaled on the device; on the CPU, and outside of a Trainer, the
    loaders give them ready.

    Args:
        source: pictures and classes.
        batch_size: pictures per batch and rank, at least 1.
        split: fractions of train, val and test, or row numbers by part name.
        split_by: ``"auto"`` (time or group if given, else class), ``"class"``, ``"group"``, ``"time"`` or ``"random"``.
        groups: one group per picture; no group is in two parts.
        time: one sortable value per picture; the newest are tested on.
        num_workers: processes that read.
        seed: of the split and the order of training.
        normalize: ``"train"`` standardises each channel with mean and standard deviation of the training part;
            ``"none"`` only scales to [0, 1]; or ``(mean, std)`` per channel of pictures in [0, 1].
        where: whether pictures are scaled on the ``"device"`` or where they are read (``"worker"``).
        log_batch: whether to log the picture of :meth:`show_batch` once per fit.

    Attributes:
        classes: names of the classes.
        mean: per channel, of the training part, in [0, 1]; after ``setup``.
        std: likewise.

    Raises:
        UserInputError: for anything in the pictures, labels or options that cannot be right.

    Example:
        >>> images = torch.randint(256, (50, 3, 8, 8), dtype=torch.uint8)
        >>> data = ImageDataModule.from_arrays(images, torch.arange(50) % 5, batch_size=10)
        >>> data.setup()
        >>> x, y = next(iter(data.train_dataloader()))
        >>> x.shape, x.dtype, data.num_classes, [len(part) for part in data.parts.values()]
        (torch.Size([10, 3, 8, 8]), torch.float32, 5, [30, 10, 10])
    """

    def __init__(
        self,
        source: ImageSource,
        *,
        batch_size: int = 64,
        split: Split = (0.6, 0.2, 0.2),
        split_by: SplitBy = "auto",
        groups: Sequence[Any] | None = None,
        time: Sequence[Any] | None = None,
        num_workers: int = 0,
        seed: int = 0,
        normalize: Literal["train", "none"] | Statistics = "train",
        where: Literal["auto", "device", "worker"] = "auto",
        log_batch: bool = True,
    ) -> None:
        super().__init__(
            batch_size=batch_size,
            split=split,
            split_by=split_by,
            groups=groups,
            time=time,
            num_workers=num_workers,
            seed=seed,
        )
        self._images = source
        self._normalize = _check_normalize(normalize)
        self._where = check_choice("where", where, ("auto", "device", "worker"))
        self.augment: Any = None
        self.log_batch = log_batch
        self.mean = torch.empty(0)
        self.std = torch.empty(0)

    @classmethod
    def from_arrays(
        cls,
        images: Any,
        labels: Any,
        *,
        classes: Sequence[str] | None = None,
        layout: Layout = "auto",
        **options: Unpack[ImageOptions],
    ) -> Self:
        """Take pictures that are in memory.

        Args:
            images: uint8, NCHW, NHWC or NHW; a tensor or an array.
            labels: classes 0..C-1 without gaps, or names.
            classes: names of the classes in order of their codes.
            layout: order of the axes, if it cannot be told from the sizes.
            **options: see the class.

        Raises:
            UserInputError: if pictures are not uint8, or labels are missing or have gaps.
        """
        return cls(ArrayImages(images, labels, classes=classes, layout=layout), **options)

    @property
    def classes(self) -> list[str]:
        """Names of the classes, in order of their codes."""
        return self._images.classes

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.classes)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width."""
        x, _ = self._images.read([0], 0)
        return (x.shape[1], x.shape[2], x.shape[3])

    def _open(self) -> ImageSource:
        return self._images

    def _labels(self) -> Tensor:
        return self._images.labels

    def _class_names(self) -> list[str]:
        return self.classes

    def _given_parts(self) -> Mapping[str, Sequence[int]]:
        return self._images.given

    def _fit(self, source: Source, train: Sequence[int]) -> Source:
        if self._normalize == "train":
            self.mean, self.std = channel_statistics(source, train)
        elif self._normalize == "none":
            channels = self.image_shape[0]
            self.mean, self.std = torch.zeros(channels), torch.ones(channels)
        else:
            self.mean, self.std = (torch.tensor(values, dtype=torch.float32) for values in self._normalize)
        return source

    def _finish(self, part: str) -> Callable[[Any, list[int], int], Any] | None:
        augment = self.augment if part == "train" else None
        if self._place() == "worker":
            return InWorker(self._prepare(augment))
        return WithKeys() if augment is not None else None

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Prepare the batch on the device, unless that was done where it was read; augment in training only."""
        if self._place() == "worker":
            return batch
        images, labels, *keys = batch
        augment = self.augment if keys and self.trainer is not None and self.trainer.training else None
        index, epoch = keys[0].unbind(1) if keys else (labels, 0)
        return self._prepare(augment)(images, labels, index, epoch)

    def _prepare(self, augment: Any) -> Prepare:
        self._ready()
        if augment is not None:
            augment = augment.with_defaults(
                mean=self.mean.tolist(), std=self.std.tolist(), num_classes=self.num_classes
            )
        return Prepare(self.mean, self.std, augment)

    def _place(self) -> str:
        if self._where != "auto":
            return self._where
        device = self._device_type()
        if self.augment is not None:
            return str(self.augment.place(device))
        return "worker" if device == "cpu" else "device"


def _check_normalize(normalize: Literal["train", "none"] | Statistics) -> Literal["train", "none"] | Statistics:
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
