"""What ``--tricks`` means."""

from argparse import ArgumentError
from typing import Any, cast

from lightning.pytorch import Callback
from lightning.pytorch.cli import LightningArgumentParser

from lightning_tricks import callbacks
from lightning_tricks._base import check_choice
from lightning_tricks.callbacks import recipe
from lightning_tricks.cli._usage import UsageError, as_sentence, make

Tricks = str | list[str | dict[str, Any]]


def make_tricks(tricks: Tricks, **settings: Any) -> list[Callback]:
    """Return the callbacks that ``--tricks`` asks for.

    Args:
        tricks: ``"none"``, ``"course"``, or a list: ``"course"`` stands for the whole recipe, the name of one of its
            parts for that part as the recipe sets it, another name of this package or a class path for a callback
            with its own defaults, and a mapping with ``class_path`` and ``init_args`` for one with arguments.
        **settings: of :func:`~lightning_tricks.recipe`.

    Raises:
        UserInputError: for a name that this package does not have, and arguments that do not fit.

    Example:
        >>> [type(trick).__name__ for trick in make_tricks(["EarlyStopping", "Preflight"], monitor="val_loss")]
        ['EarlyStopping', 'Preflight']
    """
    course = recipe(**settings)
    if tricks == "none":
        return []
    if isinstance(tricks, str):
        tricks = [part.strip() for part in tricks.split(",")]
    found: list[Callback] = []
    for trick in tricks:
        found += course if trick == "course" else [_one(trick, course)]
    return found


def _one(trick: str | dict[str, Any], course: list[Callback]) -> Callback:
    entry = {"class_path": trick} if isinstance(trick, str) else dict(trick)
    path = str(entry.get("class_path"))
    if "." not in path:
        names = [name for name in dir(callbacks) if is_trick(getattr(callbacks, name))]
        path = "lightning_tricks." + check_choice("each of --tricks", path, ["course", *names])
    as_in_course = [callback for callback in course if f"lightning_tricks.{type(callback).__name__}" == path]
    if as_in_course and set(entry) == {"class_path"}:
        return as_in_course[0]
    return cast(Callback, made(Callback, {**entry, "class_path": path}))


def is_trick(thing: object) -> bool:
    """Whether something is a callback class."""
    return isinstance(thing, type) and issubclass(thing, Callback)


def made(base: type, entry: dict[str, Any]) -> Any:
    """Make an object from its class path and arguments.

    Args:
        base: what it must be.
        entry: ``class_path``, and perhaps ``init_args``.

    Raises:
        UsageError: if it cannot be.
    """
    parser = LightningArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(base, "made", required=True)
    try:
        config = parser.parse_object({"made": entry})
    except ArgumentError as error:
        raise UsageError(as_sentence(str(error)).removeprefix("made: ")) from error
    return make(parser, config).made
