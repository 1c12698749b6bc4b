"""The optimizers of a stack: each as torch's own, whatever differs between nets; a new one is one class."""

import pytest
import torch
from torch import nn

from lightning_tricks.stacked._net import StackedNet
from lightning_tricks.stacked._optimizer import StackedOptimizer
from lightning_tricks.stacked.optimizers import UPDATES, Group, OptimizerSpec, Update, spec_of

CASES = [
    (torch.optim.SGD, [{"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}, {"lr": 0.01, "momentum": 0.5}]),
    (torch.optim.SGD, [{"lr": 0.1, "momentum": m, "nesterov": True} for m in (0.9, 0.5)]),
    (torch.optim.SGD, [{"lr": 0.1}, {"lr": 0.2}]),
    (torch.optim.Adam, [{"lr": 0.1, "betas": (0.5, 0.9)}, {"lr": 0.01, "weight_decay": 0.2}]),
    (torch.optim.Adam, [{"lr": 0.1, "eps": 1e-3}, {"lr": 0.1, "eps": 1e-2}]),
    (torch.optim.AdamW, [{"lr": 0.1, "betas": (0.9, 0.9), "weight_decay": 0.3}, {"lr": 0.01, "weight_decay": 0.0}]),
    (torch.optim.AdamW, [{"lr": 0.1}, {"lr": 0.01}]),
]


def train(stack, nets, together, alone, steps=4):
    """Train the stack and its nets on the same batches."""
    x = torch.randn(6, 4, dtype=torch.float64)
    for _ in range(steps):
        together.zero_grad()
        stack(x).square().sum().backward()
        together.step()
        for net, optimizer in zip(nets, alone, strict=True):
            optimizer.zero_grad()
            net(x).square().sum().backward()
            optimizer.step()
    for i, net in enumerate(nets):
        for ours, theirs in zip(stack.parameters(), net.parameters(), strict=True):
            torch.testing.assert_close(ours[i], theirs)


@pytest.mark.parametrize(("kind", "options"), CASES)
def test_every_net_moves_as_by_torchs_optimizer_of_its_own(kind, options):
    torch.manual_seed(0)
    nets = [nn.Linear(4, 2).double() for _ in options]
    stack = StackedNet(nets)
    alone = [kind(net.parameters(), **each) for net, each in zip(nets, options, strict=True)]
    train(stack, nets, StackedOptimizer(stack.parameters(), spec_of(alone, nets)), alone)


def test_cases_hold_every_registered_optimizer():
    assert {kind for kind, _ in CASES} == set(UPDATES)
    assert all(update.optimizer is kind for kind, update in UPDATES.items())


@pytest.mark.parametrize("update", UPDATES.values())
def test_every_option_of_torchs_optimizer_is_honoured_or_refused(update):
    defaults = update.optimizer([nn.Parameter(torch.zeros(1))], lr=0.1).defaults
    # How torch computes, not what.
    how = {"foreach", "fused", "capturable", "differentiable"}
    known = {"betas" if name.startswith("beta") else name for name in update.hyperparameters}
    # In AdamW torch sets this itself; no argument of AdamW changes it.
    own = {"decoupled_weight_decay"} if update.optimizer is torch.optim.AdamW else set()
    assert set(defaults) - how == known | set(update.fixed) | set(update.shared) | own


class SignUpdate(Update):
    """A new optimizer, as somebody would add one: follows the sign of the gradient."""

    optimizer = torch.optim.Optimizer
    hyperparameters = ("lr",)
    memory = ()

    def step(self, stack):
        stack.flat.sub_(stack.value("lr") * stack.grads.sign())


def test_a_new_optimizer_is_one_class():
    nets = [nn.Linear(4, 2).double() for _ in range(2)]
    stack = StackedNet(nets)
    spec = OptimizerSpec(SignUpdate, [[Group([0, 1], {"lr": rate})] for rate in (0.5, 0.25)])
    optimizer = StackedOptimizer(stack.parameters(), spec)
    before = [p.detach().clone() for p in stack.parameters()]
    stack(torch.ones(3, 4, dtype=torch.float64)).square().sum().backward()
    optimizer.step()
    for now, then in zip(stack.parameters(), before, strict=True):
        torch.testing.assert_close((now - then)[0].abs(), torch.full_like(now[0], 0.5))
        torch.testing.assert_close((now - then)[1].abs(), torch.full_like(now[1], 0.25))
