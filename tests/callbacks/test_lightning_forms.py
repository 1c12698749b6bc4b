"""What is written for Lightning's own EarlyStopping works with ours: its checkpoints, and its arguments."""

import pytest
from helpers import quiet_trainer
from lightning.pytorch.callbacks import EarlyStopping as LightningEarlyStopping
from lightning.pytorch.callbacks import ModelCheckpoint
from stopping_models import Scripted, dots

import lightning_tricks as lt
from lightning_tricks._base import UserInputError

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


def epochs_of(stopping, curve, **options):
    trainer = quiet_trainer(max_epochs=len(curve), callbacks=[stopping], **options)
    trainer.fit(Scripted(curve), dots(), dots())
    return trainer.current_epoch


def test_the_positional_form_means_what_it_means_in_lightning():
    arguments = ("val_acc", 0.05, 2, True, "max", False, False, 0.99, 0.01, False, True)
    ours, theirs = lt.EarlyStopping(*arguments), LightningEarlyStopping(*arguments)
    for name in ("monitor", "min_delta", "patience", "verbose", "mode", "strict", "check_finite"):
        assert getattr(ours, name) == getattr(theirs, name), name
    for name in ("stopping_threshold", "divergence_threshold", "_check_on_train_epoch_end", "log_rank_zero_only"):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert ours.nan == "count"
    assert lt.EarlyStopping("val_loss").patience == LightningEarlyStopping("val_loss").patience


def test_min_delta_by_position():
    curve = [3.0, 2.9, 2.0, 1.9, 1.8, 1.7]
    arguments = ("val_loss", 0.5, 2)
    assert epochs_of(lt.EarlyStopping(*arguments), curve) == epochs_of(LightningEarlyStopping(*arguments), curve) == 5


def test_two_words_for_one_policy_must_agree():
    with pytest.raises(UserInputError, match="check_finite=True means nan='stop', but got nan='ignore'"):
        lt.EarlyStopping("val_loss", check_finite=True, nan="ignore")
    assert lt.EarlyStopping("val_loss", check_finite=False, nan="restore").nan == "restore"


@pytest.mark.parametrize("patience", [0, 1, 2])
@pytest.mark.parametrize("curve", [[3.0, 2.0, 2.5, 2.6, 2.7, 2.8], [3.0, 3.0, 2.0, 1.0], [3.0, 2.0, 1.0]])
def test_patience_zero_is_that_of_lightning(patience, curve):
    theirs = LightningEarlyStopping("val_loss", patience=patience)
    assert epochs_of(lt.EarlyStopping("val_loss", patience=patience), curve) == epochs_of(theirs, curve)


@pytest.mark.parametrize("unit", ["epochs", "steps", "minutes"])
def test_patience_zero_in_other_units_stops_at_the_first_miss(unit):
    assert epochs_of(lt.EarlyStopping("val_loss", patience=0, unit=unit), [3.0, 2.0, 2.5, 1.0]) == 3


def test_patience_zero_spares_the_warm_up():
    assert epochs_of(lt.EarlyStopping("val_loss", patience=0, start_from=3), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]) == 5


def test_the_reason_is_none_while_nothing_has_stopped():
    stopping = lt.EarlyStopping("val_loss", patience=3)
    epochs_of(stopping, [3.0, 2.0, 1.0])
    assert stopping.stopping_reason_message is None
    assert stopping.message.startswith("Training ended without an early stop.")
    epochs_of(stopping, [1.0, 2.0, 3.0, 4.0, 5.0])
    assert stopping.stopping_reason_message == stopping.message
    assert stopping.message.startswith("val_loss has not improved for 3 checks.")


@pytest.mark.parametrize(("when", "epochs"), [(None, 2), (False, 2), (True, 3)])
def test_where_the_check_is_made(when, epochs):
    class Twice(Scripted):
        def __init__(self):
            values = iter([3.0, 3.5, 3.4, 3.6, 3.7, 3.8, 3.9, 4.0])
            super().__init__(lambda module: next(values))

    for callback in (lt.EarlyStopping, LightningEarlyStopping)[: 1 if when is None else 2]:
        stopping = callback("val_loss", patience=2, check_on_train_epoch_end=when)
        trainer = quiet_trainer(max_epochs=4, callbacks=[stopping], val_check_interval=1, num_sanity_val_steps=0)
        trainer.fit(Twice(), dots(), dots())
        assert trainer.current_epoch == epochs
