"""Temperature against a closed form and an optimizer; conformal promises against their exact coverage."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from lightning_tricks import uncertainty as u
from lightning_tricks._base import UserInputError


def overconfident(n=2000, classes=4, factor=3.0, seed=0):
    """Logits ``factor`` times too large, and labels drawn from what they should have been."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, classes, generator=generator, dtype=torch.float64)
    target = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]
    return (factor * logits).softmax(1), target


# ---------------------------------------------------------------- temperature and spread


def test_temperature_is_recovered_and_mends_the_calibration_error():
    probs, target = overconfident(n=20_000)
    scaling = u.TemperatureScaling.fit(probs, target)
    assert scaling.temperature == pytest.approx(3, rel=0.05)
    new, truth = overconfident(n=20_000, seed=1)

    def error(p):
        confidence, label = p.max(1)
        return u.expected_calibration_error(confidence, label == truth)

    assert error(scaling(new)) < 0.015 < 0.2 < error(new)


def test_temperature_equals_scipys_optimum():
    probs, target = overconfident(n=300)

    def nll(temperature):
        scaled = (probs.log() / temperature).log_softmax(1)
        return -scaled.gather(1, target[:, None]).mean().item()

    best = optimize.minimize_scalar(nll, bounds=(0.05, 20), method="bounded", options={"xatol": 1e-8}).x
    assert u.TemperatureScaling.fit(probs, target).temperature == pytest.approx(best, rel=1e-4)


def test_temperature_of_passes_is_that_of_their_mean():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 400, 3, generator=generator).double()
    target = torch.multinomial(logits.softmax(2).mean(0), 1, generator=generator)[:, 0]
    probs = (2 * logits).softmax(2)

    def nll(temperature):
        return -(probs.log() / temperature).softmax(2).mean(0).gather(1, target[:, None]).log().mean().item()

    scaling = u.TemperatureScaling.fit(probs, target)
    assert all(nll(scaling.temperature) <= nll(scaling.temperature * by) for by in (0.5, 0.99, 1.01, 2))
    repeated = u.TemperatureScaling.fit(probs[:1].expand(3, -1, -1), target)
    assert repeated.temperature == pytest.approx(u.TemperatureScaling.fit(probs[0], target).temperature)


@pytest.mark.parametrize(("truth", "want"), [(0, 0.05), (1, 20.0)])
def test_temperature_stays_between_a_twentieth_and_twenty(truth, want):
    probs = torch.tensor([[0.6, 0.4]] * 3)  # if all are right no temperature is too low, if all are wrong none too high
    assert u.TemperatureScaling.fit(probs, torch.tensor([truth] * 3)).temperature == pytest.approx(want, rel=1e-4)


def test_scaling_keeps_order_sums_and_one():
    probs = torch.rand(20, 5).softmax(1)
    for temperature in (0.3, 4.0):
        scaled = u.TemperatureScaling(temperature)(probs)
        torch.testing.assert_close(scaled.sum(1), torch.ones(20))
        assert torch.equal(scaled.argsort(1), probs.argsort(1))
    torch.testing.assert_close(u.TemperatureScaling(1.0)(probs), probs)


def test_yes_or_no_and_pixels_scale_like_classes():
    yes, scaling = torch.rand(7, 3), u.TemperatureScaling(2.5)
    both = scaling(torch.stack([1 - yes, yes], dim=1), class_dim=1)
    torch.testing.assert_close(scaling(yes, class_dim=None), both[:, 1])


def test_spread_has_the_greatest_likelihood():
    mean, std, y = torch.zeros(500).double(), torch.rand(500).double() + 0.1, torch.randn(500).double()
    scaling = u.SpreadScaling.fit(mean, std, y)

    def likelihood(factor):
        return torch.distributions.Normal(mean, std * factor).log_prob(y).sum()

    assert all(likelihood(scaling.factor) >= likelihood(scaling.factor * by) for by in (0.9, 0.999, 1.001, 1.1))
    torch.testing.assert_close(scaling(std), std * scaling.factor)


# ---------------------------------------------------------------- conformal


