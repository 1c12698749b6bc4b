"""Lower the learning rate when the metric stagnates, as a callback."""

from collections.abc import Iterable, Mapping
from copy import deepcopy
from functools import partial
from operator import eq
from typing import Any, Literal, NamedTuple

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info

from lightning_tricks._base import (
    RENAMED_ARGUMENTS,
    UserInputError,
    accepts_old_names,
    check_choice,
    check_monitor_early,
    check_range,
    infer_mode,
    warn_once,
)
from lightning_tricks.callbacks._settings import report_changes
from lightning_tricks.callbacks._stop_request import StopRequest
from lightning_tricks.callbacks._trainer import is_dry_run, resumes
from lightning_tricks.callbacks.learning_rate._decision import PlateauDecision
from lightning_tricks.callbacks.learning_rate._lr_scale import ByGroup, Reducer, ceilings, has_rate, reduce_all
from lightning_tricks.callbacks.stopping._best_weights import Keep
from lightning_tricks.callbacks.stopping._improvement import Improvement, Margin, Smooth
from lightning_tricks.callbacks.stopping._keeper import BestKeeper
from lightning_tricks.callbacks.stopping._new_values import FreshValues, complain_if_missing


class Reduction(NamedTuple):
    """One reduction: the 0-based epoch, optimizer steps taken by then, and the largest learning rate around it."""

    epoch: int
    step: int
    old_lr: float
    new_lr: float


