"""Initialisation: distributions against SciPy and torch, what auto sees, what the signal does, what is left alone."""

import copy
import math

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import nn
from torch.nn import functional as F

from lightning_tricks import MLP, init_weights
from lightning_tricks._base import UserInputError
from lightning_tricks.init import RULES, kaiming_gain, signal_deviations, tanh_gain, untouched_modules
from lightning_tricks.init._rules import fans_of


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


# --- the rules ---------------------------------------------------------------------------------------------------

SHAPE = (120, 80, 3, 1)  # fan-in 240, fan-out 360
CUT = 0.02 / 0.87962566103423978  # the deviation before the cut at two of it, for 0.02 after
TORCHS = {
    "xavier_normal": lambda w, g: nn.init.xavier_normal_(w, gain=g),
    "xavier_uniform": lambda w, g: nn.init.xavier_uniform_(w, gain=g),
    "kaiming_normal": lambda w, g: nn.init.kaiming_normal_(w, nonlinearity="linear").mul_(g),
    "kaiming_uniform": lambda w, g: nn.init.kaiming_uniform_(w, nonlinearity="linear").mul_(g),
    "lecun_normal": lambda w, g: nn.init.kaiming_normal_(w, nonlinearity="linear").mul_(g),
    "lecun_uniform": lambda w, g: nn.init.kaiming_uniform_(w, nonlinearity="linear").mul_(g),
}


@pytest.mark.parametrize("gain", [1.0, 0.5**0.5, 5 / 3])
@pytest.mark.parametrize("name", TORCHS)
def test_scaled_rules_have_the_distribution_of_torchs(name, gain):
    ours = RULES[name](torch.empty(SHAPE), gain=gain, generator=seeded()).flatten().double()
    theirs = TORCHS[name](torch.empty(SHAPE), gain).flatten().double()
    assert float(ours.std()) == pytest.approx(float(theirs.std()), rel=0.02)
    assert stats.ks_2samp(ours.numpy(), theirs.numpy()).pvalue > 1e-3
    spread = gain / math.sqrt({"x": 300, "k": 240, "l": 240}[name[0]])
    exact = stats.norm(0, spread) if name.endswith("normal") else stats.uniform(-(3**0.5) * spread, 2 * 3**0.5 * spread)
    assert stats.kstest(ours.numpy(), exact.cdf).pvalue > 1e-3


UNASKED = {
    "constant": lambda w, g: nn.init.zeros_(w),
    "kaiming_normal": lambda w, g: nn.init.kaiming_normal_(w, generator=g),
    "kaiming_uniform": lambda w, g: nn.init.kaiming_uniform_(w, generator=g),
    "lecun_normal": lambda w, g: nn.init.kaiming_normal_(w, nonlinearity="linear", generator=g),
    "lecun_uniform": lambda w, g: nn.init.kaiming_uniform_(w, nonlinearity="linear", generator=g),
    "normal": lambda w, g: nn.init.normal_(w, 0.0, 0.01, generator=g),
    "orthogonal": lambda w, g: nn.init.orthogonal_(w, generator=g),
    "trunc_normal": lambda w, g: nn.init.trunc_normal_(w, 0.0, CUT, -2 * CUT, 2 * CUT, generator=g),
    "uniform": lambda w, g: nn.init.uniform_(w, -0.05, 0.05, generator=g),
    "xavier_normal": lambda w, g: nn.init.xavier_normal_(w, generator=g),
    "xavier_uniform": lambda w, g: nn.init.xavier_uniform_(w, generator=g),
    "zeros": lambda w, g: nn.init.zeros_(w),
    "identity": lambda w, g: nn.init.dirac_(w),
    "delta_orthogonal": lambda w, g: nn.init.zeros_(w)[:, :, 1].copy_(
        nn.init.orthogonal_(w[:, :, 1].clone(), generator=g)
    ),
}


@pytest.mark.parametrize("name", RULES)
def test_unasked_a_rule_fills_as_torchs_does_and_draws_from_the_generator_alone(name):
    before, theirs = torch.get_rng_state(), torch.empty(8, 5, 3)
    ours = RULES[name](torch.empty(8, 5, 3), generator=seeded())
    assert torch.equal(torch.get_rng_state(), before)
    UNASKED[name](theirs, seeded())
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(("name", "fan"), [("xavier", 20), ("kaiming", 10), ("lecun", 10)])
@pytest.mark.parametrize("kind", ["normal", "uniform"])
def test_given_fans_and_gains_take_the_place_of_their_own(name, fan, kind):
    rule = RULES[f"{name}_{kind}"]
    given = rule(torch.empty(8, 8), fans=(10.0, 30.0), gain=3.0, generator=seeded())
    own = rule(torch.empty(fan, fan), gain=1.0, generator=seeded())  # both fans are these
    torch.testing.assert_close(given.flatten(), 3 * own.flatten()[:64])


