"""Trains copies for a few hundred steps: do they learn at all, from their inputs, and what holds for other samples?"""

import math
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from lightning_tricks.diagnosis._constant_predictor import GuessLoss
from lightning_tricks.diagnosis._finding import Finding
from lightning_tricks.diagnosis._losses import LossCall
from lightning_tricks.diagnosis._probe import Probe, samples_of, with_input
from lightning_tricks.diagnosis.rules._data import first_rows, sample_input

STEPS, SAMPLES = 200, 16
_CONVERGED = 0.1  # of the loss of guessing: a model that begins below has nothing left to learn from 16 samples


def overfit(probe: Probe) -> list[Finding]:
    """Train a copy on 16 samples, which it must learn by heart; where it does not, try other learning rates."""
    count = min(SAMPLES, len(probe.inputs))
    batch = first_rows(probe.batch, count)
    twin = _undropped(probe)
    start = probe.loss(twin, batch)
    if not math.isfinite(start):
        return []  # rules about inputs and the first loss say why
    probe.run_steps(twin, batch, STEPS)
    end = probe.loss(twin, batch)
    findings = _not_learned(probe, batch, start, end, count)
    if not findings:
        findings = _other_mode(probe, twin, batch, start, end)
    return findings + _ignored(probe, twin, batch, end)


def _gain(start: float, end: float) -> float:
    return (start - end) / abs(start) if math.isfinite(end) and start else -math.inf


def _not_learned(probe: Probe, batch: Any, start: float, end: float, count: int) -> list[Finding]:
    if _gain(start, end) >= 0.1 or start < _CONVERGED * _guessing(probe):
        return []
    seen = f"{STEPS} steps on {count} samples take the loss from {start:.3g} to {end:.3g}"
    for factor, rule in ((100.0, "lr-too-low"), (1e4, "lr-too-low"), (0.01, "lr-too-high")):
        twin = _undropped(probe)
        probe.run_steps(twin, batch, STEPS, lr_factor=factor)
        other = probe.loss(twin, batch)
        if _gain(start, other) < 0.5:
            continue
        what = f"{seen}, but with {factor:g} times the learning rate to {other:.3g}"
        if rule == "lr-too-low" and _gain(start, end) >= 0.02:
            return []  # slow, but it learns
        cure = "Look for the learning rate with LRFinder, or begin at 3e-4 for Adam and 0.01 for SGD."
        severity = "error" if rule == "lr-too-high" and not end < 2 * abs(start) else "warning"
        return [Finding(rule, severity, "optimizer", what, cure)]  # type: ignore[arg-type]
    cure = "Raise the capacity, lower the weight decay, and look whether inputs and labels belong together."
    severity = "error" if _gain(start, end) < 0.02 else "warning"
    return [Finding("cannot-overfit", severity, "training_step", f"{seen} only", cure)]  # type: ignore[arg-type]


def _guessing(probe: Probe) -> float:
    """Return the loss of guessing, or minus infinity where it is not known."""
    call = probe.loss_call
    if call is None or call.value is None:
        return -math.inf
    guess = GuessLoss()
    for _ in range(3):  # one batch stands for the three that the estimate wants at least
        guess.add([call], call.value)
    value = guess.value()
    return -math.inf if value is None else value


