"""Coarse to fine as an Optuna sampler."""

from collections.abc import Mapping, Sequence
from typing import Any

from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from lightning_tricks.tune.samplers._history import Finished, choices_in_round, declared, history_of, windows_in_round
from lightning_tricks.tune.samplers._rounds import RoundPlan, latin_hypercube
from lightning_tricks.tune.samplers._scales import is_categorical
from lightning_tricks.tune.samplers._settings import CoarseToFineSettings
from lightning_tricks.tune.samplers._slot_table import SlotTable
from lightning_tricks.tune.samplers._slots import SlotSampler, at_unit
from lightning_tricks.tune.samplers._windows import UnitWindow

# Of the points of a round, every so many look for a parameter outside of the window that the user gave for it.
_EVERY = 4


class CoarseToFineSampler(SlotSampler):
    """The lecture's search, coarse to fine: a wide round of points, then smaller and smaller windows around the best.

    Half of the budget goes into a coarse round, the rest into four fine rounds; the points of a round are a Latin
    hypercube. After a round each number's window is halved around a centre half-way between the weighted mean of the
    four best points and the lowest point of a parabola fitted to the losses; if the best lies near an edge, the window
    moves there instead, out of a given first window if need be, as far as the limits
    that the objective declares. Lists of choices lose the worse half of what was tried. The declared ranges never
    change (the windows live in here), so that other samplers, importances and pictures work on the same study.

    Every point is a pure function of the seed, the slot (its place in the plan) and the finished rounds: the same
    points come with one worker or many, threads or processes, at once or resumed. Workers wait for each other at the
    end of a round; a trial whose worker died is failed and its slot run again. Failed and pruned trials count as
    finished without a result. Enqueued trials are extra: they take no slot, and their results count. Trials past
    ``n_trials`` go on with further rounds.

    Args:
        n_trials: budget, at least 1; below 16 all trials are the coarse round.
        seed: of all points; None takes it from the study's name, so that all workers of a study agree.
        coarse: share of the budget for the coarse round, in (0, 1].
        rounds: number of fine rounds, at least 0.
        shrink: factor on a window's width after each round, in (0, 1].
        margin: share of a window's width that counts as near its edge, in [0, 0.5).
        windows: first windows by parameter name, as (low, high) inside of the declared limits; a hint, not a limit:
            every fourth point draws these parameters from their whole range.
        wait: whether a trial of a new round waits until the round before is finished. False for callers that ask for
            several trials before they tell (Ray Tune's ``OptunaSearch``): the windows then come from what is known.
        retries: how often a slot is run again after its trial raised an exception.
        grace: seconds without a sign of life after which a worker on another machine counts as dead (on the same
            machine its process is looked up).

    Raises:
        UserInputError: for numbers out of range, several objectives, or a study begun with other settings.

    Example:
        >>> import optuna
        >>> optuna.logging.set_verbosity(optuna.logging.WARNING)
        >>> study = optuna.create_study(sampler=CoarseToFineSampler(32, seed=0))
        >>> study.optimize(lambda trial: (trial.suggest_float("lr", 1e-6, 1.0, log=True) / 1e-3 - 1) ** 2, n_trials=32)
        >>> bool(study.best_value < 0.05)
        True
    """

    kind = "coarse_to_fine"

    def __init__(
        self,
        n_trials: int,
        *,
        seed: int | None = None,
        coarse: float = 0.5,
        rounds: int = 4,
        shrink: float = 0.5,
        margin: float = 0.2,
        windows: Mapping[str, Sequence[float]] | None = None,
        wait: bool = True,
        retries: int = 0,
        grace: float = 120.0,
    ) -> None:
        super().__init__(seed=seed, retries=retries, grace=grace)
        self.settings = CoarseToFineSettings.checked(n_trials, coarse, rounds, shrink, margin, windows)
        self.wait = wait
        self._known: dict[int, list[Finished]] = {}  # what a trial knew when it began, by its number
        self._windows: dict[int, dict[str, UnitWindow]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_known": {}, "_windows": {}}

    @property
    def plan(self) -> RoundPlan:
        """The sizes of the rounds."""
        return self.settings.plan

    def would_wait(self, study: Study) -> bool:
        """Whether asking for a trial now would wait for others to finish."""
        table = self._slot_table(study)
        number = len(table.trials)
        return bool(self._must_wait(table, table.slot_for(number), number))

    def _settings(self) -> dict[str, Any]:
        return self.settings.as_json()

    def _must_wait(self, table: SlotTable, slot: int, number: int) -> list[FrozenTrial]:
        return self._unfinished_before(table, self.plan.locate(slot).round, number) if self.wait else []

    def _unfinished_before(self, table: SlotTable, round_number: int, number: int) -> list[FrozenTrial]:
        """Return the trials of earlier rounds that still run."""
        free = table.free_slots()
        held = [(trial, next(free)) for trial in table.unsettled_before(number)]
        for trial in table.trials:
            if trial.state != TrialState.RUNNING or trial.number == number:
                continue
            slot = table.slot(trial)
            if slot is not None:
                held.append((trial, slot))
            elif table.is_external(trial):
                held.append((trial, table.slot_after(trial)))
        return [trial for trial, slot in held if self.plan.locate(slot).round < round_number]

    def _on_settled(self, study: Study, trial: FrozenTrial, table: SlotTable) -> None:
        self._known[trial.number] = self._history(study, table)

    def _history(self, study: Study, table: SlotTable) -> list[Finished]:
        return history_of(table, self.plan, maximize=study.direction == StudyDirection.MAXIMIZE)

    def _value(self, study: Study, trial: FrozenTrial, slot: int, name: str, distribution: BaseDistribution) -> Any:
        known = self._known.get(trial.number)
        if known is None:  # asked for in another process
            known = self._history(study, self._slot_table(study))
        place = self.plan.locate(slot)
        unit = latin_hypercube(self._seed(study), place.round, name, place.index, place.size)
        if is_categorical(distribution):
            choices: tuple[Any, ...] = distribution.choices  # type: ignore[attr-defined]
            kept = choices_in_round(known, name, choices, place.round)
            return choices[kept[int(unit * len(kept))]]
        if name in self.settings.windows and place.index % _EVERY == _EVERY - 1:
            return at_unit(distribution, unit)
        window = self._window(known, trial.number, place.round, name, distribution)
        return at_unit(distribution, window.low + unit * window.width)

    def _window(
        self, known: list[Finished], number: int, round_number: int, name: str, distribution: BaseDistribution
    ) -> UnitWindow:
        """Return a parameter's window; those of a trial are worked out once."""
        windows = self._windows.get(number)
        if windows is None or name not in windows:
            distributions = {**declared(known, round_number), name: distribution}
            windows = windows_in_round(known, distributions, round_number, self.settings)
            if number in self._known:
                self._windows[number] = windows
        return windows[name]

    def _end(self, trial: FrozenTrial) -> None:
        super()._end(trial)
        self._known.pop(trial.number, None)
        self._windows.pop(trial.number, None)
