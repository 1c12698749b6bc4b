"""MCDropoutPredictor in a Trainer: predict, test and validate, with any batch, from a checkpoint, on two ranks."""

import csv
from unittest import mock

import numpy as np
import pytest
import torch
from helpers import quiet_trainer, run_ranks
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset
from torchmetrics.classification import MulticlassCalibrationError
from wandb_file import WandbRun

from lightning_tricks import (
    MLP,
    Classifier,
    DigitsDataModule,
    MCDropoutPredictor,
    PredictionWriter,
    Regressor,
    mc_forward,
)
from lightning_tricks._base import UserInputError
from lightning_tricks.uncertainty import (
    AURC,
    AdaptiveCalibrationError,
    BrierScore,
    TemperatureScaling,
    UncertaintyAUROC,
    predictive_entropy,
)

X = torch.linspace(-2, 2, 11 * 6).reshape(11, 6)
Y = torch.arange(11) % 3


def classifier():
    torch.manual_seed(0)
    return Classifier(MLP(6, 3, dropout=0.5, norm="none"), num_classes=3)


def predict(model, loader, **options):
    batches = quiet_trainer().predict(MCDropoutPredictor(model, **options), loader)
    return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}


def test_summaries_are_those_of_the_samples():
    model = classifier()
    out = predict(model, DataLoader(X, batch_size=4), samples=40, keep_samples=True, quantiles=(0.1, 0.9))
    samples = mc_forward(model, X, samples=40, seed=0).softmax(-1)
    torch.testing.assert_close(out["samples"], samples.movedim(0, 1))
    torch.testing.assert_close(out["mean"], samples.mean(0))
    torch.testing.assert_close(out["std"], samples.std(0))
    mean = samples.mean(0)
    torch.testing.assert_close(out["entropy"], -(mean * mean.log()).sum(-1))
    assert out["index"].tolist() == list(range(11))
    assert (out["n_samples"] == 40).all()
    assert {"mutual_info", "expected_entropy", "variation_ratio", "mc_error", "quantile_0.1"} <= set(out)


@pytest.mark.parametrize("masks", ["independent", "shared"])
def test_batch_size_and_chunks_change_no_bit(masks):
    model = classifier()
    one = predict(model, DataLoader(X, batch_size=8), samples=10, masks=masks)
    other = predict(model, DataLoader(X, batch_size=4), samples=10, masks=masks)
    chunked = predict(model, DataLoader(X, batch_size=8), samples=10, masks=masks, chunk_size=4)
    for name in one:
        assert torch.equal(one[name], other[name]), name
        assert torch.equal(one[name], chunked[name]), name


class Dicts(Dataset):
    def __len__(self):
        return 11

    def __getitem__(self, i):
        return {"x": X[i], "y": Y[i], "index": 10 * i}


def test_every_kind_of_batch():
    model = classifier()
    bare = predict(model, DataLoader(X, batch_size=4), samples=5)
    pairs = predict(model, DataLoader(TensorDataset(X, Y), batch_size=4), samples=5)
    assert torch.equal(bare["mean"], pairs["mean"])
    dicts = predict(model, DataLoader(Dicts(), batch_size=4), samples=5)
    assert dicts["index"].tolist() == list(range(0, 110, 10))
    triples = predict(
        model,
        DataLoader(TensorDataset(X, Y, Y), batch_size=4),
        samples=5,
        split=lambda batch: (batch[0], batch[1]),
    )
    assert torch.equal(bare["mean"], triples["mean"])


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.drop, self.head = nn.Dropout(0.5), nn.Linear(6, 4)

    def forward(self, x):
        return {"logits": self.head(self.drop(x)).reshape(-1, 2, 2), "other": x}


