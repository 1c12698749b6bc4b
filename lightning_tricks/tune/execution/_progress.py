"""Between a training process and its search: reports go into one file, answers come through others.

Files reach the search from whatever process a strategy trains in.
"""

import csv
import time
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer

# A search looks every few hundredths of a second; one that does not answer for so long is busy or gone.
_PATIENCE = 30.0


def read_progress(folder: Path) -> dict[int, tuple[int, float]]:
    """Return epoch and value by step; of a step that was run twice, after a restart, the later one."""
    path = folder / "progress.csv"
    if not path.exists():
        return {}
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    complete = [line for line in lines if line.endswith("\n")]
    return {int(step): (int(epoch), float(value)) for step, epoch, value in csv.reader(complete)}


class FileTrial(Callback):
    """The end of a trial in the training process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.reports = folder / "progress.csv"
        self.stop = folder / "stop"
        self.epoch = 0

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the epoch that the next report belongs to."""
        self.epoch = trainer.current_epoch

    def report(self, value: float, step: int) -> None:
        """Append a line."""
        with self.reports.open("a", newline="", encoding="utf-8") as file:
            csv.writer(file).writerow([step, self.epoch, value])

    def should_prune(self) -> bool:
        """Look whether the search left its answer."""
        return self.stop.exists()

    def wait_for_answer(self) -> None:
        """Wait until the search has seen all reports."""
        seen, end = self.folder / "seen", time.monotonic() + _PATIENCE
        count = len(read_progress(self.folder))
        while not self.should_prune() and time.monotonic() < end:
            if count == 0 or (seen.exists() and int(seen.read_text(encoding="utf-8") or 0) >= count):
                return
            time.sleep(0.02)


class FoldsStopped(Exception):  # noqa: N818 - no error
    """The search gave the trial up between two folds."""


class FoldReports:
    """Reports each fold's value, and stops between folds if the search says so.

    Args:
        trial: where reports go.
        monitor: name of the metric.
        wait: whether to wait for the search's answer before the next fold.
    """

    def __init__(self, trial: FileTrial, monitor: str, *, wait: bool) -> None:
        self.trial = trial
        self.monitor = monitor
        self.wait = wait
        self.current = FoldReport(self)

    def next(self) -> "FoldReport":
        """Return the callback of a new fold."""
        self.current = FoldReport(self)
        return self.current

    def begin(self, fold: int) -> None:
        """Say which fold it is.

        Raises:
            FoldsStopped: if the trial was given up.
        """
        if self.wait:
            self.trial.wait_for_answer()
            if self.trial.should_prune():
                raise FoldsStopped
        self.current.fold = fold


class FoldReport(Callback):
    """Reports the value of one fold, measured after its training."""

    def __init__(self, reports: FoldReports) -> None:
        self.reports = reports
        self.fold = 0

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report, on rank zero."""
        value = trainer.callback_metrics.get(self.reports.monitor)
        if trainer.state.fn == "validate" and trainer.is_global_zero and value is not None:
            self.reports.trial.report(float(value), self.fold)