@pytest.mark.parametrize("name", ["kaiming_normal", "kaiming_uniform"])
def test_kaiming_has_torchs_slope_and_mode(name):
    theirs = getattr(nn.init, f"{name}_")(torch.empty(8, 5), a=0.3, mode="fan_out", generator=seeded())
    torch.testing.assert_close(RULES[name](torch.empty(8, 5), slope=0.3, mode="fan_out", generator=seeded()), theirs)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("normal", {"std": -1.0}, r"std must be in \[0"),
        ("trunc_normal", {"std": -1.0}, r"std must be in \[0"),
        ("uniform", {"bound": -1.0}, r"bound must be in \[0"),
        ("lecun_normal", {"gain": -1.0}, r"gain must be in \[0"),
        ("kaiming_normal", {"mode": "fan"}, "mode must be one of fan_avg, fan_in, fan_out"),
    ],
)
def test_rules_say_what_they_take(name, options, message):
    with pytest.raises(UserInputError, match=f"^{message}"):
        RULES[name](torch.empty(8, 5), **options)


@pytest.mark.parametrize("name", ["normal", "trunc_normal", "uniform", "lecun_normal"])
def test_no_spread_at_all_is_one(name):
    option = {"uniform": "bound", "lecun_normal": "gain"}.get(name, "std")
    assert not RULES[name](torch.ones(8, 5), **{option: 0.0}).any()


def test_the_lectures_xavier_is_half_the_variance_of_glorots():
    weight = RULES["xavier_normal"](torch.empty(400, 600), gain=0.5**0.5, generator=seeded())
    assert float(weight.detach().var()) == pytest.approx(1 / (400 + 600), rel=0.02)


@pytest.mark.parametrize(("mode", "fan"), [("fan_in", 240), ("fan_out", 360), ("fan_avg", 300)])
@pytest.mark.parametrize("slope", [0.0, 0.2])
def test_kaiming_uses_slope_and_mode(mode, fan, slope):
    weight = RULES["kaiming_normal"](torch.empty(SHAPE), slope=slope, mode=mode, generator=seeded())
    assert float(weight.detach().var()) == pytest.approx(2 / (1 + slope**2) / fan, rel=0.03)


def test_rules_that_leave_nothing_to_chance():
    assert (RULES["constant"](torch.empty(3, 2), value=0.5) == 0.5).all()
    assert (RULES["trunc_normal"](torch.ones(3, 2), std=0.0) == 0).all()


def test_truncated_normal_is_cut_at_two_deviations_and_keeps_its_std():
    weight = RULES["trunc_normal"](torch.empty(300, 300), std=0.02, generator=seeded()).double()
    assert float(weight.std()) == pytest.approx(0.02, rel=0.01)
    cut = 2 * 0.02 / 0.87962566103423978
    assert weight.abs().max() <= cut * (1 + 1e-6)
    assert stats.kstest(weight.flatten().numpy(), stats.truncnorm(-2, 2, scale=cut / 2).cdf).pvalue > 1e-3


@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (8, 3, 1, 2)])
def test_orthogonal_keeps_lengths(shape):
    matrix = RULES["orthogonal"](torch.empty(shape), gain=2.0, generator=seeded()).flatten(1)
    small = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
    torch.testing.assert_close(small, 4 * torch.eye(len(small)), atol=1e-5, rtol=0)


def test_delta_orthogonal_convolution_keeps_lengths():
    weight = RULES["delta_orthogonal"](torch.empty(8, 4, 3, 3), gain=1.5, generator=seeded())
    x = torch.randn(2, 4, 6, 6)
    output = F.conv2d(x, weight, padding=1)
    torch.testing.assert_close(output.norm(dim=1), 1.5 * x.norm(dim=1))


