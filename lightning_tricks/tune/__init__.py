"""Hyperparameter search and cross-validation.

Names are loaded when they are first touched: importing this room does not import Optuna.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lightning_tricks._base import require_extra

if TYPE_CHECKING:
    from lightning_tricks.tune._coarse_to_fine import CoarseToFineSampler as CoarseToFineSampler
    from lightning_tricks.tune._cross_validate import cross_validate as cross_validate
    from lightning_tricks.tune._cv_result import CVResult as CVResult
    from lightning_tricks.tune._explain import explain as explain
    from lightning_tricks.tune._fit_stacked import StackedRun as StackedRun
    from lightning_tricks.tune._fit_stacked import fit_stacked as fit_stacked
    from lightning_tricks.tune._grid_and_random import SlotGridSampler as SlotGridSampler
    from lightning_tricks.tune._grid_and_random import SlotRandomSampler as SlotRandomSampler
    from lightning_tricks.tune._join import join as join
    from lightning_tricks.tune._result import SearchResult as SearchResult
    from lightning_tricks.tune._search import search as search
    from lightning_tricks.tune._space import Choice as Choice
    from lightning_tricks.tune._space import Float as Float
    from lightning_tricks.tune._space import Int as Int

# Where each name lives, and whether that module imports Optuna.
_HOME = {
    "CVResult": ("_cv_result", False),
    "Choice": ("_space", False),
    "CoarseToFineSampler": ("_coarse_to_fine", True),
    "Float": ("_space", False),
    "Int": ("_space", False),
    "SearchResult": ("_result", True),
    "SlotGridSampler": ("_grid_and_random", True),
    "SlotRandomSampler": ("_grid_and_random", True),
    "StackedRun": ("_fit_stacked", False),
    "cross_validate": ("_cross_validate", False),
    "explain": ("_explain", True),
    "fit_stacked": ("_fit_stacked", False),
    "join": ("_join", True),
    "search": ("_search", True),
}

__all__ = [*_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'lightning_tricks.tune' has no attribute {name!r}")
    module, needs_optuna = _HOME[name]
    if needs_optuna:
        require_extra("optuna", "tune", f"lightning_tricks.tune.{name}")
    value = getattr(import_module(f"lightning_tricks.tune.{module}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
