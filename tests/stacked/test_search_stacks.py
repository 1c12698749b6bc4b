"""Searches whose trials are trained in stacks."""

import csv
import os
import signal
import time
from multiprocessing import get_context

import optuna
import pytest
import torch
import yaml
from helpers import quiet_trainer
from stack_models import CPU, Chatty, Loaders, digits

import lightning_tricks as lt
from lightning_tricks._base import UserInputError

optuna.logging.set_verbosity(optuna.logging.ERROR)


def make_model(lr, weight_decay=0.0):
    return lt.Classifier(lt.MLP(64, 10, hidden_features=(6,), norm="layer"), 10, lr=lr, weight_decay=weight_decay)


def stop_early():
    return [lt.EarlyStopping("val_loss", patience=1)]


SPACE = {"lr": lt.Float(1e-3, 0.5, log=True), "weight_decay": lt.Float(1e-5, 1e-1, log=True)}


def find(folder, *, make_model=make_model, data=None, space=SPACE, trials=4, **options):
    defaults = {
        "method": "random",
        "trainer": {**CPU, "max_epochs": 3},
        "retrain": 0,
        "start_method": "fork",
        "progress": False,
        "report": False,
        "vectorize": True,
    }
    data = digits() if data is None else data
    return lt.search(make_model, data, space, trials=trials, folder=folder, **{**defaults, **options})


def test_a_stacked_search_finds_and_writes_what_an_ordinary_one_does(tmp_path):
    stacked = find(tmp_path / "a", callbacks=stop_early, trials=2)
    ordinary = find(tmp_path / "b", callbacks=stop_early, trials=2, vectorize=False)
    assert [row["status"] for row in stacked.runs] == ["complete"] * 2
    for one, other in zip(stacked.runs, ordinary.runs, strict=True):
        assert one.keys() == other.keys()
        assert float(one["value"]) == pytest.approx(float(other["value"]), rel=1e-4)
        same = one.keys() - {"value", "seconds"}
        assert {name: one[name] for name in same} == {name: other[name] for name in same}
        settings = [yaml.safe_load((r.folder / one["run"] / "hparams.yaml").read_text()) for r in (stacked, ordinary)]
        assert settings[0].keys() == settings[1].keys()
        assert settings[0]["params"] == settings[1]["params"]
        metrics = list(csv.DictReader((stacked.folder / one["run"] / "log-0" / "metrics.csv").read_text().splitlines()))
        assert len(metrics) == int(one["epochs"])
        assert min(float(line["val_loss"]) for line in metrics) == pytest.approx(float(one["value"]))
    best = next(row for row in stacked.runs if float(row["value"]) == stacked.best_value)
    model = make_model(**stacked.best_params)
    path = stacked.folder / best["run"] / "checkpoints" / "best.ckpt"
    scores = quiet_trainer().validate(model, digits(), ckpt_path=path, verbose=False, weights_only=True)
    assert scores[0]["val_loss"] == pytest.approx(stacked.best_value, rel=1e-5)


def test_the_best_are_trained_again_as_one_stack_per_seed(tmp_path):
    again = {"trials": 2, "retrain": 2, "retrain_seeds": 2, "test": False, "trainer": {**CPU, "max_epochs": 1}}
    stacked = find(tmp_path / "a", **again)
    ordinary = find(tmp_path / "b", vectorize=False, **again)
    assert len(list((tmp_path / "a" / "stacks").iterdir())) == 1 + 2
    assert [r.run for r in stacked.retrained] == [r.run for r in ordinary.retrained]
    for one, other in zip(stacked.retrained, ordinary.retrained, strict=True):
        assert one.values == pytest.approx(other.values, rel=1e-4)


def test_rounds_of_coarse_to_fine_are_stacks_of_their_own_and_points_are_the_same(tmp_path):
    found = []
    for name, workers in (("a", 1), ("b", 2)):
        method = lt.CoarseToFineSampler(16, seed=0, rounds=1)
        options = {"method": method, "trials": 16, "trainer": {**CPU, "max_epochs": 1}, "workers": workers}
        found.append(find(tmp_path / name, **options))
        assert len(list((tmp_path / name / "stacks").iterdir())) == 2 * workers
    assert [row["lr"] for row in found[0].runs] == [row["lr"] for row in found[1].runs]
    assert [row["round"] for row in found[0].runs] == ["0"] * 8 + ["1"] * 8


