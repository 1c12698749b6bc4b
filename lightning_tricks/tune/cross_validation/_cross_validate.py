"""Cross-validation: a fresh model, fresh callbacks and a fresh logger for every fold; a killed run goes on."""

import gc
import weakref
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from lightning_tricks._base import UserInputError, accepts_old_names, derive_seed, isolated_rng
from lightning_tricks.callbacks import TolerantWandbLogger
from lightning_tricks.data import SplitDataModule
from lightning_tricks.data.splits import Fold
from lightning_tricks.tune.cross_validation._result import CVResult, FoldResult, Predictions, collect, count_rows

MakeLogger = Callable[[int], Logger]


@accepts_old_names("cross_validate")
def cross_validate(
    make_model: Callable[[], LightningModule],
    data: SplitDataModule[Any],
    k: int = 5,
    *,
    repeats: int = 1,
    splitter: Any = None,
    include_test: bool = False,
    callbacks: Callable[[], Sequence[Callback]] | None = None,
    logger: MakeLogger | Mapping[str, Any] | None = None,
    trainer_kwargs: Mapping[str, Any] | None = None,
    folder: str | Path | None = None,
    predict: bool = True,
    progress: bool = True,
    seed: int = 0,
) -> CVResult:
    """Train once per fold, each time with another part of the rows as the validation set.

    Every fold gets a new model, new callbacks, a new logger and a new copy of ``data`` whose scales, codes and
    vocabulary are learnt from that fold's training rows only. Its random streams are a function of ``(seed, fold)``, so
    that a fold's result does not depend on the folds before it, and the global streams are given back untouched. The
    test part of ``data`` stays out of all folds.

    The held-out rows are also what callbacks such as early stopping look at, so scores after early stopping are a
    little too good; leave it out, or keep the test part for the final word.

    Args:
        make_model: function that returns a new model.
        data: any DataModule of this package; its ``split_by`` (class, group, time, random) holds for the folds too.
        k: number of folds, at least 2.
        repeats: how often to split anew.
        splitter: a scikit-learn splitter to use instead of ``k`` and ``repeats``. One that does not hold every row out
            exactly once, or once per repeat (``ShuffleSplit``, ``LeavePGroupsOut``), needs ``predict=False``.
        include_test: whether the test part is divided among the folds too.
        callbacks: function that returns new callbacks, such as ``lambda: recipe("val_loss")``.
        logger: function from the fold's number to a logger; or options of ``WandbLogger``: then each fold is a run of
            its own, ``fold-0``, ``fold-1``, ..., in one group (``cross-validation`` unless ``group`` is given).
        trainer_kwargs: options of ``Trainer``.
        folder: where finished folds are kept; called again with the same folder, only the others are trained. Under
            several nodes all of them must see it.
        predict: whether to predict the held-out rows.
        progress: whether to show a bar over the folds.
        seed: of the folds and of every fold's training.

    Returns:
        The scores of all folds and the out-of-fold predictions. Under DDP (a script started by ``torchrun`` or by
        Lightning) every rank returns the same result.

    Raises:
        UserInputError: if the data cannot be divided so, something is not made anew for each fold, or ``folder`` holds
            the results of another cross-validation.

    Example:
        >>> from lightning_tricks import MLP, Classifier, DigitsDataModule, cross_validate
        >>> result = cross_validate(
        ...     lambda: Classifier(MLP(64, 10), num_classes=10),
        ...     DigitsDataModule(batch_size=256),
        ...     k=2,
        ...     trainer_kwargs={"max_epochs": 1, "accelerator": "cpu"},
        ...     progress=False,
        ... )
        >>> len(result.folds), result.predictions.shape
        (2, torch.Size([1437, 10]))
    """
    _check_fresh(make_model, data, callbacks, logger, trainer_kwargs or {})
    folds = data.folds(k, repeats=repeats, splitter=splitter, include_test=include_test, seed=seed)
    if splitter is not None:
        repeats = _repeats(folds, splitter, predict=predict)
    shelf = _Shelf(folder, folds, seed) if folder is not None else None
    results: list[FoldResult] = []
    before: Callable[[], LightningModule | None] = lambda: None  # noqa: E731 - a weak reference to nothing
    for i, fold in enumerate(_bar(folds, progress)):
        result = shelf.take(i, predict=predict) if shelf is not None else None
        if result is None:
            with isolated_rng(seed=derive_seed(seed, "fold", i)):
                model = _checked_model(make_model(), before(), predict=predict)
                before = weakref.ref(model)
                made = [*callbacks()] if callbacks is not None else []
                run = _trainer(made, _make_logger(logger, i), trainer_kwargs or {}, folder, i)
                result = _run_fold(run, model, data.with_split(train=fold.train, val=fold.val), fold, predict=predict)
            if shelf is not None and run.is_global_zero:
                shelf.put(i, result)
            _end_runs(run)
            del model, made, run
            _free_memory()
        results.append(result)
    return CVResult.of(results, repeats=repeats)


