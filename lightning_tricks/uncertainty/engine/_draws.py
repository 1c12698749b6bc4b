"""One pass sees one sample (loop), a functorch batch of them (vmap), or all along the batch axis (repeat)."""

from collections.abc import Sequence
from math import prod
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_tricks._base import derive_seed
from lightning_tricks.uncertainty.engine._noise import SHARED_ROW, KeyedNoise, Kind
from lightning_tricks.uncertainty.engine._rows import RowAxes, RowLayout, row_shape, to_layout


class EngineUnfitError(RuntimeError):
    """This way of computing the samples does not suit the model; another one may."""


class Draws:
    """Random numbers for the call sites of one pass.

    Args:
        noise: keyed streams.
        samples: which of the S samples the pass computes.
        rows: key of each row of the batch; None if the batch has no known size.
        shared: whether all rows use the same numbers.
        axes: where the rows are.
        how: how the samples lie in the tensors of the pass.
        index: for ``"vmap"``, the functorch-batched position within ``samples``.
    """

    def __init__(
        self,
        noise: KeyedNoise,
        *,
        samples: range,
        rows: Sequence[int] | None,
        shared: bool,
        axes: RowAxes,
        how: Literal["loop", "vmap", "repeat"] = "loop",
        index: Tensor | None = None,
    ) -> None:
        self.noise, self.samples, self.rows, self.shared = noise, samples, rows, shared
        self.axes, self.how, self.index = axes, how, index
        self.shapes: dict[str, tuple[int, ...]] = {}  # of the tensors that random numbers went into
        self.row_size = 0  # of the largest tensor that random numbers went into, in elements per row

    def keep(self, site: str, keep: float, shape: Sequence[int], device: torch.device) -> Tensor:
        """Return a mask of zeros and ones, uint8, that broadcasts against ``shape``; one with probability ``keep``."""

        def draw(**where: Any) -> Tensor:
            return self.noise.keep(site, keep, **where)

        return self._lay_out(draw, site, tuple(shape), device)

    def numbers(self, kind: Kind, site: str, shape: Sequence[int], device: torch.device) -> Tensor:
        """Return float32 numbers that broadcast against ``shape``."""

        def draw(**where: Any) -> Tensor:
            return self.noise.draw(kind, site, **where)

        return self._lay_out(draw, site, tuple(shape), device)

    def note(self, like: Tensor) -> None:
        """Remember how large a tensor is that random numbers go into."""
        rows = max(len(self.rows or ()), 1) * (len(self.samples) if self.how == "repeat" else 1)
        self.row_size = max(self.row_size, like.numel() // rows)

    def seed_of(self, site: str) -> int:
        """Return a seed for draws that have no row-wise form."""
        return derive_seed(self.noise.seed, site, self.samples.start)

    def _lay_out(self, draw: Any, site: str, shape: tuple[int, ...], device: torch.device) -> Tensor:
        copies = len(self.samples) if self.how == "repeat" else 1
        n_rows = None if self.rows is None else len(self.rows) * copies
        self.shapes[site] = shape
        layout = self.axes.layout(site, shape, n_rows)
        if layout is not None and self.how == "repeat":
            shape = _with_axis(shape, layout.axis, shape[layout.axis] // copies)
        each_row = layout is not None and not self.shared and self.rows is not None
        keys = self.rows if each_row and self.rows is not None else [SHARED_ROW]
        size = prod(row_shape(shape, layout))
        table = draw(samples=self.samples, rows=keys, size=size)
        table = to_layout(table.to(device), shape, layout)  # (S, *shape), the row axis perhaps 1
        if self.how == "loop":
            return table[0]
        if self.how == "vmap":
            result: Tensor = _PerSample.apply(self.index, table)
            return result
        return _merge(table, shape, layout)


def _with_axis(shape: tuple[int, ...], axis: int, size: int) -> tuple[int, ...]:
    return (*shape[:axis], size, *shape[axis + 1 :])


def _merge(table: Tensor, shape: tuple[int, ...], layout: RowLayout | None) -> Tensor:
    """Turn ``(S, ..., B, ...)`` into ``(..., S·B, ...)``, sample by sample."""
    if layout is None:
        raise EngineUnfitError("a dropped-out tensor without rows (a weight?) cannot hold several samples")
    full = table.expand(table.shape[0], *shape)
    return full.movedim(0, layout.axis).flatten(layout.axis, layout.axis + 1)


class _PerSample(torch.autograd.Function):
    """``table[index]``; under vmap the table itself becomes the batched tensor, without a copy."""

    @staticmethod
    def forward(index: Tensor, table: Tensor) -> Tensor:
        return table[index]

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def vmap(info: Any, in_dims: Any, index: Tensor, table: Tensor) -> tuple[Tensor, int]:
        return table.view_as(table), 0  # an input handed back as it is would stay unbatched
