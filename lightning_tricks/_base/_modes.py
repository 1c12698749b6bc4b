"""Borrow a module's train/eval flags and give them back."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def preserved_modes(module: nn.Module) -> Iterator[None]:
    """Give every submodule its own ``training`` flag back at the end, also after an exception.

    ``module.train(was_training)`` is not enough: a frozen BatchNorm inside a training net would be thawed.

    Example:
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2).eval())
        >>> with preserved_modes(net):
        ...     _ = net.eval()
        >>> [m.training for m in net]
        [True, False]
    """
    flags = [(m, m.training) for m in module.modules()]
    try:
        yield
    finally:
        for m, training in flags:
            m.training = training
