"""Rules about the layers in the order in which a forward pass runs through them."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from lightning_tricks.diagnosis._finding import Finding

_WEIGHTED = (nn.Linear, nn.modules.conv._ConvNd)


@dataclass(frozen=True)
class LayerCall:
    """One layer as it ran.

    Args:
        name: of the layer.
        module: itself.
        std: standard deviation of what it returned.
        idle: share of units that never did anything in this batch (behind a ReLU), or of values that sit at a bound
            (behind a tanh or sigmoid); 0 for other layers.
    """

    name: str
    module: nn.Module
    std: float
    idle: float = 0.0


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
                values = first.detach().float()
                self.calls.append(LayerCall(name, module, values.std().item(), _idle(module, values)))

        return hook


def _idle(module: nn.Module, values: Tensor) -> float:
    if values.ndim < 2:
        return 0.0
    if isinstance(module, (nn.ReLU, nn.ReLU6)):
        active = (values > 0).movedim(1 if values.ndim != 3 else -1, 0).flatten(1).any(dim=1)  # (units,)
        return 1 - active.float().mean().item()
    if isinstance(module, nn.Tanh):
        return (values.abs() > 0.99).float().mean().item()
    if isinstance(module, nn.Sigmoid):
        return ((values < 0.01) | (values > 0.99)).float().mean().item()
    return 0.0


def idle_units(calls: Sequence[LayerCall], *, samples: int) -> list[Finding]:
    """Find activations that let nothing through from the beginning: dead ReLUs, saturated tanh and sigmoid units.

    The output layer is left out: a confident output is no fault.

    Args:
        calls: in the order in which the layers ran.
        samples: of the batch; a unit that was silent for fewer than 16 may be awake for others.

    Example:
        >>> calls = [LayerCall("a", nn.ReLU(), 0.0, 1.0), LayerCall("b", nn.Linear(2, 2), 1.0)]
        >>> idle_units(calls, samples=32)[0].severity
        'error'
    """
    last = max((i for i, call in enumerate(calls) if isinstance(call.module, _WEIGHTED)), default=0)
    for call in calls[:last]:
        if samples < 16 or call.idle < 0.8:
            continue
        if isinstance(call.module, (nn.Tanh, nn.Sigmoid)):
            what = f"{call.idle:.0%} of its values sit at the bounds, where the gradient vanishes"
            cure = "Standardise the inputs and use init_weights (Xavier for tanh and sigmoid)."
            return [Finding("saturated-units", "warning", call.name, what, cure)]
        what = f"{call.idle:.0%} of its units are 0 for all {samples} samples: no gradient passes them"
        cure = "Let biases begin at 0 (init_weights(model)), or use leaky ReLU or GELU."
        return [Finding("dead-units", "error" if call.idle > 0.99 else "warning", call.name, what, cure)]
    return []


def wrong_modes(model: nn.Module) -> list[Finding]:
    """Find batch norms that are to be trained in evaluation mode, though they have never seen a batch.

    Lightning keeps the mode that each module begins in.

    Example:
        >>> wrong_modes(nn.Sequential(nn.BatchNorm1d(3)).eval())[0].where
        '0'
    """
    kind = nn.modules.batchnorm._BatchNorm
    asleep = [
        name
        for name, m in model.named_modules()
        if isinstance(m, kind)
        and not m.training
        and m.num_batches_tracked is not None
        and not m.num_batches_tracked
        and any(p.requires_grad for p in m.parameters())
    ]
    if not asleep:
        return []
    what = f"{len(asleep)} batch norms are in evaluation mode before the first step and have no statistics yet"
    cure = "Call model.train() before fitting: Lightning keeps the mode in which a module begins."
    return [Finding("train-eval-mismatch", "warning", asleep[0], what, cure)]


def slow_statistics(model: nn.Module) -> list[Finding]:
    """Find batch norms whose running statistics would take 10,000 steps and more to follow, and have not begun.

    Example:
        >>> slow_statistics(nn.BatchNorm1d(3, momentum=1e-5))[0].rule
        'train-eval-mismatch'
    """
    kind = nn.modules.batchnorm._BatchNorm
    found = {
        name or "model": m.momentum
        for name, m in model.named_modules()
        if isinstance(m, kind)
        and m.momentum is not None
        and m.momentum <= 1e-4
        and m.num_batches_tracked is not None
        and not m.num_batches_tracked
    }
    if not found:
        return []
    name, momentum = next(iter(found.items()))
    what = f"running statistics move by {momentum:g} of the way in a step, so that evaluation will not know them"
    cure = "PyTorch's momentum is the share of the new batch: 0.1 is usual (1 minus that of other frameworks)."
    return [Finding("train-eval-mismatch", "warning", name, what, cure)]


def dropped_everything(model: nn.Module) -> list[Finding]:
    """Find dropout that leaves almost nothing.

    Example:
        >>> dropped_everything(nn.Dropout(0.95))[0].rule
        'train-eval-mismatch'
    """
    found = [
        (name or "model", m.p) for name, m in model.named_modules() if isinstance(m, nn.modules.dropout._DropoutNd)
    ]
    worst = max(found, key=lambda pair: pair[1], default=("", 0.0))
    if worst[1] <= 0.9:
        return []
    what = f"{worst[1]:.0%} of the units are dropped in training, none in evaluation"
    return [Finding("train-eval-mismatch", "warning", worst[0], what, "Drop 10 % to 50 %: p is the share that goes.")]


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
        if 1e-4 <= call.std <= 1e4 or call.std == 0.0:  # nothing at all is a branch that begins at zero on purpose
            continue
        word = "fade" if call.std < 1e-4 else "grow"
        what = f"activations {word} to a standard deviation of {call.std:.1e} (first layer: {weighted[0].std:.1e})"
        cure = "Use init_weights (He for ReLU, Xavier for tanh) and normalisation layers, and standardise the inputs."
        return [Finding("activation-scale", "warning", call.name, what, cure)]
    return []


def dropout_before_batchnorm(calls: Sequence[LayerCall]) -> list[Finding]:
    """Find a dropout whose output a batch norm normalises directly.

    Batch norm learns the variance with dropout and meets another one without (Li et al. 2019, "Understanding the
    disharmony between dropout and batch normalization by variance shift").
    """
    dropout, between = None, 0
    for call in calls:
        if isinstance(call.module, nn.modules.dropout._DropoutNd) and call.module.p > 0:
            dropout, between = call.name, 0
        elif isinstance(call.module, _WEIGHTED):
            between += 1
        elif isinstance(call.module, nn.modules.batchnorm._BatchNorm) and dropout is not None and between == 0:
            what = f"it comes before the batch norm {call.name}, whose variance it changes in training only"
            cure = "Put dropout after the last batch norm, or use LayerNorm."
            return [Finding("dropout-before-batchnorm", "warning", dropout, what, cure)]
    return []
