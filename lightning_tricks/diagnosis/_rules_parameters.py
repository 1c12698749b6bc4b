"""Rules about parameters, how they begin and who optimizes them. Pure: nothing is changed."""

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import Optimizer

from lightning_tricks.diagnosis._finding import Finding


def params_not_optimized(model: nn.Module, optimizers: Sequence[Optimizer]) -> list[Finding]:
    """Find trainable parameters that no optimizer has, and optimized ones that the model does not have.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
        >>> params_not_optimized(net, [torch.optim.SGD(net[1].parameters(), lr=0.1)])[0].where
        '0.weight, 0.bias'
    """
    rule = "params-not-optimized"
    owned = {id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    missing = {name: p for name, p in trainable.items() if id(p) not in owned}
    findings = []
    if missing:
        share = sum(p.numel() for p in missing.values()) / sum(p.numel() for p in trainable.values())
        what = f"{len(missing)} trainable parameters ({share:.0%} of the values) are in no optimizer"
        cure = "Hand them to the optimizer, or freeze them with requires_grad_(False) if that is meant."
        findings.append(Finding(rule, "error" if share > 0.5 else "warning", _names(missing), what, cure))
    strangers = owned - {id(p) for p in model.parameters()}
    if strangers:
        what = f"{len(strangers)} of {len(owned)} optimized parameters do not belong to the model"
        cure = "Build the optimizer from self.parameters() after the model has its final layers."
        findings.append(Finding(rule, "error" if len(strangers) == len(owned) else "warning", "optimizer", what, cure))
    return findings


def decay_on_bias_or_norm(model: nn.Module, optimizers: Sequence[Optimizer]) -> list[Finding]:
    """Find biases and norms that weight decay pulls to zero."""
    decayed = {
        id(p) for o in optimizers for g in o.param_groups if g.get("weight_decay", 0) for p in g["params"] if p.ndim < 2
    }
    found = {name: p for name, p in model.named_parameters() if id(p) in decayed}
    if not found:
        return []
    what = f"{len(found)} biases and norm weights are decayed"
    cure = "Decay weights only: use param_groups(model, weight_decay) or build_optimizer(...)."
    return [Finding("decay-on-bias-or-norm", "info", _names(found), what, cure)]


def zero_init(model: nn.Module, gradients: Mapping[str, Tensor] | None = None) -> list[Finding]:
    """Find weight matrices that are all zero; one without a gradient can never leave zero.

    Args:
        model: whose weights to look at.
        gradients: of the first step, by name, if they are known.
    """
    findings = []
    for name, weight in _matrices(model):
        if weight.any() or not weight.requires_grad:
            continue
        stuck = gradients is not None and (name not in gradients or not gradients[name].any())
        what = f"all {weight.numel()} weights are 0" + (" and so is their gradient" if stuck else "")
        cure = "Draw weights at random: init_weights(model). Only the last layer of a branch may begin at 0."
        findings.append(Finding("zero-init", "error" if stuck else "info", name, what, cure))
    return findings


def symmetric_init(model: nn.Module) -> list[Finding]:
    """Find layers whose units begin alike: they get the same gradient and stay alike.

    Example:
        >>> net = nn.Linear(3, 4)
        >>> _ = nn.init.constant_(net.weight, 0.1)
        >>> print(symmetric_init(net)[0].what)
        4 of 4 units begin with the same weights as another
    """
    findings = []
    for name, weight in _matrices(model):
        rows = weight.detach().flatten(1)
        rows = rows[rows.any(dim=1)]
        if rows.shape[0] < 2 or rows.shape[1] < 2 or rows.shape[0] > 4096:
            continue
        _, counts = torch.unique(rows, dim=0, return_counts=True)
        alike = int(counts[counts > 1].sum())
        if alike > 0.1 * len(rows):
            what = f"{alike} of {len(rows)} units begin with the same weights as another"
            severity = "error" if len(counts) == 1 else "warning"
            cure = "Draw weights at random (init_weights(model)), so that units can become different."
            findings.append(Finding("symmetric-init", severity, name, what, cure))  # type: ignore[arg-type]
    return findings


def bias_not_zero(model: nn.Module) -> list[Finding]:
    """Note biases that do not begin at zero, as the course advises; PyTorch's default draws them."""
    found = {
        name: p for name, p in model.named_parameters() if name.split(".")[-1] == "bias" and p.requires_grad and p.any()
    }
    if not found:
        return []
    largest = max(p.detach().abs().max().item() for p in found.values())
    what = f"{len(found)} biases do not begin at 0 (largest {largest:.2g})"
    return [Finding("bias-not-zero", "info", _names(found), what, "Use init_weights(model), which sets biases to 0.")]


def vanishing_or_exploding(gradients: Mapping[str, Tensor]) -> list[Finding]:
    """Compare the gradients of the first and the last weight matrix at the beginning, per value.

    Args:
        gradients: of the first step, by name, in the order of the layers.
    """
    if not all(g.isfinite().all() for g in gradients.values()):
        broken = {name: g for name, g in gradients.items() if not g.isfinite().all()}
        what = f"{len(broken)} of {len(gradients)} first gradients hold NaN or infinite values"
        return [Finding("nonfinite", "error", _names(broken), what, "Look for log(0), 0/0 and sqrt(0) in the loss.")]
    sizes = {name: g.double().square().mean().sqrt().item() for name, g in gradients.items() if g.ndim >= 2 and g.any()}
    if len(sizes) < 2:
        return []
    (first, small), (_, large) = next(iter(sizes.items())), list(sizes.items())[-1]
    ratio = small / large
    if ratio < 1e-4:
        what = f"the first layer's gradient is {ratio:.1e} of the last layer's"
        cure = "Use init_weights (He for ReLU, Xavier for tanh), normalisation layers or residual connections."
        return [Finding("vanishing-gradient", "warning", first, what, cure)]
    if ratio > 1e4:
        what = f"the first layer's gradient is {ratio:.1e} times the last layer's"
        cure = "Use init_weights, normalisation layers, or gradient_clip_val in the Trainer."
        return [Finding("exploding-gradient", "warning", first, what, cure)]
    return []


def no_update(before: Mapping[str, Tensor], after: Mapping[str, Tensor], trained: Sequence[str]) -> list[Finding]:
    """Compare parameters before and after one optimizer step: each one that is trained has to change.

    Example:
        >>> weights = {"w": torch.ones(2, 2)}
        >>> no_update(weights, weights, ["w"])[0].severity
        'error'
    """
    still = {name: before[name] for name in trained if torch.equal(before[name], after[name])}
    if not still:
        return []
    what = f"{len(still)} of {len(trained)} trained parameters did not change in an optimizer step"
    cure = "Look for detach(), no_grad() or .item() between them and the loss, a learning rate of 0, or unused layers."
    severity = "error" if len(still) == len(trained) else "warning"
    return [Finding("no-update", severity, _names(still), what, cure)]  # type: ignore[arg-type]


def _matrices(model: nn.Module) -> Iterator[tuple[str, Parameter]]:
    for name, p in model.named_parameters():
        if p.ndim >= 2 and p.is_floating_point() and math.prod(p.shape) != 0:
            yield name, p


def _names(found: Mapping[str, object]) -> str:
    names = list(found)
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
