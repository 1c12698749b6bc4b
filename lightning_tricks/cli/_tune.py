"""A search out of a file of settings."""

import json
from argparse import ArgumentError
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any, cast

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.loggers import Logger

from lightning_tricks._base import UserInputError
from lightning_tricks.cli._lightning import TricksCLI, add_trainer_options
from lightning_tricks.cli._tricks import Tricks, made, make_tricks
from lightning_tricks.cli._usage import NO_DATA, UsageError, as_sentence, make

_BASES: dict[str, type] = {"model": LightningModule, "data": LightningDataModule}
# What search() gets from options that all commands share, or has no default for; and what only Python can give.
_SHARED = {"make_model", "data", "space", "trials", "monitor", "mode", "trainer_kwargs", "callbacks", "logger", "seed"}
_PYTHON_ONLY = {"progress", "start_method"}


def add_tune_options(parser: LightningArgumentParser) -> None:
    """Add the options of :func:`~lightning_tricks.search`."""
    from lightning_tricks.tune import search

    parser.add_argument(
        "--space",
        type=str | dict[str, Any] | None,
        default=None,
        help="what to search: options such as model.lr or data.batch_size, each a list of choices or a mapping with "
        "low, high and perhaps log, step, window; or the path of a YAML file with such a mapping",
    )
    parser.add_argument("--trials", type=int | None, default=None, help="budget, at least 1")
    parser.add_argument(
        "--join",
        type=str | None,
        default=None,
        help="take part in a search that runs elsewhere: its folder, or the URL of its storage; space, budget, method "
        "and seed are read from there",
    )
    parser.add_function_arguments(search, skip={*_SHARED, *_PYTHON_ONLY})
    add_trainer_options(parser, "fit")


def tune(cli: TricksCLI) -> int:
    """Search, and print what was found."""
    settings = json.loads(cli.parser.dump(cli.config, skip_none=False, format="json"))
    if settings.get("data") is None:
        raise UsageError(NO_DATA)
    parts = {name: PartOf(name, settings[name]) for name in _BASES}
    result = _join(cli, settings, parts) if cli.config.join else _search(cli, settings, parts)
    print(result.explain())
    print(result)
    return 0


def _search(cli: TricksCLI, settings: Mapping[str, Any], parts: "Mapping[str, PartOf]") -> Any:
    from lightning_tricks.tune import check_space, search, space_of

    space = settings["space"]
    if space is None or settings["trials"] is None:
        raise UsageError("tune needs --space and --trials, or --join to take part in a search that runs.")
    space = check_space(space_of(space, "--space") if isinstance(space, dict) else space)
    _check_names(cast(Mapping[str, Any], space), parts)
    return call(
        search,
        parts["model"],
        parts["data"],
        space,
        trials=settings["trials"],
        trainer_kwargs=_trainer_options(settings["trainer"]),
        monitor=settings["monitor"],
        mode=settings["mode"],
        seed=int(settings["seed_everything"]),
        **_callbacks_and_logger(settings),
        **cli.options(*set(signature(search).parameters) - _SHARED - _PYTHON_ONLY),
    )


def _join(cli: TricksCLI, settings: Mapping[str, Any], parts: "Mapping[str, PartOf]") -> Any:
    from lightning_tricks.tune import join

    # A folder is seen by all who take part; for the address of a storage each has a folder of its own.
    own = {"folder": cli.config.folder} if "://" in cli.config.join else {}
    options = {**cli.options("study", "workers"), **own, **_callbacks_and_logger(settings)}
    return call(join, cli.config.join, parts["model"], parts["data"], **options)


