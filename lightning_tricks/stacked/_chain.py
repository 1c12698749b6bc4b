"""A chain of ordinary layers, run for all nets of a stack at once with batched products: faster than ``vmap``."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_tricks.nets import MLP, ConvNet
from lightning_tricks.stacked._masks import drop_mask

_POINTWISE = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Softplus),
    *(nn.Tanh, nn.Sigmoid, nn.LogSigmoid, nn.Softsign, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.Identity),
)
_POOLS = (nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool1d, nn.AvgPool2d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d)
_CONVOLUTIONS: dict[type[nn.Module], Callable[..., Tensor]] = {nn.Conv1d: F.conv1d, nn.Conv2d: F.conv2d}


class NotAChainError(Exception):
    """These layers, or this input, need ``vmap``."""


@dataclass
class Signal:
    """What flows between layers, for K nets and a batch of B samples.

    Args:
        x: ``(B, ...)`` as long as it is the same for all nets, ``"shared"``; then ``(K, F, B)``, ``"dense"``: samples
            last keep every product contiguous and make a batch norm that of ``K * F`` channels; or
            ``(B, K * C, ...)``, ``"maps"``, which grouped convolutions take.
        layout: which of the three.
        nets: K.
    """

    x: Tensor
    layout: Literal["shared", "dense", "maps"]
    nets: int

    def dense(self) -> Tensor:
        """Return ``(K, F, B)``."""
        if self.layout == "maps" or self.x.ndim != (3 if self.layout == "dense" else 2):
            raise NotAChainError(f"{tuple(self.x.shape)} is no row of features per sample")
        return self.x if self.layout == "dense" else self.x.mT.expand(self.nets, *self.x.mT.shape).contiguous()

    def outputs(self) -> Tensor:
        """Return ``(K, B, ...)``."""
        if self.layout == "shared":
            return self.x.expand(self.nets, *self.x.shape)
        if self.layout == "dense":
            return self.x.mT
        return _parted(self.x, 1, self.nets).transpose(0, 1)


def layers_of(net: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the layers of a net, with their names, in the order in which they are applied.

    Raises:
        NotAChainError: if the net has a forward of its own, or layers that are not known here or applied twice.
    """
    if any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in net.modules()):
        raise NotAChainError("the net has hooks")
    layers = list(_unfold("", net))
    for name, layer in layers:
        if type(layer) not in _STEPS:
            raise NotAChainError(f"{name or 'the net'} is a {type(layer).__name__}")
    named = [layer for _, layer in layers if type(layer) not in (*_POINTWISE, *_POOLS, nn.Flatten)]
    if len(set(named)) < len(named):
        raise NotAChainError("a layer is applied twice, but its tensors and its rate are found by its first name only")
    return layers


