"""Preflight on batches whose second item is not the label."""

import pytest
import torch
from lightning.pytorch import seed_everything
from test_preflight import Program, X, Y, changed, found, loader
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, TensorDataset


class Stepping(Program):
    """Its training step is a function of the net and the batch."""

    def __init__(self, net, step):
        super().__init__(net)
        self.step = step

    def training_step(self, batch, batch_idx):
        return self.step(self.net, batch)


class Following(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.rnn, self.head = nn.Embedding(12, 8), nn.GRU(8, 16, batch_first=True), nn.Linear(16, 12)

    def forward(self, tokens):
        return self.head(self.rnn(self.embed(tokens))[0])


class TwoTowers(nn.Module):
    """Which picture belongs to which caption? ``(B, B)``."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(6, 8), nn.Linear(3, 8)

    def forward(self, x, z):
        return 5 * F.normalize(self.left(x), dim=1) @ F.normalize(self.right(z), dim=1).T


def next_token(net, batch):
    tokens, lengths = batch
    target = tokens[:, 1:].masked_fill(torch.arange(6) >= lengths[:, None] - 1, -100)
    return F.cross_entropy(net(tokens[:, :-1]).transpose(1, 2), target)


def classified(x_at, y_at):
    return lambda net, batch: F.cross_entropy(net(batch[x_at]), batch[y_at])


def both_ways(net, batch):
    out, own = net(*batch), torch.arange(len(batch[0]))
    return F.cross_entropy(out, own) + F.cross_entropy(out.T, own)


def net(features=6, outputs=4):
    return nn.Sequential(nn.Linear(features, 16), nn.ReLU(), nn.Linear(16, outputs))


def several(*tensors):
    return DataLoader(TensorDataset(*tensors), 16, shuffle=True)


ROWS = torch.arange(200)
SENTENCES = torch.randint(1, 12, (200, 7), generator=torch.Generator().manual_seed(2))
LABEL_ELSEWHERE = {
    "two inputs, label": lambda: (
        Stepping(net(9), lambda net, b: F.cross_entropy(net(torch.cat(b[:2], 1)), b[2])),
        several(X, X[:, :3] ** 2, Y),
    ),
    "label first": lambda: (Stepping(net(), classified(1, 0)), several(Y, X)),
    "row in the middle": lambda: (Stepping(net(), classified(0, 2)), several(X, ROWS, Y)),
    "row first": lambda: (Stepping(net(), classified(1, 2)), several(ROWS, X, Y)),
    "tokens and lengths": lambda: (Stepping(Following(), next_token), several(SENTENCES, 3 + ROWS % 5)),
    "tokens and one length": lambda: (Stepping(Following(), next_token), several(SENTENCES, 0 * ROWS + 7)),
    "label that is not used": lambda: (Stepping(net(6, 6), lambda net, b: F.mse_loss(net(b[0]), b[0])), loader()),
}


@pytest.mark.parametrize("name", LABEL_ELSEWHERE)
def test_the_label_is_what_the_loss_gets(name):
    seed_everything(0, verbose=False)
    findings = found(*LABEL_ELSEWHERE[name](), budget="full")
    rules = ("labels-range", "class-imbalance", "step-fails")
    assert not any(rule in findings for rule in rules), findings
    assert not any(finding.severity == "error" for finding in findings.values()), findings


def test_labels_are_found_wherever_they_are():
    def sick(y):
        return found(Stepping(net(), classified(0, 2)), several(X, ROWS, y))

    assert sick(Y + 1)["labels-range"].what == "labels reach from 1 to 4, but there are 4 outputs"
    assert found(Stepping(net(), classified(1, 0)), several(Y + 1, X))["labels-range"].severity == "error"
    rare = torch.where(ROWS % 20 == 0, 3, 0)
    assert sick(rare)["class-imbalance"].what == "the most frequent class is 19 times the rarest"
    smoothed = changed(loss=lambda self, output, y: F.cross_entropy(output, F.one_hot(y, 4) * 0.9 + 0.025))
    assert found(smoothed, loader(X, rare))["class-imbalance"].severity == "warning"


def test_inputs_that_are_ignored_among_several():
    blind = Stepping(net(), lambda net, b: F.cross_entropy(net(b[0] * 0), b[2]))
    assert found(blind, several(X, ROWS, Y), budget="full")["input-ignored"].severity == "error"


class Annotated(Dataset):
    """Its targets are dicts, as those of pictures with boxes."""

    def __len__(self):
        return len(X)

    def __getitem__(self, index):
        return X[index], {"name": "a text", "label": Y[index]}


@pytest.mark.parametrize("budget", ["quick", "full"])
def test_targets_in_a_dict_without_a_loss_of_torch(budget):
    def step(net, batch):
        return -net(batch[0]).log_softmax(1).gather(1, batch[1]["label"][:, None]).mean()

    findings = found(Stepping(net(), step), DataLoader(Annotated(), 16, shuffle=True), budget=budget)
    assert not any("could not run" in finding.what for finding in findings.values()), findings


def two_views(net, batch):
    views = torch.cat([batch[0] + 0.1 * torch.randn_like(batch[0]) for _ in range(2)])  # (2B, 6)
    out = F.normalize(net(views), dim=1)
    return 2 * out @ out.T


def places(net, batch):
    out = two_views(net, batch)
    own = torch.arange(len(out))
    return F.cross_entropy(out.fill_diagonal_(-1e9), own.roll(len(out) // 2))


def right_one_first(net, batch):
    out = two_views(net, batch)
    count = len(out)
    order = [[(i + count // 2 + j) % count for j in range(count) if j != count // 2] for i in range(count)]
    return F.cross_entropy(out.gather(1, torch.tensor(order)), torch.zeros(count, dtype=torch.long))


def same_class(net, batch):
    out = F.normalize(net(batch[0]), dim=1)
    return F.binary_cross_entropy_with_logits(out @ out.T, (batch[1] == batch[1][:, None]).float())


CONTRASTIVE = {
    "pairs": lambda: (Stepping(TwoTowers(), both_ways), several(X, X[:, :3])),
    "places of the other view": lambda: (Stepping(net(), places), loader()),
    "the other view first": lambda: (Stepping(net(), right_one_first), loader()),
    "same class": lambda: (Stepping(net(), same_class), loader()),
}


@pytest.mark.parametrize("name", CONTRASTIVE)
def test_comparing_the_samples_of_a_batch_is_no_mixing(name):
    findings = found(*CONTRASTIVE[name](), budget="full")
    assert not any(finding.severity == "error" for finding in findings.values()), findings


def test_as_many_classes_as_samples_are_no_contrast():
    class Mixed(nn.Linear):
        def forward(self, x):
            return super().forward(x - x.mean(0))

    findings = found(Stepping(Mixed(6, 16), classified(0, 1)), loader())
    assert findings["batch-mixing"].severity == "error"
