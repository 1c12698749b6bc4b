"""The rules of training against curves and norms whose right answer is known."""

import json
import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from lightning_tricks._base import UserInputError
from lightning_tricks.diagnosis import Evidence, LayerActivity, LossCurve, NormRecord, Thresholds, TrainingWatch
from lightning_tricks.diagnosis._constant_predictor import GuessLoss
from lightning_tricks.diagnosis._curve import alternation, noise_of, window_of
from lightning_tricks.diagnosis._evidence import falls
from lightning_tricks.diagnosis._losses import LossCall, LossSpy
from lightning_tricks.diagnosis.rules._training import TRAINING_RULES

LN10 = math.log(10)


def noise(count, seed=0):
    return torch.randn(count, generator=torch.Generator().manual_seed(seed)).tolist()


def watched(losses, *, planned=None, guess=None, norms=(), activity=(), thresholds=None, **more):
    """Return the findings of a run, looked at as the callback does, and the step of each."""
    watch, curve = TrainingWatch(thresholds), LossCurve(25)
    found = {}
    for end in range(25, len(losses) + 1, 25):
        curve.add(losses[end - 25 : end])
        seen = [record for record in norms if record.step < end]
        evidence = Evidence(
            step=end,
            curve=curve,
            planned=planned or len(losses),
            guess=guess,
            norms=seen,
            activity=activity,
            is_last=end == len(losses),
            **more,
        )
        for finding in watch.look(evidence):
            found.setdefault(finding.rule, (finding.severity, end))
    return found


def falling(count=400, start=LN10, end=0.1, rate=0.02, spread=0.05, seed=0):
    """Return the losses of a run that goes well."""
    return [
        end + (start - end) * math.exp(-rate * step) + spread * z * (end + (start - end) * math.exp(-rate * step))
        for step, z in enumerate(noise(count, seed))
    ]


def flat(count=400, level=LN10, spread=0.02, seed=0):
    return [level + spread * z for z in noise(count, seed)]


def record(step, gradients=(0.1, 0.1, 0.1), ratio=1e-3, total=1.0, clip=1.0):
    names = [f"net.{i}" for i in range(len(gradients))]
    return NormRecord(step, names, list(gradients), [ratio] * len(names), total, ratio, clip)


def records(count=8, **what):
    return [record(25 * i, **what) for i in range(count)]


def layer(name="net.1", *, dead=math.nan, saturated=math.nan, std=1.0):
    return LayerActivity(name, "ReLU", std, saturated, dead)


# Silence about healthy runs


@given(
    rate=st.floats(0.003, 0.1),
    spread=st.floats(0, 0.3),
    start=st.floats(0.5, 100),
    floor=st.floats(0, 0.3),
    seed=st.integers(0, 1000),
    know=st.booleans(),
)
@settings(max_examples=20, deadline=None)
def test_a_loss_that_falls_is_never_an_error(rate, spread, start, floor, seed, know):
    losses = falling(start=start, end=floor * start, rate=rate, spread=spread, seed=seed)
    found = watched(losses, guess=start if know else None, norms=records(16))
    assert not [rule for rule, (severity, _) in found.items() if severity == "error"], found


@given(level=st.floats(0, 0.8), spread=st.floats(0, 0.5), seed=st.integers(0, 1000))
@example(level=0.5, spread=0.4375, seed=251)  # the best of its windows is far below the start, by noise
@example(level=0.8, spread=0.4375, seed=8)  # its first loss is far below the others
@settings(max_examples=15, deadline=None)
def test_a_model_that_had_converged_before_is_no_error(level, spread, seed):
    losses = [abs(x) for x in flat(level=level, spread=spread * level, seed=seed)]
    faint = records(16, gradients=(1e-9, 1e-9, 1e-3), ratio=1e-6)
    found = watched(losses, guess=1.0, norms=faint, activity=[[layer(dead=0.99), layer("head")]] * 3)
    assert not [rule for rule, (severity, _) in found.items() if severity == "error"], found


@pytest.mark.parametrize("guess", [LN10, None])
@pytest.mark.parametrize("seed", range(3))
def test_a_gain_that_is_lost_is_seen_through_noise(guess, seed):
    level, losses = LN10, []
    for step, z in enumerate(noise(600, seed)):
        level = 0.4 * LN10 + 0.6 * LN10 * math.exp(-step / 50) if step < 300 else LN10
        losses.append(level + 0.2 * LN10 * z)
    severity, step = watched(losses, guess=guess, norms=records(16))["diverging"]
    assert severity == "error"
    assert step > 300


