"""Tables of numbers and categories, for classification and regression."""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import Self, Unpack

from lightning_tricks._base import UserInputError, check_choice, warn_once
from lightning_tricks.data._datamodule import SplitDataModule, SplitOptions
from lightning_tricks.data._loading import Part, Source
from lightning_tricks.data.images._arrays import check_labels
from lightning_tricks.data.tables._encoding import (
    Encoder,
    OneHotSource,
    PairSource,
    Scale,
    check_width,
    fit_encoder,
    one_if_constant,
)
from lightning_tricks.data.tables._reading import Table, read_new, read_table
from lightning_tricks.data.tables._roles import Chosen, ColumnRole, check_roles
from lightning_tricks.data.tables._targets import Task, guess_task, label_names, regression_numbers

if TYPE_CHECKING:
    import pandas as pd


class TabularDataModule(SplitDataModule[Table]):
    """Rows of numbers and categories; scales, categories and fill values are learnt from the training part only.

    Batches are tuples of ``float32 (B, D)`` features and the target: ``int64 (B,)`` classes, or ``float32 (B, T)``
    numbers. With ``categories="codes"`` the features are a pair: ``float32 (B, numbers)`` and ``int64 (B, columns)``
    codes, 0 being a category that the training part does not have.

    Args:
        data: features as a ``(rows, columns)`` array or tensor, a ``pandas.DataFrame``, or the path of a CSV, TSV or
            parquet file.
        target: one value (or several numbers) per row; of a table, the name of its column or columns.
        task: ``"auto"`` takes text, booleans and whole numbers of at most 20 different values for classes, and several
            columns of zeros and ones for a multi-label target (``float32 (B, T)``, not standardised).
        batch_size: rows per batch and rank, at least 1.
        split: fractions of train, val and test, or row numbers by part name.
        split_by: ``"auto"`` (time or group if given, else class), ``"class"``, ``"group"``, ``"time"`` or ``"random"``.
        groups: one group per row, or the name of its column (which is then no feature).
        time: one sortable value per row, or the name of its column (which is then no feature).
        classes: the classes in order of their codes; sorted if not given. Needed if numbers do not run from 0 to C-1.
        categorical: columns of numbers that are categories.
        drop: columns to leave out.
        roles: what a column is: ``"number"``, ``"category"``, ``"date"``, ``"id"`` (names the rows) or ``"drop"``. Of
            others it is told from their values, and named columns that are constant, empty, repeated, ID-like or
            another form of the target are left out with one warning; :attr:`roles` shows them all.
        categories: ``"onehot"`` (unknown categories are all zeros) or ``"codes"``, for embeddings.
        scale: ``"standard"`` (mean 0, deviation 1), ``"minmax"`` (0 to 1) or ``"none"``.
        scale_target: whether to standardise the numbers to predict; :meth:`inverse_target` undoes it.
        missing: ``"raise"``, or ``"impute"`` the training mean (and treat missing categories as unknown).
        encoding: of a text file.
        num_workers: processes that read; tables are quicker without.
        seed: of the split and the order of training.

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
        task: Literal["auto", "classification", "regression", "multilabel"] = "auto",
        classes: Sequence[Any] | None = None,
        categorical: Sequence[str] = (),
        drop: Sequence[str] = (),
        roles: Mapping[str, Chosen] | None = None,
        categories: Literal["onehot", "codes"] = "onehot",
        scale: Scale = "standard",
        scale_target: bool = True,
        missing: Literal["raise", "impute"] = "raise",
        encoding: str = "utf-8",
        **options: Unpack[SplitOptions],
    ) -> None:
        super().__init__(**options)
        self._input = (data, target)
        self._given_task = check_choice("task", task, ("auto", "classification", "regression", "multilabel"))
        self._given_classes = classes
        self._chosen = {
            **dict.fromkeys(categorical, "category"),
            **dict.fromkeys(drop, "drop"),
            **check_roles(roles),
        }
        self._encoding = encoding
        self._as_codes = check_choice("categories", categories, ("onehot", "codes")) == "codes"
        self._scale = check_choice("scale", scale, ("standard", "minmax", "none"))
        self._scale_target = scale_target
        self._impute = check_choice("missing", missing, ("raise", "impute")) == "impute"
        self._task: Task = "classification"
        self._classes: list[str] = []
        self._encoder: Encoder | None = None
        self._feature_names: list[str] = []
        self._target_mean = torch.zeros(1)
        self._target_std = torch.ones(1)
        self._y = torch.empty(0)
        self._row_names: list[str] = []

    @property
    def task(self) -> Task:
        """``"classification"``, ``"regression"`` or ``"multilabel"``; reads the table if ``setup`` has not yet."""
        self._ready()
        return self._task

    @property
    def classes(self) -> list[str]:
        """Names of the classes in order of their codes, or of the labels; none for a regression."""
        self._ready()
        return self._classes

    @property
    def num_classes(self) -> int:
        """How many classes or labels there are (0 for regression)."""
        return len(self.classes)

    @property
    def num_targets(self) -> int:
        """How many numbers are predicted per row (0 for classification)."""
        return self._y.shape[1] if self.task == "regression" else 0

    @property
    def in_features(self) -> int:
        """Width of the features, one-hot columns included; reads the table if ``setup`` has not yet."""
        return len(self.feature_names)

    @property
    def feature_names(self) -> list[str]:
        """Names of the columns of the features; numbers first."""
        self._ready()
        return self._feature_names

    @property
    def cardinalities(self) -> list[int]:
        """Number of codes of each categorical column, with the unknown one."""
        return self._fitted().cardinalities

    @property
    def target_mean(self) -> Tensor:
        """What was taken from each number to predict, ``float32 (T,)``; 0 if they are not standardised."""
        self._ready()
        return self._target_mean

    @property
    def target_std(self) -> Tensor:
        """By what each number to predict was divided, ``float32 (T,)``; 1 if they are not standardised."""
        self._ready()
        return self._target_std

    @property
    def roles(self) -> list[ColumnRole]:
        """What became of each column: its role, why, and what was done; ``pandas.DataFrame(data.roles)`` is a table."""
        self._ready()
        table = self._source
        return [] if table is None else [role._replace(done=self._done(role)) for role in table.roles]

    def inverse_target(self, y: Float[Tensor, "*rows"]) -> Float[Tensor, "*rows"]:
        """Return predictions in the units of the table: ``y * std + mean``; the last axis holds the targets.

        A predicted standard deviation is brought back by ``target_std`` alone, a variance by its square.
        """
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
        if "predict" not in self.parts and self._task == "regression" and self._scale_target:
            pairs = zip(self.target_mean.tolist(), self.target_std.tolist(), strict=True)
            text += "\n  target (train): " + ", ".join(f"{mean:.4g} ± {std:.4g}" for mean, std in pairs)
        return text

    def new_data(self, source: "Tensor | npt.NDArray[Any] | pd.DataFrame | str | Path") -> Self:
        """Return a copy that predicts other rows, encoded by what was learnt from the training part.

        A target is not needed, and not looked at. Columns that the training table did not have are ignored; categories
        that its training part did not have are unknown, which is said once.

        Args:
            source: a table as in the constructor, with the same columns.

        Returns:
            A DataModule whose :meth:`predict_dataloader` gives ``(x,)``; ``row_names`` names its rows.

        Raises:
            UserInputError: if a column is missing, holds something else, or lacks values without ``missing="impute"``.

        Example:
            >>> data = TabularDataModule(torch.rand(50, 3), torch.rand(50))
            >>> (x,) = next(iter(data.new_data(torch.rand(7, 3)).predict_dataloader()))
            >>> x.shape
            torch.Size([7, 3])
        """
        encoder, trained = self._fitted(), self._source
        if trained is None:
            raise UserInputError("this is new data already: call new_data of the DataModule that was trained on.")
        table = read_new(source, trained.plan, encoding=self._encoding)
        if not len(table):
            raise UserInputError("new data needs at least one row, but has none.")
        self._check_numbers(table)
        _say_unknown(table, encoder)
        other = copy.copy(self)
        other.trainer = None
        other._source = None
        other._restored = {}
        other._row_names = table.row_names
        other.parts = {"predict": Part(self._encoded(table, encoder), range(len(table)))}
        return other

    @property
    def row_names(self) -> list[str]:
        """Names of the rows of the table (its ID column or its index), empty if it has none."""
        self._ready()
        return self._row_names

    def _fitted(self) -> Encoder:
        self._ready()
        if self._encoder is None:
            raise UserInputError("nothing was learnt from the training part yet: call setup() first.")
        return self._encoder

    def _open(self) -> Table:
        data, target = self._input
        used = {n: r for n, r in ((self.groups, "group"), (self.time, "time")) if isinstance(n, str)}
        table = read_table(data, target, roles=self._chosen, used=used, encoding=self._encoding)
        if isinstance(self.groups, str):
            self.groups = table.extra[self.groups]
        if isinstance(self.time, str):
            self.time = table.extra[self.time]
        self._check_numbers(table)
        self._take_target(table)
        self._row_names = table.row_names
        return table

    def _check_numbers(self, table: Table) -> None:
        if not table.number_names and not table.category_names:
            raise UserInputError("a table needs at least one column of features beside the target, but has none.")
        for name, column in zip(table.number_names, table.numbers, strict=True):
            if np.isinf(column).any():
                raise UserInputError(
                    f"features must be finite, but column {name!r} has infinities. Clip or remove them."
                )
            _check_missing(int(np.isnan(column).sum()), name, impute=self._impute)
        for name, category in zip(table.category_names, table.categories, strict=True):
            _check_missing(int((category.codes < 0).sum()), name, impute=self._impute)

    def _take_target(self, table: Table) -> None:
        values = table.target
        self._task = guess_task(values) if self._given_task == "auto" else self._given_task
        if self._task == "classification":
            names = self._given_classes
            if names is not None:  # by value, whatever the type
                values = np.asarray([str(value) for value in values.tolist()], dtype=object)
            if values.dtype.kind == "b":
                values = values.astype(str)
            self._y, self._classes = check_labels(values, len(values), names)
        elif self._task == "multilabel":
            self._y = regression_numbers(values)
            self._classes = label_names(self._y, self._given_classes or table.target_names)
        else:
            self._y = regression_numbers(values)

    def _labels(self) -> Tensor | None:
        return self._y if self._task == "classification" and self._source is not None else None

    def _class_names(self) -> list[str]:
        return self._classes

    def _fit(self, opened: Table, train: Sequence[int]) -> Source:
        rows = list(train)
        self._encoder = encoder = fit_encoder(opened, rows, self._scale)
        if not self._as_codes:
            check_width(opened, encoder)
        self._feature_names = list(opened.number_names)
        if self._as_codes:
            self._feature_names += opened.category_names
        else:
            for name, names in zip(opened.category_names, encoder.known, strict=True):
                self._feature_names += [f"{name}={value}" for value in names]
        return self._encoded(opened, encoder, self._scaled_target(rows))

    def _encoded(self, table: Table, encoder: Encoder, *target: Tensor) -> Source:
        numbers, codes = encoder.numbers(table), encoder.codes(table)
        if self._as_codes:
            return PairSource(numbers, codes, *target)
        return OneHotSource(numbers, codes, *target, cardinalities=encoder.cardinalities)

    def _scaled_target(self, train: list[int]) -> Tensor:
        if self._task == "classification":
            return self._y
        y = self._y.double()
        self._target_mean, self._target_std = torch.zeros(y.shape[1]), torch.ones(y.shape[1])
        if self._scale_target and self._task == "regression":
            mean, std = y[train].mean(dim=0), y[train].std(dim=0, unbiased=False)
            self._target_mean, self._target_std = mean.float(), one_if_constant(std, mean, len(train)).float()
        return ((y - self._target_mean) / self._target_std).float()

    def _done(self, role: ColumnRole) -> str:
        """Return what a column of this role was turned into."""
        if role.role in ("number", "date"):
            scaled = {"standard": "standardised", "minmax": "scaled to 0..1", "none": "as it is"}[self._scale]
            parts = [name for name in self._feature_names if name.startswith(f"{role.column}:")]
            return f"{', '.join(parts)}; {scaled}" if role.role == "date" else scaled
        if role.role == "category" and self._source is not None:
            names = self._fitted().known[self._source.category_names.index(role.column)]
            return f"codes 1 to {len(names)}" if self._as_codes else f"{len(names)} one-hot columns"
        if role.role == "target":
            return "standardised" if self._task == "regression" and self._scale_target else "as it is"
        return {"group": "kept whole by the split", "time": "orders the split", "id": "names the rows"}.get(
            role.role, ""
        )


def _check_missing(count: int, name: str, *, impute: bool) -> None:
    if count and not impute:
        raise UserInputError(
            f"features must not be missing, but column {name!r} has {count} NaN or empty values. Pass missing='impute' "
            "to fill in what the training part says, or remove the rows."
        )


def _say_unknown(table: Table, encoder: Encoder) -> None:
    """Warn once of the categories that the training part did not have."""
    said = []
    for name, category, known in zip(table.category_names, table.categories, encoder.known, strict=True):
        new = sorted(set(category.names) - set(known))
        if new:
            shown = ", ".join(map(repr, new[:3])) + (", ..." if len(new) > 3 else "")
            said.append(f"{name!r} has {len(new)} ({shown})")
    if said:
        warn_once(
            f"New data has categories that the training part did not have; they count as unknown: {'; '.join(said)}."
        )
