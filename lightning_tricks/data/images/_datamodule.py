"""Pictures with classes, from arrays, folders, datasets or torchvision's collection."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from typing_extensions import Unpack

from lightning_tricks._base import UserInputError, check_choice, check_range, log_figure
from lightning_tricks.data._datamodule import SplitDataModule, SplitOptions
from lightning_tricks.data._loading import shuffled
from lightning_tricks.data.augment import BatchAugment, Op, standard_ops
from lightning_tricks.data.images._arrays import ArrayImages, ImageSource, Layout
from lightning_tricks.data.images._datasets import DatasetImages, torchvision_images
from lightning_tricks.data.images._folder import FolderImages, OnError
from lightning_tricks.data.images._prepare import (
    InWorker,
    Prepare,
    Statistics,
    WithKeys,
    channel_statistics,
    check_normalize,
    per_channel,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from typing_extensions import Self
else:
    Self = "ImageDataModule"  # the command line evaluates what a constructor says that it returns

Augment = Literal["none", "standard"] | Sequence[Op] | BatchAugment
MAX_DECODED = 4096  # pictures read from files for the statistics; their means differ from all pictures' by under 1 %


class ImageOptions(SplitOptions, total=False):
    """What every constructor of :class:`ImageDataModule` takes, see there."""

    augment: Augment
    normalize: Literal["train", "none"] | Statistics
    where: Literal["auto", "device", "worker"]
    log_batch: bool


class ImageDataModule(SplitDataModule[ImageSource]):
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
        augment: what training pictures go through: ``"none"``, ``"standard"`` (a shifted crop, and a flip if there is
            colour), a list of operations of :mod:`lightning_tricks.data.augment`, or a ``BatchAugment``. A sample's
            draw depends on seed, epoch and row alone.
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
        augment: Augment = "none",
        normalize: Literal["train", "none"] | Statistics = "train",
        where: Literal["auto", "device", "worker"] = "auto",
        log_batch: bool = True,
        **options: Unpack[SplitOptions],
    ) -> None:
        super().__init__(**options)
        self._images = source
        self._normalize = check_normalize(normalize)
        self._where = check_choice("where", where, ("auto", "device", "worker"))
        self._augment = augment if isinstance(augment, BatchAugment) else _check_ops(augment)
        self.augment: BatchAugment | None = None
        self.log_batch = log_batch
        self._batch_is_logged = False
        self._prepares: dict[bool, Prepare] = {}  # by whether they augment
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

    @classmethod
    def from_folder(
        cls,
        root: str | Path,
        *,
        size: int | tuple[int, int] | None = None,
        channels: Literal[1, 3] | None = None,
        on_error: OnError = "raise",
        **options: Unpack[ImageOptions],
    ) -> Self:
        """Take pictures in one folder per class (``root/cat/1.jpg``), or in such folders below train, val and test.

        Without a val folder, validation pictures are taken out of the training pictures, in the proportion of
        ``split``. Pictures are turned upright as their EXIF data say.

        Args:
            root: the folder.
            size: height and width to bring all pictures to: the shorter side is scaled, the middle cut out. None
                keeps them.
            channels: 1 or 3, to convert all pictures. None keeps them.
            on_error: ``"raise"`` stops at a file that cannot be read and names it; ``"skip"`` reads all files at the
                start, leaves broken ones out and reports them.
            **options: see the class.

        Raises:
            UserInputError: if a folder is missing, unreadable or without pictures, or if pictures are broken or differ
                in size or channels.
        """
        return cls(FolderImages(root, size=size, channels=channels, on_error=on_error), **options)

    @classmethod
    def from_datasets(  # type: ignore[override]  # Lightning's has no split, and a fixed list of options
        cls,
        train_dataset: Dataset[Any],
        val_dataset: Dataset[Any] | None = None,
        test_dataset: Dataset[Any] | None = None,
        *,
        classes: Sequence[str] | None = None,
        **options: Unpack[ImageOptions],
    ) -> Self:
        """Take map-style datasets whose samples are ``(picture, class)``; a single one is split.

        Pictures are PIL images or uint8 tensors of one size. Float tensors are taken as ready for the net: they are
        neither scaled nor augmented.

        Args:
            train_dataset: the training part, or everything.
            val_dataset: the validation part; if only this is missing, it is taken out of the training part.
            test_dataset: the test part.
            classes: names of the classes in order of their codes; the dataset's own if not given.
            **options: see the class.

        Raises:
            UserInputError: if a dataset has no length, or its labels are missing or have gaps.
        """
        parts: dict[str | None, Dataset[Any] | None] = {
            "train": train_dataset,
            "val": val_dataset,
            "test": test_dataset,
        }
        given = {name: dataset for name, dataset in parts.items() if dataset is not None}
        if len(given) == 1:
            given = {None: train_dataset}
        return cls(DatasetImages(given, classes=classes, seed=options.get("seed", 0)), **options)

    @classmethod
    def from_torchvision(
        cls, name: str, root: str | Path, *, download: bool = False, **options: Unpack[ImageOptions]
    ) -> Self:
        """Take one of torchvision's classification sets, with its own test part.

        Args:
            name: such as ``"CIFAR10"`` or ``"MNIST"``.
            root: the folder where it is, or is downloaded to.
            download: whether to download it.
            **options: see the class.

        Raises:
            UserInputError: if the set is unknown, or not in ``root``.
        """
        return cls(torchvision_images(name, root, download=download, seed=options.get("seed", 0)), **options)

    def train_dataloader(self) -> DataLoader[Any]:
        """Return the training part, in an order that is a function of seed and epoch; never a batch of one sample."""
        self._log_batch_once()
        return super().train_dataloader()

    def show_batch(self, count: int = 8, *, epoch: int = 0) -> "Figure":
        """Draw the first training pictures, before and after augmentation.

        Args:
            count: how many, at least 1.
            epoch: whose draws to show.
        """
        from lightning_tricks.plots import plot_image_rows

        part = self._ready()["train"]
        rows = part.rows[: int(check_range("count", count, low=1))]
        images, labels = part.source.read(rows, epoch)
        prepare = self._prepare(self.augment)
        after, _ = prepare(images, labels, torch.as_tensor(rows), epoch)
        lines = [("before", (images if images.dtype == torch.uint8 else prepare.for_display(images)).numpy())]
        if self.augment is not None:
            lines.append(("after", prepare.for_display(after).numpy()))
        return plot_image_rows(lines, [self.classes[label] for label in labels.tolist()])

    def teardown(self, stage: str) -> None:
        """Be ready for another fit, whose batch is logged again."""
        if stage == "fit":
            self._batch_is_logged = False
        super().teardown(stage)

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run is compared with, and whether the picture of a batch was logged."""
        return {**super().state_dict(), "batch_is_logged": self._batch_is_logged}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the checkpoint's state."""
        self._batch_is_logged = bool(state_dict.get("batch_is_logged", False))
        super().load_state_dict(state_dict)

    def _log_batch_once(self) -> None:
        trainer = self.trainer
        if trainer is None or self._batch_is_logged or not self.log_batch or not trainer.loggers:
            return
        self._batch_is_logged = True
        if trainer.is_global_zero:
            log_figure(trainer, "data/batch", self.show_batch())

    def _open(self) -> ImageSource:
        if isinstance(self._images, FolderImages):
            self._images.check()
        return self._images

    def _labels(self) -> Tensor:
        return self._images.labels

    def _class_names(self) -> list[str]:
        return self.classes

    def _given_parts(self) -> Mapping[str, Sequence[int]]:
        return self._images.given

    def _fit(self, opened: ImageSource, train: Sequence[int]) -> ImageSource:
        self._prepares = {}
        first, _ = opened.read(train[:1], 0)
        channels = first.shape[1]
        ready = first.dtype != torch.uint8
        self.augment = self._make_augment(tuple(first.shape[1:]), ready=ready)
        if self.augment is not None and self.augment.mean is not None and self.augment.std is not None:
            self.mean, self.std = per_channel((self.augment.mean, self.augment.std), channels)
        elif ready or self._normalize == "none":
            self.mean, self.std = torch.zeros(channels), torch.ones(channels)
        elif self._normalize == "train":
            self.mean, self.std = channel_statistics(opened, self._measured(train))
        else:
            self.mean, self.std = per_channel(self._normalize, channels)
        return opened

    def _measured(self, train: Sequence[int]) -> Sequence[int]:
        """Return the rows to measure: all of them, or a sample if they have to be read from files."""
        if isinstance(self._images, ArrayImages) or len(train) <= MAX_DECODED:
            return train
        return [train[position] for position in sorted(shuffled(len(train), seed=self.seed, epoch=0)[:MAX_DECODED])]

    def _make_augment(self, shape: tuple[int, ...], *, ready: bool) -> BatchAugment | None:
        if isinstance(self._augment, BatchAugment):
            augment = self._augment
        elif self._augment == "none":
            return None
        else:
            ops = standard_ops(shape) if isinstance(self._augment, str) else self._augment
            augment = BatchAugment(ops, seed=self.seed)
        if ready:
            raise UserInputError(
                "augment needs uint8 pictures, but the dataset gives floats. Leave ToTensor and Normalize out of its "
                "transform: pictures are scaled here."
            )
        return augment

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

    def _prepare(self, augment: BatchAugment | None) -> Prepare:
        self._ready()
        if (augment is not None) not in self._prepares:
            if augment is not None:
                mean, std = self.mean.tolist(), self.std.tolist()
                augment = augment.with_defaults(mean=mean, std=std, num_classes=self.num_classes)
            self._prepares[augment is not None] = Prepare(self.mean, self.std, augment)
        return self._prepares[augment is not None]

    def _place(self) -> str:
        asked = [self._where, "auto" if self.augment is None else self.augment.where]
        said = next((where for where in asked if where != "auto"), "auto")
        return said if said != "auto" else "worker" if self._device_type() == "cpu" else "device"


def _check_ops(augment: Literal["none", "standard"] | Sequence[Op]) -> Literal["none", "standard"] | Sequence[Op]:
    if isinstance(augment, str):
        return check_choice("augment", augment, ("none", "standard"))
    return BatchAugment(augment).ops  # which says what is wrong with them
