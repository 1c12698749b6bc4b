"""Splits, DataModules and augmentation."""

from lightning_tricks.data._digits import DigitsDataModule as DigitsDataModule
from lightning_tricks.data.augment import BatchAugment as BatchAugment
