"""Weights that a layer computes from other parameters: torch's parametrizations, and the older weight norm by hooks."""

from collections.abc import Callable, Iterator

import torch
from torch import Generator, Tensor, nn
from torch.nn.utils import parametrize

from lightning_tricks._base import hook_of_gain
from lightning_tricks.init._plan import Choice

Write = Callable[[nn.Module, str, Tensor], None]


def parameters_of(model: nn.Module) -> Iterator[tuple[str, nn.Module, str, Tensor, str]]:
    """Yield each parameter once: module name, module, key, parameter, full name.

    The originals of a parametrized weight come as their layer's weight, gains after the directions they belong to.
    """
    seen = set[int]()
    for name, module in model.named_modules():
        own = sorted(module.named_parameters(recurse=False), key=lambda item: hook_of_gain(module, item[0]) is not None)
        for key, parameter in own:
            if id(parameter) in seen:
                continue
            seen.add(id(parameter))
            full = f"{name}.{key}" if name else key
            if isinstance(module, parametrize.ParametrizationList):
                path, _, weight = name.rpartition(".")
                path = path.removesuffix("parametrizations").removesuffix(".")
                yield path, model.get_submodule(path), weight, parameter, full
            else:
                yield name, module, key, parameter, full


def gain_choice(module: nn.Module, key: str) -> Choice | None:
    """Return the choice for a gain of :func:`torch.nn.utils.weight_norm`: it is its direction's norm, never drawn."""
    hook = hook_of_gain(module, key)
    if hook is None:
        return None

    def fill(values: Tensor, generator: Generator) -> None:
        direction = getattr(module, f"{hook.name}_v").detach()
        values.copy_(torch.norm_except_dim(direction, 2, hook.dim))

    return Choice(f"norm of {hook.name}_v", "weight norm", fill)


def assign(module: nn.Module, key: str, values: Tensor, choice: Choice, write: Write) -> Choice:
    """Write the values, through the right inverse where the weight is parametrized; return the choice as it went."""
    if not parametrize.is_parametrized(module, key):
        write(module, key, values)
        return choice
    weight = getattr(module, key)
    kinds = ", ".join(type(p).__name__.lstrip("_") for p in module.parametrizations[key])  # type: ignore[index]
    try:
        with torch.no_grad():
            setattr(module, key, values.to(weight.device, weight.dtype))
    except (NotImplementedError, RuntimeError) as error:  # torch raises either where there is no right inverse
        return Choice("left alone", f"the parametrization {kinds} cannot be assigned to: {error}")
    return choice._replace(why=f"{choice.why}; assigned through {kinds}")
