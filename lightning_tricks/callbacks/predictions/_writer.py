"""Predictions of all ranks in one file, in the order of the dataset."""

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning_utilities.core.rank_zero import rank_zero_warn
from numpy.typing import NDArray
from torch import Tensor

from lightning_tricks._base import UserInputError, check_choice, require_extra
from lightning_tricks.callbacks.predictions._files import WRITERS
from lightning_tricks.callbacks.predictions._store import Columns, ColumnStore, MergedRows, StoredColumns


class PredictionWriter(BasePredictionWriter):
    """Writes what ``predict_step`` returns to one file: rows in dataset order, each once, from every rank.

    Each rank streams its batches to a folder beside the file (``predictions.parquet.parts``); at the end rank zero
    merges them block by block and moves the finished file into place, so that the file is either complete or absent.
    Memory grows by the rows' indices only (about 40 bytes per row while merging), whatever the columns hold; pass
    ``return_predictions=False`` to ``trainer.predict``, which keeps its own copy otherwise. With several dataloaders
    there is one file each: ``predictions-0.parquet``, ...

    An existing file is never touched unless ``overwrite`` is set. What a killed run left is deleted, with a warning,
    and the prediction starts from the first row. On several nodes the folder must be shared between them.

    Args:
        path: where to; the suffix says how: ``.parquet`` (needs pyarrow), ``.csv`` or ``.npz``.
        columns: names to write, in this order; None for all. ``index`` always comes first.
        overwrite: replace an existing file.
        transform: what is done to each prediction before it is written, such as back to the unit of the table:
            ``data.inverse_prediction``.

    Raises:
        UserInputError: for an unknown suffix; at the start of a prediction if the file exists; later if a batch has
            other columns or shapes than the first.

    Example:
        >>> import tempfile
        >>> from lightning.pytorch import Trainer
        >>> from lightning_tricks import MLP, Classifier, MCDropoutPredictor, PredictionWriter
        >>> path = Path(tempfile.mkdtemp()) / "predictions.csv"
        >>> trainer = Trainer(logger=False, enable_progress_bar=False, accelerator="cpu", devices=1, callbacks=[
        ...     PredictionWriter(path, columns=["label", "mutual_info"])])
        >>> model = MCDropoutPredictor(Classifier(MLP(4, 3, dropout=0.5), num_classes=3), samples=10)
        >>> rows = torch.utils.data.DataLoader(torch.rand(10, 4), batch_size=4)
        >>> _ = trainer.predict(model, rows, return_predictions=False)
        >>> lines = path.read_text().splitlines()
        >>> lines[0], len(lines)
        ('index,label,mutual_info', 11)
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        columns: Sequence[str] | None = None,
        overwrite: bool = False,
        transform: Callable[[Any], Any] | None = None,
    ) -> None:
        super().__init__(write_interval="batch")
        self.path = Path(path)
        check_choice("suffix of the path of PredictionWriter", self.path.suffix.lower(), WRITERS)
        if self.path.suffix.lower() == ".parquet":
            require_extra("pyarrow", "all", "PredictionWriter to parquet")
        self.columns = None if columns is None else list(columns)
        self.overwrite = overwrite
        self.transform = transform
        self._stores: dict[int, ColumnStore] = {}

    @property
    def _parts(self) -> Path:
        return self.path.with_name(self.path.name + ".parts")

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse to touch an old file; delete what a killed run left."""
        if stage != "predict":
            return
        super().setup(trainer, pl_module, stage)
        self._stores = {}
        trouble = None
        if trainer.is_global_zero:
            trouble = self._clean_start()
        _agree(trainer, trouble)

    def _clean_start(self) -> str | None:
        if trouble := self._occupied([self.path]):
            return trouble
        if self._parts.exists():
            rank_zero_warn(f"{self._parts} is what an unfinished run left; it is deleted, all rows are predicted anew.")
            shutil.rmtree(self._parts)
        self._parts.mkdir(parents=True)
        return None

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse to touch old files of several dataloaders."""
        _agree(trainer, self._occupied(self._targets(trainer)) if trainer.is_global_zero else None)

    def _targets(self, trainer: Trainer) -> list[Path]:
        count = len(trainer.num_predict_batches)
        return [self.path] if count == 1 else [self.path.with_stem(f"{self.path.stem}-{at}") for at in range(count)]

    def _occupied(self, targets: list[Path]) -> str | None:
        old = [path for path in targets if path.exists()]
        if not old or self.overwrite:
            return None
        return (
            f"PredictionWriter found {old[0]} from an earlier run and does not append to it. "
            "Delete it, choose another path, or pass overwrite=True."
        )

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Append a batch to this rank's part."""
        columns = _as_columns(prediction if self.transform is None else self.transform(prediction))
        rows = len(next(iter(columns.values())))
        index = columns.pop("index", None)
        if index is None:
            if not batch_indices:
                raise UserInputError(
                    "PredictionWriter needs each row's place in the dataset, which this dataloader does not tell. "
                    "Return it from predict_step as 'index', an integer tensor (B,)."
                )
            index = np.asarray(batch_indices, dtype=np.int64)
        if index.shape != (rows,):
            raise UserInputError(f"index must have one entry for each of the {rows} rows, but has shape {index.shape}.")
        if dataloader_idx not in self._stores:
            folder = self._parts / f"loader{dataloader_idx}-rank{trainer.global_rank}"
            self._stores[dataloader_idx] = ColumnStore(folder)
        self._stores[dataloader_idx].append({"index": index.astype(np.int64), **self._chosen(columns)})

    def _chosen(self, columns: Columns) -> Columns:
        if self.columns is None:
            return columns
        wanted = [name for name in self.columns if name != "index"]
        missing = [name for name in wanted if name not in columns]
        if missing:
            raise UserInputError(f"columns names {missing[0]!r}, but a prediction holds {', '.join(columns)}.")
        return {name: columns[name] for name in wanted}

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Merge the parts of all ranks."""
        for store in self._stores.values():
            store.close()
        trainer.strategy.barrier("PredictionWriter: parts are written")
        trouble = None
        if trainer.is_global_zero:
            try:
                self._merge(trainer)
            except Exception as error:  # the other ranks wait: they must hear of it
                trouble = str(error)
        _agree(trainer, trouble)
        self._stores = {}

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Let go of the files; what they hold stays a part, never the finished file."""
        for store in self._stores.values():
            store.close()
        self._stores = {}

    def _merge(self, trainer: Trainer) -> None:
        for loader, target in enumerate(self._targets(trainer)):
            folders = [self._parts / f"loader{loader}-rank{rank}" for rank in range(trainer.world_size)]
            rows = MergedRows([StoredColumns(folder) for folder in folders if (folder / "layout.json").exists()])
            unfinished = self._parts / target.name
            WRITERS[self.path.suffix.lower()](rows, unfinished)
            _say_gaps(rows, target)
            _to_disk(unfinished)  # else a power cut could leave the name without the content
            unfinished.replace(target)
        shutil.rmtree(self._parts)


