"""Classifier and Regressor: losses against torch and scikit-learn, metrics, messages, two ranks."""

import numpy as np
import pytest
import torch
from helpers import quiet_trainer, run_ranks
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch import Callback
from sklearn import metrics as sk
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_tricks import MLP, Classifier, MCDropoutPredictor, Regressor
from lightning_tricks._base import UserInputError
from lightning_tricks.modules._losses import classification_loss, gaussian_nll, smoothed_targets


def loss_of(logits, y, task, classes, *, smoothing=0.0, weights=None):
    targets = smoothed_targets(y, task, classes, smoothing, dtype=logits.dtype)
    return classification_loss(logits, targets, y, task, weights)


@settings(max_examples=30)
@given(seed=st.integers(0, 10**6), smoothing=st.sampled_from([0.0, 0.1, 0.5]), weighted=st.booleans())
def test_multiclass_loss_is_torchs_and_one_hot_is_the_same(seed, smoothing, weighted):
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(6, 4, generator=g, dtype=torch.float64)
    y = torch.randint(4, (6,), generator=g)
    weights = torch.rand(4, generator=g, dtype=torch.float64) + 0.1 if weighted else None
    expected = F.cross_entropy(logits, y, weight=weights, label_smoothing=smoothing)
    torch.testing.assert_close(loss_of(logits, y, "multiclass", 4, smoothing=smoothing, weights=weights), expected)
    soft = F.one_hot(y, 4).double()
    torch.testing.assert_close(loss_of(logits, soft, "multiclass", 4, smoothing=smoothing, weights=weights), expected)


def test_binary_class_weights_equal_the_two_class_softmax():
    logit = torch.randn(8, dtype=torch.float64)
    y = torch.randint(2, (8,))
    weights = torch.tensor([0.5, 3.0], dtype=torch.float64)
    pair = torch.stack([torch.zeros_like(logit), logit], dim=1)
    expected = F.cross_entropy(pair, y, weight=weights)
    torch.testing.assert_close(loss_of(logit, y, "binary", 2, weights=weights), expected)


def test_multilabel_weights_are_positive_weights():
    logits, y = torch.randn(5, 3), torch.randint(2, (5, 3))
    weights = torch.tensor([1.0, 2.0, 0.5])
    expected = F.binary_cross_entropy_with_logits(logits, y.float(), pos_weight=weights)
    torch.testing.assert_close(loss_of(logits, y, "multilabel", 3, weights=weights), expected)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16])
def test_class_weights_are_those_of_the_labels_whatever_integers_hold_them(dtype):
    logits, y, weights = torch.randn(3, 3), torch.tensor([2, 0, 1]), torch.tensor([0.2, 1.0, 5.0])
    expected = F.cross_entropy(logits, y, weight=weights)
    torch.testing.assert_close(loss_of(logits, y.to(dtype), "multiclass", 3, weights=weights), expected)


def test_gaussian_nll_is_the_density():
    mean, log_variance, y = torch.randn(3, 5, 2).unbind()
    expected = -torch.distributions.Normal(mean, (0.5 * log_variance).exp()).log_prob(y).mean()
    torch.testing.assert_close(gaussian_nll(mean, log_variance, y), expected)


def loader(x, y, batch_size=8):
    return DataLoader(TensorDataset(x, y), batch_size)


def blobs(n=60, classes=3, seed=0):
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(classes, (n,), generator=g)
    x = torch.randn(n, 4, generator=g) + 1.5 * F.one_hot(y, 4).float()
    return x, y


def test_logged_metrics_are_scikit_learns(tmp_path):
    x, y = blobs()
    model = Classifier(MLP(4, 3), 3, top_k=2)
    trainer = quiet_trainer()
    trainer.fit(model, loader(x, y), loader(x, y, 7))
    logged = {k: v.item() for k, v in trainer.callback_metrics.items()}
    model.eval()
    with torch.no_grad():
        y, probs = y.numpy(), model(x).softmax(-1).numpy()
    assert logged["val_loss"] == pytest.approx(sk.log_loss(y, probs), abs=1e-5)
    assert logged["val_acc"] == pytest.approx(sk.accuracy_score(y, probs.argmax(1)), abs=1e-6)
    assert logged["val_f1"] == pytest.approx(sk.f1_score(y, probs.argmax(1), average="macro"), abs=1e-6)
    assert logged["val_top2"] == pytest.approx(sk.top_k_accuracy_score(y, probs, k=2), abs=1e-6)
    assert logged["val_ece"] == pytest.approx(slow_ece(probs, y), abs=1e-5)
    assert set(logged) == {"train_loss", "val_loss", "val_acc", "val_f1", "val_ece", "val_top2"}


