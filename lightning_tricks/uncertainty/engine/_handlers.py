"""What each random torch function does under `StochasticMode`: the same arithmetic, with keyed random numbers."""

import math
from collections.abc import Callable
from functools import cache
from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_tricks.uncertainty.engine._draws import EngineUnfitError
from lightning_tricks.uncertainty.engine._mode import StochasticMode

# The value that a dropped unit takes in a self-normalising net (Klambauer et al. 2017, section 3).
_ALPHA = -1.7580993408473766


def drop(
    mode: StochasticMode,
    x: Tensor,
    p: float = 0.5,
    training: bool = True,
    inplace: bool = False,
    *,
    kind: str = "dropout",
    shape_of: Callable[[Tensor], tuple[int, ...]] = lambda x: tuple(x.shape),
    alpha: bool = False,
    inserted: bool = False,
) -> Tensor:
    """Drop units of ``x``, or whole channels where ``shape_of`` says so."""
    site = mode.book.open(kind, p, training, inserted=inserted)
    if site is None:
        return x
    name, p = site
    keep = mode.keep(name, p, shape_of(x), x) if p < 1 else torch.zeros((), dtype=torch.uint8, device=x.device)
    out = _alpha_dropped(x, keep, p) if alpha else _dropped(x, keep, p)
    return _written(x, out) if inplace else out


def _dropped(x: Tensor, keep: Tensor, p: float) -> Tensor:
    # Scaled first: under vmap `x` may be one tensor for all samples, and `keep` never is. A product with uint8 is
    # seven times faster than `torch.where` on a CPU.
    return x * (1 / (1 - p) if p < 1 else 0.0) * keep


def _alpha_dropped(x: Tensor, keep: Tensor, p: float) -> Tensor:
    if p >= 1:
        return torch.zeros_like(x)
    scale = 1 / math.sqrt((1 - p) * (1 + p * _ALPHA**2))
    return torch.where(keep.bool(), x, _ALPHA) * scale - scale * _ALPHA * p


def _written(x: Tensor, out: Tensor) -> Tensor:
    """Overwrite ``x``; under vmap a tensor that all samples share cannot be, and the result stands in for it."""
    if torch._C._functorch.is_batchedtensor(out) and not torch._C._functorch.is_batchedtensor(x):
        return out
    return x.copy_(out)


def _channels(dims: int) -> Callable[[Tensor], tuple[int, ...]]:
    """Return the mask's shape for ``F.dropout{dims}d``: one number per channel (torch's rules for missing axes)."""

    def shape_of(x: Tensor) -> tuple[int, ...]:
        unbatched = dims != 2 and x.dim() == dims + 1
        kept = 1 if unbatched else 2
        return (*x.shape[:kept], *(1 for _ in x.shape[kept:]))

    return shape_of


