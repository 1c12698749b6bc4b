"""Splits: every row once, proportions and groups kept, no look into the future, equal on all ranks."""

from collections import Counter

import numpy as np
import pytest
from helpers import run_ranks
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.model_selection import KFold, StratifiedGroupKFold, StratifiedKFold, TimeSeriesSplit

from lightning_tricks._base import UserInputError
from lightning_tricks.data import splits
from lightning_tricks.data._group_folds import renamed_groups

quick = settings(max_examples=40, deadline=None)
fractions = st.lists(st.integers(1, 5), min_size=2, max_size=4).map(lambda parts: [part / sum(parts) for part in parts])


@quick
@given(st.integers(4, 200), fractions, st.integers(0, 2**70))
def test_holdout_uses_every_row_once(n, shares, seed):
    assume(n * min(shares) >= 4)
    parts = splits.holdout(n, shares, seed=seed)
    assert sorted(row for part in parts for row in part) == list(range(n))
    assert all(abs(len(part) - n * share) <= len(shares) for part, share in zip(parts, shares, strict=True))
    assert parts == splits.holdout(n, shares, seed=seed)


@quick
@given(st.lists(st.integers(0, 3), min_size=60, max_size=200), st.integers(0, 5))
def test_holdout_keeps_class_proportions(labels, seed):
    assume(min(Counter(labels).values()) >= 10)
    parts = splits.holdout(len(labels), stratify=labels, seed=seed)
    for part, share in zip(parts, (0.6, 0.2, 0.2), strict=True):
        counts = Counter(labels[row] for row in part)
        assert all(abs(counts[c] - share * n) <= 2 for c, n in Counter(labels).items())


@quick
@given(st.lists(st.integers(0, 12), min_size=40, max_size=120), st.booleans(), st.integers(0, 5))
def test_holdout_keeps_groups_whole(groups, stratified, seed):
    assume(len(set(groups)) >= 8)
    labels = [row % 2 for row in range(len(groups))] if stratified else None
    parts = splits.holdout(len(groups), groups=groups, stratify=labels, seed=seed)
    members = [{groups[row] for row in part} for part in parts]
    assert sum(map(len, members)) == len(set(groups))
    assert sorted(row for part in parts for row in part) == list(range(len(groups)))


@pytest.mark.parametrize("stratify", [None, np.arange(100) % 2])
def test_small_groups_fill_the_parts_as_asked_by_a_seed(stratify):
    def sizes(shares):
        return [len(part) for part in splits.holdout(100, shares, groups=np.arange(100), stratify=stratify)]

    assert sizes((0.5, 0.25, 0.25)) == [50, 25, 25]
    assert sizes((0.9, 0.1)) == [90, 10]
    drawn = [
        splits.holdout(100, groups=np.arange(100), stratify=stratify, seed=seed) for seed in (3, 3 + 2**32, 35, 67)
    ]
    assert drawn[0] == drawn[1]
    assert drawn[0] != drawn[2] != drawn[3] != drawn[0], "the seed counts beyond its last bits"


@settings(max_examples=12, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=2, max_size=3), st.integers(0, 5))
def test_parts_by_class_and_group_are_as_large_as_asked(weights, seed):
    shares = [weight / sum(weights) for weight in weights]
    groups = np.random.default_rng(seed).integers(0, 150, 600)
    labels = np.where(np.arange(600) < 6, 2, np.arange(600) % 2)  # one class is rare: scikit-learn would warn
    parts = splits.holdout(600, shares, groups=groups, stratify=labels, seed=seed)
    assert sorted(row for part in parts for row in part) == list(range(600))
    for part, share in zip(parts, shares, strict=True):
        assert len(part) / 600 == pytest.approx(share, abs=0.03)
        assert (labels[part] == 1).sum() / (labels == 1).sum() == pytest.approx(share, abs=0.04)


@pytest.mark.parametrize("share", [0.5, 0.25, 0.2, 0.1, 0.05, 0.04, 1 / 3])
def test_one_kth_by_class_and_group_is_one_fold_of_scikit_learns(share):
    groups, labels = np.arange(400) // 4, np.arange(400) % 3
    names = renamed_groups(groups, 7)
    train, val = next(StratifiedGroupKFold(round(1 / share)).split(groups, labels, names))
    assert splits.holdout(400, (1 - share, share), groups=groups, stratify=labels, seed=7) == [
        train.tolist(),
        val.tolist(),
    ]


