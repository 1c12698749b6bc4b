"""Callbacks: thin shells on Lightning's hooks."""

from lightning_tricks.callbacks._activation_monitor import ActivationMonitor as ActivationMonitor
from lightning_tricks.callbacks._early_stopping import EarlyStopping as EarlyStopping
from lightning_tricks.callbacks._exact_resume import ExactResume as ExactResume
from lightning_tricks.callbacks._norm_monitor import NormMonitor as NormMonitor
from lightning_tricks.callbacks._plateau import ReduceLROnPlateau as ReduceLROnPlateau
from lightning_tricks.callbacks._plateau import Reduction as Reduction
from lightning_tricks.callbacks._preflight import Preflight as Preflight
from lightning_tricks.callbacks._preflight import PreflightError as PreflightError
from lightning_tricks.callbacks._recipe import recipe as recipe
from lightning_tricks.callbacks._weight_init import WeightInit as WeightInit
from lightning_tricks.callbacks._weight_penalty import WeightPenalty as WeightPenalty
