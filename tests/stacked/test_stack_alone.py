"""Stacked trainings against the same models trained one by one: weights, metrics, isolation."""

import math

import pytest
import torch
from helpers import quiet_trainer
from stack_models import CPU, Handmade, Loaders, digits, distance, make_models, make_net
from torch.utils.data import DataLoader, TensorDataset

import lightning_tricks as lt


@pytest.mark.parametrize(
    ("kind", "optimizer"),
    [
        *[("mlp", optimizer) for optimizer in ("sgd", "nesterov", "adam", "adamw")],
        *[("conv", "momentum"), ("conv", "adamw"), ("own", "adam"), ("layer", "nesterov"), ("group", "adamw")],
    ],
)
def test_models_end_as_with_a_trainer_of_their_own(kind, optimizer):
    options = {**CPU, "max_epochs": 2, "precision": "64-true", "gradient_clip_val": 0.5}
    stacked = make_models(kind, optimizer)
    runs = lt.fit_stacked(stacked, digits(), trainer=options)
    for model, together, run in zip(make_models(kind, optimizer), stacked, runs, strict=True):
        trainer = quiet_trainer(**options)
        trainer.fit(model, digits())
        assert distance(model, together) < 1e-6
        assert run.epochs == 2
        for name in ("val_loss", "val_acc", "train_loss"):
            assert run.history[-1][name] == pytest.approx(float(trainer.callback_metrics[name]), abs=1e-6)


def test_several_validations_per_epoch_and_accumulated_gradients():
    options = {**CPU, "max_epochs": 2, "accumulate_grad_batches": 2, "val_check_interval": 0.5, "precision": "64-true"}
    stacked = make_models("mlp", "adam")
    runs = lt.fit_stacked(stacked, digits(), trainer=options)
    for model, together, run in zip(make_models("mlp", "adam"), stacked, runs, strict=True):
        trainer = quiet_trainer(**options)
        trainer.fit(model, digits())
        assert distance(model, together) < 1e-6
        assert [line["step"] for line in run.history] == [1, 2, 3, 4]
        assert run.final_value == pytest.approx(float(trainer.callback_metrics["val_loss"]))


def test_single_precision_agrees_to_rounding():
    stacked = make_models("mlp", "momentum")
    lt.fit_stacked(stacked, digits(), trainer={**CPU, "max_epochs": 2})
    for model, together in zip(make_models("mlp", "momentum"), stacked, strict=True):
        quiet_trainer(max_epochs=2, **CPU).fit(model, digits())
        assert distance(model, together) < 1e-5


@pytest.mark.parametrize("kind", ["mlp", "conv"])
def test_steps_that_people_write_are_stacked_too(kind):
    rates, options = (1e-3, 1e-2), {**CPU, "max_epochs": 2, "precision": "64-true"}
    stacked = [Handmade(rate, kind) for rate in rates]
    runs = lt.fit_stacked(stacked, digits(), monitor="val_right", mode="max", trainer=options)
    for rate, together, run in zip(rates, stacked, runs, strict=True):
        model, trainer = Handmade(rate, kind), quiet_trainer(**options)
        trainer.fit(model, digits())
        assert distance(model, together) < 1e-6
        for name, value in trainer.callback_metrics.items():
            assert run.history[-1][name] == pytest.approx(float(value), rel=1e-5)
        assert run.value == max(line["val_right"] for line in run.history)


class Betas(lt.Classifier):
    """Hyperparameters that ``build_optimizer`` has no argument for."""

    def __init__(self, beta):
        super().__init__(make_net("layer"), 10)
        self.beta = beta

    def configure_optimizers(self):
        bias = [p for p in self.parameters() if p.ndim == 1]
        groups = [{"params": [p for p in self.parameters() if p.ndim > 1]}, {"params": bias, "lr": 1e-4, "eps": 1e-6}]
        return torch.optim.Adam(groups, lr=1e-2, betas=(self.beta, 1 - (1 - self.beta) / 10))


