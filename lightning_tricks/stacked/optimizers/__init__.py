"""Optimizers of many nets as one: a class per optimizer, each in a file of its own, behind a registry."""

from lightning_tricks.stacked.optimizers._registry import UPDATES as UPDATES
from lightning_tricks.stacked.optimizers._spec import Group as Group
from lightning_tricks.stacked.optimizers._spec import OptimizerSpec as OptimizerSpec
from lightning_tricks.stacked.optimizers._spec import spec_of as spec_of
from lightning_tricks.stacked.optimizers._update import Update as Update
