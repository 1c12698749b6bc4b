"""What a search writes down: one table of all runs, one file of settings per run."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from lightning_tricks.diagnosis import write_atomically
from lightning_tricks.tune.execution._study import RUN

_PACKAGES = ("lightning-tricks", "torch", "lightning", "torchmetrics", "optuna", "numpy")
_FIRST = ("run", "status", "value", "best_epoch", "epochs", "seconds", "trial", "slot", "round")


@cache
def versions() -> dict[str, str]:
    """Return the versions of what a result may depend on; they are read once, for it takes longer than a short step."""
    installed = {name: [d.version for d in distributions(name=name)] for name in _PACKAGES}
    return {name: found[0] for name, found in installed.items() if found}


def row_of(trial: FrozenTrial, slot: int | None, round_number: int | None) -> dict[str, Any]:
    """Return a trial's line in ``runs.csv``."""
    attrs = trial.user_attrs
    return {
        "run": attrs.get(RUN, ""),
        "status": trial.state.name.lower() if trial.state != TrialState.FAIL else "failed",
        "value": trial.value if trial.value is not None else attrs.get("value", ""),
        **{name: attrs.get(name, "") for name in ("best_epoch", "epochs", "seconds")},
        "trial": trial.number,
        "slot": "" if slot is None else slot,
        "round": "" if round_number is None else round_number,
        **trial.params,
        "reason": attrs.get("reason", ""),
    }


def write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write ``runs.csv``, whole or not at all, whoever else writes it at the same time."""
    columns = [*_FIRST, *sorted({name for row in rows for name in row} - {*_FIRST, "reason"}), "reason"]
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, text.getvalue())


def write_settings(path: Path, settings: Mapping[str, Any]) -> None:
    """Write a run's ``hparams.yaml``."""
    import yaml  # type: ignore[import-untyped]

    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(dict(settings), sort_keys=False, allow_unicode=True), encoding="utf-8")


def mean_and_sd(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and the sample standard deviation (NaN of one value).

    Example:
        >>> mean_and_sd([1.0, 3.0])
        (2.0, 1.4142135623730951)
    """
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return mean, math.nan
    return mean, math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1))


def ordered(study: optuna.Study) -> list[FrozenTrial]:
    """Return the finished trials with a value, the best first."""
    done = [t for t in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)) if t.value is not None]
    sign = 1 if study.direction == optuna.study.StudyDirection.MINIMIZE else -1
    return sorted(done, key=lambda t: (sign * (t.value or 0.0), t.number))
