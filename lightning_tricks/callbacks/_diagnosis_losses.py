"""The training loss of each optimizer step, on the device until somebody looks, and what guessing would give."""

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lightning_tricks.diagnosis._guess import GuessLoss
from lightning_tricks.diagnosis._losses import LossSpy


class StepLosses:
    """Gathers the loss of each batch; the batches of one optimizer step (accumulation) are averaged."""

    def __init__(self) -> None:
        self.guess = GuessLoss()
        self.pending: list[Tensor] = []
        self._batches: list[Tensor] = []
        self._backward: list[Tensor] = []
        self._spy: LossSpy | None = None

    def listen(self) -> None:
        """Note the losses that the step which begins now calls."""
        self._spy = LossSpy()
        self._spy.__enter__()

    def hush(self) -> LossSpy | None:
        """End listening; return what was heard."""
        spy, self._spy = self._spy, None
        if spy is not None:
            spy.__exit__(None, None, None)
        return spy

    def see_backward(self, loss: Tensor) -> None:
        """Take the loss of a backward pass, for steps that return none."""
        self._backward.append(loss.detach())

    def end_batch(self, trainer: Trainer, module: LightningModule, outputs: Any, spy: LossSpy | None) -> None:
        """Take the loss of a batch."""
        loss = self._loss_of(trainer, module, outputs)
        self._backward = []
        if loss is None:
            return
        self._batches.append(loss)
        if spy is not None:
            self.guess.add(spy.calls, loss)

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
