"""Hyperparameter search and cross-validation."""

from lightning_tricks.tune._cross_validate import cross_validate as cross_validate
from lightning_tricks.tune._cv_result import CVResult as CVResult
