"""Monte-Carlo dropout in a Trainer."""

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, cast

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from lightning_tricks._base import UserInputError, check_range
from lightning_tricks.modules.monte_carlo._batches import (
    RowPlaces,
    Task,
    batch_rows,
    infer_task,
    split_inputs,
    to_summary_form,
)
from lightning_tricks.modules.monte_carlo._calibration import Calibration
from lightning_tricks.modules.monte_carlo._metrics import OffAndOn
from lightning_tricks.modules.monte_carlo._pictures import log_answers
from lightning_tricks.modules.monte_carlo._ranking import UncertainRows
from lightning_tricks.modules.monte_carlo._tolerance import SureRows, rows_of
from lightning_tricks.uncertainty import EngineReport, MCEngine, SampleStream


class MCDropoutPredictor(LightningModule):
    """Predicts with uncertainty: leaves the model's dropout on and summarises many samples per row.

    ``trainer.predict`` returns one dict per batch. For classification: ``mean`` (probabilities), ``std``, ``label``,
    ``confidence``, ``margin``, ``entropy``, ``expected_entropy``, ``mutual_info`` (nats), ``variation_ratio``. For
    regression: ``mean``, ``std``, ``epistemic_variance``, with a Gaussian head or ``tau`` also ``aleatoric_variance``
    and ``total_variance``. Always ``mc_error`` (standard error of ``mean``), ``n_samples`` and ``index``, the rows'
    places in the dataset. Samples are streamed: no more than one batch of summaries is held, whatever ``samples``.

    Args:
        model: any LightningModule or ``nn.Module`` with dropout; its ``forward`` gives logits ``(B, C, ...)`` for
            multiclass, ``(B,)`` or ``(B, 1)`` for binary, ``(B, L)`` for multilabel; values, or a pair of mean and
            log-variance, for regression.
        samples: stochastic passes, at least 2.
        task: ``"binary"``, ``"multiclass"``, ``"multilabel"`` or ``"regression"``; ``"auto"`` asks ``model.task``.
        seed: of the masks. The same seed gives the same predictions, whatever the batch size and number of ranks.
        masks: ``"independent"`` per row, or ``"shared"``: sample s is one thinned net for the whole dataset.
        chunk_size: rows computed at once; None for the whole batch.
        layers: modules inside which dropout is on; see :func:`~lightning_tricks.mc_forward`.
        p: probability of dropping instead of each layer's own.
        insert: where to drop out in a net that has no dropout.
        engine: how the samples are computed.
        output: picks the tensor out of what the model returns.
        logits: whether a classifier returns logits (else probabilities).
        class_dim: axis of the classes in what a multiclass model returns; -1 for ``(B, T, C)``. In the summaries they
            are always on axis 1.
        split: returns inputs and targets (or None) of a batch, for batches other than tensors, ``(inputs, targets)``
            and dicts such as ``{"image": ..., "label": ...}``. A tuple of inputs goes to ``forward`` as arguments.
        quantiles: levels in (0, 1) to add as ``quantile_Q``.
        keep_samples: add all samples as ``samples``, ``(B, S, ...)``.
        tau: precision of the noise of a regression without a Gaussian head.
        tolerance: a row takes 16, 32, 64, ... samples, until every number of its ``mc_error`` is at most this;
            ``n_samples`` says how many it took. ``samples`` is the most that a row gets. None draws all.

    Raises:
        UserInputError: for options out of range, or a task that nobody tells.

    Example:
        >>> from lightning_tricks import MLP, Classifier
        >>> model = Classifier(MLP(8, 3, dropout=0.5), num_classes=3)
        >>> prediction = MCDropoutPredictor(model, samples=20).predict_step(torch.rand(5, 8))
        >>> prediction["mean"].shape, prediction["mutual_info"].shape, prediction["index"]
        (torch.Size([5, 3]), torch.Size([5]), tensor([0, 1, 2, 3, 4]))
    """

    def __init__(
        self,
        model: nn.Module,
        samples: int = 100,
        *,
        task: Task | Literal["auto"] = "auto",
        seed: int = 0,
        masks: Literal["independent", "shared"] = "independent",
        chunk_size: int | None = None,
        layers: Any = None,
        p: float | None = None,
        insert: Any = None,
        engine: Literal["auto", "vmap", "lifted", "repeat", "loop"] = "auto",
        output: Callable[[Any], Any] | None = None,
        logits: bool = True,
        class_dim: int = 1,
        split: Callable[[Any], tuple[Any, Any]] | None = None,
        quantiles: Sequence[float] = (),
        keep_samples: bool = False,
        tau: float | None = None,
        tolerance: float | None = None,
    ) -> None:
        super().__init__()
        if tolerance is not None:
            check_range("tolerance", tolerance, low=0, open_low=True)
            if keep_samples:
                raise UserInputError(
                    "tolerance gives each row its own number of samples, which keep_samples cannot put into one "
                    "tensor. Leave one of them out."
                )
        self._tolerance = tolerance
        self.calibration: Calibration | None = None
        check_range("samples", samples, low=2)
        self.model = model
        self.task = infer_task(model, task)
        self.logits, self.split = logits, split
        if class_dim == 0:
            raise UserInputError("class_dim=0 is the batch axis. The classes are on axis 1, or -1 if they come last.")
        self._class_dim = class_dim
        self._quantiles, self._keep_samples, self._tau = tuple(quantiles), keep_samples, tau
        self._stream()  # a bad option is said now
        self._places = RowPlaces()
        self._begin()
        self._engine = MCEngine(
            model,
            samples=samples,
            seed=seed,
            masks=masks,
            chunk_size=chunk_size,
            layers=layers,
            p=p,
            insert=insert,
            engine=engine,
            output=output,
            min_rows=4,
        )

    @property
    def report(self) -> EngineReport | None:
        """What was found random in the model and how it is computed; None before the first batch."""
        return self._engine.report

    def forward(self, *inputs: Any) -> Any:
        """Return what the model returns, without any sampling."""
        return self.model(*inputs)

    def predict_step(self, batch: Any, batch_idx: int = 0, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """Return the summaries of a batch, each with the rows on its first axis."""
        inputs, _ = split_inputs(batch, self.split)
        index = self._index(batch, inputs, batch_idx, dataloader_idx)
        return {**self._summaries(inputs, index), "index": index}

    def _stream(self, *, keep_samples: bool = False) -> SampleStream:
        return SampleStream(
            self.task, quantiles=self._quantiles, keep_samples=keep_samples or self._keep_samples, tau=self._tau
        )

    def _index(self, batch: Any, inputs: Any, batch_idx: int, dataloader_idx: int) -> Tensor:
        return self._places.of(self._trainer, batch, batch_rows(batch, inputs), batch_idx, dataloader_idx)

    def _summaries(self, inputs: tuple[Any, ...], index: Tensor) -> dict[str, Tensor]:
        draw = self._drawn if self._tolerance is None else self._drawn_until_sure
        summary = draw(inputs, index, self._stream())
        return summary if self.calibration is None else {**summary, **self.calibration.bounds(summary)}

    def _drawn(self, inputs: tuple[Any, ...], index: Tensor, new: SampleStream) -> dict[str, Tensor]:
        """Draw all samples, chunk by chunk."""
        streams: dict[int, tuple[slice, SampleStream]] = {}

        def sink(rows: slice, samples: range, out: Any) -> None:
            _, stream = streams.setdefault(rows.start, (rows, copy.deepcopy(new)))
            stream.update(self._formed(out))

        self._engine.feed(sink, *inputs, rows=index)
        # Without the rows that filled up a batch.
        parts = [{k: v[: len(index[rows])] for k, v in stream.compute().items()} for rows, stream in streams.values()]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _drawn_until_sure(self, inputs: tuple[Any, ...], index: Tensor, new: SampleStream) -> dict[str, Tensor]:
        """Draw in rounds; a row whose Monte-Carlo error is small enough takes no part in the next."""
        chunk = self._engine.chunk_size or len(index)
        parts = []
        for start in range(0, len(index), chunk):
            rows = torch.arange(start, min(start + chunk, len(index)))
            rounds = SureRows(
                rows, copy.deepcopy(new), self._formed, tolerance=self._tolerance or 0, min_rows=self._engine.min_rows
            )
            for samples in rounds.plan(self._engine.samples):
                part, keys = rows_of(inputs, rounds.rows, len(index)), index[rounds.rows]
                self._engine.feed(rounds.take, *part, rows=keys, samples=samples)
            parts.append(rounds.result())
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _formed(self, out: Any) -> Any:
        return to_summary_form(self._tempered(out), self.task, logits=self.logits, class_dim=self._class_dim)

    def _tempered(self, out: Any) -> Any:
        temperature = 1.0 if self.calibration is None else self.calibration.temperature
        return out if temperature == 1 else out / temperature

    def calibrate(self, loader: Iterable[Any], *, level: float = 0.9) -> "Calibration":
        """Fit temperature and conformal sets, or conformal intervals, on held-out rows; later predictions use them.

        Predictions then hold ``set``, the classes that contain the truth with probability ``level`` (bool
        ``(B, C)``), or for a regression ``lower`` and ``upper``. All samples of the held-out rows are drawn (the
        tolerance does not count here) and held in memory. Classes below zero, such as -100, are left out.

        Args:
            loader: batches with targets, unused in training.
            level: share of rows to cover, above 0 and below 1.

        Raises:
            UserInputError: for other tasks than ``"multiclass"`` of shape ``(B, C)`` and ``"regression"``, for
                probabilities in place of logits, or for a loader without rows.
        """
        if self.task not in ("multiclass", "regression") or (self.task == "multiclass" and not self.logits):
            raise UserInputError(
                f"calibrate is for multiclass logits and regressions, but got task={self.task!r}, logits={self.logits}."
            )
        self.calibration = None
        summaries, targets, seen = [], [], 0
        for batch in loader:
            inputs, target = split_inputs(batch, self.split)
            if target is None:
                raise UserInputError("calibrate needs targets, but the batch holds inputs only.")
            index = torch.arange(seen, seen + batch_rows(batch, inputs))
            seen += len(index)
            summary = self._drawn(inputs, index, self._stream(keep_samples=self.task == "multiclass"))
            summaries.append({name: value.cpu() for name, value in summary.items()})
            targets.append(target.cpu())
        if not summaries:
            raise UserInputError("calibrate needs held-out rows, but the loader gave no batch. Is its dataset empty?")
        whole = {name: torch.cat([part[name] for part in summaries]) for name in summaries[0]}
        self.calibration = Calibration.fit(self.task, whole, torch.cat(targets), level=level)
        return self.calibration

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Compare the predictions with dropout off and on; see :meth:`test_step`."""
        self._compare(batch, batch_idx, dataloader_idx)

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Compare the predictions with dropout off and on.

        At the end of the epoch ``test_{metric}_dropout_off`` and ``..._on`` are logged: ``acc``, ``nll``, ``brier``,
        ``ece`` and ``ace`` (calibration error in bins of equal width, and in equally filled ones), ``aurc`` and
        ``error_auroc`` (does entropy find the mistakes?) for classes; ``rmse``, and with known noise ``nll`` and
        ``coverage90``, for a regression. Targets below zero are left out. Several dataloaders are told apart by
        ``/loader_0``, ``/loader_1``, ... behind the names.

        The loggers get the most uncertain rows of all ranks as a table, with pictures where the inputs are some; for
        classes also pictures of calibration, risk against coverage, and the entropy of right and wrong answers.
        """
        self._compare(batch, batch_idx, dataloader_idx)

    def _compare(self, batch: Any, batch_idx: int, dataloader_idx: int) -> None:
        inputs, target = split_inputs(batch, self.split)
        if target is None:
            raise UserInputError("test and validate need targets to compare with, but the batch holds inputs only.")
        index = self._index(batch, inputs, batch_idx, dataloader_idx)
        on = self._summaries(inputs, index)
        while len(self._metrics) <= dataloader_idx:
            self._metrics.append(OffAndOn(self.task).to(self.device))
            self._rankings.append(UncertainRows(self.task))
        cast(OffAndOn, self._metrics[dataloader_idx]).update(self._without_dropout(inputs), on, target)
        self._rankings[dataloader_idx].update(on, index, target, inputs[0])

    def _without_dropout(self, inputs: tuple[Any, ...]) -> dict[str, Tensor]:
        out = tree_map(lambda x: x.unsqueeze(0), self._engine.deterministic(*inputs))
        out = to_summary_form(out, self.task, logits=self.logits, class_dim=self._class_dim)
        if isinstance(out, tuple):
            return {"mean": out[0][0], "total_variance": out[1][0].exp()}
        known = {} if self._tau is None else {"total_variance": torch.full_like(out[0], 1 / self._tau)}
        return {"mean": out[0], **known}

    def on_validation_epoch_start(self) -> None:
        """Forget what an interrupted validation left."""
        self._begin()

    def on_test_epoch_start(self) -> None:
        """Forget what an interrupted test left."""
        self._begin()

    def _begin(self) -> None:
        self._metrics = nn.ModuleList([OffAndOn(self.task).to(self.device)])  # one per dataloader, as are the rankings
        self._rankings = [UncertainRows(self.task)]

    def on_validation_epoch_end(self) -> None:
        """Log the metrics over the whole set."""
        self._finish("val")

    def on_test_epoch_end(self) -> None:
        """Log the metrics over the whole set."""
        self._finish("test")

    def _finish(self, stage: str) -> None:
        several = len(self._metrics) > 1
        for number, (metrics, ranking) in enumerate(zip(self._metrics, self._rankings, strict=True)):
            behind = f"/loader_{number}" if several else ""
            values, answers = cast(OffAndOn, metrics).compute()
            self.log_dict({f"{stage}_{name}{behind}": value for name, value in values.items()}, sync_dist=True)
            log_answers(self.trainer, stage + behind, answers)
            ranking.log(self.trainer, stage + behind)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the weights of a checkpoint that was written while the model trained on its own.

        So ``trainer.predict(MCDropoutPredictor(model), data, ckpt_path="best.ckpt")`` works.
        """
        weights = checkpoint.get("state_dict", {})
        if not any(name in weights for name in self.state_dict()):
            checkpoint["state_dict"] = {f"model.{name}": value for name, value in weights.items()}
