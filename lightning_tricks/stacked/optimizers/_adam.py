"""Adam."""

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor
from torch.optim import Adam, Optimizer

from lightning_tricks.stacked.optimizers._update import FlatParameters, Update, decayed


class AdamUpdate(Update):
    """Follows :class:`torch.optim.Adam`."""

    optimizer: ClassVar[type[Optimizer]] = Adam
    hyperparameters = ("lr", "weight_decay", "beta1", "beta2", "eps")
    memory = ("moment", "square")
    fixed = {  # noqa: RUF012 - a ClassVar of the base class
        "amsgrad": False,
        "maximize": False,
        "decoupled_weight_decay": False,
    }

    @classmethod
    def hyperparameters_of(cls, group: Mapping[str, Any]) -> dict[str, float]:
        """Return the numbers of a group, each of the betas by itself."""
        return super().hyperparameters_of({**group, "beta1": group["betas"][0], "beta2": group["betas"][1]})

    def step(self, stack: FlatParameters) -> None:
        """Follow the running mean of the gradients, divided by the root of that of their squares."""
        gradient = self.gradient(stack)
        beta1, beta2 = stack.value("beta1"), stack.value("beta2")
        moment, square = stack.memory["moment"], stack.memory["square"]
        moment.lerp_(gradient, 1 - beta1)
        if isinstance(beta2, Tensor):
            square.lerp_(gradient.square(), 1 - beta2)
        else:
            square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        first, second = stack.bias_correction("beta1"), stack.bias_correction("beta2") ** 0.5
        denominator = square.sqrt().div_(second).add_(stack.value("eps"))
        stack.flat.addcdiv_(moment * stack.value("lr"), denominator * first, value=-1)

    def gradient(self, stack: FlatParameters) -> Tensor:
        """Return the gradients with the weight decay as a part of them, (N,)."""
        return decayed(stack)