@pytest.mark.parametrize(("n", "level"), [(9, 0.9), (19, 0.9), (30, 0.8), (99, 0.95)])
def test_coverage_is_the_promised_share_exactly(n, level):
    # For continuous scores P(covered) = ceil((n + 1) level) / (n + 1), whatever the model and the distribution.
    rounds, covered = 1500, 0
    generator = torch.Generator().manual_seed(0)
    y = torch.empty(rounds, n + 1).exponential_(generator=generator)  # far from Gaussian
    for row in y:
        low, high = u.ConformalInterval.fit(torch.zeros(n), row[:n], level=level)(torch.zeros(1))
        covered += bool(low <= row[n] <= high)
    want = math.ceil((n + 1) * level - 1e-9) / (n + 1)
    assert abs(covered / rounds - want) < 4 * math.sqrt(want * (1 - want) / rounds)
    assert want >= level


def test_a_calibration_set_has_beta_distributed_coverage():
    n, level = 50, 0.9
    generator = torch.Generator().manual_seed(1)
    radii = [
        u.ConformalInterval.fit(torch.zeros(n), torch.rand(n, generator=generator), level=level).radius
        for _ in range(600)
    ]  # of uniform targets the radius is the coverage
    rank = math.ceil((n + 1) * level)
    assert stats.kstest(radii, stats.beta(rank, n + 1 - rank).cdf).pvalue > 0.01


def test_intervals_follow_the_spread():
    std = torch.tensor([0.1, 10.0]).repeat(500)
    y = torch.randn(1000) * std
    plain = u.ConformalInterval.fit(torch.zeros(1000), y, level=0.9)
    scaled = u.ConformalInterval.fit(torch.zeros(1000), y, std=std, level=0.9)
    new = torch.randn(1000) * std
    for conformal, spread in ((plain, None), (scaled, std)):
        low, high = conformal(torch.zeros(1000), spread)
        inside = u.inside_interval(low, high, new).float()
        assert inside.mean().item() == pytest.approx(0.9, abs=0.03)
        if spread is not None:
            assert inside[1::2].mean().item() == pytest.approx(0.9, abs=0.05)
            assert (high - low)[0] < (high - low)[1] / 50


@pytest.mark.parametrize("score", ["threshold", "cumulative"])
def test_sets_cover_and_grow_with_the_level(score):
    probs, target = overconfident(n=3000)
    new, truth = overconfident(n=3000, seed=5)
    sizes = []
    for level in (0.6, 0.8, 0.95):
        sets = u.ConformalSet.fit(probs, target, level=level, score=score)(new)
        covered = sets.gather(1, truth[:, None]).double().mean().item()
        assert level - 0.03 < covered < level + (0.03 if score == "threshold" else 0.35)  # not randomised: generous
        sizes.append(sets.sum().item())
    assert sizes == sorted(sizes)


@given(seed=st.integers(0, 99), level=st.sampled_from([0.5, 0.9]))
@settings(max_examples=30, deadline=None)
def test_a_set_holds_the_most_probable_classes(seed, level):
    probs, target = overconfident(n=60, seed=seed)
    for score in ("threshold", "cumulative"):
        sets = u.ConformalSet.fit(probs, target, level=level, score=score)(probs)
        inside = probs.masked_fill(~sets, math.inf).amin(1)
        outside = probs.masked_fill(sets, -math.inf).amax(1)
        assert (inside >= outside).all()


def test_intervals_by_hand():
    """Of four distances a promise of 0.6 takes the third: ceil(5 * 0.6)."""
    mean, target = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([2.0, 4.0, 0.0, 8.0])  # 1, 2, -3 and 4 off
    plain = u.ConformalInterval.fit(mean, target, level=0.6)
    assert plain == u.ConformalInterval(level=0.6, radius=3.0)
    assert plain(torch.tensor([10.0])) == (7, 13)
    scaled = u.ConformalInterval.fit(mean, target, std=torch.tensor([1.0, 0.5, 0.25, 8.0]), level=0.6)  # 1, 4, 12, 0.5
    assert scaled == u.ConformalInterval(level=0.6, radius=4.0)
    assert scaled(torch.tensor([10.0]), torch.tensor([2.0])) == (2, 18)


@pytest.mark.parametrize(
    ("score", "threshold", "want"),
    [  # scores of the four truths: 1/8, 1/4, 1/2 and 3/4, or 7/8, 3/4, 1/2 and 3/4; the third smallest counts
        ("threshold", 0.5, [[True, True, False], [False, False, False], [False, False, True]]),
        ("cumulative", 0.75, [[True, False, False], [True, True, False], [True, False, True]]),
    ],
)
def test_sets_by_hand(score, threshold, want):
    probs = torch.tensor([[0.875, 0.125, 0.0], [0.75, 0.25, 0.0], [0.25, 0.5, 0.25], [0.25, 0.25, 0.5]])
    conformal = u.ConformalSet.fit(probs, torch.tensor([0, 0, 1, 0]), level=0.6, score=score)
    assert conformal == u.ConformalSet(level=0.6, threshold=threshold, score=score)
    new = torch.tensor([[0.5, 0.5, 0.0], [0.375, 0.375, 0.25], [0.25, 0.25, 0.5]])
    assert conformal(new).tolist() == want


