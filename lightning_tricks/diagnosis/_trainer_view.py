"""The trainer that a copy of a model sees: it answers as the real one would, for the data at hand."""

import math
from typing import Any

from lightning.pytorch import LightningModule, Trainer

_DEFAULT_EPOCHS = 1000  # what Lightning takes where neither epochs nor steps nor a time are given


class TrainerView:
    """All that a trainer says, with a copy of the model in the model's place, and numbers of batches before it runs.

    Args:
        trainer: whom everything else is asked of; it may not have run yet.
        model: the copy.
        train: the training loader, if there is one.
        datamodule: the DataModule, if there is one.
    """

    def __init__(self, trainer: Trainer, model: LightningModule, train: Any = None, datamodule: Any = None) -> None:
        self._real = trainer
        self.model = self.lightning_module = model
        self._train, self._datamodule = train, datamodule

    def __getattr__(self, name: str) -> Any:
        if name == "_real":  # while it is being copied
            raise AttributeError(name)
        return getattr(self._real, name)

    @property
    def _runs(self) -> bool:
        return self._real.train_dataloader is not None

    @property
    def train_dataloader(self) -> Any:
        """The training loader."""
        return self._real.train_dataloader if self._runs else self._train

    @property
    def datamodule(self) -> Any:
        """The DataModule."""
        return getattr(self._real, "datamodule", None) or self._datamodule

    @property
    def max_epochs(self) -> int | None:
        """Epochs of the fit; Lightning's default if nothing limits it."""
        if self._real.max_epochs is not None:
            return self._real.max_epochs
        return _DEFAULT_EPOCHS if self._real.max_steps == -1 else -1

    @property
    def num_training_batches(self) -> float:
        """Batches per epoch, infinity if the loader has no length."""
        if self._runs or self._train is None:
            return self._real.num_training_batches
        try:
            count = len(self._train)
        except TypeError:
            return math.inf
        limit = self._real.limit_train_batches
        return min(count, limit) if isinstance(limit, int) else int(count * limit)

    @property
    def estimated_stepping_batches(self) -> float:
        """Optimizer steps of the whole fit, as Lightning estimates them."""
        if self._runs or self._train is None:
            return self._real.estimated_stepping_batches
        batches, epochs, steps = self.num_training_batches, self.max_epochs, self._real.max_steps
        if batches == math.inf:
            return steps
        if epochs is None or epochs == -1:
            return math.inf if steps == -1 else steps
        total = math.ceil(batches / self._real.accumulate_grad_batches) * max(epochs, 1)
        return total if steps == -1 else min(steps, total)
