"""Writes docs/benchmarks.md from the kept runs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks._catalogue import FOLDER, Plan, file_of, plans

PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
HEAD = """# Benchmarks

What the documentation claims about speed and quality, and the last run of what measured it. This page is written by
`python -m benchmarks`, which runs each benchmark in a process of its own and keeps every run, with its JSON lines, in
[benchmarks/results.jsonl](../benchmarks/results.jsonl); `python -m benchmarks NAME` runs one.

How to read it: times are CPU times of one thread. What is compared ran in turns in one process, so read ratios rather
than times; "quartiles" are those of the ratio over the rounds. *Load* is how many processes wanted to run when the
benchmark began: above the number of cores, the machine was busy with other things.
"""


def render(runs: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the page."""
    rows = "\n".join(_row(plan, runs.get(plan.name)) for plan in plans())
    table = f"| benchmark | date | CPU time | load |\n|---|---|--:|--:|\n{rows}\n"
    sections = "\n".join(_section(plan, runs.get(plan.name)) for plan in plans())
    return f"{HEAD}\n{table}\n{_machines(runs)}\n{sections}"


def _row(plan: Plan, run: Mapping[str, Any] | None) -> str:
    if run is None:
        return f"| [{plan.name}](#{plan.name}) | not kept | | |"
    return f"| [{plan.name}](#{plan.name}) | {run['date']} | {run['cpu_s']:.0f} s | {run['load']:g} |"


def _machines(runs: Mapping[str, Mapping[str, Any]]) -> str:
    together: dict[str, list[str]] = {}
    for name, run in sorted(runs.items()):
        versions = ", ".join(f"{package} {version}" for package, version in run["versions"].items())
        together.setdefault(f"{run['machine']}; {versions}", []).append(name)
    if len(together) == 1:
        return f"Machine and versions: {next(iter(together))}.\n"
    return "".join(f"- {where} ({', '.join(names)})\n" for where, names in together.items())


def _section(plan: Plan, run: Mapping[str, Any] | None) -> str:
    head = f"## {plan.name}\n\n{plan.claim}\n\n"
    file = file_of(plan.name).relative_to(FOLDER.parent).as_posix()
    source = f"[{file}](../{file})"
    if run is None:
        why = (
            "It takes long or needs data that do not ship, so it runs only if it is named. "
            if plan.only_if_named
            else ""
        )
        return (
            f"{head}`python -m benchmarks.{plan.name}` ({source}). {why}No run of it is kept here yet; the page that "
            "quotes it says how its numbers were had.\n"
        )
    printed = "\n".join(line for line in run["printed"].splitlines() if "━" not in line)  # no progress bars
    shown = f"\n\n```text\n{printed}\n```\n" if printed.strip() else "\n"
    return f"{head}`{run['command']}` ({source}){shown}"
