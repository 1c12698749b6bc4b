"""Coarse to fine: the same points whoever runs them, nothing lost, and windows that do what the lecture says."""

import math
import os
import pickle
import re
import signal
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from unittest import mock

import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from lightning_tricks._base import UserInputError, derive_seed
from lightning_tricks.tune import CoarseToFineSampler, explain
from lightning_tricks.tune.reporting._explain import windows_by_round
from lightning_tricks.tune.samplers._parabola import vertex
from lightning_tricks.tune.samplers._reseeded import ReseededSampler
from lightning_tricks.tune.samplers._rounds import Place, RoundPlan, latin_hypercube, uniform
from lightning_tricks.tune.samplers._scales import from_unit, to_unit
from lightning_tricks.tune.samplers._windows import UnitWindow, kept_choices, shrunk

optuna.logging.set_verbosity(optuna.logging.ERROR)
units = st.floats(0, 1)


def bowl(trial):
    x = trial.suggest_float("x", 1e-6, 1.0, log=True)
    y = trial.suggest_float("y", -3, 5)
    n = trial.suggest_int("n", 1, 40)
    kind = trial.suggest_categorical("kind", ["a", "b", "c", "d"])
    return (math.log10(x) + 3) ** 2 + (y - 1) ** 2 + (n / 10 - 2) ** 2 + "badc".index(kind)


def journal(path):
    return JournalStorage(JournalFileBackend(str(path)))


def study_of(sampler, storage=None, **options):
    return optuna.create_study(study_name="s", storage=storage, sampler=sampler, load_if_exists=True, **options)


def points(study, *, prefix="lightning_tricks:coarse_to_fine"):
    """Parameters by slot, of the trials that finished."""
    return {
        t.system_attrs[f"{prefix}:slot"]: t.params
        for t in study.trials
        if f"{prefix}:slot" in t.system_attrs and t.state in (TrialState.COMPLETE, TrialState.PRUNED)
    }


def run_of(n=32, seed=0, objective=bowl, **options):
    study = study_of(CoarseToFineSampler(n, seed=seed, **options))
    study.optimize(objective, n_trials=n)
    return study


@pytest.fixture(scope="module")
def alone():
    """The points of one worker."""
    return points(run_of())


# The pure core.


@given(st.integers(1, 300), st.floats(0.05, 1), st.integers(0, 8))
def test_plan_spends_the_budget_and_places_every_slot_once(n, coarse, rounds):
    plan = RoundPlan(n, coarse, rounds)
    assert sum(plan.sizes) == n
    assert min(plan.sizes) >= 1
    places = [plan.locate(slot) for slot in range(n + 10)]
    assert len(set(places)) == n + 10
    assert [p.round for p in places] == sorted(p.round for p in places)
    for number, size in enumerate(plan.sizes):
        assert [p.index for p in places if p.round == number and p.size == size][:size] == list(range(size))


@given(st.integers(0, 2**62), st.integers(0, 9), st.text(max_size=5), st.integers(1, 40))
@settings(max_examples=30, deadline=None)
def test_latin_hypercube_has_one_point_per_part(seed, number, name, size):
    coordinates = [latin_hypercube(seed, number, name, index, size) for index in range(size)]
    assert sorted(int(size * u) for u in coordinates) == list(range(size))


def test_slots_past_the_budget_go_on_in_rounds_as_large_as_the_last():
    plan = RoundPlan(26, 0.5, 4)
    assert plan.sizes == (13, 4, 3, 3, 3)
    places = [plan.locate(slot) for slot in (25, 26, 28, 29)]
    assert places == [Place(4, 2, 3), Place(5, 0, 3), Place(5, 2, 3), Place(6, 0, 3)]


@pytest.mark.parametrize(
    ("number", "key", "others"),
    [
        (uniform, (0, "random", 3, "lr"), (1, "grid", 4, "momentum")),
        (latin_hypercube, (0, 2, "lr", 5, 100), (1, 3, "momentum", 6)),
    ],
)
def test_each_part_of_a_key_makes_another_number(number, key, others):
    changed = [number(*key[:i], other, *key[i + 1 :]) for i, other in enumerate(others)]
    assert number(*key) == number(*key)
    assert len({number(*key), *changed}) == 1 + len(others)


