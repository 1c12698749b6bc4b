"""Programs as their authors write them: what they ask of the trainer is answered, and nothing is called broken."""

import math
import warnings

import lightning.pytorch as pl
import pytest
import torch
from helpers import quiet_trainer
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import lightning_tricks as lt
from lightning_tricks.diagnosis._trainer_view import TrainerView


class Program(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3))
        self.asked = []

    def training_step(self, batch, batch_idx):
        x, y = batch
        return nn.functional.cross_entropy(self.net(x), y)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


class OneCycle(Program):
    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-3)
        steps = self.trainer.estimated_stepping_batches
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-2, total_steps=steps)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


class AsksForEpochs(Program):
    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-3)
        total = self.trainer.max_epochs * self.trainer.num_training_batches
        return [optimizer], [torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / total)]


class AsksForData(Program):
    def configure_optimizers(self):
        assert len(self.trainer.datamodule.train_dataloader()) > 0
        return super().configure_optimizers()


class ThroughTheTrainer(Program):
    """As in a well-known template."""

    def configure_optimizers(self):
        return torch.optim.AdamW(self.trainer.model.parameters(), lr=1e-3)


class WithoutBatchIndex(Program):
    def training_step(self, batch):
        return super().training_step(batch, 0)


class Data(pl.LightningDataModule):
    def train_dataloader(self):
        return DataLoader(data(), batch_size=16, shuffle=True)


def data():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(128, 4, generator=generator)
    return TensorDataset(x, (x[:, :3]).argmax(1))


PROGRAMS = [OneCycle, AsksForEpochs, AsksForData, ThroughTheTrainer, WithoutBatchIndex]
every_program = pytest.mark.parametrize("program", PROGRAMS)


@every_program
@pytest.mark.parametrize("budget", ["quick", "full"])
def test_check_finds_no_error_and_runs_every_rule(program, budget):
    report = lt.check(program(), Data(), budget=budget, progress=False)
    assert report.ok, report
    assert "could not run" not in str(report)


@every_program
def test_preflight_finds_no_error_while_the_trainer_runs(program):
    preflight = lt.Preflight(on_error="raise")
    trainer = quiet_trainer(max_epochs=1, callbacks=[preflight])
    trainer.fit(program(), datamodule=Data())
    assert preflight.report.ok
    assert "could not run" not in str(preflight.report)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_epochs": 3},
        {"max_steps": 20},
        {"max_epochs": 3, "accumulate_grad_batches": 3},
        {"max_epochs": 2, "limit_train_batches": 5},
        {"max_epochs": 2, "limit_train_batches": 0.5},
        {"max_epochs": -1, "max_steps": 7},
        {"max_epochs": -1},
    ],
)
def test_the_view_answers_as_the_trainer_that_runs(options):
    class Asks(Program):
        def configure_optimizers(self):
            trainer = self.trainer
            self.asked = [trainer.estimated_stepping_batches, trainer.max_epochs, trainer.num_training_batches]
            raise StopIteration  # enough has been seen

    model = Asks()
    loader = DataLoader(data(), batch_size=16)
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, **options)
    view = TrainerView(
        pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, **options), model, loader
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the default number of epochs
        with pytest.raises(StopIteration):
            trainer.fit(model, loader)
    steps, epochs, batches = model.asked
    assert [view.estimated_stepping_batches, view.max_epochs] == [steps, epochs]
    assert batches in (view.num_training_batches, math.inf), "infinity where the trainer has not counted yet"


def test_a_stream_without_a_length_has_endless_batches():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter([])

    view = TrainerView(quiet_trainer(max_steps=9), Program(), DataLoader(Stream()))
    assert view.num_training_batches == math.inf
    assert view.estimated_stepping_batches == 9
