"""Norms of weights, gradients and updates per layer, at a cost that nobody notices."""

import math
import re
import weakref
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy
from torch import Tensor
from torch.optim import Optimizer

from lightning_tricks._base import (
    UserInputError,
    check_choice,
    check_range,
    log_figure,
    log_metrics,
    log_table,
    require_extra,
    warn_once,
)
from lightning_tricks.callbacks._points import Points
from lightning_tricks.callbacks._trainer import resumes
from lightning_tricks.callbacks.norms._files import NormFile
from lightning_tricks.callbacks.norms._forward_order import first_uses
from lightning_tricks.callbacks.norms._history import TOTAL, Block, NormHistory, columns
from lightning_tricks.callbacks.norms._layers import (
    OnlyLooks,
    is_sharded,
    layers_of,
    may_change_gradients,
    members_of,
)
from lightning_tricks.callbacks.norms._nonfinite import first_nonfinite, nonfinite_message
from lightning_tricks.callbacks.norms._recorder import NormRecorder, Record
from lightning_tricks.callbacks.norms._summary import layer_table, step_metrics

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_CAPACITY = 64  # records between two transfers, if logging steps are further apart than that
Picture = Literal["gradients", "weights", "updates"]


class NormMonitor(OnlyLooks, Callback):
    """Watch the norms of weights, gradients and updates, per layer and in total.

    Measured are the gradients that the optimizer really uses (accumulated, reduced over ranks, unscaled) before and
    after clipping, the weights, what the optimizer changed, and how many values are NaN or infinite. Measured are the
    1st, 2nd, 4th, 8th, ... step and every ``every_n_steps``-th one; other steps cost a few microseconds. Training is
    not touched.

    The logger gets the total, quantiles over the layers and the worst few layers; pictures show all layers; everything
    is in :meth:`table` and in a file beside the logger's own.

    Args:
        every_n_steps: optimizer steps from one measurement to the next.
        depth: components of a parameter's path that name its layer (``1``: the children of the LightningModule); by
            default the module that owns it.
        match: regular expression; layers whose name it does not find are summed up as one.
        updates: measure what the optimizer changes; this holds a copy of the weights during a measured step.
        find_nonfinite: look in every step whether anything became NaN or infinite: on the CPU at the loss, and the
            first step with a broken one is measured; on other devices at all gradients, without waiting. Not done
            under a loss scaler and for sharded parameters.
        plot_every_n_epochs: epochs between pictures to the logger, which also gets them at the end; 0 for none.
        worst: how many layers of the largest and of the smallest update ratio go to the logger with the pictures.
        table: kind of the file with all records, or ``None`` for no file.
        dirpath: folder of that file; by default the logger's folder, and without a logger there is no file.

    Raises:
        UserInputError: for a value out of range, a ``match`` that finds no layer, and strategies that hide the
            parameters' shards (``FSDPStrategy``, ``DeepSpeedStrategy``; ``ModelParallelStrategy`` works).

    Example:
        >>> import lightning as L, lightning_tricks as lt
        >>> monitor = lt.NormMonitor(every_n_steps=20)
        >>> trainer = L.Trainer(callbacks=[monitor], logger=False)
        >>> monitor.table()["gradient_norm"]  # filled by trainer.fit(...)
        []

    Reference: Godbole et al., Deep Learning Tuning Playbook (2023): log the norm before clipping. Karpathy, CS231n:
        the ratio of updates to weights should be around 1e-3.
    """

    def __init__(
        self,
        *,
        every_n_steps: int = 100,
        depth: int | None = None,
        match: str | None = None,
        updates: bool = True,
        find_nonfinite: bool = True,
        plot_every_n_epochs: int = 10,
        worst: int = 3,
        table: Literal["csv", "parquet"] | None = "csv",
        dirpath: str | None = None,
    ) -> None:
        super().__init__()
        self.every_n_steps = int(check_range("every_n_steps", every_n_steps, low=1))
        self.depth = depth if depth is None else int(check_range("depth", depth, low=1))
        self.plot_every_n_epochs = int(check_range("plot_every_n_epochs", plot_every_n_epochs, low=0))
        self.worst = int(check_range("worst", worst, low=0))
        self.updates = updates
        self.find_nonfinite = find_nonfinite
        self.match = match
        if match is not None:
            try:
                re.compile(match)
            except re.error as error:
                raise UserInputError(f"match must be a regular expression, but got {match!r}: {error}.") from None
        if table is not None:
            check_choice("table", table, ("csv", "parquet"))
        if table == "parquet":
            require_extra("pyarrow", "all", "NormMonitor(table='parquet')")
        self.kind = table
        self.dirpath = dirpath
        self._reset()

    def _reset(self) -> None:
        self._history = NormHistory()
        self._counts: list[int] = []  # steps seen, per optimizer
        self._first_nonfinite: dict[str, Any] | None = None
        self._waiting: list[Any] = []  # points that an interrupted run had not logged
        self._drop_run()

    def _drop_run(self) -> None:
        """Forget everything that belongs to a running fit."""
        for handle in getattr(self, "_handles", ()):
            handle.remove()
        self._handles: list[Any] = []
        self._recorder: NormRecorder | None = None
        self._record: Record | None = None
        self._members: list[list[int]] = []
        self._optimizers: dict[int, int] = {}
        self._at: tuple[int, int] | None = None
        self._trained: tuple[bool, ...] = ()
        self._look_at_order = False
        self._looked = False
        self._uses: dict[str, int] = {}
        self._file: NormFile | None = None
        self._plotted = 0
        self._watching = False
        self._clipping = True
        self._alarm = False
        self._in_step = False
        self._on_device = False
        self._log_every = 1
        self._one_step_per_batch = False
        self._trainer: weakref.ref[Trainer] | None = None
        self._points = Points()

    def state_dict(self) -> dict[str, Any]:
        """Return all records so far; plain lists and tensors.

        What a checkpoint holds has been logged or waits in it: a run that goes on from it logs the rest.
        """
        trainer = None if self._trainer is None else self._trainer()
        if trainer is not None and self._recorder is not None and self._recorder.world_size == 1:
            self._flush(trainer, write=False)
        return {
            "history": self._history.state_dict(),
            "counts": list(self._counts),
            "first": self._first_nonfinite,
            "points": self._points.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the records of the interrupted run."""
        self._history.load_state_dict(state_dict["history"])
        self._counts = list(state_dict["counts"])
        self._first_nonfinite = state_dict["first"]
        self._waiting = state_dict.get("points", [])

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep what was seen when weights are loaded for a validation or test."""
        resumes(self, trainer, checkpoint)

    # What was seen

    def table(self) -> dict[str, list[Any]]:
        """Return all records as columns, one row per layer and measured step, ready for ``pandas.DataFrame``.

        Columns: ``step`` (optimizer steps before this one), ``optimizer`` (its number), ``layer`` (``"(total)"``, then
        layers in forward order), ``values`` (how many), ``weight_norm``, ``gradient_norm`` (before clipping),
        ``clipped_gradient_norm`` (after it), ``update_norm``, ``update_ratio`` (of the update to the weights),
        ``nonfinite_gradients`` and ``nonfinite_weights`` (shares), ``clipped``, ``skipped`` (by the loss scaler).
        A number that does not exist (the gradient of a frozen layer) is NaN.
        """
        return columns(list(self._history.rows()))

    @property
    def clipped_share(self) -> float:
        """Share of the measured steps in which clipping made the gradient smaller; NaN before the first."""
        totals = [row.clipped for row in self._history.rows() if row.layer == TOTAL]
        return sum(totals) / len(totals) if totals else math.nan

    @property
    def first_nonfinite(self) -> Mapping[str, Any] | None:
        """``step``, ``layer`` and ``quantity`` ("gradient" or "weight") of the first NaN or infinity, or None."""
        return self._first_nonfinite

    def plot(self, kind: Picture = "gradients") -> "Figure":
        """Return a picture of all records so far, layers in forward order.

        Args:
            kind: ``"gradients"`` (layers × steps, log10 of the norm before clipping), ``"weights"`` or ``"updates"``
                (the ratio of updates to weights, with the band around 1e-3).
        """
        from lightning_tricks import plots

        check_choice("kind", kind, ("gradients", "weights", "updates"))
        draw = {
            "gradients": plots.plot_gradient_norms,
            "weights": plots.plot_weight_norms,
            "updates": plots.plot_update_ratios,
        }[kind]
        quantity = {"gradients": "gradient_norm", "weights": "weight_norm", "updates": "update_ratio"}[kind]
        layers = self._history.layers()
        steps, values = self._history.grid(quantity, layers)
        return draw(steps, layers, values)

    # Lightning's hooks

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Start fresh, and refuse strategies whose shards cannot be seen."""
        if stage != "fit":
            return
        if isinstance(trainer.strategy, (FSDPStrategy, DeepSpeedStrategy)):
            raise UserInputError(
                f"NormMonitor cannot see the parameters' shards under {type(trainer.strategy).__name__}. "
                "Use ModelParallelStrategy with fully_shard in configure_model, or remove NormMonitor."
            )
        self._reset()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen to the optimizers; hooks are the only place between clipping and the update."""
        self._look_at_order = True
        self._on_device = trainer.strategy.root_device.type != "cpu"
        # Under a loss scaler infinities are everyday; on shards the ranks could disagree about what to measure.
        self._watching = self.find_nonfinite and getattr(trainer.precision_plugin, "scaler", None) is None
        self._clipping = may_change_gradients(trainer)
        self._log_every = max(1, getattr(trainer, "log_every_n_steps", 50))
        self._trainer = weakref.ref(trainer)
        self._points = Points(self.every_n_steps, self._log_every)
        self._points.load_state_dict(self._waiting)
        self._waiting = []
        self._one_step_per_batch = pl_module.automatic_optimization and len(trainer.optimizers) == 1
        self._counts += [0] * (len(trainer.optimizers) - len(self._counts))
        self._optimizers = {id(optimizer): i for i, optimizer in enumerate(trainer.optimizers)}
        for optimizer in trainer.optimizers:
            self._handles.append(optimizer.register_step_pre_hook(partial(self._before_step, trainer)))
            self._handles.append(optimizer.register_step_post_hook(self._after_step))
        if self.kind is not None:
            self._file = NormFile.beside_logger(trainer, kind=self.kind, dirpath=self.dirpath)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """See whether the loss is finite, and read the order of the layers from its graph when that is not known."""
        if self._watching and not self._on_device and not math.isfinite(loss.item()):
            self._alarm = True
        if not self._look_at_order:
            return
        self._looked = True
        uses = first_uses(loss)
        for name, parameters in layers_of(pl_module, self.depth):
            found = [uses[id(p)] for p in parameters if id(p) in uses]
            if found:
                self._uses.setdefault(name, min(found))

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Measure the gradients before clipping."""
        record = self._due(trainer, optimizer)
        if record is None and (self._alarm or self._on_device):
            record = self._watch(trainer, optimizer)
        if record is not None and self._recorder is not None and not record.has_gradients:
            self._recorder.measure_gradients(record)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """On logging steps, empty the ring and write."""
        if self._record is not None:
            self._close()
        if self._looked:  # the numbers of one batch can be compared, those of two cannot
            self._history.first_use.update(self._uses)
            self._uses, self._look_at_order, self._looked = {}, False, False
        self._in_step = False
        recorder = self._recorder
        if recorder is None or not recorder.records:
            return
        before = recorder.records[0].step // self._log_every
        if recorder.is_full or trainer.global_step // self._log_every > before:
            self._flush(trainer, write=True)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Every N epochs, draw."""
        if self.plot_every_n_epochs and (trainer.current_epoch + 1) % self.plot_every_n_epochs == 0:
            self._flush(trainer, write=True)
            self._draw(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write what is left, draw, and let go of the run."""
        self._flush(trainer, write=True, last=True)
        if self.plot_every_n_epochs:
            self._draw(trainer)
        self._finish()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Keep what was measured, unless that needs the other ranks, which may not be there."""
        if self._recorder is not None and self._recorder.world_size == 1:
            self._flush(trainer, write=True, last=True)
        self._finish()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let go of the run."""
        self._drop_run()

    # One optimizer step

    def _due(self, trainer: Trainer, optimizer: Optimizer) -> Record | None:
        """Return the record of the step that is under way, opened on first sight, or None if it is not measured."""
        if self._in_step and self._one_step_per_batch:
            return self._record
        number = self._optimizers.get(id(optimizer))
        if number is None:
            return None
        if not self._one_step_per_batch:  # the number of the step tells whether it is another one
            at = (trainer.global_step, number)
            if at == self._at:
                return self._record
            self._at = at
        self._in_step = True
        self._close()
        self._counts[number] += 1
        if self._is_sampled(self._counts[number]):
            self._open(trainer, number)
        return self._record

    def _is_sampled(self, count: int) -> bool:
        """Whether the ``count``-th step is measured; counted from 1, so that Lightning's logging steps are."""
        return count % self.every_n_steps == 0 or (count < self.every_n_steps and count & (count - 1) == 0)

    def _watch(self, trainer: Trainer, optimizer: Optimizer) -> Record | None:
        """Between two measured steps, look for gradients that broke; measure the step whose loss is broken already."""
        recorder = self._recorder
        if not self._watching or recorder is None or (number := self._optimizers.get(id(optimizer))) is None:
            return None
        if recorder.device.type != "cpu":
            recorder.watch(trainer.global_step, self._members[number])
        elif self._alarm:
            self._watching = False
            record = self._open(trainer, number)
            recorder = self._current_recorder(trainer)
            recorder.measure_gradients(record)  # too late to measure after clipping
            recorder.measure_before_update(record, clipping=None if self._clipping else False)
        return self._record

    def _open(self, trainer: Trainer, number: int) -> Record:
        recorder = self._current_recorder(trainer)
        if recorder.is_full:  # a batch with very many optimizer steps
            self._flush(trainer, write=False)
        scale = self._loss_scale(trainer, number)
        self._record = record = recorder.begin(trainer.global_step, number, self._members[number], scale)
        return record

    def _current_recorder(self, trainer: Trainer) -> NormRecorder:
        """Return the recorder of the layers as they are now; a parameter that came or went asks for a new one."""
        layers = layers_of(trainer.lightning_module, self.depth, self.match)
        parameters = [p for _, group in layers for p in group]
        trained = tuple(p.requires_grad for p in parameters)
        recorder = self._recorder
        if recorder is None or [*map(id, recorder.parameters)] != [*map(id, parameters)]:
            self._flush(trainer, write=False)
            world_size = trainer.world_size if is_sharded(parameters) else 1
            self._watching = self._watching and world_size == 1
            recorder = NormRecorder(layers, capacity=_CAPACITY, world_size=world_size, measure_updates=self.updates)
            self._recorder = recorder
        elif trained != self._trained:
            self._look_at_order = True
        self._trained = trained
        self._members = members_of(parameters, trainer.optimizers)
        return recorder

    @staticmethod
    def _loss_scale(trainer: Trainer, number: int) -> Tensor | None:
        """Return the factor on the gradients of an optimizer that takes it out itself (a fused one under fp16)."""
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        if scaler is None or not getattr(trainer.optimizers[number], "_step_supports_amp_scaling", False):
            return None
        scale: Tensor = scaler.scale(torch.ones((), device=trainer.strategy.root_device))
        return scale

    def _before_step(
        self, trainer: Trainer, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Measure right before the update: now, or at the end of the closure in which Lightning clips."""
        record = self._due(trainer, optimizer)
        if record is None:
            return None
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if closure is None:
            self._measure_before_update(record)
            return None
        wrapped = partial(self._call_then_measure, closure, record)
        return ((args[0], wrapped, *args[2:]), kwargs) if len(args) > 1 else (args, {**kwargs, "closure": wrapped})

    def _call_then_measure(self, closure: Any, record: Record) -> Any:
        result = closure()
        self._measure_before_update(record)
        return result

    def _measure_before_update(self, record: Record) -> None:
        if self._recorder is not None and not record.at_update:
            self._recorder.measure_before_update(record, clipping=self._clipping)

    def _after_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        record = self._record
        if record is None or self._recorder is None or self._optimizers.get(id(optimizer)) != record.optimizer:
            return
        self._recorder.measure_update(record, getattr(optimizer, "found_inf", None))
        self._record = None

    def _close(self) -> None:
        """End a measured step whose update never came."""
        if self._record is not None and self._recorder is not None:
            self._recorder.close(self._record)
        self._record = None

    # What is written

    def _flush(self, trainer: Trainer, *, write: bool, last: bool = False) -> None:
        block = self._collect()
        if block is not None:
            self._publish(trainer, block)
        for step, metrics in self._points.ready(None if last else trainer.global_step):
            log_metrics(trainer, metrics, step=step)
        if write and self._file is not None:
            self._file.write(self._history)

    def _publish(self, trainer: Trainer, block: Block) -> None:
        several = len(trainer.optimizers) > 1
        for record, step in enumerate(block.steps):
            numbers = partial(step_metrics, block, record, several=several)
            self._points.add(step, numbers, owner=block.optimizers[record])

    def _collect(self) -> Block | None:
        """Bring what the ring holds to the host."""
        self._close()
        block = None if self._recorder is None else self._recorder.drain()
        if block is not None and self._recorder is not None:
            self._look_for_nonfinite(block, self._recorder.watched)
            self._history.add(block)
        return block

    def _look_for_nonfinite(self, block: Block, watched: Mapping[str, int]) -> None:
        if self._first_nonfinite is not None:
            return
        self._first_nonfinite = first_nonfinite(block, watched, self._history.first_use)
        if self._first_nonfinite is not None:
            self._watching = False
            self._say_nonfinite(**self._first_nonfinite)

    def _say_nonfinite(self, step: int, layer: str, quantity: str) -> None:
        warn_once(nonfinite_message(step, layer, quantity), key=f"NormMonitor: nonfinite {id(self)} {step}")

    def _draw(self, trainer: Trainer) -> None:
        if not trainer.is_global_zero or not trainer.loggers or len(self._history) == self._plotted:
            return
        self._plotted = len(self._history)
        kinds: list[Picture] = ["gradients", "weights", *(["updates"] if self.updates else [])]  # type: ignore[list-item]
        for kind in kinds:
            log_figure(trainer, f"norms/{kind}", self.plot(kind))
        if self.worst:
            head, body = layer_table(self._history, self.worst)
            log_table(trainer, "norms/worst_layers", head, body)

    def _finish(self) -> None:
        if self._file is not None:
            self._file.finish(self._history)
        self._drop_run()
