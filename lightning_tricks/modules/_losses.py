"""Losses as pure functions, the same for hard and soft targets."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def smoothed_targets(y: Tensor, task: str, num_classes: int, smoothing: float, *, dtype: torch.dtype) -> Tensor:
    """Return probabilities shaped like the logits, or class numbers where nothing has to be spread.

    Smoothing moves the share ``smoothing`` of each target evenly to all classes (to both classes of each label for
    binary and multilabel).
    """
    if task == "multiclass":
        if not y.is_floating_point():
            if smoothing == 0:
                return y
            y = F.one_hot(y.long(), num_classes)
        return y.to(dtype) * (1 - smoothing) + smoothing / num_classes
    return y.to(dtype) * (1 - smoothing) + smoothing / 2


def classification_loss(logits: Tensor, targets: Tensor, y: Tensor, task: str, weights: Tensor | None) -> Tensor:
    """Return the weighted mean cross-entropy in nats (per label for multilabel).

    The mean divides by the weights of the true classes, ``sum w_i l_i / sum w_i``, for hard and soft targets alike
    (torch divides by the number of samples for soft ones), so that a one-hot target gives the hard target's loss.

    Args:
        logits: ``(B, C)`` for multiclass, ``(B,)`` for binary, ``(B, L)`` for multilabel.
        targets: what :func:`smoothed_targets` returned for ``y``.
        y: the targets as they came.
        task: which of the three.
        weights: one per class; ``(2,)`` for binary; one per positive label ``(L,)`` for multilabel.
    """
    if task == "multiclass":
        if weights is None:
            return F.cross_entropy(logits, targets.long() if not targets.is_floating_point() else targets)
        total = F.cross_entropy(
            logits, targets.long() if not targets.is_floating_point() else targets, weight=weights, reduction="sum"
        )
        mass = weights[y.long()].sum() if not y.is_floating_point() else (y.to(weights.dtype) @ weights).sum()
        return total / mass
    if weights is None:
        return F.binary_cross_entropy_with_logits(logits, targets)
    if task == "multilabel":
        return F.binary_cross_entropy_with_logits(logits, targets, pos_weight=weights)
    per_sample = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    w = weights[0] * (1 - y.to(logits.dtype)) + weights[1] * y.to(logits.dtype)
    return (w * per_sample).sum() / w.sum()


def gaussian_nll(mean: Tensor, log_variance: Tensor, y: Tensor) -> Tensor:
    """Return the mean negative log-likelihood of a Gaussian in nats, with its constant (Nix & Weigend 1994).

    Args:
        mean: predicted mean, any shape.
        log_variance: logarithm of the predicted variance, the same shape.
        y: targets, the same shape.
    """
    return 0.5 * (math.log(2 * math.pi) + log_variance + (y - mean).square() * (-log_variance).exp()).mean()
