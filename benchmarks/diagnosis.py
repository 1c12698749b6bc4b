"""Claim: Diagnosis costs about what NormMonitor costs, plus 1 % of a step.

Run: python -m benchmarks.diagnosis [rounds [epochs]]

The same fits of an MLP 784-512-512-10 (batch 128) run side by side and take turns, an epoch of 50 steps at a time:
without a monitor, with NormMonitor, with NormMonitor and ActivationMonitor, and with Diagnosis, each as it comes. The
first 50 steps, in which the 1st, 2nd, 4th, ... are measured, are part of it.
"""

import logging
import sys
import tempfile
import warnings

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader

from benchmarks.timing import fits_in_turns, report_turns
from lightning_tricks import ActivationMonitor, Diagnosis, NormMonitor

EPOCH = 50


class Program(LightningModule):
    """The MLP of the other benchmarks, on data that can be learned."""

    def __init__(self):
        super().__init__()
        layers = [nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10)]
        self.net = nn.Sequential(*layers)

    def training_step(self, batch, batch_idx):  # noqa: D102
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):  # noqa: D102
        return torch.optim.Adam(self.parameters(), lr=1e-4)


def batches():
    generator = torch.Generator().manual_seed(0)
    teacher = torch.randn(784, 10, generator=generator)
    x = torch.randn(EPOCH, 128, 784, generator=generator)
    return [(part, (part @ teacher).argmax(1)) for part in x]


CASES = {
    "no monitor": list,
    "NormMonitor()": lambda: [NormMonitor()],
    "NormMonitor() and ActivationMonitor()": lambda: [NormMonitor(), ActivationMonitor()],
    "Diagnosis()": lambda: [Diagnosis()],
    "Diagnosis(every_n_steps=100)": lambda: [Diagnosis(every_n_steps=100)],
}


def one_round(data, folder, epochs):
    def case(make):
        def fit(turn):
            torch.manual_seed(0)
            trainer = Trainer(
                accelerator="cpu",
                max_epochs=epochs,
                callbacks=[turn, *make()],
                logger=CSVLogger(folder),
                enable_progress_bar=False,
                enable_model_summary=False,
                enable_checkpointing=False,
            )
            trainer.fit(Program(), DataLoader(data, batch_size=None))

        return fit

    return fits_in_turns({name: case(make) for name, make in CASES.items()}, every=EPOCH)


def main(rounds=5, epochs=8):
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    data = batches()
    with tempfile.TemporaryDirectory() as folder:
        one_round(data[:2], folder, 1)  # warm up
        measured = [one_round(data, folder, epochs) for _ in range(rounds)]
    report_turns("Diagnosis on MLP 784-512-512-10, batch 128", measured, base="no monitor", steps=EPOCH * epochs)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
