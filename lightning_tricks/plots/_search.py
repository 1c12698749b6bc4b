"""Pictures of a hyperparameter search."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lightning_tricks._base import UserInputError
from lightning_tricks.plots._style import COLORS, SEQUENTIAL, new_figure

Number = float | int


def search_progress(
    values: Sequence[float | None],
    *,
    maximize: bool = False,
    rounds: Sequence[int] = (),
    ylabel: str = "value",
) -> Figure:
    """Draw every trial's value and the best so far.

    Args:
        values: in the order of the trials; None or NaN for those without a result.
        maximize: whether larger is better.
        rounds: positions at which a new round begins, marked by lines.
        ylabel: name of the value.

    Raises:
        UserInputError: if no trial has a value.

    Example:
        >>> search_progress([3.0, None, 1.0, 2.0]).axes[0].get_xlabel()
        'trial'
    """
    numbers = np.array([np.nan if value is None else value for value in values], dtype=float)
    if not np.isfinite(numbers).any():
        raise UserInputError("search_progress needs at least one finite value, but got none. Did all trials fail?")
    figure, ax = new_figure()
    worst = -np.inf if maximize else np.inf
    filled = np.where(np.isfinite(numbers), numbers, worst)
    best = np.maximum.accumulate(filled) if maximize else np.minimum.accumulate(filled)
    ax.plot(numbers, "o", color=COLORS[4], markersize=4, label="trial")
    ax.step(range(len(best)), np.where(np.isfinite(best), best, np.nan), where="post", color=COLORS[0], label="best")
    missing = np.flatnonzero(~np.isfinite(numbers))
    if len(missing):
        edge = ax.get_xaxis_transform()
        ax.plot(missing, np.full(len(missing), 0.02), "x", color=COLORS[1], transform=edge, label="failed or pruned")
    for start in rounds:
        ax.axvline(start - 0.5, color="0.6", linestyle=":", linewidth=1)
    if np.nanmin(numbers) > 0 and np.nanmax(numbers) > 20 * np.nanmin(numbers):
        ax.set_yscale("log")
    ax.set(xlabel="trial", ylabel=ylabel)
    ax.legend(fontsize=8, frameon=False)
    return figure


def search_points(
    points: Sequence[Mapping[str, Any]],
    values: Sequence[float],
    *,
    log: Sequence[str] = (),
    windows: Sequence[Mapping[str, tuple[float, float]]] = (),
    maximize: bool = False,
    ylabel: str = "value",
) -> Figure:
    """Draw the value over each hyperparameter, with the windows of each round below (the coarse one lowest).

    The two numbers whose order agrees best with the order of the values also get a picture of their plane.

    Args:
        points: hyperparameters of each trial.
        values: of each trial.
        log: names to draw on a logarithmic scale.
        windows: by round, the (low, high) of each number.
        maximize: whether larger is better.
        ylabel: name of the value.

    Raises:
        UserInputError: if there is no point.

    Example:
        >>> figure = search_points([{"lr": 0.1}, {"lr": 1.0}], [2.0, 1.0], log=["lr"], windows=[{"lr": (0.01, 1.0)}])
        >>> [ax.get_xlabel() for ax in figure.axes if ax.get_visible()]
        ['lr']
    """
    if not points:
        raise UserInputError("search_points needs at least one finished trial, but got none.")
    names = list(dict.fromkeys(name for point in points for name in point))
    numeric = [name for name in names if all(is_number(p[name]) for p in points if name in p)]
    pair = _pair(points, [-value for value in values] if maximize else values, numeric)
    columns = min(3, len(names) + bool(pair))
    rows = -(-(len(names) + bool(pair)) // columns)
    figure, axes = new_figure(rows, columns, width=3.4 * columns, height=3.0 * rows, squeeze=False)
    flat = list(axes.flat)
    for ax, name in zip(flat, names, strict=False):
        _one(ax, name, points, values, windows, log=name in log, numeric=name in numeric, maximize=maximize)
        ax.set_ylabel(ylabel)
    if pair:
        _plane(figure, flat[len(names)], pair, points, values, windows, log, maximize=maximize)
    for ax in flat[len(names) + bool(pair) :]:
        ax.set_visible(False)
    return figure


def search_importance(importance: Mapping[str, float]) -> Figure:
    """Draw how much each hyperparameter mattered, the most important on top.

    Args:
        importance: shares by name, at least 0.

    Example:
        >>> [text.get_text() for text in search_importance({"lr": 0.9, "wd": 0.1}).axes[0].get_yticklabels()]
        ['wd', 'lr']
    """
    if not importance:
        raise UserInputError("search_importance needs at least one hyperparameter, but got none.")
    ordered = sorted(importance.items(), key=lambda item: item[1])
    figure, ax = new_figure(height=1.0 + 0.35 * len(ordered))
    ax.barh([name for name, _ in ordered], [share for _, share in ordered], color=COLORS[0], height=0.6)
    for position, (_, share) in enumerate(ordered):
        ax.text(share, position, f" {share:.2f}", va="center", fontsize=8)
    ax.set(xlabel="share of the variation", xlim=(0, 1.12 * max(share for _, share in ordered) or 1))
    ax.grid(visible=False, axis="y")
    return figure


def parallel_coordinates(
    points: Sequence[Mapping[str, Any]],
    values: Sequence[float],
    *,
    log: Sequence[str] = (),
    maximize: bool = False,
    ylabel: str = "value",
) -> Figure:
    """Draw one line per trial across all hyperparameters, darker the better its rank; the best one is thick.

    Args:
        points: hyperparameters of each trial; those that a trial lacks leave a gap.
        values: of each trial.
        log: names to draw on a logarithmic scale.
        maximize: whether larger is better.
        ylabel: name of the value.

    Raises:
        UserInputError: if there is no point.

    Example:
        >>> figure = parallel_coordinates([{"lr": 0.1, "kind": "a"}, {"lr": 1.0, "kind": "b"}], [2.0, 1.0])
        >>> [label.get_text() for label in figure.axes[0].get_xticklabels()]
        ['lr', 'kind', 'value']
    """
    if not points:
        raise UserInputError("parallel_coordinates needs at least one finished trial, but got none.")
    names = list(dict.fromkeys(name for point in points for name in point))
    figure, ax = new_figure(width=max(5.0, 1.5 * (len(names) + 1)), height=4.2)
    places = [
        [_place(p.get(name), column, log=name in log) for p in points]
        for name in names
        for column in [_of(points, name)]
    ]
    scores = list(values)
    places.append([_place(value, scores, log=False) for value in scores])
    worst_first = np.argsort(np.asarray(scores) if maximize else -np.asarray(scores), kind="stable")
    from matplotlib import colormaps

    shades = colormaps[SEQUENTIAL]
    for rank, i in enumerate(worst_first):
        is_best = rank == len(scores) - 1
        shade = COLORS[1] if is_best else shades(0.95 - 0.95 * rank / max(1, len(scores) - 1))
        line = [column[i] for column in places]
        ax.plot(line, color=shade, linewidth=2.2 if is_best else 0.9, label="best" if is_best else None)
    for x, name in enumerate([*names, ylabel]):
        column = scores if x == len(names) else _of(points, name)
        for place, text in _ends(column):
            ax.annotate(text, (x, place), xytext=(3, 0), textcoords="offset points", fontsize=7, va="center")
        ax.axvline(x, color="0.7", linewidth=0.8, zorder=0)
    ax.set_xticks(range(len(names) + 1), [*names, ylabel])
    ax.set(yticks=[], ylim=(-0.06, 1.06), xlim=(-0.1, len(names) + 0.35))
    ax.spines["left"].set_visible(False)
    ax.grid(visible=False)
    ax.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(0, 1.09))
    return figure


def log_axis(ax: Axes, which: str, values: Sequence[float]) -> None:
    """Make an axis logarithmic, with few labels that can be read also where it spans less than two decades."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    ax.set(**{f"{which}scale": "log"})
    axis = ax.xaxis if which == "x" else ax.yaxis
    axis.set_minor_formatter(NullFormatter())
    if max(values) < 100 * min(values):
        axis.set_major_locator(LogLocator(subs=(1.0, 3.0), numticks=6))
        axis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))


