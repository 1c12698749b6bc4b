"""L1, L2 and elastic penalties that work with any loss."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from lightning_tricks._base import NORMS, UserInputError, check_choice, check_range, is_matrix, log_metrics, warn_once
from lightning_tricks.callbacks._penalty import (
    add_penalty_gradient,
    limit_rows,
    local,
    penalty_sums,
    soft_threshold,
)
from lightning_tricks.init import matches


class WeightPenalty(Callback):
    """Add ``l1 * sum |w| + l2 * sum w²`` to the objective, over the weights only, whatever the loss.

    The gradient of the penalty is added once per optimizer step, to the accumulated, averaged and unscaled gradient
    and before clipping: under SGD the weights move as if the penalty were a term of the loss, but the logged
    losses stay those of the data. With SGD, ``l2`` equals ``weight_decay=2 * l2``; with Adam the L2 gradient is
    adapted like any other (AdamW's decay is not). Under accumulation a shorter last group of batches gets the whole
    penalty too, where Lightning would scale a term of the loss down with the batches.

    Weights are parameters of at least two dimensions outside norm layers; biases and norms are never penalised.

    Args:
        l1: strength of the absolute values, at least 0.
        l2: strength of the squares, at least 0. Both at once is the elastic net.
        match: patterns of parameter or module names, as in :func:`init_weights`.
        skip: the same for what to leave out; wins over ``match``.
        method: ``"gradient"``, or ``"proximal"`` for exact zeros: ``l1`` then acts after each step as a soft threshold
            at learning rate times ``l1`` (Daubechies et al. 2004; Duchi & Singer 2009), ``l2`` as before.
        max_norm: if given, scale every unit's incoming weights down to this norm after each step (Srivastava et al.
            2014, section 5.1); above 0.
        log: write ``penalty/l1``, ``penalty/l2`` (each with its strength) to the loggers on logging steps.

    Raises:
        UserInputError: for a number out of range or nothing to do; in ``on_fit_start`` for a pattern that fits nothing
            and for FSDP1 and DeepSpeed, whose parameters have lost their shapes (``ModelParallelStrategy`` works).

    Example:
        >>> import lightning as L, lightning_tricks as lt
        >>> trainer = L.Trainer(callbacks=[lt.WeightPenalty(l1=1e-5, l2=1e-4)], logger=False)
    """

    def __init__(
        self,
        l1: float = 0.0,
        l2: float = 0.0,
        *,
        match: str | Sequence[str] = "*",
        skip: str | Sequence[str] = (),
        method: Literal["gradient", "proximal"] = "gradient",
        max_norm: float | None = None,
        log: bool = True,
    ) -> None:
        self.l1 = check_range("l1", l1, low=0, high=float("inf"), open_high=True)
        self.l2 = check_range("l2", l2, low=0, high=float("inf"), open_high=True)
        self.match = [match] if isinstance(match, str) else list(match)
        self.skip = [skip] if isinstance(skip, str) else list(skip)
        self.method = check_choice("method", method, ("gradient", "proximal"))
        self.max_norm = None if max_norm is None else check_range("max_norm", max_norm, low=0, open_low=True)
        self.log = log
        if not l1 and not l2 and max_norm is None:
            raise UserInputError("WeightPenalty needs l1, l2 or max_norm above 0; with all at 0 it would do nothing.")
        if method == "proximal" and not l1:
            raise UserInputError("method='proximal' makes zeros out of an l1 penalty: give l1 above 0, too.")
        self._names: dict[int, str] = {}
        self._unit_axes: dict[int, int] = {}
        self._handles: list[RemovableHandle] = []

    @property
    def state_key(self) -> str:
        """Tell several penalties on different parts apart."""
        return self._generate_state_key(match=self.match, skip=self.skip)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the weights, and hang what acts after each step on the optimizers."""
        if isinstance(trainer.strategy, FSDPStrategy | DeepSpeedStrategy):
            raise UserInputError(
                "WeightPenalty tells weights from biases by their shape, which "
                f"{type(trainer.strategy).__name__} takes away. "
                "Use ModelParallelStrategy with fully_shard, or the optimizer's weight_decay."
            )
        self._select(pl_module)
        self._remove_hooks()
        if self.method == "proximal" or self.max_norm is not None:
            self._handles = [opt.register_step_post_hook(self._after_step) for opt in trainer.optimizers]
        for group in (group for opt in trainer.optimizers for group in opt.param_groups):
            decays = self.l2 > 0 and group.get("weight_decay", 0) > 0
            if decays and any(id(p) in self._names for p in group["params"]):
                warn_once(
                    f"WeightPenalty(l2={self.l2}) and the optimizer's weight_decay={group['weight_decay']} both shrink "
                    "the same weights. Set one of them to 0 unless that is meant."
                )

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Add the penalty's gradient, and log its value on logging steps."""
        parameters = self._weights_of(optimizer)
        if not any(p.grad is not None for p in parameters):
            return  # the step was skipped, or the weights are not in this optimizer
        l1 = self.l1 if self.method == "gradient" else 0.0
        if l1 or self.l2:
            scale = _loss_scale(trainer, optimizer)
            gradients = [local(self._gradient(p)) for p in parameters]
            add_penalty_gradient([local(p) for p in parameters], gradients, l1 * scale, self.l2 * scale)
        if self.log and trainer.loggers and trainer._logger_connector.should_update_logs:
            absolute, square = penalty_sums(parameters)
            values = {"penalty/l1": self.l1 * float(absolute), "penalty/l2": self.l2 * float(square)}
            log_metrics(trainer, {name: value for name, value in values.items() if getattr(self, name[-2:])})

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take the hooks off the optimizers."""
        self._remove_hooks()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Take the hooks off the optimizers."""
        self._remove_hooks()

    def __getstate__(self) -> dict[str, Any]:
        """A copy of the callback holds no optimizer."""
        return {**self.__dict__, "_handles": [], "_names": {}, "_unit_axes": {}}

    def _select(self, model: nn.Module) -> None:
        self._names, self._unit_axes = {}, {}
        for path, module in model.named_modules():
            for key, parameter in module.named_parameters(recurse=False):
                name = f"{path}.{key}" if path else key
                wanted = any(matches(name, p) for p in self.match) and not any(matches(name, p) for p in self.skip)
                if wanted and is_matrix(module, key, parameter) and not isinstance(module, NORMS):
                    self._names[id(parameter)] = name
                    self._unit_axes[id(parameter)] = int(getattr(module, "transposed", False))
        if not self._names:
            names = ", ".join([name for name, p in model.named_parameters() if is_lazy(p) or p.ndim >= 2][:5]) or "none"
            raise UserInputError(
                f"WeightPenalty found no weight under match={self.match}, skip={self.skip}. Weights are: {names}, ..."
            )

    def _weights_of(self, optimizer: Optimizer) -> list[Tensor]:
        return [p for group in optimizer.param_groups for p in self._weights_in(group)]

    def _weights_in(self, group: dict[str, Any]) -> list[Tensor]:
        """Return the chosen weights of a group that the optimizer trains: it does not touch a frozen one either."""
        return [p for p in group["params"] if id(p) in self._names and p.requires_grad]

    def _gradient(self, parameter: Tensor) -> Tensor:
        """Return the gradient, zeros where the loss did not use the parameter: the penalty still does."""
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        if parameter.grad.is_sparse:
            raise UserInputError(
                f"WeightPenalty cannot add to the sparse gradient of {self._names[id(parameter)]!r}. "
                "Leave it out with skip=, or make the embedding with sparse=False."
            )
        return parameter.grad

    @torch.no_grad()
    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        for group in optimizer.param_groups:
            for parameter in self._weights_in(group):
                if self.method == "proximal":
                    soft_threshold(local(parameter), float(group["lr"]) * self.l1)
                if self.max_norm is not None:
                    limit_rows(parameter, self.max_norm, axis=self._unit_axes[id(parameter)])

    def _remove_hooks(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []


def _loss_scale(trainer: Trainer, optimizer: Optimizer) -> float:
    """Return what the gradients are still multiplied by: fused optimizers under fp16 divide in their own step."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    in_step = getattr(optimizer, "_step_supports_amp_scaling", False)
    return float(scaler.get_scale()) if scaler is not None and in_step else 1.0
