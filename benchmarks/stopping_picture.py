"""Draw docs/images/plateau.png: what ReduceLROnPlateau and then a stop would do on a noisy curve.

Run: python -m benchmarks.stopping_picture
"""

import math
from pathlib import Path

import torch

import lightning_tricks as lt
from lightning_tricks.plots import plot_simulation

PAGE = Path(__file__).parent.parent / "docs" / "images"


def main():
    noise = torch.randn(60, generator=torch.Generator().manual_seed(0)).tolist()
    curve = [0.3 + 1.2 * math.exp(-check / 9) + 0.04 * noise[check] for check in range(60)]
    rule = lt.ReduceLROnPlateau("val_loss", factor=0.2, patience=4, stop_after=2, threshold=0.01)
    rates = rule.simulate(curve, lr=0.1)
    PAGE.mkdir(exist_ok=True)
    plot_simulation(curve, rates, name="val_loss").savefig(PAGE / "plateau.png", dpi=80)
    print(f"{len(rates)} of {len(curve)} checks, last rate {rates[-1]:g}")


if __name__ == "__main__":
    main()
