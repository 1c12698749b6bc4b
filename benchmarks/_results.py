"""Runs a benchmark in a process of its own and keeps what it printed, with the machine and the versions."""

import json
import os
import platform
import resource
import shlex
import subprocess
import sys
from collections.abc import Iterable
from datetime import datetime, timezone
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
FILE = Path(__file__).with_name("results.jsonl")
PACKAGES = (
    "torch",
    "lightning",
    "torchmetrics",
    "torchvision",
    "wandb",
    "scikit-learn",
    "optuna",
    "kornia",
    "albumentations",
)


def run(name: str, arguments: Iterable[str]) -> dict[str, Any]:
    """Run ``python -m benchmarks.NAME`` and return the record of it, showing on the way what it prints."""
    command = ["-m", f"benchmarks.{name}", *arguments]
    before, load = resource.getrusage(resource.RUSAGE_CHILDREN), os.getloadavg()[0]
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    printed = []
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", *command], cwd=ROOT, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        for line in process.stdout or ():
            print(line, end="", flush=True)
            printed.append(line.rstrip())
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    found, text = _split(printed)
    return {
        "name": name,
        "command": shlex.join(["python", *(_without_folders(part) for part in command)]),
        "code": process.returncode,
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "cpu_s": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 1),
        "load": round(load, 1),
        "machine": machine(),
        "versions": versions(),
        "printed": text,
        "found": found,
    }


def append(path: Path, result: dict[str, Any]) -> None:
    """Keep a run."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(result, ensure_ascii=False) + "\n")


def read(path: Path) -> dict[str, dict[str, Any]]:
    """Return the last run of each benchmark by its name."""
    if not path.exists():
        return {}
    runs = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
    return {run["name"]: run for run in runs}


def machine() -> str:
    """Name the processor, the number of cores and the operating system."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        model = platform.processor() or platform.machine()
    return f"{model}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}"


def versions() -> dict[str, str]:
    """Return the versions of what is installed and matters."""
    installed = {distribution.name.lower(): distribution.version for distribution in distributions()}
    found = {name: installed[name].split("+")[0] for name in PACKAGES if name in installed}
    return {"Python": platform.python_version(), **found}


def _split(lines: list[str]) -> tuple[list[Any], str]:
    found, text = [], []
    for line in lines:
        try:
            value = json.loads(line)
        except ValueError:
            value = None
        if isinstance(value, dict):
            found.append(value)
        else:
            text.append(line)
    return found, "\n".join(text).strip("\n")


def _without_folders(part: str) -> str:
    return Path(part).name if part.startswith("/") else part
