"""The whole package in one minute: train, watch, stop, predict with uncertainty, report."""

import csv
import logging
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger, Logger
from torch import Tensor

from lightning_tricks import __version__, plots
from lightning_tricks._base import UserInputError, check_range, log_metrics
from lightning_tricks.callbacks import EarlyStopping, NormMonitor, ReduceLROnPlateau, TolerantWandbLogger, recipe
from lightning_tricks.data import ImageDataModule
from lightning_tricks.data.augment import Rotate, Scale, Translate
from lightning_tricks.diagnosis import Cell, Picture, Section, Table, Text, html_report, write_atomically
from lightning_tricks.modules import Classifier, MCDropoutPredictor
from lightning_tricks.nets import ConvNet
from lightning_tricks.uncertainty import CalibrationBins, calibration_bins, expected_calibration_error

_LR = 1e-2  # far above the course's default for Adam: the net is tiny, and the plateaus show what a reduction does
_DROPOUT = 0.3
_MARKER = ".lightning-tricks-demo"


@dataclass(frozen=True)
class Score:
    """How well one way of predicting does on the test set.

    Attributes:
        name: the way.
        accuracy: share of right predictions.
        calibration_error: mean gap between confidence and accuracy over 15 bins.
        loss: mean negative log-likelihood in nats.
    """

    name: str
    accuracy: float
    calibration_error: float
    loss: float


@dataclass(frozen=True)
class DemoResult:
    """What the demo found and where it wrote it.

    Attributes:
        scores: dropout off, then the Monte-Carlo mean.
        files: what was written, by what it is.
        seconds: how long it took.
    """

    scores: tuple[Score, ...]
    files: Mapping[str, Path]
    seconds: float

    def as_text(self) -> str:
        """Return the table that the command prints."""
        lines = [f"{'test set':24s} {'accuracy':>9s} {'calibration error':>18s} {'loss (nats)':>12s}"]
        lines += [f"{s.name:24s} {s.accuracy:9.2%} {s.calibration_error:18.4f} {s.loss:12.4f}" for s in self.scores]
        lines += ["", *(f"{what + ':':12s} {path}" for what, path in self.files.items())]
        return "\n".join([*lines, f"{'time:':12s} {self.seconds:.0f} s"])


def run_demo(
    out: Path, *, seed: int = 0, samples: int = 100, quick: bool = False, wandb: str | None = None
) -> DemoResult:
    """Train a small net on the digits with ``recipe()``, predict with Monte-Carlo dropout, write the report.

    Args:
        out: folder for everything: new, empty, or of an earlier demo, which is replaced.
        seed: of the split, the net and the dropout masks.
        samples: stochastic passes per test picture, at least 2.
        quick: 15 epochs instead of 60.
        wandb: ``"online"`` or ``"offline"`` to log to Weights & Biases too.

    Raises:
        UserInputError: if the folder cannot be written to or holds other files, or a number is out of range.
    """
    start = time.monotonic()
    check_range("samples", samples, low=2)
    check_range("seed", seed, low=0, high=2**32 - 1)
    csv_logger = CSVLogger(out, name="", version="")
    _make_folder(out, csv_logger)
    seed_everything(seed, verbose=False)
    data = digits(seed)
    net = ConvNet(1, data.num_classes, channels=(32, 64), dropout=_DROPOUT)
    model = Classifier(net, data.num_classes, lr=_LR, weight_decay=1e-4)
    callbacks = recipe("val_loss", patience=6 if quick else 12)
    with _quiet_lightning(), _one_thread():
        trainer = Trainer(
            max_epochs=15 if quick else 60,
            accelerator="cpu",
            callbacks=callbacks,
            logger=[csv_logger, *_wandb_loggers(out, wandb)],
            enable_checkpointing=False,
            enable_model_summary=False,
            log_every_n_steps=10,
        )
        trainer.fit(model, data)
        trainer.save_checkpoint(out / "best.ckpt")
        predictor = MCDropoutPredictor(model, samples=samples, seed=seed)
        batches = cast(list[dict[str, Tensor]], trainer.predict(predictor, data))
    pictures, labels = _test_set(data)
    plain = _plain_probabilities(model, pictures)
    mean = torch.cat([batch["mean"] for batch in batches])
    entropy = torch.cat([batch["entropy"] for batch in batches])
    scores = (_score("dropout off", plain, labels), _score(f"mean of {samples} passes", mean, labels))
    for logger in trainer.loggers:
        logger.save()
    log_metrics(trainer, {"demo/test_acc_off": scores[0].accuracy, "demo/test_acc_mc": scores[1].accuracy})
    sections = [
        _results(scores, samples),
        _data(data),
        _training(out / "metrics.csv", callbacks),
        _uncertainty(plain, mean, entropy, pictures, labels),
        _settings(seed, samples, quick, trainer),
    ]
    page = html_report("Digits, trained with lightning-tricks", sections, subtitle="Real data, one command.")
    write_atomically(out / "report.html", page)
    files = {"report": out / "report.html", "metrics": out / "metrics.csv", "best weights": out / "best.ckpt"}
    return DemoResult(scores, files, time.monotonic() - start)


def digits(seed: int) -> ImageDataModule:
    """Return scikit-learn's handwritten digits, turned and shifted a little while training."""
    from sklearn.datasets import load_digits

    sixteenths, labels = load_digits(return_X_y=True)
    pictures = (sixteenths * 255 / 16).round().astype("uint8").reshape(-1, 8, 8)
    return ImageDataModule.from_arrays(
        pictures, labels, batch_size=64, seed=seed, augment=[Rotate(10), Translate(0.1), Scale((0.9, 1.1))]
    )


