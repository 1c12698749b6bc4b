"""Stacks of LightningModules that write their steps themselves, by ``torch.func``."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.data import extract_batch_size
from torch import Tensor, nn
from torchmetrics import Metric

from lightning_tricks._base import UserInputError
from lightning_tricks.modules import Classifier, Regressor
from lightning_tricks.stacked._equivalence import check_code, check_stack
from lightning_tricks.stacked._net import StackedNet
from lightning_tricks.stacked._tasks import Stage, SupervisedTask, Task

# What a subclass may define without a stack having to call it, or which a stack does call.
_UNUSED = frozenset({"__init__", "configure_optimizers", "predict_step", "test_step", "on_test_epoch_end"})
_CALLED = frozenset({"forward", "training_step", "validation_step", "val_dataloader", "example_input_array"})


def task_for(models: Sequence[LightningModule]) -> Task:
    """Return how to train these models as a stack.

    Raises:
        UserInputError: for a module that does more than a stack can.
    """
    first = models[0]
    for i, model in enumerate(models):
        if type(model) is not type(first):
            raise UserInputError(
                f"models that are stacked must be of one class, but model 0 is a {type(first).__name__} and model {i} "
                f"a {type(model).__name__}."
            )
    for base in (Classifier, Regressor):
        if isinstance(first, base):
            _refuse(first, _overridden(type(first), base) - _UNUSED, base)
            return SupervisedTask(models)  # type: ignore[arg-type]  # checked just now
    _refuse(first, _overridden(type(first), LightningModule) - _UNUSED - _CALLED, LightningModule)
    if not first.automatic_optimization:
        raise UserInputError(f"{type(first).__name__} optimizes by hand, which a stack cannot do for it.")
    return AnyTask(models)


def _refuse(model: LightningModule, names: set[str], base: type) -> None:
    if names:
        raise UserInputError(
            f"{type(model).__name__} cannot be stacked, because it changes {', '.join(sorted(names))} of "
            f"{base.__name__}, which no stack runs model by model. Train it without vectorize."
        )


def _overridden(cls: type, base: type) -> set[str]:
    """Return what a subclass changes of what its base has."""
    mine = {name for c in cls.__mro__[: cls.__mro__.index(base)] for name in vars(c)}
    return {name for name in mine if hasattr(base, name) and not name.startswith("__")}


class Steps(nn.Module):
    """A module's steps as a pure function: what it would log is returned.

    Args:
        model: the module; it is not changed.
    """

    def __init__(self, model: LightningModule) -> None:
        super().__init__()
        self.model = model

    def forward(self, stage: str, batch: Any, batch_idx: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of a training step (of validation: 0), and what the step logs."""
        logged: dict[str, Tensor] = {}

        def log(name: str, value: Any, **options: Any) -> None:
            if isinstance(value, Metric) or options.get("reduce_fx", "mean") != "mean":
                raise UserInputError(
                    f"a stack needs plain numbers to be logged, of which it takes the mean, but {name!r} is "
                    f"{type(value).__name__} with {options}."
                )
            logged[name] = torch.as_tensor(value).detach().float().mean()

        def log_dict(values: Any, **options: Any) -> None:
            for name, value in values.items():
                log(name, value, **options)

        self.model.__dict__.update(log=log, log_dict=log_dict)  # instance attributes hide the methods
        try:
            step = self.model.training_step if stage == "train" else self.model.validation_step
            result = step(batch, batch_idx)
        finally:
            del self.model.__dict__["log"], self.model.__dict__["log_dict"]
        if stage != "train":
            return torch.zeros(()), logged
        loss = result["loss"] if isinstance(result, dict) else result
        if not isinstance(loss, Tensor):
            raise UserInputError(f"training_step must return a loss, but it returned {type(loss).__name__}.")
        return loss, logged


# What a step may ask the trainer, which is the same for the stack and for a model's own.
_SHARED = frozenset(
    {
        *("current_epoch", "global_step", "max_epochs", "max_steps", "num_training_batches", "num_val_batches"),
        *("training", "validating", "sanity_checking", "logger", "loggers", "global_rank", "local_rank"),
        *("world_size", "is_global_zero", "is_last_batch", "precision"),
    }
)


class Clock:
    """The trainer as a step of a stacked model sees it.

    Args:
        trainer: the stack's.

    Attributes:
        asked: whether a step wanted to know anything.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._trainer, self.asked = trainer, False

    def __getattr__(self, name: str) -> Any:
        if name not in _SHARED:
            raise AttributeError(f"the trainer of a stack has no {name} of a single model")
        self.asked = True
        return getattr(self._trainer, name)


class AnyTask(Task):
    """Modules whose steps are functions of their tensors and the batch, nothing else.

    Args:
        models: of one class, optimized automatically.
    """

    def __init__(self, models: Sequence[LightningModule]) -> None:
        self.nets = [Steps(model) for model in models]
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}
        self._clock: Clock | None = None

    def begin(self, stack: StackedNet, trainer: Trainer) -> None:
        """Tell the steps what time it is."""
        self._clock = Clock(trainer)
        skeleton: Any = stack.skeleton()
        skeleton.model.trainer = self._clock

    @property
    def timed(self) -> bool:
        """Whether a step asks what time it is."""
        return self._clock is not None and self._clock.asked

    def names(self) -> list[str]:
        """Return nothing: a step says what it logs when it is run."""
        return []

    def follow(self, names: Iterable[str]) -> None:
        """Do nothing: everything logged is there anyway."""

    def keep(self, rows: Sequence[int]) -> None:
        """Do nothing: there is no state per model."""

    def check(self, stack: StackedNet, nets: Sequence[nn.Module], batch: Any, stage: Stage, *, again: bool) -> None:
        """Compare the stack with each model by itself, and the models with each other."""
        with self._attached(nets):
            if stage == "train" and not again:
                check_stack(stack, nets, stage, batch, 0)
            else:
                check_code(stack, nets, stage, batch, 0)

    @contextmanager
    def _attached(self, nets: Sequence[nn.Module]) -> Iterator[None]:
        """Give the models the time that the stack has."""
        models: list[Any] = [net.model for net in nets]
        before = [model._trainer for model in models]
        try:
            for model in models:
                model.trainer = self._clock
            yield
        finally:
            for model, trainer in zip(models, before, strict=True):
                model.trainer = trainer

    def losses(self, stack: StackedNet, batch: Any, batch_idx: int) -> tuple[Tensor, int]:
        """Return the training losses of a batch."""
        return self._run(stack, "train", batch, batch_idx)[0], extract_batch_size(batch)

    def measure(self, stack: StackedNet, batch: Any, batch_idx: int) -> None:
        """Take what a validation step logs into account."""
        size = extract_batch_size(batch)
        for name, values in self._run(stack, "val", batch, batch_idx)[1].items():
            self._sums[name] = self._sums.get(name, torch.zeros_like(values)) + values * size
            self._counts[name] = self._counts.get(name, 0) + size

    def measured(self) -> dict[str, Tensor]:
        """Return the means of what was logged."""
        values = {name: total / self._counts[name] for name, total in self._sums.items()}
        self._sums, self._counts = {}, {}
        return values

    def _run(self, stack: StackedNet, stage: str, batch: Any, batch_idx: int) -> Any:
        return stack(stage, batch, batch_idx)
