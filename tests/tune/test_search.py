"""Searches end to end: on small nets, in real processes, killed and resumed."""

import csv
import json
import os
import time
from multiprocessing import get_context

import optuna
import pytest
import torch
import yaml
from lightning.pytorch import Callback
from optuna.trial import TrialState
from search_nets import Once, Slope, Tiny, expected, find, kill_self

import lightning_tricks as lt
from lightning_tricks._base import UserInputError, isolated_rng
from lightning_tricks.tune import CoarseToFineSampler, _search
from lightning_tricks.tune._space import space_of
from lightning_tricks.tune.execution import _processes as _pool
from lightning_tricks.tune.execution import _stack_job
from lightning_tricks.tune.execution import _trial as _trial_process
from lightning_tricks.tune.execution._processes import share_of_gpus
from lightning_tricks.tune.execution._study import RUN, journal
from lightning_tricks.tune.execution._trial import Job
from lightning_tricks.tune.reporting._run_table import ordered
from lightning_tricks.tune.samplers._methods import choose

optuna.logging.set_verbosity(optuna.logging.ERROR)


def test_values_are_those_of_the_trainings_and_everything_is_written_down(tmp_path):
    result = find(folder=tmp_path / "s", workers=2)
    assert result.best_value == min(t.value for t in result.study.trials)
    assert [row["status"] for row in result.runs] == ["complete"] * 4
    for row in result.runs:
        lr, start = float(row["lr"]), float(row["start"])
        best = min(expected(lr, start, 2), expected(lr, start, 4))
        assert float(row["value"]) == pytest.approx(best, rel=1e-3)
        settings = yaml.safe_load((tmp_path / "s" / row["run"] / "hparams.yaml").read_text())
        assert settings["params"] == {"lr": lr, "start": start}
        assert settings["result"]["value"] == float(row["value"])
        assert settings["versions"]["optuna"] == optuna.__version__
        assert settings["seed"] == 0
        assert (tmp_path / "s" / row["run"] / "checkpoints" / "best.ckpt").exists()


def test_best_value_of_the_run_counts_not_the_last(tmp_path):
    """A learning rate above 1 diverges: the first validation is the best one."""
    result = find(space={"lr": lt.Float(1.2, 1.3)}, trials=1, folder=tmp_path / "s", trainer={"max_epochs": 3})
    lr = result.best_params["lr"]
    assert result.best_value == pytest.approx(expected(lr, 1, 2), rel=1e-3)
    assert result.runs[0]["best_epoch"] == "0"


def test_method_and_reason_are_said(tmp_path):
    grid = find(space={"lr": lt.Choice([0.1, 0.2])}, method="auto", folder=tmp_path / "a")
    assert grid.method == "grid"
    assert "2 points" in grid.reason
    assert len(grid.runs) == 2
    fine = find(method="auto", trials=3, folder=tmp_path / "b")
    assert fine.method == "coarse_to_fine"
    assert "Coarse round: 3 of 3" in fine.explain()


@pytest.mark.parametrize("method", ["tpe", "gp", optuna.samplers.RandomSampler(seed=0)])
def test_other_methods_run(method, tmp_path):
    result = find(method=method, trials=3, folder=tmp_path / "s", trainer={"max_epochs": 1, "accelerator": "cpu"})
    assert len({row["lr"] for row in result.runs}) == 3
    assert "round" not in result.explain()


@pytest.mark.parametrize("method", ["coarse+gp", CoarseToFineSampler(3, seed=0)])
def test_explain_tells_the_windows_of_every_coarse_to_fine_search(method, tmp_path):
    result = find(method=method, trials=3, folder=tmp_path / "s", trainer={"max_epochs": 1, "accelerator": "cpu"})
    assert len({row["lr"] for row in result.runs}) == 3
    assert "Coarse round: 3 of 3 trials finished" in result.explain()
    assert "\n  lr: 0.001 to 1" in result.explain()


