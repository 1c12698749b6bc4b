"""Learning rates: against torch and Keras' rule, live against simulated, beside schedulers, with several optimizers."""

import copy
import math

import pytest
import torch
from fault_scenarios import better_and_better, fit
from helpers import quiet_trainer
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from stopping_models import Noisy, Scripted, assert_same, dots, noise, tensors
from torch import nn
from torch.optim import lr_scheduler
from torch.optim.swa_utils import SWALR

import lightning_tricks as lt
from lightning_tricks._base import UserInputError
from lightning_tricks.callbacks.learning_rate._lr_scale import Reducer, reduce_all
from lightning_tricks.plots import plot_simulation

VALUES = st.sampled_from([-1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5, math.nan, math.inf, -math.inf]) | st.floats(
    -1000, 1000, width=32, allow_subnormal=False
)
LENGTH = 8


class ManyCurves(LightningModule):
    """Logs one curve per parameter group, so that one real run serves many callbacks."""

    def __init__(self, curves):
        super().__init__()
        self.weights = nn.ParameterList(torch.zeros(1) for _ in curves)
        self.curves = curves
        self.rates = []

    def training_step(self, batch, batch_idx):
        return sum(weight.sum() for weight in self.weights)

    def validation_step(self, batch, batch_idx):
        pass

    def on_validation_epoch_end(self):
        if not self.trainer.sanity_checking:
            self.log_dict({f"m{i}": torch.tensor(c[self.current_epoch]) for i, c in enumerate(self.curves)})

    def on_train_epoch_start(self):
        self.rates.append([group["lr"] for group in self.optimizers().param_groups])

    def configure_optimizers(self):
        groups = [{"params": [weight], "name": f"m{i}"} for i, weight in enumerate(self.weights)]
        return torch.optim.SGD(groups, lr=1.0)


@settings(max_examples=25, deadline=None, derandomize=True, phases=[Phase.generate])  # shrinking takes minutes
@given(
    curves=st.lists(st.lists(VALUES, min_size=LENGTH, max_size=LENGTH), min_size=20, max_size=20),
    options=st.fixed_dictionaries(
        {
            "patience": st.integers(1, 4),
            "cooldown": st.integers(0, 3),
            "threshold": st.sampled_from([0.0, 1e-4, 0.1]),
            "threshold_mode": st.sampled_from(["relative", "absolute"]),
            "convention": st.sampled_from(["torch", "keras"]),
            "after": st.integers(0, 3),
            "nan": st.sampled_from(["count", "ignore"]),
            "mode": st.sampled_from(["min", "max"]),
            "smooth": st.sampled_from([None, "ema", "median"]),
        }
    ),
)
def test_simulation_and_live_callback_agree_on_500_curves(curves, options):
    module = ManyCurves(curves)
    live = [
        lt.ReduceLROnPlateau(f"m{i}", factor={f"m{i}": 0.5}, min_lr={f"m{i}": 0.01}, **options)
        for i in range(len(curves))
    ]
    fit(module, live, max_epochs=LENGTH, limit_train_batches=1, limit_val_batches=1, num_sanity_val_steps=0)
    alone = lt.ReduceLROnPlateau("m", factor=0.5, min_lr=0.01, **options)
    last = [group["lr"] for group in module.optimizers().param_groups]
    after_each_check = [*module.rates[1:], last]
    for i, curve in enumerate(curves):
        assert [rates[i] for rates in after_each_check] == alone.simulate(curve)


@settings(max_examples=40, deadline=None)
@given(
    curve=st.lists(st.sampled_from([0.5, 1.0, 1.5, 2.0]) | st.floats(0, 10), max_size=25),
    patience=st.integers(0, 3),
    cooldown=st.integers(0, 3),
    min_lr=st.sampled_from([0.0, 0.05, 0.3]),
)
def test_simulation_is_torch_to_the_last_bit(curve, patience, cooldown, min_lr):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.7)
    scheduler = lr_scheduler.ReduceLROnPlateau(optimizer, patience=patience, cooldown=cooldown, min_lr=min_lr)
    rates = []
    for value in curve:
        scheduler.step(value)
        rates.append(optimizer.param_groups[0]["lr"])
    ours = lt.ReduceLROnPlateau("val_loss", patience=patience, cooldown=cooldown, min_lr=min_lr)
    assert ours.simulate(curve, lr=0.7) == rates


