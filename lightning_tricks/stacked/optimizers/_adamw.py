"""AdamW: Adam whose weight decay bypasses the gradient."""

from torch import Tensor
from torch.optim import AdamW

from lightning_tricks.stacked.optimizers._adam import AdamUpdate
from lightning_tricks.stacked.optimizers._update import FlatParameters


class AdamWUpdate(AdamUpdate):
    """Follows :class:`torch.optim.AdamW`."""

    optimizer = AdamW
    fixed = {"amsgrad": False, "maximize": False}  # noqa: RUF012 - a ClassVar of the base class

    def gradient(self, stack: FlatParameters) -> Tensor:
        """Shrink the parameters by the weight decay and return the gradients as they are, (N,)."""
        decay = stack.value("weight_decay")
        if isinstance(decay, Tensor) or decay != 0:
            stack.flat.mul_(1 - stack.value("lr") * decay)
        return stack.grads