def test_few_groups_give_the_nearest_part_that_they_can():
    groups = np.repeat(np.arange(4), 10)
    for share, nearest in ((0.9, 30), (0.7, 30), (0.4, 20), (0.1, 10)):
        parts = splits.holdout(40, (1 - share, share), groups=groups, stratify=np.arange(40) % 2)
        assert [len(part) for part in parts] == [40 - nearest, nearest]


@quick
@given(st.lists(st.integers(0, 30), min_size=20, max_size=100))
def test_holdout_by_time_keeps_equal_times_together(time):
    assume(max(Counter(time).values()) <= 3)
    old, middle, new = splits.holdout(len(time), time=time)
    assert max(time[row] for row in old) < min(time[row] for row in middle)
    assert max(time[row] for row in middle) < min(time[row] for row in new)
    assert [*old, *middle, *new] == sorted(range(len(time)), key=time.__getitem__), "all rows; equal times as they came"
    bounds = np.cumsum([len(old), len(middle)])
    assert all(0 <= bound - round(share * len(time)) <= 2 for bound, share in zip(bounds, (0.6, 0.8), strict=True))


@quick
@given(st.integers(10, 80), st.integers(2, 5), st.integers(1, 3), st.integers(0, 9))
def test_k_fold_holds_every_row_out_once_per_repeat(n, k, repeats, seed):
    folds = splits.k_fold(n, k, repeats=repeats, seed=seed)
    assert len(folds) == k * repeats
    for start in range(0, len(folds), k):
        held_out = [row for fold in folds[start : start + k] for row in fold.val]
        assert sorted(held_out) == list(range(n))
    assert all(sorted(fold.train + fold.val) == list(range(n)) for fold in folds)


def test_folds_are_scikit_learns():
    labels = np.arange(60) % 3
    ours = splits.k_fold(60, 5, stratify=labels, seed=4)
    theirs = StratifiedKFold(5, shuffle=True, random_state=4).split(labels, labels)
    assert ours == [(train.tolist(), val.tolist()) for train, val in theirs]
    assert (
        splits.k_fold(60, 5, seed=4)[1].val == list(KFold(5, shuffle=True, random_state=4).split(labels))[1][1].tolist()
    )


def test_seed_is_zero_if_none_is_given():
    assert splits.holdout(40) == splits.holdout(40, (0.6, 0.2, 0.2), seed=0) != splits.holdout(40, seed=1)
    assert splits.k_fold(40) == splits.k_fold(40, 5, repeats=1, seed=0) != splits.k_fold(40, seed=1)


def test_as_many_rows_as_parts_are_enough():
    assert sorted(splits.holdout(3)) == [[0], [1], [2]]
    assert sorted(fold.val for fold in splits.k_fold(3, 3)) == [[0], [1], [2]]


@pytest.mark.parametrize("name", ["stratify", "groups", "time"])
@pytest.mark.parametrize("values", [9, 11])
def test_every_column_has_one_value_per_row(name, values):
    column = {name: [0, 1] * 4 + [0] * (values - 8)}
    for split in (splits.holdout, splits.time_series if name == "time" else splits.k_fold):
        with pytest.raises(UserInputError, match=f"^{name} needs one value per row: 10 rows, but got {values} values"):
            split(10, **column)


def test_a_repeat_is_a_function_of_its_number():
    assert splits.k_fold(30, 3, repeats=3, seed=7)[3:6] == splits.k_fold(30, 3, seed=8)


def test_grouped_and_stratified_folds():
    groups = np.repeat(np.arange(20), 5)
    labels = np.repeat(np.arange(20) % 2, 5)
    for stratify in (None, labels):
        for fold in splits.k_fold(100, 5, groups=groups, stratify=stratify):
            assert not set(groups[fold.train]) & set(groups[fold.val])
            if stratify is not None:
                assert labels[fold.val].mean() == 0.5


def test_grouped_and_stratified_folds_are_a_function_of_the_seed():
    groups = np.repeat(np.arange(20), 5)
    rows = {"groups": groups, "stratify": groups % 2}
    folds = splits.k_fold(100, 5, **rows, seed=3)
    assert folds == splits.k_fold(100, 5, **rows, seed=3) == splits.k_fold(100, 5, **rows, seed=3 + 2**32)
    assert folds != splits.k_fold(100, 5, **rows, seed=4)
    assert len(splits.k_fold(100, 20, groups=groups)) == 20, "as many groups as folds are enough"