def keras_rates(values, *, factor, patience, cooldown, lr):
    """Keras' ``ReduceLROnPlateau.on_epoch_end`` in mode ``min`` with ``min_delta=0``, retold step by step."""
    best, wait, left, rates = math.inf, 0, 0, []
    for value in values:
        if left > 0:
            left -= 1
            wait = 0
        if value < best:
            best, wait = value, 0
        elif left == 0:
            wait += 1
            if wait >= patience:
                lr, left, wait = lr * factor, cooldown, 0
        rates.append(lr)
    return rates


@settings(max_examples=40, deadline=None)
@given(
    curve=st.lists(st.sampled_from([0.5, 1.0, 1.5, 2.0]), max_size=25),
    patience=st.integers(0, 4),
    cooldown=st.integers(0, 4),
)
def test_keras_convention(curve, patience, cooldown):
    options = {"factor": 0.5, "patience": patience, "cooldown": cooldown}
    ours = lt.ReduceLROnPlateau("val_loss", convention="keras", threshold=0, eps=0, **options)
    assert ours.simulate(curve) == keras_rates(curve, lr=1.0, **options)


# --- Beside other things that move learning rates -----------------------------------------------------------------


class Scheduled(Scripted):
    def __init__(self, script, make, interval="epoch"):
        super().__init__(script)
        self.make, self.interval = make, interval

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=self.lr)
        return [optimizer], [{"scheduler": self.make(optimizer), "interval": self.interval}]


SCHEDULES = {
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=12),
    "warm restarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, T_0=5),
    "cosine to a floor": lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=6, eta_min=0.05),
    "restarts to a floor": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, T_0=5, eta_min=0.03),
    "averaging": lambda o: SWALR(o, swa_lr=0.04, anneal_epochs=6),
    "lambda": lambda o: lr_scheduler.LambdaLR(o, lambda step: 1 / (1 + step)),
    "one cycle": lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.4, total_steps=20),
    "cyclic": lambda o: lr_scheduler.CyclicLR(o, base_lr=0.1, max_lr=0.4, step_size_up=3),
    "warm-up, then cosine": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, 0.25, total_iters=4), lr_scheduler.CosineAnnealingLR(o, T_max=8)], [4]
    ),
    "steps": lambda o: lr_scheduler.StepLR(o, 3),
}


@pytest.mark.filterwarnings("ignore:The epoch parameter in `scheduler.step.*:UserWarning")  # torch's own SequentialLR
@pytest.mark.parametrize("name", SCHEDULES)
def test_a_scheduler_beside_does_not_undo_the_reduction(name):
    curve = [1.0, 2.0, 2.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3]  # one plateau, at the check of epoch 2
    alone, both = (Scheduled(curve, SCHEDULES[name], "step" if "cycl" in name else "epoch") for _ in range(2))
    fit(alone, max_epochs=10)
    plateau = lt.ReduceLROnPlateau("val_loss", factor=0.5, patience=1, eps=0)
    fit(both, [plateau], max_epochs=10)
    assert [(r.epoch, r.step) for r in plateau.reductions] == [(2, 6)]
    expected = [rate * (0.5 if index >= 6 else 1) for index, rate in enumerate(alone.rates)]
    # where a schedule has a floor of its own (here always 0 or scaled too) the whole curve is halved
    assert both.rates == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_the_floor_beside_a_schedule_is_for_its_height():
    module = Scheduled(lambda m: 1.0, SCHEDULES["cosine"])
    plateau = lt.ReduceLROnPlateau("val_loss", factor=0.1, patience=0, min_lr=0.05)
    fit(module, [plateau], max_epochs=10)
    assert len(plateau.reductions) == 1, "0.1 -> 0.05, then the floor"
    assert module.lr_schedulers().base_lrs == [0.05]


class TwoOptimizers(Noisy):
    def __init__(self):
        super().__init__(manual=True)
        self.extra = nn.Linear(6, 3)

    def training_step(self, batch, batch_idx):
        for optimizer, net in zip(self.optimizers(), (self.net, self.extra), strict=True):
            optimizer.zero_grad()
            self.manual_backward(nn.functional.cross_entropy(net(batch[0]), batch[1]))
            optimizer.step()

    def configure_optimizers(self):
        parts = (self.net, 0.1), (self.extra, 0.02)
        return [torch.optim.SGD(part.parameters(), lr=lr) for part, lr in parts]

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", torch.tensor(1.0))


