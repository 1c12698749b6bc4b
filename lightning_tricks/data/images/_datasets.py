"""Pictures of map-style datasets, among them torchvision's."""

import inspect
import random
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset, get_worker_info

from lightning_tricks._base import UserInputError, check_choice, derive_seed, isolated_rng
from lightning_tricks.data.images._arrays import ArrayImages, check_labels

# The argument `split` of torchvision's data sets, by our part names.
SPLITS_OF = {
    "Country211": {"train": "train", "val": "valid", "test": "test"},
    "DTD": {"train": "train", "val": "val", "test": "test"},
    "FGVCAircraft": {"train": "train", "val": "val", "test": "test"},
    "Flowers102": {"train": "train", "val": "val", "test": "test"},
    "Food101": {"train": "train", "test": "test"},
    "GTSRB": {"train": "train", "test": "test"},
    "OxfordIIITPet": {"train": "trainval", "test": "test"},
    "PCAM": {"train": "train", "val": "val", "test": "test"},
    "RenderedSST2": {"train": "train", "val": "val", "test": "test"},
    "STL10": {"train": "train", "test": "test"},
    "SVHN": {"train": "train", "test": "test"},
}
TRAIN_OR_NOT = ("CIFAR10", "CIFAR100", "FashionMNIST", "KMNIST", "MNIST", "QMNIST", "USPS")


class DatasetImages:
    """Pictures of one or several datasets whose samples are ``(picture, class)``.

    Pictures are PIL images or uint8 tensors, or float tensors that are ready for the net. Random transforms of the
    datasets draw from streams seeded by (seed, row, epoch): a sample is the same whichever worker or rank reads it,
    and after a resume.

    Args:
        parts: datasets by part name; one dataset under ``None`` is still to be split.
        classes: names of the classes.
        seed: of the datasets' random transforms.
    """

    def __init__(
        self, parts: Mapping[Any, Dataset[Any]], *, classes: Sequence[str] | None = None, seed: int = 0
    ) -> None:
        for name, dataset in parts.items():
            if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
                raise UserInputError(
                    f"the {name or 'given'} dataset must have a length and be indexed by number, but "
                    f"{type(dataset).__name__} does not. Iterable datasets cannot be split: pass arrays."
                )
            if not len(dataset):
                raise UserInputError(f"the {name or 'given'} dataset is empty.")
        self.dataset: Dataset[Any] = ConcatDataset(parts.values())
        self.size = sum(len(dataset) for dataset in parts.values())  # type: ignore[arg-type, misc]
        self.seed = seed
        self.given: dict[str, list[int]] = {}
        end = 0
        for name, dataset in parts.items():
            start, end = end, end + len(dataset)  # type: ignore[arg-type]
            if name is not None:
                self.given[name] = list(range(start, end))
        found = [label for dataset in parts.values() for label in _labels_of(dataset)]
        names = classes if classes is not None else getattr(next(iter(parts.values())), "classes", None)
        self.labels, self.classes = check_labels(found, self.size, names)

    def __len__(self) -> int:
        return self.size

    def read(self, rows: Sequence[int], epoch: int) -> tuple[Tensor, Tensor]:
        """Return pictures ``(B, C, H, W)`` and ``int64 (B,)`` classes.

        Raises:
            UserInputError: if two pictures differ in shape or dtype.
        """
        in_worker = get_worker_info() is not None  # its streams are its own
        guard: AbstractContextManager[None] = nullcontext() if in_worker else isolated_rng()
        pictures: list[Tensor] = []
        with guard:
            for row in rows:
                _seed_all(derive_seed(self.seed, "sample", row, epoch))
                pictures.append(_as_tensor(self.dataset[row][0], row))
        self._check_alike(pictures, rows)
        return torch.stack(pictures), self.labels[torch.as_tensor(rows)]

    def _check_alike(self, pictures: Sequence[Tensor], rows: Sequence[int]) -> None:
        first = pictures[0]
        for picture, row in zip(pictures, rows, strict=True):
            if picture.shape != first.shape or picture.dtype != first.dtype:
                raise UserInputError(
                    f"all pictures must have the same shape and dtype, but sample {rows[0]} is {_kind(first)} and "
                    f"sample {row} is {_kind(picture)}. Resize or convert them in the dataset's transform."
                )