@pytest.mark.parametrize("size", [1, 3, 5])
def test_delta_orthogonal_touches_the_centre_only(size):
    weight = RULES["delta_orthogonal"](torch.full((4, 4, size, size), 9.0), generator=seeded())
    middle = weight[:, :, size // 2, size // 2].clone()
    torch.testing.assert_close(middle @ middle.T, torch.eye(4))
    assert weight.norm() == pytest.approx(2.0), "nothing but the centre, whose rows have length 1"


@pytest.mark.parametrize("shape", [(8, 4), (8, 4, 2), (8, 4, 3, 2), (3, 4, 3)])
def test_delta_orthogonal_refuses_what_has_no_centre_or_too_few_outputs(shape):
    with pytest.raises(UserInputError, match="odd kernel and at least as many outputs"):
        RULES["delta_orthogonal"](torch.empty(shape))


def test_without_inputs_there_is_nothing_to_scale():
    assert torch.equal(RULES["kaiming_normal"](torch.empty(3, 4), fans=(0.0, 3.0)), torch.zeros(3, 4))


@pytest.mark.parametrize(
    ("shape", "layer"), [((4, 4), F.linear), ((4, 4, 3, 3), lambda x, w: F.conv2d(x, w, padding=1))]
)
def test_identity_passes_its_input_through(shape, layer):
    x = torch.randn(2, 4, 5, 5) if len(shape) == 4 else torch.randn(2, 4)
    torch.testing.assert_close(layer(x, RULES["identity"](torch.empty(shape))), x)


@given(st.sampled_from([1, 2]), st.sampled_from([1, 3]), st.sampled_from([1, 2]), st.integers(1, 2), st.booleans())
@settings(max_examples=20, deadline=None)
def test_fans_count_what_a_convolution_really_adds_up(groups, kernel, stride, multiple, transposed):
    kind = nn.ConvTranspose1d if transposed else nn.Conv1d
    conv = kind(2 * groups, 2 * groups * multiple, kernel, stride=stride, groups=groups, bias=False)
    nn.init.ones_(conv.weight)
    x = torch.ones(1, 2 * groups, 24, requires_grad=True)
    output = conv(x)
    middle = output.detach()[0, 0, 6:18].mean()  # away from the borders, over whole strides: the mean number of addends
    (gradient,) = torch.autograd.grad(output.sum(), x)
    assert fans_of(conv, conv.weight) == pytest.approx((float(middle), float(gradient[0, 0, 6:18].mean())))


@pytest.mark.parametrize(("name", "slope"), [("relu", 0.0), ("leaky_relu", 0.3)])
def test_rectifiers_have_torchs_gain(name, slope):
    assert kaiming_gain(name, slope) == pytest.approx(nn.init.calculate_gain(name, slope))
    assert kaiming_gain("leaky_relu") == pytest.approx(2**0.5), "no slope unless given"


@pytest.mark.parametrize("name", ["gelu", "silu", "elu", "mish", "hardswish", "softplus", "relu6", "celu"])
def test_gains_give_back_the_variance(name):
    z = torch.randn(2_000_000, generator=seeded(), dtype=torch.float64)
    assert kaiming_gain(name) ** 2 * float(getattr(F, name)(z).square().mean()) == pytest.approx(1, rel=5e-3)


def test_tanh_gain_falls_with_depth_to_the_edge_of_chaos():
    gains = [tanh_gain(depth) for depth in (1, 3, 10, 50, 200)]
    assert gains == sorted(gains, reverse=True)
    assert gains[0] == 5 / 3
    assert 1 < gains[-1] < 1.2


@pytest.mark.parametrize("depth", [10, 50])
def test_tanh_gain_lets_the_gradients_deviation_grow_by_a_quarter(depth):
    """The recursion of Poole et al. once more, with plain sums over a fine grid."""
    z = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    share = torch.softmax(-(z**2) / 2, dim=0)
    gain, growth = tanh_gain(depth), 1.0
    signal = gain * z  # of the first layer, for inputs of unit variance
    for _ in range(depth):
        growth *= gain**2 * float(share @ torch.cosh(signal) ** -4)  # tanh' = 1 / cosh²
        signal = gain * (share @ torch.tanh(signal) ** 2).sqrt() * z
    assert growth**0.5 == pytest.approx(1.25, rel=1e-4)


# --- what auto sees ------------------------------------------------------------------------------------------------


class Functional(nn.Module):
    """Registered in another order than used; functional and in-place activations; a branch on the data."""

    def __init__(self, dynamic=False):
        super().__init__()
        self.last = nn.Linear(8, 3)
        self.second = nn.Linear(8, 8)
        self.first = nn.Linear(4, 8)
        self.norm = nn.LayerNorm(8)
        self.dynamic = dynamic

    def forward(self, x):
        if self.dynamic and x.sum() > 1e9:
            return x
        x = F.relu(self.norm(self.first(x)), inplace=True)
        return self.last(F.leaky_relu(self.second(x).reshape(-1, 8), 0.2))


def rules_of(report):
    return {row.parameter: row.rule for row in report.rows if row.parameter.endswith("weight")}


@pytest.mark.parametrize(
    ("dynamic", "example", "source"),
    [(False, None, "symbolic graph"), (True, torch.randn(2, 4), "with the example")],
)
def test_auto_follows_the_forward_pass_not_the_registration(dynamic, example, source):
    report = init_weights(Functional(dynamic), example=example)
    assert source in report.source
    why = {row.parameter: row.why for row in report.rows}
    assert why["first.weight"] == "relu follows, gain 1.414"
    assert why["second.weight"] == f"leaky_relu follows, gain {math.sqrt(2 / 1.04):.3f}"
    assert why["last.weight"] == "linear head"


def test_auto_without_example_or_graph_says_that_it_guessed():
    report = init_weights(Functional(dynamic=True))
    assert "guessed from the order of registration" in report.source


@pytest.mark.parametrize(
    ("activation", "rule", "std"),
    [
        (nn.ReLU(), "kaiming_normal", math.sqrt(2 / 400)),
        (nn.LeakyReLU(0.5), "kaiming_normal", math.sqrt(2 / 1.25 / 400)),
        (nn.PReLU(), "kaiming_normal", math.sqrt(2 / 1.0625 / 400)),
        (nn.RReLU(), "kaiming_normal", math.sqrt(2 / (1 + (11 / 48) ** 2) / 400)),
        (nn.GELU(), "kaiming_normal", 1.5335 / 20),
        (nn.SiLU(), "kaiming_normal", 1.6768 / 20),
        (nn.Tanh(), "xavier_normal", 5 / 3 * math.sqrt(2 / 1000)),
        (nn.SELU(), "lecun_normal", 1 / 20),
        (nn.Sigmoid(), "xavier_normal", math.sqrt(2 / 1000)),
        (nn.Softmax(1), "xavier_normal", math.sqrt(2 / 1000)),
        (nn.Identity(), "xavier_normal", math.sqrt(2 / 1000)),
    ],
)
@pytest.mark.parametrize("way", ["example", "symbols", "order"])
def test_auto_rule_by_activation(activation, rule, std, way):
    class NoGraph(nn.Sequential):
        def forward(self, x):
            return super().forward(x) if x.sum() < 1e9 else x

    kind = NoGraph if way == "order" else nn.Sequential
    model = kind(nn.Linear(400, 600), nn.Dropout(0.1), activation, nn.Linear(600, 2))
    report = init_weights(model, example=torch.randn(2, 400) if way == "example" else None, generator=seeded())
    assert report.rows[0].rule == rule
    assert report.rows[0].std == pytest.approx(std, rel=0.01)


class Joints(nn.Module):
    """A sum of two layers, a branch that ends in an activation, a layer used twice, a table of positions."""

    def __init__(self):
        super().__init__()
        self.left, self.right, self.slope, self.squash, self.random, self.last = (nn.Linear(4, 4) for _ in range(6))
        self.positions = nn.Parameter(torch.ones(4))

    def forward(self, x):
        x = F.prelu(self.left(x) + self.right(x), torch.full((1,), 0.25))
        x = x + F.gelu(self.slope(x))
        x = torch.tanh(F.layer_norm(self.squash(x.view(x.size(0), -1) + self.positions), (4,)))
        return self.last(F.rrelu(self.random(self.random(x))))


@pytest.mark.parametrize("example", [None, torch.randn(2, 4)])
def test_functional_activations_and_joints_are_followed(example):
    model = Joints()
    report = init_weights(model, example=example)
    assert ("with the example" if example is not None else "symbolic graph") in report.source
    assert {row.parameter: row.why for row in report.matched if "weight" in row.parameter} == {
        "left.weight": "prelu follows, gain 1.372",
        "right.weight": "prelu follows, gain 1.372",
        "slope.weight": "gelu follows, gain 1.534",
        "squash.weight": "tanh follows, gain 1.667 (0 in a row)",
        "random.weight": "no activation before the next layer",
        "last.weight": "linear head",
    }
    with pytest.raises(UserInputError, match="needs residual branches that end in a layer or a norm, but none was"):
        init_weights(model, residual="zero", example=example)


def test_recurrent_layers_embeddings_and_attention():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(50, 16, padding_idx=3)
            self.lstm = nn.LSTM(16, 12, 2)
            self.attention = nn.MultiheadAttention(12, 2)
            self.scale = nn.Parameter(torch.full((12,), 7.0))

        def forward(self, tokens):
            x, _ = self.lstm(self.embed(tokens))
            return self.attention(x, x, x)[0] * self.scale

    model = Net()
    report = init_weights(model, example=torch.randint(0, 50, (5, 2)), generator=seeded())
    for gate in model.lstm.weight_hh_l1.detach().chunk(4):
        torch.testing.assert_close(gate @ gate.T, torch.eye(12), atol=1e-5, rtol=0)
    for layer in (0, 1):
        both = (getattr(model.lstm, f"bias_ih_l{layer}") + getattr(model.lstm, f"bias_hh_l{layer}")).detach()
        assert both.tolist() == [0.0] * 12 + [1.0] * 12 + [0.0] * 24
    assert (model.embed.weight[3] == 0).all()
    assert float(model.embed.weight.detach().std()) == pytest.approx(1, rel=0.1)
    assert float(model.attention.in_proj_weight.detach().std()) == pytest.approx(12**-0.5, rel=0.1)  # not (2 / 48)**0.5
    assert [(row.parameter, row.why) for row in report.left_alone] == [("scale", "no rule for a parameter of Net")]
    assert (model.scale == 7).all()


def test_an_embedding_shared_with_the_output_gives_unit_logits():
    model = nn.ModuleDict({"embed": nn.Embedding(200, 64), "head": nn.Linear(64, 200, bias=False)})
    model["head"].weight = model["embed"].weight
    init_weights(model, generator=seeded())
    assert float(model["embed"].weight.detach().std()) == pytest.approx(1 / 8, rel=0.05)


@pytest.mark.parametrize("example", [None, torch.randn(2, 3, 32, 32)])
def test_residual_blocks_start_as_the_identity(example):
    model = torchvision.models.resnet18()
    report = init_weights(model, residual="zero", example=example)
    ends = [row.parameter for row in report.rows if "residual" in row.why]
    assert ends == [f"layer{stage}.{block}.bn2.weight" for stage in (1, 2, 3, 4) for block in (0, 1)]
    x = torch.randn(2, 64, 8, 8).relu()
    torch.testing.assert_close(model.layer1(x), x)


def test_depth_scaled_branches_of_a_transformer():
    layer = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True, norm_first=True, dropout=0.0)
    model = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
    report = init_weights(model, residual="scaled", example=torch.randn(2, 5, 64), generator=seeded())
    ends = {row.parameter: row.std for row in report.rows if "residual" in row.why}
    names = {f"layers.{i}.{name}.weight" for i in range(3) for name in ("self_attn.out_proj", "linear2")}
    assert set(ends) == names
    for name, std in ends.items():
        fan = 64 if "out_proj" in name else 96
        assert std == pytest.approx(fan**-0.5 / math.sqrt(6), rel=0.05)


