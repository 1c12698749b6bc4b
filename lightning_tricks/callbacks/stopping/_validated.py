"""The weights that a validation ran with, where something writes others before its value is judged."""

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_tricks.callbacks.stopping._best_weights import Keep, averaged, is_sharded, local

Modes = list[list[bool | None]]


class ValidatedWeights:
    """Notices that parameters were written between the first validation batch and the end of the validation.

    A callback that switches a schedule-free optimizer to ``eval()`` for a validation may switch it back before the
    value is judged: the module then holds other weights than those that earned the value. The first validation of a fit
    is always copied; later ones only if one of those before was written over.

    Args:
        keep: where the copy waits.
    """

    def __init__(self, keep: Keep) -> None:
        self._keep = keep
        self.reset()

    def reset(self) -> None:
        """Forget an earlier fit."""
        self._copies_next = True
        self._copy: dict[str, Tensor] | None = None
        self._fingerprint: Tensor | None = None
        self.modes: Modes | None = None

    def begin(self, trainer: Trainer, module: LightningModule) -> None:
        """Note the parameters before the first batch of a validation."""
        self._copy = self._fingerprint = None
        self.modes = optimizer_modes(trainer)
        if averaged(trainer) is not None or is_sharded(module):  # they have their own ways, and write for reasons
            return
        self._fingerprint = _fingerprint(module)
        if self._copies_next:
            device = "cpu" if self._keep in ("cpu", "disk") else None
            self._copy = {name: local(p).to(device=device, copy=True) for name, p in _parameters(module)}

    def end(self, module: LightningModule) -> tuple[bool, dict[str, Tensor] | None]:
        """Return whether the parameters were written since :meth:`begin`, and those of then if they were copied."""
        before, copied = self._fingerprint, self._copy
        self._fingerprint = self._copy = None
        written = before is not None and not torch.equal(before, _fingerprint(module))
        self._copies_next = written or (self._copies_next and before is None)
        return written, copied if written else None


def optimizer_modes(trainer: Trainer) -> Modes | None:
    """Return for each parameter group whether its optimizer is in ``train()``; None if none has such a switch."""
    modes = [[group.get("train_mode") for group in optimizer.param_groups] for optimizer in trainer.optimizers]
    return modes if any(mode is not None for groups in modes for mode in groups) else None


def put_back_modes(trainer: Trainer, modes: Modes | None) -> None:
    """Tell the optimizers in which form the weights are that were put back, so that no switch changes them again."""
    for optimizer, groups in zip(trainer.optimizers, modes or [], strict=False):
        for group, mode in zip(optimizer.param_groups, groups, strict=False):
            if mode is not None:
                group["train_mode"] = mode


def switch_back(trainer: Trainer, modes: Modes | None) -> None:
    """Switch optimizers to the form that they train in, where ``modes`` says that they were training."""
    for optimizer, groups, now in zip(trainer.optimizers, modes or [], optimizer_modes(trainer) or [], strict=False):
        if any(was and not is_now for was, is_now in zip(groups, now, strict=False)) and hasattr(optimizer, "train"):
            optimizer.train()


def _parameters(module: nn.Module) -> list[tuple[str, Any]]:
    return [(name, parameter) for name, parameter in module.named_parameters() if not is_lazy(parameter)]


def _fingerprint(module: nn.Module) -> Tensor:
    """Return one number per parameter, which a write changes; a write through ``.data`` leaves no other trace."""
    with torch.no_grad():
        norms = [_norm(local(parameter)) for _, parameter in _parameters(module)]
    return torch.stack([norm.to(norms[0].device) for norm in norms]) if norms else torch.empty(0)


def _norm(tensor: Tensor) -> Tensor:
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    return torch.as_tensor(torch.linalg.vector_norm(tensor.float())).nan_to_num()
