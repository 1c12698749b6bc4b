"""Healthy programs on generated sequences."""

import math

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.faults import _parts as p
from benchmarks.faults._case import Case, Learner
from benchmarks.faults._registry import program
from lightning_tricks import Classifier


def halves(x: torch.Tensor, y: torch.Tensor) -> list[p.Pair]:
    cut = int(0.7 * len(x))
    return [(x[:cut], y[:cut]), (x[cut:], y[cut:])]


@program("which token is most frequent, transformer, AdamW with warm-up from 0", half="thresholds")
def transformer() -> Case:
    y = torch.randint(4, (500,))
    x = torch.where(torch.rand(500, 8) < 0.4, y[:, None], torch.randint(4, 12, (500, 8)))

    def warm_up(optimizer):
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, step / 30))

    optimizer = p.with_schedule(p.adamw(lr=3e-3), warm_up)
    return Case(Learner(p.Attention(12, 8, 4), F.cross_entropy, optimizer), *halves(x, y), epochs=18)


@program("next value of a sine, LSTM, clipped gradients, regression", half="thresholds")
def lstm() -> Case:
    phase, speed = torch.rand(500, 1) * 2 * math.pi, 0.3 + 0.5 * torch.rand(500, 1)
    wave = (phase + speed * torch.arange(13)).sin() + 0.1 * torch.randn(500, 13)
    model = Learner(p.Recurrent(nn.LSTM, 1, 24, 1), p.squared, p.adam(lr=5e-3))
    pair = halves(wave[:, :12, None], wave[:, 12])
    return Case(model, *pair, "regression", epochs=16, trainer={"gradient_clip_val": 1.0})


@program("is there a rise, GRU, SGD with momentum, binary")
def gru() -> Case:
    y = torch.randint(2, (500,))
    trend = torch.linspace(-1.0, 1.0, 10) * (2 * y - 1)[:, None]
    x = trend[..., None] + 0.7 * torch.randn(500, 10, 2)
    model = Learner(p.Recurrent(nn.GRU, 2, 16, 1), p.logistic, p.sgd(lr=0.05, momentum=0.9))
    return Case(model, *halves(x, y), "binary", epochs=20)


@program("next letter of a Markov chain, GRU language model")
def language() -> Case:
    chain = torch.softmax(3 * torch.randn(10, 10), dim=1)
    text = [torch.randint(10, (400,))]
    for _ in range(12):
        text.append(torch.multinomial(chain[text[-1]], 1).squeeze(1))
    sequence = torch.stack(text, dim=1)  # (N, 13)
    model = Learner(p.Recurrent(nn.GRU, 12, 32, 10, tokens=10, every=True), F.cross_entropy, p.adam(lr=1e-2))
    return Case(model, *halves(sequence[:, :-1], sequence[:, 1:]), epochs=20)


@program("bag of words with a pattern, Conv1d, our Classifier")
def conv1d() -> Case:
    y = torch.randint(3, (500,))
    x = torch.randint(3, 20, (500, 16))
    place = torch.randint(14, (500,))
    for row in range(500):
        x[row, place[row] : place[row] + 2] = y[row]

    net = nn.Sequential(nn.Embedding(20, 12), Swap(), nn.Conv1d(12, 24, 3, padding=1), nn.ReLU(),
                        nn.AdaptiveMaxPool1d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(24, 3))  # fmt: skip
    return Case(Classifier(net, num_classes=3, lr=5e-3), *halves(x, y), epochs=20)


class Swap(nn.Module):
    """(B, T, C) to (B, C, T)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Swap the axes."""
        return x.transpose(1, 2)
