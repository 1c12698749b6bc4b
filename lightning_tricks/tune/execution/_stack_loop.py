"""The search's loop when trials are trained in stacks: ask for a batch of points, train it, tell all results."""

import json
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from optuna.exceptions import UpdateFinishedTrialError
from optuna.samplers import BaseSampler
from optuna.trial import Trial

from lightning_tricks._base import UserInputError, warn_once
from lightning_tricks.tune.execution._processes import Run, pause
from lightning_tricks.tune.execution._stack_job import results_of, stack_of
from lightning_tricks.tune.execution._trial import Job, called_with
from lightning_tricks.tune.execution._trials import FAILURES_IN_A_ROW, NoTrial, SharedTrials
from lightning_tricks.tune.reporting._run_table import ordered
from lightning_tricks.tune.samplers._slots import SlotSampler

# Samplers that do not learn from one trial to the next may fill a stack; those that do, as much as they can bear.
MOST_AT_ONCE = 64
MOST_OF_A_LEARNER = 8


class StackRunner:
    """Trains trials in stacks, one stack per worker.

    Args:
        trials: this process's share of the search.
        most: how many trials may be in a stack; True decides by the sampler.
        progress: whether to show a bar.
    """

    def __init__(self, trials: SharedTrials, *, most: int | bool, progress: bool) -> None:
        self.trials = trials
        self.pool = trials.pool
        self.most = most
        self.progress = progress
        self.asked: list[tuple[Trial, Job]] = []
        self.stacks: list[Run] = []
        self._said: list[dict[str, Any]] = []

    def run(self) -> None:
        """Run until the budget is spent and nobody else works on it."""
        from tqdm import tqdm  # type: ignore[import-untyped]

        with tqdm(total=self.trials.chosen.trials, desc="search", disable=not self.progress) as bar:
            try:
                while self._goes_on():
                    if self.asked:
                        self._train(bar)
                    else:
                        pause([])
                    self.trials.show(bar)
            finally:
                self._abandon()
                self.trials.write_runs()

    def _goes_on(self) -> bool:
        """Ask for what to train; whether there is anything, here or at others, who may die."""
        self.trials.repair()
        self._fill()
        return bool(self.asked) or self.trials.running_elsewhere(set())

    def _fill(self) -> None:
        """Ask for as many points as fit into a stack and depend on no result that is still to come."""
        while (sampler := self.trials.sampler()) is not None and len(self.asked) < self._most_at_once(sampler):
            asked = self.trials.ask(busy=bool(self.asked))
            if isinstance(asked, NoTrial):
                return
            self.asked.append(asked)

    def _most_at_once(self, sampler: BaseSampler) -> int:
        if self.most is not True:
            return int(self.most) * self.pool.workers
        return MOST_AT_ONCE * self.pool.workers if isinstance(sampler, SlotSampler) else MOST_OF_A_LEARNER

    def _train(self, bar: Any) -> None:
        """Train what was asked for, in one stack per worker, and tell the results in order."""
        parts = _dealt([job for _, job in self.asked], self.pool.workers)
        self.stacks = [self.pool.run(stack_of(part, self.pool.job), place) for place, part in enumerate(parts)]
        results: dict[int, dict[str, Any]] = {}
        while waiting := [i for i in range(len(parts)) if i not in results]:
            pause([self.stacks[i] for i in waiting])
            results |= {i: result for i in waiting if (result := self.stacks[i].poll()) is not None}
            self._say(bar)
        told = [
            {**each, "stack": stack.job.folder.name}
            for i, stack in enumerate(self.stacks)
            for each in results_of(results[i], len(parts[i]))
        ]
        self.stacks = []
        self._tell_all(told)

    def _tell_all(self, results: list[dict[str, Any]]) -> None:
        """Write down all results before a failure of some ends the search."""
        first_error: UserInputError | None = None
        for result in results:
            trial, job = self.asked.pop(0)
            try:
                # A trial of a stack has no log of its own.
                log = self.pool.job.folder / "stacks" / result["stack"] / "log.txt"
                self.trials.tell(trial, job, result, log=log)
            except UserInputError as error:
                first_error = first_error or error
            except UpdateFinishedTrialError:  # another worker saw no sign of life from this one, and did the same
                warn_once(f"trial {trial.number} was taken over by another worker.")
        if first_error is not None and len(self.trials.failures) >= min(FAILURES_IN_A_ROW, len(results)):
            raise first_error

    def _say(self, bar: Any) -> None:
        notes = [_note(stack) for stack in self.stacks]
        known = [note for note in notes if note]
        if not known or known == self._said:
            return
        self._said = known
        best = ordered(self.trials.study)[:1]
        found = [note["best"] for note in known if note["best"] is not None]
        found += [best[0].value] if best else []
        value = (min if self.pool.job.mode == "min" else max)(found, default=None)
        epochs, live = min(note["epoch"] for note in known), sum(note["live"] for note in known)
        text = f"epoch {epochs}, {live} of {len(self.asked)} training"
        bar.set_postfix_str(text if value is None else f"{text}, best {self.pool.job.monitor} {value:.4g}")

    def _abandon(self) -> None:
        """Leave what still trains, after an interrupt or an error, to the next search."""
        for stack in self.stacks:
            stack.kill()
        for trial, _ in self.asked:
            self.trials.give_back(trial)
        self.stacks, self.asked = [], []


def check_shared(data: Any, params: Mapping[str, Any]) -> None:
    """Refuse hyperparameters of the data, which all trials of a stack share.

    Args:
        data: a DataModule, or what returns one.
        params: hyperparameters by name.

    Raises:
        UserInputError: if the data takes any of them.
    """
    asked = called_with(data, params) if callable(data) else {}
    if asked:
        raise UserInputError(
            f"stacked trials share their batches, but the data takes the hyperparameter {', '.join(map(repr, asked))}. "
            "Search it without vectorize, or leave it out of the space."
        )


def _dealt(jobs: list[Job], parts: int) -> list[list[Job]]:
    """Divide jobs into runs of neighbours of almost equal length."""
    parts = min(parts, len(jobs))
    cuts = [round(i * len(jobs) / parts) for i in range(parts + 1)]
    return [jobs[a:b] for a, b in pairwise(cuts)]


def _note(stack: Run) -> dict[str, Any] | None:
    path = stack.job.folder / "progress.json"
    try:
        note: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return note
