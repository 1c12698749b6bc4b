"""The file with all records: a CSV that grows with every write, or a Parquet file written at the end."""

import csv
from pathlib import Path

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import Logger

from lightning_tricks.callbacks.norms._history import COLUMNS, NormHistory, columns


class NormFile:
    """Appends the records that are new since the last write; never writes over a file that was there before."""

    def __init__(self, folder: Path, kind: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = next(path for path in _candidates(folder, kind) if not path.exists())
        self.kind = kind
        self._written = 0

    @classmethod
    def beside_logger(cls, trainer: Trainer, *, kind: str, dirpath: str | None) -> "NormFile | None":
        """Return the file of a run, or None where there is no folder for it or this is not rank zero."""
        if not trainer.is_global_zero:
            return None
        folder = Path(dirpath) if dirpath is not None else run_folder(trainer.logger)
        return None if folder is None else cls(folder, kind)

    def write(self, history: NormHistory) -> None:
        """Append the new records (CSV only)."""
        if self.kind != "csv" or len(history) == self._written:
            return
        is_new = self._written == 0
        rows = columns(list(history.rows(self._written)))
        with self.path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            if is_new:
                writer.writerow(COLUMNS)
            writer.writerows(zip(*rows.values(), strict=True))
        self._written = len(history)

    def finish(self, history: NormHistory) -> None:
        """Write the Parquet file."""
        if self.kind != "parquet" or not len(history):
            return
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.table(columns(list(history.rows()))), self.path)


def run_folder(logger: Logger | None) -> Path | None:
    """Return the folder of a logger's run: ``log_dir``, or save folder, name and version, as checkpoints have it."""
    if logger is None:
        return None
    if (folder := getattr(logger, "log_dir", None)) is not None:
        return Path(folder)
    if logger.save_dir is None:
        return None
    version = logger.version
    return Path(logger.save_dir, str(logger.name), version if isinstance(version, str) else f"version_{version}")


def _candidates(folder: Path, kind: str) -> "list[Path]":
    return [folder / f"norms{f'-{i}' if i else ''}.{kind}" for i in range(1000)]
