"""Find the checkpoint from which an interrupted run goes on."""

import pickletools
import zipfile
from collections.abc import Iterable, Iterator
from os import PathLike
from pathlib import Path

from lightning_tricks._base import UserInputError

# Lightning writes it into every checkpoint but those of `save_weights_only`
_KEY_OF_A_TRAINING_STATE = "lr_schedulers"


def last_checkpoint(folder: str | PathLike[str], *more: str | PathLike[str]) -> Path:
    """Return the newest checkpoint of a run from which training can go on.

    Looks at the ``.ckpt`` files of the folders, of ``checkpoints/`` in them, and of the runs ``version_0``,
    ``version_1``, ... in them, each with its ``checkpoints/``. Files that were cut off and files that hold weights only
    are passed over. Nothing is unpickled.

    Args:
        folder: that of a run, of the versions of a run, or of checkpoints.
        more: further folders; the newest checkpoint of all of them is returned.

    Raises:
        UserInputError: if there is no such checkpoint, with what is there instead.

    Example:
        >>> import tempfile, lightning.pytorch as pl, lightning_tricks as lt
        >>> folder = tempfile.mkdtemp()
        >>> trainer = pl.Trainer(max_epochs=1, limit_train_batches=1, limit_val_batches=0, default_root_dir=folder,
        ...                      logger=False, accelerator="cpu", enable_progress_bar=False, enable_model_summary=False)
        >>> model = lt.Classifier(lt.MLP(64, 10), num_classes=10)
        >>> trainer.fit(model, lt.DigitsDataModule())
        >>> lt.last_checkpoint(folder).name  # trainer.fit(model, data, ckpt_path=lt.last_checkpoint(folder))
        'epoch=0-step=1.ckpt'
    """
    folders = [Path(place) for place in (folder, *more)]
    # Newest first, so that the older ones are never opened; a file may vanish while we look.
    dated = sorted(((age, path) for path in set(_files(folders)) if (age := _written(path))), reverse=True)
    refused: list[str] = []
    for _, path in dated:
        flaw = _flaw(path)
        if flaw is None:
            return path
        refused.append(f"{path} {flaw}")
    looked = ", ".join(str(place) for place in folders)
    shown = [*refused[:3], *(["..."] if refused[3:] else [])]
    found = f"Found only: {'; '.join(shown)}." if shown else "No .ckpt is there."
    raise UserInputError(
        f"There is nothing to resume: expected a whole checkpoint of a training in {looked}. {found} "
        "Start without a checkpoint, or give the path of one."
    )


def _files(folders: Iterable[Path]) -> Iterator[Path]:
    for folder in folders:
        for run in (folder, *folder.glob("version_*")):
            yield from run.glob("*.ckpt")
            yield from (run / "checkpoints").rglob("*.ckpt")


def _written(path: Path) -> int:
    """Return when it was written, in ns; 0 if it is gone or a link to what is gone."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _flaw(path: Path) -> str | None:
    """Return why training cannot go on from a file, or from a folder of shards; None if it can."""
    file = path / "meta.pt" if path.is_dir() else path  # Lightning writes it when all shards are written
    try:
        with zipfile.ZipFile(file) as parts:  # its table stands at the end, so that a file cut off has none
            (pickled,) = (name for name in parts.namelist() if name.count("/") == 1 and name.endswith("/data.pkl"))
            saved = pickletools.genops(parts.read(pickled))
            whole = any(argument == _KEY_OF_A_TRAINING_STATE for _, argument, _ in saved)
    except (OSError, ValueError, zipfile.BadZipFile):
        return "is not whole"
    return None if whole else "holds weights only"
