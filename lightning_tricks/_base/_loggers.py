"""Pictures, tables, texts and alerts for whichever loggers the trainer has.

W&B and TensorBoard get their own widgets. Every other logger that writes to a folder (CSVLogger first of all) gets
files beside its metrics. Only rank zero writes, and a logger that fails is mentioned once and never stops training.
"""

import io
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.loggers.logger import DummyLogger
from torch import Tensor

from lightning_tricks._base._messages import warn_once
from lightning_tricks._base._tables import Cell, markdown_table, picture, wandb_rows, write_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def log_metrics(trainer: Trainer, metrics: Mapping[str, float], *, step: int | None = None) -> None:
    """Write numbers straight to the loggers, past ``self.log`` and its cost per name.

    Args:
        trainer: whose loggers to use.
        metrics: numbers by name.
        step: optimizer step the numbers belong to; ``trainer.global_step`` if not given.
    """
    _for_each_logger(trainer, "metrics", lambda logger, at: logger.log_metrics(dict(metrics), step=at), step)


def log_figure(trainer: Trainer, name: str, figure: "Figure", *, step: int | None = None) -> None:
    """Write a picture. A figure made through pyplot is closed afterwards.

    Args:
        trainer: whose loggers to use.
        name: where it appears, such as ``"norms/heat_map"``.
        figure: a matplotlib figure.
        step: optimizer step the picture belongs to; ``trainer.global_step`` if not given.
    """

    def write(logger: Logger, at: int) -> None:
        if isinstance(logger, WandbLogger):
            from PIL import Image

            logger.log_image(name, [Image.open(io.BytesIO(_png(figure)))], step=at)
        elif isinstance(logger, TensorBoardLogger):
            logger.experiment.add_figure(name, figure, global_step=at, close=False)
        elif path := _file(logger, "figures", name, at, "png"):
            path.write_bytes(_png(figure))

    try:
        _for_each_logger(trainer, f"the picture {name!r}", write, step)
    finally:
        if "matplotlib.pyplot" in sys.modules:  # only figures made through pyplot are held by it
            sys.modules["matplotlib.pyplot"].close(figure)


def log_table(
    trainer: Trainer, name: str, columns: Sequence[str], rows: Iterable[Sequence[Cell]], *, step: int | None = None
) -> None:
    """Write a table; its cells are numbers, texts, or tensors ``(H, W)``, ``(1, H, W)``, ``(3, H, W)``: pictures.

    W&B shows pictures in the table. TensorBoard shows them under images, by the numbers that stand in the table.
    Elsewhere the CSV file names PNG files beside it, and an HTML page shows both.

    Args:
        trainer: whose loggers to use.
        name: where it appears.
        columns: the head.
        rows: one sequence per row, as long as ``columns``.
        step: optimizer step the table belongs to; ``trainer.global_step`` if not given.
    """
    body = [list(row) for row in rows]

    def write(logger: Logger, at: int) -> None:
        if isinstance(logger, WandbLogger):
            logger.log_table(name, columns=list(columns), data=wandb_rows(body), step=at)
        elif isinstance(logger, TensorBoardLogger):
            logger.experiment.add_text(name, markdown_table(columns, body), global_step=at)
            _add_pictures(logger, name, body, at)
        elif path := _file(logger, "tables", name, at, "csv"):
            write_table(path, columns, body)

    _for_each_logger(trainer, f"the table {name!r}", write, step)


def log_text(trainer: Trainer, name: str, text: str, *, step: int | None = None) -> None:
    """Write a piece of text.

    Args:
        trainer: whose loggers to use.
        name: where it appears.
        text: plain text.
        step: optimizer step the text belongs to; ``trainer.global_step`` if not given.
    """

    def write(logger: Logger, at: int) -> None:
        if isinstance(logger, WandbLogger):
            logger.log_text(name, columns=["text"], data=[[text]], step=at)
        elif isinstance(logger, TensorBoardLogger):
            logger.experiment.add_text(name, text, global_step=at)
        elif path := _file(logger, "texts", name, at, "txt"):
            path.write_text(text + "\n", encoding="utf-8")

    _for_each_logger(trainer, f"the text {name!r}", write, step)


def alert(trainer: Trainer, title: str, text: str, *, level: Literal["INFO", "WARN", "ERROR"] = "WARN") -> None:
    """Send an alert: a W&B alert (mail or chat, as the user set it up there), elsewhere a text.

    Args:
        trainer: whose loggers to use.
        title: one line.
        text: what happened and what to do.
        level: W&B's severity.
    """

    def write(logger: Logger, at: int) -> None:
        if isinstance(logger, WandbLogger):
            logger.experiment.alert(title=title, text=text, level=level)
        elif isinstance(logger, TensorBoardLogger):
            logger.experiment.add_text("alerts", f"**{level}: {title}**\n\n{text}", global_step=at)
        elif folder := _folder(logger):
            with (folder / "alerts.txt").open("a", encoding="utf-8") as file:
                file.write(f"step {at}\t{level}\t{title}\t{text}\n")

    _for_each_logger(trainer, f"the alert {title!r}", write, None)


def _for_each_logger(trainer: Trainer, what: str, write: Callable[[Logger, int], Any], step: int | None) -> None:
    if not trainer.is_global_zero:
        return
    at = trainer.global_step if step is None else step
    for logger in trainer.loggers:
        if isinstance(logger, DummyLogger) or _gave_up(logger):
            continue
        try:
            write(logger, at)
        except Exception as error:  # a logger's failure (network, full disk) must not cost the run
            name = type(logger).__name__
            warn_once(
                f"{name} could not write {what}: {error}. Training goes on; later failures of {name} are not repeated.",
                key=f"logger failed: {name}",
            )


def _gave_up(logger: Logger) -> bool:
    """Whether a W&B logger has no run to write to, and has said so."""
    return isinstance(logger, WandbLogger) and getattr(logger, "gave_up", False)


def _folder(logger: Logger) -> Path | None:
    """Return the folder of a logger's run, made if need be, or None if the logger writes to none."""
    folder = getattr(logger, "log_dir", None) or logger.save_dir
    if folder is None:
        return None
    if isinstance(logger, CSVLogger):
        _ = logger.experiment  # its first access warns about a folder that is not empty: let it come before ours
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    return path


def _file(logger: Logger, kind: str, name: str, step: int, suffix: str) -> Path | None:
    folder = _folder(logger)
    if folder is None:
        return None
    safe = re.sub(r"[^\w.-]+", "_", name).strip("._") or "unnamed"
    (folder / kind).mkdir(exist_ok=True)
    return folder / kind / f"{safe}-step{step:06d}.{suffix}"


def _png(figure: "Figure") -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()


def _add_pictures(logger: TensorBoardLogger, name: str, rows: Sequence[Sequence[Cell]], step: int) -> None:
    pictures = [np.asarray(picture(cell).convert("RGB")) for row in rows for cell in row if isinstance(cell, Tensor)]
    for number, pixels in enumerate(pictures, start=1):
        logger.experiment.add_image(f"{name}/picture {number}", pixels, global_step=step, dataformats="HWC")