def _checked_model(model: Any, before: LightningModule | None, *, predict: bool) -> LightningModule:
    if not isinstance(model, LightningModule):
        raise UserInputError(f"make_model must return a LightningModule, but it returned a {type(model).__name__}.")
    if model is before:
        raise UserInputError(
            "make_model must return a new model each time, but it returned the same one twice: the second fold would "
            "go on with weights that have seen its validation rows. Build the net inside it."
        )
    if predict and type(model).predict_step is LightningModule.predict_step:
        raise UserInputError(
            f"{type(model).__name__} has no predict_step, and the default one passes labels to forward too. Define it, "
            "or pass predict=False to have scores only."
        )
    return model


def _run_fold(
    trainer: Trainer, model: LightningModule, data: SplitDataModule[Any], fold: Fold, *, predict: bool
) -> FoldResult:
    trainer.fit(model, datamodule=data)
    rows = list(fold.val)
    measured = trainer.validate(model, datamodule=data, verbose=False)
    scores = {name: float(value) for one in measured for name, value in one.items()}
    predictions = collect(trainer.predict(model, datamodule=data) or [None]) if predict else None
    if trainer.world_size > 1:
        scores, rows, predictions = _gather(trainer, scores, rows, predictions)
    if predictions is not None and (count := count_rows(predictions)) != len(rows):
        raise UserInputError(
            f"predict_step must return one row per sample, but it returned {count} for {len(rows)} samples. Change it, "
            "or pass predict=False."
        )
    return FoldResult(scores, rows, len(fold.train), predictions)


def _gather(
    trainer: Trainer, scores: dict[str, float], rows: list[int], predictions: Predictions | None
) -> tuple[dict[str, float], list[int], Predictions | None]:
    """Put together what the ranks have: rank ``r`` predicted every ``world_size``-th row from ``r`` on."""
    if (trainer.distributed_sampler_kwargs or {}).get("num_replicas") != trainer.world_size:
        raise UserInputError(
            "cross_validate puts together the predictions of ranks that have their own rows, but here several ranks "
            "share a model. Use strategy='ddp', or one device."
        )
    everything: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(everything, (scores, predictions))
    agreed = {name: sum(other[name] for other, _ in everything) / len(everything) for name in scores}
    dealt = [row for rank in range(trainer.world_size) for row in rows[rank :: trainer.world_size]]
    return agreed, dealt, None if predictions is None else collect([part for _, part in everything])


