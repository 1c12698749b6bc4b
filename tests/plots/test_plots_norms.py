"""Pictures of norms and signals survive a grey print, and count layers and epochs in whole numbers."""

import numpy as np
import pytest
import torch
from matplotlib import colormaps
from matplotlib.collections import LineCollection

from lightning_tricks._base import UserInputError
from lightning_tricks.plots import (
    confusion_matrix,
    learning_curves,
    lr_find_figure,
    plot_gradient_norms,
    plot_update_ratios,
    signal_figure,
    training_curve,
)


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


def test_what_is_infinite_is_red_and_what_was_not_measured_is_not():
    norms = torch.tensor([[1.0, float("nan")], [float("inf"), 2.0]])
    broken = plot_gradient_norms([0, 1], ["a", "b"], norms).axes[0].images[1].get_array()
    assert (~np.ma.getmaskarray(broken)).tolist() == [[False, False], [True, False]]


def test_a_confusion_matrix_is_square_and_has_a_name_for_each_class():
    with pytest.raises(UserInputError, match=r"must be square, but got shape \(2, 3\)"):
        confusion_matrix(np.ones((2, 3)))
    with pytest.raises(UserInputError, match="class_names must hold 2 names, one per class, but got 1"):
        confusion_matrix(np.eye(2), class_names=["cat"])
    many = confusion_matrix(np.eye(60)).axes[0]
    assert len(many.texts) == 0, "numbers that nobody could read"
    np.testing.assert_array_equal(many.images[0].get_array(), np.eye(60))


def test_curves_say_why_training_stopped_and_need_a_curve():
    figure = learning_curves({"loss": [(0, 1.0), (1, 0.5)]}, stop_reason="no better for 3 epochs")
    assert figure.axes[0].get_title() == "no better for 3 epochs"
    with pytest.raises(UserInputError, match="needs at least one curve, but got none"):
        learning_curves({})


def test_a_training_curve_is_logarithmic_where_the_loss_falls_far():
    for losses, scale in (
        ([1.0, 0.5], "linear"),
        ([1.0, 0.01], "log"),
        ([1.0, -0.01], "linear"),
        ([1.0, 0.0], "linear"),
    ):
        ax = training_curve([0, 1], losses, guess=None).axes[0]
        assert ax.get_yscale() == scale
        assert [text.get_text() for text in ax.get_legend().get_texts()] == ["training loss"]


def test_signals_of_nothing_have_a_linear_axis():
    figure = signal_figure({"zeros": [0.0, 0.0]}, {"zeros": [1.0, 0.5]})
    assert [ax.get_yscale() for ax in figure.axes] == ["linear", "log"]


def test_a_search_for_the_rate_that_found_nothing_is_drawn():
    figure = lr_find_figure([1e-3, 1e-2], [float("nan")] * 2, {"minimum": None, "steepest": None}, chosen="minimum")
    assert len(figure.axes[0].get_lines()) == 1
    assert figure.axes[0].get_legend() is None


def test_minor_labels_of_logarithmic_axes_are_smaller_than_major_ones():
    figure = learning_curves({"val_loss": [(0, 0.9), (1, 0.5), (2, 0.31)]})  # under a decade: minor ticks are labelled
    figure.draw_without_rendering()
    axis = figure.axes[0].yaxis
    minor = [tick.label1 for tick in axis.get_minor_ticks() if tick.label1.get_text()]
    assert minor
    assert max(label.get_size() for label in minor) < axis.get_major_ticks()[0].label1.get_size()
