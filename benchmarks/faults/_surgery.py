"""How faults find and exchange the parts of a program."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from benchmarks.faults._case import Case, DoesNotFit

BATCH_NORM = nn.modules.batchnorm._BatchNorm
ACTIVATIONS = (nn.ReLU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid)
RECURRENT = nn.RNNBase


def needs_task(case: Case, *tasks: str) -> None:
    """Refuse programs of other tasks."""
    if case.task not in tasks:
        raise DoesNotFit(f"its task is {case.task}")


def needs_norm(case: Case) -> None:
    """Refuse programs without BatchNorm."""
    if not any(isinstance(m, BATCH_NORM) for m in case.net.modules()):
        raise DoesNotFit("it has no BatchNorm")


def self_taught(case: Case) -> bool:
    """Whether the targets are the inputs."""
    x, y = case.tensors
    return x.shape == y.shape and torch.equal(x, y)


def weighted(case: Case) -> list[tuple[str, nn.Linear | nn.Conv2d]]:
    """Return Linear and convolution layers by name, in order of registration."""
    kinds = (nn.Linear, nn.modules.conv._ConvNd)
    found = [(name, m) for name, m in case.net.named_modules() if isinstance(m, kinds) and m.weight.requires_grad]
    if not found:
        raise DoesNotFit("it has no Linear or convolution layer")
    return found


def hidden(case: Case) -> list[tuple[str, nn.Linear | nn.Conv2d]]:
    """Return the weighted layers but the last; programs with one only are refused."""
    found = weighted(case)[:-1]
    if not found:
        raise DoesNotFit("it has one trained layer only")
    return found


def plain(case: Case) -> None:
    """Refuse programs whose norms or attention undo what happens to the scale of weights."""
    kinds = (BATCH_NORM, nn.LayerNorm, nn.GroupNorm, nn.MultiheadAttention)
    if any(isinstance(m, kinds) for m in case.net.modules()):
        raise DoesNotFit("harmless there: its norms take the scale out again")


def exchange(case: Case, name: str, new: nn.Module) -> None:
    """Put another module in the place of one."""
    parent, _, key = name.rpartition(".")
    setattr(case.net.get_submodule(parent), key, new)


def activations(case: Case) -> list[tuple[str, nn.Module]]:
    """Return the activation modules by name."""
    found = [(name, m) for name, m in case.net.named_modules() if isinstance(m, ACTIVATIONS)]
    if not found:
        raise DoesNotFit("its activations are no modules")
    return found


def change_output(case: Case, change: Callable[[Any], Any]) -> None:
    """Change what the model returns to its loss."""
    forward = type(case.model).forward
    case.override(forward=lambda self, x: change(forward(self, x)))


def change_input(case: Case, change: Callable[[Any], Any]) -> None:
    """Change what the model gets."""
    forward = type(case.model).forward
    case.override(forward=lambda self, x: forward(self, change(x)))


def change_loss(case: Case, change: Callable[[Any, Any], Any]) -> None:
    """Exchange the loss of a Learner."""
    if not hasattr(case.model, "loss"):
        raise DoesNotFit("its loss is not an attribute")
    case.model.loss = change


def change_optimizer(case: Case, change: Callable[[Any, Any], Any]) -> None:
    """Change what ``configure_optimizers`` returns; ``change(model, configured)`` returns the new one."""
    configure = type(case.model).configure_optimizers
    case.override(configure_optimizers=lambda self: change(self, configure(self)))


def optimizer_of(configured: Any) -> torch.optim.Optimizer:
    """Return the optimizer among what was configured."""
    return configured["optimizer"] if isinstance(configured, dict) else configured


def scale_rate(case: Case, factor: float) -> None:
    """Multiply the learning rate, under any schedule."""

    def change(model, configured):
        optimizer = optimizer_of(configured)
        for group in optimizer.param_groups:
            for key in ("lr", "initial_lr", "max_lr", "min_lr"):
                if key in group:
                    group[key] *= factor
        scheduler = configured["lr_scheduler"]["scheduler"] if isinstance(configured, dict) else None
        if scheduler is not None:
            scheduler.base_lrs = [rate * factor for rate in getattr(scheduler, "base_lrs", [])]
        return configured

    change_optimizer(case, change)


def is_adaptive(case: Case) -> bool:
    """Whether the optimizer divides by the size of the gradients."""
    return not isinstance(optimizer_of(case.model.configure_optimizers()), torch.optim.SGD)


def names_of(modules: Iterator[tuple[str, nn.Module]]) -> list[str]:
    """Return the names only."""
    return [name for name, _ in modules]