def _unfold(name: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    kinds: dict[type[nn.Module], tuple[str, ...]] = {MLP: ("layers",), ConvNet: ("features", "pool", "head")}
    if type(module) is nn.Sequential:
        parts: Sequence[str] = list(module._modules)
    elif type(module) in kinds:
        parts = kinds[type(module)]
    else:
        yield name, module
        return
    for part in parts:
        yield from _unfold(f"{name}.{part}" if name else part, module.get_submodule(part))


def run_chain(
    layers: Sequence[tuple[str, nn.Module]],
    tensors: Callable[[str], Tensor | None],
    rates: Callable[[str], Tensor | None],
    x: Tensor,
    nets: int,
) -> Tensor:
    """Apply the layers of K nets to one batch.

    Args:
        layers: what :func:`layers_of` returned; their own tensors are not looked at.
        tensors: the stacked tensor ``(K, ...)`` by name, such as ``"layers.1.weight"``; None if there is none.
        rates: the dropout rates ``(K,)`` of a layer; None if all of them are 0.
        x: the batch ``(B, ...)``, the same for all nets.
        nets: K.

    Returns:
        Outputs ``(K, B, ...)``.

    Raises:
        NotAChainError: if a layer gets an input of a shape that is not handled here.
    """
    signal = Signal(x, "shared", nets)
    for name, layer in layers:
        of_layer = lambda key, name=name: rates(name) if key == "rate" else tensors(f"{name}.{key}" if name else key)  # noqa: E731
        signal = _STEPS[type(layer)](layer, signal, of_layer)
    return signal.outputs()


Tensors = Callable[[str], Tensor | None]


def _parted(x: Tensor, dim: int, nets: int) -> Tensor:
    """Return ``x`` with an axis of K times something as two axes."""
    return x.reshape(*x.shape[:dim], nets, -1, *x.shape[dim + 1 :])


def _needed(tensors: Tensors, key: str) -> Tensor:
    found = tensors(key)
    if found is None:
        raise NotAChainError(f"there is no {key}")
    return found


def _pointwise(layer: nn.Module, signal: Signal, tensors: Tensors) -> Signal:
    return Signal(layer(signal.x), signal.layout, signal.nets)


def _pool(layer: nn.Module, signal: Signal, tensors: Tensors) -> Signal:
    if signal.layout == "dense" or getattr(layer, "return_indices", False):
        raise NotAChainError("pooling needs maps")
    return Signal(layer(signal.x), signal.layout, signal.nets)


def _flatten(layer: nn.Module, signal: Signal, tensors: Tensors) -> Signal:
    if layer.start_dim != 1 or layer.end_dim != -1:
        raise NotAChainError("only whole samples are flattened here")
    if signal.layout == "shared":
        return Signal(signal.x.flatten(1), "shared", signal.nets)
    if signal.layout == "dense":
        return signal
    x = _parted(signal.x, 1, signal.nets).flatten(2)  # (B, K, F)
    return Signal(x.permute(1, 2, 0).contiguous(), "dense", signal.nets)


def _linear(layer: nn.Module, signal: Signal, tensors: Tensors) -> Signal:
    weight, bias, nets = _needed(tensors, "weight"), tensors("bias"), signal.nets
    if signal.layout == "shared" and signal.x.ndim == 2:  # one product for all nets
        wide = weight.flatten(0, 1)  # (K * O, F)
        x = wide @ signal.x.mT if bias is None else torch.addmm(bias.reshape(-1, 1), wide, signal.x.mT)
        return Signal(_parted(x, 0, nets), "dense", nets)
    x = signal.dense()
    x = weight @ x if bias is None else torch.baddbmm(bias[:, :, None], weight, x)
    return Signal(x, "dense", nets)


def _conv(layer: nn.Module, signal: Signal, tensors: Tensors) -> Signal:
    weight, bias, nets = _needed(tensors, "weight"), tensors("bias"), signal.nets
    if signal.layout == "dense" or layer.padding_mode != "zeros":
        raise NotAChainError("a convolution needs maps and zeros around them")
    if signal.layout == "shared" and layer.groups != 1:
        raise NotAChainError("a grouped convolution of shared maps")
    x = _CONVOLUTIONS[type(layer)](
        signal.x,
        weight.flatten(0, 1),
        None if bias is None else bias.flatten(),
        layer.stride,
        layer.padding,
        layer.dilation,
        1 if signal.layout == "shared" else nets * layer.groups,  # type: ignore[operator]
    )
    return Signal(x, "maps", nets)


def _batch_norm(layer: nn.Module, signal: Signal, tensors: Tensors) -> Signal:
    maps = isinstance(layer, nn.BatchNorm2d) or signal.layout == "maps"
    if maps and signal.layout != "maps":
        raise NotAChainError("a batch norm of shared maps")
    x = signal.x if maps else signal.dense().flatten(0, 1)[None]  # (B, K * C, ...) or (1, K * F, B)
    mean, var, weight, bias = (_flat(tensors(key)) for key in ("running_mean", "running_var", "weight", "bias"))
    momentum = layer.momentum
    count = tensors("num_batches_tracked")
    if layer.training and count is not None:
        count.add_(1)
        momentum = 1.0 / float(count[0]) if momentum is None else momentum
    batch_statistics = layer.training or mean is None
    x = F.batch_norm(x, mean, var, weight, bias, bool(batch_statistics), momentum or 0.0, layer.eps)  # type: ignore[arg-type]
    return Signal(x, "maps", signal.nets) if maps else Signal(_parted(x[0], 0, signal.nets), "dense", signal.nets)


def _flat(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.view(-1)


def _layer_norm(layer: nn.Module, signal: Signal, tensors: Tensors) -> Signal:
    if len(layer.normalized_shape) != 1:  # type: ignore[arg-type]
        raise NotAChainError("a layer norm over several axes")
    x = F.layer_norm(signal.dense().mT, layer.normalized_shape, eps=layer.eps)  # type: ignore[arg-type]  # (K, B, F)
    weight, bias = tensors("weight"), tensors("bias")
    x = x if weight is None else x * weight[:, None]
    x = x if bias is None else x + bias[:, None]
    return Signal(x.mT.contiguous(), "dense", signal.nets)


def _group_norm(layer: nn.Module, signal: Signal, tensors: Tensors) -> Signal:
    if signal.layout != "maps":
        raise NotAChainError("a group norm needs maps of their own")
    groups = signal.nets * layer.num_groups  # type: ignore[operator]
    x = F.group_norm(signal.x, groups, _flat(tensors("weight")), _flat(tensors("bias")), layer.eps)  # type: ignore[arg-type]
    return Signal(x, "maps", signal.nets)


def _dropout(layer: nn.Module, signal: Signal, tensors: Tensors) -> Signal:
    rate = tensors("rate")
    if not layer.training or rate is None:
        return signal
    if signal.layout != "maps":
        x, rate = signal.dense(), rate.view(-1, 1, 1)
        return Signal(x * drop_mask(tuple(x.shape), rate), "dense", signal.nets)
    x, channels = signal.x, signal.x.shape[1] // signal.nets
    rate = rate.repeat_interleave(channels).view(1, -1, *[1] * (x.ndim - 2))
    shape = x.shape if isinstance(layer, nn.Dropout) else (*x.shape[:2], *[1] * (x.ndim - 2))
    return Signal(x * drop_mask(tuple(shape), rate), "maps", signal.nets)


_STEPS: dict[type[nn.Module], Callable[[nn.Module, Signal, Tensors], Signal]] = {
    **dict.fromkeys(_POINTWISE, _pointwise),
    **dict.fromkeys(_POOLS, _pool),
    **dict.fromkeys(_CONVOLUTIONS, _conv),
    **dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d), _batch_norm),
    **dict.fromkeys((nn.Dropout, nn.Dropout1d, nn.Dropout2d), _dropout),
    nn.Flatten: _flatten,
    nn.Linear: _linear,
    nn.LayerNorm: _layer_norm,
    nn.GroupNorm: _group_norm,
}
