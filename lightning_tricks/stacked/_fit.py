"""Train several models at once, in one process, as stacked parameters."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from torch import Tensor, nn

from lightning_tricks._base import UserInputError, accepts_old_names, infer_mode
from lightning_tricks.stacked._functional import task_for
from lightning_tricks.stacked._module import ModelProgress, StackedModule
from lightning_tricks.stacked._net import StackedNet, put_back
from lightning_tricks.stacked._stopping import Rules
from lightning_tricks.stacked.optimizers import spec_of


@dataclass(frozen=True)
class StackedRun:
    """What became of one model.

    Args:
        value: best finite value of the monitored metric; None if it was never finite.
        best_epoch: the 0-based epoch of it, or -1.
        best_step: optimizer steps taken by then, or -1.
        epochs: how many epochs it trained.
        message: why it stopped before the others, or None.
        history: one line per validation: ``epoch``, ``step``, ``train_loss`` and the metrics.
        final_value: value of the monitored metric with the weights that the model ends with; None if it was not
            validated with them.
        best_state: ``state_dict`` of the model with the weights that earned the value.
    """

    value: float | None
    best_epoch: int
    best_step: int
    epochs: int
    message: str | None
    history: list[dict[str, float]]
    final_value: float | None
    best_state: dict[str, Tensor]


@accepts_old_names("fit_stacked")
def fit_stacked(
    models: Sequence[LightningModule],
    data: LightningDataModule,
    *,
    monitor: str = "val_loss",
    mode: Literal["auto", "min", "max"] = "auto",
    callbacks: Callable[[], Sequence[Callback]] | Sequence[Sequence[Callback]] | None = None,
    trainer_kwargs: Mapping[str, Any] | None = None,
    watchers: Sequence[Callback] = (),
    ckpt_path: str | Path | None = None,
) -> list[StackedRun]:
    """Train models of one architecture together, on the same batches, each as if it were alone.

    Their parameters are stacked, so that a layer of all of them is one product; every model keeps its own optimizer
    hyperparameters, dropout rates, label smoothing, early stopping and learning-rate reductions. A model that stops
    leaves the stack, one that diverges does not touch the others. Without dropout each model ends with the weights of
    its own ``Trainer.fit``, up to rounding.

    Args:
        models: :class:`~lightning_tricks.Classifier` or :class:`~lightning_tricks.Regressor`, or a LightningModule
            whose steps ``torch.func`` can run, all of one class and architecture, with SGD, Adam or AdamW. They end
            trained: with their best weights if their :class:`~lightning_tricks.EarlyStopping` restores them, else with
            the last ones.
        data: the same for all.
        monitor: name of the metric, logged in validation.
        mode: ``"min"``, ``"max"``, or ``"auto"`` to tell by the metric's name.
        callbacks: returns new callbacks for one model, or one list of them per model:
            :class:`~lightning_tricks.EarlyStopping`, :class:`~lightning_tricks.ReduceLROnPlateau`,
            :class:`~lightning_tricks.WeightInit`; monitors are left out.
        trainer_kwargs: options of ``Trainer``, such as ``{"max_epochs": 20}``; one device.
        watchers: callbacks for the Trainer of the whole stack.
        ckpt_path: a checkpoint of the same stack to go on from.

    Returns:
        One result per model.

    Raises:
        UserInputError: if the models cannot be stacked, with the reason.

    Example:
        >>> import lightning_tricks as lt
        >>> rates = (1e-4, 1e-2)
        >>> models = [lt.Classifier(lt.MLP(64, 10), num_classes=10, lr=lr) for lr in rates]
        >>> runs = lt.fit_stacked(
        ...     models, lt.DigitsDataModule(batch_size=256), trainer_kwargs={"max_epochs": 1, "accelerator": "cpu"}
        ... )
        >>> runs[0].value > runs[1].value
        True
    """
    models = list(models)
    _check(models, data, trainer_kwargs or {})
    mode = infer_mode(monitor, mode)
    rules = [Rules(made, monitor) for made in _made(callbacks, len(models))]
    run = _trainer(trainer_kwargs or {}, watchers)
    for model, rule in zip(models, rules, strict=True):
        _initialise(model, rule, run)
    task = task_for(models)
    if task.names() and monitor not in task.names():
        raise UserInputError(f"{monitor!r} is not logged in validation; logged are {', '.join(task.names())}.")
    spec = spec_of([model.configure_optimizers() for model in models], task.nets)
    module = StackedModule(StackedNet(task.nets), task, spec, rules, monitor=monitor, mode=mode)
    task.follow({monitor, *(name for rule in rules for name in rule.monitors)})
    run.fit(module, data, ckpt_path=ckpt_path)
    return [_finished(module, i, model, task.nets[i]) for i, model in enumerate(models)]


def _check(models: Sequence[LightningModule], data: Any, trainer: Mapping[str, Any]) -> None:
    if not models:
        raise UserInputError("fit_stacked needs at least one model, but got none.")
    for i, model in enumerate(models):
        if not isinstance(model, LightningModule):
            raise UserInputError(f"models must be LightningModules, but model {i} is a {type(model).__name__}.")
    if len({id(model) for model in models}) < len(models):
        raise UserInputError("every model of a stack must be a new one, but the same came twice.")
    for name in ("callbacks", "logger"):
        if trainer.get(name):
            raise UserInputError(f"{name} belong to each model: pass them to fit_stacked or search, not in trainer.")


def _made(
    callbacks: Callable[[], Sequence[Callback]] | Sequence[Sequence[Callback]] | None, count: int
) -> list[list[Callback]]:
    if callbacks is None:
        return [[] for _ in range(count)]
    made = [list(callbacks()) for _ in range(count)] if callable(callbacks) else [list(each) for each in callbacks]
    if len(made) != count:
        raise UserInputError(f"callbacks must hold one list per model, but there are {count} and {len(made)} lists.")
    everything = [id(callback) for each in made for callback in each]
    if len(set(everything)) < len(everything):
        raise UserInputError("every model needs callbacks of its own, but the same one came twice: make them anew.")
    return made


def _initialise(model: LightningModule, rules: Rules, trainer: Trainer) -> None:
    """Do what WeightInit does when a fit starts, with the precision and the strategy of the stack's trainer."""
    for callback in rules.inits:
        callback.log = False
        callback.setup(trainer, model, "fit")
        callback.on_fit_start(trainer, model)


