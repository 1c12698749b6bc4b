"""Rules about the layers in the order in which a forward pass runs through them."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from lightning_tricks.diagnosis._finding import Finding

_WEIGHTED = (nn.Linear, nn.modules.conv._ConvNd)


@dataclass(frozen=True)
class LayerCall:
    """One layer as it ran: its name, itself, and the standard deviation of what it returned."""

    name: str
    module: nn.Module
    std: float


def trace_layers(model: nn.Module) -> "LayerTrace":
    """Return a context manager that keeps every layer that runs inside it, in order."""
    return LayerTrace(model)


class LayerTrace:
    """Keeps the calls of all leaf layers.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
        >>> with trace_layers(net) as trace:
        ...     _ = net(torch.rand(3, 2))
        >>> [call.name for call in trace.calls]
        ['0', '1']
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.calls: list[LayerCall] = []

    def __enter__(self) -> "LayerTrace":
        self._handles = []
        for name, module in self.model.named_modules():
            if not any(True for _ in module.children()):
                self._handles.append(module.register_forward_hook(self._keep(name)))
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _keep(self, name: str):  # type: ignore[no-untyped-def]
        def hook(module: nn.Module, inputs: object, output: object) -> None:
            first = output[0] if isinstance(output, (tuple, list)) and output else output
            if isinstance(first, Tensor) and first.is_floating_point() and first.numel() > 1:
                self.calls.append(LayerCall(name, module, first.detach().float().std().item()))

        return hook


def activation_scale(calls: Sequence[LayerCall]) -> list[Finding]:
    """Check that activations neither fade nor grow through the weighted layers.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> calls = [LayerCall("a", layer, 1.0), LayerCall("b", layer, 1e-5), LayerCall("c", layer, 1e-9)]
        >>> activation_scale(calls)[0].where
        'b'
    """
    weighted = [call for call in calls if isinstance(call.module, _WEIGHTED)][
        :-1
    ]  # the outputs have rules of their own
    for call in weighted:
        if 1e-4 <= call.std <= 1e4:
            continue
        word = "fade" if call.std < 1e-4 else "grow"
        what = f"activations {word} to a standard deviation of {call.std:.1e} (first layer: {weighted[0].std:.1e})"
        cure = "Use init_weights (He for ReLU, Xavier for tanh) and normalisation layers, and standardise the inputs."
        return [Finding("activation-scale", "warning", call.name, what, cure)]
    return []


def dropout_before_batchnorm(calls: Sequence[LayerCall]) -> list[Finding]:
    """Find a dropout whose output a batch norm normalises, directly or through one weighted layer.

    Batch norm learns the variance with dropout and meets another one without (Li et al. 2019, "Understanding the
    disharmony between dropout and batch normalization by variance shift").
    """
    dropout, between = None, 0
    for call in calls:
        if isinstance(call.module, nn.modules.dropout._DropoutNd) and call.module.p > 0:
            dropout, between = call.name, 0
        elif isinstance(call.module, _WEIGHTED):
            between += 1
        elif isinstance(call.module, nn.modules.batchnorm._BatchNorm) and dropout is not None and between <= 1:
            what = f"it comes before the batch norm {call.name}, whose variance it changes in training only"
            cure = "Put dropout after the last batch norm, or use LayerNorm."
            severity = "warning" if between == 0 else "info"
            return [Finding("dropout-before-batchnorm", severity, dropout, what, cure)]  # type: ignore[arg-type]
    return []
