"""The checks before the first step, as a callback."""

import tempfile
import warnings
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch.utils.data import DataLoader

from lightning_tricks._base import (
    UserInputError,
    accepts_old_names,
    alert,
    check_choice,
    log_artifact,
    log_text,
    require_sizes,
)
from lightning_tricks.diagnosis import Probe, Report, rules_for, run_rules, untouched


class PreflightError(UserInputError):
    """Preflight found an error and was asked to stop at one."""


class Preflight(Callback):
    """Run the checks of :func:`lightning_tricks.check` before the first step, and leave everything as it was.

    A run with Preflight ends with the same bits as the run without: copies of the model are tried out on samples that
    are taken from the dataset past the loader, and every random stream is put back. (A Dataset that draws from a
    generator of its own is moved on.) Findings are warnings; the whole report is in :attr:`report` and goes to the
    loggers as a text and as a page, errors as an alert. A resumed run is not checked again. With several processes
    only parameters and loaders are looked at, on the first one.

    Args:
        on_finding: ``"warn"``, or ``"raise"`` to stop before the first step if the run is broken.
        budget: as for :func:`lightning_tricks.check`.
        report_path: file for the report as one self-contained page.

    Raises:
        UserInputError: for an unknown choice.
        PreflightError: while training starts, if ``on_finding`` is "raise" and a finding is an error.

    Example:
        >>> import lightning as L, lightning_tricks as lt
        >>> trainer = L.Trainer(callbacks=[lt.Preflight(on_finding="raise")], logger=False)
    """

    @accepts_old_names("Preflight")
    def __init__(
        self,
        *,
        on_finding: Literal["warn", "raise"] = "warn",
        budget: Literal["quick", "full"] = "quick",
        report_path: str | Path | None = None,
    ) -> None:
        super().__init__()
        self.on_finding = check_choice("on_finding", on_finding, ("warn", "raise"))
        self.budget = check_choice("budget", budget, ("quick", "full"))
        self.report_path = report_path
        self.report: Report | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Start fresh."""
        if stage == "fit":
            self.report = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check, unless the run goes on from a checkpoint."""
        if trainer.global_step > 0 or not trainer.is_global_zero:
            return
        require_sizes(pl_module, "Preflight")
        train, val = _loader(trainer.train_dataloader), _loader(trainer.val_dataloaders)
        with untouched(train, val), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if trainer.world_size > 1:
                probe = Probe(pl_module, None, None, trainer)
            else:
                probe = Probe(pl_module, train, val, trainer, _transfer(trainer))
            self.report = Report(run_rules(rules_for(probe, self.budget), progress=False))
        self._tell(trainer, self.report)

    def _tell(self, trainer: Trainer, report: Report) -> None:
        log_text(trainer, "preflight", str(report))
        with tempfile.TemporaryDirectory() as folder:
            page = Path(self.report_path or Path(folder) / "preflight.html")
            if self.report_path is not None or trainer.loggers:
                report.to_html(page)
                log_artifact(trainer, page, kind="report")
        if not report.ok:
            alert(trainer, "Preflight", "\n".join(map(str, report.of("error"))), level="ERROR")
        for finding in [*report.of("error"), *report.of("warning")]:
            rank_zero_warn(f"Preflight: {finding}", category=UserWarning)
        if self.on_finding == "raise" and not report.ok:
            raise PreflightError(f"Preflight found {len(report.of('error'))} errors:\n{report}")


def _loader(loaders: Any) -> DataLoader[Any] | None:
    if isinstance(loaders, (tuple, list)):
        return _loader(loaders[0]) if loaders else None
    return loaders if isinstance(loaders, DataLoader) else None


def _transfer(trainer: Trainer) -> Any:
    data = getattr(trainer, "datamodule", None)
    if data is None:
        return None
    return lambda batch: data.on_after_batch_transfer(data.on_before_batch_transfer(batch, 0), 0)
