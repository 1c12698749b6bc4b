"""The stacked nets of the paper's table learn what each would alone; an interrupted run ends bit-equal."""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn


@pytest.fixture
def uci(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent))
    return importlib.import_module("benchmarks.uci_dropout")


def make_set(path, rows=60, splits=2):
    generator = np.random.default_rng(0)
    x = generator.normal(size=(rows, 3))
    arrays = {"X": x, "y": x @ [1.0, -2.0, 0.5] * 7 + 20 + generator.normal(size=rows)}
    for split in range(splits):
        order = generator.permutation(rows)
        arrays |= {f"train_{split}": order[:50], f"test_{split}": order[50:]}
    grid = {"dropout_rates": [0.01, 0.1], "tau_values": [0.25, 1.0], "n_hidden": [5], "n_epochs": [3]}
    np.savez(path, **arrays, **{name: np.array(values) for name, values in grid.items()})


def test_gradients_equal_autograd(uci):
    generator = torch.Generator().manual_seed(0)
    rate = torch.tensor([0.05, 0.1, 0.5])
    net = uci.StackedNet(3, 4, 7, rate, generator)
    x, y, penalty = torch.randn(3, 4, 16), torch.randn(3, 1, 16), torch.tensor([0.1, 0.2, 0.3]).reshape(3, 1, 1)
    state = generator.get_state()
    net.backward(x, y, penalty)
    got = [parameter.grad.clone() for parameter in net.parameters()]
    generator.set_state(state)
    first, second = net.masks(3, 4, 16), net.masks(3, 7, 16)
    scale = 1 / (1 - rate).reshape(3, 1, 1)
    (w1, w2, b1, b2) = (parameter.clone().requires_grad_() for parameter in net.parameters())
    out = w2 @ (torch.relu(w1 @ (x * first * scale) + b1) * second * scale) + b2
    loss = (out - y).square().mean((1, 2)).sum() + (penalty * w1.square()).sum() + (penalty * w2.square()).sum()
    for ours, theirs in zip(got, torch.autograd.grad(loss, [w1, w2, b1, b2]), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_masks_drop_at_their_rates(uci):
    rate = torch.tensor([0.005, 0.1, 0.5])
    net = uci.StackedNet(3, 4, 7, rate, torch.Generator().manual_seed(0))
    masks = net.masks(3, 500, 801)
    assert set(masks.unique().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(1 - masks.mean((1, 2)), rate, atol=4e-3, rtol=0)


def test_adam_equals_torch(uci):
    ours, theirs = torch.randn(5, 4), nn.Parameter(torch.empty(5, 4))
    theirs.data.copy_(ours)
    mine, reference = uci.Adam([ours]), torch.optim.Adam([theirs], lr=1e-3, eps=1e-12)
    for _ in range(30):
        ours.grad = theirs.grad = torch.randn(5, 4)
        mine.step()
        reference.step()
    torch.testing.assert_close(ours, theirs.data)


def test_samples_have_the_nets_mean(uci):
    net = uci.StackedNet(2, 3, 6, torch.tensor([0.1, 0.2]), torch.Generator().manual_seed(0))
    x = torch.randn(4, 3)
    net.biases[0] += 10  # every unit is active, so the net is linear and dropout is unbiased
    drawn = uci.sample(net, x, 20_000)
    exact = (net.weights[1] @ (net.weights[0] @ x.T + net.biases[0]) + net.biases[1])[:, 0]
    error = drawn.std(0) / 20_000**0.5
    assert ((drawn.mean(0) - exact).abs() < 5 * error).all()


def test_a_set_is_standardised_with_its_training_rows_only(uci):
    x, y = np.array([[0.0, 3.0], [2.0, 3.0], [100.0, 3.0]]), np.array([1.0, 3.0, 50.0])
    part = uci.make_part(x, y, [np.array([0, 1])], [np.array([2])])
    assert part.x[0].tolist() == [[-1, 0], [1, 0]]
    assert part.x_new[0].tolist() == [[99, 0]]
    assert part.y[0].tolist() == [-1, 1]
    assert (part.y_new.item(), part.mean.item(), part.scale.item()) == (50, 2, 1)


def test_interrupted_run_ends_bit_equal(uci, tmp_path, monkeypatch):
    make_set(tmp_path / "toy.npz")
    options = {"multiplier": 67, "passes": 40, "seed": 0}  # 201 epochs: checkpoints after 100, 200 and 201
    whole = uci.run_set(tmp_path / "toy.npz", checkpoints=None, **options)
    saves = []

    def killed(*args):
        original(*args)
        saves.append(args)
        if len(saves) == 2:
            raise KeyboardInterrupt

    original = uci.save
    monkeypatch.setattr(uci, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        uci.run_set(tmp_path / "toy.npz", checkpoints=tmp_path, **options)
    resumed = uci.run_set(tmp_path / "toy.npz", checkpoints=tmp_path, **options)
    whole.pop("cpu_seconds"), resumed.pop("cpu_seconds")
    assert resumed == whole
    assert whole["rmse"][0] < 10  # of a target with standard deviation 16
    json.dumps(whole)