@pytest.mark.parametrize("seed", range(3))
def test_a_first_update_that_ruins_the_net_is_seen_although_few_losses_were_good(seed):
    losses = [0.3, *(abs(4 + 2 * z) for z in noise(399, seed))]
    assert watched(losses, guess=1.0, norms=records(16))["diverging"][0] == "error"


def test_a_small_gain_under_much_noise_is_seen_over_many_windows():
    assert "not-learning" not in watched(flat(level=0.875, spread=0.4, seed=5), guess=1.0)
    assert watched(flat(level=1.0, spread=0.4, seed=5), guess=1.0)["not-learning"][0] == "error"


def test_strange_insides_count_only_with_a_symptom():
    inside = {
        "norms": records(16, gradients=(1e-9, 1e-9, 1e-3)),
        "activity": [[layer(dead=0.99), layer("net.3", saturated=0.9), layer("head")]] * 3,
    }
    assert watched(falling(), guess=LN10, **inside) == {}
    found = watched(flat(), guess=LN10, **inside)
    assert {"vanishing-gradient", "dead-units", "saturated-units", "not-learning"} <= found.keys()
    assert {severity for severity, _ in found.values()} == {"error"}


def test_without_knowing_what_guessing_gives_a_flat_loss_is_only_a_warning():
    assert watched(flat(), guess=None)["not-learning"][0] == "warning"
    assert watched(flat(level=0.2), guess=LN10) == {}, "it had converged before"


def test_a_negative_loss_may_fall_below_zero():
    losses = [2 - 6 * (1 - math.exp(-0.01 * i)) + 0.1 * z for i, z in enumerate(noise(400))]
    assert watched(losses) == {}


# What is found, and when


def test_a_loss_that_does_not_fall():
    severity, step = watched(flat(1000), planned=1000, guess=LN10)["not-learning"]
    assert (severity, step) == ("error", 325), "after 30 % of the run, confirmed once"


def test_a_short_run_is_judged_at_its_end():
    assert watched(flat(75), guess=LN10)["not-learning"] == ("warning", 75)
    assert watched(flat(50), guess=LN10) == {}


def test_a_loss_that_rises_far_above_its_start():
    losses = [LN10 * math.exp(0.02 * step) for step in range(200)]
    severity, step = watched(losses, planned=1000, guess=LN10)["diverging"]
    assert severity == "error"
    assert step <= 100


def test_a_loss_that_loses_what_it_had_gained():
    assert watched(falling(300) + flat(100), guess=LN10)["diverging"][0] == "error"
    assert watched([*falling(300), 5.0, *falling(99, start=0.1)], guess=LN10) == {}, "one spike"


def test_a_loss_that_is_worse_than_guessing_again():
    losses = falling(150, end=1.9) + flat(250, level=2.45)
    assert watched(losses, guess=LN10)["diverging"][0] == "error"


def test_a_converged_model_that_the_first_update_ruined():
    losses = [0.01, 24.0, 3.3, 3.8, 2.4] + [1 / (1 + i) for i in range(20)] + flat(175, level=0.2)
    found = watched(losses, guess=LN10, norms=[record(0, ratio=0.6), *records(8)])
    assert found["diverging"][0] == "warning", "it still knows more than nothing"
    assert found["lr-too-high"][0] == "warning"


def test_a_loss_that_rises_again_by_a_good_part_of_all_there_is_to_gain():
    losses = falling(100) + flat(75, level=1.2) + falling(200, start=1.2)
    assert watched(losses, guess=LN10)["oscillating"] == ("warning", 175)


def test_hardly_any_gain_is_a_warning():
    found = watched(flat(50) + flat(350, level=0.96 * LN10), guess=LN10)
    assert found["not-learning"][0] == "warning"
    assert "not-learning" not in watched(flat(50) + flat(350, level=0.9 * LN10), guess=LN10)


def test_a_maximised_loss():
    losses = [-0.1 - 0.01 * i for i in range(200)]
    assert watched(losses, is_negated=True)["diverging"] == ("error", 50)
    assert watched(losses) == {}, "a density may fall below 0"


def test_a_loss_not_far_below_guessing_lets_alarms_count():
    slow = [LN10 * (1 - 0.0006 * i) for i in range(400)]
    inside = {"activity": [[layer(saturated=0.95), layer("head")]] * 3}
    assert watched(slow, guess=LN10, **inside)["saturated-units"][0] == "warning"
    assert watched(slow, guess=LN10) == {}


def test_a_rate_that_became_too_small():
    stopped = falling(50, rate=0.01) + flat(350, level=1.6)
    assert watched(stopped, guess=LN10, norms=records(16, ratio=1e-9))["lr-too-low"][0] == "warning"


