"""Tables: everything learnt from the training part only, targets that come back, and every bad input."""

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.preprocessing import MinMaxScaler, StandardScaler

from lightning_tricks import TabularDataModule
from lightning_tricks._base import UserInputError

N = 50


@pytest.fixture
def frame():
    generator = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "height": generator.normal(170, 10, N),
            "age": generator.integers(20, 60, N),
            "city": generator.choice(["Bonn", "Köln"], N),
            "price": generator.normal(1000, 300, N),
            "who": [f"p{i // 5}" for i in range(N)],
            "day": pd.date_range("2024-01-01", periods=N)[::-1],
        }
    )


def features(data, part):
    return data.parts[part].batch(range(len(data.parts[part])))


@pytest.mark.parametrize(("scale", "oracle"), [("standard", StandardScaler), ("minmax", MinMaxScaler)])
def test_scaling_is_fitted_on_the_training_part(scale, oracle):
    x, y = np.random.default_rng(0).lognormal(size=(N, 4)), np.arange(N) % 3
    data = TabularDataModule(x, y, scale=scale)
    data.setup()
    fitted = oracle().fit(x[data.parts["train"].rows])
    for name, part in data.parts.items():
        got, labels = features(data, name)
        np.testing.assert_allclose(got, fitted.transform(x[part.rows]), atol=1e-5)
        assert labels.tolist() == y[part.rows].tolist()


@pytest.mark.parametrize(("scale", "oracle"), [("standard", StandardScaler), ("minmax", MinMaxScaler)])
def test_a_constant_column_is_only_shifted(scale, oracle):
    values = np.array([0.1, 1 / 3, 1e-9, 1e6 + 0.1, 0, -7])
    x = np.tile(values, (1001, 1))
    x[-1] += 0.1
    x = np.column_stack([x, np.arange(1001) * 1e-9])  # varies, a little
    data = TabularDataModule(x, x[:, 0], scale=scale, split={"train": range(1000), "val": [1000]})
    data.setup()
    held_out, y = features(data, "val")
    np.testing.assert_allclose(held_out, oracle().fit(x[:1000]).transform(x[1000:]), rtol=1e-4)
    assert data.target_std.item() == 1
    assert y.item() == pytest.approx(0.1)


def test_a_constant_column_is_only_shifted_when_imputed():
    x = np.full((1001, 2), (0.1, 1e6 + 0.1))  # their computed means are other numbers
    x[::7] = np.nan
    x[-1] += 0.1
    data = TabularDataModule(
        x, np.arange(1001.0), scale="minmax", missing="impute", split={"train": range(1000), "val": [1000]}
    )
    data.setup()
    np.testing.assert_allclose(features(data, "val")[0], 0.1, rtol=1e-4)


def test_no_scaling():
    x = torch.rand(N, 2)
    data = TabularDataModule(x, torch.arange(N) % 2, scale="none")
    data.setup()
    assert torch.equal(features(data, "train")[0], x[data.parts["train"].rows])


def test_what_is_learnt_does_not_see_the_other_parts(frame):
    split = {"train": range(30), "val": range(30, 40), "test": range(40, 50)}
    options = {"split": split, "drop": ["who", "day"]}
    data = TabularDataModule(frame, "price", **options)
    data.setup()
    changed = frame.copy()
    changed.loc[30:, ["height", "price"]] *= 100
    changed.loc[30:, "city"] = "Ulm"
    other = TabularDataModule(changed, "price", **options)
    other.setup()
    for one, two in zip(features(data, "train"), features(other, "train"), strict=True):
        assert torch.equal(one, two)
    assert other.feature_names == ["height", "age", "city=Bonn", "city=Köln"]
    assert not features(other, "val")[0][:, 2:].any(), "an unknown category is all zeros"


def test_target_scaling_and_its_inverse(frame):
    data = TabularDataModule(frame, "price", drop=["who", "day"])
    data.setup()
    _, y = features(data, "train")
    assert y.shape == (30, 1)
    assert abs(y.mean()) < 1e-6
    assert abs(y.std(unbiased=False) - 1) < 1e-6
    _, y = features(data, "test")
    back = data.inverse_target(y).squeeze(1)
    np.testing.assert_allclose(back, frame.price[data.parts["test"].rows], rtol=1e-5)
    assert "target (train): " in data.describe()


