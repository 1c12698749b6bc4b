"""Choose how to compute the samples, and prove on the first batch that the choice is right."""

from dataclasses import dataclass, field
from typing import Any

import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map

from lightning_tricks._base import UserInputError
from lightning_tricks.uncertainty.engine._draws import EngineUnfitError
from lightning_tricks.uncertainty.engine._mode import StochasticSite
from lightning_tricks.uncertainty.engine._model import reads_training
from lightning_tricks.uncertainty.engine._passes import Batch, Engine, Passes
from lightning_tricks.uncertainty.engine._tape import PrefixTape

# Beyond this much per row, samples at once fall out of a CPU's cache and the loop is faster (measured): more are
# computed in blocks of as many as fit, unless so few fit that a block gains nothing.
_CPU_ROW_BYTES = 2**20
_SMALLEST_BLOCK = 128
# Enough for nets that squeeze single rows.
_TRIED_ROWS = 4
# So much for S samples of one tensor; a net holds a few of them at a time.
_CPU_BYTES, _GPU_BYTES = 2**24, 2**29


@dataclass
class EngineReport:
    """What was found in the net and how its samples are computed.

    Args:
        engine: ``"vmap"``, ``"lifted"`` (vmap over copies of the input), ``"repeat"`` or ``"loop"``.
        prefix_shared: whether what comes before the first random call is computed once per batch.
        sites: the random calls, in order.
        rows_at_once: so many rows are computed together at most, lest their samples fill the memory; None for all.
        samples_at_once: so many samples are computed together at most; None for all.
        resting: dropout calls that stayed off, such as those with p = 0.
        notes: engines that were tried and why they did not suit, and what else is worth knowing.
    """

    engine: Engine
    prefix_shared: bool
    sites: list[StochasticSite]
    rows_at_once: int | None = None
    samples_at_once: int | None = None
    resting: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        shared = "computed once per batch" if self.prefix_shared else "computed for every sample"
        lines = [f"engine {self.engine}; what comes before the first random call is {shared}"]
        lines += [
            f"  {site.name}: {site.kind}{'' if site.p is None else f', p={site.p:g}'} ({site.how})"
            for site in self.sites
        ]
        return "\n".join([*lines, *(f"  off: {name}" for name in self.resting), *self.notes])


