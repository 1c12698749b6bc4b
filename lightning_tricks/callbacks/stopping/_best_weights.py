"""Keep the weights and buffers that earned the best value, and put them back."""

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parameter import is_lazy

from lightning_tricks.callbacks._trainer import callbacks_of

Keep = Literal["cpu", "device", "disk"]


@dataclass(frozen=True)
class Best:
    """The best value, where it was earned, and what earned it.

    One object, replaced in one assignment, so that a Ctrl-C can never leave the score of one epoch with the weights of
    another.

    Args:
        score: the raw value.
        epoch: 0-based epoch in which it was earned.
        step: optimizer steps taken by then.
        tensors: parameters and buffers by name (this rank's shard of them), or None.
        file: where they are instead, or None.
        optimizers: the state of each optimizer, without its learning rates, or None.
        in_module: the module itself holds them; training is over.
        modes: for each parameter group whether its optimizer was in ``train()``, or None; for schedule-free optimizers.
    """

    score: float
    epoch: int
    step: int
    tensors: dict[str, Tensor] | None = None
    file: str | None = None
    optimizers: list[dict[str, Any]] | None = None
    in_module: bool = False
    modes: list[list[bool | None]] | None = None


def averaged(trainer: Trainer) -> nn.Module | None:
    """Return the averaged module with which validation runs, if a ``WeightAveraging`` callback keeps one."""
    for callback in callbacks_of(trainer):
        if isinstance(callback, WeightAveraging) and callback._average_model is not None:
            return callback._average_model.module
    return None


def named_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield parameters and buffers, the non-persistent ones included.

    ``fully_shard`` leaves the outermost module gathered after a validation; it is put back into shards first, so that
    what is kept is always one rank's part.
    """
    for child in module.modules():
        if isinstance(child, FSDPModule):
            child.reshard()
    for named in (module.named_parameters(), module.named_buffers()):
        for name, tensor in named:
            if not is_lazy(tensor):
                yield name, tensor


def copy_tensors(module: nn.Module, keep: Keep) -> dict[str, Tensor]:
    """Copy this rank's part of a module's parameters and buffers, to the CPU or on their device."""
    device = "cpu" if keep == "cpu" else None
    with torch.no_grad():
        return {name: local(tensor).to(device=device, copy=True) for name, tensor in named_tensors(module)}


def put_back(module: nn.Module, saved: Mapping[str, Tensor]) -> None:
    """Write saved tensors into a module, in place and without communication."""
    with torch.no_grad():
        for name, tensor in named_tensors(module):
            if name not in saved:
                continue
            target = local(tensor)
            if target.shape == saved[name].shape:
                target.copy_(saved[name])
            else:  # a buffer that has grown since
                tensor.data = saved[name].to(tensor.device, tensor.dtype, copy=True)


def local(tensor: Tensor) -> Tensor:
    """Return this rank's part of a sharded tensor, any other tensor as it is; detached, on the same memory."""
    return (tensor.to_local() if isinstance(tensor, DTensor) else tensor).detach()


def is_sharded(module: nn.Module) -> bool:
    """Whether any parameter lives in parts on several ranks."""
    return any(isinstance(tensor, DTensor) for _, tensor in named_tensors(module))


def gather(module: nn.Module, saved: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Put the shards of all ranks together for a checkpoint. Every rank must call it."""
    whole = dict(saved)
    for name, tensor in named_tensors(module):
        if isinstance(tensor, DTensor) and name in saved:
            part = saved[name].to(tensor.to_local().device)  # the communication backend may refuse the CPU
            shard = DTensor.from_local(
                part,
                tensor.device_mesh,
                tensor.placements,
                run_check=False,
                shape=tensor.shape,
                stride=tensor.stride(),
            )
            whole[name] = shard.full_tensor().cpu()
    return whole


def scatter(module: nn.Module, whole: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Take this rank's part out of the whole tensors of a checkpoint."""
    part = dict(whole)
    for name, tensor in named_tensors(module):
        if isinstance(tensor, DTensor) and name in whole:
            full = whole[name].to(tensor.to_local().device)
            mine = distribute_tensor(full, tensor.device_mesh, tensor.placements, src_data_rank=None)
            part[name] = mine.to_local().to(whole[name].device, copy=True)
    return part


def copy_optimizers(trainer: Trainer) -> list[dict[str, Any]]:
    """Copy what the optimizers remember (moments, counters) to the CPU."""
    return [_to_cpu(optimizer.state_dict()["state"]) for optimizer in trainer.optimizers]


def put_back_optimizers(trainer: Trainer, saved: list[dict[str, Any]]) -> None:
    """Give the optimizers their moments and counters back; learning rates stay as they are."""
    for optimizer, state in zip(trainer.optimizers, saved, strict=True):
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _to_cpu(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _to_cpu(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_to_cpu(item) for item in value]
    return value


def write_file(path: Path, content: dict[str, Any]) -> None:
    """Write a file so that it is there in full or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.tmp{os.getpid()}")
    try:
        torch.save(content, temporary)
        os.replace(temporary, path)  # noqa: PTH105 - atomic on one file system, what Path.replace calls too
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def restore(trainer: Trainer, module: LightningModule, best: Best, *, average_too: bool) -> None:
    """Put the best weights (and the optimizers' memory, if kept) back, without communication.

    Args:
        trainer: the running trainer.
        module: its module.
        best: what to put back.
        average_too: with weight averaging, write the average as well. It would otherwise be copied over the module
            when training ends, or go on averaging from elsewhere.
    """
    tensors, optimizers = best.tensors or {}, best.optimizers
    if best.file is not None:
        content = torch.load(best.file, map_location="cpu", weights_only=True)
        tensors, optimizers = content["tensors"], content["optimizers"]
    put_back(module, tensors)
    if average_too and (average := averaged(trainer)) is not None:
        put_back(average, tensors)
    if optimizers is not None:
        put_back_optimizers(trainer, optimizers)