def test_any_module_and_dense_outputs():
    with pytest.raises(UserInputError, match="TwoHeads has no attribute task"):
        MCDropoutPredictor(TwoHeads())
    options = {"task": "multiclass", "samples": 5}
    with pytest.raises(UserInputError, match=r"returned a dict with keys \['logits', 'other'\]"):
        MCDropoutPredictor(TwoHeads(), **options).predict_step(X)
    out = MCDropoutPredictor(TwoHeads(), output=lambda out: out["logits"], **options).predict_step(X)
    assert out["mean"].shape == (11, 2, 2)
    assert out["mutual_info"].shape == (11, 2)
    torch.testing.assert_close(out["mean"].sum(1), torch.ones(11, 2))


def test_binary_and_regression():
    binary = Classifier(MLP(6, 1, dropout=0.5, norm="none"), num_classes=2, task="binary")
    out = MCDropoutPredictor(binary, samples=5).predict_step(X)
    assert out["mean"].shape == (11,)
    gaussian = Regressor(MLP(6, 2, dropout=0.5, norm="none"), noise="gaussian")
    out = MCDropoutPredictor(gaussian, samples=5).predict_step((X, Y))
    torch.testing.assert_close(out["total_variance"], out["epistemic_variance"] + out["aleatoric_variance"])


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image)


STEMS = [f"test/{name}" for name in ("reliability", "risk_coverage", "entropy", "most_uncertain_pictures")]


def pictured():
    model = nn.Sequential(nn.Flatten(), classifier().eval())
    model.task = "multiclass"
    return model, X.reshape(11, 1, 2, 3)


def test_off_and_on_are_logged_side_by_side(tmp_path):
    model, images = pictured()
    trainer = quiet_trainer(logger=CSVLogger(tmp_path, name="", version=""))
    loader = DataLoader(TensorDataset(images, Y), batch_size=4)
    values = trainer.test(MCDropoutPredictor(model, samples=30), loader, verbose=False)[0]
    off = model(images).softmax(-1)
    wrong = off.argmax(-1) != Y
    assert values["test_acc_dropout_off"] == pytest.approx(1 - wrong.float().mean().item())
    assert values["test_nll_dropout_off"] == pytest.approx(-off[range(11), Y].log().mean().item(), rel=1e-5)
    on = mc_forward(model, images, samples=30, seed=0).softmax(-1).mean(0)
    assert values["test_nll_dropout_on"] == pytest.approx(-on[range(11), Y].log().mean().item(), rel=1e-5)
    metrics = {"ece": MulticlassCalibrationError(3), "ace": AdaptiveCalibrationError(), "brier": BrierScore()}
    for name, metric in metrics.items():
        assert values[f"test_{name}_dropout_on"] == pytest.approx(metric(on, Y).item(), rel=1e-5), name
    ranking = {"aurc": (AURC(), off.max(-1).values), "error_auroc": (UncertaintyAUROC(), predictive_entropy(off[None]))}
    for name, (metric, uncertainty) in ranking.items():
        assert values[f"test_{name}_dropout_off"] == pytest.approx(metric(uncertainty, wrong).item(), rel=1e-5), name
    assert len(values) == 2 * (len(metrics) + len(ranking) + 2)
    table = tmp_path / "tables/test_most_uncertain-step000000.csv"
    rows = list(csv.DictReader(table.read_text().splitlines()))
    information = [float(row["mutual_info"]) for row in rows]
    assert information == sorted(information, reverse=True)
    assert sorted(int(row["index"]) for row in rows) == list(range(11))
    assert [int(row["target"]) for row in rows] == [int(row["index"]) % 3 for row in rows]
    shown = pixels(tmp_path / "tables" / rows[0]["picture"]) / 255
    picture = images[int(rows[0]["index"]), 0]
    expected = (picture - picture.min()) / (picture.max() - picture.min())
    np.testing.assert_allclose(shown[10::21, 10::21], expected, atol=0.003)
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {
        f"{stem.replace('/', '_')}-step000000.png" for stem in STEMS
    }


