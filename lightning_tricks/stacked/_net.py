"""Several nets of one architecture as one module with stacked parameters."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.func import functional_call

from lightning_tricks._base import UserInputError
from lightning_tricks.stacked._chain import NotAChainError, layers_of, run_chain
from lightning_tricks.stacked._masks import drop_mask

DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d)
_PLAIN = (int, float, str, bool, type(None), tuple, list, torch.dtype)


class StackedNet(nn.Module):
    """K nets that differ in nothing but the values of their tensors and their dropout rates.

    Parameters and buffers are stacked along a new first axis. Chains of ordinary layers run with batched products, any
    other net by ``torch.func.vmap``.

    Args:
        nets: at least one, all alike; they are copied.

    Attributes:
        weights: the stacked parameters ``(K, ...)``, in the order of a net's own.
        way: ``"chain"`` or ``"vmap"``.

    Raises:
        UserInputError: if the nets differ in more than that, or cannot be stacked.

    Example:
        >>> nets = [nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)) for _ in range(5)]
        >>> x = torch.rand(7, 3)
        >>> out = StackedNet(nets)(x)
        >>> out.shape, torch.allclose(out[3], nets[3](x), atol=1e-6)
        (torch.Size([5, 7, 2]), True)
    """

    def __init__(self, nets: Sequence[nn.Module]) -> None:
        super().__init__()
        check_alike(nets)
        self.skeleton: Callable[[], nn.Module]
        skeleton = deepcopy(nets[0]).to("meta")
        self._names = [name for name, _ in nets[0].named_parameters()]
        self._buffer_names = [name for name, _ in nets[0].named_buffers()]
        parameters = zip(*(net.parameters() for net in nets), strict=True)
        self.weights = nn.ParameterList(
            nn.Parameter(torch.stack([p.detach() for p in same]), same[0].requires_grad) for same in parameters
        )
        for i, same in enumerate(zip(*(net.buffers() for net in nets), strict=True)):
            self.register_buffer(f"buffer_{i}", torch.stack([b.detach() for b in same]))
        self._dropouts = [name for name, module in nets[0].named_modules() if type(module) in DROPOUTS]
        for i, name in enumerate(self._dropouts):
            rates = [net.get_submodule(name).p for net in nets]
            self.register_buffer(f"rate_{i}", torch.tensor(rates, dtype=torch.get_default_dtype()))
        self._layers: list[tuple[str, nn.Module]] = []
        self.way = "chain"
        try:
            self._layers = layers_of(skeleton)
        except NotAChainError:
            self.way = "vmap"
        # Hidden from nn.Module: neither its meta tensors nor its mode are anybody's business.
        self.skeleton = lambda: skeleton
        self._in_eval = [name for name, module in nets[0].named_modules() if name and not module.training]
        self._mode: bool | None = None
        self._look()

    @property
    def nets(self) -> int:
        """How many nets there are."""
        return len(next(iter([*self.weights, *self.buffers()]), ()))

    def _look(self) -> None:
        """Note where the tensors are, and which layers drop anything: asking a module costs more than a product."""
        self._found: dict[str, Tensor] = dict(zip(self._names, self.weights, strict=True))
        buffers = dict(self.named_buffers())
        self._found |= {name: buffers[f"buffer_{i}"] for i, name in enumerate(self._buffer_names)}
        self._rates: dict[str, Tensor] = {}
        for i, name in enumerate(self._dropouts):
            if buffers[f"rate_{i}"].any():
                self._rates[name] = buffers[f"rate_{i}"]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "StackedNet":
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._look()
        return self

    def _set_mode(self) -> None:
        """Put the layers into the stack's mode, which Lightning may set without a call."""
        if self._mode == self.training:
            return
        self._mode = self.training
        skeleton = self.skeleton().train(self.training)
        for name in self._in_eval:
            skeleton.get_submodule(name).eval()

    def forward(self, *inputs: Any) -> Any:
        """Return the outputs ``(K, B, ...)`` of all nets for one batch ``(B, ...)``."""
        self._set_mode()
        if self.way == "chain":
            try:
                return run_chain(self._layers, self._found.get, self._rates.get, inputs[0], self.nets)
            except NotAChainError:
                self.way = "vmap"
        return self.map(lambda net, tensors: functional_call(net, tensors, inputs))

    def map(self, function: Callable[[nn.Module, dict[str, Tensor]], Any]) -> Any:
        """Return ``function(skeleton, tensors)`` for all nets by ``vmap``; dropout is drawn for each.

        Buffers that the function assigns anew, which ``functional_call`` puts into ``tensors``, are taken over.
        """
        self._set_mode()
        names = [*self._names, *self._buffer_names]

        def one(tensors: dict[str, Tensor], rates: dict[str, Tensor]) -> Any:
            before = dict(tensors)
            with _own_rates(self.skeleton(), rates):
                result = function(self.skeleton(), tensors)
            return result, {n: tensors[n].detach() for n in self._buffer_names if tensors[n] is not before[n]}

        tensors = {name: self._found[name] for name in names}
        result, assigned = torch.vmap(one, randomness="different")(tensors, dict(self._rates))
        if assigned:
            self._take(assigned)
        return result

    def _take(self, assigned: dict[str, Tensor]) -> None:
        """Put new buffers in the place of those that were assigned anew."""
        for name, new in assigned.items():
            old = self._found[name]
            if new.shape != old.shape or new.dtype != old.dtype:
                raise UserInputError(
                    f"buffers of a stack must keep shape and type, but {name} was {tuple(old.shape[1:])}, {old.dtype}, "
                    f"and a step made it {tuple(new.shape[1:])}, {new.dtype}."
                )
            with torch.inference_mode(mode=False):  # what validation made must be good for training
                self._buffers[f"buffer_{self._buffer_names.index(name)}"] = new.clone()
        self._look()

    @contextmanager
    def on_copies(self) -> Iterator[None]:
        """Let a block change copies of the buffers, and forget them afterwards."""
        kept = dict(self._buffers)
        self._buffers.update({name: None if tensor is None else tensor.clone() for name, tensor in kept.items()})
        self._look()
        try:
            yield
        finally:
            self._buffers.update(kept)
            self._look()

    def tensors_of(self, net: int) -> dict[str, Tensor]:
        """Return the parameters and buffers of one net by name."""
        return {name: tensor[net] for name, tensor in self._found.items()}

    def keep(self, rows: Tensor) -> None:
        """Drop all nets but these.

        Args:
            rows: their numbers in rising order.
        """
        for tensor in [*self.weights, *self.buffers()]:
            tensor.data = tensor.data[rows.to(tensor.device)]
            tensor.grad = None
        self._look()

    def tensors(self) -> list[Tensor]:
        """Return the stacked parameters and buffers, in the order of a net's own."""
        return [self._found[name].detach() for name in (*self._names, *self._buffer_names)]


