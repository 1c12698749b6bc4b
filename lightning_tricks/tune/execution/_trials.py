"""One process's share of a search's trials: asked for, kept alive, told, given back, written down."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from enum import Enum, auto
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, Trial, TrialState

from lightning_tricks._base import UserInputError
from lightning_tricks.tune._space import Space
from lightning_tricks.tune.execution._heartbeat import Pulse, Watch, beat, this_worker
from lightning_tricks.tune.execution._processes import Pool
from lightning_tricks.tune.execution._study import (
    PULSE,
    RUN,
    WORKER,
    counted,
    queue_again,
    repair,
    running_elsewhere,
)
from lightning_tricks.tune.execution._trial import Job, called_with
from lightning_tricks.tune.reporting._run_table import ordered, row_of, versions, write_settings, write_table
from lightning_tricks.tune.samplers._coarse_to_fine import CoarseToFineSampler
from lightning_tricks.tune.samplers._methods import Chosen
from lightning_tricks.tune.samplers._slots import SlotSampler

# As KerasTuner does: a search whose trials all fail is not worth its electricity.
FAILURES_IN_A_ROW = 3


class NoTrial(Enum):
    """Why there is no trial to start now."""

    WAIT = auto()  # the next point depends on trials of this process that still run
    SPENT = auto()  # the budget is spent, or the grid has no point left


class SharedTrials:
    """One process's share of the trials of a search.

    Args:
        study: shared by all processes that take part.
        space: what is searched.
        chosen: the method.
        pool: how trainings are started.
        prune: whether the study's pruner is asked.
        check: called with a trial's hyperparameters; raises UserInputError if they cannot be trained.
    """

    def __init__(
        self,
        study: optuna.Study,
        space: Space,
        chosen: Chosen,
        pool: Pool,
        *,
        prune: bool,
        check: Callable[[Mapping[str, Any]], None] | None = None,
    ) -> None:
        self.study = study
        self.space = space
        self.chosen = chosen
        self.pool = pool
        self.prune = prune
        self.check = check
        self.failures: list[str] = []  # in a row
        self.pulse = Pulse(pool.grace / 4)
        self.watch = Watch(pool.grace)
        self._looked = -math.inf  # when dead workers were looked for

    # What others do.

    def repair(self) -> None:
        """Queue again what dead workers left, if that was not looked for a moment ago."""
        if time.monotonic() - self._looked > min(self.pool.grace / 4, 5):
            repair(self.study, self.chosen.sampler, self.pool.job.folder, self.watch)
            self._looked = time.monotonic()

    def running_elsewhere(self, mine: set[int]) -> bool:
        """Whether other workers still train."""
        return running_elsewhere(self.study, mine)

    def show(self, bar: Any) -> None:
        """Show how many are finished, and the best value."""
        finished = sum(t.state.is_finished() for t in counted(self.study))
        if finished != bar.n:
            bar.n = finished
            best = ordered(self.study)[:1]
            bar.set_postfix_str(f"best {self.pool.job.monitor} {best[0].value:.4g}" if best else "")

    # Asking.

    def sampler(self) -> "optuna.samplers.BaseSampler | None":
        """Return what asks for the next point; None if the budget is spent."""
        begun = len(counted(self.study))
        if begun >= self.chosen.trials:
            return None
        return self.chosen.sampler if self.chosen.then is None or begun < self.chosen.first else self.chosen.then

    def ask(self, *, busy: bool) -> tuple[Trial, Job] | NoTrial:
        """Begin a trial.

        Args:
            busy: whether this process has trials that are not told yet, so that waiting for them here would never end.
        """
        sampler = self.sampler()
        if sampler is None:
            return NoTrial.SPENT
        if busy and isinstance(sampler, CoarseToFineSampler) and sampler.would_wait(self.study):
            return NoTrial.WAIT
        self.study.sampler = sampler
        trial = self.study.ask()
        try:
            job = self._job(trial, self._suggested(trial))
        except optuna.TrialPruned:  # the end of a grid
            self.study.tell(trial, state=TrialState.PRUNED)
            return NoTrial.SPENT
        except BaseException:
            self.give_back(trial)
            raise
        self.pulse.start(trial._trial_id, partial(self._beat, trial, job.folder))
        return trial, job

    def _beat(self, trial: Trial, folder: Path, count: int) -> None:
        beat(folder, count)
        if not isinstance(self.chosen.sampler, SlotSampler):  # which sends a pulse of its own to the storage
            self.study._storage.set_trial_user_attr(trial._trial_id, PULSE, count)

    def _suggested(self, trial: Trial) -> dict[str, Any]:
        if callable(self.space):
            return dict(self.space(trial))
        return {name: entry.suggest(trial, name) for name, entry in self.space.items()}

    def _job(self, trial: Trial, params: dict[str, Any]) -> Job:
        _check_taken(params, [self.pool.job.make_model, self.pool.job.data, self.pool.job.callbacks])
        if self.check is not None:
            self.check(params)
        slot, round_number = self.place(self.study._storage.get_trial(trial._trial_id))
        run = trial.user_attrs.get(RUN) or (f"trial-{trial.number:03d}" if slot is None else f"run-{slot:03d}")
        trial.set_user_attr(RUN, run)
        trial.set_user_attr(WORKER, this_worker())
        if params != trial.params:  # a function of the trial may compute
            trial.set_user_attr("params", params)
        prune = self.prune and round_number != 0
        job = replace(self.pool.job, folder=self.pool.job.folder / run, params=params, prune=prune)
        beat(job.folder, 0)
        write_settings(job.folder / "hparams.yaml", self._settings(job, trial.number, {"status": "running"}))
        return job

    def place(self, trial: FrozenTrial) -> tuple[int | None, int | None]:
        """Return a trial's slot and, in a coarse-to-fine search, its round."""
        sampler = self.chosen.sampler
        slot = trial.system_attrs.get(f"{sampler.prefix}:slot") if isinstance(sampler, SlotSampler) else None
        if slot is None or not isinstance(sampler, CoarseToFineSampler):
            return slot, None
        return slot, sampler.plan.locate(slot).round

    # Telling.

    def tell(self, trial: Trial, job: Job, result: dict[str, Any], *, log: Path) -> None:
        """Record what became of a trial.

        Args:
            trial: what was begun.
            job: its training.
            result: what the training left.
            log: what it printed.

        Raises:
            UserInputError: if this failure, or the third in a row, makes it pointless to go on.
        """
        self.pulse.stop(trial._trial_id)
        for name in ("reason", "best_epoch", "epochs", "seconds", "value", "fold_values"):
            if name in result:
                trial.set_user_attr(name, result[name])
        if result["status"] == "complete":
            self.study.tell(trial, result["value"])
        else:
            self.study.tell(trial, state=TrialState.PRUNED if result["status"] == "pruned" else TrialState.FAIL)
        write_settings(job.folder / "hparams.yaml", self._settings(job, trial.number, result))
        self.write_runs()
        self._count_failures(result, log)

    def _count_failures(self, result: dict[str, Any], log: Path) -> None:
        if result["status"] != "failed":
            self.failures.clear()
            return
        self.failures.append(result["reason"])
        if result.get("hopeless"):
            raise UserInputError(f"{result['reason']} (Every trial would end so; the log is {log}.)")
        if len(self.failures) >= FAILURES_IN_A_ROW:
            raise UserInputError(
                f"{len(self.failures)} trials in a row failed, the last with: {self.failures[-1]}. "
                f"All reasons are in {self.pool.job.folder / 'runs.csv'}; call search again to go on."
            )

    # Giving back.

    def let_go(self, trial: Trial) -> None:
        """Leave a trial to those who took this worker for dead."""
        self.pulse.stop(trial._trial_id)

    def give_back(self, trial: Trial) -> None:
        """Return an unfinished trial's point to the search, unless somebody else has taken it over."""
        self.pulse.stop(trial._trial_id)
        frozen = self.study._storage.get_trial(trial._trial_id)
        sampler = self.chosen.sampler
        if frozen.state.is_finished() or (isinstance(sampler, SlotSampler) and sampler.give_back(self.study, frozen)):
            return
        try:
            self.study._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
        except UpdateFinishedTrialError:  # somebody else was faster
            return
        queue_again(self.study, frozen)

    # Records.

    def write_runs(self) -> None:
        """Write ``runs.csv``."""
        trials = [t for t in self.study.get_trials(deepcopy=False) if RUN in t.user_attrs]
        # A run that died and was run again is one line: its later trial.
        latest = {t.user_attrs[RUN]: t for t in trials}
        rows = [row_of(t, *self.place(t)) for t in sorted(latest.values(), key=lambda t: t.number)]
        write_table(self.pool.job.folder / "runs.csv", rows)

    def _settings(self, job: Job, number: int, result: dict[str, Any]) -> dict[str, Any]:
        trial = self.study.get_trials(deepcopy=False)[number]
        slot, round_number = self.place(trial)
        return {
            "params": job.params,
            "seed": job.seed,
            "study": self.study.study_name,
            "method": self.chosen.name,
            "monitor": job.monitor,
            "trial": number,
            "slot": slot,
            "round": round_number,
            "windows": _windows(self.study, round_number),
            "result": {name: value for name, value in result.items() if name != "hopeless"},
            "versions": versions(),
        }


def _windows(study: optuna.Study, round_number: int | None) -> dict[str, Any] | None:
    if round_number is None:
        return None
    from lightning_tricks.tune.reporting._explain import windows_by_round

    windows = windows_by_round(study)[round_number]
    return {n: [w.low, w.high] if w.choices is None else list(w.choices) for n, w in windows.items()}


def _check_taken(params: dict[str, Any], functions: list[Callable[..., Any] | Any]) -> None:
    """Refuse a hyperparameter that nothing is called with: the search would vary something that changes nothing."""
    taken: set[str] = set()
    for function in functions:
        if callable(function):
            taken |= set(called_with(function, params))
    unused = sorted(set(params) - taken)
    if unused:
        raise UserInputError(
            f"neither make_model nor data nor callbacks has an argument {', '.join(map(repr, unused))}. "
            "Name each hyperparameter as an argument of at least one of them."
        )
