"""Callbacks: thin shells on Lightning's hooks."""

from lightning_tricks.callbacks._weight_init import WeightInit as WeightInit
from lightning_tricks.callbacks._weight_penalty import WeightPenalty as WeightPenalty