def call(function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Call a function of the library."""
    return function(*args, **options)


def _callbacks_and_logger(settings: Mapping[str, Any]) -> dict[str, Any]:
    recipe = {name: settings[name] for name in ("monitor", "mode", "patience")}
    entries = _entries(settings["trainer"].get("callbacks"))
    callbacks = CallbacksOf(entries, settings["tricks"], recipe)
    return {"callbacks": callbacks, "logger": _logger(_entries(settings["trainer"].get("logger")))}


def _logger(entries: "list[dict[str, Any]]") -> "LoggerOf | dict[str, Any] | None":
    """Return how the search makes its loggers; it makes those of W&B itself, one run per trial in one group."""
    if len(entries) == 1 and entries[0]["class_path"].rpartition(".")[2] in ("WandbLogger", "TolerantWandbLogger"):
        given = {**entries[0].get("init_args", {}), **entries[0].get("dict_kwargs", {})}
        return {name: value for name, value in given.items() if value is not None and name != "save_dir"}
    return LoggerOf(entries) if entries else None


@dataclass(frozen=True)
class PartOf:
    """Makes the model or the data from settings and hyperparameters; travels to other processes.

    Args:
        part: ``"model"`` or ``"data"``.
        settings: its class path and arguments.
    """

    part: str
    settings: dict[str, Any]

    def __call__(self, **params: Any) -> Any:
        """Return a new one with those hyperparameters that are named after it, such as ``model.lr``."""
        parser, config = self.parsed(params)
        return make(parser, config)[self.part]

    def parsed(self, params: Mapping[str, Any]) -> tuple[LightningArgumentParser, Any]:
        """Return the parser and what it reads.

        Raises:
            UsageError: if a hyperparameter is no option of the class, or of a wrong type.
        """
        settings = deepcopy(self.settings)
        for name, value in params.items():
            part, *path = name.split(".")
            if part == self.part:
                _put(settings, [key for key in path if key != "init_args"], value)
        parser = LightningArgumentParser(exit_on_error=False)
        parser.add_lightning_class_args(_BASES[self.part], self.part, subclass_mode=True)
        try:
            return parser, parser.parse_object({self.part: settings})
        except ArgumentError as error:
            raise UsageError(as_sentence(str(error))) from error


def _put(settings: dict[str, Any], path: list[str], value: Any) -> None:
    """Set an option of a class, or of a class among its arguments."""
    *parents, leaf = path
    for parent in parents:
        settings = settings.setdefault("init_args", {})[parent]
    settings.setdefault("init_args", {})[leaf] = value


def _check_names(space: Mapping[str, Any], parts: Mapping[str, PartOf]) -> None:
    """Say now, and not in the first trial, that a hyperparameter is no option of the model or the data."""
    for name, entry in space.items():
        part, _, option = name.partition(".")
        if part not in parts or not option:
            raise UserInputError(
                f"each name of --space must be an option of the model or the data, such as model.lr or "
                f"data.batch_size, but got {name!r}."
            )
        try:
            parts[part].parsed({name: entry.values(2)[0]})
        except (KeyError, TypeError):
            raise UserInputError(f"--space names {name!r}, but there is no such option in {part}.") from None


@dataclass(frozen=True)
class CallbacksOf:
    """Makes a training's callbacks; travels to other processes.

    Args:
        entries: those of ``trainer.callbacks``, with class paths.
        tricks: those of ``--tricks``.
        recipe: settings of the recipe.
    """

    entries: list[dict[str, Any]]
    tricks: Tricks
    recipe: dict[str, Any]

    def __call__(self) -> list[Callback]:
        """Return new ones."""
        return [*(made(Callback, entry) for entry in self.entries), *make_tricks(self.tricks, **self.recipe)]


@dataclass(frozen=True)
class LoggerOf:
    """Makes a training's loggers in its folder; travels to other processes.

    Args:
        entries: those of ``trainer.logger``, with class paths.
    """

    entries: list[dict[str, Any]]

    def __call__(self, folder: Path, params: Mapping[str, Any]) -> Logger:
        """Return new ones."""
        loggers = [self._one(entry, folder) for entry in self.entries]
        return cast(Logger, loggers if len(loggers) > 1 else loggers[0])

    @staticmethod
    def _one(entry: dict[str, Any], folder: Path) -> Logger:
        arguments = {**entry.get("init_args", {}), "save_dir": str(folder)}
        return cast(Logger, made(Logger, {**entry, "init_args": arguments}))


def _entries(value: Any) -> list[dict[str, Any]]:
    """Return the class paths in a setting that may also be None, True, one class path or several."""
    return [entry for entry in (value if isinstance(value, list) else [value]) if isinstance(entry, dict)]


def _trainer_options(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of ``Trainer`` that were set, strategies and the like as objects."""
    plain = {name: value for name, value in settings.items() if name not in ("callbacks", "logger")}
    parser = LightningArgumentParser(exit_on_error=False)
    parser.add_lightning_class_args(Trainer, "trainer")
    config = make(parser, parser.parse_object({"trainer": plain}))
    return {name: value for name, value in config.trainer.items() if value is not None}
