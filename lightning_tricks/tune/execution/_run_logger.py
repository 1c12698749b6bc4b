"""A logger of its own for each training of a search."""

import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger

from lightning_tricks.callbacks import TolerantWandbLogger

MakeLogger = Callable[[Path, dict[str, Any]], Logger]


def logger_of(
    given: MakeLogger | Mapping[str, Any] | None, folder: Path, params: dict[str, Any], *, test: bool = False
) -> Logger:
    """Return a training's logger.

    Args:
        given: a function of folder and hyperparameters; options of ``WandbLogger``; or None for a CSV file.
        folder: of the training.
        params: its hyperparameters.
        test: whether it only tests.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if given is None:
        return CSVLogger(folder, name="", version=_new_log(folder, "test-log" if test else "log"))
    if callable(given):
        return given(folder, params)
    name = folder.name if folder.name.startswith(("run", "trial")) else f"{folder.parent.name}-{folder.name}"
    defaults = {"name": name, "config": params, "save_dir": folder, "id": _run_id(folder)}
    return TolerantWandbLogger(**{**defaults, "job_type": "test" if test else "train", **given})


def summarize(logger: Logger | None, content: Mapping[str, Any]) -> None:
    """Put what counts into a W&B run's summary, by which its tables sort."""
    if isinstance(logger, WandbLogger) and not getattr(logger, "gave_up", False):
        logger.experiment.summary.update(dict(content))


def _new_log(folder: Path, kind: str) -> str:
    """Return the name of a folder that does not exist: a run that goes on must not wipe what it has logged."""
    return f"{kind}-{sum(path.name.startswith(kind) for path in folder.iterdir() if path.is_dir())}"


def _run_id(folder: Path) -> str:
    """Return the same id each time, so that a run that was killed goes on as one run."""
    path = folder / "wandb-id"
    if not path.exists():
        path.write_text(secrets.token_hex(4), encoding="utf-8")
    return path.read_text(encoding="utf-8")
