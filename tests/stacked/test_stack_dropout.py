"""Dropout in a stack: rates, masks and gradients of each net."""

import copy

import pytest
import torch
from helpers import quiet_trainer
from stack_models import CPU, digits
from torch import nn

import lightning_tricks as lt
from lightning_tricks.stacked._masks import keep_mask
from lightning_tricks.stacked._net import StackedNet


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
