"""What a step of a stack is: the losses and the metrics of K classifiers or regressors at once."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from copy import deepcopy
from typing import Any, Literal

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_tricks._base import UserInputError
from lightning_tricks.modules import (
    Classifier,
    Regressor,
    check_class_targets,
    check_finite,
    check_regression_targets,
    gaussian_nll,
    hard_targets,
    split_batch,
)
from lightning_tricks.stacked._equivalence import check_stack
from lightning_tricks.stacked._net import StackedNet

Stage = Literal["train", "val"]


class Task(ABC):
    """Abstract: how a stack computes its losses and metrics."""

    nets: list[nn.Module]

    def begin(self, stack: StackedNet, trainer: Trainer) -> None:  # noqa: B027 - most tasks need not know
        """Take note of the trainer before the first batch."""

    @property
    def timed(self) -> bool:
        """Whether a step depends on the epoch, so that a check may say something else later."""
        return False

    @abstractmethod
    def losses(self, stack: StackedNet, batch: Any, batch_idx: int) -> tuple[Tensor, int]:
        """Return the training losses ``(K,)`` of a batch, and its size."""

    @abstractmethod
    def measure(self, stack: StackedNet, batch: Any, batch_idx: int) -> None:
        """Take a validation batch into account."""

    @abstractmethod
    def measured(self) -> dict[str, Tensor]:
        """Return the metrics ``(K,)`` of all batches since the last call."""

    @abstractmethod
    def names(self) -> list[str]:
        """Return the metrics' names, as far as they are known beforehand."""

    @abstractmethod
    def follow(self, names: Iterable[str]) -> None:
        """Say which metrics are needed; dear ones are computed only then."""

    @abstractmethod
    def keep(self, rows: Sequence[int]) -> None:
        """Drop all nets but these."""

    @abstractmethod
    def check(self, stack: StackedNet, nets: Sequence[nn.Module], batch: Any, stage: Stage, *, again: bool) -> None:
        """Compare the stack on a first batch of training or validation with each of its nets by itself.

        Args:
            stack: the stack, in the mode of that stage.
            nets: those that still train.
            batch: the batch.
            stage: which.
            again: whether this was done in an earlier epoch.

        Raises:
            UserInputError: if they do not say the same.
        """


