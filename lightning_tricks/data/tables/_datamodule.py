"""Tables of numbers and categories, for classification and regression."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import Unpack

from lightning_tricks._base import UserInputError, check_choice
from lightning_tricks.data._datamodule import SplitDataModule, SplitOptions
from lightning_tricks.data._loading import Source, TensorSource
from lightning_tricks.data.images._arrays import check_labels
from lightning_tricks.data.tables._reading import Table, read_table

if TYPE_CHECKING:
    import pandas as pd

FEW = 20  # whole numbers with at most so many different values are taken for classes
Scale = Literal["standard", "minmax", "none"]


class TabularDataModule(SplitDataModule[Table]):
    """Rows of numbers and categories; scales, categories and fill values are learnt from the training part only.

    Batches are tuples of ``float32 (B, D)`` features and the target: ``int64 (B,)`` classes, or ``float32 (B, T)``
    numbers. With ``categories="codes"`` the features are a pair: ``float32 (B, numbers)`` and ``int64 (B, columns)``
    codes, 0 being a category that the training part does not have.

    Args:
        data: features as a ``(rows, columns)`` array or tensor, a ``pandas.DataFrame``, or the path of a CSV, TSV or
            parquet file.
        target: one value (or several numbers) per row; of a table, the name of its column or columns.
        task: ``"auto"`` takes text, booleans and whole numbers of at most 20 different values for classes.
        batch_size: rows per batch and rank, at least 1.
        split: fractions of train, val and test, or row numbers by part name.
        split_by: ``"auto"`` (time or group if given, else class), ``"class"``, ``"group"``, ``"time"`` or ``"random"``.
        groups: one group per row, or the name of its column (which is then no feature).
        time: one sortable value per row, or the name of its column (which is then no feature).
        classes: the classes in order of their codes; sorted if not given. Needed if numbers do not run from 0 to C-1.
        categorical: columns of numbers that are categories.
        drop: columns to leave out.
        categories: ``"onehot"`` (unknown categories are all zeros) or ``"codes"``, for embeddings.
        scale: ``"standard"`` (mean 0, deviation 1), ``"minmax"`` (0 to 1) or ``"none"``.
        scale_target: whether to standardise the numbers to predict; :meth:`inverse_target` undoes it.
        missing: ``"raise"``, or ``"impute"`` the training mean (and treat missing categories as unknown).
        encoding: of a text file.
        num_workers: processes that read; tables are quicker without.
        seed: of the split and the order of training.

    Attributes:
        in_features: width of the features, one-hot columns included; after ``setup``.
        feature_names: of these columns.
        cardinalities: number of codes of each categorical column, with the unknown one.

    Raises:
        UserInputError: for anything in the table or the options that cannot be right; at ``setup`` for files.

    Example:
        >>> data = TabularDataModule(torch.rand(50, 3), 100 + 10 * torch.rand(50), batch_size=10)
        >>> x, y = next(iter(data.train_dataloader()))
        >>> x.shape, y.shape, data.task
        (torch.Size([10, 3]), torch.Size([10, 1]), 'regression')
        >>> bool((data.inverse_target(y) >= 99.9).all())
        True
    """

    def __init__(
        self,
        data: "Tensor | npt.NDArray[Any] | pd.DataFrame | str | Path",
        target: "Tensor | npt.NDArray[Any] | Sequence[Any] | str | None",
        *,
        task: Literal["auto", "classification", "regression"] = "auto",
        classes: Sequence[Any] | None = None,
        categorical: Sequence[str] = (),
        drop: Sequence[str] = (),
        categories: Literal["onehot", "codes"] = "onehot",
        scale: Scale = "standard",
        scale_target: bool = True,
        missing: Literal["raise", "impute"] = "raise",
        encoding: str = "utf-8",
        **options: Unpack[SplitOptions],
    ) -> None:
        super().__init__(**options)
        self._input = (data, target)
        self._task = check_choice("task", task, ("auto", "classification", "regression"))
        self._given_classes = classes
        self._reading: dict[str, Any] = {"categorical": tuple(categorical), "drop": tuple(drop), "encoding": encoding}
        self._codes = check_choice("categories", categories, ("onehot", "codes")) == "codes"
        self._scale = check_choice("scale", scale, ("standard", "minmax", "none"))
        self._scale_target = scale_target
        self._impute = check_choice("missing", missing, ("raise", "impute")) == "impute"
        self.task: Literal["classification", "regression"] = "classification"
        self.classes: list[str] = []
        self.in_features = 0
        self.feature_names: list[str] = []
        self.cardinalities: list[int] = []
        self.target_mean = torch.zeros(1)
        self.target_std = torch.ones(1)
        self._y = torch.empty(0)

    @property
    def num_classes(self) -> int:
        """How many classes there are (0 for regression)."""
        return len(self.classes)

    @property
    def num_targets(self) -> int:
        """How many numbers are predicted per row (0 for classification)."""
        return self._y.shape[1] if self.task == "regression" else 0

    def inverse_target(self, y: Float[Tensor, "*rows"]) -> Float[Tensor, "*rows"]:
        """Return predictions in the units of the table: ``y * std + mean``; the last axis holds the targets.

        A predicted standard deviation is brought back by ``target_std`` alone, a variance by its square.
        """
        self._ready()
        return y * self.target_std.to(y.device) + self.target_mean.to(y.device)

    def inverse_prediction(self, prediction: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return a prediction with the ``row`` of each sample, and for a regression in the units of the table.

        Means, quantiles, bounds and samples go through :meth:`inverse_target`; deviations (``std``, ``mc_error``) are
        multiplied by ``target_std``, variances by its square. Other columns stay as they are.

        Args:
            prediction: columns by name, ``index`` among them.
        """
        placed = super().inverse_prediction(prediction)
        return {name: self._in_units(name, value) for name, value in placed.items()}

    def _in_units(self, name: str, value: Tensor) -> Tensor:
        std = self.target_std.to(value.device)
        if self.task != "regression":
            return value
        if name in ("mean", "lower", "upper", "samples") or name.startswith("quantile_"):
            return self.inverse_target(value)
        if name in ("std", "mc_error"):
            return value * std
        return value * std.square() if name.endswith("_variance") else value

    def describe(self) -> str:
        """Return the sizes of the parts, and the counts of the classes or mean and deviation of the targets."""
        text = super().describe()
        if self.task == "regression" and self._scale_target:
            pairs = zip(self.target_mean.tolist(), self.target_std.tolist(), strict=True)
            text += "\n  target (train): " + ", ".join(f"{mean:.4g} ± {std:.4g}" for mean, std in pairs)
        return text

    def _open(self) -> Table:
        data, target = self._input
        extra = [column for column in (self.groups, self.time) if isinstance(column, str)]
        table = read_table(data, target, extra=extra, **self._reading)
        if isinstance(self.groups, str):
            self.groups = table.extra[self.groups].tolist()
        if isinstance(self.time, str):
            self.time = table.extra[self.time].tolist()
        self._check_numbers(table)
        self._take_target(table)
        return table

    def _check_numbers(self, table: Table) -> None:
        if not table.number_names and not table.category_names:
            raise UserInputError("a table needs at least one column of features beside the target, but has none.")
        for i, name in enumerate(table.number_names):
            column = table.numbers[:, i]
            if np.isinf(column).any():
                raise UserInputError(
                    f"features must be finite, but column {name!r} has infinities. Clip or remove them."
                )
            _check_missing(int(np.isnan(column).sum()), name, impute=self._impute)
        for name, texts in zip(table.category_names, table.categories, strict=True):
            _check_missing(int((texts == "").sum()), name, impute=self._impute)

    def _take_target(self, table: Table) -> None:
        values = table.target
        self.task = _guess_task(values) if self._task == "auto" else self._task
        if self.task == "classification":
            names = self._given_classes
            if names is not None:  # by value, whatever the type
                values = np.asarray([str(value) for value in values.tolist()], dtype=object)
            if values.dtype.kind == "b":
                values = values.astype(str)
            self._y, self.classes = check_labels(values, len(values), names)
        else:
            self._y = _numbers(values)

    def _labels(self) -> Tensor | None:
        return self._y if self.task == "classification" else None

    def _class_names(self) -> list[str]:
        return self.classes

    def _fit(self, opened: Table, train: Sequence[int]) -> Source:
        rows = list(train)
        numbers = _scaled(opened.numbers, rows, self._scale)
        known = [sorted(set(texts[rows].tolist()) - {""}) for texts in opened.categories]
        codes = [_coded(texts, names) for texts, names in zip(opened.categories, known, strict=True)]
        self.cardinalities = [len(names) + 1 for names in known]
        y = self._scaled_target(rows)
        self.feature_names = list(opened.number_names)
        if self._codes:
            self.feature_names += opened.category_names
            self.in_features = len(self.feature_names)
            stacked = torch.stack(codes, dim=1) if codes else torch.empty(len(y), 0, dtype=torch.long)
            return PairSource(numbers, stacked, y)
        for name, names in zip(opened.category_names, known, strict=True):
            self.feature_names += [f"{name}={value}" for value in names]
        hot = [
            torch.nn.functional.one_hot(code, size)[:, 1:].float()
            for code, size in zip(codes, self.cardinalities, strict=True)
        ]
        x = torch.cat([numbers, *hot], dim=1)
        self.in_features = x.shape[1]
        return TensorSource(x, y)

    def _scaled_target(self, train: list[int]) -> Tensor:
        if self.task == "classification":
            return self._y
        y = self._y.double()
        if self._scale_target:
            mean, std = y[train].mean(dim=0), y[train].std(dim=0, unbiased=False)
            self.target_mean, self.target_std = mean.float(), _one_if_constant(std, mean, len(train)).float()
        else:
            self.target_mean, self.target_std = torch.zeros(y.shape[1]), torch.ones(y.shape[1])
        return ((y - self.target_mean) / self.target_std).float()


