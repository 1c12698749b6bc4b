"""Stacked trainings against the same models trained one by one, and searches that train so."""

import copy
import csv
import math
import os
import signal
import time
from multiprocessing import get_context

import optuna
import pytest
import torch
import yaml
from helpers import quiet_trainer
from lightning.pytorch import Callback, LightningDataModule, LightningModule
from lightning.pytorch.plugins import MixedPrecision
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MeanMetric

import lightning_tricks as lt
from lightning_tricks._base import MissingMetricError, UserInputError
from lightning_tricks.stacked._masks import keep_mask
from lightning_tricks.stacked._net import StackedNet
from lightning_tricks.stacked._optimizer import StackedOptimizer
from lightning_tricks.stacked._stopping import Rules
from lightning_tricks.stacked.optimizers import Group, spec_of

optuna.logging.set_verbosity(optuna.logging.ERROR)
CPU = {"accelerator": "cpu", "num_sanity_val_steps": 0}


class Loaders(LightningDataModule):
    def __init__(self, train, val=None):
        super().__init__()
        self.train, self.val = train, val or train

    def train_dataloader(self):
        return self.train

    def val_dataloader(self):
        return self.val


def digits(batch_size=50, shuffle=False):
    """A few real pictures: enough to learn something from, and quickly read."""
    x, y = (torch.as_tensor(column) for column in load_digits(return_X_y=True))
    x = (x.float() / 16).view(-1, 1, 8, 8)
    train = DataLoader(TensorDataset(x[:200], y[:200]), batch_size, shuffle=shuffle)
    return Loaders(train, DataLoader(TensorDataset(x[200:300], y[200:300]), 60))


def make_net(kind, dropout=0.0):
    torch.manual_seed(1)
    return {
        "mlp": lambda: lt.MLP(64, 10, hidden_features=(12, 8), dropout=dropout),
        "layer": lambda: lt.MLP(64, 10, hidden_features=(12,), norm="layer", activation="gelu"),
        "conv": lambda: lt.ConvNet(1, 10, channels=(3, 4)),
        "group": lambda: lt.ConvNet(1, 10, channels=(3, 4), norm="layer"),
        "own": lambda: Own(),
    }[kind]()


class Own(nn.Module):
    """A forward of its own, which only vmap can run."""

    def __init__(self, slope=1.0):
        super().__init__()
        self.one, self.two, self.norm = nn.Linear(64, 10), nn.Linear(64, 10), nn.BatchNorm1d(10)
        self.slope = slope

    def forward(self, x):
        x = x.flatten(1)
        return self.norm(self.one(x)) * torch.sigmoid(self.slope * self.two(x))


def make_models(kind, optimizer, settings=((1e-3, 0.0, 0.0), (1e-2, 0.1, 0.1))):
    return [
        lt.Classifier(make_net(kind), 10, optimizer=optimizer, lr=lr, weight_decay=decay, label_smoothing=smoothing)
        for lr, decay, smoothing in settings
    ]


def distance(one, other):
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return max(float((a.double() - b.double()).abs().max()) for a, b in pairs)


# The same as one by one. In double precision, since Adam blows rounding errors up wherever a gradient is nearly zero.


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


# Early stopping and falling learning rates.


def watch():
    return [
        lt.ReduceLROnPlateau("val_loss", factor=0.3, patience=0),
        lt.EarlyStopping("val_loss", patience=2, divergence_threshold=2.8),
    ]


def test_each_model_stops_and_reduces_as_it_would_alone():
    settings = ((1e-3, 0.0, 0.0), (0.3, 0.0, 0.0), (2.0, 0.0, 0.0), (30.0, 0.0, 0.0))
    options = {**CPU, "max_epochs": 8, "precision": "64-true"}
    stacked, made = make_models("layer", "momentum", settings), [watch() for _ in settings]
    runs = lt.fit_stacked(stacked, digits(), callbacks=made, trainer=options)
    ends = set()
    for i, model in enumerate(make_models("layer", "momentum", settings)):
        plateau, stopping = watch()
        trainer = quiet_trainer(callbacks=[plateau, stopping], **options)
        trainer.fit(model, digits())
        assert runs[i].epochs == trainer.current_epoch
        assert (runs[i].best_epoch, runs[i].best_step) == (stopping.best_epoch, stopping.best_step)
        assert runs[i].value == pytest.approx(float(stopping.best_score), rel=1e-6)
        assert [tuple(each) for each in made[i][0].reductions] == [
            pytest.approx(tuple(each)) for each in plateau.reductions
        ]
        assert distance(model, stacked[i]) < 1e-7  # the best weights
        ends.add(runs[i].epochs)
    assert len(ends) > 2, "this test is about models that end at different times"


