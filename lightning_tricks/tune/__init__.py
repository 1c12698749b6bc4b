"""Hyperparameter search and cross-validation.

Names are loaded when they are first touched: importing this subpackage does not import Optuna.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lightning_tricks._base import require_extra

if TYPE_CHECKING:
    from lightning_tricks.stacked import StackedRun as StackedRun
    from lightning_tricks.stacked import fit_stacked as fit_stacked
    from lightning_tricks.tune._result import SearchResult as SearchResult
    from lightning_tricks.tune._search import search as search
    from lightning_tricks.tune._space import Choice as Choice
    from lightning_tricks.tune._space import Float as Float
    from lightning_tricks.tune._space import Int as Int
    from lightning_tricks.tune._space import check_space as check_space
    from lightning_tricks.tune._space import space_of as space_of
    from lightning_tricks.tune.cross_validation._cross_validate import cross_validate as cross_validate
    from lightning_tricks.tune.cross_validation._result import CVResult as CVResult
    from lightning_tricks.tune.execution._join import join as join
    from lightning_tricks.tune.reporting._explain import explain as explain
    from lightning_tricks.tune.samplers._coarse_to_fine import CoarseToFineSampler as CoarseToFineSampler
    from lightning_tricks.tune.samplers._grid import SlotGridSampler as SlotGridSampler
    from lightning_tricks.tune.samplers._random import SlotRandomSampler as SlotRandomSampler

# Where each name lives, and whether that module imports Optuna.
_HOME = {
    "CVResult": ("tune.cross_validation._result", False),
    "Choice": ("tune._space", False),
    "CoarseToFineSampler": ("tune.samplers._coarse_to_fine", True),
    "Float": ("tune._space", False),
    "Int": ("tune._space", False),
    "SearchResult": ("tune._result", True),
    "SlotGridSampler": ("tune.samplers._grid", True),
    "SlotRandomSampler": ("tune.samplers._random", True),
    "StackedRun": ("stacked", False),
    "check_space": ("tune._space", False),
    "cross_validate": ("tune.cross_validation._cross_validate", False),
    "explain": ("tune.reporting._explain", True),
    "fit_stacked": ("stacked", False),
    "join": ("tune.execution._join", True),
    "search": ("tune._search", True),
    "space_of": ("tune._space", False),
}

__all__ = [*_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'lightning_tricks.tune' has no attribute {name!r}")
    module, needs_optuna = _HOME[name]
    if needs_optuna:
        require_extra("optuna", "tune", f"lightning_tricks.tune.{name}")
    value = getattr(import_module(f"lightning_tricks.{module}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
