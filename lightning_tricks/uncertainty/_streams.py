"""The same measures from passes that arrive in pieces: memory for a few numbers per output, not for every pass."""

import copy
import math
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lightning_tricks._base import UserInputError, check_choice, check_range
from lightning_tricks.uncertainty.measures._classification import (
    as_float,
    check_probabilities,
    entropy,
    entropy_bias,
    vote_ratio,
    votes,
)
from lightning_tricks.uncertainty.measures._regression import predictive_quantile

Task = Literal["binary", "multiclass", "multilabel", "regression"]
Samples = Float[Tensor, "S B *out"]


class RunningMoments:
    """Mean and variance over the first axis of everything seen, by Chan's pairwise update.

    Values are taken relative to the first one, so that a spread of 1e-3 around 1000 survives single precision.

    Example:
        >>> moments = RunningMoments()
        >>> moments.update(torch.tensor([[1.0], [2.0]]))
        >>> moments.update(torch.tensor([[3.0]]))
        >>> moments.count, moments.mean, moments.variance()
        (3, tensor([2.]), tensor([1.]))

    Reference:
        Chan, Golub & LeVeque, "Algorithms for computing the sample variance" (1983).
    """

    def __init__(self) -> None:
        self.count = 0
        self._origin = self._mean = self._squares = torch.empty(0)

    def update(self, values: Float[Tensor, "s *shape"]) -> None:
        """Add ``s`` values per output."""
        values = as_float(values)
        if not self.count:
            self._origin = torch.where(values[0].isfinite(), values[0], 0)
            self._mean, self._squares = torch.zeros_like(values[0]), torch.zeros_like(values[0])
        # With the passes last and side by side, the order of a sum does not depend on the number of rows.
        values = (values - self._origin).movedim(0, -1).contiguous()
        new, total = values.shape[-1], self.count + values.shape[-1]
        mean = values.mean(dim=-1)
        step = mean - self._mean
        squares = (values - mean.unsqueeze(-1)).square_().sum(dim=-1)
        self._squares = self._squares + squares + step.square() * (self.count * new / total)
        self._mean = self._mean + step * (new / total)
        self.count = total

    def take(self, rows: Int[Tensor, " n"]) -> "RunningMoments":
        """Return the moments of some entries of the first axis, each as often as it is named."""
        part = RunningMoments()
        if self.count:
            part.count = self.count
            part._origin, part._mean, part._squares = (x[rows] for x in (self._origin, self._mean, self._squares))
        return part

    @property
    def mean(self) -> Float[Tensor, "*shape"]:
        """Mean of the values, in their unit."""
        return self._origin + self._mean

    def variance(self, *, ddof: int = 1) -> Float[Tensor, "*shape"]:
        """Sum of squared deviations over ``count - ddof``, in unit²; NaN for fewer than ``ddof + 1`` values."""
        return self._squares / (self.count - ddof) if self.count > ddof else torch.full_like(self._squares, math.nan)


