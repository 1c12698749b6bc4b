"""What an optimizer is to a stack."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

from torch import Tensor
from torch.optim import Optimizer


class FlatParameters(Protocol):
    """All parameters of all nets as one vector of N numbers, with what belongs to each of them.

    Attributes:
        flat: the parameters, (N,).
        grads: their gradients, (N,).
        memory: what the update remembers, by name, each (N,).
    """

    flat: Tensor
    grads: Tensor
    memory: dict[str, Tensor]

    def value(self, name: str) -> Tensor | float:
        """Return a hyperparameter: one number per element, or one for all if nothing differs."""
        ...

    def bias_correction(self, name: str) -> Tensor | float:
        """Return ``1 - beta ** t`` for the decay rate of this name and the steps that each parameter has made."""
        ...


class Update(ABC):
    """Abstract: how one class of optimizers moves the parameters of all nets at once.

    A new optimizer is one subclass in a file of its own and its name in :data:`UPDATES`.

    Attributes:
        optimizer: the class of torch that it follows.
        hyperparameters: names of the numbers that may differ between nets and between parameters.
        memory: names of what it remembers per parameter.
        fixed: options that no stack has, with the only value that is understood.
        shared: options that all nets must agree on.

    Args:
        options: the value of each shared option.
    """

    optimizer: ClassVar[type[Optimizer]]
    hyperparameters: ClassVar[tuple[str, ...]]
    memory: ClassVar[tuple[str, ...]]
    fixed: ClassVar[Mapping[str, Any]] = {}
    shared: ClassVar[tuple[str, ...]] = ()

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.options = dict(options)

    @classmethod
    def hyperparameters_of(cls, group: Mapping[str, Any]) -> dict[str, float]:
        """Return the numbers of one parameter group of an optimizer of torch."""
        return {name: float(group[name]) for name in cls.hyperparameters}

    @abstractmethod
    def step(self, stack: FlatParameters) -> None:
        """Move the parameters, and renew what is remembered."""


def decayed(stack: FlatParameters) -> Tensor:
    """Return the gradients with the L2 penalty's own added, (N,)."""
    decay = stack.value("weight_decay")
    if isinstance(decay, Tensor):
        return stack.grads.addcmul(decay, stack.flat)
    return stack.grads if decay == 0 else stack.grads.add(stack.flat, alpha=decay)
