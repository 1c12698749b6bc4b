"""Penalties on weights as arithmetic on lists of tensors."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from lightning_tricks._base import UserInputError

# Values per piece on the CPU: weights, signs and gradients stay in the cache between the passes over them.
_PIECE = 131_072


def add_penalty_gradient(weights: Sequence[Tensor], gradients: Sequence[Tensor], l1: float, l2: float) -> None:
    """Add the gradient of ``l1 * sum |w| + l2 * sum w²`` to the gradients in place; that of ``|w|`` at 0 is 0.

    Example:
        >>> weight, gradient = torch.tensor([2.0, -1.0, 0.0]), torch.zeros(3)
        >>> add_penalty_gradient([weight], [gradient], l1=0.5, l2=1.0)
        >>> gradient
        tensor([ 4.5000, -2.5000,  0.0000])
    """
    if not weights:
        return
    if l1 and weights[0].device.type == "cpu":
        _add_in_pieces(weights, gradients, l1, l2)
        return
    if l1:
        if any(weight.is_complex() for weight in weights):
            signs = [weight.sgn() for weight in weights]
        else:
            signs = list(torch._foreach_sign(list(weights)))
        torch._foreach_add_(list(gradients), signs, alpha=l1)
    if l2:
        torch._foreach_add_(list(gradients), list(weights), alpha=2 * l2)


def _add_in_pieces(weights: Sequence[Tensor], gradients: Sequence[Tensor], l1: float, l2: float) -> None:
    buffers: dict[torch.dtype, Tensor] = {}
    for weight, gradient in _pieces(weights, gradients):
        if weight.is_complex():
            gradient.add_(weight.sgn(), alpha=l1)
        elif weight.ndim == 1 and weight.numel() <= _PIECE:
            buffer = buffers.setdefault(weight.dtype, weight.new_empty(_PIECE))[: weight.numel()]
            gradient.add_(torch.sign(weight, out=buffer), alpha=l1)
        else:
            gradient.add_(weight.sign(), alpha=l1)
        if l2:
            gradient.add_(weight, alpha=2 * l2)


def _pieces(weights: Sequence[Tensor], gradients: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    for weight, gradient in zip(weights, gradients, strict=True):
        if weight.is_contiguous() and gradient.is_contiguous():
            yield from zip(torch.split(weight.view(-1), _PIECE), torch.split(gradient.view(-1), _PIECE), strict=True)
        else:
            yield weight, gradient


def penalty_sums(parameters: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return ``sum |w|`` and ``sum w²`` over all parameters in float32, sharded ones summed over their ranks.

    Collective where parameters are sharded: every rank has to call it.

    Example:
        >>> [float(total) for total in penalty_sums([torch.tensor([2.0, -1.0])])]
        [3.0, 5.0]
    """
    totals: list[Tensor] = []
    for group in _same_sharding(parameters):
        shards = [local(p).abs() if p.is_complex() else local(p) for p in group]
        absolute = torch.stack(torch._foreach_norm(shards, 1, dtype=torch.float32)).sum()
        square = torch.stack(torch._foreach_norm(shards, 2, dtype=torch.float32)).square().sum()
        total = torch.stack([absolute, square])
        for process_group in _groups_of_shards(group[0]):
            torch.distributed.all_reduce(total, group=process_group)
        totals.append(total)
    both = torch.stack(totals).sum(dim=0)
    return both[0], both[1]


def _same_sharding(parameters: Sequence[Tensor]) -> list[list[Tensor]]:
    groups: dict[object, list[Tensor]] = {}
    for p in parameters:
        groups.setdefault((getattr(p, "device_mesh", None), getattr(p, "placements", None)), []).append(p)
    return list(groups.values())


def _groups_of_shards(parameter: Tensor) -> list[torch.distributed.ProcessGroup]:
    placements = getattr(parameter, "placements", ())
    mesh = getattr(parameter, "device_mesh", None)
    return [mesh.get_group(axis) for axis, placement in enumerate(placements) if mesh and placement.is_shard()]


def local(tensor: Tensor) -> Tensor:
    """Return this rank's shard of a sharded tensor, any other tensor itself, without its graph."""
    tensor = tensor.detach()
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def soft_threshold(weight: Tensor, threshold: float) -> None:
    """Move every value towards 0 by ``threshold`` in place, and to exactly 0 what is nearer than that.

    Example:
        >>> weight = torch.tensor([1.0, -0.3, 0.1])
        >>> soft_threshold(weight, 0.25)
        >>> weight
        tensor([ 0.7500, -0.0500,  0.0000])
    """
    if weight.is_complex():
        weight.copy_(weight.sgn() * (weight.abs() - threshold).clamp(min=0))
        return
    weight.copy_(torch.nn.functional.softshrink(weight, threshold))


def limit_rows(weight: Tensor, most: float, *, axis: int = 0) -> None:
    """Scale down, in place, the incoming weights of every unit whose norm is above ``most``.

    Args:
        weight: of a layer; every index along ``axis`` is a unit.
        most: largest norm.
        axis: the axis of the units: 0, but 1 in a transposed convolution.

    Raises:
        UserInputError: if the weight is sharded along another axis, where no rank sees a whole unit.

    Example:
        >>> weight = torch.tensor([[3.0, 4.0], [0.3, 0.4]])
        >>> limit_rows(weight, 1.0)
        >>> weight
        tensor([[0.6000, 0.8000],
                [0.3000, 0.4000]])
    """
    for placement in getattr(weight, "placements", ()):
        if placement.is_shard() and placement.dim != axis:
            raise UserInputError(
                f"max_norm needs whole units on every rank: shard weights along axis {axis}, but got {placement}."
            )
    shard = local(weight)
    axes = [other for other in range(shard.ndim) if other != axis]
    norms = torch.linalg.vector_norm(shard, dim=axes, keepdim=True)
    shard.mul_(torch.where(norms > most, most / norms, 1.0))
