"""Measures one optimizer step at a time into a ring on the device."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import Parameter

from lightning_tricks.callbacks.norms._history import (
    BAD_GRADIENTS,
    BAD_WEIGHTS,
    CLIPPED,
    GRADIENT,
    QUANTITIES,
    UPDATE,
    WEIGHT,
    Block,
)
from lightning_tricks.callbacks.norms._measure import (
    count_nonfinite,
    local_part,
    squared_norms,
    sum_dtype,
)


@dataclass
class Record:
    """One optimizer step that is being measured."""

    step: int
    optimizer: int
    members: list[int]  # of the recorder's parameters: those of this optimizer
    sums: Tensor  # (G + 1, 6), a row of the ring; the last line holds what concerns the whole step
    known: list[tuple[int, list[int]]] = field(default_factory=list)  # quantities, and the layers that have them
    scale: Tensor | None = None  # of the loss, where the optimizer removes it itself
    copies: dict[int, Tensor] = field(default_factory=dict)
    has_gradients: bool = False
    at_update: bool = False
    updated: bool = False


class NormRecorder:
    """A ring of records over a fixed set of layers.

    Args:
        layers: name and parameters of each layer, in the order in which they are registered.
        capacity: records that fit before :meth:`drain` is due.
        world_size: number of ranks that share the parameters if they are sharded, else 1.
        measure_updates: keep a copy of the weights during a measured step, for the norm of the update.
    """

    def __init__(
        self,
        layers: Iterable[tuple[str, Sequence[Parameter]]],
        *,
        capacity: int,
        world_size: int,
        measure_updates: bool,
    ) -> None:
        pairs = [(name, list(parameters)) for name, parameters in layers]
        self.layers = [name for name, _ in pairs]
        self.sizes = [sum(p.numel() for p in parameters) for _, parameters in pairs]
        self.parameters = [p for _, parameters in pairs for p in parameters]
        self.layer_of = [i for i, (_, parameters) in enumerate(pairs) for _ in parameters]
        self.world_size = world_size
        self.measure_updates = measure_updates
        self.device = self.parameters[0].device
        self.ring = torch.zeros(capacity, len(pairs) + 1, QUANTITIES, dtype=sum_dtype(self.device), device=self.device)
        self.records: list[Record] = []
        self.watched: dict[str, int] = {}  # what watch() had found at the last drain
        self._first_bad = self.ring.new_full(
            (len(self.parameters),), math.inf
        )  # step of each first non-finite gradient
        self._places: dict[tuple[int, ...], Tensor] = {}
        self._index: dict[tuple[int, ...], tuple[Tensor, list[int]]] = {}

    @property
    def is_full(self) -> bool:
        """Whether the next record has no place."""
        return len(self.records) == len(self.ring)

    def begin(self, step: int, optimizer: int, members: list[int], scale: Tensor | None) -> Record:
        """Open the next record."""
        sums = self.ring[len(self.records)].zero_()
        record = Record(step, optimizer, members, sums, scale=scale)
        self.records.append(record)
        return record

    def measure_gradients(self, record: Record) -> None:
        """Measure the gradients as they are before clipping."""
        record.has_gradients = True
        self._measure(record, record.members, _gradient, GRADIENT, bad=BAD_GRADIENTS, scale=record.scale)

    def measure_before_update(self, record: Record, *, clipping: bool | None) -> None:
        """Measure the gradients and weights that the optimizer is about to use.

        Args:
            record: of the step.
            clipping: whether anything may have changed the gradients since :meth:`measure_gradients`; None if it may,
                but has not come to it yet.
        """
        record.at_update = True
        if clipping is False:
            record.sums[:, CLIPPED] = record.sums[:, GRADIENT]
            record.known += [(CLIPPED, layers) for quantity, layers in record.known if quantity == GRADIENT]
        elif clipping:
            self._measure(record, record.members, _gradient, CLIPPED, scale=record.scale)
        self.measure_weights(record)
        if self.measure_updates:
            trained = [i for i in record.members if self.parameters[i].grad is not None]
            record.copies = {i: self._local(self.parameters[i])[0].detach().clone() for i in trained}

    def measure_weights(self, record: Record) -> None:
        """Measure the weights as they are."""
        self._measure(record, record.members, lambda p: p, WEIGHT, bad=BAD_WEIGHTS)

    def measure_update(self, record: Record, skipped: Tensor | None) -> None:
        """Measure what the optimizer changed; ``skipped`` is 1 where it found non-finite gradients and did nothing."""
        record.updated = True
        if skipped is not None:
            record.sums[-1, 0] += skipped.to(self.device).sum()
        if record.copies:
            self._measure(record, list(record.copies), lambda p: p, UPDATE, minus=record.copies)
            record.copies = {}

    def close(self, record: Record) -> None:
        """End a record whose update never came, since the loss scaler skipped the step."""
        record.copies = {}
        if not record.at_update:
            self.measure_weights(record)

    @torch.no_grad()
    def watch(self, step: int, members: list[int]) -> None:
        """Note on the device in which layers a gradient is non-finite, if it is for the first time."""
        present = [i for i in members if self.parameters[i].grad is not None]
        if not present:
            return
        index = self._positions(tuple(present))
        gradients = [g for i in present if (g := self.parameters[i].grad) is not None]
        squares = squared_norms([self._local(gradient)[0] for gradient in gradients]).to(self._first_bad)
        at = torch.full_like(squares, step).masked_fill_(squares.isfinite(), math.inf)
        self._first_bad.index_copy_(0, index, torch.minimum(self._first_bad[index], at))

    def drain(self) -> Block | None:
        """Empty the ring: one sum over the ranks if parameters are sharded, and one transfer to the host."""
        if not self.records:
            return None
        sums = self.ring[: len(self.records)]
        if self.world_size > 1:
            torch.distributed.all_reduce(sums)
        packed = torch.cat([sums.flatten(), self._first_bad]).cpu().double()
        first_bad = packed[sums.numel() :].tolist()
        sums = packed[: sums.numel()].view(sums.shape)
        records, self.records = self.records, []
        self.watched = {}
        for layer, at in zip(self.layer_of, first_bad, strict=True):
            if at != math.inf:
                name = self.layers[layer]
                self.watched[name] = min(int(at), self.watched.get(name, int(at)))
        return Block(
            layers=list(self.layers),
            sizes=list(self.sizes),
            steps=[record.step for record in records],
            optimizers=[record.optimizer for record in records],
            skipped=[not r.updated or bool(sums[i, -1, 0] > 0) for i, r in enumerate(records)],
            sums=sums[:, :-1].clone(),
            known=torch.stack([self._known(record) for record in records]),
        )

    @torch.no_grad()
    def _measure(
        self,
        record: Record,
        members: list[int],
        of: Callable[[Parameter], Tensor | None],
        quantity: int,
        *,
        bad: int | None = None,
        scale: Tensor | None = None,
        minus: dict[int, Tensor] | None = None,
    ) -> None:
        present, tensors, weights = [], [], []
        for i in members:
            tensor = of(self.parameters[i])
            if tensor is None:
                continue
            tensor, weight = self._local(tensor)
            if minus is not None:
                tensor = _difference(tensor, minus[i])
            present.append(i)
            tensors.append(tensor)
            weights.append(weight)
        if not present:
            return
        squares = squared_norms(tensors)
        index, layers = self._layers_of(tuple(present))
        share = squares.new_tensor(weights) if self.world_size > 1 else squares.new_ones(())
        factor = share if scale is None else share / scale.to(squares) ** 2
        record.sums[:, quantity].index_add_(0, index, (squares * factor).to(self.device))
        record.known.append((quantity, layers))
        if bad is not None:
            counts = count_nonfinite(tensors, squares)
            record.sums[:, bad].index_add_(0, index, (counts * share).to(self.device))
            record.known.append((bad, layers))

    def _local(self, tensor: Tensor) -> tuple[Tensor, float]:
        return local_part(tensor, self.world_size)

    def _known(self, record: Record) -> Tensor:
        known = torch.zeros(len(self.layers), QUANTITIES, dtype=torch.bool)
        for quantity, layers in record.known:
            known[layers, quantity] = True
        return known

    def _positions(self, present: tuple[int, ...]) -> Tensor:
        if present not in self._places:
            self._places[present] = torch.tensor(present, device=self.device)
        return self._places[present]

    def _layers_of(self, present: tuple[int, ...]) -> tuple[Tensor, list[int]]:
        if present not in self._index:
            layers = [self.layer_of[i] for i in present]
            self._index[present] = (torch.tensor(layers, device=self.device), sorted(set(layers)))
        return self._index[present]


def _gradient(parameter: Parameter) -> Tensor | None:
    return parameter.grad


def _difference(after: Tensor, before: Tensor) -> Tensor:
    if before.dtype in (torch.float16, torch.bfloat16):  # the difference of neighbours would lose its last bits
        return after.float() - before.float()
    return before.sub_(after)
