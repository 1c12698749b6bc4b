"""Parameter groups and optimizers by name."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lightning_tricks import MLP, build_optimizer, param_groups
from lightning_tricks._base import UserInputError

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


def test_bad_input_gets_a_sentence():
    with pytest.raises(UserInputError, match=r"optimizer must be one of adagrad, adam, .*Did you mean 'adam'"):
        build_optimizer("addam", MLP())
    with pytest.raises(UserInputError, match=r"lr must be in \(0, inf\), but got -1"):
        build_optimizer("adam", MLP(), lr=-1)
    with pytest.raises(UserInputError, match="weight_decay must be in"):
        build_optimizer("adam", MLP(), weight_decay=-0.1)