def is_number(value: Any) -> bool:
    """Whether a hyperparameter's value has a place on an axis."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _of(points: Sequence[Mapping[str, Any]], name: str) -> list[Any]:
    return [point[name] for point in points if name in point]


def _one(
    ax: Axes,
    name: str,
    points: Sequence[Mapping[str, Any]],
    values: Sequence[float],
    windows: Sequence[Mapping[str, tuple[float, float]]],
    *,
    log: bool,
    numeric: bool,
    maximize: bool,
) -> None:
    pairs = [(p[name] if numeric else str(p[name]), v) for p, v in zip(points, values, strict=True) if name in p]
    ax.scatter([x for x, _ in pairs], [v for _, v in pairs], s=12, color=COLORS[0])
    best = (max if maximize else min)(pairs, key=lambda pair: pair[1])
    ax.scatter(*best, s=60, marker="*", color=COLORS[1], zorder=3)
    if log:
        log_axis(ax, "x", [float(x) for x, _ in pairs])
    if min(values) > 0 and max(values) > 20 * min(values):
        ax.set_yscale("log")
    shown = [(number, window[name]) for number, window in enumerate(windows) if name in window]
    if shown:
        _make_room_below(ax, 0.03 * len(shown) + 0.03)
    for number, (low, high) in shown:  # rounds from the bottom of the picture upwards
        height = 0.02 + 0.03 * number
        ax.plot([low, high], [height, height], color=COLORS[2], linewidth=2.5, transform=ax.get_xaxis_transform())
    ax.set_xlabel(name)


def _make_room_below(ax: Axes, share: float) -> None:
    """Move the lower limit down, so that the lowest part of the picture, this share of its height, is free."""
    forward, backward = ax.yaxis.get_transform(), ax.yaxis.get_transform().inverted()
    low, high = forward.transform(np.array(ax.get_ylim()))
    ax.set_ylim(bottom=float(backward.transform(np.array([high - (high - low) / (1 - share)]))[0]))


def _pair(points: Sequence[Mapping[str, Any]], losses: Sequence[float], names: Sequence[str]) -> tuple[str, ...]:
    """Return the two numbers whose distance from the best point goes best with the value; none if there are not two."""
    everywhere = [name for name in names if all(name in p for p in points)]
    if len(everywhere) < 2 or len(points) < 3:
        return ()
    return tuple(sorted(sorted(everywhere, key=lambda name: strength(points, losses, name))[-2:], key=everywhere.index))


def strength(points: Sequence[Mapping[str, Any]], losses: Sequence[float], name: str) -> float:
    """Return how well the distance from the best point along one number goes with the losses, in [0, 1]."""
    having = [(p[name], loss) for p, loss in zip(points, losses, strict=True) if name in p]
    x, order = (
        np.unique(column, return_inverse=True)[1] for column in zip(*having, strict=True)
    )  # ranks, equal ones too
    away = np.abs(x - x[int(order.argmin())])
    if not np.ptp(away) or not np.ptp(order):
        return 0.0
    return float(abs(np.corrcoef(away, order)[0, 1]))


def _plane(
    figure: Figure,
    ax: Axes,
    pair: tuple[str, ...],
    points: Sequence[Mapping[str, Any]],
    values: Sequence[float],
    windows: Sequence[Mapping[str, tuple[float, float]]],
    log: Sequence[str],
    *,
    maximize: bool,
) -> None:
    from matplotlib.patches import Rectangle

    x, y = pair
    ranks = np.argsort(np.argsort(values if not maximize else [-v for v in values]))
    shown = ax.scatter([p[x] for p in points], [p[y] for p in points], c=ranks, cmap=SEQUENTIAL, s=16)
    for window in windows[1:]:
        if x in window and y in window:
            (x0, x1), (y0, y1) = window[x], window[y]
            ax.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=COLORS[2], linewidth=1.2))
    for which, name in (("x", x), ("y", y)):
        if name in log:
            log_axis(ax, which, [p[name] for p in points])
    ax.set(xlabel=x, ylabel=y)
    figure.colorbar(shown, ax=ax, label="rank (0 is best)")


def _place(value: Any, column: Sequence[Any], *, log: bool) -> float:
    """Return where a value lies on its axis, in [0, 1]; NaN for a missing one."""
    if value is None:
        return np.nan
    if not all(map(is_number, column)):
        options = sorted(set(map(str, column)))
        return options.index(str(value)) / max(1, len(options) - 1)
    scale = np.log if log and min(column) > 0 else np.asarray
    low, high, at = (float(scale(x)) for x in (min(column), max(column), value))
    return 0.5 if high == low else (at - low) / (high - low)


def _ends(column: Sequence[Any]) -> list[tuple[float, str]]:
    if all(map(is_number, column)):
        low, high = min(column), max(column)
        return [(0.5, f"{low:.3g}")] if low == high else [(0.0, f"{low:.3g}"), (1.0, f"{high:.3g}")]
    options = sorted(set(map(str, column)))
    return [(i / max(1, len(options) - 1), option) for i, option in enumerate(options)]
