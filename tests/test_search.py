"""Searches end to end: on small nets, in real processes, killed and resumed."""

import csv
import json
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
from lightning_tricks._base import UserInputError
from lightning_tricks.tune._pool import share_of_gpus
from lightning_tricks.tune._study import journal

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


@pytest.mark.parametrize("method", ["tpe", "gp", "coarse+gp", optuna.samplers.RandomSampler(seed=0)])
def test_other_methods_run(method, tmp_path):
    result = find(method=method, trials=3, folder=tmp_path / "s", trainer={"max_epochs": 1, "accelerator": "cpu"})
    assert len({row["lr"] for row in result.runs}) == 3


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
    class Slow(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            time.sleep(0.15)  # time for the answer to come

    result = find(
        space={"start": lt.Choice([0.01, 0.02, 0.03, 5.0])},
        method="grid",
        folder=tmp_path / "s",
        trainer={"max_epochs": 12, "accelerator": "cpu"},
        callbacks=lambda: [Slow()],
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
