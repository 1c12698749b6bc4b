"""Grid search whose points belong to slots: no duplicates between workers, no point lost to a failure."""

import itertools
import math
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from optuna import Study, TrialPruned
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

from lightning_tricks._base import UserInputError, derive_seed
from lightning_tricks.tune.samplers._slot_table import SlotTable
from lightning_tricks.tune.samplers._slots import SlotSampler


class SlotGridSampler(SlotSampler):
    """Grid search in an order that the seed shuffles; a failed point is run again, and the study stops at the end.

    When several workers share a grid, a worker that finds every point taken waits for those that still run, and records
    one pruned trial without parameters if none of them failed.

    Args:
        grid: values by parameter name; numbers, strings, booleans or None.
        seed: of the order; None takes it from the study's name, so that all workers of a study agree.
        retries: how often a point is run again after its trial raised an exception.
        grace: seconds without a sign of life after which a worker on another machine counts as dead.

    Raises:
        UserInputError: for an empty grid, a parameter that is not in it, or an enqueued trial that does not give all
            parameters.

    Example:
        >>> import optuna
        >>> optuna.logging.set_verbosity(optuna.logging.WARNING)
        >>> study = optuna.create_study(sampler=SlotGridSampler({"lr": [1e-3, 1e-2], "width": [8, 16, 32]}, seed=0))
        >>> def objective(trial):
        ...     return trial.suggest_float("lr", 1e-4, 1, log=True) * trial.suggest_int("width", 8, 32)
        >>> study.optimize(objective, n_trials=100)  # stops when the grid is done
        >>> len(study.trials), study.best_params
        (6, {'lr': 0.001, 'width': 8})
    """

    kind = "grid"

    def __init__(
        self,
        grid: Mapping[str, Sequence[Any]],
        *,
        seed: int | None = None,
        retries: int = 1,
        grace: float = 120.0,
    ) -> None:
        super().__init__(seed=seed, retries=retries, grace=grace)
        if not grid or not all(len(values) for values in grid.values()):
            raise UserInputError(f"grid must hold at least one value for each parameter, but got {dict(grid)}.")
        self.grid = {name: list(values) for name, values in sorted(grid.items())}

    def __len__(self) -> int:
        return math.prod(len(values) for values in self.grid.values())

    def is_exhausted(self, study: Study) -> bool:
        """Whether every point has been started or is done, so that one more trial would have none."""
        return next(self._slot_table(study).free_slots()) >= len(self)

    def _settings(self) -> dict[str, Any]:
        return {"grid": self.grid}

    def _value(self, study: Study, trial: FrozenTrial, slot: int, name: str, distribution: BaseDistribution) -> Any:
        if name not in self.grid:
            raise UserInputError(f"the grid holds {', '.join(self.grid)}, but the objective asked for {name!r}.")
        if slot >= len(self):
            raise TrialPruned(f"all {len(self)} points of the grid are done. Stop when is_exhausted(study) says so.")
        order = np.random.default_rng(derive_seed(self._seed(study), "grid")).permutation(len(self))
        point = next(itertools.islice(itertools.product(*self.grid.values()), int(order[slot]), None))
        value = point[list(self.grid).index(name)]
        if not distribution._contains(distribution.to_internal_repr(value)):
            raise UserInputError(f"the grid's {name}={value!r} lies outside of the declared {distribution}.")
        return value

    def _external_value(self, study: Study, trial: FrozenTrial, name: str, distribution: BaseDistribution) -> Any:
        """Refuse to complete an enqueued trial: it belongs to no point of the grid, so any value would be arbitrary."""
        raise UserInputError(
            f"an enqueued trial of a grid search must give all parameters ({', '.join(self.grid)}), but trial "
            f"{trial.number} leaves {name!r} open. Enqueue all of them, or leave the points to the grid."
        )

    def _must_wait(self, table: SlotTable, slot: int, number: int) -> list[FrozenTrial]:
        """At the end of the grid wait for the points that still run: one that fails is free again."""
        return [t for t in self._running(table, number) if self._asked_by.get(t.number) != threading.get_ident()] * (
            slot >= len(self)
        )

    def _running(self, table: SlotTable, number: int) -> list[FrozenTrial]:
        """Return the other trials that hold a point."""
        running = [t for t in table.trials if t.state == TrialState.RUNNING and t.number != number]
        return [t for t in running if (slot := table.slot(t)) is not None and slot < len(self)]

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        """Stop the study when no point is left."""
        super().after_trial(study, trial, state, values)
        if not study._thread_local.in_optimize_loop:
            return
        table = self._slot_table(study)
        runs_again = state == TrialState.FAIL and self._failures(study, trial) < self.retries
        if not runs_again and next(table.free_slots()) >= len(self) and not self._running(table, trial.number):
            study.stop()

    def _failures(self, study: Study, trial: FrozenTrial) -> int:
        """Return how often the trial's point has failed before."""
        table = self._slot_table(study)
        slot = study._storage.get_trial_system_attrs(trial._trial_id).get(f"{self.prefix}:slot")
        return sum(t.state == TrialState.FAIL and table.slot(t) == slot for t in table.trials)