class ReduceLROnPlateau(Callback):
    """Multiply the learning rates when a metric no longer improves.

    Nothing is needed in ``configure_optimizers``. It acts after validation, on values that this validation logged, and
    before checkpoints are written. Any scheduler may run beside it: its base learning rates are lowered too, so that
    it does not undo the reduction.

    Args:
        monitor: name of the logged metric.
        factor: what to multiply learning rates with, in (0, 1). By name of the parameter group (the key ``"name"`` of
            the optimizer's groups) to leave other groups alone.
        patience: checks without improvement that are tolerated, see ``convention``.
        cooldown: checks after a reduction that do not count, see ``convention``.
        min_lr: floor of the learning rate, at least 0; by name of the parameter group, 0 for other groups. Beside a
            scheduler it is the floor of the schedule's height.
        eps: smaller changes of a learning rate are not made.
        mode: whether smaller or larger is better; ``"auto"`` tells by the name.
        threshold: margin by which a value must be better to count.
        threshold_mode: ``"relative"`` to the size of the best value (right for negative metrics too) or ``"absolute"``.
        convention: ``"torch"``: reduce at the check after ``patience`` misses, ignore ``cooldown`` checks. ``"keras"``:
            reduce at the ``patience``-th miss, ignore ``cooldown - 1`` checks.
        start_from: the first so many checks are warm-up and do not count.
        smooth: judge an ``"ema"`` or running ``"median"`` of the metric.
        smooth_window: number of values for ``smooth``.
        nan: what a value that is not finite does: ``"count"`` (as a miss), ``"ignore"`` or ``"stop"`` training.
        restore_best: go back to the best weights at each reduction.
        restore_optimizer: to the optimizers' memory of that moment too; learning rates excepted.
        keep: where the best weights wait: ``"cpu"``, ``"device"`` or ``"disk"``.
        dirpath: folder for ``keep="disk"``; ``default_root_dir/best_weights`` if not given.
        stop_after: stop at the plateau that comes after so many reductions, or after ``"min_lr"`` is reached.
        strict: a metric that was never logged is an error in the second epoch; otherwise a warning.

    Attributes:
        reductions: what was done, a list of :class:`Reduction`.
        message: why this callback stopped the run, or None.

    Raises:
        UserInputError: for an argument out of its range.

    Reference:
        The course's advice to divide the rate by about ten when the error stagnates; torch's and Keras' classes of the
        same name.

    Example:
        >>> import lightning_tricks as lt
        >>> plateau = lt.ReduceLROnPlateau("val_loss", factor=0.5, patience=1)
        >>> plateau.simulate([1.0, 0.9, 0.9, 0.9, 0.8], lr=0.1)
        [0.1, 0.1, 0.1, 0.05, 0.05]
    """

    reductions: list[Reduction]
    message: str | None
    _stop_settings: dict[str, Any]

    @accepts_old_names("ReduceLROnPlateau")
    def __init__(
        self,
        monitor: str,
        *,
        factor: ByGroup = 0.1,
        patience: int = 10,
        cooldown: int = 0,
        min_lr: ByGroup = 0.0,
        eps: float = 1e-8,
        mode: Literal["auto", "min", "max"] = "auto",
        threshold: float = 1e-4,
        threshold_mode: Margin = "relative",
        convention: Literal["torch", "keras"] = "torch",
        start_from: int = 0,
        smooth: Smooth | None = None,
        smooth_window: int = 5,
        nan: Literal["count", "ignore", "stop"] = "count",
        restore_best: bool = False,
        restore_optimizer: bool = False,
        keep: Keep = "cpu",
        dirpath: str | None = None,
        stop_after: int | Literal["min_lr"] | None = None,
        strict: bool = True,
    ) -> None:
        if not isinstance(monitor, str) or not monitor:
            raise UserInputError(f"monitor must be the name of a metric, but got {monitor!r}.")
        _check_by_group("factor", factor, low=0, high=1, open_low=True, open_high=True)
        _check_by_group("min_lr", min_lr, low=0)
        check_range("eps", eps, low=0)
        self.monitor, self.mode = monitor, infer_mode(monitor, check_choice("mode", mode, ["auto", "min", "max"]))
        self.factor, self.min_lr, self.eps, self.patience, self.cooldown = factor, min_lr, eps, patience, cooldown
        self.threshold, self.threshold_mode, self.convention = threshold, threshold_mode, convention
        self.start_from, self.nan, self.restore_best, self.strict = start_from, nan, restore_best, strict
        self.restore_optimizer, self.keep, self.dirpath, self.stop_after = restore_optimizer, keep, dirpath, stop_after
        self.decision = PlateauDecision(
            monitor,
            mode=self.mode,
            patience=patience,
            cooldown=cooldown,
            threshold=threshold,
            threshold_mode=threshold_mode,
            convention=convention,
            start_from=start_from,
            smooth=smooth,
            smooth_window=smooth_window,
            nan=nan,
            stop_after=stop_after,
        )
        self.reducer = Reducer(factor, min_lr, eps)
        # Lightning asks for the key at every hook of every step
        self._state_key = self._generate_state_key(monitor=self.monitor, mode=self.mode)
        self._keeper = BestKeeper(
            "ReduceLROnPlateau",
            f"{self.state_key}.best",
            keep=keep,
            hold=restore_best,
            optimizer=restore_optimizer,
            folder=dirpath,
        )
        self.reset()

    @property
    def state_key(self) -> str:
        """Tell callbacks of this class apart in a checkpoint, by what they monitor."""
        return self._state_key

    @property
    def rule(self) -> Improvement:
        """How the metric is followed."""
        return self.decision.rule

    def simulate(self, values: Iterable[float], *, lr: float = 1.0) -> list[float]:
        """Return the learning rate after each value of a given curve.

        Args:
            values: what the metric would be, check by check.
            lr: the learning rate to start with.

        Raises:
            UserInputError: if ``factor`` is by parameter group, where there is no single curve.
        """
        if isinstance(self.factor, Mapping) or isinstance(self.min_lr, Mapping):
            raise UserInputError("simulate() needs one factor and one min_lr, but they were given by parameter group.")
        decision, rates = deepcopy(self.decision), []
        decision.rule.reset()
        reductions = 0
        for value in values:
            lowered = self.reducer.lower(lr)
            action = decision.judge(value, reductions=reductions, at_floor=partial(eq, lowered, lr)).action
            if action == "reduce":
                reductions += lowered < lr
                lr = lowered
            rates.append(lr)
            if action == "stop":
                break
        return rates

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Start afresh; a checkpoint, if any, is loaded after this."""
        if stage == TrainerFn.FITTING:
            self.reset()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check that there is a learning rate, and the names of the groups; stay stopped if the run had stopped."""
        self._keeper.check(trainer, pl_module)
        self._check_groups(trainer)
        if self.message is not None and self._stop_settings == self._settings():
            rank_zero_info(f"ReduceLROnPlateau: the resumed run had already stopped and stays so. {self.message}")
            self.stop_request.ask(trainer)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count what the module logged in its ``on_train_epoch_end``, which other callbacks cannot see in time."""
        self._look_whether_undone()
        self.observe(trainer, pl_module, "epoch end")
        if self._epochs_seen and self.monitor not in self._fresh.known:
            complain_if_missing(trainer, self.monitor, who="ReduceLROnPlateau", strict=self.strict)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note what was logged before, to know afterwards what is new."""
        if not trainer.sanity_checking and trainer.state.fn == TrainerFn.FITTING:
            self._fresh.validation_starts(trainer)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Note the weights that are validated; a schedule-free optimizer trains with others."""
        if trainer.state.fn == TrainerFn.FITTING:
            self._keeper.validation_batch_starts(trainer, pl_module, batch_idx, dataloader_idx)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count what this validation logged; after the sanity check, look for a misspelt name."""
        if trainer.sanity_checking and self.strict:
            check_monitor_early(trainer, self.monitor, who="ReduceLROnPlateau")
        self.observe(trainer, pl_module, "validation")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count what training logged."""
        self.observe(trainer, pl_module, "training")
        self._epochs_seen += self._validated or not trainer.enable_validation

    def observe(
        self, trainer: Trainer, module: LightningModule, where: Literal["validation", "training", "epoch end"]
    ) -> None:
        """Judge what was logged; once for each ``where``, whoever calls first.

        Args:
            trainer: the running trainer.
            module: its module.
            where: the occasion.
        """
        if trainer.sanity_checking or is_dry_run(trainer) or trainer.state.fn != TrainerFn.FITTING:
            return
        occasion = (where, trainer.fit_loop.total_batch_idx)
        if self._occasions.get(where) == occasion:
            return
        self._occasions[where] = occasion
        self._look_whether_undone()
        validated = where == "validation"
        self._validated |= validated
        take = self._fresh.after_validation if validated else self._fresh.after_training
        (value,), _ = take(trainer)
        if value is not None:
            self._judge(trainer, module, value, validated=validated)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Save the best weights, if kept, beside the last ones."""
        self._keeper.save(trainer, pl_module, checkpoint)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take the best weights out of the checkpoint, unless it is loaded for a validation or test."""
        if resumes(self, trainer, checkpoint):
            self._keeper.load(pl_module, checkpoint)

    def state_dict(self) -> dict[str, Any]:
        """Return everything seen, as plain numbers and strings. The learning rate is saved with the optimizer."""
        return {
            "rule": self.rule.state_dict(),
            "reductions": [list(reduction) for reduction in self.reductions],
            "settings": self._settings(),
            "message": self.message,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint; what the user newly asked for beats what was saved."""
        self.rule.load_state_dict(state_dict["rule"])
        if self._keeper.hold and not self._keeper.has_weights:
            self.rule.best = None
        self.reductions = [Reduction(*reduction) for reduction in state_dict["reductions"]]
        self.message = state_dict["message"]
        names = RENAMED_ARGUMENTS["ReduceLROnPlateau"]
        self._stop_settings = {names.get(name, name): value for name, value in state_dict["settings"].items()}
        report_changes("ReduceLROnPlateau", self._stop_settings, self._settings())

    def reset(self) -> None:
        """Forget everything seen, as at the start of each fit."""
        self.rule.reset()
        self._keeper.reset()
        self._fresh = FreshValues([self.monitor])
        self._occasions: dict[str, tuple[str, int]] = {}
        self._validated = False
        self._epochs_seen = 0
        self._ceilings: list[tuple[dict[str, Any], float]] = []
        self._stop_settings = {}
        self.reductions = []
        self.message = None
        self.stop_request = StopRequest()

    def _judge(self, trainer: Trainer, module: LightningModule, value: float, *, validated: bool) -> None:
        at_floor = partial(self._at_floor, trainer)
        verdict, action, why = self.decision.judge(value, reductions=len(self.reductions), at_floor=at_floor)
        if verdict.new_best and not self._keeper.take(trainer, module, value, validated=validated):
            self.rule.best = None if self._keeper.best is None else self._keeper.best.score
        if action == "stop":
            self._stop(trainer, why)
        elif action == "reduce":
            self._reduce(trainer, module, why)
        elif verdict.improved and self.stop_request.asked:  # min_epochs held the run, and it has recovered
            self.stop_request.withdraw(trainer)
            self.message = None

    def _at_floor(self, trainer: Trainer) -> bool:
        return all(
            self.reducer.lower(float(group["lr"]), group.get("name")) == float(group["lr"])
            for optimizer in trainer.optimizers
            for group in optimizer.param_groups
            if has_rate(group)
        )

    def _reduce(self, trainer: Trainer, module: LightningModule, why: str) -> None:
        if self.restore_best:
            self._keeper.put_back(trainer, module)
        schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
        changes = [
            change for change in reduce_all(trainer.optimizers, schedulers, self.reducer) if len(set(change)) > 1
        ]
        self._ceilings = ceilings(trainer.optimizers, schedulers) if changes else []
        if changes:
            old, new = max(changes)
            self.reductions.append(Reduction(trainer.current_epoch, trainer.global_step, old, new))
            rank_zero_info(
                f"ReduceLROnPlateau: {why} in epoch {trainer.current_epoch}; learning rate {old:.3g} -> {new:.3g}."
            )

    def _look_whether_undone(self) -> None:
        """Say that a rate is above all that its lowered schedule should give, once its scheduler has stepped."""
        for group, top in self._ceilings:
            if has_rate(group) and float(group["lr"]) > top * (1 + 1e-6):
                self._ceilings = []
                warn_once(
                    f"ReduceLROnPlateau lowered the learning rate to at most {top:.3g}, but it is "
                    f"{float(group['lr']):.3g} again: a scheduler, a callback or the module sets it from a value of "
                    "its own. Let only one of them move the rate, or give the optimizer one of torch's schedulers.",
                    key=f"reduction undone: {self.state_key}",
                )
                return

    def _stop(self, trainer: Trainer, message: str) -> None:
        self.message = message
        rank_zero_info(f"ReduceLROnPlateau stops the run: {message}")
        self.stop_request.ask(trainer)

    def _check_groups(self, trainer: Trainer) -> None:
        groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
        if groups and not any(map(has_rate, groups)):
            warn_once(
                "ReduceLROnPlateau has nothing to lower: every parameter group has lr=None, its optimizer finds the "
                "learning rate by itself. Give the optimizer a learning rate, or leave the callback out."
            )
        known = [group.get("name") for optimizer in trainer.optimizers for group in optimizer.param_groups]
        asked = {name for value in (self.factor, self.min_lr) if isinstance(value, Mapping) for name in value}
        if missing := sorted(asked - set(known)):
            names = ", ".join(str(name) for name in known if name) or "none has a name"
            warn_once(
                f"ReduceLROnPlateau: no parameter group is called {' or '.join(missing)} yet (now: {names}). Groups "
                'are named by the key "name" in what the optimizer is made from.'
            )

    def _settings(self) -> dict[str, Any]:
        names = ("factor", "min_lr", "eps", "patience", "cooldown", "threshold", "threshold_mode", "convention")
        settings = {name: getattr(self, name) for name in (*names, "start_from", "nan", "stop_after")}
        return {name: dict(value) if isinstance(value, Mapping) else value for name, value in settings.items()}


def _check_by_group(what: str, value: ByGroup, **limits: Any) -> None:
    for name, number in value.items() if isinstance(value, Mapping) else [("", value)]:
        check_range(f"{what}[{name!r}]" if name else what, number, **limits)
