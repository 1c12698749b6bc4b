"""What goes wrong while a network learns, seen from its losses, norms and activations."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer

from lightning_tricks._base import (
    UserInputError,
    accepts_old_names,
    alert,
    check_choice,
    check_range,
    log_artifact,
    require_sizes,
    warn_once,
)
from lightning_tricks.callbacks._stop_request import StopRequest
from lightning_tricks.callbacks._trainer import is_dry_run, resumes
from lightning_tricks.callbacks.diagnosis._losses import StepLosses, noise_ratio
from lightning_tricks.callbacks.diagnosis._report import facts_of, free_path, write_report
from lightning_tricks.callbacks.diagnosis._watchers import QuietActivations, QuietNorms, is_compiled
from lightning_tricks.callbacks.norms._layers import OnlyLooks
from lightning_tricks.callbacks.stopping._new_values import FreshValues
from lightning_tricks.diagnosis import Evidence, Finding, LossCurve, Report, Thresholds, TrainingWatch

OnFinding = Literal["warn", "stop"]
_LEVELS: dict[str, Literal["INFO", "WARN", "ERROR"]] = {"info": "INFO", "warning": "WARN", "error": "ERROR"}


class Diagnosis(OnlyLooks, Callback):
    """Say what is wrong with a run while it runs, and how to cure it; write it all on one page.

    The loss of every step, the norms of a few steps, the activations of a few batches and the validation metric go to
    the rules ``nonfinite``, ``exploding-gradient``, ``vanishing-gradient``, ``dead-units``, ``saturated-units``,
    ``lr-too-high``, ``lr-too-low``, ``diverging``, ``oscillating``, ``not-learning``, ``overfitting``, ``stagnation``,
    ``clipping-binds`` and ``gradient-noise``. What is strange inside a network counts only while its loss is bad, too:
    a healthy run should end without a word.

    A finding is told once: as a warning, as an alert of the loggers, in :attr:`findings` and in the report (notes of
    severity "info" only there). Training is not touched.

    Args:
        monitor: the validation loss that tells overfitting; smaller is better. If it is not logged, that rule rests.
        every_n_steps: optimizer steps from one measurement of norms and activations to the next; the 1st, 2nd, 4th,
            8th, ... are measured, too.
        on_finding: ``"warn"``; ``"stop"`` also stops the run at a finding of severity "error"; or a function of the
            finding, called on the first process, that returns True to stop.
        report_path: file for the page with findings, pictures, settings and versions, which is also written when the
            run crashes or is interrupted; ``"auto"``: ``report.html`` in the logger's folder; None for none.
        thresholds: numbers that the rules compare with.

    Raises:
        UserInputError: for a value out of range or an unknown choice.

    Example:
        >>> import lightning as L, lightning_tricks as lt
        >>> diagnosis = lt.Diagnosis(on_finding="stop")
        >>> trainer = L.Trainer(callbacks=[diagnosis], logger=False)
        >>> diagnosis.findings  # filled by trainer.fit(...)
        ()

    Reference: Zhang et al., AutoTrainer (ICSE 2021): problems count together with a symptom. Ben Braiek & Khomh,
        TheDeepChecker (2023). Rauschmayr et al., Amazon SageMaker Debugger (MLSys 2021).
    """

    @accepts_old_names("Diagnosis")
    def __init__(
        self,
        monitor: str = "val_loss",
        *,
        every_n_steps: int = 50,
        on_finding: OnFinding | Callable[[Finding], bool | None] = "warn",
        report_path: str | Path | None = "auto",
        thresholds: Thresholds | None = None,
    ) -> None:
        super().__init__()
        self.monitor = monitor
        self.every_n_steps = int(check_range("every_n_steps", every_n_steps, low=1))
        if not callable(on_finding):
            check_choice("on_finding", on_finding, get_args(OnFinding))
        if thresholds is not None and not isinstance(thresholds, Thresholds):
            raise UserInputError(
                f"thresholds must be a Thresholds, but got {type(thresholds).__name__}. Write "
                "lightning_tricks.diagnosis.Thresholds(dead=0.9), naming what shall differ."
            )
        self.on_finding = on_finding
        self.report_path = report_path
        self.thresholds = thresholds or Thresholds()
        self._norms, self._activations = QuietNorms(self.every_n_steps), QuietActivations(self.every_n_steps)
        self._reset()

    def _reset(self) -> None:
        self._watch = TrainingWatch(self.thresholds)
        self._curve = LossCurve(self.thresholds.window)
        self._losses = StepLosses()
        self._fresh = FreshValues([self.monitor])
        self._validation: list[tuple[int, float]] = []
        self._steps = 0  # optimizer steps seen
        self._facts: dict[str, str | int | float] = {}
        self.stop_request = StopRequest()
        self._drop_run()

    def _drop_run(self) -> None:
        """Forget everything that belongs to a running fit."""
        self._losses.hush()
        self._norms._drop_run()
        self._activations._drop_run()
        self._planned: int | None = None
        self._at = 0
        self._has_curve = self._sees_norms = self._sees_activations = self._may_listen = True
        self._answered_alarm = False
        self._path: Path | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return everything seen so far; plain numbers, lists and tensors."""
        return {
            "watch": self._watch.state_dict(),
            "curve": self._curve.state_dict(),
            "guess": self._losses.guess.state_dict(),
            "pending": [float(loss) for loss in self._losses.pending],
            "validation": [list(check) for check in self._validation],
            "steps": self._steps,
            "norms": self._norms.state_dict(),
            "activations": self._activations.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what the interrupted run had seen."""
        self._watch.load_state_dict(state_dict["watch"])
        self._curve.load_state_dict(state_dict["curve"])
        self._curve.window = self.thresholds.window
        self._losses.guess.load_state_dict(state_dict["guess"])
        self._curve.add(state_dict["pending"])
        self._validation = [(step, value) for step, value in state_dict["validation"]]
        self._steps = state_dict["steps"]
        self._norms.load_state_dict(state_dict["norms"])
        self._activations.load_state_dict(state_dict["activations"])

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep what was seen when weights are loaded for a validation or test."""
        resumes(self, trainer, checkpoint)

    # What was found

    @property
    def findings(self) -> Sequence[Finding]:
        """All findings of the last run, in the order in which they were made."""
        return tuple(self._watch.findings)

    @property
    def report(self) -> Report:
        """The findings of the last run, the gravest first, and the run's settings."""
        return Report(self.findings, dict(self._facts), title="Diagnosis")

    # Lightning's hooks

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Start fresh."""
        if stage != "fit":
            return
        self._reset()
        self._sees_norms = not isinstance(trainer.strategy, (FSDPStrategy, DeepSpeedStrategy))
        if not self._sees_norms:
            warn_once(
                f"Diagnosis cannot see gradients under {type(trainer.strategy).__name__}, so it goes by losses and "
                "activations alone. ModelParallelStrategy with fully_shard in configure_model shows them."
            )
        for watcher in (self._norms, self._activations):
            watcher._reset()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at what will run."""
        require_sizes(pl_module, "Diagnosis")
        self._planned = planned_steps(trainer)
        self._at = trainer.global_step
        self._has_curve = len(trainer.optimizers) == 1
        compiled = is_compiled(pl_module)
        self._may_listen = self._has_curve and not compiled
        self._sees_activations = getattr(pl_module, "_compiler_ctx", None) is None
        if self._sees_norms:
            self._norms.on_train_start(trainer, pl_module)
        if self._sees_activations:
            self._activations.on_train_start(trainer, pl_module)
        self._facts = facts_of(trainer, pl_module)
        if not is_dry_run(trainer):
            self._path = free_path(trainer, self.report_path)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Attach hooks, if this batch is sampled."""
        if not self._sees_activations:
            return
        self._activations.on_train_batch_start(trainer, pl_module, batch, batch_idx)
        if self._may_listen and self._activations.is_sampling:
            self._losses.listen()

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Detach hooks, and take the loss."""
        self._losses.hush()
        if not pl_module.automatic_optimization:
            self._losses.see_backward(loss)
        if self._sees_activations:
            self._activations.on_before_backward(trainer, pl_module, loss)
        if self._sees_norms:
            self._norms.on_before_backward(trainer, pl_module, loss)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Measure the gradients before clipping."""
        if self._sees_norms:
            self._norms.on_before_optimizer_step(trainer, pl_module, optimizer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take the loss, and every few steps look at everything."""
        self._losses.hush()
        if self._has_curve:
            self._losses.end_batch(trainer, pl_module, outputs)
        if self._sees_norms:
            self._norms.on_train_batch_end(trainer, pl_module)
        if self._sees_activations:
            self._activations.on_train_batch_end(trainer, pl_module)
        if trainer.global_step == self._at:
            return
        self._at = trainer.global_step
        self._steps += 1
        self._losses.end_step()
        # One process may look at once; several do so together, or they would wait for each other.
        alarm = self._norms.alarmed and not self._answered_alarm and trainer.world_size == 1
        self._answered_alarm |= alarm
        if alarm or self._steps % self.thresholds.window == 0:
            self._look(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note what stands before the validation."""
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self._fresh.validation_starts(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the metric of the validation."""
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        (value,), _ = self._fresh.after_validation(trainer)
        if value is not None:
            self._validation.append((self._steps, value))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look a last time, and write the report."""
        self._look(trainer, is_last=True)
        self._write(trainer)
        self._drop_run()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Write the report with what is known here; the other processes may be gone."""
        if trainer.state.fn != TrainerFn.FITTING:
            return
        self._losses.hush()
        try:
            if trainer.is_global_zero:
                self._tell(trainer, self._judge(trainer, self._evidence(None, is_last=True)))
                self._write(trainer, exception)
        except Exception as error:  # the run's own exception is the one to see
            warn_once(f"Diagnosis could not finish its report: {type(error).__name__}: {error}")
        finally:
            self._drop_run()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let go of the run."""
        self._drop_run()

    # One look

    def _look(self, trainer: Trainer, *, is_last: bool = False) -> None:
        """Let the first process judge, tell the others, and stop together."""
        evidence = self._evidence(trainer, is_last=is_last)
        new: list[Finding] = []
        stop = False
        if trainer.is_global_zero:
            new = self._judge(trainer, evidence)
            stop = any([self._asks_to_stop(finding) for finding in new])  # noqa: C419 - each is told to the function
        if trainer.world_size > 1:
            new, stop = trainer.strategy.broadcast((new, stop))
            self._watch.take(new)
        self._tell(trainer, new)
        if stop:
            self.stop_request.ask(trainer)

    def _judge(self, trainer: Trainer, evidence: Evidence) -> list[Finding]:
        new = [replace(finding, step=trainer.global_step) for finding in self._watch.look(evidence)]
        self._watch.take(new)
        return new

    def _asks_to_stop(self, finding: Finding) -> bool:
        if callable(self.on_finding):
            return bool(self.on_finding(finding))
        return self.on_finding == "stop" and finding.severity == "error"

    def _evidence(self, trainer: Trainer | None, *, is_last: bool) -> Evidence:
        """Bring everything to the host; without a trainer, only what needs no other process."""
        if self._has_curve:
            self._curve.add(self._losses.drain(trainer))
        reads = self._sees_norms and (trainer is not None or not self._norms.needs_other_ranks)
        norms = self._norms.records() if reads else ()
        first = self._norms.first_nonfinite if self._sees_norms else None
        return Evidence(
            step=self._steps,
            curve=self._curve if self._has_curve else None,
            planned=self._planned,
            guess=self._losses.guess.value(),
            is_negated=self._losses.guess.is_negated,
            lr=None if trainer is None else max_lr(trainer),
            norms=norms,
            activity=self._activations.batches() if self._sees_activations else (),
            validation=self._validation,
            validation_name=self.monitor,
            noise_ratio=noise_ratio(trainer.optimizers) if trainer is not None and is_last else None,
            broken=None if first is None else (first["step"], first["layer"], first["quantity"]),
            is_last=is_last,
        )

    def _tell(self, trainer: Trainer, findings: Sequence[Finding]) -> None:
        for finding in findings:
            if finding.severity == "info":
                continue
            alert(trainer, f"{finding.severity}: {finding.rule}", str(finding), level=_LEVELS[finding.severity])
            rank_zero_warn(f"Diagnosis: {finding}", category=UserWarning)

    def _write(self, trainer: Trainer, exception: BaseException | None = None) -> None:
        if self._path is not None and trainer.is_global_zero:
            curves = (self._curve, self._validation, self.monitor, self._losses.guess.value())
            write_report(self._path, self.report, curves, self._norms, self._activations, exception)
            log_artifact(trainer, self._path, kind="report")


def planned_steps(trainer: Trainer) -> int | None:
    """Return the optimizer steps of the whole run, or None if there is no end in sight."""
    batches, epochs = trainer.num_training_batches, trainer.max_epochs
    limits = [trainer.max_steps] if trainer.max_steps > 0 else []
    if epochs is not None and epochs > 0 and batches != float("inf"):
        limits.append(max(1, int(batches) // max(1, trainer.accumulate_grad_batches)) * epochs)
    return min(limits, default=None)


def max_lr(trainer: Trainer) -> float | None:
    """Return the largest learning rate of all parameter groups; None where optimizers find it by themselves."""
    groups = (group for optimizer in trainer.optimizers for group in optimizer.param_groups)
    return max((float(group["lr"]) for group in groups if group.get("lr") is not None), default=None)