def test_nobody_spends_time_on_models_that_have_stopped(monkeypatch):
    sizes = []
    forward = StackedNet.forward
    monkeypatch.setattr(StackedNet, "forward", lambda self, x: sizes.append(self.nets) or forward(self, x))
    callbacks = [[lt.EarlyStopping("val_loss", patience=1, stopping_threshold=bound)] for bound in (9.0, 0.0, 9.0)]
    runs = lt.fit_stacked(
        make_models("mlp", "adam", ((1e-3, 0.0, 0.0),) * 3),
        digits(500),
        callbacks=callbacks,
        trainer={**CPU, "max_epochs": 3},
    )
    assert [run.epochs for run in runs] == [1, 3, 1]
    # The check; then, in each epoch, a batch of training and two of validation.
    assert sizes == [3, 3, 3, 3, *[1, 1, 1] * 2]
    assert "is better than 9.0" in runs[0].message
    assert runs[1].message is None


def test_min_epochs_holds():
    callbacks = [[lt.EarlyStopping("val_loss", patience=1, stopping_threshold=9.0)] for _ in range(2)]
    options = {**CPU, "max_epochs": 5, "min_epochs": 3}
    runs = lt.fit_stacked(make_models("mlp", "adam"), digits(500), callbacks=callbacks, trainer=options)
    assert [run.epochs for run in runs] == [3, 3]


def test_weights_are_initialised_as_by_a_fit():
    def made():
        torch.manual_seed(4)
        return [
            lt.Classifier(lt.MLP(64, 10, hidden_features=(8,)), 10, optimizer="momentum", lr=1e-2) for _ in range(2)
        ]

    for seed in (None, 5):
        stacked = made()
        lt.fit_stacked(
            stacked, digits(), callbacks=lambda seed=seed: [lt.WeightInit(seed=seed)], trainer={**CPU, "max_epochs": 1}
        )
        model = made()[0]
        quiet_trainer(callbacks=[lt.WeightInit(seed=seed)], **CPU).fit(model, digits())
        assert distance(model, stacked[0]) < 1e-5


# Isolation.


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


# Dropout.


def test_each_net_drops_at_its_own_rate():
    for net in (
        nn.Sequential(nn.Flatten(), nn.Linear(20, 300), nn.Dropout(0.5)),
        nn.Sequential(nn.Conv2d(1, 30, 3, padding=1), nn.Dropout(0.5), nn.Flatten()),
        Around(nn.Sequential(nn.Linear(20, 300), nn.Dropout(0.5))),
    ):
        nets = []
        for rate in (0.0, 0.2, 0.7):
            nets.append(copy.deepcopy(net))
            next(m for m in nets[-1].modules() if isinstance(m, nn.Dropout)).p = rate
        x = (
            torch.ones(200, 20)
            if not isinstance(net[0] if isinstance(net, nn.Sequential) else None, nn.Conv2d)
            else (torch.ones(20, 1, 5, 4))
        )
        stack = StackedNet(nets)
        torch.manual_seed(0)
        with torch.no_grad():
            out, plain = stack(x), stack.eval()(x)
        dropped = (out == 0).flatten(1).float().mean(1)
        torch.testing.assert_close(dropped, torch.tensor([0.0, 0.2, 0.7]), atol=0.02, rtol=0)
        for i, rate in enumerate((0.0, 0.2, 0.7)):  # what is kept is scaled up
            kept = out[i] != 0
            torch.testing.assert_close(out[i][kept], (plain[i] / (1 - rate))[kept], rtol=1e-4, atol=1e-5)
        assert not torch.equal(out[1] == 0, out[2] == 0)


class Around(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x) + 0.0


def test_a_mask_of_rate_zero_keeps_everything_and_masks_differ_between_nets():
    masks = keep_mask((4, 5000), torch.tensor([0.0, 0.5, 0.5, 0.9]).view(4, 1), torch.Generator().manual_seed(0))
    assert masks[0].all()
    assert set(masks.unique().tolist()) == {0.0, 1.0}
    assert 0.4 < (masks[1] == masks[2]).float().mean() < 0.6
    assert masks.mean(1).tolist() == pytest.approx([1, 0.5, 0.5, 0.1], abs=0.03)


class DropsTwice(nn.Module):
    """Drops what all nets share, and what each has for itself; by vmap."""

    def __init__(self, p, kind):
        super().__init__()
        self.drop = kind(p)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x):
        dropped = self.drop(x)
        return dropped, self.drop(x * self.scale)


