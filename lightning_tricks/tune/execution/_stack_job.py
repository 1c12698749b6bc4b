"""Several trials of a search as one stack, in a process of its own."""

import hashlib
import json
import math
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import WandbLogger

from lightning_tricks._base import UserInputError, derive_seed, isolated_rng, rng_state, set_rng_state
from lightning_tricks.callbacks import ExactResume
from lightning_tricks.data import SplitDataModule
from lightning_tricks.stacked import StackedModule, StackedRun, fit_stacked
from lightning_tricks.tune.execution._processes import finished_before
from lightning_tricks.tune.execution._run_logger import logger_of, summarize
from lightning_tricks.tune.execution._trial import (
    Job,
    called_with,
    checkpoints,
    depend_on_parent,
    leave_result,
    made_data,
    reason_of,
    write_json,
)

_SECONDS_BETWEEN_CHECKPOINTS = 20.0
_SECONDS_BETWEEN_NOTES = 0.5


@dataclass(frozen=True)
class StackJob:
    """All that a process needs to know to train a stack.

    Args:
        shared: what its trainings have in common, with the folder of the stack and no hyperparameters.
        trials: one job per trial.
    """

    shared: Job
    trials: tuple[Job, ...]
    test = False

    @property
    def folder(self) -> Path:
        """Where the stack's records go."""
        return self.shared.folder

    @property
    def threads(self) -> int:
        """How many threads it may use."""
        return self.shared.threads

    @property
    def gpus(self) -> str | None:
        """Numbers of the GPUs that it may see; None for all."""
        return self.shared.gpus

    def run(self) -> None:
        """Train the stack, in a process of its own."""
        run_stack(self)

    def sharing(self, threads: int, gpus: str | None) -> "StackJob":
        """Return the job with its share of the machine."""
        return replace(self, shared=self.shared.sharing(threads, gpus))


def stack_of(trials: Sequence[Job], shared: Job) -> StackJob:
    """Return the job of a stack, in a folder whose name tells its trials: the same ones go on where they were."""
    key = json.dumps([[trial.folder.name, trial.params] for trial in trials], sort_keys=True, default=repr)
    name = hashlib.blake2b(key.encode(), digest_size=6).hexdigest()
    return StackJob(replace(shared, folder=shared.folder / "stacks" / name, params={}), tuple(trials))


def results_of(result: dict[str, Any], count: int) -> list[dict[str, Any]]:
    """Return the results of a stack's trials; its own failure is that of all."""
    if result["status"] == "complete":
        found: list[dict[str, Any]] = result["results"]
        return found
    return [dict(result) for _ in range(count)]


def run_stack(job: StackJob) -> None:
    """Run a stack and leave ``result.json``, unless it is there: a search was killed before it could read it."""
    depend_on_parent()
    if finished_before(job) is None:
        leave_result(job, partial(_result, job))


def _result(job: StackJob) -> dict[str, Any]:
    started = time.monotonic()
    results = _train(job) if job.shared.folds is None else _cross_validate(job, job.shared.folds)
    return {"status": "complete", "results": _with_seconds(results, time.monotonic() - started)}


def _with_seconds(results: list[dict[str, Any]], seconds: float) -> list[dict[str, Any]]:
    """Divide the time among the trials by the epochs that they trained."""
    total = sum(result.get("epochs", 1) for result in results) or 1
    return [{**result, "seconds": round(seconds * result.get("epochs", 1) / total, 3)} for result in results]


def _train(job: StackJob) -> list[dict[str, Any]]:
    seed_everything(job.shared.seed, workers=True, verbose=False)
    made, results = _made(job.trials)
    models = [model for _, model in made.values()]
    runs = _fit(models, made_data(job.shared), [trial for trial, _ in made.values()], job, job.folder) if made else []
    if made and not any(run.history for run in runs):
        raise UserInputError(f"no validation was run, so there is no {job.shared.monitor!r}. Give validation data.")
    for (i, (trial, model)), run in zip(made.items(), runs, strict=True):
        results[i] = _told(run, job.shared.monitor)
        _write(trial, model, run)
    return [results[i] for i in range(len(job.trials))]


def _made(trials: Sequence[Job]) -> tuple[dict[int, tuple[Job, LightningModule]], dict[int, dict[str, Any]]]:
    """Return the models by number, each made as if it were the first, and what became of those that were not."""
    made, failed = {}, {}
    start, after = rng_state(), None
    for i, trial in enumerate(trials):
        set_rng_state(start)
        try:
            model = trial.make_model(**called_with(trial.make_model, trial.params))
            if not isinstance(model, LightningModule):
                raise UserInputError(f"make_model must return a LightningModule, but returned {type(model).__name__}.")
        except Exception as error:
            traceback.print_exc()
            failed[i] = {"status": "failed", "reason": reason_of(error), "hopeless": isinstance(error, UserInputError)}
            continue
        made[i] = trial, model
        after = after or rng_state()
    set_rng_state(after or start)  # the batches come as after the first model, whatever seeds the others have set
    return made, failed


def _callbacks(trial: Job) -> list[Callback]:
    return [] if trial.callbacks is None else list(trial.callbacks(**called_with(trial.callbacks, trial.params)))


