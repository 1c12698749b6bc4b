"""From a study to pictures."""

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from lightning_tricks.plots import (
    is_number,
    parallel_coordinates,
    search_importance,
    search_pairs,
    search_points,
    search_progress,
)
from lightning_tricks.tune.reporting._explain import holds_rounds, rounds_of, windows_by_round

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# With fewer results an importance is noise.
_FEWEST_FOR_IMPORTANCE = 10


def pictures_of(study: optuna.Study) -> "dict[str, Figure]":
    """Return the pictures of a study by name."""
    trials = [t for t in study.get_trials(deepcopy=False) if t.state.is_finished() and t.params]
    done = [t for t in trials if t.state == TrialState.COMPLETE and t.value is not None]
    maximize = study.direction == StudyDirection.MAXIMIZE
    points, values = [t.params for t in done], [float(t.value or 0.0) for t in done]
    log = [name for t in done for name, d in t.distributions.items() if getattr(d, "log", False)]
    windows = _windows(study)
    pictures = {
        "progress": search_progress(
            [t.value if t in done else None for t in trials], maximize=maximize, rounds=_round_starts(study, trials)
        ),
        "points": search_points(points, values, log=log, windows=windows, maximize=maximize),
        "parallel": parallel_coordinates(points, values, log=log, maximize=maximize),
    }
    if sum(all(is_number(p.get(name)) for p in points) for name in points[0]) > 1:
        pictures["pairs"] = search_pairs(points, values, log=log, windows=windows, maximize=maximize)
    importance = _importance(study) if len(done) >= _FEWEST_FOR_IMPORTANCE else {}
    if importance:
        pictures["importance"] = search_importance(importance)
    return pictures


def _round_starts(study: optuna.Study, trials: Sequence[FrozenTrial]) -> list[int]:
    """Return at which of the trials a new round begins."""
    if not holds_rounds(study):
        return []
    rounds = rounds_of(study)
    known = [(i, rounds[t.number]) for i, t in enumerate(trials) if t.number in rounds]
    return [next(i for i, r in known if r == number) for number in sorted({r for _, r in known} - {0})]


def _windows(study: optuna.Study) -> list[dict[str, tuple[float, float]]]:
    if not holds_rounds(study):
        return []
    return [
        {name: (w.low, w.high) for name, w in windows.items() if w.low is not None and w.high is not None}
        for windows in windows_by_round(study)
    ]


def _importance(study: optuna.Study) -> dict[str, float]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            shares: dict[str, Any] = optuna.importance.get_param_importances(study)
        except (RuntimeError, ValueError):  # all values equal, or nothing common to all trials
            return {}
    return {name: float(share) for name, share in shares.items()}
