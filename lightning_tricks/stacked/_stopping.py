"""When one net of a stack stops and when its learning rate falls: its callbacks' own rules, without a Trainer."""

from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch import Callback
from lightning.pytorch import callbacks as lightning_callbacks
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from lightning.pytorch.utilities import rank_zero_info

from lightning_tricks._base import UserInputError
from lightning_tricks.callbacks import (
    ActivationMonitor,
    EarlyStopping,
    ExactResume,
    NormMonitor,
    ReduceLROnPlateau,
    Reduction,
    WeightInit,
)
from lightning_tricks.stacked._optimizer import Group

# Options of a callback that a stack cannot follow: name -> (the values that it can follow, why not the others). Every
# other option is a matter of the shared decision (and of the reducer), or said here to be followed.
REFUSED: dict[type[Callback], dict[str, tuple[tuple[Any, ...], str]]] = {
    EarlyStopping: {
        "unit": (("checks", "epochs", "steps"), "the nets of a stack share the time"),
        "nan": (("stop", "count", "ignore"), "a stack cannot go back to earlier weights in the middle of its run"),
        "restore_optimizer": ((False,), "a stack puts weights back, not the optimizers' memory"),
        "keep": (("cpu", "device"), "a stack keeps the best weights of its nets in memory"),
        "dirpath": ((None,), "a stack keeps the best weights of its nets in memory"),
        "check_on_train_epoch_end": ((None, False), "a stack judges its nets after each validation"),
    },
    ReduceLROnPlateau: {
        "restore_best": ((False,), "a stack cannot go back to earlier weights in the middle of its run"),
        "restore_optimizer": ((False,), "a stack cannot go back to earlier weights in the middle of its run"),
        "keep": (("cpu", "device"), "a stack cannot go back to earlier weights in the middle of its run"),
        "dirpath": ((None,), "a stack cannot go back to earlier weights in the middle of its run"),
    },
}

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
            plateau.reset()
        for stopping in self.stoppings:
            stopping.reset()
        self._check(monitor)
        self.restores = any(stopping.restore_best for stopping in self.stoppings)
        self.message: str | None = None

    def _check(self, monitor: str) -> None:
        for callback in (*self.plateaus, *self.stoppings):
            _refuse(callback)
        for stopping in self.stoppings:
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
            "stoppings": [stopping.decision.state_dict() for stopping in self.stoppings],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what :meth:`state_dict` returned."""
        for plateau, kept in zip(self.plateaus, state["plateaus"], strict=True):
            plateau.load_state_dict(kept)
        for stopping, kept in zip(self.stoppings, state["stoppings"], strict=True):
            stopping.decision.load_state_dict(kept)


def _refuse(callback: Callback) -> None:
    kind = next(kind for kind in REFUSED if isinstance(callback, kind))
    for name, (followed, why) in REFUSED[kind].items():
        value = getattr(callback, name)
        if value not in followed:
            raise UserInputError(
                f"{kind.__name__}({name}={value!r}) cannot be used for one net of a stack: {why}. Leave {name} out, or "
                "train this model by itself."
            )


def _judge_plateau(
    plateau: ReduceLROnPlateau, value: float, groups: Sequence[Group], epoch: int, step: int
) -> tuple[str | None, bool]:
    rates = [(group.knobs["lr"], plateau.reducer.lower(group.knobs["lr"], group.name)) for group in groups]
    at_floor = all(old == new for old, new in rates)
    _, action, why = plateau.decision.judge(value, reductions=len(plateau.reductions), at_floor=lambda: at_floor)
    if action != "reduce":
        return (why if action == "stop" else None), False
    for group, (_, new) in zip(groups, rates, strict=True):
        group.knobs["lr"] = new
    changes = [change for change in rates if change[0] != change[1]]
    if changes:
        plateau.reductions.append(Reduction(epoch, step, *max(changes)))
    return None, bool(changes)


def _judge_stopping(
    stopping: EarlyStopping, values: Mapping[str, float], epoch: int, step: int, drops: int
) -> str | None:
    at = {"epochs": epoch + 1, "steps": step}.get(stopping.unit)
    decision = stopping.decision
    verdict = decision.update({name: values[name] for name in stopping.monitors}, at, drops=drops)
    if stopping.verbose and verdict is not None and verdict.new_best:
        rank_zero_info(f"EarlyStopping: {stopping.monitor} = {values[stopping.monitor]:.6g} is the best so far.")
    if decision.reason == EarlyStoppingReason.NOT_STOPPED:
        return None
    stopping.stopping_reason = decision.reason
    return decision.explain(decision.reason)
