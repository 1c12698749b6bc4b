"""Where the first NaN or infinity began."""

from collections.abc import Mapping, Sequence
from typing import Any

from lightning_tricks.callbacks.norms._forward_order import in_forward_order
from lightning_tricks.callbacks.norms._history import Block

LOSS = "(loss)"


def first_nonfinite(block: Block, watched: Mapping[str, int], first_use: Mapping[str, int]) -> dict[str, Any] | None:
    """Return step, layer and quantity of the first value that is NaN or infinite, or None.

    Args:
        block: measured steps.
        watched: step of the first non-finite gradient by layer, as seen between measured steps.
        first_use: what orders the layers.
    """
    found = block.broken_layers()
    if watched and (found is None or min(watched.values()) < found[0]):
        step = min(watched.values())
        found = (step, "gradient", [name for name, at in watched.items() if at == step])
    if found is None:
        return None
    step, quantity, broken = found
    layer = where_it_began(quantity, broken, block.layers_with_gradient(step), first_use)
    return {"step": step, "layer": layer, "quantity": quantity}


def where_it_began(
    quantity: str, broken: Sequence[str], with_gradient: Sequence[str], first_use: Mapping[str, int]
) -> str:
    """Return the layer in which something non-finite began.

    Gradients flow backward and break the weights that they update, so it is the last broken layer in forward order;
    where that is the last layer of all, and not the only one, the gradient came broken from the loss. A step without
    any gradient tells no order: then it is the first of the broken layers.
    """
    order = in_forward_order(with_gradient, first_use)
    last = max(broken, key=lambda name: order.index(name) if name in order else -1)
    return LOSS if last in order[-1:] and (len(broken) > 1 or quantity == "gradient") else last


def nonfinite_message(step: int, layer: str, quantity: str) -> str:
    """Return the sentence for the user."""
    if layer == LOSS:
        where = "already the gradient of the loss was: look at the inputs, and for log(0) or 0/0 in the loss"
    elif quantity == "gradient":
        where = f"it began in layer {layer!r}: look for a division or a root of zero in it or right after it"
    else:
        where = (
            f"it is in layer {layer!r}: the update before broke it, so look for 0/0 or sqrt(0) in it or right after it"
        )
    return (
        f"NormMonitor saw the first {quantity} that is NaN or infinite in optimizer step {step}; {where}. "
        "A lower learning rate or gradient clipping helps against growth, not against 0/0."
    )
