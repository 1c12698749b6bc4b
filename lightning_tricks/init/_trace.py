"""Which activation follows each layer.

Three ways to find out, best first: watch one example run (any Python, functional activations included), follow the
symbolic graph (needs no example, fails on data-dependent control flow), take the modules in the order in which they
were registered (right for ``nn.Sequential``, a guess elsewhere). All three feed the same :class:`Flow`.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode

from lightning_tricks import _base
from lightning_tricks._base import UserInputError, isolated_rng, preserved_modes
from lightning_tricks.init._restore import left_as_it_was

LAYERS = (nn.Linear, nn.modules.conv._ConvNd, nn.Bilinear, nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention)
SOURCES = (*LAYERS, nn.Embedding, nn.EmbeddingBag)
NORMS = (*_base.NORMS, nn.LocalResponseNorm)
_SATURATING = {"hardsigmoid", "hardtanh", "log_softmax", "logsigmoid", "sigmoid", "softmax", "softsign", "tanh"}
_RECTIFYING = {
    "celu",
    "elu",
    "gelu",
    "hardswish",
    "leaky_relu",
    "mish",
    "prelu",
    "relu",
    "relu6",
    "rrelu",
    "selu",
    "silu",
}
ACTIVATIONS = frozenset(_SATURATING | _RECTIFYING | {"exp", "glu", "softplus"})
_ADDS = frozenset({"add", "add_", "iadd", "__add__", "__iadd__", "__radd__"})
_NUMBERS = frozenset({"__len__", "dim", "getattr", "len", "numel", "size"})  # give no tensor in a symbolic graph
_NORM_FUNCTIONS = frozenset({"batch_norm", "group_norm", "instance_norm", "layer_norm", "rms_norm"})
_CLASS_NAMES = {cls: cls.lower() for cls in ("ReLU", "GELU", "SELU", "ELU", "CELU", "SiLU", "Mish", "Tanh", "GLU")} | {
    "LeakyReLU": "leaky_relu",
    "PReLU": "prelu",
    "RReLU": "rrelu",
    "ReLU6": "relu6",
    "Sigmoid": "sigmoid",
    "Hardswish": "hardswish",
    "Hardtanh": "hardtanh",
    "Hardsigmoid": "hardsigmoid",
    "LogSigmoid": "logsigmoid",
    "Softplus": "softplus",
    "Softsign": "softsign",
    "Softmax": "softmax",
    "LogSoftmax": "log_softmax",
}


class Follow(NamedTuple):
    """What a layer's output meets first: an activation, another ``"layer"``, or the model's ``"output"``."""

    kind: str
    slope: float = 0.0
    normed: bool = False


class Origin(NamedTuple):
    """Where a value comes from."""

    layers: frozenset[tuple[str, bool]] = frozenset()  # whose output it still is; True: a norm came in between
    depth: int = 0  # layers on the longest way to it
    end: str | None = None  # the layer or norm that gave it, if nothing but reshaping came after


class Flow:
    """Follows values through a network and notes what each layer's output meets first."""

    def __init__(self) -> None:
        self.follows: dict[str, Follow] = {}
        self.branch_ends: list[str] = []  # last layer or norm of each residual branch
        self.order: list[str] = []  # layers, as first executed
        self.partial = False  # only parts of the model were followed, the joints between them guessed

    def layer(self, name: str, inputs: Iterable[Origin]) -> Origin:
        """A layer with weights takes the values."""
        origin = self._merge(inputs)
        self._meet(origin, "layer")
        if name not in self.order:
            self.order.append(name)
        return Origin(frozenset({(name, False)}), origin.depth + 1, name)

    def norm(self, name: str | None, inputs: Iterable[Origin]) -> Origin:
        """A norm layer takes the values."""
        origin = self._merge(inputs)
        return Origin(frozenset((layer, True) for layer, _ in origin.layers), origin.depth, name)

    def activation(self, kind: str, slope: float, inputs: Iterable[Origin]) -> Origin:
        """A non-linearity takes the values."""
        origin = self._merge(inputs)
        self._meet(origin, kind, slope)
        return Origin(depth=origin.depth)

    def add(self, inputs: Iterable[Origin]) -> Origin:
        """Two values are added: the deeper one is a residual branch, if it ends in a layer or a norm."""
        origins = list(inputs)
        if len(origins) == 2 and origins[0].depth != origins[1].depth:
            end = max(origins, key=lambda origin: origin.depth).end
            if end is not None and end not in self.branch_ends:
                self.branch_ends.append(end)
        return self._merge(origins)._replace(end=None)

    def other(self, inputs: Iterable[Origin]) -> Origin:
        """Anything else (dropout, pooling, reshaping, concatenation) hands its values on."""
        return self._merge(inputs)

    def output(self, inputs: Iterable[Origin]) -> None:
        """The values leave the model."""
        self._meet(self._merge(inputs), "output")

    def module(self, name: str, module: nn.Module, inputs: list[Origin]) -> Origin:
        """A known module takes the values."""
        if isinstance(module, SOURCES):
            origin = self.layer(name, inputs)
            bounded = isinstance(module, nn.RNNBase | nn.RNNCellBase)
            return Origin(depth=origin.depth) if bounded else origin
        if isinstance(module, NORMS):
            return self.norm(name, inputs)
        kind = activation_name(module)
        if kind is not None:
            return self.activation(kind, slope_of(module), inputs)
        return self.other(inputs)

    def _meet(self, origin: Origin, kind: str, slope: float = 0.0) -> None:
        for layer, normed in origin.layers:
            self.follows.setdefault(layer, Follow(kind, slope, normed))

    @staticmethod
    def _merge(inputs: Iterable[Origin]) -> Origin:
        origins = list(dict.fromkeys(inputs))
        if len(origins) == 1:
            return origins[0]
        layers = frozenset[tuple[str, bool]]().union(*(origin.layers for origin in origins))
        return Origin(layers, max((origin.depth for origin in origins), default=0))