def test_layers_that_get_no_gradient_at_all_have_not_faded():
    cut = records(16, gradients=(0.0, 0.0, 1e-3))
    assert "vanishing-gradient" not in watched(flat(), guess=LN10, norms=cut)


def test_zigzag_is_told_from_the_noise_of_batches():
    zigzag = [1.0 + 0.5 * (-1) ** step for step in range(400)]
    assert "oscillating" in watched(zigzag)
    assert "oscillating" not in watched(flat(level=1.0, spread=0.3))


def test_the_noise_of_a_loss_that_passes_through_zero_has_no_level_to_be_compared_with():
    counts = falling(100, start=1.0, end=0.02) + flat(300, level=0.02, spread=0.3)  # as a Poisson loss does
    assert watched(counts) == {}
    assert "oscillating" in watched(falling(100, start=1.0, end=0.02) + flat(300, level=0.02, spread=0.9))


@given(st.lists(st.floats(-100, 100), min_size=8, max_size=40))
def test_alternation_is_a_correlation(losses):
    assert -1.0001 <= alternation(losses) <= 1.0001


@given(st.floats(-10, 10), st.floats(-1, 1))
def test_noise_does_not_see_a_straight_line(start, slope):
    assert noise_of([start + slope * i for i in range(30)]) == pytest.approx(0, abs=1e-9)


def test_noise_is_the_standard_deviation_and_forgives_outliers():
    assert noise_of([*noise(4000), 1e9]) == pytest.approx(1, rel=0.1)


def test_updates_that_are_too_large_or_too_small():
    assert watched(flat(), guess=LN10, norms=records(16, ratio=0.3))["lr-too-high"][0] == "error"
    assert watched(flat(), guess=LN10, norms=records(16, ratio=1e-7))["lr-too-low"][0] == "error"
    usual = watched(flat(), guess=LN10, norms=records(16))
    assert not usual.keys() & {"lr-too-high", "lr-too-low"}


def test_gradients_that_explode():
    rising = [LN10 * math.exp(0.02 * step) for step in range(200)]
    growing = [record(25 * i, total=10.0**i) for i in range(8)]
    assert watched(rising, guess=LN10, norms=growing)["exploding-gradient"][0] == "error"
    assert "exploding-gradient" not in watched(falling(200), guess=LN10, norms=growing)


def test_gradients_or_activations_that_grow_through_the_layers():
    rising = [LN10 * math.exp(0.02 * step) for step in range(200)]

    def what(gradients, stds):
        curve = LossCurve()
        curve.add(rising)
        watch = TrainingWatch()
        activity = [[layer(f"net.{i}", std=std) for i, std in enumerate(stds)]] * 3
        evidence = Evidence(200, curve, guess=LN10, norms=records(gradients=gradients), activity=activity)
        for _ in range(2):
            watch.look(evidence)
        return {f.rule: f for f in watch.findings}.get("exploding-gradient")

    backward = what((0.9, 0.1, 0.001), (1.0, 1.0, 1.0))
    assert (backward.severity, backward.where) == ("error", "net.0")
    assert backward.what.startswith("gradients (backward) grow 900-fold through the layers, and the loss has risen to ")
    forward = what((0.1, 0.1, 0.1), (0.5, 9.0, 200.0))
    assert forward.where == "net.2"
    assert forward.what.startswith("activations grow 400-fold through the layers, ")
    assert what((0.1, 0.1, 0.1), (1.0, 1.0, 1.0)) is None
    assert what((0.9, 0.001), (0.0, 1.0, 900.0)) is None, "two layers are no depth, and 0 is no scale"


def test_a_gradient_of_next_to_nothing():
    found = watched(flat(), guess=LN10, norms=records(16, total=1e-9))
    assert found["vanishing-gradient"][0] == "error"
    assert "vanishing-gradient" not in watched(falling(), guess=LN10, norms=records(16, total=1e-9))


def test_swings_that_grew_are_told_beside_those_of_the_start():
    curve = LossCurve()
    curve.add([*flat(25), *(abs(LN10 + 2 * z) for z in noise(175, seed=1))])
    finding = TRAINING_RULES["oscillating"](Evidence(200, curve), Thresholds())
    assert finding.what.startswith("the losses of neighbouring steps differ by ")
    assert finding.what.endswith("% of their level, at the start by 1%")
    even = LossCurve()
    even.add(abs(LN10 + 2 * z) for z in noise(200, seed=1))
    assert TRAINING_RULES["oscillating"](Evidence(200, even), Thresholds()) is None