class SupervisedTask(Task):
    """Classifiers or regressors of this package.

    Args:
        models: of one class whose steps are its own.

    Raises:
        UserInputError: if they differ in what a loss is.
    """

    def __init__(self, models: Sequence[Classifier | Regressor]) -> None:
        first = models[0]
        self.nets = [model.net for model in models]
        self.task = first.task
        self._dear = [model.val_metrics for model in models]
        self._names = ["val_loss", *(str(name) for name in first.val_metrics.keys())]  # noqa: SIM118 - not a dict
        self._followed: list[str] = []
        self._metrics: list[Any] = []
        self._sums: dict[str, Tensor] = {}
        self._count = 0
        same = ("num_classes", "noise", "num_targets", "task")
        for i, model in enumerate(models):
            for name in same:
                if getattr(model, name, None) != getattr(first, name, None):
                    raise UserInputError(
                        f"models that are stacked must share {name}, but model {i} has {getattr(model, name)!r} and "
                        f"model 0 {getattr(first, name)!r}."
                    )
            if not _equal(getattr(model, "class_weights", None), getattr(first, "class_weights", None)):
                raise UserInputError("models that are stacked must share class_weights, but theirs differ.")
        self.num_classes = getattr(first, "num_classes", 0)
        self.gaussian = getattr(first, "noise", "none") == "gaussian"
        self.width = getattr(first, "num_targets", 0) * (2 if self.gaussian else 1)
        self.class_weights: Tensor | None = getattr(first, "class_weights", None)
        smoothing = [float(getattr(model, "label_smoothing", 0.0)) for model in models]
        self.smoothing = torch.tensor(smoothing) if any(smoothing) else None

    def names(self) -> list[str]:
        """Return the names of the metrics."""
        return self._names

    def follow(self, names: Iterable[str]) -> None:
        """Compute these metrics with torchmetrics, net by net, where there is no faster way here."""
        self._followed = [name for name in names if name in self._names and name not in self._cheap()]
        self._metrics = [deepcopy(metrics) for metrics in self._dear] if self._followed else []

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all models but these."""
        self._metrics = [self._metrics[row] for row in rows] if self._metrics else []
        self._dear = [self._dear[row] for row in rows]
        if self.smoothing is not None:
            self.smoothing = self.smoothing[list(rows)]

    def check(self, stack: StackedNet, nets: Sequence[nn.Module], batch: Any, stage: Stage, *, again: bool) -> None:
        """Compare the stack on a first batch of training with each net by itself."""
        if stage == "train":
            check_stack(stack, nets, split_batch(batch)[0])

    def losses(self, stack: StackedNet, batch: Any, batch_idx: int) -> tuple[Tensor, int]:
        """Return the training losses of a batch."""
        x, y = self._inputs_and_targets(batch, batch_idx, "train")
        outputs, y = self._checked(stack(x), y, batch_idx)
        smoothing = None if self.smoothing is None else self.smoothing.to(outputs.device)
        return self._loss(outputs, y, smoothing), len(y)

    def measure(self, stack: StackedNet, batch: Any, batch_idx: int) -> None:
        """Take a validation batch into account."""
        x, y = self._inputs_and_targets(batch, batch_idx, "val")
        outputs, y = self._checked(stack(x), y, batch_idx)
        self._add("val_loss", self._loss(outputs, y, None) * len(y))
        self._count += len(y)
        if self.task == "regression":
            error = (outputs.chunk(2, -1)[0] if self.gaussian else outputs) - y
            self._add("val_rmse", error.square().mean(2).sum(1))
            self._add("val_mae", error.abs().mean(2).sum(1))
        else:
            self._add("val_acc", _right(outputs, hard_targets(y, self.task), self.task))
        for metrics, output in zip(self._metrics, outputs, strict=bool(self._metrics)) if self._metrics else ():
            probs = output.float().softmax(-1) if self.task == "multiclass" else output.float().sigmoid()
            metrics.to(probs.device).update(probs, hard_targets(y, self.task))

    def measured(self) -> dict[str, Tensor]:
        """Return the metrics of all batches since the last call."""
        if not self._count:
            return {}
        values = {name: total / self._count for name, total in self._sums.items()}
        if "val_rmse" in values:
            values["val_rmse"] = values["val_rmse"].sqrt()
        results = [metrics.compute() for metrics in self._metrics]
        for metrics in self._metrics:
            metrics.reset()
        values |= {name: torch.stack([result[name] for result in results]) for name in self._followed}
        self._sums, self._count = {}, 0
        return values

    def _cheap(self) -> tuple[str, ...]:
        return ("val_loss", "val_rmse", "val_mae") if self.task == "regression" else ("val_loss", "val_acc")

    def _add(self, name: str, values: Tensor) -> None:
        self._sums[name] = self._sums[name] + values if name in self._sums else values

    def _inputs_and_targets(self, batch: Any, batch_idx: int, stage: str) -> tuple[Any, Tensor]:
        x, y = split_batch(batch)
        if y is None:
            raise UserInputError(f"a {stage} batch must hold inputs and targets, but got inputs only.")
        if batch_idx == 0:
            check_finite(x, f"the inputs of the first {stage} batch")
            if self.task == "regression":
                check_finite(y, f"the targets of the first {stage} batch")
        return x, y

    def _checked(self, outputs: Tensor, y: Tensor, batch_idx: int) -> tuple[Tensor, Tensor]:
        """Return outputs and targets in the shapes that the losses take, checked as one model would."""
        if self.task == "regression":
            outputs = outputs.unsqueeze(-1) if outputs.ndim == 2 else outputs
            if outputs.ndim != 3 or outputs.shape[2] != self.width:
                raise UserInputError(
                    f"a regression net with this num_targets and noise must return (B, {self.width}), but got "
                    f"{tuple(outputs.shape[1:])}."
                )
            mean = outputs[0].chunk(2, -1)[0] if self.gaussian else outputs[0]
            return outputs, check_regression_targets(y, mean)
        if self.task == "binary":
            outputs = outputs.squeeze(-1) if outputs.ndim == 3 else outputs
            y = y.squeeze(1) if y.ndim == 2 and y.shape[1] == 1 else y
        look = batch_idx == 0 or y.device.type == "cpu"
        check_class_targets(y, outputs[0], self.task, self.num_classes, look_at_values=look)
        return outputs, y

    def _loss(self, outputs: Tensor, y: Tensor, smoothing: Tensor | None) -> Tensor:
        if self.task == "regression":
            return self._regression_loss(outputs, y)
        weights = None if self.class_weights is None else self.class_weights.to(outputs.device)
        if self.task == "multiclass":
            return _cross_entropies(outputs, y, smoothing, weights)
        return _binary_losses(outputs, y, smoothing, weights, self.task)

    def _regression_loss(self, outputs: Tensor, y: Tensor) -> Tensor:
        if not self.gaussian:
            return (outputs - y).square().mean((1, 2))
        mean, raw = outputs.chunk(2, -1)
        log_variance = (F.softplus(raw) + 1e-6).log()
        return torch.vmap(gaussian_nll, in_dims=(0, 0, None))(mean, log_variance, y)


def _cross_entropies(outputs: Tensor, y: Tensor, smoothing: Tensor | None, weights: Tensor | None) -> Tensor:
    """Return ``(K,)`` mean cross-entropies of logits ``(K, B, C)``, as ``classification_loss`` defines them."""
    logits = outputs.transpose(1, 2)  # (K, C, B)
    nets, classes, size = logits.shape
    if smoothing is None and weights is None and not y.is_floating_point():
        return F.cross_entropy(logits, y.long().expand(nets, size), reduction="none").mean(1)
    targets = y if y.is_floating_point() else F.one_hot(y.long(), classes)
    targets = targets.to(logits.dtype).mT.expand(nets, classes, size)
    mass: Tensor | int = size
    if weights is not None:
        mass = weights[y].sum() if not y.is_floating_point() else (y.to(weights.dtype) @ weights).sum()
    if smoothing is not None:
        s = smoothing.view(-1, 1, 1)
        targets = targets * (1 - s) + s / classes
    return F.cross_entropy(logits, targets, weight=weights, reduction="none").sum(1) / mass


def _binary_losses(outputs: Tensor, y: Tensor, smoothing: Tensor | None, weights: Tensor | None, task: str) -> Tensor:
    """Return ``(K,)`` mean losses of logits ``(K, B)`` or, per label, ``(K, B, L)``."""
    targets = y.to(outputs.dtype).expand_as(outputs)
    if smoothing is not None:
        s = smoothing.view(-1, *[1] * (outputs.ndim - 1))
        targets = targets * (1 - s) + s / 2
    positive = weights if task == "multilabel" else None
    losses = F.binary_cross_entropy_with_logits(outputs, targets, reduction="none", pos_weight=positive).flatten(1)
    if weights is None or task == "multilabel":
        return losses.mean(1)
    w = weights[0] * (1 - y.to(outputs.dtype)) + weights[1] * y.to(outputs.dtype)
    return (w * losses).sum(1) / w.sum()


def _right(outputs: Tensor, labels: Tensor, task: str) -> Tensor:
    """Return how many samples each net gets right (of several labels: which share of them)."""
    if task == "multiclass":
        return (outputs.argmax(-1) == labels).sum(1).float()
    return (
        ((outputs.float().sigmoid() > 0.5) == labels.bool())
        .float()
        .flatten(2 if task == "multilabel" else 1)
        .view(len(outputs), len(labels), -1)
        .mean(2)
        .sum(1)
    )


def _equal(a: Tensor | None, b: Tensor | None) -> bool:
    return (a is None) == (b is None) and (a is None or b is None or torch.equal(a, b))