class SampleStream:
    """Summarises the stochastic passes of one batch as they come.

    ================== ===============================================================================================
    key                meaning, shape (``out`` is what follows the batch axis; ``rest`` is ``out`` without the classes)
    ================== ===============================================================================================
    mean               mean of the passes, ``(B, *out)``
    std                standard deviation across the passes, ddof 1, ``(B, *out)``
    mc_error           Monte-Carlo standard error of ``mean``, ``std / sqrt(S)``, ``(B, *out)``
    n_samples          number of passes S, ``(B,)``
    quantile_Q         one per level of ``quantiles``, ``(B, *out)``
    samples            all passes, only if kept, ``(B, S, *out)``
    *classes*
    label              most probable class, or 1 where a yes has at least 0.5, ``(B, *rest)``
    confidence         its mean probability, ``(B, *rest)``
    margin             how far it is ahead of the runner-up, ``(B, *rest)``
    entropy            predictive entropy of ``mean``, nats, ``(B, *rest)``
    expected_entropy   mean entropy of the passes, nats, ``(B, *rest)``
    mutual_info        mutual information (BALD) in nats, corrected for the number of passes, ``(B, *rest)``
    variation_ratio    share of the passes that vote for another class than the winner, ``(B, *rest)``
    *regression*
    epistemic_variance ``std`` squared, ``(B, *out)``
    aleatoric_variance mean noise variance of the head, or ``1 / tau``; only where known
    total_variance     the sum of both; only where the noise is known
    ================== ===============================================================================================

    Args:
        task: ``"multiclass"``: probabilities with a class axis; ``"binary"`` and ``"multilabel"``: every number is the
            probability of a yes; ``"regression"``: values, or pairs ``(mean, log_variance)`` of a Gaussian head.
        quantiles: levels above 0 and below 1. They need the passes of the batch in memory. For a regression with known
            noise they are quantiles of the next observation, else of the passes.
        keep_samples: return all passes, too.
        class_dim: axis of the classes in the samples ``(s, B, ...)``, for ``"multiclass"``.
        tau: precision of the noise of a regression without a Gaussian head, in 1 / target unit².

    Raises:
        UserInputError: if an option is out of its range, the values do not fit the task, or fewer than 2 passes came.

    Example:
        >>> stream = SampleStream("multiclass")
        >>> stream.update(torch.tensor([[[0.9, 0.1]], [[0.7, 0.3]]]))  # two passes over one row
        >>> stream.update(torch.tensor([[[0.8, 0.2]]]))
        >>> summary = stream.compute()
        >>> summary["mean"], summary["label"], stream.count
        (tensor([[0.8000, 0.2000]]), tensor([0]), 3)
    """

    def __init__(
        self,
        task: Task,
        *,
        quantiles: Sequence[float] = (),
        keep_samples: bool = False,
        class_dim: int = 2,
        tau: float | None = None,
    ) -> None:
        self.task = check_choice("task", task, ["binary", "multiclass", "multilabel", "regression"])
        self.quantiles = [
            check_range("quantiles", level, low=0, high=1, open_low=True, open_high=True) for level in quantiles
        ]
        if tau is not None:
            if task != "regression":
                raise UserInputError(f'tau is the noise of a regression, but task is "{task}". Leave it out.')
            check_range("tau", tau, low=0, open_low=True)
        self.keep_samples = keep_samples
        self.class_dim = class_dim if task == "multiclass" else None
        self.tau = tau
        self._moments = RunningMoments()
        self._noise = RunningMoments()  # of the head's variance
        self._entropies = RunningMoments()
        self._votes: Tensor | None = None
        self._kept: list[Tensor] = []
        self._kept_noise: list[Tensor] = []

    @property
    def count(self) -> int:
        """Passes seen so far."""
        return self._moments.count

    def update(self, samples: Samples | tuple[Tensor, Tensor]) -> None:
        """Add ``s`` passes over the batch: ``(s, B, *out)``, or a pair of them for a Gaussian head."""
        values, log_variance = self._checked(samples)
        self._moments.update(values)
        if self.task != "regression":
            clipped = as_float(values).clamp(0, 1)
            self._entropies.update(entropy(clipped, self.class_dim))
            counts = votes(values, self.class_dim)
            self._votes = counts if self._votes is None else self._votes + counts
        if log_variance is not None:
            self._noise.update(as_float(log_variance).exp())
        if self.quantiles or self.keep_samples:
            self._kept.append(values)
            if log_variance is not None:
                self._kept_noise.append(log_variance)

    def take(self, rows: Int[Tensor, " n"]) -> "SampleStream":
        """Return a stream that goes on with some rows only, each as often as it is named; this one stays as it is.

        Example:
            >>> stream = SampleStream("regression")
            >>> stream.update(torch.tensor([[1.0, 5.0], [3.0, 5.0]]))  # two passes over two rows
            >>> part = stream.take(torch.tensor([0]))
            >>> part.update(torch.tensor([[5.0]]))
            >>> part.compute()["mean"], stream.compute()["mean"]
            (tensor([3.]), tensor([2., 5.]))
        """
        part = copy.copy(self)
        part._moments, part._noise, part._entropies = (
            moments.take(rows) for moments in (self._moments, self._noise, self._entropies)
        )
        part._votes = None if self._votes is None else self._votes[rows]
        part._kept = [values[:, rows] for values in self._kept]
        part._kept_noise = [values[:, rows] for values in self._kept_noise]
        return part

    def mc_error(self) -> Float[Tensor, "B *out"]:
        """Monte-Carlo standard error of the mean so far, in the unit of the samples."""
        self._check_count()
        return (self._moments.variance() / self.count).sqrt()

    def compute(self) -> dict[str, Tensor]:
        """Return the summaries of the table above; every tensor has the batch on its first axis."""
        self._check_count()
        mean, variance = self._moments.mean, self._moments.variance()
        summary = {"mean": mean, "std": variance.sqrt(), "mc_error": self.mc_error()}
        if self.task == "regression":
            summary |= self._variances(variance)
        else:
            summary |= self._uncertainties(mean.clamp(0, 1), variance)
        summary["n_samples"] = torch.full((len(mean),), self.count, device=mean.device)
        return summary | self._raw()

    def _variances(self, epistemic: Tensor) -> dict[str, Tensor]:
        parts = {"epistemic_variance": epistemic}
        if self._noise.count:
            parts["aleatoric_variance"] = self._noise.mean
        elif self.tau is not None:
            parts["aleatoric_variance"] = torch.full_like(epistemic, 1 / self.tau)
        if "aleatoric_variance" in parts:
            parts["total_variance"] = epistemic + parts["aleatoric_variance"]
        return parts

    def _uncertainties(self, mean: Tensor, variance: Tensor) -> dict[str, Tensor]:
        if self._votes is None:
            raise UserInputError("no pass has come yet; call update first.")
        dim = None if self.class_dim is None else self.class_dim % (mean.ndim + 1) - 1  # less the sample axis
        total, expected = entropy(mean, dim), self._entropies.mean
        information = total - expected + entropy_bias(mean, variance, self.count, dim)
        return {
            **_decision(mean, dim),
            "entropy": total,
            "expected_entropy": expected,
            "mutual_info": information.clamp_min(0),  # rounding
            "variation_ratio": torch.where(total.isnan(), torch.nan, vote_ratio(self._votes, self.count, dim)),
        }

    def _raw(self) -> dict[str, Tensor]:
        if not self._kept:
            return {}
        samples = torch.cat(self._kept)
        noise = torch.cat(self._kept_noise) if self._kept_noise else None
        tau = self.tau if noise is None else None
        raw = {
            f"quantile_{level:g}": predictive_quantile(samples, level, tau=tau, log_variance=noise)
            for level in self.quantiles
        }
        if self.keep_samples:
            raw["samples"] = samples.movedim(0, 1)
            if noise is not None:
                raw["samples_log_variance"] = noise.movedim(0, 1)
        return raw

    def _checked(self, samples: Samples | tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor | None]:
        values, log_variance = samples if isinstance(samples, tuple | list) else (samples, None)
        if log_variance is not None:
            if self.task != "regression" or self.tau is not None:
                raise UserInputError(
                    'a pair (mean, log_variance) is for task="regression" without tau, but got '
                    f"task={self.task!r}, tau={self.tau}."
                )
            if values.shape != log_variance.shape:
                raise UserInputError(
                    "mean and log_variance must have one shape, but got "
                    f"{tuple(values.shape)} and {tuple(log_variance.shape)}."
                )
        elif self._noise.count:
            raise UserInputError("earlier passes were pairs (mean, log_variance), but this one is a single tensor.")
        if self.count and self._moments.mean.shape != values.shape[1:]:
            raise UserInputError(
                f"every update must hold passes over the same batch of shape {tuple(self._moments.mean.shape)}, "
                f"but got samples of shape {tuple(values.shape)}."
            )
        if not self.count:
            self._check_first(values)
        return values, log_variance

    def _check_first(self, values: Tensor) -> None:
        axes = 3 if self.task == "multiclass" else 2
        if values.ndim < axes:
            layout = "(passes, rows, classes, ...)" if self.task == "multiclass" else "(passes, rows, ...)"
            raise UserInputError(f"samples must be {layout}, but got shape {tuple(values.shape)}.")
        if self.task != "regression":
            check_probabilities(values)

    def _check_count(self) -> None:
        if self.count < 2:
            raise UserInputError(f"expected at least 2 stochastic passes, but got {self.count}. Draw more samples.")


def _decision(mean: Tensor, class_dim: int | None) -> dict[str, Tensor]:
    if class_dim is None:
        label = (mean >= 0.5).long()
        return {"label": label, "confidence": torch.maximum(mean, 1 - mean), "margin": (2 * mean - 1).abs()}
    best = mean.topk(min(2, mean.shape[class_dim]), dim=class_dim)
    ahead = best.values.select(class_dim, 0)
    behind = best.values.select(class_dim, -1) if mean.shape[class_dim] > 1 else torch.zeros_like(ahead)
    return {"label": best.indices.select(class_dim, 0), "confidence": ahead, "margin": ahead - behind}
