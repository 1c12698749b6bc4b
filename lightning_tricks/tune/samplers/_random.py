"""Random search whose points belong to slots: the same points for any number of workers."""

from typing import Any

from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial

from lightning_tricks.tune.samplers._rounds import uniform
from lightning_tricks.tune.samplers._slots import SlotSampler, at_unit


class SlotRandomSampler(SlotSampler):
    """Random search, uniform on the scale that was declared (Bergstra & Bengio 2012), the same points on any workers.

    A point is a pure function of the seed and its slot: several workers with the same seed share one sequence of
    points, where Optuna's ``RandomSampler`` would draw the same point in each of them.

    Args:
        seed: of all points; None takes it from the study's name, so that all workers of a study agree.
        retries: how often a slot is run again after its trial raised an exception.
        grace: seconds without a sign of life after which a worker on another machine counts as dead.

    Example:
        >>> import optuna
        >>> optuna.logging.set_verbosity(optuna.logging.WARNING)
        >>> study = optuna.create_study(sampler=SlotRandomSampler(seed=0))
        >>> study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=3)
        >>> len({trial.params["x"] for trial in study.trials})
        3
    """

    kind = "random"

    def __init__(self, *, seed: int | None = None, retries: int = 0, grace: float = 120.0) -> None:
        super().__init__(seed=seed, retries=retries, grace=grace)

    def _settings(self) -> dict[str, Any]:
        return {}

    def _value(self, study: Study, trial: FrozenTrial, slot: int, name: str, distribution: BaseDistribution) -> Any:
        return at_unit(distribution, uniform(self._seed(study), "random", slot, name))
