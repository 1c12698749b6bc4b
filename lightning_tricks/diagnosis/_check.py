"""Everything that can be known before the first step."""

import math
import platform
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Literal

import lightning
import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader

from lightning_tricks._base import UserInputError, check_choice, isolated_rng, require_sizes
from lightning_tricks.diagnosis import _overfit_test as overfit_test
from lightning_tricks.diagnosis._finding import Finding
from lightning_tricks.diagnosis._losses import LossCall
from lightning_tricks.diagnosis._probe import Probe, samples_of, untouched
from lightning_tricks.diagnosis._report import Report
from lightning_tricks.diagnosis.rules import _data as of_data
from lightning_tricks.diagnosis.rules import _layers as of_layers
from lightning_tricks.diagnosis.rules import _outputs as of_outputs
from lightning_tricks.diagnosis.rules import _parameters as of_parameters

Budget = Literal["quick", "full"]


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
        trainer: the trainer that will be used, for its precision, epochs and steps. Without it, ``self.trainer`` of the
            tried copies answers as a ``Trainer()`` with defaults would for this data.
        progress: show a bar.

    Returns:
        The findings, the gravest first. A rule that cannot run says so in a finding of severity "info".

    Raises:
        UserInputError: if ``model`` or ``data`` are something else, or layers are lazy.

    Example:
        >>> import lightning_tricks as lt
        >>> model = lt.Classifier(lt.MLP(64, 10, hidden_features=(32,)), num_classes=10)
        >>> report = lt.check(model, lt.DigitsDataModule(), progress=False)
        >>> report.ok
        True
    """
    check_choice("budget", budget, ("quick", "full"))
    _require_module(model)
    require_sizes(model, "check")
    train, val = _loaders(data)
    stub = trainer if trainer is not None else _quiet_trainer()
    with untouched(train, val), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        datamodule = data if isinstance(data, LightningDataModule) else None
        probe = Probe(model, train, val, stub, _transfer_of(data), datamodule)
        findings = run_rules(rules_for(probe, budget), progress=progress)
    facts = {"budget": budget, "torch": torch.__version__, "lightning": lightning.__version__}
    return Report(findings, {**facts, "python": platform.python_version(), "model": type(model).__name__})


def _require_module(model: object) -> None:
    if not isinstance(model, LightningModule):
        if any(kind.__module__.split(".")[0] == "pytorch_lightning" for kind in type(model).__mro__):
            raise UserInputError(
                f"check needs a LightningModule of the package 'lightning', but {type(model).__name__} is one of the "
                "separate package 'pytorch_lightning', which knows other classes by the same names. Write `import "
                "lightning.pytorch as pl` instead of `import pytorch_lightning as pl`; the code below it can stay."
            )
        raise UserInputError(
            f"check needs a LightningModule, but got {type(model).__name__}. Wrap it: Classifier(net)."
        )


_STEP_FAILS = "step-fails"
# Checks whose findings bear the name of another rule: filters go by the rule.
_RULE_OF = {
    "activation-scale of weights": "activation-scale",
    "no-update of frozen layers": "no-update",
    "train-eval-mismatch of modes": "train-eval-mismatch",
    "train-eval-mismatch of statistics": "train-eval-mismatch",
    "train-eval-mismatch of dropout": "train-eval-mismatch",
    "inputs": "input-scale",
    "hidden parameters": "params-not-optimized",
    "negated loss": "cannot-overfit",
    "bounded outputs": "output-activation",
    "broadcast loss": "batch-mixing",
}
# What a wrong shape, dtype or index raises. Others may be the doing of the trial: it has no running Trainer.
_OF_THE_MODEL = (RuntimeError, ValueError, IndexError)


def rules_for(probe: Probe, budget: Budget) -> dict[str, Callable[[], list[Finding]]]:
    """Return every rule that applies, ready to run, by name."""
    model, train = probe.model, probe.train
    rules: dict[str, Callable[[], list[Finding]]] = {
        "symmetric-init": lambda: of_parameters.symmetric_init(model),
        "activation-scale of weights": lambda: of_parameters.weights_too_small(model),
        "no-update of frozen layers": lambda: of_parameters.frozen_at_random(model),
        "train-eval-mismatch of modes": lambda: of_layers.wrong_modes(model),
        "train-eval-mismatch of statistics": lambda: of_layers.slow_statistics(model),
        "train-eval-mismatch of dropout": lambda: of_layers.dropped_everything(model),
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
                rules["input-nonfinite"] = lambda: _samples_finite(probe)
                rules["cannot-overfit"] = lambda: overfit_test.overfit(probe)
                rules["input-ignored"] = lambda: overfit_test.unrelated(probe)
    return rules


def _running_rules(probe: Probe) -> dict[str, Callable[[], list[Finding]]]:
    def with_call(rule: Callable[[Any], list[Finding]]) -> list[Finding]:
        return [] if probe.loss_call is None else rule(probe.loss_call)

    def first() -> Any:
        return probe.first

    return {
        _STEP_FAILS: lambda: _step(probe),
        "labels-range": lambda: _labels_range(probe),
        "hidden parameters": lambda: of_parameters.hidden_parameters(first().outside),
        "exploding-gradient": lambda: of_parameters.gradients_kept(probe.keeps_gradients()),
        "clipping-binds": lambda: _clipping(probe),
        "dead-units": lambda: of_layers.idle_units(first().layers, samples=len(probe.inputs)),
        "negated loss": lambda: of_outputs.negated_loss(first().calls, first().loss),
        "bounded outputs": lambda: with_call(of_outputs.bounded_outputs),
        "broadcast loss": lambda: with_call(of_outputs.broadcast_loss),
        "params-not-optimized": lambda: of_parameters.params_not_optimized(*_with_optimizers(probe)),
        "decay-on-bias-or-norm": lambda: of_parameters.decay_on_bias_or_norm(*_with_optimizers(probe)),
        "zero-init": lambda: of_parameters.zero_init(probe.model, first().gradients),
        "loss-at-init": lambda: _loss_at_init(probe),
        "output-bias": lambda: _output_bias(probe),
        "output-activation": lambda: with_call(of_outputs.output_activation),
        "vanishing-gradient": lambda: _gradients(probe),
        "activation-scale": lambda: of_layers.activation_scale(first().layers),
        "dropout-before-batchnorm": lambda: of_layers.dropout_before_batchnorm(first().layers),
        "no-update": lambda: _no_update(probe),
        "batch-mixing": lambda: _mixing(probe),
        "nondeterministic-eval": lambda: _nondeterministic(probe),
        "train-eval-mismatch": lambda: _mismatch(probe),
    }


def run_rules(rules: dict[str, Callable[[], list[Finding]]], *, progress: bool) -> list[Finding]:
    """Run every rule; one that crashes is reported and does not stop the others."""
    from tqdm import tqdm  # type: ignore[import-untyped]

    findings: list[Finding] = []
    crashes: dict[str, tuple[Exception, list[str]]] = {}
    for name, rule in tqdm(rules.items(), desc="preflight", disable=not progress, leave=False):
        try:
            findings += rule()
        except Exception as error:  # noqa: PERF203 - whatever one rule does must not stop the others
            crashes.setdefault(f"{type(error).__name__}: {error}", (error, []))[1].append(name)
    explained = any(finding.severity == "error" for finding in findings)
    for message, (cause, names) in crashes.items():
        line = message.splitlines()[0][:200]
        if _STEP_FAILS in names and isinstance(cause, _OF_THE_MODEL) and not explained:
            cure = "Training would end here: run one step by hand, or Trainer(fast_dev_run=True), for the traceback."
            findings.append(Finding(_STEP_FAILS, "error", "training_step", f"a training step raises {line}", cure))
        else:
            what = f"{len(names)} rules could not run ({', '.join(names)}): {line}"
            findings.append(
                Finding(
                    _RULE_OF.get(names[0], names[0]),
                    "info",
                    "preflight",
                    what,
                    "If training runs without this, ignore it.",
                )
            )
    return list(dict.fromkeys(findings))


def _left_out(probe: Probe) -> list[Finding]:
    why = "training samples cannot be had past the loader" if not probe.samples else "optimization is manual"
    what = f"rules that try the model out were left out, since {why}"
    return [Finding("left-out", "info", "preflight", what, "Look at the first epoch with NormMonitor instead.")]


def _step(probe: Probe) -> list[Finding]:
    """Run one training step, which raises what training would."""
    _ = probe.first
    return []


def _labels_range(probe: Probe) -> list[Finding]:
    call = probe.attempted[-1] if probe.attempted else None
    if call is not None and call.name.startswith("binary"):
        return of_data.binary_labels_range(call.target)
    if call is None or call.name not in ("cross_entropy", "nll_loss") or call.target.is_floating_point():
        return []
    return of_data.labels_range(call.target, call.num_classes, ignore_index=call.ignore_index)


def _imbalance(probe: Probe) -> list[Finding]:
    calls = probe.attempted if probe.model.automatic_optimization else []
    labels = _class_labels(probe, calls)
    if labels.is_floating_point() and not ((labels == 0) | (labels == 1)).all():
        return []
    return of_data.class_imbalance(labels, weighted=bool(calls) and calls[-1].is_weighted)


def _class_labels(probe: Probe, calls: Sequence[LossCall]) -> Tensor:
    """Return one class per sample: the target of the last loss that got one of the batch's columns."""
    if not calls or calls[-1].is_soft:  # made in the step, of the labels
        return probe.labels
    parts = [part for part in tree_leaves(probe.collate(probe.samples)) if isinstance(part, Tensor)]
    columns = [part.flatten().double() for part in parts if part.numel() == len(probe.samples)]
    for call in reversed(calls):
        target = call.target.flatten()
        if any(torch.equal(column, target.double()) for column in columns):
            return target[target != call.ignore_index]
    return torch.zeros(0)  # pairs, tokens and the like: none of the dataset's classes