@given(units, units, st.lists(units, min_size=1, max_size=6), st.floats(0.05, 1), st.floats(0, 0.49))
def test_windows_stay_inside_the_limits_and_never_grow(a, b, best_first, shrink, margin):
    low, high = min(a, b), max(a, b)
    if high - low < 1e-6:
        return
    best_first = [low + u * (high - low) for u in best_first]
    after = shrunk(UnitWindow(low, high), best_first, shrink=shrink, margin=margin)
    assert -1e-12 <= after.low <= after.high <= 1 + 1e-12
    assert after.width <= high - low + 1e-12
    if after.reason.startswith("moved"):
        assert after.width == pytest.approx(high - low)
        assert after.low - 1e-9 <= best_first[0] <= after.high + 1e-9
    else:
        assert after.width == pytest.approx(shrink * (high - low))


def test_window_is_centred_on_the_weighted_four_best():
    window = shrunk(UnitWindow(0, 1), [0.5, 0.6, 0.4, 0.7, 0.0], shrink=0.25, margin=0.2)
    assert (window.low + window.high) / 2 == pytest.approx(0.4 * 0.5 + 0.3 * 0.6 + 0.2 * 0.4 + 0.1 * 0.7)


def test_fewer_points_than_four_share_the_weight():
    window = shrunk(UnitWindow(0, 1), [0.5, 0.6], shrink=0.25, margin=0.2)
    assert (window.low + window.high) / 2 == pytest.approx((4 * 0.5 + 3 * 0.6) / 7)


def test_window_shrinks_towards_a_hard_limit_but_moves_past_a_soft_one():
    at_limit = shrunk(UnitWindow(0, 0.5), [0.01, 0.01], shrink=0.5, margin=0.2)
    assert (at_limit.low, at_limit.high) == (0, 0.25)
    moved = shrunk(UnitWindow(0, 0.5), [0.49, 0.2], shrink=0.5, margin=0.2)
    assert (moved.low, moved.high, moved.reason) == (pytest.approx(0.24), pytest.approx(0.74), "moved up")
    moved = shrunk(UnitWindow(0.5, 1), [0.51, 0.8], shrink=0.5, margin=0.2)
    assert (moved.low, moved.high, moved.reason) == (pytest.approx(0.26), pytest.approx(0.76), "moved down")


@pytest.mark.parametrize("best", [0.25, 0.75])
def test_without_a_margin_no_window_moves(best):
    assert shrunk(UnitWindow(0.25, 0.75), [best], shrink=0.5, margin=0).reason == "shrunk"


