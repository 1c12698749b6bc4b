"""One run: check the program, train it with the watcher, and write down what was found and how good it became."""

import logging
import math
import os
import time
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

import lightning_tricks as lt
from benchmarks.faults._case import Case
from benchmarks.faults._registry import FAULTS, PROGRAMS, Run, build, load_module

DIAGNOSIS = getattr(lt, "Diagnosis", None)


def run_with(modules: list[Path], budget: str, cell: Run) -> dict[str, Any]:
    """Run one cell; in a process of its own, which knows this module but not ``__main__``, load further programs."""
    if cell.program not in PROGRAMS or (cell.fault != "healthy" and cell.fault not in FAULTS):
        for path in modules:
            load_module(path)
    return run(cell, budget=budget)


def run(cell: Run, *, budget: str = "full") -> dict[str, Any]:
    """Return what was found in one run, ready for JSON."""
    torch.set_num_threads(1)
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        began = time.process_time()
        case = build(cell.program, cell.fault, cell.seed)
        findings, data = _check(case, cell.seed, budget)
        checked = time.process_time()
        record = _fit(case, data)
        record["cpu_seconds"] = [round(checked - began, 2), round(time.process_time() - checked, 2)]
    found = record.pop("findings")
    half = PROGRAMS[cell.program].half
    return {**asdict(cell), "half": half, "findings": findings + found, "score": score(case), **record}


def _check(case: Case, seed: int, budget: str) -> tuple[list[dict], Any]:
    if case.seeded:
        seed_everything(seed, workers=True, verbose=False)
    else:
        os.environ.pop("PL_GLOBAL_SEED", None)
    data = case.make_data()
    report = lt.check(case.model, data, budget=budget, trainer=_trainer(case, []), progress=False)
    return [_entry(finding, "check") for finding in report.findings], data


def _fit(case: Case, data: Any) -> dict[str, Any]:
    callbacks: list[Callback] = [] if DIAGNOSIS is None else [DIAGNOSIS()]
    clock = Clock(callbacks[0] if callbacks else None)
    trainer = _trainer(case, [*callbacks, clock])
    crash = None
    try:
        if isinstance(data, list):
            trainer.fit(case.model, *data)
        else:
            trainer.fit(case.model, data)
    except Exception as error:  # a fault may well end the run; that is a result
        crash = f"{type(error).__name__}: {str(error).splitlines()[0][:120] if str(error) else ''}"
    clock.look(trainer.global_step)
    return {"findings": clock.entries, "steps": trainer.global_step, "crash": crash}


def _trainer(case: Case, callbacks: list[Callback]) -> Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    options = {"enable_model_summary": False, "num_sanity_val_steps": 0, **quiet, **case.trainer}
    return Trainer(accelerator="cpu", devices=1, max_epochs=case.epochs, callbacks=callbacks, **options)


def _entry(finding: Any, when: str | int) -> dict[str, Any]:
    return {**{key: getattr(finding, key) for key in ("rule", "severity", "where", "what")}, "when": when}


class Clock(Callback):
    """Writes down the step at which the watcher's findings appear."""

    def __init__(self, watcher: Any) -> None:
        self.watcher, self.entries = watcher, []

    def look(self, step: int) -> None:
        """Take what is new."""
        found = list(getattr(self.watcher, "findings", ()))
        self.entries += [_entry(finding, step) for finding in found[len(self.entries) :]]

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Look after each step."""
        self.look(trainer.global_step)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look after each validation."""
        self.look(trainer.global_step)


@torch.no_grad()
def score(case: Case) -> float | None:
    """Return how good the model became: 1 is perfect, 0 knows nothing; None for tasks that are not scored.

    R² for regression, twice the area under the curve minus 1 for binary, balanced accuracy above chance for classes.
    """
    if case.val is None or case.task == "other":
        return None
    x, y = case.val
    out = case.model.eval()(x).double()
    if not out.isfinite().all():
        return -1.0
    value = {"regression": _r2, "binary": _area, "multiclass": _balanced}[case.task](out, y)
    return max(-1.0, round(value, 4)) if math.isfinite(value) else -1.0


def _r2(out: torch.Tensor, y: torch.Tensor) -> float:
    error = (out.reshape(y.shape) - y).square().sum()
    return 1 - (error / (y - y.mean(0)).square().sum()).item()


def _area(out: torch.Tensor, y: torch.Tensor) -> float:
    return 2 * roc_auc_score((y.flatten() > 0).numpy(), out.flatten().numpy()) - 1


def _balanced(out: torch.Tensor, y: torch.Tensor) -> float:
    classes = out.shape[1]
    right = balanced_accuracy_score(y.flatten().numpy(), np.asarray(out.argmax(1).flatten()))
    return (right - 1 / classes) / (1 - 1 / classes)
