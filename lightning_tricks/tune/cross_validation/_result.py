"""What a cross-validation found."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean, stdev
from typing import Any

import torch
from torch import Tensor

from lightning_tricks._base import UserInputError, check_choice

Predictions = Tensor | dict[str, Tensor] | tuple[Tensor, ...]


@dataclass(frozen=True)
class FoldResult:
    """What one fold found.

    Attributes:
        scores: metrics of the held-out rows by name.
        rows: the held-out rows, in the order of the predictions.
        train_size: number of training rows.
        predictions: what ``predict_step`` returned, one per row; None if the model cannot predict.
    """

    scores: dict[str, float]
    rows: list[int]
    train_size: int
    predictions: Predictions | None


@dataclass(frozen=True)
class CVResult:
    """Scores of all folds and predictions for every row by the model that did not see it.

    Attributes:
        folds: each fold's result, in order.
        rows: the rows that were held out, ascending.
        predictions: out-of-fold predictions in the order of ``rows``: a tensor ``(N, ...)``, or a dict of such; with
            repeats ``(repeats, N, ...)``. None if the model cannot predict.
        repeats: how often every row was held out; 1 if a ``splitter`` did so unevenly.

    Example:
        >>> folds = [FoldResult({"val_acc": score}, [i], 1, torch.tensor([i])) for i, score in enumerate((0.8, 0.9))]
        >>> result = CVResult.of(folds, repeats=1)
        >>> round(result.mean("val_acc"), 3), round(result.standard_error("val_acc"), 3), result.predictions
        (0.85, 0.05, tensor([0, 1]))
        >>> print(result)
        2 folds  val_acc 0.85 ± 0.05
    """

    folds: tuple[FoldResult, ...]
    rows: list[int]
    predictions: Predictions | None
    repeats: int = 1

    @classmethod
    def of(cls, folds: Sequence[FoldResult], *, repeats: int = 1) -> "CVResult":
        """Put the results of all folds together."""
        size = len(folds) // repeats
        groups = [folds[i * size : (i + 1) * size] for i in range(repeats)]
        rows = sorted({row for fold in groups[0] for row in fold.rows})
        return cls(tuple(folds), rows, _in_order(groups), repeats)

    @property
    def metrics(self) -> list[str]:
        """Names of the metrics that every fold has."""
        return sorted(set.intersection(*(set(fold.scores) for fold in self.folds)))

    def scores(self, metric: str) -> list[float]:
        """Return the scores of all folds."""
        check_choice("metric", metric, self.metrics)
        return [fold.scores[metric] for fold in self.folds]

    def mean(self, metric: str) -> float:
        """Return the mean score over the folds."""
        return fmean(self.scores(metric))

    def standard_error(self, metric: str, *, corrected: bool = False) -> float:
        """Return the standard error of the mean: the folds' standard deviation over the root of their number.

        Training sets of different folds overlap, so this is too small (Bengio & Grandvalet 2004). ``corrected=True``
        multiplies the variance by ``1/J + held_out/trained`` instead of ``1/J``, for comparing models (Nadeau & Bengio
        2003, equation 9).
        """
        scores = self.scores(metric)
        if len(scores) < 2:
            raise UserInputError("a standard error needs at least 2 folds, but there is 1.")
        share = 1 / len(scores)
        if corrected:
            share += fmean(len(fold.rows) / fold.train_size for fold in self.folds)
        return stdev(scores) * math.sqrt(share)

    def __str__(self) -> str:
        parts = [f"{name} {self.mean(name):.4g} ± {self.standard_error(name):.2g}" for name in self.metrics]
        return "  ".join([f"{len(self.folds)} folds", *parts])


def _in_order(groups: Sequence[Sequence[FoldResult]]) -> Predictions | None:
    """Return predictions in ascending order of rows, with an axis of repeats if there are several."""
    if any(fold.predictions is None for folds in groups for fold in folds):
        return None
    ordered = []
    for folds in groups:
        order = torch.tensor([row for fold in folds for row in fold.rows]).argsort()
        ordered.append(_map([fold.predictions for fold in folds], partial(_cat_in_order, order=order)))
    return ordered[0] if len(ordered) == 1 else _map(ordered, torch.stack)


def _cat_in_order(parts: list[Tensor], order: Tensor) -> Tensor:
    return torch.cat(parts)[order]


def _map(parts: Sequence[Any], combine: Callable[[list[Tensor]], Tensor]) -> Predictions:
    """Combine tensors, or the tensors at each place of equal dicts or tuples."""
    first = parts[0]
    if isinstance(first, Mapping):
        return {name: combine([part[name] for part in parts]) for name in first}
    if isinstance(first, tuple):
        return tuple(combine(list(same)) for same in zip(*parts, strict=True))
    return combine(list(parts))


def collect(batches: Sequence[Any]) -> Predictions:
    """Put the batches that ``trainer.predict`` returned end to end, on the CPU.

    Raises:
        UserInputError: if they are not tensors, nor dicts or tuples of tensors.
    """
    first = batches[0]
    inside = list(first.values()) if isinstance(first, Mapping) else first if isinstance(first, tuple) else [first]
    if not all(isinstance(value, Tensor) for value in inside):
        raise UserInputError(
            "predict_step must return a tensor, or a dict or tuple of tensors, with one row per sample, but it "
            f"returned a {type(first).__name__}. Change it, or pass predict=False."
        )
    return _map(batches, lambda parts: torch.cat([part.detach().cpu() for part in parts]))


def count_rows(predictions: Predictions) -> int:
    """Return for how many samples there are predictions."""
    if isinstance(predictions, Tensor):
        return len(predictions)
    return len(next(iter(predictions.values() if isinstance(predictions, Mapping) else predictions)))
