"""Targets of a table: numbers, classes or labels, and which task they make."""

from collections.abc import Sequence
from decimal import Decimal
from numbers import Real
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lightning_tricks._base import UserInputError
from lightning_tricks.data.tables._columns import category_of, numbers_of

FEW = 20  # whole numbers with at most so many different values are taken for classes
Task = Literal["classification", "regression", "multilabel"]


def target_values(target: Any, comma: str | None = None) -> npt.NDArray[Any]:
    """Return a target as numbers, booleans or text.

    Numbers in objects (decimals, missing values) are numbers. Text stays text, unless it reads as numbers and these
    are too many for classes.

    Raises:
        UserInputError: if it holds times.
    """
    if not hasattr(target, "factorize"):
        values = as_array(target)
        return numbers_in_objects(values)
    kind = getattr(target.dtype, "kind", "O")
    if kind in "Mm":
        raise UserInputError(f"a target must hold numbers or classes, but {target.name!r} holds times.")
    if kind in "iufb" and not target.isna().any():
        return np.asarray(target.to_numpy(dtype=bool if kind == "b" else None))
    numbers = numbers_of(target, comma=comma)
    category = category_of(target)
    if numbers is None:
        return category.texts()
    if not numbers.text:
        return numbers.values
    if any(isinstance(value, str) for value in target.dropna().unique().tolist()):
        known = numbers.values[~np.isnan(numbers.values)]
        few = len(category.names) <= FEW and bool((known == np.round(known)).all())
        return category.texts() if few else numbers.values
    whole = all(isinstance(value, int) for value in target.tolist())
    return numbers.values.astype(np.int64) if whole else numbers.values


def numbers_in_objects(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return an array of objects that are all numbers, or None, as numbers."""
    items = values.ravel().tolist() if values.dtype.kind == "O" else []
    plain = [value for value in items if value is not None]
    if not plain or not all(isinstance(value, Real | Decimal) and not isinstance(value, bool) for value in plain):
        return values
    whole = len(plain) == len(items) and all(isinstance(value, int) for value in items)
    numbers = [np.nan if value is None else value if whole else float(value) for value in items]
    return np.array(numbers, dtype=np.int64 if whole else np.float64).reshape(values.shape)


def as_array(values: Any) -> npt.NDArray[Any]:
    """Return a tensor, series or sequence as an array."""
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


def guess_task(values: npt.NDArray[Any]) -> Task:
    """Return the task that a target looks like."""
    if values.ndim == 2 and values.shape[1] > 1:
        return "multilabel" if _zeros_and_ones(values) else "regression"
    few = values.dtype.kind in "iu" and len(np.unique(values)) <= FEW
    return "classification" if values.dtype.kind in "OUSb" or few else "regression"


def _zeros_and_ones(values: npt.NDArray[Any]) -> bool:
    return values.dtype.kind == "b" or (values.dtype.kind in "iuf" and bool(np.isin(values, (0, 1)).all()))


def label_names(y: Tensor, names: Sequence[Any]) -> list[str]:
    """Return a name for every label of a multi-label target.

    Raises:
        UserInputError: if it does not hold zeros and ones, or there are other names than columns.
    """
    if not _zeros_and_ones(y.numpy()):
        raise UserInputError("a multi-label target must hold 0 and 1 only, but holds other numbers.")
    if names and len(names) != y.shape[1]:
        raise UserInputError(f"a multi-label target of {y.shape[1]} columns needs as many names, but got {len(names)}.")
    return [str(name) for name in names] or [str(i) for i in range(y.shape[1])]


def regression_numbers(values: npt.NDArray[Any]) -> Tensor:
    """Return numbers to predict as ``float64 (N, T)``.

    Raises:
        UserInputError: if they are no numbers, or not finite.
    """
    try:
        if values.dtype.kind in "Mm":
            raise TypeError
        y = torch.from_numpy(np.array(values, dtype=np.float64))
    except (TypeError, ValueError):
        raise UserInputError(
            f"a regression target must hold numbers, but got {values.dtype}. Is this task='classification'?"
        ) from None
    broken = int((~torch.isfinite(y)).sum())
    if broken:
        raise UserInputError(f"every row needs a finite target, but {broken} are NaN or infinite. Remove these rows.")
    return y.unsqueeze(1) if y.ndim == 1 else y
