"""Norms and activations for a diagnosis: the monitors' own machinery, without their output."""

import math
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from torch import nn

from lightning_tricks.callbacks.activations._activation_monitor import COLUMNS, ActivationMonitor
from lightning_tricks.callbacks.norms._history import TOTAL, Block, Row
from lightning_tricks.callbacks.norms._norm_monitor import NormMonitor
from lightning_tricks.diagnosis import LayerActivity, NormRecord

_FIRST, _LAST = 8, 40  # records that the rules look at: how the run began, and how it is


class QuietNorms(NormMonitor):
    """A norm monitor that tells nobody, and hands out what the rules need."""

    def __init__(self, every_n_steps: int) -> None:
        super().__init__(every_n_steps=every_n_steps, plot_every_n_epochs=0, worst=0, table=None)
        self._read = 0
        self._records: list[NormRecord] = []

    def _reset(self) -> None:
        super()._reset()
        self._read = 0
        self._records = []

    @property
    def alarmed(self) -> bool:
        """Whether a loss was not finite."""
        return self._alarm

    @property
    def needs_other_ranks(self) -> bool:
        """Whether reading the ring takes part in a collective."""
        return self._recorder is not None and self._recorder.world_size > 1

    def records(self) -> Sequence[NormRecord]:
        """Read the ring, and return the first and the last records."""
        self._collect()
        rows = list(self._history.rows(self._read))
        self._read = len(self._history)
        self._records += norm_records(rows)
        del self._records[_FIRST:-_LAST]
        return self._records

    def _publish(self, trainer: Trainer, block: Block) -> None: ...

    def _say_nonfinite(self, step: int, layer: str, quantity: str) -> None: ...


class QuietActivations(ActivationMonitor):
    """An activation monitor that tells nobody, and hands out what the rules need."""

    def __init__(self, every_n_steps: int) -> None:
        super().__init__(every_n_steps=every_n_steps, plot_every_n_epochs=0, worst=0)
        self._read = 0
        self._batches: list[list[LayerActivity]] = []

    def _reset(self) -> None:
        super()._reset()
        self._read = 0
        self._batches = []

    @property
    def is_sampling(self) -> bool:
        """Whether the batch that runs is looked at."""
        return bool(self._handles)

    def batches(self) -> Sequence[Sequence[LayerActivity]]:
        """Bring what was seen to the host, and return the first and the last sampled batches."""
        self._collect()
        rows, self._read = self._rows[self._read :], len(self._rows)
        self._batches += activities(rows)
        del self._batches[_FIRST:-_LAST]
        return self._batches

    def _publish(self, trainer: Trainer, rows: Sequence[Sequence[Any]]) -> None: ...


def norm_records(rows: Iterable[Row]) -> list[NormRecord]:
    """Return one record for each total and the rows of the layers after it."""
    records: list[NormRecord] = []
    total: Row | None = None
    layers: list[Row] = []
    for row in rows:
        if row.layer == TOTAL:
            if total is not None:
                records.append(_record(total, layers))
            total, layers = row, []
        else:
            layers.append(row)
    return records if total is None else [*records, _record(total, layers)]


def _record(total: Row, layers: Sequence[Row]) -> NormRecord:
    trained = [row for row in layers if not math.isnan(row.update_norm)]
    weights = math.hypot(*(row.weight_norm for row in trained))
    clipped, before = total.clipped_gradient_norm, total.gradient_norm
    return NormRecord(
        step=total.step,
        layers=[row.layer for row in layers],
        gradients=[row.gradient_norm / math.sqrt(max(row.values, 1)) for row in layers],
        ratios=[row.update_ratio for row in layers],
        total_gradient=before,
        total_ratio=math.hypot(*(row.update_norm for row in trained)) / weights if weights else math.nan,
        clip_factor=clipped / before if before else 1.0,
    )


def activities(rows: Sequence[Sequence[Any]]) -> list[list[LayerActivity]]:
    """Return the layers of each sampled batch."""
    step, layer, kind, std, saturated, dead = (
        COLUMNS.index(name) for name in ("step", "layer", "kind", "std", "saturated", "dead")
    )
    return [
        [LayerActivity(row[layer], row[kind], row[std], row[saturated], row[dead]) for row in batch]
        for _, batch in groupby(rows, key=lambda row: row[step])
    ]


def is_compiled(module: LightningModule) -> bool:
    """Whether a module or any part of it is compiled: a mode around it would compile it again."""
    from torch._dynamo import OptimizedModule

    def compiled(part: nn.Module) -> bool:
        return isinstance(part, OptimizedModule) or getattr(part, "_compiled_call_impl", None) is not None

    return getattr(module, "_compiler_ctx", None) is not None or any(map(compiled, module.modules()))
