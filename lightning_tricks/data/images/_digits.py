"""Real data that is always there: the handwritten digits that scikit-learn ships."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_tricks.data._datamodule import SplitDataModule
from lightning_tricks.data._loading import TensorSource


class DigitsDataModule(SplitDataModule[TensorSource]):
    """1,797 handwritten digits of 1×8×8 pixels, split 60/20/20, stratified by class (UCI optdigits' test part).

    Pixels are scaled to [0, 1] and standardised with the mean and standard deviation of the training part.
    Batches are tuples of ``float32 (B, 1, 8, 8)`` pictures and ``int64 (B,)`` labels.

    Args:
        batch_size: pictures per batch and rank.
        seed: of the split and of the training order.

    Raises:
        UserInputError: if ``batch_size`` is not positive.

    Example:
        >>> data = DigitsDataModule(batch_size=64)
        >>> data.setup("fit")
        >>> x, y = next(iter(data.val_dataloader()))
        >>> x.shape, data.num_classes
        (torch.Size([64, 1, 8, 8]), 10)
    """

    num_classes = 10
    image_shape = (1, 8, 8)

    def __init__(self, batch_size: int = 64, *, seed: int = 0) -> None:
        super().__init__(batch_size=batch_size, seed=seed)
        self._targets = torch.empty(0, dtype=torch.long)

    def _open(self) -> TensorSource:
        from sklearn.datasets import load_digits

        pixels, labels = load_digits(return_X_y=True)
        self._targets = torch.from_numpy(labels).long()
        return TensorSource(torch.from_numpy(pixels).float().reshape(-1, 1, 8, 8) / 16, self._targets)

    def _fit(self, opened: TensorSource, train: Sequence[int]) -> TensorSource:
        x, y = opened.columns
        return TensorSource((x - x[train].mean()) / x[train].std(), y)

    def _labels(self) -> Tensor:
        return self._targets

    def _class_names(self) -> list[str]:
        return [str(digit) for digit in range(10)]