def _make_folder(out: Path, logger: CSVLogger) -> None:
    """Make the folder, or empty it if an earlier demo made it; a folder of anything else is left alone."""
    try:
        if out.is_dir() and any(out.iterdir()):
            if not (out / _MARKER).exists():
                raise UserInputError(
                    f"{str(out)!r} holds files that no demo wrote. Choose an empty or new folder with --out."
                )
            shutil.rmtree(out)
        out.mkdir(parents=True, exist_ok=True)
        _ = logger.experiment  # it warns about a folder that is not empty, so it comes before the marker
        (out / _MARKER).write_text("The demo made this folder and empties it when it runs again.\n")
    except OSError as error:
        raise UserInputError(
            f"the demo must be able to write into {str(out)!r}, but it cannot: {error.strerror}. "
            "Choose another folder with --out."
        ) from None


def _wandb_loggers(out: Path, wandb: str | None) -> list[Logger]:
    if wandb is None:
        return []
    return [TolerantWandbLogger(project="lightning-tricks-demo", save_dir=out, offline=wandb == "offline")]


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Keep the progress bar and leave out the notes about hardware and other products."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Use one core: batches this small lose more to waiting for each other's threads than they gain."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _test_set(data: ImageDataModule) -> tuple[Tensor, Tensor]:
    batches = list(data.test_dataloader())
    return torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])


def _plain_probabilities(model: Classifier, pictures: Tensor) -> Tensor:
    with torch.inference_mode():
        logits: Tensor = model.eval()(pictures)
    return logits.softmax(-1)


def _score(name: str, probs: Tensor, labels: Tensor) -> Score:
    loss = torch.nn.functional.nll_loss(probs.clamp_min(1e-12).log(), labels)
    confidence, answer = probs.max(-1)
    right = answer == labels
    return Score(name, float(right.float().mean()), expected_calibration_error(confidence, right), float(loss))


def _results(scores: Sequence[Score], samples: int) -> Section:
    rows: list[list[Cell]] = [[s.name, f"{s.accuracy:.2%}", s.calibration_error, s.loss] for s in scores]
    note = (
        f"The same net twice: once with dropout off, as usual, and once with dropout left on, averaged over {samples} "
        "stochastic passes. A calibrated net that says 90 % is right in 90 % of the cases; the calibration error is "
        "the mean gap between the two."
    )
    return Section(
        "Results on the test set", [Table(["", "accuracy", "calibration error", "loss (nats)"], rows), Text(note)]
    )


def _data(data: ImageDataModule) -> Section:
    sizes = ", ".join(f"{len(rows)} {name}" for name, rows in data.parts.items())
    note = f"Handwritten digits of 8 by 8 pixels, split by class: {sizes}. Training sees each anew every epoch."
    return Section("Data", [Text(note), Picture(data.show_batch(), "Training pictures before and after augmentation.")])


def _training(metrics: Path, callbacks: Sequence[Any]) -> Section:
    stopping = next(c for c in callbacks if isinstance(c, EarlyStopping))
    plateau = next(c for c in callbacks if isinstance(c, ReduceLROnPlateau))
    norms = next(c for c in callbacks if isinstance(c, NormMonitor))
    curves = _curves(metrics, ("train_loss", "val_loss"))
    figure = plots.learning_curves(
        curves,
        best_epoch=stopping.best_epoch,
        lr_drops=[(drop.epoch, drop.new_lr) for drop in plateau.reductions],
        ylabel="loss (nats)",
    )
    drops: list[list[Cell]] = [[d.epoch, d.step, f"{d.old_lr:.1e}", f"{d.new_lr:.1e}"] for d in plateau.reductions]
    return Section(
        "Training",
        [
            Text(stopping.message or ""),
            Picture(figure, "Loss over epochs, with the epoch whose weights were kept and the learning rate's drops."),
            Table(["epoch", "step", "learning rate before", "after"], drops, caption="Reductions of the learning rate")
            if drops
            else Text("The learning rate was never reduced: the loss kept falling."),
            Picture(norms.plot(), "Gradient norm per layer: dark rows vanish, bright rows explode."),
        ],
    )


def _curves(metrics: Path, names: Sequence[str]) -> dict[str, list[tuple[float, float]]]:
    curves: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    with metrics.open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            for name in names:
                if row.get(name):
                    curves[name].append((float(row["epoch"]), float(row[name])))
    return curves


def _uncertainty(plain: Tensor, mean: Tensor, entropy: Tensor, pictures: Tensor, labels: Tensor) -> Section:
    def bins_of(probs: Tensor) -> CalibrationBins:
        confidence, answer = probs.max(-1)
        return calibration_bins(confidence, answer == labels)

    return Section(
        "How sure is it?",
        [
            Picture(
                plots.reliability_diagram(*map(bins_of, (plain, mean)), labels=("dropout off", "mean of the passes")),
                "Confidence against accuracy: on the diagonal the net is exactly as sure as it is right.",
            ),
            Picture(
                plots.most_uncertain_pictures(
                    pictures,
                    entropy,
                    labels=labels.tolist(),
                    predictions=mean.argmax(-1).tolist(),
                    name="entropy (nats)",
                ),
                "The test digits whose predictive entropy is largest, and those whose is smallest.",
            ),
        ],
    )


def _settings(seed: int, samples: int, quick: bool, trainer: Trainer) -> Section:
    rows: list[list[Cell]] = [
        ["seed", seed],
        ["stochastic passes", samples],
        ["quick", str(quick)],
        ["epochs run", trainer.current_epoch],
        ["optimizer steps", trainer.global_step],
        ["lightning-tricks", __version__],
        ["torch", torch.__version__],
        ["threads", f"{torch.get_num_threads()} of {os.cpu_count()} cores"],
    ]
    return Section("Settings", [Table(["", "value"], rows)])
