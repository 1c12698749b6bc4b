"""Losses, optimizers, layers and data that several programs share."""

from collections.abc import Callable
from functools import cache, partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from sklearn import datasets
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional as F

Pair = tuple[Tensor, Tensor]


def squared(output: Tensor, y: Tensor) -> Tensor:
    return F.mse_loss(output.squeeze(-1), y)


def logistic(output: Tensor, y: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(output.squeeze(-1), y.float())


def make(kind: type[torch.optim.Optimizer], **options: Any) -> Callable[[nn.Module], torch.optim.Optimizer]:
    """Return an optimizer factory."""
    return partial(_make, kind, options)


def _make(kind, options, model):
    return kind([p for p in model.parameters() if p.requires_grad], **options)


adam = partial(make, torch.optim.Adam)
adamw = partial(make, torch.optim.AdamW)
sgd = partial(make, torch.optim.SGD)


def with_schedule(optimizer: Callable, schedule: Callable, interval: str = "step") -> Callable[[nn.Module], Any]:
    """Return an optimizer factory with a learning-rate schedule."""

    def configure(model):
        chosen = optimizer(model)
        return {"optimizer": chosen, "lr_scheduler": {"scheduler": schedule(chosen), "interval": interval}}

    return configure


def mlp(*widths: int, act: type[nn.Module] = nn.ReLU, norm: Callable | None = None, dropout: float = 0.0):
    """Return Linear, norm, activation, dropout for each hidden width, and a last Linear."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths[:-1]):
        layers += [nn.Linear(inputs, outputs), *([norm(outputs)] if norm else []), act()]
        layers += [nn.Dropout(dropout)] if dropout else []
    return nn.Sequential(*layers, nn.Linear(*widths[-2:]))


class Residual(nn.Module):
    """``x + f(x)``, the last layer of ``f`` beginning at 0 (Goyal et al. 2017)."""

    def __init__(self, inner: nn.Sequential, *, zero: bool = True) -> None:
        super().__init__()
        self.inner = inner
        if zero:
            nn.init.zeros_(inner[-1].weight)

    def forward(self, x: Tensor) -> Tensor:
        """Add the branch."""
        return x + self.inner(x)


class Recurrent(nn.Module):
    """A recurrent layer and a head on the last step, or on every step; token inputs are embedded first."""

    def __init__(self, kind, inputs: int, hidden: int, outputs: int, *, tokens: int = 0, every: bool = False) -> None:
        super().__init__()
        self.embed = nn.Embedding(tokens, inputs) if tokens else nn.Identity()
        self.cell = kind(inputs, hidden, batch_first=True)
        self.head, self.every = nn.Linear(hidden, outputs), every

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, outputs), or (B, outputs, T) for every step."""
        hidden, _ = self.cell(self.embed(x))
        return self.head(hidden).movedim(-1, 1) if self.every else self.head(hidden[:, -1])


class Attention(nn.Module):
    """Embedding, positions, transformer blocks with the norm first, mean over time, head."""

    def __init__(self, tokens: int, length: int, outputs: int, *, width: int = 16, blocks: int = 1) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(width, 2, 2 * width, dropout=0.1, batch_first=True, norm_first=True)
        self.embed, self.place = nn.Embedding(tokens, width), nn.Parameter(torch.randn(length, width) * 0.02)
        self.encode = nn.TransformerEncoder(layer, blocks, enable_nested_tensor=False)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, outputs) for tokens (B, T)."""
        return self.head(self.norm(self.encode(self.embed(x) + self.place)).mean(1))


def split(x, y, *, stratify: bool = False, standardise: bool = True, val: float = 0.3) -> tuple[Pair, Pair]:
    """Split at random; standardise the inputs, column by column for tables, with the training part."""
    x, y = torch.as_tensor(np.asarray(x)), torch.as_tensor(np.asarray(y))
    chosen = np.random.randint(2**31)  # noqa: NPY002 - the run's own stream, seeded
    rows, others = train_test_split(
        np.arange(len(x)), test_size=val, stratify=y if stratify else None, random_state=chosen
    )
    if x.is_floating_point():
        x = x.float()
    if standardise:
        dims = (0,) if x.ndim == 2 else tuple(range(x.ndim))
        x = (x - x[rows].mean(dims, keepdim=True)) / (x[rows].std(dims, keepdim=True) + 1e-6)
    y = y.float() if y.is_floating_point() else y.long()
    return (x[rows], y[rows]), (x[others], y[others])


def table(name: str, *, target: bool = False) -> tuple[Pair, Pair]:
    """Return one of scikit-learn's own tables; ``target`` standardises the targets, too."""
    x, y = _load(name)
    y = (y - y.mean()) / y.std() if target else y
    return split(x, y, stratify=not target)


@cache
def _load(name):
    return getattr(datasets, f"load_{name}")(return_X_y=True)


def digits(count: int = 800, *, flat: bool = False, classes: range = range(10), standardise: bool = True):
    """Return ``count`` handwritten digits of some classes, (N, 1, 8, 8) or (N, 64)."""
    x, y = _load("digits")
    keep = np.flatnonzero(np.isin(y, classes))
    keep = np.random.permutation(keep)[:count]  # noqa: NPY002
    x, y = torch.from_numpy(x[keep]).float() / 16, torch.from_numpy(y[keep]) - min(classes)
    train, val = split(x.view(-1, 1, 8, 8), y, stratify=True, standardise=standardise)
    return [(part[0].flatten(1) if flat else part[0], part[1]) for part in (train, val)]