def test_betas_momentum_and_groups_of_their_own():
    for make in (lambda b: Betas(b), lambda b: with_momentum(b)):
        stacked = [make(beta) for beta in (0.5, 0.9, 0.95)]
        lt.fit_stacked(stacked, digits(), trainer={**CPU, "max_epochs": 2, "precision": "64-true"})
        for beta, together in zip((0.5, 0.9, 0.95), stacked, strict=True):
            model = make(beta)
            quiet_trainer(max_epochs=2, precision="64-true", **CPU).fit(model, digits())
            assert distance(model, together) < 1e-6


def with_momentum(momentum):
    model = lt.Classifier(make_net("layer"), 10)
    model.configure_optimizers = lambda: torch.optim.SGD(
        model.parameters(), lr=0.05, momentum=momentum, nesterov=True, weight_decay=0.01
    )
    return model


@pytest.mark.parametrize("case", ["regression", "gaussian", "binary", "multilabel", "weights", "soft"])
def test_every_task_has_its_own_loss_and_metrics(case):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(96, 5, generator=generator)
    labels = (x[:, :3] + 0.3 * torch.randn(96, 3, generator=generator) > 0).long()
    targets = {
        "regression": x[:, :1] * x[:, 1:2],
        "gaussian": x[:, 0],
        "binary": labels[:, 0],
        "multilabel": labels,
        "weights": labels.sum(1),
        "soft": torch.softmax(x[:, :4], -1),
    }
    outputs = {"regression": 1, "gaussian": 2, "binary": 1, "multilabel": 3, "weights": 4, "soft": 4}

    def make(smoothing):
        torch.manual_seed(0)
        net = lt.MLP(5, outputs[case], hidden_features=(6,), norm="none")
        if case in ("regression", "gaussian"):
            return lt.Regressor(net, noise="gaussian" if case == "gaussian" else "none", lr=smoothing / 10)
        classes = 2 if case == "binary" else outputs[case]
        task = case if case in ("binary", "multilabel") else "multiclass"
        weights = None if case == "soft" else [1.0 + i for i in range(classes)]
        return lt.Classifier(net, classes, task=task, class_weights=weights, label_smoothing=smoothing, lr=0.01)

    data = DataLoader(TensorDataset(x, targets[case]), 40)
    stacked = [make(smoothing) for smoothing in (0.1, 0.2)]
    monitor = {"regression": "val_mae", "gaussian": "val_rmse", "binary": "val_f1"}.get(case, "val_ece")
    runs = lt.fit_stacked(stacked, Loaders(data), monitor=monitor, trainer={**CPU, "max_epochs": 2})
    for smoothing, together, run in zip((0.1, 0.2), stacked, runs, strict=True):
        model, trainer = make(smoothing), quiet_trainer(max_epochs=2, **CPU)
        trainer.fit(model, data, data)
        assert distance(model, together) < 1e-5
        for name in run.history[-1].keys() - {"epoch", "step"}:
            assert run.history[-1][name] == pytest.approx(float(trainer.callback_metrics[name]), abs=1e-4), name


@pytest.mark.parametrize("kind", ["mlp", "own"])
def test_a_model_that_diverges_does_not_touch_its_neighbours(kind):
    settings = ((1e-2, 0.0, 0.0), (1e30, 0.0, 0.0), (1e-3, 0.0, 0.0))
    options = {**CPU, "max_epochs": 2, "gradient_clip_val": 1.0}
    together, without = make_models(kind, "momentum", settings), make_models(kind, "momentum", settings[::2])
    runs = lt.fit_stacked(together, digits(), trainer=options)
    lt.fit_stacked(without, digits(), trainer=options)
    assert not math.isfinite(runs[1].history[-1]["val_loss"])
    assert distance(together[0], without[0]) < 1e-6
    assert distance(together[2], without[1]) < 1e-6
