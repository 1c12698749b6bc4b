"""Rules about parameters, how they begin and who optimizes them. Pure: nothing is changed."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import Optimizer

from lightning_tricks.diagnosis._finding import Finding

_FEW, _MANY = 64, 1024  # weights in a matrix: too few to tell how they were drawn, enough to tell from them alone


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


def hidden_parameters(outside: Sequence[Tensor]) -> list[Finding]:
    """Report tensors that the loss depends on and wants a gradient for, but that no module or optimizer knows.

    Example:
        >>> hidden_parameters([torch.zeros(3, 2)])[0].rule
        'params-not-optimized'
    """
    if not outside:
        return []
    what = f"the loss depends on {len(outside)} trainable tensors that are no parameters of the model"
    cure = "Keep layers in nn.ModuleList or nn.Sequential, not in a plain list or dict, and tensors as nn.Parameter."
    return [Finding("params-not-optimized", "error", "training_step", what, cure)]


def frozen_at_random(model: nn.Module) -> list[Finding]:
    """Find frozen layers whose weights look as PyTorch drew them: nothing was learned that freezing would keep.

    PyTorch's default for Linear and convolutions is uniform within plus or minus one over the root of the fan-in. A
    trained matrix of few weights may look so by chance; it is believed only if no other frozen one looks trained.

    Example:
        >>> net = nn.Sequential(nn.Linear(20, 20), nn.Linear(20, 2))
        >>> _ = net[0].requires_grad_(False)
        >>> frozen_at_random(net)[0].where
        '0.weight'
    """
    frozen = {name: weight.detach() for name, weight in _matrices(model) if not weight.requires_grad}
    found = {name: weight for name, weight in frozen.items() if _looks_drawn(weight)}
    if any(name not in found and weight.numel() >= _FEW for name, weight in frozen.items()):
        found = {name: weight for name, weight in found.items() if weight.numel() >= _MANY}
    if not found:
        return []
    what = f"{len(found)} frozen weight matrices look as PyTorch draws them at random"
    cure = "Load the pretrained weights before freezing, or train these layers."
    return [Finding("no-update", "warning", _names(found), what, cure)]


def _looks_drawn(weight: Tensor) -> bool:
    values, bound = weight.float(), 1 / math.sqrt(math.prod(weight.shape[1:]))
    if weight.numel() < _FEW or values.abs().max() > bound * 1.0001:
        return False
    return abs(values.std().item() / (bound / math.sqrt(3)) - 1) < 3 / math.sqrt(weight.numel())


def weights_too_small(model: nn.Module) -> list[Finding]:
    """Find nets whose weights begin far below the scale that keeps a signal alive, one over the root of the fan-in.

    Example:
        >>> net = nn.Sequential(nn.Linear(9, 9), nn.Linear(9, 9), nn.Linear(9, 2))
        >>> for layer in net:
        ...     layer.weight.data *= 1e-3
        >>> weights_too_small(net)[0].rule
        'activation-scale'
    """
    scales = {
        name: w.detach().float().square().mean().sqrt().item() * math.sqrt(math.prod(w.shape[1:]))
        for name, w in _matrices(model)
        if w.requires_grad and w.any() and "embed" not in name
    }
    small = [name for name, scale in scales.items() if scale < 0.01]
    if len(small) < 2 or 2 * len(small) < len(scales):
        return []
    what = f"{len(small)} weight matrices begin at {scales[small[0]]:.1e} of the scale that keeps activations alive"
    cure = "Use init_weights (He for ReLU, Xavier for tanh)."
    return [Finding("activation-scale", "warning", small[0], what, cure)]


def gradients_kept(kept: bool) -> list[Finding]:
    """Report an ``optimizer_zero_grad`` that clears nothing."""
    if not kept:
        return []
    what = "gradients stay after optimizer_zero_grad, so that each step adds those of all steps before"
    cure = "Remove the override, or let it call optimizer.zero_grad()."
    return [Finding("exploding-gradient", "error", "optimizer_zero_grad", what, cure)]


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
    """Note biases that begin neither at zero, as the course advises, nor as PyTorch's default draws them.

    Example:
        >>> layer = nn.Linear(4, 2)
        >>> bias_not_zero(layer)
        []
        >>> _ = nn.init.constant_(layer.bias, 0.6)
        >>> bias_not_zero(layer)[0].rule
        'bias-not-zero'
    """
    found = {}
    for name, module in model.named_modules():
        bias, weight = getattr(module, "bias", None), getattr(module, "weight", None)
        if isinstance(bias, Parameter) and bias.requires_grad and bias.any() and not _is_default_bias(bias, weight):
            found[f"{name}.bias".removeprefix(".")] = bias
    if not found:
        return []
    largest = max(p.detach().abs().max().item() for p in found.values())
    what = f"{len(found)} biases do not begin at 0 (largest {largest:.2g})"
    return [Finding("bias-not-zero", "info", _names(found), what, "Use init_weights(model), which sets biases to 0.")]


def _is_default_bias(bias: Tensor, weight: object) -> bool:
    """Whether a bias lies within one over the root of the fan-in, as Linear and convolutions draw theirs."""
    if not isinstance(weight, Tensor) or weight.ndim < 2:
        return False
    fan_in = weight[0].numel()  # what torch takes as fan-in, for transposed convolutions too
    return bool(bias.detach().abs().max() <= 1.0001 / math.sqrt(fan_in))


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


def has_quiet_branches(model: nn.Module) -> bool:
    """Whether branches begin at or near zero on purpose (LoRA, zero-last-norm, LayerScale, ControlNet, adapters).

    Such a branch has a trained tensor, not a bias, that is constant and below 0.01, beside others that are not. What
    is behind it gets next to no gradient in the first step, and a healthy one later.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        >>> has_quiet_branches(net)
        False
        >>> _ = nn.init.zeros_(net[1].weight)
        >>> has_quiet_branches(net)
        True
    """
    trained = [p.detach() for n, p in model.named_parameters() if p.requires_grad and p.numel() and "bias" not in n]
    quiet = [p for p in trained if p.abs().max() < 0.01 and bool((p == p.flatten()[0]).all())]
    return 0 < len(quiet) < len(trained)


def no_update(
    before: Mapping[str, Tensor],
    after: Mapping[str, Tensor],
    trained: Sequence[str],
    gradients: Mapping[str, Tensor] | None = None,
) -> list[Finding]:
    """Compare parameters before and after some optimizer steps: each one that is trained has to change.

    Args:
        before: values by name.
        after: the same later.
        trained: names of those that the optimizer has.
        gradients: by name; a bias whose gradient is a rounding error beside the others' (one before a batch norm, which
            takes it out again) may stay.

    Example:
        >>> weights = {"w": torch.ones(2, 2)}
        >>> no_update(weights, weights, ["w"])[0].severity
        'error'
    """
    still = {name: before[name] for name in trained if torch.equal(before[name], after[name])}
    sizes = {name: g.detach().abs().max().item() for name, g in (gradients or {}).items()}
    largest = max(sizes.values(), default=0.0)
    if len(still) < len(trained):
        still = {n: p for n, p in still.items() if p.ndim > 1 or not 0 < sizes.get(n, 0.0) < 1e-5 * largest}
    if not still:
        return []
    what = f"{len(still)} of {len(trained)} trained parameters did not change in the first optimizer steps"
    cure = "Look for detach(), no_grad() or .item() between them and the loss, a learning rate of 0, or unused layers."
    severity = "error" if len(still) == len(trained) else "warning"
    return [Finding("no-update", severity, _names(still), what, cure)]  # type: ignore[arg-type]


def clipping_binds(gradients: Iterable[Tensor], limit: float, *, adaptive: bool) -> list[Finding]:
    """Compare the norm of the first gradient with the norm to which it will be clipped.

    Args:
        gradients: of all parameters.
        limit: ``gradient_clip_val``.
        adaptive: whether the optimizer divides by the size of the gradients: then it is a note.

    Example:
        >>> clipping_binds([torch.ones(4)], 1e-3, adaptive=False)[0].severity
        'warning'
    """
    norm = math.sqrt(sum(g.double().square().sum().item() for g in gradients))
    if not norm > 100 * limit:
        return []
    what = f"the first gradient has norm {norm:.2g}, and is clipped to {limit:g}"
    cure = "Clip at about the 90th percentile of the norms that NormMonitor shows."
    return [Finding("clipping-binds", "info" if adaptive else "warning", "Trainer", what, cure)]


def _matrices(model: nn.Module) -> Iterator[tuple[str, Parameter]]:
    for name, p in model.named_parameters():
        if p.ndim >= 2 and p.is_floating_point() and math.prod(p.shape) != 0:
            yield name, p


def _names(found: Mapping[str, object]) -> str:
    names = list(found)
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