class _own_rates:  # noqa: N801 - a context manager
    """Give dropout layers rates that are tensors, which ``vmap`` maps over."""

    def __init__(self, net: nn.Module, rates: dict[str, Tensor]) -> None:
        self.layers = {net.get_submodule(name): rate for name, rate in rates.items()}

    def __enter__(self) -> None:
        for layer, rate in self.layers.items():
            layer.forward = lambda x, layer=layer, rate=rate: _dropped(layer, x, rate)

    def __exit__(self, *error: object) -> None:
        for layer in self.layers:
            del layer.forward


def _dropped(layer: nn.Module, x: Tensor, rate: Tensor) -> Tensor:
    if not layer.training:
        return x
    shared = 0 if isinstance(layer, nn.Dropout) else x.ndim - 2
    dropped: Tensor = _Drop.apply(x, rate, shared)
    return dropped


class _Drop(torch.autograd.Function):
    """Dropout that draws the masks of all nets at once: under ``vmap`` torch's ``rand`` alone takes ten times as long.

    Its arguments are the inputs, the rate, and how many of the last axes share a mask.
    """

    @staticmethod
    def forward(x: Tensor, rate: Tensor, shared: int) -> Tensor:
        """Refuse what has no use: only stacks drop in this way."""
        raise AssertionError("drawn for all nets at once, under vmap")

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Keep nothing: gradients flow through what :meth:`vmap` does."""

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Tensor, rate: Tensor, shared: int) -> tuple[Tensor, int]:
        """Drop with the rates ``(K,)`` of all nets."""
        x = x.expand(info.batch_size, *x.shape) if in_dims[0] is None else x.movedim(in_dims[0], 0)
        shape = (*x.shape[: x.ndim - shared], *[1] * shared)
        rate = rate.view(-1, *[1] * (x.ndim - 1))
        return x * drop_mask(shape, rate).to(x.dtype), 0


def put_back(tensors: Sequence[Tensor], row: int, net: nn.Module) -> None:
    """Copy one row of what :meth:`StackedNet.tensors` returned into a net."""
    for own, stacked in zip([*net.parameters(), *net.buffers()], tensors, strict=True):
        own.data = stacked[row].to(own.device, copy=True)


def check_alike(nets: Sequence[nn.Module]) -> None:
    """Refuse nets that differ in more than the values of their tensors and their dropout rates.

    Raises:
        UserInputError: naming the first difference.
    """
    for name, module in nets[0].named_modules():
        if isinstance(module, nn.RNNBase | nn.RNNCellBase):
            raise UserInputError(f"recurrent layers cannot be stacked, but {name or 'the net'} is one. {_ADVICE}")
    first = _description(nets[0])
    for i, net in enumerate(nets[1:], 1):
        other = _description(net)
        for what in {**first, **other}:
            if first.get(what) != other.get(what):
                raise UserInputError(
                    "nets that are stacked must share their architecture, but net 0 has "
                    f"{what} = {first.get(what)} and net {i} has {other.get(what)}. {_ADVICE}"
                )


_ADVICE = "Search this without vectorize."


def _description(net: nn.Module) -> dict[str, Any]:
    """Return what must be equal, by name."""
    found: dict[str, Any] = {}
    for name, module in net.named_modules():
        prefix = f"{name}." if name else ""
        found[f"{prefix}class"] = type(module).__name__
        skipped = {"p"} if type(module) in DROPOUTS else set()  # a subclass may do anything with it
        # A LightningModule's own numbers are learning rates and the like; whether its steps depend on them is tried.
        kinds = float | int if isinstance(module, LightningModule) else ()
        for key, value in vars(module).items():
            if not key.startswith("_") and key not in skipped and not isinstance(value, kinds):
                found.update(_plain(prefix + key, value))
    for name, tensor in (*net.named_parameters(), *net.named_buffers()):
        found[name] = (tuple(tensor.shape), tensor.dtype, tensor.requires_grad)
    return found


def _plain(name: str, value: Any) -> dict[str, Any]:
    if isinstance(value, _PLAIN):
        return {name: str(value)}
    return {name: getattr(value, "__qualname__", type(value).__name__)} if callable(value) else {}
