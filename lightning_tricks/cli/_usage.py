"""What was wrong with the arguments, in one sentence out of jsonargparse's tree of attempts."""

import re
from difflib import get_close_matches
from importlib import import_module
from inspect import signature
from typing import Any

from lightning_tricks._base import UserInputError

# Lines that frame the reasons or repeat the input.
_FRAME = re.compile(
    r"^(Parser key|Problem with given class_path|Does not validate|Subtypes:|Errors:|Given value|Expected a path but"
    r"|Unexpected import|$)"
)
NO_DATA = "there is no data: give --data and the class path of a LightningDataModule."
_NOTHING = "Expected a <class 'NoneType'>"


class UsageError(UserInputError):
    """Wrong arguments; the process ends with 2, as everywhere."""

    is_usage = True


def as_sentence(message: str) -> str:
    r"""Return a parser's message as one sentence: the option, what was expected, what came.

    Example:
        >>> as_sentence('Parser key "trainer.max_epochs":\n  Expected a <class \'int\'>. Got value: many')
        "trainer.max_epochs: expected int, but got 'many'."
    """
    lines = [line.strip().removeprefix("- ").strip() for line in message.splitlines()]
    path = ".".join(re.findall(r'Parser key "([^"]+)":', message))
    classes = re.findall(r"Problem with given class_path '([^']+)'", message)
    reasons = [re.sub(r'^Parser key "[^"]+":\s*', "", line) for line in lines]
    reasons = [line for line in dict.fromkeys(reasons) if not _FRAME.match(line)]
    reasons = [line for line in reasons if line != _NOTHING] or reasons
    text = _reason(reasons, _given(message), classes[-1] if classes else None)
    return f"{path}: {text}" if path else text


def make(parser: Any, config: Any) -> Any:
    """Make what a configuration names; what a constructor complains about comes through as it was said.

    Raises:
        UserInputError: if a constructor refuses its arguments.
    """
    try:
        return getattr(parser, "instantiate", parser.instantiate_classes)(config)  # its name since jsonargparse 4.53
    except ValueError as error:
        raise complaint(error) from error


def complaint(error: ValueError) -> ValueError:
    """Return what a constructor said out of the parser's report of it."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, UserInputError):
            return cause
        cause = cause.__cause__ or cause.__context__
    return UsageError(as_sentence(str(error))) if "Does not validate" in str(error) else error


def _given(message: str) -> str | None:
    values = [value for value in re.findall(r"Given value: (.+)", message) if "(" not in value]
    return values[0] if values else None


def _reason(reasons: list[str], given: str | None, owner: str | None) -> str:
    text = "; ".join(reasons)
    if found := re.match(r"Option '([\w.]+)' is not accepted", text):
        return f"{owner or 'this command'} has no option {found[1]!r}.{_near(found[1], _options(owner))}"
    if found := re.match(r"the following arguments are required: (.+)", text):
        names = found[1] if owner else ", ".join(f"--{name}" for name in found[1].split(", "))
        return f"{owner or 'this command'} needs a value for {names}."
    if found := re.match(r"Expected a dot import path string: (\w+)", text):
        near = _near(found[1], import_module("lightning_tricks").__all__)
        return f"no class {found[1]!r} is known. Give its class path, such as my_module.{found[1]}.{near}"
    if found := re.match(r"module '([\w.]+)' has no attribute '(\w+)'", text):
        return f"{text}.{_near(found[2], dir(import_module(found[1])))}"
    if found := re.match(r"Expected an? (.+)\. Got value: (.+)", text):
        return f"expected {_plain(found[1])}, but got {found[2]!r}."
    if reasons and all(reason.startswith("Expected a <class") for reason in reasons):
        wanted = [_plain(reason.removeprefix("Expected a ")) for reason in reasons]
        return f"expected {' or '.join(wanted)}, but got {given!r}."
    return text.rstrip(".") + "."


def _plain(kind: str) -> str:
    if found := re.match(r"(?:typing\.)?Literal\[(.+)\]", kind):
        return "one of " + found[1].replace("'", "")
    return re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", kind)


def _options(owner: str | None) -> list[str]:
    if owner is None:
        return []
    module, _, name = owner.rpartition(".")
    return list(signature(getattr(import_module(module), name)).parameters)


def _near(name: str, names: list[str]) -> str:
    nearest = get_close_matches(name, names, n=1)
    return f" Did you mean {nearest[0]!r}?" if nearest else ""
