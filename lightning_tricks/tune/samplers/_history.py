"""What a coarse-to-fine search knows: finished points by round, and the windows that follow from them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.trial import TrialState

from lightning_tricks._base import UserInputError
from lightning_tricks.tune.samplers._parabola import vertex
from lightning_tricks.tune.samplers._rounds import RoundPlan
from lightning_tricks.tune.samplers._scales import is_categorical, to_unit
from lightning_tricks.tune.samplers._settings import CoarseToFineSettings
from lightning_tricks.tune.samplers._slot_table import SlotTable
from lightning_tricks.tune.samplers._windows import UnitWindow, kept_choices, shrunk

# A parabola is fitted to the points in windows this much wider.
_NEAR = 1.5


@dataclass(frozen=True)
class Finished:
    """A finished trial.

    Args:
        round: the round whose end it had to finish for.
        loss: its value, smaller is better; infinite if it failed, was pruned or returned nonsense.
        order: breaks ties; does not depend on who finished first.
        params: its parameters.
        number: of the trial.
        distributions: of the parameters, as declared.
    """

    round: int
    loss: float
    order: tuple[int, int]
    params: Mapping[str, Any]
    number: int
    distributions: Mapping[str, BaseDistribution]


def history_of(table: SlotTable, plan: RoundPlan, *, maximize: bool) -> list[Finished]:
    """Return the finished trials, the best first."""
    finished = []
    for trial in table.trials:
        if not trial.state.is_finished():
            continue
        slot = table.slot(trial)
        at = table.slot_after(trial) if slot is None else slot
        loss = math.inf
        if trial.state == TrialState.COMPLETE and trial.value is not None and math.isfinite(trial.value):
            loss = -trial.value if maximize else trial.value
        order = (at, int(slot is None))
        finished.append(Finished(plan.locate(at).round, loss, order, trial.params, trial.number, trial.distributions))
    return sorted(finished, key=lambda f: (f.loss, f.order, f.number))


def windows_in_round(
    history: Sequence[Finished],
    distributions: Mapping[str, BaseDistribution],
    round_number: int,
    settings: CoarseToFineSettings,
) -> dict[str, UnitWindow]:
    """Return the numbers' windows in a round: the first ones, changed at the end of every round before.

    A round in which fewer than two results have a parameter (a conditional one) leaves its window alone.
    """
    # Sorted: the last bit of a linear fit depends on the order of its columns, and storages return them in any order.
    numbers = {name: d for name, d in sorted(distributions.items()) if not is_categorical(d)}
    windows = {name: first_window(name, d, settings) for name, d in numbers.items()}
    places = [_places(f, numbers) if math.isfinite(f.loss) else {} for f in history]
    for number in range(round_number):
        known = [(f, at) for f, at in zip(history, places, strict=True) if f.round <= number]
        windows = {name: _next(window, name, known, windows, number, settings) for name, window in windows.items()}
    return windows


Known = Sequence[tuple[Finished, Mapping[str, float]]]


def _places(finished: Finished, numbers: Mapping[str, BaseDistribution]) -> dict[str, float]:
    params = finished.params
    return {n: to_unit(d, params[n]) for n, d in numbers.items() if n in params and _is_number(params[n])}


def _next(
    window: UnitWindow,
    name: str,
    known: Known,
    windows: Mapping[str, UnitWindow],
    number: int,
    settings: CoarseToFineSettings,
) -> UnitWindow:
    """Return a window after round ``number``."""
    mine = [(f, at) for f, at in known if name in at]
    if sum(f.round == number for f, _ in mine) < 2:
        return window
    lowest = _lowest(window, name, mine, windows)
    return shrunk(window, [at[name] for _, at in mine], lowest, shrink=settings.shrink, margin=settings.margin)


def _lowest(window: UnitWindow, name: str, mine: Known, windows: Mapping[str, UnitWindow]) -> float | None:
    """Return where the losses around the windows have their minimum; None if there are too few to tell."""
    others = [n for n in windows if n != name and all(n in at for _, at in mine)]
    axes = [name, *others]
    middle = np.array([(windows[n].low + windows[n].high) / 2 for n in axes])
    half = np.array([windows[n].width / 2 for n in axes])
    z = (np.array([[at[n] for n in axes] for _, at in mine]) - middle) / half  # (N, D)
    near = (np.abs(z) <= _NEAR).all(axis=1)
    if near.sum() < len(axes) + 2:
        return None
    losses = np.array([f.loss for f, _ in mine])[near]
    return float(middle[0] + half[0] * vertex(z[near], losses)[0])


def declared(history: Sequence[Finished], round_number: int) -> dict[str, BaseDistribution]:
    """Return the distributions of the parameters that were seen before a round, those of the latest trial."""
    before = sorted((f for f in history if f.round < round_number), key=lambda f: (f.round, f.order))
    return {name: d for f in before for name, d in f.distributions.items() if not d.single()}


def choices_in_round(history: Sequence[Finished], name: str, choices: Sequence[Any], round_number: int) -> list[int]:
    """Return the indices of the choices that are left in a round."""
    kept: Sequence[int] = tuple(range(len(choices)))
    mine = [f for f in history if name in f.params and f.params[name] in choices]
    for number in range(round_number):
        if not any(f.round == number for f in mine):
            continue
        tried = [list(choices).index(f.params[name]) for f in mine if f.round <= number]
        kept = kept_choices(kept, tuple(dict.fromkeys(tried)))
    return list(kept)


def first_window(name: str, distribution: Any, settings: CoarseToFineSettings) -> UnitWindow:
    """Return the coarse round's window.

    Raises:
        UserInputError: if the given window is not inside of the declared limits.
    """
    if name not in settings.windows:
        return UnitWindow(0.0, 1.0)
    low, high = settings.windows[name]
    if is_categorical(distribution) or low < distribution.low or high > distribution.high:
        raise UserInputError(
            f"the window of {name!r} must lie inside of the declared limits, but {(low, high)} does not lie in "
            f"{distribution}. Declare wide limits and give the window as a hint."
        )
    return UnitWindow(to_unit(distribution, low), to_unit(distribution, high), "given window")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