def test_wandb_gets_metrics_pictures_and_a_table_with_pictures(tmp_path):
    import wandb

    model, images = pictured()
    trainer = quiet_trainer(logger=WandbLogger(project="test", save_dir=tmp_path, offline=True))
    loader = DataLoader(TensorDataset(images, Y), batch_size=4)
    values = trainer.test(MCDropoutPredictor(model, samples=10), loader, verbose=False)[0]
    wandb.finish()
    run = WandbRun(tmp_path)
    for name, value in values.items():
        assert [logged for _, logged in run.rows(name)] == [pytest.approx(value)], name
    for stem in STEMS:
        ((_, picture),) = run.rows(stem)
        assert list(tmp_path.rglob(picture["filenames"][0])), stem
    assert run.rows("test/most_uncertain")[0][1]["_type"] == "table-file"
    table = run.table("test/most_uncertain")
    assert table["columns"] == ["index", "mutual_info", "prediction", "target", "picture"]
    assert len(table["data"]) == 11
    for index, *_, target, picture in table["data"]:
        assert target == index % 3
        assert picture["_type"] == "image-file"
        assert pixels(picture["local_path"]).shape == (42, 63)


def test_maps_and_left_out_pixels(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Dropout2d(0.5), nn.Conv2d(8, 3, 1)).eval()
    x, y = torch.randn(6, 3, 5, 7), torch.randint(3, (6, 5, 7))
    y[:, 0] = -100
    loader = DataLoader(TensorDataset(x, y), batch_size=4)
    trainer = quiet_trainer(logger=CSVLogger(tmp_path, name="", version=""))
    values = trainer.test(MCDropoutPredictor(model, samples=5, task="multiclass"), loader, verbose=False)[0]
    probs = model(x).softmax(1)
    assert values["test_nll_dropout_off"] == pytest.approx(
        nn.functional.nll_loss(probs.log(), y).item(), rel=1e-5
    )  # which leaves out -100, too
    table = tmp_path / "tables/test_most_uncertain-step000000.csv"
    head, *rows = csv.reader(table.read_text().splitlines())
    assert head == ["index", "mutual_info", "prediction", "target", "picture", "map"]
    assert len(rows) == 6
    sizes = [[pixels(tmp_path / "tables" / cell).shape[:2] for cell in row[2:]] for row in rows]
    assert sizes == [[(45, 63)] * 4] * 6


# They take most of the time of a test that looks at the table only.
NO_FIGURES = mock.patch("lightning_tricks.modules.monte_carlo._predictor.log_answers")


def table_of(folder):
    (table,) = folder.glob("tables/*.csv")
    return [(int(row["index"]), int(row["target"])) for row in csv.DictReader(table.read_text().splitlines())]


def test_places_are_known_from_a_datamodule(tmp_path):
    """Its sampler deals out whole batches."""
    data = DigitsDataModule(batch_size=64, seed=0)
    model = Classifier(MLP(64, 10, dropout=0.5, norm="none"), num_classes=10)
    trainer = quiet_trainer(logger=CSVLogger(tmp_path, name="", version=""))
    with NO_FIGURES:
        trainer.test(MCDropoutPredictor(model, samples=3), data, verbose=False)
    labels = torch.cat([y for _, y in data.test_dataloader()])
    rows = table_of(tmp_path)
    assert max(index for index, _ in rows) > 128
    assert [labels[index].item() for index, _ in rows] == [target for _, target in rows]


def test_places_are_counted_where_nobody_knows_them(tmp_path):
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(zip(X, Y, strict=True))

    trainer = quiet_trainer(logger=CSVLogger(tmp_path, name="", version=""))
    with NO_FIGURES:
        trainer.test(MCDropoutPredictor(classifier(), samples=3), DataLoader(Stream(), batch_size=4), verbose=False)
    assert sorted(table_of(tmp_path)) == [(i, i % 3) for i in range(11)]
    path = tmp_path / "out.npz"
    trainer = quiet_trainer(callbacks=PredictionWriter(path))
    with pytest.warns(UserWarning, match="Couldn't infer the batch indices"):  # Lightning cannot; we count
        trainer.predict(MCDropoutPredictor(classifier(), samples=3), DataLoader(Stream(), batch_size=4))
    assert np.load(path)["index"].tolist() == list(range(11))


