"""The learning-rate range test: Lightning's engine, more rules, the picture, and nothing left behind."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import LearningRateFinder
from lightning.pytorch.utilities.parsing import lightning_hasattr, lightning_setattr
from lightning_utilities.core.rank_zero import rank_zero_info
from torch import Generator
from torch.utils.data import DataLoader
from torchmetrics import Metric

from lightning_tricks._base import (
    UserInputError,
    check_choice,
    check_range,
    isolated_rng,
    log_figure,
    log_metrics,
    preserved_modes,
    require_sizes,
    warn_once,
)
from lightning_tricks.callbacks.learning_rate._suggestions import RULES, SuggestionRule, suggest_lr

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class LRFindResult:
    """What a range test gave.

    Attributes:
        rates: the learning rates tried, rising.
        losses: the smoothed training loss at each.
        suggestions: the learning rate by each rule, None where there were too few points.
        rule: the rule chosen.

    Example:
        >>> result = LRFindResult([1e-3, 1e-2], [2.0, 1.0], {"steepest": 3e-3, "valley": None}, rule="steepest")
        >>> result.suggestion
        0.003
    """

    rates: list[float] = field(repr=False)
    losses: list[float] = field(repr=False)
    suggestions: dict[str, float | None]
    rule: str

    @property
    def suggestion(self) -> float | None:
        """The chosen rule's learning rate."""
        return self.suggestions[self.rule]

    def figure(self) -> "Figure":
        """Return the picture: loss over learning rate, suggestions marked."""
        from lightning_tricks.plots import lr_find_figure

        return lr_find_figure(self.rates, self.losses, self.suggestions, chosen=self.rule)


class LRFinder(LearningRateFinder):
    """Find a learning rate by a range test before training, set it, log the picture, and train on as if nothing was.

    Lightning's ``LearningRateFinder`` is the engine: it raises the rate step by step over some batches, then puts
    weights and optimizer back. Beyond that, this one puts back every buffer, module mode, gradient, random stream
    (the loaders' own generators too), metric and logged value; offers several rules; keeps the ratios between the
    parameter groups and tells schedulers of the new rate, which otherwise write the old one back at their first step;
    and skips a resumed run, whose rate comes from the checkpoint.

    The test runs before other callbacks hear ``on_fit_start`` if it comes first in the list; put it after
    :class:`WeightInit`, so that it tests the weights that training starts from.

    Args:
        rule: ``"valley"``, ``"steepest"`` or ``"minimum"``, see :func:`~lightning_tricks.callbacks.suggest_lr`.
        min_lr: first rate, above 0.
        max_lr: last rate, above ``min_lr``.
        steps: optimizer steps, at least 10.
        stop_factor: stop when the smoothed loss is above this times its best; None to go on to the end.
        update: set the suggestion; False only looks.
        attr_name: attribute of the module or its hparams to set as well; ``lr`` or ``learning_rate`` if there is one.

    Attributes:
        result: the :class:`LRFindResult`, None before the test and on a resumed run.

    Raises:
        UserInputError: for an argument out of range; in ``on_fit_start`` for manual optimization or several
            optimizers, for which there is no single rate to find.

    Example:
        >>> import lightning as L, lightning_tricks as lt
        >>> trainer = L.Trainer(callbacks=[lt.LRFinder(rule="steepest")], logger=False)
    """

    def __init__(
        self,
        rule: SuggestionRule = "valley",
        *,
        min_lr: float = 1e-8,
        max_lr: float = 1.0,
        steps: int = 100,
        stop_factor: float | None = 4.0,
        update: bool = True,
        attr_name: str = "",
    ) -> None:
        self.rule = check_choice("rule", rule, RULES)
        check_range("min_lr", min_lr, low=0, open_low=True)
        check_range("max_lr", max_lr, low=min_lr, open_low=True)
        check_range("steps", steps, low=10)
        if stop_factor is not None:
            check_range("stop_factor", stop_factor, low=1, open_low=True)
        super().__init__(min_lr, max_lr, steps, "exponential", stop_factor, update_attr=False)
        self.update = update
        self.attr_name = attr_name
        self.result: LRFindResult | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Run the test unless the run resumes or is only a dry one."""
        self.result = None
        if trainer.ckpt_path is None and not getattr(trainer, "fast_dev_run", False):
            self.lr_find(trainer, pl_module)

    def lr_find(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Run the test, log it, and set the rate."""
        if not pl_module.automatic_optimization or len(trainer.optimizers) != 1:
            raise UserInputError(
                "a learning-rate range test needs automatic optimization with one optimizer, but "
                f"{type(pl_module).__name__} has automatic_optimization={pl_module.automatic_optimization} and "
                f"{len(trainer.optimizers)} optimizers. Test each optimizer in a module of its own."
            )
        require_sizes(pl_module, "a learning-rate range test")
        early_exit, self._early_exit = self._early_exit, False
        with _undisturbed(trainer, pl_module):
            super().lr_find(trainer, pl_module)
        if self.optimal_lr is not None:
            results = self.optimal_lr.results
            suggestions = {rule: suggest_lr(results["lr"], results["loss"], rule) for rule in RULES}
            self.result = LRFindResult(results["lr"], results["loss"], suggestions, self.rule)
            self._tell(trainer, pl_module, self.result)
        self._early_exit = early_exit
        if early_exit:
            from lightning.pytorch.utilities.exceptions import _TunerExitException

            raise _TunerExitException()

    def _tell(self, trainer: Trainer, pl_module: LightningModule, result: LRFindResult) -> None:
        log_figure(trainer, "lr_find/curve", result.figure())
        known = {f"lr_find/{rule}": rate for rule, rate in result.suggestions.items() if rate is not None}
        if known:
            log_metrics(trainer, known)
        if result.suggestion is None:
            warn_once("The learning-rate range test ended too early to suggest a rate; raise steps= or lower min_lr=.")
        elif self.update:
            _set_lr(trainer, pl_module, result.suggestion, self.attr_name)
            rank_zero_info(f"LRFinder set the learning rate to {result.suggestion:.3g} (rule: {self.rule}).")


