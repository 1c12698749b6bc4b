"""Monte-Carlo dropout: many samples of a net for little more than one forward pass."""

import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lightning_tricks._base import UserInputError, check_choice, check_range
from lightning_tricks.uncertainty.engine._draws import EngineUnfitError
from lightning_tricks.uncertainty.engine._mode import SiteBook
from lightning_tricks.uncertainty.engine._model import (
    Insert,
    Layers,
    borrowed,
    chosen_modules,
    inserted,
    insertions,
    tracked,
    unwrapped,
)
from lightning_tricks.uncertainty.engine._noise import KeyedNoise
from lightning_tricks.uncertainty.engine._output import OutputForm, first_rows, joined, taken_apart
from lightning_tricks.uncertainty.engine._passes import Batch, Engine, Passes
from lightning_tricks.uncertainty.engine._plan import EngineReport, Planner
from lightning_tricks.uncertainty.engine._tape import PrefixTape

Masks = Literal["independent", "shared"]
Sink = Callable[[slice, range, Any], None]


class MCEngine:
    """Draws samples of a net's output with its dropout on, batch after batch.

    The first batch finds what is random in the net, chooses an engine and checks it against the plain loop with the
    same masks; ``report`` then says what was found and chosen. Later batches use that choice. See :func:`mc_forward`
    for the options, which are the same, but for one:

    Args:
        model: see :func:`mc_forward`, as all that follow.
        samples: number of samples.
        seed: of the masks.
        masks: ``"independent"`` or ``"shared"``.
        chunk_size: rows at once.
        layers: where dropout is on.
        p: probability instead of each dropout's own.
        insert: dropout for nets without.
        engine: how to compute.
        output: what to sample.
        min_rows: smaller batches are filled up with copies of their last row. Matrix products of fewer than 4 rows
            take another path on CPUs and differ in the last bit; with 4 the last batch of a set agrees with any other.

    Example:
        >>> import torch
        >>> net = torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.Linear(8, 2))
        >>> engine = MCEngine(net, samples=10, seed=0)
        >>> engine(torch.ones(4, 8)).shape
        torch.Size([10, 4, 2])
        >>> print(engine.report)
        engine vmap; what comes before the first random call is computed once per batch
          0#0: dropout, p=0.5 (turned on)
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        samples: int,
        seed: int | None = None,
        masks: Masks = "independent",
        chunk_size: int | None = None,
        layers: Layers | None = None,
        p: float | None = None,
        insert: Insert | None = None,
        engine: Engine | Literal["auto"] = "auto",
        output: Callable[[Any], Any] | None = None,
        min_rows: int = 1,
    ) -> None:
        check_range("samples", samples, low=1)
        check_choice("masks", masks, ["independent", "shared"])
        check_choice("engine", engine, ["auto", "vmap", "lifted", "repeat", "loop"])
        if chunk_size is not None:
            check_range("chunk_size", chunk_size, low=1)
        if p is not None:
            check_range("p", p, low=0, high=1, open_low=True, open_high=True)
        self.model = unwrapped(model)
        self.samples, self.masks, self.chunk_size, self.engine, self.output = samples, masks, chunk_size, engine, output
        self.seed = secrets.randbits(63) if seed is None else int(seed)
        self.min_rows = min_rows
        self.report: EngineReport | None = None
        self._form: OutputForm | None = None
        self._rowless: tuple[int, ...] | None = None  # shape of an output that chunks of rows cannot be joined to
        self._insertions = insertions(self.model, insert, p)
        only_inserted = insert is not None and not isinstance(insert, Mapping)  # then p is theirs alone
        book = SiteBook(chosen=chosen_modules(self.model, layers), p=None if only_inserted else p)
        self._passes = Passes(book, KeyedNoise(self.seed), shared=masks == "shared")
        self._compiled = self.model is not model

    def __call__(
        self, *inputs: Any, rows: Sequence[int] | Tensor | None = None, kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Return the samples ``(S, B, ...)`` of a batch: a tensor, or the model's dict or tuple of such.

        Args:
            *inputs: what the model takes.
            rows: key of each row for independent masks, such as its index in the dataset; 0 to B - 1 if not given.
            kwargs: the model's named inputs.
        """
        parts: list[Any] = []
        block: list[Any] = []

        def sink(rows: slice, samples: range, out: Any) -> None:
            block.append(out)
            if samples.stop == self.samples:
                whole = block[0] if len(block) == 1 else joined(block, dim=0)
                parts.append(whole if self.min_rows == 1 else first_rows(whole, rows.stop - rows.start))
                block.clear()

        self.feed(sink, *inputs, rows=rows, kwargs=kwargs)
        return parts[0] if len(parts) == 1 else joined(parts, dim=1)

    def deterministic(self, *inputs: Any, kwargs: Mapping[str, Any] | None = None) -> Any:
        """Return the output with dropout off, as the model gives it in eval mode."""
        with borrowed(self.model, self.seed):
            args, named = Batch(self._call, inputs, dict(kwargs or {}), None).map(
                Tensor.clone
            )  # nets may overwrite them
            out = self._call(*args, **named)
        return self._restored(out)

    def feed(
        self,
        sink: Sink,
        *inputs: Any,
        rows: Sequence[int] | Tensor | None = None,
        kwargs: Mapping[str, Any] | None = None,
        samples: range | None = None,
    ) -> None:
        """Hand the samples to ``sink(rows, samples, out)`` as they come, chunk by chunk of rows.

        Args:
            sink: gets a slice of the batch, a range of samples and their outputs ``(s, b, ...)``; of a small batch that
                was filled up, all rows.
            *inputs: what the model takes.
            rows: key of each row.
            kwargs: the model's named inputs.
            samples: which samples to compute; all if not given.
        """
        wanted = range(self.samples) if samples is None else samples

        def hand_over(rows: slice, drawn: range, out: Any) -> None:
            sink(rows, drawn, self._restored(out))

        named = dict(kwargs or {})
        with self._at_work():
            planned = None
            if self.report is None:
                _, first = next(self._chunks(inputs, named, rows))
                planner = self._planner()
                self.report, planned = planner.plan(first.filled(self.min_rows), wanted)
                self._rowless = planner.rowless
            for part, cut in self._chunks(inputs, named, rows):
                rest = wanted
                if planned is not None:
                    drawn = wanted[: self.report.samples_at_once]
                    hand_over(part, drawn, planned)
                    planned, rest = None, wanted[len(drawn) :]
                self._compute(hand_over, part, cut.filled(self.min_rows), rest)

    def _planner(self) -> Planner:
        planner = Planner(self.model, self._passes, self.engine, self.samples)
        if self._compiled:
            planner.notes.append("the torch.compile wrapper is taken off: the net runs eagerly")
        return planner

    def _compute(self, sink: Sink, part: slice, batch: Batch, samples: range) -> None:
        report = self.report
        if report is None:
            raise AssertionError("the first batch makes the report")
        block = 1 if report.engine == "loop" else report.samples_at_once or max(len(samples), 1)
        tape = PrefixTape() if report.prefix_shared and block < len(samples) else None
        for start in range(0, len(samples), block):
            some = samples[start : start + block]
            try:
                out = self._passes.compute(report.engine, batch, some, tape=tape)
            except EngineUnfitError as error:
                if tape is None:
                    raise
                tape, report.prefix_shared = None, False
                report.notes.append(f"the prefix could not be replayed later on: {error}")
                out = self._passes.compute(report.engine, batch, some)
            sink(part, some, out)

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        with ExitStack() as stack:
            stack.enter_context(borrowed(self.model, self.seed))
            stack.enter_context(tracked(self.model, self._passes.book))
            stack.enter_context(inserted(self.model, self._passes, self._insertions))
            for name in self._passes.book.flagged:
                self.model.get_submodule(name).training = True
            yield

    def _chunks(self, inputs: Any, kwargs: Any, rows: Any) -> Iterator[tuple[slice, Batch]]:
        size = _batch_size(inputs, kwargs)
        call = self._call
        if size is None:
            yield slice(None), Batch(call, inputs, kwargs, None)
            return
        if size == 0:
            raise UserInputError("the batch has no rows. Leave it out.")
        keys = _row_keys(rows, size)
        at_once = None if self.report is None else self.report.rows_at_once
        step = min(self.chunk_size or size, at_once or size)
        if step < size and self._rowless is not None:
            raise UserInputError(
                f"chunk_size={self.chunk_size} cuts the rows, but an output of shape {self._rowless} does not have "
                "them on its first axis, so the chunks cannot be joined. Pick what has, such as "
                "output=lambda out: out[0], or leave chunk_size out."
            )
        whole = Batch(call, inputs, kwargs, keys)
        for start in range(0, size, step):
            part = slice(start, min(start + step, size))
            if part == slice(0, size):
                yield part, whole
                return
            yield part, whole.part(part)

    def _call(self, *args: Any, **kwargs: Any) -> list[Tensor]:
        out = self.model(*args, **kwargs)
        tensors, self._form = taken_apart(out if self.output is None else self.output(out))
        return tensors

    def _restored(self, tensors: Sequence[Tensor]) -> Any:
        if self._form is None:
            raise AssertionError("a pass has come before")
        return self._form.restored(tensors)


