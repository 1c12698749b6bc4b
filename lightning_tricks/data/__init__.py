"""Splits, DataModules and augmentation."""

from lightning_tricks.data import splits as splits
from lightning_tricks.data._datamodule import SplitDataModule as SplitDataModule
from lightning_tricks.data._loading import Source as Source
from lightning_tricks.data._loading import TensorSource as TensorSource
from lightning_tricks.data.augment import BatchAugment as BatchAugment
from lightning_tricks.data.images._datamodule import ImageDataModule as ImageDataModule
from lightning_tricks.data.images._digits import DigitsDataModule as DigitsDataModule
from lightning_tricks.data.tables._datamodule import TabularDataModule as TabularDataModule
from lightning_tricks.data.texts._datamodule import TextDataModule as TextDataModule
