"""Exchange the batch norms of a finished model."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_tricks._base import UserInputError, check_choice, check_range

Target = Literal["sync", "group", "layer", "frozen"]


def convert_norm(model: nn.Module, to: Target, *, groups: int = 32) -> nn.Module:
    """Replace every batch norm, in place where it is a part of the model; scale, shift and statistics are kept.

    ``"sync"`` and ``"frozen"`` compute the same function as before in evaluation, ``"group"`` and ``"layer"`` do not:
    they normalise each sample by itself, so a trained model needs more training.

    Args:
        model: any module; its norms of 1, 2 and 3 dimensions are found wherever they are.
        to: ``"sync"``: statistics over the batch of all processes (torch's class where there is a GPU, a plain one for
            the CPU, which torch's refuses), for small batches per process; ``"group"``: group norm (Wu & He 2018),
            independent of the batch; ``"layer"``: the same with one group; ``"frozen"``: the running statistics, scale
            and shift are constants, for fine-tuning on batches too small to estimate them.
        groups: largest number of groups for ``"group"``, at least 1; each norm takes the largest one that divides its
            channels into groups of at least 4: smaller ones have little to average over.

    Returns:
        The model; another object only if the model itself is a batch norm.

    Raises:
        UserInputError: for an unknown target, a lazy norm, or ``"frozen"`` on a norm without running statistics.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 48, 3), nn.BatchNorm2d(48), nn.ReLU())
        >>> convert_norm(net, "group")[1].num_groups
        12
    """
    check_choice("to", to, ("frozen", "group", "layer", "sync"))
    check_range("groups", groups, low=1)
    build = {"sync": _sync, "frozen": FrozenBatchNorm, "layer": _group(1), "group": _group(groups)}[to]
    found = [(name, m) for name, m in model.named_modules(remove_duplicate=False) if _is_batch_norm(m)]
    for name, norm in found:
        _check(name, norm, to)
    new = {id(norm): build(norm).train(norm.training) for _, norm in found}  # a norm used in two places stays one
    for name, norm in found:
        if not name:
            return new[id(norm)]
        parent, _, key = name.rpartition(".")
        setattr(model.get_submodule(parent), key, new[id(norm)])
    return model


class CpuSyncBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch norm over the batches of all processes, in plain arithmetic for the CPU."""

    def _check_input_dim(self, input: Tensor) -> None:  # noqa: A002 - torch's name
        if input.ndim < 2:
            raise UserInputError(f"a batch norm expects at least 2 dimensions (batch, channels), but got {input.ndim}.")

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name
        """Normalise by the statistics over all processes in training, by the running ones in evaluation."""
        self._check_input_dim(input)
        if not (self.training and torch.distributed.is_available() and torch.distributed.is_initialized()):
            return super().forward(input)
        axes = [axis for axis in range(input.ndim) if axis != 1]
        rows = input.new_full((1,), input.numel() / input.shape[1], dtype=torch.float32)
        total = _sum_over_processes(torch.cat([input.float().sum(axes), rows]))
        count, mean = total[-1].detach(), total[:-1] / total[-1].detach()
        shape = (1, -1, *[1] * (input.ndim - 2))
        centred = input.float() - mean.view(shape)
        variance = _sum_over_processes(centred.square().sum(axes)) / count
        self._update(mean.detach(), variance.detach() * count / (count - 1))
        output = centred * (variance + self.eps).rsqrt().view(shape)
        if self.affine:
            output = output * self.weight.view(shape) + self.bias.view(shape)
        return output.to(input.dtype)

    @torch.no_grad()
    def _update(self, mean: Tensor, variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        rate = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean), rate)
        self.running_var.lerp_(variance.to(self.running_var), rate)


class _AllReduce(torch.autograd.Function):
    """Sum over the processes; the gradient of a sum over all is the sum of all gradients."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        values = values.clone()
        torch.distributed.all_reduce(values)
        return values

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous().clone()
        torch.distributed.all_reduce(gradient)
        return gradient


def _sum_over_processes(values: Tensor) -> Tensor:
    total: Tensor = _AllReduce.apply(values)
    return total


class FrozenBatchNorm(nn.Module):
    """A batch norm of which everything is constant; its state dict loads from and into a batch norm's.

    Args:
        norm: the batch norm to freeze.

    Example:
        >>> FrozenBatchNorm(nn.BatchNorm2d(4))(torch.ones(1, 4, 2, 2)).shape
        torch.Size([1, 4, 2, 2])
    """

    running_mean: Tensor
    running_var: Tensor
    weight: Tensor | None
    bias: Tensor | None

    def __init__(self, norm: nn.modules.batchnorm._BatchNorm) -> None:
        super().__init__()
        self.eps = norm.eps
        for key in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
            value = getattr(norm, key)
            self.register_buffer(key, None if value is None else value.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """Normalise by the running statistics, in training too."""
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)

    def extra_repr(self) -> str:
        """Return channels and epsilon for ``print``."""
        return f"{len(self.running_mean)}, eps={self.eps}"


def _is_batch_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.batchnorm._BatchNorm)


def _check(name: str, norm: nn.Module, to: str) -> None:
    if any(nn.parameter.is_lazy(t) for t in (*norm.parameters(), *norm.buffers())):
        raise UserInputError(f"the norm {name!r} is lazy: run one batch through the model before converting it.")
    if to == "frozen" and getattr(norm, "running_mean", None) is None:
        raise UserInputError(f"the norm {name!r} keeps no running statistics, so there is nothing to freeze it at.")


def _sync(norm: nn.modules.batchnorm._BatchNorm) -> nn.Module:
    device = next((t.device for t in (*norm.parameters(), *norm.buffers())), None)
    kind = nn.SyncBatchNorm if torch.cuda.is_available() else CpuSyncBatchNorm
    new = kind(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats, device=device)
    return _with_affine(new, norm, (*norm.named_buffers(),))


def _group(most: int) -> Callable[[nn.modules.batchnorm._BatchNorm], nn.Module]:
    def build(norm: nn.modules.batchnorm._BatchNorm) -> nn.Module:
        limit = max(1, min(most, norm.num_features // 4))
        count = max(n for n in range(1, limit + 1) if norm.num_features % n == 0)
        device = next((t.device for t in (*norm.parameters(), *norm.buffers())), None)
        new = nn.GroupNorm(count, norm.num_features, norm.eps, norm.affine, device=device)
        return _with_affine(new, norm, ())

    return build


def _with_affine(new: nn.Module, old: nn.Module, buffers: tuple[tuple[str, Tensor], ...]) -> nn.Module:
    """Give a new norm the very parameters of the old one, so that an optimizer made before still holds them."""
    for key in ("weight", "bias"):
        setattr(new, key, getattr(old, key))
    for key, buffer in buffers:
        setattr(new, key, buffer)
    return new