@pytest.mark.parametrize("kind", [nn.Dropout, nn.Dropout2d])
def test_dropout_by_vmap_has_each_nets_rate_and_gradients(kind):
    rates = torch.tensor([0.1, 0.5, 0.9])
    stack = StackedNet([DropsTwice(float(p), kind) for p in rates])
    assert stack.way == "vmap"
    x = torch.ones(2000, 6, 2, 2, requires_grad=True)
    for out in stack(x):
        dropped = (out == 0).float()
        assert dropped.mean((1, 2, 3, 4)).tolist() == pytest.approx(rates.tolist(), abs=0.02)
        torch.testing.assert_close(out.amax((1, 2, 3, 4)), 1 / (1 - rates))
        assert bool((dropped == dropped[..., :1, :1]).all()) == (kind is nn.Dropout2d), "whole channels"
        assert not torch.equal(dropped[0], dropped[1])
        weight = torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1, 1, 1)
        (got,) = torch.autograd.grad((weight * out.square()).sum(), x)
        torch.testing.assert_close(got, (2 * weight * out / (1 - rates.view(3, 1, 1, 1, 1))).sum(0))
    stack.eval()
    assert torch.equal(stack(x)[0], x.expand(3, *x.shape))


def test_training_with_dropout_is_as_good_as_one_by_one():
    def made(seed):
        torch.manual_seed(seed)
        return lt.Classifier(lt.MLP(64, 10, hidden_features=(32,), dropout=0.5), 10, lr=1e-2)

    stacked = lt.fit_stacked([made(i) for i in range(8)], digits(), trainer={**CPU, "max_epochs": 4})
    alone = []
    for i in range(4):
        trainer = quiet_trainer(max_epochs=4, **CPU)
        trainer.fit(made(i), digits())
        alone.append(float(trainer.callback_metrics["val_loss"]))
    mean = sum(run.history[-1]["val_loss"] for run in stacked) / 8
    assert mean == pytest.approx(sum(alone) / 4, rel=0.25)


# The stack by itself.


def test_chain_and_vmap_say_the_same_and_move_the_same_statistics():
    nets = [make_net("mlp") for _ in range(3)]
    for net in nets:
        nn.init.normal_(net.layers[1].weight)
    chain, vmapped = StackedNet(nets), StackedNet(nets)
    vmapped.way = "vmap"
    for _ in range(2):
        x = torch.rand(16, 64)
        alone = nets[1].train()(x)
        torch.testing.assert_close(chain(x)[1], alone)
        torch.testing.assert_close(vmapped(x)[1], alone)
    for one, other in zip(chain.tensors(), vmapped.tensors(), strict=True):
        torch.testing.assert_close(one, other)
    for stack in (chain, vmapped):
        torch.testing.assert_close(stack.eval()(x)[1], nets[1].eval()(x))
    assert (chain.way, vmapped.way) == ("chain", "vmap")


def hooked(net):
    net[0].register_forward_hook(lambda module, args, output: output + 1)
    return net


@pytest.mark.parametrize(
    ("make", "shape", "way"),
    [
        (lambda: nn.Sequential(nn.Linear(6, 4)), (5, 3, 6), "vmap"),
        (lambda: nn.Sequential(nn.Linear(6, 4), nn.Flatten()), (5, 6), "chain"),
        (lambda: nn.Sequential(nn.Linear(6, 4), nn.MaxPool2d(2)), (5, 2, 6), "vmap"),
        (lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU()), (5, 2, 6, 6), "chain"),
        (lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(2)), (5, 2, 6, 6), "vmap"),
        (lambda: nn.Sequential(nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular")), (5, 2, 6, 6), "vmap"),
        (lambda: nn.Sequential(nn.Conv2d(2, 4, 3, groups=2)), (5, 2, 6, 6), "vmap"),
        (lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 3, groups=2)), (5, 2, 6, 6), "chain"),
        (lambda: nn.Sequential(nn.BatchNorm2d(2), nn.Conv2d(2, 3, 3)), (5, 2, 6, 6), "vmap"),
        (lambda: nn.Sequential(nn.GroupNorm(2, 2), nn.Conv2d(2, 3, 3)), (5, 2, 6, 6), "vmap"),
        (lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.LayerNorm((3, 4, 4))), (5, 2, 6, 6), "vmap"),
        (lambda: nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.0), nn.BatchNorm1d(6).eval()), (5, 6), "chain"),
        (lambda: hooked(nn.Sequential(nn.Linear(6, 4))), (5, 6), "vmap"),
        (lambda: nn.Sequential(tied := nn.Linear(6, 6), nn.Tanh(), tied), (5, 6), "vmap"),
    ],
    ids=[
        "sequences", "flat already", "pooled", "maps out", "half flattened", "circular", "groups of the input",
        "groups", "norm of the input", "groups norm of the input", "norm of maps", "frozen norm", "hook", "tied",
    ],
)  # fmt: skip
def test_every_net_says_what_it_says_by_itself_whichever_way(make, shape, way):
    torch.manual_seed(0)
    nets = [make().double() for _ in range(3)]
    x = torch.randn(shape, dtype=torch.float64)
    stack = StackedNet(nets)
    for _ in range(2):
        out = stack(x)
        for i, net in enumerate(nets):
            torch.testing.assert_close(out[i], net(x))
    assert stack.way == way


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.Adam, torch.optim.SGD])
def test_the_stacked_optimizer_is_torchs(kind):
    torch.manual_seed(0)
    nets = [nn.Linear(4, 2).double() for _ in range(2)]
    stack = StackedNet(nets)
    alone = [kind(net.parameters(), lr=rate, weight_decay=0.0) for net, rate in zip(nets, (0.1, 0.01), strict=True)]
    together = StackedOptimizer(stack.parameters(), spec_of(alone, nets))
    x = torch.randn(6, 4, dtype=torch.float64)
    for step in range(3):
        together.zero_grad()
        stack(x).square().sum().backward()
        together.clip(0.5, by_value=True)
        together.step()
        for i, (net, optimizer) in enumerate(zip(nets, alone, strict=True)):
            optimizer.zero_grad()
            net(x).square().sum().backward()
            assert any((p.grad.abs() > 0.5).any() for p in net.parameters()) or step
            torch.nn.utils.clip_grad_value_(net.parameters(), 0.5)
            optimizer.step()
            for ours, theirs in zip(stack.parameters(), net.parameters(), strict=True):
                torch.testing.assert_close(ours[i], theirs)


