"""Columns as people have them: what is a number, a category or a date, what is left out, and that it is said."""

from decimal import Decimal

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_tricks import TabularDataModule, TextDataModule
from lightning_tricks._base import UserInputError
from lightning_tricks.data.tables._columns import category_of, date_part, moments_of, numbers_of
from lightning_tricks.data.tables._files import find_separator

N = 60
GENERATOR = np.random.default_rng(0)
NUMBERS = GENERATOR.normal(100, 30, N).round(2)


def table(**columns):
    return pd.DataFrame({"size": NUMBERS, **columns, "y": GENERATOR.normal(size=N)})


def ready(frame, target="y", **options):
    data = TabularDataModule(frame, target, **options)
    data.setup("fit")
    return data


def features(data, part="train"):
    return data.parts[part].batch(range(len(data.parts[part])))[0]


NUMERIC = {
    "objects": pd.Series(NUMBERS, dtype=object),
    "decimals": pd.Series([Decimal(str(x)) for x in NUMBERS]),
    "arrow decimals": pd.Series(NUMBERS).astype(pd.ArrowDtype(pa.decimal128(8, 2))),
    "arrow": pd.Series(NUMBERS).astype("float64[pyarrow]"),
    "nullable": pd.Series(NUMBERS).astype("Float64"),
    "text": pd.Series(NUMBERS.astype(str)),
    "decimal commas": pd.Series([str(x).replace(".", ",") for x in NUMBERS]),
    "thousands": pd.Series([f"{x * 1e4:,.0f}" for x in NUMBERS]),
}


@pytest.mark.parametrize("form", NUMERIC)
def test_numbers_in_any_form_are_one_column_of_numbers(form):
    data = ready(table(price=NUMERIC[form]), drop=["size"])
    assert data.feature_names == ["price"]
    expected = ready(table(price=NUMBERS * (1e4 if form == "thousands" else 1)), drop=["size"])
    torch.testing.assert_close(features(data), features(expected))


@given(st.lists(st.integers(-(10**9), 10**9), min_size=1), st.sampled_from(["{:,}", "{:,}.25", "{}", "{}.5", " {}"]))
def test_text_is_read_as_the_numbers_it_was_written_from(numbers, form):
    texts = [form.format(number) for number in numbers]
    expected = [float(text.replace(",", "")) for text in texts]
    found = numbers_of(pd.Series(texts))
    assert found.values.tolist() == expected
    turned = [text.translate(str.maketrans(",.", ".,")) for text in texts]
    unclear = form == "{:,}" and any(turned.count(".") for turned in turned)
    if not unclear:  # 1.234 alone is a little more than one
        assert numbers_of(pd.Series(turned), comma="decimal").values.tolist() == expected


@pytest.mark.parametrize("marker", ["?", "NA", "n/a", "-", "null", " "])
def test_a_marker_among_numbers_is_a_missing_value(marker):
    price = [str(x) for x in NUMBERS]
    price[7] = marker
    with pytest.raises(UserInputError, match="column 'price' has 1 NaN or empty values"):
        ready(table(price=price))
    data = ready(table(price=price), missing="impute")
    assert data.feature_names == ["size", "price"]
    if marker.strip():
        assert repr(marker) in {role.column: role.why for role in data.roles}["price"]


@pytest.mark.parametrize(
    "values", [["007", "008"], ["1", "a"], ["1.2.3", "4"], ["1_000", "2"], ["1,23", "1,234.5"], [True, False], ["NA"]]
)
def test_what_is_no_number_stays_a_category(values):
    assert numbers_of(pd.Series(values, dtype=object)) is None


@pytest.mark.parametrize("dtype", ["object", "string", "string[pyarrow]", "category", "str"])
def test_categories_of_every_type_are_alike(dtype):
    category = category_of(pd.Series(["b", None, "a", "", "b"], dtype=dtype))
    assert category.texts().tolist() == ["b", "", "a", "", "b"]
    assert category.known(np.array([0, 2, 3])) == ["a", "b"]
    assert category.coded(["b"]).tolist() == [1, 0, 0, 0, 1]


