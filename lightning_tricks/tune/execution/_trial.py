"""One training run in a process of its own: fresh memory, its own random streams, its own folder."""

import json
import math
import os
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from inspect import Parameter, signature
from multiprocessing import parent_process
from pathlib import Path
from typing import Any, Literal, Protocol

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher

from lightning_tricks._base import UserInputError
from lightning_tricks.callbacks import PruningCallback
from lightning_tricks.data import SplitDataModule
from lightning_tricks.tune.cross_validation._cross_validate import cross_validate
from lightning_tricks.tune.execution._progress import FileTrial, FoldReports, FoldsStopped, read_progress
from lightning_tricks.tune.execution._run_logger import logger_of, summarize


@dataclass(frozen=True)
class Job:
    """All that a training process needs to know."""

    folder: Path
    params: dict[str, Any]
    make_model: Callable[..., LightningModule]
    data: LightningDataModule | Callable[..., LightningDataModule]
    monitor: str
    mode: Literal["min", "max"]
    seed: int
    trainer: Mapping[str, Any] = field(default_factory=dict)
    callbacks: Callable[..., Sequence[Callback]] | None = None
    logger: Callable[[Path, dict[str, Any]], Logger] | Mapping[str, Any] | None = None
    threads: int = 1
    gpus: str | None = None
    test: bool = False
    folds: int | None = None
    prune: bool = False

    def run(self) -> None:
        """Do it, in a process of its own."""
        run_job(self)

    def sharing(self, threads: int, gpus: str | None) -> "Job":
        """Return the job with its share of the machine."""
        return replace(self, threads=threads, gpus=gpus)


class Work(Protocol):
    """What a training process is given: one training (:class:`Job`), or a stack of them."""

    @property
    def folder(self) -> Path:
        """Where its records go."""

    @property
    def test(self) -> bool:
        """Whether it tests a model that was trained before."""

    @property
    def threads(self) -> int:
        """How many threads it may use."""

    @property
    def gpus(self) -> str | None:
        """Numbers of the GPUs that it may see; None for all."""

    def run(self) -> None:
        """Do it, in a process of its own."""

    def sharing(self, threads: int, gpus: str | None) -> "Work":
        """Return it with its share of the machine."""


def run_job(job: Job) -> None:
    """Run a job and leave ``result.json``."""
    depend_on_parent()
    leave_result(job, partial(_result, job))
    if "wandb" in sys.modules:
        sys.modules["wandb"].finish()


def _result(job: Job) -> dict[str, Any]:
    if job.test:
        return _test(job)
    return _train(job) if job.folds is None else _cross_validate(job, job.folds)


def leave_result(job: Work, work: Callable[[], dict[str, Any]]) -> None:
    """Print into ``log.txt`` from now on and leave ``result.json``, whatever happens short of the process's death."""
    job.folder.mkdir(parents=True, exist_ok=True)
    log = (job.folder / "log.txt").open("a", encoding="utf-8", buffering=1)
    os.dup2(log.fileno(), 1)
    os.dup2(log.fileno(), 2)
    sys.stdout = sys.stderr = log
    # A run that goes on after a crash finds its own checkpoints there.
    warnings.filterwarnings("ignore", "Checkpoint directory .* exists and is not empty")
    started = time.monotonic()
    try:
        result = work()
    except Exception as error:
        traceback.print_exc()
        expected = isinstance(error, UserInputError)
        result = {"status": "failed", "reason": reason_of(error), "hopeless": expected}
    result["seconds"] = round(time.monotonic() - started, 3)
    write_json(result_file(job), result)


def result_file(job: Work) -> Path:
    """Return where a job's result goes."""
    return job.folder / ("test.json" if job.test else "result.json")


