"""Splits as plain index lists: the same on every rank and machine, because they are pure functions of a seed.

All of them stand on scikit-learn's splitters; what is added here are the three-part hold-out, time order with equal
times kept together, and a sentence when the data cannot be split as asked.

Example:
    >>> from lightning_tricks.data import splits
    >>> train, val, test = splits.holdout(10, (0.6, 0.2, 0.2), seed=0)
    >>> len(train), len(val), len(test)
    (6, 2, 2)
    >>> [len(fold.val) for fold in splits.k_fold(10, 5)]
    [2, 2, 2, 2, 2]
"""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lightning_tricks._base import UserInputError, check_range
from lightning_tricks.data._group_folds import cut_by_class_and_group, renamed_groups, stratified_group_folds
from lightning_tricks.data._times import check_known, sortable_times

Values = Sequence[Any] | npt.NDArray[Any]


class Fold(NamedTuple):
    """The rows of one fold."""

    train: list[int]
    val: list[int]


def holdout(
    n: int,
    fractions: Sequence[float] = (0.6, 0.2, 0.2),
    *,
    stratify: Values | None = None,
    groups: Values | None = None,
    time: Values | None = None,
    seed: int = 0,
) -> list[list[int]]:
    """Split ``n`` rows once, into as many parts as there are fractions.

    Args:
        n: number of rows, at least one per part.
        fractions: share of each part, each in (0, 1], summing to 1.
        stratify: one class per row; every part then holds the classes in about the same proportion.
        groups: one group per row (patient, document, ...); no group is in two parts. Fractions then hold only about.
        time: one time per row: numbers, dates, or text that reads as one of them (ISO, or one format of day, month
            and year); the first part is the oldest, the last the newest. Rows of equal time stay together. Excludes
            ``stratify`` and ``groups``.
        seed: of the shuffling. Rows are always shuffled, except by ``time``.

    Returns:
        One list of row numbers per part; together every row once.

    Raises:
        UserInputError: if the fractions do not sum to 1, or the data cannot be split so.

    Example:
        >>> train, test = holdout(6, (0.5, 0.5), groups=["a", "a", "b", "b", "c", "c"], seed=1)
        >>> sorted(train + test), len({0, 1} & set(train)) in (0, 2)
        ([0, 1, 2, 3, 4, 5], True)
    """
    shares = check_fractions(fractions)
    _check_columns(n, stratify=stratify, groups=groups, time=time)
    if n < len(shares):
        raise UserInputError(f"{len(shares)} parts need at least {len(shares)} rows, but got {n}. Add data.")
    if time is not None:
        if stratify is not None or groups is not None:
            raise UserInputError("time order excludes stratify and groups, but got both. Give one of them.")
        return _by_time(sortable_times(time), shares)
    if stratify is not None:
        _check_class_sizes(stratify, len(shares), "parts")
    parts: list[list[int]] = []
    rest = np.arange(n)
    for last in range(len(shares) - 1, 0, -1):  # the last part first, as train_test_split is usually chained
        share = round(shares[last] / math.fsum(shares[: last + 1]), 12)  # 0.25 + 1e-17 would take one row more
        kept, cut = _cut(rest, share, _take(stratify, rest), _take(groups, rest), seed)
        parts.insert(0, rest[cut].tolist())
        rest = rest[kept]
    return [rest.tolist(), *parts]


def k_fold(
    n: int,
    k: int = 5,
    *,
    stratify: Values | None = None,
    groups: Values | None = None,
    repeats: int = 1,
    seed: int = 0,
) -> list[Fold]:
    """Split ``n`` rows into ``k`` folds, each the validation set once; ``repeats`` times with other shuffles.

    Args:
        n: number of rows, at least ``k``.
        k: number of folds, at least 2.
        stratify: one class per row; every fold then holds the classes in about the same proportion.
        groups: one group per row; no group is in two folds of a repeat. With ``stratify`` both hold as far as they can.
        repeats: how often to split anew, at least 1.
        seed: of the shuffling; repeat ``r`` is a function of ``(seed, r)`` alone.

    Returns:
        ``k * repeats`` folds, repeat by repeat.

    Raises:
        UserInputError: if a class has fewer rows than ``k``, or there are fewer groups than ``k``.

    Example:
        >>> folds = k_fold(6, 3, stratify=[0, 0, 0, 1, 1, 1])
        >>> [sorted(row // 3 for row in fold.val) for fold in folds]
        [[0, 1], [0, 1], [0, 1]]
    """
    from sklearn.model_selection import GroupKFold, KFold, StratifiedKFold

    check_range("k", k, low=2)
    check_range("repeats", repeats, low=1)
    _check_columns(n, stratify=stratify, groups=groups)
    if n < k:
        raise UserInputError(f"{k} folds need at least {k} rows, but got {n}. Lower k or add data.")
    if groups is not None and (found := len(np.unique(np.asarray(groups)))) < k:
        raise UserInputError(f"{k} folds need at least {k} groups, but got {found}. Lower k or add groups.")
    if stratify is not None:
        _check_class_sizes(stratify, k, "folds")
    splitters: dict[tuple[bool, bool], Callable[..., Any]] = {  # stratified, grouped
        (False, False): KFold,
        (True, False): StratifiedKFold,
        (False, True): GroupKFold,
    }
    folds: list[Fold] = []
    for repeat in range(repeats):
        draw = (seed + repeat) % 2**32
        if stratify is not None and groups is not None:
            vals = stratified_group_folds(k, np.asarray(stratify), renamed_groups(groups, draw))
            folds += [Fold(np.setdiff1d(np.arange(n), val).tolist(), val.tolist()) for val in vals]
            continue
        make = splitters[stratify is not None, groups is not None]
        splitter = make(n_splits=k, shuffle=True, random_state=draw)
        folds += from_sklearn(splitter, n, labels=stratify, groups=groups)
    return folds


