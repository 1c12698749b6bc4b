"""What all pictures share: readable in grey, no chart junk, no global state."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Lines differ in lightness and in dash, so that they stay apart in a grey print (Okabe & Ito's colours, dark first).
COLORS = ("#0b3c5d", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (1, 1)))
SEQUENTIAL = "viridis"  # lightness grows monotonically


def new_figure(
    rows: int = 1, columns: int = 1, *, width: float = 6.0, height: float = 3.6, **options: Any
) -> tuple[Figure, Any]:
    """Return a figure outside pyplot's registry and its axes (one, or an array of them).

    Args:
        rows: number of rows of axes.
        columns: number of columns of axes.
        width: width of the figure in inches.
        height: height of the figure in inches.
        **options: passed to ``Figure.subplots``.

    Example:
        >>> figure, axes = new_figure(columns=2)
        >>> len(axes)
        2
    """
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(rows, columns, **options)
    for ax in np.atleast_1d(axes).flat:
        _tidy(ax)
    return figure, axes


def _tidy(ax: Axes) -> None:
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize=8)
    ax.tick_params(which="minor", labelsize=7)  # matplotlib labels them at 10 points on short logarithmic axes
    ax.grid(visible=True, color="0.9", linewidth=0.6)
    ax.set_axisbelow(True)
