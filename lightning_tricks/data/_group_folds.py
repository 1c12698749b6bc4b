"""Folds and parts that keep groups whole and classes in proportion, none of them empty."""

import warnings
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

FINEST = 20  # folds for a share that is not 1/k: more take longer, and hold fewer groups each


def renamed_groups(groups: Sequence[Any] | npt.NDArray[Any], seed: int) -> npt.NDArray[Any]:
    """Return the groups under other names at random: a shuffle that keeps the balance of classes.

    Before 1.8, ``StratifiedGroupKFold(shuffle=True)`` dealt groups out in an order that ignored their classes.
    """
    _, codes = np.unique(np.asarray(groups), return_inverse=True)
    names: npt.NDArray[Any] = np.random.default_rng(seed).permutation(int(codes.max()) + 1)
    return names[codes]


def stratified_group_folds(k: int, labels: npt.NDArray[Any], groups: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
    """Return the rows of ``k`` folds, each with at least one group.

    Up to 1.9.1 at least, ``StratifiedGroupKFold`` leaves a fold empty where rounding makes two groups in one fold look
    better balanced; for some data in whatever order the groups come. Then a group moves into the empty fold.

    Args:
        k: number of folds, at most the number of groups.
        labels: ``(n,)`` one class per row.
        groups: ``(n,)`` one group per row.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    _, classes = np.unique(labels, return_inverse=True)
    _, codes = np.unique(groups, return_inverse=True)
    with warnings.catch_warnings():  # of a rare class there is none in some folds, but some in a part of several
        warnings.filterwarnings("ignore", "The least populated class in y", UserWarning)
        folds = [fold for _, fold in StratifiedGroupKFold(k).split(classes, classes, groups)]
    held = np.empty(int(codes.max()) + 1, dtype=np.int64)  # the fold of each group
    for i, fold in enumerate(folds):
        held[codes[fold]] = i
    rows = np.bincount(codes)
    for empty in np.setdiff1d(np.arange(k), held):
        crowded = np.flatnonzero(np.bincount(held, minlength=k)[held] > 1)  # groups that are not alone in their fold
        fullest = held[crowded][np.argmax(np.bincount(held, weights=rows, minlength=k)[held[crowded]])]
        of_fold = crowded[held[crowded] == fullest]
        held[of_fold[np.argmin(rows[of_fold])]] = empty
    return [np.flatnonzero(held[codes] == i) for i in range(k)]


def cut_by_class_and_group(
    share: float, classes: npt.NDArray[Any], groups: npt.NDArray[Any]
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Return the positions outside and inside of some stratified folds: of one if the share is about ``1/k``."""
    names, codes, sizes = np.unique(classes, return_inverse=True, return_counts=True)
    most = min(max(FINEST, round(1 / share)), len(np.unique(groups)), int(sizes.max()))  # folds that scikit-learn makes
    wanted, k = _nearest_ratio(share, most)
    folds = stratified_group_folds(k, codes, groups)
    chosen = np.arange(1)
    if wanted > 1:  # neighbouring folds whose number of rows, of each class and of all, comes nearest to the share
        of_class = [np.bincount(codes[fold], minlength=len(names)) / sizes for fold in folds]
        parts = np.column_stack([of_class, [len(fold) / len(codes) for fold in folds]])  # (k, C + 1)
        runs = [np.arange(start, start + length) % k for length in range(1, k) for start in range(k)]
        chosen = min(runs, key=lambda run: float(np.abs(parts[run].sum(axis=0) - share).mean()))
    cut = np.sort(np.concatenate([folds[i] for i in chosen]))
    return np.setdiff1d(np.arange(len(codes)), cut), cut


def _nearest_ratio(share: float, most: int) -> tuple[int, int]:
    """Return ``p`` and ``q``, at most ``most`` but at least 2, whose ratio within (0, 1) is nearest to the share."""
    least = Fraction(1, max(2, most))
    return min(max(Fraction(share).limit_denominator(least.denominator), least), 1 - least).as_integer_ratio()