def _to_disk(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _as_columns(prediction: Any) -> Columns:
    if isinstance(prediction, Tensor):
        prediction = {"prediction": prediction}
    if not isinstance(prediction, Mapping) or not prediction:
        raise UserInputError(
            "PredictionWriter writes a tensor or a dict of tensors with one entry per row, but predict_step returned "
            f"a {type(prediction).__name__}. Return such a dict."
        )
    return {str(name): _as_array(str(name), value) for name, value in prediction.items()}


def _as_array(name: str, value: Any) -> NDArray[Any]:
    if isinstance(value, Tensor):
        value = value.detach()
        array: NDArray[Any] = (value.float() if value.dtype == torch.bfloat16 else value).cpu().numpy()
    else:
        array = np.asarray(value)
    if array.dtype.kind not in "fiub" or array.ndim == 0:
        raise UserInputError(
            f"PredictionWriter writes numbers, one or more per row, but {name!r} is {array.dtype.name} of shape "
            f"{array.shape}. Leave it out with columns=[...]."
        )
    return array


def _say_gaps(rows: MergedRows, target: Path) -> None:
    missing = int(rows.index[-1]) + 1 - len(rows) if len(rows) else 0
    if missing:
        rank_zero_warn(
            f"{target} lacks {missing} of the first {int(rows.index[-1]) + 1} rows of the dataset: they were not "
            "predicted (a sampler or limit_predict_batches left them out)."
        )


def _agree(trainer: Trainer, trouble: str | None) -> None:
    """Raise on every rank what rank zero has to say, if anything."""
    trouble = trainer.strategy.broadcast(trouble)
    if trouble is not None:
        raise UserInputError(trouble)
