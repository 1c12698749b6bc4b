"""A script that knows nothing of this package, run with its callbacks."""

import json
import subprocess
import sys
import textwrap

import pytest
from helpers import quiet_trainer
from lightning.pytorch import callbacks as lightning_callbacks

import lightning_tricks as lt
from lightning_tricks import doctor
from lightning_tricks._base import UserInputError
from lightning_tricks.cli import main
from lightning_tricks.doctor._attach import AttachTricks, make_tricks
from lightning_tricks.doctor._entry_point import VARIABLE, callbacks
from lightning_tricks.doctor._launch import notebook_source

SCRIPT = textwrap.dedent(
    """
    import json, os, sys
    import lightning as L
    import torch
    from torch import nn

    class Net(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 1)

        def training_step(self, batch, batch_idx):
            loss = (self.layer(batch) - 1).square().mean()
            self.log("train_loss", loss)
            return loss

        def validation_step(self, batch, batch_idx):
            self.log("val_loss", (self.layer(batch) - 1).square().mean())

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    if __name__ == "__main__":
        loader = torch.utils.data.DataLoader(torch.randn(16, 3), batch_size=8)
        trainer = L.Trainer(
            max_epochs=2, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
            enable_checkpointing=False, fast_dev_run="--dry" in sys.argv, log_every_n_steps=1,
        )
        trainer.fit(Net(), loader, loader)
        names = [type(callback).__name__ for callback in trainer.callbacks]
        json.dump({"argv": sys.argv[1:], "callbacks": names, "cwd": os.getcwd()}, open("seen.json", "w"))
        sys.exit(3)
    """
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "train.py").write_text(SCRIPT)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def seen(folder):
    return json.loads((folder / "seen.json").read_text())


def attached_in(folder, *options):
    """What the script saw, with the entry point as an installed package would register it."""
    assert main(["run", *options, "train.py", "--lr", "0.1"]) == 3, "the script's own exit code"
    return seen(folder)


def test_the_script_runs_as_by_its_user_with_the_recipe_added(folder):
    result = attached_in(folder)
    assert result["argv"] == ["--lr", "0.1"]
    assert result["cwd"] == str(folder)
    assert {"EarlyStopping", "ReduceLROnPlateau", "NormMonitor", "ExactResume"} <= set(result["callbacks"])


def test_a_dry_run_and_a_run_without_the_command_get_none(folder):
    assert main(["run", "train.py", "--dry"]) == 3
    assert "EarlyStopping" not in seen(folder)["callbacks"]
    assert subprocess.run([sys.executable, "train.py"]).returncode == 3
    assert not {"EarlyStopping", "AttachTricks"} & set(seen(folder)["callbacks"])


def test_nothing_is_returned_without_the_variable(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    assert callbacks() == []
    monkeypatch.setenv(VARIABLE, json.dumps({"tricks": ["NormMonitor"], "monitor": None}))
    assert [made.tricks for made in callbacks()] == [("NormMonitor",)]


def test_what_the_script_has_already_is_not_added_twice():
    own = lightning_callbacks.EarlyStopping("val_loss", patience=3)
    trainer = quiet_trainer(max_epochs=1, callbacks=[own, AttachTricks(["recipe"]), lt.NormMonitor()])
    trainer.fit(lt.Classifier(lt.MLP(64, 10), num_classes=10), lt.DigitsDataModule())
    kinds = [type(callback) for callback in trainer.callbacks]
    assert kinds.count(lt.NormMonitor) == 1
    assert lt.EarlyStopping not in kinds
    assert lt.ReduceLROnPlateau in kinds
    again = len(trainer.callbacks)
    trainer.fit(lt.Classifier(lt.MLP(64, 10), num_classes=10), lt.DigitsDataModule())
    assert len(trainer.callbacks) == again


def test_checkpoint_callbacks_stay_last_and_say_what_to_watch(tmp_path):
    keep = lightning_callbacks.ModelCheckpoint(tmp_path, monitor="val_acc", mode="max")
    trainer = quiet_trainer(max_epochs=1, callbacks=[keep, AttachTricks(["EarlyStopping"])], enable_checkpointing=True)
    trainer.fit(lt.Classifier(lt.MLP(64, 10), num_classes=10), lt.DigitsDataModule())
    assert trainer.callbacks[-1] is keep
    assert next(c for c in trainer.callbacks if isinstance(c, lt.EarlyStopping)).monitor == "val_acc"


def test_evaluation_gets_none():
    trainer = quiet_trainer(callbacks=[AttachTricks()])
    trainer.validate(lt.Classifier(lt.MLP(64, 10), num_classes=10), lt.DigitsDataModule())
    assert lt.EarlyStopping not in [type(callback) for callback in trainer.callbacks]


def test_modules_and_notebooks_run_too(folder):
    assert doctor.run_script("train", ["one"], tricks=["NormMonitor"], module=True) == 3
    assert seen(folder)["callbacks"].count("NormMonitor") == 1
    cells = [
        {"cell_type": "code", "source": ["%matplotlib inline\n", SCRIPT]},
        {"cell_type": "markdown", "source": ["x"]},
    ]
    (folder / "book.ipynb").write_text(json.dumps({"cells": cells}))
    assert main(["run", "--tricks", "EarlyStopping", "book.ipynb"]) == 3
    assert "EarlyStopping" in seen(folder)["callbacks"]
    assert notebook_source(folder / "book.ipynb").startswith("# %matplotlib inline")


def test_mistakes_get_a_sentence(folder, capsys):
    assert main(["run", "nowhere.py"]) == 1
    assert "There is no file 'nowhere.py'" in capsys.readouterr().err
    assert main(["run", "--tricks", "Recipee", "train.py"]) == 1
    assert "--tricks takes recipe, diagnosis or names of callbacks" in capsys.readouterr().err
    (folder / "broken.ipynb").write_text("[]")
    with pytest.raises(UserInputError, match="must be a notebook"):
        doctor.run_script("broken.ipynb")


def test_each_class_comes_once():
    kinds = [type(trick) for trick in make_tricks(["recipe", "NormMonitor", "diagnosis"], "val_loss")]
    assert len(kinds) == len(set(kinds))
