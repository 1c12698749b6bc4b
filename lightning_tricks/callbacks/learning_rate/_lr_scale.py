"""Lower learning rates so that no scheduler beside undoes it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, MultiplicativeLR

from lightning_tricks._base import warn_once

ByGroup = float | Mapping[str, float]

# Where schedulers keep learning rates that they return to: per group in the optimizer, per group in themselves (timm's
# warm-up keeps what it adds per step there), and one for all groups.
_IN_GROUP = ("initial_lr", "max_lr", "min_lr", "swa_lr")
_IN_SCHEDULER = ("base_lrs", "max_lrs", "_last_lr", "base_values")
_STEPS_IN_SCHEDULER = ("warmup_steps",)
_FOR_ALL = ("eta_min", "lr_min", "warmup_lr_init", "warmup_start_lr")


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
        mine = schedulers_of(optimizer, schedulers)
        ratios = []
        for index, group in enumerate(optimizer.param_groups):
            if not has_rate(group):
                continue
            old, new, ratio = _reduce_group(group, index, mine, reducer)
            changes.append((old, new))
            ratios.append(ratio)
        _reduce_shared(mine, ratios)
    return changes


def has_rate(group: Mapping[str, Any]) -> bool:
    """Whether a parameter group has a learning rate; ``None`` means that its optimizer finds one by itself."""
    return group.get("lr") is not None


def schedulers_of(optimizer: Optimizer, schedulers: list[Any]) -> list[Any]:
    """Return the schedulers of an optimizer, those inside others included."""
    found = [inner for scheduler in schedulers for inner in _unfold(scheduler)]
    return [scheduler for scheduler in found if getattr(scheduler, "optimizer", None) is optimizer]


def ceilings(optimizers: list[Optimizer], schedulers: list[Any]) -> list[tuple[dict[str, Any], float]]:
    """Return each parameter group with the largest learning rate that its schedule, as it stands now, should give.

    Without a schedule that is the present rate. Left out are groups of which nothing is known: under a user's function
    of the step, or with a present rate above all that the schedule keeps.
    """
    found = []
    for optimizer in optimizers:
        mine = schedulers_of(optimizer, schedulers)
        if any(isinstance(scheduler, LambdaLR | MultiplicativeLR) for scheduler in mine):
            continue
        for index, group in enumerate(optimizer.param_groups):
            if not has_rate(group):
                continue
            rates = [float(group[key]) for key in _IN_GROUP if mine and group.get(key) is not None]
            rates += [float(kept[index]) for kept in _rates(mine, _IN_SCHEDULER) if index < len(kept)]
            top = max(rates, default=float(group["lr"]))
            if float(group["lr"]) <= top * (1 + 1e-6):
                found.append((group, top))
    return found


def _reduce_group(
    group: dict[str, Any], index: int, schedulers: list[Any], reducer: Reducer
) -> tuple[float, float, float]:
    """Return the old rate, the new one, and the ratio by which the schedule was lowered."""
    old = float(group["lr"])
    if not schedulers:
        new = reducer.lower(old, group.get("name"))
        ratio = 1.0
    else:
        # A schedule moves the rate itself: the floor is for the height of the schedule, not for its present value.
        height = float(group.get("initial_lr", old))
        lowered = reducer.lower(height, group.get("name"))
        if lowered == height:
            return old, old, 1.0
        ratio = lowered / height
        new = old * ratio
        for key in _IN_GROUP:
            if group.get(key) is not None:
                group[key] = group[key] * ratio
        for rates in _rates(schedulers, _IN_SCHEDULER + _STEPS_IN_SCHEDULER):
            if index < len(rates):  # a group added later may be unknown to the scheduler
                rates[index] = rates[index] * ratio
    if isinstance(group["lr"], Tensor):
        group["lr"].fill_(new)
    else:
        group["lr"] = new
    return old, new, ratio


def _reduce_shared(schedulers: list[Any], ratios: list[float]) -> None:
    """Lower the rates that a scheduler keeps for all groups, such as the end of a cosine."""
    if set(ratios) <= {1.0}:
        return
    kept = [(scheduler, key) for scheduler in schedulers for key in _FOR_ALL if getattr(scheduler, key, None)]
    if len(set(ratios)) == 1:
        for scheduler, key in kept:
            setattr(scheduler, key, getattr(scheduler, key) * ratios[0])
    elif kept:
        names = ", ".join(sorted({f"{type(scheduler).__name__}.{key}" for scheduler, key in kept}))
        warn_once(
            f"ReduceLROnPlateau lowers the parameter groups by different factors, but {names} is one learning rate for "
            "all groups and stays as it is: the schedule may raise the rates of the lowered groups to it again."
        )


def _rates(schedulers: list[Any], keys: tuple[str, ...]) -> list[list[float]]:
    """Return the lists of learning rates that schedulers keep; one that two schedulers share only once."""
    lists = [getattr(scheduler, key, None) for scheduler in schedulers for key in keys]
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