@pytest.mark.parametrize("outputs", [3, 1])
def test_class_counts_set_the_heads_bias(outputs):
    counts = [70, 20, 10] if outputs == 3 else [80, 20]
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, outputs))
    init_weights(model, class_counts=counts)
    logits = model[2].bias
    p = logits.softmax(0) if outputs == 3 else torch.stack([1 - logits.sigmoid(), logits.sigmoid()])[:, 0]
    torch.testing.assert_close(p, torch.tensor(counts) / sum(counts))


# --- the signal ----------------------------------------------------------------------------------------------------


def deep(activation, depth=50, width=256):
    return nn.Sequential(*(layer for _ in range(depth) for layer in (nn.Linear(width, width), activation())))


def activations_and_gradients(model, x):
    outputs, gradients = [], []
    for layer in model:
        x = layer(x)
        x.retain_grad()
        if not isinstance(layer, nn.Linear):
            outputs.append(x)
    x.backward(torch.randn(x.shape, generator=seeded(1)))
    gradients = [float(x.grad.std()) for x in outputs]
    return [float(x.detach().std()) for x in outputs], gradients


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh])
def test_fifty_layers_keep_the_signal_within_a_factor_of_two(activation, seed):
    torch.manual_seed(seed)
    model, x = deep(activation, width=384), torch.randn(128, 384)
    init_weights(model, generator=seeded(seed))
    for values in activations_and_gradients(model, x):
        assert max(values) / values[0] < 2
        assert min(values) / values[0] > 0.5


