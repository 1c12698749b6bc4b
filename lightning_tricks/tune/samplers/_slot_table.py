"""Who holds which slot: read from the study's trials, the only thing that all workers share."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from optuna.trial import FrozenTrial, TrialState

# A slot whose worker died this often is given up: its point may be what kills the workers.
MOST_DEATHS = 3


class SlotTable:
    """The slots of one sampler in one study.

    A slot is *settled* by the trial that carries it in its attributes. Trials that were started and have no slot yet
    get the free slots in the order of their numbers; so every worker that reads the same trials comes to the same
    answer, and nobody has to lock anything. Trials that this sampler did not start with a slot of its own (enqueued,
    added, or of another sampler) are *external*.

    Args:
        trials: all trials of the study.
        prefix: of the sampler's attributes.
        retries: how often a slot is tried again after its trial raised an exception.
    """

    def __init__(self, trials: Sequence[FrozenTrial], prefix: str, retries: int) -> None:
        self.trials = sorted(trials, key=lambda trial: trial.number)
        self.prefix = prefix
        self.retries = retries
        self._taken = set(self._taken_slots())

    def slot(self, trial: FrozenTrial) -> int | None:
        """Return the slot that a trial has settled on."""
        return trial.system_attrs.get(f"{self.prefix}:slot")

    def is_external(self, trial: FrozenTrial) -> bool:
        """Whether a trial without a slot will never get one."""
        return trial.state.is_finished() or "fixed_params" in trial.system_attrs or not self._is_ours(trial)

    def _is_ours(self, trial: FrozenTrial) -> bool:
        # A trial that has parameters and no slot was begun by another sampler.
        return not trial.params

    def unsettled_before(self, number: int) -> list[FrozenTrial]:
        """Return the started trials with lower numbers that have no slot yet."""
        return [
            trial
            for trial in self.trials
            if trial.number < number and trial.state == TrialState.RUNNING and self.slot(trial) is None
            if not self.is_external(trial)
        ]

    def slot_for(self, number: int) -> int:
        """Return the slot of a started trial that has none yet."""
        free = self.free_slots()
        for _ in self.unsettled_before(number):
            next(free)
        return next(free)

    def free_slots(self) -> Iterator[int]:
        """Yield, in ascending order and without end, the slots that nobody holds."""
        slot = 0
        while True:
            if slot not in self._taken:
                yield slot
            slot += 1

    def slot_after(self, trial: FrozenTrial) -> int:
        """Return how many slots had been given when an external trial came: the slot that it preceded."""
        return len({self.slot(other) for other in self.trials if other.number < trial.number} - {None})

    def _taken_slots(self) -> Iterator[int]:
        failures: Counter[int] = Counter()
        deaths: Counter[int] = Counter()
        retried = {number for trial in self.trials for number in trial.system_attrs.get("retry_history", ())}
        for trial in self.trials:
            slot = self.slot(trial)
            if slot is None or trial.system_attrs.get(f"{self.prefix}:moved"):
                continue
            if trial.state != TrialState.FAIL:
                yield slot
            elif trial.system_attrs.get(f"{self.prefix}:died") or trial.number in retried:
                deaths[slot] += 1
            else:
                failures[slot] += 1
        yield from (slot for slot, count in failures.items() if count > self.retries)
        yield from (slot for slot, count in deaths.items() if count >= MOST_DEATHS)


def attribute(trial: FrozenTrial, prefix: str, name: str) -> Any:
    """Return an attribute that a sampler of ours left on a trial, or None."""
    return trial.system_attrs.get(f"{prefix}:{name}")
