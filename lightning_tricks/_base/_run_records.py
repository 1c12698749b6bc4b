"""What belongs to a run as a whole: its summary, and files."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger

from lightning_tricks._base._loggers import _folder, _for_each_logger


def log_summary(trainer: Trainer, values: Mapping[str, str | int | float]) -> None:
    """Write what a whole run came to, such as its best value: one value per name, the latest stands.

    W&B shows it in its table of runs; TensorBoard gets a text, other loggers a file ``summary.json``.

    Args:
        trainer: whose loggers to use.
        values: numbers or words by name.
    """

    def write(logger: Logger, at: int) -> None:
        if isinstance(logger, WandbLogger):
            logger.experiment.summary.update(dict(values))
        elif isinstance(logger, TensorBoardLogger):
            lines = [f"- {name}: {value}" for name, value in values.items()]
            logger.experiment.add_text("summary", "\n".join(lines), global_step=at)
        elif folder := _folder(logger):
            path = folder / "summary.json"
            known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
            path.write_text(json.dumps({**known, **values}, indent=2) + "\n", encoding="utf-8")

    _for_each_logger(trainer, "the summary", write, None)


def log_artifact(trainer: Trainer, path: Path, *, kind: str) -> None:
    """Keep a file with the run: as a W&B artifact, and elsewhere as a copy in the logger's folder.

    W&B also shows a page (``.html``) in the run's workspace. A file that is in a logger's folder already is not copied.

    Args:
        trainer: whose loggers to use.
        path: the file; it is read at once and may be deleted afterwards.
        kind: what it is, such as ``"report"``: W&B's type of the artifact.
    """

    def write(logger: Logger, at: int) -> None:
        if isinstance(logger, WandbLogger):
            _log_to_wandb(logger, path, kind, at)
        elif (folder := _folder(logger)) and folder.resolve() not in path.resolve().parents:
            (folder / "artifacts").mkdir(exist_ok=True)
            shutil.copyfile(path, folder / "artifacts" / path.name)

    _for_each_logger(trainer, f"the file {path.name!r}", write, None)


def _log_to_wandb(logger: WandbLogger, path: Path, kind: str, step: int) -> None:
    import wandb

    run = logger.experiment
    artifact = wandb.Artifact(f"{path.stem}-{run.id}", type=kind)
    artifact.add_file(str(path), policy="mutable")
    run.log_artifact(artifact)
    if path.suffix == ".html":
        page = {f"pages/{path.stem}": wandb.Html(path.read_text(encoding="utf-8"))}
        logger.log_metrics(page, step=step)  # type: ignore[arg-type]
