"""What a batch of pictures looks like."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from jaxtyping import Shaped
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lightning_tricks.plots._style import new_figure


def plot_image_rows(rows: Sequence[tuple[str, Shaped[np.ndarray, "N C H W"]]], captions: Sequence[str] = ()) -> Figure:
    """Draw rows of pictures under each other, such as a batch before and after augmentation.

    Args:
        rows: name and pictures of each row, uint8 or floats in [0, 1], of 1 or 3 channels; rows are equally long.
        captions: one line over each column.

    Example:
        >>> figure = plot_image_rows([("before", np.zeros((2, 1, 8, 8)))], ["cat", "dog"])
        >>> [ax.get_title() for ax in figure.axes]
        ['cat', 'dog']
    """
    columns = len(rows[0][1])
    figure, axes = new_figure(
        len(rows), columns, width=0.3 + 1.0 * columns, height=0.3 + 1.05 * len(rows), squeeze=False
    )
    for line, (name, pictures) in zip(axes, rows, strict=True):
        for ax, picture in zip(line, pictures, strict=True):
            _draw(ax, picture)
        line[0].set_ylabel(name, fontsize=8)
    for ax, caption in zip(axes[0], captions, strict=False):
        ax.set_title(caption, fontsize=8)
    return figure


def _draw(ax: Axes, picture: npt.NDArray[Any]) -> None:
    shown = np.moveaxis(picture, 0, -1)  # (H, W, C)
    shown = shown / 255 if shown.dtype == np.uint8 else shown.clip(0, 1)  # resampling may end a rounding error above 1
    grey = shown.shape[-1] == 1
    ax.imshow(shown[..., 0] if grey else shown, cmap="gray" if grey else None, vmin=0, vmax=1, interpolation="nearest")
    ax.set(xticks=[], yticks=[])
    ax.grid(visible=False)
    ax.spines[:].set_visible(False)