def _check_fresh(make_model: Any, data: Any, callbacks: Any, logger: Any, options: Mapping[str, Any]) -> None:
    if isinstance(make_model, torch.nn.Module) or not callable(make_model):
        raise UserInputError(
            f"make_model must be a function that returns a new model, but got {type(make_model).__name__}. Write "
            "cross_validate(lambda: MyModel(...), data): every fold starts from fresh weights."
        )
    if not isinstance(data, SplitDataModule):
        raise UserInputError(
            "cross_validate divides the rows itself, so data must be an Image-, Tabular-, Text- or DigitsDataModule, "
            f"but got {type(data).__name__}. Wrap datasets with ImageDataModule.from_datasets, arrays with "
            "TabularDataModule."
        )
    if callbacks is not None and not callable(callbacks):
        raise UserInputError(
            f"callbacks must be a function that returns new ones, but got {type(callbacks).__name__}. Write "
            "callbacks=lambda: [...]: a used callback remembers the fold before."
        )
    if isinstance(logger, Logger) or not (logger is None or callable(logger) or isinstance(logger, Mapping)):
        raise UserInputError(
            f"logger must be a function from the fold's number to a logger, or options of WandbLogger, but got "
            f"{type(logger).__name__}. Write logger=lambda fold: CSVLogger('logs', version=fold)."
        )
    for name in ("callbacks", "logger"):
        if name in options:
            raise UserInputError(
                f"{name} are made anew for each fold: pass {name}=..., not trainer_kwargs={{{name!r}: ...}}."
            )


def _trainer(
    callbacks: list[Callback], logger: Logger | None, options: Mapping[str, Any], folder: str | Path | None, fold: int
) -> Trainer:
    defaults: dict[str, Any] = {
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": any(isinstance(callback, Checkpoint) for callback in callbacks),
    }
    if folder is not None:
        defaults["default_root_dir"] = Path(folder) / f"fold-{fold}"
    return Trainer(**{**defaults, **options}, callbacks=callbacks, logger=logger or False)


def _make_logger(logger: MakeLogger | Mapping[str, Any] | None, fold: int) -> Logger | None:
    if logger is None or callable(logger):
        return logger(fold) if logger is not None else None
    return TolerantWandbLogger(**{"group": "cross-validation", "name": f"fold-{fold}", **logger})


def _end_runs(trainer: Trainer) -> None:
    """End the W&B run, or the next fold would go on with it."""
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger) and trainer.is_global_zero:
            logger.experiment.finish()


def _free_memory() -> None:
    gc.collect()  # Trainer and model refer to each other
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _bar(folds: Sequence[Fold], progress: bool) -> Any:
    return Tqdm(folds, desc="folds", unit="fold", disable=not progress or getattr(rank_zero_only, "rank", 0) != 0)


def _repeats(folds: Sequence[Fold], splitter: Any, *, predict: bool) -> int:
    """Return how often the splitter held every row out, in one block of folds after another; else 1, for scores."""
    times = Counter(row for fold in folds for row in fold.val)
    repeats = max(times.values())
    size = max(1, len(folds) // repeats)
    blocks = [folds[start : start + size] for start in range(0, len(folds), size)]
    if all(sorted(row for fold in block for row in fold.val) == sorted(times) for block in blocks):
        return repeats
    if predict:
        raise UserInputError(
            "out-of-fold predictions need a splitter that holds every row out exactly once, or once per repeat, but "
            f"{type(splitter).__name__} does not. Use a k-fold splitter, or pass predict=False to have scores only."
        )
    return 1


class _Shelf:
    """Finished folds on disk: one file each, written whole or not at all."""

    def __init__(self, folder: str | Path, folds: Sequence[Fold], seed: int) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        content = repr((seed, [(fold.train, fold.val) for fold in folds])).encode()
        self.key = blake2b(content, digest_size=8).hexdigest()

    def _file(self, i: int) -> Path:
        return self.folder / f"fold-{i}.pt"

    def take(self, i: int, *, predict: bool) -> FoldResult | None:
        """Return a finished fold, or None, also if it lacks the predictions that are asked for now."""
        if not self._file(i).exists():
            return None
        kept = torch.load(self._file(i), weights_only=True)
        if kept.pop("key") != self.key:
            raise UserInputError(
                f"{self.folder} holds the folds of another cross-validation (other data, k, splitter or seed). Give "
                "another folder, or delete it."
            )
        found = FoldResult(**kept)
        if not predict:
            return replace(found, predictions=None)
        return None if found.predictions is None else found

    def put(self, i: int, result: FoldResult) -> None:
        """Keep a finished fold."""
        part = self._file(i).with_suffix(".part")
        torch.save({"key": self.key, **vars(result)}, part)
        part.replace(self._file(i))
