"""Arguments, exit codes, and errors as one sentence."""

import argparse
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from platform import platform, python_version

from lightning_tricks._version import __version__
from lightning_tricks.cli._command_names import TRAINER_COMMANDS

_REPORTED = (
    "torch",
    "torchvision",
    "lightning",
    "torchmetrics",
    "wandb",
    "numpy",
    "scikit-learn",
    "matplotlib",
    "optuna",
    "jsonargparse",
    "rich",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: arguments without the program's name; those of the process if None.

    Returns:
        The exit code: 0 if all went well, 1 after an error or if ``check`` found one, 2 for wrong arguments, 130 after
        Ctrl-C.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    try:
        with _quiet_warnings(debug):
            return _run(arguments)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except SystemExit as end:
        if _is_ctrl_c(end) and arguments[:1] != ["run"]:  # a script ends with the code that it ends with on its own
            print("interrupted", file=sys.stderr)
            return 130
        raise
    except BrokenPipeError:  # the reader of our output has gone, as in `... | head`
        sys.stderr.close()
        return 1
    except Exception as error:
        if debug:
            raise
        print(f"lightning-tricks: error: {_sentence(error)}", file=sys.stderr)
        return 2 if getattr(error, "is_usage", False) else 1


def _run(arguments: list[str]) -> int:
    command = arguments[0] if arguments else None
    if command in TRAINER_COMMANDS or command == "completion":
        from lightning_tricks._base import require_extra

        for module in ("jsonargparse", "docstring_parser"):
            require_extra(module, "cli", f"lightning-tricks {command}")
        from lightning_tricks.cli._commands import run_command

        return run_command(command, [argument for argument in arguments[1:] if argument != "--debug"])
    parsed = _parser().parse_args(arguments)
    return int(parsed.run(parsed))


def _is_ctrl_c(end: SystemExit) -> bool:
    """Whether the Trainer ended the process after Ctrl-C, which it does with code 1."""
    return end.code == 1 and isinstance(end.__context__, KeyboardInterrupt)


def _sentence(error: Exception) -> str:
    from lightning_tricks._base import UserInputError

    text = " ".join(str(error).split())
    if isinstance(error, UserInputError | ModuleNotFoundError):
        return text
    if isinstance(error, OSError) and error.filename:
        return f"{error.strerror}: {error.filename}"
    if isinstance(error, OSError) or type(error).__name__ == "MisconfigurationException":
        return text
    return f"{type(error).__name__}: {text} (run again with --debug for the traceback)"


@contextmanager
def _quiet_warnings(debug: bool) -> Iterator[None]:
    with warnings.catch_warnings():
        if not debug:
            # Advice to developers of other packages and about worker processes is noise to someone at a terminal.
            warnings.filterwarnings("ignore", category=FutureWarning)
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            warnings.filterwarnings("ignore", message=".*does not have many workers.*")
            warnings.filterwarnings("ignore", message=".*smaller than the logging interval.*")
        yield


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lightning-tricks",
        description="The tips and tricks of a good neural-network course, for lightning.Trainer.",
        epilog="'lightning-tricks COMMAND --help' lists a command's options; --debug shows tracebacks.",
    )
    parser.add_argument("--version", action=_Version, help="print the versions that matter in a bug report and exit")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for name, what in TRAINER_COMMANDS.items():
        commands.add_parser(name, help=what)
    _add_demo(commands)
    _add_run(commands)
    commands.add_parser("completion", help="print a script that completes commands and options in bash or zsh")
    return parser


def _add_demo(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    demo = commands.add_parser(
        "demo",
        help="train on real digits, watch, stop, predict with uncertainty, report",
        description="Train a small net on scikit-learn's handwritten digits with augmentation and recipe(), predict "
        "the test set with Monte-Carlo dropout, and write report.html, metrics.csv and best.ckpt into one folder.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    demo.add_argument("--out", type=Path, default=Path("demo"), help="folder for what the demo writes")
    demo.add_argument("--seed", type=int, default=0, help="the same seed gives the same numbers")
    demo.add_argument("--samples", type=int, default=100, help="stochastic passes per test picture")
    demo.add_argument("--quick", action="store_true", help="fewer epochs, for a first look")
    demo.add_argument(
        "--wandb",
        nargs="?",
        choices=("online", "offline"),
        const="online",
        help="log to Weights & Biases too; 'offline' needs no account and writes below the folder",
    )
    demo.add_argument("--debug", action="store_true", help="show tracebacks and every warning")
    demo.set_defaults(run=_run_demo)


def _add_run(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    run = commands.add_parser(
        "run",
        help="run a training script that knows nothing of this package, with its callbacks added to each Trainer",
        description="Run a script, notebook or module as its user would, with the same arguments, folder and "
        "environment, and add callbacks to every Trainer that fits. No line of the script has to change.",
    )
    run.add_argument("--tricks", default="recipe", help="recipe, diagnosis, or names of callbacks, with commas")
    run.add_argument("--monitor", help="the metric they watch; else that of the script's callbacks, or val_loss")
    run.add_argument("-m", action="store_true", dest="module", help="what follows is the name of a module")
    run.add_argument("script", help="a .py file, a notebook, or with -m a module")
    run.add_argument("arguments", nargs=argparse.REMAINDER, help="the script's own arguments")
    run.set_defaults(run=_run_script)


def _run_script(arguments: argparse.Namespace) -> int:
    from lightning_tricks.doctor import run_script

    tricks = [part.strip() for part in arguments.tricks.split(",")]
    return run_script(
        arguments.script, arguments.arguments, tricks=tricks, monitor=arguments.monitor, module=arguments.module
    )


def _run_demo(arguments: argparse.Namespace) -> int:
    from lightning_tricks.cli._demo import run_demo

    result = run_demo(
        arguments.out,
        seed=arguments.seed,
        samples=arguments.samples,
        quick=arguments.quick,
        wandb=arguments.wandb,
    )
    print(result.as_text())
    return 0


class _Version(argparse.Action):
    def __init__(self, option_strings: Sequence[str], dest: str, **options: object) -> None:
        super().__init__(option_strings, dest, nargs=0, help=str(options.get("help")))

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        print(f"lightning-tricks {__version__}")
        print(f"python {python_version()} on {platform()}")
        print(*(f"{name} {_installed(name)}" for name in _REPORTED), sep="\n")
        parser.exit()


def _installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
