"""Which parameters make up a layer, and which optimizer owns them."""

import re
from collections.abc import Iterable, Sequence

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import nn
from torch.nn import Parameter
from torch.nn.parameter import UninitializedParameter
from torch.optim import Optimizer

from lightning_tricks._base import UserInputError, require_sizes
from lightning_tricks.callbacks._trainer import callbacks_of
from lightning_tricks.callbacks.norms._history import REST

_WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "parametrizations"}


def layers_of(
    module: nn.Module, depth: int | None = None, match: str | None = None
) -> list[tuple[str, list[Parameter]]]:
    """Return the layers of a module with their parameters, in the order in which they are registered.

    A parameter that several modules share counts once, for the first of them.

    Args:
        module: whose parameters.
        depth: components of the path that name a layer; the owning module if None.
        match: regular expression; the layers in whose name it is not found become one, the last.

    Raises:
        UserInputError: if there is no parameter, if all are lazy, or no layer is found by ``match``.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1)))
        >>> [name for name, _ in layers_of(net)], [name for name, _ in layers_of(net, depth=1)]
        (['0', '1.0', '1.1'], ['0', '1'])
    """
    layers: dict[str, list[Parameter]] = {}
    for name, parameter in module.named_parameters():
        if isinstance(parameter, UninitializedParameter) or not (
            parameter.is_floating_point() or parameter.is_complex()
        ):
            continue
        layers.setdefault(layer_name(name, depth), []).append(parameter)
    if not layers:
        require_sizes(module, "NormMonitor")
        raise UserInputError("NormMonitor needs a module with at least one parameter, but got one without.")
    if match is None:
        return list(layers.items())
    chosen = [(name, group) for name, group in layers.items() if re.search(match, name)]
    if not chosen:
        raise UserInputError(f"match={match!r} is found in none of the layers {', '.join(layers)}.")
    rest = [p for name, group in layers.items() if not re.search(match, name) for p in group]
    return [*chosen, (REST, rest)] if rest else chosen


def layer_name(parameter: str, depth: int | None) -> str:
    """Return the layer of a parameter's path.

    Example:
        >>> layer_name("net._orig_mod.0.weight", None), layer_name("net.0.weight", 1), layer_name("scale", None)
        ('net.0', 'net', 'scale')
    """
    path = [part for part in parameter.split(".") if part not in _WRAPPERS]
    return ".".join(path[:-1][:depth]) or path[-1]


def members_of(parameters: Sequence[Parameter], optimizers: Iterable[Optimizer]) -> list[list[int]]:
    """Return, per optimizer, the positions of its parameters; what no optimizer owns goes with the first one."""
    groups = [{id(p) for group in optimizer.param_groups for p in group["params"]} for optimizer in optimizers]
    owned = set().union(*groups)
    return [
        [i for i, p in enumerate(parameters) if id(p) in group or (k == 0 and id(p) not in owned)]
        for k, group in enumerate(groups)
    ]


def is_sharded(parameters: Iterable[Parameter]) -> bool:
    """Whether any parameter is a ``DTensor``."""
    return any(hasattr(p, "placements") for p in parameters)


class OnlyLooks:
    """Marks a callback that leaves the gradients as they are."""


def may_change_gradients(trainer: Trainer) -> bool:
    """Whether anything may change the gradients between a callback's look at them and the update."""
    module = trainer.lightning_module
    others = [callback for callback in callbacks_of(trainer) if not isinstance(callback, OnlyLooks)]
    return (
        bool(trainer.gradient_clip_val)
        or is_overridden("configure_gradient_clipping", module)
        or is_overridden("on_before_optimizer_step", module)
        or any(is_overridden("on_before_optimizer_step", callback, parent=Callback) for callback in others)
    )
