"""What the DataModules share: parts, loaders, ranks, resume, and saying the sizes once."""

import copy
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence, Sized
from hashlib import blake2b
from typing import Any, Generic, Literal, TypedDict

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.utils.data import DataLoader
from typing_extensions import Self, TypeVar

from lightning_tricks._base import UserInputError, check_choice, check_range, warn_once
from lightning_tricks.data import splits
from lightning_tricks.data._loading import BatchKeys, Part, Source, make_loader, unchanged

Split = Sequence[float] | Mapping[str, Sequence[int]]
SplitBy = Literal["auto", "class", "random", "group", "time"]


class SplitOptions(TypedDict, total=False):
    """What every DataModule takes, see :class:`SplitDataModule`."""

    batch_size: int
    split: Split
    split_by: SplitBy
    groups: Sequence[Any] | None
    time: Sequence[Any] | None
    num_workers: int
    seed: int


MANY = 20  # classes, above which only the smallest and largest count is said
NAMES = ("train", "val", "test")
Opened = TypeVar("Opened", bound=Sized, default=Any)
_ARGUMENT = {"time": "time=...", "group": "groups=..."}


class SplitDataModule(LightningDataModule, Generic[Opened]):
    """Base of the DataModules: one source of samples, split in train, val and test parts.

    A subclass says where samples come from (:meth:`_open`) and what it learns from the training part
    (:meth:`_fit`); this class splits, loads and resumes. Nothing is read before ``setup``.

    Args:
        batch_size: samples per batch and rank, at least 1.
        split: fractions of train, val and (if three) test; or row numbers by part name.
        split_by: ``"class"`` keeps class proportions, ``"group"`` keeps groups whole, ``"time"`` puts the newest rows
            into val and test, ``"random"`` does none of it; ``"auto"`` is time or group if given, else class if
            there are classes, else random.
        groups: one group per row, by position: the index of a ``pandas.Series`` is not looked at.
        time: one sortable value per row, by position.
        num_workers: processes that read; they persist over epochs.
        seed: of the split and of the order of training.

    Example:
        >>> import torch
        >>> from lightning_tricks.data import SplitDataModule, TensorSource
        >>> class Waves(SplitDataModule):
        ...     def _open(self):
        ...         x = torch.linspace(0, 10, 100).unsqueeze(1)
        ...         return TensorSource(x, x.sin())
        ...
        ...     def _fit(self, opened, train):
        ...         x, y = opened.columns
        ...         return TensorSource((x - x[train].mean()) / x[train].std(), y)
        >>> data = Waves(batch_size=20)
        >>> data.setup("fit")
        >>> [len(part) for part in data.parts.values()]
        [60, 20, 20]
    """

    def __init__(
        self,
        *,
        batch_size: int = 64,
        split: Split = (0.6, 0.2, 0.2),
        split_by: SplitBy = "auto",
        groups: Sequence[Any] | None = None,
        time: Sequence[Any] | None = None,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.batch_size = int(check_range("batch_size", batch_size, low=1))
        self.num_workers = int(check_range("num_workers", num_workers, low=0))
        self.seed = seed
        self.split = _checked_split(split)
        self.split_by = check_choice("split_by", split_by, ("auto", "class", "random", "group", "time"))
        self.groups = groups
        self.time = time
        self.parts: dict[str, Part] = {}
        self._source: Opened | None = None
        self._restored: dict[str, Any] = {}
        self._says_sizes = True

    # What a subclass says.

    @abstractmethod
    def _open(self) -> Opened:
        """Return all samples as they come, checked."""

    @abstractmethod
    def _fit(self, opened: Opened, train: Sequence[int]) -> Source:
        """Learn what is learnt from the training rows (statistics, codes), and return the source of encoded samples."""

    def _labels(self) -> Tensor | None:
        """Return the class of every row of the opened source, if there are classes."""
        return None

    def _class_names(self) -> Sequence[str]:
        return ()

    def _given_parts(self) -> Mapping[str, Sequence[int]]:
        """Return the parts that the source itself prescribes."""
        return {}

    def _finish(self, part: str) -> Callable[[Any, list[int], int], Any] | None:
        """Return what is done to the batches of a part where they are read."""
        return None

    def _lengths(self, part: Part) -> Sequence[int] | None:
        """Return the length of every sample of the part, if similar ones should share a batch."""
        return None

    # What Lightning calls.

    def setup(self, stage: str | None = None) -> None:
        """Open, split and fit; the same parts whatever the stage, made once."""
        if self.parts:
            return
        if self._source is None:
            self._source = self._open()
        rows = self._split_rows(len(self._source))
        encoded = self._fit(self._source, rows["train"])
        self.parts = {name: Part(encoded, rows[name]) for name in rows}
        if self._says_sizes:
            rank_zero_info(self.describe())
        self._compare_with_checkpoint()

    def train_dataloader(self) -> DataLoader[Any]:
        """Return the training part, in an order that is a function of seed and epoch; never a batch of one sample."""
        return self._loader("train", shuffle=not getattr(self.trainer, "overfit_batches", 0))

    def val_dataloader(self) -> DataLoader[Any]:
        """Return the validation part, in order."""
        return self._loader("val")

    def test_dataloader(self) -> DataLoader[Any]:
        """Return the test part, in order."""
        return self._loader("test")

    def predict_dataloader(self) -> DataLoader[Any]:
        """Return the test part (or else the validation part), in order; over ranks every sample exactly once."""
        return DataLoader(  # plain, so that Lightning can deal it out and tell the indices of each batch
            self._part(self._predicted),
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            pin_memory=self._on_cuda(),
            persistent_workers=self.num_workers > 0,
            collate_fn=unchanged,
            generator=torch.Generator().manual_seed(self.seed % 2**63),
        )

    def teardown(self, stage: str) -> None:
        """Forget the checkpoint; the parts stay, so that a test after a fit splits and fits nothing anew."""
        self._restored = {}

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run is compared with."""
        return {"seed": self.seed, "parts": self.fingerprint()} if self.parts else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Remember the checkpoint's split; a different one is warned about, and the new one stands."""
        self._restored = dict(state_dict)
        self._compare_with_checkpoint()

    # What users call.

    def describe(self) -> str:
        """Return the sizes of the parts and, if there are classes, the counts of each."""
        lines = [f"{type(self).__name__}: " + ", ".join(f"{name} {len(p)}" for name, p in self._ready().items())]
        labels, names = self._labels(), self._class_names()
        if labels is None:
            return lines[0]
        for name, part in self.parts.items():
            counts = torch.bincount(labels[torch.as_tensor(part.rows)], minlength=len(names)).tolist()
            said = ", ".join(f"{c}: {n}" for c, n in zip(names, counts, strict=False))
            if len(names) > MANY:
                said = f"{min(counts)} to {max(counts)} samples of each of {len(names)} classes"
            lines.append(f"  {name}  {said}")
        return "\n".join(lines)

    def inverse_prediction(self, prediction: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return a prediction in terms of the data that came in: with the ``row`` of each sample, counted from 0.

        Args:
            prediction: columns by name, as :class:`~lightning_tricks.MCDropoutPredictor` returns them for
                :meth:`predict_dataloader`; among them ``index``, places in the predicted part.
        """
        rows = torch.as_tensor(self._part(self._predicted).rows)
        return {"row": rows[prediction["index"].cpu()], **prediction}

    def fingerprint(self) -> dict[str, str]:
        """Return a short hash of the rows of each part; equal on all ranks and machines."""
        return {
            name: blake2b(torch.as_tensor(part.rows).numpy().tobytes(), digest_size=8).hexdigest()
            for name, part in self._ready().items()
        }

    def with_split(self, **rows: Sequence[int]) -> Self:
        """Return a copy with other parts; everything that is learnt from the training part is learnt anew.

        Args:
            **rows: row numbers by part name: ``train``, ``val``, ``test``.
        """
        self._ready()
        other = copy.copy(self)
        other.trainer = None
        other.split = _checked_split(rows)
        other.parts = {}
        other._restored = {}
        other._says_sizes = False
        return other

    def folds(
        self, k: int = 5, *, repeats: int = 1, splitter: Any = None, include_test: bool = False, seed: int | None = None
    ) -> list[splits.Fold]:
        """Return the rows of the folds for cross-validation, split as ``split_by`` says; the test part is in none.

        Args:
            k: number of folds, at least 2.
            repeats: how often to split anew (not in time order).
            splitter: a scikit-learn splitter to use instead.
            include_test: whether the test part is divided among the folds too.
            seed: of the folds; that of the split if not given.
        """
        parts = self._ready()
        pool = sorted(row for name, part in parts.items() if name != "test" or include_test for row in part.rows)
        by = self._split_kind()
        labels = self._values("class", pool) if self._labels() is not None else None
        groups = self._values("group", pool) if self.groups is not None else None
        if splitter is not None:
            found = splits.from_sklearn(splitter, len(pool), labels=labels, groups=groups)
        elif by == "time":
            if repeats > 1:
                raise UserInputError("folds in order of time cannot be repeated: there is one order. Use repeats=1.")
            found = splits.time_series(len(pool), k, time=self._values("time", pool))
        else:
            found = splits.k_fold(
                len(pool),
                k,
                stratify=labels if by in ("class", "group") else None,
                groups=groups if by == "group" else None,
                repeats=repeats,
                seed=self.seed if seed is None else seed,
            )
        return [splits.Fold([pool[i] for i in fold.train], [pool[i] for i in fold.val]) for fold in found]

    # Inside.

    @property
    def _predicted(self) -> str:
        return next(name for name in ("predict", "test", "val") if name in self._ready())

    def _ready(self) -> dict[str, Part]:
        if not self.parts:
            self.setup()
        return self.parts

    def _part(self, name: str) -> Part:
        parts = self._ready()
        if name not in parts:
            raise UserInputError(
                f"{type(self).__name__} has no {name} part, only {', '.join(parts)}. "
                f"Give split a fraction or rows for {name}."
            )
        part = parts[name]
        return Part(part.source, part.rows, self._finish(name))

    def _loader(self, name: str, *, shuffle: bool = False) -> DataLoader[Any]:
        part = self._part(name)
        trainer = self.trainer
        place = (trainer.distributed_sampler_kwargs if trainer is not None else None) or {}
        keys = BatchKeys(
            len(part),
            self.batch_size,
            shuffle=shuffle,
            lengths=self._lengths(part) if shuffle else None,
            seed=self.seed,
            epoch=trainer.current_epoch if trainer is not None else 0,
            rank=int(place.get("rank", 0)),
            ranks=int(place.get("num_replicas", 1)),
        )
        return make_loader(part, keys, num_workers=self.num_workers, pin_memory=self._on_cuda())

    def _device_type(self) -> str:
        return self.trainer.strategy.root_device.type if self.trainer is not None else "cpu"

    def _on_cuda(self) -> bool:
        return self._device_type() == "cuda"

    def _split_rows(self, n: int) -> dict[str, list[int]]:
        given = self._given_parts()
        if isinstance(self.split, Mapping):
            return splits.check_parts(self.split, n)
        if given:
            return self._carve_val({name: list(rows) for name, rows in given.items()})
        return dict(zip(NAMES, self._cut(range(n), self.split), strict=False))

    def _carve_val(self, given: dict[str, list[int]]) -> dict[str, list[int]]:
        """Take the validation rows out of the training rows, if the source prescribes train and test only."""
        if "val" not in given and not isinstance(self.split, Mapping):
            train, val = self.split[:2]
            given["train"], given["val"] = self._cut(given["train"], (train / (train + val), val / (train + val)))
        return {name: given[name] for name in NAMES if name in given}

    def _cut(self, rows: Sequence[int], fractions: Sequence[float]) -> list[list[int]]:
        by = self._split_kind()
        options: dict[str, Any] = {}
        if by != "random":
            options[{"time": "time", "group": "groups", "class": "stratify"}[by]] = self._values(by, rows)
        parts = splits.holdout(len(rows), fractions, seed=self.seed, **options)
        return [[rows[position] for position in part] for part in parts]

    def _split_kind(self) -> str:
        if self.split_by != "auto":
            return self.split_by
        if self.time is not None:
            return "time"
        if self.groups is not None:
            return "group"
        return "random" if self._labels() is None else "class"

    def _values(self, by: str, rows: Sequence[int]) -> list[Any]:
        """Return the class, group or time of these rows."""
        column = {"time": self.time, "group": self.groups, "class": self._labels()}[by]
        if column is None:
            raise UserInputError(
                f"split_by={by!r} needs "
                + ("class labels, but there are none." if by == "class" else f"{_ARGUMENT[by]}, one value per row.")
            )
        if len(column) != (n := len(self._source or ())):
            raise UserInputError(f"{_ARGUMENT[by]} needs one value per row: {n} rows, but got {len(column)} values.")
        values: Any = column.to_numpy() if hasattr(column, "to_numpy") else column  # a Series is indexed by its labels
        return [_plain(values[row]) for row in rows]

    def _compare_with_checkpoint(self) -> None:
        if self.parts and self._restored.get("parts", now := self.fingerprint()) != now:
            warn_once(
                f"The checkpoint was trained on another split or on other data than {type(self).__name__} gives now: "
                "samples that it was trained on may be in the validation or test part. Give the same data, split and "
                f"seed (it had seed={self._restored.get('seed')}), or start anew."
            )


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, Tensor) else value


def _checked_split(split: Split) -> Split:
    if isinstance(split, Mapping):
        for name in split:
            check_choice("the name of a part", name, NAMES)
        for name in ("train", "val"):
            if name not in split:
                raise UserInputError(f"split needs rows for train and val, but {name} is missing: got {list(split)}.")
        return {name: list(split[name]) for name in NAMES if name in split}
    if len(split) not in (2, 3):
        raise UserInputError(f"split needs 2 or 3 fractions (train, val, test), but got {tuple(split)}.")
    return tuple(splits.check_fractions(split))
