"""What ``augment="standard"`` stands for."""

from collections.abc import Sequence

from lightning_tricks.data.augment.ops._crops import Crop
from lightning_tricks.data.augment.ops._geometry import HorizontalFlip
from lightning_tricks.data.augment.ops._op import Op


def standard_ops(shape: Sequence[int]) -> list[Op]:
    """Return the usual operations for pictures of a shape (channels, height, width).

    Colour pictures get a crop with an eighth of padding and a horizontal flip (He et al. 2016, section 4.2, for
    CIFAR-10); in grey pictures, which are often digits or letters, a flip may change the class, so they get the crop
    alone.

    Example:
        >>> standard_ops((3, 32, 32))
        [Crop(padding=4, size=None), HorizontalFlip(p=0.5)]
        >>> standard_ops((1, 8, 8))
        [Crop(padding=1, size=None)]
    """
    channels, height, width = shape[-3:]
    crop = Crop(padding=max(1, min(height, width) // 8))
    return [crop] if channels == 1 else [crop, HorizontalFlip()]
