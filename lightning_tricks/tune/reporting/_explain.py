"""What a coarse-to-fine search did, in words and as data for pictures."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from lightning_tricks._base import UserInputError
from lightning_tricks.tune.samplers._coarse_to_fine import CoarseToFineSampler
from lightning_tricks.tune.samplers._history import Finished, choices_in_round, history_of, windows_in_round
from lightning_tricks.tune.samplers._scales import from_unit, is_categorical, to_unit
from lightning_tricks.tune.samplers._settings import CoarseToFineSettings
from lightning_tricks.tune.samplers._slot_table import SlotTable
from lightning_tricks.tune.samplers._windows import UnitWindow

_PREFIX = f"lightning_tricks:{CoarseToFineSampler.kind}"
# With fewer results, a best near a limit is chance: of three points one in ten lies there on every axis.
_FEWEST = 16
# Nearer than this share of the declared range to a limit, a best value says that the range is too small.
_EDGE = 0.05


@dataclass(frozen=True)
class RoundWindow:
    """What one parameter could be in one round.

    Args:
        low: lower end for a number.
        high: upper end for a number.
        choices: what was left of a list of choices; None for a number.
        reason: why the window is what it is.
    """

    low: float | None
    high: float | None
    choices: tuple[Any, ...] | None
    reason: str


def holds_rounds(study: Study) -> bool:
    """Whether the study holds a coarse-to-fine search, also one that another sampler goes on with."""
    return _PREFIX in study._storage.get_study_system_attrs(study._study_id)


def windows_by_round(study: Study) -> list[dict[str, RoundWindow]]:
    """Return the windows of each round that was begun, by parameter name.

    Raises:
        UserInputError: if the study holds no coarse-to-fine search.
    """
    settings, table = _read(study)
    history = history_of(table, settings.plan, maximize=study.direction == StudyDirection.MAXIMIZE)
    begun = [settings.plan.locate(slot).round for slot in map(table.slot, table.trials) if slot is not None]
    distributions = _distributions(table.trials)
    rounds = []
    for number in range(max(begun, default=-1) + 1):
        windows = windows_in_round(history, distributions, number, settings)
        rounds.append({name: _window(history, name, d, number, windows) for name, d in distributions.items()})
    return rounds


def rounds_of(study: Study) -> dict[int, int]:
    """Return the round of each trial that has a slot, by the trial's number.

    Raises:
        UserInputError: if the study holds no coarse-to-fine search.
    """
    settings, table = _read(study)
    return {t.number: settings.plan.locate(slot).round for t in table.trials if (slot := table.slot(t)) is not None}


def explain(study: Study) -> str:
    """Say what a coarse-to-fine search did: the windows of each round, the best so far, limits that are too narrow.

    Args:
        study: one that :class:`~lightning_tricks.CoarseToFineSampler` has run on.

    Returns:
        One paragraph per round, then, from 16 results on, one line for each parameter whose best value lies within 5 %
        of a declared limit (on the scale it was declared with), beginning with ``Warning``.

    Raises:
        UserInputError: if the study holds no coarse-to-fine search.

    Example:
        >>> import optuna
        >>> from lightning_tricks.tune import CoarseToFineSampler
        >>> optuna.logging.set_verbosity(optuna.logging.WARNING)
        >>> study = optuna.create_study(sampler=CoarseToFineSampler(16, rounds=1, seed=0))
        >>> study.optimize(lambda trial: trial.suggest_float("x", 0, 8) ** 2, n_trials=16)
        >>> print(explain(study))
        Coarse round: 8 of 8 trials finished, best value ...
          x: 0 to 8
        Fine round 1: 8 of 8 trials finished, best value ...
          x: 0 to 4 (shrunk)
        Warning: the best x, ..., lies within 5 % of its lower limit 0. Widen the range and search again.
    """
    settings, table = _read(study)
    history = history_of(table, settings.plan, maximize=study.direction == StudyDirection.MAXIMIZE)
    sign = -1 if study.direction == StudyDirection.MAXIMIZE else 1
    lines = []
    for number, windows in enumerate(windows_by_round(study)):
        lines += _headline(table, settings, history, number, sign)
        lines += [f"  {name}: {window_in_words(window)}" for name, window in windows.items()]
    return "\n".join([*lines, *edge_warnings(study)])


def edge_warnings(study: Study) -> list[str]:
    """Return a sentence for each number of the best trial, of at least 16, that lies within 5 % of a declared limit."""
    done = [t for t in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)) if t.value is not None]
    if len(done) < _FEWEST:
        return []
    best = study.best_trial
    found = []
    for name, distribution in best.distributions.items():
        if is_categorical(distribution) or distribution.single() or _few_values(distribution):
            continue
        unit = to_unit(distribution, best.params[name])
        for side, is_near, limit in (("lower", unit < _EDGE, "low"), ("upper", unit > 1 - _EDGE, "high")):
            if is_near:
                found.append(
                    f"Warning: the best {name}, {best.params[name]:.4g}, lies within 5 % of its {side} limit "
                    f"{getattr(distribution, limit):g}. Widen the range and search again."
                )
    return found


def _few_values(distribution: Any) -> bool:
    """Whether the outermost value alone takes more than 5 % of the range; it is then no sign of anything."""
    if distribution.step is None:
        return False
    outermost = to_unit(distribution, distribution.low + distribution.step)
    return outermost - to_unit(distribution, distribution.low) > 2 * _EDGE


def _read(study: Study) -> tuple[CoarseToFineSettings, SlotTable]:
    noted = study._storage.get_study_system_attrs(study._study_id).get(_PREFIX)
    if noted is None:
        raise UserInputError(f"the study {study.study_name!r} holds no coarse-to-fine search, so there is no window.")
    trials = study._storage.get_all_trials(study._study_id, deepcopy=False)
    return CoarseToFineSettings.from_json(noted), SlotTable(trials, _PREFIX, retries=0)


def _distributions(trials: Sequence[FrozenTrial]) -> Mapping[str, BaseDistribution]:
    return {name: d for trial in trials for name, d in trial.distributions.items() if not d.single()}


def _window(
    history: list[Finished], name: str, distribution: Any, number: int, windows: Mapping[str, UnitWindow]
) -> RoundWindow:
    if is_categorical(distribution):
        kept = choices_in_round(history, name, distribution.choices, number)
        before = choices_in_round(history, name, distribution.choices, max(0, number - 1))
        reason = "first window" if number == 0 else "the worse half was dropped" if len(kept) < len(before) else "kept"
        return RoundWindow(None, None, tuple(distribution.choices[index] for index in kept), reason)
    window = windows[name]
    return RoundWindow(from_unit(distribution, window.low), from_unit(distribution, window.high), None, window.reason)


def _headline(
    table: SlotTable, settings: CoarseToFineSettings, history: list[Finished], number: int, sign: int
) -> list[str]:
    finished = {table.slot(t) for t in table.trials if t.state.is_finished()} - {None}
    done = sum(settings.plan.locate(slot).round == number for slot in finished if slot is not None)
    size = settings.plan.sizes[min(number, len(settings.plan.sizes) - 1)]
    losses = [f.loss for f in history if f.round == number and math.isfinite(f.loss)]
    best = f"best value {sign * min(losses):.4g}" if losses else "no value"
    name = "Coarse round" if number == 0 else f"Fine round {number}"
    return [f"{name}: {done} of {size} trials finished, {best}"]


def window_in_words(window: RoundWindow) -> str:
    """Return a window as text."""
    if window.choices is not None:
        text = ", ".join(map(str, window.choices))
    else:
        text = f"{window.low:.4g} to {window.high:.4g}"
    return text if window.reason == "first window" else f"{text} ({window.reason})"
