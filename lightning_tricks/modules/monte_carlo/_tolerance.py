"""Draw until the Monte-Carlo error is small enough, row by row."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from lightning_tricks.uncertainty import SampleStream

# Fewer passes do not tell the spread: the standard error of a standard deviation from 16 is 18 %.
FIRST_ROUND = 16


class SureRows:
    """Rows that are still unsure, with what was drawn for them, and the summaries of those that are done.

    Whether a row is done depends on its own samples only, so no number depends on the batch that it comes in.

    Args:
        rows: positions in the batch.
        stream: empty.
        form: turns the model's outputs into what the stream takes.
        tolerance: Monte-Carlo standard error that is small enough, above 0.
        min_rows: the engine fills up batches to so many rows, with copies of the last one.
    """

    def __init__(
        self,
        rows: Tensor,
        stream: SampleStream,
        form: Callable[[Any], Any],
        *,
        tolerance: float,
        min_rows: int,
    ) -> None:
        self.rows, self.stream = rows, stream
        self.tolerance, self.min_rows = tolerance, min_rows
        self._form = form
        self._pieces: list[Any] = []
        self._done: list[tuple[Tensor, dict[str, Tensor]]] = []

    def plan(self, total: int) -> Iterator[range]:
        """Give the samples of round after round, each as many as all before, as long as a row is unsure."""
        start, stop = 0, min(FIRST_ROUND, total)
        while len(self.rows):
            yield range(start, stop)
            start, stop = stop, min(2 * stop, total)
            self._close(last=start == total)

    def take(self, rows: slice, samples: range, out: Any) -> None:
        """Add samples of all rows that are left, or of a piece of them; the pieces come in order."""
        whole = rows == slice(0, len(self.rows))
        out = self._form(out)
        self._pieces.append(out if whole else tree_map(lambda x: x[:, : rows.stop - rows.start], out))
        if rows.stop == len(self.rows):
            self.stream.update(tree_map(lambda *x: torch.cat(x, dim=1), *self._pieces))
            self._pieces = []

    def result(self) -> dict[str, Tensor]:
        """Return the summaries of all rows in their order."""
        order = torch.cat([rows for rows, _ in self._done]).argsort()
        return {
            name: torch.cat([summary[name] for _, summary in self._done])[order.to(value.device)]
            for name, value in self._done[0][1].items()
        }

    def _close(self, *, last: bool) -> None:
        error = self.stream.mc_error()[: len(self.rows)].reshape(len(self.rows), -1)
        sure = (error <= self.tolerance).all(dim=1).cpu() | last
        done, unsure = sure.nonzero()[:, 0], (~sure).nonzero()[:, 0]
        if len(done):
            summary = self._part(done).compute()
            self._done.append((self.rows[done], {name: value[: len(done)] for name, value in summary.items()}))
        self.stream, self.rows = self._part(unsure), self.rows[unsure]

    def _part(self, which: Tensor) -> SampleStream:
        extra = max(self.min_rows - len(which), 0) if len(which) else 0  # as the engine does
        return self.stream.take(torch.cat([which, which[-1:].repeat(extra)]).to(self.stream.mc_error().device))


def rows_of(inputs: Any, rows: Tensor, size: int) -> Any:
    """Return some rows of everything in a batch of ``size`` rows that has them."""
    if len(rows) == size:
        return inputs

    def part(x: Any) -> Any:
        return x[rows.to(x.device)] if isinstance(x, Tensor) and x.dim() > 0 and len(x) == size else x

    return tree_map(part, inputs)