def test_a_gap_makes_no_other_category_of_a_whole_number():
    assert category_of(pd.Series([1, 2])).names == category_of(pd.Series([1, 2, None])).names == ["1", "2"]
    assert category_of(pd.Series([0.5, 1, "1"], dtype=object)).names == ["0.5", "1"]


@pytest.mark.parametrize("dtype", ["bool", "boolean", "bool[pyarrow]"])
def test_booleans_are_two_categories(dtype):
    flag = pd.Series([True, False, False] * 20, dtype=dtype)
    assert ready(table(flag=flag)).feature_names == ["size", "flag=False", "flag=True"]


def test_a_country_may_be_called_na(tmp_path):
    land = ["NA", "DE", "None"] * 20
    table(land=land).to_csv(tmp_path / "a.csv", index=False)
    for source in (tmp_path / "a.csv", table(land=land)):
        data = ready(source, missing="impute")
        assert data.feature_names == ["size", "land=DE", "land=NA", "land=None"]
        assert features(data)[:, 1:].sum(dim=1).tolist() == [1] * 36, "no row is unknown"


def test_a_class_may_be_called_none(tmp_path):
    pd.DataFrame({"size": NUMBERS, "grade": ["None", "Good", "NA"] * 20}).to_csv(tmp_path / "a.csv", index=False)
    assert ready(tmp_path / "a.csv", "grade").classes == ["Good", "NA", "None"]


LEFT_OUT = {
    "a constant": ([3] * N, "constant"),
    "a constant text": (["x"] * N, "constant"),
    "nothing": ([None] * N, "empty"),
    "a copy": (NUMBERS, "the same as column 'size'"),
    "names": ([f"Mr {i}" for i in range(N)], "ID-like text: 60 different values in 60 rows"),
    "nearly names": ([f"Mr {i * 2 // 3}" for i in range(N)], "ID-like text: 40 different values in 60 rows"),
    "a name for two rows": ([f"Mr {i // 2}" for i in range(N)], "ID-like text: 30 different values in 60 rows"),
    "row numbers": (range(N), "a row number"),
    "row numbers from one": (range(1, N + 1), "a row number"),
}


@pytest.mark.parametrize("case", LEFT_OUT)
def test_columns_with_nothing_to_learn_are_left_out_and_named(case):
    values, why = LEFT_OUT[case]
    with pytest.warns(UserWarning, match=rf"learns nothing from 1 of 3 columns: 'other' \({why}") as said:
        data = ready(table(other=values))
    assert len(said) == 1
    assert data.feature_names == ["size"]
    found = {role.column: role for role in data.roles}["other"]
    assert found.role == "left out"
    assert why in found.why
    assert ready(table(other=values), drop=["other"]).feature_names == ["size"], "nothing is said of what is dropped"


@pytest.mark.parametrize("name", ["id", "ID", "customer_id", "PassengerId", "Unnamed: 0", "Kunden-Nr"])
def test_whole_numbers_that_name_rows_are_left_out(name):
    values = GENERATOR.permutation(10_000)[:N]
    with pytest.warns(UserWarning, match="ID-like|row number"):
        assert ready(table(**{name: values})).feature_names == ["size"]
    assert ready(table(**{name: values}), roles={name: "number"}).feature_names == ["size", name]


@pytest.mark.parametrize("name", ["humid", "paid", "grid", "solid", "width", "income"])
def test_other_whole_numbers_are_learnt_from(name):
    assert ready(table(**{name: GENERATOR.permutation(10_000)[:N]})).feature_names == ["size", name]


def test_a_saved_index_is_left_out(tmp_path):
    table().to_csv(tmp_path / "a.csv")
    with pytest.warns(UserWarning, match="'Unnamed: 0' .a row number, perhaps a saved index"):
        assert ready(tmp_path / "a.csv").feature_names == ["size"]