def test_several_optimizers_and_manual_optimization():
    module = TwoOptimizers()
    plateau = lt.ReduceLROnPlateau("val_loss", factor=0.5, patience=1)
    trainer = fit(module, [plateau], train=noise(0), val=noise(1), max_epochs=4)
    assert [optimizer.param_groups[0]["lr"] for optimizer in trainer.optimizers] == [0.05, 0.01]
    assert plateau.reductions[0][2:] == (0.1, 0.05)


class Groups(Scripted):
    def configure_optimizers(self):
        weight, bias = self.net.weight, self.net.bias
        return torch.optim.SGD(
            [{"params": [weight], "name": "body", "lr": 0.1}, {"params": [bias], "name": "head", "lr": 0.2}]
        )


def rates_at_end(trainer):
    return {group.get("name"): group["lr"] for group in trainer.optimizers[0].param_groups}


def test_factors_and_floors_by_group():
    plateau = lt.ReduceLROnPlateau(
        "val_loss", factor={"body": 0.5, "head": 0.1}, min_lr={"body": 0.04}, patience=0, stop_after=2
    )
    trainer = fit(Groups(lambda m: 1.0), [plateau], max_epochs=9)
    assert rates_at_end(trainer) == pytest.approx({"body": 0.04, "head": 0.002})
    one = fit(Groups(lambda m: 1.0), [lt.ReduceLROnPlateau("val_loss", factor={"head": 0.5}, patience=0)], max_epochs=2)
    assert rates_at_end(one) == {"body": 0.1, "head": 0.1}


def test_an_unknown_group_name_is_told():
    with pytest.warns(UserWarning, match=r"no parameter group is called hed yet \(now: body, head\)"):
        fit(Groups(lambda m: 1.0), [lt.ReduceLROnPlateau("val_loss", factor={"hed": 0.5})], max_epochs=1)


def test_groups_added_later_are_followed():
    class Unfreezes(Scheduled):
        def __init__(self):
            super().__init__(lambda m: 1.0, lambda o: lr_scheduler.LambdaLR(o, lambda e: 1.0))
            self.late = nn.Linear(1, 1)

        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.net.parameters(), lr=0.1)
            return [optimizer], [self.make(optimizer)]

        def on_train_epoch_start(self):
            if self.current_epoch == 2:
                group = {"params": list(self.late.parameters()), "lr": 0.01, "name": "late"}
                self.optimizers().optimizer.add_param_group(group)

    plateau = lt.ReduceLROnPlateau("val_loss", factor=0.5, patience=1)
    module = Unfreezes()
    module.automatic_optimization = True

    class WithoutSchedule(Unfreezes):
        def configure_optimizers(self):
            return torch.optim.SGD(self.net.parameters(), lr=0.1)

    trainer = fit(WithoutSchedule(), [plateau], max_epochs=6)
    # plateaus at the checks of epochs 2 and 4; the group that came in epoch 2 takes part in both
    assert [r.epoch for r in plateau.reductions] == [2, 4]
    assert rates_at_end(trainer) == {None: 0.025, "late": 0.0025}


# --- When it acts -------------------------------------------------------------------------------------------------


def test_it_acts_before_the_checkpoint_is_written(tmp_path):
    saver = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    plateau = lt.ReduceLROnPlateau("val_loss", factor=0.5, patience=1)
    fit(Scripted(lambda m: 1.0), [saver, plateau], max_epochs=4, enable_checkpointing=True)
    saved = torch.load(tmp_path / "epoch=2.ckpt", weights_only=True)
    assert saved["optimizer_states"][0]["param_groups"][0]["lr"] == 0.05
    assert plateau.reductions == [(2, 6, 0.1, 0.05)]


def test_after_keeps_warm_up_free():
    early, late = (lt.ReduceLROnPlateau("val_loss", factor=0.5, patience=0, start_from=n) for n in (0, 3))
    curve = [1.0, 2.0, 2.0, 1.5, 1.6]
    assert early.simulate(curve) == [1.0, 0.5, 0.25, 0.125, 0.0625]
    assert late.simulate(curve) == [1.0, 1.0, 1.0, 1.0, 0.5]


def test_it_goes_back_to_the_best_weights_when_reducing():
    seen = {}

    class Watch(Scripted):
        def on_train_epoch_start(self):
            super().on_train_epoch_start()
            seen[self.current_epoch] = (tensors(self), copy.deepcopy(self.optimizers().optimizer.state_dict()))

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), lr=0.1)

    for memory in (True, False):
        plateau = lt.ReduceLROnPlateau("val_loss", factor=0.5, patience=1, restore_best=True, restore_optimizer=memory)
        fit(Watch([1.0, 0.5, 2.0, 2.0, 2.0, 2.0]), [plateau], max_epochs=6)
        assert [r.epoch for r in plateau.reductions] == [3, 5]
        assert_same(seen[4][0], seen[2][0])  # reduced after epoch 3: back to the end of epoch 1
        assert seen[4][1]["param_groups"][0]["lr"] == 0.05
        assert seen[4][1]["state"][0]["step"] == (4 if memory else 8)


