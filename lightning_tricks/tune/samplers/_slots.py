"""What the slot-keyed samplers share: claiming a slot, waiting for a round, repairing what dead workers left."""

import json
import os
import threading
import time
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.samplers import BaseSampler
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from lightning_tricks._base import UserInputError, check_range, derive_seed
from lightning_tricks.tune.execution._heartbeat import Pulse, Watch, this_worker
from lightning_tricks.tune.samplers._rounds import uniform
from lightning_tricks.tune.samplers._scales import from_unit, is_categorical
from lightning_tricks.tune.samplers._slot_table import MOST_DEATHS, SlotTable, attribute


class SlotSampler(BaseSampler):
    """Abstract: gives each trial a slot, so that a point depends on the slot and not on who asked when.

    Args:
        seed: of all points; None takes it from the study's name, so that all workers of a study agree.
        retries: how often a slot is tried again after its trial raised an exception.
        grace: seconds without a sign of life after which a worker on another machine counts as dead. On the same
            machine its process is looked up.
    """

    kind: str

    def __init__(self, *, seed: int | None, retries: int, grace: float) -> None:
        if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int)):
            raise UserInputError(f"seed must be a whole number or None, but got {seed!r}.")
        self.seed = seed
        self.retries = int(check_range("retries", retries, low=0))
        self.grace = check_range("grace", grace, low=0, open_low=True)
        self._forget()

    def _forget(self) -> None:
        """Set what is known about the running process (never pickled)."""
        self._pulse = Pulse(self.grace / 4)
        self._watch = Watch(self.grace)
        self._asked_by: dict[int, int] = {}  # trial number -> thread
        self._pid = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in _PROCESS_STATE}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._forget()

    # What a concrete sampler says.

    @abstractmethod
    def _settings(self) -> dict[str, Any]:
        """Return what must be the same for all workers of a study, as plain JSON."""

    @abstractmethod
    def _value(self, study: Study, trial: FrozenTrial, slot: int, name: str, distribution: BaseDistribution) -> Any:
        """Return the value of one parameter at a slot."""

    def _external_value(self, study: Study, trial: FrozenTrial, name: str, distribution: BaseDistribution) -> Any:
        """Return a parameter that an enqueued trial leaves open: by default drawn from the whole declared range."""
        # The key is part of the promise of equal points, so it stays what it was.
        return at_unit(distribution, uniform(self._seed(study), "guest", trial.number, name))

    def _must_wait(self, table: SlotTable, slot: int, number: int) -> list[FrozenTrial]:
        """Return the running trials that must finish before the point of trial ``number`` at ``slot`` is known."""
        return []

    def _on_settled(self, study: Study, trial: FrozenTrial, table: SlotTable) -> None:
        """Take note of what is known when a trial settles on its slot."""

    # Optuna's interface.

    def reseed_rng(self) -> None:
        """Do nothing: there is no random stream whose state threads could share."""

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return nothing: parameters are found by their names, one by one."""
        self._check_one_objective(study)
        return {}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return nothing: parameters are found by their names, one by one."""
        return {}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Return the value of a parameter at the trial's slot, or of an external trial that leaves it open."""
        self._check_one_objective(study)
        attrs = study._storage.get_trial_system_attrs(trial._trial_id)
        slot = attrs.get(f"{self.prefix}:slot")
        if slot is None:
            return self._external_value(study, trial, param_name, param_distribution)
        return self._value(study, trial, slot, param_name, param_distribution)

    def _check_one_objective(self, study: Study) -> None:
        """Refuse a study with several objectives."""
        if len(study.directions) > 1:
            raise UserInputError(
                f"{type(self).__name__} searches for one objective, but the study has {len(study.directions)}. Create "
                "the study with one direction, or take a sampler for several, such as optuna.samplers.NSGAIISampler."
            )

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Give the trial its slot; wait for the round before if need be."""
        if self._pid != os.getpid():  # a forked worker inherits neither the thread nor the trials
            self._forget()
        try:
            self._check_one_objective(study)
            self._check_settings(study)
            self._set(study, trial, "worker", {**this_worker(), "trial": trial.number})
            self._asked_by[trial.number] = threading.get_ident()
            self._start_pulse(study, trial)
            self._settle(study, trial)
        except BaseException:  # also an interrupt while waiting: nobody must wait for a trial that was never begun
            self._end(trial)
            self._fail(study, trial)
            raise

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        """Stop the trial's pulse."""
        self._end(trial)

    # Slots.

    @property
    def prefix(self) -> str:
        """The beginning of the names of this sampler's attributes in the study."""
        return f"lightning_tricks:{self.kind}"

    def _seed(self, study: Study) -> int:
        return derive_seed("study", study.study_name) if self.seed is None else self.seed

    def _slot_table(self, study: Study) -> SlotTable:
        trials = study._storage.get_all_trials(study._study_id, deepcopy=False)
        return SlotTable(trials, self.prefix, self.retries)

    def _settle(self, study: Study, trial: FrozenTrial) -> None:
        pause = 0.01
        while True:
            if self._repair(study, trial):
                continue
            table = self._slot_table(study)
            if table.slot(trial) is not None or "fixed_params" in trial.system_attrs or trial.params:
                return  # an enqueued trial, or one that is run again with its slot and its parameters
            slot = table.slot_for(trial.number)
            blockers = self._must_wait(table, slot, trial.number)
            if not blockers:
                self._set(study, trial, "slot", slot)
                self._on_settled(study, trial, table)
                return
            self._refuse_to_wait_for_oneself(blockers)
            time.sleep(pause)
            pause = min(1.5 * pause, 1.0)

    def _refuse_to_wait_for_oneself(self, blockers: list[FrozenTrial]) -> None:
        own = [b.number for b in blockers if self._asked_by.get(b.number) == threading.get_ident()]
        if own:
            raise UserInputError(
                f"the next point depends on trials {own}, which this same thread asked for and has not told the "
                "result of, so waiting would never end. Tell their results first, or use wait=False."
            )

    # Dead workers.

    def repair(self, study: Study) -> bool:
        """Fail the trials of dead workers, so that their slots are run again; tell whether there were any."""
        return self._repair(study, None)

    def give_back(self, study: Study, trial: FrozenTrial) -> bool:
        """Free the slot of a trial that this process will not finish; tell whether it had one."""
        if attribute(trial, self.prefix, "slot") is None:
            return False
        self._end(trial)
        return self._fail(study, trial, "moved")

    def take_for_dead(self, study: Study, trial: FrozenTrial) -> bool:
        """Free the slot of a trial whose worker is known to be dead; tell whether it had one."""
        return attribute(trial, self.prefix, "slot") is not None and self._fail(study, trial)

    def _repair(self, study: Study, me: FrozenTrial | None) -> bool:
        storage = study._storage
        if isinstance(storage, InMemoryStorage):
            return False
        found = False
        for trial in storage.get_all_trials(study._study_id, deepcopy=False):
            if me is not None and trial.number == me.number:
                continue
            if trial.state == TrialState.WAITING and attribute(trial, self.prefix, "slot") is not None:
                # Another repair put it into the queue, but whoever waits for a round never looks there.
                found |= storage.set_trial_state_values(trial._trial_id, TrialState.RUNNING) and self._fail(
                    study, trial, "moved"
                )
            elif trial.state == TrialState.RUNNING and self._is_dead(trial):
                found |= self._fail(study, trial)
        return found

    def _is_dead(self, trial: FrozenTrial) -> bool:
        worker = attribute(trial, self.prefix, "worker") or {}
        if worker.get("trial") != trial.number:  # just begun, perhaps with attributes of the trial that it repeats
            begun_by_another_sampler = bool(trial.params)
            return not begun_by_another_sampler and self._watch.is_stale(trial.number, None, patience=10)
        return self._watch.is_dead(trial.number, worker, attribute(trial, self.prefix, "pulse"))

    def _fail(self, study: Study, trial: FrozenTrial, mark: str = "died") -> bool:
        """Fail a trial that nobody works on; put an enqueued one back into the queue."""
        try:
            self._set(study, trial, mark, True)
            study._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
        except UpdateFinishedTrialError:  # somebody else was faster
            return False
        history = [*trial.system_attrs.get("retry_history", ()), trial.number]
        if "fixed_params" in trial.system_attrs and len(history) < MOST_DEATHS:
            attrs = {"fixed_params": trial.system_attrs["fixed_params"], "retry_history": history}
            study.add_trial(create_trial(state=TrialState.WAITING, user_attrs=trial.user_attrs, system_attrs=attrs))
        return True

    def _start_pulse(self, study: Study, trial: FrozenTrial) -> None:
        if not isinstance(study._storage, InMemoryStorage):
            self._pulse.start(trial._trial_id, lambda count: self._set(study, trial, "pulse", count))

    def _end(self, trial: FrozenTrial) -> None:
        self._pulse.stop(trial._trial_id)
        self._asked_by.pop(trial.number, None)

    # The study's notes.

    def _set(self, study: Study, trial: FrozenTrial, name: str, value: Any) -> None:
        study._storage.set_trial_system_attr(trial._trial_id, f"{self.prefix}:{name}", value)

    def _check_settings(self, study: Study) -> None:
        """Note the settings in a new study; refuse to go on with other ones, which would mean other points."""
        mine = {**self._settings(), "seed": self._seed(study)}
        noted = study._storage.get_study_system_attrs(study._study_id).get(self.prefix)
        if noted is None:
            study._storage.set_study_system_attr(study._study_id, self.prefix, mine)
            return
        noted, mine = _as_json(noted), _as_json(mine)  # which makes lists of tuples, in some storages
        if noted != mine:
            differ = [f"{k}={noted.get(k)!r} (now {mine.get(k)!r})" for k in mine if noted.get(k) != mine.get(k)]
            raise UserInputError(
                f"the study {study.study_name!r} was begun by {type(self).__name__} with {', '.join(differ)}. "
                "Go on with the same settings, or begin another study."
            )


_PROCESS_STATE = frozenset({"_pulse", "_watch", "_asked_by", "_pid"})


def _as_json(settings: dict[str, Any]) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(json.dumps(settings, default=repr))
    return told


def at_unit(distribution: BaseDistribution, unit: float) -> Any:
    """Return the value or the choice at a place in [0, 1)."""
    if is_categorical(distribution):
        choices: tuple[Any, ...] = distribution.choices  # type: ignore[attr-defined]
        return choices[min(int(unit * len(choices)), len(choices) - 1)]
    return from_unit(distribution, unit)
