"""Streamed summaries equal those of all passes at once, whatever the pieces and the shape."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_tricks import uncertainty as u
from lightning_tricks._base import UserInputError


def streamed(stream, samples, sizes):
    for piece in samples.split(sizes):
        stream.update(piece)
    return stream.compute()


@given(
    sizes=st.lists(st.integers(1, 7), min_size=1, max_size=5),
    offset=st.sampled_from([0.0, 1.0, 1e3, -1e6]),
    seed=st.integers(0, 99),
)
@settings(max_examples=40, deadline=None)
def test_moments_of_any_pieces_are_those_of_the_whole(sizes, offset, seed):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(sum(sizes) + 1, 3, dtype=torch.float64, generator=generator) + offset
    moments = u.RunningMoments()
    for piece in values.split([*sizes, 1]):
        moments.update(piece)
    assert moments.count == len(values)
    torch.testing.assert_close(moments.mean, values.mean(0))
    torch.testing.assert_close(moments.variance(), values.var(0), rtol=1e-6, atol=1e-12)
    torch.testing.assert_close(moments.variance(ddof=0), values.var(0, correction=0), rtol=1e-6, atol=1e-12)


def test_a_row_goes_on_alone_as_in_company():
    """A row's numbers do not depend, to the last bit, on the rows beside it."""
    passes = torch.rand(300, 13, 5).softmax(-1)

    def streamed(rows):
        stream = u.SampleStream("multiclass", quantiles=(0.5,))
        stream.update(passes[:100, rows])
        stream.update(passes[100:, rows])
        return stream.compute()

    whole = streamed(slice(None))
    first = u.SampleStream("multiclass", quantiles=(0.5,))
    first.update(passes[:100])
    rows = torch.tensor([7, 2, 2])
    part = first.take(rows)
    part.update(passes[100:, rows])
    for name, values in streamed(slice(6, 9)).items():
        assert torch.equal(values, whole[name][6:9]), name
    for name, values in part.compute().items():
        assert torch.equal(values, whole[name][rows]), name
    assert first.count == 100


def test_spread_survives_single_precision_far_from_zero():
    truth = torch.randn(100, 500, dtype=torch.float64) * 1e-3 + 1000
    seen = truth.float()
    moments = u.RunningMoments()
    for piece in seen.split(8):
        moments.update(piece)
    torch.testing.assert_close(moments.variance(), seen.double().var(0).float(), rtol=1e-4, atol=0)
    naive = (seen.square().mean(0) - seen.mean(0).square()).sqrt()
    assert naive.isnan().float().mean() > 0.1  # what the textbook formula gives


def test_one_value_has_no_variance():
    moments = u.RunningMoments()
    moments.update(torch.ones(1, 2))
    assert moments.variance().isnan().all()


@pytest.mark.parametrize(("shape", "class_dim"), [((5, 4), 2), ((5, 4, 3, 2), 2), ((5, 3, 2, 4), -1), ((5, 3, 4), 3)])
def test_classes_streamed_equal_the_pure_functions(shape, class_dim):
    samples = torch.randn(12, *shape).mul(2).softmax(class_dim)
    got = streamed(u.SampleStream("multiclass", class_dim=class_dim), samples, [1, 5, 6])
    dim = class_dim - 1 if class_dim > 0 else class_dim
    want = {
        "mean": samples.mean(0),
        "std": samples.std(0),
        "mc_error": u.monte_carlo_error(samples),
        "label": samples.mean(0).argmax(dim),
        "confidence": samples.mean(0).amax(dim),
        "entropy": u.predictive_entropy(samples, class_dim=class_dim),
        "expected_entropy": u.expected_entropy(samples, class_dim=class_dim),
        "mutual_info": u.mutual_information(samples, class_dim=class_dim),
        "variation_ratio": u.variation_ratio(samples, class_dim=class_dim),
    }
    for name, value in want.items():
        torch.testing.assert_close(got[name], value, msg=name)
    top = samples.mean(0).sort(dim, descending=True).values
    torch.testing.assert_close(got["margin"], top.select(dim, 0) - top.select(dim, 1))
    assert got["n_samples"].tolist() == [12] * 5


@pytest.mark.parametrize("task", ["binary", "multilabel"])
def test_yes_or_no_equals_two_classes(task):
    samples = torch.rand(9, 6, 3)
    got = streamed(u.SampleStream(task), samples, 4)
    both = streamed(u.SampleStream("multiclass"), torch.stack([1 - samples, samples], dim=2), 9)
    for name in ("entropy", "expected_entropy", "mutual_info", "variation_ratio", "confidence", "margin", "label"):
        torch.testing.assert_close(got[name], both[name], msg=name)
    torch.testing.assert_close(got["mean"], samples.mean(0))


