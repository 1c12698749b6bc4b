"""Callbacks: thin shells on Lightning's hooks."""

from lightning_tricks.callbacks._prediction_writer import PredictionWriter as PredictionWriter
