"""What a plateau rule would do on a given curve."""

from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lightning_tricks._base import UserInputError
from lightning_tricks.plots._style import COLORS, DASHES, new_figure


def plot_simulation(values: Sequence[float], rates: Sequence[float], *, name: str = "metric") -> Figure:
    """Draw a metric's curve over the learning rate that a plateau rule would give it.

    Args:
        values: the metric, check by check.
        rates: the learning rate after each check, from ``ReduceLROnPlateau.simulate``; shorter than ``values`` if the
            rule would have stopped the run.
        name: the metric's name, for the axis.

    Returns:
        A figure with the metric above and the learning rate below, a mark at every reduction.

    Raises:
        UserInputError: if there are no rates, or more rates than values.

    Example:
        >>> figure = plot_simulation([1.0, 0.9, 0.9, 0.9], [0.1, 0.1, 0.1, 0.05], name="val_loss")
        >>> [ax.get_ylabel() for ax in figure.axes]
        ['val_loss', 'learning rate']
    """
    if not 0 < len(rates) <= len(values):
        raise UserInputError(
            f"plot_simulation needs at least one rate and no more than values, but got {len(rates)} for {len(values)}."
        )
    checks = range(1, len(values) + 1)
    figure, (above, below) = new_figure(rows=2, height=4.0, sharex=True)
    above.plot(checks, values, color=COLORS[0], linestyle=DASHES[0], marker=".", markersize=4)
    above.set_ylabel(name, fontsize=9)
    below.step(checks[: len(rates)], rates, where="post", color=COLORS[1])
    below.set_yscale("log")
    below.set_ylabel("learning rate", fontsize=9)
    below.set_xlabel("check", fontsize=9)
    below.xaxis.set_major_locator(MaxNLocator(integer=True))
    for check in reductions_in(rates):
        for ax in (above, below):
            ax.axvline(check, color="0.6", linewidth=0.8, linestyle=":")
    if len(rates) < len(values):
        above.axvspan(len(rates), len(values), color="0.93")
        above.text(len(rates), above.get_ylim()[1], " stopped", va="top", fontsize=8)
    return figure


def reductions_in(rates: Sequence[float]) -> list[int]:
    """Return the 1-based checks at which the rate fell.

    Example:
        >>> reductions_in([0.1, 0.1, 0.05])
        [3]
    """
    return [check for check in range(2, len(rates) + 1) if rates[check - 1] < rates[check - 2]]
