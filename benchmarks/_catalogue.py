"""Which benchmarks there are, and how long they may take."""

import ast
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent
# No benchmarks: what several share, and a picture.
SHARED = {"timing", "search_tasks", "stopping_picture"}


@dataclass(frozen=True)
class Plan:
    """How a benchmark is run.

    Attributes:
        name: its module.
        claim: the first line of its docstring.
        arguments: what it is called with.
        quick: what its short form is called with; None if it has none.
        only_if_named: left out unless it is named, since it takes long or needs data that do not ship.
    """

    name: str
    claim: str
    arguments: tuple[str, ...] = ()
    quick: tuple[str, ...] | None = None
    only_if_named: bool = False


# Arguments, short form, and whether it must be named. What is not listed takes no arguments and has no short form.
HOW: dict[str, tuple[tuple[str, ...], tuple[str, ...] | None, bool]] = {
    "augment": ((), ("--rounds", "1"), False),
    "augment_text": ((), (), False),
    "augment_worth": ((), None, True),  # needs a folder with CIFAR-10
    "cross_validation": ((), None, False),
    "data_loading": ((), (), False),
    "digits_uncertainty": ((), ("--runs", "1", "--epochs", "2", "--samples", "5"), False),
    "diagnosis": ((), None, False),
    "faults": ((), None, True),  # hours
    "import_time": ((), (), False),
    "init": ((), (), False),
    "mc_dropout": (("--rounds", "5"), ("--only", "head", "--rounds", "1"), False),
    "mc_tolerance": ((), ("--samples", "32", "--reference", "64", "--epochs", "1"), False),
    "mutual_information": ((), (), False),
    "norm_monitor": ((), None, False),
    "penalty": ((), None, False),
    "recipe": ((), ("--epochs", "1", "--rounds", "2"), False),
    "search": ((), None, True),  # hours
    "soak": ((), ("--fits", "8"), True),
    "stopping": ((), ("--epochs", "1", "--rounds", "2"), False),
    "stopping_peers": ((), ("--check",), False),
    "uci_dropout": ((), None, True),  # needs a folder with the published splits
}


def plans() -> list[Plan]:
    """Return all benchmarks in order of their names."""
    return [plan_of(name) for name in _names()]


def plan_of(name: str) -> Plan:
    """Return how the benchmark of this name is run."""
    if name not in _names():
        raise SystemExit(f"there is no benchmark {name!r}; there are {', '.join(_names())}")
    text = ast.get_docstring(ast.parse(file_of(name).read_text(encoding="utf-8"))) or name
    arguments, quick, only_if_named = HOW.get(name, ((), None, False))
    return Plan(name, text.split("\n")[0], arguments, quick, only_if_named)


def file_of(name: str) -> Path:
    """Return the file that says what the benchmark does."""
    return FOLDER / f"{name}.py" if (FOLDER / f"{name}.py").exists() else FOLDER / name / "__init__.py"


def _names() -> list[str]:
    files = {path.stem for path in FOLDER.glob("*.py") if not path.name.startswith("_")}
    packages = {path.parent.name for path in FOLDER.glob("*/__main__.py")}
    return sorted((files | packages) - SHARED)