def _loss_at_init(probe: Probe) -> list[Finding]:
    calls, loss = probe.first.calls, probe.first.loss
    if not calls or (len(calls) > 1 and math.isfinite(loss)):  # several tasks: no one target tells what to expect
        return []
    return of_outputs.loss_at_init(calls[-1], loss)


def _output_bias(probe: Probe) -> list[Finding]:
    if len(probe.first.calls) != 1:  # several tasks: which output is biased towards what is not known
        return []
    call = probe.loss_call_of(probe.fresh(), probe.collate(probe.samples))  # one batch holds too few of each class
    return [] if call is None else of_outputs.output_bias(call)


def _samples_finite(probe: Probe) -> list[Finding]:
    return [] if of_data.input_values(probe.inputs) else of_data.samples_finite(probe.many_inputs)


def _no_update(probe: Probe) -> list[Finding]:
    step = probe.first
    findings = of_parameters.no_update(step.before, step.after, step.trained, step.gradients)
    if findings:  # behind a layer that begins at 0, the second step is the first with a gradient
        step = probe.run_steps(probe.fresh(), probe.batch, 3)
        findings = of_parameters.no_update(step.before, step.after, step.trained, step.gradients)
    return findings


def _gradients(probe: Probe) -> list[Finding]:
    """Judge the first gradients; behind a branch that begins at nothing they are small, as they should be."""
    found = of_parameters.vanishing_or_exploding(probe.first.gradients)
    quiet = of_parameters.has_quiet_branches(probe.model)
    return [finding for finding in found if finding.rule != "vanishing-gradient" or not quiet]


