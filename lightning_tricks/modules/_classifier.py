"""The classifier."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import (
    BinaryAccuracy,
    BinaryCalibrationError,
    BinaryConfusionMatrix,
    BinaryF1Score,
    MulticlassAccuracy,
    MulticlassCalibrationError,
    MulticlassConfusionMatrix,
    MulticlassF1Score,
    MultilabelAccuracy,
    MultilabelF1Score,
)

from lightning_tricks._base import UserInputError, check_choice, check_range, log_figure
from lightning_tricks.modules._base_module import Stage, SupervisedModule, split_batch
from lightning_tricks.modules._losses import classification_loss, smoothed_targets
from lightning_tricks.modules._targets import check_class_targets, hard_targets
from lightning_tricks.optim import Implementation, OptimizerName

ClassificationTask = Literal["multiclass", "binary", "multilabel"]


class Classifier(SupervisedModule):
    """A net, its loss, its metrics and its optimizer, for binary, multiclass and multilabel classification.

    Logs ``train_loss``; ``val_loss``, ``val_acc``, ``val_f1`` (macro), ``val_ece`` (calibration error over 15 bins of
    equal width, Guo et al. 2017) and, with ``top_k`` > 1, ``val_top{k}``; the same as ``test_*``, with the confusion
    matrix as a picture. Targets may be soft (from MixUp or CutMix); metrics then count the most likely class.

    Batches are ``(inputs, targets)`` or dicts such as ``{"image": ..., "label": ...}``. Targets are integers ``(B,)``
    or probabilities ``(B, C)`` for multiclass; 0/1 or probabilities ``(B,)`` or ``(B, 1)`` for binary, ``(B, L)`` for
    multilabel. Labels are checked on every batch on the CPU, and once per epoch on an accelerator, where looking at
    them would wait for the device.

    Args:
        net: module from inputs to logits: ``(B, C)`` for multiclass, ``(B, 1)`` or ``(B,)`` for binary, ``(B, L)`` for
            multilabel.
        num_classes: number of classes (labels for multilabel); 2 for binary.
        task: ``"multiclass"``, ``"binary"`` or ``"multilabel"``.
        optimizer: name for :func:`~lightning_tricks.build_optimizer`.
        lr: learning rate; the optimizer's default if None.
        weight_decay: decay of the weights only, at least 0.
        implementation: of the optimizer: ``"auto"``, ``"fused"``, ``"foreach"`` or ``"plain"``.
        class_weights: one positive weight per class (per positive label for multilabel); the mean is weighted.
        label_smoothing: share of the training target spread evenly over the classes, in [0, 1) (Szegedy et al. 2016,
            section 7).
        top_k: also log the share of samples whose class is among the k most likely; multiclass only.
        class_names: one per class, for the confusion matrix.
        example_input: a batch for the model summary and the graph; guessed for MLP and ConvNet.

    Raises:
        UserInputError: for unknown names, numbers out of range, and batches that do not fit.

    Example:
        >>> from lightning_tricks import MLP, Classifier
        >>> model = Classifier(MLP(64, 10, dropout=0.5), num_classes=10, optimizer="adam", lr=3e-4)
        >>> model(torch.rand(2, 64)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        net: nn.Module,
        num_classes: int,
        *,
        task: ClassificationTask = "multiclass",
        optimizer: OptimizerName = "adam",
        lr: float | None = None,
        weight_decay: float = 0.0,
        class_weights: Sequence[float] | None = None,
        label_smoothing: float = 0.0,
        top_k: int = 1,
        class_names: Sequence[str] | None = None,
        example_input: Tensor | None = None,
        implementation: Implementation = "auto",
    ) -> None:
        check_choice("task", task, ("multiclass", "binary", "multilabel"))
        _check_sizes(task, num_classes, class_weights, top_k, class_names)
        super().__init__(
            net,
            task=task,
            optimizer=optimizer,
            lr=lr,
            weight_decay=weight_decay,
            example_input=example_input,
            implementation=implementation,
        )
        class_weights = None if class_weights is None else [float(weight) for weight in class_weights]
        class_names = None if class_names is None else list(class_names)
        self.save_hyperparameters(ignore=["net", "example_input"])
        self.num_classes = num_classes
        self.label_smoothing = check_range("label_smoothing", label_smoothing, low=0, high=1, open_high=True)
        self.class_names = class_names
        weights = None if class_weights is None else torch.tensor(class_weights)
        self.class_weights: Tensor | None
        self.register_buffer("class_weights", weights, persistent=False)
        metrics = _metrics(task, num_classes, top_k)
        self.val_metrics = metrics.clone(prefix="val_")
        self.test_metrics = metrics.clone(prefix="test_")
        self.confusion = _confusion(task, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits: ``(B, C)``, or ``(B,)`` for binary."""
        logits: Tensor = self.net(x)
        return logits.squeeze(-1) if self.task == "binary" and logits.ndim == 2 else logits

    def predict_step(self, batch: Any, batch_idx: int = 0) -> Tensor:
        """Return class probabilities: ``(B, C)``, or ``(B,)`` for binary."""
        logits = self(split_batch(batch)[0])
        return self._probabilities(logits)

    def _probabilities(self, logits: Tensor) -> Tensor:
        return logits.softmax(-1) if self.task == "multiclass" else logits.sigmoid()

    def _step(self, batch: Any, batch_idx: int, stage: Stage) -> Tensor:
        x, y = self._inputs_and_targets(batch, batch_idx, stage)
        logits = self(x)
        if self.task == "binary" and y.ndim == 2 and y.shape[1] == 1:
            y = y.squeeze(1)
        look = batch_idx == 0 or y.device.type == "cpu"
        check_class_targets(y, logits, self.task, self.num_classes, look_at_values=look)
        # Smoothing is a means of training; a validation loss without it stays comparable between settings.
        smoothing = self.label_smoothing if stage == "train" else 0.0
        targets = smoothed_targets(y, self.task, self.num_classes, smoothing, dtype=logits.dtype)
        loss = classification_loss(logits, targets, y, self.task, self.class_weights)
        self._log_loss(loss, len(y), stage)
        if stage != "train":
            self._update_metrics(logits, hard_targets(y, self.task), stage)
        return loss

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _update_metrics(self, logits: Tensor, labels: Tensor, stage: Stage) -> None:
        probs = self._probabilities(logits.detach().float())
        metrics = self.val_metrics if stage == "val" else self.test_metrics
        metrics.update(probs, labels)
        if stage == "test" and self.confusion is not None:
            self.confusion.update(probs, labels)

    def on_test_epoch_start(self) -> None:
        """Forget what an interrupted test left."""
        super().on_test_epoch_start()
        if self.confusion is not None:
            self.confusion.reset()

    def on_validation_epoch_end(self) -> None:
        """Log the metrics over the whole validation set."""
        self.log_dict(self.val_metrics.compute(), sync_dist=True)
        self.val_metrics.reset()

    def on_test_epoch_end(self) -> None:
        """Log the metrics over the whole test set and the confusion matrix as a picture."""
        self.log_dict(self.test_metrics.compute(), sync_dist=True)
        self.test_metrics.reset()
        if self.confusion is not None:
            counts = self.confusion.compute().cpu().numpy()
            self.confusion.reset()
            if self.trainer.is_global_zero:
                from lightning_tricks.plots import confusion_matrix

                log_figure(
                    self.trainer, "test/confusion_matrix", confusion_matrix(counts, class_names=self.class_names)
                )


class _FlatCalibrationError(BinaryCalibrationError):
    """Calibration error over all labels of all samples together."""

    def update(self, preds: Tensor, target: Tensor) -> None:
        super().update(preds.flatten(), target.flatten())


def _metrics(task: str, num_classes: int, top_k: int) -> MetricCollection:
    metrics: dict[str, Metric | MetricCollection]
    if task == "binary":
        metrics = {"acc": BinaryAccuracy(), "f1": BinaryF1Score(), "ece": BinaryCalibrationError(n_bins=15)}
    elif task == "multilabel":
        metrics = {
            "acc": MultilabelAccuracy(num_classes, average="micro"),
            "f1": MultilabelF1Score(num_classes),
            "ece": _FlatCalibrationError(n_bins=15),
        }
    else:
        metrics = {
            "acc": MulticlassAccuracy(num_classes, average="micro"),
            "f1": MulticlassF1Score(num_classes),
            "ece": MulticlassCalibrationError(num_classes, n_bins=15),
        }
        if top_k > 1:
            metrics[f"top{top_k}"] = MulticlassAccuracy(num_classes, top_k=top_k, average="micro")
    return MetricCollection(metrics)


def _confusion(task: str, num_classes: int) -> Metric | None:
    if task == "multilabel":
        return None
    return BinaryConfusionMatrix() if task == "binary" else MulticlassConfusionMatrix(num_classes)


def _check_sizes(
    task: str, num_classes: int, class_weights: Sequence[float] | None, top_k: int, class_names: Sequence[str] | None
) -> None:
    if isinstance(class_weights, str):
        raise UserInputError(
            f"class_weights must be one positive number per class, but got {class_weights!r}. To balance, give "
            "n / (num_classes * n_c) of each class c, n_c of the n training samples being of it."
        )
    check_range("num_classes", num_classes, low=1 if task == "multilabel" else 2)
    if task == "binary" and num_classes != 2:
        raise UserInputError(f"a binary classifier has num_classes=2, but got {num_classes}; use task='multiclass'.")
    check_range("top_k", top_k, low=1, high=num_classes)
    if top_k > 1 and task != "multiclass":
        raise UserInputError(f"top_k needs task='multiclass', but got task={task!r}.")
    for what, values in (("class_weights", class_weights), ("class_names", class_names)):
        if values is not None and len(values) != num_classes:
            raise UserInputError(f"{what} must hold {num_classes} entries, one per class, but got {len(values)}.")
    for weight in class_weights or ():
        check_range("every entry of class_weights", weight, low=0, open_low=True)