def test_clipping_by_value_is_each_models_own():
    options = {
        **CPU,
        "max_epochs": 1,
        "precision": "64-true",
        "gradient_clip_val": 1e-3,
        "gradient_clip_algorithm": "value",
    }
    settings = ((0.1, 0.0, 0.0), (1.0, 0.0, 0.0))
    stacked = make_models("mlp", "sgd", settings)
    lt.fit_stacked(stacked, digits(), trainer=options)
    for model, together in zip(make_models("mlp", "sgd", settings), stacked, strict=True):
        quiet_trainer(**options).fit(model, digits())
        assert distance(model, together) < 1e-5


LOSSES = [1.0, 0.9, 0.95, 0.95, 0.8, 0.85, 0.85, 0.85, 0.85, 0.85]


@pytest.mark.parametrize(
    ("options", "losses"),
    [
        ({"nan": "stop"}, [1.0, 1.1, math.nan, 1.0]),
        ({"nan": "ignore"}, [1.0, 1.1, math.nan, 1.0, 1.2]),
        ({"stop_after": 2}, LOSSES),
        ({"stop_after": "min_lr", "min_lr": 0.03}, LOSSES),
        ({"min_lr": 0.03}, LOSSES),
        ({"cooldown": 2, "patience": 1}, LOSSES),
    ],
)
def test_plateaus_of_a_stack_follow_the_simulation(options, losses):
    """The rate after each value, and where it ends, as ReduceLROnPlateau.simulate tells them."""
    make = lambda: lt.ReduceLROnPlateau("val_loss", **{"factor": 0.5, "patience": 0, **options})  # noqa: E731
    rules, group, rates = Rules([make()], "val_loss"), Group([0], {"lr": 0.1}), []
    for epoch, loss in enumerate(losses):
        before = group.knobs["lr"]
        stops, changed = rules.judge({"val_loss": loss}, [group], epoch=epoch, step=epoch)
        rates.append(group.knobs["lr"])
        assert changed is (rates[-1] != before)
        if stops:
            break
    expected = make().simulate(losses, lr=0.1)
    assert rates == pytest.approx(expected)
    assert (rules.message is not None) is (stops and (len(expected) < len(losses) or "stop_after" in options))


def test_patience_of_a_stack_begins_where_it_is_told_to():
    stopping = lt.EarlyStopping("val_loss", patience=1, start_from=3, restore_best=False)
    rules = Rules([stopping], "val_loss")
    stops = [rules.judge({"val_loss": 1.0 + i}, [], epoch=i, step=i)[0] for i in range(5)]
    assert stops.index(True) == 4, "the fourth value is the first that counts, the fifth the first miss"


# Refusals.


class Scheduled(lt.Classifier):
    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]


class Noisy(lt.Classifier):
    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx) * 2


class Handmade(LightningModule):
    """As people write them."""

    def __init__(self, lr=0.01, kind="mlp", dropout=0.0):
        super().__init__()
        self.net = make_net(kind, dropout)
        self.lr = lr

    def training_step(self, batch, batch_idx):
        x, y = batch
        return {"loss": nn.functional.cross_entropy(self.net(x), y)}

    def validation_step(self, batch, batch_idx):
        x, y = batch
        out = self.net(x)
        self.log("val_loss", nn.functional.cross_entropy(out, y), prog_bar=True)
        self.log_dict({"val_right": (out.argmax(-1) == y).float().mean(), "val_size": len(y)})

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=self.lr)