def test_space_may_be_a_function_or_a_file_and_data_may_take_hyperparameters(tmp_path):
    def conditional(trial):
        lr = trial.suggest_float("log_lr", -3, -1)
        return {"lr": 10**lr, "batch_size": trial.suggest_categorical("batch_size", [2, 8])}

    result = find(space=conditional, data=Tiny, folder=tmp_path / "f", trials=2)
    assert set(result.best_params) == {"lr", "batch_size"}
    (tmp_path / "space.yaml").write_text("lr: {low: 1e-3, high: 1e-1, log: true}\nbatch_size: [2, 8]\n")
    result = find(space=tmp_path / "space.yaml", data=Tiny, folder=tmp_path / "y", trials=2)
    for row in result.runs:
        steps = 2 * 8 // int(row["batch_size"])
        assert float(row["value"]) == pytest.approx(expected(float(row["lr"]), 1, steps), rel=1e-3)


# Failures.


def test_failed_trials_are_recorded_and_the_search_goes_on(tmp_path):
    space = {"bad": lt.Choice(["none", "memory", "nan"])}
    result = find(space=space, method="grid", folder=tmp_path / "s")
    reasons = {row["bad"]: (row["status"], row["reason"]) for row in result.runs}
    assert reasons["none"] == ("complete", "")
    assert reasons["nan"] == ("failed", "val_loss was never finite")
    assert reasons["memory"][0] == "failed"
    assert reasons["memory"][1].startswith("out of memory")
    run = next(row["run"] for row in result.runs if row["bad"] == "memory")
    assert "Traceback" in (tmp_path / "s" / run / "log.txt").read_text()
    assert result.best_params == {"bad": "none"}


def test_three_failures_in_a_row_stop_the_search_and_nothing_is_lost(tmp_path):
    with pytest.raises(UserInputError, match=r"3 trials in a row failed, the last with: out of memory"):
        find(space={"lr": lt.Float(0, 1), "bad": lt.Choice(["memory"])}, trials=9, folder=tmp_path / "s")
    with (tmp_path / "s" / "runs.csv").open() as file:
        assert [row["status"] for row in csv.DictReader(file)] == ["failed"] * 3


def test_metric_that_is_never_logged_stops_at_once_and_names_those_that_are(tmp_path):
    with pytest.raises(UserInputError, match=r"monitors 'val_acc', but that metric was not logged.*val_loss"):
        find(monitor="val_acc", trials=9, folder=tmp_path / "s")
    with (tmp_path / "s" / "runs.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 1


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"space": {}}, "at least one hyperparameter"),
        ({"space": {"lr": [1, 2]}}, "'lr' must be a Float, an Int or a Choice"),
        ({"method": "best"}, "method must be one of"),
        ({"method": optuna.samplers.GridSampler({"lr": [1]})}, "Give method='grid'"),
        ({"trials": 0}, "trials must be in"),
        ({"prune": "often"}, "prune must be 'asha', 'median'"),
        ({"space": {"width": lt.Int(1, 3)}}, "has an argument 'width'"),
        ({"storage": "postgresql://nobody@127.0.0.1:1/x"}, "the storage .* cannot be used"),
        ({"space": {f"x{i}": lt.Choice([1, 2]) for i in range(9)}, "method": "grid"}, "the grid has 512 points"),
    ],
)
def test_bad_input_gets_a_sentence(options, sentence, tmp_path):
    with pytest.raises(UserInputError, match=sentence):
        find(folder=tmp_path / "s", **options)


@pytest.mark.parametrize("name", ["callbacks", "logger", "default_root_dir"])
def test_what_each_training_has_of_its_own_is_refused_before_anything_is_written(name, tmp_path):
    with pytest.raises(UserInputError, match=f"each training has {name} of its own: pass .* not trainer_kw.*'{name}'"):
        find(folder=tmp_path / "s", trainer={name: False})
    assert not (tmp_path / "s").exists()


