"""Four ways to compute the samples; all draw the same numbers."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from lightning_tricks.uncertainty.engine._draws import Draws, EngineUnfitError
from lightning_tricks.uncertainty.engine._handlers import HANDLERS, drop
from lightning_tricks.uncertainty.engine._mode import SiteBook, StochasticMode
from lightning_tricks.uncertainty.engine._noise import KeyedNoise
from lightning_tricks.uncertainty.engine._rows import RowAxes
from lightning_tricks.uncertainty.engine._tape import PrefixTape

Engine = Literal["vmap", "lifted", "repeat", "loop"]


class Batch:
    """One chunk of rows on its way through the model.

    Args:
        call: the model's forward; returns a list of tensors.
        args: its positional inputs.
        kwargs: its named inputs.
        rows: key of each row; None if the batch has no known size.
    """

    def __init__(self, call: Callable[..., Any], args: Any, kwargs: Any, rows: Sequence[int] | None) -> None:
        self.call, self.args, self.kwargs, self.rows = call, args, kwargs, rows

    def map(self, change: Callable[[Tensor], Any]) -> "tuple[Any, Any]":
        """Return the inputs with ``change`` applied to every tensor."""

        def leaf(x: Any) -> Any:
            return change(x) if isinstance(x, Tensor) else x

        return tree_map(leaf, self.args), tree_map(leaf, self.kwargs)

    def part(self, which: slice) -> "Batch":
        """Return some of the rows."""
        if self.rows is None:
            raise ValueError("a batch without rows cannot be cut")
        args, kwargs = self.map(lambda x: x[which] if self.has_rows(x) else x)
        return Batch(self.call, args, kwargs, self.rows[which])

    def filled(self, min_rows: int) -> "Batch":
        """Return at least so many rows, the last one several times if need be."""
        if not self.rows or len(self.rows) >= min_rows:
            return self
        extra = min_rows - len(self.rows)

        def fill(x: Tensor) -> Tensor:
            return torch.cat([x, *[x[-1:]] * extra]) if self.has_rows(x) else x

        args, kwargs = self.map(fill)
        return Batch(self.call, args, kwargs, [*self.rows, *[self.rows[-1]] * extra])

    def has_rows(self, x: Tensor) -> bool:
        """Whether the first axis counts the rows."""
        return self.rows is not None and x.dim() > 0 and x.shape[0] == len(self.rows)


class Passes:
    """Computes samples of a batch under one book of sites.

    Args:
        book: sites and switches.
        noise: keyed streams.
        shared: whether all rows see the same masks.
    """

    def __init__(self, book: SiteBook, noise: KeyedNoise, *, shared: bool) -> None:
        self.book, self.noise, self.shared = book, noise, shared
        self.mode: StochasticMode | None = None  # of the pass that runs; hooks that insert dropout reach for it
        self.dtypes: set[torch.dtype] = set()
        self.axes = RowAxes()
        self.shapes: dict[str, tuple[int, ...]] = {}  # of what the last pass drew random numbers for
        self.row_size = 0  # of the largest tensor after the first draw that is known, in elements per row and sample

    def one(self, batch: Batch, sample: int, tape: PrefixTape | None = None) -> Any:
        """Compute one sample, recording or replaying the prefix."""
        draws = self._draws(batch, range(sample, sample + 1))
        out = self._run(draws, tape, batch.call, *self._inputs(batch, tape))
        if tape is not None:
            tape.first_draw()  # a net without any draw is all prefix
        return out

    def loop(self, batch: Batch, samples: range, tape: PrefixTape | None = None) -> Any:
        """Compute samples one after the other; the prefix once if there is a tape."""
        stack = Stack(len(samples))
        for sample in samples:
            if tape is not None and tape.state == "full":
                tape.rewind()
            stack.put(self.one(batch, sample, tape))
        return stack.tensors

    def vmap(self, batch: Batch, samples: range, tape: PrefixTape | None = None, *, lift: bool = False) -> Any:
        """Compute all samples at once; functorch leaves alone what comes before the first draw."""

        def call(index: Tensor, args: Any, kwargs: Any) -> Any:
            draws = self._draws(batch, samples, how="vmap", index=index)
            return self._run(draws, tape, batch.call, args, kwargs)

        s = len(samples)
        if tape is not None and tape.state == "full":
            tape.rewind()
        args, kwargs = self._inputs(batch, tape)
        dims: Any = None
        if lift:
            args, kwargs = Batch(batch.call, args, kwargs, None).map(lambda x: x.expand(s, *x.shape).clone())
            dims = (0, tree_map(_dim, args), tree_map(_dim, kwargs))
        else:
            dims = (0, None, None)
        try:
            return list(torch.func.vmap(call, in_dims=dims, randomness="error")(torch.arange(s), args, kwargs))
        except (RuntimeError, ValueError, NotImplementedError, TypeError) as error:
            raise EngineUnfitError(f"vmap: {str(error).splitlines()[0]}") from error

    def repeat(self, batch: Batch, samples: range) -> Any:
        """Compute all samples at once as one large batch of S·B rows."""
        if batch.rows is None:
            raise EngineUnfitError("repeat: the size of the batch is unknown")
        s, b = len(samples), len(batch.rows)

        def tile(x: Tensor) -> Tensor:
            return x.repeat(s, *[1] * (x.dim() - 1)) if batch.has_rows(x) else x.clone()

        def split(x: Any) -> Any:
            if not isinstance(x, Tensor) or x.dim() == 0 or x.shape[0] != s * b:
                raise EngineUnfitError("repeat: an output does not have one entry per row")
            return x.reshape(s, b, *x.shape[1:])

        draws = self._draws(batch, samples, how="repeat")
        return [split(x) for x in self._run(draws, None, batch.call, *batch.map(tile))]

    def compute(self, engine: Engine, batch: Batch, samples: range, *, tape: PrefixTape | None = None) -> Any:
        """Compute samples ``(S, B, ...)`` with the named engine."""
        if engine == "loop":
            return self.loop(batch, samples, tape)
        if engine == "repeat":
            return self.repeat(batch, samples)
        return self.vmap(batch, samples, tape, lift=engine == "lifted")

    def drop(self, x: Tensor, p: float, place: str) -> Tensor:
        """Drop out ``x`` at a place, named after a module, where the net itself has no dropout."""
        mode = self.mode
        if mode is None:
            raise AssertionError("the hooks live only while a pass runs")
        self.book.stack.append(place)
        try:
            with torch._C.DisableTorchFunction():
                return drop(mode, x, p, kind="inserted dropout", inserted=True)
        finally:
            self.book.stack.pop()

    def _inputs(self, batch: Batch, tape: PrefixTape | None) -> Any:
        """Return the inputs of a pass: a copy, because nets may overwrite them; the same copy for a whole tape."""
        if tape is None:
            return batch.map(Tensor.clone)
        if tape.inputs is None:
            tape.inputs = batch.map(Tensor.clone)
        return tape.inputs

    def _draws(self, batch: Batch, samples: range, **how: Any) -> Draws:
        return Draws(self.noise, samples=samples, rows=batch.rows, shared=self.shared, axes=self.axes, **how)

    def _run(self, draws: Draws, tape: PrefixTape | None, call: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        self.book.start_pass()
        self.mode = StochasticMode(draws, self.book, tape, HANDLERS)
        try:
            with self.mode:
                return call(*args, **kwargs)
        finally:
            self.dtypes |= self.mode.dtypes
            self.shapes = draws.shapes
            self.row_size = max(self.row_size, draws.row_size)
            self.mode = None


class Stack:
    """Collects lists of tensors along a new first axis, without holding them twice."""

    def __init__(self, size: int) -> None:
        self.size, self.filled = size, 0
        self.tensors: list[Tensor] = []

    def put(self, out: Sequence[Tensor]) -> None:
        """Add one list."""
        if not self.filled:
            self.tensors = [x.new_empty((self.size, *x.shape)) for x in out]
        for into, x in zip(self.tensors, out, strict=True):
            into[self.filled] = x
        self.filled += 1


def _dim(x: Any) -> int | None:
    return 0 if isinstance(x, Tensor) else None
