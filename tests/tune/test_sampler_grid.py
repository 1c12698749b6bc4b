"""Slot-keyed grid and random search: no duplicates, nothing lost."""

from multiprocessing import get_context

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from lightning_tricks._base import UserInputError
from lightning_tricks.tune import SlotGridSampler, SlotRandomSampler

optuna.logging.set_verbosity(optuna.logging.ERROR)
GRID = {"lr": [1e-3, 1e-2, 1e-1], "width": [8, 16], "kind": ["a", None]}
EVERYTHING = {(lr, width, kind) for lr in GRID["lr"] for width in GRID["width"] for kind in GRID["kind"]}


def objective(trial):
    lr = trial.suggest_float("lr", 1e-4, 1, log=True)
    return lr * trial.suggest_int("width", 8, 32) + len(str(trial.suggest_categorical("kind", ["a", None])))


def study_of(sampler, path=None):
    storage = None if path is None else JournalStorage(JournalFileBackend(str(path)))
    return optuna.create_study(study_name="s", storage=storage, sampler=sampler, load_if_exists=True)


def grid_points(study, *states):
    chosen = [t for t in study.trials if t.params and t.state in (states or (TrialState.COMPLETE,))]
    return [(t.params["lr"], t.params["width"], t.params["kind"]) for t in chosen]


def work(path, make, trials):
    study_of(make(seed=0), path).optimize(objective, n_trials=trials)


def make_grid(**options):
    return SlotGridSampler(GRID, **options)


def in_processes(path, make, trials, workers=4):
    processes = [get_context("fork").Process(target=work, args=(path, make, trials)) for _ in range(workers)]
    for p in processes:
        p.start()
    for p in processes:
        p.join(60)
    return study_of(None, path)


def test_equal_seeds_in_four_workers_give_distinct_points_and_those_of_one_worker(tmp_path):
    together = in_processes(tmp_path / "j", SlotRandomSampler, 8)
    alone = study_of(SlotRandomSampler(seed=0))
    alone.optimize(objective, n_trials=32)
    assert len({t.params["lr"] for t in together.trials}) == 32
    assert {t.params["lr"] for t in together.trials} == {t.params["lr"] for t in alone.trials}


def test_random_points_fill_the_declared_scale():
    study = study_of(SlotRandomSampler(seed=3))
    study.optimize(objective, n_trials=400)
    decades = [0] * 4
    for trial in study.trials:
        decades[[1e-3, 1e-2, 1e-1, 2].index(next(x for x in (1e-3, 1e-2, 1e-1, 2) if trial.params["lr"] <= x))] += 1
    assert min(decades) > 70  # 100 expected, sd 8.7


def test_grid_is_complete_and_then_stops():
    study = study_of(SlotGridSampler(GRID, seed=0))
    study.optimize(objective, n_trials=100)
    assert len(study.trials) == 12
    assert set(grid_points(study)) == EVERYTHING
    assert grid_points(study) != sorted(grid_points(study), key=str)


def test_grid_is_shared_by_processes(tmp_path):
    study = in_processes(tmp_path / "j", make_grid, 3)
    assert sorted(grid_points(study), key=str) == sorted(EVERYTHING, key=str)


@pytest.mark.parametrize("jobs", [1, 3])
def test_failed_points_of_a_grid_are_run_again(jobs):
    failed = set()

    def flaky(trial):
        value = objective(trial)
        if trial.params["width"] == 16 and trial.params["lr"] not in failed:
            failed.add(trial.params["lr"])
            raise RuntimeError
        return value

    study = study_of(SlotGridSampler(GRID, seed=0))
    study.optimize(flaky, n_trials=100, catch=RuntimeError, n_jobs=jobs)
    assert set(grid_points(study)) == EVERYTHING
    assert [t.state for t in study.trials].count(TrialState.FAIL) == 3


def test_point_that_always_fails_is_given_up():
    def broken(trial):
        value = objective(trial)
        if trial.params["width"] == 16:
            raise RuntimeError
        return value

    study = study_of(SlotGridSampler(GRID, seed=0, retries=1))
    study.optimize(broken, n_trials=100, catch=RuntimeError)
    assert len(grid_points(study)) == 6
    assert len(grid_points(study, TrialState.FAIL)) == 12


def test_enqueued_trial_eats_no_grid_point():
    study = study_of(SlotGridSampler(GRID, seed=0))
    study.enqueue_trial({"lr": 0.5, "width": 9, "kind": "a"})
    study.optimize(objective, n_trials=100)
    assert set(grid_points(study)) == EVERYTHING | {(0.5, 9, "a")}


@pytest.mark.parametrize("given", [{"lr": 0.5}, {"lr": 1e-3, "width": 8}, {}])
def test_partly_enqueued_trial_is_refused_rather_than_completed_off_the_grid(given):
    study = study_of(SlotGridSampler(GRID, seed=0))
    study.enqueue_trial(given)
    with pytest.raises(ValueError, match=r"must give all parameters \(kind, lr, width\), but trial 0 leaves"):
        study.optimize(objective, n_trials=1)
    study.optimize(objective, n_trials=100)
    assert set(grid_points(study)) == EVERYTHING
    assert [t.state for t in study.trials].count(TrialState.FAIL) == 1


def test_grid_by_ask_and_tell_ends_without_an_exception():
    sampler = SlotGridSampler(GRID, seed=0)
    study = study_of(sampler)
    while not sampler.is_exhausted(study):
        trial = study.ask()
        study.tell(trial, objective(trial))
    assert set(grid_points(study)) == EVERYTHING
    with pytest.raises(optuna.TrialPruned, match="all 12 points of the grid are done"):
        objective(study.ask())


def test_bad_grids_are_refused():
    with pytest.raises(UserInputError, match="at least one value"):
        SlotGridSampler({"lr": []})
    with pytest.raises(UserInputError, match="the objective asked for 'width'"):
        study_of(SlotGridSampler({"lr": [0.1]}, seed=0)).optimize(objective, n_trials=1)
    with pytest.raises(UserInputError, match=r"lr=7 lies outside"):
        study_of(SlotGridSampler({**GRID, "lr": [7]}, seed=0)).optimize(objective, n_trials=1)
