"""Splits, DataModules and augmentation."""

from lightning_tricks.data import splits as splits
from lightning_tricks.data._digits import DigitsDataModule as DigitsDataModule
from lightning_tricks.data._image import ImageDataModule as ImageDataModule
from lightning_tricks.data._tabular import TabularDataModule as TabularDataModule
from lightning_tricks.data._text import TextDataModule as TextDataModule
from lightning_tricks.data.augment import BatchAugment as BatchAugment
