"""Claim: ``init_weights`` initialises a resnet50 in under 2 s.

Run: python -m benchmarks.init
"""

import statistics

import torch
import torchvision

from benchmarks.timing import interleaved, report
from lightning_tricks import init_weights
from lightning_tricks.init import untouched_modules


def torchs_own(model):
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()


def main():
    torch.set_num_threads(1)
    model = torchvision.models.resnet50()
    times = interleaved(
        {
            "reset_parameters of every module": lambda: torchs_own(model),
            "init_weights(model)": lambda: init_weights(model),
            "init_weights(model, 'orthogonal')": lambda: init_weights(model, "orthogonal"),
            "is every module untouched?": lambda: untouched_modules(model),
        },
        rounds=5,
    )
    seconds = {name: round(statistics.median(values), 3) for name, values in times.items()}
    for name, value in seconds.items():
        print(f"{name:40s} {value:.3f} s of CPU time")
    report("init of resnet50", times, base="reset_parameters of every module", median_seconds=seconds)


if __name__ == "__main__":
    main()
