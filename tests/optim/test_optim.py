"""Parameter groups and optimizers by name."""

import itertools

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lightning_tricks import MLP, build_optimizer, param_groups
from lightning_tricks._base import UserInputError
from lightning_tricks.optim import blocks

LAYERS = st.sampled_from(
    [
        lambda: nn.Linear(3, 3),
        lambda: nn.Linear(3, 3, bias=False),
        lambda: nn.BatchNorm1d(3),
        lambda: nn.LayerNorm(3),
        lambda: nn.Embedding(5, 3),
        lambda: nn.Conv1d(2, 3, 1),
        lambda: nn.GRU(3, 3),
        lambda: nn.MultiheadAttention(4, 2),
        lambda: nn.PReLU(),
        lambda: nn.Linear(2, 2).requires_grad_(False),
    ]
)


@given(st.lists(LAYERS, min_size=1, max_size=5), st.booleans())
def test_every_trainable_parameter_is_in_exactly_one_group(makers, share):
    layers = [make() for make in makers]
    model = nn.Sequential(*layers, *(layers[:1] if share else []))
    trainable = {id(p) for p in model.parameters() if p.requires_grad}
    if not trainable:
        with pytest.raises(UserInputError, match="at least one trainable parameter"):
            param_groups(model, 0.1)
        return
    groups = param_groups(model, 0.1)
    assert [g["name"] for g in groups] == sorted({g["name"] for g in groups} & {"decay", "no_decay"})
    grouped = [id(p) for g in groups for p in g["params"]]
    assert sorted(grouped) == sorted(trainable)
    for group in groups:
        assert group["weight_decay"] == (0.1 if group["name"] == "decay" else 0.0)
        assert all((p.ndim >= 2) == (group["name"] == "decay") for p in group["params"])


@pytest.mark.parametrize(
    ("name", "kind", "lr", "expected"),
    [
        ("sgd", torch.optim.SGD, 1e-2, {"momentum": 0, "nesterov": False}),
        ("momentum", torch.optim.SGD, 1e-4, {"momentum": 0.9, "nesterov": False}),
        ("nesterov", torch.optim.SGD, 1e-4, {"momentum": 0.9, "nesterov": True}),
        ("adagrad", torch.optim.Adagrad, 1e-2, {}),
        ("rmsprop", torch.optim.RMSprop, 1e-2, {}),
        ("adam", torch.optim.Adam, 3e-4, {"betas": (0.9, 0.999)}),
        ("adamw", torch.optim.AdamW, 3e-4, {"betas": (0.9, 0.999)}),
    ],
)
def test_defaults_of_the_course(name, kind, lr, expected):
    optimizer = build_optimizer(name, MLP(4, 2))
    assert type(optimizer) is kind
    for group in optimizer.param_groups:
        assert group["lr"] == lr
        assert {key: group[key] for key in expected} == expected


def quadratic(w):
    """Gradient of a narrow valley: 0.5 (w0² + 20 w1²)."""
    return np.array([1.0, 20.0]) * w


def lecture_sgd(w, lr):
    while True:
        w = w - lr * quadratic(w)
        yield w


def lecture_momentum(w, lr, mu=0.9):
    v = np.zeros(2)
    while True:
        v = mu * v - lr * quadratic(w)
        w = w + v
        yield w


def lecture_nesterov(w, lr, mu=0.9):
    """The gradient is taken where the momentum leads: that point, w + mu v, is the one that torch stores."""
    v = np.zeros(2)
    while True:
        v = mu * v - lr * quadratic(w + mu * v)
        w = w + v
        yield w + mu * v


def lecture_adagrad(w, lr, eps=1e-10):
    total = np.zeros(2)
    while True:
        g = quadratic(w)
        total = total + g**2
        w = w - lr * g / (np.sqrt(total) + eps)
        yield w


def lecture_rmsprop(w, lr, rho=0.99, eps=1e-8):
    mean = np.zeros(2)
    while True:
        g = quadratic(w)
        mean = rho * mean + (1 - rho) * g**2
        w = w - lr * g / (np.sqrt(mean) + eps)
        yield w


def lecture_adam(w, lr, b1=0.9, b2=0.999, eps=1e-8):
    m, v = np.zeros(2), np.zeros(2)
    for t in itertools.count(1):
        g = quadratic(w)
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g**2
        w = w - lr * (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps)
        yield w


