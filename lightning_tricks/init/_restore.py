"""A look at a model leaves nothing behind: what a forward stores in modules is put back."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin

_OF_TORCH = frozenset(vars(nn.Module()))  # parameters, submodules, hooks: a forward does not store there
_CONTAINERS = (list, dict, set)


@contextmanager
def left_as_it_was(model: nn.Module) -> Iterator[None]:
    """Run a block, then put back every module's own attributes, lists and dicts among them, and its buffers.

    Lazy layers are left as the block made them: their first forward gives them their shapes for good.

    Example:
        >>> class Caches(nn.Module):
        ...     def forward(self, x):
        ...         self.seen = x
        ...         return x
        >>> model = Caches()
        >>> with left_as_it_was(model):
        ...     _ = model(1)
        >>> hasattr(model, "seen")
        False
    """
    modules = [module for module in model.modules() if not isinstance(module, LazyModuleMixin)]
    attributes = [(module, _own(module)) for module in modules]
    buffers = [(module, dict(module._buffers)) for module in modules]
    contents = [(b, b.clone()) for _, named in buffers for b in named.values() if b is not None and not b.is_meta]
    containers = [(v, copy.copy(v)) for _, own in attributes for v in own.values() if type(v) in _CONTAINERS]
    try:
        yield
    finally:
        for module, own in attributes:
            for key in _own(module).keys() - own.keys():
                del module.__dict__[key]
            module.__dict__.update(own)
        for module, named in buffers:
            module._buffers.clear()
            module._buffers.update(named)
        for container, before in containers:
            _refill(container, before)
        with torch.no_grad():
            for buffer, values in contents:
                buffer.copy_(values)


def _own(module: nn.Module) -> dict[str, Any]:
    return {key: value for key, value in vars(module).items() if key not in _OF_TORCH}


def _refill(container: Any, before: Any) -> None:
    container.clear()
    if isinstance(container, list):
        container.extend(before)
    else:
        container.update(before)