def test_another_form_of_the_target_is_left_out():
    kind = np.array(["a", "b", "c"])[np.arange(N) % 3]
    frame = pd.DataFrame({"size": NUMBERS, "code": np.arange(N) % 3, "y": kind})
    with pytest.warns(UserWarning, match="'code' .tells the target one to one"):
        assert ready(frame).feature_names == ["size"]
    frame = table()
    frame["again"] = frame["y"]
    with pytest.warns(UserWarning, match="'again' .tells the target one to one"):
        assert ready(frame).feature_names == ["size"]


def test_an_id_costs_no_column_each():
    n = 12_000
    frame = pd.DataFrame({"id": [f"k{i % 7200}" for i in range(n)], "x": np.arange(n) % 97, "y": np.arange(n) % 89 / 7})
    with pytest.warns(UserWarning, match="'id' .ID-like text: 7200 different values"):
        assert ready(frame).in_features == 1
    with pytest.raises(UserInputError, match=r"one-hot columns .* more than 1000 \('id' has .*categories='codes'"):
        ready(frame, categorical=["id"])
    data = ready(frame, roles={"id": "category"}, categories="codes")
    assert data.in_features == 2
    assert data.cardinalities[0] > 1000


DAYS = pd.date_range("2024-01-15", periods=N, freq="3D")


@pytest.mark.parametrize(
    "days",
    [
        DAYS,
        DAYS.tz_localize("UTC"),
        [day.date() for day in DAYS],
        DAYS.strftime("%Y-%m-%d"),
        DAYS.strftime("%d.%m.%Y"),
        DAYS.strftime("%m/%d/%Y"),
    ],
)
def test_dates_become_numbers(days):
    data = ready(table(day=days), scale="none", split={"train": range(50), "val": range(50, N)})
    assert data.feature_names == ["size", "day:days", "day:month", "day:weekday"]
    x = features(data)
    assert x[:, 1].diff().tolist() == [3] * 49
    assert x[:, 2].tolist() == DAYS[:50].month.tolist()
    assert x[:, 3].tolist() == DAYS[:50].weekday.tolist()
    assert {role.column: role.role for role in data.roles} == {"size": "number", "day": "date", "y": "target"}


def test_a_time_of_day_is_an_hour():
    times = pd.Series([pd.Timestamp("1969-12-31 06:30"), None])
    assert date_part(moments_of(times), "hour")[0] == 6.5
    assert date_part(moments_of(times), "days")[0] == pytest.approx(-1 + 6.5 / 24)
    assert np.isnan(date_part(moments_of(times), "month")[1])


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_the_separator_of_a_file_is_found(tmp_path, separator):
    frame = table(town=["Bonn", "Köln, Rhein", "a;b"] * 20)
    frame.to_csv(tmp_path / "a.csv", sep=separator, decimal="," if separator == ";" else ".", index=False)
    data, expected = ready(tmp_path / "a.csv"), ready(frame)
    assert data.feature_names == expected.feature_names
    torch.testing.assert_close(features(data), features(expected))


def test_between_semicolons_a_comma_comes_before_decimals(tmp_path):
    rows = "".join(f"1,{i:03};{i % 7}\n" for i in range(100, 100 + N))
    (tmp_path / "a.csv").write_text("x;y\n" + rows)
    assert features(ready(tmp_path / "a.csv", scale="none"))[:, 0].max() < 2
    frame = pd.DataFrame({"x": [f"1,{i:03}" for i in range(100, 100 + N)], "y": NUMBERS})
    assert features(ready(frame, scale="none"))[:, 0].min() > 1000


def test_a_file_of_one_column_keeps_its_separator():
    assert find_separator("a\n1\n", ",") == ","
    assert find_separator("a,b\n1,2,3\n", ",") == ","


def test_texts_between_semicolons(tmp_path):
    (tmp_path / "a.csv").write_text("text;label\n" + "so good, so far;pos\nbad;neg\n" * 10)
    assert TextDataModule.from_file(tmp_path / "a.csv").classes == ["neg", "pos"]