def attention(
    mode: StochasticMode,
    func: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Scaled dot-product attention; with dropout on, its weights are written out (torch's reference formula)."""
    plain = {"is_causal": is_causal, "scale": scale, "enable_gqa": enable_gqa}
    site = mode.book.open("attention dropout", dropout_p, training=True) if dropout_p > 0 else None
    if site is None:
        result: Tensor = mode.plain(func, query, key, value, attn_mask, 0.0, **plain)
        return result
    if enable_gqa:
        key = key.repeat_interleave(query.size(-3) // key.size(-3), -3)
        value = value.repeat_interleave(query.size(-3) // value.size(-3), -3)
    weights = (query * (scale or 1 / math.sqrt(query.size(-1)))) @ key.transpose(-2, -1)
    if is_causal:
        attn_mask = torch.ones(weights.shape[-2:], dtype=torch.bool, device=query.device).tril()
    if attn_mask is None:
        weights = weights.softmax(-1)
    else:
        hidden = attn_mask.dtype == torch.bool
        weights = weights.masked_fill(~attn_mask, -math.inf) if hidden else weights + attn_mask
        nothing = (weights == -math.inf).all(-1, keepdim=True)  # queries that may look nowhere get zeros, as in torch
        weights = weights.softmax(-1).masked_fill(nothing, 0.0)
    name, p = site
    return _dropped(weights, mode.keep(name, p, weights.shape, weights), p) @ value


def body(mode: StochasticMode, func: Any, *args: Any, **kwargs: Any) -> Any:
    """Run a Python function of torch with the mode on inside, so that its own random calls are seen."""
    with mode:
        return _undispatched(func)(*args, **kwargs)


def multi_head_attention(mode: StochasticMode, func: Any, *args: Any, **kwargs: Any) -> Any:
    """Multi-head attention with its dropout on; the attention inside does the dropping."""
    names = func.__code__.co_varnames[: func.__code__.co_argcount]
    call = {**dict(zip(names, args, strict=False)), **kwargs}
    asleep = not call.get("training", True)
    call["training"] = not asleep or (call["dropout_p"] > 0 and mode.book.wanted())
    with mode.book.waking(asleep):
        return body(mode, func, **call)


@cache
def _undispatched(func: FunctionType) -> FunctionType:
    """Return the function without its first step, which hands the call over to an active mode."""
    names = ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic")
    scope = {**func.__globals__, **{name: lambda *_: False for name in names}}
    return FunctionType(func.__code__, scope, func.__name__, func.__defaults__, func.__closure__)


def rrelu(
    mode: StochasticMode,
    func: Any,
    x: Tensor,
    lower: float = 1 / 8,
    upper: float = 1 / 3,
    training: bool = False,
    inplace: bool = False,
) -> Tensor:
    """Leaky ReLU with a random slope."""
    site = mode.book.open("random slope", None, training)
    if site is None or lower == upper:
        result: Tensor = mode.plain(func, x, lower, upper, False, inplace)
        return result
    slope = mode.numbers("uniform", site[0], x).to(x.dtype) * (upper - lower) + lower
    out = torch.where(x >= 0, x, x * slope)
    return _written(x, out) if inplace else out


def _rnn(n_states: int) -> Callable[..., Any]:
    def recurrent(mode: StochasticMode, func: Any, x: Tensor, *args: Any) -> Any:
        # (x, states, weights, ...) or, packed, (x, batch sizes, states, weights, ...)
        packed = not isinstance(args[1], list)
        return _stacked_rnn(mode, func, x, args[:1] if packed else (), n_states, *args[packed:])

    return recurrent


def _stacked_rnn(
    mode: StochasticMode,
    func: Any,
    x: Tensor,
    lead: tuple[Tensor, ...],
    n_states: int,
    states: Any,
    weights: Any,
    biases: bool,
    layers: int,
    p: float,
    train: bool,
    both: bool,
    *batch_first: bool,
) -> Any:
    site = mode.book.open("recurrent dropout", p, train) if layers > 1 and p > 0 else None
    if site is None:
        return mode.plain(func, x, *lead, states, weights, biases, layers, 0.0, False, both, *batch_first)
    name, p = site
    ways, per_layer = (2 if both else 1), len(weights) // layers
    states = states if n_states == 2 else (states,)
    ends = []
    for layer in range(layers):
        own = tuple(state[layer * ways : (layer + 1) * ways] for state in states)
        part = list(weights[layer * per_layer : (layer + 1) * per_layer])
        own = own if n_states == 2 else own[0]
        x, *end = mode.plain(func, x, *lead, own, part, biases, 1, 0.0, False, both, *batch_first)
        ends.append(end)
        if layer < layers - 1:
            x = _dropped(x, mode.keep(f"{name}.{layer}", p, x.shape, x), p)
    return (x, *(torch.cat(parts) for parts in zip(*ends, strict=True)))


def _fill(kind: str, label: str, shaped: Callable[..., Tensor], *, inplace: bool) -> Callable[..., Any]:
    def fill(mode: StochasticMode, func: Any, x: Tensor, *args: Any, generator: Any = None, **kwargs: Any) -> Tensor:
        site = mode.book.open(label, None, training=True)
        if site is None:
            raise AssertionError("a random call without p is always on")
        out = shaped(mode.numbers(kind, site[0], x), x, *args, **kwargs).to(x.dtype)
        return _written(x, out) if inplace else out

    return fill


def _bernoulli(u: Tensor, x: Tensor, p: Any = None, **_: Any) -> Tensor:
    return u < (x if p is None else p)


def _like(u: Tensor, x: Tensor, **options: Any) -> Tensor:
    return u.to(device=options.get("device"), dtype=options.get("dtype") or x.dtype)


def _new(kind: str, label: str) -> Callable[..., Any]:
    def new(mode: StochasticMode, func: Any, *size: Any, **options: Any) -> Tensor:
        options.pop("generator", None)
        site = mode.book.open(label, None, training=True)
        if site is None:
            raise AssertionError("a random call without p is always on")
        shape = options.pop("size", None) or (size[0] if size and not isinstance(size[0], int) else size)
        return mode.numbers(kind, site[0], torch.empty(shape, **options)).to(options.get("dtype"))

    return new


def _opaque(mode: StochasticMode, func: Any, *args: Any, **kwargs: Any) -> Any:
    """A random call that has no row-wise form: one seeded draw per sample."""
    site = mode.book.open(func.__name__, None, training=True)
    if mode.draws.how != "loop" or site is None:
        raise EngineUnfitError(f"{func.__name__} is drawn for one sample at a time")
    if mode.tape is not None:
        mode.tape.first_draw()
    torch.manual_seed(mode.draws.seed_of(site[0]))
    kwargs.pop("generator", None)
    return func(*args, **kwargs)


def _dropout(kind: str, **options: Any) -> Callable[..., Tensor]:
    def dropout(mode: StochasticMode, func: Any, *args: Any, **kwargs: Any) -> Tensor:
        if "train" in kwargs:  # torch.dropout's name for it
            kwargs["training"] = kwargs.pop("train")
        return drop(mode, *args, **{"kind": kind, **options, **kwargs})

    return dropout


HANDLERS: dict[Any, Callable[..., Any]] = {
    F.dropout: _dropout("dropout"),
    F.dropout1d: _dropout("channel dropout", shape_of=_channels(1)),
    F.dropout2d: _dropout("channel dropout", shape_of=_channels(2)),
    F.dropout3d: _dropout("channel dropout", shape_of=_channels(3)),
    F.alpha_dropout: _dropout("alpha dropout", alpha=True),
    F.feature_alpha_dropout: _dropout("alpha dropout", alpha=True, shape_of=_channels(2)),
    torch.dropout: _dropout("dropout"),
    torch.dropout_: _dropout("dropout", inplace=True),
    torch.feature_dropout: _dropout("channel dropout", shape_of=_channels(2)),
    torch.feature_dropout_: _dropout("channel dropout", shape_of=_channels(2), inplace=True),
    torch.alpha_dropout: _dropout("alpha dropout", alpha=True),
    torch.alpha_dropout_: _dropout("alpha dropout", alpha=True, inplace=True),
    torch.feature_alpha_dropout: _dropout("alpha dropout", alpha=True, shape_of=_channels(2)),
    torch.feature_alpha_dropout_: _dropout("alpha dropout", alpha=True, shape_of=_channels(2), inplace=True),
    F.scaled_dot_product_attention: attention,
    F.multi_head_attention_forward: multi_head_attention,
    F.gumbel_softmax: body,
    F.rrelu: rrelu,
    torch.lstm: _rnn(2),
    torch.gru: _rnn(1),
    torch.rnn_tanh: _rnn(1),
    torch.rnn_relu: _rnn(1),
    torch.bernoulli: _fill("uniform", "Bernoulli noise", _bernoulli, inplace=False),
    Tensor.bernoulli: _fill("uniform", "Bernoulli noise", _bernoulli, inplace=False),
    Tensor.bernoulli_: _fill("uniform", "Bernoulli noise", lambda u, x, p=0.5: _bernoulli(u, x, p), inplace=True),
    Tensor.uniform_: _fill(
        "uniform", "uniform noise", lambda u, x, low=0.0, high=1.0: u * (high - low) + low, inplace=True
    ),
    Tensor.normal_: _fill("normal", "normal noise", lambda u, x, mean=0.0, std=1.0: u * std + mean, inplace=True),
    Tensor.exponential_: _fill("exponential", "exponential noise", lambda u, x, lambd=1.0: u / lambd, inplace=True),
    torch.rand_like: _fill("uniform", "uniform noise", _like, inplace=False),
    torch.randn_like: _fill("normal", "normal noise", _like, inplace=False),
    torch.rand: _new("uniform", "uniform noise"),
    torch.randn: _new("normal", "normal noise"),
    **dict.fromkeys((torch.normal, torch.poisson, torch.multinomial, Tensor.multinomial), _opaque),
    **dict.fromkeys((torch.randint, torch.randint_like, torch.randperm, Tensor.random_), _opaque),
    **dict.fromkeys((torch.binomial, torch._standard_gamma, torch._sample_dirichlet), _opaque),
    **dict.fromkeys((Tensor.log_normal_, Tensor.cauchy_, Tensor.geometric_), _opaque),
}
