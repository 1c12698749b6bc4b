"""Initialise a whole model."""

from collections.abc import Collection, Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
from torch import Generator, Tensor, nn

from lightning_tricks._base import UserInputError, check_choice, check_range, derive_seed
from lightning_tricks.init._lsuv import lsuv_scales
from lightning_tricks.init._plan import Choice, Plan, choose, find_head, reset_running_stats
from lightning_tricks.init._reparametrized import assign, gain_choice, parameters_of
from lightning_tricks.init._report import InitReport, InitRow, Signal
from lightning_tricks.init._rules import RULES
from lightning_tricks.init._signal import Deviation, signal_deviations
from lightning_tricks.init._trace import Flow, flow_by_example, flow_by_order, flow_by_symbols
from lightning_tricks.init._untouched import untouched_modules

Scheme = Literal[
    "auto",
    "constant",
    "delta_orthogonal",
    "identity",
    "kaiming_normal",
    "kaiming_uniform",
    "lecun_normal",
    "lecun_uniform",
    "lsuv",
    "normal",
    "orthogonal",
    "trunc_normal",
    "uniform",
    "xavier_normal",
    "xavier_uniform",
    "zeros",
]
SCHEMES = ("auto", "lsuv", *RULES)


def init_weights(
    model: nn.Module,
    scheme: Scheme = "auto",
    *,
    example: Any = None,
    match: str | Sequence[str] = "*",
    skip: str | Sequence[str] = (),
    bias: float | None = 0.0,
    only_new: bool | Collection[str] = False,
    residual: Literal["plain", "scaled", "zero"] = "plain",
    class_counts: Sequence[float] | None = None,
    generator: Generator | None = None,
    **options: Any,
) -> InitReport:
    """Initialise the weights of a model in place, and say what was done.

    ``"auto"`` looks at what each layer's output meets first on its way through the model and draws normally with the
    variance that keeps the signal: Kaiming with the slope's or the function's own gain before ReLU, LeakyReLU, PReLU,
    GELU, SiLU and their like, Xavier with gain 5/3 before tanh (less in deep chains, see
    :func:`~lightning_tricks.init.tanh_gain`), LeCun before SELU, Xavier before sigmoid, softmax, another layer or the
    output. Recurrent weights become orthogonal and an LSTM's forget-gate bias 1, embeddings N(0, 1), attention
    projections Xavier one by one, norm layers 1 and 0. Parameters without a rule are left alone and listed.

    Every parameter is drawn on the CPU in float32 from its own stream, seeded by its name: the values do not depend on
    device, number of processes or sharding, nor on which other parameters are drawn. Call it on every rank.

    Args:
        model: any module; sharded parameters (``DTensor``) keep their sharding.
        scheme: ``"auto"``, ``"lsuv"`` (orthogonal, then every layer's output scaled to unit variance on the example)
            or the name of a rule in :data:`~lightning_tricks.init.RULES` for every weight of at least two dimensions.
        example: one batch of input, a tensor or a tuple of positional inputs. ``"auto"`` follows it through the model;
            without it the symbolic graph, and where there is none the order of registration. It also lets the report
            say what became of the signal.
        match: pattern or patterns (``*`` and ``?``) of parameter names, or of modules of which all parameters match.
        skip: the same for what must stay as it is; wins over ``match``.
        bias: value of the biases; None leaves them alone.
        only_new: leave alone every module whose parameters are not an untouched default draw of torch's, such as
            loaded or trained ones; or the names of the modules that may be changed.
        residual: what the last layer or norm of each residual branch is multiplied by: nothing; ``"scaled"`` by
            1/sqrt(number of branches), so that their sum stays bounded (Radford et al. 2019); ``"zero"``, so that
            every block starts as the identity (Goyal et al. 2017, section 5.1).
        class_counts: samples per class, at least two numbers above 0: the bias of the classification head becomes
            their log-frequencies, so that training does not start by learning them (Karpathy 2019).
        generator: from which to draw the one number that seeds all; torch's global stream if not given.
        **options: of the named rule, such as ``gain``, ``slope``, ``mode``, ``std``, ``value``.

    Returns:
        A report with a row per parameter; ``print`` it.

    Raises:
        UserInputError: for an unknown scheme or option, a pattern that matches nothing, an example that the model
            cannot run, parameters on the meta device.

    Example:
        >>> import torch
        >>> from lightning_tricks import MLP
        >>> report = init_weights(MLP(64, 10, hidden_features=(32,)), generator=torch.Generator().manual_seed(0))
        >>> [row.rule for row in report.rows]
        ['kaiming_normal', 'constant(1)', 'constant(0)', 'xavier_normal', 'constant(0)']
    """
    check_choice("scheme", scheme, SCHEMES)
    inputs = _as_inputs(example)
    _check(model, scheme, inputs, options)
    check_choice("residual", residual, ("plain", "scaled", "zero"))
    chosen = _select(model, match, skip)
    if isinstance(only_new, bool):
        only_new = untouched_modules(model) if only_new else {name for name, _ in model.named_modules()}
    flow, source = _follow(model, inputs)
    plan = Plan(
        "orthogonal" if scheme == "lsuv" else scheme,
        flow,
        bias,
        options,
        branch_scale=_branch_scale(flow, residual),
        head=None if class_counts is None else find_head(model, flow, len(_checked_counts(class_counts))),
        class_counts=class_counts or (),
    )
    before = signal_deviations(model, inputs) if inputs else {}
    for_parameter = choose(model, plan)
    seed = int(torch.randint(2**62, (), generator=generator))
    rows, changed = [], set[str]()
    for name, module, key, parameter, full in parameters_of(model):
        choice = _reason_to_leave(full, parameter, chosen) or gain_choice(module, key)
        choice = choice or for_parameter(name, module, key)
        if choice.fill is not None and name not in only_new:
            choice = Choice("left alone", "not torch's untouched default: loaded, trained or set by hand")
        if choice.fill is not None:
            values = torch.empty(getattr(module, key).shape, dtype=torch.float32)
            stream = f"{name}.{key}" if name else key
            choice.fill(values, torch.Generator().manual_seed(derive_seed(seed, stream)))
            choice = assign(module, key, values, choice, _write)
            changed.add(name)
        rows.append(_row(full, module, parameter, choice))
    for name in changed:
        reset_running_stats(model.get_submodule(name))
    if scheme == "lsuv":
        lsuv_scales(model, inputs, changed)
        rows = [row._replace(rule="lsuv") if row.rule == "orthogonal" else row for row in rows]
    after = signal_deviations(model, inputs) if inputs else {}
    return InitReport(scheme, source, rows, _signals(before, after))