def test_classes_on_the_last_axis():
    torch.manual_seed(0)
    words = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 4))  # (B, T, C)
    x, y = torch.randn(5, 3, 6), torch.randint(4, (5, 3))
    out = MCDropoutPredictor(words, samples=9, task="multiclass", class_dim=-1).predict_step(x)
    samples = mc_forward(words, x, samples=9, seed=0).softmax(-1)
    torch.testing.assert_close(out["mean"], samples.mean(0).movedim(-1, 1))
    assert out["entropy"].shape == (5, 3)
    loader = DataLoader(TensorDataset(x, y), batch_size=4)
    values = quiet_trainer().test(
        MCDropoutPredictor(words, samples=9, task="multiclass", class_dim=-1), loader, verbose=False
    )[0]
    assert values["test_acc_dropout_off"] == pytest.approx((words(x).argmax(-1) == y).float().mean().item())
    with pytest.raises(UserInputError, match=r"targets must have the shape \(4, 4\).*pass class_dim"):
        quiet_trainer().test(MCDropoutPredictor(words, samples=9, task="multiclass"), loader, verbose=False)


def test_several_loaders_are_told_apart():
    model = classifier().eval()
    loaders = [DataLoader(TensorDataset(x, Y), batch_size=4) for x in (X, -X)]
    predictor = MCDropoutPredictor(model, samples=5)
    trainer = quiet_trainer()
    values = {name: value for part in trainer.test(predictor, loaders, verbose=False) for name, value in part.items()}
    for number, x in enumerate((X, -X)):
        share = (model(x).argmax(-1) == Y).float().mean().item()
        assert values[f"test_acc_dropout_off/loader_{number}"] == pytest.approx(share)
    assert "test_acc_dropout_off" in trainer.test(predictor, loaders[0], verbose=False)[0]


def test_validate_and_regression_metrics():
    model = Regressor(MLP(6, 2, dropout=0.5, norm="none"), noise="gaussian")
    loader = DataLoader(TensorDataset(X, X.sum(1)), batch_size=4)
    values = quiet_trainer().validate(MCDropoutPredictor(model, samples=20), loader, verbose=False)[0]
    assert set(values) == {f"val_{n}_dropout_{s}" for n in ("rmse", "nll", "coverage90") for s in ("off", "on")}
    with pytest.raises(UserInputError, match="inputs only"):
        quiet_trainer().test(MCDropoutPredictor(model, samples=5), DataLoader(X, batch_size=4), verbose=False)


def test_a_target_that_is_nan_is_told_by_nan():
    net = nn.Sequential(nn.Dropout(0.5), nn.Linear(6, 1))
    y = X[:, :1].clone()
    y[7] = float("nan")
    predictor = MCDropoutPredictor(net, samples=5, task="regression", tau=1.0)
    (scores,) = quiet_trainer().test(predictor, DataLoader(TensorDataset(X, y), 4), verbose=False)
    assert len(scores) == 6
    assert all(np.isnan(score) for score in scores.values())


def test_the_models_own_checkpoint_loads(tmp_path):
    trained = classifier()
    trainer = quiet_trainer(max_epochs=1)
    loader = DataLoader(TensorDataset(X, Y), batch_size=4)
    trainer.fit(trained, loader, loader)
    trainer.save_checkpoint(tmp_path / "own.ckpt")
    fresh = Classifier(MLP(6, 3, dropout=0.5, norm="none"), num_classes=3)
    loader = DataLoader(X, batch_size=4)
    predictor = MCDropoutPredictor(fresh, samples=5)
    batches = quiet_trainer().predict(predictor, loader, ckpt_path=tmp_path / "own.ckpt", weights_only=True)
    want = predict(trained, loader, samples=5)
    assert torch.equal(torch.cat([batch["mean"] for batch in batches]), want["mean"])