def lr_find(
    trainer: Trainer,
    model: LightningModule,
    data: LightningDataModule | DataLoader[Any] | None = None,
    *,
    rule: Literal["steepest", "minimum", "valley"] = "valley",
    min_lr: float = 1e-8,
    max_lr: float = 1.0,
    steps: int = 100,
    stop_factor: float | None = 4.0,
) -> LRFindResult:
    """Run a learning-rate range test and change nothing: model, modes and random streams are as before.

    Args:
        trainer: with the loggers and the devices to use.
        model: with one optimizer; its current weights are where the test starts.
        data: a DataModule or training loader; the model's own if not given.
        rule: which suggestion is the chosen one.
        min_lr: first rate, above 0.
        max_lr: last rate.
        steps: optimizer steps, at least 10.
        stop_factor: stop when the smoothed loss is above this times its best.

    Returns:
        The rates, losses and suggestions; ``.figure()`` is the picture.

    Raises:
        UserInputError: as :class:`LRFinder`.

    Example:
        >>> import lightning as L, lightning_tricks as lt
        >>> trainer = L.Trainer(logger=False, enable_checkpointing=False, enable_progress_bar=False, accelerator="cpu")
        >>> model = lt.Classifier(lt.MLP(64, 10), num_classes=10)
        >>> result = lt.lr_find(trainer, model, lt.DigitsDataModule(), steps=20)  # doctest: +SKIP
        >>> sorted(lt.LRFinder(update=False).__dict__.keys() & {"rule", "update"})
        ['rule', 'update']
    """
    finder = LRFinder(rule, min_lr=min_lr, max_lr=max_lr, steps=steps, stop_factor=stop_factor, update=False)
    finder._early_exit = True
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    trainer.callbacks = [finder, *callbacks]  # type: ignore[attr-defined]
    try:
        # Setting the fit up already draws from a loader's own generator (Lightning makes an iterator to check it).
        with preserved_modes(model), isolated_rng(), _preserved(_generators(data)):
            trainer.fit(model, data)
    finally:
        trainer.callbacks = callbacks  # type: ignore[attr-defined]
    if finder.result is None:
        raise UserInputError("lr_find needs a trainer without fast_dev_run, under which Lightning skips the test.")
    return finder.result


@contextmanager
def _undisturbed(trainer: Trainer, model: LightningModule) -> Iterator[None]:
    """Put back what Lightning's engine does not."""
    with isolated_rng():
        loaders = trainer.fit_loop._data_source.dataloader()
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    gradients = [(p, p.grad) for p in model.parameters()]
    connector = trainer._checkpoint_connector
    resumed_from = connector._ckpt_path  # the engine restores through this connector, which then looks like a resume
    # A short max_epochs would end the test early, and validations would only cost time.
    epochs, trainer.fit_loop.max_epochs = trainer.fit_loop.max_epochs, -1
    every, trainer.check_val_every_n_epoch = trainer.check_val_every_n_epoch, sys.maxsize
    try:
        with preserved_modes(model), isolated_rng(), _preserved(_generators(loaders)):
            yield
    finally:
        trainer.fit_loop.max_epochs, trainer.check_val_every_n_epoch = epochs, every
        connector._ckpt_path = resumed_from
        trainer.fit_loop._combined_loader = None  # setting the data up draws from the streams: at its usual time
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
        for parameter, gradient in gradients:
            parameter.grad = gradient
        for module in model.modules():
            if isinstance(module, Metric):
                module.reset()
        trainer._logger_connector.reset_results()
        trainer._logger_connector.reset_metrics()


@contextmanager
def _preserved(generators: list[Generator]) -> Iterator[None]:
    states = [generator.get_state() for generator in generators]
    try:
        yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)


def _generators(loaders: Any) -> list[Generator]:
    """Return the random streams that loaders and their samplers hold themselves."""
    if isinstance(loaders, dict):
        loaders = list(loaders.values())
    if isinstance(loaders, list | tuple):
        return [generator for loader in loaders for generator in _generators(loader)]
    held = [getattr(owner, "generator", None) for owner in (loaders, getattr(loaders, "sampler", None))]
    return [generator for generator in held if isinstance(generator, Generator)]


def _set_lr(trainer: Trainer, model: LightningModule, rate: float, attr_name: str) -> None:
    """Set the rate of the fastest group, the others in proportion, and of every scheduler."""
    groups = trainer.optimizers[0].param_groups
    factor = rate / max(float(group["lr"]) for group in groups)
    for group in groups:
        for key in {"lr", "initial_lr"} & set(group):
            group[key] = group[key] * factor
    for config in trainer.lr_scheduler_configs:
        _scale_scheduler(config.scheduler, factor)
    for name in [attr_name] if attr_name else ["lr", "learning_rate"]:
        if lightning_hasattr(model, name):
            lightning_setattr(model, name, rate)
            return
    if attr_name:
        raise UserInputError(f"attr_name={attr_name!r} is no attribute of {type(model).__name__} or its hparams.")


def _scale_scheduler(scheduler: Any, factor: float) -> None:
    """Make a scheduler count from the new rate, parts of a composed one included."""
    for key in ("base_lrs", "_last_lr"):
        if isinstance(getattr(scheduler, key, None), list):
            setattr(scheduler, key, [value * factor for value in getattr(scheduler, key)])
    for part in getattr(scheduler, "_schedulers", ()):
        _scale_scheduler(part, factor)
