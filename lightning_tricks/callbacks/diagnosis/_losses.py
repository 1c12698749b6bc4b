"""The training loss of each optimizer step, on the device until somebody looks, and what guessing would give."""

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from lightning_tricks.callbacks.norms._measure import squared_norms
from lightning_tricks.diagnosis import GuessLoss, LossCall, LossSpy


class StepLosses:
    """Gathers the loss of each batch; the batches of one optimizer step (accumulation) are averaged."""

    def __init__(self) -> None:
        self.guess = GuessLoss()
        self.pending: list[Tensor] = []
        self._batches: list[Tensor] = []
        self._backward: list[Tensor] = []
        self._spy: LossSpy | None = None
        self._heard: list[LossCall] | None = None

    def listen(self) -> None:
        """Note the losses that the step which begins now calls."""
        self._spy = LossSpy()
        self._spy.__enter__()  # type: ignore[no-untyped-call]

    def hush(self) -> None:
        """End listening: only the forward pass shall run in the spy's mode."""
        spy, self._spy = self._spy, None
        if spy is not None:
            spy.__exit__(None, None, None)  # type: ignore[no-untyped-call]
            self._heard = spy.calls

    def see_backward(self, loss: Tensor) -> None:
        """Take the loss of a backward pass, for steps that return none."""
        self._backward.append(loss.detach())

    def end_batch(self, trainer: Trainer, module: LightningModule, outputs: Any) -> None:
        """Take the loss of a batch."""
        loss = self._loss_of(trainer, module, outputs)
        heard, self._heard = self._heard, None
        self._backward = []
        if loss is None:
            return
        self._batches.append(loss)
        if heard is not None:
            self.guess.add(heard, loss)

    def end_step(self) -> None:
        """Close an optimizer step."""
        if self._batches:
            batches, self._batches = self._batches, []
            self.pending.append(batches[0] if len(batches) == 1 else torch.stack(batches).mean())

    def _loss_of(self, trainer: Trainer, module: LightningModule, outputs: Any) -> Tensor | None:
        if module.automatic_optimization:
            loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
            if not isinstance(loss, Tensor):
                return None
            parts = trainer.accumulate_grad_batches  # by which Lightning has divided it
            return loss.detach() if parts == 1 else loss.detach() * parts
        if not self._backward or getattr(trainer.precision_plugin, "scaler", None) is not None:
            return None
        return self._backward[0] if len(self._backward) == 1 else torch.stack(self._backward).mean()

    def drain(self, trainer: Trainer | None) -> list[float]:
        """Bring the losses to the host: one transfer, and one mean over the ranks if a trainer is given."""
        if not self.pending:
            return []
        losses = torch.stack([loss.double() for loss in self.pending])
        self.pending = []
        if trainer is not None and trainer.world_size > 1:
            reduced = trainer.strategy.reduce(losses, reduce_op="mean")
            losses = reduced if isinstance(reduced, Tensor) else losses
        numbers: list[float] = losses.cpu().tolist()
        return numbers


@torch.no_grad()
def noise_ratio(optimizers: Sequence[Optimizer]) -> float | None:
    """Return the variance of one batch's gradient over its squared mean, read from Adam's own two averages.

    Of a gradient with mean g and variance s (both summed over all parameters), the average of gradients has a squared
    norm of g² + s · (1 - β₁) / (1 + β₁), and the average of squares has a sum of g² + s. None for other optimizers.
    """
    mean = squares = 0.0
    share = None
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            states = [s for p in group["params"] if "exp_avg_sq" in (s := optimizer.state.get(p, {}))]
            if not states or any(hasattr(s["exp_avg"], "placements") for s in states):
                continue
            beta, decay = group["betas"]
            step = float(states[0]["step"])
            share = (1 - beta) / (1 + beta)
            mean += squared_norms([s["exp_avg"] for s in states]).sum().item() / (1 - beta**step) ** 2
            squares += sum(s["exp_avg_sq"].double().sum().item() for s in states) / (1 - decay**step)
    if share is None:
        return None
    noise = (squares - mean) / (1 - share)
    signal = squares - noise
    return noise / signal if signal > 0 else None
