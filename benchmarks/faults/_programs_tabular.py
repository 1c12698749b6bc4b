"""Healthy programs on tables: scikit-learn's own sets, and generated ones."""

import numpy as np
import torch
from sklearn import datasets
from torch import nn
from torch.nn import functional as F

from benchmarks.faults import _parts as p
from benchmarks.faults._case import Case, DictDataset, Learner, Stream
from benchmarks.faults._registry import program
from lightning_tricks import MLP, Classifier, Regressor


def any_number() -> int:
    return int(np.random.randint(2**31))  # noqa: NPY002 - the run's own stream, seeded


@program("wine, MLP, Adam", half="thresholds")
def wine() -> Case:
    train, val = p.table("wine")
    return Case(Learner(p.mlp(13, 32, 3), F.cross_entropy, p.adam(lr=1e-2)), train, val, batch_size=16, epochs=25)


@program("breast cancer, MLP, SGD with momentum, binary", half="thresholds")
def cancer() -> Case:
    train, val = p.table("breast_cancer")
    model = Learner(p.mlp(30, 32, 16, 1), p.logistic, p.sgd(lr=0.02, momentum=0.9))
    return Case(model, train, val, "binary", epochs=16)


@program("Friedman 1, residual MLP with LayerNorm, AdamW, regression", half="thresholds")
def friedman() -> Case:
    x, y = datasets.make_friedman1(700, noise=1.0, random_state=any_number())
    train, val = p.split(x, (y - y.mean()) / y.std())
    blocks = [
        p.Residual(nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32))) for _ in range(3)
    ]
    net = nn.Sequential(nn.Linear(10, 32), *blocks, nn.LayerNorm(32), nn.Linear(32, 1))
    return Case(Learner(net, p.squared, p.adamw(lr=3e-3, weight_decay=1e-4)), train, val, "regression", epochs=13)


@program("rare classes, weighted loss, BatchNorm", half="thresholds")
def rare() -> Case:
    x, y = datasets.make_classification(
        900, 12, n_informative=6, n_classes=3, weights=[0.7, 0.2, 0.1], class_sep=1.5, random_state=any_number()
    )
    train, val = p.split(x, y, stratify=True)
    weight = 1 / torch.bincount(train[1]).float()
    weight = weight / weight.mean()

    def loss(output, target):
        return F.cross_entropy(output, target, weight=weight)

    net = p.mlp(12, 32, 32, 3, norm=nn.BatchNorm1d)
    return Case(Learner(net, loss, p.adam(lr=3e-3)), train, val, epochs=13, loader={"shuffle": True, "drop_last": True})


@program("log-softmax and nll_loss, dropout, RMSprop", half="thresholds")
def nll() -> Case:
    x, y = datasets.make_classification(800, 20, n_informative=8, n_classes=4, class_sep=1.5, random_state=any_number())
    train, val = p.split(x, y, stratify=True)
    net = nn.Sequential(*p.mlp(20, 64, 64, 4, dropout=0.3), nn.LogSoftmax(dim=1))
    return Case(Learner(net, F.nll_loss, p.make(torch.optim.RMSprop, lr=1e-3)), train, val, epochs=13, datamodule=True)


@program("two moons, deep tanh net, SGD")
def moons() -> Case:
    train, val = p.split(*datasets.make_moons(600, noise=0.15, random_state=any_number()))
    net = p.mlp(2, 24, 24, 24, 24, 2, act=nn.Tanh)
    for layer in net:
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
    model = Learner(net, F.cross_entropy, p.sgd(lr=0.1, momentum=0.9, nesterov=True))
    return Case(model, train, val, epochs=17)


@program("diabetes, our Regressor")
def diabetes() -> Case:
    (x, y), (x_val, y_val) = p.table("diabetes", target=True)
    model = Regressor(MLP(10, 1, hidden_features=(16,), norm="layer"), optimizer="adamw", lr=2e-3, weight_decay=0.01)
    return Case(model, (x, y[:, None]), (x_val, y_val[:, None]), "regression", epochs=15)


@program("mean and variance, a likelihood of one's own")
def likelihood() -> Case:
    x = torch.randn(700, 4)
    y = x[:, 0] * x[:, 1] + x[:, 2].sin() + (0.1 + 0.2 * x[:, 3].abs()) * torch.randn(700)

    def loss(output, target):
        mean, log_variance = output.unbind(-1)
        return (0.5 * log_variance + 0.5 * (target - mean) ** 2 / log_variance.exp()).mean()

    model = Learner(p.mlp(4, 48, 48, 2, act=nn.SiLU), loss, p.adam(lr=3e-3))
    return Case(model, (x[:500], y[:500]), (x[500:], y[500:]), "other", epochs=14, trainer={"gradient_clip_val": 5.0})


@program("counts, Poisson loss")
def counts() -> Case:
    x = torch.randn(700, 6)
    y = torch.poisson((0.8 * x[:, 0] - 0.5 * x[:, 1] + 0.3 * x[:, 2] * x[:, 3]).clamp(-3, 3).exp())

    def loss(output, target):
        return F.poisson_nll_loss(output.squeeze(-1), target)

    model = Learner(p.mlp(6, 32, 32, 1), loss, p.adam(lr=3e-3))
    return Case(model, (x[:500], y[:500]), (x[500:], y[500:]), "other", epochs=14)


@program("samples as dicts, label smoothing, cosine schedule")
def dicts() -> Case:
    x, y = datasets.make_classification(800, 16, n_informative=8, n_classes=5, class_sep=2.0, random_state=any_number())
    train, val = p.split(x, y, stratify=True)

    def loss(output, target):
        return F.cross_entropy(output, target, label_smoothing=0.1)

    def cosine(optimizer):
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 13)

    optimizer = p.with_schedule(p.adam(lr=5e-3), cosine, "epoch")
    model = Learner(p.mlp(16, 48, 48, 5, act=nn.GELU, norm=nn.LayerNorm), loss, optimizer)
    return Case(model, train, val, epochs=13, dataset=DictDataset)


@program("multilabel, our Classifier")
def multilabel() -> Case:
    x = torch.randn(700, 12)
    y = (x @ torch.randn(12, 4) + 0.5 * torch.randn(700, 4) > 0.5).float()
    model = Classifier(MLP(12, 4, hidden_features=(32,)), num_classes=4, task="multilabel", lr=3e-3)
    return Case(model, (x[:500], y[:500]), (x[500:], y[500:]), "binary", epochs=14, datamodule=True)


@program("a stream of samples", half="thresholds")
def stream() -> Case:
    x, y = datasets.make_classification(700, 10, n_informative=6, n_classes=3, class_sep=1.5, random_state=any_number())
    train, val = p.split(x, y, stratify=True)
    model = Learner(p.mlp(10, 32, 3), F.cross_entropy, p.adam(lr=5e-3))
    return Case(model, train, val, epochs=14, dataset=Stream, loader={})