@pytest.mark.parametrize(
    ("target", "task"),
    [
        (pd.Series([Decimal("1.5"), Decimal("2.5")] * 30), "regression"),
        (pd.Series([1.5, 2.5] * 30, dtype=object), "regression"),
        (np.array([1.5, 2.5] * 30, dtype=object), "regression"),
        ([Decimal("1.5"), Decimal("2.5")] * 30, "regression"),
        (pd.Series([0, 1] * 30, dtype=object), "classification"),
        (pd.Series(["0", "1"] * 30), "classification"),
        (pd.Series(["1,234", "5"] * 30), "classification"),
        (pd.Series([f"{i}.5" for i in range(N)]), "regression"),
        (pd.Series([True, False] * 30, dtype="boolean"), "classification"),
    ],
)
def test_the_task_of_a_target_in_any_form(target, task):
    assert ready(table().drop(columns="y"), target).task == task
    assert ready(table(t=target), "t", drop=["y"]).task == task


@pytest.mark.parametrize("dtype", ["int64", "float32", "bool"])
def test_several_columns_of_zeros_and_ones_are_labels(dtype):
    frame = table(
        red=np.arange(N) % 2,
        big=np.arange(N) % 3 // 2,
    ).astype({"red": dtype, "big": dtype})
    data = ready(frame, ["red", "big"], drop=["y"])
    assert (data.task, data.classes, data.num_classes, data.num_targets) == ("multilabel", ["red", "big"], 2, 0)
    _, y = data.parts["train"].batch(range(36))
    assert torch.equal(y, torch.tensor(frame.loc[data.parts["train"].rows, ["red", "big"]].to_numpy(float)).float())
    assert ready(frame, ["red", "big"], drop=["y"], task="regression").task == "regression"
    with pytest.raises(UserInputError, match="must hold 0 and 1 only"):
        ready(frame, ["red", "size"], drop=["y"], task="multilabel")


@pytest.mark.parametrize("categories", ["onehot", "codes"])
def test_sizes_are_there_before_setup(categories):
    frame = table(town=["a", "b", "c"] * 20)
    data = TabularDataModule(frame, "y", categories=categories)
    assert data.in_features == (4 if categories == "onehot" else 2)
    assert data.num_targets == 1
    assert TabularDataModule(frame, "town", drop=["y"]).num_classes == 3
    assert TabularDataModule(frame, "y").cardinalities == [4]
    with pytest.raises(UserInputError, match="there is no file"):
        TabularDataModule("nothing.csv", "y").in_features  # noqa: B018  # asking is what raises


def test_vocabularies_are_there_before_setup():
    assert TextDataModule(["good film", "bad film"] * 10, [0, 1] * 10).vocabulary[2:] == ["film", "bad", "good"]


def test_roles_are_shown_and_can_be_chosen():
    frame = table(who=[f"p{i // 4}" for i in range(N)], zip=["01234", "56789"] * 30, level=np.arange(N) % 4)
    data = ready(frame, groups="who", roles={"level": "category"})
    shown = pd.DataFrame(data.roles).set_index("column")
    assert shown.role.to_dict() == {
        "size": "number",
        "who": "group",
        "zip": "category",
        "level": "category",
        "y": "target",
    }
    assert shown.done.to_dict() == {
        "size": "standardised",
        "who": "kept whole by the split",
        "zip": "2 one-hot columns",
        "level": "4 one-hot columns",
        "y": "standardised",
    }
    with pytest.raises(
        UserInputError, match=r"column 'zip' should hold numbers, but holds .* such as '01234', '56789'"
    ):
        ready(frame, roles={"zip": "number"})
    with pytest.raises(UserInputError, match="role of column 'zip' must be one of"):
        TabularDataModule(frame, "y", roles={"zip": "numbr"})
    with pytest.raises(UserInputError, match="no column 'zap'"):
        ready(frame, roles={"zap": "number"})


@pytest.mark.parametrize("option", ["groups", "time"])
@pytest.mark.parametrize("missing", [None, pd.NA, np.nan])
def test_an_unknown_group_or_time_in_a_column_is_said(option, missing):
    which = pd.Series([f"2024-01-{i % 28 + 1:02}" for i in range(N)], dtype=object)
    which[3] = missing
    with pytest.raises(UserInputError, match=r"1 of 60 are missing \(first in row 3\)"):
        ready(table(which=which), **{option: "which"})
