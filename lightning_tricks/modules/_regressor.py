"""The regressor."""

from typing import Any, Literal

from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanAbsoluteError, MeanSquaredError, MetricCollection

from lightning_tricks._base import UserInputError, check_choice, check_range
from lightning_tricks.modules._base_module import Stage, SupervisedModule, check_finite, split_batch
from lightning_tricks.modules._losses import gaussian_nll
from lightning_tricks.modules._targets import check_regression_targets
from lightning_tricks.optim import Implementation, OptimizerName

_MIN_VARIANCE = 1e-6  # keeps the likelihood bounded where the net fits a point exactly


class Regressor(SupervisedModule):
    """A net, its loss, its metrics and its optimizer, for regression.

    Logs ``train_loss``; ``val_loss``, ``val_rmse``, ``val_mae``; the same as ``test_*``. Errors have the unit of the
    targets as the batches hold them: those of a :class:`~lightning_tricks.TabularDataModule` are standardised unless
    ``scale_target=False``, and errors times its ``target_std`` have the unit of the table. The loss is the mean squared
    error, or the negative log-likelihood in nats of a Gaussian whose variance the net learns (Nix & Weigend 1994;
    Kendall & Gal 2017, equation 5).

    Args:
        net: module from inputs to ``(B, num_targets)``, or ``(B, 2 * num_targets)`` with Gaussian noise (the means,
            then the raw variances, made positive by a softplus).
        num_targets: numbers to predict per sample.
        noise: ``"none"`` for the mean squared error, ``"gaussian"`` for a learned variance.
        optimizer: name for :func:`~lightning_tricks.build_optimizer`.
        lr: learning rate; the optimizer's default if None.
        weight_decay: decay of the weights only, at least 0.
        implementation: of the optimizer: ``"auto"``, ``"fused"``, ``"foreach"`` or ``"plain"``.
        example_input: a batch for the model summary and the graph; guessed for MLP and ConvNet.

    Raises:
        UserInputError: for unknown names, numbers out of range, and batches that do not fit.

    Example:
        >>> import torch
        >>> from lightning_tricks import MLP, Regressor
        >>> mean, log_variance = Regressor(MLP(3, 2), noise="gaussian")(torch.rand(5, 3))
        >>> mean.shape, log_variance.shape
        (torch.Size([5, 1]), torch.Size([5, 1]))
    """

    def __init__(
        self,
        net: nn.Module,
        num_targets: int = 1,
        *,
        noise: Literal["none", "gaussian"] = "none",
        optimizer: OptimizerName = "adam",
        lr: float | None = None,
        weight_decay: float = 0.0,
        example_input: Tensor | None = None,
        implementation: Implementation = "auto",
    ) -> None:
        check_choice("noise", noise, ("none", "gaussian"))
        check_range("num_targets", num_targets, low=1)
        super().__init__(
            net,
            task="regression",
            optimizer=optimizer,
            lr=lr,
            weight_decay=weight_decay,
            example_input=example_input,
            implementation=implementation,
        )
        self.save_hyperparameters(ignore=["net", "example_input"])
        self.num_targets = num_targets
        self.noise = noise
        metrics = MetricCollection({"rmse": MeanSquaredError(squared=False), "mae": MeanAbsoluteError()})
        self.val_metrics = metrics.clone(prefix="val_")
        self.test_metrics = metrics.clone(prefix="test_")

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Return the mean ``(B, D)``, with Gaussian noise also the logarithm of the variance ``(B, D)``."""
        output: Tensor = self.net(x)
        output = output.unsqueeze(-1) if output.ndim == 1 else output
        width = self.num_targets * (2 if self.noise == "gaussian" else 1)
        if output.ndim != 2 or output.shape[1] != width:
            raise UserInputError(
                f"a regression net with num_targets={self.num_targets} and noise={self.noise!r} must return "
                f"(B, {width}), but got {tuple(output.shape)}."
            )
        if self.noise == "none":
            return output
        mean, raw = output.chunk(2, dim=-1)
        return mean, (F.softplus(raw) + _MIN_VARIANCE).log()

    def predict_step(self, batch: Any, batch_idx: int = 0) -> Tensor | tuple[Tensor, Tensor]:
        """Return what :meth:`forward` returns for the inputs of the batch."""
        output: Tensor | tuple[Tensor, Tensor] = self(split_batch(batch)[0])
        return output

    def _step(self, batch: Any, batch_idx: int, stage: Stage) -> Tensor:
        x, y = self._inputs_and_targets(batch, batch_idx, stage)
        if batch_idx == 0:
            check_finite(y, f"the targets of the first {stage} batch")
        output = self(x)
        mean = output[0] if self.noise == "gaussian" else output
        y = check_regression_targets(y, mean)
        loss = gaussian_nll(mean, output[1], y) if self.noise == "gaussian" else F.mse_loss(mean, y)
        self._log_loss(loss, len(y), stage)
        if stage != "train":
            metrics = self.val_metrics if stage == "val" else self.test_metrics
            metrics.update(mean.detach().contiguous(), y.contiguous())
        return loss

    def on_validation_epoch_end(self) -> None:
        """Log the metrics over the whole validation set."""
        self.log_dict(self.val_metrics.compute(), sync_dist=True)
        self.val_metrics.reset()

    def on_test_epoch_end(self) -> None:
        """Log the metrics over the whole test set."""
        self.log_dict(self.test_metrics.compute(), sync_dist=True)
        self.test_metrics.reset()