def test_predictions_in_terms_of_the_table(frame):
    data = TabularDataModule(frame, "price", drop=["who", "day"])
    prediction = {"mean": torch.zeros(2, 1), "std": torch.ones(2, 1), "n_samples": torch.tensor([5, 5])}
    found = data.inverse_prediction({**prediction, "index": torch.tensor([1, 0])})
    rows = data.parts["test"].rows
    assert found["row"].tolist() == [rows[1], rows[0]]
    assert torch.equal(found["mean"], data.target_mean.expand(2, 1))
    assert torch.equal(found["std"], data.target_std.expand(2, 1))
    assert found["n_samples"].tolist() == [5, 5]
    unscaled = TabularDataModule(frame, "price", drop=["who", "day"], scale_target=False)
    same = unscaled.inverse_prediction({**prediction, "index": torch.arange(2)})
    assert torch.equal(same["mean"], prediction["mean"])


def test_several_targets(frame):
    data = TabularDataModule(frame, ["price", "height"], drop=["who", "day"])
    data.setup()
    assert (data.task, data.num_targets) == ("regression", 2)
    back = data.inverse_target(features(data, "val")[1])
    np.testing.assert_allclose(back, frame.loc[data.parts["val"].rows, ["price", "height"]], rtol=1e-5)


def test_unscaled_target(frame):
    data = TabularDataModule(frame, "price", drop=["who", "day"], scale_target=False)
    data.setup()
    y = features(data, "test")[1]
    np.testing.assert_allclose(y[:, 0], frame.price[data.parts["test"].rows], rtol=1e-6)
    assert torch.equal(data.inverse_target(y), y)


def test_codes_for_embeddings(frame):
    data = TabularDataModule(frame, "price", drop=["day"], categories="codes", batch_size=8)
    (numbers, codes), y = next(iter(data.train_dataloader()))
    assert (numbers.shape, codes.shape, codes.dtype, y.shape) == ((8, 2), (8, 2), torch.int64, (8, 1))
    assert data.cardinalities[0] == 3
    assert codes.max() < max(data.cardinalities)
    (_, codes), _ = features(data, "train")
    assert codes.min() == 1, "0 is for categories that training does not have"


def test_frames_csv_and_parquet_agree(frame, tmp_path):
    frame.to_csv(tmp_path / "a.csv", index=False)
    frame.to_csv(tmp_path / "a.tsv", index=False, sep="\t")
    frame.to_parquet(tmp_path / "a.parquet")
    options = {"drop": ["who", "day"]}
    first = TabularDataModule(frame, "price", **options)
    first.setup()
    for name in ("a.csv", "a.tsv", "a.parquet"):
        other = TabularDataModule(tmp_path / name, "price", **options)
        other.setup()
        torch.testing.assert_close(features(other, "train"), features(first, "train"))


def test_groups_and_time_by_column(frame):
    data = TabularDataModule(frame, "price", groups="who", drop=["day"])
    data.setup()
    people = [set(frame.who[part.rows]) for part in data.parts.values()]
    assert not people[0] & people[1]
    assert not people[0] & people[2]
    assert not people[1] & people[2]
    data = TabularDataModule(frame, "price", time="day", drop=["who"])
    data.setup()
    days = [frame.day[part.rows] for part in data.parts.values()]
    assert days[0].max() < days[1].min()
    assert days[1].max() < days[2].min()
    assert "day" not in data.feature_names


def test_missing_values_are_imputed_by_training_means(frame):
    frame.loc[3, "height"] = np.nan
    frame.loc[45, "height"] = np.nan
    frame.loc[46, "city"] = None
    split = {"train": range(40), "val": range(40, 50)}
    data = TabularDataModule(frame, "price", split=split, missing="impute", drop=["who", "day"])
    data.setup()
    x, _ = features(data, "val")
    assert torch.isfinite(x).all()
    assert abs(x[5, 0]) < 1e-6, "the mean is 0 after scaling"
    assert not x[6, 2:].any()


@pytest.mark.parametrize(
    ("target", "task", "classes"),
    [
        (["b", "a"] * 25, "classification", ["a", "b"]),
        ([True, False] * 25, "classification", ["False", "True"]),
        ([0, 1] * 25, "classification", ["0", "1"]),
        (list(range(50)), "regression", []),
        ([0.5, 1.5] * 25, "regression", []),
    ],
)
def test_the_task_is_told_from_the_target(target, task, classes):
    data = TabularDataModule(np.eye(N), target)
    data.setup()
    assert (data.task, data.classes) == (task, classes)


