"""Everything that can be known before the first step."""

import platform
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Literal

import lightning
import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader

from lightning_tricks._base import UserInputError, check_choice
from lightning_tricks.diagnosis import _rules_data as of_data
from lightning_tricks.diagnosis import _rules_layers as of_layers
from lightning_tricks.diagnosis import _rules_outputs as of_outputs
from lightning_tricks.diagnosis import _rules_parameters as of_parameters
from lightning_tricks.diagnosis._finding import Finding
from lightning_tricks.diagnosis._probe import Probe, samples_of, untouched, with_input
from lightning_tricks.diagnosis._report import Report

Budget = Literal["quick", "full"]
_OVERFIT_STEPS, _OVERFIT_SAMPLES = 200, 16


def check(
    model: LightningModule,
    data: LightningDataModule | DataLoader[Any] | Sequence[DataLoader[Any]],
    *,
    budget: Budget = "quick",
    trainer: Trainer | None = None,
    progress: bool = True,
) -> Report:
    """Look for what is wrong with a model and its data before training; copies are tried out, nothing is changed.

    Args:
        model: any LightningModule.
        data: a DataModule, a training loader, or a training and a validation loader.
        budget: ``"quick"`` takes a few passes over one batch; ``"full"`` also trains a copy on 16 samples for 200
            steps, which must overfit.
        trainer: the trainer that will be used, for its precision.
        progress: show a bar.

    Returns:
        The findings, the gravest first. A rule that cannot run says so in a finding of severity "info".

    Raises:
        UserInputError: if ``model`` or ``data`` are something else.

    Example:
        >>> import lightning_tricks as lt
        >>> model = lt.Classifier(lt.MLP(64, 10, hidden_features=(32,)), num_classes=10)
        >>> report = lt.check(model, lt.DigitsDataModule(), progress=False)
        >>> report.ok
        True
    """
    check_choice("budget", budget, ("quick", "full"))
    if not isinstance(model, LightningModule):
        raise UserInputError(
            f"check needs a LightningModule, but got {type(model).__name__}. Wrap it: Classifier(net)."
        )
    train, val = _loaders(data)
    stub = trainer if trainer is not None else _quiet_trainer()
    with untouched(train, val), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        probe = Probe(model, train, val, stub, _transfer_of(data))
        findings = run_rules(rules_for(probe, budget), progress=progress)
    facts = {"budget": budget, "torch": torch.__version__, "lightning": lightning.__version__}
    return Report(findings, {**facts, "python": platform.python_version(), "model": type(model).__name__})


def rules_for(probe: Probe, budget: Budget) -> dict[str, Callable[[], list[Finding]]]:
    """Return every rule that applies, ready to run, by name."""
    model, train = probe.model, probe.train
    rules: dict[str, Callable[[], list[Finding]]] = {
        "symmetric-init": lambda: of_parameters.symmetric_init(model),
        "bias-not-zero": lambda: of_parameters.bias_not_zero(model),
        "unseeded": of_data.unseeded,
    }
    if train is not None:
        rules |= {
            "unshuffled-training": lambda: of_data.unshuffled_training(train),
            "batchnorm-batch-of-one": lambda: of_data.batchnorm_batch_of_one(model, train),
        }
    if not probe.samples or not model.automatic_optimization:
        rules["left-out"] = lambda: _left_out(probe)
    if probe.samples:
        rules |= {"inputs": lambda: of_data.input_values(probe.inputs), "class-imbalance": lambda: _imbalance(probe)}
        if probe.val is not None:
            rules["split-overlap"] = lambda: _overlap(probe)
        if model.automatic_optimization:
            rules |= _running_rules(probe)
            if budget == "full":
                rules["cannot-overfit"] = lambda: _overfit(probe)
    return rules


def _running_rules(probe: Probe) -> dict[str, Callable[[], list[Finding]]]:
    def with_call(rule: Callable[[Any], list[Finding]]) -> list[Finding]:
        return [] if probe.loss_call is None else rule(probe.loss_call)

    def first() -> Any:
        return probe.first

    return {
        "labels-range": lambda: _labels_range(probe),
        "params-not-optimized": lambda: of_parameters.params_not_optimized(*_with_optimizers(probe)),
        "decay-on-bias-or-norm": lambda: of_parameters.decay_on_bias_or_norm(*_with_optimizers(probe)),
        "zero-init": lambda: of_parameters.zero_init(probe.model, first().gradients),
        "loss-at-init": lambda: with_call(lambda call: of_outputs.loss_at_init(call, first().loss)),
        "output-bias": lambda: with_call(of_outputs.output_bias),
        "output-activation": lambda: with_call(of_outputs.output_activation),
        "vanishing-gradient": lambda: of_parameters.vanishing_or_exploding(first().gradients),
        "activation-scale": lambda: of_layers.activation_scale(first().layers),
        "dropout-before-batchnorm": lambda: of_layers.dropout_before_batchnorm(first().layers),
        "no-update": lambda: of_parameters.no_update(first().before, first().after, first().trained),
        "batch-mixing": lambda: _mixing(probe),
        "nondeterministic-eval": lambda: _nondeterministic(probe),
        "train-eval-mismatch": lambda: _mismatch(probe),
    }


