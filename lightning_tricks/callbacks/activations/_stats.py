"""What one activation tells about its layer, computed where the activation lives."""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torchmetrics import Metric

# Mean, standard deviation, shares: saturated, exactly zero, dead units, non-finite. NaN: does not apply.
MEAN, STD, SATURATED, ZEROS, DEAD, NONFINITE = range(6)

# Saturated: the derivative is below 1 % of its largest value, told from the output.
_SATURATED: dict[type[nn.Module], Callable[[nn.Module, Tensor], Tensor]] = {
    nn.Tanh: lambda _, y: y.abs() > math.sqrt(0.99),
    nn.Sigmoid: lambda _, y: (y * (1 - y)) < 0.0025,
    nn.Softsign: lambda _, y: y.abs() > 0.9,
    nn.Hardsigmoid: lambda _, y: (y <= 0) | (y >= 1),
    nn.Hardtanh: lambda m, y: (y <= m.min_val) | (y >= m.max_val),  # type: ignore[operator]
    nn.ReLU6: lambda _, y: y >= 6,
    nn.ELU: lambda m, y: y < -0.99 * m.alpha,  # type: ignore[operator]
    nn.CELU: lambda m, y: y < -0.99 * m.alpha,  # type: ignore[operator]
    nn.SELU: lambda _, y: y < -0.99 * 1.7580993408473766,  # scale times alpha (Klambauer et al. 2017)
}
# Rectifiers, with the size below which an output passes nothing on.
_RECTIFIERS: dict[type[nn.Module], float] = {
    nn.ReLU: 0.0,
    nn.ReLU6: 0.0,
    nn.Threshold: 0.0,
    nn.GELU: 1e-3,
    nn.SiLU: 1e-3,
    nn.Mish: 1e-3,
    nn.Hardswish: 1e-3,
}
_SILENT = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.Identity, nn.Flatten, nn.Unflatten)
_WHOLE = (nn.MultiheadAttention, nn.RNNBase)  # their children are not called
_CHANNELS_FIRST = (nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase, nn.GroupNorm)


def watchable(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Yield the layers whose outputs are worth looking at; compiled parts count as one layer."""
    from torch._dynamo import OptimizedModule

    name = prefix.removesuffix(".")
    if getattr(module, "_compiled_call_impl", None) is not None and prefix:
        return  # compiled in place: hooks would be compiled with it, and stay
    children = [] if isinstance(module, (OptimizedModule, *_WHOLE)) else list(module.named_children())
    if not children and prefix and not isinstance(module, (*_SILENT, nn.modules.loss._Loss, Metric)):
        yield name, module
    for child_name, child in children:
        yield from watchable(child, f"{prefix}{child_name}.")


def unit_axis(module: nn.Module, output: Tensor, before: int) -> int:
    """Return the axis of ``output`` that counts units: channels after convolutions, features after linear layers.

    Args:
        module: the layer.
        output: what it returned.
        before: the axis of the layer before, which an activation keeps.

    Example:
        >>> unit_axis(nn.Conv2d(3, 8, 3), torch.zeros(2, 8, 5, 5), -1), unit_axis(nn.ReLU(), torch.zeros(2, 7, 3), 1)
        (1, 1)
    """
    if isinstance(module, _CHANNELS_FIRST):
        return 1 if output.dim() > 1 else -1
    if isinstance(module, (nn.Linear, nn.LayerNorm, nn.Embedding, *_WHOLE)):
        return -1
    return before if output.dim() > 2 else -1


def active_units(module: nn.Module, output: Tensor, axis: int) -> Tensor | None:
    """Return which units of a rectifier passed anything on for any sample, ``bool (U,)``; None for other layers."""
    size = next((size for kind, size in _RECTIFIERS.items() if type(module) is kind), None)
    if size is None or output.dim() == 0:
        return None
    active = output.abs() > size
    return active.movedim(axis, 0).flatten(1).any(dim=1) if output.dim() > 1 else active


def activation_stats(module: nn.Module, output: Tensor) -> Tensor:
    """Return mean, std and the shares of an output, ``float32 (6,)``; the share of dead units is left to the caller.

    Example:
        >>> activation_stats(nn.Tanh(), torch.tensor([1.0, -1.0, 0.0, 0.0]))[[MEAN, SATURATED, ZEROS]]
        tensor([0.0000, 0.5000, 0.5000])
    """
    x = output.float()
    variance, mean = torch.var_mean(x, correction=0)
    nothing = mean.new_full((), math.nan)
    kind = next((kind for kind in _SATURATED if type(module) is kind), None)
    saturated = nothing if kind is None else _SATURATED[kind](module, x).float().mean()
    zeros = (x == 0).float().mean()
    nonfinite = (~x.isfinite()).float().mean()
    return torch.stack([mean, variance.sqrt(), saturated, zeros, nothing, nonfinite])
