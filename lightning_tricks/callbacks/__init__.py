"""Callbacks: thin shells on Lightning's hooks."""

from lightning_tricks.callbacks._activation_monitor import ActivationMonitor as ActivationMonitor
from lightning_tricks.callbacks._norm_monitor import NormMonitor as NormMonitor
