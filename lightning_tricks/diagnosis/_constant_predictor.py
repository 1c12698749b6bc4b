"""What guessing gives: the loss of the best prediction that does not look at the input."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from lightning_tricks.diagnosis._losses import LossCall

_ENOUGH = 48  # labels before the frequencies are believed
_ALL = 0.02  # what the loss may hold beside the one that was called


class GuessLoss:
    """Estimates the loss of the best constant prediction from the targets of some training steps.

    Known are the plain means of ``cross_entropy`` (with label smoothing), ``nll_loss``, the two binary ones and
    ``mse_loss``, where that is all there is to the training loss. Nothing waits for the device before :meth:`value`.

    Example:
        >>> guess = GuessLoss()
        >>> y = torch.arange(400) % 4
        >>> guess.add([LossCall("cross_entropy", torch.zeros(400, 4), y, value=torch.tensor(1.4))], torch.tensor(1.4))
        >>> round(guess.value(), 2)  # log(4)
        1.39
    """

    def __init__(self) -> None:
        self._pending: list[tuple[str, float, Tensor, Tensor]] = []
        self._sums: Tensor | None = None
        self._kind = ""
        self._smoothing = 0.0
        self._unknown = False
        self.is_negated = False

    def add(self, calls: list[LossCall], total: Tensor) -> None:
        """Take the loss calls of one training step, and its whole loss."""
        fitting = [call for call in calls if call.is_plain and call.value is not None and call.name in _SUMS]
        if len(calls) != 1 or not fitting:
            self._unknown = True
            return
        call = fitting[0]
        with torch.no_grad():
            value, whole = call.value.detach().float(), total.detach().float()  # type: ignore[union-attr]
            sums = _SUMS[call.name](call)
        kind = "entropy" if call.name in ("cross_entropy", "nll_loss") else call.name
        self._pending.append((kind, call.smoothing, sums, value / whole))

    def value(self) -> float | None:
        """Return the loss of guessing, or None where it is not known (yet)."""
        for kind, smoothing, sums, share in self._pending:
            sums = sums.cpu().double()
            fits = self._sums is None or (kind == self._kind and sums.shape == self._sums.shape)
            self.is_negated |= abs(share.item() + 1) < _ALL
            if not abs(share.item() - 1) < _ALL or not fits:
                self._unknown = True
                break
            self._kind, self._smoothing = kind, smoothing
            self._sums = sums if self._sums is None else self._sums + sums
        self._pending = []
        if self._unknown or self._sums is None:
            return None
        return _VALUES[self._kind](self._sums, self._smoothing)

    def state_dict(self) -> dict[str, object]:
        """Return plain data."""
        self.value()
        return {
            "sums": self._sums,
            "kind": self._kind,
            "smoothing": self._smoothing,
            "unknown": self._unknown,
            "is_negated": self.is_negated,
        }

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Take over what :meth:`state_dict` returned."""
        self._pending = []
        for name, value in state.items():
            setattr(self, name if name == "is_negated" else f"_{name}", value)


def _class_sums(call: LossCall) -> Tensor:
    """Count each class, ``(C,)``; ignored labels go into a bin of their own that is left out."""
    target, classes = call.target.detach(), call.num_classes
    if target.is_floating_point():
        return target.movedim(1, -1).flatten(0, -2).sum(0) if target.ndim > 1 else target
    target = target.flatten().long()
    inside = (target >= 0) & (target < classes) & (target != call.ignore_index)
    counts = torch.zeros(classes + 1, device=target.device)
    counts.scatter_add_(0, torch.where(inside, target, classes), torch.ones_like(target, dtype=counts.dtype))
    return counts[:-1]


def _moments(call: LossCall) -> Tensor:
    """Return count, sum and sum of squares per column, ``(3, columns)``."""
    target = call.target.detach()
    columns = (target.flatten(1) if target.ndim > 1 else target[:, None] if target.ndim else target.view(1, 1)).double()
    return torch.stack([torch.full_like(columns[0], len(columns)), columns.sum(0), columns.square().sum(0)])


def _entropy(counts: Tensor, smoothing: float) -> float | None:
    total = counts.sum().item()
    if total < _ENOUGH or total < 2 * len(counts):
        return None
    frequency = (1 - smoothing) * counts / total + smoothing / len(counts)
    entropy = -float(torch.special.xlogy(frequency, frequency).sum())
    return entropy + (int((counts > 0).sum()) - 1) / (2 * total)  # Miller & Madow (1955): the plug-in is too small


def _binary_entropy(moments: Tensor, smoothing: float) -> float | None:
    count, total, _ = moments
    if count[0] < _ENOUGH:
        return None
    p = total / count
    entropy = -(torch.special.xlogy(p, p) + torch.special.xlogy(1 - p, 1 - p)) + 1 / (2 * count)
    return float(entropy.mean())


def _variance(moments: Tensor, smoothing: float) -> float | None:
    count, total, squares = moments
    if count[0] < _ENOUGH:
        return None
    variance = (squares - total.square() / count) / (count - 1)
    value = variance.mean().item()
    return value if math.isfinite(value) and value > 0 else None


_SUMS: dict[str, Callable[[LossCall], Tensor]] = {
    "cross_entropy": _class_sums,
    "nll_loss": _class_sums,
    "binary_cross_entropy": _moments,
    "binary_cross_entropy_with_logits": _moments,
    "mse_loss": _moments,
}
_VALUES: dict[str, Callable[[Tensor, float], float | None]] = {
    "entropy": _entropy,
    "binary_cross_entropy": _binary_entropy,
    "binary_cross_entropy_with_logits": _binary_entropy,
    "mse_loss": _variance,
}
