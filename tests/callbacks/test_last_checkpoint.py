"""The newest whole checkpoint of a run, whatever lies beside it."""

import os
import shutil

import pytest
import torch
from helpers import quiet_trainer
from lightning.pytorch.demos.boring_classes import BoringModel

import lightning_tricks as lt
from lightning_tricks._base import UserInputError


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A checkpoint of a training, and one of weights only."""
    folder = tmp_path_factory.mktemp("saved")
    trainer = quiet_trainer(max_steps=1, limit_val_batches=0)
    trainer.fit(BoringModel())
    trainer.save_checkpoint(folder / "whole.ckpt")
    trainer.save_checkpoint(folder / "weights.ckpt", weights_only=True)
    return folder


def put(saved, path, *, age, what="whole", keep=1.0):
    """Copy a checkpoint (or its first part) to where a run would have written it ``age`` seconds ago."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(saved / f"{what}.ckpt", path)
    os.truncate(path, int(keep * path.stat().st_size))
    now = path.stat().st_mtime
    os.utime(path, (now - age, now - age))
    return path


def test_the_newest_of_all_versions_is_found(saved, tmp_path):
    put(saved, tmp_path / "version_10/checkpoints/epoch=0.ckpt", age=20)
    newest = put(saved, tmp_path / "version_9/checkpoints/deep/last.ckpt", age=10)
    put(saved, tmp_path / "other/checkpoints/last.ckpt", age=0)
    assert lt.last_checkpoint(tmp_path) == newest
    assert lt.last_checkpoint(tmp_path / "version_9") == newest
    assert lt.last_checkpoint(newest.parent) == newest


@pytest.mark.parametrize("keep", [0, 0.3, 0.999])
def test_what_a_killed_process_left_is_passed_over(keep, saved, tmp_path):
    whole = put(saved, tmp_path / "checkpoints/epoch=0.ckpt", age=20)
    put(saved, tmp_path / "checkpoints/epoch=1.ckpt", age=10, keep=keep)
    put(saved, tmp_path / "final.ckpt", age=0, what="weights")
    (tmp_path / "checkpoints/last.ckpt").symlink_to("gone.ckpt")
    assert lt.last_checkpoint(tmp_path) == whole


def test_a_file_of_zeros_and_a_file_of_another_kind_are_passed_over(saved, tmp_path):
    whole = put(saved, tmp_path / "a.ckpt", age=20)
    (tmp_path / "b.ckpt").write_bytes(bytes(5000))
    torch.save({"lr_schedulers": []}, tmp_path / "c.ckpt", _use_new_zipfile_serialization=False)
    assert lt.last_checkpoint(tmp_path) == whole


def test_of_several_folders_the_newest_file_counts(saved, tmp_path):
    put(saved, tmp_path / "a/x.ckpt", age=20)
    newest = put(saved, tmp_path / "b/x.ckpt", age=10)
    assert lt.last_checkpoint(tmp_path / "a", tmp_path / "b", tmp_path / "absent") == newest


def test_shards_are_whole_when_their_last_file_is(saved, tmp_path):
    put(saved, tmp_path / "a.ckpt", age=20)
    (tmp_path / "b.ckpt").mkdir()
    assert lt.last_checkpoint(tmp_path).name == "a.ckpt"
    put(saved, tmp_path / "b.ckpt/meta.pt", age=0)
    assert lt.last_checkpoint(tmp_path).name == "b.ckpt"


def test_nothing_to_resume_is_an_error_that_says_what_is_there(saved, tmp_path):
    with pytest.raises(UserInputError, match=r"nothing to resume.*No \.ckpt is there.*give the path of one"):
        lt.last_checkpoint(tmp_path / "absent")
    put(saved, tmp_path / "final.ckpt", age=0, what="weights")
    put(saved, tmp_path / "checkpoints/last.ckpt", age=1, keep=0.5)
    with pytest.raises(UserInputError, match=r"final\.ckpt holds weights only; .*last\.ckpt is not whole"):
        lt.last_checkpoint(tmp_path)