@pytest.mark.filterwarnings("ignore:Choices for a categorical distribution should be")
def test_options_of_a_choice_may_be_tuples(tmp_path):
    space = {"start": lt.Choice([(1,), (2, 3)])}
    options = {"method": "grid", "trials": 2, "folder": tmp_path / "s"}
    result = find(space=space, make_model=lambda start: Slope(start=sum(start)), **options)
    assert sorted(row["start"] for row in result.runs) == ["[1]", "[2, 3]"]


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: lt.Float(1, 0), "low must be below high"),
        (lambda: lt.Float(0, 1, log=True), "low on a logarithmic scale must be in"),
        (lambda: lt.Float(0, 1, step=0), "step must be in"),
        (lambda: lt.Float(1, 2, log=True, step=0.1), "step cannot be combined with log"),
        (lambda: lt.Float(0, 1, window=(0.5, 2)), "window must be"),
        (lambda: lt.Int(0.5, 3), "whole numbers"),
        (lambda: lt.Choice([]), "at least one option"),
        (lambda: lt.Choice(["a", "a"]), "different options"),
    ],
)
def test_contradictory_limits_are_refused(make, sentence):
    with pytest.raises(UserInputError, match=sentence):
        make()


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([1, 2], r"the space must be a mapping of names, but holds \[1, 2\]"),
        ({"lr": {"low": "small", "high": 1}}, "'lr' needs numbers, but got 'small'"),
        ({"lr": {"low": 0, "high": None}}, "'lr' needs numbers, but got None"),
    ],
)
def test_bad_entries_of_a_file_get_a_sentence(entries, message):
    with pytest.raises(UserInputError, match=message):
        space_of(entries, "the space")


def test_values_of_a_grid_keep_to_the_steps_and_the_limits():
    assert lt.Float(0, 0.3, step=0.1).values(9) == [0.0, 0.1, 0.2, 0.3]
    assert lt.Float(1, 9).values(1) == [5.0]
    assert lt.Float(1e-3, 1e-1, log=True).values(1) == [pytest.approx(1e-2)]
    window = space_of({"lr": {"low": "1e-5", "high": 1, "window": ["1e-3", 0.1]}}, "the space")["lr"].window
    assert window == (1e-3, 0.1)


def test_a_method_is_recommended_by_space_and_budget():
    choice, number = lt.Choice([1, 2, 3]), lt.Float(0, 1)
    assert choose("auto", {"a": choice, "b": choice}, trials=9, seed=0).name == "grid"
    few = choose("auto", {"a": choice, "b": choice}, trials=8, seed=0)
    assert few.name == "coarse_to_fine"
    assert "gp" not in few.reason
    assert (
        "with 30 or more trials one after another, method='gp'"
        in choose("auto", {"a": number}, trials=30, seed=0).reason
    )
    grid = choose("grid", {"a": choice, "b": number, "c": number}, trials=30, seed=0)
    assert grid.trials == 3 * 3 * 3, "as many values of each number as fit"
    with pytest.raises(UserInputError, match="needs a dict of hyperparameters, but got a function of the trial"):
        choose("grid", lambda trial: {}, trials=9, seed=0)


def job_of(folder, **options):
    settings = {"make_model": Slope, "data": Tiny(), "monitor": "val_loss", "mode": "min", "seed": 0}
    return Job(**{"folder": folder, "params": {}, "trainer": {"accelerator": "cpu"}, **settings, **options})


def test_a_training_that_cannot_give_a_value_says_why(tmp_path):
    quiet = {"accelerator": "cpu", "max_epochs": 0}
    with isolated_rng(seed=0), pytest.raises(UserInputError, match="no validation was run, so there is no 'val_loss'"):
        _trial_process._train(job_of(tmp_path, trainer=quiet))
    with pytest.raises(UserInputError, match="folds need a DataModule of this package"):
        _trial_process._cross_validate(job_of(tmp_path), 2)
    with pytest.raises(UserInputError, match="must return a LightningModule, but returned Linear"):
        _trial_process._made(job_of(tmp_path, make_model=lambda: torch.nn.Linear(1, 1)))
    with pytest.raises(UserInputError, match="this strategy starts your whole script again for every rank"):
        _trial_process._trainer(job_of(tmp_path, trainer={"accelerator": "cpu", "devices": 2, "strategy": "ddp"}), [])
    assert _trial_process.reason_of(KeyError("x")) == "KeyError: 'x'"
    assert _trial_process.reason_of(MemoryError()).startswith("out of memory (MemoryError")


