"""The weights at the end are those of the best value, however the run ends."""

import math

import pytest
import torch
from helpers import quiet_trainer, run_ranks
from lightning.pytorch import Callback, seed_everything
from lightning.pytorch.callbacks import EarlyStopping as LightningEarlyStopping
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint, StochasticWeightAveraging, Timer
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from lightning.pytorch.loggers import CSVLogger
from stopping_models import Noisy, Scripted, assert_same, dots, noise, tensors

import lightning_tricks as lt
from lightning_tricks._base import UserInputError

Reason = EarlyStoppingReason


def fit(module, callbacks, *, train=None, val=None, ckpt=None, **options):
    seed_everything(3, verbose=False)
    trainer = quiet_trainer(callbacks=callbacks, **{"max_epochs": 12, **options})
    trainer.fit(module, train or noise(0, shuffle=True), val or noise(1), ckpt_path=ckpt)
    return trainer


def script_fit(script, stopping, **options):
    module = Scripted(script)
    trainer = fit(module, [stopping], train=dots(), val=dots(), **options)
    return module, trainer


# --- The oracle: a run of exactly the best length ends with the same weights --------------------------------------

RUNS = {
    "plain": {},
    "mid-epoch": {"val_check_interval": 2},
    "accumulation": {"accumulate_grad_batches": 4, "val_check_interval": 3},
    "rare validation": {"check_val_every_n_epoch": 2},
}


@pytest.mark.parametrize("keep", ["cpu", "device", "disk"])
@pytest.mark.parametrize("run", RUNS)
def test_a_run_of_exactly_the_best_length_ends_with_the_restored_weights(run, keep):
    if keep != "cpu" and run != "mid-epoch":
        pytest.skip("where the copy waits does not depend on the run")
    stopping = lt.EarlyStopping("val_loss", patience=3, keep=keep)
    module = Noisy()
    trainer = fit(module, [stopping], **RUNS[run])
    assert stopping.reason is Reason.PATIENCE_EXHAUSTED
    assert 0 < stopping.best_step < trainer.global_step
    again = Noisy()
    fit(again, [], max_epochs=-1, max_steps=stopping.best_step, **RUNS[run])
    assert_same(tensors(module), tensors(again))


def test_averaged_weights_are_the_ones_that_earned_the_value():
    for order in (1, -1):
        stopping = lt.EarlyStopping("val_loss", patience=3)
        module = Noisy()
        trainer = fit(module, [stopping, EMAWeightAveraging(decay=0.8)][::order], val_check_interval=2)
        assert 0 < stopping.best_step < trainer.global_step
        again = Noisy()
        averaging = EMAWeightAveraging(decay=0.8)
        fit(again, [averaging], max_epochs=-1, max_steps=stopping.best_step, val_check_interval=2)
        assert_same(tensors(module), tensors(again))
        value = trainer.validate(module, noise(1), verbose=False)[0]["val_loss"]
        assert value == pytest.approx(float(stopping.best_score), abs=1e-7)


def _two_ranks(rank, folder):
    results = []
    for options in ({}, {"val_check_interval": 2}):
        stopping = lt.EarlyStopping("val_loss", patience=2)
        module = Noisy()
        trainer = fit(module, [stopping], strategy="ddp", devices=2, default_root_dir=folder, **options)
        again = Noisy()
        steps = stopping.best_step
        fit(again, [], max_epochs=-1, max_steps=steps, strategy="ddp", devices=2, default_root_dir=folder, **options)
        assert_same(tensors(module), tensors(again))
        weights = {name: value.numpy() for name, value in module.state_dict().items() if "running" not in name}
        results.append((stopping.reason, float(stopping.best_score), steps, trainer.global_step, weights))
    return results


def test_two_ranks_restore_the_same_best(tmp_path):
    import warnings

    warnings.simplefilter("ignore")
    for one, other in zip(*run_ranks(_two_ranks, str(tmp_path)), strict=True):
        assert one[:4] == other[:4]
        assert one[2] < one[3]
        assert all((one[4][name] == other[4][name]).all() for name in one[4])


# --- However it ends ----------------------------------------------------------------------------------------------


class Interrupt(Callback):
    def __init__(self, error, epoch):
        self.error, self.epoch = error, epoch

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if trainer.current_epoch == self.epoch and batch_idx == 1:
            raise self.error


