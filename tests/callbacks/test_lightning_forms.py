"""What is written for Lightning's own EarlyStopping works with ours: its checkpoints, and its arguments."""

import pytest
from helpers import quiet_trainer
from lightning.pytorch.callbacks import EarlyStopping as LightningEarlyStopping
from lightning.pytorch.callbacks import ModelCheckpoint
from stopping_models import Scripted, dots

import lightning_tricks as lt

# Both runs of a test write checkpoints into one folder.
pytestmark = pytest.mark.filterwarnings("ignore:Checkpoint directory.*not empty")

CURVE = [3.0, 2.0, 2.5, 2.4, 2.3, 2.2, 2.1, 1.0, 0.5, 0.4]


def fit(stopping, folder, *, epochs, ckpt=None, curve=CURVE):
    saver = ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1)
    trainer = quiet_trainer(max_epochs=epochs, callbacks=[stopping, saver], enable_checkpointing=True)
    trainer.fit(Scripted(curve), dots(), dots(), ckpt_path=ckpt, weights_only=True)
    return trainer


CLASSES = {"Lightning": LightningEarlyStopping, "ours": lt.EarlyStopping}


@pytest.mark.parametrize("second", CLASSES)
@pytest.mark.parametrize("first", CLASSES)
@pytest.mark.parametrize("patience", [3, 5])
def test_either_class_goes_on_where_the_other_was(first, second, patience, tmp_path):
    fit(CLASSES[first]("val_loss", patience=patience), tmp_path, epochs=3)
    resumed = CLASSES[second]("val_loss", patience=patience)
    trainer = fit(resumed, tmp_path, epochs=len(CURVE), ckpt=str(tmp_path / "epoch=2.ckpt"))
    whole = LightningEarlyStopping("val_loss", patience=patience)
    assert trainer.current_epoch == fit(whole, tmp_path / "whole", epochs=len(CURVE)).current_epoch
    assert resumed.wait_count == whole.wait_count


@pytest.mark.parametrize("unit", ["epochs", "steps", "minutes"])
def test_patience_in_other_units_starts_where_the_checkpoint_of_lightning_ends(unit, tmp_path):
    fit(LightningEarlyStopping("val_loss", patience=9), tmp_path, epochs=3)
    stopping = lt.EarlyStopping("val_loss", patience={"epochs": 2, "steps": 4, "minutes": 9}[unit], unit=unit)
    trainer = fit(stopping, tmp_path, epochs=10, ckpt=str(tmp_path / "epoch=2.ckpt"))
    assert trainer.current_epoch == (10 if unit == "minutes" else 5)


def test_the_state_has_the_keys_that_lightning_reads(tmp_path):
    stopping = lt.EarlyStopping("val_loss", patience=3, restore_best=False)
    fit(stopping, tmp_path, epochs=4)
    theirs = LightningEarlyStopping("val_loss", patience=3)
    fit(theirs, tmp_path / "theirs", epochs=4)
    ours = stopping.state_dict()
    for key, value in theirs.state_dict().items():
        assert key == "stopping_reason_message" or ours[key] == value, key
