"""Optuna's own samplers, with a random stream of its own for every trial."""

from collections.abc import Callable, Sequence
from typing import Any

from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from lightning_tricks._base import derive_seed


class ReseededSampler(BaseSampler):
    """Makes another sampler anew for each trial, seeded by the search's seed and the number of trials before it.

    Trials that died with their worker are not counted: they are run again.

    Several workers with one seed would otherwise draw the same points, and a resumed search would draw its first ones
    again. One worker that was stopped now goes on with the points that it would have drawn.

    Args:
        make: returns a sampler for a seed.
        seed: of the search.
    """

    def __init__(self, make: Callable[[int], BaseSampler], seed: int) -> None:
        self.make = make
        self.seed = seed
        self.sampler = make(0)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Make the trial's sampler."""
        earlier = [t for t in study.get_trials(deepcopy=False) if t.number < trial.number]
        died = sum(t.state == TrialState.FAIL and "reason" not in t.user_attrs for t in earlier)
        self.sampler = self.make(derive_seed(self.seed, "trial", len(earlier) - died) % 2**32)
        self.sampler.before_trial(study, trial)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Ask the trial's sampler."""
        return self.sampler.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Ask the trial's sampler."""
        return self.sampler.sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Ask the trial's sampler."""
        return self.sampler.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        """Tell the sampler (the youngest one: none of those used here keeps anything)."""
        self.sampler.after_trial(study, trial, state, values)
