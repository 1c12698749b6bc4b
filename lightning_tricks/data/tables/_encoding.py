"""What is learnt of a table's features from its training part, and the source of rows so encoded."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lightning_tricks._base import UserInputError
from lightning_tricks.data._loading import TensorSource
from lightning_tricks.data.tables._reading import Table

Scale = Literal["standard", "minmax", "none"]
WIDEST = 1000  # one-hot columns: more are slow to learn from, and embeddings do better


@dataclass
class Encoder:
    """Scales, fill values and categories of the training rows.

    Attributes:
        fill: ``(D,)`` float64, what a missing number becomes.
        shift: ``(D,)`` float64, taken from every number.
        spread: ``(D,)`` float64, by which it is then divided.
        known: names of the categories of each categorical column, in order of their codes from 1.
    """

    fill: Tensor
    shift: Tensor
    spread: Tensor
    known: list[list[str]]

    @property
    def cardinalities(self) -> list[int]:
        """Number of codes of each categorical column, the unknown one included."""
        return [len(names) + 1 for names in self.known]

    def numbers(self, table: Table) -> Tensor:
        """Return ``float32 (N, D)``, filled and scaled."""
        x = torch.empty(len(table), len(table.numbers), dtype=torch.float32)
        for i, (fill, shift, spread) in enumerate(zip(self.fill, self.shift, self.spread, strict=True)):
            column = torch.from_numpy(np.array(table.numbers[i]))  # a copy of one column at a time
            x[:, i] = (torch.where(column.isnan(), fill, column) - shift) / spread
        return x

    def codes(self, table: Table) -> Tensor:
        """Return ``int32 (N, columns)``, 0 for a category that the training part does not have."""
        codes = torch.empty(len(table), len(self.known), dtype=torch.int32)
        for i, (category, known) in enumerate(zip(table.categories, self.known, strict=True)):
            codes[:, i] = torch.from_numpy(category.coded(known))
        return codes


def fit_encoder(table: Table, train: Sequence[int], scale: Scale) -> Encoder:
    """Learn scales, fill values and categories from the training rows."""
    rows = np.asarray(train, dtype=np.int64)
    learnt = [_fitted(column[rows], scale) for column in table.numbers]
    fill, shift, spread = torch.tensor(learnt, dtype=torch.float64).reshape(-1, 3).unbind(dim=1)
    return Encoder(fill, shift, spread, [category.known(rows) for category in table.categories])


def check_width(table: Table, encoder: Encoder) -> None:
    """Check that one-hot columns are not too many.

    Raises:
        UserInputError: naming the columns with most categories.
    """
    sizes = sorted(zip(encoder.cardinalities, table.category_names, strict=True), reverse=True)
    if (width := sum(size - 1 for size, _ in sizes)) <= WIDEST:
        return
    most = ", ".join(f"{name!r} has {size - 1}" for size, name in sizes[:3])
    raise UserInputError(
        f"one-hot columns of all categories would be {width}, more than {WIDEST} ({most}). Use categories='codes' and "
        f"embeddings, merge rare categories, or leave columns out with drop=[{sizes[0][1]!r}]."
    )


class PairSource(TensorSource):
    """Numbers and codes as a pair, and the target if there is one."""

    def read(self, rows: Sequence[int], epoch: int) -> Any:
        """Return ``((numbers, codes), target)``, or ``((numbers, codes),)``."""
        numbers, codes, *target = super().read(rows, epoch)
        return ((numbers, codes.long()), *target)


class OneHotSource(TensorSource):
    """Numbers and one-hot columns side by side, and the target if there is one; codes widen where they are read.

    Args:
        columns: numbers ``float32 (N, D)``, codes ``int32 (N, K)``, perhaps the target.
        cardinalities: number of codes of each of the K columns; code 0 has no column.
    """

    def __init__(self, *columns: Tensor, cardinalities: Sequence[int]) -> None:
        super().__init__(*columns)
        self.cardinalities = cardinalities

    def read(self, rows: Sequence[int], epoch: int) -> Any:
        """Return ``(x, target)``, or ``(x,)``, with x ``float32 (B, D + one-hot columns)``."""
        numbers, codes, *target = super().read(rows, epoch)
        hot = [
            torch.nn.functional.one_hot(code.long(), size)[:, 1:].float()
            for code, size in zip(codes.unbind(dim=1), self.cardinalities, strict=True)
        ]
        return (torch.cat([numbers, *hot], dim=1), *target)


def one_if_constant(spread: Tensor, mean: Tensor, n: int) -> Tensor:
    """Return the spread of each column, or 1 if it may be rounding noise of n equal values: such are only shifted.

    The bound is the one of scikit-learn's ``StandardScaler``, from Chan, Golub & LeVeque 1983.
    """
    noise = n * torch.finfo(torch.float64).eps * mean.abs()
    return torch.where(spread > noise, spread, 1)


def _fitted(column: npt.NDArray[np.float64], scale: Scale) -> tuple[float, float, float]:
    """Return fill value, shift and spread of one column of the training part."""
    x = torch.from_numpy(np.array(column))
    mean = x.nanmean().nan_to_num()  # a column that is missing in all of the training part becomes 0
    x = torch.where(x.isnan(), mean, x)
    if scale == "none":
        return mean.item(), 0.0, 1.0
    if scale == "standard":
        shift, spread = x.mean(), x.std(unbiased=False)
    else:
        shift, spread = x.amin(), x.amax() - x.amin()
    return mean.item(), shift.item(), one_if_constant(spread, mean, len(x)).item()
