"""Early stopping and falling learning rates in a stack: each model's own."""

import pytest
import torch
from helpers import quiet_trainer
from stack_models import CPU, digits, distance, make_models, watch

import lightning_tricks as lt
from lightning_tricks.stacked._net import StackedNet


def test_each_model_stops_and_reduces_as_it_would_alone():
    settings = ((1e-3, 0.0, 0.0), (0.3, 0.0, 0.0), (2.0, 0.0, 0.0), (30.0, 0.0, 0.0))
    options = {**CPU, "max_epochs": 8, "precision": "64-true"}
    stacked, made = make_models("layer", "momentum", settings), [watch() for _ in settings]
    runs = lt.fit_stacked(stacked, digits(), callbacks=made, trainer=options)
    ends = set()
    for i, model in enumerate(make_models("layer", "momentum", settings)):
        plateau, stopping = watch()
        trainer = quiet_trainer(callbacks=[plateau, stopping], **options)
        trainer.fit(model, digits())
        assert runs[i].epochs == trainer.current_epoch
        assert (runs[i].best_epoch, runs[i].best_step) == (stopping.best_epoch, stopping.best_step)
        assert runs[i].value == pytest.approx(float(stopping.best_score), rel=1e-6)
        assert [tuple(each) for each in made[i][0].reductions] == [
            pytest.approx(tuple(each)) for each in plateau.reductions
        ]
        assert distance(model, stacked[i]) < 1e-7  # the best weights
        ends.add(runs[i].epochs)
    assert len(ends) > 2, "this test is about models that end at different times"


def test_nobody_spends_time_on_models_that_have_stopped(monkeypatch):
    sizes = []
    forward = StackedNet.forward
    monkeypatch.setattr(StackedNet, "forward", lambda self, x: sizes.append(self.nets) or forward(self, x))
    callbacks = [[lt.EarlyStopping("val_loss", patience=1, stopping_threshold=bound)] for bound in (9.0, 0.0, 9.0)]
    runs = lt.fit_stacked(
        make_models("mlp", "adam", ((1e-3, 0.0, 0.0),) * 3),
        digits(500),
        callbacks=callbacks,
        trainer={**CPU, "max_epochs": 3},
    )
    assert [run.epochs for run in runs] == [1, 3, 1]
    # The check; then, in each epoch, a batch of training and two of validation.
    assert sizes == [3, 3, 3, 3, *[1, 1, 1] * 2]
    assert "is better than 9.0" in runs[0].message
    assert runs[1].message is None


def test_min_epochs_holds():
    callbacks = [[lt.EarlyStopping("val_loss", patience=1, stopping_threshold=9.0)] for _ in range(2)]
    options = {**CPU, "max_epochs": 5, "min_epochs": 3}
    runs = lt.fit_stacked(make_models("mlp", "adam"), digits(500), callbacks=callbacks, trainer=options)
    assert [run.epochs for run in runs] == [3, 3]


def test_weights_are_initialised_as_by_a_fit():
    def made():
        torch.manual_seed(4)
        return [
            lt.Classifier(lt.MLP(64, 10, hidden_features=(8,)), 10, optimizer="momentum", lr=1e-2) for _ in range(2)
        ]

    for seed in (None, 5):
        stacked = made()
        lt.fit_stacked(
            stacked, digits(), callbacks=lambda seed=seed: [lt.WeightInit(seed=seed)], trainer={**CPU, "max_epochs": 1}
        )
        model = made()[0]
        quiet_trainer(callbacks=[lt.WeightInit(seed=seed)], **CPU).fit(model, digits())
        assert distance(model, stacked[0]) < 1e-5