class Hooked(Handmade):
    def on_train_epoch_end(self):
        pass


class Manual(Handmade):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False


class Factor(Handmade):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx)["loss"] * self.factor


class Looking(Handmade):
    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)["loss"]
        return loss if loss.item() < 9 else -loss


class Metrical(Handmade):
    def validation_step(self, batch, batch_idx):
        self.log("val_loss", MeanMetric())


class Lossless(Handmade):
    def training_step(self, batch, batch_idx):
        return None


class Activated(nn.Module):
    """An attribute that is a function."""

    def __init__(self, activation):
        super().__init__()
        self.layer, self.activation = nn.Linear(64, 10), activation

    def forward(self, x):
        return self.activation(self.layer(x.flatten(1)))


class WithMore(Handmade):
    def __init__(self):
        super().__init__()
        self.more = nn.Linear(2, 2)

    def configure_optimizers(self):
        return torch.optim.AdamW([*self.parameters(), nn.Parameter(torch.ones(1))])


class Amsgrad(lt.Classifier):
    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), amsgrad=True)


class Halves(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.shift = nn.Linear(64, 10), nn.Parameter(torch.zeros(10, dtype=torch.float64))

    def forward(self, x):
        return self.layer(x.flatten(1)) + self.shift.float()


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.GRU(64, 10)

    def forward(self, x):
        return self.rnn(x.flatten(1))[0]


class Chatty(Callback):
    pass


def of(net, cls=lt.Classifier, **options):
    return cls(net, 10, **options)


def mlp(**options):
    return lt.MLP(64, 10, hidden_features=(4,), **options)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: [of(lt.MLP(64, 10, hidden_features=(w,))) for w in (4, 5)], "must share their architecture.*layers.1"),
        (lambda: [of(mlp(dropout=d)) for d in (0.0, 0.5)], "must share their architecture.*Dropout"),
        (lambda: [of(Own(s)) for s in (1.0, 2.0)], r"slope = 1\.0 and net 1 has 2\.0"),
        (lambda: [of(mlp(), optimizer=o) for o in ("adam", "sgd")], "must be of one class, but model 0 uses Adam"),
        (
            lambda: [of(mlp(), optimizer=o) for o in ("momentum", "nesterov")],
            "same nesterov, but model 0 has nesterov=False and model 1 nesterov=True",
        ),
        (lambda: [of(mlp(), optimizer="rmsprop")], "only SGD, Adam and AdamW can be stacked.*RMSprop"),
        (lambda: [of(mlp(), Scheduled)], "one optimizer and nothing else"),
        (lambda: [of(mlp(), Noisy)], "Noisy cannot be stacked, because it changes training_step of Classifier"),
        (lambda: [Hooked()], "Hooked cannot be stacked, because it changes on_train_epoch_end"),
        (lambda: [Manual()], "Manual optimizes by hand"),
        (lambda: [Factor(1.0), Factor(2.0)], "net 1 gives another output than by itself"),
        (lambda: [Looking()], "vmap cannot run this net"),
        (lambda: [Metrical()], "needs plain numbers to be logged"),
        (lambda: [of(Recurrent())], "recurrent layers cannot be stacked, but rnn is one"),
        (lambda: [Lossless()], "training_step must return a loss, but it returned NoneType"),
        (lambda: [of(Activated(f)) for f in (torch.tanh, torch.relu)], r"activation = \S*tanh and net 1 has \S*relu"),
        (lambda: [WithMore()], "may only hold parameters of its net, but has others"),
        (lambda: [of(mlp(), Amsgrad)], "a stack knows no amsgrad=True of Adam, which must be False"),
        (lambda: [of(Halves())], "must be of one type and device, but there are"),
        (lambda: [lt.Regressor(lt.MLP(64, 2))], r"must return \(B, 1\), but got \(50, 2\)"),
        (lambda: [of(mlp()), of(mlp(), task="multilabel")], "must share task"),
        (lambda: [of(mlp()), of(mlp(), class_weights=[1.0] * 10)], "must share class_weights"),
        (lambda: [of(mlp()), lt.Regressor(lt.MLP(64, 1))], "must be of one class, but model 0 is a Classifier"),
        (list, "at least one model"),
        (lambda: [of(mlp())] * 2, "the same came twice"),
        (lambda: [mlp()], "must be LightningModules"),
    ],
)
def test_what_cannot_be_stacked_is_refused_with_the_reason(make, sentence):
    with pytest.raises(UserInputError, match=sentence):
        lt.fit_stacked(make(), digits(), trainer={**CPU, "max_epochs": 1})


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"callbacks": lambda: [Chatty()]}, "the callback Chatty needs a Trainer for each model"),
        ({"callbacks": lambda: [lt.EarlyStopping("val_loss", patience=1, unit="minutes")]}, "share the time"),
        (
            {"callbacks": lambda: [lt.EarlyStopping("val_loss", patience=1, nan="restore")]},
            "go back to earlier weights",
        ),
        ({"callbacks": lambda: [lt.EarlyStopping("val_acc", patience=1)]}, "asks for those with the best 'val_acc'"),
        ({"callbacks": lambda: [lt.ReduceLROnPlateau("val_loss", restore_best=True)]}, "restore_best=True"),
        ({"callbacks": [[]]}, "there are 2 and 1 lists"),
        ({"callbacks": [[lt.ExactResume()] * 2, []]}, "the same one came twice"),
        ({"trainer": {"detect_anomaly": True, **CPU}}, "detect_anomaly ends the training of all"),
        ({"trainer": {"devices": 2, "strategy": "ddp_fork", **CPU}}, "trains on one device"),
        ({"monitor": "val_los"}, "'val_los' is not logged in validation; logged are val_loss"),
        ({"trainer": {"callbacks": [Chatty()]}}, "callbacks belong to each model"),
        (
            {"trainer": {"plugins": [MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))], **CPU}},
            "bf16-mixed",
        ),
    ],
)
def test_options_that_a_stack_cannot_keep_are_refused(options, sentence):
    with pytest.raises(UserInputError, match=sentence):
        lt.fit_stacked([of(mlp()), of(mlp())], digits(), **{"trainer": {**CPU, "max_epochs": 1}, **options})


