"""Draw how the optimizers descend through a narrow valley and past a saddle point: pictures and an animation.

Run: python examples/descent_paths.py [--out pictures] [--quick]

Every path is the real torch class, made by ``build_optimizer``.
"""

import numpy as np
import torch
from _pictures import options, save
from matplotlib.animation import FuncAnimation, PillowWriter
from torch import nn

from lightning_tricks import build_optimizer
from lightning_tricks.plots import COLORS, DASHES, new_figure

STEPS = 60


def valley(x, y):
    return 0.5 * (x**2 + 25 * y**2)


def saddle(x, y):
    return 0.5 * (x**2 - y**2) + 0.05 * y**4


# Function, start, half widths of the picture, learning rates: each the largest of its kind that still descends well.
SCENES = {
    "valley": (
        valley,
        (-4.0, 1.0),
        (4.5, 1.6),
        {"sgd": 0.07, "momentum": 0.012, "nesterov": 0.012, "adagrad": 0.6, "rmsprop": 0.15, "adam": 0.25},
    ),
    "saddle": (
        saddle,
        (-3.0, 1e-3),
        (3.5, 4.0),
        {"sgd": 0.12, "momentum": 0.03, "nesterov": 0.03, "adagrad": 0.35, "rmsprop": 0.12, "adam": 0.2},
    ),
}


def path(function, start, name, lr):
    """Return the points that an optimizer visits, shape (STEPS + 1, 2)."""
    point = nn.Parameter(torch.tensor(start, dtype=torch.float64))
    optimizer = build_optimizer(name, nn.ParameterList([point]), lr=lr)
    points = [point.detach().numpy().copy()]
    for _ in range(STEPS):
        optimizer.zero_grad()
        function(*point).backward()
        optimizer.step()
        points.append(point.detach().numpy().copy())
    return np.array(points)


def background(ax, function, half):
    x, y = np.meshgrid(np.linspace(-half[0], half[0], 200), np.linspace(-half[1], half[1], 200))
    z = function(x, y)
    levels = z.min() + (z.max() - z.min()) * np.linspace(0, 1, 22) ** 2
    ax.grid(visible=False)
    ax.contour(x, y, z, levels=levels, colors="0.8", linewidths=0.7)
    ax.set(xlim=(-half[0], half[0]), ylim=(-half[1], half[1]), xlabel="weight 1", ylabel="weight 2")


def scene(name):
    function, start, half, rates = SCENES[name]
    return function, half, {kind: path(function, start, kind, lr) for kind, lr in rates.items()}


def picture(name):
    function, half, paths = scene(name)
    figure, axes = new_figure(2, 3, width=10, height=5.4, sharex=True, sharey=True)
    for number, (ax, (kind, points)) in enumerate(zip(axes.flat, paths.items(), strict=True)):
        background(ax, function, half)
        ax.plot(*points.T, "-o", color=COLORS[number], markersize=2.5, linewidth=1)
        ax.plot(*points[0], "x", color="black")
        end = function(*points[-1])
        ax.set_title(f"{kind}, lr {SCENES[name][3][kind]}: {end:.2g} after {STEPS} steps", fontsize=9)
        ax.label_outer()
    figure.suptitle({"valley": "a narrow valley", "saddle": "past a saddle point"}[name], fontsize=11)
    return figure


def animate(name, file):
    function, half, paths = scene(name)
    figure, ax = new_figure(width=5.2, height=3.6)
    background(ax, function, half)
    styles = zip(COLORS, DASHES, strict=True)
    lines = [
        (ax.plot([], [], color=color, linestyle=dash, linewidth=1.3, label=kind)[0], points)
        for (kind, points), (color, dash) in zip(paths.items(), styles, strict=True)
    ]
    heads = [ax.plot([], [], "o", color=line.get_color(), markersize=4)[0] for line, _ in lines]
    ax.legend(fontsize=7, frameon=False, loc="upper right", ncols=2)

    def draw(step):
        for (line, points), head in zip(lines, heads, strict=True):
            line.set_data(*points[: step + 1].T)
            head.set_data(*points[step : step + 1].T)
        ax.set_title(f"step {step}", fontsize=9)
        return []

    FuncAnimation(figure, draw, frames=range(0, STEPS + 1, 2)).save(file, writer=PillowWriter(fps=8), dpi=80)
    print(file)


def main(out, quick=False):
    for name in SCENES:
        save(picture(name), out / f"descent_{name}.png")
        if not quick:
            animate(name, out / f"descent_{name}.gif")


if __name__ == "__main__":
    main(**options(__doc__))