def write_json(path: Path, content: Any) -> None:
    """Write a file that is either there as a whole or not at all."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content), encoding="utf-8")
    partial.replace(path)


def called_with(function: Callable[..., Any], params: Mapping[str, Any]) -> dict[str, Any]:
    """Return those parameters that a function takes, which are all if it takes ``**others``."""
    taken = signature(function).parameters.values()
    if any(p.kind == Parameter.VAR_KEYWORD for p in taken):
        return dict(params)
    return {p.name: params[p.name] for p in taken if p.name in params}


def checkpoints(folder: Path) -> dict[str, Path]:
    """Return where a run keeps its best and its last state."""
    return {name: folder / "checkpoints" / f"{name}.ckpt" for name in ("best", "last")}


def _train(job: Job) -> dict[str, Any]:
    seed_everything(job.seed, workers=True, verbose=False)
    trial = FileTrial(job.folder)
    own = [trial, PruningCallback(trial, job.monitor, mode=job.mode), *_checkpoint_callbacks(job)]
    more = [] if job.callbacks is None else job.callbacks(**called_with(job.callbacks, job.params))
    trainer = _trainer(job, [*own, *more])
    last = checkpoints(job.folder)["last"]
    model, data = _made(job)
    trainer.fit(model, data, ckpt_path=last if last.exists() else None)
    seen = read_progress(job.folder)
    if not seen:
        raise UserInputError(f"no validation was run, so there is no {job.monitor!r}. Give validation data.")
    finite = [(value, epoch) for epoch, value in seen.values() if math.isfinite(value)]
    if not finite:
        return {"status": "failed", "reason": f"{job.monitor} was never finite"}
    value, epoch = min(finite) if job.mode == "min" else max(finite, key=lambda pair: pair[0])
    status = "pruned" if trial.stop.exists() else "complete"
    summarize(trainer.logger, {"value": value, "best_epoch": epoch, "status": status})
    return {"status": status, "value": value, "best_epoch": epoch, "epochs": max(e for e, _ in seen.values()) + 1}


def _cross_validate(job: Job, folds: int) -> dict[str, Any]:
    """Return the mean over the folds; each fold's value is that of its last epoch."""
    data = made_data(job)
    if not isinstance(data, SplitDataModule):
        raise UserInputError(f"folds need a DataModule of this package, which knows its rows, but got {data!r}.")
    reports = FoldReports(FileTrial(job.folder), job.monitor, wait=job.prune)
    more = job.callbacks
    try:
        scores = cross_validate(
            lambda: job.make_model(**called_with(job.make_model, job.params)),
            data,
            folds,
            callbacks=lambda: [reports.next(), *([] if more is None else more(**called_with(more, job.params)))],
            logger=lambda fold: _fold_logger(job, reports, fold),
            trainer_kwargs={"enable_progress_bar": False, "enable_model_summary": False, **job.trainer},
            folder=job.folder / "folds",
            predict=False,
            progress=False,
            seed=job.seed,
        )
    except FoldsStopped:
        values = [value for _, (_, value) in sorted(read_progress(job.folder).items())]
        return {"status": "pruned", "value": math.fsum(values) / len(values), "fold_values": values}
    if job.monitor not in scores.metrics:
        raise UserInputError(f"{job.monitor!r} was not logged in validation; logged were {', '.join(scores.metrics)}.")
    value = scores.mean(job.monitor)
    if not math.isfinite(value):
        return {"status": "failed", "reason": f"{job.monitor} was not finite in every fold"}
    return {"status": "complete", "value": value, "fold_values": scores.scores(job.monitor)}


def _fold_logger(job: Job, reports: FoldReports, fold: int) -> Logger:
    reports.begin(fold)
    return logger_of(job.logger, job.folder / f"fold-{fold}", job.params)


def _test(job: Job) -> dict[str, Any]:
    seed_everything(job.seed, workers=True, verbose=False)
    model, data = _made(job)
    best = checkpoints(job.folder)["best"]
    metrics = _trainer(job, []).test(model, data, ckpt_path=best, verbose=False)
    return {"status": "complete", "metrics": {name: value for part in metrics for name, value in part.items()}}


def _made(job: Job) -> tuple[LightningModule, LightningDataModule]:
    model = job.make_model(**called_with(job.make_model, job.params))
    if not isinstance(model, LightningModule):
        raise UserInputError(f"make_model must return a LightningModule, but returned {type(model).__name__}.")
    return model, made_data(job)


def made_data(job: Job) -> LightningDataModule:
    """Return the data of a training."""
    data = job.data
    return data if isinstance(data, LightningDataModule) else data(**called_with(data, job.params))


def _trainer(job: Job, callbacks: list[Callback]) -> Trainer:
    logger = logger_of(job.logger, job.folder, job.params, test=job.test)
    options = {"enable_progress_bar": False, "enable_model_summary": False, **job.trainer}
    trainer = Trainer(default_root_dir=job.folder, logger=logger, callbacks=callbacks, **options)
    if isinstance(trainer.strategy.launcher, _SubprocessScriptLauncher) and trainer.num_devices > 1:
        raise UserInputError(
            "this strategy starts your whole script again for every rank, and each would search on its own. Give "
            "trainer_kwargs={'strategy': 'ddp_fork'} or 'ddp_spawn', or one device per trial."
        )
    return trainer


def _checkpoint_callbacks(job: Job) -> list[Callback]:
    """Keep the best state, for the test, and the last one, to go on from after a crash."""
    paths = checkpoints(job.folder)
    shared: dict[str, Any] = {"dirpath": paths["best"].parent, "enable_version_counter": False}
    best = ModelCheckpoint(filename="best", monitor=job.monitor, mode=job.mode, save_weights_only=True, **shared)
    return [best, ModelCheckpoint(filename="last", save_on_train_epoch_end=True, **shared)]


def reason_of(error: Exception) -> str:
    """Return why a training failed, in a sentence."""
    if isinstance(error, UserInputError):
        return str(error)
    text = f"{type(error).__name__}: {error}".strip()
    if "out of memory" in text.lower() or isinstance(error, MemoryError):
        return f"out of memory ({text.splitlines()[0]})"
    return text


def depend_on_parent() -> None:
    """Make this process die with its parent, but share nothing with it.

    A killed search must not leave trainings behind that write into the folders of the next one. A W&B service that the
    parent has started would hold on to the run of a killed training, so that it could not go on in it.
    """
    os.environ.pop("WANDB_SERVICE", None)
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