class Collect(Callback):
    """Keeps the weights after each validation."""

    def __init__(self):
        self.after = []

    def on_validation_end(self, trainer, module):
        if not trainer.sanity_checking:
            self.after.append(tensors(module))


CURVE = [3.0, 2.0, 1.0, 1.5, 1.6, 1.7, 1.8, 1.9]


@pytest.mark.parametrize(
    "ending",
    [
        {"max_epochs": 5},
        {"max_epochs": -1, "max_steps": 11},
        {"max_epochs": 8},  # patience runs out first
    ],
)
def test_however_the_run_ends_regularly(ending):
    collect = Collect()
    stopping = lt.EarlyStopping("val_loss", patience=4)
    module = Scripted(CURVE)
    fit(module, [collect, stopping], train=dots(), val=dots(), **ending)
    assert (stopping.best_epoch, stopping.best_step, stopping.best_score.item()) == (2, 6, 1.0)
    assert_same(tensors(module), collect.after[2])
    assert "the module has the weights of epoch 2 (step 6), val_loss = 1." in stopping.message


def test_max_time():
    collect, stopping = Collect(), lt.EarlyStopping("val_loss", patience=4)

    class Slow(Timer):
        def time_elapsed(self, stage="train"):
            return 10.0 * (self.trainer_epoch >= 4)

        trainer_epoch = 0

        def on_train_epoch_start(self, trainer, module):
            self.trainer_epoch = trainer.current_epoch

    module = Scripted(CURVE)
    trainer = fit(module, [collect, stopping, Slow("00:00:00:05")], train=dots(), val=dots(), max_epochs=8)
    assert trainer.current_epoch < 8
    assert stopping.reason is Reason.NOT_STOPPED
    assert_same(tensors(module), collect.after[2])


@pytest.mark.parametrize("error", [RuntimeError("CUDA error"), KeyboardInterrupt()])
def test_after_an_exception_or_ctrl_c(error):
    collect, stopping = Collect(), lt.EarlyStopping("val_loss", patience=10)
    module = Scripted(CURVE)
    expected = SystemExit if isinstance(error, KeyboardInterrupt) else RuntimeError
    with pytest.raises(expected):
        fit(module, [stopping, Interrupt(error, epoch=5), collect], train=dots(), val=dots())
    assert_same(tensors(module), collect.after[2])
    assert f"Training was interrupted by {type(error).__name__}." in stopping.message


def test_a_checkpoint_written_because_of_the_exception_holds_the_last_weights(tmp_path):
    """Restoring must not leak into the checkpoint that the run is resumed from."""
    collect, stopping = Collect(), lt.EarlyStopping("val_loss", patience=10)
    saver = ModelCheckpoint(tmp_path, save_on_exception=True, save_top_k=0, save_last=False)
    module = Scripted(CURVE)
    with pytest.raises(RuntimeError, match="boom"):
        fit(
            module,
            [stopping, Interrupt(RuntimeError("boom"), epoch=5), collect, saver],
            train=dots(),
            val=dots(),
            enable_checkpointing=True,
        )
    (file,) = tmp_path.glob("*.ckpt")
    saved = torch.load(file, weights_only=True)["state_dict"]
    assert_same(tensors(module), collect.after[2])
    one_step_after = {name: torch.equal(value, collect.after[4][name]) for name, value in saved.items()}
    assert not any(one_step_after.values())
    assert not all(torch.equal(value, collect.after[2][name]) for name, value in saved.items())


def test_an_exception_outlives_best_weights_that_are_gone(tmp_path):
    class Lost(Interrupt):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            for file in tmp_path.iterdir() if trainer.current_epoch == self.epoch else ():
                file.unlink()
            super().on_train_batch_start(trainer, module, batch, batch_idx)

    stopping = lt.EarlyStopping("val_loss", patience=9, keep="disk", dirpath=str(tmp_path))
    boom = Lost(RuntimeError("boom"), epoch=4)
    with (
        pytest.warns(UserWarning, match="EarlyStopping could not put the best weights back: .*No such file"),
        pytest.raises(RuntimeError, match="boom"),
    ):
        fit(Scripted(CURVE), [boom, stopping], train=dots(), val=dots())
    assert "the module keeps its last weights; the best was epoch 2" in stopping.message


