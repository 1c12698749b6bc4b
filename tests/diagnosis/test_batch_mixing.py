"""Samples that see each other, by a random cotangent: it sees what a sum and an exchange are blind to."""

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_tricks import check
from lightning_tricks.diagnosis._check import _quiet_trainer
from lightning_tricks.diagnosis._probe import Probe


class Steps(LightningModule):
    """Predicts a class at every time step, with rows of all samples under each other, ``(B·T, C)``."""

    def __init__(self, batch_first, rows="sample"):
        super().__init__()
        self.rnn, self.head = nn.GRU(4, 8, batch_first=batch_first), nn.Linear(8, 3)
        self.rows = rows

    def training_step(self, batch, batch_idx):
        x, y = batch  # (B, T, 4), (B, T)
        out = self.head(F.layer_norm(self.rnn(x)[0], (8,)))  # (B, T, 3)
        if self.rows == "time":
            out, y = out.transpose(0, 1), y.transpose(0, 1)
        return F.cross_entropy(out.reshape(-1, 3), y.reshape(-1))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters())


def loader():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(64, 5, 4, generator=generator)
    return DataLoader(TensorDataset(x, torch.randint(3, (64, 5), generator=generator)), 16, shuffle=True)


def mixing(model):
    torch.manual_seed(0)
    return [f.severity for f in check(model, loader(), progress=False) if f.rule == "batch-mixing"]


@pytest.mark.parametrize("rows", ["sample", "time"])
def test_time_steps_under_each_other(rows):
    assert mixing(Steps(batch_first=True, rows=rows)) == []
    assert mixing(Steps(batch_first=False, rows=rows)) == ["error"]


def test_the_gradient_agrees_with_finite_differences():
    torch.manual_seed(0)
    model = Steps(batch_first=False)  # runs along the batch axis: what comes later sees what came before
    probe = Probe(model, loader(), None, _quiet_trainer())
    gradient = probe.cross_gradient(model)
    before = probe.predict(model, probe.batch).view(16, 5, 3)
    for sample in (1, 7, 14):
        x = probe.inputs.clone()
        x[sample] += torch.randn_like(x[sample])
        moved = (probe.predict(model, [x, probe.batch[1]]).view(16, 5, 3) - before).abs().amax(dim=(1, 2))
        assert (gradient[:, sample] > 0).tolist() == (moved[[0, -1]] > 0).tolist()
    assert gradient[0, 0] > 0
    assert gradient[1, -1] > 0


def test_integers_have_no_gradient():
    class Tokens(Steps):
        def training_step(self, batch, batch_idx):
            return super().training_step((batch[0].float(), batch[1]), batch_idx)

    data = DataLoader(TensorDataset(torch.ones(64, 5, 4).long(), torch.zeros(64, 5).long()), 16)
    model = Tokens(True)
    assert Probe(model, data, None, _quiet_trainer()).cross_gradient(model) is None
