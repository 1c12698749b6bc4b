"""LightningModules."""

from lightning_tricks.modules._classifier import Classifier as Classifier
from lightning_tricks.modules._mc_dropout import MCDropoutPredictor as MCDropoutPredictor
from lightning_tricks.modules._regressor import Regressor as Regressor
from lightning_tricks.modules._tta import TTAPredictor as TTAPredictor