def _clipping(probe: Probe) -> list[Finding]:
    limit = getattr(probe.trainer, "gradient_clip_val", None)
    if not limit or getattr(probe.trainer, "gradient_clip_algorithm", None) == "value":
        return []
    adaptive = not any(isinstance(optimizer, torch.optim.SGD) for optimizer in probe.first.optimizers)
    return of_parameters.clipping_binds(probe.first.gradients.values(), limit, adaptive=adaptive)


def _overlap(probe: Probe) -> list[Finding]:
    train, val = samples_of(probe.train, 4000), samples_of(probe.val, 500)
    return of_data.split_overlap(map(of_data.sample_input, train), map(of_data.sample_input, val))


def _with_optimizers(probe: Probe) -> tuple[LightningModule, list[torch.optim.Optimizer]]:
    twin = probe.fresh()
    return twin, probe.optimizers(twin)


def _mixing(probe: Probe) -> list[Finding]:
    if probe.loss_call is not None and of_outputs.mixes_on_purpose(probe.loss_call, len(probe.inputs)):
        return []
    twin = probe.fresh()
    with suppress(RuntimeError):  # a model without a backward pass in evaluation mode
        gradient = probe.cross_gradient(twin)
        if gradient is not None and (found := of_outputs.batch_mixing_gradient(gradient)):
            return found
    with isolated_rng(seed=0):  # what is drawn at random, by mistake, moves both alike
        before = probe.predict(twin, probe.batch)
    with isolated_rng(seed=0):
        after = probe.predict(twin, probe.exchanged())
    return of_outputs.batch_mixing(before, after, len(probe.inputs))


def _nondeterministic(probe: Probe) -> list[Finding]:
    twin = probe.fresh()
    if probe.draws_noise(twin):
        return []
    return of_outputs.nondeterministic_eval(probe.predict(twin, probe.batch), probe.predict(twin, probe.batch))


def _mismatch(probe: Probe) -> list[Finding]:
    twin = probe.fresh()
    norms = [m for m in twin.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    if any(not m.num_batches_tracked for m in norms):  # nothing to compare with yet
        return []
    train_loss = probe.loss(twin.train(), probe.batch)
    return of_outputs.train_eval_mismatch(train_loss, probe.loss(twin.eval(), probe.batch))


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