def _as_inputs(example: Any) -> tuple[Any, ...]:
    if example is None:
        return ()
    return tuple(example) if isinstance(example, tuple) else (example,)


def _check(model: nn.Module, scheme: str, inputs: tuple[Any, ...], options: dict[str, Any]) -> None:
    if scheme == "lsuv" and not inputs:
        raise UserInputError("scheme 'lsuv' needs example=, one batch of input to measure the layers' outputs on.")
    taken = set(RULES[scheme].__annotations__) - {"weight", "generator", "fans", "return"} if scheme in RULES else set()
    if unknown := set(options) - taken:
        raise UserInputError(
            f"scheme {scheme!r} takes {', '.join(sorted(taken)) or 'no options'}, but got {', '.join(sorted(unknown))}."
        )
    for name, parameter in model.named_parameters():
        if parameter.is_meta:
            raise UserInputError(
                f"parameters must have memory to be initialised, but {name!r} is on the meta device. "
                "Call model.to_empty(device=...) first, or use the WeightInit callback, which does."
            )


def _select(model: nn.Module, match: str | Sequence[str], skip: str | Sequence[str]) -> set[str]:
    names = [name for name, _ in model.named_parameters()]
    selected = {name for name in names for pattern in _listed(match) if matches(name, pattern)}
    for what, patterns in (("match", _listed(match)), ("skip", _listed(skip))):
        for pattern in patterns:
            if names and not any(matches(name, pattern) for name in names):
                known = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
                raise UserInputError(f"{what} must name parameters or modules, but {pattern!r} fits none of {known}.")
    return {name for name in selected if not any(matches(name, pattern) for pattern in _listed(skip))}