def mc_forward(
    model: nn.Module,
    *inputs: Any,
    samples: int,
    seed: int | None = None,
    masks: Masks = "independent",
    chunk_size: int | None = None,
    layers: Layers | None = None,
    p: float | None = None,
    insert: Insert | None = None,
    engine: Engine | Literal["auto"] = "auto",
    output: Callable[[Any], Any] | None = None,
    rows: Sequence[int] | Tensor | None = None,
    kwargs: Mapping[str, Any] | None = None,
    **named_inputs: Any,
) -> Any:
    """Draw samples of a net's output with its dropout on, and everything else as in evaluation.

    Every kind of dropout is found (modules, functions, in attention and recurrent layers, stochastic depth, noise that
    hangs on ``self.training``); norm layers stay as they are. What comes before the first dropout is computed once.
    Modes, buffers and random streams are afterwards what they were before. No gradients.

    Args:
        model: any ``nn.Module``. A ``torch.compile`` wrapper is taken off.
        *inputs: what its ``forward`` takes; tensors have the batch axis first.
        samples: S, the number of samples, at least 1.
        seed: of the masks; the same seed gives the same samples. None draws a fresh one.
        masks: ``"independent"``: each row of the batch draws its own. ``"shared"``: sample s is one thinned net for
            all rows, which also gives the uncertainty of sums and differences between rows.
        chunk_size: compute at most so many rows at once; None for all.
        layers: switch dropout on only inside these modules: names or patterns (``"encoder.*"``), types, or a predicate
            ``(name, module) -> bool``. None for everywhere.
        p: probability of dropping, in (0, 1), instead of each dropout's own; where ``insert`` needs one, for what it
            inserts only.
        insert: dropout for nets that have none: ``"head"`` before the last linear layer, or names of modules after
            which to drop out, with ``p``; or probability by name.
        engine: ``"vmap"``, ``"lifted"``, ``"repeat"`` or ``"loop"`` to insist; ``"auto"`` chooses and checks.
        output: picks what to sample out of what the model returns.
        rows: a key for each row, such as its index in the dataset: with it, a row's independent masks do not depend
            on the batch that it comes in. Its position in the batch if not given.
        kwargs: named inputs of the model, for names that are options here too (``p``, ``layers``, ...).
        **named_inputs: any other named inputs of the model, such as ``input_ids=...`` or ``**batch``.

    Returns:
        Samples ``(S, B, ...)``; a dict or tuple of such if the model returns one.

    Raises:
        UserInputError: if nothing in the net is random, if all samples are equal, for options out of range, or if
            ``chunk_size`` cuts an output without rows on its first axis, or if an input is given twice.

    Example:
        >>> import torch
        >>> net = torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.Linear(8, 2))
        >>> samples = mc_forward(net, torch.ones(4, 8), samples=100, seed=0)
        >>> samples.shape, bool((samples.std(dim=0) > 0).all())
        (torch.Size([100, 4, 2]), True)

    Reference:
        Gal & Ghahramani, "Dropout as a Bayesian approximation", ICML 2016.
    """
    twice = sorted(set(kwargs or {}) & set(named_inputs))
    if twice:
        raise UserInputError(
            f"each input of the model must be given once, but {twice[0]!r} is both in kwargs and named. Leave one out."
        )
    run = MCEngine(
        model,
        samples=samples,
        seed=seed,
        masks=masks,
        chunk_size=chunk_size,
        layers=layers,
        p=p,
        insert=insert,
        engine=engine,
        output=output,
    )
    return run(*inputs, rows=rows, kwargs={**(kwargs or {}), **named_inputs})


def _batch_size(inputs: Any, kwargs: Any) -> int | None:
    sizes = [x.shape[0] for x in tree_leaves((inputs, kwargs)) if isinstance(x, Tensor) and x.dim() > 0]
    return sizes[0] if sizes else None


def _row_keys(rows: Sequence[int] | Tensor | None, size: int) -> list[int]:
    if rows is None:
        return list(range(size))
    keys = [int(row) for row in (rows.tolist() if isinstance(rows, Tensor) else rows)]
    if len(keys) != size:
        raise UserInputError(f"rows must give one key for each of the {size} rows of the batch, but has {len(keys)}.")
    if min(keys, default=0) < 0:
        raise UserInputError(f"rows must be indices from 0 on, but the smallest is {min(keys)}.")
    return keys