@pytest.mark.parametrize(
    ("stop_after", "min_lr", "epochs", "sentence"),
    [
        (2, 0.0, 7, "on a plateau again, and 2 reductions are made"),
        (0, 0.0, 3, "0 reductions are made"),
        ("min_lr", 0.02, 9, "the learning rate is at its floor"),
    ],
)
def test_it_stops_at_the_plateau_after_the_last_reduction(stop_after, min_lr, epochs, sentence):
    options = {"factor": 0.5, "patience": 1, "stop_after": stop_after, "min_lr": min_lr}
    plateau = lt.ReduceLROnPlateau("val_loss", **options)
    module = Scripted(lambda m: 1.0)
    fit(module, [plateau], max_epochs=20)
    assert module.epochs_trained == epochs
    assert sentence in plateau.message
    assert len(lt.ReduceLROnPlateau("val_loss", **options).simulate([1.0] * 20, lr=0.1)) == epochs


@pytest.mark.parametrize("order", [1, -1])
def test_a_reduction_gives_early_stopping_a_fresh_patience(order):
    def length(**options):
        stopping = lt.EarlyStopping("val_loss", patience=3, **options)
        plateau = lt.ReduceLROnPlateau("val_loss", factor=0.1, patience=2, stop_after=None, min_lr=0.001)
        module = Scripted(lambda m: 1.0)
        fit(module, [stopping, plateau][::order], max_epochs=30)
        return module.epochs_trained

    # The first value is epoch 1; reductions at epochs 4 and 7 (0.1 -> 0.01 -> 0.001), then three misses.
    assert length() == 10
    assert length(after_lr_drop="ignore") == 4


def test_nan_stops_if_asked():
    plateau = lt.ReduceLROnPlateau("val_loss", nan="stop")
    module = Scripted([1.0, math.nan, 1.0])
    fit(module, [plateau], max_epochs=3)
    assert module.epochs_trained == 2
    assert plateau.message == "val_loss = nan is not a finite number."
    assert plateau.simulate([1.0, math.nan, 1.0]) == [1.0, 1.0]


def test_a_run_that_min_epochs_holds_may_recover():
    plateau = lt.ReduceLROnPlateau("val_loss", patience=0, stop_after=0)
    module = Scripted([1.0, 2.0, 2.0, 0.5, 0.4, 0.6, 0.1])
    trainer = fit(module, [plateau], min_epochs=4, max_epochs=7)
    assert module.epochs_trained == 6, "asked to stop twice before, and withdrew it in the fourth epoch"
    assert "0 reductions are made" in plateau.message
    assert trainer.should_stop


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended", "ignore:Checkpoint directory")
def test_a_stopped_run_stays_stopped_when_resumed(tmp_path, caplog):
    def run(**options):
        plateau, module = lt.ReduceLROnPlateau("val_loss", patience=0, stop_after=0), Scripted(lambda m: 1.0)
        saver = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
        fit(module, [plateau, saver], max_epochs=6, enable_checkpointing=True, **options)
        return module

    assert run().epochs_trained == 2
    again = run(ckpt=tmp_path / "epoch=1.ckpt")
    assert not hasattr(again, "epochs_trained")
    assert "the resumed run had already stopped and stays so. val_loss is on a plateau again" in caplog.text


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended", "ignore:Checkpoint directory")
def test_best_weights_that_the_checkpoint_does_not_hold_are_looked_for_anew(tmp_path):
    def run(restore, **options):
        plateau = lt.ReduceLROnPlateau("val_loss", patience=9, restore_best=restore)
        saver = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
        fit(Scripted([1.0, 2.0, 3.0]), [plateau, saver], max_epochs=3, enable_checkpointing=True, **options)
        return plateau.rule.best

    assert run(False) == 1.0
    assert run(True, ckpt=tmp_path / "epoch=1.ckpt") == 3.0