def rows_of(*columns, batch_size=4):
    return Loaders(DataLoader(TensorDataset(*columns), batch_size) if len(columns) > 1 else DataLoader(columns[0], 4))


@pytest.mark.filterwarnings("ignore:Total length of `.*` across ranks is zero")
@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (lambda: rows_of(torch.zeros(8, 64)), "a train batch must hold inputs and targets, but got inputs only"),
        (
            lambda: Loaders(rows_of(torch.zeros(0, 64), torch.zeros(0)).train, digits().val),
            "the training set must hold at least one batch, but its loader is empty",
        ),
    ],
)
def test_data_that_a_stack_cannot_learn_from_is_refused(data, sentence):
    with pytest.raises(UserInputError, match=sentence):
        lt.fit_stacked([of(mlp()), of(mlp())], data(), trainer={**CPU, "max_epochs": 1})


def test_rules_about_metrics_that_nobody_logs_name_those_that_are():
    callbacks = [[lt.EarlyStopping("val_los", patience=1, restore_best=False)]]
    with pytest.raises(
        MissingMetricError, match=r"monitors 'val_los', but .* Logged in validation: val_loss, val_right"
    ):
        lt.fit_stacked([Handmade()], digits(), callbacks=callbacks, trainer={**CPU, "max_epochs": 1})


class Secretive(nn.Module):
    """Depends on something that no comparison of attributes finds."""

    def __init__(self, factor):
        super().__init__()
        self.layer, self._factor = nn.Linear(64, 10), factor

    def forward(self, x):
        return self.layer(x.flatten(1)) * self._factor


class Branching(Secretive):
    def forward(self, x):
        x = self.layer(x.flatten(1))
        return x if x.mean() > 0 else -x


@pytest.mark.parametrize(
    ("net", "sentence"), [(Secretive, "net 1 gives another output than by itself"), (Branching, "vmap cannot run this")]
)
def test_nets_that_only_seem_alike_are_found_on_the_first_batch(net, sentence):
    with pytest.raises(UserInputError, match=sentence):
        lt.fit_stacked([of(net(1)), of(net(2))], digits(), trainer={**CPU, "max_epochs": 1})


# Going on.


class Interrupt(Callback):
    def __init__(self, path, epoch):
        self.path, self.epoch = path, epoch

    def on_train_epoch_end(self, trainer, pl_module):
        if trainer.current_epoch == self.epoch:
            trainer.save_checkpoint(self.path)
            raise KeyError("stop here")