def matches(name: str, pattern: str) -> bool:
    """Whether a pattern fits a dotted name or one of the modules above it.

    Example:
        >>> matches("net.head.weight", "net.head"), matches("net.head.weight", "*.bias")
        (True, False)
    """
    parts = name.split(".")
    return any(fnmatchcase(".".join(parts[:end]), pattern) for end in range(1, len(parts) + 1))


def _listed(patterns: str | Iterable[str]) -> list[str]:
    return [patterns] if isinstance(patterns, str) else list(patterns)


def _follow(model: nn.Module, inputs: tuple[Any, ...]) -> tuple[Flow, str]:
    if inputs:
        return flow_by_example(model, inputs), "What follows each layer was seen with the example."
    flow = flow_by_symbols(model)
    if flow is not None and flow.partial:
        return flow, (
            "What follows each layer was read from the symbolic graphs of the model's parts, and guessed from the "
            "order of registration where one part meets the next. Pass example= to be sure."
        )
    if flow is not None:
        return flow, "What follows each layer was read from the symbolic graph."
    return flow_by_order(model), (
        "What follows each layer was guessed from the order of registration, which is not always the order of use. "
        "Pass example= to be sure."
    )


def _branch_scale(flow: Flow, residual: str) -> float | None:
    if residual == "plain":
        return None
    if not flow.branch_ends:
        raise UserInputError(
            f"residual={residual!r} needs residual branches that end in a layer or a norm, but none was found. "
            "Pass example= so that the model can be followed."
        )
    return 0.0 if residual == "zero" else len(flow.branch_ends) ** -0.5


def _checked_counts(counts: Sequence[float]) -> Sequence[float]:
    if len(counts) < 2:
        raise UserInputError(f"class_counts must have one number per class, at least 2, but got {list(counts)}.")
    for count in counts:
        check_range("every entry of class_counts", count, low=0, open_low=True)
    return counts


def _reason_to_leave(full: str, parameter: Tensor, chosen: set[str]) -> Choice | None:
    if full not in chosen:
        return Choice("left alone", "not selected by match and skip")
    if nn.parameter.is_lazy(parameter):
        return Choice("left alone", "lazy: its shape is not known yet")
    if not parameter.is_floating_point():
        return Choice("left alone", f"holds {parameter.dtype}")
    return None


def _write(module: nn.Module, key: str, values: Tensor) -> None:
    parameter = getattr(module, key)
    with torch.no_grad():
        if hasattr(parameter, "placements"):  # a DTensor: every rank cuts its own shard out of the same values
            from torch.distributed.tensor import distribute_tensor

            whole = values.to(parameter.device, parameter.dtype)
            values = distribute_tensor(whole, parameter.device_mesh, parameter.placements, src_data_rank=None)
        parameter.copy_(values)


def _row(full: str, module: nn.Module, parameter: Tensor, choice: Choice) -> InitRow:
    if nn.parameter.is_lazy(parameter):
        return InitRow(full, (), type(module).__name__, choice.rule, choice.why, float("nan"))
    values = parameter.detach()
    if hasattr(values, "full_tensor"):
        values = values.full_tensor()
    values = values if values.is_complex() else values.float()
    std = float(values.std(correction=0)) if values.numel() and not values.is_meta else float("nan")
    return InitRow(full, tuple(parameter.shape), type(module).__name__, choice.rule, choice.why, std)


def _signals(before: dict[str, Deviation], after: dict[str, Deviation]) -> list[Signal]:
    nothing = Deviation(float("nan"), float("nan"))
    pairs = [(name, before.get(name, nothing), deviation) for name, deviation in after.items()]
    return [Signal(name, old.output, new.output, old.gradient, new.gradient) for name, old, new in pairs]