def slow_ece(probs, y, bins=15):
    confidence, right = probs.max(1), probs.argmax(1) == y
    which = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    return sum(
        (which == b).mean() * abs(right[which == b].mean() - confidence[which == b].mean())
        for b in range(bins)
        if (which == b).any()
    )


@pytest.mark.parametrize("task", ["binary", "multilabel"])
def test_other_tasks_train_and_log(task):
    x = torch.randn(40, 4)
    y = (x[:, :1] > 0).long() if task == "binary" else (x[:, :3] > 0).long()
    model = Classifier(MLP(4, 1 if task == "binary" else 3), 2 if task == "binary" else 3, task=task, lr=0.05)
    trainer = quiet_trainer(max_epochs=15)
    trainer.fit(model, loader(x, y), loader(x, y))
    trainer.test(model, loader(x, y), verbose=False)
    assert trainer.callback_metrics["test_acc"] > 0.9
    assert trainer.callback_metrics["test_loss"] < 0.4


def test_soft_targets_train_as_well_as_hard_ones():
    x, y = blobs()
    soft = F.one_hot(y, 3).float()
    losses = []
    for targets in (y, soft):
        torch.manual_seed(0)
        model, trainer = Classifier(MLP(4, 3), 3), quiet_trainer()
        trainer.fit(model, loader(x, targets), loader(x, y))
        losses.append(trainer.callback_metrics["val_loss"])
    torch.testing.assert_close(*losses)


def test_label_smoothing_leaves_the_validation_loss_alone():
    x, y = blobs()
    values = []
    for smoothing in (0.0, 0.3):
        torch.manual_seed(0)
        trainer = quiet_trainer()
        trainer.validate(Classifier(MLP(4, 3), 3, label_smoothing=smoothing), loader(x, y), verbose=False)
        values.append(trainer.callback_metrics["val_loss"])
    torch.testing.assert_close(*values)


def test_dict_batches():
    x, y = blobs()
    rows = [{"image": a, "label": b} for a, b in zip(x, y, strict=True)]
    quiet_trainer().fit(Classifier(MLP(4, 3), 3), DataLoader(rows, 8), DataLoader(rows, 8))


def test_regressor_learns_the_noise():
    g = torch.Generator().manual_seed(0)
    x = torch.rand(800, 1, generator=g)
    y = 2 * x + 0.3 * torch.randn(800, 1, generator=g)
    model = Regressor(MLP(1, 2, (32,), norm="none"), noise="gaussian", lr=0.01)
    trainer = quiet_trainer(max_epochs=30)
    trainer.fit(model, loader(x, y, 50), loader(x, y, 50))
    with torch.no_grad():
        _, log_variance = model(x)
    assert (0.5 * log_variance).exp().mean().item() == pytest.approx(0.3, rel=0.15)
    assert trainer.callback_metrics["val_rmse"].item() == pytest.approx(0.3, rel=0.15)


def test_regression_metrics_are_scikit_learns():
    x, y = torch.randn(30, 4), torch.randn(30)
    model, trainer = Regressor(MLP(4, 1)), quiet_trainer()
    trainer.validate(model, loader(x, y), verbose=False)
    with torch.no_grad():
        prediction = model.eval()(x).squeeze(1)
    assert trainer.callback_metrics["val_rmse"].item() == pytest.approx(
        sk.root_mean_squared_error(y, prediction), rel=1e-5
    )
    assert trainer.callback_metrics["val_mae"].item() == pytest.approx(sk.mean_absolute_error(y, prediction), rel=1e-5)
    assert trainer.callback_metrics["val_loss"].item() == pytest.approx(sk.mean_squared_error(y, prediction), rel=1e-5)


def test_checkpoints_load_without_unpickling_objects(tmp_path):
    x, y = blobs()
    model = Classifier(MLP(4, 3), 3, class_weights=(1, 2, 3), class_names=("a", "b", "c"))
    trainer = quiet_trainer()
    trainer.fit(model, loader(x, y), loader(x, y))
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    torch.load(tmp_path / "model.ckpt", weights_only=True)
    again = Classifier.load_from_checkpoint(tmp_path / "model.ckpt", net=MLP(4, 3), weights_only=True)
    torch.testing.assert_close(again.eval()(x), model.eval()(x))
    assert again.hparams == model.hparams


