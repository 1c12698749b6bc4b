"""Imported once by the process from which the ranks of tests are forked: what each of them would do anew.

Besides the imports these are Python's caches of what is a ``Mapping`` or a ``Sequence``, which the first logged number
fills in half a second. Nothing here may run autograd: it starts threads, and who has threads cannot be forked.

What ranks print goes nowhere, since nobody captures it; `run_ranks` hands their errors to the test.
"""

import os

import pandas  # noqa: F401
import sklearn.model_selection  # noqa: F401
import torch
from helpers import quiet_trainer
from lightning.pytorch import LightningModule
from torch.utils.data import DataLoader

import lightning_tricks.callbacks
import lightning_tricks.data
import lightning_tricks.diagnosis
import lightning_tricks.modules
import lightning_tricks.tune  # noqa: F401

for stream in (1, 2):
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream)


class _Logs(LightningModule):
    def validation_step(self, batch, batch_idx):
        self.log("loss", batch.mean())


quiet_trainer().validate(_Logs(), DataLoader(torch.zeros(2, 1)), verbose=False)
