"""Pictures about the learning rate."""

import math
from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from lightning_tricks.plots._style import COLORS, new_figure

_MARKERS = ("o", "s", "^", "D")


def lr_find_figure(
    rates: Sequence[float], losses: Sequence[float], suggestions: Mapping[str, float | None], *, chosen: str = ""
) -> Figure:
    """Draw the loss of a range test over the learning rate with the suggestions marked.

    Args:
        rates: learning rates in rising order.
        losses: smoothed losses; the axis is cut at twice the range of what came before the divergence.
        suggestions: learning rates by rule; None is left out.
        chosen: the rule that is taken, drawn filled.

    Example:
        >>> figure = lr_find_figure([1e-3, 1e-2, 1e-1], [1.0, 0.5, 2.0], {"minimum": 1e-3}, chosen="minimum")
        >>> figure.axes[0].get_xscale()
        'log'
    """
    figure, ax = new_figure()
    ax.plot(rates, losses, color="0.45", linewidth=1.2)
    finite = [loss for loss in losses if math.isfinite(loss)]
    if finite:
        first, low = finite[0], min(finite)
        ax.set_ylim(low - 0.1 * abs(first - low) - 1e-12, max(first, low) + 0.6 * abs(first - low) + 1e-12)
    for number, (rule, rate) in enumerate(suggestions.items()):
        if rate is None:
            continue
        nearest = min(range(len(rates)), key=lambda i, rate=rate: abs(math.log(rates[i] / rate)))  # type: ignore[misc]
        color = COLORS[number % len(COLORS)]
        face = color if rule == chosen else "white"
        label = f"{rule}: {rate:.2g}" + (" (chosen)" if rule == chosen else "")
        marker = _MARKERS[number % len(_MARKERS)]
        at = max(rate, rates[0])
        ax.plot([at], [losses[nearest]], marker, color=color, markerfacecolor=face, markersize=7, label=label)
    ax.set_xscale("log")
    ax.set_xlabel("learning rate", fontsize=9)
    ax.set_ylabel("smoothed training loss", fontsize=9)
    if any(rate is not None for rate in suggestions.values()):
        ax.legend(fontsize=8, frameon=False)
    return figure