def _other_mode(probe: Probe, twin: LightningModule, batch: Any, start: float, end: float) -> list[Finding]:
    """Compare training with evaluation mode after the steps, dropout left out: batch norm must have followed."""
    norms = [name for name, m in twin.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    if not norms or end > 0.3 * start:
        return []
    modes = [module.training for module in twin.modules()]
    other = probe.loss(twin.eval(), batch)
    for module, mode in zip(twin.modules(), modes, strict=True):
        module.training = mode
    if other < 0.5 * start or other < 4 * end:
        return []
    what = f"after {STEPS} steps the same batch has loss {end:.3g} in training and {other:.3g} in evaluation mode"
    cure = "Look at batch norm's momentum (0.1 is usual) and running statistics."
    return [Finding("train-eval-mismatch", "warning", norms[0], what, cure)]


def _ignored(probe: Probe, twin: LightningModule, batch: Any, end: float) -> list[Finding]:
    """Exchange the inputs: a loss that stays the same to the last digits does not come from them.

    One other part of the batch, the labels, must make a difference: what a net has to give back, or to tell from its
    neighbours, moves along with the inputs, and where two other parts count, one of them is an input.
    """
    x = sample_input(batch)
    if not math.isfinite(end) or _changes(probe, twin, with_input(batch, x.roll(1, 0)), end):
        return []
    others = [part for part in _parts(batch) if part is not x]
    if sum(_changes(probe, twin, _levelled(batch, part), end) for part in others) != 1:
        return []
    what = f"after {STEPS} steps the loss is the same ({end:.3g}) with the inputs of other samples"
    cure = "Look for inputs that are overwritten, masked or multiplied by zero on their way."
    return [Finding("input-ignored", "error", "forward", what, cure)]


def _changes(probe: Probe, twin: LightningModule, batch: Any, loss: float) -> bool:
    return not abs(probe.loss(twin, batch) - loss) <= 1e-5 * abs(loss)


def _parts(batch: Any) -> list[Tensor]:
    """Return the tensors of a batch that have one entry per sample."""
    count = len(sample_input(batch))
    return [part for part in tree_leaves(batch) if isinstance(part, Tensor) and part.ndim and len(part) == count]


def _levelled(batch: Any, chosen: Tensor) -> Any:
    """Return a batch in which one of its tensors says of all samples what it says of the first."""
    return tree_map(lambda part: part[:1].expand_as(part).clone() if part is chosen else part, batch)


def unrelated(probe: Probe) -> list[Finding]:
    """Train a copy on 128 samples: does what it learned fit the labels of other samples better than shuffled ones?

    Nothing is found unless it learned its own samples' labels, so that slow and small models are not accused.
    """
    samples = probe.samples
    others = samples_of(probe.val, 512) if probe.val is not None else samples[128:]
    if len(samples) < 64 or len(others) < 64:
        return []
    own = samples[:128]
    batches = [probe.collate(own[i : i + 32]) for i in range(0, len(own) - 31, 32)]
    twin = _undropped(probe)
    best = -math.inf
    for _ in range(4):
        probe.run_steps(twin, batches[0], STEPS // 4, batches=batches)
        best = max(best, fit_score(probe.loss_call_of(twin, probe.collate(others))))
        twin.train()
    learned = fit_score(probe.loss_call_of(twin, probe.collate(own)))
    if learned < 8 or best >= 2:
        return []
    what = (
        f"after {STEPS} steps a copy knows the labels of its {len(own)} samples ({learned:.0f} standard deviations "
        f"better than shuffled ones), but those of {len(others)} others no better than shuffled ones ({best:.1f})"
    )
    cure = "Look whether inputs and labels belong together, and whether the labels can be told from the inputs at all."
    return [Finding("input-ignored", "warning", "labels", what, cure)]


def fit_score(call: LossCall | None, shuffles: int = 30) -> float:
    """Return by how many standard deviations the loss is below that with the labels of other samples.

    Returns:
        About standard normal for predictions that have nothing to do with the labels; infinity if it cannot be told.

    Example:
        >>> y = torch.arange(100) % 4
        >>> fit_score(LossCall("cross_entropy", torch.nn.functional.one_hot(y).float() * 3, y)) > 8
        True
    """
    each = None if call is None else call.each_loss()
    if call is None or each is None or not each.isfinite().all():
        return math.inf
    values = [call.shuffled_loss(torch.randperm(len(call.target))) for _ in range(shuffles)]
    shuffled = torch.tensor([value for value in values if value is not None], dtype=torch.float64)
    if len(shuffled) < shuffles or not shuffled.std() > 1e-9:
        return math.inf
    return (shuffled.mean() - each.mean()).item() / shuffled.std().item()


def _undropped(probe: Probe) -> LightningModule:
    """Return a copy without dropout."""
    twin = probe.fresh()
    for module in twin.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
    return twin