def run_rules(rules: dict[str, Callable[[], list[Finding]]], *, progress: bool) -> list[Finding]:
    """Run every rule; one that crashes is reported and does not stop the others."""
    from tqdm import tqdm  # type: ignore[import-untyped]

    findings: list[Finding] = []
    crashes: dict[str, list[str]] = {}
    for name, rule in tqdm(rules.items(), desc="preflight", disable=not progress, leave=False):
        try:
            findings += rule()
        except Exception as error:  # noqa: PERF203 - whatever one rule does must not stop the others
            crashes.setdefault(f"{type(error).__name__}: {error}", []).append(name)
    for message, names in crashes.items():
        what = f"{len(names)} rules could not run ({', '.join(names)}): {message.splitlines()[0][:200]}"
        findings.append(Finding(names[0], "info", "preflight", what, "If training runs without this, ignore it."))
    return list(dict.fromkeys(findings))


def _left_out(probe: Probe) -> list[Finding]:
    why = "training samples cannot be had past the loader" if not probe.samples else "optimization is manual"
    what = f"rules that try the model out were left out, since {why}"
    return [Finding("left-out", "info", "preflight", what, "Look at the first epoch with NormMonitor instead.")]


def _labels_range(probe: Probe) -> list[Finding]:
    call = probe.attempted_loss()
    if call is None or call.name not in ("cross_entropy", "nll_loss") or call.target.is_floating_point():
        return []
    return of_data.labels_range(probe.labels, call.num_classes, ignore_index=call.ignore_index)


def _imbalance(probe: Probe) -> list[Finding]:
    labels = probe.labels
    return [] if labels.is_floating_point() or labels.ndim != 1 else of_data.class_imbalance(labels)


def _overlap(probe: Probe) -> list[Finding]:
    train, val = samples_of(probe.train, 4000), samples_of(probe.val, 500)
    return of_data.split_overlap(map(of_data.sample_input, train), map(of_data.sample_input, val))


def _with_optimizers(probe: Probe) -> tuple[LightningModule, list[torch.optim.Optimizer]]:
    twin = probe.fresh()
    return twin, probe.optimizers(twin)


def _mixing(probe: Probe) -> list[Finding]:
    twin = probe.fresh()
    with suppress(RuntimeError):  # a model without a backward pass in evaluation mode
        gradient = probe.cross_gradient(twin)
        if gradient is not None and (found := of_outputs.batch_mixing_gradient(gradient)):
            return found
    before, after = probe.predict(twin, probe.batch), probe.predict(twin, probe.exchanged())
    return of_outputs.batch_mixing(before, after, len(probe.inputs))


def _nondeterministic(probe: Probe) -> list[Finding]:
    twin = probe.fresh()
    return of_outputs.nondeterministic_eval(probe.predict(twin, probe.batch), probe.predict(twin, probe.batch))


def _mismatch(probe: Probe) -> list[Finding]:
    twin = probe.fresh()
    norms = [m for m in twin.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    if any(not m.num_batches_tracked for m in norms):  # nothing to compare with yet
        return []
    train_loss = probe.loss(twin.train(), probe.batch)
    return of_outputs.train_eval_mismatch(train_loss, probe.loss(twin.eval(), probe.batch))


def _overfit(probe: Probe) -> list[Finding]:
    twin, batch = probe.fresh(), probe.batch
    for module in twin.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
    count = min(_OVERFIT_SAMPLES, len(probe.inputs))
    if isinstance(batch, (tuple, list)):
        batch = [part[:count] for part in batch]
    start = probe.loss(twin, batch)
    probe.run_steps(twin, batch, _OVERFIT_STEPS)
    end = probe.loss(twin, batch)
    findings = []
    if not end < 0.9 * start:
        what = f"{_OVERFIT_STEPS} steps on {count} samples take the loss from {start:.3g} to {end:.3g} only"
        severity = "error" if not end < 0.98 * start else "warning"
        cure = "Raise the learning rate or the capacity, and look whether inputs and labels belong together."
        findings.append(Finding("cannot-overfit", severity, "training_step", what, cure))  # type: ignore[arg-type]
    rolled = probe.loss(twin, with_input(batch, of_data.sample_input(batch).roll(1, 0)))
    differ = isinstance(batch, list) and len(batch) > 1 and not (batch[1] == batch[1][:1]).all()
    if differ and abs(rolled - end) <= 1e-5 * abs(end):
        what = f"after {_OVERFIT_STEPS} steps the loss is the same ({end:.3g}) with the inputs of other samples"
        cure = "Look for inputs that are overwritten, masked or multiplied by zero on their way."
        findings.append(Finding("input-ignored", "error", "forward", what, cure))
    return findings


def _loaders(data: Any) -> tuple[DataLoader[Any] | None, DataLoader[Any] | None]:
    if isinstance(data, LightningDataModule):
        data.prepare_data()
        data.setup("fit")
        val = data.val_dataloader() if type(data).val_dataloader is not LightningDataModule.val_dataloader else None
        return _one_loader(data.train_dataloader()), _one_loader(val)
    if isinstance(data, DataLoader):
        return data, None
    if isinstance(data, (tuple, list)) and data and all(isinstance(loader, DataLoader) for loader in data):
        return data[0], data[1] if len(data) > 1 else None
    raise UserInputError(
        "check needs a LightningDataModule, a DataLoader, or a training and a validation DataLoader, but got "
        f"{type(data).__name__}."
    )


def _one_loader(loaders: Any) -> DataLoader[Any] | None:
    if isinstance(loaders, (tuple, list)):
        return _one_loader(loaders[0]) if loaders else None
    return loaders if isinstance(loaders, DataLoader) else None


def _transfer_of(data: Any) -> Callable[[Any], Any] | None:
    if not isinstance(data, LightningDataModule):
        return None
    return lambda batch: data.on_after_batch_transfer(data.on_before_batch_transfer(batch, 0), 0)


def _quiet_trainer() -> Trainer:
    import logging

    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        return Trainer(
            accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, enable_progress_bar=False
        )
    finally:
        logger.setLevel(level)
