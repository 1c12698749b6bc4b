"""What a norm monitor has seen so far, on the host: blocks of records, read as one table with derived columns."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_tricks.callbacks.norms._forward_order import in_forward_order

# What one record holds per layer: sums over the layer's values, so that ranks and layers simply add up.
GRADIENT, CLIPPED, WEIGHT, UPDATE, BAD_GRADIENTS, BAD_WEIGHTS = range(6)
QUANTITIES = 6

COLUMNS = (
    "step",
    "optimizer",
    "layer",
    "values",
    "weight_norm",
    "gradient_norm",
    "clipped_gradient_norm",
    "update_norm",
    "update_ratio",
    "nonfinite_gradients",
    "nonfinite_weights",
    "clipped",
    "skipped",
)
TOTAL = "(total)"
REST = "(rest)"
_SAVED = 1000  # records in a checkpoint


@dataclass
class Block:
    """Records that share the same layers.

    ``sums`` is ``float64 (R, G, 6)``; a quantity that a record does not have (no gradient, another optimizer's
    layer) is NaN in ``known``'s complement, so ``known`` is ``bool (R, G, 6)``.
    """

    layers: list[str]
    sizes: list[int]
    steps: list[int]
    optimizers: list[int]
    skipped: list[bool]
    sums: Tensor
    known: Tensor

    def every(self, stride: int) -> "Block":
        """Return every ``stride``-th record."""
        part = slice(None, None, stride)
        return Block(
            layers=list(self.layers),
            sizes=list(self.sizes),
            steps=self.steps[part],
            optimizers=self.optimizers[part],
            skipped=self.skipped[part],
            sums=self.sums[part].clone(),
            known=self.known[part].clone(),
        )

    def broken_layers(self) -> "tuple[int, str, list[str]] | None":
        """Return step, quantity and layers of the first record with a value that is NaN or infinite.

        Gradients of steps that the loss scaler skipped do not count.
        """
        for record, step in enumerate(self.steps):
            for quantity, column in (("weight", BAD_WEIGHTS), ("gradient", BAD_GRADIENTS)):
                if quantity == "gradient" and self.skipped[record]:
                    continue
                bad = (self.known[record, :, column] & (self.sums[record, :, column] > 0)).nonzero().flatten()
                if len(bad):
                    return step, quantity, [self.layers[i] for i in bad.tolist()]
        return None

    def layers_with_gradient(self, step: int) -> list[str]:
        """Return the layers that had a gradient in a step."""
        known = self.known[self.steps.index(step), :, GRADIENT] if step in self.steps else self.known[0, :, GRADIENT]
        return [name for name, has in zip(self.layers, known.tolist(), strict=True) if has]


@dataclass(frozen=True)
class Row:
    """One layer in one record."""

    step: int
    optimizer: int
    layer: str
    values: int
    weight_norm: float
    gradient_norm: float
    clipped_gradient_norm: float
    update_norm: float
    nonfinite_gradients: float
    nonfinite_weights: float
    clipped: bool
    skipped: bool

    @property
    def update_ratio(self) -> float:
        """Norm of the update over norm of the weights; NaN where one is not known or the weights are 0."""
        return self.update_norm / self.weight_norm if self.weight_norm else math.nan


class NormHistory:
    """Blocks of records in the order of training."""

    def __init__(self) -> None:
        self.blocks: list[Block] = []
        self.first_use: dict[str, int] = {}

    def __len__(self) -> int:
        return sum(len(block.steps) for block in self.blocks)

    def add(self, block: Block) -> None:
        """Append a block, joined to the last one where the layers are the same."""
        last = self.blocks[-1] if self.blocks else None
        if last is None or last.layers != block.layers or last.sizes != block.sizes:
            self.blocks.append(block)
            return
        last.steps += block.steps
        last.optimizers += block.optimizers
        last.skipped += block.skipped
        last.sums = torch.cat([last.sums, block.sums])
        last.known = torch.cat([last.known, block.known])

    def layers(self) -> list[str]:
        """Return every layer that was seen, in forward order."""
        names = dict.fromkeys(name for block in self.blocks for name in block.layers if name != REST)
        return in_forward_order(names, self.first_use)

    def rows(self, start: int = 0) -> Iterator[Row]:
        """Yield the rows of the records from number ``start`` on: the total first, then layers in forward order."""
        at = {name: i for i, name in enumerate([TOTAL, *self.layers(), REST])}
        for block in self.blocks:
            for i in range(max(start, 0), len(block.steps)):
                yield from sorted(block_rows(block, i), key=lambda row: at[row.layer])
            start -= len(block.steps)

    def grid(self, quantity: str, layers: Sequence[str]) -> tuple[list[int], Tensor]:
        """Return the steps and ``float64 (layers, steps)`` of one quantity; what is not known is NaN.

        One record of each of several optimizers share a column.
        """
        steps: list[int] = []
        values: list[Tensor] = []
        seen: set[int] = set()
        at = {name: i for i, name in enumerate(layers)}
        for block in self.blocks:
            for i, owner in enumerate(block.optimizers):
                if not steps or owner in seen:
                    steps.append(block.steps[i])
                    values.append(torch.full((len(layers),), math.nan, dtype=torch.float64))
                    seen = set()
                seen.add(owner)
                for row in block_rows(block, i):
                    if row.layer in at:
                        number = getattr(row, quantity)
                        values[-1][at[row.layer]] = number
        return steps, torch.stack(values, dim=1) if values else torch.zeros(len(layers), 0, dtype=torch.float64)

    def state_dict(self) -> dict[str, Any]:
        """Return plain lists and tensors; of more than 1,000 records an evenly spaced part."""
        stride = -(-len(self) // _SAVED) or 1
        blocks = [vars(block.every(stride)) for block in self.blocks]
        return {"blocks": blocks, "first_use": dict(self.first_use)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`state_dict` returned."""
        self.blocks = [Block(**block) for block in state["blocks"]]
        self.first_use = dict(state["first_use"])


