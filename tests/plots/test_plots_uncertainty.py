"""What the pictures of uncertainty show is what they were given; none touches pyplot."""

import io
import math
import sys

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from scipy import stats

from lightning_tricks import plots
from lightning_tricks import uncertainty as u
from lightning_tricks._base import UserInputError


def drawn(figure):
    """Render the figure, and check that no global state was used."""
    assert isinstance(figure, Figure)
    figure.savefig(io.BytesIO(), format="png", dpi=40)
    if "matplotlib.pyplot" in sys.modules:
        assert not sys.modules["matplotlib.pyplot"].get_fignums()
    return figure


@pytest.fixture
def bins():
    confidence = torch.rand(300) ** 0.3
    return u.calibration_bins(confidence, torch.rand(300) < confidence, bins=10)


def test_reliability_shows_bins_counts_and_error(bins):
    figure = drawn(plots.reliability_diagram(bins))
    upper, lower = figure.axes
    line = upper.lines[1]
    full = bins.count > 0
    np.testing.assert_allclose(line.get_xdata(), bins.confidence[full])
    np.testing.assert_allclose(line.get_ydata(), bins.accuracy[full])
    assert [bar.get_height() for bar in lower.patches] == bins.count.tolist()
    assert [text.get_text() for text in lower.texts] == [str(n) if n else "" for n in bins.count.tolist()]
    gaps = (bins.accuracy - bins.confidence).abs().nan_to_num() * bins.count / bins.count.sum()
    assert f"{gaps.sum():.3f}" in figure.legends[0].get_texts()[0].get_text()
    for (below, above), right, count in zip(
        (segment[:, 1] for segment in upper.collections[0].get_segments()),
        (bins.accuracy * bins.count)[full].round().int().tolist(),
        bins.count[full].tolist(),
        strict=True,
    ):
        expected = stats.binomtest(right, count).proportion_ci(method="wilson")
        assert (below, above) == pytest.approx((expected.low, expected.high), abs=1e-4)


def test_reliability_compares_with_names(bins):
    figure = drawn(plots.reliability_diagram(bins, bins, labels=["off", "on"]))
    assert [text.get_text()[:3] for text in figure.legends[0].get_texts()] == ["off", "on:"]
    assert len(figure.axes[1].patches) == 20


def test_pictures_are_in_order_and_mistakes_stand_out():
    pictures = torch.zeros(6, 1, 4, 4)
    pictures[:, 0, 0, 0] = torch.arange(6.0) + 1
    uncertainty = torch.tensor([0.3, 0.1, math.nan, 0.9, 0.5, 0.2])
    figure = drawn(
        plots.most_uncertain_pictures(
            pictures,
            uncertainty,
            labels=torch.arange(6),
            predictions=[0, 1, 2, 7, 4, 5],
            count=2,
            name="entropy (nats)",
        )
    )
    titles = [ax.get_title() for ax in figure.axes]
    assert titles == ["7 (3)\n0.9", "4\n0.5", "1\n0.1", "5\n0.2"]
    colors = [ax.title.get_color() for ax in figure.axes]
    assert colors[0] != "black"
    assert set(colors[1:]) == {"black"}
    assert "entropy (nats)" in figure.get_suptitle()


@pytest.mark.parametrize("shape", [(3, 5, 5), (3, 1, 5, 5), (3, 3, 5, 5)])
def test_pictures_of_any_kind_and_a_flat_one(shape):
    pictures = torch.rand(shape, dtype=torch.bfloat16) * 9 - 4
    pictures[0] = 1.0
    figure = drawn(plots.most_uncertain_pictures(pictures, np.arange(3.0)))
    shown = figure.axes[0].images[0].get_array()
    assert shown.shape[:2] == (5, 5)
    assert 0 <= shown.min() <= shown.max() <= 1
    assert len(figure.axes) == 6  # three a row, as there are no more


def test_histogram_shares_edges_and_counts():
    groups = {"right": torch.rand(200), "wrong": torch.rand(10) + 1, "none": torch.empty(0), "nan": [math.nan, 0.5]}
    figure = drawn(plots.uncertainty_histogram(groups, bins=7))
    ax = figure.axes[0]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == [
        "right (200)",
        "wrong (10)",
        "none (0)",
        "nan (1)",
    ]
    steps = [patch.get_data() for patch in ax.patches[::2]]
    for data in steps:
        np.testing.assert_allclose(data.edges, steps[0].edges)
    np.testing.assert_allclose([data.values.sum() for data in steps], [1, 1, 0, 1])


