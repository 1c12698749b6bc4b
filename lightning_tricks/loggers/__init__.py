"""Loggers for a ``lightning.Trainer``."""

from lightning_tricks.loggers._wandb_logger import TolerantWandbLogger as TolerantWandbLogger
