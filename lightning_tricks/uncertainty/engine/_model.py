"""Borrow a model for prediction: flags down, hooks on, everything given back as it was."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
from torch import nn

from lightning_tricks._base import UserInputError, check_range, isolated_rng, preserved_modes
from lightning_tricks.uncertainty.engine._mode import SiteBook
from lightning_tricks.uncertainty.engine._passes import Passes

Layers = str | type[nn.Module] | Callable[[str, nn.Module], bool] | Sequence[str | type[nn.Module]]
Insert = Literal["head"] | Mapping[str, float] | Sequence[str]

# Code of torch and Lightning is known: their modules are reached through the torch calls that they make.
_KNOWN_CODE = re.compile(r"torch\.|torch$|lightning\.|lightning$|pytorch_lightning")


@contextmanager
def borrowed(model: nn.Module, seed: int) -> Iterator[None]:
    """Put the model into eval mode, without gradients; modes, buffers and random streams come back as they were."""
    with ExitStack() as stack:
        stack.enter_context(preserved_modes(model))
        stack.enter_context(_preserved_buffers(model))
        stack.enter_context(isolated_rng(seed=seed))
        stack.enter_context(torch.inference_mode(False))  # inference tensors do not count their versions
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch.compiler.set_stance("force_eager"))  # compiled code hides its calls
        for module in model.modules():
            module.training = False
        yield


@contextmanager
def _preserved_buffers(model: nn.Module) -> Iterator[None]:
    kept = [
        (module, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    try:
        yield
    finally:
        with torch.no_grad():
            for module, name, buffer, value in kept:
                module._buffers[name] = buffer
                if not torch.equal(buffer, value):
                    buffer.copy_(value)


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the module inside `torch.compile`'s wrapper, which runs eagerly here."""
    inner = getattr(model, "_orig_mod", None)
    return inner if isinstance(inner, nn.Module) else model


@contextmanager
def tracked(model: nn.Module, book: SiteBook) -> Iterator[None]:
    """Tell the book which module is running."""
    with ExitStack() as stack:
        for name, module in model.named_modules():
            if name and not isinstance(module, torch.jit.ScriptModule):
                _track(module, name, book, stack)
        yield


def _track(module: nn.Module, name: str, book: SiteBook, stack: ExitStack) -> None:
    def enter(*_: Any) -> None:
        book.stack.append(name)

    def leave(*_: Any) -> None:
        book.stack.pop()

    stack.callback(module.register_forward_pre_hook(enter, prepend=True).remove)
    stack.callback(module.register_forward_hook(leave, always_call=True).remove)


def chosen_modules(model: nn.Module, layers: Layers | None) -> frozenset[str] | None:
    """Return the names of the modules that ``layers`` means.

    Raises:
        UserInputError: if it means none.
    """
    if layers is None:
        return None
    wanted = [layers] if isinstance(layers, str | type) or callable(layers) else list(layers)
    names = {name for name, module in model.named_modules() if any(_matches(name, module, one) for one in wanted)}
    if not names:
        known = ", ".join(name for name, _ in model.named_modules() if name)
        raise UserInputError(
            f"layers={layers!r} matches no module of {type(model).__name__}. Its modules: {known or 'none'}."
        )
    return frozenset(names)


def _matches(name: str, module: nn.Module, wanted: Any) -> bool:
    if isinstance(wanted, str):
        return name == wanted or fnmatchcase(name, wanted)
    if isinstance(wanted, type):
        return isinstance(module, wanted)
    return bool(wanted(name, module))


def head_name(model: nn.Module) -> str:
    """Return the name of the last linear or convolution layer."""
    heads: list[str] = [
        n for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)
    ]
    if not heads:
        raise UserInputError(
            f"insert='head' looks for the last Linear or Conv layer, and {type(model).__name__} has none. "
            "Name the layer after which to drop out: insert={'encoder': 0.1}."
        )
    return heads[-1]


def insertions(model: nn.Module, insert: Insert | None, p: float | None) -> dict[tuple[str, bool], float]:
    """Return probability by (module name, whether before it).

    Raises:
        UserInputError: for an unknown module, or without a probability.
    """
    if insert is None:
        return {}
    if isinstance(insert, Mapping):
        wanted: dict[str, float | None] = dict(insert)
    else:
        wanted = dict.fromkeys([insert] if isinstance(insert, str) else insert, p)
    modules = dict(model.named_modules())
    found = {}
    for name, own in wanted.items():
        if own is None:
            raise UserInputError(
                f"insert={insert!r} needs a probability: pass p=0.1, or a dict such as insert={{{name!r}: 0.1}}."
            )
        check_range(f"probability to insert at {name!r}", own, low=0, high=1, open_low=True, open_high=True)
        if name == "head":
            found[head_name(model), True] = own
        elif name in modules:
            found[name, False] = own
        else:
            raise UserInputError(
                f"insert names {name!r}, which is no module of {type(model).__name__}. "
                f"Its modules: {', '.join(n for n in modules if n)}; or 'head'."
            )
    return found


def reads_training(module: nn.Module) -> bool:
    """Whether the module's own code looks at ``self.training`` (norm layers never count)."""
    if "norm" in type(module).__name__.lower() or isinstance(module, torch.jit.ScriptModule):
        return False
    own = [cls for cls in type(module).__mro__ if cls is not object and not _KNOWN_CODE.match(cls.__module__)]
    return any("training" in code.co_names for cls in own for code in _codes(cls))


def _codes(cls: type) -> Iterator[Any]:
    for value in vars(cls).values():
        code = getattr(getattr(value, "__wrapped__", value), "__code__", None)
        if code is not None:
            yield code


@contextmanager
def inserted(model: nn.Module, passes: Passes, where: Mapping[tuple[str, bool], float]) -> Iterator[None]:
    """Drop out before or after the named modules."""
    with ExitStack() as stack:
        for (name, before), p in where.items():
            module = model.get_submodule(name)
            hook = _drop_before(passes, p, name) if before else _drop_after(passes, p, name)
            register = module.register_forward_pre_hook if before else module.register_forward_hook
            stack.callback(register(hook).remove)
        yield


def _drop_before(passes: Passes, p: float, name: str) -> Callable[..., Any]:
    def hook(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (passes.drop(args[0], p, name), *args[1:])

    return hook


def _drop_after(passes: Passes, p: float, name: str) -> Callable[..., Any]:
    def hook(module: nn.Module, args: Any, out: Any) -> Any:
        return passes.drop(out, p, name)

    return hook
