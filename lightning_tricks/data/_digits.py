"""Real data that is always there: the handwritten digits that scikit-learn ships."""

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, TensorDataset

from lightning_tricks._base import check_range


class DigitsDataModule(LightningDataModule):
    """1,797 handwritten digits of 1×8×8 pixels, split 60/20/20, stratified by class (UCI optdigits' test part).

    Pixels are scaled to [0, 1] and standardised with the mean and standard deviation of the training part.
    Batches are tuples of ``float32 (B, 1, 8, 8)`` pictures and ``int64 (B,)`` labels.

    Args:
        batch_size: pictures per batch.
        seed: of the split and of the training order.

    Example:
        >>> data = DigitsDataModule(batch_size=64)
        >>> data.setup("fit")
        >>> x, y = next(iter(data.val_dataloader()))
        >>> x.shape, data.num_classes
        (torch.Size([64, 1, 8, 8]), 10)
    """

    num_classes = 10

    def __init__(self, batch_size: int = 64, *, seed: int = 0) -> None:
        super().__init__()
        self.batch_size = int(check_range("batch_size", batch_size, low=1))
        self.seed = seed
        self.parts: dict[str, TensorDataset] = {}

    def setup(self, stage: str | None = None) -> None:
        """Make the three parts; the same ones whatever the stage."""
        if self.parts:
            return
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        pixels, labels = load_digits(return_X_y=True)
        rest, test = train_test_split(range(len(labels)), test_size=0.2, stratify=labels, random_state=self.seed)
        train, val = train_test_split(rest, test_size=0.25, stratify=labels[rest], random_state=self.seed)
        x = torch.from_numpy(pixels).float().reshape(-1, 1, 8, 8) / 16
        y = torch.from_numpy(labels).long()
        x = (x - x[train].mean()) / x[train].std()
        self.parts = {name: TensorDataset(x[i], y[i]) for name, i in (("train", train), ("val", val), ("test", test))}

    def train_dataloader(self) -> DataLoader[tuple[torch.Tensor, ...]]:
        """Return the shuffled training part; the last batch is dropped only if it would hold one sample."""
        part = self.parts["train"]
        lone = len(part) % self.batch_size == 1
        return DataLoader(part, self.batch_size, shuffle=True, drop_last=lone)

    def val_dataloader(self) -> DataLoader[tuple[torch.Tensor, ...]]:
        """Return the validation part, in order."""
        return DataLoader(self.parts["val"], self.batch_size)

    def test_dataloader(self) -> DataLoader[tuple[torch.Tensor, ...]]:
        """Return the test part, in order."""
        return DataLoader(self.parts["test"], self.batch_size)

    def predict_dataloader(self) -> DataLoader[tuple[torch.Tensor, ...]]:
        """Return the test part, in order."""
        return self.test_dataloader()
