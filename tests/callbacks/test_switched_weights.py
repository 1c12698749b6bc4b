"""The weights that are put back are those that were validated, also where training uses others (schedule-free)."""

import pytest
import torch
from helpers import quiet_trainer
from lightning.pytorch import Callback, seed_everything
from stopping_models import Noisy, Scripted, assert_same, dots, noise, tensors

import lightning_tricks as lt


class ScheduleFree(torch.optim.Optimizer):
    """SGD in the manner of the package schedulefree: parameters are y in training and the average x in evaluation."""

    def __init__(self, parameters, lr=0.5, beta=0.9):
        super().__init__(parameters, {"lr": lr, "beta": beta, "train_mode": False, "k": 0})

    @torch.no_grad()
    def _switch(self, training):
        for group in self.param_groups:
            if group["train_mode"] != training:
                weight = 1 - group["beta"] if training else 1 - 1 / group["beta"]
                for p in group["params"]:
                    if "z" in self.state[p]:
                        p.data.lerp_(self.state[p]["z"], weight)
                group["train_mode"] = training

    def train(self):
        self._switch(True)

    def eval(self):
        self._switch(False)

    @torch.no_grad()
    def step(self, closure=None):
        with torch.enable_grad():
            loss = closure()
        for group in self.param_groups:
            if not group["train_mode"]:
                raise RuntimeError("step() in evaluation mode")
            group["k"] += 1
            for p in group["params"]:
                z = self.state[p].setdefault("z", p.clone())
                p.lerp_(z, 1 / group["k"])
                p.add_(p.grad, alpha=group["lr"] * (group["beta"] * (1 - 1 / group["k"]) - 1))
                z.sub_(p.grad, alpha=group["lr"])
        return loss


class Switch(Callback):
    def _all(self, trainer, mode):
        for optimizer in trainer.optimizers:
            getattr(optimizer, mode)()

    def on_train_start(self, trainer, module):
        self._all(trainer, "train")

    def on_validation_start(self, trainer, module):
        self._all(trainer, "eval")

    def on_validation_end(self, trainer, module):
        if trainer.state.fn == "fit":
            self._all(trainer, "train")

    def on_train_end(self, trainer, module):
        self._all(trainer, "eval")


class SwitchAtEpochEnd(Switch):
    on_validation_end = Callback.on_validation_end

    def on_validation_epoch_end(self, trainer, module):
        if trainer.state.fn == "fit":
            self._all(trainer, "train")


class Module(Noisy):
    def configure_optimizers(self):
        return ScheduleFree(self.parameters(), lr=self.lr)


def fit(callbacks, **options):
    seed_everything(3, verbose=False)
    module = Module(lr=0.5)
    trainer = quiet_trainer(callbacks=callbacks, **{"max_epochs": 12, **options})
    trainer.fit(module, noise(0, shuffle=True), noise(1))
    return module, trainer


def value_of(module):
    return quiet_trainer().validate(module, noise(1), verbose=False)[0]["val_loss"]


@pytest.mark.parametrize("keep", ["cpu", "device", "disk"])
@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("switch", [Switch, SwitchAtEpochEnd])
def test_the_restored_weights_are_worth_what_is_said(switch, order, keep, tmp_path):
    stopping = lt.EarlyStopping("val_loss", patience=3, keep=keep)
    module, trainer = fit([stopping, switch()][::order], val_check_interval=2, default_root_dir=tmp_path)
    assert 0 < stopping.best_step < trainer.global_step
    assert value_of(module) == pytest.approx(float(stopping.best_score), abs=1e-6)


@pytest.mark.parametrize("order", [1, -1])
def test_training_goes_on_from_weights_that_were_put_back(order):
    plateau = lt.ReduceLROnPlateau("val_loss", patience=1, factor=0.5, restore_best=True)
    stopping = lt.EarlyStopping("val_loss", patience=6)
    module, _ = fit([plateau, stopping, Switch()][::order])
    assert plateau.reductions
    assert value_of(module) == pytest.approx(float(stopping.best_score), abs=1e-6)


class WritesLate(Callback):
    """Writes over the weights at the end of later validations; keeps those that were validated."""

    def on_validation_start(self, trainer, module):
        self.validated = tensors(module)

    def on_validation_end(self, trainer, module):
        if trainer.current_epoch >= 2:
            for parameter in module.parameters():
                parameter.data.mul_(0.5)


@pytest.mark.parametrize(("epochs", "best"), [(3, 1), (4, 3)])
def test_a_value_whose_weights_are_gone_is_never_the_best(epochs, best):
    stopping, writer, module = lt.EarlyStopping("val_loss", patience=4), WritesLate(), Scripted([3.0, 2.0, 1.0, 0.5])
    with pytest.warns(UserWarning, match="something wrote the parameters between the validation and the end of it"):
        quiet_trainer(callbacks=[writer, stopping], max_epochs=epochs).fit(module, dots(), dots())
    assert stopping.best_epoch == best
    if best == epochs - 1:
        assert_same(tensors(module), writer.validated)
