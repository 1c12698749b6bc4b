"""MCDropoutPredictor in a Trainer: predict, test and validate, with any batch, from a checkpoint, on two ranks."""

import csv

import numpy as np
import pytest
import torch
from helpers import quiet_trainer, run_ranks
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from lightning_tricks import MLP, Classifier, MCDropoutPredictor, PredictionWriter, Regressor, mc_forward
from lightning_tricks._base import UserInputError

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


def test_off_and_on_are_logged_side_by_side(tmp_path):
    model = classifier().eval()
    pictures = nn.Sequential(nn.Flatten(), model)
    pictures.task = "multiclass"
    images = X.reshape(11, 1, 2, 3)
    trainer = quiet_trainer(logger=CSVLogger(tmp_path))
    predictor = MCDropoutPredictor(pictures, samples=30)
    values = trainer.test(predictor, DataLoader(TensorDataset(images, Y), batch_size=4), verbose=False)[0]
    off = model(X).softmax(-1)
    assert values["test_acc_dropout_off"] == pytest.approx((off.argmax(-1) == Y).float().mean().item())
    assert values["test_nll_dropout_off"] == pytest.approx(-off[range(11), Y].log().mean().item(), rel=1e-5)
    on = mc_forward(pictures, images, samples=30, seed=0).softmax(-1).mean(0)
    assert values["test_nll_dropout_on"] == pytest.approx(-on[range(11), Y].log().mean().item(), rel=1e-5)
    assert set(values) == {
        f"test_{name}_dropout_{state}"
        for name in ("acc", "nll", "brier", "ace", "aurc", "error_auroc")
        for state in ("off", "on")
    }
    table = next(tmp_path.rglob("*most_uncertain*.csv"))
    rows = list(csv.DictReader(table.read_text().splitlines()))
    information = [float(row["mutual_info"]) for row in rows]
    assert information == sorted(information, reverse=True)
    assert sorted(int(row["index"]) for row in rows) == list(range(11))
    assert next(tmp_path.rglob("*most_uncertain_pictures*.png")).stat().st_size > 1000


def test_validate_and_regression_metrics():
    model = Regressor(MLP(6, 2, dropout=0.5, norm="none"), noise="gaussian")
    loader = DataLoader(TensorDataset(X, X.sum(1)), batch_size=4)
    values = quiet_trainer().validate(MCDropoutPredictor(model, samples=20), loader, verbose=False)[0]
    assert set(values) == {f"val_{n}_dropout_{s}" for n in ("rmse", "nll", "coverage90") for s in ("off", "on")}
    with pytest.raises(UserInputError, match="inputs only"):
        quiet_trainer().test(MCDropoutPredictor(model, samples=5), DataLoader(X, batch_size=4), verbose=False)


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
    trainer = quiet_trainer(strategy="ddp" if world > 1 else "auto", devices=world, callbacks=[PredictionWriter(path)])
    predictor = MCDropoutPredictor(classifier(), samples=10, seed=3)
    trainer.predict(predictor, DataLoader(X, batch_size=2 if world > 1 else 4), return_predictions=False)
    loader = DataLoader(TensorDataset(X[:10], Y[:10]), batch_size=5)
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


def test_options_are_checked_at_construction():
    with pytest.raises(UserInputError, match=r"samples must be in \[2"):
        MCDropoutPredictor(classifier(), samples=1)
    with pytest.raises(UserInputError, match="tau is the noise of a regression"):
        MCDropoutPredictor(classifier(), tau=1.0)
    with pytest.raises(UserInputError, match="found nothing random"):
        MCDropoutPredictor(Classifier(MLP(6, 3), num_classes=3), samples=5).predict_step(X)


def test_tolerance_stops_early():
    model = classifier()
    loose = MCDropoutPredictor(model, samples=100, tolerance=1.0).predict_step(X)
    assert (loose["n_samples"] == 16).all()
    tight = MCDropoutPredictor(model, samples=100, tolerance=1e-9).predict_step(X)
    every = MCDropoutPredictor(model, samples=100).predict_step(X)
    assert (tight["n_samples"] == 100).all()
    torch.testing.assert_close(tight["mean"], every["mean"])
    middle = MCDropoutPredictor(model, samples=1000, tolerance=0.01).predict_step(X)
    assert 16 < int(middle["n_samples"][0]) < 1000
    assert middle["mc_error"].max() <= 0.01


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
    predictor = MCDropoutPredictor(model, samples=10)
    calibration = predictor.calibrate(DataLoader(TensorDataset(x, labels), batch_size=64), level=0.9)
    assert calibration.temperature > 1.5
    out = predictor.predict_step(x)
    samples = mc_forward(model, x, samples=10, seed=0)
    torch.testing.assert_close(out["mean"], (samples / calibration.temperature).softmax(-1).mean(0))
    assert out["set"].gather(1, labels[:, None]).float().mean() >= 0.9
    with pytest.raises(UserInputError, match="calibrate is for multiclass logits"):
        MCDropoutPredictor(model, task="multilabel", samples=5).calibrate([])
