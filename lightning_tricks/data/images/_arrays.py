"""Pictures that are in memory, checked when they are given."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from lightning_tricks._base import UserInputError, check_choice

Layout = Literal["auto", "NCHW", "NHWC", "NHW"]


class ImageSource(Protocol):
    """Pictures and their classes."""

    labels: Tensor
    classes: list[str]

    @property
    def given(self) -> Mapping[str, Sequence[int]]:
        """Rows by part, if the source prescribes them."""

    def __len__(self) -> int: ...

    def read(self, rows: Sequence[int], epoch: int) -> tuple[Tensor, Tensor]:
        """Return pictures ``(B, C, H, W)``, uint8 unless they come prepared, and classes ``(B,)``."""


class ArrayImages:
    """Pictures of one size in one ``uint8 (N, C, H, W)`` tensor, with a class each.

    Args:
        images: uint8, of 3 or 4 axes.
        labels: classes 0..C-1, or names.
        classes: names in order of the codes.
        layout: order of the axes.
    """

    def __init__(
        self, images: Any, labels: Any, *, classes: Sequence[str] | None = None, layout: Layout = "auto"
    ) -> None:
        self.images = check_images(images, layout)
        self.labels, self.classes = check_labels(labels, len(self.images), classes)
        self.given: dict[str, list[int]] = {}

    def __len__(self) -> int:
        return len(self.images)

    def read(self, rows: Sequence[int], epoch: int) -> tuple[Tensor, Tensor]:
        """Return ``uint8 (B, C, H, W)`` pictures and ``int64 (B,)`` classes."""
        index = torch.as_tensor(rows)
        return self.images[index], self.labels[index]


def check_images(images: Any, layout: Layout = "auto") -> Tensor:
    """Return pictures as a ``uint8 (N, C, H, W)`` tensor, without copying where that is possible.

    Raises:
        UserInputError: if they are not uint8, or the axes cannot be told apart.

    Example:
        >>> check_images(np.zeros((5, 8, 8, 3), dtype=np.uint8)).shape
        torch.Size([5, 3, 8, 8])
    """
    check_choice("layout", layout, ("auto", "NCHW", "NHWC", "NHW"))
    if isinstance(images, np.ndarray) and not images.flags.writeable:
        images = images.copy()  # torch cannot hold a read-only array
    x = images if isinstance(images, Tensor) else torch.as_tensor(np.asarray(images))
    if x.dtype != torch.uint8:
        found = (
            f"{str(x.dtype).removeprefix('torch.')} in [{x.min().item():g}, {x.max().item():g}]"
            if x.numel()
            else x.dtype
        )
        raise UserInputError(
            f"images must be uint8 in 0..255, but got {found}. "
            "Convert pictures in [0, 1] with (255 * images).round().astype('uint8')."
        )
    if x.ndim not in (3, 4) or x.numel() == 0:
        raise UserInputError(
            f"images must have axes NCHW, NHWC or NHW, none of them empty, but got shape {tuple(x.shape)}."
        )
    if layout == "auto":
        layout = _guess_layout(x)
    if len(layout) != x.ndim:
        raise UserInputError(f"layout {layout} needs {len(layout)} axes, but images have shape {tuple(x.shape)}.")
    if layout == "NHW":
        return x.unsqueeze(1)
    return x if layout == "NCHW" else x.movedim(-1, 1)


def _guess_layout(x: Tensor) -> Layout:
    if x.ndim == 3:
        return "NHW"
    first, last = x.shape[1] in (1, 3, 4), x.shape[3] in (1, 3, 4)
    if first == last:
        raise UserInputError(
            f"the channel axis must be the second or the last, of size 1, 3 or 4, but images have shape "
            f"{tuple(x.shape)}, which {'fits both' if first else 'fits neither'}. Say layout='NCHW' or layout='NHWC'."
        )
    return "NCHW" if first else "NHWC"


def check_labels(labels: Any, n: int, classes: Sequence[str] | None = None) -> tuple[Tensor, list[str]]:
    """Return classes as ``int64 (N,)`` codes and their names.

    Names (strings) get codes in sorted order, or in the order of ``classes``; numbers must be 0..C-1 without a gap,
    unless ``classes`` says that there are more.

    Raises:
        UserInputError: if labels are missing, of the wrong number, negative, fractional or with gaps.

    Example:
        >>> check_labels(["dog", "cat", "dog"], 3)
        (tensor([1, 0, 1]), ['cat', 'dog'])
    """
    if labels is None:
        raise UserInputError("labels are missing: give one class (0..C-1, or a name) per sample.")
    values = labels.detach().cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim != 1 or len(values) != n:
        raise UserInputError(f"labels need one class per sample: {n} samples, but got labels of shape {values.shape}.")
    if values.dtype.kind in "OUS":
        return _codes_of_names(values, classes)
    if values.dtype.kind == "f":
        missing = int(np.isnan(values).sum())
        if missing:
            raise UserInputError(f"every sample needs a label, but {missing} are NaN. Label them or leave them out.")
        if (values != np.round(values)).any():
            raise UserInputError("class labels must be whole numbers, but got fractions. Is this a regression?")
    codes = torch.from_numpy(values.astype(np.int64))
    found = torch.unique(codes).tolist()
    count = len(classes) if classes is not None else len(found)
    if found[0] < 0 or found[-1] >= count:
        some = ", ".join(map(str, found[:10])) + (", ..." if len(found) > 10 else "")
        raise UserInputError(
            f"labels must be 0..{count - 1} without gaps ({count} classes), but got {some}. Renumber them with "
            "numpy.unique(labels, return_inverse=True)[1], or name all classes with classes=[...]."
        )
    return codes, [str(name) for name in classes] if classes is not None else [str(code) for code in found]


def _codes_of_names(values: Any, classes: Sequence[str] | None) -> tuple[Tensor, list[str]]:
    missing = sum(value is None or value != value or value == "" for value in values.tolist())
    if missing:
        raise UserInputError(f"every sample needs a label, but {missing} are empty. Label them or leave them out.")
    texts = [str(value) for value in values.tolist()]
    names = [str(name) for name in classes] if classes is not None else sorted(set(texts))
    unknown = sorted(set(texts) - set(names))
    if unknown:
        raise UserInputError(f"labels must be among the classes {', '.join(names)}, but got {', '.join(unknown)}.")
    code = {name: i for i, name in enumerate(names)}
    return torch.tensor([code[text] for text in texts]), names