def _fit(
    models: Sequence[LightningModule], data: Any, trials: Sequence[Job], job: StackJob, folder: Path
) -> list[StackedRun]:
    folder.mkdir(parents=True, exist_ok=True)
    last = folder / "last.ckpt"
    runs = fit_stacked(
        models,
        data,
        monitor=job.shared.monitor,
        mode=job.shared.mode,
        callbacks=[_callbacks(trial) for trial in trials],
        trainer_kwargs=job.shared.trainer,
        watchers=[ExactResume(), _Keep(last), _Note(job.folder / "progress.json", job.shared.mode)],
        ckpt_path=last if last.exists() else None,
    )
    last.unlink(missing_ok=True)
    return runs


def _told(run: StackedRun, monitor: str) -> dict[str, Any]:
    extra = {"best_epoch": run.best_epoch, "epochs": run.epochs}
    if run.value is None:
        return {"status": "failed", "reason": f"{monitor} was never finite", **extra}
    return {"status": "complete", "value": run.value, **extra}


def _write(trial: Job, model: LightningModule, run: StackedRun) -> None:
    """Leave what a training of its own leaves: the best checkpoint and the metrics."""
    path = checkpoints(trial.folder)["best"]
    path.parent.mkdir(parents=True, exist_ok=True)
    if run.value is not None:
        content: dict[str, Any] = {
            "state_dict": {name: tensor.cpu() for name, tensor in run.best_state.items()},
            "epoch": run.best_epoch,
            "global_step": run.best_step,
            "pytorch-lightning_version": lightning.__version__,
        }
        if model.hparams:
            content[model.CHECKPOINT_HYPER_PARAMS_KEY] = dict(model.hparams)
        torch.save(content, path)
    logger = logger_of(trial.logger, trial.folder, trial.params)
    logger.log_hyperparams(trial.params)
    for line in run.history:
        metrics = {name: value for name, value in line.items() if name != "step"}
        logger.log_metrics(metrics, step=int(line["step"]))
    status = "failed" if run.value is None else "complete"
    summarize(logger, {"value": run.value, "best_epoch": run.best_epoch, "status": status})
    logger.finalize("success")
    if isinstance(logger, WandbLogger):
        logger.experiment.finish()


def _cross_validate(job: StackJob, folds: int) -> list[dict[str, Any]]:
    """Train the stack once per fold; a trial's value is the mean over the folds of its final weights' values."""
    data = made_data(job.shared)
    if not isinstance(data, SplitDataModule):
        raise UserInputError(f"folds need a DataModule of this package, which knows its rows, but got {data!r}.")
    results: list[list[dict[str, Any]]] = [[] for _ in job.trials]
    for i, fold in enumerate(data.folds(folds, seed=job.shared.seed)):
        done = job.folder / f"fold-{i}.json"
        if not done.exists():
            with isolated_rng(seed=derive_seed(job.shared.seed, "fold", i)):
                write_json(done, _fold(job, data.with_split(train=fold.train, val=fold.val), i))
        for mine, result in zip(results, json.loads(done.read_text(encoding="utf-8")), strict=True):
            mine.append(result)
    return [_mean(mine, job.shared.monitor) for mine in results]


def _mean(results: list[dict[str, Any]], monitor: str) -> dict[str, Any]:
    for result in results:
        if "value" not in result:
            return result
    values = [result["value"] for result in results]
    if not all(math.isfinite(value) for value in values):
        return {"status": "failed", "reason": f"{monitor} was not finite in every fold"}
    return {"status": "complete", "value": math.fsum(values) / len(values), "fold_values": values}


def _fold(job: StackJob, data: SplitDataModule[Any], number: int) -> list[dict[str, Any]]:
    made, results = _made(job.trials)
    models, trials = [model for _, model in made.values()], [trial for trial, _ in made.values()]
    runs = _fit(models, data, trials, job, job.folder / f"fold-{number}") if made else []
    for (i, (_, model)), run in zip(made.items(), runs, strict=True):
        value = _validated(model, data, job) if run.final_value is None else run.final_value
        results[i] = {"value": value}
    return [results[i] for i in range(len(job.trials))]


def _validated(model: LightningModule, data: SplitDataModule[Any], job: StackJob) -> float:
    options = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = Trainer(**{**options, **job.shared.trainer, "logger": False})
    return float(trainer.validate(model, datamodule=data, verbose=False)[0][job.shared.monitor])


class _Keep(Callback):
    """Write a checkpoint after an epoch, if the last one is a while ago."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.written = time.monotonic()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write it; whole or not at all."""
        if time.monotonic() - self.written < _SECONDS_BETWEEN_CHECKPOINTS:
            return
        partial = self.path.with_suffix(".partial")
        trainer.save_checkpoint(partial)
        partial.replace(self.path)
        self.written = time.monotonic()


class _Note(Callback):
    """Tell the parent how far the stack is."""

    def __init__(self, path: Path, mode: str) -> None:
        self.path, self.mode = path, mode
        self.written = 0.0

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write epoch, how many still train, and the best value."""
        if time.monotonic() - self.written < _SECONDS_BETWEEN_NOTES or not isinstance(pl_module, StackedModule):
            return
        values = [model.value for model in pl_module.progress if model.value is not None]
        best = (min if self.mode == "min" else max)(values, default=None)
        write_json(self.path, {"epoch": trainer.current_epoch + 1, "live": len(pl_module.live), "best": best})
        self.written = time.monotonic()
