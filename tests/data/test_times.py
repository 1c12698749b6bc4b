"""Times in the forms in which files hold them: sorted as time, or refused, never sorted as text."""

import datetime as dt
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_tricks import TabularDataModule
from lightning_tricks._base import UserInputError
from lightning_tricks.data import splits
from lightning_tricks.data._times import sortable_times

DAYS = st.lists(st.dates(dt.date(1950, 1, 1), dt.date(2049, 12, 31)), min_size=12, max_size=40, unique=True)
FORMATS = ["%Y-%m-%d", "%Y-%m-%d 07:30:00", "%d.%m.%Y", "%Y/%m/%d", "%d %b %Y", "%B %d, %Y", "%d.%m.%Y 12:00"]


@pytest.mark.parametrize("form", FORMATS)
@given(days=DAYS)
def test_dates_as_text_sort_as_the_dates(form, days):
    found = sortable_times([day.strftime(form) for day in days])
    assert np.argsort(found).tolist() == np.argsort(np.array(days, dtype="datetime64[D]")).tolist()


@pytest.mark.parametrize("form", ["%m/%d/%Y", "%d/%m/%Y"])
def test_slashes_are_read_where_only_one_reading_fits(form):
    days = [dt.date(2023, 11, 25) + dt.timedelta(days=i) for i in range(60)]
    order = np.random.default_rng(0).permutation(60)
    found = sortable_times([days[i].strftime(form) for i in order])
    assert np.argsort(found).tolist() == np.argsort(order).tolist()


def test_what_can_be_read_in_two_ways_is_refused():
    with pytest.raises(UserInputError, match=r"'01/02/2024' that can be read as %m/%d/%Y and as %d/%m/%Y"):
        sortable_times(["01/02/2024", "02/01/2024", "03/03/2024"])


@given(st.lists(st.decimals(-1000, 1000, places=2), min_size=2, unique=True))
def test_numbers_as_text_and_decimals_sort_as_numbers(numbers):
    expected = np.argsort(np.array(numbers, dtype=float)).tolist()
    assert np.argsort(sortable_times([str(number) for number in numbers])).tolist() == expected
    assert np.argsort(sortable_times([Decimal(number) for number in numbers])).tolist() == expected


@pytest.mark.parametrize("missing", [None, float("nan"), np.datetime64("NaT"), pd.NaT, pd.NA, ""])
def test_an_unknown_time_is_refused(missing):
    known = pd.Timestamp("2024-01-01") if isinstance(missing, np.datetime64 | type(pd.NaT)) else "2024-01-01"
    times = np.array([known, missing, known], dtype=object)
    with pytest.raises(UserInputError, match=r"1 of 3 are missing \(first in row 1\)"):
        splits.holdout(3, (0.5, 0.5), time=times)


@pytest.mark.parametrize(
    ("times", "match"),
    [
        (["Jan 02", "Jan 01", "Feb 01"], "no number and no date in one known format, such as 'Jan 02'"),
        (["2024-01-01", 3, "x"], "one kind for all rows, but holds"),
        (np.zeros((3, 2)), r"one axis with one value per row, but has the shape \(3, 2\)"),
        (["2024-01-01T00:00:00+01:00", "2024-01-01", "2024-01-02"], "time zone in all rows or in none"),
    ],
)
def test_what_cannot_be_sorted_is_refused(times, match):
    with pytest.raises(UserInputError, match=match):
        splits.time_series(3, 2, time=times)


def test_time_zones_are_taken_into_account():
    found = sortable_times(["2024-01-01T00:30:00+02:00", "2023-12-31T23:00:00Z"])
    assert np.argsort(found).tolist() == [0, 1]
    assert found[0] < found[1]


@pytest.mark.parametrize("option", ["stratify", "groups"])
def test_an_unknown_group_or_class_is_refused(option):
    with pytest.raises(UserInputError, match=rf"{option} needs a value for every row, but 1 of 4 are missing"):
        splits.holdout(4, (0.5, 0.5), **{option: ["a", None, "b", "b"]})
    with pytest.raises(UserInputError, match=rf"{option} needs a value for every row"):
        splits.k_fold(4, 2, **{option: [1.0, 2.0, float("nan"), 2.0]})
    with pytest.raises(UserInputError, match=r"1 of 4 are missing \(first in row 3\)"):
        splits.k_fold(4, 2, **{option: pd.array(["a", "b", "a", None], dtype="string")})


@pytest.mark.parametrize("form", ["%m/%d/%Y", "%d.%m.%Y", "%Y-%m-%d"])
def test_no_training_row_of_a_table_is_younger_than_a_test_row(form):
    days = pd.Series(pd.date_range("2019-01-01", periods=200, freq="9D")).sample(frac=1, random_state=0)
    frame = pd.DataFrame({"when": days.dt.strftime(form).to_numpy(), "x": np.arange(200.0) % 7, "y": np.arange(200.0)})
    data = TabularDataModule(frame, "y", time="when")
    data.setup("fit")
    moments = days.to_numpy()
    train, test = (moments[list(data.parts[part].rows)] for part in ("train", "test"))
    assert train.max() < test.min()
