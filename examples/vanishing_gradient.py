"""Draw the vanishing gradient of sigmoid layers against ReLU, and what initialisation does to 50 layers.

Run: python examples/vanishing_gradient.py [--out pictures] [--quick]
"""

import torch
from _pictures import options, save
from torch import nn

from lightning_tricks import init_weights
from lightning_tricks.init import signal_deviations
from lightning_tricks.plots import COLORS, DASHES, new_figure, signal_figure

WIDTH = 384


def chain(activation, depth):
    return nn.Sequential(*(layer for _ in range(depth) for layer in (nn.Linear(WIDTH, WIDTH), activation())))


def deviations(model, scheme, **options):
    init_weights(model, scheme, generator=torch.Generator().manual_seed(0), **options)
    x = torch.randn(256, WIDTH, generator=torch.Generator().manual_seed(1))
    values = signal_deviations(model, (x,)).values()
    return [v.output for v in values], [v.gradient for v in values]


def sigmoid_picture():
    figure, axes = new_figure(columns=2, width=9, height=3.4)
    z = torch.linspace(-6, 6, 200, requires_grad=True)
    for (name, activation), color, dash in zip(
        (("sigmoid", nn.Sigmoid), ("tanh", nn.Tanh), ("ReLU", nn.ReLU)), COLORS, DASHES, strict=False
    ):
        (slope,) = torch.autograd.grad(activation()(z).sum(), z)
        axes[0].plot(z.detach(), slope, color=color, linestyle=dash, label=name)
        _, gradients = deviations(chain(activation, 20), "auto")
        axes[1].plot(range(1, 21), gradients, color=color, linestyle=dash, label=name)
    axes[0].set(title="slope of the activation", xlabel="input")
    axes[1].set(title="gradient through 20 layers", xlabel="layer", ylabel="standard deviation", yscale="log")
    axes[0].legend(fontsize=8, frameon=False)
    return figure


def init_picture(name, activation, depth):
    schemes = {"auto": ("auto", {}), "N(0, 0.01²)": ("normal", {"std": 0.01}), "lecun_normal": ("lecun_normal", {})}
    outputs, gradients = {}, {}
    for label, (scheme, settings) in schemes.items():
        outputs[label], gradients[label] = deviations(chain(activation, depth), scheme, **settings)
    return signal_figure(outputs, gradients, title=f"{depth} {name} layers")


def main(out, quick=False):
    save(sigmoid_picture(), out / "vanishing_gradient.png")
    for name, activation in (("ReLU", nn.ReLU), ("tanh", nn.Tanh)):
        save(init_picture(name, activation, 5 if quick else 50), out / f"init_{name.lower()}.png")


if __name__ == "__main__":
    main(**options(__doc__))
