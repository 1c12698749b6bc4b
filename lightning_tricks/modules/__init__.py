"""LightningModules."""

from lightning_tricks.modules._base_module import check_finite as check_finite
from lightning_tricks.modules._base_module import split_batch as split_batch
from lightning_tricks.modules._classifier import Classifier as Classifier
from lightning_tricks.modules._losses import gaussian_nll as gaussian_nll
from lightning_tricks.modules._regressor import Regressor as Regressor
from lightning_tricks.modules._targets import check_class_targets as check_class_targets
from lightning_tricks.modules._targets import check_regression_targets as check_regression_targets
from lightning_tricks.modules._targets import hard_targets as hard_targets
from lightning_tricks.modules.monte_carlo._predictor import MCDropoutPredictor as MCDropoutPredictor
from lightning_tricks.modules.monte_carlo._tta import TTAPredictor as TTAPredictor
