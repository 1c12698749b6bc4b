"""Whether a stack says what its nets say by themselves, tried on a batch."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_flatten

from lightning_tricks._base import UserInputError, isolated_rng
from lightning_tricks.stacked._net import DROPOUTS, StackedNet

_ADVICE = "Search this without vectorize."


def check_stack(stack: StackedNet, nets: Sequence[nn.Module], *inputs: Any) -> None:
    """Compare what the stack says about inputs, without dropout, with each net by itself.

    Args:
        stack: the stack; it is left as it was.
        nets: what it was made of; their own tensors are not looked at.
        *inputs: of the nets.

    Raises:
        UserInputError: if ``torch.func`` cannot run the net, or the answers differ.
    """
    with _left_alone(stack, nets) as own, runs_by_vmap(), torch.no_grad():
        together = _first(stack.eval()(*inputs))
        for i, (net, tensors) in enumerate(zip(nets, own, strict=True)):
            alone = _first(functional_call(net.eval(), tensors, inputs))
            scale = float(alone.abs().nan_to_num().max()) if alone.numel() else 0.0
            if not torch.allclose(together[i], alone, rtol=1e-3, atol=1e-4 * scale, equal_nan=True):
                raise UserInputError(
                    f"stacked, net {i} gives another output than by itself, so it depends on more than its tensors "
                    f"and dropout rates. {_ADVICE}"
                )
    if stack.way == "vmap":  # the layers of a chain hold nothing that was not compared when it was made
        check_code(stack, nets, *inputs)


def check_code(stack: StackedNet, nets: Sequence[nn.Module], *inputs: Any) -> None:
    """Demand of every net that it does exactly as the first with the tensors and dropout rates of the first.

    The code is the same, and so are its tensors, its mode and its random numbers: whatever differs comes from something
    of the net's own that the stack does not keep. Gradients are compared too, where they are wanted.

    Args:
        stack: the stack, in the mode to be tried; it is left as it was.
        nets: what it was made of.
        *inputs: of the nets.

    Raises:
        UserInputError: if ``torch.func`` cannot run the net in this mode, or a net does otherwise.
    """
    with _left_alone(stack, nets) as own:
        with runs_by_vmap(), isolated_rng(seed=0):
            stack(*inputs)
        tensors = next(own)
        for net in nets:
            _become(net, stack.skeleton())
        expected = _done(nets[0], tensors, inputs)
        # Some operations of GPUs add in another order each time.
        exact = _same(_done(nets[0], tensors, inputs), expected, exact=True)
        for i, net in enumerate(nets[1:], 1):
            if not _same(_done(net, tensors, inputs), expected, exact=exact):
                raise UserInputError(
                    f"with the tensors and dropout rates of net 0, net {i} gives another output than net 0, so it "
                    f"depends on something that a stack does not keep for each{_differing(nets[0], net)}. Make such a "
                    "number a buffer (self.register_buffer('l2', torch.tensor(l2))), a dropout rate that of an "
                    f"nn.Dropout. Or: {_ADVICE}"
                )


@contextmanager
def runs_by_vmap() -> Iterator[None]:
    """Turn what ``torch.func`` says into a sentence."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, TypeError, AttributeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserInputError(f"torch.func.vmap cannot run this net: {reason}. {_ADVICE}") from error


@contextmanager
def _left_alone(stack: StackedNet, nets: Sequence[nn.Module]) -> Iterator[Iterator[dict[str, Tensor]]]:
    """Give back modes, rates and buffers, whatever a block does to them; yields copies of each net's tensors."""
    mode = stack.training
    kept: list[tuple[nn.Module, dict[str, Any]]]
    kept = [(m, {k: vars(m)[k] for k in ("training", "p") if k in vars(m)}) for net in nets for m in net.modules()]
    rows = [stack.tensors_of(i) for i in range(len(nets))]
    try:
        with stack.on_copies():
            yield ({name: tensor.detach().clone() for name, tensor in row.items()} for row in rows)
    finally:
        stack.train(mode)
        for module, values in kept:
            module.__dict__.update(values)


def _become(net: nn.Module, model: nn.Module) -> None:
    """Put a net's layers into the modes of another one's, with its dropout rates."""
    for mine, its in zip(net.modules(), model.modules(), strict=True):
        mine.training = its.training
        if type(mine) in DROPOUTS:
            mine.p = its.p


def _done(net: nn.Module, tensors: dict[str, Tensor], inputs: Any) -> tuple[list[Tensor | None], Any]:
    """Return what a net says, with its gradients if any are wanted, and in which form."""
    given = {name: tensor.clone() for name, tensor in tensors.items()}
    wanted = [n for n, p in net.named_parameters() if p.requires_grad] if torch.is_grad_enabled() else []
    learned = [given[name].requires_grad_() for name in wanted]
    with isolated_rng(seed=0):
        leaves, form = tree_flatten(functional_call(net, given, inputs))
    said = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    total = sum((leaf.sum() for leaf in said if leaf.requires_grad), torch.zeros(()))
    gradients = torch.autograd.grad(total, learned, allow_unused=True) if total.requires_grad else ()
    return [*(leaf.detach() for leaf in said), *gradients], form


def _same(one: tuple[list[Tensor | None], Any], other: tuple[list[Tensor | None], Any], *, exact: bool) -> bool:
    if one[1] != other[1] or len(one[0]) != len(other[0]):
        return False
    return all(_equal(a, b, exact=exact) for a, b in zip(one[0], other[0], strict=True))


def _equal(one: Tensor | None, other: Tensor | None, *, exact: bool) -> bool:
    if one is None or other is None:
        return one is other
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    close = {"rtol": 0.0, "atol": 0.0} if exact else {"rtol": 1e-3, "atol": 1e-5}
    return torch.allclose(one, other, equal_nan=True, **close)


def _differing(first: nn.Module, net: nn.Module) -> str:
    """Return which plain values of two nets differ, as a part of a sentence."""
    names = []
    for (name, mine), its in zip(first.named_modules(), net.modules(), strict=True):
        one, other = _values(mine), _values(its)
        differ = sorted(key for key in one if one[key] != other.get(key))
        names += [f"{name}.{key}".removeprefix("model.").removeprefix(".") for key in differ]
    return f" (they differ in {', '.join(names)})" if names else ""


def _values(module: nn.Module) -> dict[str, Any]:
    plain = (int, float, str)
    found = {name: value for name, value in vars(module).items() if isinstance(value, plain)}
    if isinstance(module, LightningModule):
        found |= {f"hparams.{name}": value for name, value in module.hparams.items() if isinstance(value, plain)}
    return found


def _first(result: Any) -> Tensor:
    """Return the outputs, or the losses of a step that logs too."""
    first: Tensor = result[0] if isinstance(result, tuple) else result
    return first
