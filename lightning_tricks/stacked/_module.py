"""The LightningModule in which a stack of models trains."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from lightning_tricks._base import MissingMetricError, UserInputError
from lightning_tricks.stacked._net import StackedNet
from lightning_tricks.stacked._optimizer import StackedOptimizer
from lightning_tricks.stacked._stopping import Rules
from lightning_tricks.stacked._tasks import Stage, Task
from lightning_tricks.stacked.optimizers import OptimizerSpec


@dataclass
class ModelProgress:
    """What became of one model of a stack.

    Args:
        history: one line per validation: ``epoch``, ``step``, ``train_loss`` (mean of the epoch so far), the metrics.
        value: the best finite value of the monitored metric, or None.
        best_epoch: the 0-based epoch of it, or -1.
        best_step: optimizer steps taken by then, or -1.
        message: why it stopped before the others, or None.
        steps: optimizer steps taken.
    """

    history: list[dict[str, float]] = field(default_factory=list)
    value: float | None = None
    best_epoch: int = -1
    best_step: int = -1
    message: str | None = None
    steps: int = 0

    @property
    def epochs(self) -> int:
        """How many epochs it was validated in, the last one included."""
        return int(self.history[-1]["epoch"]) + 1 if self.history else 0


class StackedModule(LightningModule):
    """K models that train on the same batches, each as if it were alone.

    Args:
        stack: their nets.
        task: their losses and metrics.
        optimizers: what their optimizers are.
        rules: their callbacks.
        monitor: the metric whose best value counts.
        mode: whether smaller or larger is better.

    Attributes:
        progress: one per model.
        best: their best weights and buffers so far, stacked.
        last: their final weights and buffers, stacked; of those that still train, from an earlier time.
    """

    def __init__(
        self,
        stack: StackedNet,
        task: Task,
        optimizers: OptimizerSpec,
        rules: Sequence[Rules],
        *,
        monitor: str,
        mode: Literal["min", "max"],
    ) -> None:
        super().__init__()
        self.stack = stack
        self.task, self.spec, self.rules = task, optimizers, list(rules)
        self.monitor, self.mode = monitor, mode
        self.live = list(range(stack.nets))
        self.progress = [ModelProgress() for _ in self.live]
        self.best = [tensor.clone().cpu() for tensor in stack.tensors()]
        self.last = [tensor.clone() for tensor in self.best]
        self._loss_sum: Tensor | float = 0.0
        self._seen = 0
        self._checked: set[Stage] = set()

    # Training.

    def configure_optimizers(self) -> StackedOptimizer:
        """Return the optimizer of all models that still train."""
        return StackedOptimizer(self.stack.weights, self.spec)

    def on_fit_start(self) -> None:
        """Move the snapshots to where the models train, in the precision in which they do."""
        now = self.stack.tensors()
        self.best = [tensor.to(like) for tensor, like in zip(self.best, now, strict=True)]
        self.last = [tensor.to(like) for tensor, like in zip(self.last, now, strict=True)]
        self.task.begin(self.stack, self.trainer)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the sum of the losses, whose gradient is each model's own."""
        self._check(batch, batch_idx, "train")
        losses, size = self.task.losses(self.stack, batch, batch_idx)
        self._loss_sum = self._loss_sum + losses.detach() * size
        self._seen += size
        return losses.sum()

    def _check(self, batch: Any, batch_idx: int, stage: Stage) -> None:
        """Compare the stack with its models: once, or in every epoch if what they do depends on it."""
        again = stage in self._checked
        if not again or (batch_idx == 0 and self.task.timed):
            nets = [self.task.nets[number] for number in self.live]
            self.task.check(self.stack, nets, batch, stage, again=again)
            self._checked.add(stage)

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None
    ) -> None:
        """Clip the gradient of every model by itself."""
        if gradient_clip_val:
            inner: StackedOptimizer = getattr(optimizer, "optimizer", optimizer)
            inner.clip(float(gradient_clip_val), by_value=gradient_clip_algorithm == "value")

    def on_train_epoch_start(self) -> None:
        """Begin a new mean of the training loss."""
        self._loss_sum, self._seen = 0.0, 0

    # Validation.

    def on_validation_epoch_start(self) -> None:
        """Forget what an interrupted validation has seen."""
        self.task.measured()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Take a batch into account."""
        self._check(batch, batch_idx, "val")
        self.task.measure(self.stack, batch, batch_idx)

    def on_validation_epoch_end(self) -> None:
        """Judge every model, and let those that are finished go."""
        measured = self.task.measured()
        missing = sorted({self.monitor, *(name for rules in self.rules for name in rules.monitors)} - set(measured))
        if measured and missing:
            raise MissingMetricError(
                f"the search monitors {', '.join(map(repr, missing))}, but that metric was not logged. Logged in "
                f"validation: {', '.join(measured)}."
            )
        if self.trainer.sanity_checking or not measured:
            return
        if self._seen:
            measured["train_loss"] = torch.as_tensor(self._loss_sum) / self._seen
        table = torch.stack([values.cpu().double() for values in measured.values()]).T.tolist()
        self.take([dict(zip(measured, row, strict=True)) for row in table])

    def take(self, values: Sequence[dict[str, float]]) -> None:
        """Take the values of one validation, one dict per model that still trains."""
        epoch, step = self.trainer.current_epoch, self.trainer.global_step
        better, stop, changed = [], [], False
        for row, (number, found) in enumerate(zip(self.live, values, strict=True)):
            progress, rules = self.progress[number], self.rules[number]
            progress.history.append({"epoch": epoch, "step": step, **found})
            progress.steps = step
            value = found[self.monitor]
            if math.isfinite(value) and (progress.value is None or self._beats(value, progress.value)):
                progress.value, progress.best_epoch, progress.best_step = value, epoch, step
                better.append(row)
            stops, lowered = rules.judge(found, self.spec.groups[row], epoch=epoch, step=step)
            changed |= lowered
            if stops and self._may_stop():
                stop.append(row)
                progress.message = rules.message
        self._copy(better, self.best)
        if changed:
            self._optimizer().refresh()
        self._dismiss(stop)

    def _beats(self, value: float, best: float) -> bool:
        return value < best if self.mode == "min" else value > best

    def _may_stop(self) -> bool:
        trainer = self.trainer
        enough = trainer.current_epoch + 1 >= (trainer.min_epochs or 0)
        return enough and trainer.global_step >= (trainer.min_steps or 0)

    def _optimizer(self) -> StackedOptimizer:
        optimizer: StackedOptimizer = self.trainer.optimizers[0]  # type: ignore[assignment]
        return optimizer

    def _copy(self, rows: Sequence[int], to: Sequence[Tensor]) -> None:
        if not rows:
            return
        here = torch.tensor(rows, device=self.device)
        there = torch.tensor([self.live[row] for row in rows], device=self.device)
        for kept, now in zip(to, self.stack.tensors(), strict=True):
            kept.index_copy_(0, there, now.index_select(0, here))

    def _dismiss(self, rows: Sequence[int]) -> None:
        """Let models go: no more time is spent on them."""
        if not rows:
            return
        self._copy(rows, self.last)
        if len(rows) == len(self.live):
            self.trainer.should_stop = True
            return
        stay = [row for row in range(len(self.live)) if row not in set(rows)]
        self._keep(stay)
        self._optimizer().keep(stay, before=len(stay) + len(rows))

    def _keep(self, stay: Sequence[int]) -> None:
        rows = torch.tensor(stay)
        self.live = [self.live[row] for row in stay]
        self.stack.keep(rows)
        self.task.keep(stay)
        if isinstance(self._loss_sum, Tensor):
            self._loss_sum = self._loss_sum[rows.to(self._loss_sum.device)]

    def on_train_end(self) -> None:
        """Take the final weights of those that trained to the end."""
        rows = [row for row, number in enumerate(self.live) if self.progress[number].message is None]
        self._copy(rows, self.last)
        for row in rows:
            self.progress[self.live[row]].steps = self.trainer.global_step

    def on_fit_end(self) -> None:
        """Say that nothing was learned because there was nothing to learn from.

        Raises:
            UserInputError: if the training loader is empty (and not switched off).
        """
        if self.trainer.num_training_batches == 0 and self.trainer.limit_train_batches != 0:
            raise UserInputError("the training set must hold at least one batch, but its loader is empty.")

    # Checkpoints: tensors, numbers and strings.

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save who still trains, everything seen, and the best and last weights."""
        checkpoint["stack"] = {
            "live": list(self.live),
            "progress": [vars(progress) for progress in self.progress],
            "rules": [rules.state_dict() for rules in self.rules],
            "best": self.best,
            "last": self.last,
            "loss": torch.as_tensor(self._loss_sum),
            "seen": self._seen,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Let those go that had left before; the rest follows as usual."""
        kept = checkpoint["stack"]
        self.progress = [ModelProgress(**progress) for progress in kept["progress"]]
        for rules, state in zip(self.rules, kept["rules"], strict=True):
            rules.load_state_dict(state)
        self.best, self.last = list(kept["best"]), list(kept["last"])
        self._keep([self.live.index(number) for number in kept["live"]])
        self.spec.groups = [self.spec.groups[number] for number in kept["live"]]
        self._loss_sum, self._seen = kept["loss"] if kept["seen"] else 0.0, kept["seen"]