def test_fifty_layers_die_under_zeros_and_vanish_under_a_small_normal():
    model, x = deep(nn.ReLU), torch.randn(64, 256)
    init_weights(model, "zeros")
    outputs, gradients = activations_and_gradients(model, x)
    assert max(outputs) == 0
    assert max(gradients[:-1]) == 0
    init_weights(model, "normal", std=0.01, generator=seeded())
    outputs, gradients = activations_and_gradients(model, x)
    assert outputs[-1] < 1e-20 * outputs[0]
    assert gradients[0] < 1e-20 * gradients[-1]


def test_the_report_tells_the_deviations_that_hooks_see():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(288, 2))
    x = torch.randn(16, 3, 8, 8)
    report = init_weights(model, example=x, generator=seeded())
    signal = {s.layer: s for s in report.signals}
    with torch.no_grad():
        first = model[0](x)
    assert list(signal) == ["0", "4"]
    assert signal["0"].output_after == pytest.approx(float(first.std(correction=0)), rel=1e-5)
    assert signal["4"].gradient_after == pytest.approx(1, abs=0.3), "the random cotangent itself"
    assert "output std before" in str(report)


def test_lsuv_gives_every_layer_unit_variance_on_the_batch():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(inplace=True), nn.Conv2d(8, 8, 3), nn.Tanh(), nn.Flatten(), nn.Linear(128, 64)
    )
    x = torch.rand(64, 3, 8, 8) * 5 + 2
    report = init_weights(model, "lsuv", example=x, generator=seeded())
    for name, deviation in signal_deviations(model, (x,)).items():
        assert deviation.output == pytest.approx(1, rel=1e-4), name
    assert rules_of(report) == {"0.weight": "lsuv", "2.weight": "lsuv", "5.weight": "lsuv"}
    gram = model[5].weight @ model[5].weight.T
    torch.testing.assert_close(gram / gram[0, 0], torch.eye(64), atol=1e-4, rtol=0)


