"""Pictures in class folders, checked before training starts."""

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from lightning_tricks._base import UserInputError, check_choice, check_range, warn_once

# What torchvision's ImageFolder reads.
EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"})
_PART_OF = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_CHANNELS = {"1": 1, "L": 1, "P": 3, "RGB": 3, "CMYK": 3, "YCbCr": 3, "LA": 2, "PA": 4, "RGBA": 4}
_TURNED = (5, 6, 7, 8)  # EXIF orientations that swap height and width
_ORIENTATION = 0x0112

OnError = Literal["raise", "skip"]


class FolderImages:
    """Pictures in one folder per class, or in such folders below ``train``, ``val`` and ``test``.

    Args:
        root: the folder.
        size: height and width to bring every picture to (the shorter side is scaled, the middle cut out); None keeps
            them, which needs all pictures to have one size.
        channels: 1 or 3 to convert every picture; None keeps them, which needs all pictures to have the same.
        on_error: ``"raise"`` names the first file that cannot be read; ``"skip"`` reads every file once at the start,
            leaves the broken ones out, and reports them.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        size: int | tuple[int, int] | None = None,
        channels: Literal[1, 3] | None = None,
        on_error: OnError = "raise",
    ) -> None:
        self.root = Path(root)
        self.size = _check_size(size)
        self.channels: int | None = None if channels is None else _check_channels(channels)
        self.on_error = check_choice("on_error", on_error, ("raise", "skip"))
        self.classes, self.files, codes, parts = _list(self.root)
        self.labels = torch.tensor(codes)
        self._parts = parts
        self._checked = False

    @property
    def given(self) -> dict[str, list[int]]:
        """Rows by part, if the folder itself is divided in parts."""
        names = dict.fromkeys(name for name in self._parts if name is not None)
        return {name: [i for i, part in enumerate(self._parts) if part == name] for name in names}

    def check(self) -> None:
        """Look at every file's head (or, to skip broken ones, read it), once."""
        if self._checked:
            return
        look = self._decodes if self.on_error == "skip" else self._head
        with ThreadPoolExecutor() as pool:
            heads = list(pool.map(look, self.files))
        broken = [i for i, head in enumerate(heads) if head is None]
        if broken:
            self._leave_out(broken)
        self._agree([head for head in heads if head is not None])
        self._checked = True

    def __len__(self) -> int:
        return len(self.files)

    def read(self, rows: Sequence[int], epoch: int) -> tuple[Tensor, Tensor]:
        """Return ``uint8 (B, C, H, W)`` pictures and ``int64 (B,)`` classes.

        Raises:
            UserInputError: naming the file that cannot be read.
        """
        return torch.stack([self._picture(self.files[row]) for row in rows]), self.labels[torch.as_tensor(rows)]

    def _picture(self, file: Path) -> Tensor:
        from PIL import Image, ImageOps

        try:
            with Image.open(file) as picture:
                # Asking a PNG for its orientation would read all of it, also where only the head is wanted.
                upright = picture if picture.format == "PNG" else ImageOps.exif_transpose(picture)
                plain = upright.convert("L" if (self.channels or _count(upright)) == 1 else "RGB")
                if self.size is not None:
                    plain = ImageOps.fit(plain, self.size[::-1], Image.Resampling.BILINEAR)
                array = np.array(plain)  # (H, W) or (H, W, C)
        except (OSError, SyntaxError, ValueError) as error:  # what PIL raises for broken files
            raise _unreadable(file, error) from None
        return torch.from_numpy(array).unsqueeze(0) if array.ndim == 2 else torch.from_numpy(array).permute(2, 0, 1)

    def _head(self, file: Path) -> tuple[int, int, int]:
        """Return channels, height and width without reading the pixels."""
        from PIL import Image

        try:
            with Image.open(file) as picture:
                if picture.mode not in _CHANNELS:
                    raise UserInputError(
                        f"pictures must have 8 bits per channel, but {file} has mode {picture.mode}. Convert it first."
                    )
                width, height = picture.size
                if picture.format != "PNG" and picture.getexif().get(_ORIENTATION) in _TURNED:
                    width, height = height, width
                return _count(picture), height, width
        except (OSError, SyntaxError) as error:
            raise _unreadable(file, error) from None

    def _decodes(self, file: Path) -> tuple[int, int, int] | None:
        try:
            head = self._head(file)
            self._picture(file)
        except UserInputError:
            return None
        return head

    def _leave_out(self, broken: Sequence[int]) -> None:
        names = ", ".join(str(self.files[i]) for i in broken[:5]) + (", ..." if len(broken) > 5 else "")
        warn_once(f"{len(broken)} of {len(self.files)} pictures cannot be read and are left out: {names}.")
        gone = set(broken)
        kept = [i for i in range(len(self.files)) if i not in gone]
        left = set(self.labels[kept].tolist())
        if empty := [name for code, name in enumerate(self.classes) if code not in left]:
            raise UserInputError(f"no picture of class {', '.join(empty)} can be read. Replace the files: {names}.")
        self.files = [self.files[i] for i in kept]
        self._parts = [self._parts[i] for i in kept]
        self.labels = self.labels[kept]

    def _agree(self, heads: Sequence[tuple[int, int, int]]) -> None:
        if self.channels is None:
            channels = [str(head[0]) for head in heads]
            self._same("number of channels", channels, "channels=3 or channels=1 to convert")
        if self.size is None:
            sizes = [f"{head[1]}x{head[2]}" for head in heads]
            self._same("size (height x width)", sizes, "size=(height, width) to resize")
        if self.channels is None and heads[0][0] not in (1, 3):
            raise UserInputError(
                f"pictures must have 1 or 3 channels, but {self.files[0]} has {heads[0][0]} (transparency). Pass "
                "channels=3 or channels=1 to drop it."
            )

    def _same(self, what: str, values: Sequence[str], cure: str) -> None:
        usual = Counter(values).most_common(1)[0][0]
        odd = next((i for i, value in enumerate(values) if value != usual), None)
        if odd is not None:
            raise UserInputError(
                f"all pictures must have the same {what}, but most have {usual} and {self.files[odd]} has "
                f"{values[odd]}. Pass {cure} them all."
            )


