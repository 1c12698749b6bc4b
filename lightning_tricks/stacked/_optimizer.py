"""The optimizers of many nets as one, over one flat copy of all parameters."""

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_tricks._base import UserInputError
from lightning_tricks.stacked.optimizers import Group as Group
from lightning_tricks.stacked.optimizers import OptimizerSpec


class StackedOptimizer(Optimizer):
    """The optimizers of K nets as one, over one flat copy of all parameters.

    The parameters become views of that copy, their gradients of another one: a step is a dozen operations, however
    many parameters there are. A parameter that no gradient reached since :meth:`zero_grad`, since it is frozen or was
    not used, is left alone as by torch: no decay, no momentum, and its steps are not counted.

    Args:
        parameters: the stacked parameters ``(K, ...)`` of one type and device.
        spec: their class and hyperparameters; learning rates may be changed in its groups, followed by :meth:`refresh`.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], spec: OptimizerSpec) -> None:
        self.parameters = list(parameters)
        super().__init__([{"params": self.parameters}], {})
        kinds = {(p.dtype, p.device) for p in self.parameters}
        if len(kinds) > 1:
            raise UserInputError(f"parameters that are stacked must be of one type and device, but there are {kinds}.")
        self.spec = spec
        self.update = spec.update(spec.options)
        self.steps = [0] * len(self.parameters)
        self._reached: set[int] = set()
        for i, parameter in enumerate(self.parameters):
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(partial(self._note, i))  # type: ignore[no-untyped-call]
        self.flat, self.grads = self._gathered([p.data for p in self.parameters]), torch.empty(0)
        self.memory = {name: torch.zeros_like(self.flat) for name in spec.update.memory}
        self._bind()

    def _note(self, number: int, parameter: Tensor) -> None:
        self._reached.add(number)

    def _gathered(self, tensors: Sequence[Tensor]) -> Tensor:
        return torch.cat([tensor.reshape(-1) for tensor in tensors])

    def _bind(self) -> None:
        """Make parameters and gradients views of the flat copies; find out whose each element is."""
        self.grads = torch.zeros_like(self.flat)
        nets, count, device = len(self.spec.groups), len(self.parameters), self.flat.device
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
        for name in self.spec.update.hyperparameters:
            table = []
            for groups in self.spec.groups:
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
        nets, count = len(self.spec.groups), len(self.parameters)
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
        self.update.step(self)
        for flat, place, before in still:
            flat[place] = before
        return loss

    def _unreached(self) -> list[tuple[Tensor, slice, Tensor]]:
        """Return what a step must not change: in which flat copy, where, and what is there."""
        places = [place for i, place in enumerate(self._places) if i not in self._reached]
        return [(flat, place, flat[place].clone()) for place in places for flat in (self.flat, *self.memory.values())]

    def value(self, name: str) -> Tensor | float:
        """Return a hyperparameter: one number per element, or one for all if nothing differs."""
        return self._wide[name]

    def bias_correction(self, name: str) -> Tensor | float:
        """Return ``1 - beta ** t``; a parameter that never moved counts as if it had, since its step is undone."""
        beta = self._wide[name]
        steps = [max(1, number) for number in self.steps]
        if isinstance(beta, Tensor):
            return self._spread(1 - self._tables[name] ** torch.tensor(steps))
        moved = {steps[i] for i in self._reached}
        if len(moved) <= 1:
            return float(1 - beta ** max(moved, default=1))
        return self._spread((1 - beta ** torch.tensor(steps, dtype=torch.float64)).expand(len(self.spec.groups), -1))

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
        self.spec.groups = [self.spec.groups[row] for row in rows]
        self._bind()
        self.grads.copy_(self._gathered(grads))

    def state_dict(self) -> dict[str, Any]:
        """Return the memory and the hyperparameters, as tensors and numbers."""
        groups = [[{"members": g.members, "knobs": g.knobs, "name": g.name} for g in net] for net in self.spec.groups]
        return {"steps": list(self.steps), "memory": dict(self.memory), "groups": groups}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Put back what :meth:`state_dict` returned, for as many nets as there were."""
        self.steps = list(state_dict["steps"])
        for name, tensor in self.memory.items():
            tensor.copy_(state_dict["memory"][name])
        self.spec.groups = [[Group(**group) for group in net] for net in state_dict["groups"]]
        self.refresh()
