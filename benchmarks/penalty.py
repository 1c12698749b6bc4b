"""Claim: the penalty costs at most twice the bytes floor: weights and gradients read, gradients written.

Run: python -m benchmarks.penalty

Two floors are measured. Bytes: 12 bytes per weight at the speed of a large memory copy. Pass: one fused pass of the
same reads and writes (``gradient.add_(weight)``) over flat tensors, which small nets do in the cache.
"""

import torch
import torchvision

from benchmarks.timing import interleaved, report
from lightning_tricks.callbacks._penalty import add_penalty_gradient


def models():
    mlp = torch.nn.Sequential(torch.nn.Linear(784, 512), torch.nn.Linear(512, 512), torch.nn.Linear(512, 10))
    yield "MLP 784-512-512-10", mlp
    yield "resnet18", torchvision.models.resnet18()
    yield "resnet50", torchvision.models.resnet50()


def moved(to, source, count):
    """Copy so many values, each time from memory that is not in the cache."""
    start = moved.at = (moved.at + count) % (len(source) - count) if count < len(source) else 0
    for begin in range(0, count, len(source)):
        size = min(len(source), count - begin)
        to[start : start + size].copy_(source[start : start + size])


moved.at = 0


def in_the_loss(weights, l1, l2):
    """What a penalty term costs: its forward and backward pass, added to gradients that exist."""
    loss = sum(l1 * w.abs().sum() + l2 * w.square().sum() for w in weights)
    loss.backward()


def main():
    torch.set_num_threads(1)
    for title, model in models():
        weights = [p for p in model.parameters() if p.ndim > 1]
        for w in weights:
            w.grad = torch.zeros_like(w)
        plain, gradients = [w.detach() for w in weights], [w.grad for w in weights]
        source = torch.zeros(32_000_000)
        copy, share = torch.empty_like(source), int(1.5 * sum(w.numel() for w in plain))  # a copy moves 8 bytes a value
        flat, flat_gradient = torch.cat([w.reshape(-1) for w in plain]), torch.zeros(sum(w.numel() for w in plain))
        candidates = {
            "bytes floor: 12 bytes at copy speed": lambda to=copy, n=share, x=source: moved(to, x, n),
            "one flat pass of the same bytes": lambda a=flat_gradient, b=flat: a.add_(b, alpha=1e-8),
            "l2": lambda w=plain, g=gradients: add_penalty_gradient(w, g, 0.0, 1e-8),
            "l1": lambda w=plain, g=gradients: add_penalty_gradient(w, g, 1e-8, 0.0),
            "l1 and l2": lambda w=plain, g=gradients: add_penalty_gradient(w, g, 1e-8, 1e-8),
            "the same as a term of the loss": lambda w=weights: in_the_loss(w, 1e-8, 1e-8),
        }
        weights_count = len(flat)
        repeat = max(1, 20_000_000 // weights_count)
        repeated = {name: lambda call=call, n=repeat: [call() for _ in range(n)] for name, call in candidates.items()}
        report(
            f"penalty on {title}",
            interleaved(repeated),
            base="bytes floor: 12 bytes at copy speed",
            weights=weights_count,
        )


if __name__ == "__main__":
    main()
