"""What the optimizers of many models have in common, and what each has of its own."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.optim import Optimizer

from lightning_tricks._base import UserInputError
from lightning_tricks.stacked.optimizers._registry import UPDATES
from lightning_tricks.stacked.optimizers._update import Update


@dataclass
class Group:
    """A parameter group of one net.

    Args:
        members: numbers of its parameters, in the order of the net's own.
        knobs: the hyperparameters, such as the learning rate, by name.
        name: of the group, or None.
    """

    members: list[int]
    knobs: dict[str, float]
    name: str | None = None


@dataclass
class OptimizerSpec:
    """The optimizers of K nets.

    Args:
        update: how they move the parameters.
        groups: the parameter groups of each net.
        options: what all of them agree on, such as Nesterov's momentum.
    """

    update: type[Update]
    groups: list[list[Group]]
    options: dict[str, Any] = field(default_factory=dict)


def spec_of(optimizers: Sequence[Any], nets: Sequence[nn.Module]) -> OptimizerSpec:
    """Read the optimizers that models have configured.

    Args:
        optimizers: what each model's ``configure_optimizers`` returned.
        nets: the nets whose parameters they are made for.

    Raises:
        UserInputError: for schedulers, several optimizers, other classes or options than a stack knows.
    """
    for i, optimizer in enumerate(optimizers):
        _check(optimizer, type(optimizers[0]), i)
    update = UPDATES[type(optimizers[0])]
    groups = [_groups(optimizer, net, update) for optimizer, net in zip(optimizers, nets, strict=True)]
    return OptimizerSpec(update, groups, {name: _agreed(name, optimizers) for name in update.shared})


def _agreed(name: str, optimizers: Sequence[Optimizer]) -> Any:
    """Return an option that all nets share.

    Raises:
        UserInputError: if they differ in it.
    """
    agreed = optimizers[0].param_groups[0][name]
    for i, optimizer in enumerate(optimizers):
        for group in optimizer.param_groups:
            if group[name] != agreed:
                raise UserInputError(
                    f"optimizers that are stacked must all have the same {name}, but model 0 has {name}={agreed} and "
                    f"model {i} {name}={group[name]}. Train those that differ in a stack of their own."
                )
    return agreed


def _check(optimizer: Any, kind: type, number: int) -> None:
    if not isinstance(optimizer, Optimizer):
        raise UserInputError(
            "a stack needs configure_optimizers to return one optimizer and nothing else, but it returned "
            f"{type(optimizer).__name__}. Learning rates are lowered by the callback ReduceLROnPlateau here."
        )
    if type(optimizer) not in UPDATES:
        *names, last = (known.__name__ for known in UPDATES)
        raise UserInputError(
            f"only {', '.join(names)} and {last} can be stacked, but model {number} uses {type(optimizer).__name__}."
        )
    if type(optimizer) is not kind:
        raise UserInputError(
            f"optimizers that are stacked must be of one class, but model 0 uses {kind.__name__} and model {number} "
            f"{type(optimizer).__name__}."
        )
    for group in optimizer.param_groups:
        for name, value in UPDATES[type(optimizer)].fixed.items():
            if group[name] != value:
                raise UserInputError(
                    f"a stack knows no {name}={group[name]!r} of {kind.__name__}, which must be {value}."
                )


def _groups(optimizer: Optimizer, net: nn.Module, update: type[Update]) -> list[Group]:
    number = {id(parameter): i for i, parameter in enumerate(net.parameters())}
    groups = []
    for group in optimizer.param_groups:
        if any(id(p) not in number for p in group["params"]):
            raise UserInputError(
                "the optimizer of a stacked model may only hold parameters of its net, but has others."
            )
        members = [number[id(p)] for p in group["params"]]
        groups.append(Group(members, update.hyperparameters_of(group), group.get("name")))
    return groups
