"""Optimizers by name, with the course's defaults."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch import nn

from lightning_tricks._base import check_choice, check_range
from lightning_tricks.optim._groups import param_groups

OptimizerName = Literal["sgd", "momentum", "nesterov", "adagrad", "rmsprop", "adam", "adamw"]

# The course's learning rates: 3e-4 for Adam, 1e-4 for SGD with momentum .9; torch's own for AdaGrad and RMSProp.
_RECIPES: dict[str, tuple[Callable[..., torch.optim.Optimizer], float]] = {
    "sgd": (torch.optim.SGD, 1e-2),
    "momentum": (partial(torch.optim.SGD, momentum=0.9), 1e-4),
    "nesterov": (partial(torch.optim.SGD, momentum=0.9, nesterov=True), 1e-4),
    "adagrad": (torch.optim.Adagrad, 1e-2),
    "rmsprop": (torch.optim.RMSprop, 1e-2),
    "adam": (torch.optim.Adam, 3e-4),
    "adamw": (torch.optim.AdamW, 3e-4),
}


def build_optimizer(
    name: OptimizerName, model: nn.Module, lr: float | None = None, *, weight_decay: float = 0.0, **options: Any
) -> torch.optim.Optimizer:
    """Build an optimizer over :func:`param_groups` of the model.

    Args:
        name: ``sgd``, ``momentum``, ``nesterov``, ``adagrad``, ``rmsprop``, ``adam`` or ``adamw``.
        model: whose trainable parameters to optimize.
        lr: learning rate; the course's default for the optimizer if not given.
        weight_decay: decay of the weights only, at least 0: an L2 term in the gradient, decoupled for ``adamw``.
        **options: passed on to the torch class, such as ``betas``.

    Raises:
        UserInputError: for an unknown name, with the list, or a number out of range.

    Example:
        >>> from torch import nn
        >>> optimizer = build_optimizer("adam", nn.Linear(2, 1))
        >>> type(optimizer).__name__, optimizer.param_groups[0]["lr"]
        ('Adam', 0.0003)
    """
    make, default_lr = _RECIPES[check_choice("optimizer", name, _RECIPES)]
    lr = check_range("lr", default_lr if lr is None else lr, low=0, open_low=True)
    return make(param_groups(model, weight_decay), lr=lr, **options)