def test_a_best_that_could_not_be_written_is_none(tmp_path, monkeypatch):
    def full(content, file, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    plateau = lt.ReduceLROnPlateau("val_loss", patience=9, restore_best=True, keep="disk", dirpath=str(tmp_path))
    with pytest.warns(UserWarning, match="No space left on device. Training goes on; no best weights are kept yet"):
        fit(Scripted([1.0, 0.5]), [plateau], max_epochs=2)
    assert plateau.rule.best is None


def test_learning_rates_that_are_tensors_and_groups_that_no_scheduler_knows():
    first, second = nn.Linear(1, 1), nn.Linear(1, 1)
    optimizer = torch.optim.SGD(first.parameters(), lr=torch.tensor(0.4), foreach=False)
    rate = optimizer.param_groups[0]["lr"]
    reduce_all([optimizer], [], Reducer(0.5, 0.0, 1e-8))
    assert optimizer.param_groups[0]["lr"] is rate
    assert float(rate) == pytest.approx(0.2)
    optimizer = torch.optim.SGD(first.parameters(), lr=0.4)
    schedule = lr_scheduler.StepLR(optimizer, 1000)
    optimizer.add_param_group({"params": second.parameters(), "lr": 0.8})
    assert reduce_all([optimizer], [schedule], Reducer(0.5, 0.0, 1e-8)) == [(0.4, 0.2), (0.8, 0.4)]
    assert schedule.base_lrs == [0.2]


def test_a_second_fit_starts_fresh():
    plateau = lt.ReduceLROnPlateau("val_loss", patience=0)
    fit(Scripted(lambda m: 1.0), [plateau], max_epochs=3)
    assert len(plateau.reductions) == 2
    fit(Scripted(better_and_better), [plateau], max_epochs=3)
    assert plateau.reductions == []


def test_fast_dev_run_and_missing_metric():
    quiet_trainer(fast_dev_run=True, callbacks=[lt.ReduceLROnPlateau("none")]).fit(Scripted([1.0]), dots(), dots())
    with pytest.raises(UserInputError, match=r"ReduceLROnPlateau monitors 'none', .* Logged so far: val_loss"):
        fit(Scripted(better_and_better), [lt.ReduceLROnPlateau("none")], max_epochs=3)
    with pytest.warns(UserWarning, match="ReduceLROnPlateau monitors 'none'"):
        fit(Scripted(better_and_better), [lt.ReduceLROnPlateau("none", strict=False)], max_epochs=3)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"monitor": ""}, "monitor must be the name of a metric, but got ''"),
        ({"factor": 1.0}, r"factor must be in \(0, 1\), but got 1.0"),
        ({"factor": {"head": 10}}, r"factor\['head'\] must be in \(0, 1\), but got 10"),
        ({"patience": -1}, "patience must be in"),
        ({"convention": "fastai"}, "convention must be one of keras, torch"),
        ({"min_lr": -1}, "min_lr must be in"),
        ({"stop_after": -1}, "stop_after must be in"),
        ({"nan": "restore"}, "nan must be one of count, ignore, stop"),
    ],
)
def test_bad_arguments_get_a_sentence(wrong, sentence):
    with pytest.raises(UserInputError, match=sentence):
        lt.ReduceLROnPlateau(**{"monitor": "val_loss", **wrong})


def test_simulation_needs_one_curve():
    with pytest.raises(UserInputError, match="given by parameter group"):
        lt.ReduceLROnPlateau("val_loss", factor={"head": 0.5}).simulate([1.0])


@pytest.mark.parametrize("make", [lambda n: lt.EarlyStopping(n, patience=1), lt.ReduceLROnPlateau])
def test_a_misspelt_name_is_told_before_training(make):
    with pytest.raises(UserInputError, match=r"sanity check's validation logged val_loss. Did you mean 'val_loss'"):
        fit(Noisy(), [make("val_los")], train=noise(0), val=noise(1), max_epochs=1)


def test_the_picture_of_a_simulation():
    figure = plot_simulation([1.0, 0.9, 0.9, 0.9, 0.9], [0.1, 0.1, 0.1, 0.05], name="val_loss")
    above, below = figure.axes
    assert above.lines[0].get_ydata().tolist() == [1.0, 0.9, 0.9, 0.9, 0.9]
    assert below.lines[0].get_ydata().tolist() == [0.1, 0.1, 0.1, 0.05]
    marks = list(below.lines[1:])
    assert [line.get_xdata()[0] for line in marks] == [4]
    assert below.get_yscale() == "log"
    assert [text.get_text() for text in above.texts] == [" stopped"]
    with pytest.raises(UserInputError, match="at least one rate and no more than values, but got 2 for 1"):
        plot_simulation([1.0], [1.0, 1.0])
