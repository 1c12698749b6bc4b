"""Which rule each parameter gets, and why."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor, nn

from lightning_tricks._base import UserInputError
from lightning_tricks.init import _rules
from lightning_tricks.init._gains import kaiming_gain, tanh_gain
from lightning_tricks.init._trace import LAYERS, NORMS, SOURCES, Flow, Follow

Fill = Callable[[Tensor, Generator], object]


class Choice(NamedTuple):
    """The rule for one parameter; no ``fill`` means that it is left alone."""

    rule: str
    why: str
    fill: Fill | None = None


_RECTIFIERS = ("relu", "leaky_relu", "prelu", "rrelu", "gelu", "silu", "elu", "celu", "mish", "hardswish", "relu6")
_BOUNDED = ("sigmoid", "hardsigmoid", "hardtanh", "softsign")
_AFTER = {
    "layer": "no activation before the next layer",
    "output": "linear head",
    "softmax": "softmax follows",
    "log_softmax": "softmax follows",
}


def choose(model: nn.Module, plan: "Plan") -> Callable[[str, nn.Module, str], Choice]:
    """Return a function from (module name, module, parameter name) to the :class:`Choice` for that parameter."""
    tied = {id(p) for m in model.modules() if isinstance(m, LAYERS) for p in m.parameters(recurse=False)}
    auto = plan.scheme == "auto"
    depth = sum(f.kind == "tanh" and not f.normed for f in plan.flow.follows.values())

    def plain(name: str, module: nn.Module, key: str) -> Choice:
        parameter = getattr(module, key)
        if isinstance(module, NORMS):
            value = 1.0 if key == "weight" else 0.0
            return Choice(f"constant({value:g})", "normalisation", _filler(value))
        if not isinstance(module, SOURCES):
            return Choice("left alone", f"no rule for a parameter of {type(module).__name__}")
        if "bias" in key and not (isinstance(module, nn.MultiheadAttention) and key in ("bias_k", "bias_v")):
            return _bias(module, key, plan.bias, forget=auto)
        if not auto:
            fill = partial(_named, plan.scheme, plan.options, module)
            return Choice(plan.scheme, "as asked", _by_chunks(_chunks(module, key), fill))
        if isinstance(module, nn.Embedding | nn.EmbeddingBag):
            return _embedding(module, tied=id(parameter) in tied)
        if isinstance(module, nn.RNNBase | nn.RNNCellBase):
            return _recurrent(module, key)
        if isinstance(module, nn.MultiheadAttention):
            return Choice("xavier_normal", "attention projection", _by_chunks(_chunks(module, key), _xavier))
        return _auto(_follow_of(plan.flow, name), depth, module)

    def for_parameter(name: str, module: nn.Module, key: str) -> Choice:
        choice = plain(name, module, key)
        if name == plan.head and key == "bias" and plan.bias is not None:
            return Choice("class log-frequencies", "classification head", partial(_log_frequencies, plan.class_counts))
        ends = (name, name.removesuffix(".out_proj"))
        at_end = key == "weight" and any(end in plan.flow.branch_ends for end in ends)
        if plan.branch_scale is not None and choice.fill is not None and at_end:
            return _scale_branch(choice, choice.fill, plan.branch_scale)
        return choice

    return for_parameter


@dataclass(frozen=True)
class Plan:
    """All that the choice of rules depends on."""

    scheme: str  # "auto" or a name of RULES
    flow: Flow  # what follows each layer
    bias: float | None = 0.0  # value of the biases; None leaves them alone
    options: Mapping[str, Any] = field(default_factory=dict)  # of the named rule
    branch_scale: float | None = None  # of the last layer or norm of each residual branch
    head: str | None = None  # the layer whose bias follows the class counts
    class_counts: Sequence[float] = ()


def find_head(model: nn.Module, flow: Flow, classes: int) -> str:
    """Return the name of the layer that gives the class scores.

    Raises:
        UserInputError: if there is none of that width with a bias.
    """
    widths = (classes, 1) if classes == 2 else (classes,)
    for name in reversed(flow.order):
        module = model.get_submodule(name)
        width = getattr(module, "out_features", getattr(module, "out_channels", None))
        last = flow.follows.get(name, Follow("output")).kind in ("output", "softmax", "log_softmax", "sigmoid")
        if last and width in widths and getattr(module, "bias", None) is not None:
            return name
    raise UserInputError(
        f"class_counts has {classes} entries, but {type(model).__name__} has no last layer of that width with a bias. "
        "Give one count per class, in the order of the outputs."
    )


def _log_frequencies(counts: Sequence[float], bias: Tensor, generator: Generator) -> None:
    logs = (torch.tensor(counts, dtype=torch.float64) / sum(counts)).log()
    bias.copy_(logs if len(bias) == len(counts) else logs[1] - logs[0])


def _scale_branch(choice: Choice, fill: Fill, scale: float) -> Choice:
    def scaled(weight: Tensor, generator: Generator) -> None:
        fill(weight, generator)
        weight.mul_(scale)

    return Choice(f"{choice.rule} times {scale:.3g}", f"{choice.why}; end of a residual branch", scaled)


def _follow_of(flow: Flow, name: str) -> Follow:
    return flow.follows.get(name) or flow.follows.get(name.removesuffix(".out_proj")) or Follow("unseen")


def _auto(follow: Follow, depth: int, module: nn.Module) -> Choice:
    kind = follow.kind
    if kind == "exp":  # unit variance would spread the exponentials over orders of magnitude
        return Choice("left alone", "its output is exponentiated")
    why = _AFTER.get(kind, "what follows was not seen" if kind == "unseen" else f"{kind} follows")
    if kind in _RECTIFIERS or kind == "softplus":
        gain = kaiming_gain(kind, follow.slope)
        return _scaled("kaiming_normal", gain, module, f"{why}, gain {gain:.3f}")
    if kind == "selu":
        return _scaled("lecun_normal", 1.0, module, why)
    if kind == "tanh":
        gain = 5 / 3 if follow.normed else tanh_gain(depth)
        return _scaled("xavier_normal", gain, module, f"{why}, gain {gain:.3f} ({depth} in a row)")
    return _scaled("xavier_normal", 1.0, module, why)


def _scaled(rule: str, gain: float, module: nn.Module, why: str) -> Choice:
    def fill(weight: Tensor, generator: Generator) -> None:
        fans = _rules.fans_of(module, weight)
        _rules.RULES[rule](weight, gain=gain, fans=fans, generator=generator)

    return Choice(rule, why, fill)


def _named(scheme: str, options: Mapping[str, Any], module: nn.Module, weight: Tensor, generator: Generator) -> None:
    rule = _rules.RULES[scheme]
    takes_fans = "fans" in rule.__annotations__ and isinstance(module, nn.modules.conv._ConvNd)
    fans = {"fans": _rules.fans_of(module, weight)} if takes_fans else {}
    rule(weight, **fans, **options, generator=generator)


def _bias(module: nn.Module, key: str, bias: float | None, *, forget: bool) -> Choice:
    if bias is None:
        return Choice("left alone", "biases are left alone, as asked")
    if forget and isinstance(module, nn.LSTM | nn.LSTMCell) and key.startswith("bias_ih"):
        return Choice(f"constant({bias:g}), forget gate 1", "LSTM", partial(_forget_gate, module.hidden_size, bias))
    return Choice(f"constant({bias:g})", "bias", _filler(bias))


def _forget_gate(size: int, bias: float, values: Tensor, generator: Generator) -> None:
    values.fill_(bias)[size : 2 * size] = 1.0  # gates are input, forget, cell, output (Jozefowicz et al. 2015)


def _embedding(module: nn.Embedding | nn.EmbeddingBag, *, tied: bool) -> Choice:
    std = module.embedding_dim**-0.5 if tied else 1.0
    why = "embedding that a linear layer shares: unit logits" if tied else "embedding: unit inputs for the next layer"

    def fill(weight: Tensor, generator: Generator) -> None:
        _rules.normal(weight, std=std, generator=generator)
        if module.padding_idx is not None:
            weight[module.padding_idx] = 0.0

    return Choice(f"normal(std={std:.3g})", why, fill)


def _recurrent(module: nn.Module, key: str) -> Choice:
    if key.startswith("weight_hh"):
        return Choice("orthogonal", "recurrent weights, gate by gate", _by_chunks(_chunks(module, key), _orthogonal))
    return Choice("xavier_normal", "input weights, gate by gate", _by_chunks(_chunks(module, key), _xavier))


def _xavier(weight: Tensor, generator: Generator) -> None:
    _rules.xavier_normal(weight, generator=generator)


def _orthogonal(weight: Tensor, generator: Generator) -> None:
    _rules.orthogonal(weight, generator=generator)


def _chunks(module: nn.Module, key: str) -> int:
    """Return how many separate matrices a parameter holds one below the other."""
    if isinstance(module, nn.MultiheadAttention):
        return 3 if key == "in_proj_weight" else 1
    if isinstance(module, nn.RNNBase | nn.RNNCellBase) and key != "weight_hr":
        gates = {"LSTM": 4, "LSTMCell": 4, "GRU": 3, "GRUCell": 3}
        return next((gates[cls.__name__] for cls in type(module).__mro__ if cls.__name__ in gates), 1)
    return 1


def _by_chunks(count: int, fill: Fill) -> Fill:
    def fill_each(weight: Tensor, generator: Generator) -> None:
        for part in weight.chunk(count):
            fill(part, generator)

    return fill_each


def _filler(value: float) -> Fill:
    return lambda weight, generator: weight.fill_(value)


def reset_running_stats(module: nn.Module) -> None:
    """Forget the running statistics of a norm layer: they describe the old weights."""
    if isinstance(module, nn.modules.batchnorm._NormBase) and not _on_meta(module):
        with torch.no_grad():
            module.reset_running_stats()


def _on_meta(module: nn.Module) -> bool:
    return any(buffer.is_meta for buffer in module.buffers(recurse=False))
