"""What an initialisation does to the signal."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lightning_tricks.plots._style import COLORS, DASHES, new_figure


def signal_figure(
    activations: Mapping[str, Sequence[float]], gradients: Mapping[str, Sequence[float]], *, title: str = ""
) -> Figure:
    """Draw the standard deviation of every layer's output and of the gradient there, one line per initialisation.

    Args:
        activations: deviations of the outputs in order of execution, by the name of the initialisation.
        gradients: the same for the gradients.
        title: of the figure.

    Example:
        >>> figure = signal_figure({"after": [1.0, 0.9]}, {"after": [0.8, 1.0]})
        >>> [axes.get_title() for axes in figure.axes]
        ['outputs', 'gradients']
    """
    figure, axes = new_figure(columns=2, width=9, height=3.4, sharex=True)
    for ax, what, lines in ((axes[0], "outputs", activations), (axes[1], "gradients", gradients)):
        for number, (name, values) in enumerate(lines.items()):
            style = {"color": COLORS[number % len(COLORS)], "linestyle": DASHES[number % len(DASHES)]}
            marker = "o" if len(values) < 20 else ""
            ax.plot(range(1, len(values) + 1), values, label=name, marker=marker, markersize=3, **style)
        if any(value > 0 for values in lines.values() for value in values):
            ax.set_yscale("log")
        ax.set_title(what, fontsize=10)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.set_xlabel("layer", fontsize=9)
        ax.set_ylabel("standard deviation", fontsize=9)
    axes[0].legend(fontsize=8, frameon=False)
    figure.suptitle(title, fontsize=11)
    return figure
