"""Signs of life: dead workers' trainings are found and run again, living ones are left alone."""

import json
import os
import time
from multiprocessing import get_context
from pathlib import Path
from threading import Event
from types import SimpleNamespace

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import TrialState
from search_nets import SPACE, Slope, Tiny, find

from lightning_tricks.tune import SlotGridSampler, SlotRandomSampler
from lightning_tricks.tune.execution._claim import Claim
from lightning_tricks.tune.execution._heartbeat import Pulse, Watch, beat, is_dead_here, read_beat, this_worker
from lightning_tricks.tune.execution._loop import ProcessRunner
from lightning_tricks.tune.execution._processes import SharedJobs
from lightning_tricks.tune.execution._stack_job import StackJob
from lightning_tricks.tune.execution._stack_loop import StackRunner
from lightning_tricks.tune.execution._study import RUN, WORKER, _take_over, journal, repair
from lightning_tricks.tune.execution._trial import Job
from lightning_tricks.tune.execution._trials import SharedTrials
from lightning_tricks.tune.samplers._methods import Chosen, choose

optuna.logging.set_verbosity(optuna.logging.ERROR)
LR = {"lr": optuna.distributions.FloatDistribution(1e-3, 1.0, log=True)}
ELSEWHERE = {"host": "another machine", "pid": 1, "started": "1"}


def lost_trial(folder, method):
    """Leave a study with one finished trial and one that a worker of another machine has begun."""
    find(data=Tiny, trials=1, folder=folder, method=method)
    study = optuna.load_study(study_name="s", storage=journal(folder / "journal.log"))
    trial = study.ask({"lr": optuna.distributions.FloatDistribution(1e-3, 1.0, log=True)})
    trial.set_user_attr(RUN, "run-009")
    trial.set_user_attr(WORKER, ELSEWHERE)
    beat(folder / "run-009", 1)
    return study


def test_stale_heartbeat_queues_the_trial_again_and_a_living_one_does_not(tmp_path):
    study = lost_trial(tmp_path / "s", "tpe")
    sampler, watch = optuna.samplers.RandomSampler(), Watch(0.3)
    for count in range(2, 6):
        beat(tmp_path / "s" / "run-009", count)
        repair(study, sampler, tmp_path / "s", watch)
        time.sleep(0.15)
    assert study.trials[1].state == TrialState.RUNNING
    time.sleep(0.35)
    repair(study, sampler, tmp_path / "s", watch)
    assert [t.state.name for t in study.trials] == ["COMPLETE", "FAIL", "WAITING"]
    assert study.trials[2].system_attrs["fixed_params"] == study.trials[1].params
    assert study.trials[2].user_attrs[RUN] == "run-009"


def test_trial_that_kills_its_workers_is_given_up(tmp_path):
    study = lost_trial(tmp_path / "s", "tpe")
    for _ in range(3):
        watch = Watch(0.0)
        for _ in range(2):
            repair(study, study.sampler, tmp_path / "s", watch)
            time.sleep(0.01)
        trial = study.ask()
        trial.set_user_attr(WORKER, ELSEWHERE)
    assert [t.user_attrs["reason"] for t in study.trials if "reason" in t.user_attrs] == ["3 workers died with it"]


@pytest.mark.parametrize("method", ["tpe", "random"])
def test_search_waits_for_another_machine_and_takes_over_when_it_dies(method, tmp_path):
    study = lost_trial(tmp_path / "s", method)
    result = find(data=Tiny, trials=3, folder=tmp_path / "s", method=method, grace=0.5)
    states = [t.state.name for t in result.study.trials]
    assert states.count("COMPLETE") == 3
    assert states[1] == "FAIL"
    if method == "tpe":
        again = next(t for t in result.study.trials if t.user_attrs.get(RUN) == "run-009" and t.state.is_finished())
        assert again.params["lr"] == study.trials[1].params["lr"]


