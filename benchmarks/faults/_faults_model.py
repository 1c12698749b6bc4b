"""Faults in the net: its weights, layers, and what it hands to the loss."""

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.faults import _surgery as s
from benchmarks.faults._case import Case, DoesNotFit
from benchmarks.faults._registry import fault


@fault("softmax before cross_entropy", "output-activation")
def softmax_twice(case: Case) -> None:
    s.needs_task(case, "multiclass")
    if case.model.__dict__.get("loss") is F.nll_loss:
        raise DoesNotFit("its loss expects probabilities")
    s.change_output(case, lambda out: out.softmax(1))


@fault("sigmoid before the loss with logits", "output-activation")
def sigmoid_twice(case: Case) -> None:
    s.needs_task(case, "binary")
    s.change_output(case, torch.sigmoid)


@fault("nll_loss on logits", "output-activation")
def nll_on_logits(case: Case) -> None:
    s.needs_task(case, "multiclass")
    if case.model.__dict__.get("loss") is F.nll_loss:
        s.exchange(case, str(len(case.net) - 1), nn.Identity())
    else:
        s.change_loss(case, F.nll_loss)


@fault("ReLU on the outputs", "output-activation", "dead-units", "not-learning", proof="score")
def relu_output(case: Case) -> None:
    s.needs_task(case, "multiclass", "binary", "regression")
    if s.self_taught(case):
        raise DoesNotFit("harmless there: its targets are not negative")
    s.change_output(case, torch.relu)


@fault("softmax over the batch", "batch-mixing", "output-activation")
def softmax_over_batch(case: Case) -> None:
    s.needs_task(case, "multiclass")
    if case.model.__dict__.get("loss") is F.nll_loss:
        s.exchange(case, str(len(case.net) - 1), nn.LogSoftmax(dim=0))
    else:
        s.change_output(case, lambda out: out.softmax(0))


@fault("all weights 0", "zero-init", "symmetric-init")
def all_zero(case: Case) -> None:
    s.hidden(case)
    for p in case.net.parameters():
        if p.ndim > 1 and p.requires_grad:
            nn.init.zeros_(p)


@fault("all weights alike", "symmetric-init", proof="score")
def all_alike(case: Case) -> None:
    for _, layer in s.weighted(case):
        nn.init.constant_(layer.weight, 0.1)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


@fault(
    "weights 30 times too large", "loss-at-init", "activation-scale", "exploding-gradient", "saturated-units",
    "dead-units", "lr-too-low", proof="score",
)  # fmt: skip
def huge_weights(case: Case) -> None:
    s.plain(case)
    for _, layer in s.weighted(case):
        layer.weight.data *= 30


@fault(
    "weights 1000 times too small", "activation-scale", "vanishing-gradient", "not-learning", "zero-init", proof="score"
)
def tiny_weights(case: Case) -> None:
    s.plain(case)
    s.hidden(case)
    for _, layer in s.weighted(case):
        layer.weight.data *= 1e-3
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


@fault("last layer 100 times too large", "loss-at-init", "output-bias", proof="score")
def huge_head(case: Case) -> None:
    s.needs_task(case, "multiclass", "binary", "regression")
    s.weighted(case)[-1][1].weight.data *= 100


@fault("ReLUs dead from the beginning", "dead-units", "bias-not-zero", proof="score")
def dead(case: Case) -> None:
    found = [name for name, m in s.activations(case) if isinstance(m, nn.ReLU)]
    if not found:
        raise DoesNotFit("it has no ReLU")
    s.hidden(case)
    for module in case.net.modules():
        if isinstance(module, nn.Sequential):
            for before, after in zip(module, list(module)[1:], strict=False):
                if isinstance(after, nn.ReLU) and getattr(before, "bias", None) is not None:
                    nn.init.constant_(before.bias, -10.0)


@fault("units saturated from the beginning", "saturated-units", "activation-scale", proof="score")
def saturated(case: Case) -> None:
    s.plain(case)
    for name, _ in s.activations(case):
        s.exchange(case, name, nn.Tanh())
    for _, layer in s.hidden(case):
        layer.weight.data *= 100


@fault("eight sigmoid layers more", "vanishing-gradient", "not-learning", "saturated-units", proof="score")
def deep_sigmoid(case: Case) -> None:
    name, head = s.weighted(case)[-1]
    if not isinstance(head, nn.Linear):
        raise DoesNotFit("its last layer is no Linear")
    width = head.in_features
    layers = [layer for _ in range(8) for layer in (nn.Linear(width, width), nn.Sigmoid())]
    s.exchange(case, name, nn.Sequential(*layers, head))


@fault("eight layers more, weights 3 times too large", "exploding-gradient", "activation-scale", "loss-at-init",
       "lr-too-high", "diverging", proof="score")  # fmt: skip
def deep_exploding(case: Case) -> None:
    name, head = s.weighted(case)[-1]
    if not isinstance(head, nn.Linear):
        raise DoesNotFit("its last layer is no Linear")
    width = head.in_features
    layers: list[nn.Module] = []
    for _ in range(8):
        layer = nn.Linear(width, width)
        nn.init.kaiming_normal_(layer.weight)
        layer.weight.data *= 3
        layers += [layer, nn.ReLU()]
    s.exchange(case, name, nn.Sequential(*layers, head))


@fault("reshape that mixes samples", "batch-mixing")
def reshape_mixes(case: Case) -> None:
    s.change_input(case, lambda x: x.flatten(1).t().reshape(x.shape))