def test_a_nan_after_growing_losses_is_the_learning_rates_doing():
    large = records(16, ratio=0.3)
    steep = [1.5**step for step in range(25)] * 2
    assert watched(steep, norms=large, broken=(49, "net.0", "gradient"))["lr-too-high"][0] == "error"
    assert "lr-too-high" not in watched(falling(50), norms=large, broken=(49, "net.0", "gradient"))


def test_without_one_training_loss_small_updates_are_no_finding():
    tiny = Evidence(400, None, planned=400, norms=records(16, ratio=1e-7))
    assert TRAINING_RULES["lr-too-low"](tiny, Thresholds()) is None


def test_the_noise_of_the_gradient_is_a_note():
    assert watched(falling(), noise_ratio=5000.0) == {"gradient-noise": ("info", 50)}
    assert watched(falling(), noise_ratio=500.0) == {}


def test_overfitting_needs_both_curves():
    validation = [(25 * i, 0.5 + 0.05 * abs(i - 4)) for i in range(16)]
    assert watched(falling(), validation=validation)["overfitting"][0] == "warning"
    assert "overfitting" not in watched(flat(level=0.5), validation=validation)
    assert "overfitting" not in watched(falling(), validation=[(25 * i, 1 / (1 + i)) for i in range(16)])
    plateau = [(25 * i, 2.0 - 0.01 * i) for i in range(16)]
    assert watched(falling(), validation=plateau, guess=LN10)["overfitting"][0] == "warning", "it never generalised"
    assert "overfitting" not in watched(falling(end=1.5), validation=plateau, guess=LN10)


def test_stagnation_of_a_long_run():
    found = watched(falling(2000, rate=0.1), guess=LN10)
    assert found["stagnation"][0] == "info"
    assert watched(falling(2000, end=2.0, rate=0.1), guess=LN10)["stagnation"][0] == "warning"
    late = [*falling(875, end=1.0, rate=0.1, spread=0.01), *[0.7] * 25, *[1.0] * 800]
    assert "stagnation" not in watched(late), "it was better for a while"


def test_clipping_that_always_binds():
    assert watched(falling(), norms=records(16, clip=0.01))["clipping-binds"][0] == "warning"
    assert watched(falling(), norms=records(16, clip=0.5))["clipping-binds"][0] == "info"
    assert watched(falling(), norms=records(16)) == {}


def test_each_finding_is_told_once_and_again_if_it_becomes_graver():
    watch, told = TrainingWatch(), []
    curve = LossCurve()
    curve.add(flat(400))
    for guess in (None, None, None, LN10, LN10, None, LN10):
        told += [(f.rule, f.severity) for f in watch.look(Evidence(400, curve, guess=guess, planned=800))]
    assert told == [("not-learning", "warning"), ("not-learning", "error")]
    assert [f.severity for f in watch.findings] == ["error"]


def test_a_condition_that_comes_and_goes_is_no_finding():
    watch, sick, well = TrainingWatch(), LossCurve(), LossCurve()
    sick.add(flat(400))
    well.add(falling(400))
    for curve in (sick, well) * 4:
        assert not watch.look(Evidence(400, curve, guess=LN10, planned=800))


@given(st.integers(1, 399), st.integers(0, 20))
@settings(max_examples=8, deadline=None)
def test_state_goes_through_a_checkpoint(cut, seed):
    losses = falling(400, seed=seed)
    whole, half, rest = LossCurve(), LossCurve(), LossCurve()
    whole.add(losses)
    half.add(losses[:cut])
    rest.load_state_dict(json.loads(json.dumps(half.state_dict())))
    rest.add(losses[cut:])
    assert rest.state_dict() == whole.state_dict()


def test_long_runs_stay_small():
    curve = LossCurve(window=10)
    curve.add(float(i) for i in range(12_000))
    assert len(curve.windows) <= 256
    assert curve.windows[-1].end == curve.steps == 12_000
    assert sum(w.count * w.mean for w in curve.windows) == pytest.approx(sum(range(12_000)))


def test_points_of_a_curve_end_with_the_open_window():
    curve = LossCurve(window=10)
    curve.add(range(24))
    assert curve.points() == ([*range(1, 11), 20, 24], [*range(10), 14.5, 21.5])
    short = LossCurve(window=10)
    short.add(range(4))
    assert short.points() == ([1, 2, 3, 4], [0, 1, 2, 3])


def test_one_window_is_too_little_to_say_that_the_loss_does_not_fall():
    window = window_of([2.0] * 10, 10)
    assert falls([window], Thresholds())
    assert not falls([window, window], Thresholds())


