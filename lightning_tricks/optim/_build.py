"""Optimizers by name, with the course's defaults."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from typing import Any, Literal

import torch
from torch import nn
from torch.utils._foreach_utils import _get_fused_kernels_supported_devices

from lightning_tricks._base import UserInputError, check_choice, check_range
from lightning_tricks.optim._groups import param_groups

OptimizerName = Literal["sgd", "momentum", "nesterov", "adagrad", "rmsprop", "adam", "adamw"]
Implementation = Literal["auto", "fused", "foreach", "plain"]

# The course's learning rates: 3e-4 for Adam, 1e-4 for SGD with momentum .9; torch's own for AdaGrad and RMSProp.
_RECIPES: dict[str, tuple[Callable[..., torch.optim.Optimizer], float]] = {
    "sgd": (torch.optim.SGD, 1e-2),
    "momentum": (partial(torch.optim.SGD, momentum=0.9), 1e-4),
    "nesterov": (partial(torch.optim.SGD, momentum=0.9, nesterov=True), 1e-4),
    "adagrad": (torch.optim.Adagrad, 1e-2),
    "rmsprop": (torch.optim.RMSprop, 1e-2),
    "adam": (torch.optim.Adam, 3e-4),
    "adamw": (torch.optim.AdamW, 3e-4),
}


def build_optimizer(
    name: OptimizerName | str,
    model: nn.Module,
    lr: float | None = None,
    *,
    weight_decay: float = 0.0,
    lr_of: Mapping[str, float] | None = None,
    layer_decay: float | None = None,
    frozen: str | Sequence[str] = (),
    implementation: Implementation = "auto",
    **options: Any,
) -> torch.optim.Optimizer:
    """Build an optimizer over :func:`param_groups` of the model.

    Args:
        name: ``sgd``, ``momentum``, ``nesterov``, ``adagrad``, ``rmsprop``, ``adam`` or ``adamw``; or the import path
            of any other optimizer class, such as ``"torch.optim.NAdam"``.
        model: whose trainable parameters to optimize.
        lr: learning rate above 0; the course's default for the optimizer if not given, for an import path the class's.
        weight_decay: decay of the weights only, at least 0: an L2 term in the gradient, decoupled for ``adamw``.
        lr_of: learning rates by pattern of parameter or module names, such as ``{"backbone": 1e-5}``.
        layer_decay: factor in (0, 1] between the learning rates of neighbouring blocks, falling towards the input.
        frozen: patterns of parameters to leave out.
        implementation: ``"auto"`` takes torch's fused kernels where they exist for the class and the device, else what
            torch chooses. ``"fused"``, ``"foreach"`` and ``"plain"`` insist. Their results differ in the last bits.
            A fused optimizer leaves unscaling to the gradient scaler (fp16), so that gradients can be clipped in any
            precision: Lightning refuses to clip for optimizers that unscale within their step.
        **options: passed on to the class, such as ``betas``. For float16 parameters ``eps`` is 6.1e-5 unless given:
            torch's 1e-8 is 0 in that type, and a weight without a gradient would become NaN.

    Raises:
        UserInputError: for an unknown name, with the list, a number out of range, or a pattern that fits nothing.

    Example:
        >>> from torch import nn
        >>> optimizer = build_optimizer("adam", nn.Linear(2, 1))
        >>> type(optimizer).__name__, optimizer.param_groups[0]["lr"]
        ('Adam', 0.0003)
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
        >>> optimizer = build_optimizer("torch.optim.NAdam", net, lr=0.1, layer_decay=0.5)
        >>> [(group["name"], group["lr"]) for group in optimizer.param_groups]
        [('decay: block 0', 0.05), ('decay: block 1', 0.1), ('no_decay: block 0', 0.05), ('no_decay: block 1', 0.1)]
    """
    check_choice("implementation", implementation, ("auto", "foreach", "fused", "plain"))
    make, default_lr = _import(name) if "." in name else _RECIPES[check_choice("optimizer", name, _RECIPES)]
    if lr is None:
        lr = default_lr
    if lr is not None:
        options["lr"] = check_range("lr", lr, low=0, open_low=True)
    groups = param_groups(model, weight_decay, lr=lr, lr_of=lr_of, layer_decay=layer_decay, frozen=frozen)
    accepted = inspect.signature(make).parameters
    options = {**_kernels(implementation, accepted, groups, model), **_epsilon(accepted, groups), **options}
    try:
        optimizer = make(groups, **options)
    except TypeError as error:
        raise UserInputError(f"{name} does not take these options: {error}. It takes {', '.join(accepted)}.") from error
    if hasattr(optimizer, "_step_supports_amp_scaling"):
        # Torch's fused classes would unscale gradients in their step, and Lightning's mixed precision, bf16 included,
        # refuses to clip for such optimizers. With False the scaler unscales before the step, as for any other class.
        optimizer._step_supports_amp_scaling = False
    return optimizer


def _import(path: str) -> tuple[Callable[..., torch.optim.Optimizer], float | None]:
    module, _, attribute = path.rpartition(".")
    try:
        made = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UserInputError(
            f"optimizer must be one of {', '.join(_RECIPES)} or the import path of a class, but {path!r} cannot be "
            f"imported: {error}."
        ) from error
    if not (isinstance(made, type) and issubclass(made, torch.optim.Optimizer)):
        raise UserInputError(f"optimizer must be a subclass of torch.optim.Optimizer, but {path!r} is {made!r}.")
    return made, None


def _kernels(
    implementation: Implementation, accepted: Mapping[str, Any], groups: list[dict[str, Any]], model: nn.Module
) -> dict[str, bool]:
    """Return the options that choose torch's kernels."""
    if implementation == "auto":
        return {"fused": True} if "fused" in accepted and _can_fuse(groups, model) else {}
    if implementation == "plain":
        return {key: False for key in ("foreach", "fused") if key in accepted}
    if implementation not in accepted:
        raise UserInputError(f"this optimizer has no {implementation} implementation; use implementation='auto'.")
    return {implementation: True}


def _epsilon(accepted: Mapping[str, Any], groups: list[dict[str, Any]]) -> dict[str, float]:
    half = any(p.dtype == torch.float16 for group in groups for p in group["params"])
    return {"eps": torch.finfo(torch.float16).tiny} if half and "eps" in accepted else {}


def _can_fuse(groups: list[dict[str, Any]], model: nn.Module) -> bool:
    devices = _get_fused_kernels_supported_devices()
    parameters = [p for group in groups for p in group["params"]]
    plain = all(p.device.type in devices and p.is_floating_point() and not hasattr(p, "placements") for p in parameters)
    sparse = any(getattr(module, "sparse", False) for module in model.modules())
    return plain and not sparse
