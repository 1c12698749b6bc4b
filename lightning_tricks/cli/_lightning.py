"""LightningCLI with the tricks: one flat parser per command."""

from argparse import ArgumentError
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback

# Short names on the command line (`--model Classifier`) are those of classes that were imported.
from lightning_tricks import callbacks, data, modules, nets  # noqa: F401
from lightning_tricks._base import log_artifact
from lightning_tricks.callbacks import recipe
from lightning_tricks.cli._tricks import Tricks, make_tricks
from lightning_tricks.cli._usage import UsageError, as_sentence, complaint

AddOptions = Callable[[LightningArgumentParser], None]


class TricksCLI(LightningCLI):
    """Parses the arguments of one command and makes model, data and trainer.

    Args:
        command: its name, for messages.
        arguments: what follows the command's name; None to have the parser only.
        description: one line for ``--help``.
        add_options: adds the command's own options to the parser.
        make: whether to make model, data and trainer; otherwise ``config`` is all there is.
        trains: whether the trainer gets the tricks, and writes the configuration beside the run's logs.
    """

    def __init__(
        self,
        command: str,
        arguments: list[str] | None,
        *,
        description: str,
        add_options: AddOptions,
        make: bool = True,
        trains: bool = False,
    ) -> None:
        self._add_options = add_options
        self._parse_only = arguments is None
        self._make = make and not self._parse_only
        self._trains = trains
        try:
            super().__init__(
                seed_everything_default=0,
                save_config_callback=KeepConfig if trains else None,
                save_config_kwargs={"save_to_log_dir": False},
                parser_kwargs={
                    "prog": f"lightning-tricks {command}",
                    "description": description,
                    "exit_on_error": False,
                    "allow_abbrev": False,
                },
                args=cast(Any, arguments),
                run=False,
            )
        except ArgumentError as error:
            raise UsageError(as_sentence(str(error))) from error

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add what all commands share, so that one file of settings serves them all, and the command's own options."""
        parser.add_argument(
            "--tricks",
            type=Tricks,
            default="course",
            help="course (what recipe() returns), none, or a list of names or class paths with their arguments",
        )
        parser.add_function_arguments(recipe)
        self._add_options(parser)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse a list of arguments, whatever those of the process are."""
        self.config = parser.get_defaults() if args is None else parser.parse_args(args)

    def _set_seed(self) -> None:
        if not self._parse_only:
            super()._set_seed()

    def instantiate_classes(self) -> None:
        """Make model, data and trainer, if they are wanted."""
        if not self._make:
            return
        try:
            super().instantiate_classes()
        except ValueError as error:
            raise complaint(error) from error

    def instantiate_trainer(self, **options: Any) -> Trainer:
        """Make the trainer with the tricks among its callbacks."""
        tricks = make_tricks(self.config.tricks, **self.options("monitor", "mode", "patience")) if self._trains else []
        return self._instantiate_trainer({**self._get(self.config_init, "trainer"), **options}, tricks)

    def options(self, *names: str) -> dict[str, Any]:
        """Return some of the command's options."""
        return {name: self.config[name] for name in names}


def add_trainer_options(parser: LightningArgumentParser, method: str) -> None:
    """Add the options of a method of ``Trainer`` that are no objects: the path of a checkpoint, and how to read it."""
    inputs = {"model", "datamodule", "dataloaders", "train_dataloaders", "val_dataloaders", "return_predictions"}
    parser.add_method_arguments(Trainer, method, skip={*inputs, "verbose"})


class KeepConfig(SaveConfigCallback):
    """Writes the configuration where the run writes, and never over a file that is there."""

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write ``config.yaml``, or ``config-1.yaml``, ..."""
        path = fresh_path(run_folder(trainer) / "config.yaml")
        path.parent.mkdir(parents=True, exist_ok=True)
        self.parser.save(self.config, str(path), skip_none=False)
        log_artifact(trainer, path, kind="config")


def run_folder(trainer: Trainer) -> Path:
    """Return where a run's files go: beside its logs, as Lightning's checkpoints do."""
    if not trainer.loggers:
        return Path(trainer.default_root_dir)
    logger = trainer.loggers[0]
    version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
    return Path(logger.save_dir or trainer.default_root_dir, str(logger.name), version)


def fresh_path(path: Path) -> Path:
    """Return a path that nothing has yet: this one, or one with a number.

    Example:
        >>> fresh_path(Path("no such folder/config.yaml")).name
        'config.yaml'
    """
    candidate, number = path, 0
    while candidate.exists():
        number += 1
        candidate = path.with_stem(f"{path.stem}-{number}")
    return candidate