def test_folds_are_those_of_an_ordinary_search(tmp_path):
    data, trainer = lt.DigitsDataModule(batch_size=512), {**CPU, "max_epochs": 2}
    found = find(tmp_path / "a", folds=2, trials=2, callbacks=stop_early, data=data, trainer=trainer)
    options = {"callbacks": stop_early, "trainer": trainer, "predict": False, "progress": False, "seed": 0}
    for trial in found.study.trials:
        alone = lt.cross_validate(lambda params=trial.params: make_model(**params), data, 2, **options)
        assert trial.user_attrs["fold_values"] == pytest.approx(alone.scores("val_loss"), rel=1e-4)
        assert trial.value == pytest.approx(alone.mean("val_loss"), rel=1e-4)


def fragile(lr, bad):
    if bad == "raises":
        raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")
    return make_model(lr=1e38 if bad == "nan" else lr)


def test_a_failed_trial_is_recorded_and_its_neighbours_are_not_touched(tmp_path):
    space = {"lr": lt.Choice([0.01]), "bad": lt.Choice(["no", "raises", "nan"])}
    result = find(tmp_path / "a", make_model=fragile, space=space, method="grid", trials=3)
    found = {row["bad"]: row for row in result.runs}
    assert found["raises"]["reason"].startswith("out of memory")
    assert found["nan"]["reason"] == "val_loss was never finite"
    space["bad"] = lt.Choice(["no"])
    alone = find(tmp_path / "b", make_model=fragile, space=space, method="grid", trials=1)
    assert float(found["no"]["value"]) == pytest.approx(alone.best_value, rel=1e-5)


def wide(width):
    return lt.Classifier(lt.MLP(64, 10, hidden_features=(width,)), 10)


def make_digits(batch_size):
    return digits(batch_size)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"make_model": wide, "space": {"width": lt.Int(2, 9)}}, r"must share their architecture.*stacks/\w+/log.txt"),
        ({"prune": "median"}, "cannot be combined with vectorize"),
        ({"vectorize": -1}, "vectorize must be in"),
        ({"callbacks": lambda: [Chatty()]}, "Chatty needs a Trainer"),
    ],
)
def test_searches_that_cannot_be_stacked_end_with_a_sentence(options, sentence, tmp_path):
    with pytest.raises(UserInputError, match=sentence):
        find(tmp_path / "a", **options)


def test_data_with_hyperparameters_is_refused(tmp_path):
    space = {**SPACE, "batch_size": lt.Choice([32, 64])}
    with pytest.raises(UserInputError, match="the data takes the hyperparameter 'batch_size'"):
        lt.search(make_model, make_digits, space, trials=2, vectorize=True, folder=tmp_path / "a")


class Slow(Loaders):
    """Waits before its third epoch, as long as a file is there."""

    def __init__(self, gate):
        few = digits()
        super().__init__(few.train, few.val)
        self.gate = gate

    def train_dataloader(self):
        trainer = self.trainer
        with (self.gate.parent / "epochs").open("a") as file:
            file.write(f"{trainer.current_epoch}\n")
        if trainer.current_epoch == 2:
            (self.gate.parent / "there").touch()
            while self.gate.exists():
                time.sleep(0.02)
        return super().train_dataloader()


def slow_search(folder, gate):
    options = {"max_epochs": 3, "reload_dataloaders_every_n_epochs": 1, **CPU}
    return lt.search(
        make_model, Slow(gate), SPACE, trials=3, method="random", trainer=options, folder=folder, retrain=0,
        start_method="fork", progress=False, report=False, vectorize=True,
    )  # fmt: skip


def test_a_killed_search_goes_on_from_the_stack_s_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr("lightning_tricks.tune.execution._stack_job._SECONDS_BETWEEN_CHECKPOINTS", 0.0)
    gate = tmp_path / "gate"
    gate.touch()
    process = get_context("fork").Process(target=slow_search, args=(tmp_path / "s", gate))
    process.start()
    end = time.monotonic() + 60
    while not (tmp_path / "there").exists() and time.monotonic() < end:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    checkpoint = next((tmp_path / "s" / "stacks").glob("*/last.ckpt"))
    assert torch.load(checkpoint, weights_only=True)["epoch"] == 1
    gate.unlink()
    (tmp_path / "epochs").unlink()
    result = slow_search(tmp_path / "s", gate)
    assert "0" not in (tmp_path / "epochs").read_text().split(), "it does not begin anew"
    whole = slow_search(tmp_path / "t", gate)
    assert [row["value"] for row in result.runs] == [row["value"] for row in whole.runs]
    assert not checkpoint.exists()