def _on_ranks(rank, path, world):
    trainer = quiet_trainer(
        strategy="ddp" if world > 1 else "auto",
        devices=world,
        callbacks=[PredictionWriter(path)],
        logger=CSVLogger(path.with_suffix(""), name="", version=""),
    )
    predictor = MCDropoutPredictor(classifier(), samples=10, seed=3)
    trainer.predict(predictor, DataLoader(X, batch_size=2 if world > 1 else 4), return_predictions=False)
    loader = DataLoader(TensorDataset(X[:10], Y[:10]), batch_size=5)
    with NO_FIGURES:
        return {name: float(value) for name, value in trainer.test(predictor, loader, verbose=False)[0].items()}


def test_two_ranks_predict_what_one_does(tmp_path):
    alone = _on_ranks(0, tmp_path / "one.npz", 1)
    ranks = run_ranks(_on_ranks, tmp_path / "two.npz", 2)
    one, two = np.load(tmp_path / "one.npz"), np.load(tmp_path / "two.npz")
    assert set(one) == set(two)
    for name in one:
        assert (one[name] == two[name]).all(), name
    assert ranks[0] == ranks[1]
    assert ranks[0] == pytest.approx(alone, rel=1e-5)
    tables = [tmp_path / run / "tables/test_most_uncertain-step000000.csv" for run in ("one", "two")]
    assert tables[0].read_text() == tables[1].read_text()  # the rows of both ranks


def test_options_are_checked_at_construction():
    with pytest.raises(UserInputError, match=r"samples must be in \[2"):
        MCDropoutPredictor(classifier(), samples=1)
    with pytest.raises(UserInputError, match="tau is the noise of a regression"):
        MCDropoutPredictor(classifier(), tau=1.0)
    with pytest.raises(UserInputError, match="found nothing random"):
        MCDropoutPredictor(Classifier(MLP(6, 3), num_classes=3), samples=5).predict_step(X)


def test_each_row_stops_at_its_own_time():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 128), nn.Dropout(0.5), nn.Linear(128, 5))
    x = torch.randn(12, 6) * torch.logspace(-2, 1, 12)[:, None]
    options = {"task": "regression", "samples": 600}
    out = MCDropoutPredictor(model, tolerance=0.05, **options).predict_step(x)
    taken = out["n_samples"].tolist()
    assert len(set(taken)) > 3
    assert set(taken) <= {16, 32, 64, 128, 256, 512, 600}
    samples = mc_forward(model, x, samples=600, seed=0)
    for row, n in enumerate(taken):  # the same samples as ever, only fewer
        torch.testing.assert_close(out["mean"][row], samples[:n, row].mean(0))
        torch.testing.assert_close(out["std"][row], samples[:n, row].std(0))
        assert n == 600 or out["mc_error"][row].max() <= 0.05
        before = 512 if n == 600 else n // 2
        assert n == 16 or (samples[:before, row].std(0) / before**0.5).max() > 0.05  # it was unsure
    parts = [
        MCDropoutPredictor(model, tolerance=0.05, chunk_size=chunk, **options).predict_step({"x": x[at], "index": at})
        for at, chunk in ((torch.arange(5), None), (torch.arange(5, 12), 4))
    ]
    for name, values in out.items():
        assert torch.equal(torch.cat([part[name] for part in parts]), values), name