def test_nonfinite_losses_are_told_apart():
    found = watched([*falling(30), math.nan, *falling(19)], broken=(30, "net.2", "gradient"))
    assert found["nonfinite"] == ("error", 25)
    assert watched([math.inf] * 25)["nonfinite"][0] == "error"


def test_thresholds_are_checked():
    with pytest.raises(UserInputError, match="dead must be greater than 0"):
        Thresholds(dead=0)
    with pytest.raises(UserInputError, match="window must be at least"):
        Thresholds(window=5)


# What guessing gives, against the best constant found by search


def best_constant(loss, shape, steps=300):
    constant = torch.zeros(shape, requires_grad=True)
    optimizer = torch.optim.LBFGS([constant], max_iter=steps)

    def closure():
        optimizer.zero_grad()
        value = loss(constant)
        value.backward()
        return value

    return optimizer.step(closure) and loss(constant).item()


Y = torch.arange(2000).remainder(10).clamp(max=4)
TARGETS = {
    "classes": (lambda out, y: F.cross_entropy(out, y), Y, 5),
    "smoothed": (lambda out, y: F.cross_entropy(out, y, label_smoothing=0.1), Y, 5),
    "binary": (lambda out, y: F.binary_cross_entropy_with_logits(out, y), (Y[:, None] == torch.arange(5)).float(), 5),
    "soft classes": (lambda out, y: F.cross_entropy(out, y), F.one_hot(Y, 5) * 0.7 + 0.3 * F.one_hot(4 - Y, 5), 5),
    "squares": (lambda out, y: F.mse_loss(out, y), torch.randn(2000, 3, generator=torch.Generator().manual_seed(1)), 3),
}


@pytest.mark.parametrize("name", TARGETS)
def test_what_guessing_gives(name):
    loss, y, width = TARGETS[name]
    guess = GuessLoss()
    for part in y.split(250):
        with LossSpy() as spy:
            value = loss(torch.zeros(250, width), part)
        guess.add(spy.calls, value)
    best = best_constant(lambda constant: loss(constant.expand(2000, width), y), (width,))
    assert guess.value() == pytest.approx(best, rel=0.01)


def test_what_guessing_gives_is_not_known_from_a_few_targets():
    def value_of(name, rows):
        guess, one = GuessLoss(), torch.tensor(1.0)
        target = (torch.arange(rows) % 2).float()
        guess.add([LossCall(name, torch.zeros(rows), target, value=one)], one)
        return guess.value()

    assert [value_of(name, 20) for name in ("mse_loss", "binary_cross_entropy_with_logits")] == [None, None]
    assert value_of("mse_loss", 2000) == pytest.approx(0.25, rel=0.01)
    assert value_of("binary_cross_entropy_with_logits", 2000) == pytest.approx(math.log(2), rel=0.01)


def test_a_loss_that_is_called_wrongly_is_not_noted():
    with LossSpy() as spy, pytest.raises(AttributeError):
        F.mse_loss(torch.zeros(2), 1.0)
    assert spy.calls == []


def test_a_negated_loss_is_seen():
    guess = GuessLoss()
    with LossSpy() as spy:
        total = -F.cross_entropy(torch.zeros(100, 2), torch.arange(100) % 2)
    guess.add(spy.calls, total)
    assert guess.value() is None
    assert guess.is_negated


def test_guessing_is_not_known_for_a_loss_of_several_parts_or_with_weights():
    def value_of(loss):
        guess = GuessLoss()
        with LossSpy() as spy:
            total = loss(torch.zeros(100, 2), torch.arange(100) % 2)
        guess.add(spy.calls, total)
        return guess.value()

    assert value_of(F.cross_entropy) == pytest.approx(math.log(2), rel=0.01)
    assert value_of(lambda out, y: F.cross_entropy(out, y) + 1) is None
    assert value_of(lambda out, y: F.cross_entropy(out, y, weight=torch.tensor([1.0, 2.0]))) is None
    assert value_of(lambda out, y: F.cross_entropy(out, y) + F.mse_loss(out[:, 0], y.float())) is None


def test_a_short_run_is_never_an_error_for_not_learning():
    faint = records(16, gradients=(1e-9, 1e-9, 1e-3))
    short = watched(flat(96 - 96 % 25), guess=LN10, norms=faint)  # 75 steps
    assert short["not-learning"][0] == "warning"
    assert short["vanishing-gradient"][0] == "warning"
    assert watched(flat(400), guess=LN10)["not-learning"][0] == "error"