@pytest.mark.parametrize("implementation", ["auto", "foreach", "plain"])
@pytest.mark.parametrize(
    ("name", "rule", "lr"),
    [
        ("sgd", lecture_sgd, 0.04),
        ("momentum", lecture_momentum, 0.01),
        ("nesterov", lecture_nesterov, 0.01),
        ("adagrad", lecture_adagrad, 0.5),
        ("rmsprop", lecture_rmsprop, 0.05),
        ("adam", lecture_adam, 0.1),
    ],
)
def test_fifty_steps_of_the_lectures_rule(name, rule, lr, implementation):
    model = nn.ParameterList([nn.Parameter(torch.tensor([3.0, -1.0], dtype=torch.float64))])
    optimizer = build_optimizer(name, model, lr=lr, implementation=implementation)
    for expected in itertools.islice(rule(np.array([3.0, -1.0]), lr), 50):
        optimizer.zero_grad()
        w = model[0]
        (0.5 * (w[0] ** 2 + 20 * w[1] ** 2)).backward()
        optimizer.step()
        np.testing.assert_allclose(w.detach().numpy(), expected, rtol=1e-9, atol=1e-12)


def test_learning_rates_by_pattern_first_fit_wins():
    net = nn.ModuleDict({"backbone": nn.Linear(2, 2), "head": nn.Linear(2, 1)})
    optimizer = build_optimizer("adam", net, lr=1e-3, weight_decay=0.1, lr_of={"*.bias": 1e-2, "backbone": 1e-5})
    rates = {id(p): g["lr"] for g in optimizer.param_groups for p in g["params"]}
    assert rates == {
        id(net["backbone"].weight): 1e-5,
        id(net["backbone"].bias): 1e-2,
        id(net["head"].weight): 1e-3,
        id(net["head"].bias): 1e-2,
    }
    names = [g["name"] for g in optimizer.param_groups]
    assert len(set(names)) == len(names), "LearningRateMonitor needs different names"
    assert {g["weight_decay"] for g in optimizer.param_groups if g["name"].startswith("decay")} == {0.1}


@pytest.mark.parametrize(
    ("make", "first", "last", "count"),
    [
        (lambda: torchvision.models.resnet18(), ["conv1.weight", "bn1.weight", "bn1.bias"], "fc.bias", 10),
        (lambda: torchvision.models.vit_b_16(image_size=32), ["class_token"], "heads.head.bias", 16),
        (lambda: MLP(4, 2, hidden_features=(3, 3)), ["layers.1.weight"], "layers.7.bias", 3),
        (
            lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 8, batch_first=True), 3),
            None,
            "layers.2.norm2.bias",
            3,
        ),
        (lambda: nn.Sequential(torchvision.models.resnet18(), nn.Linear(1000, 2)), None, "1.bias", 11),
    ],
)
def test_layer_decay_falls_block_by_block(make, first, last, count):
    model = make()
    found = blocks(model)
    names = [name for names in found for name in names]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters()), "every parameter once"
    assert len(found) == count
    assert last in found[-1]
    if first:
        assert found[0][: len(first)] == first
    optimizer = build_optimizer("sgd", model, lr=1.0, layer_decay=0.5)
    rates = {id(p): g["lr"] for g in optimizer.param_groups for p in g["params"]}
    parameters = dict(model.named_parameters())
    for number, block in enumerate(found):
        assert {rates[id(parameters[name])] for name in block} == {0.5 ** (count - 1 - number)}


def test_the_layers_of_a_model_without_a_stack_are_its_blocks():
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(2, 2))
            self.first, self.norm, self.last = nn.Linear(2, 2), nn.LayerNorm(2), nn.Linear(2, 1)

    first = ["first.weight", "first.bias", "norm.weight", "norm.bias"]
    assert blocks(Plain()) == [["scale"], first, ["last.weight", "last.bias"]]


def test_frozen_parts_are_left_out():
    net = nn.ModuleDict({"backbone": nn.Linear(2, 2), "head": nn.Linear(2, 1)})
    optimizer = build_optimizer("adam", net, frozen="backbone")
    held = {id(p) for g in optimizer.param_groups for p in g["params"]}
    assert held == {id(p) for p in net["head"].parameters()}