def time_series(
    n: int, k: int = 5, *, time: Values | None = None, gap: int = 0, window: int | None = None
) -> list[Fold]:
    """Split rows in order of time: fold ``i`` is trained on what came before its validation block, never after.

    Args:
        n: number of rows.
        k: number of folds, at least 2; the oldest ``1/(k+1)`` of the rows is only ever trained on.
        time: one time per row, as for :func:`holdout`; row order if not given. Rows as old as the first of a
            validation block are left out of the fold's training part.
        gap: rows left out between those before the validation block's first time and validation, at least 0.
        window: greatest number of training rows (the newest before the gap), at least 1; all of the past if not given.

    Returns:
        ``k`` folds, oldest validation block first.

    Raises:
        UserInputError: if there are too few rows, or too few different times, for ``k`` folds and the gap.

    Example:
        >>> time_series(6, 2)
        [Fold(train=[0, 1], val=[2, 3]), Fold(train=[0, 1, 2, 3], val=[4, 5])]
        >>> time_series(6, 2, time=[0, 1, 1, 2, 2, 3])
        [Fold(train=[0], val=[2, 3]), Fold(train=[0, 1, 2], val=[4, 5])]
    """
    from sklearn.model_selection import TimeSeriesSplit

    check_range("k", k, low=2)
    check_range("gap", gap, low=0)
    if window is not None:
        check_range("window", window, low=1)
    _check_columns(n, time=time)
    moments = np.arange(n) if time is None else sortable_times(time)
    order = np.argsort(moments, kind="stable")
    times = moments[order]
    blocks = [val for _, val in TimeSeriesSplit(k).split(order)] if n > k else []
    ends = [int(np.searchsorted(times, times[val[0]])) - gap for val in blocks]  # first row of that time, less the gap
    if not ends or ends[0] < 1:
        raise UserInputError(
            f"{k} folds in time order with a gap of {gap} leave no row to train the first fold on, with {n} rows of "
            f"{len(np.unique(times))} different times. Lower k or gap, use finer times, or add data."
        )
    starts = [0 if window is None else max(0, end - window) for end in ends]
    return [
        Fold(order[start:end].tolist(), order[val].tolist())
        for start, end, val in zip(starts, ends, blocks, strict=True)
    ]


def from_sklearn(splitter: Any, n: int, *, labels: Values | None = None, groups: Values | None = None) -> list[Fold]:
    """Return the folds of any scikit-learn splitter (an object with ``split(X, y, groups)``).

    Raises:
        UserInputError: with scikit-learn's reason, if it refuses the data.

    Example:
        >>> from sklearn.model_selection import LeaveOneOut
        >>> len(from_sklearn(LeaveOneOut(), 3))
        3
    """
    if not callable(getattr(splitter, "split", None)):
        raise UserInputError(f"a splitter needs a method split(X, y, groups), but got {splitter!r}.")
    y = None if labels is None else np.asarray(labels)
    g = None if groups is None else np.asarray(groups)
    try:
        pairs = list(splitter.split(np.zeros((n, 1)), y, g))
    except ValueError as error:
        raise UserInputError(f"{type(splitter).__name__} cannot split these {n} rows: {error}") from None
    return [Fold([int(i) for i in train], [int(i) for i in val]) for train, val in pairs]


def check_fractions(fractions: Sequence[float]) -> list[float]:
    """Return the fractions if each lies in (0, 1] and they sum to 1.

    Raises:
        UserInputError: with the sum that came.

    Example:
        >>> check_fractions((0.6, 0.3))
        Traceback (most recent call last):
        ...
        lightning_tricks._base._messages.UserInputError: split fractions must sum to 1, but (0.6, 0.3) sum to 0.9. ...
    """
    shares = [float(share) for share in fractions]
    for share in shares:
        check_range("every split fraction", share, low=0, high=1, open_low=True)
    total = math.fsum(shares)
    if not math.isclose(total, 1, abs_tol=1e-6):
        raise UserInputError(
            f"split fractions must sum to 1, but {tuple(fractions)} sum to {total:.6g}. "
            "Use for example (0.6, 0.2, 0.2)."
        )
    return shares


