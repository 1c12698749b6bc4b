"""What a study says about its search, so that others can take part: plain JSON, and functions by their names."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from importlib import import_module
from typing import Any

from lightning_tricks._base import UserInputError
from lightning_tricks.tune._space import Choice, Float, Int, Space

RECORDED = "lightning_tricks:recorded"
_KINDS: dict[str, type[Float] | type[Int]] = {"Float": Float, "Int": Int}


def space_to_json(space: Space) -> Any:
    """Return a space as JSON: by name, a list of options or the arguments of a number; a function by its name.

    Example:
        >>> space_to_json({"lr": Choice([0.1, 0.2]), "width": Int(8, 64)})["lr"]
        [0.1, 0.2]
    """
    if callable(space):
        return name_of(space)
    return {
        name: list(entry.options) if isinstance(entry, Choice) else {"kind": type(entry).__name__, **asdict(entry)}
        for name, entry in space.items()
    }


def space_from_json(noted: Any) -> Space:
    """Return what :func:`space_to_json` was given.

    Example:
        >>> space_from_json(space_to_json({"lr": Float(1e-4, 1, log=True, window=(1e-3, 0.1))}))["lr"].window
        (0.001, 0.1)
    """
    if isinstance(noted, str):
        return imported(noted)
    return {name: Choice(entry) if isinstance(entry, list) else _number(entry) for name, entry in noted.items()}


def _number(entry: Mapping[str, Any]) -> Float | Int:
    options = {name: value for name, value in entry.items() if name != "kind"}
    if options["window"] is not None:
        options["window"] = tuple(options["window"])
    return _KINDS[entry["kind"]](**options)


def name_of(thing: Any) -> str | None:
    """Return ``module:name`` of what stands at the top of an importable module; None of anything else.

    Example:
        >>> name_of(name_of), name_of(lambda: None)
        ('lightning_tricks.tune.execution._search_record:name_of', None)
    """
    module, name = getattr(thing, "__module__", None), getattr(thing, "__qualname__", None)
    if not module or not name or module == "__main__":
        return None
    try:
        found = imported(f"{module}:{name}")
    except UserInputError:
        return None
    return f"{module}:{name}" if found is thing else None


def imported(name: str) -> Callable[..., Any]:
    """Return what :func:`name_of` named.

    Raises:
        UserInputError: if it cannot be imported.
    """
    module, _, rest = name.partition(":")
    try:
        found: Any = import_module(module)
        for part in rest.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise UserInputError(f"{name!r} cannot be imported ({error}). Start in the folder of your modules.") from error
    return found  # type: ignore[no-any-return]


def plain(value: Any) -> Any:
    """Return a value if it is plain JSON, else None."""
    try:
        return value if json.loads(json.dumps(value)) == value else None
    except (TypeError, ValueError):
        return None
