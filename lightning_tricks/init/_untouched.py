"""Does a layer still hold what torch drew when it was made? Then nobody's weights are lost by drawing again.

Trained, loaded and custom weights are told apart by three signs: torch's default draws are bounded (or normal with a
known deviation), so a single value beyond the bound settles it; the distribution of the values is compared with the
default's by a Kolmogorov-Smirnov test at level 1e-6; and what cannot be settled so (small layers; embeddings, whose
normal draws hide a little training) follows the rest of the model: left alone beside anything touched, new beside new
layers, and where nothing settles it, new only if nothing was written to it since it was made.
"""

import math
from collections.abc import Collection
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lightning_tricks._base import hook_of_gain
from lightning_tricks.init._trace import NORMS

_LEVEL = 1e-6
_ENOUGH = 200  # values from which on the test is trusted alone


class _Default(NamedTuple):
    kind: str  # "uniform" (scale: the bound), "normal" (scale: the deviation) or "constant" (scale: the value)
    scale: float


def untouched_modules(model: nn.Module, *, known: Collection[str] = ()) -> set[str]:
    """Return the names of the modules whose own parameters all hold torch's default initialisation.

    Collective where parameters are sharded: every rank has to call it.

    Args:
        model: any module.
        known: small modules that are untouched for another reason.

    Example:
        >>> net = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
        >>> _ = nn.init.normal_(net[0].weight, std=0.01)
        >>> untouched_modules(net)
        {'1'}
    """
    sorted_out: dict[str, set[str]] = {"harmless": set(), "sure": set(), "small": set(), "touched": set()}
    for name, module in model.named_modules():
        verdict = _verdict(module)
        if verdict is not None:
            sorted_out[verdict].add(name)
    small = sorted_out["small"]
    if sorted_out["touched"]:
        small = set()
    elif not sorted_out["sure"]:
        small = {name for name in small if name in known or _never_written(model.get_submodule(name))}
    return sorted_out["harmless"] | sorted_out["sure"] | small


def is_small(module: nn.Module) -> bool:
    """Whether torch's default cannot be recognised in a module's values for certain."""
    return (
        isinstance(module, nn.Embedding | nn.EmbeddingBag)
        or max((p.numel() for p in module.parameters(recurse=False)), default=0) < _ENOUGH
    )


def _verdict(module: nn.Module) -> str | None:
    own: dict[str, Tensor] = {
        key: p for key, p in module.named_parameters(recurse=False) if hook_of_gain(module, key) is None
    }
    parametrized = {key: getattr(module, key) for key in getattr(module, "parametrizations", ())}
    own |= parametrized
    if _has_seen_data(module):
        return "touched"
    if not own or any(nn.parameter.is_lazy(p) for p in own.values()):
        return None
    defaults = {key: _default_of(module, key) for key in own}
    if None in defaults.values():
        return None  # no default known: neither new nor a sign
    if not all(_fits(parameter, defaults[key]) for key, parameter in own.items()):
        return None if parametrized else "touched"  # a parametrization changes the values by itself
    if isinstance(module, NORMS):
        return "harmless"  # ones and zeros: nothing to lose, and no sign for the others
    return "small" if is_small(module) else "sure"


def _has_seen_data(module: nn.Module) -> bool:
    count = getattr(module, "num_batches_tracked", None)
    return isinstance(count, Tensor) and not count.is_meta and int(count) > 0


def _default_of(module: nn.Module, key: str) -> _Default | None:
    """Return what torch's ``reset_parameters`` draws this parameter from, or None if that is not known."""
    weight = getattr(module, "weight", None)
    if isinstance(module, NORMS):
        return _Default("constant", 1.0 if key == "weight" else 0.0)
    if isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear) and key == "bias":
        return _Default("constant", 0.0)  # an attention's output projection
    if isinstance(module, nn.modules.conv._ConvNd | nn.Linear) and isinstance(weight, Tensor):
        fan = weight.shape[1] * math.prod(weight.shape[2:])
        return _Default("uniform", fan**-0.5 if fan else 0.0)
    if isinstance(module, nn.Bilinear):
        return _Default("uniform", module.in1_features**-0.5)
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return _Default("normal", 1.0)
    if isinstance(module, nn.RNNBase | nn.RNNCellBase):
        return _Default("uniform", module.hidden_size**-0.5)
    if isinstance(module, nn.MultiheadAttention):
        if key == "in_proj_bias":
            return _Default("constant", 0.0)
        if key in ("bias_k", "bias_v"):
            return _Default("normal", (2 / (module.embed_dim + 1)) ** 0.5)
        shape = getattr(module, key).shape
        return _Default("uniform", math.sqrt(6 / (shape[0] + shape[1])))
    return None


def _fits(parameter: Tensor, default: _Default | None) -> bool:
    """Whether values may be a draw from the default."""
    if default is None or parameter.is_meta or not parameter.is_floating_point():
        return False
    values = _whole(parameter).flatten()
    if default.kind == "constant":
        return bool((values == default.scale).all())
    if len(values) == 0:
        return True
    if bool((values == (values[0] if len(values) > 1 else 0)).all()):
        return False  # a constant is not a draw
    rounding = 1 + 2 * torch.finfo(parameter.dtype).eps
    if default.kind == "uniform":
        if not bool((values.abs() <= default.scale * rounding).all()):  # NaN does not fit either
            return False
        cdf = (_sample(values) / default.scale + 1) / 2
    else:
        sample = _sample(values)
        sample = sample[sample != 0]  # a padding row
        cdf = torch.special.ndtr(sample / default.scale)
    return _ks_distance(cdf) <= math.sqrt(-math.log(_LEVEL / 2) / 2 / max(len(cdf), 1))


def _whole(parameter: Tensor) -> Tensor:
    values = parameter.detach()
    if hasattr(values, "full_tensor"):
        values = values.full_tensor()
    return values.float().cpu()


def _sample(values: Tensor) -> Tensor:
    return values[:: max(1, len(values) // 20_000)].double()


def _ks_distance(cdf: Tensor) -> float:
    """Largest distance of an empirical distribution from the uniform one on [0, 1]."""
    if len(cdf) == 0 or bool(cdf.isnan().any()):
        return float(len(cdf) > 0)
    ordered = cdf.sort().values
    steps = torch.arange(len(cdf) + 1) / len(cdf)
    return float(torch.maximum(steps[1:] - ordered, ordered - steps[:-1]).max())


def _never_written(module: nn.Module) -> bool:
    """Whether a module's parameters were written as often as those of a new one of its kind.

    Loading and training write in place and so raise torch's version counter; copies and parameters made from a tensor
    start at 0.
    """
    padded = getattr(module, "padding_idx", None) is not None
    in_attention = isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear)
    return all(
        p._version == (2 if padded or (in_attention and key == "bias") else 1)
        for key, p in module.named_parameters(recurse=False)
    )