@pytest.mark.parametrize(
    ("name", "model", "fused"),
    [
        ("adam", lambda: nn.Linear(2, 2), True),
        ("adam", lambda: nn.Embedding(4, 2, sparse=True), False),
        ("adam", lambda: nn.Linear(2, 2, device="meta"), False),
        ("rmsprop", lambda: nn.Linear(2, 2), False),
    ],
)
def test_fused_kernels_are_taken_where_they_exist(name, model, fused):
    optimizer = build_optimizer(name, model())
    assert bool(optimizer.defaults.get("fused")) == fused


@pytest.mark.parametrize("overflow", [False, True])
def test_a_gradient_scaler_unscales_for_a_fused_optimizer_before_its_step(overflow):
    """As for any other class, so that gradients can be clipped between; a step with an overflow is left out."""
    results = []
    for implementation in ("fused", "plain"):
        model = nn.Linear(2, 2)
        nn.init.ones_(model.weight)
        optimizer = build_optimizer("adam", model, lr=0.1, implementation=implementation)
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
        scaler.scale(model(torch.ones(1, 2)).square().sum() * (float("inf") if overflow else 1.0)).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_value_(model.parameters(), 1.5)
        assert overflow or model.weight.grad.max() == 1.5
        scaler.step(optimizer)
        scaler.update()
        results.append(model.weight.detach().clone())
    torch.testing.assert_close(*results)
    assert bool((results[0] == 1).all()) == overflow


@pytest.mark.parametrize("name", ["rmsprop", "adam", "adamw", "adagrad"])
def test_half_precision_weights_without_a_gradient_stay_finite(name):
    layer = nn.Linear(2, 2).half()
    before = layer.weight.detach().clone()
    optimizer = build_optimizer(name, layer, lr=1e-2, implementation="plain")
    layer.weight.grad, layer.bias.grad = torch.zeros_like(layer.weight), torch.zeros_like(layer.bias)
    optimizer.step()
    assert torch.equal(layer.weight, before)
    assert build_optimizer(name, layer, eps=1e-3).defaults["eps"] == 1e-3


def test_third_party_optimizers_by_import_path():
    optimizer = build_optimizer("torch.optim.NAdam", MLP(4, 2), lr=0.01, weight_decay=0.1, momentum_decay=0.1)
    assert type(optimizer) is torch.optim.NAdam
    assert [g["weight_decay"] for g in optimizer.param_groups] == [0.1, 0.0]
    assert optimizer.defaults["momentum_decay"] == 0.1
    assert (
        build_optimizer("torch.optim.NAdam", MLP(4, 2)).defaults["lr"]
        == torch.optim.NAdam([torch.ones(1)]).defaults["lr"]
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr_of": {"haed": 1.0}}, "'haed' fits none of layers.1.weight"),
        ({"lr_of": {"layers": -1.0}}, r"lr_of\['layers'\] must be in"),
        ({"frozen": "nothing"}, "'nothing' fits none"),
        ({"frozen": "layers"}, "at least one trainable parameter, but MLP has none. Unfreeze"),
        ({"layer_decay": 0.5, "lr": 0.0}, r"^lr must be in \(0, inf\)"),
        ({"layer_decay": 1.5}, r"layer_decay must be in \(0, 1\]"),
        ({"name": "torch.optim.Adem"}, "'torch.optim.Adem' cannot be imported"),
        ({"name": "no.such.Thing"}, "cannot be imported"),
        ({"name": "torch.nn.Linear"}, "subclass of torch.optim.Optimizer"),
        ({"name": "torch.optim.NAdam", "layer_decay": 0.5}, "give lr, too"),
        ({"implementation": "fast"}, "implementation must be one of"),
        ({"name": "rmsprop", "implementation": "fused"}, "no fused implementation"),
        ({"beta": 1}, "adam does not take these options.*betas"),
    ],
)
def test_bad_options_get_a_sentence(options, message):
    with pytest.raises(UserInputError, match=message):
        build_optimizer(**{"name": "adam", "model": MLP(), **options})


def test_bad_input_gets_a_sentence():
    with pytest.raises(UserInputError, match=r"optimizer must be one of adagrad, adam, .*Did you mean 'adam'"):
        build_optimizer("addam", MLP())
    with pytest.raises(UserInputError, match=r"lr must be in \(0, inf\), but got -1"):
        build_optimizer("adam", MLP(), lr=-1)
    with pytest.raises(UserInputError, match="weight_decay must be in"):
        build_optimizer("adam", MLP(), weight_decay=-0.1)
