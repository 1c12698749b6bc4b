"""The nets of the paper's table learn what each would alone; an interrupted run ends equal."""

import importlib
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn


@pytest.fixture
def uci(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))
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


def make_part(uci, splits=2, rows=150):
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(splits, rows, 3, generator=generator), torch.randn(splits, rows, generator=generator)
    return uci.Part(x, y, x[:, :7], 10 * y[:, :7] + 30, torch.full((splits,), 30.0), torch.full((splits,), 10.0))


def test_each_net_learns_from_its_own_rows_what_it_would_alone(uci):
    """Without dropout, against loops that write the penalty into the loss."""
    part, none, tau = make_part(uci), torch.zeros(2, 3), torch.tensor([[1e-4, 1e-3, 1.0]] * 2)
    models = uci.train(part, none, tau, hidden=4, epochs=6, seed=5, checkpoint=None)
    torch.manual_seed(5)
    for number, model in enumerate(models):
        split, point = divmod(number, 3)
        net = uci.OwnRows(part.x[split], part.y[split], 4, 0.0, 0.0).net
        optimizer = torch.optim.Adam(net.parameters(), lr=1e-3, eps=1e-7)
        for epoch in range(6):
            order = torch.randperm(150, generator=torch.Generator().manual_seed(5 * 100_003 + epoch))
            for batch in (order[:128], order[128:]):
                error = (net(part.x[split][batch])[:, 0] - part.y[split][batch]).square().mean()
                penalty = 1e-4 / (2 * 150 * tau[split, point])
                loss = error + penalty * (net[1].weight.square().sum() + net[4].weight.square().sum())
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        for ours, alone in zip(model.net.parameters(), net.parameters(), strict=True):
            torch.testing.assert_close(ours, alone, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(models[0].net[1].weight, models[1].net[1].weight)


def test_scores_are_those_of_the_paper(uci):
    """With two equally likely predictions, by hand."""

    class TwoAnswers(nn.Module):
        def __init__(self):
            super().__init__()
            self.drop = nn.Dropout(0.5)

        def forward(self, x):
            return self.drop(torch.ones(len(x), 1))  # 0 or 2

    part = uci.Part(*(torch.zeros(1, 1) for _ in range(2)), torch.zeros(1, 1, 3), torch.tensor([[31.0]]), *[None] * 2)
    part.mean, part.scale = torch.tensor([30.0]), torch.tensor([4.0])  # so 30 or 38, and 31 was to be said
    model = nn.Module()
    model.net = TwoAnswers()
    scores = uci.score([model], part, torch.tensor([[0.5]]), 40_000, 0)
    assert scores["one_pass_rmse"].item() in (1.0, 7.0)
    assert scores["rmse"].item() == pytest.approx(3, abs=0.1)
    gauss = math.sqrt(0.5 / (2 * math.pi))
    nats = math.log(0.5 * gauss * (math.exp(-0.25 * 1) + math.exp(-0.25 * 49)))
    assert scores["log_likelihood"].item() == pytest.approx(nats, abs=0.02)


def test_a_set_is_standardised_with_its_training_rows_only(uci):
    x, y = np.array([[0.0, 3.0], [2.0, 3.0], [100.0, 3.0]]), np.array([1.0, 3.0, 50.0])
    part = uci.make_part(x, y, [np.array([0, 1])], [np.array([2])])
    assert part.x[0].tolist() == [[-1, 0], [1, 0]]
    assert part.x_new[0].tolist() == [[99, 0]]
    assert part.y[0].tolist() == [-1, 1]
    assert (part.y_new.item(), part.mean.item(), part.scale.item()) == (50, 2, 1)


@pytest.mark.filterwarnings("ignore:Checkpoint directory")
def test_an_interrupted_run_ends_equal(uci, tmp_path, monkeypatch):
    make_set(tmp_path / "toy.npz")
    monkeypatch.setattr(uci, "SAVE_EVERY", 10)
    options = {"multiplier": 4, "passes": 40, "seed": 0}  # 12 epochs: a checkpoint after 10
    whole = uci.run_set(tmp_path / "toy.npz", checkpoints=None, **options)

    def dies(data):
        if data.trainer.current_epoch == 11:
            raise ZeroDivisionError
        return original(data)

    original = uci.RowNumbers.train_dataloader
    monkeypatch.setattr(uci.RowNumbers, "train_dataloader", dies)
    with pytest.raises(ZeroDivisionError):
        uci.run_set(tmp_path / "toy.npz", checkpoints=tmp_path / "kept", **options)
    epochs = []
    monkeypatch.setattr(
        uci.RowNumbers, "train_dataloader", lambda data: epochs.append(data.trainer.current_epoch) or original(data)
    )
    resumed = uci.run_set(tmp_path / "toy.npz", checkpoints=tmp_path / "kept", **options)
    assert epochs[0] >= 9
    whole.pop("cpu_seconds"), resumed.pop("cpu_seconds")
    assert resumed == whole
    json.dumps(whole)
