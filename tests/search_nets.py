"""What the tests of searches share: a net whose loss is known in closed form, and a quiet search."""

import os
import signal

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule
from torch.utils.data import DataLoader, TensorDataset

import lightning_tricks as lt

SPACE = {"lr": lt.Float(1e-3, 1.0, log=True), "start": lt.Float(-2, 2)}


class Slope(LightningModule):
    """One weight that is pulled to zero; the loss is known in closed form."""

    def __init__(self, lr=0.1, start=1.0, bad="none"):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(float(start)))
        self.lr, self.bad = lr, bad

    def training_step(self, batch, batch_idx):
        if self.bad == "memory":
            raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")
        return self.weight**2

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.weight.detach() ** 2 * (float("nan") if self.bad == "nan" else 1))

    def test_step(self, batch, batch_idx):
        self.log("test_loss", self.weight.detach() ** 2)

    def configure_optimizers(self):
        return torch.optim.SGD([self.weight], lr=self.lr)


class Tiny(LightningDataModule):
    def __init__(self, batch_size=4):
        super().__init__()
        self.batch_size = batch_size

    def train_dataloader(self):
        return DataLoader(TensorDataset(torch.zeros(8, 1)), self.batch_size)

    val_dataloader = test_dataloader = train_dataloader


def find(make_model=Slope, space=SPACE, *, data=None, trials=4, **options):
    defaults = {
        "method": "random",
        "trainer": {"max_epochs": 2, "accelerator": "cpu"},
        "retrain": 0,
        "start_method": "fork",
        "progress": False,
        "report": False,
    }
    return lt.search(make_model, Tiny() if data is None else data, space, trials=trials, **{**defaults, **options})


def expected(lr, start, steps=4):
    return (start * (1 - 2 * lr) ** steps) ** 2


class Once(Callback):
    """Do something once in the whole search, at the start of an epoch."""

    def __init__(self, flag, epoch, action):
        self.flag, self.epoch, self.action = flag, epoch, action

    def on_train_epoch_start(self, trainer, pl_module):
        with (self.flag.parent / "epochs.txt").open("a") as file:
            file.write(f"{trainer.current_epoch}\n")
        if trainer.current_epoch == self.epoch and not self.flag.exists():
            self.flag.touch()
            self.action()


def kill_self():
    os.kill(os.getpid(), signal.SIGKILL)
