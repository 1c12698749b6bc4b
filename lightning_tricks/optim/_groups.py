"""Which parameters decay."""

from typing import Any

from torch import nn

from lightning_tricks._base import UserInputError, check_range


def param_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Split the trainable parameters into those that decay and those that do not.

    Weights of two or more dimensions decay, embeddings included. Biases, the parameters of norm layers and every
    other parameter of at most one dimension do not: decaying them does not regularise, and a shrunk norm scale only
    slows learning (Jia et al. 2018, section 2; Nanda et al. 2022). Every trainable parameter is in exactly one group,
    a shared one once.

    Args:
        model: any module.
        weight_decay: strength for the decaying group, at least 0.

    Returns:
        Groups named ``"decay"`` and ``"no_decay"`` with the keys ``params``, ``weight_decay`` and ``name``, in order of
        registration; a group that would be empty is left out.

    Raises:
        UserInputError: if no parameter is trainable or ``weight_decay`` is negative.

    Example:
        >>> from torch import nn
        >>> groups = param_groups(nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3)), weight_decay=0.1)
        >>> [(g["name"], g["weight_decay"], [tuple(p.shape) for p in g["params"]]) for g in groups]
        [('decay', 0.1, [(3, 4)]), ('no_decay', 0.0, [(3,), (3,), (3,)])]
    """
    check_range("weight_decay", weight_decay, low=0)
    trainable = [p for p in model.parameters() if p.requires_grad]  # parameters() lists shared ones once
    if not trainable:
        raise UserInputError(
            f"an optimizer needs at least one trainable parameter, but {type(model).__name__} has none. "
            "Unfreeze a part of it with requires_grad_(True)."
        )
    decay = [p for p in trainable if p.ndim >= 2]
    rest = [p for p in trainable if p.ndim < 2]
    groups = [
        {"name": "decay", "params": decay, "weight_decay": weight_decay},
        {"name": "no_decay", "params": rest, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