def test_nine_tenths_and_the_smallest_sets_unless_asked():
    away = torch.arange(1.0, 20.0)  # of 19 the 18th: ceil(20 * 0.9)
    assert u.ConformalInterval.fit(torch.zeros(19), away) == u.ConformalInterval(0.9, 18.0)
    yes = 1 - away / 32
    conformal = u.ConformalSet.fit(torch.stack([yes, 1 - yes], dim=1), torch.zeros(19, dtype=torch.int64))
    assert conformal == u.ConformalSet(0.9, 18 / 32, "threshold")
    assert u.ConformalSet(0.9, 18 / 32) == conformal


ONE_NAN = torch.cat([torch.full((8, 2), 0.5), torch.full((1, 2), math.nan)])
ONE_LEFT_OUT = torch.tensor([0] * 8 + [-100])


def test_a_tiny_level_takes_the_nearest_row_and_none_is_refused():
    probs, target = torch.tensor([[0.75, 0.25]] * 3), torch.tensor([0, 1, 1])
    assert u.ConformalInterval.fit(torch.zeros(3), torch.tensor([3.0, 1.0, 2.0]), level=0.01).radius == 1
    assert u.ConformalSet.fit(probs, target, level=0.01).threshold == 0.25
    for level in (-0.5, 0.0, 1.0):
        with pytest.raises(UserInputError, match="level must be in"):
            u.ConformalInterval.fit(torch.zeros(3), torch.rand(3), level=level)
        with pytest.raises(UserInputError, match="level must be in"):
            u.ConformalSet.fit(probs, target, level=level)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: u.ConformalInterval.fit(torch.rand(8), torch.rand(8), level=0.9), "at least 9 calibration rows"),
        (lambda: u.ConformalInterval.fit(torch.rand(8), torch.full((8,), math.nan), level=0.5), "must not hold NaN"),
        (lambda: u.ConformalInterval.fit(torch.rand(8), torch.rand(8), level=1.0), "level must be in"),
        (lambda: u.ConformalSet.fit(torch.randn(8, 3) * 5, torch.zeros(8).long()), "Apply softmax"),
        (lambda: u.ConformalSet.fit(torch.rand(8, 3), torch.zeros(8).long(), score="aps"), "score must be one of"),
        (lambda: u.TemperatureScaling(0.0), "temperature must be in"),
        (lambda: u.TemperatureScaling.fit(torch.rand(0, 3), torch.zeros(0).long()), "N at least 1"),
        (lambda: u.TemperatureScaling.fit(torch.rand(5, 3), torch.zeros(4).long()), r"\(N, C\) or \(S, N, C\)"),
        (lambda: u.TemperatureScaling.fit(ONE_NAN, torch.zeros(9).long()), "probabilities must not hold NaN"),
        (
            lambda: u.TemperatureScaling.fit(torch.full((9, 2), 0.5), ONE_LEFT_OUT),
            "from 0 to 1, but got .* from -100 to 0",
        ),
        (lambda: u.ConformalSet.fit(ONE_NAN, torch.zeros(9).long(), level=0.5), "probabilities must not hold NaN"),
        (lambda: u.ConformalSet.fit(torch.full((9, 2), 0.5), ONE_LEFT_OUT), "from 0 to 1, but got .* from -100 to 0"),
        (lambda: u.SpreadScaling.fit(torch.rand(3), torch.zeros(3), torch.rand(3)), "deviations above 0"),
        (lambda: u.SpreadScaling.fit(torch.ones(3), torch.ones(3), torch.ones(3)), "factor must be in"),
    ],
)
def test_bad_input_gets_a_sentence(call, message):
    with pytest.raises(UserInputError, match=message):
        call()


def test_nine_rows_are_enough_for_nine_tenths():
    assert u.ConformalInterval.fit(torch.zeros(9), torch.arange(9.0), level=0.9).radius == 8


def test_a_spread_may_be_scaled_down():
    assert u.SpreadScaling(0.5).factor == 0.5