def fit_on_rank(rank):
    torch.manual_seed(0)
    x, y = blobs(n=64)
    model, trainer = Classifier(MLP(4, 3, norm="none"), 3), quiet_trainer(strategy="ddp", devices=2, max_epochs=3)
    trainer.fit(model, loader(x, y, 32), loader(x, y))
    return {name: value.item() for name, value in trainer.callback_metrics.items()}


def test_two_ranks_log_what_one_process_does():
    first, second = run_ranks(fit_on_rank)
    assert first == second
    torch.manual_seed(0)
    x, y = blobs(n=64)
    model, trainer = Classifier(MLP(4, 3, norm="none"), 3), quiet_trainer(max_epochs=3)
    trainer.fit(model, loader(x, y, 64), loader(x, y))
    for name, value in trainer.callback_metrics.items():
        assert first[name] == pytest.approx(value.item(), abs=1e-5), name


BAD_BATCHES = {
    "labels out of range": (
        torch.randn(4, 4),
        torch.tensor([0, 1, 2, 3]),
        r"labels must be in \[0, 2\], but got 0 to 3",
    ),
    "labels from one": (torch.randn(3, 4), torch.tensor([1, 2, 3]), "Labels that start at 1 need a minus one"),
    "float labels": (torch.randn(3, 4), torch.tensor([0.0, 1.0, 2.0]), "convert them with .long()"),
    "soft rows that do not sum": (torch.randn(2, 4), torch.rand(2, 3) * 0.1, "must sum to 1 in each row"),
    "soft out of range": (torch.randn(2, 4), torch.full((2, 3), 2.0), r"probabilities in \[0, 1\]"),
    "soft NaN": (torch.randn(2, 4), torch.full((2, 3), float("nan")), r"probabilities in \[0, 1\]"),
    "wrong shape": (
        torch.randn(2, 4),
        torch.zeros(2, 1, dtype=torch.long),
        r"must have shape \(2,\), but got \(2, 1\)",
    ),
    "NaN inputs": (
        torch.tensor([[0.0] * 4, [float("nan")] * 4]),
        torch.tensor([0, 1]),
        "4 of 8 values are NaN .*row 1",
    ),
}


@pytest.mark.parametrize("case", BAD_BATCHES)
def test_bad_batches_get_a_sentence(case):
    x, y, message = BAD_BATCHES[case]
    with pytest.raises(UserInputError, match=message):
        Classifier(MLP(4, 3, norm="none"), 3).training_step((x, y), 0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Classifier(MLP(4, 3), 3, task="multi"), "task must be one of binary, multiclass, multilabel"),
        (lambda: Classifier(MLP(4, 3), 3, task="binary"), "a binary classifier has num_classes=2, but got 3"),
        (lambda: Classifier(MLP(4, 3), 3, class_weights=[1, 2]), "class_weights must hold 3 entries"),
        (lambda: Classifier(MLP(4, 3), 3, class_weights=[1, 2, 0]), "every entry of class_weights"),
        (lambda: Classifier(MLP(4, 3), 3, optimizer="adm"), "Did you mean 'adam'"),
        (lambda: Classifier(MLP(4, 3), 3, label_smoothing=1), r"label_smoothing must be in \[0, 1\)"),
        (lambda: Classifier(MLP(4, 3), 3, top_k=4), r"top_k must be in \[1, 3\]"),
        (lambda: Classifier(MLP(4, 1), 2, task="binary", top_k=2), "top_k needs task='multiclass'"),
        (lambda: Regressor(MLP(4, 1), noise="student"), "noise must be one of gaussian, none"),
        (lambda: Regressor(MLP(4, 1), 2)(torch.zeros(3, 4)), r"must return \(B, 2\), but got \(3, 1\)"),
        (
            lambda: Classifier(MLP(4, 2), 3).training_step((torch.zeros(3, 4), torch.zeros(3).long()), 0),
            "num_classes, the",
        ),
        (lambda: Classifier(MLP(4, 2), 2).training_step(torch.zeros(3, 4), 0), "but got inputs only"),
        (lambda: Classifier(MLP(4, 2), 2).training_step({"pixels": 1}, 0), r"but got the keys \['pixels'\]"),
        (lambda: Classifier(MLP(4, 2), 2).training_step((1, 2, 3), 0), "but got a tuple of 3"),
        (
            lambda: Classifier(MLP(4, 2), 2).training_step((torch.zeros(3, 4), torch.zeros(3, dtype=torch.cfloat)), 0),
            "must be integers or probabilities, but got torch.complex64",
        ),
    ],
)
def test_bad_arguments_get_a_sentence(make, message):
    with pytest.raises(UserInputError, match=message):
        make()