def test_worker_that_was_taken_for_dead_lets_go(tmp_path):
    """A laptop that slept: somebody else has failed its trial, and it must neither crash nor tell a second result."""
    from lightning.pytorch import Callback

    class Usurper(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == 1 and not (tmp_path / "done").exists():
                (tmp_path / "done").touch()
                study = optuna.load_study(study_name="s", storage=journal(tmp_path / "s" / "journal.log"))
                study.tell(0, state=TrialState.FAIL)

    with pytest.warns(UserWarning, match="trial 0 was taken over by another worker"):
        result = find(
            trials=2,
            folder=tmp_path / "s",
            method=optuna.samplers.RandomSampler(seed=0),
            trainer={"max_epochs": 3, "accelerator": "cpu"},
            callbacks=lambda: [Usurper()],
        )
    assert [t.state.name for t in result.study.trials] == ["FAIL", "COMPLETE", "COMPLETE"]


# Claims.


def test_only_one_of_two_gets_a_folder_and_a_dead_holder_loses_it(tmp_path):
    first, second = Claim(tmp_path / "a", Watch(9)), Claim(tmp_path / "a", Watch(9))
    assert first.take()
    assert not second.take()
    first.release()
    assert second.take()
    (tmp_path / "a" / "claim").write_text(json.dumps({**this_worker(), "started": "long ago"}))
    assert first.take()
    assert json.loads((tmp_path / "a" / "claim").read_text()) == this_worker()


def test_holder_elsewhere_lives_as_long_as_its_heart_beats(tmp_path):
    folder, watch = tmp_path / "a", Watch(0.2)
    folder.mkdir()
    (folder / "claim").write_text(json.dumps(ELSEWHERE))
    for count in range(4):
        beat(folder, count)
        assert not Claim(folder, watch).take()
        time.sleep(0.1)
    time.sleep(0.25)
    assert Claim(folder, watch).take()
    assert [path.name for path in folder.iterdir() if path.name.startswith("claim")] == ["claim"]


def test_two_searches_share_what_is_trained_again(tmp_path):
    from multiprocessing import get_context

    options = {"trials": 2, "retrain": 2, "retrain_seeds": 2, "test": False, "folder": tmp_path / "s", "data": Tiny}
    other = get_context("fork").Process(target=find, kwargs=options)
    other.start()
    result = find(**options)
    other.join(60)
    assert [len(r.values) for r in result.retrained] == [2, 2]
    logs = [len(list(folder.glob("log-*"))) for folder in (tmp_path / "s" / "again").iterdir()]
    assert logs == [1] * 4, "a training was run twice"


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**9))
def test_beats_are_read_back(tmp_path_factory, count):
    folder = tmp_path_factory.mktemp("beat")
    assert read_beat(folder / "none") is None
    beat(folder, count)
    assert read_beat(folder).split()[-1] == str(count)


def test_claim_that_is_half_written_is_left_alone_until_it_is_old(tmp_path):
    (tmp_path / "claim").write_text('{"host": "a mach')
    assert not Claim(tmp_path, Watch(100.0)).take()
    old = Claim(tmp_path, Watch(0.0))
    assert any(old.take() for _ in range(3))
    assert json.loads((tmp_path / "claim").read_text()) == this_worker()


def test_a_dead_claim_that_somebody_else_was_faster_with_stays_theirs(tmp_path):
    claim, dead, living = Claim(tmp_path, Watch(9)), {**this_worker(), "started": "long ago"}, this_worker()
    claim._withdraw(dead)
    assert list(tmp_path.iterdir()) == []
    claim.path.write_text(json.dumps(living))
    claim._withdraw(dead)
    assert [path.name for path in tmp_path.iterdir()] == ["claim"]
    assert json.loads(claim.path.read_text()) == living


def test_processes_of_this_machine_are_looked_up_with_and_without_proc(monkeypatch):
    gone = get_context("fork").Process(target=int)
    gone.start()
    gone.join()
    for proc in (True, False):
        if not proc:  # as on macOS
            monkeypatch.setattr(Path, "readlink", raises(OSError))
            monkeypatch.setattr(Path, "read_text", raises(OSError))
        me = this_worker()
        assert (me["started"] is None) is not proc
        assert is_dead_here(me) is False
        assert is_dead_here({**me, "pid": gone.pid}) is True
        assert is_dead_here({**me, "host": "another machine"}) is None
    monkeypatch.setattr(os, "kill", raises(PermissionError))  # somebody else's process: there is one
    assert is_dead_here(me) is False


def raises(error):
    def function(*_, **__):
        raise error

    return function


def test_a_beat_that_fails_is_the_last():
    pulse, counts, beaten = Pulse(0.002), [], Event()

    def fails(count):
        counts.append(count)
        raise OSError("the storage is away")

    pulse.start(1, fails)
    thread = pulse._thread
    thread.join(10)
    assert not thread.is_alive()
    assert counts == [1]
    pulse.start(2, lambda _: beaten.set())
    assert beaten.wait(10), "other trials beat on"
    pulse.stop(2)


