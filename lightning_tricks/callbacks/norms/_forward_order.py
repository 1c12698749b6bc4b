"""The order in which a forward pass uses the parameters, read from the autograd graph of its loss.

No hook is attached anywhere, so compiled and wrapped models are left alone; where the graph does not show a parameter
(frozen, sharded, compiled, recomputed), its place among the registered ones stands.
"""

from collections.abc import Iterable, Mapping

from torch import Tensor


def first_uses(loss: Tensor) -> dict[int, int]:
    """Return, by ``id`` of the parameter, the sequence number of the first operation that used it.

    Example:
        >>> import torch
        >>> late, early = torch.nn.Linear(2, 1), torch.nn.Linear(2, 2)
        >>> uses = first_uses(late(early(torch.rand(1, 2))).sum())
        >>> uses[id(early.weight)] < uses[id(late.weight)]
        True
    """
    uses: dict[int, int] = {}
    if loss.grad_fn is None:
        return uses
    stack, seen = [loss.grad_fn], {loss.grad_fn}
    while stack:
        node = stack.pop()
        for child, _ in node.next_functions:
            if child is None:
                continue
            parameter = getattr(child, "variable", None)
            if parameter is not None:
                number = node._sequence_nr()  # grows as the forward pass goes on
                uses[id(parameter)] = min(number, uses.get(id(parameter), number))
            elif child not in seen:
                seen.add(child)
                stack.append(child)
    return uses


def in_forward_order(names: Iterable[str], first_use: Mapping[str, int]) -> list[str]:
    """Return ``names`` sorted by first use; one that was not seen follows the name that it is registered after.

    Example:
        >>> in_forward_order(["head", "scale", "stem"], {"head": 9, "stem": 2})
        ['stem', 'head', 'scale']
    """
    keys: list[tuple[int, int, str]] = []
    last = -1
    for position, name in enumerate(names):
        last = first_use.get(name, last)
        keys.append((last, position, name))
    return [name for _, _, name in sorted(keys)]
