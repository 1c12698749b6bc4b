"""The search's loop: one process per trial, started where there is room, watched, and told."""

from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import Trial

from lightning_tricks._base import warn_once
from lightning_tricks.tune.execution._processes import Run, pause
from lightning_tricks.tune.execution._progress import read_progress
from lightning_tricks.tune.execution._trials import NoTrial, SharedTrials


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
        self.running: dict[int, tuple[Trial, Run, int]] = {}  # place -> trial, run, reports passed on

    def run(self) -> None:
        """Run until the budget is spent and nobody else works on it."""
        from tqdm import tqdm  # type: ignore[import-untyped]

        with tqdm(total=self.trials.chosen.trials, desc="search", disable=not self.progress) as bar:
            try:
                while self._goes_on():
                    pause([run for _, run, _ in self.running.values()])
                    for place in list(self.running):
                        self._look_after(place)
                    self.trials.show(bar)
            finally:
                self._abandon()
                self.trials.write_runs()

    def _goes_on(self) -> bool:
        """Look for what to do; whether this search has work or must wait for others, who may die."""
        self.trials.repair()
        mine = {trial.number for trial, _, _ in self.running.values()}
        return self._fill() or bool(self.running) or self.trials.running_elsewhere(mine)

    def _fill(self) -> bool:
        """Start trainings where there is room; whether there may be more to come."""
        for place in set(range(self.pool.workers)) - set(self.running):
            asked = self.trials.ask(busy=bool(self.running))
            if isinstance(asked, NoTrial):
                return asked is NoTrial.WAIT
            trial, job = asked
            self.running[place] = trial, self.pool.run(job, place), 0
        return True

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
            self.trials.tell(trial, run.job, result, log=run.job.folder / "log.txt")

    def _let_go(self, place: int, trial: Trial, run: Run) -> None:
        """Leave a trial to those who took this worker for dead, after a machine that slept, say."""
        run.kill()
        self.trials.let_go(trial)
        self.running.pop(place, None)
        warn_once(f"trial {trial.number} was taken over by another worker, who saw no sign of life from this one.")

    def _abandon(self) -> None:
        """Leave trainings that still run, after an interrupt or an error, to the next search."""
        for trial, run, _ in self.running.values():
            self.trials.let_go(trial)
            run.kill()
        for trial, _, _ in self.running.values():
            self.trials.give_back(trial)
        self.running.clear()