def test_a_tight_tolerance_takes_all_samples():
    model = classifier()
    tight = MCDropoutPredictor(model, samples=100, tolerance=1e-9, quantiles=(0.5,)).predict_step(X)
    every = MCDropoutPredictor(model, samples=100, quantiles=(0.5,)).predict_step(X)
    assert tight.keys() == every.keys()
    for name, values in every.items():
        torch.testing.assert_close(tight[name], values)
    with pytest.raises(UserInputError, match="tolerance gives each row its own number of samples"):
        MCDropoutPredictor(model, tolerance=0.1, keep_samples=True)


def test_calibration_covers_what_it_promises():
    x = torch.randn(400, 6)
    model = Regressor(MLP(6, 1, dropout=0.5, norm="none"))
    y = model(x).detach() + torch.randn(400, 1)
    predictor = MCDropoutPredictor(model, samples=20)
    predictor.calibrate(DataLoader(TensorDataset(x[:200], y[:200]), batch_size=64), level=0.8)
    out = predictor.predict_step(x[200:])
    inside = (out["lower"] <= y[200:]) & (y[200:] <= out["upper"])
    assert inside.float().mean() == pytest.approx(0.8, abs=0.1)


def test_temperature_is_fitted_and_applied():
    x = torch.randn(300, 6)
    model = classifier().eval()
    labels = torch.distributions.Categorical(logits=model(x) / 5).sample()
    predictor = MCDropoutPredictor(model, samples=10, tolerance=10.0)  # which the calibration does not mind
    calibration = predictor.calibrate(DataLoader(TensorDataset(x, labels), batch_size=64), level=0.9)
    assert calibration.temperature > 1.5
    out = predictor.predict_step(x)
    samples = mc_forward(model, x, samples=10, seed=0)
    torch.testing.assert_close(out["mean"], (samples / calibration.temperature).softmax(-1).mean(0))
    assert out["set"].gather(1, labels[:, None]).float().mean() >= 0.9
    with pytest.raises(UserInputError, match="calibrate is for multiclass logits"):
        MCDropoutPredictor(model, task="multilabel", samples=5).calibrate([])


def test_calibration_leaves_out_what_has_no_target():
    x, model = torch.randn(60, 6), classifier().eval()
    y = torch.arange(60) % 3
    some = y.clone()
    some[::4] = -100
    known = some >= 0
    predictor = MCDropoutPredictor(model, samples=5)
    calibration = predictor.calibrate(DataLoader(TensorDataset(x, some), batch_size=25))
    probs = mc_forward(model, x, samples=5, seed=0).softmax(-1)[:, known]
    assert calibration.temperature == pytest.approx(TemperatureScaling.fit(probs, y[known]).temperature, rel=1e-3)
    with pytest.raises(UserInputError, match="the loader gave no batch"):
        predictor.calibrate([])
    with pytest.raises(UserInputError, match="classes from 0 to 2, but got 3"):
        predictor.calibrate([(x, y + 1)])


def dropping(width):
    return nn.Sequential(nn.Dropout(0.5), nn.Linear(6, width))


@pytest.mark.parametrize(
    ("net", "options", "message"),
    [
        (dropping(1)[0], {"task": "multiclass"}, None),
        (
            nn.Sequential(dropping(1), nn.Flatten(0)),
            {"task": "multiclass"},
            r"must return \(B, C\) .*has shape \(11,\)",
        ),
        (
            dropping(3),
            {"task": "multiclass", "class_dim": 2},
            r"class_dim=2 is no axis of one sample's shape \(11, 3\)",
        ),
    ],
)
def test_outputs_of_a_wrong_shape_are_said(net, options, message):
    predictor = MCDropoutPredictor(net, samples=3, **options)
    if message is None:
        assert predictor.predict_step(X)["mean"].shape == (11, 6)
        return
    with pytest.raises(UserInputError, match=message):
        predictor.predict_step(X)