@pytest.mark.parametrize("shape", [(6,), (6, 1), (6, 2, 3)])
def test_regression_with_a_gaussian_head(shape):
    mean, log_variance = torch.randn(20, *shape), torch.randn(20, *shape)
    stream = u.SampleStream("regression", quantiles=(0.1, 0.9), keep_samples=True)
    for piece in zip(mean.split(7), log_variance.split(7), strict=True):
        stream.update(piece)
    got = stream.compute()
    want = u.decompose_variance(mean, log_variance=log_variance)
    for part in ("epistemic", "aleatoric", "total"):
        torch.testing.assert_close(got[f"{part}_variance"], want[part])
    torch.testing.assert_close(got["quantile_0.9"], u.predictive_quantile(mean, 0.9, log_variance=log_variance))
    assert torch.equal(got["samples"], mean.movedim(0, 1))
    assert torch.equal(got["samples_log_variance"], log_variance.movedim(0, 1))
    assert {len(value) for value in got.values()} == {6}


def test_regression_knows_only_the_noise_it_was_told():
    samples = torch.randn(10, 4)
    plain = streamed(u.SampleStream("regression"), samples, 10)
    assert "total_variance" not in plain
    noisy = streamed(u.SampleStream("regression", tau=4.0), samples, 3)
    torch.testing.assert_close(noisy["total_variance"], samples.var(0) + 0.25)


def test_samples_are_kept_only_if_asked_for():
    stream = u.SampleStream("multiclass")
    for _ in range(5):
        stream.update(torch.rand(100, 2, 3).softmax(2))
    held = [value for value in vars(stream).values() if isinstance(value, torch.Tensor)]
    held += [v for m in (stream._moments, stream._entropies) for v in vars(m).values() if isinstance(v, torch.Tensor)]
    assert stream._kept == []
    assert sum(value.numel() for value in held) < 100  # of 3,000 numbers seen


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_single(dtype):
    samples = torch.rand(2000, 3, 4).softmax(2).to(dtype)
    got = streamed(u.SampleStream("multiclass"), samples, 100)
    assert got["mean"].dtype == torch.float32
    torch.testing.assert_close(got["mean"], samples.double().mean(0).float(), rtol=1e-5, atol=1e-6)


def test_nan_stays_in_its_row():
    samples = torch.rand(8, 3, 4).softmax(2)
    samples[2, 1] = math.nan
    got = streamed(u.SampleStream("multiclass"), samples, 3)
    for name in ("mean", "std", "entropy", "expected_entropy", "mutual_info", "variation_ratio", "confidence"):
        rows = got[name].isnan().reshape(3, -1).any(1)
        assert rows.tolist() == [False, True, False], name
    for measure in (u.predictive_entropy, u.expected_entropy, u.mutual_information, u.variation_ratio):
        assert measure(samples).isnan().tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: u.SampleStream("multi"), "task must be one of"),
        (lambda: u.SampleStream("binary", quantiles=[1.5]), r"quantiles must be in \(0, 1\)"),
        (lambda: u.SampleStream("binary", tau=1.0), "tau is the noise of a regression"),
        (lambda: u.SampleStream("multiclass").update(torch.randn(4, 3, 2) * 9), "Apply softmax"),
        (lambda: u.SampleStream("multiclass").update(torch.rand(4, 3)), r"samples must be \(passes, rows, classes"),
        (lambda: u.SampleStream("binary").update((torch.rand(4, 3), torch.rand(4, 3))), "a pair"),
        (lambda: u.SampleStream("regression").update((torch.rand(4, 3), torch.rand(4, 2))), "must have one shape"),
        (lambda: u.SampleStream("regression").compute(), "at least 2 stochastic passes, but got 0"),
    ],
)
def test_bad_input_gets_a_sentence(make, message):
    with pytest.raises(UserInputError, match=message):
        make()


def test_every_update_holds_the_same_batch():
    stream = u.SampleStream("regression")
    stream.update(torch.rand(2, 5))
    with pytest.raises(UserInputError, match="same batch"):
        stream.update(torch.rand(2, 4))
    pairs = u.SampleStream("regression")
    pairs.update((torch.rand(2, 5), torch.rand(2, 5)))
    with pytest.raises(UserInputError, match=r"were pairs \(mean, log_variance\), but this one is a single tensor"):
        pairs.update(torch.rand(2, 5))
