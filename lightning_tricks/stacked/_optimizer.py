"""SGD, Adam and AdamW for a stack, every net with hyperparameters of its own."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from lightning_tricks._base import UserInputError

_KINDS: tuple[type[Optimizer], ...] = (SGD, Adam, AdamW)
# What may differ between nets and between parameters; of "betas" each for itself.
_KNOBS = {SGD: ("lr", "weight_decay", "momentum"), Adam: ("lr", "weight_decay", "beta1", "beta2", "eps")}
# What no stack does, with the only value that is understood.
_FIXED: dict[type[Optimizer], dict[str, Any]] = {
    SGD: {"dampening": 0, "maximize": False},
    Adam: {"amsgrad": False, "maximize": False, "decoupled_weight_decay": False},
    AdamW: {"amsgrad": False, "maximize": False},
}


@dataclass
class Group:
    """A parameter group of one net.

    Args:
        members: numbers of its parameters, in the order of the net's own.
        knobs: learning rate and so on.
        name: of the group, or None.
    """

    members: list[int]
    knobs: dict[str, float]
    name: str | None = None


@dataclass
class Recipe:
    """What the optimizers of K nets have in common, and the groups of each.

    Args:
        kind: the class.
        groups: per net.
        nesterov: of SGD.
    """

    kind: type[Optimizer]
    groups: list[list[Group]]
    nesterov: bool = False
    knobs: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.knobs = _KNOBS[SGD if self.kind is SGD else Adam]


def recipe_of(optimizers: Sequence[Any], nets: Sequence[nn.Module]) -> Recipe:
    """Read the optimizers that models have configured.

    Args:
        optimizers: what each model's ``configure_optimizers`` returned.
        nets: the nets whose parameters they are made for.

    Raises:
        UserInputError: for schedulers, several optimizers, other classes or options than a stack knows.
    """
    for i, optimizer in enumerate(optimizers):
        _check(optimizer, type(optimizers[0]), i)
    first = optimizers[0]
    groups = [_groups(optimizer, net) for optimizer, net in zip(optimizers, nets, strict=True)]
    flags = {bool(g.get("nesterov", False)) for optimizer in optimizers for g in optimizer.param_groups}
    if len(flags) > 1:
        raise UserInputError("optimizers that are stacked must all use Nesterov's momentum or none, but these differ.")
    return Recipe(type(first), groups, nesterov=flags.pop())


def _check(optimizer: Any, kind: type, number: int) -> None:
    if not isinstance(optimizer, Optimizer):
        raise UserInputError(
            "a stack needs configure_optimizers to return one optimizer and nothing else, but it returned "
            f"{type(optimizer).__name__}. Learning rates are lowered by the callback ReduceLROnPlateau here."
        )
    if type(optimizer) not in _KINDS:
        raise UserInputError(
            f"only SGD, Adam and AdamW can be stacked, but model {number} uses {type(optimizer).__name__}."
        )
    if type(optimizer) is not kind:
        raise UserInputError(
            f"optimizers that are stacked must be of one class, but model 0 uses {kind.__name__} and model {number} "
            f"{type(optimizer).__name__}."
        )
    for group in optimizer.param_groups:
        for name, value in _FIXED[kind].items():
            if group[name] != value:
                raise UserInputError(
                    f"a stack knows no {name}={group[name]!r} of {kind.__name__}, which must be {value}."
                )


def _groups(optimizer: Optimizer, net: nn.Module) -> list[Group]:
    number = {id(parameter): i for i, parameter in enumerate(net.parameters())}
    groups = []
    for group in optimizer.param_groups:
        if any(id(p) not in number for p in group["params"]):
            raise UserInputError(
                "the optimizer of a stacked model may only hold parameters of its net, but has others."
            )
        betas = group.get("betas", (0.0, 0.0))
        values = {**group, "beta1": betas[0], "beta2": betas[1]}
        knobs = {name: float(values[name]) for name in _KNOBS[SGD if type(optimizer) is SGD else Adam]}
        groups.append(Group([number[id(p)] for p in group["params"]], knobs, group.get("name")))
    return groups


class StackedOptimizer(Optimizer):
    """The optimizers of K nets as one, over one flat copy of all parameters.

    The parameters become views of that copy, their gradients of another one: a step is a dozen operations, however
    many parameters there are. A parameter that no gradient reached since :meth:`zero_grad`, since it is frozen or was
    not used, is left alone as by torch: no decay, no momentum, and its steps are not counted.

    Args:
        parameters: the stacked parameters ``(K, ...)`` of one type and device.
        recipe: classes and hyperparameters; learning rates may be changed in its groups, followed by :meth:`refresh`.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], recipe: Recipe) -> None:
        self.parameters = list(parameters)
        super().__init__([{"params": self.parameters}], {})
        kinds = {(p.dtype, p.device) for p in self.parameters}
        if len(kinds) > 1:
            raise UserInputError(f"parameters that are stacked must be of one type and device, but there are {kinds}.")
        self.recipe = recipe
        self.steps = [0] * len(self.parameters)
        self._reached: set[int] = set()
        for i, parameter in enumerate(self.parameters):
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(partial(self._note, i))  # type: ignore[no-untyped-call]
        names = ["moment"] if recipe.kind is SGD else ["moment", "square"]
        self.flat, self.grads = self._gathered([p.data for p in self.parameters]), torch.empty(0)
        self.memory = {name: torch.zeros_like(self.flat) for name in names}
        self._bind()

    def _note(self, number: int, parameter: Tensor) -> None:
        self._reached.add(number)

    def _gathered(self, tensors: Sequence[Tensor]) -> Tensor:
        return torch.cat([tensor.reshape(-1) for tensor in tensors])

    def _bind(self) -> None:
        """Make parameters and gradients views of the flat copies; find out whose each element is."""
        self.grads = torch.zeros_like(self.flat)
        nets, count, device = len(self.recipe.groups), len(self.parameters), self.flat.device
        sizes = [p.numel() for p in self.parameters]
        starts = [sum(sizes[:i]) for i in range(count)]
        self._places = [slice(start, start + size) for start, size in zip(starts, sizes, strict=True)]
        owners = []
        self._views: list[Tensor | None] = []
        for i, (p, place) in enumerate(zip(self.parameters, self._places, strict=True)):
            p.data = self.flat[place].view(p.shape)
            self._views.append(self.grads[place].view(p.shape) if p.requires_grad else None)
            p.grad = self._views[-1]
            each = sizes[i] // max(nets, 1)
            owners.append((torch.arange(nets, device=device) * count + i).repeat_interleave(each))
        self._owner = torch.cat(owners) if owners else torch.empty(0, dtype=torch.int64)
        self.refresh()

    def refresh(self) -> None:
        """Take over changed hyperparameters."""
        count = len(self.parameters)
        self._tables: dict[str, Tensor] = {}
        self._wide: dict[str, Tensor | float] = {}
        for name in self.recipe.knobs:
            table = []
            for groups in self.recipe.groups:
                # A parameter without a group never moves: its learning rate is 0.
                row = [0.0 if name == "lr" else groups[0].knobs[name]] * count
                table.append(row)
                for group in groups:
                    for member in group.members:
                        row[member] = group.knobs[name]
            values = {value for row in table for value in row}
            if name != "lr" and len(values) == 1:
                self._wide[name] = values.pop()
                continue
            self._tables[name] = torch.tensor(table, dtype=torch.float64)
            self._wide[name] = self._spread(self._tables[name])

    def _spread(self, table: Tensor) -> Tensor:
        """Return a value per element from one per net and parameter ``(K, n)``."""
        return table.to(self.flat.device, self.flat.dtype).flatten()[self._owner]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Set the gradients to zero; they stay where they are, or come back (Lightning sets them to None once)."""
        self.grads.zero_()
        self._reached.clear()
        for parameter, view in zip(self.parameters, self._views, strict=True):
            parameter.grad = view

    def clip(self, limit: float, *, by_value: bool) -> None:
        """Clip the gradients of every net by itself."""
        if by_value:
            self.grads.clamp_(-limit, limit)
            return
        nets, count = len(self.recipe.groups), len(self.parameters)
        net = self._owner // count
        norms = torch.zeros(nets, device=self.flat.device, dtype=self.flat.dtype)
        norms.index_add_(0, net, self.grads.square())
        factors = (limit / (norms.sqrt() + 1e-6)).clamp(max=1.0)
        self.grads.mul_(factors[net])

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Update all nets."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        still = self._unreached()
        self.steps = [steps + (i in self._reached) for i, steps in enumerate(self.steps)]
        if self.recipe.kind is SGD:
            self._sgd()
        else:
            self._adam()
        for flat, place, before in still:
            flat[place] = before
        return loss

    def _unreached(self) -> list[tuple[Tensor, slice, Tensor]]:
        """Return what a step must not change: in which flat copy, where, and what is there."""
        places = [place for i, place in enumerate(self._places) if i not in self._reached]
        return [(flat, place, flat[place].clone()) for place in places for flat in (self.flat, *self.memory.values())]

    def _sgd(self) -> None:
        lr, decay, momentum = (self._wide[name] for name in ("lr", "weight_decay", "momentum"))
        gradient = self._decayed(decay)
        if isinstance(momentum, Tensor) or momentum != 0:
            moment = self.memory["moment"].mul_(momentum).add_(gradient)
            gradient = gradient + momentum * moment if self.recipe.nesterov else moment
        self.flat.addcmul_(lr, gradient, value=-1)  # type: ignore[arg-type]

    def _adam(self) -> None:
        lr, decay, eps = (self._wide[name] for name in ("lr", "weight_decay", "eps"))
        if self.recipe.kind is AdamW:
            gradient = self.grads
            if isinstance(decay, Tensor) or decay != 0:
                self.flat.mul_(1 - lr * decay)
        else:
            gradient = self._decayed(decay)
        beta1, beta2 = self._wide["beta1"], self._wide["beta2"]
        moment, square = self.memory["moment"], self.memory["square"]
        moment.lerp_(gradient, 1 - beta1)
        if isinstance(beta2, Tensor):
            square.lerp_(gradient.square(), 1 - beta2)
        else:
            square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        first, second = self._correction("beta1"), self._correction("beta2") ** 0.5
        denominator = square.sqrt().div_(second).add_(eps)
        self.flat.addcdiv_(moment * lr, denominator * first, value=-1)

    def _correction(self, name: str) -> Tensor | float:
        """Return ``1 - beta ** t``; a parameter that never moved counts as if it had, since its step is undone."""
        beta = self._wide[name]
        steps = [max(1, number) for number in self.steps]
        if isinstance(beta, Tensor):
            return self._spread(1 - self._tables[name] ** torch.tensor(steps))
        moved = {steps[i] for i in self._reached}
        if len(moved) <= 1:
            return float(1 - beta ** max(moved, default=1))
        return self._spread((1 - beta ** torch.tensor(steps, dtype=torch.float64)).expand(len(self.recipe.groups), -1))

    def _decayed(self, decay: Tensor | float) -> Tensor:
        if isinstance(decay, Tensor):
            return self.grads.addcmul(decay, self.flat)
        return self.grads if decay == 0 else self.grads.add(self.flat, alpha=decay)

    def keep(self, rows: Sequence[int], before: int) -> None:
        """Follow the stack after it dropped all nets but these.

        Args:
            rows: numbers of the nets that stay, in rising order.
            before: how many there were.
        """
        index = torch.tensor(rows, dtype=torch.int64, device=self.flat.device)
        sizes = [p[0].numel() * before for p in self.parameters]
        for name, flat in self.memory.items():
            parts = [part.view(before, -1)[index] for part in torch.split(flat, sizes)]
            self.memory[name] = self._gathered(parts)
        grads = [part.view(before, -1)[index] for part in torch.split(self.grads, sizes)]
        self.flat = self._gathered([p.data for p in self.parameters])
        self.recipe.groups = [self.recipe.groups[row] for row in rows]
        self._bind()
        self.grads.copy_(self._gathered(grads))

    def state_dict(self) -> dict[str, Any]:
        """Return the memory and the hyperparameters, as tensors and numbers."""
        groups = [[{"members": g.members, "knobs": g.knobs, "name": g.name} for g in net] for net in self.recipe.groups]
        return {"steps": list(self.steps), "memory": dict(self.memory), "groups": groups}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Put back what :meth:`state_dict` returned, for as many nets as there were."""
        self.steps = list(state_dict["steps"])
        for name, tensor in self.memory.items():
            tensor.copy_(state_dict["memory"][name])
        self.recipe.groups = [[Group(**group) for group in net] for net in state_dict["groups"]]
        self.refresh()
