"""Messages, seeds, modes, monitored values."""

import random

import numpy as np
import pytest
import torch
from helpers import quiet_trainer
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lightning_tricks._base import (
    MissingMetricError,
    UserInputError,
    check_choice,
    check_monitor_early,
    check_range,
    derive_seed,
    infer_mode,
    isolated_rng,
    monitored_value,
    preserved_modes,
    require_extra,
    rng_state,
    set_rng_state,
    warn_once,
)


def draw():
    return random.random(), float(np.random.rand()), float(torch.rand(()))  # noqa: NPY002


def test_isolated_rng_moves_no_stream_even_after_an_exception():
    state = rng_state()
    expected = draw()
    set_rng_state(state)
    with pytest.raises(ZeroDivisionError), isolated_rng(seed=5):
        _ = draw()[0] / 0
    assert draw() == expected


def test_isolated_rng_with_a_seed_repeats():
    with isolated_rng(seed=2**62):
        first = draw()
    with isolated_rng(seed=2**62):
        assert draw() == first


def test_rng_state_survives_a_checkpoint(tmp_path):
    torch.save(rng_state(), tmp_path / "state.pt")
    expected = draw()
    set_rng_state(torch.load(tmp_path / "state.pt", weights_only=True))
    assert draw() == expected


@given(st.lists(st.integers() | st.text(), min_size=1, max_size=4), st.lists(st.integers() | st.text(), max_size=4))
def test_derived_seeds_differ_with_the_key(a, b):
    assert (derive_seed(*a) == derive_seed(*b)) == ([(type(x), x) for x in a] == [(type(x), x) for x in b])
    assert 0 <= derive_seed(*a) < 2**63


def test_preserved_modes_keeps_a_frozen_norm_frozen_after_an_exception():
    net = nn.Sequential(nn.BatchNorm1d(2).eval(), nn.Dropout())
    with pytest.raises(ZeroDivisionError), preserved_modes(net):
        _ = len(list(net.train().parameters())) / 0
    assert [m.training for m in net.modules()] == [True, False, True]


@given(st.floats(allow_nan=True))
def test_check_range_is_the_plain_comparison(value):
    inside = 0 < value <= 1
    if inside:
        assert check_range("p", value, low=0, high=1, open_low=True) == value
    else:
        with pytest.raises(UserInputError, match=r"p must be in \(0, 1\]"):
            check_range("p", value, low=0, high=1, open_low=True)


def test_check_choice_lists_and_suggests():
    with pytest.raises(UserInputError, match=r"mode must be one of max, min, but got 'mni'. Did you mean 'min'\?"):
        check_choice("mode", "mni", ("min", "max"))
    with pytest.raises(UserInputError, match="got 'zzz'"):
        check_choice("mode", "zzz", ("min", "max"))


def test_missing_metric_lists_those_that_exist():
    trainer = quiet_trainer()
    with pytest.raises(MissingMetricError, match="Logged so far: none yet"):
        monitored_value(trainer, "val_loss", who="EarlyStopping")
    trainer._logger_connector._callback_metrics["val_acc"] = torch.tensor(1.0)
    with pytest.raises(MissingMetricError, match=r"EarlyStopping monitors 'val_loss', .* Logged so far: val_acc"):
        monitored_value(trainer, "val_loss", who="EarlyStopping")


def test_a_misspelt_monitor_is_said_before_training():
    trainer = quiet_trainer()
    trainer._logger_connector._callback_metrics.update(val_loss=torch.tensor(1.0), val_acc=torch.tensor(1.0))
    for plausible in ("val_loss", "train_loss", "my_own_score"):
        check_monitor_early(trainer, plausible, who="EarlyStopping")
    with pytest.raises(MissingMetricError, match=r"validation logged val_acc, val_loss. Did you mean 'val_loss'\?"):
        check_monitor_early(trainer, "val_los", who="EarlyStopping")


@pytest.mark.parametrize(
    ("monitor", "mode"),
    [
        ("val_loss", "min"),
        ("val_acc", "max"),
        ("val/F1-macro", "max"),
        ("mape", "min"),
        ("train_accuracy", "max"),
        ("acc_loss", "min"),
        ("val_rmse", "min"),
        ("val_top5", "max"),
        ("error_auroc", "max"),
        ("test/error_detection_ap", "max"),
        ("neg_error_auroc", "min"),
        ("auroc_error", "min"),
        ("error_aurc", "min"),
        ("mIoU", "max"),
        ("val_mIoU", "max"),
        ("MeanIoU", "max"),
        ("gIoU_loss", "min"),
        ("val_top_5_error", "min"),
        ("val_acc1", "max"),
        ("MulticlassF1Score", "max"),
        ("val/BinaryAUROC", "max"),
        ("MulticlassAveragePrecision_epoch", "max"),
        ("val_mAP50", "max"),
        ("R2Score", "max"),
        ("MatthewsCorrCoef", "max"),
        ("MeanSquaredLogError", "min"),
        ("val_brier_score", "min"),
        ("val_f1score", "max"),
        ("episode_reward", "max"),
        ("neg_log_loss", "max"),
        ("neg_brier_score", "max"),
        ("negative_log_likelihood", "min"),
        ("negative_log_likelihood_loss", "min"),
        ("log_likelihood", "max"),
    ],
)
def test_mode_from_the_name(monitor, mode):
    assert infer_mode(monitor) == mode


def test_the_log_tells_of_a_name_that_says_nothing(caplog):
    with caplog.at_level("INFO"):
        assert infer_mode("val_loss") == "min"
        assert infer_mode("anything", "max") == "max"
        assert not caplog.records
        assert infer_mode("anything") == "min"
    assert "'anything' does not tell whether smaller or larger is better" in caplog.text


def test_an_inner_import_error_is_not_mistaken_for_a_missing_extra(tmp_path, monkeypatch):
    (tmp_path / "half_broken.py").write_text("import surely_missing_dependency")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="surely_missing_dependency"):
        require_extra("half_broken", "tune", "search()")


def test_warnings_come_once():
    with pytest.warns(UserWarning, match="the disk is full"):
        warn_once("the disk is full")
    warn_once("the disk is full")  # a second warning would be an error here
