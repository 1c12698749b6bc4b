"""Small modules for the tests of stopping, plateaus and resuming."""

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Scripted(LightningModule):
    """Trains really, and logs what a script says: ``script(module)`` after each validation, nothing if None."""

    def __init__(self, script: Callable[["Scripted"], float | None] | list[float], *, lr: float = 0.1) -> None:
        super().__init__()
        self.net = nn.Linear(2, 1)
        self.lr = lr
        self.script = script if callable(script) else lambda module: script[module.current_epoch]
        self.rates: list[float] = []

    def training_step(self, batch, batch_idx):
        self.rates.append(self.optimizers().param_groups[0]["lr"])
        return self.net(batch[0]).pow(2).mean()

    def validation_step(self, batch, batch_idx):
        pass

    def on_validation_epoch_end(self):
        value = None if self.trainer.sanity_checking else self.script(self)
        if value is not None:
            self.log("val_loss", torch.tensor(float(value)))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr)

    def on_train_epoch_start(self):
        self.epochs_trained = self.current_epoch + 1


class Noisy(LightningModule):
    """A net with BatchNorm and dropout on labels of pure noise: its validation loss soon gets worse."""

    def __init__(self, *, lr: float = 0.05, manual: bool = False) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.net = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 3))
        self.lr = lr
        self.automatic_optimization = not manual

    def training_step(self, batch, batch_idx):
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        if not self.automatic_optimization:
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", nn.functional.cross_entropy(self.net(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=self.lr)


def dots(n: int = 8, batch_size: int = 4) -> DataLoader:
    return DataLoader(TensorDataset(torch.ones(n, 2)), batch_size)


def noise(seed: int, n: int = 48, batch_size: int = 8, **options: Any) -> DataLoader:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 6, generator=generator)
    y = torch.randint(0, 3, (n,), generator=generator)
    return DataLoader(TensorDataset(x, y), batch_size, **options)


def tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    """Every parameter and buffer, the non-persistent ones included."""
    named = (*module.named_parameters(), *module.named_buffers())
    return {name: tensor.detach().clone() for name, tensor in named}


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), f"{name} differs"
