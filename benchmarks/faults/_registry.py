"""The lists of programs and faults, open for more from anywhere."""

import importlib.util
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal
from zlib import crc32

from lightning.pytorch import seed_everything

from benchmarks.faults._case import Case, DoesNotFit

Half = Literal["thresholds", "report"]
Proof = Literal["structure", "score"]


@dataclass(frozen=True)
class Program:
    """A healthy program.

    Attributes:
        name: of the program.
        half: "thresholds" if rules may be fitted to it, "report" if its results are only reported.
        make: from nothing to a fresh case; random streams are seeded before.
    """

    name: str
    half: Half
    make: Callable[[], Case]


@dataclass(frozen=True)
class Fault:
    """A mutation that makes a program sick.

    Attributes:
        name: of the fault.
        rules: names that count as "named right".
        proof: "structure" if it is wrong whatever the score says; "score" if it counts only where the score suffers.
        note: whether it is harmless enough that a finding of severity "info" is the right answer.
        mutate: changes a case in place; raises :class:`DoesNotFit` where there is nothing to break.
    """

    name: str
    rules: tuple[str, ...]
    proof: Proof
    note: bool
    mutate: Callable[[Case], None]


PROGRAMS: dict[str, Program] = {}
FAULTS: dict[str, Fault] = {}


def program(name: str, *, half: Half = "report") -> Callable[[Callable[[], Case]], Callable[[], Case]]:
    """Register a healthy program; decorate the function that makes it."""

    def register(make: Callable[[], Case]) -> Callable[[], Case]:
        _add(PROGRAMS, name, Program(name, half, make))
        return make

    return register


def fault(name: str, *rules: str, proof: Proof = "structure", note: bool = False) -> Callable:
    """Register a fault; decorate the function that mutates a case."""

    def register(mutate: Callable[[Case], None]) -> Callable[[Case], None]:
        _add(FAULTS, name, Fault(name, rules, proof, note, mutate))
        return mutate

    return register


def _add(table: dict, name: str, entry: object) -> None:
    if name in table or name == "healthy":
        raise ValueError(f"there is a program or fault named {name!r} already; choose another name")
    table[name] = entry


def load_module(path: Path) -> None:
    """Run a file that registers further programs and faults."""
    spec = importlib.util.spec_from_file_location(f"faults_from_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"--module wants a Python file, but got {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)


def build(program: str, fault: str, seed: int) -> Case:
    """Return a case, mutated unless ``fault`` is "healthy"."""
    seed_everything(seed, workers=True, verbose=False)
    case = PROGRAMS[program].make()
    if fault != "healthy":
        FAULTS[fault].mutate(case)
    return case


@dataclass(frozen=True)
class Run:
    """One cell of the benchmark."""

    program: str
    fault: str
    seed: int


def plan(
    programs: Iterable[str], faults: Iterable[str], *, seeds: int, healthy_seeds: int, per_fault: int
) -> list[Run]:
    """Return the runs: every healthy program, and each fault on a few programs of either half that it fits.

    The few are taken from a place in the list that depends on the fault's name, so that all programs have their turn.
    Seeds come one after the other: an interrupted benchmark holds some of everything.
    """
    programs = list(programs)
    cells = []
    for name in faults:
        for half in ("thresholds", "report"):
            names = [p for p in programs if PROGRAMS[p].half == half]
            start = crc32(name.encode()) % max(1, len(names))
            fitting = (other for other in names[start:] + names[:start] if why_not(other, name) is None)
            cells += [(other, name) for other in islice(fitting, per_fault)]
    runs = []
    for seed in range(max(seeds, healthy_seeds)):
        runs += [Run(name, "healthy", seed) for name in programs]
        runs += [Run(other, name, seed) for other, name in cells if seed < seeds]
    return runs


def why_not(program: str, fault: str) -> str | None:
    """Return why a fault does not fit a program, or None if it does."""
    try:
        build(program, fault, 0)
    except DoesNotFit as reason:
        return str(reason)
    return None
