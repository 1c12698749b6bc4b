"""What a model returns besides tensors: dicts, tuples, named tuples; names and gaps in them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_map, tree_unflatten

from lightning_tricks._base import UserInputError

# Stands where a tensor was.
_TENSOR = object()


class OutputForm:
    """What an output looks like without its tensors; puts other tensors into their places.

    Args:
        leaves: of the output, flattened.
        spec: how they were nested.
    """

    def __init__(self, leaves: Sequence[Any], spec: TreeSpec) -> None:
        self._leaves = [_TENSOR if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        self._spec = spec

    def restored(self, tensors: Sequence[Tensor]) -> Any:
        """Return the output with these tensors in it."""
        left = iter(tensors)
        return tree_unflatten([next(left) if leaf is _TENSOR else leaf for leaf in self._leaves], self._spec)


def taken_apart(out: Any) -> tuple[list[Tensor], OutputForm]:
    """Return the tensors of an output and the form that they came in.

    Args:
        out: what a model returned: tensors, ``None`` and strings, in dicts, tuples and lists.

    Raises:
        UserInputError: if anything else is in it.

    Example:
        >>> tensors, form = taken_apart({"logits": torch.zeros(2), "loss": None})
        >>> form.restored([x + 1 for x in tensors])
        {'logits': tensor([1., 1.]), 'loss': None}
    """
    leaves, spec = tree_flatten(out)
    strange = [leaf for leaf in leaves if not isinstance(leaf, Tensor | str | None)]
    if strange:
        raise UserInputError(
            f"the model returned a {type(strange[0]).__name__}; mc_forward stacks tensors, or dicts, tuples and lists "
            "of them. Pick what to sample: output=lambda out: out.logits."
        )
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)], OutputForm(leaves, spec)


def joined(parts: Sequence[Any], *, dim: int) -> Any:
    """Concatenate the tensors of outputs of one form."""
    return tree_map(lambda *x: torch.cat(x, dim=dim) if isinstance(x[0], Tensor) else x[0], *parts)


def first_rows(out: Any, count: int) -> Any:
    """Return the first rows of the samples ``(S, B, ...)`` in an output."""
    return tree_map(lambda x: x[:, :count] if isinstance(x, Tensor) else x, out)
