"""The commands on LightningCLI: what they call, what they write, what they print."""

import contextlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from cli_helpers import CSV, DATA, EVERYTHING, MODEL, ONE_EPOCH, QUIET
from helpers import quiet_trainer, run_ranks

import lightning_tricks as lt
from lightning_tricks.cli import _commands, _tune, main

MINE = '''
import lightning as L
import torch
from torch import nn

class Mine(L.LightningModule):
    """Somebody's module, with nothing of ours in it."""

    def __init__(self, width: int = 8, lr: float = 0.01, rates: list[float] | None = None):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))
        self.lr = lr

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.training_step(batch, batch_idx))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), self.lr)
'''


@pytest.fixture
def spy(monkeypatch):
    """Keep the command line's objects after each command; ``spy.last`` is the latest."""

    class Spied(_commands.TricksCLI):
        last = None

        def __init__(self, *args, **kwargs):
            Spied.last = self
            super().__init__(*args, **kwargs)

    monkeypatch.setattr(_commands, "TricksCLI", Spied)
    return Spied


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of ``fit``: its folder."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["fit", *EVERYTHING, *ONE_EPOCH, *CSV, "--monitor=val_acc", "--patience=4"]) == 0
    return folder / "logs/run/version_0"


def names(trainer):
    return [type(callback).__name__ for callback in trainer.callbacks]


def test_fit_trains_with_the_course_and_keeps_what_one_needs_later(trained):
    written = {path.name for path in trained.iterdir()}
    assert {"config.yaml", "final.ckpt", "metrics.csv", "norms.csv"} <= written
    settings = yaml.safe_load((trained / "config.yaml").read_text())
    assert (settings["tricks"], settings["monitor"], settings["seed_everything"]) == ("course", "val_acc", 0)
    weights = torch.load(trained / "final.ckpt", weights_only=True)["state_dict"]
    assert "net.layers.1.weight" in weights or any(name.endswith("weight") for name in weights)


def test_a_run_is_the_same_as_in_python(trained):
    """The oracle: the same settings by hand end with the same weights."""
    from lightning.pytorch import seed_everything

    seed_everything(0, verbose=False)
    model = lt.Classifier(lt.MLP(64, 10, dropout=0.3), 10)
    trainer = quiet_trainer(callbacks=lt.recipe("val_acc", patience=4))
    trainer.fit(model, lt.DigitsDataModule())
    weights = torch.load(trained / "final.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists")
