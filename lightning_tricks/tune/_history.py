"""What a coarse-to-fine search knows: finished points by round, and the windows that follow from them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.trial import TrialState

from lightning_tricks._base import UserInputError
from lightning_tricks.tune._ledger import Ledger
from lightning_tricks.tune._plan import Plan
from lightning_tricks.tune._rules import Rules
from lightning_tricks.tune._scales import is_categorical, to_unit
from lightning_tricks.tune._windows import Window, kept_choices, shrunk


@dataclass(frozen=True)
class Finished:
    """A finished trial.

    Args:
        round: the round whose end it had to finish for.
        loss: its value, smaller is better; infinite if it failed, was pruned or returned nonsense.
        order: breaks ties; does not depend on who finished first.
        params: its parameters.
        number: of the trial.
    """

    round: int
    loss: float
    order: tuple[int, int]
    params: Mapping[str, Any]
    number: int


def history_of(ledger: Ledger, plan: Plan, *, maximize: bool) -> list[Finished]:
    """Return the finished trials, the best first."""
    finished = []
    for trial in ledger.trials:
        if not trial.state.is_finished():
            continue
        slot = ledger.slot(trial)
        at = ledger.slot_after(trial) if slot is None else slot
        loss = math.inf
        if trial.state == TrialState.COMPLETE and trial.value is not None and math.isfinite(trial.value):
            loss = -trial.value if maximize else trial.value
        order = (at, int(slot is None))
        finished.append(Finished(plan.locate(at).round, loss, order, trial.params, trial.number))
    return sorted(finished, key=lambda f: (f.loss, f.order, f.number))


def window_in_round(
    history: Sequence[Finished], name: str, distribution: BaseDistribution, round_number: int, rules: Rules
) -> Window:
    """Return a number's window in a round: the first one, changed at the end of every round before.

    A round in which fewer than two results have the parameter (a conditional one) leaves its window alone.
    """
    window = first_window(name, distribution, rules)
    mine = [f for f in history if name in f.params and math.isfinite(f.loss) and _is_number(f.params[name])]
    for number in range(round_number):
        if sum(f.round == number for f in mine) < 2:
            continue
        best_first = [to_unit(distribution, f.params[name]) for f in mine if f.round <= number]
        window = shrunk(window, best_first, shrink=rules.shrink, margin=rules.margin)
    return window


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


def first_window(name: str, distribution: Any, rules: Rules) -> Window:
    """Return the coarse round's window.

    Raises:
        UserInputError: if the given window is not inside of the declared limits.
    """
    if name not in rules.windows:
        return Window(0.0, 1.0)
    low, high = rules.windows[name]
    if is_categorical(distribution) or low < distribution.low or high > distribution.high:
        raise UserInputError(
            f"the window of {name!r} must lie inside of the declared limits, but {(low, high)} does not lie in "
            f"{distribution}. Declare wide limits and give the window as a hint."
        )
    return Window(to_unit(distribution, low), to_unit(distribution, high), "given window")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