def test_an_exception_outside_of_a_fit_is_no_end_of_training():
    stopping, module = lt.EarlyStopping("val_loss", patience=9), Scripted(CURVE)
    trainer = fit(module, [stopping], train=dots(), val=dots(), max_epochs=5)
    said = stopping.message
    boom = Interrupt(RuntimeError("boom"), epoch=5)
    boom.on_validation_batch_start = lambda trainer, module, batch, batch_idx, dataloader_idx=0: (_ for _ in ()).throw(
        boom.error
    )
    trainer.callbacks.append(boom)
    with pytest.raises(RuntimeError, match="boom"):
        trainer.validate(module, dots(), verbose=False)
    assert stopping.message == said


def test_non_persistent_and_growing_buffers_come_back():
    class Buffers(Scripted):
        def __init__(self):
            super().__init__(CURVE)
            self.register_buffer("steps", torch.zeros(()), persistent=False)
            self.register_buffer("history", torch.zeros(0))

        def on_train_batch_start(self, batch, batch_idx):
            self.steps += 1
            self.history = torch.cat([self.history, self.steps[None]])

    module = Buffers()
    fit(module, [lt.EarlyStopping("val_loss", patience=2)], train=dots(), val=dots())
    assert module.steps == 6
    assert module.history.tolist() == [1, 2, 3, 4, 5, 6]


def test_optimizer_memory_comes_back_if_asked():
    class Adam(Scripted):
        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), lr=0.01)

    for asked in (True, False):
        trainer = fit(
            Adam(CURVE),
            [lt.EarlyStopping("val_loss", patience=2, restore_optimizer=asked)],
            train=dots(),
            val=dots(),
        )
        steps = {int(state["step"]) for state in trainer.optimizers[0].state.values()}
        assert steps == {6 if asked else 10}


def test_restoring_can_be_left_out():
    collect, stopping = Collect(), lt.EarlyStopping("val_loss", patience=2, restore_best=False)
    module = Scripted(CURVE)
    fit(module, [collect, stopping], train=dots(), val=dots())
    assert_same(tensors(module), collect.after[4])
    assert "keeps its last weights; the best was epoch 2" in stopping.message


def test_stop_false_trains_to_the_end_and_chooses_the_best():
    collect, stopping = Collect(), lt.EarlyStopping("val_loss", patience=1, stop=False)
    module = Scripted(CURVE)
    trainer = fit(module, [collect, stopping], train=dots(), val=dots(), max_epochs=8)
    assert trainer.current_epoch == 8
    assert stopping.reason is Reason.NOT_STOPPED
    assert_same(tensors(module), collect.after[2])


def test_swa_is_refused():
    with pytest.raises(UserInputError, match="both decide the final weights"):
        fit(Noisy(), [lt.EarlyStopping("val_loss", patience=1), StochasticWeightAveraging(1e-2)])


# --- When it stops ------------------------------------------------------------------------------------------------


def stops_after(script, stopping, **options):
    module, _ = script_fit(script, stopping, **{"max_epochs": 20, **options})
    return module.epochs_trained


@pytest.mark.parametrize(
    ("unit", "patience", "epochs"),
    [("checks", 2, 5), ("epochs", 2, 5), ("steps", 4, 5), ("steps", 5, 6), ("minutes", 1e-9, 4)],
)
def test_units_of_patience(unit, patience, epochs):
    stopping = lt.EarlyStopping("val_loss", patience=patience, unit=unit, nan="count")
    assert stops_after(lambda module: max(1.0, 3.0 - module.current_epoch), stopping) == epochs
    assert stopping.reason is Reason.PATIENCE_EXHAUSTED
    assert f"has not improved for {stopping.rules['val_loss'].wait:g} {unit}" in stopping.message


def test_epochs_are_not_checks_when_validation_is_rare():
    by = {unit: lt.EarlyStopping("val_loss", patience=2, unit=unit) for unit in ("checks", "epochs")}
    lengths = {u: stops_after(lambda m: 1.0, s, check_val_every_n_epoch=2) for u, s in by.items()}
    assert lengths == {"checks": 6, "epochs": 4}


def test_warm_up_is_neither_counted_nor_ever_the_best():
    stopping = lt.EarlyStopping("val_loss", patience=1, start_from=3)
    assert stops_after([0.1, 0.1, 0.1, 5.0, 4.0, 4.5], stopping) == 6
    assert stopping.best_epoch == 4


