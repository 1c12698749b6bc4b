"""The confusion matrix as a picture."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from lightning_tricks._base import UserInputError
from lightning_tricks.plots._style import new_figure

_MAX_LABELLED = 30  # classes beyond which numbers in the cells are too small to read


def confusion_matrix(counts: ArrayLike, *, class_names: Sequence[str] | None = None) -> Figure:
    """Draw counts of true class (rows) against predicted class (columns), shaded by the share within the true class.

    Args:
        counts: square matrix, ``counts[i, j]`` samples of class i that were predicted as class j.
        class_names: one per class; numbers if not given.

    Raises:
        UserInputError: if the matrix is not square or the names do not fit.

    Example:
        >>> figure = confusion_matrix([[8, 2], [1, 9]], class_names=["cat", "dog"])
        >>> [text.get_text() for text in figure.axes[0].texts]
        ['8', '2', '1', '9']
    """
    matrix = np.asarray(counts)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise UserInputError(f"a confusion matrix must be square, but got shape {matrix.shape}.")
    size = len(matrix)
    names = list(class_names) if class_names is not None else [str(i) for i in range(size)]
    if len(names) != size:
        raise UserInputError(f"class_names must hold {size} names, one per class, but got {len(names)}.")
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    side = min(3.0 + 0.28 * size, 12.0)
    figure, ax = new_figure(width=side + 0.8, height=side)
    ax.grid(visible=False)
    image = ax.imshow(share, cmap="Greys", vmin=0, vmax=1)
    figure.colorbar(image, ax=ax, label="share of the true class", shrink=0.8)
    if size <= _MAX_LABELLED:
        ax.set_xticks(range(size), names, rotation=90 if max(map(len, names)) > 3 else 0)
        ax.set_yticks(range(size), names)
        for (row, column), count in np.ndenumerate(matrix):
            if count:
                color = "white" if share[row, column] > 0.5 else "black"
                ax.text(column, row, f"{count:g}", ha="center", va="center", fontsize=7, color=color)
    ax.set(xlabel="predicted class", ylabel="true class")
    return figure
