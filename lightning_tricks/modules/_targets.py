"""Do these targets fit these outputs? Said in a sentence before a loss broadcasts or a device asserts."""

import torch
from torch import Tensor

from lightning_tricks._base import UserInputError


def is_soft(y: Tensor) -> bool:
    """Whether targets are probabilities rather than class numbers."""
    return y.is_floating_point()


def hard_targets(y: Tensor, task: str) -> Tensor:
    """Return class numbers: the most likely class, or whether a probability is above one half."""
    if not is_soft(y):
        return y
    return y.argmax(-1) if task == "multiclass" else (y > 0.5).long()


@torch.compiler.disable  # type: ignore[untyped-decorator]  # it looks at values: there is nothing to compile
def check_class_targets(y: Tensor, logits: Tensor, task: str, num_classes: int, *, look_at_values: bool) -> None:
    """Check shape, dtype and (on request, since it waits for the device) range of classification targets.

    Raises:
        UserInputError: saying what was expected and what came.
    """
    wide = task != "binary"
    if logits.ndim != (2 if wide else 1) or (wide and logits.shape[1] != num_classes):
        expected = f"(B, {num_classes})" if wide else "(B,) or (B, 1)"
        raise UserInputError(
            f"a {task} net must return logits of shape {expected}, but got {tuple(logits.shape)}. "
            "Check num_classes, the task, and the width of the net's last layer."
        )
    labels = (len(logits),) if task != "multilabel" else tuple(logits.shape)
    allowed = {labels, tuple(logits.shape)} if is_soft(y) and task == "multiclass" else {labels}
    if is_soft(y) and task == "multiclass":
        allowed = {tuple(logits.shape)}
    if tuple(y.shape) not in allowed:
        hint = " Class numbers must be integers: convert them with .long()." if y.shape == labels else ""
        kind = "soft (floating-point)" if is_soft(y) else "integer"
        raise UserInputError(
            f"{kind} {task} targets must have shape {allowed.pop()}, but got {tuple(y.shape)} of {y.dtype}.{hint}"
        )
    if y.is_complex():
        raise UserInputError(f"targets must be integers or probabilities, but got {y.dtype}.")
    if look_at_values and y.numel():
        _check_values(y, task, num_classes)


def _check_values(y: Tensor, task: str, num_classes: int) -> None:
    low, high = (float(v) for v in torch.aminmax(y))
    if is_soft(y):
        if not (low >= 0 and high <= 1):  # NaN fails too
            raise UserInputError(f"soft targets must be probabilities in [0, 1], but got values from {low} to {high}.")
        if task == "multiclass" and not torch.allclose(y.float().sum(-1), y.new_ones(()).float(), atol=1e-2):
            raise UserInputError("soft multiclass targets must sum to 1 in each row, but some do not.")
        return
    top = num_classes - 1 if task == "multiclass" else 1
    if low < 0 or high > top:
        hint = " Labels that start at 1 need a minus one." if low == 1 and high == top + 1 else ""
        raise UserInputError(f"{task} labels must be in [0, {top}], but got {int(low)} to {int(high)}.{hint}")


def check_regression_targets(y: Tensor, prediction: Tensor) -> Tensor:
    """Return targets in the prediction's shape; a missing or extra trailing dimension of 1 is forgiven.

    Raises:
        UserInputError: if the shapes differ (a loss would broadcast them silently).
    """
    if y.shape == prediction.shape:
        return y.to(prediction.dtype)
    if y.ndim + 1 == prediction.ndim and prediction.shape[-1] == 1 and y.shape == prediction.shape[:-1]:
        return y.unsqueeze(-1).to(prediction.dtype)
    raise UserInputError(
        f"regression targets must have the prediction's shape {tuple(prediction.shape)}, but got {tuple(y.shape)}. "
        "A loss would broadcast the two against each other."
    )