class Planner:
    """Finds an engine that gives the loop's numbers.

    Args:
        model: in eval mode, tracked by the passes' book.
        passes: how samples are computed.
        engine: the wanted engine, or ``"auto"``.
        total: how many samples a batch gets in the end, at once or in rounds.
    """

    def __init__(self, model: nn.Module, passes: Passes, engine: Engine | str, total: int) -> None:
        self.model, self.passes, self.engine, self.total = model, passes, engine, total
        self.notes: list[str] = []
        self.rowless: tuple[int, ...] | None = None  # shape of an output that has no rows first

    def plan(self, batch: Batch, samples: range) -> tuple[EngineReport, Any]:
        """Return the report and the first samples of this batch's first rows, as many as it says, or None.

        Raises:
            UserInputError: if nothing in the net is random, or the asked-for engine does not suit it.
        """
        self._raise_flags(batch, samples[0])
        recorded = PrefixTape()
        first = self.passes.one(batch, samples[0], recorded)
        self._demand_sites()
        if self._learn_rows(batch, samples[0], first):
            recorded = PrefixTape()
            first = self.passes.one(batch, samples[0], recorded)
        asked = batch
        batch, first, recorded, at_once = self._cut(batch, samples[0], first, recorded)
        if scripted := scripted_parts(self.model):
            self.notes.append(f"compiled to TorchScript, where dropout cannot be reached: {', '.join(scripted)}")
            rank_zero_warn(f"mc_forward leaves dropout off in parts {self.notes[-1]}. Keep them as Python modules.")
        tape = self._tested(recorded, batch, samples[0], first)
        for engine in self._order(batch):
            block = samples if engine == "loop" else samples[: self._block(batch)]
            try:
                out = self._tried(engine, batch, block, tape, first)
            except EngineUnfitError as error:
                self._refuse(engine, str(error))
                continue
            self._demand_variance(out, block, batch)
            in_one_go = engine == "vmap" and self._block(batch) is None
            shared = in_one_go or (engine in ("vmap", "loop") and tape is not None)
            book = self.passes.book
            sites, resting = list(book.sites.values()), sorted(book.resting)
            if engine == "loop":  # holds one sample at a time, so it takes all rows
                report = EngineReport(engine, shared, sites, resting=resting, notes=self.notes)
                return report, out if batch is asked else None
            return EngineReport(engine, shared, sites, at_once, self._block(batch), resting, self.notes), out
        raise AssertionError("the loop is the last engine and suits every model")

    def _learn_rows(self, batch: Batch, sample: int, first: list[Tensor]) -> bool:
        """Learn from a pass with another number of rows which axes count them; tell whether a guess was wrong."""
        rows, shapes = len(batch.rows or ()), self.passes.shapes
        if not rows:
            return False
        # Fewer are cheaper. A device other than the CPU does not survive an index out of range, which a net that
        # takes indices of rows as an input would then use: one more cannot bring that about.
        other = batch.part(slice(0, _TRIED_ROWS)) if _on_cpu(batch) and rows > _TRIED_ROWS else batch.filled(rows + 1)
        tried = self._aside(other, sample)
        self.rowless = _rowless(first, tried, rows)
        return tried is not None and self.passes.axes.learn(shapes, rows, self.passes.shapes, len(other.rows or ()))

    def _aside(self, batch: Batch, sample: int) -> list[Tensor] | None:
        """Compute a sample that leaves no trace in the books; None if the net does not stand this batch."""
        passes, book = self.passes, self.passes.book
        known = dict(book.sites), set(book.resting), passes.row_size
        try:
            out: list[Tensor] = passes.one(batch, sample)
        except Exception as error:  # whatever a net says that is made for one number of rows
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            self.notes.append(f"which axes count the rows is guessed, because another number of them fails: {reason}")
            return None
        finally:
            book.sites, book.resting, passes.row_size = known
        return out

    def _tested(self, tape: PrefixTape, batch: Batch, sample: int, first: Any) -> PrefixTape | None:
        """Return the tape if replaying it gives exactly what was recorded."""
        try:
            tape.rewind()
            again = self.passes.one(batch, sample, tape)
        except EngineUnfitError as error:
            self.notes.append(f"the prefix cannot be replayed: {error}")
            return None
        if distance(first, again) > 0:
            self.notes.append("the prefix cannot be replayed: some of its computation is hidden from torch functions")
            return None
        return tape

    def _order(self, batch: Batch) -> list[Engine]:
        if self.engine != "auto":
            return [self.engine]  # type: ignore[list-item]  # checked when it was passed
        if not _on_cpu(batch):  # one large launch beats S small ones
            return ["vmap", "repeat", "lifted", "loop"]
        block = self._block(batch) or self.total
        return ["vmap", "loop"] if block >= min(self.total, _SMALLEST_BLOCK) else ["loop"]

    def _block(self, batch: Batch) -> int | None:
        """Return how many samples are computed at once; None for all."""
        fit = max(_CPU_ROW_BYTES // (self.passes.row_size * 4), 1)
        return fit if _on_cpu(batch) and fit < self.total else None

    def _cut(
        self, batch: Batch, sample: int, first: Any, recorded: PrefixTape
    ) -> tuple[Batch, Any, PrefixTape, int | None]:
        """Keep as many rows as may be computed at once; for fewer than all, their first sample is computed anew."""
        rows = len(batch.rows or ())
        outputs = (x.numel() // max(rows, 1) for x in first)
        self.passes.row_size = max(self.passes.row_size, *outputs, 1)
        if not rows or self._order(batch) == ["loop"] or self.rowless is not None:
            return batch, first, recorded, None
        room = _CPU_BYTES if _on_cpu(batch) else _GPU_BYTES
        samples = self._block(batch) or self.total
        at_once = max(room // (self.passes.row_size * samples * 4) // 4 * 4, 4)
        if at_once >= rows:
            return batch, first, recorded, at_once
        part, tape = batch.part(slice(0, at_once)), PrefixTape()
        return part, self.passes.one(part, sample, tape), tape, at_once

    def _tried(self, engine: Engine, batch: Batch, samples: range, tape: PrefixTape | None, first: Any) -> Any:
        """Compute the samples and compare two of them with the loop's."""
        if tape is not None:
            tape.rewind()
        out = self.passes.compute(engine, batch, samples, tape=tape)
        if engine == "loop":
            return out
        last = self.passes.loop(batch, samples[-1:], tape)
        tolerance = self._tolerance(first)
        for position, loop in ((0, first), (-1, tree_map(lambda x: x[0], last))):
            error = distance(loop, tree_map(lambda x, at=position: x[at], out))
            if not error <= tolerance:
                raise EngineUnfitError(f"{engine} is off by {error:.1e} from the loop with the same masks")
        return out

    def _tolerance(self, out: Any) -> float:
        dtypes = {*self.passes.dtypes, *(leaf.dtype for leaf in tree_leaves(out))}
        coarse = max((torch.finfo(dtype).eps for dtype in dtypes if dtype.is_floating_point), default=1e-7)
        on_cpu = all(leaf.device.type == "cpu" for leaf in tree_leaves(out))
        return max(1e-5 if on_cpu else 2e-3, 8 * coarse)  # other devices may use TF32

    def _refuse(self, engine: Engine, reason: str) -> None:
        if self.engine != "auto":
            raise UserInputError(f"engine={engine!r} does not suit {type(self.model).__name__}: {reason}. Use 'auto'.")
        self.notes.append(f"engine {engine} does not suit: {reason}")

    def _raise_flags(self, batch: Batch, sample: int) -> None:
        """Raise the training flag of modules that draw something themselves when it is up, and only of those."""
        modules = {name: m for name, m in self.model.named_modules() if reads_training(m)}
        book = self.passes.book
        modules = {name: m for name, m in modules.items() if book.chosen is None or name in book.chosen}
        if not modules:
            return
        calm = self.passes.one(batch, sample)
        before = set(book.sites)
        for group in [list(modules), *([name] for name in modules)]:
            helpful = self._try_flags({name: modules[name] for name in group}, batch, sample, calm, before)
            if helpful is not None:
                for name in helpful:
                    modules[name].training = True
                book.flagged |= helpful
                if len(group) == len(modules):
                    return

    def _try_flags(
        self, modules: dict[str, nn.Module], batch: Batch, sample: int, calm: Any, before: set[str]
    ) -> frozenset[str] | None:
        """Return which of the modules draw more with the flag up; None if the net does not stand it."""
        book = self.passes.book
        known = dict(book.sites)
        for module in modules.values():
            module.training = True
        try:
            out = self.passes.one(batch, sample)
        except Exception:  # whatever a net in training mode demands (targets, auxiliary heads)
            return None
        finally:
            found = {name.rsplit("#", 1)[0] for name in set(book.sites) - before}
            book.sites = known
            for module in modules.values():
                module.training = False
        if _outline(out) != _outline(calm):
            return None
        return frozenset(name for name in modules if (name or "model") in found)

    def _demand_sites(self) -> None:
        if self.passes.book.sites:
            return
        book = self.passes.book
        resting = f" Found, but off: {', '.join(sorted(book.resting))}." if book.resting else ""
        scripted = scripted_parts(self.model)
        hidden = f" Compiled to TorchScript, so their dropout cannot be reached: {scripted[0]}." if scripted else ""
        if isinstance(self.model, torch.fx.GraphModule):
            hidden += " It is a traced or exported graph: what was dropout in eval mode is not in it any more."
        raise UserInputError(
            f"mc_forward found nothing random in {type(self.model).__name__}. It looked for dropout of every kind "
            "(modules, functions, in attention and recurrent layers), stochastic depth, random slopes and noise."
            f"{resting}{hidden} Build the net with dropout, pass p=0.1 if its dropout has p = 0, or insert some: "
            "insert='head', p=0.1."
        )

    def _demand_variance(self, out: Any, samples: range, batch: Batch) -> None:
        floats = [leaf for leaf in tree_leaves(out) if leaf.is_floating_point()]
        if len(samples) < 2 or not floats or any((leaf != leaf[:1]).any() for leaf in floats if leaf.numel()):
            return
        first = tree_map(lambda x: x[0], out)
        later = range(samples.stop, samples.stop + 64)  # a few samples of a small p may be equal by chance
        if any(distance(first, self.passes.one(batch, sample)) > 1e-6 for sample in later):
            return
        names = list(self.passes.book.sites)
        at = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
        zero = next((name for name, p in self.model.named_parameters() if p.dim() > 1 and not p.any()), None)
        cause = (
            f"{zero} is all zero, as some nets start: train or load it first."
            if zero
            else "is it computed in compiled or exported code, too small beside what is added to it, or thrown away?"
        )
        raise UserInputError(
            f"All {len(samples)} samples of {type(self.model).__name__} are equal, although random numbers were drawn "
            f"at: {at}. What they change does not reach the output: {cause}"
        )


def _on_cpu(batch: Batch) -> bool:
    return all(x.device.type == "cpu" for x in tree_leaves((batch.args, batch.kwargs)) if isinstance(x, Tensor))


def _rowless(first: list[Tensor], tried: list[Tensor] | None, rows: int) -> tuple[int, ...] | None:
    """Return the shape of the first output whose first axis does not count the rows."""
    for position, x in enumerate(first):
        size = x.shape[0] if x.dim() else 0
        if size != rows or (tried is not None and tried[position].shape[:1] == x.shape[:1]):
            return tuple(x.shape)
    return None


def scripted_parts(model: nn.Module) -> list[str]:
    """Return the names of the outermost parts that are compiled to TorchScript."""
    names = [name for name, module in model.named_modules() if isinstance(module, torch.jit.ScriptModule)]
    inside = tuple(f"{name}." for name in names if name)
    return ["the model"] if "" in names else [name for name in names if not name.startswith(inside)]


def distance(one: Any, other: Any) -> float:
    """Return the largest difference, relative to the size of the numbers; infinite for another shape or type."""
    worst = 0.0
    for a, b in zip(tree_leaves(one), tree_leaves(other), strict=True):
        if a.shape != b.shape or a.dtype != b.dtype:
            return float("inf")
        a, b = a.detach().double(), b.detach().double()
        if not a.numel():
            continue
        scale = a.abs().nan_to_num(0, 0, 0).max().clamp(min=1e-30)
        gap = torch.where(a.isnan() & b.isnan() | (a == b), 0.0, (a - b).abs())
        worst = max(worst, float(gap.max() / scale)) if not gap.isnan().any() else float("inf")
    return worst


def _outline(out: Any) -> Any:
    leaves, spec = tree_flatten(out)
    return spec, [(x.shape, x.dtype) if isinstance(x, Tensor) else type(x) for x in leaves]
