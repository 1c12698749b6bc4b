"""Optuna's own contract for samplers, and the same points from every storage."""

import optuna
import pytest
from optuna.storages import InMemoryStorage
from optuna.testing.pytest_samplers import BasicSamplerTestCase, SingleOnlySamplerTestCase

from lightning_tricks.tune import CoarseToFineSampler, SlotGridSampler, SlotRandomSampler

optuna.logging.set_verbosity(optuna.logging.ERROR)
MAKERS = {
    "coarse_to_fine": lambda: CoarseToFineSampler(20, seed=0),
    "random": lambda: SlotRandomSampler(seed=0),
}


class Ours:
    """The samplers that the contracts are asked of."""

    @pytest.fixture(params=MAKERS)
    def sampler(self, request):
        return MAKERS[request.param]


class TestBasic(Ours, BasicSamplerTestCase):
    """Values in range and of the right type, conditional and changing spaces, NaN."""


class TestSingleObjective(Ours, SingleOnlySamplerTestCase):
    """Several objectives are a ValueError."""


class TestSingleObjectiveGrid(SingleOnlySamplerTestCase):
    """A grid samples its own parameters only, so that the basic contract has nothing to ask of it."""

    @pytest.fixture
    def sampler(self):
        return lambda: SlotGridSampler({"x": [0.0, 1.0]}, seed=0)


@pytest.mark.parametrize("make", [*MAKERS.values(), lambda: SlotGridSampler({"x": [0.0, 1.0]}, seed=0)])
def test_several_objectives_are_refused_by_every_way_to_ask(make):
    study = optuna.create_study(directions=["minimize", "maximize"], sampler=make())
    trial = study._storage.get_trial(study._storage.create_new_trial(study._study_id))
    distribution = optuna.distributions.FloatDistribution(0, 1)
    for ask in (
        lambda: study.sampler.before_trial(study, trial),
        lambda: study.sampler.infer_relative_search_space(study, trial),
        lambda: study.sampler.sample_independent(study, trial, "x", distribution),
    ):
        with pytest.raises(ValueError, match=r"one objective, but the study has 2\. Create the study with one"):
            ask()


class Reversed(InMemoryStorage):
    """Returns parameters and distributions in another order, as Optuna's gRPC proxy does."""

    def get_all_trials(self, study_id, deepcopy=True, states=None):
        trials = super().get_all_trials(study_id, deepcopy=True, states=states)
        for trial in trials:
            trial.params = dict(reversed(trial.params.items()))
            trial.distributions = dict(reversed(trial.distributions.items()))
        return trials


@pytest.mark.parametrize("seed", range(3))
def test_the_order_in_which_a_storage_returns_parameters_changes_no_bit(seed):
    def objective(trial):
        return sum((trial.suggest_float(name, 0, 1) - at) ** 2 for name, at in (("c", 0.3), ("a", 0.6), ("b", 0.45)))

    points = []
    for storage in (InMemoryStorage(), Reversed()):
        study = optuna.create_study(study_name="s", storage=storage, sampler=CoarseToFineSampler(40, seed=seed))
        study.optimize(objective, n_trials=40)
        points.append([trial.params for trial in study.trials])
    assert points[0] == points[1]
