"""Sums of squares of many tensors, read once, exact to 1e-6, without waiting for the device.

A float32 sum over millions of squares is off by up to 1e-2 when it is accumulated in a few lanes, which is what both
``torch.dot`` and ``vector_norm`` do on the CPU. Rows of 1,024 values, summed in float64, keep the speed and are right.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

_ROW = 1024
_SMALL = 8 * _ROW  # up to here one float32 accumulation stays below 3e-6


def local_part(tensor: Tensor, world_size: int) -> tuple[Tensor, float]:
    """Return what this rank holds of ``tensor`` and the weight with which a sum over all ranks counts it once.

    A plain tensor is held by every rank, a ``DTensor`` as often as its placements say.
    """
    placements = getattr(tensor, "placements", None)
    if placements is None:
        return tensor, 1 / world_size
    if any(placement.is_partial() for placement in placements):
        return tensor.full_tensor(), 1 / world_size  # type: ignore[attr-defined]
    mesh = tensor.device_mesh  # type: ignore[attr-defined]
    shards = math.prod(mesh.size(axis) for axis, placement in enumerate(placements) if placement.is_shard())
    return tensor.to_local(), shards / world_size  # type: ignore[attr-defined]


def squared_norms(tensors: Sequence[Tensor]) -> Tensor:
    """Return the sum of squares of each tensor, ``float64 (n,)`` (float32 on devices without float64).

    Args:
        tensors: real or complex, dense or sparse, empty ones count 0. The result is on the device of the first.

    Example:
        >>> squared_norms([torch.tensor([3.0, 4.0]), torch.zeros(0)])
        tensor([25.,  0.], dtype=torch.float64)
    """
    if not tensors:
        return torch.zeros(0, dtype=torch.float64)
    values = [values_of(tensor) for tensor in tensors]
    device = values[0].device
    if any(value.device != device for value in values):
        return torch.cat([squared_norms([value]).to(device, sum_dtype(device)) for value in values])
    if device.type == "cpu":
        return torch.stack([_squared_norm(value) for value in values])
    norms = list(torch._foreach_norm(values, 2, dtype=torch.float32))
    squares: Tensor = torch.stack(norms).to(sum_dtype(device)).square_()
    return squares


def count_nonfinite(tensors: Sequence[Tensor], squares: Tensor) -> Tensor:
    """Return how many values of each tensor are NaN or infinite, in the type of ``squares``.

    On the CPU a finite sum of squares proves that there are none; elsewhere looking at it would wait for the device.
    """
    if squares.device.type != "cpu":
        counts = [(~values_of(tensor).isfinite()).sum().to(squares) for tensor in tensors]
        return torch.stack(counts)
    found = torch.zeros_like(squares)
    for i in (~squares.isfinite()).nonzero().flatten().tolist():
        found[i] = (~values_of(tensors[i]).isfinite()).sum()
    return found


def sum_dtype(device: torch.device) -> torch.dtype:
    """Return the widest float of a device."""
    return torch.float32 if device.type == "mps" else torch.float64


def values_of(tensor: Tensor) -> Tensor:
    """Return the values of a tensor as a dense real one."""
    tensor = tensor.detach()
    if tensor.layout != torch.strided:
        tensor = tensor.coalesce().values()
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def _squared_norm(x: Tensor) -> Tensor:
    flat = _flat(x)
    if x.dtype == torch.float64 or flat.dim() != 1 or flat.stride(0) != 1:
        return _exact(x)
    total = _fast(flat)
    if math.isfinite(total.item()):
        return total
    return _exact(flat)  # float32 may have overflowed, not the values


def _exact(x: Tensor) -> Tensor:
    squares: Tensor = torch.linalg.vector_norm(x, dtype=torch.float64).square_()
    return squares


def _fast(flat: Tensor) -> Tensor:
    if flat.numel() <= _SMALL and flat.dtype == torch.float32:
        return torch.dot(flat, flat).double()
    whole = flat.numel() // _ROW * _ROW
    rows = torch.linalg.vector_norm(flat[:whole].view(-1, _ROW), dim=1, dtype=torch.float32)
    total: Tensor = rows.double().square_().sum()
    if whole < flat.numel():
        total += torch.linalg.vector_norm(flat[whole:], dtype=torch.float32).double().square_()
    return total


def _flat(x: Tensor) -> Tensor:
    """Return all values as one axis in whatever order memory holds them, without a copy where that is possible."""
    if x.is_contiguous():
        return x.view(-1)
    if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
        return x.permute(0, 2, 3, 1).reshape(-1)
    return x
