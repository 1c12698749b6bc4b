"""Layers whose sizes are not known before the first batch: the same run as with the sizes given, or one sentence."""

import pytest
import torch
from helpers import quiet_trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_tricks import Classifier, Diagnosis, LRFinder, NormMonitor, Preflight, WeightPenalty, check, param_groups
from lightning_tricks._base import UserInputError


def lazy_net():
    return nn.Sequential(nn.LazyLinear(8), nn.LazyBatchNorm1d(), nn.ReLU(), nn.LazyLinear(2))


def data():
    x = torch.randn(32, 6, generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(x, (x[:, 0] > 0).long()), 8)


def test_lazy_weights_decay_and_nothing_else_does():
    lazy = param_groups(lazy_net(), 0.1)
    known = param_groups(nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2)), 0.1)
    assert [(g["name"], g["weight_decay"], len(g["params"])) for g in lazy] == [
        (g["name"], g["weight_decay"], len(g["params"])) for g in known
    ]


def test_lazy_norms_do_not_decay():
    groups = param_groups(nn.Sequential(nn.LazyConv1d(4, 3), nn.LazyInstanceNorm1d(affine=True)), 0.1)
    assert [(g["name"], len(g["params"])) for g in groups] == [("decay", 1), ("no_decay", 3)]


def test_lazy_weights_are_penalised():
    penalty = WeightPenalty(max_norm=0.1)
    model = Classifier(lazy_net(), 2, lr=0.1)
    quiet_trainer(max_epochs=1, callbacks=[penalty]).fit(model, data(), data())
    assert set(penalty._names.values()) == {"net.0.weight", "net.3.weight"}
    assert model.net[0].weight.norm(dim=1).max() <= 0.1 * (1 + 1e-6)


@pytest.mark.parametrize("watch", [NormMonitor, LRFinder, Preflight, lambda: Diagnosis(report_path=None)])
def test_what_needs_the_sizes_at_the_start_says_so(watch):
    trainer = quiet_trainer(num_sanity_val_steps=0, callbacks=[watch()])  # so that no batch comes before
    with pytest.raises(UserInputError, match=r"net\.1\.weight, \.\.\. are lazy\. Run one batch through"):
        trainer.fit(Classifier(lazy_net(), 2), data(), data())


def test_check_needs_the_sizes():
    with pytest.raises(UserInputError, match=r"^check needs the sizes of all parameters"):
        check(Classifier(lazy_net(), 2), data())