def test_lsuv_leaves_an_output_without_variance_and_scales_a_shared_layer_once():
    silent = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    init_weights(silent, "lsuv", example=torch.zeros(3, 4))
    for layer in (silent[0], silent[2]):
        torch.testing.assert_close(layer.weight @ layer.weight.T, torch.eye(4), atol=1e-5, rtol=0)
    layer, x = nn.Linear(8, 8), torch.randn(16, 8, generator=seeded())
    shared = nn.Sequential(layer, nn.Tanh(), layer)
    report = init_weights(shared, "lsuv", example=x)
    assert float(layer(x).detach().std(correction=0)) == pytest.approx(1, rel=1e-4), "where it is used first"
    assert [s.layer for s in report.signals] == ["0"]
    assert report.signals[0].output_after == pytest.approx(1, rel=1e-4)


def test_a_signal_that_no_gradient_comes_back_to_is_told_as_nan():
    class Sorted(nn.Sequential):
        def forward(self, x):
            return super().forward(x).argsort(1)

    x = torch.randn(5, 4, generator=seeded())
    half = nn.Sequential(nn.Linear(4, 4).requires_grad_(False), nn.Linear(4, 4))
    for model, known in ((half, ["1"]), (Sorted(nn.Linear(4, 4), nn.Linear(4, 4)), [])):
        found = signal_deviations(model, (x,))
        assert [name for name, deviation in found.items() if not math.isnan(deviation.gradient)] == known
        assert found["0"].output == pytest.approx(float(model[0](x).detach().std(correction=0)))


# --- draws ---------------------------------------------------------------------------------------------------------


def test_every_parameter_has_its_own_stream():
    whole, part = MLP(8, 3, hidden_features=(9, 9)), MLP(8, 3, hidden_features=(9, 9))
    init_weights(whole, generator=seeded())
    init_weights(part, generator=seeded(), match="layers.7")
    assert torch.equal(whole.layers[7].weight, part.layers[7].weight)
    again = init_weights(part, generator=seeded(1))
    assert not torch.equal(whole.layers[7].weight, part.layers[7].weight)
    assert len(again.matched) == len(list(part.parameters()))


def test_without_a_generator_the_global_stream_decides_and_moves():
    def draw():
        model = nn.Linear(5, 5)
        init_weights(model)
        return model.weight.detach().clone()

    torch.manual_seed(3)
    first, second = draw(), draw()
    torch.manual_seed(3)
    assert torch.equal(first, draw())
    assert not torch.equal(first, second), "members of an ensemble differ"