def test_a_stack_that_cannot_give_values_says_why(tmp_path):
    job = job_of(tmp_path, trainer={"accelerator": "cpu", "max_epochs": 0})
    stack = _stack_job.stack_of([job], job)
    with isolated_rng(seed=0):
        with pytest.raises(UserInputError, match="no validation was run, so there is no 'val_loss'"):
            _stack_job._train(stack)
        with pytest.raises(UserInputError, match="folds need a DataModule of this package"):
            _stack_job._cross_validate(stack, 2)
        wrong = _stack_job.stack_of([job_of(tmp_path, make_model=lambda: torch.nn.Linear(1, 1))], job)
        (result,) = _stack_job._train(wrong)
    assert (result["status"], result["hopeless"]) == ("failed", True)
    assert result["reason"] == "make_model must return a LightningModule, but returned Linear."


def test_folds_of_a_stack_are_put_together():
    assert _stack_job._mean([{"value": 1.0}, {"value": 2.0}], "val_loss")["value"] == 1.5
    failed = {"status": "failed", "reason": "out of memory"}
    assert _stack_job._mean([{"value": 1.0}, failed], "val_loss") is failed
    result = _stack_job._mean([{"value": 1.0}, {"value": float("nan")}], "val_loss")
    assert result == {"status": "failed", "reason": "val_loss was not finite in every fold"}


