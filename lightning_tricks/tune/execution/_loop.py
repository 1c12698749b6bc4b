"""The search's loop: one process per trial, started where there is room, watched, and told."""

from dataclasses import dataclass

from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import Trial

from lightning_tricks._base import warn_once
from lightning_tricks.tune.execution._processes import Run, pause
from lightning_tricks.tune.execution._progress import read_progress
from lightning_tricks.tune.execution._trial import Job
from lightning_tricks.tune.execution._trials import NoTrial, SharedTrials


@dataclass
class Running:
    """A training that runs.

    Args:
        trial: what it is for.
        job: what it does.
        run: its process.
        passed_on: how many of its reports the study has.
    """

    trial: Trial
    job: Job
    run: Run
    passed_on: int = 0


class ProcessRunner:
    """Trains each trial in a process of its own.

    Args:
        trials: this process's share of the search.
        progress: whether to show a bar.
    """

    def __init__(self, trials: SharedTrials, *, progress: bool) -> None:
        self.trials = trials
        self.pool = trials.pool
        self.progress = progress
        self.running: dict[int, Running] = {}  # by place

    def run(self) -> None:
        """Run until the budget is spent and nobody else works on it."""
        from tqdm import tqdm  # type: ignore[import-untyped]

        with tqdm(total=self.trials.chosen.trials, desc="search", disable=not self.progress) as bar:
            try:
                while self._goes_on():
                    pause([each.run for each in self.running.values()])
                    for place in list(self.running):
                        self._look_after(place)
                    self.trials.show(bar)
            finally:
                self._abandon()
                self.trials.write_runs()

    def _goes_on(self) -> bool:
        """Look for what to do; whether this search has work or must wait for others, who may die."""
        self.trials.repair()
        mine = {each.trial.number for each in self.running.values()}
        return self._fill() or bool(self.running) or self.trials.running_elsewhere(mine)

    def _fill(self) -> bool:
        """Start trainings where there is room; whether there may be more to come."""
        for place in set(range(self.pool.workers)) - set(self.running):
            asked = self.trials.ask(busy=bool(self.running))
            if isinstance(asked, NoTrial):
                return asked is NoTrial.WAIT
            trial, job = asked
            self.running[place] = Running(trial, job, self.pool.run(job, place))
        return True

    def _look_after(self, place: int) -> None:
        each = self.running[place]
        try:
            self._look_at(place, each)
        except UpdateFinishedTrialError:
            self._let_go(place, each)

    def _look_at(self, place: int, each: Running) -> None:
        trial, folder = each.trial, each.job.folder
        reports = sorted(read_progress(folder).items())
        for step, (_, value) in reports[each.passed_on :]:
            trial.report(value, step)
        if each.job.prune and len(reports) > each.passed_on:
            if trial.should_prune():
                (folder / "stop").touch()
            (folder / "seen").write_text(str(len(reports)), encoding="utf-8")
        each.passed_on = len(reports)
        result = each.run.poll()
        if result is not None:
            del self.running[place]
            self.trials.tell(trial, each.job, result, log=folder / "log.txt")

    def _let_go(self, place: int, each: Running) -> None:
        """Leave a trial to those who took this worker for dead, after a machine that slept, say."""
        each.run.kill()
        self.trials.let_go(each.trial)
        self.running.pop(place, None)
        warn_once(f"trial {each.trial.number} was taken over by another worker, who saw no sign of life from this one.")

    def _abandon(self) -> None:
        """Leave trainings that still run, after an interrupt or an error, to the next search."""
        for each in self.running.values():
            self.trials.let_go(each.trial)
            each.run.kill()
        for each in self.running.values():
            self.trials.give_back(each.trial)
        self.running.clear()