def _trainer(options: Mapping[str, Any], watchers: Sequence[Callback]) -> Trainer:
    defaults: dict[str, Any] = {
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }
    trainer = Trainer(**{**defaults, **options, "logger": False, "callbacks": list(watchers)})
    if trainer.world_size > 1:
        raise UserInputError(
            f"a stack trains on one device, but the trainer asks for {trainer.world_size}. Give "
            "trainer_kwargs={'devices': 1}; several stacks at a time share out the devices (workers=...)."
        )
    if getattr(trainer.precision_plugin, "scaler", None) is not None:
        raise UserInputError(
            "16-mixed scales the loss of the whole stack, so that one model's overflow would hold up all of them. Give "
            "trainer_kwargs={'precision': 'bf16-mixed'}, or '32-true'."
        )
    if options.get("detect_anomaly"):
        raise UserInputError("detect_anomaly ends the training of all models of a stack when one of them meets a NaN.")
    return trainer


def _finished(module: StackedModule, number: int, model: LightningModule, net: nn.Module) -> StackedRun:
    progress: ModelProgress = module.progress[number]
    with torch.no_grad():
        put_back(module.best, number, net)
        best = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        restores = module.rules[number].restores and progress.value is not None
        if not restores:
            put_back(module.last, number, net)
    return StackedRun(
        value=progress.value,
        best_epoch=progress.best_epoch,
        best_step=progress.best_step,
        epochs=progress.epochs,
        message=progress.message,
        history=progress.history,
        final_value=progress.value if restores else _last_value(progress, module.monitor),
        best_state=best,
    )


def _last_value(progress: ModelProgress, monitor: str) -> float | None:
    last = progress.history[-1] if progress.history else None
    return last[monitor] if last is not None and last["step"] == progress.steps else None