def torchvision_images(name: str, root: str | Path, *, download: bool, seed: int) -> ArrayImages | DatasetImages:
    """Return one of torchvision's classification sets with its own parts.

    Raises:
        UserInputError: if the set is unknown or not at ``root``.
    """
    import torchvision.datasets

    check_choice("the torchvision dataset", name, (*SPLITS_OF, *TRAIN_OR_NOT))
    make = getattr(torchvision.datasets, name)
    options: dict[str, dict[str, Any]] = (
        {"train": {"train": True}, "test": {"train": False}}
        if name in TRAIN_OR_NOT
        else {part: {"split": value} for part, value in SPLITS_OF[name].items()}
    )
    can_download = "download" in inspect.signature(make).parameters
    extra = {"download": download} if can_download else {}
    try:
        parts = {part: make(root=str(root), **extra, **option) for part, option in options.items()}
    except (RuntimeError, FileNotFoundError) as error:
        raise UserInputError(
            f"{name} cannot be read in {root}: {error} Check the folder, or pass download=True to fetch it."
        ) from None
    return _in_memory(parts) or DatasetImages(parts, seed=seed)


def _in_memory(parts: dict[str, Any]) -> ArrayImages | None:
    """Return the pictures as one array, if the sets hold them so (CIFAR, MNIST, SVHN, ...)."""
    arrays: list[Any] = [getattr(part, "data", None) for part in parts.values()]
    if not all(isinstance(array, np.ndarray | Tensor) for array in arrays):
        return None
    stacked = np.concatenate([np.asarray(array) for array in arrays])
    labels = [label for part in parts.values() for label in _labels_of(part)]
    source = ArrayImages(stacked, labels, classes=getattr(next(iter(parts.values())), "classes", None))
    start = 0
    for name, array in zip(parts, arrays, strict=True):
        source.given[name] = list(range(start, start + len(array)))
        start += len(array)
    return source


def _labels_of(dataset: Any) -> list[Any]:
    """Return the class of every sample, without reading the pictures if the dataset keeps a list."""
    if isinstance(dataset, Subset):
        whole = _labels_of(dataset.dataset)
        return [whole[i] for i in dataset.indices]
    if isinstance(dataset, ConcatDataset):
        return [label for part in dataset.datasets for label in _labels_of(part)]
    kept = dataset.tensors[1] if isinstance(dataset, TensorDataset) else None
    for name in ("targets", "labels", "_labels"):
        kept = getattr(dataset, name, None) if kept is None else kept
    if kept is not None and len(kept) == len(dataset):
        return kept.tolist() if isinstance(kept, Tensor | np.ndarray) else list(kept)
    with isolated_rng():
        return [_label(dataset[i], i) for i in range(len(dataset))]


def _label(sample: Any, i: int) -> Any:
    if not isinstance(sample, tuple | list) or len(sample) != 2:
        raise UserInputError(
            f"samples must be (picture, class), but sample {i} is a {type(sample).__name__}"
            + (f" of {len(sample)}." if isinstance(sample, tuple | list) else ": labels are missing.")
        )
    return sample[1].item() if isinstance(sample[1], Tensor) else sample[1]


def _as_tensor(picture: Any, row: int) -> Tensor:
    if isinstance(picture, Tensor):
        tensor = picture
    elif hasattr(picture, "getbands"):  # a PIL image
        array = np.array(picture)
        tensor = torch.from_numpy(array)
        tensor = tensor.unsqueeze(0) if array.ndim == 2 else tensor.permute(2, 0, 1)
    else:
        raise UserInputError(
            f"pictures must be PIL images or tensors, but sample {row} is a {type(picture).__name__}. Convert it in "
            "the dataset's transform."
        )
    if tensor.ndim != 3 or not (tensor.dtype == torch.uint8 or tensor.is_floating_point()):
        raise UserInputError(f"pictures must be uint8 or float (C, H, W), but sample {row} is {_kind(tensor)}.")
    return tensor


def _kind(x: Tensor) -> str:
    return f"{str(x.dtype).removeprefix('torch.')} {tuple(x.shape)}"


def _seed_all(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - what the dataset's transforms draw from
    torch.default_generator.manual_seed(seed)
