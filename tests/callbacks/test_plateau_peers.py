"""ReduceLROnPlateau beside schedulers and optimizers that are not torch's own, or that keep no learning rate."""

import math

import pytest
import torch
from helpers import quiet_trainer
from stopping_models import Scripted, dots
from torch.optim import lr_scheduler

import lightning_tricks as lt

CURVE = [1.0, 2.0, 2.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3]  # one plateau, at the check of epoch 2


class CosineOfValues:
    """In the manner of timm's schedulers: no torch scheduler, and the rate is set from values of its own."""

    def __init__(self, optimizer, t_initial=10, lr_min=0.0, warmup_t=0, warmup_lr_init=0.0):
        self.optimizer, self.t_initial, self.lr_min = optimizer, t_initial, lr_min
        self.warmup_t, self.warmup_lr_init = warmup_t, warmup_lr_init
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
        self.base_values = [group["initial_lr"] for group in optimizer.param_groups]
        self.warmup_steps = [(value - warmup_lr_init) / warmup_t if warmup_t else 1 for value in self.base_values]
        self.step(0)

    def state_dict(self):
        return {key: value for key, value in self.__dict__.items() if key != "optimizer"}

    def load_state_dict(self, state):
        self.__dict__.update(state)

    def step(self, epoch):
        for group, value, step in zip(self.optimizer.param_groups, self.base_values, self.warmup_steps, strict=True):
            if epoch < self.warmup_t:
                group["lr"] = self.warmup_lr_init + epoch * step
            else:
                share = (1 + math.cos(math.pi * epoch / self.t_initial)) / 2
                group["lr"] = self.lr_min + (value - self.lr_min) * share


class Stubborn(CosineOfValues):
    """Keeps its values where nobody finds them."""

    def __init__(self, optimizer):
        super().__init__(optimizer)
        self.hidden = self.__dict__.pop("base_values")

    def step(self, epoch):
        for group in self.optimizer.param_groups:
            group["lr"] = 0.1


class Beside(Scripted):
    def __init__(self, make, optimizer=None, interval="epoch"):
        super().__init__(CURVE)
        self.make, self.optimizer = make, optimizer or (lambda p: torch.optim.SGD(p, lr=0.1))

    def configure_optimizers(self):
        optimizer = self.optimizer(self.parameters())
        return optimizer if self.make is None else ([optimizer], [self.make(optimizer)])

    def lr_scheduler_step(self, scheduler, metric):
        if isinstance(scheduler, CosineOfValues):
            scheduler.step(self.current_epoch + 1)
        else:
            super().lr_scheduler_step(scheduler, metric)


def fit(module, callbacks=()):
    trainer = quiet_trainer(max_epochs=10, callbacks=list(callbacks))
    trainer.fit(module, dots(), dots())
    return trainer


@pytest.mark.parametrize(
    "options",
    [{}, {"lr_min": 0.06}, {"warmup_t": 6, "warmup_lr_init": 0.01}, {"warmup_t": 3, "lr_min": 0.02}],
)
def test_schedulers_that_set_the_rate_from_values_of_their_own(options):
    alone, both = (Beside(lambda o: CosineOfValues(o, **options)) for _ in range(2))
    fit(alone)
    plateau = lt.ReduceLROnPlateau("val_loss", factor=0.5, patience=1, eps=0)
    fit(both, [plateau])
    assert [r.epoch for r in plateau.reductions] == [2]
    steps = len(alone.rates) // 10 * 3
    halved = [rate * (0.5 if index >= steps else 1) for index, rate in enumerate(alone.rates)]
    assert both.rates == pytest.approx(halved, rel=1e-9, abs=1e-12)


def test_a_reduction_that_is_undone_is_said():
    plateau = lt.ReduceLROnPlateau("val_loss", factor=0.5, patience=1)
    with pytest.warns(UserWarning, match=r"lowered the learning rate to at most 0\.05, but it is 0\.1 again"):
        fit(Beside(Stubborn), [plateau])


def test_a_rate_for_all_groups_cannot_follow_one_of_them():
    def groups(parameters):
        weight, bias = parameters
        return torch.optim.SGD([{"params": [weight], "name": "a"}, {"params": [bias], "name": "b"}], lr=0.1)

    module = Beside(lambda o: lr_scheduler.CosineAnnealingLR(o, 10, eta_min=0.05), groups)
    with pytest.warns(UserWarning, match=r"CosineAnnealingLR\.eta_min is one learning rate for all groups"):
        fit(module, [lt.ReduceLROnPlateau("val_loss", factor={"a": 0.5}, patience=1)])


class FindsItsRate(torch.optim.SGD):
    """In the manner of transformers' Adafactor: no learning rate unless one is given."""

    def __init__(self, parameters):
        super().__init__(parameters, lr=0.1)
        for group in self.param_groups:
            group["lr"] = None

    def step(self, closure=None):
        for group in self.param_groups:
            group["lr"] = 0.1
        result = super().step(closure)
        for group in self.param_groups:
            group["lr"] = None
        return result


def test_no_learning_rate_at_all_is_said_and_crashes_nothing():
    plateau = lt.ReduceLROnPlateau("val_loss", patience=1)
    with pytest.warns(UserWarning, match="every parameter group has lr=None"):
        fit(Beside(None, FindsItsRate), [plateau])
    assert plateau.reductions == []


@pytest.mark.filterwarnings("ignore:ReduceLROnPlateau has nothing to lower", "ignore:Diagnosis")
def test_the_recipe_works_without_a_learning_rate():
    diagnosis = lt.Diagnosis(every_n_steps=1, report_path=None)
    trainer = fit(Beside(None, FindsItsRate), [*lt.recipe("val_loss", patience=4), diagnosis])
    assert trainer.current_epoch == 10


@pytest.mark.parametrize("make", [None, lambda o: lr_scheduler.CosineAnnealingLR(o, 10, eta_min=0.01)])
def test_learning_rates_that_are_tensors(make):
    def adam(parameters):
        return torch.optim.Adam(parameters, lr=torch.tensor(0.1), foreach=False)

    class Reads(Beside):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            self.rates[-1] = float(self.rates[-1])
            return loss

    alone, both = Reads(make, adam), Reads(make, adam)
    fit(alone)
    plateau = lt.ReduceLROnPlateau("val_loss", factor=0.5, patience=1)
    trainer = fit(both, [plateau])
    steps = len(alone.rates) // 10 * 3
    halved = [rate * (0.5 if index >= steps else 1) for index, rate in enumerate(alone.rates)]
    assert both.rates == pytest.approx(halved, rel=1e-4)
    assert isinstance(trainer.optimizers[0].param_groups[0]["lr"], torch.Tensor)
