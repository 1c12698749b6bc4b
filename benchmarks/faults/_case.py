"""What one run consists of: a model, its data, and how it is trained. Faults change it in place."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

Task = Literal["regression", "binary", "multiclass", "other"]


class DoesNotFit(Exception):  # noqa: N818 - no error: the reason why a fault is not tried on a program
    """A fault has nothing to break in a program, or would do no harm there; says why."""


@dataclass
class Case:
    """A program, ready to be checked and trained.

    Args:
        model: any LightningModule; faults in its layers want its net as ``.net`` and ``training_step`` to call it
            through ``self(x)``.
        train: inputs and targets of the training part; None if ``data`` is given.
        val: the same for validation.
        task: what the targets are, and so how the run is scored; "other" is not scored.
        batch_size: of the training loader.
        epochs: of the fit.
        loader: options of the training loader.
        trainer: options of the Trainer.
        dataset: from (inputs, targets) to the Dataset.
        datamodule: whether ``check`` and ``fit`` get a DataModule instead of loaders.
        data: loaders or a DataModule of the program's own, instead of ``train`` and ``val``.
        seeded: whether ``seed_everything`` is called before.
    """

    model: LightningModule
    train: tuple[Tensor, Tensor] | None = None
    val: tuple[Tensor, Tensor] | None = None
    task: Task = "multiclass"
    batch_size: int = 32
    epochs: int = 20
    loader: dict[str, Any] = field(default_factory=lambda: {"shuffle": True})
    trainer: dict[str, Any] = field(default_factory=dict)
    dataset: Callable[[Tensor, Tensor], Dataset] = TensorDataset
    datamodule: bool = False
    data: Any = None
    seeded: bool = True

    @property
    def tensors(self) -> tuple[Tensor, Tensor]:
        """Inputs and targets of the training part, for faults in the data."""
        if self.train is None:
            raise DoesNotFit("its data are not tensors")
        return self.train

    @property
    def net(self) -> nn.Module:
        """The net inside of the model, for faults in its layers."""
        net = getattr(self.model, "net", None)
        if not isinstance(net, nn.Module):
            raise DoesNotFit("its model has no .net")
        return net

    def override(self, **methods: Callable[..., Any]) -> None:
        """Give the model methods of a subclass of its own class."""
        kind = type(self.model)
        self.model.__class__ = type(kind.__name__, (kind,), methods)

    def make_data(self) -> Any:
        """Return what ``check`` and ``fit`` are given: a DataModule, or a training and a validation loader."""
        if self.data is not None:
            return self.data
        train = self.dataset(*self.tensors)
        options = {key: value for key, value in self.loader.items() if key != "shuffle"}
        if not isinstance(train, IterableDataset):
            options["shuffle"] = self.loader.get("shuffle", False)
        loaders = [DataLoader(train, self.batch_size, **options)]
        if self.val is not None:
            loaders.append(DataLoader(self.dataset(*self.val), 256))
        return Loaders(loaders) if self.datamodule else loaders


class Loaders(LightningDataModule):
    """A DataModule over a training and a validation loader."""

    def __init__(self, loaders: list[DataLoader]) -> None:
        super().__init__()
        self.loaders = loaders

    def train_dataloader(self) -> DataLoader:
        """Return the training loader."""
        return self.loaders[0]

    def val_dataloader(self) -> DataLoader:
        """Return the validation loader."""
        return self.loaders[1]


class Learner(LightningModule):
    """The usual LightningModule: a net, a loss, an optimizer.

    Args:
        net: from inputs to outputs.
        loss: from outputs and targets to a scalar.
        optimizer: from the module to whatever ``configure_optimizers`` may return.
    """

    def __init__(
        self, net: nn.Module, loss: Callable[[Any, Tensor], Tensor], optimizer: Callable[[LightningModule], Any]
    ) -> None:
        super().__init__()
        self.net, self.loss, self.optimizer = net, loss, optimizer

    def forward(self, x: Tensor) -> Any:
        """Return what the net returns."""
        return self.net(x)

    def unpack(self, batch: Any) -> tuple[Tensor, Tensor]:
        """Return inputs and targets of a tuple or of a dict."""
        return (batch["x"], batch["y"]) if isinstance(batch, dict) else (batch[0], batch[1])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the loss and log it."""
        x, y = self.unpack(batch)
        loss = self.loss(self(x), y)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Log the loss."""
        x, y = self.unpack(batch)
        self.log("val_loss", self.loss(self(x), y))

    def configure_optimizers(self) -> Any:
        """Return what was asked for."""
        return self.optimizer(self)


class DictDataset(Dataset):
    """Samples as dicts with "x" and "y"."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"x": self.x[index], "y": self.y[index]}


class Stream(IterableDataset):
    """Samples in a fixed random order, one after the other."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        order = torch.randperm(len(x))
        self.x, self.y = x[order], y[order]

    def __iter__(self):
        return iter(zip(self.x, self.y, strict=True))

    def __len__(self) -> int:
        return len(self.x)
