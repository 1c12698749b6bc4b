"""All pairs of hyperparameters of a search, with the windows of a coarse-to-fine one."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lightning_tricks._base import UserInputError
from lightning_tricks.plots._search import is_number, log_axis, strength
from lightning_tricks.plots._style import COLORS, SEQUENTIAL, new_figure

# Fifteen planes fit on a page.
_MOST = 6


def search_pairs(
    points: Sequence[Mapping[str, Any]],
    values: Sequence[float],
    *,
    log: Sequence[str] = (),
    windows: Sequence[Mapping[str, tuple[float, float]]] = (),
    maximize: bool = False,
) -> Figure:
    """Draw the planes of all pairs of numbers: points by rank, the best as a star, the fine rounds' windows as frames.

    Of more than six numbers, those six whose distance from the best point goes best with the value. Trials without one
    of a pair are left out of its plane.

    Args:
        points: hyperparameters of each trial.
        values: of each trial.
        log: names to draw on a logarithmic scale.
        windows: by round, the (low, high) of each number.
        maximize: whether larger is better.

    Raises:
        UserInputError: if there are fewer than two numbers.

    Example:
        >>> points = [{"lr": 0.1, "wd": 0.0, "width": 8}, {"lr": 1.0, "wd": 0.5, "width": 9}]
        >>> figure = search_pairs(points, [2.0, 1.0], log=["lr"])
        >>> sum(len(ax.collections) > 0 for ax in figure.axes)
        3
    """
    names = list(dict.fromkeys(name for point in points for name in point))
    names = [name for name in names if all(is_number(p[name]) for p in points if name in p)]
    if len(names) < 2:
        raise UserInputError(f"search_pairs needs at least two numbers, but got {names}.")
    losses = [-value for value in values] if maximize else list(values)
    if len(names) > _MOST:
        kept = sorted(names, key=lambda name: strength(points, losses, name))[-_MOST:]
        names = [name for name in names if name in kept]
    side = len(names) - 1
    size = max(4.2, 2.3 * side)
    figure, axes = new_figure(side, side, width=size, height=0.9 * size, squeeze=False)
    for ax in axes.flat:
        ax.set_visible(False)
    for column, row in combinations(range(len(names)), 2):
        ax = axes[row - 1, column]
        ax.set_visible(True)
        _plane(ax, names[column], names[row], points, losses, windows)
        for which, name in (("x", names[column]), ("y", names[row])):
            if name in log:
                log_axis(ax, which, [p[name] for p in points if name in p])
        ax.tick_params(labelsize=7, labelbottom=row == side, labelleft=column == 0)
        ax.set(xlabel=names[column] if row == side else "", ylabel=names[row] if column == 0 else "")
    return figure


def _plane(
    ax: Axes,
    x: str,
    y: str,
    points: Sequence[Mapping[str, Any]],
    losses: Sequence[float],
    windows: Sequence[Mapping[str, tuple[float, float]]],
) -> None:
    from matplotlib.patches import Rectangle

    shown = [(p[x], p[y], loss) for p, loss in zip(points, losses, strict=True) if x in p and y in p]
    shown.sort(key=lambda point: -point[2])  # the best are drawn last, on top
    ranks = np.arange(len(shown))[::-1]
    ax.scatter([p[0] for p in shown], [p[1] for p in shown], c=ranks, cmap=SEQUENTIAL, s=14)
    if shown:
        ax.scatter(*shown[-1][:2], s=70, marker="*", color=COLORS[1], zorder=3)
    for number, window in enumerate(windows[1:]):
        if x in window and y in window:
            (x0, x1), (y0, y1) = window[x], window[y]
            width = 0.7 + 0.5 * number
            ax.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=COLORS[2], linewidth=width))