def test_batches_that_cannot_be_right_are_said():
    predictor = MCDropoutPredictor(dropping(3), samples=3, task="multiclass")
    with pytest.raises(UserInputError, match=r"For other batches pass split=lambda batch: \(inputs, targets\)"):
        predictor.predict_step((1, 2, 3))
    with pytest.raises(UserInputError, match="must hold tensors with rows, but got a Tensor without any"):
        predictor.predict_step(torch.tensor(1.0))
    with pytest.raises(UserInputError, match="calibrate needs targets, but the batch holds inputs only"):
        predictor.calibrate(DataLoader(X, 4))
    with pytest.raises(UserInputError, match="class_dim=0 is the batch axis"):
        MCDropoutPredictor(dropping(3), samples=3, task="multiclass", class_dim=0)
    with pytest.raises(UserInputError, match=r"targets must be classes from 0 to 2, but got 7"):
        predictor.test_step((X, torch.full((11,), 7)), 0)
    with pytest.raises(UserInputError, match=r"must have the predictions' shape \(11, 3\), but got \(11, 2\)"):
        MCDropoutPredictor(dropping(3), samples=3, task="regression").test_step((X, torch.zeros(11, 2)), 0)
    maps = nn.Sequential(nn.Dropout(0.5), nn.Conv1d(6, 3, 1))
    data = DataLoader(TensorDataset(X[:, :, None].expand(-1, -1, 4), Y[:, None].expand(-1, 4)), 4)
    with pytest.raises(UserInputError, match=r"needs probabilities \(N, C\), but each row has \(3, 4\)"):
        MCDropoutPredictor(maps, samples=3, task="multiclass").calibrate(data)


def test_forward_is_the_models():
    net = dropping(3).eval()
    assert torch.equal(MCDropoutPredictor(net, samples=3, task="multiclass")(X), net(X))


def test_a_binary_net_is_tested_as_two_classes():
    net, y = dropping(1), (X[:, 0] > 0).long()
    predictor = MCDropoutPredictor(net, samples=50, task="binary")
    (scores,) = quiet_trainer().test(predictor, DataLoader(TensorDataset(X, y), 4), verbose=False)
    probs = {
        "on": mc_forward(net, X, samples=50, seed=0).sigmoid().mean(0)[:, 0],
        "off": net.eval()(X).sigmoid()[:, 0],
    }
    for state, p in probs.items():
        assert scores[f"test_acc_dropout_{state}"] == pytest.approx(float(((p > 0.5) == y).float().mean()))
        nll = nn.functional.binary_cross_entropy(p, y.float())
        assert scores[f"test_nll_dropout_{state}"] == pytest.approx(nll.item(), rel=1e-4)


def test_a_regression_without_known_noise_has_neither_likelihood_nor_coverage():
    predictor = MCDropoutPredictor(dropping(1), samples=5, task="regression")
    (scores,) = quiet_trainer().test(predictor, DataLoader(TensorDataset(X, X[:, :1]), 4), verbose=False)
    assert set(scores) == {"test_rmse_dropout_off", "test_rmse_dropout_on"}


def test_a_net_that_has_diverged_is_told_by_nan(tmp_path):
    net = dropping(3)
    nn.init.constant_(net[1].weight, float("nan"))
    trainer = quiet_trainer(logger=CSVLogger(tmp_path, name="", version=""))
    predictor = MCDropoutPredictor(net, samples=3, task="multiclass", seed=0)
    (scores,) = trainer.test(predictor, DataLoader(TensorDataset(X, Y), 4), verbose=False)
    assert all(np.isnan(scores[f"test_{name}_dropout_on"]) for name in ("nll", "ece", "ace", "aurc", "error_auroc"))
    assert not list(tmp_path.glob("figures/*calibration*"))


def test_the_predictors_own_checkpoint_loads_too():
    predictor = MCDropoutPredictor(dropping(3), samples=3, task="multiclass")
    checkpoint = {"state_dict": dict(predictor.state_dict())}
    predictor.on_load_checkpoint(checkpoint)
    assert checkpoint["state_dict"].keys() == predictor.state_dict().keys()
