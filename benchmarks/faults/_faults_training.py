"""Faults in the optimizer and in the loop."""

import copy

import torch

from benchmarks.faults import _surgery as s
from benchmarks.faults._case import Case, DoesNotFit
from benchmarks.faults._registry import fault


@fault("optimizer has the head only", "params-not-optimized")
def head_only(case: Case) -> None:
    s.hidden(case)
    head = {id(p) for p in s.weighted(case)[-1][1].parameters()}
    names = [name for name, p in case.model.named_parameters() if id(p) in head]

    def change(model, configured):
        kept = {id(p) for name, p in model.named_parameters() if name in names}
        for group in s.optimizer_of(configured).param_groups:
            group["params"] = [p for p in group["params"] if id(p) in kept]
        return configured

    s.change_optimizer(case, change)


@fault("optimizer of a copy of the model", "params-not-optimized", "no-update")
def of_a_copy(case: Case) -> None:
    other = copy.deepcopy(case.model)
    configure = type(case.model).configure_optimizers
    case.override(configure_optimizers=lambda self: configure(other))


@fault(
    "learning rate 1000 times too high", "lr-too-high", "diverging", "oscillating", "nonfinite", "cannot-overfit",
    proof="score",
)  # fmt: skip
def rate_too_high(case: Case) -> None:
    s.scale_rate(case, 1000)


@fault("learning rate 10,000 times too low", "lr-too-low", "not-learning", "cannot-overfit", proof="score")
def rate_too_low(case: Case) -> None:
    s.scale_rate(case, 1e-4)


@fault("learning rate 0", "no-update", "lr-too-low", "cannot-overfit")
def rate_zero(case: Case) -> None:
    s.scale_rate(case, 0.0)


@fault("gradients never set to zero", "exploding-gradient", "diverging", "oscillating", "lr-too-high", "nonfinite",
       proof="score")  # fmt: skip
def no_zero_grad(case: Case) -> None:
    case.override(optimizer_zero_grad=lambda self, epoch, batch_idx, optimizer: None)


@fault("loss is maximised", "diverging", "not-learning", "cannot-overfit", "nonfinite")
def ascent(case: Case) -> None:
    step = type(case.model).training_step
    case.override(training_step=lambda self, batch, batch_idx: -step(self, batch, batch_idx))


@fault("gradients clipped to 1e-4", "clipping-binds", "lr-too-low", "not-learning", proof="score")
def clipped(case: Case) -> None:
    if s.is_adaptive(case):
        raise DoesNotFit("harmless there: Adam divides by the size of the gradients")
    case.trainer = {**case.trainer, "gradient_clip_val": 1e-4}


@fault("weight decay on everything", "decay-on-bias-or-norm", note=True)
def decay_everything(case: Case) -> None:
    if any(group["weight_decay"] for group in s.optimizer_of(case.model.configure_optimizers()).param_groups):
        raise DoesNotFit("it has weight decay already")

    def change(model, configured):
        for group in s.optimizer_of(configured).param_groups:
            group["weight_decay"] = 0.1
        return configured

    s.change_optimizer(case, change)


@fault("weight decay of 10", "cannot-overfit", "not-learning", "decay-on-bias-or-norm", "lr-too-high", proof="score")
def decay_huge(case: Case) -> None:
    def change(model, configured):
        for group in s.optimizer_of(configured).param_groups:
            group["weight_decay"] = 10.0
        return configured

    s.change_optimizer(case, change)


@fault("momentum 0.999", "oscillating", "lr-too-high", "diverging", "nonfinite", proof="score")
def momentum(case: Case) -> None:
    if s.is_adaptive(case):
        raise DoesNotFit("its optimizer has no momentum")

    def change(model, configured):
        for group in s.optimizer_of(configured).param_groups:
            group["momentum"] = 0.999
        return configured

    s.change_optimizer(case, change)


@fault("learning rate halved in every step", "lr-too-low", "not-learning", proof="score")
def vanishing_rate(case: Case) -> None:
    def change(model, configured):
        optimizer = s.optimizer_of(configured)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    s.change_optimizer(case, change)
