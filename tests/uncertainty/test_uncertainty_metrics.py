"""Metrics against scikit-learn, torchmetrics, closed forms and slow obvious versions; two processes agree with one."""

import itertools
import math

import jaxtyping
import numpy as np
import pytest
import torch
from helpers import run_ranks
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats
from sklearn.metrics import brier_score_loss, log_loss, roc_auc_score
from torchmetrics.classification import BinaryAUROC, BinaryCalibrationError, MulticlassCalibrationError
from torchmetrics.regression import ContinuousRankedProbabilityScore

from lightning_tricks import uncertainty as u
from lightning_tricks._base import UserInputError


def answers(n=200, classes=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    probs = torch.randn(n, classes, generator=generator).mul(2).softmax(1)
    return probs, torch.multinomial(probs.sqrt(), 1, generator=generator)[:, 0]


def ranked(n=60, levels=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    confidence = torch.rand(n, generator=generator)
    if levels:
        confidence = (confidence * levels).floor() / levels
    return confidence, torch.rand(n, generator=generator) > confidence


# ---------------------------------------------------------------- calibration


@pytest.mark.parametrize("bins", [1, 7, 15])
def test_calibration_error_equals_torchmetrics(bins):
    probs, target = answers()
    confidence, label = probs.max(1)
    ours = u.expected_calibration_error(confidence, label == target, bins=bins)
    theirs = MulticlassCalibrationError(num_classes=5, n_bins=bins)(probs, target)
    assert ours == pytest.approx(theirs.item(), abs=1e-6)


def test_bins_of_equal_count_by_hand():
    confidence = torch.tensor([0.1, 0.2, 0.3, 0.8, 0.9, 1.0])
    correct = torch.tensor([False, False, True, True, True, False])
    groups = u.calibration_bins(confidence, correct, bins=3, binning="count")
    assert groups.count.tolist() == [2, 2, 2]
    torch.testing.assert_close(groups.confidence, torch.tensor([0.15, 0.55, 0.95]))
    torch.testing.assert_close(groups.accuracy, torch.tensor([0.0, 1.0, 0.5]))
    assert u.expected_calibration_error(confidence, correct, bins=3, binning="count") == pytest.approx(
        (0.15 + 0.45 + 0.45) / 3
    )


@given(n=st.integers(1, 40), bins=st.integers(1, 20), binning=st.sampled_from(["width", "count"]))
@settings(max_examples=40, deadline=None)
def test_every_answer_lands_in_one_bin(n, bins, binning):
    confidence, error = ranked(n)
    groups = u.calibration_bins(confidence, ~error, bins=bins, binning=binning)
    assert groups.count.sum() == n
    assert len(groups.edges) == bins + 1
    assert (groups.edges.diff() >= 0).all()
    if binning == "count":
        assert groups.count.max() - groups.count.min() <= 1


@given(n=st.integers(1, 50), levels=st.sampled_from([None, 1, 3, 10]), seed=st.integers(0, 50))
@settings(max_examples=40, deadline=None)
def test_order_of_answers_does_not_matter_to_the_bins(n, levels, seed):
    confidence, error = ranked(n, levels, seed)
    shuffle = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    for binning in ("width", "count"):
        one = u.calibration_bins(confidence, ~error, bins=4, binning=binning)
        other = u.calibration_bins(confidence[shuffle], ~error[shuffle], bins=4, binning=binning)
        torch.testing.assert_close(other.accuracy, one.accuracy, equal_nan=True)
        torch.testing.assert_close(other.confidence, one.confidence, equal_nan=True)
        assert torch.equal(other.count, one.count)


@pytest.mark.parametrize("edge", [0.0, 0.2, 1.0])
def test_confidence_on_an_edge_belongs_to_the_bin_below(edge):
    groups = u.calibration_bins(torch.tensor([edge]), torch.tensor([True]), bins=5)
    assert groups.count.argmax() == max(round(edge * 5) - 1, 0)


# ---------------------------------------------------------------- proper scores


def test_likelihood_and_brier_equal_scikit_learn():
    probs, target = answers()
    probs = probs.double() / probs.double().sum(1, keepdim=True)
    nll, brier = u.NegativeLogLikelihood(), u.BrierScore()
    for part in zip(probs.split(33), target.split(33), strict=True):
        nll.update(*part)
        brier.update(*part)
    assert nll.compute().item() == pytest.approx(log_loss(target, probs), rel=1e-6)
    truth = torch.nn.functional.one_hot(target, 5)
    assert brier.compute().item() == pytest.approx((probs - truth).square().sum(1).mean().item(), rel=1e-6)


def test_yes_or_no_scores_equal_scikit_learn():
    p, y = torch.rand(100).double(), (torch.rand(100) < 0.3).long()
    assert u.BrierScore()(p, y).item() == pytest.approx(2 * brier_score_loss(y, p), rel=1e-5)
    assert u.NegativeLogLikelihood()(p, y).item() == pytest.approx(log_loss(y, p), rel=1e-5)


def test_segmentation_maps_count_every_pixel():
    probs, target = torch.rand(2, 3, 4, 5).softmax(1), torch.randint(3, (2, 4, 5))
    flat = probs.movedim(1, -1).reshape(-1, 3)
    for metric in (u.BrierScore, u.NegativeLogLikelihood, u.AdaptiveCalibrationError):
        torch.testing.assert_close(metric()(probs, target), metric()(flat, target.flatten()))


def test_one_sure_mistake_is_expensive_but_finite():
    assert u.NegativeLogLikelihood()(torch.tensor([[1.0, 0.0]]), torch.tensor([1])).item() == pytest.approx(
        15.94, abs=0.01
    )


# ---------------------------------------------------------------- selective prediction


def slow_curve(confidence, error):
    order = sorted(range(len(confidence)), key=lambda i: -confidence[i])
    wrong = np.cumsum([float(error[i]) for i in order])
    k = np.arange(1, len(order) + 1)
    return wrong / k, wrong / len(order)


def test_areas_equal_the_slow_definition():
    confidence, error = ranked()
    risk, general = slow_curve(confidence.tolist(), error.tolist())
    assert u.aurc(confidence, error).item() == pytest.approx(risk.mean(), rel=1e-6)
    assert u.augrc(confidence, error).item() == pytest.approx(general.mean(), rel=1e-6)
    best, _ = slow_curve((~error).float().tolist(), error.tolist())
    assert u.excess_aurc(confidence, error).item() == pytest.approx(risk.mean() - best.mean(), abs=1e-6)


def test_ties_give_the_mean_over_all_orders():
    confidence, error = torch.tensor([0.9, 0.5, 0.5, 0.5, 0.2]), torch.tensor([False, True, False, False, True])
    risks, generals = [], []
    for order in itertools.permutations([1, 2, 3]):
        rows = [0, *order, 4]
        risk, general = slow_curve([5, 4, 3, 2, 1], error[rows].tolist())
        risks.append(risk.mean())
        generals.append(general.mean())
    assert u.aurc(confidence, error).item() == pytest.approx(np.mean(risks), rel=1e-6)
    assert u.augrc(confidence, error).item() == pytest.approx(np.mean(generals), rel=1e-6)


@given(n=st.integers(2, 50), levels=st.sampled_from([None, 1, 3, 10]), seed=st.integers(0, 50))
@settings(max_examples=60, deadline=None)
def test_order_of_rows_does_not_matter(n, levels, seed):
    confidence, error = ranked(n, levels, seed)
    shuffle = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    for function in (u.aurc, u.augrc, u.excess_aurc):
        assert torch.equal(function(confidence, error), function(confidence[shuffle], error[shuffle]))
    assert u.excess_aurc(confidence, error) >= -1e-6


def test_the_oracle_knows_losses_to_their_last_digit():
    loss = torch.rand(50)
    trust = torch.randint(5, (50,))  # whole numbers, whose type holds no loss
    torch.testing.assert_close(u.excess_aurc(trust, loss), u.excess_aurc(trust.float(), loss))
    assert u.excess_aurc(-loss, loss) == 0
    assert u.excess_aurc(-loss.argsort().argsort(), loss) == 0


def test_augrc_is_made_of_accuracy_and_auroc():
    # Traub et al. (2024), equation 8, in its exact finite form: pairs of a right and a wrong answer in the wrong order,
    # plus every wrong answer with those wrong ones at or before it.
    confidence, error = ranked(300)
    n, wrong = len(error), int(error.sum())
    auroc = u.uncertainty_auroc(-confidence, error).item()
    want = ((1 - auroc) * wrong * (n - wrong) + wrong * (wrong + 1) / 2) / n**2
    assert u.augrc(confidence, error).item() == pytest.approx(want, rel=1e-5)


def test_risk_and_coverage_by_hand():
    confidence = torch.tensor([0.9, 0.8, 0.7, 0.7, 0.1])
    error = torch.tensor([False, False, True, False, True])
    # Risks at the thresholds: 0, 0, (tie) 1/4, 2/5.
    assert u.coverage_at_risk(confidence, error, risk=0.25).item() == pytest.approx(0.8)
    assert u.coverage_at_risk(confidence, error, risk=0.2).item() == pytest.approx(0.4)  # no threshold splits the tie
    assert u.coverage_at_risk(confidence, torch.ones(5), risk=0.5).item() == 0
    assert u.risk_at_coverage(confidence, error, coverage=0.4).item() == 0
    assert u.risk_at_coverage(confidence, error, coverage=0.8).item() == pytest.approx(0.25)
    assert u.risk_at_coverage(confidence, error, coverage=1.0).item() == pytest.approx(0.4)


@pytest.mark.parametrize("levels", [None, 4])
def test_auroc_equals_scikit_learn_for_any_unit(levels):
    confidence, error = ranked(150, levels)
    entropy = 7 - 9 * confidence  # from -2 to 7
    want = roc_auc_score(error, entropy)
    assert u.uncertainty_auroc(entropy, error).item() == pytest.approx(want, abs=1e-6)
    metric = u.UncertaintyAUROC()
    metric.update(entropy[:60], error[:60])
    metric.update(entropy[60:], error[60:])
    assert metric.compute().item() == pytest.approx(want, abs=1e-6)


def test_torchmetrics_own_auroc_would_misread_entropies():
    metric = BinaryAUROC()
    metric.update(torch.tensor([0.1, 0.45]), torch.tensor([0, 1]))
    metric.update(torch.tensor([0.2, 1.5]), torch.tensor([0, 1]))  # above 1, so this batch goes through a sigmoid
    assert metric.compute() < 1
    assert u.uncertainty_auroc(torch.tensor([0.1, 0.45, 0.2, 1.5]), torch.tensor([False, True, False, True])) == 1


def test_nothing_to_detect_is_nan():
    assert u.uncertainty_auroc(torch.rand(3), torch.zeros(3, dtype=torch.bool)).isnan()
    assert u.UncertaintyAUROC()(torch.rand(3), torch.ones(3)).isnan()


# ---------------------------------------------------------------- regression


def test_crps_of_samples_equals_torchmetrics():
    samples, target = torch.randn(40, 30) + 100, torch.randn(30) + 100
    theirs = ContinuousRankedProbabilityScore()(samples.T, target)
    torch.testing.assert_close(u.crps(samples, target).mean(), theirs.squeeze(), rtol=1e-4, atol=1e-5)


def test_crps_of_a_mixture_equals_the_integral():
    mean, log_variance = torch.tensor([-1.0, 0.5, 2.0]).double(), torch.tensor([0.0, -1.0, 0.7]).double()
    scale = (log_variance / 2).exp()

    def squared(x, y):
        cdf = np.mean([stats.norm.cdf(x, m, s) for m, s in zip(mean, scale, strict=True)])
        return (cdf - (x >= y)) ** 2

    for y in (-2.0, 0.4, 5.0):
        want = integrate.quad(squared, -20, y, args=(y,))[0] + integrate.quad(squared, y, 20, args=(y,))[0]
        got = u.crps(mean[:, None], torch.tensor([y]).double(), log_variance=log_variance[:, None])
        assert got.item() == pytest.approx(want, rel=1e-5)


def test_crps_of_one_gaussian_and_shapes():
    # Gneiting & Raftery (2007), equation 21, at y = mean: sigma (sqrt(2) - 1) / sqrt(pi).
    got = u.crps(torch.zeros(4, 2, 3), torch.zeros(2, 3), tau=0.25)
    torch.testing.assert_close(got, torch.full((2, 3), 2 * (math.sqrt(2) - 1) / math.sqrt(math.pi)))


def test_interval_metrics():
    low, high, y = torch.tensor([0.0, 1.0, 2.0]), torch.tensor([1.0, 1.0, 5.0]), torch.tensor([1.0, 2.0, 3.0])
    assert u.IntervalCoverage()(low, high, y).item() == pytest.approx(2 / 3)
    assert u.IntervalWidth()(low, high).item() == pytest.approx(4 / 3)
    assert u.IntervalCoverage()(low, high, y * math.nan).isnan()
    with pytest.raises(UserInputError, match="swapped"):
        u.IntervalCoverage().update(high, low, y)


MEAN, COLUMN, SPREAD = torch.rand(20), torch.rand(20, 1), torch.ones(20)
PASSES = torch.rand(4, 20)


@pytest.mark.parametrize(
    "call",
    [
        lambda: u.SpreadScaling.fit(COLUMN, SPREAD[:, None], MEAN),
        lambda: u.SpreadScaling.fit(MEAN, SPREAD[:, None], MEAN),
        lambda: u.ConformalInterval.fit(COLUMN, MEAN),
        lambda: u.ConformalInterval.fit(MEAN, MEAN, std=SPREAD[:, None]),
        lambda: u.ConformalInterval(0.9, 1.0)(MEAN, SPREAD[:, None]),
        lambda: u.ConformalSet.fit(torch.full((20, 2), 0.5), torch.zeros(15).long()),
        lambda: u.mixture_log_likelihood(PASSES[..., None], MEAN, tau=1.0),
        lambda: u.mixture_log_likelihood(PASSES, MEAN, log_variance=PASSES[..., None]),
        lambda: u.mixture_log_likelihood(PASSES, MEAN, tau=SPREAD[:, None]),
        lambda: u.crps(PASSES[..., None], MEAN),
        lambda: u.crps(PASSES, MEAN, tau=SPREAD[:, None]),
        lambda: u.decompose_variance(PASSES, log_variance=PASSES[..., None]),
        lambda: u.predictive_quantile(PASSES, 0.5, tau=SPREAD[:, None]),
        lambda: u.inside_interval(COLUMN, COLUMN, MEAN),
        lambda: u.IntervalCoverage().update(COLUMN, COLUMN, MEAN),
        lambda: u.IntervalWidth().update(MEAN, COLUMN),
    ],
)
def test_nothing_is_broadcast_without_a_word(call, monkeypatch):
    """Every number against every other, of which N of N² pairs are meant."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # users have no checker of shapes
    with pytest.raises(UserInputError, match=r"shape.*, but got|classes \(N,\), but got"):
        call()


# ---------------------------------------------------------------- policy, input, processes

ROW_METRICS = [u.AURC, u.ExcessAURC, u.AUGRC, u.CoverageAtRisk, u.UncertaintyAUROC]


@pytest.mark.parametrize("make", ROW_METRICS)
def test_nan_gives_nan_and_functions_say_so(make):
    assert make()(torch.tensor([0.5, math.nan]), torch.tensor([True, False])).isnan()
    with pytest.raises(UserInputError, match="1 of 2 values"):
        u.aurc(torch.tensor([0.5, math.nan]), torch.tensor([True, False]))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: u.aurc(torch.empty(0), torch.empty(0)), "at least one answer"),
        (lambda: u.AURC().update(torch.rand(3), torch.rand(4)), "one shape"),
        (lambda: u.AdaptiveCalibrationError(bins=0), "bins must be in"),
        (lambda: u.CoverageAtRisk(risk=-1), "risk must be in"),
        (lambda: u.BrierScore().update(torch.randn(4, 3) * 5, torch.zeros(4).long()), "Apply softmax"),
        (lambda: u.BrierScore().update(torch.rand(4, 3), torch.zeros(5).long()), r"\(B, C, ...\) with targets"),
        (lambda: u.calibration_bins(torch.tensor([1.5]), torch.tensor([True])), "between 0 and 1"),
        (lambda: u.calibration_bins(torch.empty(0), torch.empty(0) > 0), "expected at least one answer, but got none"),
        (lambda: u.crps(torch.rand(2, 4), torch.rand(4), tau=1.0, log_variance=torch.rand(2, 4)), "but got both"),
        (lambda: u.calibration_bins(torch.rand(2), torch.ones(2) > 0, binning="size"), "binning must be one of"),
        (lambda: u.risk_at_coverage(torch.rand(2), torch.ones(2), coverage=0.0), "coverage must be in"),
    ],
)
def test_bad_input_gets_a_sentence(call, message):
    with pytest.raises(UserInputError, match=message):
        call()


def every_metric():
    probs, target = answers(n=81)
    confidence, label = probs.max(1)
    wrong = label != target
    low = torch.arange(81.0)
    return {
        "ace": (u.AdaptiveCalibrationError(), (probs, target)),
        "brier": (u.BrierScore(), (probs, target)),
        "nll": (u.NegativeLogLikelihood(), (probs, target)),
        **{make.__name__: (make(), (confidence.mul(8).round(), wrong)) for make in ROW_METRICS},
        "inside": (u.IntervalCoverage(), (low, low + 1, low + torch.arange(81) % 3)),
        "width": (u.IntervalWidth(), (low, low * 2)),
    }


def on_rank(rank, shares):
    torch.distributed.init_process_group("gloo")
    values = {}
    for name, (metric, data) in every_metric().items():
        for part in zip(*(column.split(20) for column in data), strict=True):
            rows = [column[sum(shares[:rank]) : sum(shares[: rank + 1])] for column in part]
            if len(rows[0]):
                metric.update(*rows)
        values[name] = metric.compute().item()
    return values


@pytest.mark.parametrize("shares", [(7, 13), (20, 0)])
@pytest.mark.filterwarnings(
    "ignore:The ``compute`` method of metric:UserWarning"
)  # a rank without any row is the point
def test_two_processes_agree_with_one(shares):
    alone = {}
    for name, (metric, data) in every_metric().items():
        metric.update(*data)
        alone[name] = metric.compute().item()
    for values in run_ranks(on_rank, shares):
        assert values == pytest.approx(alone, rel=1e-6)


def test_calibration_of_yes_or_no_goes_through_the_chosen_answer():
    p, y = torch.rand(100), torch.randint(2, (100,))
    metric = u.AdaptiveCalibrationError(bins=5)
    metric.update(p, y)
    chosen = torch.maximum(p, 1 - p)
    want = u.expected_calibration_error(chosen, (p > 0.5).long() == y, bins=5, binning="count")
    assert metric.compute().item() == pytest.approx(want)
    assert BinaryCalibrationError(n_bins=5)(p, y) >= 0  # torchmetrics' own works on the probability of a yes instead
