"""Lower learning rates so that no scheduler beside undoes it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

ByGroup = float | Mapping[str, float]

# Where schedulers keep learning rates that they return to: per group in the optimizer, and per group in themselves.
_IN_GROUP = ("initial_lr", "max_lr", "min_lr")
_IN_SCHEDULER = ("base_lrs", "max_lrs", "_last_lr")


@dataclass(frozen=True)
class Reducer:
    """How far one reduction goes.

    Args:
        factor: what to multiply learning rates with; by name of the parameter group to leave other groups alone.
        min_lr: floor; by name of the parameter group, 0 for other groups.
        eps: smaller changes are not made.
    """

    factor: ByGroup
    min_lr: ByGroup
    eps: float

    def lower(self, lr: float, name: str | None = None) -> float:
        """Return the learning rate after a reduction; the same one if nothing changes."""
        factor = _of_group(self.factor, name, 1.0)
        lowered = max(lr * factor, _of_group(self.min_lr, name, 0.0))
        return lowered if lr - lowered > self.eps else lr


def reduce_all(optimizers: list[Optimizer], schedulers: list[Any], reducer: Reducer) -> list[tuple[float, float]]:
    """Lower every parameter group once.

    Returns:
        (old, new) of every group in order of optimizer and group; equal where nothing changed.
    """
    changes = []
    for optimizer in optimizers:
        mine = [s for scheduler in schedulers for s in _unfold(scheduler) if s.optimizer is optimizer]
        for index, group in enumerate(optimizer.param_groups):
            changes.append(_reduce_group(group, index, mine, reducer))
    return changes


def _reduce_group(group: dict[str, Any], index: int, schedulers: list[Any], reducer: Reducer) -> tuple[float, float]:
    old = float(group["lr"])
    if not schedulers:
        new = reducer.lower(old, group.get("name"))
    else:
        # A schedule moves the rate itself: the floor is for the height of the schedule, not for its present value.
        height = float(group.get("initial_lr", old))
        lowered = reducer.lower(height, group.get("name"))
        if lowered == height:
            return old, old
        ratio = lowered / height
        new = old * ratio
        for key in _IN_GROUP:
            if key in group:
                group[key] = group[key] * ratio
        for rates in _rates(schedulers):
            if index < len(rates):  # a group added later may be unknown to the scheduler
                rates[index] = rates[index] * ratio
    if isinstance(group["lr"], Tensor):
        group["lr"].fill_(new)
    else:
        group["lr"] = new
    return old, new


def _rates(schedulers: list[Any]) -> list[list[float]]:
    """Return the lists of learning rates that schedulers keep; one that two schedulers share only once."""
    lists = [getattr(scheduler, key, None) for scheduler in schedulers for key in _IN_SCHEDULER]
    return list({id(rates): rates for rates in lists if isinstance(rates, list)}.values())


def _unfold(scheduler: Any) -> Iterator[Any]:
    """Yield a scheduler and, of one that chains others, those inside."""
    yield scheduler
    for inner in getattr(scheduler, "_schedulers", ()):
        yield from _unfold(inner)


def _of_group(value: ByGroup, name: str | None, default: float) -> float:
    if isinstance(value, Mapping):
        return value.get(name, default) if name is not None else default
    return value
