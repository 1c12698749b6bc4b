"""The course of a run with what was found in it."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from lightning_tricks.plots._style import COLORS, DASHES, new_figure


def training_curve(
    steps: Sequence[int],
    losses: Sequence[float],
    *,
    validation: Sequence[tuple[int, float]] = (),
    name: str = "val_loss",
    guess: float | None = None,
    marks: Sequence[tuple[int, str]] = (),
) -> Figure:
    """Draw the training loss over optimizer steps, with the validation loss and the steps at which something was found.

    Args:
        steps: of the losses.
        losses: values that are not finite leave a gap.
        validation: (step, value) pairs.
        name: of the validation metric.
        guess: loss of the best prediction that does not look at the input.
        marks: (step, rule) of each finding.

    Example:
        >>> figure = training_curve([1, 2, 3], [1.0, 0.5, 0.4], guess=0.9, marks=[(2, "oscillating")])
        >>> [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
        ['training loss', 'what guessing gives']
    """
    figure, ax = new_figure(width=5.0, height=3.8)
    ax.plot(steps, losses, color=COLORS[0], linewidth=1.4, label="training loss")
    if validation:
        at, values = zip(*validation, strict=True)
        ax.plot(at, values, color=COLORS[1], linestyle=DASHES[1], marker="o", markersize=3, label=name)
    if guess is not None:
        ax.axhline(guess, color="0.5", linestyle=":", linewidth=1.2, label="what guessing gives")
    rules: dict[int, list[str]] = {}
    for step, rule in sorted(marks):
        rules.setdefault(step, []).append(rule)
    for step, names in rules.items():
        ax.axvline(step, color="0.6", linewidth=0.8)
        ax.annotate(
            ", ".join(names),
            (step, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(-2, -3),
            textcoords="offset points",
            rotation=90,
            va="top",
            ha="right",
            fontsize=7,
            color="0.3",
        )
    numbers = np.asarray([*losses, *(value for _, value in validation)], dtype=float)
    finite = numbers[np.isfinite(numbers)]
    if finite.size and finite.min() > 0 and finite.max() > 10 * finite.min():
        ax.set_yscale("log")
    ax.set(xlabel="optimizer step", ylabel="loss")
    ax.legend(fontsize=8, frameon=False, loc="best")
    return figure
