"""Sees which loss a training step calls, with what: no guessing from class names."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

_LOSSES = {
    getattr(F, name): name
    for name in (
        "cross_entropy",
        "nll_loss",
        "binary_cross_entropy",
        "binary_cross_entropy_with_logits",
        "mse_loss",
        "l1_loss",
        "smooth_l1_loss",
        "huber_loss",
        "poisson_nll_loss",
        "gaussian_nll_loss",
        "kl_div",
        "soft_margin_loss",
        "multilabel_soft_margin_loss",
    )
}
# Functions with which a step draws noise of its own. Dropout is none of them.
_DRAWS = frozenset(
    (
        *(
            torch.randn,
            torch.randn_like,
            torch.rand,
            torch.rand_like,
            torch.randint,
            torch.randint_like,
            torch.randperm,
        ),
        *(torch.normal, torch.bernoulli, torch.multinomial, torch.poisson, Tensor.normal_, Tensor.uniform_),
        *(Tensor.bernoulli_, Tensor.bernoulli, Tensor.multinomial, Tensor.exponential_, F.gumbel_softmax),
    )
)
# Operations that only move values: what made the prediction lies behind them.
_MOVES = (
    "Squeeze",
    "Unsqueeze",
    "View",
    "UnsafeView",
    "ReshapeAlias",
    "Select",
    "Slice",
    "Transpose",
    "Permute",
    "T0",
    "TBackward",
    "Clone",
    "ToCopy",
    "Expand",
    "Alias",
    "Index",
)


@dataclass(frozen=True)
class LossCall:
    """One call of a loss function of ``torch.nn.functional``.

    Args:
        name: of the function.
        prediction: its first argument.
        target: its second argument.
        is_sum: whether it sums instead of averaging.
        ignore_index: label that does not count.
        last_operation: name of the operation that made the prediction.
        value: what it returned.
        is_plain: whether it is a mean over samples without weights.
        smoothing: of the labels.
        is_weighted: whether classes or samples have weights.
    """

    name: str
    prediction: Tensor
    target: Tensor
    is_sum: bool = False
    ignore_index: int = -100
    last_operation: str = ""
    value: Tensor | None = None
    is_plain: bool = True
    smoothing: float = 0.0
    is_weighted: bool = False

    @property
    def num_classes(self) -> int:
        """Classes of a classification loss (2 for a binary one), else 0."""
        if self.name in ("cross_entropy", "nll_loss"):
            return self.prediction.shape[1] if self.prediction.ndim > 1 else self.prediction.shape[0]
        return 2 if self.name.startswith("binary") else 0

    @property
    def is_soft(self) -> bool:
        """Whether the target is a distribution over classes."""
        return self.name == "cross_entropy" and self.target.is_floating_point()

    def made_by(self, *operations: str) -> bool:
        """Whether one of the named operations made the prediction."""
        return any(operation.lower() in self.last_operation.lower() for operation in operations)

    def each_loss(self) -> Tensor | None:
        """Return the loss of every single value, ``(N,)``, or None if it cannot be had."""
        function = getattr(F, self.name)
        options = {"ignore_index": self.ignore_index} if self.name in ("cross_entropy", "nll_loss") else {}
        try:
            each: Tensor = function(self.prediction.detach(), self.target.detach(), reduction="none", **options)
        except (RuntimeError, ValueError, IndexError, TypeError):
            return None
        return each.flatten().double()

    def shuffled_loss(self, order: Tensor) -> float | None:
        """Return the mean loss with the targets of other samples, or None if it cannot be had."""
        if self.prediction.shape[:1] != self.target.shape[:1]:
            return None
        each = replace(self, target=self.target[order]).each_loss()
        return None if each is None else each.mean().item()


class LossSpy(TorchFunctionMode):
    """Keeps every call of a loss function that is made while it is active.

    Args:
        keep_graph: whether predictions keep the graph that made them.

    Example:
        >>> import torch
        >>> with LossSpy() as spy:
        ...     _ = torch.nn.MSELoss()(torch.zeros(3), torch.ones(3))
        >>> spy.calls[0].name
        'mse_loss'
    """

    def __init__(self, *, keep_graph: bool = False) -> None:
        super().__init__()
        self.calls: list[LossCall] = []
        self.draws_noise = False
        self._keep_graph = keep_graph

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        name = _LOSSES.get(func)
        self.draws_noise |= func in _DRAWS
        if name is not None:
            given = dict(zip(("input", "target"), args, strict=False)) | kwargs
            prediction, target = given.get("input"), given.get("target")
            if isinstance(prediction, Tensor) and isinstance(target, Tensor):
                operation = _maker(prediction)
                is_sum = kwargs.get("reduction") == "sum"
                ignored = kwargs.get("ignore_index", -100)
                weights = [args[2] if len(args) > 2 else None, kwargs.get("weight"), kwargs.get("pos_weight")]
                call = LossCall(
                    name,
                    prediction if self._keep_graph else prediction.detach(),
                    target.detach(),
                    is_sum,
                    ignored,
                    operation,
                    is_plain=kwargs.get("reduction", "mean") == "mean" and all(w is None for w in weights),
                    smoothing=kwargs.get("label_smoothing", 0.0),
                    is_weighted=any(w is not None for w in weights),
                )
                self.calls.append(call)  # before it runs: it may fail on what it is given
        value = func(*args, **kwargs)
        if name is not None and self.calls and isinstance(value, Tensor):
            self.calls[-1] = replace(self.calls[-1], value=value.detach())
        return value


def _maker(prediction: Tensor) -> str:
    """Return the name of the operation that made a tensor, looking through those that only move values."""
    node = prediction.grad_fn
    while node is not None and type(node).__name__.startswith(_MOVES) and node.next_functions:
        node = node.next_functions[0][0]
    return "" if node is None else type(node).__name__