def test_a_slot_of_a_dead_worker_is_free_again_and_nothing_is_queued(tmp_path):
    sampler = SlotRandomSampler(seed=0, grace=1000)
    study = optuna.create_study(study_name="s", storage=journal(tmp_path / "journal.log"), sampler=sampler)
    trial = study.ask(LR)
    key = f"{sampler.prefix}:worker"
    worker = study.trials[0].system_attrs[key]
    study._storage.set_trial_system_attr(trial._trial_id, key, {**worker, "host": "another machine"})
    trial.set_user_attr(WORKER, ELSEWHERE)
    watch = Watch(0.0)
    for _ in range(3):
        repair(study, sampler, tmp_path, watch)
    assert [t.state.name for t in study.trials] == ["FAIL"]
    assert study.ask(LR).params == trial.params
    sampler._pulse.stop(trial._trial_id)


def test_an_enqueued_trial_of_a_dead_worker_waits_again_but_not_for_ever(tmp_path):
    sampler = SlotRandomSampler(seed=0)
    study = optuna.create_study(study_name="s", storage=journal(tmp_path / "journal.log"), sampler=sampler)
    study.enqueue_trial({"lr": 0.25})
    for _ in range(3):
        trial = study.ask(LR)
        assert trial.params == {"lr": 0.25}
        dead = {**this_worker(), "started": "long ago", "trial": trial.number}
        study._storage.set_trial_system_attr(trial._trial_id, f"{sampler.prefix}:worker", dead)
        assert sampler.repair(study)
        assert not sampler.repair(study)
    assert [t.state.name for t in study.trials] == ["FAIL"] * 3


def test_what_another_worker_has_finished_is_neither_failed_nor_queued(tmp_path):
    study = optuna.create_study(study_name="s", storage=journal(tmp_path / "journal.log"))
    trial = study.ask(LR)
    before = study.trials[0]
    study.tell(trial, 1.0)
    _take_over(study, before)
    assert not SlotRandomSampler(seed=0)._fail(study, before)
    assert [t.state.name for t in study.trials] == ["COMPLETE"]


# Searches without processes: what a worker does when it is interrupted, overtaken, or comes late.


class FakeRun:
    """A training that ends when it is looked at: by a result, or by what is done then."""

    def __init__(self, job, at_work):
        self.job, self.at_work, self.killed = job, at_work, False

    def poll(self):
        self.at_work(self.job)
        return {"status": "complete", "value": self.job.params["lr"]}

    def kill(self):
        self.killed = True


