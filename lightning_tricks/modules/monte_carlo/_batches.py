"""What the predictor needs to know about batches and outputs: task, probabilities, place in the dataset."""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.data import DistributedSampler, SequentialSampler

from lightning_tricks._base import UserInputError, check_choice
from lightning_tricks.modules._base_module import split_batch

Task = Literal["binary", "multiclass", "multilabel", "regression"]
TASKS: tuple[Task, ...] = ("binary", "multiclass", "multilabel", "regression")


def infer_task(model: nn.Module, task: str) -> Task:
    """Return the task, asking the model if it is ``"auto"``.

    Raises:
        UserInputError: if the model does not say.
    """
    check_choice("task", task, ["auto", *TASKS])
    if task != "auto":
        return task  # type: ignore[return-value]  # checked above
    own = getattr(model, "task", None)
    if own in TASKS:
        return own  # type: ignore[no-any-return]
    raise UserInputError(
        f"task='auto' asks the model, and {type(model).__name__} has no attribute task that is one of "
        f"{', '.join(TASKS)}. Pass task='multiclass', or whichever it is."
    )


def to_summary_form(out: Any, task: Task, *, logits: bool, class_dim: int = 1) -> Any:
    """Turn samples of the model's output ``(s, B, ...)`` into probabilities, or values for a regression.

    Classes come to lie on axis 2, ``(s, B, C, ...)``; ``class_dim`` says where in one sample ``(B, ...)`` they are.

    Raises:
        UserInputError: if the output is no tensor (for a regression: or pair of mean and log-variance).
    """
    if task == "regression" and isinstance(out, tuple | list) and len(out) == 2:
        return out[0], out[1]
    if not isinstance(out, Tensor):
        keys = f" with keys {sorted(map(str, out))}" if isinstance(out, Mapping) else ""
        raise UserInputError(
            f"a {task} model must return a tensor, but returned a {type(out).__name__}{keys}. "
            "Pick one: output=lambda out: out['logits']."
        )
    if task == "regression":
        return out
    out = out.float()
    if task == "multiclass":
        if out.dim() < 3:
            raise UserInputError(
                f"a multiclass model must return (B, C) or (B, C, ...), but one sample has shape "
                f"{tuple(out.shape[1:])}. Pass task='binary' or 'regression' if that is what it is."
            )
        if not -out.dim() + 2 <= class_dim < out.dim() - 1:
            raise UserInputError(f"class_dim={class_dim} is no axis of one sample's shape {tuple(out.shape[1:])}.")
        out = out.movedim(class_dim + 1 if class_dim > 0 else class_dim, 2)  # (s, B, C, ...)
        return out.softmax(dim=2) if logits else out
    if task == "binary" and out.dim() == 3 and out.shape[2] == 1:
        out = out.squeeze(2)
    return out.sigmoid() if logits else out


def split_inputs(batch: Any, split: Callable[[Any], tuple[Any, Any]] | None) -> tuple[tuple[Any, ...], Any]:
    """Return the model's positional inputs and the targets (None if there are none)."""
    try:
        inputs, targets = split_batch(batch) if split is None else split(batch)
    except UserInputError as error:
        raise UserInputError(
            f"{error} For other batches pass split=lambda batch: (inputs, targets), such as "
            "split=lambda batch: ((batch['input_ids'], batch['attention_mask']), batch['labels'])."
        ) from None
    return (tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)), targets


def batch_rows(batch: Any, inputs: Any) -> int:
    """Return the number of rows of a batch."""
    sizes = [x.shape[0] for x in tree_leaves(inputs) if isinstance(x, Tensor) and x.dim() > 0]
    if not sizes:
        raise UserInputError(f"a batch must hold tensors with rows, but got a {type(batch).__name__} without any.")
    return int(sizes[0])


class RowPlaces:
    """Where in the dataset the rows of each batch come from.

    The batch itself may say (a dict with ``"index"``), else the sampler's record or rule. Where neither does (an
    iterable dataset, a shuffling sampler outside ``predict``), rows are counted as they come, on several ranks in turn.
    """

    def __init__(self) -> None:
        self._dealt: dict[int, list[list[int]]] = {}
        self._seen: dict[int, int] = {}

    def of(self, trainer: Trainer | None, batch: Any, n_rows: int, batch_idx: int, dataloader_idx: int) -> Tensor:
        """Return a place for each row, int64 ``(B,)``; batches of one loader come in order."""
        if batch_idx == 0:
            self._dealt.pop(dataloader_idx, None)
            self._seen[dataloader_idx] = 0
        own = batch.get("index") if isinstance(batch, Mapping) else None
        if isinstance(own, Tensor):
            return own.long().reshape(-1).cpu()
        loader = _loader(trainer, dataloader_idx)
        known = None if loader is None else self._of_loader(loader, n_rows, batch_idx, dataloader_idx)
        if known is not None and len(known) == n_rows:
            return known
        if trainer is None:
            return torch.arange(n_rows)
        start = self._seen.get(dataloader_idx, 0)
        self._seen[dataloader_idx] = start + n_rows
        return torch.arange(start, start + n_rows) * trainer.world_size + trainer.global_rank

    def _of_loader(self, loader: Any, n_rows: int, batch_idx: int, dataloader_idx: int) -> Tensor | None:
        seen = getattr(getattr(loader, "batch_sampler", None), "seen_batch_indices", None)
        if seen and batch_idx < len(seen):  # Lightning's own record while predicting
            return torch.tensor(seen[batch_idx])
        sampler: Any = getattr(loader, "sampler", None)
        size = getattr(loader, "batch_size", None)
        if size is None:  # the sampler may deal out whole batches, as those of our DataModules do
            if not callable(getattr(sampler, "batches", None)):
                return None
            dealt = self._dealt.get(dataloader_idx) or self._dealt.setdefault(dataloader_idx, sampler.batches())
            return torch.tensor(dealt[batch_idx]) if batch_idx < len(dealt) else None
        here = torch.arange(batch_idx * size, batch_idx * size + n_rows)
        if isinstance(sampler, DistributedSampler) and not sampler.shuffle:
            total = len(sampler.dataset)  # type: ignore[arg-type]  # a sampler that splits a dataset knows its length
            return torch.remainder(here * sampler.num_replicas + sampler.rank, total)
        return here if isinstance(sampler, SequentialSampler) else None


def _loader(trainer: Trainer | None, dataloader_idx: int) -> Any:
    if trainer is None or trainer.state.fn is None:
        return None
    loaders = {
        "predict": trainer.predict_dataloaders,
        "test": trainer.test_dataloaders,
        "validate": trainer.val_dataloaders,
    }.get(str(trainer.state.fn.value))
    flat = tree_leaves(loaders)
    return flat[dataloader_idx] if dataloader_idx < len(flat) else None
