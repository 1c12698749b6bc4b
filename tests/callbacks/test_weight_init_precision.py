"""WeightInit where the Trainer changes the parameters' type or shards a net that was built in ``__init__``."""

import pytest
import torch
from helpers import quiet_trainer, run_ranks
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_tricks import MLP, Classifier, WeightInit


def data():
    x = torch.randn(16, 8, generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(x, x[:, :3].argmax(1)), 4)


class Adds(nn.Module):
    """Makes a tensor of the default type in its forward, so that a wrong default type does not fit the next layer."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(8, 16), nn.Linear(17, 3)

    def forward(self, x):
        return self.last(torch.cat([self.first(x).relu(), torch.ones(len(x), 1)], dim=1))


def initialised(precision="32-true"):
    model = Classifier(Adds(), 3, lr=1e-30, optimizer="sgd", example_input=torch.randn(4, 8))
    trainer = quiet_trainer(max_steps=1, precision=precision, callbacks=[WeightInit(seed=3)])
    trainer.fit(model, data(), data())
    assert trainer.callbacks[0].report.rows[0].rule == "kaiming_normal"
    return dict(model.named_parameters())


@pytest.mark.parametrize("precision", ["64-true", "bf16-true", "16-true"])
def test_weights_are_those_of_float32_rounded(precision):
    wide = initialised()
    for name, parameter in initialised(precision).items():
        torch.testing.assert_close(parameter, wide[name].to(parameter.dtype), rtol=0, atol=1e-20)


class Sharded(Classifier):
    """Its net is built in __init__ and sharded in configure_model."""

    def configure_model(self):
        from torch.distributed.fsdp import fully_shard

        fully_shard(self.net, mesh=self.device_mesh["data_parallel"])


def fit_sharded(rank, ranks):
    torch.manual_seed(rank)  # ranks that were not seeded alike
    model = Sharded(MLP(8, 3, hidden_features=(16,), norm="none"), 3, optimizer="sgd", lr=1e-30)
    strategy = ModelParallelStrategy(data_parallel_size=ranks, tensor_parallel_size=1)
    trainer = quiet_trainer(max_steps=1, callbacks=[WeightInit(seed=5)], strategy=strategy, devices=ranks)
    trainer.fit(model, data(), data())
    values = {name: p.detach().full_tensor().numpy() for name, p in model.named_parameters()}
    return values, [row.rule for row in trainer.callbacks[0].report.rows]


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_net_sharded_after_it_was_built_is_initialised_like_a_whole_one(ranks):
    whole = Classifier(MLP(8, 3, hidden_features=(16,), norm="none"), 3, optimizer="sgd", lr=1e-30)
    quiet_trainer(max_steps=1, callbacks=[WeightInit(seed=5)]).fit(whole, data(), data())
    for values, rules in run_ranks(fit_sharded, ranks, world_size=ranks):
        assert rules[0] == "kaiming_normal"
        for name, parameter in whole.named_parameters():
            torch.testing.assert_close(torch.from_numpy(values[name]), parameter.detach(), rtol=0, atol=1e-7)
