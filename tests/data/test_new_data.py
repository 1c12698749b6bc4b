"""New rows without a target go through what was learnt from the training part."""

import copy
import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import quiet_trainer

from lightning_tricks import MLP, Classifier, MCDropoutPredictor, Regressor, TabularDataModule, TextDataModule
from lightning_tricks._base import UserInputError

N = 60


@pytest.fixture
def frame():
    generator = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "size": generator.normal(100, 30, N),
            "town": ["Bonn", "Ulm", "Rom"] * 20,
            "day": pd.date_range("2024-01-01", periods=N).strftime("%d.%m.%Y"),
            "price": generator.normal(1000, 300, N),
        },
        index=[f"house {i}" for i in range(N)],
    )


def predicted(data):
    return [batch[0] for batch in data.predict_dataloader()]


@pytest.mark.parametrize("categories", ["onehot", "codes"])
@pytest.mark.parametrize("scale", ["standard", "minmax", "none"])
def test_the_test_rows_as_new_rows_are_encoded_alike(frame, categories, scale):
    data = TabularDataModule(frame, "price", categories=categories, scale=scale, batch_size=5)
    data.setup()
    new = data.new_data(frame.iloc[data.parts["test"].rows].drop(columns="price"))
    for one, other in zip(predicted(new), predicted(data), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    assert new.row_names == [f"house {row}" for row in data.parts["test"].rows]
    assert data.parts.keys() == {"train", "val", "test"}, "the first DataModule stays as it is"


def test_files_and_arrays(frame, tmp_path):
    data = TabularDataModule(frame, "price")
    rows = frame.iloc[[3, 1, 2]]
    rows.to_csv(tmp_path / "new.csv", index=False)
    rows.to_parquet(tmp_path / "new.parquet")
    expected = predicted(data.new_data(rows))[0]
    for name in ("new.csv", "new.parquet"):
        assert torch.equal(predicted(data.new_data(tmp_path / name))[0], expected)
    x = np.random.default_rng(0).normal(size=(N, 3))
    arrays = TabularDataModule(x, x[:, 0] * 2)
    arrays.setup()
    assert torch.equal(predicted(arrays.new_data(x[arrays.parts["test"].rows]))[0], predicted(arrays)[0])
    assert torch.equal(predicted(arrays.new_data(torch.from_numpy(x[:4])))[0], predicted(arrays.new_data(x[:4]))[0])
    assert torch.equal(predicted(arrays.new_data(pd.DataFrame(x[:4])))[0], predicted(arrays.new_data(x[:4]))[0])


def test_order_further_columns_and_other_types_do_not_matter(frame):
    data = TabularDataModule(frame, "price")
    rows = frame.iloc[:5]
    other = rows[["price", "day", "town", "size"]].assign(note="new", town=rows["town"].astype("category"))
    other["size"] = other["size"].map(repr)
    assert torch.equal(predicted(data.new_data(other))[0], predicted(data.new_data(rows))[0])


def test_one_row_is_enough(frame):
    assert predicted(TabularDataModule(frame, "price").new_data(frame.iloc[:1]))[0].shape == (1, 7)


def test_unknown_categories_are_said_once_and_count_as_unknown(frame):
    data = TabularDataModule(frame, "price")
    with pytest.warns(UserWarning, match=r"'town' has 1 \('Genf'\)") as said:
        (x,) = predicted(data.new_data(frame.iloc[:3].assign(town=["Genf", "Ulm", "Genf"])))
    assert len(said) == 1
    towns = x[:, [i for i, name in enumerate(data.feature_names) if name.startswith("town")]]
    assert towns.sum(dim=1).tolist() == [0, 1, 0]


def test_missing_values_are_filled_as_in_training(frame):
    new = frame.iloc[:3].assign(size=[np.nan, 1, 2])
    with pytest.raises(UserInputError, match=r"column 'size' has 1 NaN.*missing='impute'"):
        TabularDataModule(frame, "price").new_data(new)
    data = TabularDataModule(frame, "price", missing="impute")
    assert predicted(data.new_data(new))[0][0, 0] == pytest.approx(0, abs=1e-6)
    assert torch.isfinite(predicted(data.new_data(new.assign(size=None, day=None, town=None)))[0]).all()


def test_what_does_not_fit_gets_a_sentence(frame):
    data = TabularDataModule(frame, "price")
    with pytest.raises(UserInputError, match=r"lacks 2 columns that the training table had: \['size', 'town'\]"):
        data.new_data(frame[["day"]])
    with pytest.raises(UserInputError, match=r"column 'size' should hold numbers, but holds .* such as 'big'"):
        data.new_data(frame.assign(size="big"))
    with pytest.raises(UserInputError, match="column 'day' should hold dates"):
        data.new_data(frame.assign(day="some"))
    with pytest.raises(UserInputError, match=r"a table with the columns \['size', 'town', 'day'\], but got an array"):
        data.new_data(np.zeros((2, 3)))
    with pytest.raises(UserInputError, match="at least one row"):
        data.new_data(frame.iloc[:0])
    with pytest.raises(UserInputError, match="different names"):
        data.new_data(pd.concat([frame, frame], axis=1))
    with pytest.raises(UserInputError, match=r"3 columns, but got an array of shape \(2, 4\)"):
        TabularDataModule(np.random.default_rng(0).normal(size=(N, 3)), np.arange(N)).new_data(np.zeros((2, 4)))
    new = data.new_data(frame)
    with pytest.raises(UserInputError, match="has no train part, only predict"):
        new.train_dataloader()
    with pytest.raises(UserInputError, match="new data already"):
        new.new_data(frame)


def test_an_id_column_names_the_rows(frame):
    frame["deed"] = [f"d{i}" for i in range(N)]
    data = TabularDataModule(frame.reset_index(drop=True), "price", roles={"deed": "id"})
    assert "deed" not in "".join(data.feature_names)
    assert data.row_names == list(frame["deed"])
    assert data.new_data(frame.iloc[[4, 2]]).row_names == ["d4", "d2"]
    assert data.new_data(frame.drop(columns="deed")).row_names == []


def test_it_predicts_under_a_trainer(frame):
    data = TabularDataModule(frame, "price")
    model = Regressor(MLP(data.in_features, 1, norm="none", dropout=0.5))
    new = data.new_data(frame.iloc[::-1])
    (batch,) = quiet_trainer().predict(MCDropoutPredictor(model, 5), new)
    found = new.inverse_prediction(batch)
    assert found["row"].tolist() == list(range(N))
    assert torch.equal(found["mean"], data.inverse_target(batch["mean"]))
    towns = TabularDataModule(frame, "town")
    net = Classifier(MLP(towns.in_features, 3), num_classes=3)
    (probs,) = quiet_trainer().predict(net, towns.new_data(frame.drop(columns="town")))
    assert probs.shape == (N, 3)
    assert "predict 60" in new.describe()


def test_it_travels_to_another_process(frame):
    new = TabularDataModule(frame, "price").new_data(frame.iloc[:4])
    for other in (pickle.loads(pickle.dumps(new)), copy.deepcopy(new)):
        assert torch.equal(predicted(other)[0], predicted(new)[0])


TEXTS = ["a good film", "a bad film", "so good", "so very bad indeed"] * 5


def test_texts_are_coded_by_the_vocabulary_of_the_training_part():
    data = TextDataModule(TEXTS, [1, 0, 1, 0] * 5, batch_size=3, augment=lambda text, index, epoch: f"{text} more")
    data.setup()
    rows = data.parts["test"].rows
    new = data.new_data(pd.Series(TEXTS)[rows])
    for one, other in zip(predicted(new), predicted(data), strict=True):
        assert torch.equal(one, other)
    assert new.row_names == [str(row) for row in rows]
    assert new.vocabulary == data.vocabulary
    assert new.describe() == "TextDataModule: predict 4"
    (found,) = predicted(data.new_data(["so strange"]))
    assert data.decode(found[0]) == ["so", "<unk>"]
    assert data.new_data(["so"]).row_names == []
    assert len(data.parts["test"]) == 4


def test_new_texts_that_are_none_get_a_sentence():
    data = TextDataModule(TEXTS, [1, 0, 1, 0] * 5)
    with pytest.raises(UserInputError, match="got one string"):
        data.new_data("so good")
    with pytest.raises(UserInputError, match="text 1 is None"):
        data.new_data(["a", None])
    with pytest.raises(UserInputError, match="there are no texts"):
        data.new_data([])
    with pytest.raises(UserInputError, match="has no train part, only predict"):
        data.new_data(["so"]).train_dataloader()


def test_new_texts_are_predicted_under_a_trainer():
    data = TextDataModule(TEXTS, [1, 0, 1, 0] * 5)
    net = torch.nn.Sequential(torch.nn.EmbeddingBag(len(data.vocabulary), 4), torch.nn.Linear(4, 2))
    (probs,) = quiet_trainer().predict(Classifier(net, num_classes=2), data.new_data(["so good", "bad"]))
    assert probs.shape == (2, 2)
