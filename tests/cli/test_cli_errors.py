"""Mistakes on the command line are one sentence that says what to do, without a traceback."""

import builtins
import re
from pathlib import Path

import pytest
from cli_helpers import DATA, EVERYTHING, MODEL, NET, QUIET
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_tricks.cli import main

SPACE = ["--trials=2", "--space"]
WRONG = {
    "a class that a module lacks": (
        ["fit", "--model=lightning_tricks.Clasifier"],
        r"model: module 'lightning_tricks' has no attribute 'Clasifier'. Did you mean 'Classifier'\?",
    ),
    "a name that nothing has": (
        ["fit", "--model=Clasifier"],
        r"model: no class 'Clasifier' is known. Give its class path, such as my_module.Clasifier. Did you mean",
    ),
    "a module that is not there": (["fit", "--model=nope.Model"], "model: No module named 'nope'."),
    "a class of another kind": (["fit", "--model=lightning_tricks.MLP"], "model: .*not.*a subclass of LightningModule"),
    "a wrong type": (
        ["fit", "--model=Classifier", *NET, "--model.num_classes=ten"],
        "model.num_classes: expected int, but got 'ten'.",
    ),
    "a wrong type where None is fine": (
        ["fit", *MODEL, "--model.lr=fast"],
        "model.lr: expected float, but got 'fast'.",
    ),
    "a wrong choice": (
        ["fit", *MODEL, "--model.task=multi"],
        "model.task: expected one of multiclass, binary, multilabel, but got 'multi'.",
    ),
    "an option that a class lacks": (
        ["fit", *MODEL, "--model.net.dropuot=0.5"],
        r"model.net: lightning_tricks.MLP has no option 'dropuot'. Did you mean 'dropout'\?",
    ),
    "a value out of range, said by the class": (
        ["fit", *MODEL, *DATA, "--model.net.dropout=3"],
        r"error: dropout must be in \[0, 1\), but got 3.0.",
    ),
    "an argument that is missing": (
        ["fit", "--model=Classifier", *NET],
        "lightning_tricks.Classifier needs a value for num_",
    ),
    "no model": (["fit"], "this command needs a value for --model."),
    "no data": (["fit", *MODEL], "there is no data: give --data and the class path of a LightningDataModule."),
    "no data to check": (["check", *MODEL], "there is no data: give --data"),
    "no data to tune on": (["tune", *MODEL, *SPACE, '{"model.lr": [1, 2]}'], "there is no data: give --data"),
    "an unknown option": (["fit", *MODEL, "--modl=x"], "unrecognized arguments: --modl=x"),
    "an unknown trainer option": (["fit", *MODEL, "--trainer.max_epoch=3"], "unrecognized arguments: --trainer.max_ep"),
    "a trainer option of a wrong type": (["fit", "--trainer.max_epochs=many"], "trainer.max_epochs: expected int, but"),
    "a file that is not there": (["fit", "--config=absent.yaml"], "config: File does not exist: '.*absent.yaml'"),
    "a file that is no YAML": (["fit", "--config=bad.yaml"], "Problems parsing config: .*line 2"),
    "a file with an unknown key": (["fit", "--config=unknown.yaml"], "this command has no option 'modle'."),
    "a trick that there is not": (
        ["fit", *EVERYTHING, "--tricks=NormMonitr"],
        "each of --tricks must be one of .*Did you mean 'NormMonitor'",
    ),
    "a trick's option that there is not": (
        ["fit", *EVERYTHING, "--tricks=[{class_path: NormMonitor, init_args: {evry_n_steps: 3}}]"],
        "lightning_tricks.NormMonitor has no option 'evry_n_steps'. Did you mean 'every_n_steps'",
    ),
    "a trick's value out of range": (
        ["fit", *EVERYTHING, "--patience=1"],
        r"patience must be in \[2, inf\), but got 1",
    ),
    "a checkpoint that is not there": (
        ["test", *EVERYTHING, "--trainer.logger=false", "--ckpt_path=absent.ckpt"],
        "Checkpoint file not found: absent.ckpt",
    ),
    "too few samples": (["predict", *EVERYTHING, "--samples=1"], r"samples must be in \[2, inf\), but got 1"),
    "a file of an unknown kind": (["predict", *EVERYTHING, "--out=x.txt"], "must be one of .csv, .npz, .parquet, but"),
    "no space": (["tune", *EVERYTHING], "tune needs --space and --trials, or --join"),
    "a hyperparameter of nothing": (
        ["tune", *EVERYTHING, *SPACE, '{"lr": [1, 2]}'],
        "each name of --space must be an option of the model or the data, such as model.lr .*but got 'lr'",
    ),
    "a hyperparameter that the model lacks": (
        ["tune", *EVERYTHING, *SPACE, '{"model.lrr": [1, 2]}'],
        "lightning_tricks.Classifier has no option 'lrr'. Did you mean 'lr'",
    ),
    "a hyperparameter of a part that there is not": (
        ["tune", *EVERYTHING, *SPACE, '{"model.nett.x": [1, 2]}'],
        "--space names 'model.nett.x', but there is no such option in model",
    ),
    "a space that is none": (["tune", *EVERYTHING, *SPACE, '{"model.lr": 3}'], "must be a list or have low, high"),
    "a space that is not there": (["tune", *EVERYTHING, *SPACE, "absent.yaml"], "the space absent.yaml cannot be read"),
    "an unknown method": (
        ["tune", *EVERYTHING, *SPACE, '{"model.lr": [1, 2]}', "--method=foo"],
        "method.*auto.*foo",  # in the words of this package or, on Python 3.10, of jsonargparse
    ),
    "no shell": (["completion"], "completion needs the name of a shell: bash or zsh"),
    "an unknown shell": (
        ["completion", "fish"],
        "completion needs the name of a shell: bash or zsh",
    ),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_a_mistake_is_one_sentence(mistake, capsys):
    Path("bad.yaml").write_text("model: [\n")
    Path("unknown.yaml").write_text("modle: 3\n")
    arguments, message = WRONG[mistake]
    quiet = QUIET if arguments[0] != "completion" else []
    assert main([*arguments, *quiet]) in (1, 2)
    shown = capsys.readouterr()
    last = shown.err.strip().splitlines()[-1]
    assert last.startswith("lightning-tricks: error: ")
    assert re.search(message, last), last
    assert "Traceback" not in shown.err
    assert "Union subtypes" not in shown.err


def test_wrong_arguments_exit_with_two_and_failures_with_one(capsys):
    assert main(["fit", "--modl=x"]) == 2
    assert main(["fit", *EVERYTHING, "--patience=1"]) == 1


def test_debug_shows_the_traceback():
    with pytest.raises(ValueError, match="num_classes"):
        main(["fit", "--model=Classifier", *NET, "--model.num_classes=ten", "--debug"])


def test_without_jsonargparse_the_sentence_says_what_to_install(monkeypatch, capsys):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.partition(".")[0] == "jsonargparse":
            raise ModuleNotFoundError("No module named 'jsonargparse'", name="jsonargparse")
        return real(name, *args, **kwargs)

    import lightning_tricks._base._extras as extras

    monkeypatch.setattr(extras, "import_module", lambda name: without(name))
    assert main(["fit"]) == 1
    error = capsys.readouterr().err
    assert "lightning-tricks fit needs 'jsonargparse', which is not installed." in error
    assert 'pip install "lightning-tricks[cli]"' in error
    with pytest.raises(SystemExit) as exit_:
        main(["demo", "--help"])
    assert exit_.value.code == 0


@given(st.text())
@settings(max_examples=25)
def test_every_message_becomes_one_line(message):
    from lightning_tricks.cli._usage import as_sentence

    assert "\n" not in as_sentence(message)
