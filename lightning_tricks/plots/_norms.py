"""Pictures of norms: layers down the side in forward order, optimizer steps along the bottom."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from torch import Tensor

from lightning_tricks.plots._style import COLORS, SEQUENTIAL, new_figure

_NOTHING, _BROKEN = "0.85", "#d00000"  # not measured or exactly zero; NaN or infinite
_MAX_NAMES = 60
BAND = (-3.5, -2.5)  # log10 of the update ratio: around 1e-3 (Karpathy, CS231n)


def plot_gradient_norms(steps: Sequence[int], layers: Sequence[str], norms: Tensor) -> Figure:
    """Draw log10 of the gradient norm of each layer over the steps.

    Args:
        steps: optimizer step of each column.
        layers: names, in forward order; the first is drawn at the top.
        norms: ``(layers, steps)``; NaN where nothing was measured, infinite where a gradient was not finite.

    Example:
        >>> import torch
        >>> figure = plot_gradient_norms([0, 50], ["stem", "head"], torch.tensor([[1.0, 0.1], [2.0, 0.2]]))
        >>> figure.axes[0].get_title()
        'Gradient norm (log10, before clipping)'
    """
    figure, ax = _figure(layers)
    image = _heat_map(ax, steps, layers, _log10(norms), np.isinf(_array(norms)), cmap=SEQUENTIAL)
    ax.set_title("Gradient norm (log10, before clipping)", fontsize=10)
    _bar(figure, ax, image, "log10 of the norm")
    return figure


def plot_weight_norms(steps: Sequence[int], layers: Sequence[str], norms: Tensor) -> Figure:
    """Draw how the weight norm of each layer has changed since it was first measured (that norm is in its label).

    Args:
        steps: optimizer step of each column.
        layers: names, in forward order.
        norms: ``(layers, steps)``; NaN where nothing was measured.

    Example:
        >>> import torch
        >>> figure = plot_weight_norms([0, 50], ["stem"], torch.tensor([[2.0, 4.0]]))
        >>> figure.axes[0].get_yticklabels()[0].get_text()
        'stem  (2)'
    """
    values = _array(norms)
    start = [next((v for v in row if np.isfinite(v)), np.nan) for row in values]
    names = [f"{name}  ({first:.3g})" for name, first in zip(layers, start, strict=True)]
    with np.errstate(divide="ignore", invalid="ignore"):
        change = np.log2(values / np.asarray(start).reshape(-1, 1))
    finite = np.abs(change[np.isfinite(change)])
    reach = max(0.1, float(finite.max()) if finite.size else 0.1)
    figure, ax = _figure(layers)
    image = _heat_map(ax, steps, names, change, np.isinf(values), cmap="PuOr_r", vmin=-reach, vmax=reach)
    ax.set_title("Weight norm relative to the first record (log2)", fontsize=10)
    _bar(figure, ax, image, "log2 of the factor")
    return figure


def plot_update_ratios(steps: Sequence[int], layers: Sequence[str], ratios: Tensor) -> Figure:
    """Draw log10 of ‖update‖/‖weights‖ over the steps, and beside it the last one against the band around 1e-3.

    Lines go around what lies in the band, between 10^-3.5 and 10^-2.5: darker without is slower, brighter is faster.

    Args:
        steps: optimizer step of each column.
        layers: names, in forward order.
        ratios: ``(layers, steps)``; NaN where nothing was measured or the weights are 0.

    Example:
        >>> import torch
        >>> figure = plot_update_ratios([0, 50], ["stem"], torch.tensor([[1e-3, 1e-2]]))
        >>> len(figure.axes)  # heat map, last step, colour bar
        3
    """
    values = _log10(ratios)
    width, height = _size(layers)
    figure, (left, right) = new_figure(
        columns=2, width=width + 1.6, height=height, sharey=True, width_ratios=[3.2, 1.0]
    )
    low, high = min(-5, _low(values)), max(-1, _high(values))
    image = _heat_map(left, steps, layers, values, np.isinf(_array(ratios)), cmap=SEQUENTIAL, vmin=low, vmax=high)
    _outline(left, (values >= BAND[0]) & (values <= BAND[1]))
    left.set_title("Update / weight norm (log10; lines around 1e-3)", fontsize=10)
    right.axvspan(*BAND, color="0.9")
    right.axvline(-3, color="0.5", linewidth=0.8)
    if values.shape[1]:
        right.plot([_last(row) for row in values], range(len(layers)), "o", color="#0b3c5d", markersize=4)
    right.set_xlabel("last, log10", fontsize=8)
    right.set_xlim(low - 0.2, high + 0.2)
    right.set_title("around 1e-3", fontsize=10)
    bar = _bar(figure, left, image, "log10 of the ratio")
    for edge in BAND:
        bar.ax.axhline(edge, color="white", linewidth=1.2)
    return figure


def _heat_map(
    ax: Axes, steps: Sequence[int], layers: Sequence[str], values: np.ndarray, broken: np.ndarray, **options: Any
) -> Any:
    ax.set_facecolor(_NOTHING)
    ax.grid(visible=False)
    if not values.size:  # nothing measured yet
        values, broken = np.full((1, 1), np.nan), np.zeros((1, 1), dtype=bool)
    shown = np.ma.masked_invalid(values)
    image = ax.imshow(shown, aspect="auto", interpolation="nearest", **options)
    if broken.any():
        red = np.ma.masked_where(~broken, np.ones_like(values))
        ax.imshow(red, aspect="auto", interpolation="nearest", cmap=_one_color(_BROKEN), vmin=0, vmax=1)
    columns = np.unique(np.linspace(0, max(len(steps) - 1, 0), min(len(steps), 8)).round().astype(int))
    ax.set_xticks(columns, [str(steps[i]) for i in columns] if steps else [])
    ax.set_xlabel("optimizer step of each record", fontsize=8)
    stride = -(-len(layers) // _MAX_NAMES) or 1
    ax.set_yticks(range(0, len(layers), stride), list(layers)[::stride], fontsize=7)
    return image


def _outline(ax: Axes, inside: np.ndarray) -> None:
    """Draw lines where cells inside and outside meet; colours alone would not tell them apart in a grey print."""
    padded = np.pad(inside, 1).astype(int)
    rows, columns = np.nonzero(np.diff(padded, axis=0)[:, 1:-1])
    lines = [((c - 0.5, r - 0.5), (c + 0.5, r - 0.5)) for r, c in zip(rows, columns, strict=True)]
    rows, columns = np.nonzero(np.diff(padded, axis=1)[1:-1])
    lines += [((c - 0.5, r - 0.5), (c - 0.5, r + 0.5)) for r, c in zip(rows, columns, strict=True)]
    ax.add_collection(LineCollection(lines, colors="white", linewidths=1.0, capstyle="projecting"), autolim=False)


def _one_color(color: str) -> Any:
    from matplotlib.colors import ListedColormap

    return ListedColormap([color])


def _figure(layers: Sequence[str]) -> tuple[Figure, Axes]:
    width, height = _size(layers)
    figure, ax = new_figure(width=width, height=height)
    return figure, ax


def _size(layers: Sequence[str]) -> tuple[float, float]:
    longest = max((len(name) for name in layers), default=0)
    return 5.0 + 0.06 * min(longest, 50), min(12.0, max(2.4, 1.2 + 0.16 * len(layers)))


def _bar(figure: Figure, ax: Axes, image: Any, label: str) -> Any:
    bar = figure.colorbar(image, ax=ax, fraction=0.05, pad=0.02)
    bar.set_label(label, fontsize=8)
    bar.ax.tick_params(labelsize=7)
    return bar


def _array(values: Tensor) -> np.ndarray:
    return np.asarray(values.detach().cpu().double().numpy())


def _log10(values: Tensor) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.log10(_array(values)))


def _low(values: np.ndarray) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.min()) if finite.size else -3.1


def _high(values: np.ndarray) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.max()) if finite.size else -2.9


def _last(row: np.ndarray) -> float:
    finite = row[np.isfinite(row)]
    return float(finite[-1]) if finite.size else float("nan")


def plot_activations(
    steps: Sequence[int], layers: Sequence[str], std: Tensor, shares: Mapping[str, Sequence[float]]
) -> Figure:
    """Draw log10 of the standard deviation of each layer's activations over the steps, and beside it the last shares.

    Args:
        steps: optimizer step of each column.
        layers: names, in forward order.
        std: ``(layers, steps)``; NaN where nothing was seen.
        shares: one value per layer in [0, 1], or NaN, for each of "dead" (units), "saturated" and "zeros" (values).

    Example:
        >>> import torch
        >>> figure = plot_activations([0], ["relu"], torch.ones(1, 1), {"dead": [0.1], "zeros": [0.5]})
        >>> [text.get_text() for text in figure.legends[0].get_texts()]
        ['dead', 'zeros']
    """
    width, height = _size(layers)
    figure, (left, right) = new_figure(
        columns=2, width=width + 1.6, height=height + 0.4, sharey=True, width_ratios=[2.6, 1.0]
    )
    image = _heat_map(left, steps, layers, _log10(std), np.isinf(_array(std)), cmap=SEQUENTIAL)
    left.set_title("Activation std (log10)", fontsize=10)
    for (name, values), marker, color in zip(shares.items(), "oX|", COLORS, strict=False):
        right.plot(values, range(len(layers)), marker, color=color, markersize=4 if marker != "|" else 8, label=name)
    right.set_xlim(-0.03, 1.03)
    right.set_xlabel("in the last record", fontsize=8)
    right.set_title("Shares", fontsize=10)
    figure.legend(loc="outside lower right", ncols=3, fontsize=7, frameon=False)
    _bar(figure, left, image, "log10 of the std")
    return figure
