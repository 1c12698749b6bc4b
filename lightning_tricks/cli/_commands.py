"""What each command adds to the parser, and what it calls."""

import json
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.utilities.model_helpers import is_overridden

from lightning_tricks.callbacks import PredictionWriter
from lightning_tricks.cli._checkpoint import checkpoint_options
from lightning_tricks.cli._command_names import TRAINER_COMMANDS
from lightning_tricks.cli._completion import completion_script
from lightning_tricks.cli._lightning import TricksCLI, add_trainer_options, fresh_path, run_folder
from lightning_tricks.cli._table import print_report
from lightning_tricks.cli._tune import add_tune_options, tune
from lightning_tricks.cli._usage import NO_DATA, UsageError
from lightning_tricks.data import SplitDataModule
from lightning_tricks.diagnosis import Report, check
from lightning_tricks.modules import MCDropoutPredictor


@dataclass(frozen=True)
class Command:
    """One command.

    Args:
        add_options: adds its options to a parser.
        run: does it and returns the exit code.
        make: whether model, data and trainer are made from the arguments before.
        trains: whether it takes the tricks and keeps its configuration.
    """

    add_options: Callable[[LightningArgumentParser], None]
    run: Callable[[TricksCLI], int]
    make: bool = True
    trains: bool = False


def run_command(name: str, arguments: list[str]) -> int:
    """Run a command of LightningCLI's family and return the exit code."""
    with _modules_of_this_folder(), _no_advertising():
        if name == "completion":
            return _completion(arguments)
        return COMMANDS[name].run(_parsed(name, arguments))


def _parsed(name: str, arguments: list[str] | None) -> TricksCLI:
    command = COMMANDS[name]
    return TricksCLI(
        name,
        arguments,
        description=TRAINER_COMMANDS[name].capitalize() + ".",
        add_options=command.add_options,
        make=command.make,
        trains=command.trains,
    )


def _completion(arguments: list[str]) -> int:
    if len(arguments) != 1 or arguments[0] not in ("bash", "zsh"):
        raise UsageError("completion needs the name of a shell: bash or zsh.")
    options = {name: _option_names(_parsed(name, None).parser) for name in COMMANDS}
    print(completion_script(arguments[0], {**options, "demo": [], "completion": ["bash", "zsh"]}), end="")
    return 0


def _option_names(parser: LightningArgumentParser) -> list[str]:
    return [f"--{name}" for name in ["help", "config", "print_config", *parser.get_defaults().keys()]]


@contextmanager
def _modules_of_this_folder() -> Iterator[None]:
    """Let class paths name modules in the current folder, as ``python -m`` does."""
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)


@contextmanager
def _no_advertising() -> Iterator[None]:
    """Leave out the tips to install other products; everything else that Lightning says stays."""

    def is_news(record: logging.LogRecord) -> bool:
        return "Tip:" not in record.getMessage()

    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    logger.addFilter(is_news)
    try:
        yield
    finally:
        logger.removeFilter(is_news)


def _fit(cli: TricksCLI) -> int:
    trainer = cli.trainer
    _need_data(cli, "train_dataloader")
    trainer.fit(cli.model, datamodule=cli.datamodule, **checkpoint_options(cli))
    if trainer.checkpoint_callbacks and not trainer.fast_dev_run:  # type: ignore[attr-defined]  # set elsewhere
        final = fresh_path(run_folder(trainer) / "final.ckpt") if trainer.is_global_zero else Path("final.ckpt")
        trainer.save_checkpoint(trainer.strategy.broadcast(final), weights_only=True)
        _say(cli, f"weights: {final}")
    return 0


def _judge(method: Literal["validate", "test"], loader: str, cli: TricksCLI) -> int:
    _need_data(cli, loader)
    _say_if_untrained(cli)
    judge = getattr(cli.trainer, method)
    judge(cli.model, datamodule=cli.datamodule, **checkpoint_options(cli))
    return 0


def _predict_options(parser: LightningArgumentParser) -> None:
    add_trainer_options(parser, "predict")
    parser.add_argument("--samples", type=int, default=100, help="stochastic passes per row, at least 2")
    parser.add_argument("--out", type=str, default="predictions.csv", help="a file ending in .csv, .parquet or .npz")
    parser.add_argument("--columns", type=list[str] | None, default=None, help="what to write; all if not given")
    parser.add_argument("--overwrite", type=bool, default=False, help="replace an existing file")
    objects = {"model", "samples", "output", "split", "layers", "insert"}
    parser.add_class_arguments(MCDropoutPredictor, "dropout", skip=objects, instantiate=False)


def _predict(cli: TricksCLI) -> int:
    _need_data(cli, "predict_dataloader")
    _say_if_untrained(cli)
    predictor = MCDropoutPredictor(cli.model, cli.config.samples, **cli.config.dropout)
    cli.trainer.callbacks.append(_writer(cli))  # type: ignore[attr-defined]  # the trainer sets it in another class
    cli.trainer.predict(predictor, datamodule=cli.datamodule, return_predictions=False, **checkpoint_options(cli))
    _say(cli, f"predictions: {cli.config.out}")
    return 0


def _writer(cli: TricksCLI) -> PredictionWriter:
    """Return what writes the predictions, in terms of the data that came in if the DataModule knows how."""
    data = cli.datamodule
    ours = isinstance(data, SplitDataModule) and type(data).predict_dataloader is SplitDataModule.predict_dataloader
    return PredictionWriter(
        cli.config.out,
        **cli.options("columns", "overwrite"),
        transform=data.inverse_prediction if ours else None,
    )


def _check_options(parser: LightningArgumentParser) -> None:
    add_trainer_options(parser, "fit")
    parser.add_argument("--budget", type=Literal["quick", "full"], default="quick", help="full also overfits a few")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--html", type=str | None, default=None, help="also write the report as a page")


def _check(cli: TricksCLI) -> int:
    if cli.datamodule is None:
        raise UsageError(NO_DATA)
    show = sys.stderr.isatty()
    report = check(cli.model, cli.datamodule, budget=cli.config.budget, trainer=cli.trainer, progress=show)
    if cli.config.html is not None:
        report.to_html(cli.config.html)
    if cli.config.json:
        print(json.dumps(_as_dict(report), indent=2))
    else:
        print_report(report)
    return 0 if report.ok else 1


def _as_dict(report: Report) -> dict[str, Any]:
    return {"ok": report.ok, "findings": [asdict(finding) for finding in report], "facts": dict(report.facts)}


def _need_data(cli: TricksCLI, loader: str) -> None:
    if cli.datamodule is None and not is_overridden(loader, cli.model):
        raise UsageError(NO_DATA)


def _say_if_untrained(cli: TricksCLI) -> None:
    if cli.config.ckpt_path is None:
        _say(cli, "note: without --ckpt_path the model has the weights that it was made with", error=True)


def _say(cli: TricksCLI, text: str | None, *, error: bool = False) -> None:
    if text and cli.trainer.is_global_zero:
        print(text, file=sys.stderr if error else sys.stdout)


COMMANDS = {
    "fit": Command(partial(add_trainer_options, method="fit"), _fit, trains=True),
    "validate": Command(partial(add_trainer_options, method="validate"), partial(_judge, "validate", "val_dataloader")),
    "test": Command(partial(add_trainer_options, method="test"), partial(_judge, "test", "test_dataloader")),
    "predict": Command(_predict_options, _predict),
    "check": Command(_check_options, _check),
    "tune": Command(add_tune_options, tune, make=False, trains=True),
}