def block_rows(block: Block, record: int) -> list[Row]:
    """Return one row for the total of what a record knows, then one per layer."""
    sums: list[list[float]] = block.sums[record].tolist()
    known: list[list[bool]] = block.known[record].tolist()
    total = [sum((line[q] for line, has in zip(sums, known, strict=True) if has[q]), 0.0) for q in range(QUANTITIES)]
    has_total = [any(has[q] for has in known) for q in range(QUANTITIES)]
    sizes = [[size] * QUANTITIES for size in block.sizes]
    all_sizes = [
        sum(size for size, has in zip(block.sizes, known, strict=True) if has[quantity])
        for quantity in range(QUANTITIES)
    ]
    at = (block.steps[record], block.optimizers[record], block.skipped[record])
    rows = [_row(*at, TOTAL, total, has_total, all_sizes)]
    for layer, numbers, has, size in zip(block.layers, sums, known, sizes, strict=True):
        if any(has):
            rows.append(_row(*at, layer, numbers, has, size))
    return rows


def _row(
    step: int, optimizer: int, skipped: bool, layer: str, sums: list[float], known: list[bool], sizes: list[int]
) -> Row:
    def norm(quantity: int) -> float:
        return math.sqrt(sums[quantity]) if known[quantity] else math.nan

    def share(quantity: int) -> float:
        return sums[quantity] / sizes[quantity] if known[quantity] and sizes[quantity] else math.nan

    return Row(
        step=step,
        optimizer=optimizer,
        layer=layer,
        values=sizes[WEIGHT],
        weight_norm=norm(WEIGHT),
        gradient_norm=norm(GRADIENT),
        clipped_gradient_norm=norm(CLIPPED),
        update_norm=norm(UPDATE),
        nonfinite_gradients=share(BAD_GRADIENTS),
        nonfinite_weights=share(BAD_WEIGHTS),
        clipped=known[CLIPPED] and is_clipped(sums[GRADIENT], sums[CLIPPED]),
        skipped=skipped,
    )


def is_clipped(before: float, after: float) -> bool:
    """Whether clipping made a gradient smaller; where it does not bind, not one bit changes."""
    return after < before * (1 - 1e-9) and math.isfinite(before)


def columns(rows: Sequence[Row]) -> dict[str, list[Any]]:
    """Return rows as columns, ready for ``pandas.DataFrame``."""
    return {name: [getattr(row, name) for row in rows] for name in COLUMNS}
