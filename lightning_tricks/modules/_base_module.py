"""What every LightningModule of ours does alike: unpack batches, check inputs, configure the optimizer."""

from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torchmetrics import MetricCollection

from lightning_tricks._base import UserInputError
from lightning_tricks.optim import Implementation, OptimizerName, build_optimizer

Stage = Literal["train", "val", "test", "predict"]

_INPUT_KEYS = ("x", "input", "inputs", "image", "images", "features")
_TARGET_KEYS = ("y", "target", "targets", "label", "labels")


def split_batch(batch: Any) -> tuple[Any, Any]:
    """Return the inputs and the targets (None if there are none) of a tensor, tuple or dict batch.

    Raises:
        UserInputError: for a dict without a known key or anything else that is no batch.

    Example:
        >>> split_batch({"image": 1, "label": 2}), split_batch((1, 2)), split_batch(torch.zeros(1))
        ((1, 2), (1, 2), (tensor([0.]), None))
    """
    if isinstance(batch, Tensor):
        return batch, None
    if isinstance(batch, dict):
        inputs = [key for key in _INPUT_KEYS if key in batch]
        targets = [key for key in _TARGET_KEYS if key in batch]
        if len(inputs) == 1 and len(targets) <= 1:
            return batch[inputs[0]], batch[targets[0]] if targets else None
        raise UserInputError(
            f"a dict batch must hold one of {', '.join(_INPUT_KEYS)} and at most one of {', '.join(_TARGET_KEYS)}, "
            f"but got the keys {sorted(map(str, batch))}."
        )
    if isinstance(batch, tuple | list) and 1 <= len(batch) <= 2:
        return batch[0], batch[1] if len(batch) == 2 else None
    came = f"{type(batch).__name__} of {len(batch)}" if hasattr(batch, "__len__") else type(batch).__name__
    raise UserInputError(f"a batch must be a tensor, (inputs, targets) or a dict, but got a {came}.")


class SupervisedModule(LightningModule):
    """Base of :class:`Classifier` and :class:`Regressor`; holds a net, a task and an optimizer's recipe.

    Args:
        net: any module from inputs to outputs.
        task: what the outputs mean.
        optimizer: name for :func:`~lightning_tricks.build_optimizer`.
        lr: learning rate; the optimizer's default if None.
        weight_decay: decay of the weights only, at least 0.
        implementation: of the optimizer: ``"auto"``, ``"fused"``, ``"foreach"`` or ``"plain"``.
        example_input: a batch for the model summary and the graph; guessed for MLP and ConvNet.
    """

    val_metrics: MetricCollection
    test_metrics: MetricCollection

    def __init__(
        self,
        net: nn.Module,
        *,
        task: str,
        optimizer: OptimizerName,
        lr: float | None,
        weight_decay: float,
        example_input: Tensor | None,
        implementation: Implementation = "auto",
    ) -> None:
        super().__init__()
        self.net = net
        self.task = task
        self.optimizer_name = optimizer
        self.lr = lr
        self.weight_decay = weight_decay
        self.example_input_array = _guess_example(net) if example_input is None else example_input
        self.implementation = implementation
        self._optimizer_over(nn.Linear(1, 1))  # a bad name is said now

    def on_validation_epoch_start(self) -> None:
        """Forget what an interrupted validation left."""
        self.val_metrics.reset()

    def on_test_epoch_start(self) -> None:
        """Forget what an interrupted test left."""
        self.test_metrics.reset()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Build the optimizer over parameter groups in which biases and norms do not decay."""
        return self._optimizer_over(self)

    def _optimizer_over(self, model: nn.Module) -> torch.optim.Optimizer:
        return build_optimizer(
            self.optimizer_name,
            model,
            self.lr,
            weight_decay=self.weight_decay,
            implementation=self.implementation,
        )

    def on_fit_end(self) -> None:
        """Say that nothing was learned because there was nothing to learn from; Lightning would end silently.

        Raises:
            UserInputError: if the training loader is empty (and not switched off).
        """
        if self.trainer.num_training_batches == 0 and self.trainer.limit_train_batches != 0:
            raise UserInputError(
                "the training set must hold at least one batch, but its loader is empty. "
                "Check the dataset, the split, and drop_last with a batch size above the number of samples."
            )

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the loss and log ``train_loss`` (mean over the epoch)."""
        return self._step(batch, batch_idx, "train")

    def validation_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the loss and log it with the metrics as ``val_*``."""
        return self._step(batch, batch_idx, "val")

    def test_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the loss and log it with the metrics as ``test_*``."""
        return self._step(batch, batch_idx, "test")

    def _step(self, batch: Any, batch_idx: int, stage: Stage) -> Tensor:
        raise NotImplementedError("Classifier and Regressor say what a step is")

    def _inputs_and_targets(self, batch: Any, batch_idx: int, stage: Stage) -> tuple[Tensor, Tensor]:
        """Return inputs and targets, checked for NaN once per epoch."""
        x, y = split_batch(batch)
        if y is None:
            raise UserInputError(f"a {stage} batch must hold inputs and targets, but got inputs only.")
        if batch_idx == 0:
            check_finite(x, f"the inputs of the first {stage} batch")
        return x, y

    def _log_loss(self, loss: Tensor, batch_size: int, stage: Stage) -> None:
        """Log the mean over the epoch, over all samples of all ranks."""
        self.log(
            f"{stage}_loss",
            loss,
            on_step=False,
            on_epoch=True,
            batch_size=batch_size,
            prog_bar=stage != "test",
            sync_dist=True,
        )


def check_finite(x: Any, what: str) -> None:
    """Refuse NaN and infinity in a floating-point tensor; anything else passes.

    Raises:
        UserInputError: with the number of bad values and the first bad row.
    """
    if not isinstance(x, Tensor) or not x.is_floating_point():
        return
    bad = ~torch.isfinite(x)
    if bad.any():
        row = int(bad.flatten(1).any(1).nonzero()[0]) if x.ndim > 1 else int(bad.nonzero()[0])
        raise UserInputError(
            f"{what} must be finite, but {int(bad.sum())} of {x.numel()} values are NaN or infinite "
            f"(first in row {row}). Clean or impute the data before training."
        )


def _guess_example(net: nn.Module) -> Tensor | None:
    from lightning_tricks.nets import MLP, ConvNet

    if isinstance(net, MLP):
        return torch.zeros(2, net.in_features)
    if isinstance(net, ConvNet):
        return torch.zeros(2, net.in_channels, 32, 32)
    return None
