"""Optimizers with sane parameter groups."""

from lightning_tricks.optim._blocks import blocks as blocks
from lightning_tricks.optim._build import Implementation as Implementation
from lightning_tricks.optim._build import OptimizerName as OptimizerName
from lightning_tricks.optim._build import build_optimizer as build_optimizer
from lightning_tricks.optim._groups import param_groups as param_groups