def test_an_interrupted_stack_ends_as_the_uninterrupted_one(tmp_path):
    settings = ((1e-3, 0.0, 0.1), (0.3, 0.0, 0.0), (3.0, 0.0, 0.0), (30.0, 0.0, 0.0))

    def fit(models, **options):
        torch.manual_seed(7)
        trainer = {**CPU, "max_epochs": 6}
        return lt.fit_stacked(models, digits(shuffle=True), callbacks=watch, trainer=trainer, **options)

    whole = make_models("mlp", "adam", settings)
    for model in whole:
        model.net.layers.insert(1, nn.Dropout(0.2))
    interrupted, resumed = copy.deepcopy(whole), copy.deepcopy(whole)
    expected = fit(whole, watchers=[lt.ExactResume()])
    with pytest.raises(KeyError, match="stop here"):
        fit(interrupted, watchers=[lt.ExactResume(), Interrupt(tmp_path / "c.ckpt", 3)])
    kept = torch.load(tmp_path / "c.ckpt", weights_only=True)
    assert 0 < len(kept["stack"]["live"]) < 4, "some have left by then"
    runs = fit(resumed, watchers=[lt.ExactResume()], ckpt_path=tmp_path / "c.ckpt")
    for i in range(4):
        assert distance(whole[i], resumed[i]) == 0
        assert runs[i].history == expected[i].history
        assert runs[i].message == expected[i].message


# Searches.


def make_model(lr, weight_decay=0.0):
    return lt.Classifier(lt.MLP(64, 10, hidden_features=(6,), norm="layer"), 10, lr=lr, weight_decay=weight_decay)


def stop_early():
    return [lt.EarlyStopping("val_loss", patience=1)]


SPACE = {"lr": lt.Float(1e-3, 0.5, log=True), "weight_decay": lt.Float(1e-5, 1e-1, log=True)}


def find(folder, *, make_model=make_model, data=None, space=SPACE, trials=4, **options):
    defaults = {
        "method": "random",
        "trainer": {**CPU, "max_epochs": 3},
        "retrain": 0,
        "start_method": "fork",
        "progress": False,
        "report": False,
        "vectorize": True,
    }
    data = digits() if data is None else data
    return lt.search(make_model, data, space, trials=trials, folder=folder, **{**defaults, **options})


def test_a_stacked_search_finds_and_writes_what_an_ordinary_one_does(tmp_path):
    stacked = find(tmp_path / "a", callbacks=stop_early, trials=2)
    ordinary = find(tmp_path / "b", callbacks=stop_early, trials=2, vectorize=False)
    assert [row["status"] for row in stacked.runs] == ["complete"] * 2
    for one, other in zip(stacked.runs, ordinary.runs, strict=True):
        assert one.keys() == other.keys()
        assert float(one["value"]) == pytest.approx(float(other["value"]), rel=1e-4)
        same = one.keys() - {"value", "seconds"}
        assert {name: one[name] for name in same} == {name: other[name] for name in same}
        settings = [yaml.safe_load((r.folder / one["run"] / "hparams.yaml").read_text()) for r in (stacked, ordinary)]
        assert settings[0].keys() == settings[1].keys()
        assert settings[0]["params"] == settings[1]["params"]
        metrics = list(csv.DictReader((stacked.folder / one["run"] / "log-0" / "metrics.csv").read_text().splitlines()))
        assert len(metrics) == int(one["epochs"])
        assert min(float(line["val_loss"]) for line in metrics) == pytest.approx(float(one["value"]))
    best = next(row for row in stacked.runs if float(row["value"]) == stacked.best_value)
    model = make_model(**stacked.best_params)
    path = stacked.folder / best["run"] / "checkpoints" / "best.ckpt"
    scores = quiet_trainer().validate(model, digits(), ckpt_path=path, verbose=False, weights_only=True)
    assert scores[0]["val_loss"] == pytest.approx(stacked.best_value, rel=1e-5)


def test_the_best_are_trained_again_as_one_stack_per_seed(tmp_path):
    again = {"trials": 2, "retrain": 2, "retrain_seeds": 2, "test": False, "trainer": {**CPU, "max_epochs": 1}}
    stacked = find(tmp_path / "a", **again)
    ordinary = find(tmp_path / "b", vectorize=False, **again)
    assert len(list((tmp_path / "a" / "stacks").iterdir())) == 1 + 2
    assert [r.run for r in stacked.retrained] == [r.run for r in ordinary.retrained]
    for one, other in zip(stacked.retrained, ordinary.retrained, strict=True):
        assert one.values == pytest.approx(other.values, rel=1e-4)


def test_rounds_of_coarse_to_fine_are_stacks_of_their_own_and_points_are_the_same(tmp_path):
    found = []
    for name, workers in (("a", 1), ("b", 2)):
        method = lt.CoarseToFineSampler(16, seed=0, rounds=1)
        options = {"method": method, "trials": 16, "trainer": {**CPU, "max_epochs": 1}, "workers": workers}
        found.append(find(tmp_path / name, **options))
        assert len(list((tmp_path / name / "stacks").iterdir())) == 2 * workers
    assert [row["lr"] for row in found[0].runs] == [row["lr"] for row in found[1].runs]
    assert [row["round"] for row in found[0].runs] == ["0"] * 8 + ["1"] * 8


