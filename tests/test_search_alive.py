"""Signs of life: dead workers' trainings are found and run again, living ones are left alone."""

import json
import time

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import TrialState
from search_nets import Tiny, find

from lightning_tricks.tune._alive import Watch, beat, read_beat, this_worker
from lightning_tricks.tune._claim import Claim
from lightning_tricks.tune._study import RUN, WORKER, journal, repair

optuna.logging.set_verbosity(optuna.logging.ERROR)
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