@given(st.permutations(range(7)), st.integers(0, 7))
def test_choices_lose_the_worse_half_of_what_was_tried(order, tried):
    kept = kept_choices(range(7), order[:tried])
    assert len(kept) == 7 - tried // 2
    assert set(order[: (tried + 1) // 2]) <= set(kept)
    assert set(order[tried:]) <= set(kept)


@given(
    st.sampled_from(
        [
            FloatDistribution(-2.5, 7),
            FloatDistribution(1e-8, 3, log=True),
            FloatDistribution(0, 1, step=0.25),
            IntDistribution(3, 3000, log=True),
            IntDistribution(-4, 16, step=5),
        ]
    ),
    units,
)
def test_scales_stay_inside_and_come_back(distribution, unit):
    value = from_unit(distribution, unit)
    assert distribution._contains(distribution.to_internal_repr(value))
    again = to_unit(distribution, value)
    assert 0 <= again <= 1
    if distribution.step is None:
        assert again == pytest.approx(unit, abs=1e-9)
    assert from_unit(distribution, again) == pytest.approx(value)


def test_whole_numbers_get_equal_shares():
    drawn = [from_unit(IntDistribution(1, 4), (i + 0.5) / 400) for i in range(400)]
    assert [drawn.count(n) for n in (1, 2, 3, 4)] == [100] * 4
    assert {type(n) for n in drawn} == {int}


@pytest.mark.parametrize("distribution", [IntDistribution(-4, 16, step=5), FloatDistribution(0, 1, step=0.25)])
def test_steps_get_equal_shares(distribution):
    drawn = [from_unit(distribution, (i + 0.5) / 500) for i in range(500)]
    assert [drawn.count(distribution.low + i * distribution.step) for i in range(5)] == [100] * 5


# The same points whoever runs them.


@pytest.mark.parametrize("jobs", [4])
def test_threads_get_the_same_points(jobs, alone):
    study = study_of(CoarseToFineSampler(32, seed=0))
    study.optimize(bowl, n_trials=32, n_jobs=jobs)
    assert points(study) == alone


def work(path, trials, objective=bowl, **options):
    sampler = CoarseToFineSampler(32, seed=0, **options)
    study_of(sampler, journal(path)).optimize(objective, n_trials=trials)


@pytest.mark.parametrize("workers", [2, 4])
def test_processes_get_the_same_points(workers, tmp_path, alone):
    context = get_context("fork")
    processes = [context.Process(target=work, args=(tmp_path / "j", 32 // workers)) for _ in range(workers)]
    for p in processes:
        p.start()
    for p in processes:
        p.join(60)
    study = study_of(None, journal(tmp_path / "j"))
    assert len(study.trials) == 32
    assert points(study) == alone


def test_stopped_and_resumed_gives_the_same_points(tmp_path, alone):
    for trials in (5, 14, 13):
        work(tmp_path / "j", trials)
    assert points(study_of(None, journal(tmp_path / "j"))) == alone


def test_finishing_order_does_not_matter(alone):
    """Tell each round's results backwards."""
    study = study_of(CoarseToFineSampler(32, seed=0))
    for size in RoundPlan(32, 0.5, 4).sizes:
        trials = [study.ask() for _ in range(size)]
        values = [bowl(trial) for trial in trials]
        for trial, value in reversed(list(zip(trials, values, strict=True))):
            study.tell(trial, value)
    assert points(study) == alone


def test_another_seed_gives_other_points_and_the_name_is_a_seed(alone):
    assert points(run_of(seed=1)) != alone
    assert points(run_of(seed=None)) == points(run_of(seed=None)) != alone


def test_maximising_mirrors_minimising(alone):
    study = study_of(CoarseToFineSampler(32, seed=0), direction="maximize")
    study.optimize(lambda trial: -bowl(trial), n_trials=32)
    assert points(study) == alone


def test_pickled_sampler_goes_on(alone):
    sampler = CoarseToFineSampler(32, seed=0)
    study = study_of(sampler)
    study.optimize(bowl, n_trials=10)
    study.sampler = pickle.loads(pickle.dumps(sampler))
    study.optimize(bowl, n_trials=22)
    assert points(study) == alone


# Failed, pruned, enqueued, conditional.


def test_another_process_may_ask_for_a_trials_parameters(tmp_path, alone):
    """A trial that one process has begun gets the same point where its number was sent to."""
    study = study_of(CoarseToFineSampler(32, seed=0), journal(tmp_path / "j"))
    study.optimize(bowl, n_trials=16)
    for _ in range(2):
        trial = study.ask()
        there = study_of(CoarseToFineSampler(32, seed=0), journal(tmp_path / "j"))
        study.tell(trial, bowl(optuna.trial.Trial(there, trial._trial_id)))
    assert points(study) == {slot: alone[slot] for slot in range(18)}


def test_a_round_waits_for_the_external_trials_that_came_before_it():
    sampler = CoarseToFineSampler(32, seed=0)
    study = study_of(sampler)
    study.enqueue_trial({"x": 1e-3, "y": 1.0, "n": 20, "kind": "b"})
    external = study.ask()
    value = bowl(external)
    for _ in range(16):
        trial = study.ask()
        study.tell(trial, bowl(trial))
    assert sampler.would_wait(study), "the external trial's result counts for the windows"
    study.tell(external, value)
    assert not sampler.would_wait(study)


def test_failed_trials_count_as_finished_without_a_result():
    def objective(trial):
        value = bowl(trial)
        if trial.params["kind"] == "b":  # the best choice
            raise RuntimeError("out of memory")
        return value

    study = study_of(CoarseToFineSampler(32, seed=0))
    study.optimize(objective, n_trials=32, catch=RuntimeError)
    assert len(study.trials) == 32
    assert set(points(study)) == {t.number for t in study.trials if t.state == TrialState.COMPLETE}
    assert "b" not in windows_by_round(study)[-1]["kind"].choices


def test_retried_slot_gets_the_same_point_again(alone):
    failed = []

    def objective(trial):
        value = bowl(trial)
        if trial.number in (3, 20):
            failed.append(trial.params)
            raise RuntimeError("flaky")
        return value

    study = study_of(CoarseToFineSampler(32, seed=0, retries=1))
    study.optimize(objective, n_trials=34, catch=RuntimeError)
    assert points(study) == alone
    assert failed[0] == alone[3]


def test_pruned_trials_do_not_enter_the_window():
    """Whatever they reported, the points and the windows are the same."""

    def run_with(reported):
        def objective(trial):
            x = trial.suggest_float("x", 0, 1)
            if x < 0.5:
                trial.report(reported, 0)
                raise optuna.TrialPruned
            return x

        return run_of(objective=objective)

    good, bad = run_with(-1.0), run_with(1000.0)  # an under-trained value that looks best, and one that looks worst
    assert points(good) == points(bad)
    assert windows_by_round(good) == windows_by_round(bad)
    last = windows_by_round(good)[-1]["x"]
    assert last.low < 0.5 < last.high
    assert len(good.trials) == 32


def test_enqueued_trials_take_no_slot_and_their_results_count(alone):
    study = study_of(CoarseToFineSampler(32, seed=0))
    study.enqueue_trial({"x": 1e-3, "y": 1.0, "n": 20, "kind": "b"})  # the optimum
    study.optimize(bowl, n_trials=33)
    assert study.trials[0].params["x"] == 1e-3
    mine = points(study)
    assert sorted(mine) == list(range(32))
    assert all(mine[slot] == alone[slot] for slot in range(16))  # the coarse round does not move
    assert [mine[slot] for slot in range(16, 32)] != [alone[slot] for slot in range(16, 32)]
    for window in windows_by_round(study):
        assert window["x"].low <= 1e-3 <= window["x"].high
        assert window["n"].low <= 20 <= window["n"].high
        assert "b" in window["kind"].choices


def test_what_an_enqueued_trial_leaves_open_is_drawn():
    study = study_of(CoarseToFineSampler(32, seed=0))
    study.enqueue_trial({"x": 1e-3})
    study.optimize(bowl, n_trials=33)
    assert study.trials[0].params["x"] == 1e-3
    assert set(study.trials[0].params) == {"x", "y", "n", "kind"}
    assert sorted(points(study)) == list(range(32))


def test_conditional_parameters_keep_windows_of_their_own():
    def objective(trial):
        if trial.suggest_categorical("optimizer", ["sgd", "adam"]) == "sgd":
            return 1 + abs(trial.suggest_float("momentum", 0, 1) - 0.9)
        return abs(math.log10(trial.suggest_float("eps", 1e-9, 1e-3, log=True)) + 5)

    study = run_of(n=48, objective=objective)
    last = windows_by_round(study)[-1]
    assert last["optimizer"].choices == ("adam",)
    assert last["eps"].low < 1e-5 < last["eps"].high
    assert last["momentum"].high - last["momentum"].low == pytest.approx(0.5)  # shrunk once, while there was sgd
    assert study.best_value < 0.1


def test_points_stay_in_the_declared_ranges_so_that_other_samplers_can_go_on():
    study = run_of()
    other = optuna.create_study()
    other.add_trials(study.trials)  # raises for a value outside of its distribution
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tpe = optuna.samplers.TPESampler(seed=0, multivariate=True)
    space = tpe.infer_relative_search_space(study, study.trials[-1])
    assert set(space) == {"x", "y", "n", "kind"}


def test_trials_past_the_budget_go_on_around_the_best():
    study = run_of(n=32)
    study.optimize(bowl, n_trials=6)
    late = [p["y"] for slot, p in points(study).items() if slot >= 32]
    assert len(late) == 6
    assert all(abs(y - study.best_params["y"]) < 1 for y in late)


def test_given_first_window_is_a_hint_that_the_search_can_leave():
    def objective(trial):
        return abs(math.log10(trial.suggest_float("lr", 1e-6, 1, log=True)) + 1.5)

    study = run_of(n=64, objective=objective, windows={"lr": (1e-5, 1e-3)})
    coarse = [p["lr"] for slot, p in points(study).items() if slot < 32 and slot % 4 != 3]  # every fourth looks outside
    assert min(coarse) >= 1e-5 * 0.999
    assert max(coarse) <= 1e-3 * 1.001
    assert study.best_value < 0.2


def test_fine_rounds_find_more_than_the_coarse_one():
    """A search that ignored its windows would rarely pass this."""
    better = 0
    for seed in range(5):
        study = run_of(seed=seed)
        best_coarse = min(t.value for t in study.trials[:16])
        better += min(t.value for t in study.trials[16:]) < best_coarse / 2
    assert better >= 4


# Dead workers.


def die(path, at, sig):
    def objective(trial):
        value = bowl(trial)
        if trial.number >= at:
            os.kill(os.getpid(), sig)
            time.sleep(60)
        return value

    work(path, 32, objective)


@pytest.mark.parametrize("at", [4, 18])
def test_killed_workers_trial_is_run_again(at, tmp_path, alone):
    process = get_context("fork").Process(target=die, args=(tmp_path / "j", at, signal.SIGKILL))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    work(tmp_path / "j", 32 - at)
    study = study_of(None, journal(tmp_path / "j"))
    assert [t.state for t in study.trials].count(TrialState.FAIL) == 1
    assert points(study) == alone


def test_worker_that_waits_for_a_round_takes_over_what_a_dead_one_left(tmp_path, alone):
    """The survivor already waits at the end of the round when the other one dies."""
    context = get_context("fork")
    other = context.Process(target=die, args=(tmp_path / "j", 7, signal.SIGSTOP))
    other.start()
    survivor = context.Process(target=work, args=(tmp_path / "j", 25))
    while sum(t.state == TrialState.COMPLETE for t in study_of(None, journal(tmp_path / "j")).trials) < 7:
        time.sleep(0.05)
    survivor.start()
    while len(study_of(None, journal(tmp_path / "j")).trials) < 17:  # 7 done, 1 stopped, 8 by the survivor, 1 waiting
        time.sleep(0.05)
    time.sleep(0.2)
    assert survivor.is_alive()
    os.kill(other.pid, signal.SIGKILL)
    other.join()
    survivor.join(60)
    assert survivor.exitcode == 0
    assert points(study_of(None, journal(tmp_path / "j"))) == alone


def pretend_to_be_elsewhere(study, trial):
    key = "lightning_tricks:coarse_to_fine:worker"
    worker = study._storage.get_trial_system_attrs(trial._trial_id)[key]
    study._storage.set_trial_system_attr(trial._trial_id, key, {**worker, "host": "another machine"})


def test_worker_of_another_machine_is_dead_when_its_pulse_stops(tmp_path, alone):
    lost_sampler = CoarseToFineSampler(32, seed=0, grace=1.0)
    lost_study = study_of(lost_sampler, journal(tmp_path / "j"))
    lost = lost_study.ask()
    pretend_to_be_elsewhere(lost_study, lost)
    with ThreadPoolExecutor(1) as pool:
        survivor = pool.submit(work, tmp_path / "j", 32, grace=1.0)
        time.sleep(1.8)
        assert not survivor.done(), "a living pulse was taken for dead"
        lost_sampler._pulse.stop(lost._trial_id)
        survivor.result(60)
    study = study_of(None, journal(tmp_path / "j"))
    assert study.trials[0].state == TrialState.FAIL
    assert points(study) == alone


def test_slot_whose_workers_always_die_is_given_up(tmp_path):
    for _ in range(3):
        process = get_context("fork").Process(target=die, args=(tmp_path / "j", 0, signal.SIGKILL))
        process.start()
        process.join(60)
    work(tmp_path / "j", 31)
    study = study_of(None, journal(tmp_path / "j"))
    assert sorted(points(study)) == list(range(1, 32))


def fail_and_queue_again(study, trial):
    """Do what Optuna's storages with a heartbeat do."""
    study.tell(trial, state=TrialState.FAIL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        optuna.storages.RetryHeartbeatStaleTrialCallback()(study, study.trials[trial.number])


def test_optunas_own_retry_keeps_its_slot(alone):
    study = study_of(CoarseToFineSampler(32, seed=0))
    trial = study.ask()
    bowl(trial)
    fail_and_queue_again(study, trial)
    study.optimize(bowl, n_trials=32)
    assert study.trials[1].params == alone[0]
    assert points(study) == alone


def test_optunas_own_retry_is_taken_by_whoever_waits(tmp_path, alone):
    """A waiting worker never looks into Optuna's queue again."""
    study = study_of(CoarseToFineSampler(32, seed=0), journal(tmp_path / "j"))
    trials = [study.ask() for _ in range(16)]
    values = [bowl(t) for t in trials]
    for trial, value in list(zip(trials, values, strict=True))[2:]:
        study.tell(trial, value)
    with ThreadPoolExecutor(1) as pool:
        survivor = pool.submit(work, tmp_path / "j", 17)
        while len(study.trials) < 17:
            time.sleep(0.02)
        fail_and_queue_again(study, trials[0])
        study.tell(trials[1], values[1])
        survivor.result(60)
    assert points(study) == alone


# Asking for several trials at once.


def test_waiting_for_oneself_is_refused():
    study = study_of(CoarseToFineSampler(32, seed=0))
    asked = [study.ask() for _ in range(16)]
    assert study.sampler.would_wait(study)
    with pytest.raises(UserInputError, match=r"this same thread asked for .* wait=False"):
        study.ask()
    for trial in asked:
        study.tell(trial, bowl(trial))
    assert not study.sampler.would_wait(study)
    study.optimize(bowl, n_trials=16)
    assert sorted(points(study)) == list(range(32))


def test_without_waiting_all_can_be_asked_at_once():
    study = study_of(CoarseToFineSampler(32, seed=0, wait=False))
    trials = [study.ask() for _ in range(32)]
    for trial in trials:
        study.tell(trial, bowl(trial))
    assert sorted(points(study)) == list(range(32))


def test_interrupt_while_waiting_leaves_nothing_behind(monkeypatch):
    study = study_of(CoarseToFineSampler(32, seed=0))
    first = [study.ask() for _ in range(16)]

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(CoarseToFineSampler, "_refuse_to_wait_for_oneself", interrupted)
    with pytest.raises(KeyboardInterrupt):
        study.ask()
    monkeypatch.undo()
    for trial in first:
        study.tell(trial, bowl(trial))
    study.optimize(bowl, n_trials=16)
    assert sorted(points(study)) == list(range(32))


# Bad input.


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"n_trials": 0}, "n_trials must be in"),
        ({"n_trials": 32, "coarse": 0}, "coarse must be in"),
        ({"n_trials": 32, "shrink": 1.5}, "shrink must be in"),
        ({"n_trials": 32, "margin": 0.5}, "margin must be in"),
        ({"n_trials": 32, "rounds": -1}, "rounds must be in"),
        ({"n_trials": 32, "seed": 0.5}, "seed must be a whole number or None"),
        ({"n_trials": 32, "windows": {"lr": (1, 0.1)}}, "the window of 'lr' must be"),
    ],
)
def test_bad_settings_are_said_at_construction(options, sentence):
    with pytest.raises(UserInputError, match=sentence):
        CoarseToFineSampler(**options)


def test_window_outside_of_the_limits_is_refused():
    with pytest.raises(UserInputError, match="must lie inside of the declared limits"):
        run_of(objective=lambda trial: trial.suggest_float("x", 0, 1), windows={"x": (0.5, 2)})


def test_other_settings_and_several_objectives_are_refused(tmp_path):
    work(tmp_path / "j", 2)
    with pytest.raises(UserInputError, match=r"n_trials=32 \(now 64\)"):
        study_of(CoarseToFineSampler(64, seed=0), journal(tmp_path / "j")).optimize(bowl, n_trials=1)
    study = optuna.create_study(directions=["minimize", "minimize"], sampler=CoarseToFineSampler(32))
    with pytest.raises(UserInputError, match="one objective"):
        study.ask()


# Words.


def test_explain_names_windows_and_narrow_limits():
    study = run_of(n=64, objective=lambda trial: trial.suggest_float("lr", 1e-4, 1e-1, log=True))
    text = explain(study)
    assert "Coarse round: 32 of 32 trials finished" in text
    assert text.count("Fine round") == 4
    assert "lr: 0.0001 to 0.1\n" in text
    assert "Warning: the best lr" in text
    assert "lower limit 0.0001" in text


def test_explain_names_the_choices_that_are_left():
    text = explain(run_of(n=64))
    assert "kind: a, b, c, d" in text
    assert re.search(r"kind: (?!a, b, c, d)[abcd](, [abcd])* \(", text), "fewer later on, and why"


def test_explain_is_silent_about_a_best_inside_and_about_few_values():
    def objective(trial):
        return abs(trial.suggest_float("x", 0, 1) - 0.5) + trial.suggest_int("layers", 1, 4)

    assert "Warning" not in explain(run_of(objective=objective))


def test_explain_needs_a_coarse_to_fine_study():
    with pytest.raises(UserInputError, match="holds no coarse-to-fine search"):
        explain(optuna.create_study())


def test_it_is_a_sampler_of_optuna():
    assert issubclass(CoarseToFineSampler, optuna.samplers.BaseSampler)


# The parabola.


def bowl_of(dims, seed):
    rng = np.random.default_rng(seed)
    points, lowest = rng.uniform(-1.5, 1.5, (12 * dims + 12, dims)), rng.uniform(-0.7, 0.7, dims)
    return points, 3.0 + ((points - lowest) ** 2 * rng.uniform(0.5, 2, dims)).sum(axis=1), lowest


@pytest.mark.parametrize("dims", [1, 2, 3, 5])
def test_vertex_of_a_bowl_is_found(dims):
    bowls = [bowl_of(dims, seed) for seed in range(100)]
    off = [np.abs(vertex(points, losses) - lowest).mean() for points, losses, lowest in bowls]
    best = [np.abs(points[losses.argmin()] - lowest).mean() for points, losses, lowest in bowls]
    assert np.mean(off) < 0.1
    assert dims == 1 or np.mean(off) < 0.2 * np.mean(best), "no better than the best point"


@given(st.integers(1, 5), st.integers(0, 2**31))
def test_vertex_cares_neither_for_order_nor_for_the_losses_unit_and_finds_nothing_in_nothing(dims, seed):
    points, losses, _ = bowl_of(dims, seed)
    order = np.random.default_rng(seed).permutation(len(points))
    assert vertex(points[order], 5 * losses[order] - 1) == pytest.approx(vertex(points, losses), abs=1e-6)
    assert vertex(points, np.full(len(points), 2.0)).tolist() == [0.0] * dims


def test_vertex_of_a_slope_lies_at_its_foot_and_what_diverged_does_not_count_more():
    z = np.linspace(-1, 1, 9)[:, None]
    assert vertex(z, 10 * z[:, 0])[0] < -0.5
    tame = np.where(z[:, 0] > 0.6, 10.0, (z[:, 0] + 0.2) ** 2)
    wild = np.where(z[:, 0] > 0.6, 1e30, (z[:, 0] + 0.2) ** 2)
    assert vertex(z, tame) == pytest.approx(vertex(z, wild))


def test_vertex_is_that_of_a_ridge_regression():
    """Once more as least squares: the belief in a bowl as rows of its own, worth a hundredth of the points."""
    rng = np.random.default_rng(0)
    points = rng.uniform(-1, 1, (30, 2))
    losses = (points - [0.3, -0.2]) ** 2 @ [1.0, 0.5] + 0.1 * rng.normal(size=30)
    tame = np.minimum(losses, 3 * np.median(losses) - 2 * losses.min())
    belief = np.sqrt(0.01 * 30) * np.eye(5)[1:]
    design = np.concatenate([np.column_stack([np.ones(30), points, points**2]), belief])
    wanted = np.concatenate([(tame - tame.mean()) / tame.std(), belief @ [0, 0, 0, 0.5, 0.5]])
    _, a, b, aa, bb = np.linalg.lstsq(design, wanted, rcond=None)[0]
    assert vertex(points, losses) == pytest.approx([-a / (2 * aa), -b / (2 * bb)])


@pytest.mark.parametrize("sign", [1, -1])
def test_vertex_outside_is_pushed_to_the_edge_and_that_of_a_hill_is_its_lower_end(sign):
    z = np.linspace(-1, 1, 9)
    assert vertex(sign * z[:, None], (z - 3) ** 2).tolist() == [sign]
    assert vertex(sign * z[:, None], -((z - 0.2) ** 2)).tolist() == [-sign]


def test_fine_windows_centre_between_the_best_points_and_the_parabola():
    """Worked out once more, by hand, from what the first round found."""
    study = run_of(n=16, rounds=1, objective=lambda trial: (trial.suggest_float("x", 0, 1) - 0.3) ** 2)
    first = sorted(study.trials[:8], key=lambda t: t.value)
    x = np.array([t.params["x"] for t in first])
    mean = float(np.dot([0.4, 0.3, 0.2, 0.1], x[:4]))
    lowest = 0.5 + 0.5 * vertex(2 * x[:, None] - 1, np.array([t.value for t in first]))[0]
    window = windows_by_round(study)[1]["x"]
    assert (window.low + window.high) / 2 == pytest.approx(max((mean + lowest) / 2, 0.25))


# Optuna's own samplers, made anew for each trial.


def test_trials_are_seeded_by_their_number_without_those_that_died():
    study = optuna.create_study()
    study.tell(study.ask(), 1.0)
    refused, _died, _died_too, running, _later = (study.ask() for _ in range(5))
    refused.set_user_attr("reason", "out of memory")
    for number in (1, 2, 3):
        study.tell(number, state=TrialState.FAIL)
    seeds = []
    sampler = ReseededSampler(lambda seed: seeds.append(seed) or mock.Mock(), seed=1)
    trial = study.trials[running.number]
    sampler.before_trial(study, trial)
    assert seeds[-1] == derive_seed(1, "trial", 2) % 2**32
    sampler.sampler.before_trial.assert_called_once_with(study, trial)


@pytest.mark.parametrize(
    ("question", "rest"),
    [
        ("infer_relative_search_space", ()),
        ("sample_relative", ({"x": FloatDistribution(0, 1)},)),
        ("sample_independent", ("x", FloatDistribution(0, 1))),
        ("after_trial", (TrialState.COMPLETE, [1.0])),
    ],
)
def test_the_trials_own_sampler_answers(question, rest):
    study = optuna.create_study()
    study.ask()
    sampler = ReseededSampler(lambda seed: mock.Mock(), seed=0)
    answer = getattr(sampler, question)(study, study.trials[0], *rest)
    asked = getattr(sampler.sampler, question)
    asked.assert_called_once_with(study, study.trials[0], *rest)
    assert answer is (None if question == "after_trial" else asked.return_value)