def test_a_generator_spares_the_global_stream_and_modes_and_buffers_stay():
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 2))
    model[3].eval()
    x, modes, stream = torch.randn(6, 4), [m.training for m in model.modules()], torch.get_rng_state()
    init_weights(model, example=x, generator=seeded())
    assert torch.equal(stream, torch.get_rng_state())
    assert modes == [m.training for m in model.modules()]
    assert model[1].num_batches_tracked == 0
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_match_and_skip():
    model = MLP(8, 3, hidden_features=(9,))
    before = copy.deepcopy(model.state_dict())
    report = init_weights(model, match="*.weight", skip=("layers.4",))
    assert [row.parameter for row in report.matched] == ["layers.1.weight", "layers.2.weight"]
    assert torch.equal(model.layers[4].weight, before["layers.4.weight"])


def test_what_has_no_rule_is_left_alone_and_listed():
    model = MLP(4, 2)
    model.index = nn.Parameter(torch.arange(3), requires_grad=False)
    model.wave = nn.Linear(2, 2, bias=False, dtype=torch.complex64)
    before = model.wave.weight.detach().clone()
    report = init_weights(model, bias=None)
    why = {row.parameter: row.why for row in report.left_alone}
    assert why.pop("index") == "holds torch.int64"
    assert why.pop("wave.weight") == "holds torch.complex64"
    assert set(why.values()) == {"biases are left alone, as asked"}
    assert torch.equal(model.wave.weight, before)
    (wave,) = (row for row in report.rows if row.parameter == "wave.weight")
    assert wave.std == pytest.approx(float((before - before.mean()).abs().square().mean().sqrt()))
    assert "signal" not in str(report)
    assert "output std" not in str(report), "there was no example"


@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_lazy_layers_are_left_alone_and_listed():
    model = nn.Sequential(nn.Linear(4, 4), nn.LazyLinear(3))
    report = init_weights(model, only_new=True)
    why = {row.parameter: row.why for row in report.left_alone}
    assert why["1.weight"] == "lazy: its shape is not known yet"


def test_compiled_and_lower_precision_models():
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2)).to(torch.bfloat16)
    report = init_weights(torch.compile(model), example=torch.randn(4, 64, dtype=torch.bfloat16), generator=seeded())
    assert [row.rule for row in report.rows][::2] == ["kaiming_normal", "xavier_normal"]
    plain = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))
    init_weights(plain, generator=seeded())
    assert float(plain[0].weight.detach().std()) == pytest.approx(
        float(model[0].weight.detach().float().std()), rel=0.05
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: init_weights(MLP(), "xavier"),
            "scheme must be one of auto, .*zeros, but got 'xavier'",
        ),
        (lambda: init_weights(MLP(), "normal", sd=1), "'normal' takes mean, std, but got sd"),
        (lambda: init_weights(MLP(), gain=2), "'auto' takes no options, but got gain"),
        (lambda: init_weights(MLP(), "lsuv"), "needs example="),
        (lambda: init_weights(MLP(), match="head"), "'head' fits none of layers.1.weight"),
        (lambda: init_weights(MLP(), skip="head"), "skip must name .* 'head' fits none"),
        (lambda: init_weights(MLP(4, 2), example=torch.randn(2, 5)), r"an input that MLP can run, but with \(2, 5\)"),
        (lambda: init_weights(nn.Linear(2, 2, device="meta")), "'weight' is on the meta device"),
        (lambda: init_weights(MLP(), "delta_orthogonal"), "odd kernel"),
        (lambda: init_weights(MLP(), residual="zero"), "none was found"),
        (lambda: init_weights(MLP(4, 2), class_counts=[1, 2, 3]), "no last layer of that width"),
        (lambda: init_weights(MLP(4, 2), class_counts=[1, 0]), "every entry of class_counts"),
        (lambda: init_weights(MLP(4, 2), class_counts=[1]), "at least 2"),
        (lambda: init_weights(MLP(), "normal", std=-1), r"std must be in \[0"),
        (lambda: RULES["xavier_normal"](torch.empty(3)), r"at least 2 dimensions .*, but got the shape \(3,\)"),
    ],
)
def test_bad_input_gets_a_sentence(make, message):
    with pytest.raises(UserInputError, match=message):
        make()


# --- what is new ---------------------------------------------------------------------------------------------------

