"""The standard deviation of every layer's output and of the gradient that comes back to it."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lightning_tricks.init._trace import SOURCES, outermost_known, run, tensors_in, undisturbed


class Deviation(NamedTuple):
    """Standard deviations at a layer's output; the gradient's is NaN where none came back."""

    output: float
    gradient: float


def signal_deviations(model: nn.Module, example: tuple[Any, ...]) -> dict[str, Deviation]:
    """Run one example forward and a random cotangent back; return the deviations by layer in order of execution.

    The cotangent is random because a sum is blind: behind a softmax or a layer norm its gradient is zero. Modes,
    buffers, gradients and random streams are as before afterwards.

    Args:
        model: any module.
        example: its positional inputs.

    Example:
        >>> layer = nn.init.eye_(nn.Linear(64, 64, bias=False).weight)
        >>> net = nn.Sequential(nn.Linear(64, 64, bias=False))
        >>> _ = net[0].load_state_dict({"weight": layer.detach()})
        >>> deviation = signal_deviations(net, (torch.ones(1, 64).cumsum(1),))["0"]
        >>> round(deviation.output, 2)  # that of 1, 2, ..., 64
        18.47
    """
    outputs: dict[str, float] = {}
    gradients: dict[str, float] = {}

    def catch(name: str, gradient: Tensor) -> None:
        gradients.setdefault(name, _std(gradient))

    def keep(name: str, output: Any) -> None:
        floating = [t for t in tensors_in(output) if t.is_floating_point()]
        if floating and name not in outputs:
            outputs[name] = _std(floating[0])  # at once: an in-place activation may follow
            if floating[0].requires_grad:
                floating[0].register_hook(partial(catch, name))  # type: ignore[no-untyped-call]

    with undisturbed(model), torch.enable_grad(), _hooked(model, keep):
        result = [t for t in tensors_in(run(model, example)) if t.is_floating_point() and t.requires_grad]
        if result:
            generator = torch.Generator().manual_seed(0)
            cotangents = [torch.randn(t.shape, generator=generator).to(t) for t in result]
            wanted = [p for p in model.parameters() if p.requires_grad]
            torch.autograd.grad(result, wanted, cotangents, allow_unused=True)
    return {name: Deviation(std, gradients.get(name, float("nan"))) for name, std in outputs.items()}


@contextmanager
def _hooked(model: nn.Module, keep: Any) -> Iterator[None]:
    handles = [
        module.register_forward_hook(lambda module, args, output, name=name: keep(name, output))
        for name, module in outermost_known(model)
        if isinstance(module, SOURCES)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _std(values: Tensor) -> float:
    values = values.detach()
    if hasattr(values, "full_tensor"):
        values = values.full_tensor()
    return float(values.float().std(correction=0)) if values.numel() else float("nan")