@pytest.mark.filterwarnings("ignore:Total length of .* across ranks is zero")
def test_an_empty_training_set_is_said():
    x, y = blobs()
    with pytest.raises(UserInputError, match="the training set must hold at least one batch"):
        quiet_trainer().fit(Classifier(MLP(4, 3), 3), loader(x[:0], y[:0]), loader(x, y))
    quiet_trainer(limit_train_batches=0).fit(Classifier(MLP(4, 3), 3), loader(x, y), loader(x, y))


def test_inputs_may_be_whole_numbers():
    net = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(12, 3))
    x, y = torch.arange(15).reshape(5, 3) % 9, torch.arange(5) % 3
    (scores,) = quiet_trainer().validate(Classifier(net, 3), loader(x, y), verbose=False)
    assert scores["val_loss"] == pytest.approx(F.cross_entropy(net(x), y).item(), rel=1e-5)


def test_regression_tests_log_what_scikit_learn_says():
    x = torch.linspace(-1, 1, 20)[:, None]
    model, y = Regressor(nn.Linear(1, 1)), x**2
    (scores,) = quiet_trainer().test(model, loader(x, y), verbose=False)
    with torch.no_grad():
        found = model(x).numpy()
    assert scores["test_rmse"] == pytest.approx(sk.root_mean_squared_error(y, found), rel=1e-5)
    assert scores["test_mae"] == pytest.approx(sk.mean_absolute_error(y, found), rel=1e-5)


def test_regression_never_broadcasts():
    with pytest.raises(UserInputError, match=r"prediction's shape \(5, 1\), but got \(1, 5\)"):
        Regressor(MLP(4, 1)).training_step((torch.randn(5, 4), torch.randn(1, 5)), 0)


def test_confusion_matrix_is_logged_as_a_picture(tmp_path):
    from lightning.pytorch.loggers import CSVLogger

    x, y = blobs()
    trainer = quiet_trainer(logger=CSVLogger(tmp_path, name="", version=""))
    trainer.test(Classifier(nn.Sequential(MLP(4, 3)), 3), loader(x, y), verbose=False)
    (picture,) = tmp_path.glob("figures/test_confusion_matrix*.png")
    assert picture.read_bytes().startswith(b"\x89PNG")


class Stopped(Exception):  # noqa: N818 - the run is meant to end by it
    pass


class StopIn(Callback):
    """Ends a run in the second batch of an evaluation, as an interrupt would."""

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
        if batch_idx == 1:
            raise Stopped

    on_test_batch_end = on_validation_batch_end


@pytest.mark.parametrize("stage", ["validate", "test"])
@pytest.mark.parametrize("kind", ["classifier", "regressor", "predictor"])
def test_metrics_of_an_interrupted_evaluation_are_forgotten(kind, stage):
    x = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))
    y = (x[:, 0] > 0).long() if kind != "regressor" else x[:, :1]
    torch.manual_seed(0)
    model = Regressor(MLP(4, 1)) if kind == "regressor" else Classifier(MLP(4, 2, dropout=0.5), 2)
    if kind == "predictor":
        model = MCDropoutPredictor(model, samples=4, seed=0)
    (expected,) = getattr(quiet_trainer(), stage)(model, loader(x, y), verbose=False)
    with pytest.raises(Stopped):
        getattr(quiet_trainer(callbacks=[StopIn()]), stage)(model, loader(x, y), verbose=False)
    assert getattr(quiet_trainer(), stage)(model, loader(x, y), verbose=False) == [expected]


def test_a_compiled_step_leaves_metrics_to_python():
    model, labels = Classifier(nn.Linear(4, 3), 3), torch.tensor([0, 1, 2, 0])
    model.log = model.log_dict = lambda *args, **kwargs: None
    with torch.no_grad():
        torch.compile(model._step, backend="eager")((torch.randn(4, 4), labels), 0, "val")
    assert model.val_metrics["acc"].tp.item() + model.val_metrics["acc"].fn.item() == 4


@pytest.mark.parametrize("classes", [3, 8])  # a word of eight letters is no list of eight weights
def test_class_weights_as_a_word_are_refused(classes):
    with pytest.raises(UserInputError, match=r"one positive number per class, but got 'balanced'.*num_classes \* n_c"):
        Classifier(MLP(4, classes), classes, class_weights="balanced")