@quick
@given(st.integers(1, 30), st.integers(2, 6), st.integers(0, 4), st.none() | st.integers(1, 9))
def test_time_series_splits_whatever_scikit_learn_can_split(n, k, gap, window):
    theirs = TimeSeriesSplit(k, gap=gap, max_train_size=window).split(range(n))
    try:
        expected = [(train.tolist(), val.tolist()) for train, val in theirs]
    except ValueError:
        expected = None
    if expected is None or not all(train for train, _ in expected):
        with pytest.raises(UserInputError, match=rf"^{k} folds in time order with a gap of {gap} leave no row"):
            splits.time_series(n, k, gap=gap, window=window)
    else:
        assert splits.time_series(n, k, gap=gap, window=window) == expected


def test_time_series_without_arguments_has_five_folds_and_no_gap():
    assert splits.time_series(12) == splits.time_series(12, 5, gap=0)


def test_equal_times_keep_the_order_of_the_rows():
    time = np.arange(200) // 40  # more than an unstable sort leaves in order
    assert splits.time_series(200, 4, time=time) == splits.time_series(200, 4)


@quick
@given(
    st.lists(st.integers(0, 8), min_size=4, max_size=40),
    st.integers(2, 4),
    st.integers(0, 3),
    st.none() | st.integers(1, 9),
)
def test_training_rows_are_older_than_the_held_out_block_also_where_times_are_equal(time, k, gap, window):
    assume(len(time) > k)
    order = sorted(range(len(time)), key=time.__getitem__)
    blocks = [[order[i] for i in val] for _, val in TimeSeriesSplit(k).split(order)]
    older = [[row for row in order if time[row] < time[val[0]]] for val in blocks]
    past = [rows[: max(0, len(rows) - gap)] for rows in older]
    if not all(past):
        with pytest.raises(UserInputError, match=f"with {len(time)} rows of {len(set(time))} different times. Lower"):
            splits.time_series(len(time), k, time=time, gap=gap, window=window)
    else:
        folds = splits.time_series(len(time), k, time=np.array(time), gap=gap, window=window)
        assert folds == [(rows[-(window or 99) :], val) for rows, val in zip(past, blocks, strict=True)]


def test_rows_of_one_day_are_not_trained_on_for_that_day():
    assert splits.time_series(9, 2, time=["2024-01-01"] * 2 + ["2024-01-02"] * 3 + ["2024-01-03"] * 4) == [
        ([0, 1], [3, 4, 5]),
        ([0, 1, 2, 3, 4], [6, 7, 8]),
    ]
    with pytest.raises(UserInputError, match="leave no row to train the first fold on, with 9 rows of 2 different"):
        splits.time_series(9, 2, time=[0] * 5 + [1] * 4)


def test_time_series_never_looks_ahead():
    time = np.random.default_rng(0).permutation(40)
    for fold in splits.time_series(40, 4, time=time, gap=2):
        assert time[fold.train].max() + 2 < time[fold.val].min()
    ours = splits.time_series(40, 4, window=10)
    assert [fold.val for fold in ours] == [val.tolist() for _, val in TimeSeriesSplit(4).split(range(40))]
    assert all(len(fold.train) <= 10 for fold in ours)


