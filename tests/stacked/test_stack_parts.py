"""The parts of a stack by themselves: nets, optimizer, clipping, plateaus."""

import math

import pytest
import torch
from helpers import quiet_trainer
from stack_models import CPU, digits, distance, make_models, make_net
from torch import nn

import lightning_tricks as lt
from lightning_tricks.stacked._net import StackedNet
from lightning_tricks.stacked._optimizer import StackedOptimizer
from lightning_tricks.stacked._stopping import Rules
from lightning_tricks.stacked.optimizers import Group, spec_of


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