FRESH = {
    "linear": lambda: nn.Linear(30, 40),
    "small linear": lambda: nn.Linear(2, 3),
    "conv": lambda: nn.Conv2d(4, 8, 3, groups=2),
    "transposed": lambda: nn.ConvTranspose2d(4, 8, 3),
    "bilinear": lambda: nn.Bilinear(5, 6, 7),
    "embedding": lambda: nn.Embedding(30, 20, padding_idx=0),
    "small embedding": lambda: nn.Embedding(3, 2, padding_idx=0),
    "lstm": lambda: nn.LSTM(10, 12, 2, bidirectional=True, proj_size=5),
    "gru cell": lambda: nn.GRUCell(10, 12),
    "attention": lambda: nn.MultiheadAttention(16, 4, add_bias_kv=True),
    "cross attention": lambda: nn.MultiheadAttention(16, 4, kdim=8, vdim=12),
    "norm": lambda: nn.BatchNorm1d(5),
    "bf16": lambda: nn.Linear(30, 40, dtype=torch.bfloat16),
    "transformer": lambda: nn.TransformerEncoderLayer(16, 4, 32),
    "mlp": lambda: MLP(20, 3, hidden_features=(30, 3)),
    "copy": lambda: copy.deepcopy(MLP(20, 3, hidden_features=(30, 3))),
}


def with_parameters(model):
    return {name for name, m in model.named_modules() if any(True for _ in m.parameters(recurse=False))}


@pytest.mark.parametrize("name", FRESH)
def test_new_modules_are_recognised(name):
    for seed in range(5):
        torch.manual_seed(seed)
        model = FRESH[name]()
        assert untouched_modules(model) >= with_parameters(model)


@pytest.mark.parametrize("name", sorted(FRESH.keys() - {"norm"}))
@pytest.mark.parametrize("touch", ["train", "custom"])
def test_touched_modules_are_recognised(name, touch):
    model = FRESH[name]()
    with torch.no_grad():
        for p in model.parameters():
            if touch == "train":
                p.add_(torch.randn_like(p), alpha=0.05 * (float(p.float().std(correction=0)) or 1))
            else:
                p.normal_(0, 0.02)
    assert not untouched_modules(model)


@pytest.mark.parametrize("name", ["small linear", "embedding", "small embedding"])
def test_loading_the_very_same_kind_of_values_shows_in_what_is_too_small_to_tell(name):
    model = FRESH[name]()
    assert untouched_modules(model) == {""}
    model.load_state_dict(FRESH[name]().state_dict())
    assert not untouched_modules(model)


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_what_holds_nothing_or_no_numbers_is_told_apart():
    assert untouched_modules(nn.Sequential(nn.Linear(30, 40), nn.Linear(40, 0))) == {"0", "1"}, "no output, no trace"
    assert untouched_modules(nn.Linear(30, 40, device="meta")) == set(), "it has no values yet"
    broken = nn.Embedding(30, 20)
    broken.weight.data[3, 4] = torch.nan
    assert untouched_modules(broken) == set()


def test_small_layers_follow_the_rest_of_the_model():
    model = copy.deepcopy(MLP(20, 3, hidden_features=(30, 4)))  # a copy has no history of writing
    small = {"layers.4", "layers.7"}
    assert untouched_modules(model) >= small
    nn.init.normal_(model.layers[1].weight, std=0.01)
    assert not untouched_modules(model) & small


def test_training_shows_in_every_layer():
    model = MLP(20, 3, hidden_features=(30, 5))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(20):
        optimizer.zero_grad()
        F.cross_entropy(model(torch.randn(16, 20)), torch.randint(0, 3, (16,))).backward()
        optimizer.step()
    assert not untouched_modules(model)


def test_a_new_head_on_a_trained_body_is_the_only_new_thing():
    body = torchvision.models.resnet18()  # torchvision draws its convolutions by He's rule, fan-out
    body.fc = nn.Linear(512, 7)
    report = init_weights(body, only_new=True)
    new = {row.parameter for row in report.matched}
    assert {"fc.weight", "fc.bias"} <= new
    assert not any("conv" in name or "downsample.0" in name for name in new)


def test_a_norm_that_has_seen_data_is_not_new():
    norm = nn.BatchNorm1d(4)
    norm(torch.randn(8, 4))
    assert untouched_modules(nn.Sequential(norm, nn.LayerNorm(4))) == {"1"}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rule", sorted(RULES))
def test_rules_fill_half_precision(rule, dtype):
    weight = torch.full((4, 4, 3, 3), 7.0, dtype=dtype)
    RULES[rule](weight, generator=torch.Generator().manual_seed(0))
    assert bool(weight.isfinite().all())
    assert not bool((weight == 7).any())
