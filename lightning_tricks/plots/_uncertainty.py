"""Pictures of uncertainty: is it calibrated, does it rank mistakes, has it converged, which pictures are hard."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lightning_tricks._base import UserInputError, check_range
from lightning_tricks.plots._style import COLORS, DASHES, new_figure

Array = Any  # a tensor on any device, a NumPy array or a sequence of numbers


class ReliabilityBins(Protocol):
    """Grouped answers, such as ``lightning_tricks.uncertainty.calibration_bins`` returns."""

    @property
    def edges(self) -> Any: ...
    @property
    def confidence(self) -> Any: ...
    @property
    def accuracy(self) -> Any: ...
    @property
    def count(self) -> Any: ...


def reliability_diagram(*groups: ReliabilityBins, labels: Sequence[str] = ()) -> Figure:
    """Draw accuracy against confidence, and below how many answers each group rests on.

    Args:
        *groups: groupings (say, dropout off and on) with ``edges``, ``confidence``, ``accuracy`` and ``count``.
        labels: one name per grouping, for the legend.

    Returns:
        The figure. Thin vertical lines are 95 % intervals of the accuracy (Wilson, 1927): a group of few answers says
        little. Bars of the second panel are numbers of answers.

    Raises:
        UserInputError: if there is no grouping, or the labels do not match.

    Example:
        >>> from lightning_tricks.uncertainty import calibration_bins
        >>> bins = calibration_bins(torch.tensor([0.9, 0.6]), torch.tensor([True, False]), bins=5)
        >>> len(reliability_diagram(bins).axes)
        2
    """
    if not groups:
        raise UserInputError("expected at least one grouping, such as calibration_bins(confidence, correct).")
    names = _names(labels, len(groups))
    figure, (upper, lower) = new_figure(2, height=4.8, sharex=True, height_ratios=(3, 1))
    upper.plot([0, 1], [0, 1], color="0.6", linewidth=1)
    for i, (group, name) in enumerate(zip(groups, names, strict=True)):
        edges, confidence, accuracy, count = map(_array, (group.edges, group.confidence, group.accuracy, group.count))
        full = count > 0
        error = np.nansum(count * np.abs(accuracy - confidence)) / count.sum()
        text = f"{name}: " if name else ""
        upper.plot(
            confidence[full], accuracy[full], color=COLORS[i], linestyle=DASHES[i], marker="o", markersize=4,
            label=f"{text}calibration error {error:.3f}",
        )  # fmt: skip
        upper.vlines(confidence[full], *_wilson(accuracy[full], count[full]), color=COLORS[i], linewidth=1, alpha=0.5)
        width = np.diff(edges) / len(groups)
        bars = lower.bar(edges[:-1] + i * width, count, width, align="edge", color=COLORS[i], alpha=0.8)
        if len(groups) == 1:
            lower.bar_label(bars, [f"{n:.0f}" if n else "" for n in count], fontsize=6)
    upper.set(ylabel="accuracy", xlim=(0, 1), ylim=(0, 1.02))
    figure.legend(loc="outside upper center", fontsize=8, frameon=False)
    lower.set(xlabel="confidence", ylabel="answers")
    lower.margins(y=0.15)
    return figure


def _wilson(share: np.ndarray, count: np.ndarray, z: float = 1.96) -> tuple[np.ndarray, np.ndarray]:
    """Return the ends of the score interval of a share that was seen in ``count`` answers."""
    middle = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * np.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    return middle - half, middle + half


def most_uncertain_pictures(
    pictures: Array,
    uncertainty: Array,
    *,
    labels: Sequence[object] | None = None,
    predictions: Sequence[object] | None = None,
    count: int = 8,
    name: str = "uncertainty",
) -> Figure:
    """Show the pictures the net is least sure of above those it is most sure of.

    Args:
        pictures: ``(N, H, W)``, ``(N, 1, H, W)`` or ``(N, 3, H, W)``, any scale: each is stretched to its own range.
        uncertainty: one number per picture; those that are not finite are left out.
        labels: the true answers.
        predictions: the net's answers; one that differs from its label is titled in colour.
        count: pictures per row; fewer if there are fewer.
        name: what the number is, with its unit.

    Raises:
        UserInputError: if the lengths differ, the pictures have another shape, or nothing is left to show.

    Example:
        >>> figure = most_uncertain_pictures(torch.rand(9, 1, 8, 8), torch.rand(9), count=3)
        >>> len(figure.axes)
        6
    """
    check_range("count", count, low=1)
    images, values = _pictures(pictures), _array(uncertainty)
    for what, given in (("uncertainty", values), ("labels", labels), ("predictions", predictions)):
        if given is not None and len(given) != len(images):
            raise UserInputError(f"expected one of {what} per picture ({len(images)}), but got {len(given)}.")
    order = np.argsort(-values, kind="stable")
    order = order[np.isfinite(values[order])]
    if not len(order):
        raise UserInputError("no picture has a finite uncertainty, so there is nothing to show.")
    columns = min(count, len(order))
    figure, axes = new_figure(2, columns, width=max(2.4, 1.1 * columns), height=3.4, squeeze=False)
    for row, chosen in enumerate((order[:columns], order[::-1][:columns])):
        for ax, i in zip(axes[row], chosen, strict=True):
            _show(ax, images[i])
            answer, truth = (None if given is None else _plain(given[i]) for given in (predictions, labels))
            wrong = answer is not None and truth is not None and answer != truth
            text = " ".join(f"{part}" for part in (answer, f"({truth})" if wrong else None) if part is not None)
            title = f"{text or (truth if truth is not None else '')}\n{values[i]:.2g}"
            ax.set_title(title.strip(), fontsize=8, color=COLORS[1] if wrong else "black")
    axes[0, 0].set_ylabel("least certain", fontsize=8)
    axes[1, 0].set_ylabel("most certain", fontsize=8)
    figure.suptitle(_caption(name, labels is not None and predictions is not None), fontsize=9)
    return figure


def risk_coverage_curve(
    curves: Mapping[str, tuple[Array, Array]], *, optimal: tuple[Array, Array] | None = None
) -> Figure:
    """Draw the error rate among the most certain answers against the share that is answered.

    Args:
        curves: ``(coverage, risk)`` by name, such as ``uncertainty.risk_coverage`` returns.
        optimal: the curve of an oracle that puts every mistake last.

    Raises:
        UserInputError: if there is no curve.

    Example:
        >>> figure = risk_coverage_curve({"confidence": ([0.5, 1.0], [0.0, 0.1])})
        >>> figure.axes[0].get_xlabel()
        'coverage (share answered)'
    """
    if not curves:
        raise UserInputError("expected at least one curve.")
    figure, ax = new_figure()
    for i, (name, (coverage, risk)) in enumerate(curves.items()):
        ax.plot(_array(coverage), _array(risk), color=COLORS[i % 6], linestyle=DASHES[i % 6], label=name)
    if optimal is not None:
        ax.plot(*map(_array, optimal), color="0.6", linewidth=1, label="oracle")
    ax.set(xlabel="coverage (share answered)", ylabel="risk (error rate among them)", xlim=(0, 1))
    ax.set_ylim(bottom=0)
    ax.legend(fontsize=8, frameon=False)
    return figure


def uncertainty_histogram(groups: Mapping[str, Array], *, name: str = "uncertainty", bins: int = 30) -> Figure:
    """Draw how uncertainty is distributed among right, wrong and foreign inputs.

    Args:
        groups: numbers by name, such as ``{"right": ..., "wrong": ..., "rotated": ...}``; an empty one is only named.
        name: what the number is, with its unit.
        bins: how many, at least 1, the same for every group.

    Raises:
        UserInputError: if no group holds a finite number.

    Example:
        >>> figure = uncertainty_histogram({"right": [0.1, 0.2], "wrong": [0.9]})
        >>> len(figure.axes[0].get_legend().get_texts())
        2
    """
    check_range("bins", bins, low=1)
    values = {key: (flat := _array(group).ravel())[np.isfinite(flat)] for key, group in groups.items()}
    together = np.concatenate([*values.values(), np.empty(0)])
    if not len(together):
        raise UserInputError("expected at least one finite number, but every group is empty.")
    edges = np.histogram_bin_edges(together, bins)
    figure, ax = new_figure()
    for i, (key, group) in enumerate(values.items()):
        share = np.histogram(group, edges)[0] / max(len(group), 1)
        style = {"color": COLORS[i % 6], "linestyle": DASHES[i % 6], "linewidth": 1.5}
        ax.stairs(share, edges, label=f"{key} ({len(group)})", **style)
        ax.stairs(share, edges, fill=True, color=COLORS[i % 6], alpha=0.12)
    ax.set(xlabel=name, ylabel="share of the group")
    ax.legend(fontsize=8, frameon=False)
    return figure


def convergence_plot(
    samples: Array, *, name: str = "mean prediction", count: int = 6, tolerance: float | None = None
) -> Figure:
    """Draw the running mean over the passes with its Monte-Carlo standard error, one line per row: is T large enough?

    Args:
        samples: ``(S, N)``: S passes, at least 2, of one number for each of N rows, or ``(S,)`` for a single one.
        name: what the number is, with its unit.
        count: rows to draw at most, from the one with the smallest standard error to the one with the largest, evenly
            spaced in between.
        tolerance: draw the pass after which every row's standard error stays at or below this.

    Raises:
        UserInputError: if the samples have another shape or there is one pass only.

    Example:
        >>> figure = convergence_plot(torch.rand(50, 20), count=3)
        >>> len(figure.axes[0].lines)
        3
    """
    check_range("count", count, low=1)
    passes = _array(samples)
    passes = passes[:, None] if passes.ndim == 1 else passes
    if passes.ndim != 2 or len(passes) < 2:
        raise UserInputError(f"samples must be (S, N) with S at least 2, but got shape {passes.shape}.")
    seen = np.arange(1, len(passes) + 1)[:, None]
    start = passes[0]  # differences to it: exact where the values are large and close
    mean = np.cumsum(passes - start, axis=0) / seen
    squares = np.cumsum((passes - start) ** 2, axis=0) / seen - mean**2
    error = np.sqrt(np.maximum(squares, 0) / np.maximum(seen - 1, 1))  # std / sqrt(S), ddof 1
    chosen = _spread_out(error[-1], count)
    figure, ax = new_figure()
    for i, row in enumerate(chosen):
        line, spread = mean[1:, row] + start[row], error[1:, row]
        ax.plot(seen[1:, 0], line, color=COLORS[i % 6], linestyle=DASHES[i % 6], linewidth=1.2)
        ax.fill_between(seen[1:, 0], line - spread, line + spread, color=COLORS[i % 6], alpha=0.15, linewidth=0)
    above = np.flatnonzero((error[1:] > tolerance).any(axis=1)) if tolerance is not None else np.empty(0)
    enough = 2 if not len(above) else above[-1] + 3
    if tolerance is not None and enough <= len(passes):
        ax.axvline(enough, color="0.4", linewidth=1)
        late = enough > len(passes) ** 0.5  # beyond the middle of a logarithmic axis
        ax.annotate(
            f"{enough} passes: error ≤ {tolerance:g}", (enough, 1), xycoords=("data", "axes fraction"),
            xytext=(-4 if late else 4, -10), textcoords="offset points", ha="right" if late else "left", fontsize=8,
        )  # fmt: skip
    ax.set(xlabel="stochastic passes", ylabel=f"{name} ± standard error", xscale="log", xlim=(2, len(passes)))
    return figure


def regression_band(
    x: Array,
    mean: Array,
    std: Array,
    *,
    total_std: Array | None = None,
    truth: tuple[Array, Array] | None = None,
    train: tuple[Array, Array] | None = None,
    z: float = 1.96,
) -> Figure:
    """Draw a one-dimensional regression: the mean, the band of the net's doubt, and that of doubt and noise together.

    Args:
        x: inputs ``(N,)``, in any order.
        mean: predictions at them.
        std: standard deviation across the passes (epistemic).
        total_std: standard deviation of the next observation.
        truth: inputs and values of the true function.
        train: inputs and targets that the net was trained on.
        z: half the width of a band in standard deviations, above 0; 1.96 holds 95 % of a Gaussian.

    Raises:
        UserInputError: if the lengths differ or ``z`` is out of its range.

    Example:
        >>> figure = regression_band([0.0, 1.0], [0.0, 1.0], [0.1, 0.2], train=([0.5], [0.4]))
        >>> [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
        ['±1.96 std of the passes', 'mean', 'training data']
    """
    check_range("z", z, low=0, open_low=True)
    inputs, middle, spread = (_array(values).ravel() for values in (x, mean, std))
    total = None if total_std is None else _array(total_std).ravel()
    for what, values in (("mean", middle), ("std", spread), ("total_std", total)):
        if values is not None and len(values) != len(inputs):
            raise UserInputError(f"expected one of {what} per input ({len(inputs)}), but got {len(values)}.")
    order = np.argsort(inputs)
    figure, ax = new_figure()
    bands = [(total, f"±{z:g} std with noise", "0.75"), (spread, f"±{z:g} std of the passes", COLORS[4])]
    for values, label, color in bands:
        if values is not None:
            low, high = (middle - z * values)[order], (middle + z * values)[order]
            ax.fill_between(inputs[order], low, high, color=color, alpha=0.5, linewidth=0, label=label)
    ax.plot(inputs[order], middle[order], color=COLORS[0], label="mean")
    if truth is not None:
        at = np.argsort(_array(truth[0]).ravel())
        ax.plot(
            _array(truth[0]).ravel()[at], _array(truth[1]).ravel()[at], color=COLORS[1], linestyle="--", label="truth"
        )
    if train is not None:
        ax.plot(*(_array(values).ravel() for values in train), "k.", markersize=4, label="training data")
    ax.set(xlabel="input", ylabel="target")
    ax.legend(fontsize=8, frameon=False)
    return figure


def _spread_out(values: np.ndarray[Any, Any], count: int) -> np.ndarray[Any, Any]:
    """Return up to ``count`` positions whose values are evenly spaced from the smallest to the largest."""
    if count >= len(values):
        return np.arange(len(values))
    wanted = np.linspace(values.max(), values.min(), count)
    return np.unique(np.abs(values[:, None] - wanted).argmin(axis=0))


def _names(labels: Sequence[str], count: int) -> Sequence[str]:
    if labels and len(labels) != count:
        raise UserInputError(f"expected one label per grouping ({count}), but got {len(labels)}.")
    return labels or [""] * count


def _array(values: Array) -> np.ndarray[Any, np.dtype[np.float64]]:
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu().double().numpy()
    return np.asarray(values, dtype=np.float64)


def _pictures(pictures: Array) -> np.ndarray[Any, np.dtype[np.float64]]:
    images = _array(pictures)
    if images.ndim == 3:
        return images
    if images.ndim == 4 and images.shape[1] in (1, 3):
        return images[:, 0] if images.shape[1] == 1 else images.transpose(0, 2, 3, 1)
    raise UserInputError(f"pictures must be (N, H, W), (N, 1, H, W) or (N, 3, H, W), but got shape {images.shape}.")


def _show(ax: Axes, image: np.ndarray[Any, Any]) -> None:
    low, high = image.min(), image.max()
    ax.imshow((image - low) / (high - low if high > low else 1), cmap="gray" if image.ndim == 2 else None)
    ax.grid(visible=False)
    ax.set(xticks=[], yticks=[])


def _plain(value: object) -> object:
    return value.item() if isinstance(value, torch.Tensor | np.generic) else value


def _caption(name: str, both: bool) -> str:
    return f"answer (truth, where another) and {name}" if both else name
