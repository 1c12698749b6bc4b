"""What flows through the layers, looked at on a few batches."""

import math
import weakref
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from lightning_tricks._base import check_range, log_figure, log_metrics, log_table, warn_once
from lightning_tricks.callbacks._points import Points
from lightning_tricks.callbacks._trainer import resumes
from lightning_tricks.callbacks.activations._stats import (
    DEAD,
    NONFINITE,
    SATURATED,
    STD,
    activation_stats,
    active_units,
    unit_axis,
    watchable,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = ("step", "layer", "kind", "units", "mean", "std", "saturated", "zeros", "dead", "nonfinite")
_CALLS = 8  # of one module in one step that are told apart
_SAVED = 1000  # records in a checkpoint


class ActivationMonitor(Callback):
    """Watch the activations of every layer, on sampled training batches only.

    For each layer: mean, standard deviation, share of saturated values (derivative below 1 % of its largest; for
    layers that can saturate), share of zeros, share of non-finite values and, for rectifiers, the share of dead units.
    A unit (feature or channel) is dead if it has passed nothing on for any sample in the last ``dead_after`` sampled
    batches; half of all values being zero is what a healthy ReLU gives and means nothing.

    Hooks exist only while a sampled batch runs. Activations that are no modules (``F.relu``) and the inside of
    compiled modules cannot be seen. With several processes each looks at its own part of the batch, and the first
    one's is written. Training is not touched.

    Args:
        every_n_steps: optimizer steps from one sampled batch to the next; the 1st, 2nd, 4th, 8th, ... are, too.
        dead_after: sampled batches in a row after which a unit that was never active is dead.
        plot_every_n_epochs: epochs between pictures to the logger, which also gets one at the end; 0 for none.
        worst: how many of the layers with most dead or saturated units go to the logger with the picture.

    Raises:
        UserInputError: for a value out of range.

    Example:
        >>> import lightning as L, lightning_tricks as lt
        >>> monitor = lt.ActivationMonitor(every_n_steps=50)
        >>> trainer = L.Trainer(callbacks=[monitor], logger=False)
        >>> monitor.table()["dead"]  # filled by trainer.fit(...)
        []

    Reference: Glorot & Bengio (2010), figures 2 and 3: activations by depth. Lu et al., Dying ReLU (2020).
    """

    def __init__(
        self, *, every_n_steps: int = 100, dead_after: int = 5, plot_every_n_epochs: int = 10, worst: int = 5
    ) -> None:
        super().__init__()
        self.every_n_steps = int(check_range("every_n_steps", every_n_steps, low=1))
        self.dead_after = int(check_range("dead_after", dead_after, low=1))
        self.plot_every_n_epochs = int(check_range("plot_every_n_epochs", plot_every_n_epochs, low=0))
        self.worst = int(check_range("worst", worst, low=0))
        self._handles: list[Any] = []
        self._reset()

    def _reset(self) -> None:
        self._rows: list[list[Any]] = []  # as COLUMNS
        self._sampled = 0  # batches
        self._last_active: dict[str, Tensor] = {}  # sampled batch in which each unit was last active
        self._waiting: list[Any] = []  # points that an interrupted run had not logged
        self._drop_run()

    def _drop_run(self) -> None:
        self._remove_hooks()
        self._pending: list[tuple[int, str, str, int, Tensor]] = []  # step, layer, kind, units, statistics
        self._seen_at = -1
        self._logged = 0
        self._drawn = 0
        self._trainer: weakref.ref[Trainer] | None = None
        self._points = Points()

    def _remove_hooks(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def state_dict(self) -> dict[str, Any]:
        """Return all rows so far; plain lists and tensors. What a checkpoint holds was logged or waits in it."""
        trainer = None if self._trainer is None else self._trainer()
        if trainer is not None:
            self._flush(trainer)
        steps = sorted({row[0] for row in self._rows})
        kept = set(steps[:: -(-len(steps) // _SAVED) or 1])
        return {
            "rows": [list(row) for row in self._rows if row[0] in kept],
            "sampled": self._sampled,
            "last_active": dict(self._last_active),
            "points": self._points.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the rows of the interrupted run."""
        self._rows = [list(row) for row in state_dict["rows"]]
        self._sampled = state_dict["sampled"]
        self._last_active = dict(state_dict["last_active"])
        self._waiting = state_dict.get("points", [])

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep what was seen when weights are loaded for a validation or test."""
        resumes(self, trainer, checkpoint)

    # What was seen

    def table(self) -> dict[str, list[Any]]:
        """Return everything seen so far as columns, ready for ``pandas.DataFrame``.

        One row per layer, in forward order, and sampled batch: ``step``, ``layer`` (``"relu#2"``: second call in a
        step), ``kind``, ``units``, ``mean``, ``std`` and the shares ``saturated``, ``zeros``, ``dead`` and
        ``nonfinite``, in [0, 1]. A share that does not apply is NaN, and ``dead`` is until enough batches were seen.
        """
        return {name: [row[i] for row in self._rows] for i, name in enumerate(COLUMNS)}

    def plot(self) -> "Figure":
        """Return a picture: log10 of the standard deviation, layers in forward order × steps, and the last shares."""
        from lightning_tricks import plots

        layers = list(dict.fromkeys(row[1] for row in self._rows))
        steps = sorted({row[0] for row in self._rows})
        std = torch.full((len(layers), len(steps)), math.nan, dtype=torch.float64)
        at, when = {name: i for i, name in enumerate(layers)}, {step: i for i, step in enumerate(steps)}
        for row in self._rows:
            std[at[row[1]], when[row[0]]] = row[COLUMNS.index("std")]
        last = {row[1]: row for row in self._rows}
        shares = {
            name: [last[layer][COLUMNS.index(name)] for layer in layers] for name in ("dead", "saturated", "zeros")
        }
        return plots.plot_activations(steps, layers, std, shares)

    # Lightning's hooks

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Start fresh."""
        if stage == "fit":
            self._reset()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say what cannot be seen."""
        self._log_every = max(1, getattr(trainer, "log_every_n_steps", 50))
        self._logged = trainer.global_step // self._log_every
        self._trainer = weakref.ref(trainer)
        self._points = Points(self.every_n_steps, self._log_every)
        self._points.load_state_dict(self._waiting)
        self._waiting = []
        if _is_compiled(pl_module):
            warn_once(
                "ActivationMonitor cannot look into a compiled LightningModule, so it will see nothing. Compile the "
                "networks inside it instead, whose outputs it then sees, or remove ActivationMonitor."
            )

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Attach the hooks, if this batch is sampled."""
        step = trainer.global_step
        if step == self._seen_at or not _is_sampled(step + 1, self.every_n_steps) or _is_compiled(pl_module):
            return
        self._seen_at = step
        self._sampled += 1
        self._axis, self._calls = -1, dict[str, int]()
        for name, module in watchable(pl_module):
            self._handles.append(module.register_forward_hook(partial(self._look, step, name)))

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Detach the hooks: checkpointed layers run again in the backward pass."""
        self._remove_hooks()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Detach the hooks; on logging steps, write."""
        self._remove_hooks()
        logged, self._logged = self._logged, trainer.global_step // self._log_every
        if logged != self._logged:
            self._flush(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Every N epochs, draw."""
        if self.plot_every_n_epochs and (trainer.current_epoch + 1) % self.plot_every_n_epochs == 0:
            self._draw(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write what is left, draw, and let go of the run."""
        self._flush(trainer, last=True)
        if self.plot_every_n_epochs:
            self._draw(trainer)
        self._drop_run()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Detach the hooks, keep what was seen and log it."""
        self._remove_hooks()
        self._flush(trainer, last=True)
        self._drop_run()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let go of the run."""
        self._drop_run()

    # One sampled batch

    @torch.no_grad()
    def _look(self, step: int, name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        tensor = _first_tensor(output)
        if tensor is None or not tensor.numel() or not module.training:
            return
        call = self._calls[name] = self._calls.get(name, 0) + 1
        if call > _CALLS:
            return
        layer = name if call == 1 else f"{name}#{call}"
        self._axis = unit_axis(module, tensor, self._axis)
        stats = activation_stats(module, tensor)
        active = active_units(module, tensor, self._axis)
        units = tensor.shape[self._axis] if tensor.dim() else 1
        if active is not None:
            stats[DEAD] = self._dead_share(layer, active)
        self._pending.append((step, layer, type(module).__name__, units, stats))

    def _dead_share(self, layer: str, active: Tensor) -> Tensor | float:
        last = self._last_active.get(layer)
        if last is None or last.shape != active.shape:
            last = torch.full_like(active, self._sampled - 1, dtype=torch.long)  # as if active just before
        last = torch.where(active, self._sampled, last.to(active.device))
        self._last_active[layer] = last
        if self._sampled < self.dead_after:
            return math.nan
        return (self._sampled - last >= self.dead_after).float().mean()

    # What is written

    def _collect(self) -> list[list[Any]]:
        """Bring what is pending to the host, in one transfer."""
        if not self._pending:
            return []
        numbers = torch.stack([stats.to(self._pending[0][-1].device) for *_, stats in self._pending]).cpu().tolist()
        rows = [[*head, *stats] for (*head, _), stats in zip(self._pending, numbers, strict=True)]
        self._pending = []
        self._rows += rows
        return rows

    def _flush(self, trainer: Trainer, *, last: bool = False) -> None:
        rows = self._collect()
        if rows:
            self._publish(trainer, rows)
        for step, metrics in self._points.ready(None if last else trainer.global_step):
            log_metrics(trainer, metrics, step=step)

    def _publish(self, trainer: Trainer, rows: Sequence[Sequence[Any]]) -> None:
        for step, of_step in groupby(rows, key=itemgetter(0)):
            self._points.add(step, partial(step_metrics, list(of_step)))

    def _draw(self, trainer: Trainer) -> None:
        self._flush(trainer)
        if not trainer.is_global_zero or not trainer.loggers or len(self._rows) == self._drawn:
            return
        self._drawn = len(self._rows)
        log_figure(trainer, "activations/layers", self.plot())
        if self.worst:
            step = self._rows[-1][0]
            shown = [[None if cell != cell else cell for cell in row] for row in self._rows if row[0] == step]
            ranked = sorted(shown, key=lambda row: -max(_number(row, "dead"), _number(row, "saturated")))
            log_table(trainer, "activations/worst_layers", COLUMNS, ranked[: self.worst])


def step_metrics(rows: Sequence[Sequence[Any]]) -> dict[str, float]:
    """Return the extremes over the layers of one sampled batch.

    Example:
        >>> step_metrics([[0, "act", "ReLU", 5, 0.1, 0.5, float("nan"), 0.5, 0.2, 0.0]])["activations/dead_max"]
        0.2
    """
    picks = {"std_min": (STD, min), "std_max": (STD, max), "saturated_max": (SATURATED, max), "dead_max": (DEAD, max)}
    metrics: Mapping[str, float] = {
        f"activations/{name}": pick(
            (row[4 + column] for row in rows if row[4 + column] == row[4 + column]), default=math.nan
        )
        for name, (column, pick) in {**picks, "nonfinite_max": (NONFINITE, max)}.items()
    }
    return {name: value for name, value in metrics.items() if not math.isnan(value)}


def _number(row: Sequence[Any], name: str) -> float:
    return row[COLUMNS.index(name)] or 0.0


def _is_sampled(count: int, every: int) -> bool:
    return count % every == 0 or (count < every and count & (count - 1) == 0)


def _is_compiled(module: LightningModule) -> bool:
    return getattr(module, "_compiler_ctx", None) is not None


def _first_tensor(output: Any) -> Tensor | None:
    if isinstance(output, (tuple, list)) and output:
        return _first_tensor(output[0])
    if isinstance(output, Tensor) and output.is_floating_point():
        part: Tensor = getattr(output, "to_local", output.detach)()  # this rank's part of a DTensor
        return part.detach()
    return None
