"""The tips and tricks of a good neural-network course, done right, as parts for a standard ``lightning.Trainer``.

Every public name is reachable as ``lightning_tricks.NAME`` and is loaded when it is first touched, so that importing
the package costs nothing.

Example:
    >>> import lightning_tricks as lt
    >>> lt.MLP(in_features=4, num_classes=3).num_classes
    3
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lightning_tricks._version import __version__ as __version__

if TYPE_CHECKING:
    from lightning_tricks.callbacks import ActivationMonitor as ActivationMonitor
    from lightning_tricks.callbacks import Diagnosis as Diagnosis
    from lightning_tricks.callbacks import EarlyStopping as EarlyStopping
    from lightning_tricks.callbacks import ExactResume as ExactResume
    from lightning_tricks.callbacks import LRFinder as LRFinder
    from lightning_tricks.callbacks import LRFindResult as LRFindResult
    from lightning_tricks.callbacks import NormMonitor as NormMonitor
    from lightning_tricks.callbacks import PredictionWriter as PredictionWriter
    from lightning_tricks.callbacks import Preflight as Preflight
    from lightning_tricks.callbacks import PruningCallback as PruningCallback
    from lightning_tricks.callbacks import ReduceLROnPlateau as ReduceLROnPlateau
    from lightning_tricks.callbacks import WeightInit as WeightInit
    from lightning_tricks.callbacks import WeightPenalty as WeightPenalty
    from lightning_tricks.callbacks import last_checkpoint as last_checkpoint
    from lightning_tricks.callbacks import lr_find as lr_find
    from lightning_tricks.callbacks import recipe as recipe
    from lightning_tricks.data import BatchAugment as BatchAugment
    from lightning_tricks.data import DigitsDataModule as DigitsDataModule
    from lightning_tricks.data import ImageDataModule as ImageDataModule
    from lightning_tricks.data import SplitDataModule as SplitDataModule
    from lightning_tricks.data import TabularDataModule as TabularDataModule
    from lightning_tricks.data import TextDataModule as TextDataModule
    from lightning_tricks.diagnosis import Finding as Finding
    from lightning_tricks.diagnosis import Report as Report
    from lightning_tricks.diagnosis import check as check
    from lightning_tricks.init import InitReport as InitReport
    from lightning_tricks.init import init_weights as init_weights
    from lightning_tricks.loggers import TolerantWandbLogger as TolerantWandbLogger
    from lightning_tricks.modules import Classifier as Classifier
    from lightning_tricks.modules import MCDropoutPredictor as MCDropoutPredictor
    from lightning_tricks.modules import Regressor as Regressor
    from lightning_tricks.modules import TTAPredictor as TTAPredictor
    from lightning_tricks.nets import MLP as MLP
    from lightning_tricks.nets import ConvNet as ConvNet
    from lightning_tricks.nets import build_net as build_net
    from lightning_tricks.nets import convert_norm as convert_norm
    from lightning_tricks.optim import build_optimizer as build_optimizer
    from lightning_tricks.optim import param_groups as param_groups
    from lightning_tricks.stacked import fit_stacked as fit_stacked
    from lightning_tricks.tune import Choice as Choice
    from lightning_tricks.tune import CoarseToFineSampler as CoarseToFineSampler
    from lightning_tricks.tune import CVResult as CVResult
    from lightning_tricks.tune import Float as Float
    from lightning_tricks.tune import Int as Int
    from lightning_tricks.tune import SearchResult as SearchResult
    from lightning_tricks.tune import cross_validate as cross_validate
    from lightning_tricks.tune import explain as explain
    from lightning_tricks.tune import join as join
    from lightning_tricks.tune import search as search
    from lightning_tricks.uncertainty import mc_forward as mc_forward

# Where each public name lives. `tests/project/test_public_api.py` keeps this and the imports above in step.
_SUBPACKAGE_OF = {
    "ActivationMonitor": "callbacks",
    "BatchAugment": "data",
    "CVResult": "tune",
    "Choice": "tune",
    "Classifier": "modules",
    "CoarseToFineSampler": "tune",
    "ConvNet": "nets",
    "Diagnosis": "callbacks",
    "DigitsDataModule": "data",
    "EarlyStopping": "callbacks",
    "ExactResume": "callbacks",
    "Finding": "diagnosis",
    "Float": "tune",
    "ImageDataModule": "data",
    "InitReport": "init",
    "Int": "tune",
    "LRFindResult": "callbacks",
    "LRFinder": "callbacks",
    "MCDropoutPredictor": "modules",
    "MLP": "nets",
    "NormMonitor": "callbacks",
    "PredictionWriter": "callbacks",
    "Preflight": "callbacks",
    "PruningCallback": "callbacks",
    "ReduceLROnPlateau": "callbacks",
    "Regressor": "modules",
    "Report": "diagnosis",
    "SearchResult": "tune",
    "SplitDataModule": "data",
    "TTAPredictor": "modules",
    "TabularDataModule": "data",
    "TextDataModule": "data",
    "TolerantWandbLogger": "loggers",
    "WeightInit": "callbacks",
    "WeightPenalty": "callbacks",
    "build_net": "nets",
    "build_optimizer": "optim",
    "check": "diagnosis",
    "convert_norm": "nets",
    "cross_validate": "tune",
    "explain": "tune",
    "fit_stacked": "stacked",
    "init_weights": "init",
    "join": "tune",
    "last_checkpoint": "callbacks",
    "lr_find": "callbacks",
    "mc_forward": "uncertainty",
    "param_groups": "optim",
    "recipe": "callbacks",
    "search": "tune",
}

__all__ = ["__version__", *_SUBPACKAGE_OF]


def __getattr__(name: str) -> Any:
    if name not in _SUBPACKAGE_OF:
        raise AttributeError(f"module 'lightning_tricks' has no attribute {name!r}")
    value = getattr(import_module(f"lightning_tricks.{_SUBPACKAGE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