def test_folds_are_those_of_an_ordinary_search(tmp_path):
    data, trainer = lt.DigitsDataModule(batch_size=512), {**CPU, "max_epochs": 2}
    found = find(tmp_path / "a", folds=2, trials=2, callbacks=stop_early, data=data, trainer=trainer)
    options = {"callbacks": stop_early, "trainer": trainer, "predict": False, "progress": False, "seed": 0}
    for trial in found.study.trials:
        alone = lt.cross_validate(lambda params=trial.params: make_model(**params), data, 2, **options)
        assert trial.user_attrs["fold_values"] == pytest.approx(alone.scores("val_loss"), rel=1e-4)
        assert trial.value == pytest.approx(alone.mean("val_loss"), rel=1e-4)


def fragile(lr, bad):
    if bad == "raises":
        raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")
    return make_model(lr=1e38 if bad == "nan" else lr)


def test_a_failed_trial_is_recorded_and_its_neighbours_are_not_touched(tmp_path):
    space = {"lr": lt.Choice([0.01]), "bad": lt.Choice(["no", "raises", "nan"])}
    result = find(tmp_path / "a", make_model=fragile, space=space, method="grid", trials=3)
    found = {row["bad"]: row for row in result.runs}
    assert found["raises"]["reason"].startswith("out of memory")
    assert found["nan"]["reason"] == "val_loss was never finite"
    space["bad"] = lt.Choice(["no"])
    alone = find(tmp_path / "b", make_model=fragile, space=space, method="grid", trials=1)
    assert float(found["no"]["value"]) == pytest.approx(alone.best_value, rel=1e-5)


def wide(width):
    return lt.Classifier(lt.MLP(64, 10, hidden_features=(width,)), 10)


def make_digits(batch_size):
    return digits(batch_size)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"make_model": wide, "space": {"width": lt.Int(2, 9)}}, r"must share their architecture.*stacks/\w+/log.txt"),
        ({"prune": "median"}, "cannot be combined with vectorize"),
        ({"vectorize": -1}, "vectorize must be in"),
        ({"callbacks": lambda: [Chatty()]}, "Chatty needs a Trainer"),
    ],
)
def test_searches_that_cannot_be_stacked_end_with_a_sentence(options, sentence, tmp_path):
    with pytest.raises(UserInputError, match=sentence):
        find(tmp_path / "a", **options)


def test_data_with_hyperparameters_is_refused(tmp_path):
    space = {**SPACE, "batch_size": lt.Choice([32, 64])}
    with pytest.raises(UserInputError, match="the data takes the hyperparameter 'batch_size'"):
        lt.search(make_model, make_digits, space, trials=2, vectorize=True, folder=tmp_path / "a")


class Slow(Loaders):
    """Waits before its third epoch, as long as a file is there."""

    def __init__(self, gate):
        few = digits()
        super().__init__(few.train, few.val)
        self.gate = gate

    def train_dataloader(self):
        trainer = self.trainer
        with (self.gate.parent / "epochs").open("a") as file:
            file.write(f"{trainer.current_epoch}\n")
        if trainer.current_epoch == 2:
            (self.gate.parent / "there").touch()
            while self.gate.exists():
                time.sleep(0.02)
        return super().train_dataloader()


def slow_search(folder, gate):
    options = {"max_epochs": 3, "reload_dataloaders_every_n_epochs": 1, **CPU}
    return lt.search(
        make_model, Slow(gate), SPACE, trials=3, method="random", trainer=options, folder=folder, retrain=0,
        start_method="fork", progress=False, report=False, vectorize=True,
    )  # fmt: skip


def test_a_killed_search_goes_on_from_the_stack_s_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr("lightning_tricks.tune.execution._stack_job._SECONDS_BETWEEN_CHECKPOINTS", 0.0)
    gate = tmp_path / "gate"
    gate.touch()
    process = get_context("fork").Process(target=slow_search, args=(tmp_path / "s", gate))
    process.start()
    end = time.monotonic() + 60
    while not (tmp_path / "there").exists() and time.monotonic() < end:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    checkpoint = next((tmp_path / "s" / "stacks").glob("*/last.ckpt"))
    assert torch.load(checkpoint, weights_only=True)["epoch"] == 1
    gate.unlink()
    (tmp_path / "epochs").unlink()
    result = slow_search(tmp_path / "s", gate)
    assert "0" not in (tmp_path / "epochs").read_text().split(), "it does not begin anew"
    whole = slow_search(tmp_path / "t", gate)
    assert [row["value"] for row in result.runs] == [row["value"] for row in whole.runs]
    assert not checkpoint.exists()
