"""Layer-sequential unit-variance initialisation."""

from typing import Any

import torch
from torch import nn

from lightning_tricks.init._trace import LAYERS, outermost_known, run, tensors_in, undisturbed


def lsuv_scales(model: nn.Module, example: tuple[Any, ...], names: set[str]) -> None:
    """Divide each named layer's weight by the deviation of its output, in order of execution, in place.

    The published algorithm re-runs the net until each deviation is 1 (Mishkin & Matas 2016, algorithm 1). A layer is
    linear in its weight, so one division gets there, and the corrected output feeds the next layer in the same pass.

    Args:
        model: with orthogonal weights.
        example: the model's positional inputs, a batch of real data.
        names: the layers that may be changed.
    """
    done: set[str] = set()

    def rescale(name: str, module: nn.Module, output: Any) -> Any:
        (values,) = tensors_in(output)[:1]
        bias = getattr(module, "bias", None)
        shift = 0 if bias is None else bias.reshape(-1, *[1] * (values.ndim - 2)) if _is_conv(module) else bias
        linear = values - shift
        std = float(linear.float().std(correction=0))
        if name in done or not 1e-12 < std < float("inf"):
            return output
        done.add(name)
        module.weight.div_(std)  # type: ignore[operator]
        return linear / std + shift

    handles = [
        module.register_forward_hook(lambda module, args, output, name=name: rescale(name, module, output))
        for name, module in outermost_known(model)
        if name in names and isinstance(module, nn.Linear | nn.modules.conv._ConvNd | nn.Bilinear)
    ]
    try:
        with undisturbed(model), torch.no_grad():
            run(model, example)
    finally:
        for handle in handles:
            handle.remove()


def _is_conv(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.conv._ConvNd) and isinstance(module, LAYERS)
