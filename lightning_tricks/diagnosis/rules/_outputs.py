"""Rules about what the model says before it has learned anything. Pure: tensors in, findings out."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_tricks.diagnosis._finding import Finding
from lightning_tricks.diagnosis._losses import LossCall


def output_activation(call: LossCall) -> list[Finding]:
    """Check that the loss gets what it expects: logits, log-probabilities or probabilities.

    Example:
        >>> probs = torch.softmax(torch.randn(8, 5), dim=1)
        >>> output_activation(LossCall("cross_entropy", probs, torch.zeros(8, dtype=torch.long)))[0].severity
        'error'
    """
    rule, prediction = "output-activation", call.prediction.detach().double()
    if call.name == "cross_entropy" and call.num_classes > 1 and _sums_to_one(prediction):
        what = "cross_entropy gets probabilities (every row sums to 1), and applies softmax to them again"
        return [Finding(rule, "error", "training_step", what, "Remove the softmax: the loss expects logits.")]
    if call.name == "nll_loss" and not _sums_to_one(prediction.exp()):
        what = "nll_loss gets values whose exponentials do not sum to 1"
        cure = "Apply log_softmax, or use cross_entropy on the logits."
        return [Finding(rule, "error", "training_step", what, cure)]
    if call.name == "binary_cross_entropy_with_logits" and call.made_by("Sigmoid", "Softmax"):
        what = "binary_cross_entropy_with_logits gets the output of a sigmoid, and applies it again"
        return [Finding(rule, "error", "training_step", what, "Remove the sigmoid: the loss expects logits.")]
    return []


_BOUNDS = {"Relu": (0.0, math.inf), "Sigmoid": (0.0, 1.0), "Softmax": (0.0, 1.0), "Tanh": (-1.0, 1.0)}


def bounded_outputs(call: LossCall) -> list[Finding]:
    """Find outputs that an activation keeps from saying what the loss wants.

    Example:
        >>> call = LossCall("mse_loss", torch.zeros(8), torch.linspace(-1, 1, 8), last_operation="ReluBackward0")
        >>> bounded_outputs(call)[0].severity
        'error'
    """
    operation = next((name for name in _BOUNDS if call.made_by(name) and not call.made_by("Log")), None)
    if operation is None:
        return []
    low, high = _BOUNDS[operation]
    if call.name in ("cross_entropy", "binary_cross_entropy_with_logits") and operation != "Softmax":
        what = f"{call.name} gets the output of {operation.lower()}, which reaches from {low:g} to {high:g} only"
        cure = "Leave the last activation out: logits must be free to be negative and large."
        return [Finding("output-activation", "warning", "training_step", what, cure)]
    target = call.target.double()
    outside = ((target < low) | (target > high)).double().mean().item()
    if call.name not in ("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss") or outside < 0.05:
        return []
    what = f"{outside:.0%} of the targets lie outside of [{low:g}, {high:g}], which is all that the outputs can reach"
    cure = f"Remove the last {operation.lower()}, or scale the targets into its range."
    return [Finding("output-activation", "error", "training_step", what, cure)]


def broadcast_loss(call: LossCall) -> list[Finding]:
    """Find a regression loss that compares every prediction with every target.

    Example:
        >>> print(broadcast_loss(LossCall("mse_loss", torch.zeros(8, 1), torch.zeros(8)))[0].what)
        outputs (8, 1) and targets (8,) are broadcast to (8, 8): each is compared with every other
    """
    if call.name not in ("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss"):
        return []
    shapes = tuple(call.prediction.shape), tuple(call.target.shape)
    try:
        both = tuple(torch.broadcast_shapes(*shapes))  # type: ignore[no-untyped-call]
    except RuntimeError:
        return []
    if math.prod(both) <= max(map(math.prod, shapes)):
        return []
    what = f"outputs {shapes[0]} and targets {shapes[1]} are broadcast to {both}: each is compared with every other"
    return [Finding("batch-mixing", "error", "training_step", what, "Give both one shape: output.squeeze(-1).")]


def negated_loss(calls: Sequence[LossCall], loss: float) -> list[Finding]:
    """Find a step that returns minus its loss, which training would drive up.

    Example:
        >>> call = LossCall("mse_loss", torch.zeros(8), torch.ones(8), value=torch.tensor(1.0))
        >>> negated_loss([call], -1.0)[0].severity
        'error'
    """
    if len(calls) != 1 or calls[0].value is None or calls[0].value.numel() != 1:
        return []
    value = calls[0].value.item()
    if value < 1e-6 or abs(loss + value) > 1e-4 * value:
        return []
    what = f"the step returns {loss:.3g}, which is minus its {calls[0].name}"
    return [Finding("cannot-overfit", "error", "training_step", what, "Return the loss itself: it is minimised.")]


def _sums_to_one(rows: Tensor) -> bool:
    total = rows.sum(dim=1)
    return bool((rows >= 0).all() and ((total - 1).abs() < 1e-3).all())


def loss_at_init(call: LossCall, loss: float) -> list[Finding]:
    """Compare the first loss with that of a model that knows nothing: ln C, or the targets' spread.

    It must be twice the expected loss, and above it by three standard errors of this batch: PyTorch's default weights
    begin close to it, saturated or badly scaled outputs far above.

    Args:
        call: prediction and target of the first loss.
        loss: its value.

    Example:
        >>> call = LossCall("cross_entropy", torch.randn(64, 10) * 30, torch.randint(10, (64,)))
        >>> [finding.rule for finding in loss_at_init(call, 50.0)]
        ['loss-at-init']
    """
    each = call.each_loss()
    if each is None or not len(each):
        return []
    if not math.isfinite(loss):
        cure = "Look for log(0), 0/0 and sqrt(0) in the loss."
        return [Finding("nonfinite", "error", "training_step", f"the first loss is {loss}", cure)]
    count = len(each)
    if count > 1 and call.is_sum and abs(loss - each.sum().item()) < 1e-3 * abs(loss):
        what = f"the loss is the sum over {count} values ({loss:.3g}), so that it grows with the batch"
        return [Finding("loss-at-init", "warning", "training_step", what, "Use the mean (reduction='mean').")]
    if not call.num_classes:
        return _regression_at_init(call, each)
    expected = math.log(max(call.num_classes, 2))
    error = 3 * each.std().item() / math.sqrt(count) if count > 1 else math.inf
    mean = each.mean().item()
    if mean <= 2 * expected or mean - error <= expected:
        return []
    what = f"the first loss is {mean:.3g} ± {error:.2g}, but ln C is {expected:.3g} for {call.num_classes} classes"
    cure = "Let outputs begin small: init_weights(model), standardised inputs, a last layer with small weights."
    return [Finding("loss-at-init", "warning", "training_step", what, cure)]


def _regression_at_init(call: LossCall, each: Tensor) -> list[Finding]:
    target = call.target.detach().double()
    if call.name != "mse_loss" or target.numel() < 2:
        return []
    spread, size = target.var().item(), target.square().mean().item()
    mean = each.mean().item()
    if spread <= 0 or mean <= 4 * size or mean <= 10 * spread:
        return []
    what = f"the first loss is {mean:.3g}, but the targets' variance is {spread:.3g}"
    cure = "Standardise inputs and targets, or let the outputs begin small (init_weights(model))."
    return [Finding("loss-at-init", "warning", "training_step", what, cure)]


def output_bias(call: LossCall) -> list[Finding]:
    """Compare the mean prediction at the beginning with the frequency of classes, or the targets' mean.

    Example:
        >>> call = LossCall("mse_loss", torch.zeros(20, 1), torch.randn(20, 1) + 100)
        >>> output_bias(call)[0].rule
        'output-bias'
    """
    target, prediction = call.target.detach(), call.prediction.detach().double()
    if call.name == "mse_loss" and target.numel() > 8:
        off, spread = (target.double().mean() - prediction.mean()).abs().item(), target.double().std().item()
        if off <= 5 * spread or spread == 0:
            return []
        what = f"predictions begin {off:.3g} away from the targets' mean, {off / spread:.0f} standard deviations"
        cure = "Set the last bias to the targets' mean, or standardise the targets."
        return [Finding("output-bias", "warning", "last layer", what, cure)]
    if call.name != "cross_entropy" or target.is_floating_point():
        return []
    counted = target.flatten() != call.ignore_index
    labels = target.flatten()[counted]
    if len(labels) < 20 * call.num_classes:
        return []
    frequency = labels.bincount(minlength=call.num_classes).double()[: call.num_classes] / len(labels)
    mean = prediction.movedim(1, -1).flatten(0, -2).softmax(dim=-1)[counted].mean(dim=0)
    distance = torch.special.xlogy(frequency, frequency / mean).sum().item()  # KL divergence, in nats
    if distance < 0.5:
        return []
    what = f"mean predictions begin {distance:.2g} nats away from the frequency of the classes"
    cure = "Set the last bias to the logarithm of the frequencies: the first epochs then learn more than that."
    return [Finding("output-bias", "info", "last layer", what, cure)]


_UNMIX = "Look for a wrong batch_first, view or transpose, and for a softmax or norm over dim=0."


def batch_mixing(before: Tensor, after: Tensor, batch_size: int) -> list[Finding]:
    """Compare predictions in evaluation mode before and after the first sample was exchanged: no other may move.

    Args:
        before: ``(B, ...)`` or ``(B·T, ...)``, sample by sample.
        after: the same with another first sample.
        batch_size: B.

    Example:
        >>> x = torch.rand(4, 3)
        >>> batch_mixing(x, torch.cat([x[1:2], x[1:]]), 4), batch_mixing(x, x + 1, 4)[0].severity
        ([], 'error')
    """
    if batch_size < 2 or before.shape != after.shape or before.shape[:1] != (batch_size,):
        return []
    moved = (before - after).abs().flatten(1).amax(dim=1)[1:] if before.ndim > 1 else (before - after).abs()[1:]
    size = before.abs().max().item() + 1e-12
    share = (moved > 1e-3 * size).double().mean().item()
    if share == 0:
        return []
    what = f"exchanging one sample changes the predictions for {share:.0%} of the others"
    return [Finding("batch-mixing", "error", "forward", what, _UNMIX)]


def batch_mixing_gradient(gradient: Tensor) -> list[Finding]:
    """Look at the gradient of the first and last sample's output with respect to every sample's input.

    Args:
        gradient: norms, ``(2, B)``; only the first value of the first row and the last of the last row may count.

    Example:
        >>> own = torch.eye(3)[[0, 2]]
        >>> batch_mixing_gradient(own), len(batch_mixing_gradient(own + 0.1))
        ([], 1)
    """
    others = torch.stack([gradient[0, 1:], gradient[1, :-1]]) > 1e-9 * gradient.max()
    if not others.any():
        return []
    share = others.double().mean(dim=1).max().item()
    what = f"the output for one sample depends on the inputs of {share:.0%} of the others, by its gradient"
    return [Finding("batch-mixing", "error", "forward", what, _UNMIX)]


def mixes_on_purpose(call: LossCall, batch_size: int) -> bool:
    """Whether a loss compares every sample with every other, as contrastive losses within a batch do.

    The prediction has a row and a column for each sample, or for each of two views of it (SimCLR leaves a view itself
    out), and the targets are places in the batch, or say which samples belong together.

    Args:
        call: of the loss.
        batch_size: B.

    Example:
        >>> pairs = LossCall("cross_entropy", torch.rand(8, 8), torch.arange(8))
        >>> mixes_on_purpose(pairs, 8), mixes_on_purpose(LossCall("cross_entropy", pairs.prediction, torch.ones(8)), 8)
        (True, False)
    """
    target, shape = call.target, call.prediction.shape
    if len(shape) != 2 or shape[0] not in (batch_size, 2 * batch_size):
        return False
    size = shape[0]
    if target.shape == shape:
        return shape[1] == size and torch.equal(target, target.T)
    if shape[1] == size - 1:
        return not target.any()  # the right one was put first
    return shape[1] == size and torch.equal(target.sort().values, torch.arange(size).to(target))


def nondeterministic_eval(first: Tensor, second: Tensor) -> list[Finding]:
    """Compare the predictions of two passes in evaluation mode."""
    if first.shape != second.shape or not first.isfinite().all():
        return []
    difference = (first - second).abs().max().item()
    if difference <= 1e-4 * (first.abs().max().item() + 1e-12):
        return []
    what = f"two passes in evaluation mode differ by up to {difference:.2g}"
    cure = "Call F.dropout with training=self.training, and draw nothing at random in evaluation mode."
    return [Finding("nondeterministic-eval", "warning", "forward", what, cure)]


def train_eval_mismatch(train_loss: float, eval_loss: float) -> list[Finding]:
    """Compare the loss of one batch in training mode and in evaluation mode."""
    low, high = sorted((train_loss, eval_loss))
    if not math.isfinite(high) or high <= 0 or low < 0 or high - low <= 0.5 * high:
        return []
    what = f"the same batch has loss {train_loss:.3g} in training mode and {eval_loss:.3g} in evaluation mode"
    cure = "Look at dropout rates, and at batch norm's running statistics (momentum, frozen layers)."
    return [Finding("train-eval-mismatch", "warning", "forward", what, cure)]
