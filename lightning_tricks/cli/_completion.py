"""What shells and editors need to complete options."""

from typing import Any

from jsonargparse import ArgumentParser

from lightning_tricks._base import check_choice, require_extra
from lightning_tricks.cli._usage import UsageError

_SHELLS = ("bash", "tcsh", "zsh")


def print_completion(arguments: list[str], parsers: dict[str, Any]) -> int:
    """Print the completion script of a shell, or the JSON schema of ``fit``'s YAML files for an editor.

    Args:
        arguments: the shell, or ``"jsonschema"``.
        parsers: by command.
    """
    if len(arguments) != 1:
        raise UsageError(f"completion needs one of {', '.join(_SHELLS)} or jsonschema, but got {arguments}.")
    kind = check_choice("the shell", arguments[0], (*_SHELLS, "jsonschema"))
    if kind == "jsonschema":
        print(parsers["fit"].get_completion_script("jsonschema"))
        return 0
    require_extra("shtab", "cli", f"completion for {kind}")
    root = ArgumentParser(prog="lightning-tricks")
    commands = root.add_subcommands()
    for name, parser in parsers.items():
        commands.add_subcommand(name, parser)
    print(root.get_completion_script(f"shtab-{kind}"))
    return 0