def test_classes_that_do_not_start_at_zero_can_be_named():
    data = TabularDataModule(np.eye(N), [3, 5] * 25, classes=[3, 5])
    data.setup()
    assert data._y.tolist() == [0, 1] * 25


BAD = {
    "nan": (pd.DataFrame({"a": [1.0, np.nan] * 25, "y": range(N)}), "y", r"column 'a' has 25 NaN.*missing='impute'"),
    "empty": (pd.DataFrame({"a": ["x", None] * 25, "y": range(N)}), "y", "column 'a' has 25 NaN or empty"),
    "inf": (np.full((N, 2), np.inf), np.arange(N), "column 'x0' has infinities"),
    "nan target": (np.eye(N), [np.nan, 1.5] * 25, "25 are NaN or infinite"),
    "no label": (pd.DataFrame({"a": np.arange(N) % 7, "y": ["x", None] * 25}), "y", "25 are empty"),
    "gaps": (np.eye(N), [1, 2] * 25, r"labels must be 0..1 without gaps.*classes=\[...\]"),
    "no column": (pd.DataFrame({"a": range(N)}), "y", "no column 'y'.*columns are: a"),
    "no feature": (pd.DataFrame({"y": range(N)}), "y", "at least one column of features"),
    "length": (np.eye(N), range(3), r"50 rows, but got shape \(3,\)"),
    "text": (np.full((N, 1), "a"), range(N), "array of features must hold numbers.*pandas.DataFrame"),
    "axes": (np.zeros(N), range(N), r"axes \(rows, columns\)"),
    "times to predict": (
        pd.DataFrame({"a": np.arange(N) % 7, "y": pd.date_range("2024", periods=N)}),
        "y",
        "holds times",
    ),
    "array's length": (pd.DataFrame({"a": range(N)}), np.arange(N - 1), "one value per row: 50 rows, but got 49"),
    "no target": (np.eye(N), None, "needs a target to learn.*got None"),
    "no target of a frame": (pd.DataFrame({"a": np.arange(N) % 7}), None, "needs a target to learn.*new_data"),
    "no target named": (pd.DataFrame({"a": np.arange(N) % 7}), [], "needs a target: the name of a column"),
    "a name twice": (pd.DataFrame(np.eye(N, 3), columns=["a", "a", "y"]), "y", "different names, but .* twice: a"),
}


def test_the_target_of_a_frame_may_be_an_array():
    frame = pd.DataFrame({"a": np.arange(N) % 7, "y": ["no", "yes"] * 25})
    named, given = TabularDataModule(frame, "y"), TabularDataModule(frame[["a"]], frame["y"].to_numpy())
    for data in (named, given):
        data.setup()
    assert (given.classes, given.num_classes) == (["no", "yes"], 2)
    assert torch.equal(given._y, named._y)
    for one, other in zip(features(given, "train"), features(named, "train"), strict=True):
        assert torch.equal(torch.as_tensor(one), torch.as_tensor(other))


@pytest.mark.parametrize("case", BAD)
def test_bad_tables_get_a_sentence(case):
    data, target, message = BAD[case]
    with pytest.raises(UserInputError, match=message):
        TabularDataModule(data, target).setup()


def test_text_is_no_regression_target():
    with pytest.raises(UserInputError, match="regression target must hold numbers"):
        TabularDataModule(np.eye(N), ["a", "b"] * 25, task="regression").setup()


def test_bad_files_get_a_sentence(tmp_path, frame):
    def read(name):
        TabularDataModule(tmp_path / name, "price").setup()

    with pytest.raises(UserInputError, match=r"there is no file .*missing.csv"):
        read("missing.csv")
    with pytest.raises(UserInputError, match=r"ending in .csv"):
        read("table.xlsx")
    frame.to_csv(tmp_path / "latin.csv", encoding="latin-1", index=False)
    with pytest.raises(UserInputError, match=r"latin.csv is not utf-8 text: byte 0xf6 .*encoding='latin-1'"):
        read("latin.csv")
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(UserInputError, match=r"empty.csv is empty"):
        read("empty.csv")
    (tmp_path / "ragged.csv").write_text("a,price\n1,2\n1,2,3,4\n")
    with pytest.raises(UserInputError, match="equally long rows"):
        read("ragged.csv")
