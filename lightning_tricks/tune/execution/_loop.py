"""The search's loop: ask for points, start trainings, pass reports on, tell results."""

import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, Trial, TrialState

from lightning_tricks._base import UserInputError, warn_once
from lightning_tricks.tune._space import Space
from lightning_tricks.tune.execution._heartbeat import Pulse, Watch, beat, this_worker
from lightning_tricks.tune.execution._processes import Pool, Run, pause
from lightning_tricks.tune.execution._progress import read_progress
from lightning_tricks.tune.execution._study import PULSE, RUN, WORKER, counted, repair, running_elsewhere
from lightning_tricks.tune.execution._trial import Job, called_with
from lightning_tricks.tune.reporting._run_table import ordered, row_of, versions, write_settings, write_table
from lightning_tricks.tune.samplers._coarse_to_fine import CoarseToFineSampler
from lightning_tricks.tune.samplers._methods import Chosen
from lightning_tricks.tune.samplers._slots import SlotSampler

# As KerasTuner does: a search whose trials all fail is not worth its electricity.
_FAILURES_IN_A_ROW = 3


class Runner:
    """One process's part in a search.

    Args:
        study: shared by all processes that take part.
        space: what is searched.
        chosen: the method.
        pool: how trainings are started.
        prune: whether the study's pruner is asked.
        progress: whether to show a bar.
    """

    def __init__(
        self, study: optuna.Study, space: Space, chosen: Chosen, pool: Pool, *, prune: bool, progress: bool
    ) -> None:
        self.study = study
        self.space = space
        self.chosen = chosen
        self.pool = pool
        self.prune = prune
        self.progress = progress
        self.running: dict[int, tuple[Trial, Run, int]] = {}  # place -> trial, run, reports passed on
        self.failures: list[str] = []  # in a row
        self.pulse = Pulse(pool.grace / 4)
        self.watch = Watch(pool.grace)
        self._looked = -math.inf  # when dead workers were looked for

    def run(self) -> None:
        """Run until the budget is spent and nobody else works on it."""
        from tqdm import tqdm  # type: ignore[import-untyped]

        with tqdm(total=self.chosen.trials, desc="search", disable=not self.progress) as bar:
            try:
                while self._goes_on():
                    pause([run for _, run, _ in self.running.values()])
                    for place in list(self.running):
                        self._look_after(place)
                    self._show(bar)
            finally:
                self._abandon()
                self.write_runs()

    def _goes_on(self) -> bool:
        """Look for what to do; tell whether this search has work or must wait for others, who may die."""
        if time.monotonic() - self._looked > min(self.pool.grace / 4, 5):
            repair(self.study, self.chosen.sampler, self.pool.job.folder, self.watch)
            self._looked = time.monotonic()
        mine = {trial.number for trial, _, _ in self.running.values()}
        return self._fill() or bool(self.running) or running_elsewhere(self.study, mine)

    def _show(self, bar: Any) -> None:
        finished = sum(t.state.is_finished() for t in counted(self.study))
        if finished != bar.n:
            bar.n = finished
            best = ordered(self.study)[:1]
            bar.set_postfix_str(f"best {self.pool.job.monitor} {best[0].value:.4g}" if best else "")

    # Asking.

    def _fill(self) -> bool:
        """Start trainings where there is room; tell whether there may be more to come."""
        for place in set(range(self.pool.workers)) - set(self.running):
            trials = counted(self.study)
            if len(trials) >= self.chosen.trials:
                return False
            sampler = self._sampler(len(trials))
            if self.running and isinstance(sampler, CoarseToFineSampler) and sampler.would_wait(self.study):
                return True
            self.study.sampler = sampler
            trial = self.study.ask()
            try:
                params = self._suggested(trial)
            except optuna.TrialPruned:  # the end of a grid
                self.study.tell(trial, state=TrialState.PRUNED)
                return False
            job = self._job(trial, params)
            self.pulse.start(trial._trial_id, partial(self._beat, trial, job.folder))
            self.running[place] = trial, self.pool.run(job, place), 0
        return True

    def _beat(self, trial: Trial, folder: Path, count: int) -> None:
        beat(folder, count)
        if not isinstance(self.chosen.sampler, SlotSampler):  # which sends a pulse of its own to the storage
            self.study._storage.set_trial_user_attr(trial._trial_id, PULSE, count)

    def _sampler(self, begun: int) -> "optuna.samplers.BaseSampler":
        return self.chosen.sampler if self.chosen.then is None or begun < self.chosen.first else self.chosen.then

    def _suggested(self, trial: Trial) -> dict[str, Any]:
        if callable(self.space):
            return dict(self.space(trial))
        return {name: entry.suggest(trial, name) for name, entry in self.space.items()}

    def _job(self, trial: Trial, params: dict[str, Any]) -> Job:
        from dataclasses import replace

        _check_taken(params, [self.pool.job.make_model, self.pool.job.data, self.pool.job.callbacks])
        slot, round_number = self._place(self.study._storage.get_trial(trial._trial_id))
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

    def _place(self, trial: FrozenTrial) -> tuple[int | None, int | None]:
        """Return a trial's slot and, in a coarse-to-fine search, its round."""
        sampler = self.chosen.sampler
        slot = trial.system_attrs.get(f"{sampler._prefix}:slot") if isinstance(sampler, SlotSampler) else None
        if slot is None or not isinstance(sampler, CoarseToFineSampler):
            return slot, None
        return slot, sampler.plan.locate(slot).round

    # Watching.

    def _look_after(self, place: int) -> None:
        trial, run, _ = self.running[place]
        try:
            self._look_at(place)
        except UpdateFinishedTrialError:
            self._let_go(place, trial, run)

    def _look_at(self, place: int) -> None:
        trial, run, passed_on = self.running[place]
        reports = sorted(read_progress(run.job.folder).items())
        for step, (_, value) in reports[passed_on:]:
            trial.report(value, step)
        if run.job.prune and len(reports) > passed_on:
            if trial.should_prune():
                (run.job.folder / "stop").touch()
            (run.job.folder / "seen").write_text(str(len(reports)), encoding="utf-8")
        self.running[place] = trial, run, len(reports)
        result = run.poll()
        if result is not None:
            del self.running[place]
            self.pulse.stop(trial._trial_id)
            self._tell(trial, run.job, result)

    def _let_go(self, place: int, trial: Trial, run: Run) -> None:
        """Leave a trial to those who took this worker for dead, after a machine that slept, say."""
        run.kill()
        self.pulse.stop(trial._trial_id)
        self.running.pop(place, None)
        warn_once(f"trial {trial.number} was taken over by another worker, who saw no sign of life from this one.")

    def _tell(self, trial: Trial, job: Job, result: dict[str, Any]) -> None:
        for name in ("reason", "best_epoch", "epochs", "seconds", "value", "fold_values"):
            if name in result:
                trial.set_user_attr(name, result[name])
        if result["status"] == "complete":
            self.study.tell(trial, result["value"])
        else:
            self.study.tell(trial, state=TrialState.PRUNED if result["status"] == "pruned" else TrialState.FAIL)
        write_settings(job.folder / "hparams.yaml", self._settings(job, trial.number, result))
        self.write_runs()
        self._count_failures(result, job)

    def _count_failures(self, result: dict[str, Any], job: Job) -> None:
        if result["status"] != "failed":
            self.failures.clear()
            return
        self.failures.append(result["reason"])
        if result.get("hopeless"):
            raise UserInputError(f"{result['reason']} (Every trial would end so; the log is {job.folder / 'log.txt'}.)")
        if len(self.failures) >= _FAILURES_IN_A_ROW:
            raise UserInputError(
                f"{len(self.failures)} trials in a row failed, the last with: {self.failures[-1]}. "
                f"All reasons are in {self.pool.job.folder / 'runs.csv'}; call search again to go on."
            )

    def _abandon(self) -> None:
        """Leave trainings that still run, after an interrupt or an error, to the next search."""
        for trial, run, _ in self.running.values():
            self.pulse.stop(trial._trial_id)
            run.kill()
        for trial, _, _ in self.running.values():
            _give_back(self.study, self.chosen, trial)
        self.running.clear()

    # Records.

    def write_runs(self) -> None:
        """Write ``runs.csv``."""
        trials = [t for t in self.study.get_trials(deepcopy=False) if RUN in t.user_attrs]
        # A run that died and was run again is one line: its later trial.
        latest = {t.user_attrs[RUN]: t for t in trials}
        rows = [row_of(t, *self._place(t)) for t in sorted(latest.values(), key=lambda t: t.number)]
        write_table(self.pool.job.folder / "runs.csv", rows)

    def _settings(self, job: Job, number: int, result: dict[str, Any]) -> dict[str, Any]:
        trial = self.study.get_trials(deepcopy=False)[number]
        slot, round_number = self._place(trial)
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


def _give_back(study: optuna.Study, chosen: Chosen, trial: Trial) -> None:
    """Return an unfinished trial's point to the search, unless somebody else has taken it over."""
    frozen = study._storage.get_trial(trial._trial_id)
    if frozen.state.is_finished() or (
        isinstance(chosen.sampler, SlotSampler) and chosen.sampler.give_back(study, frozen)
    ):
        return
    study._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
    study.enqueue_trial(frozen.params, user_attrs={RUN: frozen.user_attrs[RUN]} if RUN in frozen.user_attrs else {})


def _check_taken(params: dict[str, Any], functions: list[Callable[..., Any] | Any]) -> None:
    """Refuse a hyperparameter that nothing is called with: the search would turn a knob that is not connected."""
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
