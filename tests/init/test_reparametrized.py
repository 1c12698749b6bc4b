"""Weights computed from other parameters, heads that are exponentiated, and models that store what passes through."""

import warnings

import pytest
import torch
from helpers import quiet_trainer
from lightning.pytorch import LightningModule
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from lightning_tricks import WeightInit, init_weights, param_groups
from lightning_tricks.init import untouched_modules


def net(wrap, layers=1, width=64):
    return nn.Sequential(*[m for _ in range(layers) for m in (wrap(nn.Linear(width, width)), nn.ReLU())])


def hooked(layer, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # deprecated, and in every vocoder
        return nn.utils.weight_norm(layer, **options)


@pytest.mark.parametrize("example", [None, torch.randn(4, 64)])
def test_a_weight_normed_layer_gets_the_values_of_a_plain_one(example):
    plain, normed = net(lambda layer: layer), net(parametrizations.weight_norm)
    for model in (plain, normed):
        report = init_weights(model, example=example, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(normed[0].weight, plain[0].weight)
    rows = [row for row in report.rows if "parametrizations" in row.parameter]
    assert [row.rule for row in rows] == ["kaiming_normal"] * 2
    assert all("assigned through WeightNorm" in row.why for row in rows)


def test_a_spectral_norm_keeps_its_bound_and_an_orthogonal_weight_stays_orthogonal():
    model = nn.Sequential(*net(parametrizations.orthogonal), *net(parametrizations.spectral_norm))
    before = model[0].weight.detach().clone()
    report = init_weights(model)
    assert not torch.equal(model[0].weight, before)
    torch.testing.assert_close(model[0].weight @ model[0].weight.T, torch.eye(64), atol=1e-4, rtol=0)
    assert "kaiming_normal" in [row.rule for row in report.rows if row.parameter.startswith("2.parametrizations")]


class Exponential(nn.Module):
    def forward(self, x):
        return x.exp()


def test_a_parametrization_without_a_right_inverse_is_left_alone_and_said():
    model = nn.Sequential(nn.Linear(4, 4))
    parametrize.register_parametrization(model[0], "weight", Exponential())
    before = model[0].weight.detach().clone()
    (row,) = [row for row in init_weights(model).rows if "parametrizations" in row.parameter]
    assert (row.rule, "Exponential" in row.why, "right_inverse" in row.why) == ("left alone", True, True)
    assert torch.equal(model[0].weight, before)


@pytest.mark.parametrize("dim", [0, 1, None])
def test_gains_of_the_older_weight_norm_are_the_norms_of_their_directions(dim):
    model = net(lambda layer: hooked(layer, dim=dim), layers=5)
    x = torch.randn(256, 64)
    report = init_weights(model, generator=torch.Generator().manual_seed(0))
    assert {row.rule for row in report.rows if row.parameter.endswith("_g")} == {"norm of weight_v"}
    assert 0.3 < float(model(x).detach().square().mean()) < 3
    for layer in model[::2]:
        torch.testing.assert_close(layer.weight, layer.weight_v)


@pytest.mark.parametrize("wrap", [parametrizations.weight_norm, hooked])
def test_gains_do_not_decay_and_new_layers_are_recognised(wrap):
    model = net(wrap)
    decay, kept = param_groups(model, 0.1)
    assert [p.shape for p in decay["params"]] == [(64, 64)]
    assert sorted(p.shape for p in kept["params"]) == [(64,), (64, 1)]
    assert "0" in untouched_modules(model)


class Stores(nn.Module):
    """Keeps a mask, a list of what it saw and a count; the symbolic trace stops in the middle."""

    def __init__(self, stop=False):
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.mask, self.history, self.named, self.stop = None, [], {"a": 1}, stop
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x):
        self.mask = x > 0
        self.attention = x
        self.history.append(x)
        self.named["b"] = x
        self.count += 1
        if self.stop and x.sum() > 0:
            raise NameError("not with a symbol")
        return self.layer(x)


@pytest.mark.parametrize("stop", [False, True])
@pytest.mark.parametrize("example", [None, -torch.ones(2, 4)])
def test_a_look_leaves_nothing_behind(example, stop):
    model = Stores(stop)
    model.layer.tag = "mine"
    init_weights(model, example=example)
    assert (model.mask, model.history, model.named, float(model.count)) == (None, [], {"a": 1}, 0.0)
    assert not hasattr(model, "attention")
    assert model.layer.tag == "mine"


class VAE(LightningModule):
    def __init__(self, zero=False):
        super().__init__()
        self.encoder, self.log_variance = nn.Linear(64, 64), nn.Linear(64, 32)
        self.decoder = nn.Linear(32, 64)
        self.lora_b = nn.Linear(64, 64, bias=False)
        nn.init.zeros_(self.lora_b.weight)

    def forward(self, x):
        hidden = self.encoder(x).relu()
        return self.decoder((0.5 * self.log_variance(hidden)).exp()) + self.lora_b(x)

    def training_step(self, batch, batch_idx):
        return self(batch).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


@pytest.mark.parametrize("example", [None, torch.randn(4, 64)])
def test_what_is_exponentiated_or_zero_on_purpose_keeps_its_values(example):
    model = VAE()
    before = model.log_variance.weight.detach().clone()
    callback = WeightInit(example=example)
    trainer = quiet_trainer(max_steps=1, callbacks=[callback])
    trainer.fit(model, torch.utils.data.DataLoader(torch.randn(8, 64), batch_size=4))
    rows = {row.parameter: row for row in callback.report.rows}
    assert rows["log_variance.weight"].why == "its output is exponentiated"
    assert torch.equal(model.log_variance.weight, before)
    assert rows["lora_b.weight"].rule == "left alone"
    assert not model.lora_b.weight.any()
