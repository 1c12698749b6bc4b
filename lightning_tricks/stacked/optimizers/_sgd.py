"""SGD with momentum."""

from torch import Tensor
from torch.optim import SGD

from lightning_tricks.stacked.optimizers._update import FlatParameters, Update, decayed


class SGDUpdate(Update):
    """Follows :class:`torch.optim.SGD`."""

    optimizer = SGD
    hyperparameters = ("lr", "weight_decay", "momentum")
    memory = ("moment",)
    fixed = {"dampening": 0, "maximize": False}  # noqa: RUF012 - a ClassVar of the base class
    shared = ("nesterov",)

    def step(self, stack: FlatParameters) -> None:
        """Follow the gradient, or the running sum of gradients."""
        momentum = stack.value("momentum")
        gradient = decayed(stack)
        if isinstance(momentum, Tensor) or momentum != 0:
            moment = stack.memory["moment"].mul_(momentum).add_(gradient)
            gradient = gradient + momentum * moment if self.options["nesterov"] else moment
        stack.flat.addcmul_(stack.value("lr"), gradient, value=-1)  # type: ignore[arg-type]