def check_parts(parts: Mapping[str, Sequence[int]], n: int) -> dict[str, list[int]]:
    """Return index lists as lists of int if they lie within ``n`` rows and no row is used twice.

    Rows in no part are allowed: leaving some out is a choice.

    Args:
        parts: rows by part name.
        n: number of rows.

    Raises:
        UserInputError: naming the parts that overlap, the row out of range, or the part that is empty.

    Example:
        >>> check_parts({"train": [0, 1], "val": [1, 2]}, 3)
        Traceback (most recent call last):
        ...
        lightning_tricks._base._messages.UserInputError: splits must not overlap, but train and val share 1 row ...
    """
    owner: dict[int, str] = {}
    checked = {name: [int(row) for row in rows] for name, rows in parts.items()}
    for name, rows in checked.items():
        if not rows:
            raise UserInputError(f"every part needs at least one row, but {name} is empty. Leave it out or fill it.")
        for row in rows:
            if not 0 <= row < n:
                raise UserInputError(f"rows of a split must be in [0, {n - 1}], but {name} has {row}.")
        shared = [row for row in rows if row in owner] or _twice(rows)
        if shared:
            other = owner.get(shared[0], name)
            count = f"{len(shared)} row" + "s" * (len(shared) > 1)
            raise UserInputError(
                f"splits must not overlap, but {other} and {name} share {count} (first: {shared[0]}). "
                "A model tested on what it was trained on tells nothing: remove them from one part."
            )
        owner.update(dict.fromkeys(rows, name))
    return checked


def _twice(rows: Sequence[int]) -> list[int]:
    seen: set[int] = set()
    return [row for row in rows if row in seen or seen.add(row)]  # type: ignore[func-returns-value]


def _take(column: Values | None, rows: npt.NDArray[Any]) -> npt.NDArray[Any] | None:
    return None if column is None else np.asarray(column)[rows]


def _check_columns(n: int, **columns: Values | None) -> None:
    for name, column in columns.items():
        if column is not None and len(column) != n:
            raise UserInputError(f"{name} needs one value per row: {n} rows, but got {len(column)} values.")
        if column is not None and name != "time":  # for times see `sortable_times`
            check_known(name, column)


def _check_class_sizes(labels: Values, needed: int, what: str) -> None:
    classes, counts = np.unique(np.asarray(labels), return_counts=True)
    if counts.min() < needed:
        few = int(counts.argmin())
        raise UserInputError(
            f"{needed} stratified {what} need at least {needed} samples of each class, but class {classes[few]!s} has "
            f"{counts[few]}. Add samples, merge or drop the class, or split without stratifying."
        )


def _cut(
    rows: npt.NDArray[Any], share: float, classes: npt.NDArray[Any] | None, groups: npt.NDArray[Any] | None, seed: int
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Return the positions to keep and those (a ``share``) to cut off."""
    from sklearn.model_selection import GroupShuffleSplit, train_test_split

    seed %= 2**32  # what NumPy takes
    try:
        if groups is None:
            positions = np.arange(len(rows))
            kept, cut = train_test_split(positions, test_size=share, stratify=classes, random_state=seed)
        elif classes is None:
            kept, cut = next(GroupShuffleSplit(1, test_size=share, random_state=seed).split(rows, None, groups))
        else:
            kept, cut = cut_by_class_and_group(share, classes, renamed_groups(groups, seed))
    except ValueError as error:
        raise UserInputError(
            f"{len(rows)} rows cannot give up a part of {share:.0%} as asked: {error} Change the fractions or add data."
        ) from None
    if not len(kept) or not len(cut):
        raise UserInputError(f"a part of {share:.0%} of {len(rows)} rows would be empty. Add data or groups.")
    return kept, cut


def _by_time(time: npt.NDArray[Any], shares: Sequence[float]) -> list[list[int]]:
    order = np.argsort(time, kind="stable")
    bounds = [0]
    for share in np.cumsum(shares)[:-1]:
        bound = round(float(share) * len(order))
        while 0 < bound < len(order) and time[order[bound]] == time[order[bound - 1]]:
            bound += 1  # equal times stay in the older part
        bounds.append(bound)
    bounds.append(len(order))
    if min(np.diff(bounds)) < 1:
        raise UserInputError(
            f"{len(shares)} parts in time order would leave one empty: {len(order)} rows have only "
            f"{len(np.unique(time))} different times. Use finer times or fewer parts."
        )
    return [order[start:end].tolist() for start, end in pairwise(bounds)]