def activation_name(module: nn.Module) -> str | None:
    """Return the functional name of torch's activation modules, None for any other module."""
    return next((_CLASS_NAMES[cls.__name__] for cls in type(module).__mro__ if cls.__name__ in _CLASS_NAMES), None)


def slope_of(module: nn.Module) -> float:
    """Return the slope of a rectifier's negative side."""
    if isinstance(module, nn.LeakyReLU):
        return float(module.negative_slope)
    if isinstance(module, nn.RReLU):
        return (module.lower + module.upper) / 2
    if isinstance(module, nn.PReLU):
        return 0.25 if module.weight.is_meta else float(module.weight.detach().float().mean())
    return 0.0


def is_known(module: nn.Module) -> bool:
    """Whether a module is taken as one step, whatever its inside does."""
    return isinstance(module, (*SOURCES, *NORMS)) or activation_name(module) is not None


def flow_by_order(model: nn.Module) -> Flow:
    """Follow the modules in order of registration, as if each fed the next."""
    flow, origin = Flow(), Origin()
    for name, module in outermost_known(model):
        origin = flow.module(name, module, [origin])
    flow.output([origin])
    return flow


def flow_by_symbols(model: nn.Module) -> Flow | None:
    """Follow the symbolic graph, of the parts where the whole has none; None where not even one part has."""
    if is_known(model):
        return None  # there is nothing to follow inside a layer
    graph = _symbolic_graph(model)
    if graph is not None:
        return _walk(graph, model)
    children = [(name, flow_by_symbols(child)) for name, child in model.named_children()]
    if all(flow is None for _, flow in children):
        return None
    whole, guess = Flow(), flow_by_order(model)
    whole.partial = True
    for name, flow in children:
        if flow is None:
            continue
        whole.order += [f"{name}.{layer}" for layer in flow.order]
        whole.branch_ends += [f"{name}.{end}" for end in flow.branch_ends]
        for layer, follow in flow.follows.items():
            if follow.kind != "output":  # what comes after a part is not seen from inside it
                whole.follows[f"{name}.{layer}"] = follow
    whole.follows = {**guess.follows, **whole.follows}
    whole.order += [name for name in guess.order if name not in whole.order]
    return whole


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return is_known(m) or super().is_leaf_module(m, module_qualified_name)


def _symbolic_graph(model: nn.Module) -> fx.Graph | None:
    if type(model).forward is nn.Module.forward:
        return None
    try:
        with left_as_it_was(model), isolated_rng(seed=0):
            return _Tracer().trace(model)
    except Exception:  # whatever a forward raises when it is given a symbol
        return None


def _walk(graph: fx.Graph, model: nn.Module) -> Flow:
    flow, origins = Flow(), dict[fx.Node, Origin]()
    for node in graph.nodes:
        # Parameters and numbers come from nowhere: a table of positions added to the values is no shortcut.
        inputs = [origins[n] for n in node.all_input_nodes if n in origins]
        if node.op == "call_module":
            origins[node] = flow.module(str(node.target), model.get_submodule(str(node.target)), inputs)
        elif node.op in ("call_function", "call_method"):
            called = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
            if inputs and called not in _NUMBERS:
                origins[node] = _function(flow, called, inputs, node.args, node.kwargs)
        elif node.op == "output":
            flow.output(inputs)
        elif node.op == "placeholder":
            origins[node] = Origin()
    return flow


