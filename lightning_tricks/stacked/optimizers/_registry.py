"""The optimizers that a stack knows."""

from torch.optim import Optimizer

from lightning_tricks.stacked.optimizers._adam import AdamUpdate
from lightning_tricks.stacked.optimizers._adamw import AdamWUpdate
from lightning_tricks.stacked.optimizers._sgd import SGDUpdate
from lightning_tricks.stacked.optimizers._update import Update

UPDATES: dict[type[Optimizer], type[Update]] = {
    update.optimizer: update for update in (SGDUpdate, AdamUpdate, AdamWUpdate)
}
