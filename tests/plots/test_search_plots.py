"""The pictures of a search show what they were given."""

import math

import numpy as np
import pytest

from lightning_tricks._base import UserInputError
from lightning_tricks.plots import (
    parallel_coordinates,
    search_importance,
    search_pairs,
    search_points,
    search_progress,
)
from lightning_tricks.plots._search import strength

POINTS = [{"lr": 1e-3, "kind": "a", "n": 1}, {"lr": 1e-1, "kind": "b", "n": 3}, {"lr": 1e-2, "kind": "a", "n": 2}]
VALUES = [3.0, 2.0, 1.0]


@pytest.mark.parametrize(("maximize", "best"), [(False, [3, 3, 1, 1]), (True, [3, 3, 3, 5])])
def test_progress_shows_the_best_so_far_and_marks_what_failed(maximize, best):
    ax = search_progress([3.0, None, 1.0, 5.0], maximize=maximize, rounds=[2]).axes[0]
    lines = {line.get_label(): line for line in ax.get_lines()}
    assert list(lines["best"].get_ydata()) == best
    assert list(lines["failed or pruned"].get_xdata()) == [1]
    assert any(set(line.get_xdata()) == {1.5} for line in ax.get_lines())


def test_points_show_each_hyperparameter_its_windows_and_the_best():
    windows = [{"lr": (1e-4, 1.0)}, {"lr": (1e-3, 1e-1)}]
    figure = search_points(POINTS, VALUES, log=["lr"], windows=windows)
    named = {ax.get_xlabel(): ax for ax in figure.axes if ax.get_visible() and ax.get_ylabel() == "value"}
    assert set(named) == {"lr", "kind", "n"}
    assert named["lr"].get_xscale() == "log"
    assert [tuple(line.get_xdata()) for line in named["lr"].get_lines()] == [(1e-4, 1.0), (1e-3, 1e-1)]
    assert named["lr"].collections[1].get_offsets()[0].tolist() == [1e-2, 1.0]  # the star
    low = named["lr"].get_ylim()[0]
    assert low < 1.0 - 0.05  # room for the windows below the points


def test_parallel_coordinates_place_every_value_and_leave_gaps():
    points = [*POINTS, {"lr": 1e-3, "kind": "b"}]
    ax = parallel_coordinates(points, [*VALUES, 4.0], log=["lr"]).axes[0]
    best = next(line for line in ax.get_lines() if line.get_label() == "best")
    assert np.asarray(best.get_ydata()).tolist() == pytest.approx([0.5, 0, 0.5, 0])  # lr, kind, n, value
    assert sum(any(math.isnan(y) for y in line.get_ydata()) for line in ax.get_lines()) == 1


def test_all_pairs_show_every_trial_the_best_and_the_fine_windows():
    points = [{"a": i / 10, "b": (7 * i) % 5 + 1.0, "c": i % 3} for i in range(10)]
    values = [abs(p["a"] - 0.4) for p in points]
    windows = [{"a": (0.0, 1.0), "b": (1.0, 5.0)}, {"a": (0.2, 0.6), "b": (2.0, 4.0)}]
    for maximize, best in ((False, 4), (True, 9)):
        figure = search_pairs(points, values, log=["b"], windows=windows, maximize=maximize)
        planes = [ax for ax in figure.axes if ax.get_visible()]
        assert len(planes) == 3
        first = next(ax for ax in planes if ax.get_ylabel() == "b")
        assert first.get_yscale() == "log"
        assert len(first.collections[0].get_offsets()) == 10
        assert first.collections[1].get_offsets()[0].tolist() == [points[best]["a"], points[best]["b"]]
        (frame,) = first.patches
        assert (*frame.get_xy(), frame.get_width(), frame.get_height()) == pytest.approx((0.2, 2.0, 0.4, 2.0))


def test_many_numbers_leave_those_that_matter():
    rng = np.random.default_rng(0)
    points = [{f"x{i}": float(u) for i, u in enumerate(rng.random(8))} for _ in range(80)]
    values = [(p["x2"] - 0.5) ** 2 + (p["x5"] - 0.5) ** 2 for p in points]
    figure = search_pairs(points, values)
    named = {ax.get_xlabel() for ax in figure.axes} | {ax.get_ylabel() for ax in figure.axes}
    assert {"x2", "x5"} <= named
    assert len(named - {""}) == 6


def test_plane_of_a_maximized_search_is_that_of_what_matters():
    rng = np.random.default_rng(1)
    points = [{name: float(u) for name, u in zip("abcd", rng.random(4), strict=True)} for _ in range(60)]
    values = [-((p["b"] - 0.7) ** 2) - (p["d"] - 0.2) ** 2 for p in points]
    plane = next(ax for ax in search_points(points, values, maximize=True).axes if ax.get_ylabel() == "d")
    assert plane.get_xlabel() == "b"


def test_strength_of_one_value_is_none_and_pairs_that_never_meet_are_empty():
    for points, losses in (([1.0, 1.0], [0.1, 0.2]), ([1.0, 2.0], [0.1, 0.1]), ([1.0], [0.1])):
        assert strength([{"a": a} for a in points], losses, "a") == 0.0
    assert strength([{"a": a} for a in (3.0, 1.0, 2.0, 2.0)], [0.3, 0.1, 0.2, 0.2], "a") == pytest.approx(1)
    points = [{"a": 1.0, "b": 2.0}, {"a": 2.0, "b": 1.0}, {"c": 0.5}, {"c": 1.5}]
    planes = {(ax.get_xlabel(), ax.get_ylabel()): ax for ax in search_pairs(points, [1.0, 2.0, 3.0, 4.0]).axes}
    sizes = sorted(len(ax.collections[0].get_offsets()) for ax in planes.values() if ax.collections)
    assert sizes == [0, 0, 2]


def test_importance_is_sorted():
    ax = search_importance({"a": 0.1, "b": 0.7, "c": 0.2}).axes[0]
    assert [patch.get_width() for patch in ax.patches] == [0.1, 0.2, 0.7]


def test_nothing_to_draw_is_a_sentence():
    for draw in (
        lambda: search_progress([None, float("nan")]),
        lambda: search_points([], []),
        lambda: parallel_coordinates([], []),
        lambda: search_importance({}),
    ):
        with pytest.raises(UserInputError, match="needs at least one"):
            draw()
    with pytest.raises(UserInputError, match="needs at least two numbers"):
        search_pairs([{"a": 1, "b": "x"}], [1.0])