def on_rank(rank):
    np.random.seed(rank)  # noqa: NPY002 - global streams differ between ranks
    labels = np.arange(50) % 2
    return splits.holdout(50, stratify=labels, seed=1), splits.k_fold(50, 5, groups=np.arange(50) // 5, seed=1)


def test_all_ranks_split_alike():
    one, two = run_ranks(on_rank)
    assert one == two


def test_splitting_moves_no_global_stream():
    before = np.random.get_state()[1].tolist()  # noqa: NPY002
    splits.holdout(50, groups=np.arange(50) // 5)
    splits.k_fold(50, stratify=np.arange(50) % 2)
    assert before == np.random.get_state()[1].tolist()  # noqa: NPY002


BAD = {
    "sum": (lambda: splits.holdout(10, (0.5, 0.4)), r"must sum to 1, but \(0.5, 0.4\) sum to 0.9"),
    "negative": (lambda: splits.holdout(10, (1.2, -0.2)), r"every split fraction must be in \(0, 1\]"),
    "few": (lambda: splits.holdout(2), "3 parts need at least 3 rows, but got 2"),
    "scarce": (lambda: splits.holdout(9, stratify=[0] * 7 + [1] * 2), "3 stratified parts need .* class 1 has 2"),
    "column": (lambda: splits.holdout(9, stratify=[0, 1]), "stratify needs one value per row: 9 rows, but got 2"),
    "rare": (lambda: splits.holdout(9, stratify=[0] * 8 + [1]), "at least 3 samples of each class, but class 1 has 1"),
    "crowded": (lambda: splits.holdout(12, stratify=[*range(4)] * 3), "cannot give up a part of 20% as asked"),
    "times": (lambda: splits.holdout(9, time=[1] * 9), "only 1 different times"),
    "both": (lambda: splits.holdout(9, time=range(9), groups=range(9)), "time order excludes stratify and groups"),
    "one group": (lambda: splits.holdout(9, groups=[0] * 9), "9 rows cannot give up a part of 20% as asked"),
    "one mixed group": (
        lambda: splits.holdout(30, groups=[0] * 30, stratify=[0, 1] * 15),
        "30 rows (cannot give up|would be empty)",
    ),
    "k": (lambda: splits.k_fold(10, 1), r"k must be in \[2"),
    "rows": (lambda: splits.k_fold(3, 5), "5 folds need at least 5 rows, but got 3"),
    "class": (lambda: splits.k_fold(9, 3, stratify=[0] * 7 + [1] * 2), "3 stratified folds need .* class 1 has 2"),
    "groups": (lambda: splits.k_fold(9, 3, groups=[0, 1, 1] * 3), "3 folds need at least 3 groups, but got 2"),
    "repeats": (lambda: splits.k_fold(9, 3, repeats=0), r"^repeats must be in \[1"),
    "series": (lambda: splits.time_series(5, 5), "leave no row to train the first fold on, with 5 rows"),
    "gap": (lambda: splits.time_series(12, 3, gap=3), "gap of 3 leave no row"),
    "series of one": (lambda: splits.time_series(9, 1), r"^k must be in \[2"),
    "negative gap": (lambda: splits.time_series(9, 2, gap=-1), r"^gap must be in \[0"),
    "no window": (lambda: splits.time_series(9, 2, window=0), r"^window must be in \[1"),
    "no splitter": (lambda: splits.from_sklearn(object, 5), r"needs a method split\(X, y, groups\), but got <class"),
    "splitter": (lambda: splits.from_sklearn(KFold(20), 5), "KFold cannot split these 5 rows"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_a_sentence(case):
    ask, message = BAD[case]
    with pytest.raises(UserInputError, match=message):
        ask()


def test_parts_are_checked():
    assert splits.check_parts({"train": np.array([2, 0]), "val": range(3, 5)}, 6) == {"train": [2, 0], "val": [3, 4]}
    for parts, message in (
        ({"train": [0, 1], "val": [1, 2], "test": [2]}, r"train and val share 1 row \(first: 1\)"),
        ({"train": [0, 1, 2], "val": [1, 2]}, r"train and val share 2 rows \(first: 1\)"),
        ({"train": [3, 1, 1]}, r"train and train share 1 row \(first: 1\)"),
        ({"train": [0, 6]}, r"in \[0, 5\], but train has 6"),
        ({"train": [-1]}, "train has -1"),
        ({"train": []}, "train is empty"),
    ):
        with pytest.raises(UserInputError, match=message):
            splits.check_parts(parts, 6)


@pytest.mark.parametrize(
    ("sizes", "of_group"),
    [
        ([55, 14, 15, 30, 55, 21], [0, 3, 3, 1, 1, 4]),  # empty in scikit-learn 1.9.1 for some orders of the groups
        ([29, 42, 51, 51, 24, 7, 43, 24, 10], [0, 2, 1, 0, 1, 3, 3, 3, 2]),  # in every order
        ([42, 26, 38, 11, 19], [1, 1, 0, 3, 2]),
    ],
)
def test_no_fold_of_whole_groups_is_empty(sizes, of_group):
    groups = np.repeat(np.arange(len(sizes)), sizes)
    for seed in range(10):
        folds = splits.k_fold(len(groups), len(sizes), stratify=np.array(of_group)[groups], groups=groups, seed=seed)
        assert sorted(len(fold.val) for fold in folds) == sorted(sizes), "as many groups as folds: one group in each"
        for train, val in folds:
            assert sorted(train + val) == list(range(len(groups)))
