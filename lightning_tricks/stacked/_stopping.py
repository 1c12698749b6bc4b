"""When one net of a stack stops and when its learning rate falls: its callbacks' own rules, without a Trainer."""

from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch import Callback
from lightning.pytorch import callbacks as lightning_callbacks
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason

from lightning_tricks._base import UserInputError
from lightning_tricks.callbacks import (
    ActivationMonitor,
    EarlyStopping,
    ExactResume,
    NormMonitor,
    ReduceLROnPlateau,
    WeightInit,
)
from lightning_tricks.stacked._optimizer import Group

# They only watch, or do what a stack does anyway.
_LEFT_OUT = (
    ActivationMonitor,
    ExactResume,
    NormMonitor,
    lightning_callbacks.Checkpoint,
    lightning_callbacks.DeviceStatsMonitor,
    lightning_callbacks.LearningRateMonitor,
    lightning_callbacks.ModelSummary,
    lightning_callbacks.ProgressBar,
)


class Rules:
    """What the callbacks of one net decide after each validation.

    Args:
        callbacks: made for this net alone: :class:`~lightning_tricks.EarlyStopping`,
            :class:`~lightning_tricks.ReduceLROnPlateau` and :class:`~lightning_tricks.WeightInit`. Monitors of this
            package, progress bars and checkpoints are left out.
        monitor: the metric of the whole stack.

    Attributes:
        restores: whether the net ends with its best weights.
        message: why it stopped, or None.

    Raises:
        UserInputError: for other callbacks, or options that need a Trainer of its own.
    """

    def __init__(self, callbacks: Sequence[Callback], monitor: str) -> None:
        self.plateaus = [c for c in callbacks if isinstance(c, ReduceLROnPlateau)]
        self.stoppings = [c for c in callbacks if isinstance(c, EarlyStopping)]
        self.inits = [c for c in callbacks if isinstance(c, WeightInit)]
        for callback in callbacks:
            if callback not in [*self.plateaus, *self.stoppings, *self.inits] and not isinstance(callback, _LEFT_OUT):
                raise UserInputError(
                    f"the callback {type(callback).__name__} needs a Trainer for each model, which a stack has not. "
                    "EarlyStopping, ReduceLROnPlateau and WeightInit of this package can be used."
                )
        for plateau in self.plateaus:
            plateau._reset()
        for stopping in self.stoppings:
            stopping._reset()
        self._check(monitor)
        self.restores = any(stopping.restore_best for stopping in self.stoppings)
        self.message: str | None = None

    def _check(self, monitor: str) -> None:
        for plateau in self.plateaus:
            if plateau.restore_best:
                raise UserInputError("ReduceLROnPlateau(restore_best=True) cannot be used for one net of a stack.")
        for stopping in self.stoppings:
            if stopping.unit == "minutes":
                raise UserInputError(
                    "EarlyStopping(unit='minutes') means nothing in a stack, whose nets share the time."
                )
            if stopping.nan == "restore":
                raise UserInputError("EarlyStopping cannot go back to earlier weights in the middle of a stack's run.")
            if stopping.restore_best and (stopping.monitor != monitor or stopping.start_from > 0):
                raise UserInputError(
                    f"a stack keeps the weights with the best {monitor!r}, but EarlyStopping asks for those with the "
                    f"best {stopping.monitor!r} after {stopping.start_from} {stopping.unit}. Give restore_best=False."
                )

    @property
    def monitors(self) -> set[str]:
        """The metrics that are looked at."""
        return {p.monitor for p in self.plateaus} | {name for s in self.stoppings for name in s.monitors}

    def judge(
        self, values: Mapping[str, float], groups: Sequence[Group], *, epoch: int, step: int
    ) -> tuple[bool, bool]:
        """Take one validation's values; lower learning rates in ``groups`` where it is time.

        Returns:
            Whether the net is to stop, and whether a learning rate changed.
        """
        reasons, changed = [], False
        for plateau in self.plateaus:  # they judge first, whatever the order of the callbacks
            reason, lowered = _judge_plateau(plateau, values[plateau.monitor], groups, epoch, step)
            changed |= lowered
            if reason:
                reasons.append(reason)
        drops = sum(len(plateau.reductions) for plateau in self.plateaus)
        judged = [_judge_stopping(stopping, values, epoch, step, drops) for stopping in self.stoppings]
        reasons += [reason for reason in judged if reason]
        self.message = reasons[0] if reasons else None
        return bool(reasons), changed

    def state_dict(self) -> dict[str, Any]:
        """Return what was seen, as plain numbers and strings."""
        return {
            "plateaus": [plateau.state_dict() for plateau in self.plateaus],
            "stoppings": [
                {
                    "rules": {name: rule.state_dict() for name, rule in stopping.rules.items()},
                    "exhausted": dict(stopping._exhausted),
                    "last": stopping._last,
                    "drops": stopping._drops_seen,
                }
                for stopping in self.stoppings
            ],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what :meth:`state_dict` returned."""
        for plateau, kept in zip(self.plateaus, state["plateaus"], strict=True):
            plateau.load_state_dict(kept)
        for stopping, kept in zip(self.stoppings, state["stoppings"], strict=True):
            for name, rule in stopping.rules.items():
                rule.load_state_dict(kept["rules"][name])
            stopping._exhausted, stopping._last, stopping._drops_seen = kept["exhausted"], kept["last"], kept["drops"]


def _judge_plateau(
    plateau: ReduceLROnPlateau, value: float, groups: Sequence[Group], epoch: int, step: int
) -> tuple[str | None, bool]:
    verdict = plateau.rule.update(value)
    if not verdict.finite and plateau.nan == "stop":
        return f"{plateau.monitor} = {value} is not a finite number.", False
    if not verdict.exhausted:
        return None, False
    rates = [(group.knobs["lr"], plateau._reducer.lower(group.knobs["lr"], group.name)) for group in groups]
    if plateau._is_over(len(plateau.reductions), at_floor=all(old == new for old, new in rates)):
        return f"{plateau.monitor} is on a plateau again, and the learning rate is not reduced any further.", False
    for group, (_, new) in zip(groups, rates, strict=True):
        group.knobs["lr"] = new
    plateau.rule.renew(cooldown=plateau._ignored_checks)
    changes = [change for change in rates if change[0] != change[1]]
    if changes:
        from lightning_tricks.callbacks import Reduction

        plateau.reductions.append(Reduction(epoch, step, *max(changes)))
    return None, bool(changes)


def _judge_stopping(
    stopping: EarlyStopping, values: Mapping[str, float], epoch: int, step: int, drops: int
) -> str | None:
    """Do what ``EarlyStopping`` does in its own check, for values that are all new."""
    at = {"epochs": epoch + 1, "steps": step}.get(stopping.unit)
    for name in stopping.monitors:
        verdict = stopping.rules[name].update(values[name], at)
        if verdict.counted:
            stopping._exhausted[name] = verdict.exhausted
    stopping._last = values[stopping.monitor]
    if drops > stopping._drops_seen and stopping.after_lr_drop == "renew":
        for name, rule in stopping.rules.items():
            rule.renew()
            stopping._exhausted[name] = False
    stopping._drops_seen = drops
    if not stopping.stop or stopping._reason_now() == EarlyStoppingReason.NOT_STOPPED:
        return None
    stopping.stopping_reason = stopping._reason_now()
    return stopping._why()