class PairSource(TensorSource):
    """Numbers and codes as a pair, and the target."""

    def read(self, rows: Sequence[int], epoch: int) -> Any:
        """Return ``((numbers, codes), target)``."""
        numbers, codes, y = super().read(rows, epoch)
        return (numbers, codes), y


def _check_missing(count: int, name: str, *, impute: bool) -> None:
    if count and not impute:
        raise UserInputError(
            f"features must not be missing, but column {name!r} has {count} NaN or empty values. Pass missing='impute' "
            "to fill in what the training part says, or remove the rows."
        )


def _guess_task(values: npt.NDArray[Any]) -> Literal["classification", "regression"]:
    if values.ndim == 2 and values.shape[1] > 1:
        return "regression"
    few = values.dtype.kind in "iu" and len(np.unique(values)) <= FEW
    return "classification" if values.dtype.kind in "OUSb" or few else "regression"


def _numbers(values: npt.NDArray[Any]) -> Tensor:
    try:
        y = torch.from_numpy(np.array(values, dtype=np.float64))
    except (TypeError, ValueError):
        raise UserInputError(
            f"a regression target must hold numbers, but got {values.dtype}. Is this task='classification'?"
        ) from None
    broken = int((~torch.isfinite(y)).sum())
    if broken:
        raise UserInputError(f"every row needs a finite target, but {broken} are NaN or infinite. Remove these rows.")
    return y.unsqueeze(1) if y.ndim == 1 else y


