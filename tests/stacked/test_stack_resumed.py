"""A stack that was interrupted goes on."""

import copy

import pytest
import torch
from lightning.pytorch import Callback
from stack_models import CPU, digits, distance, make_models, watch
from torch import nn

import lightning_tricks as lt


class Interrupt(Callback):
    def __init__(self, path, epoch):
        self.path, self.epoch = path, epoch

    def on_train_epoch_end(self, trainer, pl_module):
        if trainer.current_epoch == self.epoch:
            trainer.save_checkpoint(self.path)
            raise KeyError("stop here")


def test_an_interrupted_stack_ends_as_the_uninterrupted_one(tmp_path):
    settings = ((1e-3, 0.0, 0.1), (0.3, 0.0, 0.0), (3.0, 0.0, 0.0), (30.0, 0.0, 0.0))

    def fit(models, **options):
        torch.manual_seed(7)
        trainer = {**CPU, "max_epochs": 6}
        return lt.fit_stacked(models, digits(shuffle=True), callbacks=watch, trainer=trainer, **options)

    whole = make_models("mlp", "adam", settings)
    for model in whole:
        model.net.layers.insert(1, nn.Dropout(0.2))
    interrupted, resumed = copy.deepcopy(whole), copy.deepcopy(whole)
    expected = fit(whole, watchers=[lt.ExactResume()])
    with pytest.raises(KeyError, match="stop here"):
        fit(interrupted, watchers=[lt.ExactResume(), Interrupt(tmp_path / "c.ckpt", 3)])
    kept = torch.load(tmp_path / "c.ckpt", weights_only=True)
    assert 0 < len(kept["stack"]["live"]) < 4, "some have left by then"
    runs = fit(resumed, watchers=[lt.ExactResume()], ckpt_path=tmp_path / "c.ckpt")
    for i in range(4):
        assert distance(whole[i], resumed[i]) == 0
        assert runs[i].history == expected[i].history
        assert runs[i].message == expected[i].message
