"""Learning curves with what happened on the way marked in them."""

from collections.abc import Mapping, Sequence
from itertools import cycle

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lightning_tricks._base import UserInputError
from lightning_tricks.plots._style import COLORS, DASHES, new_figure

Curve = Sequence[tuple[float, float]]


def learning_curves(
    curves: Mapping[str, Curve],
    *,
    best_epoch: float | None = None,
    lr_drops: Sequence[tuple[float, float]] = (),
    stop_reason: str | None = None,
    ylabel: str = "loss",
    log_scale: bool = True,
) -> Figure:
    """Draw metrics over epochs, with the best epoch, the reductions of the learning rate and the reason of the stop.

    Args:
        curves: (epoch, value) pairs by name; values that are not finite leave a gap.
        best_epoch: where the restored weights come from.
        lr_drops: (epoch, new learning rate) pairs.
        stop_reason: one sentence, shown as the title.
        ylabel: name and unit of the values.
        log_scale: whether the values are drawn on a logarithmic scale; ignored if one of them is not positive.

    Raises:
        UserInputError: if there is no curve.

    Example:
        >>> figure = learning_curves({"val_loss": [(0, 1.0), (1, 0.5), (2, 0.6)]}, best_epoch=1, lr_drops=[(2, 1e-4)])
        >>> figure.axes[0].get_xlabel()
        'epoch'
    """
    if not curves:
        raise UserInputError("learning_curves needs at least one curve, but got none. Was anything logged?")
    figure, ax = new_figure()
    for (name, curve), color, dash in zip(curves.items(), cycle(COLORS), cycle(DASHES), strict=False):
        epochs, values = np.asarray(curve, dtype=float).reshape(-1, 2).T
        marker = "o" if len(epochs) == 1 else None
        ax.plot(epochs, values, color=color, linestyle=dash, marker=marker, label=name, linewidth=1.5)
    values = np.concatenate([np.asarray(curve, dtype=float).reshape(-1, 2)[:, 1] for curve in curves.values()])
    if log_scale and np.nanmin(values, initial=np.inf) > 0:
        ax.set_yscale("log")
    _mark_lr_drops(ax, lr_drops)
    if best_epoch is not None:
        ax.axvline(best_epoch, color="0.25", linewidth=1.2, label=f"best epoch ({best_epoch:g})")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set(xlabel="epoch", ylabel=ylabel)
    ax.legend(fontsize=8, frameon=False)
    if stop_reason:
        ax.set_title(stop_reason, fontsize=9, wrap=True)
    return figure


def _mark_lr_drops(ax: Axes, drops: Sequence[tuple[float, float]]) -> None:
    for number, (epoch, lr) in enumerate(drops):
        label = "learning rate reduced" if number == 0 else None
        ax.axvline(epoch, color="0.55", linestyle=":", linewidth=1.2, label=label)
        ax.annotate(
            f"{lr:.1e}",
            (epoch, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(2, -2),
            textcoords="offset points",
            rotation=90,
            va="top",
            fontsize=7,
            color="0.35",
        )