def _function(flow: Flow, name: str, inputs: list[Origin], args: Any, kwargs: Mapping[str, Any]) -> Origin:
    kind = name.rstrip("_")
    if kind in ACTIVATIONS:
        slope = 0.0
        if kind == "leaky_relu":
            slope = kwargs.get("negative_slope", args[1] if len(args) > 1 else 0.01)
        elif kind in ("prelu", "rrelu"):
            slope = 0.25 if kind == "prelu" else 11 / 48  # torch's defaults
        return flow.activation(kind, slope, inputs[:1])
    if name in _ADDS:
        return flow.add(inputs)
    if name in _NORM_FUNCTIONS:
        return flow.norm(None, inputs[:1])
    return flow.other(inputs)


def flow_by_example(model: nn.Module, example: tuple[Any, ...]) -> Flow:
    """Follow one example through the model. Modes, buffers, attributes and random streams are as before afterwards.

    Raises:
        UserInputError: if the model cannot run the example.
    """
    watch = _Watch(model)
    watch.note(example, Origin())
    with undisturbed(model), torch.no_grad(), watch.hooks(), watch:
        outputs = run(model, example)
    watch.flow.output(watch.origins_of(outputs))
    return watch.flow


def run(model: nn.Module, example: tuple[Any, ...]) -> Any:
    """Call the model, uncompiled.

    Raises:
        UserInputError: if that fails, with what the model said.
    """
    try:
        with torch.compiler.set_stance("force_eager"):
            return model(*example)
    except Exception as error:
        shapes = ", ".join(str(tuple(x.shape)) if isinstance(x, Tensor) else type(x).__name__ for x in example)
        raise UserInputError(
            f"example must be an input that {type(model).__name__} can run, but with {shapes} it raised "
            f"{type(error).__name__}: {error} Pass one batch as the model takes it, or no example."
        ) from error


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Run a block in training mode (what an initialisation is for), then put back what it left in the model."""
    with left_as_it_was(model), preserved_modes(model), isolated_rng(seed=0):
        model.train()
        yield


class _Watch(TorchFunctionMode):
    """Sees every torch function outside known modules, and every known module as a whole."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.flow = Flow()
        self.seen: dict[int, tuple[Tensor, Origin]] = {}  # holding the tensor keeps its id from being used again
        self.inside = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.inside:
            return func(*args, **kwargs)
        inputs = self.origins_of((args, kwargs))  # before the call, which may work in place
        result = func(*args, **kwargs)
        if inputs:
            self.note(result, _function(self.flow, getattr(func, "__name__", ""), inputs, args, kwargs))
        return result

    @contextmanager
    def hooks(self) -> Iterator[None]:
        handles = []
        for name, module in outermost_known(self.model):
            handles.append(module.register_forward_pre_hook(self._enter, prepend=True))
            handles.append(module.register_forward_hook(self._leaver(name), with_kwargs=True, always_call=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, module: nn.Module, args: Any) -> None:
        self.inside += 1

    def _leaver(self, name: str) -> Any:
        def leave(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            self.inside -= 1
            self.note(output, self.flow.module(name, module, self.origins_of((args, kwargs)) or [Origin()]))

        return leave

    def origins_of(self, values: Any) -> list[Origin]:
        return [self.seen[id(t)][1] for t in tensors_in(values) if id(t) in self.seen]

    def note(self, values: Any, origin: Origin) -> None:
        for tensor in tensors_in(values):
            self.seen[id(tensor)] = (tensor, origin)


def outermost_known(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the known modules that no other known module contains, by name (an attention's own layers are its own)."""
    done: list[str] = []
    for name, module in model.named_modules():
        if is_known(module) and not any(name.startswith(prefix + ".") for prefix in done):
            done.append(name)
            yield name, module


def tensors_in(values: Any) -> list[Tensor]:
    """Return the tensors in nested lists, tuples and dicts."""
    if isinstance(values, Tensor):
        return [values]
    if isinstance(values, Mapping):
        values = values.values()
    elif not isinstance(values, list | tuple):
        return []
    return [tensor for value in values for tensor in tensors_in(value)]