@pytest.mark.parametrize(
    ("options", "epochs", "reason"),
    [
        ({"stopping_threshold": 1.2}, 3, Reason.STOPPING_THRESHOLD),
        ({"baseline": 0.5}, 4, Reason.PATIENCE_EXHAUSTED),
        ({"min_delta": 5.0}, 5, Reason.PATIENCE_EXHAUSTED),
        ({"min_delta": 0.4, "min_delta_mode": "relative"}, 7, Reason.PATIENCE_EXHAUSTED),
    ],
)
def test_thresholds(options, epochs, reason):
    stopping = lt.EarlyStopping("val_loss", patience=4, **options)
    assert stops_after(CURVE, stopping) == epochs
    assert stopping.reason is reason


def test_divergence_says_worse():
    stopping = lt.EarlyStopping("val_loss", patience=4, divergence_threshold=4.0)
    assert stops_after([1.0, 0.9, 4.5, 0.8], stopping) == 3
    assert stopping.reason is Reason.DIVERGENCE_THRESHOLD
    assert stopping.message.startswith("val_loss = 4.5 is worse than divergence_threshold=4.0.")


@pytest.mark.parametrize(
    ("nan", "epochs", "reason"),
    [
        ("stop", 2, Reason.NON_FINITE_METRIC),
        ("count", 5, Reason.PATIENCE_EXHAUSTED),
        ("ignore", 7, Reason.PATIENCE_EXHAUSTED),
        ("restore", 5, Reason.PATIENCE_EXHAUSTED),
    ],
)
def test_nan_is_a_policy(nan, epochs, reason):
    collect, stopping = Collect(), lt.EarlyStopping("val_loss", patience=4, nan=nan)
    module = Scripted([1.0, math.nan, math.nan, 2.0, 2.0, 2.0, 2.0, 2.0])
    fit(module, [stopping, collect], train=dots(), val=dots())
    assert (module.epochs_trained, stopping.reason) == (epochs, reason)
    if nan == "restore":
        assert_same(collect.after[1], collect.after[0])
        assert_same(collect.after[2], collect.after[0])


def test_a_first_nan_is_not_the_best():
    stopping = lt.EarlyStopping("val_loss", patience=3, nan="count")
    script_fit([math.nan, 2.0, 3.0, 3.0, 3.0], stopping, max_epochs=5)
    assert (stopping.best_epoch, stopping.best_score.item()) == (1, 2.0)


class TwoMetrics(Scripted):
    def on_validation_epoch_end(self):
        self.log("val_loss", torch.tensor([1.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0][self.current_epoch]))
        self.log("val_acc", torch.tensor([0.1, 0.2, 0.3, 0.3, 0.3, 0.3, 0.3][self.current_epoch]))


@pytest.mark.parametrize(
    ("monitors", "require", "epochs", "best"),
    [
        (["val_loss", "val_acc"], "any", 3, 0),
        (["val_loss", "val_acc"], "all", 5, 0),
        (["val_acc", "val_loss"], "all", 5, 2),
    ],
)
def test_several_metrics(monitors, require, epochs, best):
    stopping = lt.EarlyStopping(monitors, patience=2, require=require)
    module = TwoMetrics([])
    fit(module, [stopping], train=dots(), val=dots(), max_epochs=7, num_sanity_val_steps=0)
    assert (module.epochs_trained, stopping.best_epoch) == (epochs, best)
    assert f"({require} of {', '.join(monitors)})" in stopping.message


def test_each_of_several_metrics_counts_only_when_it_comes():
    class Rare(Scripted):
        def on_validation_epoch_end(self):
            if not self.trainer.sanity_checking:
                self.log("other", torch.tensor(1.0))
                if self.current_epoch % 2:
                    super().on_validation_epoch_end()

    stopping = lt.EarlyStopping(["val_loss", "other"], mode="min", patience=3, require="all", strict=False)
    module = Rare(lambda m: 1.0)
    with pytest.warns(UserWarning, match="EarlyStopping monitors 'val_loss', but that metric was not logged"):
        fit(module, [stopping], train=dots(), val=dots(), max_epochs=20)
    # 'other' misses from the second epoch on; 'val_loss' comes in epochs 2, 4, 6 and 8, and misses three times
    assert module.epochs_trained == 8
    assert [stopping.rules[name].checks for name in ("val_loss", "other")] == [4, 8]


def test_a_run_that_min_epochs_holds_remembers_when_it_was_to_stop():
    stopping, module = lt.EarlyStopping("val_loss", patience=1), Scripted(CURVE)
    fit(module, [stopping], train=dots(), val=dots(), min_epochs=6, max_epochs=8)
    assert (module.epochs_trained, stopping.stopped_epoch) == (6, 3)
    assert stopping.message.startswith("val_loss has not improved for 3 checks.")


