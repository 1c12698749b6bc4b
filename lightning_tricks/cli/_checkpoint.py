"""Which checkpoint a command loads."""

from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info

from lightning_tricks._base import UserInputError
from lightning_tricks.callbacks import last_checkpoint
from lightning_tricks.cli._lightning import TricksCLI, run_folder


def checkpoint_options(cli: TricksCLI) -> dict[str, Any]:
    """Return the arguments of the Trainer's methods that say what to load and how.

    ``last`` becomes a path here: Lightning looks into the folder of the run that begins, finds nothing, and goes on
    from nothing.

    Raises:
        UserInputError: if the checkpoint asked for is ``last`` and there is none.
    """
    options = cli.options("ckpt_path", "weights_only")
    if options["ckpt_path"] == "last":
        path = _last(cli.trainer)
        rank_zero_info(f"Going on from {path}")
        options["ckpt_path"] = str(path)
    return options


def _last(trainer: Trainer) -> Path:
    """Return the newest checkpoint of the run's own folder, or else of the other versions of the run."""
    dirpaths = (getattr(callback, "dirpath", None) for callback in trainer.checkpoint_callbacks)
    folder = run_folder(trainer)
    own = [folder, *(Path(dirpath) for dirpath in dirpaths if dirpath)]
    others = [folder.parent] if trainer.loggers and folder.name.startswith("version_") else []
    try:
        return last_checkpoint(*own)
    except UserInputError:
        if not others:
            raise
    return last_checkpoint(*others, *own)
