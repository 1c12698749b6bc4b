"""Exchanging batch norms: what is kept, what each target promises, two processes as one."""

import pytest
import torch
import torchvision
from helpers import quiet_trainer, run_ranks
from lightning.pytorch import LightningModule
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_tricks import convert_norm
from lightning_tricks._base import UserInputError
from lightning_tricks.nets._convert_norm import CpuSyncBatchNorm


def net(seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(3, 12, 3), nn.BatchNorm2d(12), nn.ReLU(), nn.Flatten(), nn.Linear(12 * 9, 6))
    model.append(nn.BatchNorm1d(6))
    model(torch.randn(16, 3, 5, 5) * 3 + 1)
    for norm in (model[1], model[5]):
        nn.init.uniform_(norm.weight)
        nn.init.uniform_(norm.bias)
    return model


@pytest.mark.parametrize("to", ["sync", "frozen"])
def test_evaluation_computes_the_same_function(to):
    model, x = net().eval(), torch.randn(4, 3, 5, 5)
    expected = model(x)
    torch.testing.assert_close(convert_norm(model, to)(x), expected)
    assert not any(type(m) in (nn.BatchNorm1d, nn.BatchNorm2d) for m in model.modules())


def test_frozen_is_constant_in_training_and_trains_nothing():
    model, x = net(), torch.randn(4, 3, 5, 5)
    expected = model.eval()(x)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    frozen = convert_norm(model, "frozen").train()
    torch.testing.assert_close(frozen(x), expected)
    assert {name for name, _ in frozen.named_parameters()} == {"0.weight", "0.bias", "4.weight", "4.bias"}
    assert frozen.state_dict().keys() == state.keys()
    assert all(torch.equal(v, state[k]) for k, v in frozen.state_dict().items())
    net(seed=1).load_state_dict(frozen.state_dict())


@pytest.mark.parametrize(
    ("to", "groups", "counts"), [("group", 32, [3, 1]), ("group", 2, [2, 1]), ("layer", 32, [1, 1])]
)
def test_group_norms_divide_the_channels_and_ignore_the_batch(to, groups, counts):
    model = net()
    scale = model[1].weight
    convert_norm(model, to, groups=groups)
    assert [m.num_groups for m in model.modules() if isinstance(m, nn.GroupNorm)] == counts
    assert model[1].weight is scale, "an optimizer made before still trains it"
    x = torch.randn(4, 3, 5, 5)
    torch.testing.assert_close(model(x)[:1], model(x[:1]))


def test_a_shared_norm_stays_one_and_a_whole_resnet_is_converted():
    norm = nn.BatchNorm1d(3)
    shared = convert_norm(nn.ModuleDict({"a": nn.Sequential(norm), "b": norm}), "group")
    assert shared["a"][0] is shared["b"]
    resnet = convert_norm(torchvision.models.resnet18(), "group")
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in resnet.modules())
    assert resnet(torch.randn(1, 3, 32, 32)).shape == (1, 1000)


def test_a_bare_norm_is_returned_anew_and_modes_are_kept():
    norm = nn.BatchNorm2d(4, affine=False).eval()
    new = convert_norm(norm, "group")
    assert isinstance(new, nn.GroupNorm)
    assert not new.training
    assert new.weight is None


class Fit(LightningModule):
    def __init__(self, sync):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Conv1d(2, 4, 3), nn.BatchNorm1d(4), nn.Tanh(), nn.Flatten(), nn.Linear(16, 1))
        if sync:
            convert_norm(self.net, "sync")

    def training_step(self, batch, batch_idx):
        x, y = batch
        return (self.net(x) - y).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.2)


def data(batch_size):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(16, 2, 6, generator=generator) * torch.linspace(0.2, 3, 16)[:, None, None]
    return DataLoader(TensorDataset(x, x.sum((1, 2))[:, None].sign()), batch_size)


def _on_rank(rank, sync):
    model = Fit(sync)
    quiet_trainer(max_epochs=3, strategy="ddp", devices=2).fit(model, data(8))
    return {k: v.detach().numpy().copy() for k, v in model.state_dict().items()}


def test_two_synchronised_processes_are_one_with_the_whole_batch():
    alone = Fit(sync=False)
    quiet_trainer(max_epochs=3).fit(alone, data(16))
    first, second = run_ranks(_on_rank, True)
    for key, value in alone.state_dict().items():
        torch.testing.assert_close(torch.from_numpy(first[key]), value, rtol=1e-4, atol=1e-5)
        assert (first[key] == second[key]).all()
    unsynchronised, _ = run_ranks(_on_rank, False)
    assert abs(unsynchronised["net.1.running_var"] - alone.net[1].running_var.numpy()).max() > 1e-3


def _bare_on_rank(rank):
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    norm = convert_norm(nn.BatchNorm1d(3, affine=False, track_running_stats=False), "sync")
    assert isinstance(norm, CpuSyncBatchNorm)
    return norm(torch.arange(12.0).view(4, 3).square()[2 * rank : 2 * rank + 2]).tolist()


def test_synchronised_norms_without_weights_and_statistics():
    whole = nn.BatchNorm1d(3, affine=False)(torch.arange(12.0).view(4, 3).square())
    torch.testing.assert_close(torch.tensor(run_ranks(_bare_on_rank)).view(4, 3), whole)


def test_synchronised_and_frozen_norms_say_what_they_are():
    with pytest.raises(UserInputError, match=r"at least 2 dimensions \(batch, channels\), but got 1"):
        CpuSyncBatchNorm(3)(torch.zeros(3))
    assert str(convert_norm(nn.BatchNorm1d(3), "frozen")) == "FrozenBatchNorm(3, eps=1e-05)"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: convert_norm(net(), "grup"), "Did you mean 'group'"),
        (lambda: convert_norm(net(), "group", groups=0), r"groups must be in \[1"),
        (lambda: convert_norm(nn.Sequential(nn.LazyBatchNorm2d()), "sync"), "'0' is lazy"),
        (lambda: convert_norm(nn.BatchNorm1d(3, track_running_stats=False), "frozen"), "keeps no running statistics"),
    ],
)
@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_bad_input_gets_a_sentence(make, message):
    with pytest.raises(UserInputError, match=message):
        make()