def test_a_stack_that_had_ended_is_not_trained_again_and_gpus_are_given(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    job = job_of(tmp_path, gpus="0,2", threads=torch.get_num_threads())
    stack = _stack_job.stack_of([job], job)
    stack.folder.mkdir(parents=True)
    _trial_process.write_json(_trial_process.result_file(stack), {"status": "complete", "results": [1]})
    _pool.run_in_process(stack)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0,2"
    assert _pool.read_result(stack) == {"status": "complete", "results": [1]}
    assert not (stack.folder / "log.txt").exists()
    seen = []
    monkeypatch.setattr(_trial_process, "run_job", lambda job: seen.append(os.environ["CUDA_VISIBLE_DEVICES"]))
    _pool.run_in_process(job_of(tmp_path, gpus="1", threads=torch.get_num_threads()))
    assert seen == ["1"]


def test_what_cannot_be_sent_needs_a_fork(tmp_path, monkeypatch):
    job = job_of(tmp_path, make_model=lambda: Slope())
    assert _pool.context_for("auto", job).get_start_method() == "fork"
    monkeypatch.setattr("multiprocessing.get_all_start_methods", lambda: ["spawn"])  # Windows
    with pytest.raises(UserInputError, match=r"cannot be sent what they need .* at the top of a module"):
        _pool.context_for("auto", job)
    assert _pool.context_for("auto", job_of(tmp_path)).get_start_method() == "spawn"


class Answers:
    """A pool that has its results ready."""

    workers = 1

    def __init__(self, folder, trained, tested):
        self.job, self.answers = job_of(folder), [trained, tested]

    def results(self, jobs):
        answers = self.answers.pop(0)
        assert len(answers) == len(jobs)
        return answers


def test_settings_whose_trainings_all_fail_again_are_left_out(tmp_path):
    study = optuna.create_study()
    for i in range(2):
        trial = study.ask({"lr": optuna.distributions.FloatDistribution(0, 1)})
        trial.set_user_attr(RUN, f"run-{i}")
        study.tell(trial, float(i))
    failed = {"status": "failed", "reason": "out of memory"}
    trained = [failed, failed, failed, {"status": "complete", "value": 3.0}]
    with pytest.warns(UserWarning, match="the winner could not be tested: out of memory"):
        table, tested = _search._again(
            ordered(study), Answers(tmp_path, trained, [failed]), 2, test=True, stacked=False
        )
    assert [(r.run, r.values) for r in table] == [("run-1", (3.0,))]
    assert tested == {}


def test_pruners_have_names():
    assert isinstance(_search._pruner("asha"), optuna.pruners.SuccessiveHalvingPruner)
    assert isinstance(_search._pruner(None), optuna.pruners.NopPruner)


def test_folder_of_another_search_is_refused(tmp_path):
    find(trials=1, folder=tmp_path / "s")
    with pytest.raises(UserInputError, match="was begun with space="):
        find(space={"lr": lt.Float(0, 1)}, trials=1, folder=tmp_path / "s")
    with pytest.raises(UserInputError, match="is to minimize, but this search is to maximize"):
        find(trials=1, mode="max", folder=tmp_path / "s")


# Killed and resumed.


def test_more_trials_and_a_cut_off_journal_line(tmp_path):
    first = find(trials=2, folder=tmp_path / "s").runs
    with (tmp_path / "s" / "journal.log").open("a") as file:
        file.write('{"op_code": 4, "worker')  # a full disk
    more = find(trials=4, folder=tmp_path / "s")
    assert more.runs[:2] == first
    assert len(more.runs) == 4
    assert (tmp_path / "s" / "journal.cut-off").read_text() == '{"op_code": 4, "worker'
    alone = find(trials=4, folder=tmp_path / "alone")
    assert [row["lr"] for row in more.runs] == [row["lr"] for row in alone.runs]


def test_killed_training_goes_on_from_its_last_checkpoint(tmp_path):
    result = find(
        trials=1,
        folder=tmp_path / "s",
        trainer={"max_epochs": 4, "accelerator": "cpu"},
        callbacks=lambda: [Once(tmp_path / "flag", 2, kill_self)],
    )
    assert (tmp_path / "epochs.txt").read_text().split() == ["0", "1", "2", "2", "3"]
    assert result.best_value == pytest.approx(expected(**result.best_params, steps=8), rel=1e-3)
    assert [t.state for t in result.study.trials] == [TrialState.COMPLETE]


def test_training_that_always_dies_is_recorded(tmp_path):
    with pytest.raises(UserInputError, match="all trials failed"):
        find(
            trials=1,
            folder=tmp_path / "s",
            callbacks=lambda: [Once(tmp_path / f"flag-{time.time_ns()}", 0, kill_self)],
        )
    with (tmp_path / "s" / "runs.csv").open() as file:
        assert "died 3 times, last with exit code -9" in next(csv.DictReader(file))["reason"]


def interrupted(folder, method):
    find(
        method=method,
        trials=4,
        folder=folder,
        trainer={"max_epochs": 3, "accelerator": "cpu"},
        callbacks=lambda: [Once(folder.parent / "flag", 1, lambda: time.sleep(30))],
    )


@pytest.mark.parametrize("method", ["coarse_to_fine", "tpe"])
def test_killed_search_goes_on_where_it_was(method, tmp_path):
    folder = tmp_path / "s"
    process = get_context("fork").Process(target=interrupted, args=(folder, method))
    process.start()
    while not (tmp_path / "flag").exists():
        time.sleep(0.02)
        assert process.is_alive()
    # Killed while it writes, it would leave the journal's lock behind, which Optuna breaks after 30 s.
    time.sleep(0.3)
    process.kill()
    process.join()
    (tmp_path / "epochs.txt").unlink()
    options = {"method": method, "trainer": {"max_epochs": 3, "accelerator": "cpu"}}
    result = find(folder=folder, callbacks=lambda: [Once(tmp_path / "flag", 1, None)], **options)
    epochs = (tmp_path / "epochs.txt").read_text().split()
    assert epochs == ["1", "2"] + ["0", "1", "2"] * 3  # the first epoch was not run again
    assert len(result.runs) == 4
    alone = find(folder=tmp_path / "alone", **options)
    assert sorted(row["value"] for row in result.runs) == sorted(row["value"] for row in alone.runs)


def test_two_searches_in_one_folder_share_the_trials(tmp_path):
    other = get_context("fork").Process(target=find, kwargs={"folder": tmp_path / "s", "method": "coarse_to_fine"})
    other.start()
    result = find(folder=tmp_path / "s", method="coarse_to_fine")
    other.join(60)
    states = [t.state for t in result.study.get_trials()]
    assert states.count(TrialState.COMPLETE) == 4
    assert len({t.params["lr"] for t in result.study.get_trials()}) == 4


def test_journal_without_a_fault_is_left_alone(tmp_path):
    optuna.create_study(storage=journal(tmp_path / "j.log"), study_name="s")
    before = (tmp_path / "j.log").read_bytes()
    assert optuna.load_study(storage=journal(tmp_path / "j.log"), study_name="s").trials == []
    assert (tmp_path / "j.log").read_bytes()[: len(before)] == before
    assert not (tmp_path / "j.cut-off").exists()


# Pruning, training again, testing.


def test_bad_runs_are_pruned_and_say_so(tmp_path):
    class SlowWhenBad(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            if pl_module.weight > 1:
                time.sleep(0.15)  # time for the answer to come

    result = find(
        space={"start": lt.Choice([0.01, 0.02, 0.03, 5.0])},
        method="grid",
        folder=tmp_path / "s",
        trainer={"max_epochs": 12, "accelerator": "cpu"},
        callbacks=lambda: [SlowWhenBad()],
        prune=optuna.pruners.ThresholdPruner(upper=1.0),
    )
    found = {row["start"]: (row["status"], int(row["epochs"])) for row in result.runs}
    assert found["0.01"] == ("complete", 12)
    assert found["5.0"][0] == "pruned"
    assert found["5.0"][1] < 12


def test_the_best_are_trained_again_and_only_the_winner_is_tested(tmp_path):
    def noisy(start):
        torch.rand(1)
        return Slope(0.01, start + 0.3 * torch.randn(()).item())

    result = find(
        noisy, {"start": lt.Float(0, 4)}, trials=5, method="random", retrain=2, retrain_seeds=3, folder=tmp_path / "s"
    )
    assert len(result.retrained) == 2
    assert [len(r.values) for r in result.retrained] == [3, 3]
    assert result.retrained[0].mean <= result.retrained[1].mean
    assert result.best_params == result.retrained[0].params
    assert result.best_value == result.retrained[0].mean
    assert len(set(result.retrained[0].values)) == 3
    tests = sorted(path.parent.name for path in (tmp_path / "s" / "again").glob("*/test.json"))
    assert tests == [f"{result.retrained[0].run}-seed-{i}" for i in range(3)]
    values = [json.loads((tmp_path / "s" / "again" / name / "test.json").read_text()) for name in tests]
    assert result.test["test_loss"][0] == pytest.approx(sum(v["metrics"]["test_loss"] for v in values) / 3)
    again = find(
        noisy, {"start": lt.Float(0, 4)}, trials=5, method="random", retrain=2, retrain_seeds=3, folder=tmp_path / "s"
    )
    assert again.retrained == result.retrained


def test_folds_are_those_of_cross_validate(tmp_path):
    def make_model(lr):
        return lt.Classifier(lt.MLP(64, 10, hidden_features=()), num_classes=10, lr=lr)

    data, options = lt.DigitsDataModule(batch_size=256), {"max_epochs": 1, "accelerator": "cpu"}
    space = {"lr": lt.Choice([0.01])}
    result = find(make_model, space, data=data, method="grid", folds=2, trainer=options, folder=tmp_path / "s")
    quiet = {**options, "enable_progress_bar": False, "enable_model_summary": False}
    alone = lt.cross_validate(lambda: make_model(0.01), data, 2, trainer=quiet, predict=False, progress=False)
    assert result.best_value == pytest.approx(alone.mean("val_loss"), rel=1e-6)
    assert result.study.best_trial.user_attrs["fold_values"] == pytest.approx(alone.scores("val_loss"), rel=1e-6)


def test_gpus_are_dealt_out():
    assert share_of_gpus(0, 0, 2) is None
    assert [share_of_gpus(3, place, 2) for place in (0, 1)] == ["0,2", "1"]


def test_clean_processes_get_what_they_need(tmp_path):
    result = find(trials=1, folder=tmp_path / "s", start_method="auto")
    assert result.best_value == pytest.approx(expected(**result.best_params), rel=1e-3)


def test_limits_that_are_too_narrow_are_said(tmp_path):
    with pytest.warns(UserWarning, match="the best start, .* lies within 5 % of its lower limit 1"):
        result = find(
            space={"start": lt.Float(1, 40)},
            method="coarse_to_fine",
            trials=16,
            folder=tmp_path / "s",
            trainer={"max_epochs": 1, "accelerator": "cpu"},
        )
    assert result.notes
