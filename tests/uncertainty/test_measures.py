"""Measures against known distributions, SciPy, and slow obvious versions."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch.distributions import Categorical, Dirichlet, MixtureSameFamily, Normal

from lightning_tricks import uncertainty as u
from lightning_tricks._base import UserInputError


def passes(*shape, seed=0, sharp=2.0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).mul(sharp).softmax(2)


# ---------------------------------------------------------------- classes


def test_entropies_equal_scipy():
    probs = passes(7, 11, 4)
    want = stats.entropy(probs.double().mean(0), axis=1)
    torch.testing.assert_close(u.predictive_entropy(probs), torch.from_numpy(want).float())
    want = stats.entropy(probs.double(), axis=2).mean(0)
    torch.testing.assert_close(u.expected_entropy(probs), torch.from_numpy(want).float())


@given(
    s=st.integers(2, 9), classes=st.integers(2, 6), sharp=st.sampled_from([0.01, 1.0, 30.0]), seed=st.integers(0, 99)
)
@settings(max_examples=60, deadline=None)
def test_bounds(s, classes, sharp, seed):
    probs = passes(s, 5, classes, seed=seed, sharp=sharp)
    total, expected = u.predictive_entropy(probs), u.expected_entropy(probs)
    plug_in = u.mutual_information(probs, correct_bias=False)
    assert (total <= math.log(classes) + 1e-5).all()
    assert (expected >= 0).all()
    assert (plug_in >= 0).all()
    assert (plug_in <= math.log(min(s, classes)) + 1e-5).all()
    assert (u.mutual_information(probs) >= plug_in).all()
    ratio = u.variation_ratio(probs)
    assert ((ratio >= 0) & (ratio <= 1 - 1 / classes + 1e-6)).all()


def dirichlet_information(alpha):
    """Mutual information of a Dirichlet in closed form: H[mean] - E[H] (Malinin & Gales 2018, equation 14)."""
    mean, total = alpha / alpha.sum(), alpha.sum()
    expected = -(mean * (torch.digamma(alpha + 1) - torch.digamma(total + 1))).sum()
    return (Categorical(mean).entropy() - expected).item()


@pytest.mark.parametrize("alpha", [(5.0, 3.0, 2.0), (20.0, 1.0, 1.0, 1.0), (4.0, 4.0)])
@pytest.mark.parametrize(("samples", "most"), [(4, 0.05), (8, 0.02), (32, 0.005)])
def test_information_of_a_known_distribution_is_unbiased(alpha, samples, most):
    alpha = torch.tensor(alpha, dtype=torch.float64)
    truth = dirichlet_information(alpha)
    drawn = Dirichlet(alpha).sample((samples, 400_000 // samples))
    corrected = u.mutual_information(drawn).mean().item() / truth - 1
    plug_in = u.mutual_information(drawn, correct_bias=False).mean().item() / truth - 1
    assert plug_in < -0.7 / samples  # about 1 / S of it is missing
    assert abs(corrected) < most


def test_information_of_yes_or_no_is_unbiased():
    alpha = torch.tensor([3.0, 2.0], dtype=torch.float64)
    drawn = Dirichlet(alpha).sample((4, 100_000))[..., 0]
    got = u.mutual_information(drawn, class_dim=None).mean().item()
    assert got == pytest.approx(dirichlet_information(alpha), rel=0.05)


def test_votes_by_counting():
    probs = passes(9, 20, 3)
    winners = probs.argmax(2)
    want = [1 - max((winners[:, row] == c).sum().item() for c in range(3)) / 9 for row in range(20)]
    torch.testing.assert_close(u.variation_ratio(probs), torch.tensor(want))


def test_a_half_is_a_yes():
    assert u.variation_ratio(torch.tensor([[0.5], [0.5], [0.4]]), class_dim=None).item() == pytest.approx(1 / 3)


def test_rounding_just_outside_of_probabilities_is_taken_back():
    rounded = torch.tensor([[[-5e-5, 1.0009]], [[-5e-5, 1.0009]]], dtype=torch.float64)
    exact = torch.tensor([[[0.0, 1.0]], [[0.0, 1.0]]], dtype=torch.float64)
    assert torch.equal(u.expected_entropy(rounded), u.expected_entropy(exact))
    assert torch.equal(u.variation_ratio(rounded), u.variation_ratio(exact))


def test_one_pass_has_an_entropy():
    probs = passes(1, 4, 2)
    torch.testing.assert_close(u.predictive_entropy(probs), u.expected_entropy(probs))


def test_a_class_nobody_considers_adds_nothing():
    two = torch.rand(6, 4, 1)
    probs = torch.cat([two, 1 - two], dim=2)
    padded = torch.cat([probs, torch.zeros(6, 4, 1)], dim=2)
    for measure in (u.predictive_entropy, u.expected_entropy, u.mutual_information, u.variation_ratio):
        torch.testing.assert_close(measure(padded), measure(probs))


@pytest.mark.parametrize("measure", [u.predictive_entropy, u.expected_entropy, u.mutual_information, u.variation_ratio])
def test_pixels_time_steps_and_yes_or_no(measure):
    probs = passes(5, 2, 3, 4, 6)
    pixels = measure(probs)
    assert pixels.shape == (2, 4, 6)
    torch.testing.assert_close(measure(probs.movedim(2, -1), class_dim=-1), pixels)
    torch.testing.assert_close(measure(probs.movedim(2, 3), class_dim=3 - 5), pixels)
    torch.testing.assert_close(measure(probs, class_dim=2 - 5), pixels)
    torch.testing.assert_close(measure(probs[..., 1, 2]), pixels[..., 1, 2])
    yes = torch.rand(5, 2, 3)
    torch.testing.assert_close(measure(yes, class_dim=None), measure(torch.stack([yes, 1 - yes], 2)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: u.predictive_entropy(torch.randn(3, 4, 2) * 5), "^expected probabilities between 0 and 1, .* softmax"),
        (lambda: u.predictive_entropy(torch.full((3, 4, 2), -2e-4)), "got values from -0.0002"),
        (lambda: u.predictive_entropy(torch.full((3, 4, 2), 1.002)), "got values from 1.002"),
        (lambda: u.mutual_information(torch.rand(1, 4, 2)), "at least 2 stochastic passes"),
        (lambda: u.monte_carlo_error(torch.rand(1, 4)), "at least 2 stochastic passes"),
        (lambda: u.predictive_entropy(torch.rand(3, 4)), "class_dim=None for the probability"),
        (lambda: u.predictive_entropy(torch.rand(3, 4, 2), class_dim=1), "class_dim must be an axis after"),
        (lambda: u.credible_interval(torch.rand(3, 4), 1.0), "level must be in"),
        (lambda: u.decompose_variance(torch.rand(1, 4)), "at least 2 stochastic passes"),
        (lambda: u.decompose_variance(torch.rand(2, 4), tau=1.0, log_variance=torch.rand(2, 4)), "got both"),
        (lambda: u.mixture_log_likelihood(torch.rand(2, 4), torch.rand(4)), "exactly one of tau"),
        (lambda: u.mixture_log_likelihood(torch.rand(2, 4), torch.rand(4), tau=-1.0), "tau must be above 0"),
        (lambda: u.predictive_quantile(torch.rand(2, 4), 0.0), "level must be in"),
        (lambda: u.predictive_quantile(torch.rand(2, 4), 0.5, tau=1.0, log_variance=torch.rand(2, 4)), "but got both"),
    ],
)
def test_bad_input_gets_a_sentence(call, message):
    with pytest.raises(UserInputError, match=message):
        call()


@pytest.mark.parametrize("measure", [u.predictive_entropy, u.expected_entropy, u.mutual_information, u.variation_ratio])
@pytest.mark.parametrize("class_dim", [-3, -2, 0, 1, 3])
def test_classes_lie_on_an_axis_after_passes_and_rows(measure, class_dim):
    with pytest.raises(UserInputError, match=rf"got class_dim={class_dim} for samples of shape \(3, 4, 2\)"):
        measure(passes(3, 4, 2), class_dim=class_dim)


# ---------------------------------------------------------------- any samples


def test_quantiles_and_variances_of_few_passes_by_hand():
    """Without noise the passes' own, and with one pass or equal ones a Gaussian's."""
    drawn = torch.tensor([[1.0, 10.0], [2.0, 20.0], [4.0, 60.0]])
    assert u.predictive_quantile(drawn, 0.5).tolist() == [2.0, 20.0]
    assert u.predictive_quantile(drawn, 0.75).tolist() == [3.0, 40.0]
    want = stats.norm(2.0, 0.5).ppf(0.9)
    same = torch.full((3, 2), 2.0, dtype=torch.float64)
    assert u.predictive_quantile(same, 0.9, tau=4.0).tolist() == pytest.approx([want] * 2)
    parts = u.decompose_variance(drawn, tau=4.0)
    assert parts["epistemic"].tolist() == pytest.approx([7 / 3, 700])
    assert parts["aleatoric"].tolist() == [0.25] * 2
    assert parts["total"].tolist() == pytest.approx([7 / 3 + 0.25, 700.25])


def test_variance_of_large_values_that_lie_close_is_exact():
    drawn = torch.tensor([[16777216.0], [16777218.0], [16777220.0]])  # one step of float32 apart
    assert u.decompose_variance(drawn)["epistemic"].tolist() == [4.0]


@pytest.mark.parametrize("level", [0.0, 1.0])
def test_levels_lie_between_nothing_and_everything(level):
    for call in (u.predictive_quantile, u.credible_interval):
        with pytest.raises(UserInputError, match="level must be in"):
            call(torch.rand(3, 4), level)


def test_half_precision_is_computed_in_single():
    for kind in (torch.float16, torch.bfloat16):
        low, high = u.credible_interval(torch.linspace(0, 1, 41)[:, None].to(kind))
        assert low.dtype == high.dtype == torch.float32
        assert (low.item(), high.item()) == pytest.approx((0.025, 0.975), abs=2e-3), "95 % unless asked"


def test_standard_error_of_each_row_by_hand():
    drawn = torch.tensor([[1.0, 10.0, 5.0], [3.0, 30.0, 5.0], [1.0, 10.0, 5.0], [3.0, 30.0, 5.0]])
    # Each of four passes is 1, 10 or 0 from its row's mean: sqrt(4 / 3) / sqrt(4) times that.
    assert u.monte_carlo_error(drawn).tolist() == pytest.approx([math.sqrt(1 / 3), 10 * math.sqrt(1 / 3), 0])


def test_standard_error_is_that_of_the_mean():
    drawn = torch.randn(25, 4000) * 3
    assert u.monte_carlo_error(drawn).square().mean().sqrt().item() == pytest.approx(3 / 5, rel=0.03)
    assert drawn.mean(0).std().item() == pytest.approx(3 / 5, rel=0.05)


@pytest.mark.parametrize("level", [0.5, 0.9, 0.95])
def test_interval_equals_torch_quantile(level):
    samples = torch.randn(40, 3, 2)
    low, high = u.credible_interval(samples, level)
    torch.testing.assert_close(low, samples.quantile((1 - level) / 2, dim=0))
    torch.testing.assert_close(high, samples.quantile((1 + level) / 2, dim=0))


# ---------------------------------------------------------------- regression


def mixture(mean, log_variance):
    parts = Normal(mean.movedim(0, -1), (log_variance / 2).exp().movedim(0, -1))
    return MixtureSameFamily(Categorical(torch.ones_like(parts.mean)), parts)


@pytest.mark.parametrize("shape", [(), (5,), (5, 2), (2, 3, 2)])
def test_likelihood_equals_torch_distributions(shape):
    mean, log_variance, y = torch.randn(8, *shape), torch.randn(8, *shape), torch.randn(shape)
    got = u.mixture_log_likelihood(mean, y, log_variance=log_variance)
    torch.testing.assert_close(got, mixture(mean, log_variance).log_prob(y))
    got = u.mixture_log_likelihood(mean, y, tau=2.0)
    torch.testing.assert_close(got, mixture(mean, torch.full_like(mean, -math.log(2))).log_prob(y))


def test_likelihood_of_a_vector_is_joint():
    mean, y = torch.randn(8, 5, 3), torch.randn(5, 3)
    got = u.mixture_log_likelihood(mean, y, tau=2.0, event_dims=1)
    # Gal & Ghahramani's equation 8, term by term.
    distance = (y - mean).square().sum(-1)
    want = (-0.5 * 2 * distance).logsumexp(0) - math.log(8) - 1.5 * math.log(2 * math.pi) + 1.5 * math.log(2)
    torch.testing.assert_close(got, want)


def test_likelihood_in_double_is_exact_to_double():
    got = u.mixture_log_likelihood(torch.full((3, 1), 2.0).double(), torch.tensor([2.5]).double(), tau=0.1)
    assert got.dtype == torch.float64
    assert got.item() == pytest.approx(stats.norm(2, math.sqrt(10)).logpdf(2.5), rel=1e-12)


def test_all_axes_may_form_one_observation_and_no_more():
    mean, y = torch.randn(8, 5, 3), torch.randn(5, 3)
    flat = u.mixture_log_likelihood(mean.flatten(1), y.flatten(), tau=2.0, event_dims=1)
    torch.testing.assert_close(u.mixture_log_likelihood(mean, y, tau=2.0, event_dims=2), flat)
    for event_dims in (-1, 3):
        with pytest.raises(UserInputError, match="event_dims must be in"):
            u.mixture_log_likelihood(mean, y, tau=2.0, event_dims=event_dims)


@pytest.mark.parametrize("tau", [0.0, math.nan, torch.tensor([1.0, 0.0])])
def test_every_precision_lies_above_nothing(tau):
    with pytest.raises(UserInputError, match="tau must be above 0"):
        u.mixture_log_likelihood(torch.zeros(3, 2), torch.zeros(2), tau=tau)


def test_a_far_target_has_a_finite_likelihood():
    assert u.mixture_log_likelihood(torch.zeros(3, 1), torch.tensor([1e4]), tau=1.0).item() == pytest.approx(-5e7)


@pytest.mark.parametrize("level", [0.01, 0.3, 0.5, 0.99])
def test_quantile_of_a_mixture_inverts_its_distribution(level):
    mean, log_variance = torch.randn(6, 10).double() * 3, torch.randn(6, 10).double()
    got = u.predictive_quantile(mean, level, log_variance=log_variance)
    torch.testing.assert_close(mixture(mean, log_variance).cdf(got), torch.full((10,), level).double())


def test_variances_add_up_to_that_of_the_mixture():
    mean, log_variance = torch.randn(50, 4).double(), torch.randn(50, 4).double()
    parts = u.decompose_variance(mean, log_variance=log_variance)
    want = mixture(mean, log_variance).variance  # ddof 0
    torch.testing.assert_close(parts["epistemic"] * 49 / 50 + parts["aleatoric"], want)
    torch.testing.assert_close(parts["total"], parts["epistemic"] + parts["aleatoric"])
    assert not u.decompose_variance(mean)["aleatoric"].any()


def test_small_spread_far_from_zero():
    truth = torch.randn(100, 300, dtype=torch.float64) * 1e-2 + 1e4
    seen = truth.float()
    torch.testing.assert_close(u.decompose_variance(seen)["epistemic"], seen.double().var(0).float())


def test_dropout_of_one_linear_layer_has_its_closed_form():
    # Var[w . dropout(x)] = p / (1 - p) sum (w x)^2
    w, x, p = torch.randn(20), torch.randn(6, 20), 0.3
    drawn = torch.nn.functional.dropout(x.expand(20_000, -1, -1), p) @ w
    variance = u.decompose_variance(drawn)["epistemic"]
    torch.testing.assert_close(variance, p / (1 - p) * (w * x).square().sum(1), rtol=0.05, atol=0)
    error = u.monte_carlo_error(drawn)
    assert ((drawn.mean(0) - x @ w).abs() < 5 * error).all()
