"""Sums of squares against float64, layer names, forward order."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lightning_tricks._base import UserInputError
from lightning_tricks.callbacks.norms._forward_order import first_uses, in_forward_order
from lightning_tricks.callbacks.norms._history import is_clipped
from lightning_tricks.callbacks.norms._layers import layers_of, members_of
from lightning_tricks.callbacks.norms._measure import count_nonfinite, squared_norms
from lightning_tricks.callbacks.norms._nonfinite import first_nonfinite, nonfinite_message
from lightning_tricks.callbacks.norms._recorder import NormRecorder

LAYOUTS = {
    "flat": lambda x: x,
    "transposed": lambda x: x.view(2, -1).t(),
    "strided": lambda x: x[::2],
    "channels_last picture": lambda x: x.view(1, 2, -1, 1).to(memory_format=torch.channels_last),
    "channels_last": lambda x: x.view(2, 1, 1, -1).to(memory_format=torch.channels_last),
}


@settings(max_examples=60, deadline=None)
@given(
    size=st.sampled_from([2, 10, 1000, 8192, 8194, 9000, 300_000]),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
    layout=st.sampled_from(sorted(LAYOUTS)),
    exponent=st.integers(-3, 1),
    constant=st.booleans(),
)
def test_squares_match_float64(size, dtype, layout, exponent, constant):
    x = torch.full((size,), 0.1) if constant else torch.randn(size, generator=torch.Generator().manual_seed(size))
    x = LAYOUTS[layout]((x * 10.0**exponent).to(dtype))
    torch.testing.assert_close(squared_norms([x])[0], x.double().square().sum(), rtol=1e-5, atol=0)


def test_squares_of_many_values_stay_exact():
    """One float32 accumulation is off by 4e-3 here."""
    x = torch.full((5_000_000,), 0.1)
    torch.testing.assert_close(squared_norms([x])[0], x.double().square().sum(), rtol=1e-6, atol=0)


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
def test_squares_of_odd_tensors():
    sparse = torch.sparse_coo_tensor([[1, 1, 4]], [1.0, 2.0, 4.0], (10,))  # 3 at one place, 4 at another
    empty, complex_ = torch.zeros(0, 3), torch.tensor([3 + 4j])
    huge, broken = torch.full((3,), 1e25), torch.tensor([1.0, math.nan])
    found = squared_norms([sparse, empty, complex_, huge, broken])
    torch.testing.assert_close(found[:4], torch.tensor([25.0, 0.0, 25.0, 3e50], dtype=torch.float64))
    assert found[4].isnan()


def test_nonfinite_values_are_counted():
    tensors = [
        torch.tensor([1.0, math.nan, math.inf]),
        torch.ones(4),
        torch.tensor([-math.inf]),
        torch.full((2,), 1e30),
    ]
    counts = count_nonfinite(tensors, squared_norms(tensors))
    assert counts.tolist() == [2, 0, 1, 0]
    assert squared_norms([]).shape == (0,)
    elsewhere = squared_norms(tensors).to("meta")  # stands for a device whose values must not be waited for
    assert count_nonfinite(tensors, elsewhere).shape == (4,)


def test_layers_are_named_by_their_path():
    net = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 1)))
    net.scale = nn.Parameter(torch.ones(()))
    net.steps = nn.Parameter(torch.zeros((), dtype=torch.long), requires_grad=False)
    assert {name: len(group) for name, group in layers_of(net)} == {"scale": 1, "0": 2, "1.0": 1, "1.2": 2}
    assert {name: len(group) for name, group in layers_of(net, depth=1)} == {"scale": 1, "0": 2, "1": 3}
    assert {name: len(group) for name, group in layers_of(net, match="^1")} == {"1.0": 1, "1.2": 2, "(rest)": 3}
    with pytest.raises(UserInputError, match=r"match='conv' is found in none of the layers scale, 0, 1\.0"):
        layers_of(net, match="conv")
    with pytest.raises(UserInputError, match="at least one parameter"):
        layers_of(nn.ReLU())


def test_shared_and_wrapped_parameters():
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    net[1].weight = net[0].weight
    assert [len(group) for _, group in layers_of(net)] == [2, 1]
    assert [name for name, _ in layers_of(nn.Sequential(torch.compile(net, backend="eager")))] == ["0.0", "0.1"]


def test_members_follow_their_optimizer():
    a, b, frozen = (nn.Parameter(torch.ones(1)) for _ in range(3))
    one, two = torch.optim.SGD([a], lr=1), torch.optim.SGD([b], lr=1)
    assert members_of([a, b, frozen], [one, two]) == [[0, 2], [1]]


@given(st.permutations(range(6)))
def test_forward_order_is_that_of_use_not_of_registration(order):
    layers = nn.ModuleList(nn.Linear(2, 2) for _ in range(6))
    x = torch.rand(3, 2)
    for i in order:
        x = layers[i](x).tanh()
    uses = first_uses(x.sum())
    by_name = {str(i): min(uses[id(p)] for p in layer.parameters()) for i, layer in enumerate(layers)}
    assert in_forward_order(map(str, range(6)), by_name) == [str(i) for i in order]


def test_forward_order_without_a_graph():
    assert first_uses(torch.ones(())) == {}
    assert in_forward_order(["b", "a"], {}) == ["b", "a"]


@given(st.floats(1e-6, 1e6), st.floats(0.01, 1.0))
def test_clipping_binds_where_the_norm_shrinks(before, factor):
    assert is_clipped(before, before * factor) == (factor < 1 - 1e-9)
    assert not is_clipped(math.inf, 1.0)


def test_watching_finds_the_first_broken_gradient_without_looking():
    """What a device that must not be waited for does in every step."""
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    recorder = NormRecorder(layers_of(net), capacity=2, world_size=1, measure_updates=False)
    for step, bad in enumerate([None, None, 1, 0, 1]):
        for parameter in net.parameters():
            parameter.grad = torch.zeros_like(parameter)
        if bad is not None:
            net[bad].weight.grad[0, 0] = math.nan
        recorder.watch(step, [0, 1, 2, 3])
    net.zero_grad(set_to_none=True)
    recorder.watch(5, [0, 1, 2, 3])  # a step in which nothing has a gradient
    recorder.close(recorder.begin(5, 0, [0, 1, 2, 3], None))
    block = recorder.drain()
    assert recorder.watched == {"0": 3, "1": 2}
    assert first_nonfinite(block, {}, {}) is None
    found = first_nonfinite(block, recorder.watched, {"0": 0, "1": 1})
    assert found == {"step": 2, "layer": "1", "quantity": "gradient"}


def test_a_gradient_that_began_in_a_layer_names_it():
    message = nonfinite_message(7, "net.2", "gradient")
    assert "it began in layer 'net.2': look for a division or a root of zero in it or right after it" in message
