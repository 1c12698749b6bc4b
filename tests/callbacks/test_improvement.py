"""The rule of what improved: against torch where torch is right, and against a slow obvious version."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_tricks._base import UserInputError
from lightning_tricks.callbacks.stopping._improvement import Improvement, Verdict, combined

MANY = settings(max_examples=200, deadline=None)
# Few distinct values, so that ties and returns to the best are common.
TIED = st.sampled_from([-2.0, -1.0, -0.5, 0.0, 0.25, 0.5, 1.0, 1.5])
REAL = st.floats(-1e3, 1e3)
CURVE = st.lists(TIED | REAL, max_size=30)
NASTY = st.lists(TIED | REAL | st.sampled_from([math.nan, math.inf, -math.inf]), max_size=30)
MODE = st.sampled_from(["min", "max"])


def torch_reductions(curve, **options):
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, eps=0, **options)
    rates = []
    for value in curve:
        scheduler.step(value)
        rates.append(optimizer.param_groups[0]["lr"])
    return rates


def our_reductions(curve, *, mode, patience, threshold, threshold_mode, cooldown):
    kind = {"rel": "relative", "abs": "absolute"}[threshold_mode]
    rule = Improvement(mode=mode, patience=patience + 1, margin=threshold, margin_kind=kind)
    lr, rates = 1.0, []
    for value in curve:
        if rule.update(value).exhausted:
            lr *= 0.5
            rule.renew(cooldown=cooldown)
        rates.append(lr)
    return rates


@MANY
@given(
    curve=CURVE,
    mode=MODE,
    patience=st.integers(0, 4),
    cooldown=st.integers(0, 3),
    threshold=st.sampled_from([0.0, 1e-4, 0.1, 0.5]),
    kind=st.sampled_from(["rel", "abs"]),
)
def test_agrees_with_torch_where_torch_is_right(curve, mode, patience, cooldown, threshold, kind):
    if kind == "rel":  # torch's relative margin has the wrong sign below zero
        curve = [abs(value) for value in curve]
    options = {"patience": patience, "cooldown": cooldown, "threshold": threshold, "threshold_mode": kind}
    assert our_reductions(curve, mode=mode, **options) == torch_reductions(curve, mode=mode, **options)


def slow_history(curve, *, mode, patience, margin, relative, start_from, nan):
    """What the rule says after each value, told from the whole history each time."""
    sign = 1 if mode == "min" else -1
    answers = []
    for end in range(1, len(curve) + 1):
        seen = curve[:end]
        if nan == "ignore":
            seen = [value for value in seen if math.isfinite(value)]
        seen = seen[start_from:]
        reference, last_gain, improved = None, 0, False
        for check, value in enumerate(seen, start=1):
            margin_now = 0 if reference is None else margin * (abs(reference) if relative else 1)
            improved = math.isfinite(value) and (reference is None or sign * value < sign * reference - margin_now)
            if improved:
                reference, last_gain = value, check
        finite = [sign * value for value in seen if math.isfinite(value)]
        answers.append((sign * min(finite) if finite else None, improved, len(seen) - last_gain >= patience))
    return answers


@MANY
@given(
    curve=st.lists(TIED | st.sampled_from([math.nan, math.inf, -math.inf]), max_size=20),
    mode=MODE,
    patience=st.integers(1, 4),
    margin=st.sampled_from([0.0, 0.25, 0.5]),  # exact in binary, so that two ways to compute the bar agree
    relative=st.booleans(),
    start_from=st.integers(0, 5),
    nan=st.sampled_from(["count", "ignore"]),
)
def test_agrees_with_a_slow_obvious_version(curve, mode, patience, margin, relative, start_from, nan):
    kind = "relative" if relative else "absolute"
    rule = Improvement(mode=mode, patience=patience, margin=margin, margin_kind=kind, start_from=start_from, nan=nan)
    verdicts = [rule.update(value) for value in curve]
    expected = slow_history(
        curve, mode=mode, patience=patience, margin=margin, relative=relative, start_from=start_from, nan=nan
    )
    assert rule.best == (expected[-1][0] if expected else None)
    for value, verdict, (_, improved, exhausted) in zip(curve, verdicts, expected, strict=True):
        assert verdict.finite == math.isfinite(value)
        if verdict.counted:
            assert (verdict.improved, verdict.exhausted) == (improved, exhausted)
        else:
            assert verdict == Verdict(finite=verdict.finite)


@MANY
@given(curve=NASTY, cut=st.integers(0, 30), smooth=st.sampled_from([None, "ema", "median"]), mode=MODE)
def test_state_continues_where_it_was(curve, cut, smooth, mode):
    options = {"mode": mode, "patience": 2, "margin": 0.1, "smooth": smooth, "window": 3}
    whole, before, after = (Improvement(**options) for _ in range(3))
    expected = [whole.update(value) for value in curve][cut:]
    for value in curve[:cut]:
        before.update(value)
    after.load_state_dict(before.state_dict())
    assert [after.update(value) for value in curve[cut:]] == expected
    assert after.state_dict() == whole.state_dict()


@MANY
@given(curve=NASTY, mode=MODE, margin=st.floats(0, 2), kind=st.sampled_from(["absolute", "relative"]))
def test_best_is_the_true_best_whatever_the_margin(curve, mode, margin, kind):
    rule = Improvement(mode=mode, patience=1, margin=margin, margin_kind=kind)
    news = [rule.update(value).new_best for value in curve]
    finite = [value for value in curve if math.isfinite(value)]
    assert rule.best == ((min if mode == "min" else max)(finite) if finite else None)
    if any(news):
        last = max(index for index, new in enumerate(news) if new)
        assert curve[last] == rule.best
        assert rule.best not in curve[:last], "the first of equals is the best"


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_is_a_miss_and_never_the_best(bad):
    rule = Improvement(mode="min", patience=2)
    first = rule.update(bad)
    assert (first.finite, first.counted, first.new_best, rule.best) == (False, True, False, None)
    assert rule.update(bad).exhausted
    assert rule.update(1.0).improved


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("kind", ["absolute", "relative"])
def test_all_short_curves_agree_with_a_slow_obvious_version(mode, kind):
    """Values and margins so near to each other that a wrong bar shows, where drawn ones seldom meet it."""
    options = {"mode": mode, "patience": 1}
    for margin, *curve in itertools.product([0.25, 0.5], *[[-1.0, -0.5, -0.25, 0.0, 0.25, 0.5, 1.0]] * 3):
        rule = Improvement(**options, margin=margin, margin_kind=kind)
        verdicts = [rule.update(value).improved for value in curve]
        slow = slow_history(curve, **options, margin=margin, relative=kind == "relative", start_from=0, nan="count")
        assert verdicts == [improved for _, improved, _ in slow]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"margin": math.inf}, r"^margin must be in \[0, inf\)"),
        ({"margin": -1e-9}, r"^margin must be in"),
        ({"margin_kind": "rel"}, r"^margin_kind must be one of absolute, relative"),
    ],
)
def test_bad_margins_get_a_sentence(options, message):
    with pytest.raises(UserInputError, match=message):
        Improvement(mode="min", patience=1, **options)


def test_relative_margin_of_a_negative_metric():
    rule = Improvement(mode="min", patience=1, margin=0.1, margin_kind="relative")
    rule.update(-1.0)
    assert not rule.update(-0.95).improved, "worse"
    assert not rule.update(-1.05).improved, "within the margin"
    assert rule.update(-1.2).improved


def test_small_gains_move_the_best_but_not_the_patience():
    rule = Improvement(mode="min", patience=3, margin=1.0)
    exhausted = [rule.update(value).exhausted for value in (10.0, 9.8, 9.6, 9.4)]
    assert exhausted == [False, False, False, True]
    assert (rule.best, rule.reference) == (9.4, 10.0)


def test_baseline_must_be_beaten():
    rule = Improvement(mode="max", patience=2, baseline=0.9)
    assert [rule.update(value).exhausted for value in (0.5, 0.6)] == [False, True]
    assert rule.best == 0.6


def test_positions_need_not_be_checks():
    rule = Improvement(mode="min", patience=30, start_from=100)
    assert not rule.update(0.1, at=100).counted
    assert [rule.update(1.0, at=at).exhausted for at in (110, 125, 141)] == [False, False, True]
    assert rule.wait == 31


def test_ema_and_median_do_not_mind_one_spike():
    curve = [1.0, 0.9, 0.8, 5.0, 0.7, 0.6, 0.5]
    raw = Improvement(mode="min", patience=9)
    middle = Improvement(mode="min", patience=9, smooth="median", window=3)
    ema = Improvement(mode="min", patience=9, smooth="ema", window=3)
    for value in curve:
        for rule in (raw, middle, ema):
            rule.update(value)
    assert middle.reference == 0.6  # of 0.7, 0.6, 0.5
    average = curve[0]
    for value in curve[1:]:
        average = 0.5 * value + 0.5 * average
    assert ema._recent == [average]
    assert raw.best == middle.best == ema.best == 0.5


def test_five_values_are_smoothed_if_nothing_else_is_said():
    rule = Improvement(mode="min", patience=9, smooth="median")
    for value in (9.0, 8.0, 1.0, 2.0, 3.0, 4.0, 5.0):
        rule.update(value)
    assert rule._recent == [1.0, 2.0, 3.0, 4.0, 5.0]


def test_what_is_not_finite_counts_as_a_miss_if_nothing_else_is_said():
    rule = Improvement(mode="min", patience=2)
    assert [rule.update(value).exhausted for value in (1.0, math.nan, math.nan)] == [False, False, True]


@pytest.mark.parametrize("smooth", ["ema", "median"])
def test_a_window_of_one_does_not_smooth(smooth):
    curve = [3.0, 2.0, 2.5, 1.0, 1.5]
    plain, one = (Improvement(mode="min", patience=9, smooth=kind, window=1) for kind in (None, smooth))
    assert [plain.update(v) for v in curve] == [one.update(v) for v in curve]


def test_nothing_is_waited_for_before_the_first_value():
    assert Improvement(mode="min", patience=1).wait == 0


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"mode": "mim"}, "mode must be one of max, min, but got 'mim'. Did you mean 'min'"),
        ({"patience": -1}, r"patience must be in \[0, inf\), but got -1"),
        ({"margin": -1}, r"margin must be in \[0, inf\), but got -1"),
        ({"margin": math.nan}, "but got nan"),
        ({"margin": math.inf}, "but got inf"),
        ({"start_from": -1}, "start_from must be in"),
        ({"smooth": "mean"}, "smooth must be one of ema, median, but got 'mean'"),
        ({"window": 0, "smooth": "ema"}, "window must be in"),
    ],
)
def test_bad_arguments_get_a_sentence(wrong, sentence):
    with pytest.raises(UserInputError, match=sentence):
        Improvement(**{"mode": "min", "patience": 1, **wrong})


def test_several_metrics():
    assert combined([True, False], "any")
    assert not combined([True, False], "all")