def _scaled(numbers: npt.NDArray[np.float64], train: list[int], scale: Scale) -> Tensor:
    x = torch.from_numpy(np.array(numbers))
    fitted = x[train]
    mean = fitted.nanmean(dim=0).nan_to_num()  # a column that is missing in all of the training part becomes 0
    x = torch.where(x.isnan(), mean, x)
    if scale == "none" or x.shape[1] == 0:
        return x.float()
    fitted = x[train]
    if scale == "standard":
        shift, spread = fitted.mean(dim=0), fitted.std(dim=0, unbiased=False)
    else:
        shift = fitted.amin(dim=0)
        spread = fitted.amax(dim=0) - shift
    return ((x - shift) / _one_if_constant(spread, mean, len(train))).float()


def _one_if_constant(spread: Tensor, mean: Tensor, n: int) -> Tensor:
    """Return the spread of each column, or 1 if it may be rounding noise of n equal values: such are only shifted.

    The bound is the one of scikit-learn's ``StandardScaler``, from Chan, Golub & LeVeque 1983.
    """
    noise = n * torch.finfo(torch.float64).eps * mean.abs()
    return torch.where(spread > noise, spread, 1)


def _coded(texts: npt.NDArray[Any], known: Sequence[str]) -> Tensor:
    code = {name: i for i, name in enumerate(known, start=1)}
    return torch.tensor([code.get(text, 0) for text in texts.tolist()])