def test_the_kept_configuration_repeats_the_run_and_is_never_overwritten(trained, capsys):
    again = ["fit", "--config", str(trained / "config.yaml"), "--trainer.logger=false"]
    assert main(again) == 0
    assert main(again) == 0
    first, second = (torch.load(path, weights_only=True)["state_dict"] for path in ("final.ckpt", "final-1.ckpt"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert Path("config.yaml").exists()
    assert Path("config-1.yaml").exists()


def test_tricks_none_is_lightning_alone(spy):
    assert main(["fit", *EVERYTHING, "--trainer.fast_dev_run=true", "--tricks=none"]) == 0
    assert not {"EarlyStopping", "NormMonitor", "WeightInit"} & set(names(spy.last.trainer))


def test_tricks_by_name_come_as_in_the_course_and_by_path_with_their_arguments(spy):
    Path("tricks.yaml").write_text(
        "tricks:\n- EarlyStopping\n- Preflight\n"
        "- class_path: ActivationMonitor\n  init_args: {worst: 2}\n"
        "- lightning.pytorch.callbacks.LearningRateMonitor\n"
    )
    arguments = ["--config=tricks.yaml", "--monitor=val_acc", "--patience=7", "--trainer.fast_dev_run=true"]
    assert main(["fit", *EVERYTHING, *arguments]) == 0
    found = {type(callback).__name__: callback for callback in spy.last.trainer.callbacks}
    assert {"EarlyStopping", "Preflight", "ActivationMonitor", "LearningRateMonitor"} <= set(found)
    assert "NormMonitor" not in found
    assert (found["EarlyStopping"].monitor, found["EarlyStopping"].patience) == ("val_acc", 7)
    assert isinstance(found["EarlyStopping"], lt.EarlyStopping)
    assert found["ActivationMonitor"].worst == 2


def test_the_course_and_more(spy):
    assert main(["fit", *EVERYTHING, "--trainer.fast_dev_run=true", "--tricks=course,Preflight"]) == 0
    assert {"EarlyStopping", "NormMonitor", "Preflight"} <= set(names(spy.last.trainer))


def test_a_module_in_the_current_folder_is_found_and_the_path_is_left_as_it_was(spy):
    Path("my_module_here.py").write_text(MINE)
    before = list(sys.path)
    arguments = ["--model=my_module_here.Mine", "--model.width=5", *DATA, *QUIET, "--trainer.fast_dev_run=true"]
    assert main(["fit", *arguments]) == 0
    assert sys.path == before
    assert spy.last.model.net[1].out_features == 5
    del sys.modules["my_module_here"]


def test_print_config_is_a_configuration(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["fit", *EVERYTHING, "--print_config"])
    assert exit_.value.code == 0
    Path("printed.yaml").write_text(capsys.readouterr().out)
    assert main(["fit", "--config=printed.yaml", "--trainer.fast_dev_run=true"]) == 0


def test_test_measures_the_weights_of_a_checkpoint(trained, capsys):
    config = ["--config", str(trained / "config.yaml"), "--trainer.logger=false"]
    assert main(["test", *config, "--ckpt_path", str(trained / "final.ckpt")]) == 0
    out = capsys.readouterr()
    assert "test_acc" in out.out
    assert "note: without --ckpt_path" not in out.err
    assert main(["validate", *config]) == 0
    assert "note: without --ckpt_path" in capsys.readouterr().err


def test_predict_writes_what_python_predicts(trained):
    config = ["predict", "--config", str(trained / "config.yaml"), "--trainer.logger=false", "--samples=5"]
    ckpt = ["--ckpt_path", str(trained / "final.ckpt"), "--dropout.seed=3"]
    assert main([*config, *ckpt, "--out=rows.npz", "--columns=[mean, label]"]) == 0
    written = np.load("rows.npz")
    assert sorted(written.files) == ["index", "label", "mean"]
    model = lt.Classifier(lt.MLP(64, 10, dropout=0.3), 10)
    model.load_state_dict(torch.load(trained / "final.ckpt", weights_only=True)["state_dict"])
    trainer = quiet_trainer()
    batches = trainer.predict(lt.MCDropoutPredictor(model, 5, seed=3), lt.DigitsDataModule())
    assert np.array_equal(written["mean"], torch.cat([batch["mean"] for batch in batches]).numpy())
    assert main([*config, *ckpt, "--out=rows.npz"]) == 1, "an old file is not touched"


def test_predict_speaks_of_the_rows_and_units_of_the_file():
    import pandas as pd
    from lightning.pytorch import seed_everything

    x = np.random.default_rng(0).normal(size=(60, 3))
    table = pd.DataFrame({"a": x[:, 0], "b": x[:, 1], "y": 500 + 40 * x[:, 2]})
    table.to_csv("table.csv", index=False)
    net = ["--model.net=lightning_tricks.MLP", "--model.net.in_features=2", "--model.net.num_classes=1"]
    data = ["--data=TabularDataModule", "--data.data=table.csv", "--data.target=y"]
    more = ["--samples=5", "--dropout.tau=4", "--dropout.quantiles=[0.1]", "--trainer.logger=false"]
    assert main(["predict", "--model=Regressor", *net, "--model.net.dropout=0.5", *data, *QUIET, *more]) == 0
    written = pd.read_csv("predictions.csv")
    assert list(written.columns[:3]) == ["index", "row", "mean_0"]
    module = lt.TabularDataModule("table.csv", "y")
    module.setup()
    x, y = module.parts["test"].batch(range(12))
    assert np.allclose(table["y"].iloc[written["row"]], module.inverse_target(y).squeeze(1))
    seed_everything(0, verbose=False)
    model = lt.MCDropoutPredictor(lt.Regressor(lt.MLP(2, 1, dropout=0.5)), 5, tau=4, quantiles=[0.1])
    oracle = {name: value.squeeze().numpy() for name, value in model.predict_step((x, y)).items()}
    shift, unit = (float(value) for value in (module.target_mean, module.target_std))
    for name in ("mean", "quantile_0.1"):
        assert np.allclose(written[f"{name}_0"], shift + unit * oracle[name], rtol=1e-5)
    for name in ("std", "mc_error"):
        assert np.allclose(written[f"{name}_0"], unit * oracle[name], rtol=1e-5)
    for name in ("epistemic_variance", "aleatoric_variance", "total_variance"):
        assert np.allclose(written[f"{name}_0"], unit**2 * oracle[name], rtol=1e-5)


def test_check_prints_json_and_writes_a_page(capsys):
    assert main(["check", *EVERYTHING, "--json", "--html=report.html"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ok"]
    assert all({"rule", "severity", "where", "what", "cure"} <= set(finding) for finding in found["findings"])
    assert found["facts"]["budget"] == "quick"
    assert Path("report.html").read_text().startswith("<!doctype html>")


def test_check_fails_on_an_error(capsys):
    Path("sick_module_here.py").write_text(
        MINE.replace("self.parameters()", "self.net[3].parameters()").replace("Mine", "Sick").replace("= 8", "= 64")
    )
    assert main(["check", "--model=sick_module_here.Sick", *DATA, *QUIET, "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert not found["ok"]
    assert "params-not-optimized" in [f["rule"] for f in found["findings"] if f["severity"] == "error"]
    del sys.modules["sick_module_here"]


def test_names_with_brackets_are_no_markup(capsys):
    from lightning_tricks.cli._table import print_report
    from lightning_tricks.diagnosis import Finding, Report

    print_report(Report([Finding("rule", "error", "net[bold]", "it [red]is[/red] wrong", "Mend it.")]))
    table = capsys.readouterr().out
    assert "1 error, 0 warnings, 0 notes" in table
    assert "net[bold]" in table
    print_report(Report([]))
    assert capsys.readouterr().out == "Nothing was found.\n"


@pytest.fixture
def searched(monkeypatch):
    """Replace the search by a record of what it is called with."""
    calls = []

    class Result:
        def explain(self):
            return "explained"

    def call(function, *args, **options):
        calls.append((function, args, options))
        return Result()

    monkeypatch.setattr(_tune, "call", call)
    return calls


SPACE = """
model.lr: {low: 1.0e-4, high: 1.0e-1, log: true}
model.net.dropout: [0.1, 0.2]
data.batch_size: [7]
"""


def tune_once(*arguments):
    return main(["tune", *EVERYTHING, "--trials=3", f"--space={SPACE}", *arguments])


def test_tune_makes_models_and_data_with_hyperparameters(searched):
    import pickle

    logger = ["--trainer.logger=WandbLogger", "--trainer.logger.offline=true", "--trainer.logger.project=digits"]
    callbacks = ["--trainer.callbacks+=LearningRateMonitor", "--trainer.max_epochs=4"]
    assert tune_once("--workers=2", "--prune=asha", "--seed_everything=5", *callbacks, *logger) == 0
    ((function, (make_model, data, space), call),) = searched
    assert function is lt.search
    assert space["model.lr"] == lt.Float(1e-4, 1e-1, log=True)
    assert (call["trials"], call["workers"], call["prune"], call["seed"]) == (3, 2, "asha", 5)
    assert call["trainer_kwargs"]["max_epochs"] == 4
    assert not {"callbacks", "logger"} & set(call["trainer_kwargs"])
    params = {"model.lr": 0.05, "model.net.dropout": 0.2, "data.batch_size": 7}
    model = pickle.loads(pickle.dumps(make_model))(**params)
    assert (model.lr, model.num_classes) == (0.05, 10)
    assert [m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)] == [0.2]
    assert data(**params).batch_size == 7
    first, second = call["callbacks"](), call["callbacks"]()
    assert {"LearningRateMonitor", "EarlyStopping"} <= {type(callback).__name__ for callback in first}
    assert not {id(callback) for callback in first} & {id(callback) for callback in second}
    assert (call["logger"]["offline"], call["logger"]["project"]) == (True, "digits")
    assert "save_dir" not in call["logger"]


def test_tune_gives_every_trial_loggers_in_its_folder(searched):
    assert tune_once(*CSV) == 0
    ((_, _, call),) = searched
    made = call["logger"](Path("here/study/trial-001"), {})
    assert (made.save_dir, made.name) == ("here/study/trial-001", "run")


def test_tune_joins_a_search_that_runs(searched):
    assert main(["tune", *EVERYTHING, "--join=there/study", "--workers=2"]) == 0
    url = "postgresql://host/searches"
    assert main(["tune", *EVERYTHING, f"--join={url}", "--study=digits", "--folder=mine"]) == 0
    (function, (where, make_model, _), options), (_, (address, *_), more) = searched
    assert function is lt.tune.join
    assert (where, options["workers"], "folder" in options) == ("there/study", 2, False)
    assert make_model(**{"model.lr": 0.5}).lr == 0.5
    assert (address, more["study"], more["folder"]) == (url, "digits", "mine")


def test_bash_completes_commands_and_options(capsys):
    assert main(["completion", "bash"]) == 0
    Path("script.sh").write_text(capsys.readouterr().out)

    def completed(*words):
        line = f"COMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}; _lightning_tricks; echo ${{COMPREPLY[@]}}"
        command = ["bash", "-c", f"source script.sh; {line}"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()

    assert completed("lightning-tricks", "va") == ["validate"]
    assert completed("lightning-tricks", "predict", "--sam") == ["--samples"]
    assert "--trainer.max_epochs" in completed("lightning-tricks", "fit", "--trainer.max_")
    assert completed("lightning-tricks", "fit", "--sam") == []


def test_every_help_page_names_the_options_and_exits_with_zero(capsys):
    for command in _commands.COMMANDS:
        with pytest.raises(SystemExit) as exit_:
            main([command, "--help"])
        assert exit_.value.code == 0
        page = capsys.readouterr().out
        assert "--trainer.max_epochs" in page
        assert "--tricks" in page
        assert f"lightning-tricks {command}" in page


def test_data_from_a_constructor_of_its_own(capsys):
    from PIL import Image

    for name in ("cat", "dog"):
        folder = Path("photos", name)
        folder.mkdir(parents=True)
        for i in range(5):
            Image.fromarray(np.full((8, 8), 40 * i, np.uint8)).save(folder / f"{i}.png")
    data = ["--data=lightning_tricks.ImageDataModule.from_folder", "--data.root=photos", "--data.batch_size=2"]
    assert main(["check", *MODEL, *QUIET, *data, "--json"]) in (0, 1)
    assert json.loads(capsys.readouterr().out)["facts"]["model"] == "Classifier"


def fit_on_rank(rank, folder):
    os.chdir(folder)
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        options = ["--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.logger=false"]
        code = main(["fit", *EVERYTHING, *ONE_EPOCH, *options, "--trainer.limit_train_batches=2"])
    return code, out.getvalue()


def test_two_processes_write_one_set_of_files(tmp_path):
    (code, said), (other, silence) = run_ranks(fit_on_rank, tmp_path)
    assert (code, other, silence) == (0, 0, "")
    assert "weights: " in said
    assert {"config.yaml", "final.ckpt"} <= {path.name for path in tmp_path.iterdir()}
    assert not {"config-1.yaml", "final-1.ckpt"} & {path.name for path in tmp_path.iterdir()}