def test_risk_coverage_draws_what_it_is_given():
    confidence, error = torch.rand(50), torch.rand(50) < 0.3
    curve = u.risk_coverage(confidence, error)
    figure = drawn(plots.risk_coverage_curve({"confidence": curve}, optimal=u.risk_coverage(-error.float(), error)))
    np.testing.assert_allclose(figure.axes[0].lines[0].get_ydata(), curve[1])
    assert len(figure.axes[0].lines) == 2


def test_convergence_ends_at_mean_and_error():
    samples = torch.randn(200, 30).double() * 1e-3 + 1000
    figure = drawn(plots.convergence_plot(samples, count=30))
    ends = sorted(line.get_ydata()[-1] for line in figure.axes[0].lines)
    np.testing.assert_allclose(ends, samples.mean(0).sort().values, rtol=1e-12)
    band = figure.axes[0].collections[0].get_paths()[0].get_extents()
    assert band.height > 0


def test_convergence_marks_the_pass_that_is_enough():
    samples = torch.randn(400, 5).double()
    tolerance = 0.08
    errors = [samples[:s].std(0).max().item() / math.sqrt(s) for s in range(2, 401)]
    enough = max(s for s, error in zip(range(2, 401), errors, strict=True) if error > tolerance) + 1
    figure = drawn(plots.convergence_plot(samples, tolerance=tolerance))
    assert figure.axes[0].texts[0].get_text().startswith(f"{enough} passes")
    assert not plots.convergence_plot(samples, tolerance=1e-9).axes[0].texts  # never enough: no mark


def test_convergence_picks_rows_from_the_steadiest_to_the_wildest():
    scale = torch.cat([torch.zeros(50), torch.tensor([1.0, 2.0, 3.0])])
    lines = plots.convergence_plot(torch.randn(100, 53) * scale, count=4).axes[0].lines
    assert len(lines) == 4  # not four of the fifty that agree
    spreads = sorted(np.ptp(line.get_ydata()) for line in lines)
    assert spreads[0] == 0 < spreads[1]


def test_band_is_sorted_and_nested():
    x = torch.tensor([2.0, 0.0, 1.0])
    figure = drawn(
        plots.regression_band(x, x * 2, torch.full((3,), 0.5), total_std=torch.ones(3), truth=(x, x), train=(x, x), z=2)
    )
    ax = figure.axes[0]
    np.testing.assert_allclose(ax.lines[0].get_xdata(), [0, 1, 2])
    outer, inner = (c.get_paths()[0].get_extents() for c in ax.collections)
    assert (outer.y0, outer.y1, inner.y0, inner.y1) == pytest.approx((-2, 6, -1, 5))
    bare = plots.regression_band(x, x * 2, torch.full((3,), 0.5)).axes[0]
    assert [line.get_label() for line in bare.lines] == ["mean"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: plots.reliability_diagram(), "at least one grouping"),
        (lambda: plots.most_uncertain_pictures(torch.rand(3, 8, 8), torch.rand(4)), "per picture"),
        (lambda: plots.most_uncertain_pictures(torch.rand(3, 2, 8, 8), torch.rand(3)), "pictures must be"),
        (lambda: plots.most_uncertain_pictures(torch.rand(3, 8, 8), torch.full((3,), math.nan)), "nothing to show"),
        (lambda: plots.uncertainty_histogram({"right": []}), "every group is empty"),
        (lambda: plots.risk_coverage_curve({}), "at least one curve"),
        (lambda: plots.convergence_plot(torch.rand(1, 3)), "S at least 2"),
        (lambda: plots.regression_band([0, 1], [0, 1], [1]), "one of std per input"),
        (lambda: plots.regression_band([0, 1], [0, 1], [1, 1], z=0), "z must be in"),
    ],
)
def test_bad_input_gets_a_sentence(call, message):
    with pytest.raises(UserInputError, match=message):
        call()


def test_labels_must_match(bins):
    with pytest.raises(UserInputError, match="one label per grouping"):
        plots.reliability_diagram(bins, labels=["off", "on"])
