"""Healthy programs on pictures: scikit-learn's digits, and generated ones."""

import copy
from functools import cache

import torch
from lightning.pytorch import seed_everything
from torch import nn
from torch.nn import functional as F

from benchmarks.faults import _parts as p
from benchmarks.faults._case import Case, Learner
from benchmarks.faults._registry import program
from lightning_tricks import MLP, Classifier, ConvNet


@program("digits, our Classifier with BatchNorm and dropout", half="thresholds")
def digits_mlp() -> Case:
    train, val = p.digits(800, flat=True)
    model = Classifier(MLP(64, 10, hidden_features=(48, 48), dropout=0.2), num_classes=10, lr=2e-3)
    return Case(model, train, val, epochs=12, datamodule=True, loader={"shuffle": True, "drop_last": True})


@program("digits, plain ConvNet, SGD with momentum", half="thresholds")
def digits_conv() -> Case:
    train, val = p.digits(600)
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10),
    )  # fmt: skip
    return Case(Learner(net, F.cross_entropy, p.sgd(lr=0.05, momentum=0.9)), train, val, epochs=15)


@program("digits, converged and trained on", half="thresholds")
def converged() -> Case:
    train, val = p.digits(500, flat=True)
    net = p.mlp(64, 64, 10)
    _train(net, *train, steps=400)
    return Case(Learner(net, F.cross_entropy, p.adam(lr=1e-4)), train, val, epochs=16)


@program("autoencoder of digits, sigmoid output", half="thresholds")
def autoencoder() -> Case:
    (x, _), (x_val, _) = p.digits(600, flat=True, standardise=False)

    def loss(output, target):
        return F.mse_loss(output, target)

    net = nn.Sequential(p.mlp(64, 48, 16), p.mlp(16, 48, 64), nn.Sigmoid())
    return Case(Learner(net, loss, p.adam(lr=3e-3)), (x, x.clone()), (x_val, x_val.clone()), "regression", epochs=15)


@program("digits, residual ConvNet with BatchNorm, one-cycle schedule")
def resnet() -> Case:
    train, val = p.digits(500)
    stages = []
    for width in (8, 16):
        inner = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width),
        )  # fmt: skip
        stages += [p.Residual(inner), nn.ReLU(), nn.Conv2d(width, 16, 3, stride=2, padding=1), nn.ReLU()]
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), *stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)
    )

    def schedule(optimizer):
        return torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, total_steps=16 * 11 + 1)

    return Case(Learner(net, F.cross_entropy, p.with_schedule(p.adam(lr=0.01), schedule)), train, val, epochs=16)


@program("digits 5 to 9, frozen net trained on 0 to 4, new head")
def frozen() -> Case:
    train, val = p.digits(400, classes=range(5, 10))
    net = copy.deepcopy(_pretrained())
    net.requires_grad_(False)
    net[-1] = nn.Linear(32, 5)
    return Case(Learner(net, F.cross_entropy, p.adam(lr=1e-2)), train, val, epochs=20)


@program("digits 5 to 9, fine-tuned net trained on 0 to 4, our Classifier")
def fine_tuned() -> Case:
    train, val = p.digits(400, classes=range(5, 10))
    net = copy.deepcopy(_pretrained())
    net[-1] = nn.Linear(32, 5)
    return Case(Classifier(net, num_classes=5, optimizer="adamw", lr=1e-3, weight_decay=0.01), train, val, epochs=20)


@program("blobs, segmentation with GroupNorm", half="thresholds")
def segmentation() -> Case:
    centres = torch.rand(400, 1, 2, 1, 1) * 8
    grid = torch.stack(torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij"))  # (2, 8, 8)
    y = ((grid - centres).square().sum(2) < 6).long().squeeze(1)  # (N, 8, 8)
    x = y[:, None] + 0.5 * torch.randn(400, 1, 8, 8)
    x = (x - x.mean()) / x.std()
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1),
        nn.GroupNorm(2, 8), nn.ReLU(), nn.Conv2d(8, 2, 1),
    )  # fmt: skip
    model = Learner(net, F.cross_entropy, p.adam(lr=5e-3))
    return Case(model, (x[:280], y[:280]), (x[280:], y[280:]), epochs=20)


@program("blob or not, our ConvNet, binary")
def blob() -> Case:
    y = torch.randint(2, (400,))
    place = torch.randint(1, 7, (400, 2))
    x = torch.randn(400, 1, 8, 8)
    for row in torch.nonzero(y).flatten().tolist():
        i, j = place[row].tolist()
        x[row, 0, i - 1 : i + 2, j - 1 : j + 2] += 1.5
    model = Classifier(ConvNet(1, 1, channels=(8, 16)), num_classes=2, task="binary", lr=5e-3)
    return Case(model, (x[:280], y[:280]), (x[280:], y[280:]), "binary", epochs=20, datamodule=True)


@cache
def _pretrained() -> nn.Sequential:
    """Return a net with BatchNorm that has learned the digits 0 to 4; the same one for every seed."""
    state = torch.get_rng_state()
    seed_everything(0, verbose=False)
    (x, y), _ = p.digits(500, classes=range(5))
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3, padding=1),
        nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(256, 32), nn.ReLU(), nn.Linear(32, 5),
    )  # fmt: skip
    _train(net, x, y, steps=150)
    torch.set_rng_state(state)
    return net


def _train(net: nn.Module, x: torch.Tensor, y: torch.Tensor, *, steps: int) -> None:
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    for _ in range(steps):
        rows = torch.randint(len(x), (64,))
        loss = F.cross_entropy(net(x[rows]), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
