"""Pictures of norms and signals survive a grey print, and count layers and epochs in whole numbers."""

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.collections import LineCollection

from lightning_tricks.plots import learning_curves, plot_update_ratios, signal_figure


def outline(figure):
    (lines,) = (c for c in figure.axes[0].collections if isinstance(c, LineCollection))
    return {tuple(map(tuple, segment)) for segment in lines.get_segments()}


def test_the_band_of_update_ratios_is_outlined_and_nothing_else():
    ratios = torch.tensor([[1e-5, 1e-3, 1e-1], [float("nan"), 1e-1, 1e-5]])
    around_the_one_cell = {
        ((0.5, -0.5), (1.5, -0.5)),
        ((0.5, 0.5), (1.5, 0.5)),
        ((0.5, -0.5), (0.5, 0.5)),
        ((1.5, -0.5), (1.5, 0.5)),
    }
    assert outline(plot_update_ratios([0, 1, 2], ["a", "b"], ratios)) == around_the_one_cell
    assert outline(plot_update_ratios([0], ["a"], torch.tensor([[1e-1]]))) == set()
    assert outline(plot_update_ratios([], ["a"], torch.empty(1, 0))) == set()


def test_a_larger_ratio_is_lighter_in_grey():
    image = plot_update_ratios([0, 1], ["a"], torch.tensor([[1e-4, 1e-2]])).axes[0].images[0]
    shades = colormaps[image.get_cmap().name](np.linspace(0, 1, 50))[:, :3] @ [0.299, 0.587, 0.114]
    assert (np.diff(shades) > 0).all()


def test_ticks_are_whole_layers_and_epochs():
    signals = signal_figure({"auto": [1.0, 0.9, 0.8]}, {"auto": [1.0, 1.1, 1.2]})
    curves = learning_curves({"loss": [(0, 1.0), (1, 0.5), (2, 0.4)]})
    for ax in (*signals.axes, *curves.axes):
        assert all(tick == round(tick) for tick in ax.get_xticks())