class FakeStack(FakeRun):
    def poll(self):
        for trial in self.job.trials:
            self.at_work(trial)
        results = [{"status": "complete", "value": trial.params["lr"]} for trial in self.job.trials]
        return {"status": "complete", "results": results}


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Return a function that makes a runner, and all runs that were started."""
    begun = []

    def start(cls, job, at_work):
        begun.append(cls(job, at_work))
        return begun[-1]

    def make(runner, chosen, at_work=lambda job: None, **options):
        def run(job, place):
            return start(FakeStack if isinstance(job, StackJob) else FakeRun, job, at_work)

        job = Job(tmp_path, {}, Slope, Tiny(), "val_loss", "min", 0)
        pool = SimpleNamespace(job=job, workers=1, grace=120.0, run=run)
        name = options.pop("name", "s")
        study = optuna.create_study(study_name=name, storage=journal(tmp_path / f"{name}.log"), load_if_exists=True)
        options |= {"most": 2} if runner is StackRunner else {}
        return runner(SharedTrials(study, SPACE, chosen, pool, prune=False), progress=False, **options)

    monkeypatch.setattr("lightning_tricks.tune.execution._loop.pause", lambda runs: None)
    monkeypatch.setattr("lightning_tricks.tune.execution._stack_loop.pause", lambda runs: None)
    return make, begun


def outcome(runner):
    return [(t.state.name, t.params["lr"]) for t in runner.trials.study.trials if t.params]


RUNNERS = pytest.mark.parametrize("runner", [ProcessRunner, StackRunner])


@RUNNERS
@pytest.mark.parametrize("method", ["random", "tpe"])
def test_an_interrupted_search_gives_its_points_back(runner, method, fake, tmp_path):
    make, begun = fake

    def interrupt(job):
        if job.folder.name.endswith("1"):
            raise KeyboardInterrupt

    first = make(runner, choose(method, SPACE, trials=3, seed=0), interrupt)
    with pytest.raises(KeyboardInterrupt):
        first.run()
    assert begun[-1].killed
    assert (tmp_path / "runs.csv").exists()
    assert TrialState.RUNNING not in [t.state for t in first.trials.study.trials]
    more, alone = (make(runner, choose(method, SPACE, trials=3, seed=0), name=name) for name in ("s", "t"))
    more.run()
    alone.run()
    done = [lr for state, lr in outcome(more) if state == "COMPLETE"]
    assert len(done) == 3
    if method == "random":
        assert sorted(done) == sorted(lr for _, lr in outcome(alone))
    else:  # later points learn from what was there when they were asked for
        assert {lr for state, lr in outcome(more) if state == "FAIL"} <= set(done)


@RUNNERS
@pytest.mark.parametrize("method", ["random", "tpe"])
def test_an_interrupt_tells_of_itself_although_another_worker_took_the_trial_over(runner, method, fake, tmp_path):
    make, _ = fake

    def overtaken(job):
        study = optuna.load_study(study_name="s", storage=journal(tmp_path / "s.log"))
        study.tell(0, state=TrialState.FAIL)
        raise KeyboardInterrupt

    search = make(runner, choose(method, SPACE, trials=1, seed=0), overtaken)
    with pytest.raises(KeyboardInterrupt):
        search.run()
    assert [state for state, _ in outcome(search)] == ["FAIL"]


@RUNNERS
@pytest.mark.parametrize("method", ["random", "tpe"])
def test_an_enqueued_trial_that_was_interrupted_keeps_all_that_it_was_given(runner, method, fake):
    make, _ = fake
    search = make(runner, choose(method, SPACE, trials=2, seed=0))
    search.trials.study.enqueue_trial({"lr": 0.25, "start": 1.5})
    trial = search.trials.study.ask()
    trial.suggest_float("lr", 1e-3, 1.0, log=True)  # interrupted before it suggested the other
    search.trials.give_back(trial)
    search.run()
    assert {"lr": 0.25, "start": 1.5} in [t.params for t in search.trials.study.trials]


@RUNNERS
def test_the_end_of_a_grid_that_others_helped_with_is_the_end(runner, fake):
    make, _ = fake
    grid = SlotGridSampler({"lr": [0.1, 0.2, 0.3], "start": [1.0]}, seed=0)
    search = make(runner, Chosen("grid", "", grid, 9))
    search.run()
    assert sorted(outcome(search)) == [("COMPLETE", 0.1), ("COMPLETE", 0.2), ("COMPLETE", 0.3)]


def test_a_stack_holds_as_many_as_it_may_and_a_trial_that_was_taken_over_is_let_go(fake, tmp_path):
    make, begun = fake

    def overtaken(job):
        if job.folder.name == "run-001":
            study = optuna.load_study(study_name="s", storage=journal(tmp_path / "s.log"))
            study.tell(1, state=TrialState.FAIL)

    search = make(StackRunner, choose("random", SPACE, trials=3, seed=0), overtaken)
    with pytest.warns(UserWarning, match=r"trial 1 was taken over by another worker\."):
        search.run()
    assert [len(stack.job.trials) for stack in begun] == [2, 2]
    assert [state for state, _ in outcome(search)] == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]


def test_a_search_in_stacks_waits_for_what_others_train(fake, monkeypatch):
    make, begun = fake
    search = make(StackRunner, choose("tpe", SPACE, trials=1, seed=0))
    other = search.trials.study.ask({"lr": optuna.distributions.FloatDistribution(1e-3, 1.0, log=True)})
    other.set_user_attr(WORKER, this_worker())
    monkeypatch.setattr(
        "lightning_tricks.tune.execution._stack_loop.pause", lambda runs: search.trials.study.tell(other, 0.5)
    )
    search.run()
    assert begun == []
    assert [t.value for t in search.trials.study.trials] == [0.5]


def test_trainings_again_end_with_the_search(fake, tmp_path):
    """An interrupt kills them and gives up the claims."""
    _, begun = fake
    job = Job(tmp_path / "again", {"lr": 0.1}, Slope, Tiny(), "val_loss", "min", 0)

    def run(job, place):
        begun.append(FakeRun(job, raises(KeyboardInterrupt)))
        begun[-1].process = SimpleNamespace(sentinel=os.pipe()[0])
        return begun[-1]

    with pytest.raises(KeyboardInterrupt):
        SharedJobs(SimpleNamespace(job=job, workers=1, grace=120.0, run=run), [job]).results()
    assert [run.killed for run in begun] == [True]
    assert not (tmp_path / "again" / "claim").exists()