def test_verbose_says_each_new_best(caplog):
    script_fit([3.0, 2.0, 2.5, 1.25], lt.EarlyStopping("val_loss", patience=5, verbose=True), max_epochs=4)
    said = [line.split(": ", 1)[1] for line in caplog.messages if "best so far" in line]
    assert said == [f"val_loss = {value} is the best so far." for value in ("3", "2", "1.25")]


def test_metrics_of_training_need_no_validation_loop():
    class Training(Scripted):
        def training_step(self, batch, batch_idx):
            self.log("train_loss", torch.tensor([2.0, 1.0, 3.0, 3.0, 3.0][self.current_epoch]), on_epoch=True)
            return super().training_step(batch, batch_idx)

    for validates in (True, False):
        stopping = lt.EarlyStopping("train_loss", patience=2)
        module = Training(lambda m: None)
        fit(module, [stopping], train=dots(), val=dots(), max_epochs=5, limit_val_batches=int(validates))
        assert (module.epochs_trained, stopping.best_epoch) == (4, 1)


def test_a_metric_logged_only_at_the_end_of_the_epoch_is_seen_in_time():
    class Late(Scripted):
        def on_train_epoch_end(self):
            self.log("late_loss", torch.tensor([2.0, 1.0, 3.0, 3.0, 3.0][self.current_epoch]))

    stopping = lt.EarlyStopping("late_loss", patience=1)
    module = Late(lambda m: None)
    fit(module, [stopping], train=dots(), val=dots(), max_epochs=5)
    assert (module.epochs_trained, stopping.best_epoch) == (3, 1)


def test_manual_optimization():
    stopping = lt.EarlyStopping("val_loss", patience=2)
    trainer = fit(Noisy(manual=True), [stopping])
    assert 0 < stopping.best_step < trainer.global_step


# --- What it says -------------------------------------------------------------------------------------------------


def test_everything_that_looks_for_early_stopping_finds_it():
    stopping = lt.EarlyStopping("val_loss", patience=2)
    trainer = quiet_trainer(callbacks=[stopping])
    assert isinstance(stopping, LightningEarlyStopping)
    assert trainer.early_stopping_callback is stopping


def test_the_logger_gets_the_reason_and_the_best(tmp_path):
    logger = CSVLogger(tmp_path)
    stopping = lt.EarlyStopping("val_loss", patience=2)
    fit(Scripted(CURVE), [stopping], train=dots(), val=dots(), logger=logger, log_every_n_steps=1)
    text = next((tmp_path / "lightning_logs").rglob("early_stopping_message*.txt")).read_text().strip()
    assert text == stopping.message
    assert text.startswith("val_loss has not improved for 2 checks. It ended after 5 epochs and 10 steps;")
    table = next(tmp_path.rglob("metrics.csv")).read_text()
    assert "early_stopping/best_score" in table


def test_a_metric_that_never_comes_is_told_after_the_first_epoch():
    with pytest.raises(UserInputError, match=r"EarlyStopping monitors 'val_los', .* Logged so far: val_loss"):
        script_fit(CURVE, lt.EarlyStopping("val_los", patience=2))
    with pytest.warns(UserWarning, match="EarlyStopping monitors 'val_los'"):
        script_fit(CURVE, lt.EarlyStopping("val_los", patience=2, strict=False), max_epochs=3)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"monitor": ""}, "monitor must be the name of a metric"),
        ({"monitor": []}, "monitor must be the name of a metric"),
        ({"patience": -1}, "patience must be in"),
        ({"unit": "hours"}, "unit must be one of checks, epochs, minutes, steps, but got 'hours'"),
        ({"mode": "lower"}, "mode must be one of"),
        ({"nan": "skip"}, "nan must be one of count, ignore, restore, stop"),
        ({"keep": "gpu"}, "keep must be one of cpu, device, disk"),
        ({"require": "both"}, "require must be one of all, any"),
        ({"min_delta": -0.1}, "margin must be in"),
        ({"after_lr_drop": "reset"}, "after_lr_drop must be one of ignore, renew"),
    ],
)
def test_bad_arguments_get_a_sentence(wrong, sentence):
    with pytest.raises(UserInputError, match=sentence):
        lt.EarlyStopping(**{"monitor": "val_loss", "patience": 1, **wrong})
