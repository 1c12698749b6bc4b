"""Callbacks: thin shells on Lightning's hooks."""

from lightning_tricks.callbacks._activation_monitor import ActivationMonitor as ActivationMonitor
from lightning_tricks.callbacks._early_stopping import EarlyStopping as EarlyStopping
from lightning_tricks.callbacks._exact_resume import ExactResume as ExactResume
from lightning_tricks.callbacks._lr_finder import LRFinder as LRFinder
from lightning_tricks.callbacks._lr_finder import LRFindResult as LRFindResult
from lightning_tricks.callbacks._lr_finder import lr_find as lr_find
from lightning_tricks.callbacks._lr_rules import suggest_lr as suggest_lr
from lightning_tricks.callbacks._norm_monitor import NormMonitor as NormMonitor
from lightning_tricks.callbacks._plateau import ReduceLROnPlateau as ReduceLROnPlateau
from lightning_tricks.callbacks._plateau import Reduction as Reduction
from lightning_tricks.callbacks._prediction_writer import PredictionWriter as PredictionWriter
from lightning_tricks.callbacks._pruning import PruningCallback as PruningCallback
from lightning_tricks.callbacks._recipe import recipe as recipe
from lightning_tricks.callbacks._weight_init import WeightInit as WeightInit
from lightning_tricks.callbacks._weight_penalty import WeightPenalty as WeightPenalty