@fault("batch_first left out", "batch-mixing")
def batch_first(case: Case) -> None:
    found = [m for m in case.net.modules() if getattr(m, "batch_first", None) is True]
    if not found:
        raise DoesNotFit("it has no layer with batch_first")
    for module in found:
        module.batch_first = False


@fault("inputs centred by the batch, always", "batch-mixing")
def batch_centred(case: Case) -> None:
    if not case.tensors[0].is_floating_point():
        raise DoesNotFit("its inputs are integers")
    s.change_input(case, lambda x: (x - x.mean(0)) / (x.std(0) + 1e-5))


@fault("BatchNorm without running statistics", "batch-mixing", "nondeterministic-eval")
def no_running_statistics(case: Case) -> None:
    s.needs_norm(case)
    for module in case.net.modules():
        if isinstance(module, s.BATCH_NORM):
            module.track_running_stats = False
            module.running_mean = module.running_var = module.num_batches_tracked = None


@fault("inputs multiplied by 0", "input-ignored", "input-constant")
def input_ignored(case: Case) -> None:
    s.change_input(case, lambda x: x * 0)


@fault("detached in the middle", "no-update")
def detached(case: Case) -> None:
    layers = s.hidden(case)
    layers[-1][1].register_forward_hook(detach_output)


def detach_output(module, inputs, output):
    return output.detach()


@fault("hidden layers frozen at their random beginning", "no-update", "not-learning", proof="score")
def frozen(case: Case) -> None:
    for _, layer in s.hidden(case):
        layer.requires_grad_(False)


@fault("dropout in evaluation mode, too", "nondeterministic-eval")
def always_dropout(case: Case) -> None:
    s.hidden(case)[-1][1].register_forward_hook(drop_output)


def drop_output(module, inputs, output):
    return F.dropout(output, 0.3, training=True)


@fault("dropout before BatchNorm", "dropout-before-batchnorm")
def dropout_before_norm(case: Case) -> None:
    s.needs_norm(case)
    name, norm = next((n, m) for n, m in case.net.named_modules() if isinstance(m, s.BATCH_NORM))
    s.exchange(case, name, nn.Sequential(nn.Dropout(0.5), norm))


@fault("dropout of 95 %", "train-eval-mismatch", "not-learning", proof="score")
def dropout_everything(case: Case) -> None:
    for name, activation in s.activations(case):
        s.exchange(case, name, nn.Sequential(activation, nn.Dropout(0.95)))


@fault("running statistics that never move", "train-eval-mismatch", proof="score")
def slow_statistics(case: Case) -> None:
    s.needs_norm(case)
    for module in case.net.modules():
        if isinstance(module, s.BATCH_NORM):
            module.momentum = 1e-5
            module.reset_running_stats()


@fault("trained in evaluation mode", "train-eval-mismatch")
def evaluation_mode(case: Case) -> None:
    s.needs_norm(case)
    if any(m.num_batches_tracked > 0 for m in case.net.modules() if isinstance(m, s.BATCH_NORM)):
        raise DoesNotFit("right there: a pretrained net's statistics may stay")
    case.net.eval()


class Hidden(nn.Module):
    """A layer in a plain list, which PyTorch does not see."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layers = [layer]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run the hidden layer."""
        return self.layers[0](x)


@fault("layers in a plain list", "params-not-optimized")
def plain_list(case: Case) -> None:
    for name, layer in s.hidden(case):
        s.exchange(case, name, Hidden(layer))


@fault("targets (N,) against outputs (N, 1)", "batch-mixing")
def broadcast(case: Case) -> None:
    s.needs_task(case, "regression")
    if case.tensors[1].ndim > 1:
        raise DoesNotFit("its targets are (N, 1)")
    s.change_loss(case, squared_of_all_pairs)


def squared_of_all_pairs(output, y):
    return F.mse_loss(output.reshape(-1, 1), y)


@fault("square root of 0 in the loss", "nonfinite")
def root_of_zero(case: Case) -> None:
    step = type(case.model).training_step

    def training_step(self, batch, batch_idx):
        loss = step(self, batch, batch_idx)
        return loss + 0.01 * (loss - loss).sqrt()

    case.override(training_step=training_step)


@fault("loss is summed", "loss-at-init")
def summed(case: Case) -> None:
    if getattr(case.model, "loss", None) not in (F.cross_entropy, F.nll_loss):
        raise DoesNotFit("its loss has no reduction to change")
    s.change_loss(case, {F.cross_entropy: summed_entropy, F.nll_loss: summed_nll}[case.model.loss])


def summed_entropy(output, y):
    return F.cross_entropy(output, y, reduction="sum")


def summed_nll(output, y):
    return F.nll_loss(output, y, reduction="sum")


@fault("last bias drawn large", "output-bias", "loss-at-init", note=True)
def large_bias(case: Case) -> None:
    s.needs_task(case, "multiclass", "binary", "regression")
    head = s.weighted(case)[-1][1]
    if head.bias is None:
        raise DoesNotFit("its last layer has no bias")
    head.bias.data = 8 * torch.randn_like(head.bias)


@fault("biases that do not begin at 0", "bias-not-zero", note=True)
def biases(case: Case) -> None:
    if any(layer.bias is not None and layer.bias.any() for _, layer in s.weighted(case)):
        raise DoesNotFit("they do not begin at 0 there either, as PyTorch draws them")
    for _, layer in s.weighted(case):
        if layer.bias is not None:
            nn.init.constant_(layer.bias, 0.5)
