"""Stop when the metric no longer improves, and end with the weights that were best."""

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch import callbacks as lightning_callbacks
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info

from lightning_tricks._base import (
    UserInputError,
    accepts_old_names,
    check_choice,
    check_monitor_early,
    infer_mode,
    log_metrics,
    log_summary,
    log_text,
    warn_once,
)
from lightning_tricks.callbacks._settings import report_changes
from lightning_tricks.callbacks._stop_request import StopRequest
from lightning_tricks.callbacks._trainer import callbacks_of, is_dry_run, resumes
from lightning_tricks.callbacks.learning_rate._plateau import ReduceLROnPlateau
from lightning_tricks.callbacks.stopping._best_weights import Keep
from lightning_tricks.callbacks.stopping._decision import AfterDrop, NanPolicy, StoppingDecision, Unit
from lightning_tricks.callbacks.stopping._improvement import Improvement, Margin, Smooth, Verdict
from lightning_tricks.callbacks.stopping._keeper import BestKeeper
from lightning_tricks.callbacks.stopping._new_values import FreshValues, complain_if_missing
from lightning_tricks.callbacks.stopping._stop_reason import describe_end

Mode = Literal["auto", "min", "max"]


class EarlyStopping(lightning_callbacks.EarlyStopping):
    """Stop training when a metric no longer improves, and put the best weights back.

    Every new value of the metric counts once, wherever it is logged; a value that merely still stands in
    ``trainer.callback_metrics`` never counts. However the run ends (early, at its limit, by an exception, by Ctrl-C,
    killed and resumed), the module ends with the weights and buffers that earned the best value.

    Args:
        monitor: name of the logged metric. With several names the first one decides which weights are best.
        min_delta: what counts as an improvement: more than this much, at least 0. Any gain makes the weights the best.
        patience: how long to go on without improvement, in ``unit``, at least 0. As in Lightning, 0 and 1 both stop at
            the first check without improvement.
        verbose: say every improvement.
        mode: whether smaller or larger is better; ``"auto"`` tells by the name. A mapping for several metrics.
        strict: a metric that was never logged is an error after the first epoch with validation; otherwise a warning.
        check_finite: Lightning's word for ``nan="stop"`` (True) and ``nan="count"`` (False); None: as ``nan`` says.
        stopping_threshold: stop as soon as the metric is better than this.
        divergence_threshold: stop as soon as the metric is worse than this.
        check_on_train_epoch_end: True looks at the end of training epochs only, False after validation only; None
            counts every new value, wherever it was logged.
        log_rank_zero_only: as in Lightning; what this callback says is said once, on rank zero, in either case.
        unit: ``"checks"`` (new values of the metric), ``"epochs"``, ``"steps"`` (of the optimizer) or ``"minutes"``.
        min_delta_mode: ``"absolute"``, or ``"relative"`` to the size of the value to beat.
        start_from: values up to this position (in ``unit``) are warm-up: neither counted nor ever the best.
        baseline: value to beat from the start.
        require: with several metrics, whether ``"all"`` of them or ``"any"`` must have run out of patience.
        smooth: wait on an ``"ema"`` or running ``"median"`` of the metric; the best weights follow the raw value.
        smooth_window: number of values for ``smooth``.
        nan: what a value that is not finite does: ``"stop"``, ``"count"`` (as a miss), ``"ignore"`` (as if it never
            came) or ``"restore"`` (as a miss, and training goes on from the best weights).
        stop: False trains to the end and only chooses the best weights.
        restore_best: put the best weights back at the end.
        restore_optimizer: put the optimizers' memory of that moment back too.
        keep: where the best weights wait: ``"cpu"``, ``"device"``, or ``"disk"`` (a file, see ``dirpath``).
        dirpath: folder for ``keep="disk"``; ``default_root_dir/best_weights`` if not given.
        after_lr_drop: ``"renew"`` gives the run a fresh patience when a :class:`ReduceLROnPlateau` beside it lowers
            the learning rate; ``"ignore"`` does not.

    Attributes:
        reason: Lightning's ``EarlyStoppingReason``.
        stopping_reason_message: why this callback stopped the run, as in Lightning None while it did not.
        message: why training ended and which weights the module has, in one sentence.
        best_score: the best value, a 0-d tensor.
        best_epoch: the 0-based epoch in which it was earned, -1 before the first value.
        best_step: optimizer steps taken by then, -1 before the first value.
        wait_count: units since the last improvement.

    Raises:
        UserInputError: for an argument out of its range.

    Example:
        >>> import lightning.pytorch as pl, lightning_tricks as lt
        >>> stopping = lt.EarlyStopping("val_loss", patience=3)
        >>> trainer = pl.Trainer(max_epochs=100, callbacks=[stopping], logger=False, accelerator="cpu")
        >>> stopping.monitor, stopping.mode, stopping.reason.name
        ('val_loss', 'min', 'NOT_STOPPED')
    """

    @accepts_old_names("EarlyStopping")
    def __init__(
        self,
        monitor: str | Sequence[str],
        min_delta: float = 0.0,
        patience: float = 3,
        verbose: bool = False,
        mode: Mode | Mapping[str, Mode] = "auto",
        strict: bool = True,
        check_finite: bool | None = None,
        stopping_threshold: float | None = None,
        divergence_threshold: float | None = None,
        check_on_train_epoch_end: bool | None = None,
        log_rank_zero_only: bool = True,
        *,
        unit: Unit = "checks",
        min_delta_mode: Margin = "absolute",
        start_from: float = 0,
        baseline: float | None = None,
        require: Literal["all", "any"] = "all",
        smooth: Smooth | None = None,
        smooth_window: int = 5,
        nan: NanPolicy = "stop",
        stop: bool = True,
        restore_best: bool = True,
        restore_optimizer: bool = False,
        keep: Keep = "cpu",
        dirpath: str | None = None,
        after_lr_drop: AfterDrop = "renew",
    ) -> None:
        monitors = (monitor,) if isinstance(monitor, str) else tuple(monitor)
        if not monitors or not all(isinstance(name, str) and name for name in monitors):
            raise UserInputError(f"monitor must be the name of a metric, or several, but got {monitor!r}.")
        nan = _policy(nan, check_finite)
        modes = dict(mode) if isinstance(mode, Mapping) else dict.fromkeys(monitors, mode)
        checked = {name: check_choice("mode", modes.get(name, "auto"), ["auto", "min", "max"]) for name in monitors}
        self.decision = StoppingDecision(
            monitors,
            mode={name: infer_mode(name, given) for name, given in checked.items()},
            patience=patience,
            unit=unit,
            min_delta=min_delta,
            min_delta_mode=min_delta_mode,
            start_from=start_from,
            baseline=baseline,
            stopping_threshold=stopping_threshold,
            divergence_threshold=divergence_threshold,
            require=require,
            smooth=smooth,
            smooth_window=smooth_window,
            nan=nan,
            after_lr_drop=after_lr_drop,
            stop=stop,
        )
        super().__init__(
            monitor=monitors[0],
            patience=patience,  # type: ignore[arg-type]  # Lightning counts checks only
            verbose=verbose,
            mode=self.decision.first.mode,
            strict=strict,
            check_finite=nan == "stop",
            stopping_threshold=stopping_threshold,
            divergence_threshold=divergence_threshold,
            check_on_train_epoch_end=check_on_train_epoch_end,
            log_rank_zero_only=log_rank_zero_only,
        )
        self.min_delta = min_delta  # Lightning's constructor negates it
        # Lightning asks for the key at every hook of every step
        self._state_key = self._generate_state_key(monitor=self.monitor, mode=self.mode)
        self.monitors, self.stop, self.restore_best, self.nan = monitors, stop, restore_best, nan
        self.unit, self.require, self.after_lr_drop = unit, require, after_lr_drop
        self.start_from, self.min_delta_mode, self.restore_optimizer = start_from, min_delta_mode, restore_optimizer
        self.keep, self.dirpath, self.check_on_train_epoch_end = keep, dirpath, check_on_train_epoch_end
        self._keeper = BestKeeper(
            "EarlyStopping",
            f"{self.state_key}.best",
            keep=keep,
            hold=restore_best or nan == "restore",
            optimizer=restore_optimizer,
            folder=dirpath,
        )
        self.reset()

    @property
    def state_key(self) -> str:
        """Tell callbacks of this class apart in a checkpoint, by what they monitor."""
        return self._state_key

    @property
    def reason(self) -> EarlyStoppingReason:
        """Why this callback asked to stop."""
        return self.stopping_reason

    @property
    def rules(self) -> dict[str, Improvement]:
        """How each metric is followed, by its name."""
        return self.decision.rules

    @property
    def message(self) -> str | None:
        """Why training ended and which weights the module has; None before it ended."""
        return self._message

    @property
    def best_epoch(self) -> int:
        """The 0-based epoch in which the best value was earned; -1 before the first value."""
        return -1 if self._keeper.best is None else self._keeper.best.epoch

    @property
    def best_step(self) -> int:
        """Optimizer steps taken when the best value was earned; -1 before the first value."""
        return -1 if self._keeper.best is None else self._keeper.best.step

    def reset(self) -> None:
        """Forget everything seen, as at the start of each fit."""
        self.decision.reset()
        self._keeper.reset()
        self._fresh = FreshValues(self.monitors)
        self.stop_request = StopRequest()
        self._complained: set[str] = set()
        self._resumed_stopped = False
        self._adopted = False
        self._minutes = 0.0
        self._clock_started: float | None = None
        self._finished = False
        self._validated = False
        self.wait_count = 0
        self.stopped_epoch = 0
        self.stopping_reason = EarlyStoppingReason.NOT_STOPPED
        self.stopping_reason_message = None
        self._message: str | None = None
        self._show_best()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Start afresh; a checkpoint, if any, is loaded after this."""
        if stage != TrainerFn.FITTING:
            return
        averaging = (
            cb for cb in callbacks_of(trainer) if isinstance(cb, lightning_callbacks.StochasticWeightAveraging)
        )
        if self.restore_best and any(averaging):
            raise UserInputError(
                "EarlyStopping(restore_best=True) and StochasticWeightAveraging both decide the final weights, and "
                "validation never sees the average of the latter. Use lightning's WeightAveraging, or "
                "restore_best=False."
            )
        self.reset()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock; stay stopped if the resumed run had stopped."""
        self._keeper.check(trainer, pl_module)
        self._clock_started = time.monotonic()
        if self._adopted and self.unit in ("epochs", "steps"):  # Lightning counts checks: patience starts here
            for rule in self.rules.values():
                rule.position = trainer.current_epoch if self.unit == "epochs" else trainer.global_step
                rule.renew()
        if not self._resumed_stopped:
            return
        self._resumed_stopped = False
        if self.decision.reason != EarlyStoppingReason.NOT_STOPPED:
            rank_zero_info(f"EarlyStopping: the resumed run had already stopped and stays so. {self.message}")
            self.stop_request.ask(trainer)
        else:
            rank_zero_info("EarlyStopping: the resumed run had stopped; with the new settings it goes on.")
            self._withdraw(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note what was logged before, to know afterwards what is new."""
        if not self._should_skip_check(trainer):
            self._fresh.validation_starts(trainer)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Note the weights that are validated; a schedule-free optimizer trains with others."""
        if trainer.state.fn == TrainerFn.FITTING:
            self._keeper.validation_batch_starts(trainer, pl_module, batch_idx, dataloader_idx)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count what this validation logged; after the sanity check, look for misspelt names."""
        if trainer.sanity_checking and self.strict:
            for name in self.monitors:
                check_monitor_early(trainer, name, who="EarlyStopping")
        if self._should_skip_check(trainer):
            return
        self._validated = True
        for plateau in self._plateaus(trainer):  # they judge first, whatever the order of the callbacks
            plateau.observe(trainer, pl_module, "validation")
        if self.check_on_train_epoch_end:
            return
        values, minutes = self._fresh.after_validation(trainer, self._elapsed())
        self._check(trainer, pl_module, values, minutes, validated=True)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count what training logged."""
        for plateau in self._plateaus(trainer):
            plateau.observe(trainer, pl_module, "epoch end")
        if self.check_on_train_epoch_end is not False:
            values, minutes = self._fresh.after_training(trainer, self._elapsed())
            self._check(trainer, pl_module, values, minutes, validated=False)
        if self._validated or not trainer.enable_validation:
            self._complain_about_missing(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the best weights back and say why training ended."""
        self._finish(trainer, pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Do the same where Lightning skipped the training loop (a resumed run that was at its end)."""
        self._finish(trainer, pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Put the best weights back; no rank waits for another one here."""
        if trainer.state.fn == TrainerFn.FITTING:
            self._finish(trainer, pl_module, interrupted_by=type(exception).__name__)

    def state_dict(self) -> dict[str, Any]:
        """Return everything seen, as plain numbers, under Lightning's own keys too: its class can go on from here."""
        bar = self.rules[self.monitor].reference
        worst = math.inf if self.mode == "min" else -math.inf
        return {
            # Lightning compares with the value to beat; 32 bits, which every device has
            "best_score": torch.tensor(worst if bar is None else bar, dtype=torch.float32),
            "wait_count": int(self.rules[self.monitor].wait),
            "patience": self.patience,
            "stopping_reason": self.stopping_reason.value,
            "stopping_reason_message": self.stopping_reason_message,
            **self.decision.state_dict(),
            "settings": self._settings(),
            "reason": self.stopping_reason.value,
            "message": self._message,
            "stopped_epoch": self.stopped_epoch,
            "minutes": self._elapsed(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint; what the user newly asked for beats what was saved."""
        if "rules" not in state_dict:
            self._take_over(state_dict)
            return
        self.decision.load_state_dict(state_dict)
        if self._keeper.hold and not self._keeper.has_weights:
            self.rules[self.monitor].best = None
        self.stopping_reason = EarlyStoppingReason(state_dict["reason"])
        self._resumed_stopped = self.stopping_reason != EarlyStoppingReason.NOT_STOPPED
        self._message = state_dict["message"]
        self.stopping_reason_message = self._message if self._resumed_stopped else None
        self.stopped_epoch, self._minutes = state_dict["stopped_epoch"], state_dict["minutes"]
        self._show_best()
        report_changes("EarlyStopping", state_dict["settings"], self._settings())

    def _take_over(self, state_dict: dict[str, Any]) -> None:
        """Go on from what Lightning's own class saved: the value to beat and the checks without improvement."""
        if not {"wait_count", "best_score"} <= state_dict.keys():
            warn_once("EarlyStopping: the checkpoint was written by another class; its state is not taken over.")
            return
        score = float(state_dict["best_score"])
        self.decision.adopt(score if math.isfinite(score) else None, int(state_dict["wait_count"]))
        self._adopted = True
        rank_zero_info(
            "EarlyStopping goes on from a checkpoint of Lightning's EarlyStopping. The value to beat is "
            f"{score:.6g}; the weights that earned it are not in the checkpoint: the best weights are looked for anew."
        )

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Save the best weights beside the last ones."""
        self._keeper.save(trainer, pl_module, checkpoint)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take the best weights out of the checkpoint, unless it is loaded for a validation or test."""
        if resumes(self, trainer, checkpoint):
            self._keeper.load(pl_module, checkpoint)

    def _check(
        self,
        trainer: Trainer,
        module: LightningModule,
        values: Sequence[float | None],
        minutes: float,
        *,
        validated: bool,
    ) -> None:
        if is_dry_run(trainer) or all(value is None for value in values):
            return
        drops = sum(len(plateau.reductions) for plateau in self._plateaus(trainer))
        named = dict(zip(self.monitors, values, strict=True))
        verdict = self.decision.update(named, self._position(trainer, minutes), drops=drops)
        value = named[self.monitor]
        if verdict is not None and value is not None:
            self._follow_best(trainer, module, value, verdict, validated)
        self._decide(trainer)

    @staticmethod
    def _plateaus(trainer: Trainer) -> list[ReduceLROnPlateau]:
        return [callback for callback in callbacks_of(trainer) if isinstance(callback, ReduceLROnPlateau)]

    def _follow_best(
        self, trainer: Trainer, module: LightningModule, value: float, verdict: Verdict, validated: bool
    ) -> None:
        if verdict.new_best:
            if self._keeper.take(trainer, module, value, validated=validated):
                self._show_best()
                if self.verbose:
                    rank_zero_info(f"EarlyStopping: {self.monitor} = {value:.6g} is the best so far.")
            else:
                self.rules[self.monitor].best = None if self._keeper.best is None else self._keeper.best.score
        elif not verdict.finite and self.nan == "restore" and self._keeper.put_back(trainer, module):
            rank_zero_info(f"EarlyStopping: {self.monitor} = {value}: back to the weights of step {self.best_step}.")

    def _decide(self, trainer: Trainer) -> None:
        reason = self.decision.reason
        self.wait_count = int(self.decision.first.wait)
        if not self.stop:
            return
        if reason == EarlyStoppingReason.NOT_STOPPED:
            self._withdraw(trainer)
        elif reason != self.stopping_reason:
            self.stopping_reason, self.stopped_epoch = reason, trainer.current_epoch
            self.stopping_reason_message = self._message = self.decision.explain(reason)
            self.stop_request.ask(trainer)

    def _withdraw(self, trainer: Trainer) -> None:
        """Take the wish to stop back: ``min_epochs`` held the run, and it has recovered."""
        self.stop_request.withdraw(trainer)
        self.stopping_reason = EarlyStoppingReason.NOT_STOPPED
        self.stopping_reason_message = self._message = None
        self.stopped_epoch = 0

    def _finish(self, trainer: Trainer, module: LightningModule, interrupted_by: str | None = None) -> None:
        if self._finished or is_dry_run(trainer):
            return
        self._finished = True
        self._minutes, self._clock_started = self._elapsed(), None
        why = (
            self.decision.explain(self.stopping_reason)
            if interrupted_by is None
            else f"Training was interrupted by {interrupted_by}."
        )
        restored = self.restore_best and self._put_back(trainer, module, after_exception=interrupted_by is not None)
        best, length = self._keeper.best, {"epochs": trainer.current_epoch, "steps": trainer.global_step}
        end = describe_end(self.monitor, best, restored=restored, **length)
        self._message = f"{why} {end}"
        if self.stopping_reason != EarlyStoppingReason.NOT_STOPPED:
            self.stopping_reason_message = self._message
        rank_zero_info(f"EarlyStopping: {self.message}")
        if best is not None:
            numbers = {"best_score": best.score, "best_epoch": best.epoch, "best_step": best.step}
            numbers["reason"] = self.stopping_reason.value
            log_metrics(trainer, {f"early_stopping/{name}": float(number) for name, number in numbers.items()})
        log_summary(trainer, self._summary())
        log_text(trainer, "early_stopping/message", self._message)

    def _summary(self) -> dict[str, str | int | float]:
        """Return what the run came to, for tables of many runs."""
        said: dict[str, str | int | float] = {"stopped_by": self.stopping_reason.name.lower()}
        said["why"] = self._message or ""
        if self._keeper.best is not None:
            said |= {f"best_{self.monitor}": self._keeper.best.score, "best_epoch": self._keeper.best.epoch}
        return {f"early_stopping/{name}": value for name, value in said.items()}

    def _put_back(self, trainer: Trainer, module: LightningModule, *, after_exception: bool) -> bool:
        if not after_exception:
            return self._keeper.put_back(trainer, module, for_good=True)
        try:
            return self._keeper.put_back_after_exception(trainer, module)
        except Exception as error:  # the user's exception is what matters
            warn_once(f"EarlyStopping could not put the best weights back: {error}.")
            return False

    def _position(self, trainer: Trainer, minutes: float) -> float | None:
        positions = {"epochs": trainer.current_epoch + 1, "steps": trainer.global_step, "minutes": minutes}
        return positions.get(self.unit)

    def _elapsed(self) -> float:
        running = 0.0 if self._clock_started is None else (time.monotonic() - self._clock_started) / 60
        return self._minutes + running

    def _show_best(self) -> None:
        best = self._keeper.best
        worst = math.inf if self.mode == "min" else -math.inf
        self.best_score = torch.tensor(worst if best is None else best.score, dtype=torch.float64)

    def _settings(self) -> dict[str, Any]:
        names = ["patience", "unit", "min_delta", "min_delta_mode", "start_from", "stopping_threshold"]
        names += ["divergence_threshold", "require", "nan", "stop"]
        return {name: getattr(self, name) for name in names}

    def _complain_about_missing(self, trainer: Trainer) -> None:
        for name in sorted(set(self.monitors) - self._fresh.known - self._complained):
            self._complained.add(name)
            complain_if_missing(trainer, name, who="EarlyStopping", strict=self.strict)


def _policy(nan: NanPolicy, check_finite: bool | None) -> NanPolicy:
    """Return what a value that is not finite does, said in our word, in Lightning's, or in both."""
    if check_finite is False and nan == "stop":
        return "count"
    if check_finite and nan != "stop":
        raise UserInputError(f"check_finite=True means nan='stop', but got {nan=} as well. Give one of the two.")
    return nan