def _count(picture: Any) -> int:
    return _CHANNELS.get(picture.mode, len(picture.getbands()))


def _unreadable(file: Path, error: Exception) -> UserInputError:
    return UserInputError(
        f"{file} is not a picture that can be read: {error}. Replace or remove it, or pass on_error='skip'."
    )


def _check_size(size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    if size is None:
        return None
    pair = (size, size) if isinstance(size, int) else tuple(size)
    if len(pair) != 2:
        raise UserInputError(f"size must be one number or (height, width), but got {size}.")
    for side in pair:
        check_range("every side of size", side, low=1)
    return (pair[0], pair[1])


def _check_channels(channels: int) -> int:
    if channels not in (1, 3):
        raise UserInputError(f"channels must be 1 or 3, but got {channels}.")
    return channels


def _list(root: Path) -> tuple[list[str], list[Path], list[int], list[str | None]]:
    """Return class names, and file, class and part of every picture."""
    folders = _folders(root)
    if "train" in {_PART_OF.get(folder.name) for folder in folders} and all(f.name in _PART_OF for f in folders):
        within = {_PART_OF[folder.name]: _folders(folder) for folder in folders}
    else:
        within = {None: folders}  # type: ignore[dict-item]
    classes = [folder.name for folder in next(iter(within.values() if None in within else [within["train"]]))]
    files: list[Path] = []
    codes: list[int] = []
    parts: list[str | None] = []
    for part, class_folders in within.items():
        for folder in class_folders:
            if folder.name not in classes:
                raise UserInputError(
                    f"every class must have training pictures, but {folder} has no counterpart in train. Its classes "
                    f"are: {', '.join(classes)}."
                )
            found = sorted(_pictures(folder))
            files += found
            codes += [classes.index(folder.name)] * len(found)
            parts += [part] * len(found)
    return classes, files, codes, parts


def _folders(root: Path) -> list[Path]:
    if not root.is_dir():
        raise UserInputError(f"expected a folder with one folder per class, but {root} is not a folder.")
    try:
        folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    except PermissionError:
        raise UserInputError(f"the folder {root} cannot be read: permission denied. Change its permissions.") from None
    if not folders:
        raise UserInputError(f"expected one folder per class in {root}, but it has none. Move the pictures into them.")
    return folders


def _pictures(folder: Path) -> Iterator[Path]:
    empty = True
    try:
        for path in folder.rglob("*"):
            if path.suffix.lower() in EXTENSIONS and path.is_file():
                empty = False
                yield path
        next(folder.iterdir(), None)
    except PermissionError:
        raise UserInputError(
            f"the folder {folder} cannot be read: permission denied. Change its permissions."
        ) from None
    if empty:
        raise UserInputError(
            f"every class folder needs a picture ({', '.join(sorted(EXTENSIONS))}), but {folder} has none. "
            "Fill or remove it."
        )
