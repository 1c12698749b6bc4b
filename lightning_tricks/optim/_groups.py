"""Which parameters decay, and which learn at their own rate."""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

from lightning_tricks._base import UserInputError, check_range, is_matrix
from lightning_tricks.optim._blocks import blocks


def param_groups(
    model: nn.Module,
    weight_decay: float,
    *,
    lr: float | None = None,
    lr_of: Mapping[str, float] | None = None,
    layer_decay: float | None = None,
    frozen: str | Sequence[str] = (),
) -> list[dict[str, Any]]:
    """Split the trainable parameters into those that decay and those that do not, and by learning rate.

    Weights of two or more dimensions decay, embeddings and those of lazy layers included. Biases, the parameters of
    norm layers and every other parameter of at most one dimension do not: decaying them does not regularise, and a
    shrunk norm scale only slows learning (Jia et al. 2018, section 2; Nanda et al. 2022). Every trainable parameter
    is in exactly one group, a shared one once.

    Args:
        model: any module.
        weight_decay: strength for the decaying group, at least 0.
        lr: learning rate that ``layer_decay`` scales, above 0.
        lr_of: learning rates by pattern (``*`` and ``?``) of parameter names or of the modules above them; the first
            pattern that fits wins, also over ``layer_decay``.
        layer_decay: factor in (0, 1] between the learning rates of one block and of the block before it, counted
            from the output, whose rate is ``lr`` (Clark et al. 2020). Blocks are taken in order of registration.
        frozen: patterns of parameters to leave out. Their gradients are still computed; ``requires_grad_(False)``
            before training saves that too.

    Returns:
        Groups named ``"decay"`` and ``"no_decay"`` with the keys ``params``, ``weight_decay`` and ``name``, in order of
        registration; a group that would be empty is left out. Groups with their own rate have the key ``lr``, too, and
        the pattern or the block in their name.

    Raises:
        UserInputError: if no parameter is trainable, a number is out of range or a pattern fits nothing.

    Example:
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3))
        >>> groups = param_groups(net, weight_decay=0.1)
        >>> [(g["name"], g["weight_decay"], [tuple(p.shape) for p in g["params"]]) for g in groups]
        [('decay', 0.1, [(3, 4)]), ('no_decay', 0.0, [(3,), (3,), (3,)])]
        >>> [(g["name"], g.get("lr")) for g in param_groups(net, 0.1, lr_of={"*.bias": 0.01})]
        [('decay', None), ('no_decay: *.bias', 0.01), ('no_decay', None)]
    """
    check_range("weight_decay", weight_decay, low=0)
    lr_of = dict(lr_of or {})
    frozen = [frozen] if isinstance(frozen, str) else list(frozen)
    named = list(model.named_parameters())  # lists shared ones once
    _check_patterns([name for name, _ in named], [*lr_of, *frozen])
    for pattern, rate in lr_of.items():
        check_range(f"lr_of[{pattern!r}]", rate, low=0)
    rates = _block_rates(model, lr, layer_decay)
    groups: dict[str, dict[str, Any]] = {}
    for name, parameter in named:
        if not parameter.requires_grad or any(_fits(name, pattern) for pattern in frozen):
            continue
        label, own = _rate_of(name, lr_of, rates)
        path, _, key = name.rpartition(".")
        decay = weight_decay if is_matrix(model.get_submodule(path), key, parameter) else None
        _add(groups, parameter, label, own, decay)
    if not groups:
        raise UserInputError(
            f"an optimizer needs at least one trainable parameter, but {type(model).__name__} has none. "
            "Unfreeze a part of it with requires_grad_(True)."
        )
    return sorted(groups.values(), key=lambda group: group["name"].startswith("no_decay"))


def _add(
    groups: dict[str, dict[str, Any]], parameter: Tensor, label: str, lr: float | None, decay: float | None
) -> None:
    name = ("no_decay" if decay is None else "decay") + (f": {label}" if label else "")
    new: dict[str, Any] = {"name": name, "params": [], "weight_decay": decay or 0.0}
    if lr is not None:
        new["lr"] = lr
    groups.setdefault(name, new)["params"].append(parameter)


def _rate_of(name: str, lr_of: Mapping[str, float], rates: Mapping[str, tuple[str, float]]) -> tuple[str, float | None]:
    """Return the label and the learning rate of a parameter; an empty label for the optimizer's own rate."""
    for pattern, rate in lr_of.items():
        if _fits(name, pattern):
            return pattern, rate
    return rates.get(name, ("", None))


def _block_rates(model: nn.Module, lr: float | None, decay: float | None) -> dict[str, tuple[str, float]]:
    if decay is None:
        return {}
    check_range("layer_decay", decay, low=0, high=1, open_low=True)
    if lr is None:
        raise UserInputError(f"layer_decay={decay} scales a learning rate: give lr, too.")
    check_range("lr", lr, low=0, open_low=True)
    found = blocks(model)
    return {
        name: (f"block {number}", lr * decay ** (len(found) - 1 - number))
        for number, names in enumerate(found)
        for name in names
    }


def _check_patterns(names: list[str], patterns: Sequence[str]) -> None:
    for pattern in patterns:
        if not any(_fits(name, pattern) for name in names):
            known = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
            raise UserInputError(f"patterns must fit parameters or modules, but {pattern!r} fits none of {known}.")


def _fits(name: str, pattern: str) -> bool:
    parts = name.split(".")
    return any(fnmatchcase(".".join(parts[:end]), pattern) for end in range(1, len(parts) + 1))
