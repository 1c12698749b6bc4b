"""WeightInit: at the right moment, once, the same everywhere, never over anybody's weights."""

import copy
import pickle
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import quiet_trainer, run_ranks
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from torch import nn
from torch.distributed.tensor import Shard, distribute_tensor
from torch.utils.data import DataLoader, TensorDataset

from lightning_tricks import MLP, Diagnosis, NormMonitor, WeightInit, init_weights
from lightning_tricks._base import UserInputError, derive_seed
from lightning_tricks.init._signal import _std


class Net(LightningModule):
    """A classifier whose layers appear when ``when`` says: "init", "configure_model" or on "meta" in __init__."""

    def __init__(self, when="init", shard=False):
        super().__init__()
        self.when = when
        self.shard = shard
        self.net = None
        if when != "configure_model":
            with torch.device("meta" if when == "meta" else "cpu"):
                self.net = MLP(8, 3, hidden_features=(64, 64), norm="layer")

    def configure_model(self):
        if self.net is None:
            with torch.device("meta" if self.shard else "cpu"):
                self.net = MLP(8, 3, hidden_features=(64, 64), norm="layer")
        if self.shard:
            from torch.distributed.fsdp import fully_shard

            fully_shard(self.net, mesh=self.device_mesh["data_parallel"])

    def training_step(self, batch, batch_idx):
        x, y = batch
        return nn.functional.cross_entropy(self.net(x), y)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.0 if self.trainer.max_steps == 1 else 1e-2)


def data():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(32, 8, generator=generator)
    return DataLoader(TensorDataset(x, x[:, :3].argmax(1)), 8)


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def expected(seed=5):
    model = Net()
    init_weights(model, generator=torch.Generator().manual_seed(seed))
    return weights(model)


def assert_equal(a, b):
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(b[name])), name


@pytest.mark.parametrize("when", ["init", "configure_model", "meta"])
def test_draws_what_init_weights_draws_whenever_the_layers_appear(when):
    model, init = Net(when), WeightInit(seed=5)
    quiet_trainer(max_steps=1, callbacks=[init]).fit(model, data())
    assert_equal(weights(model), expected())
    assert len(init.report.matched) == len(list(model.parameters()))
    assert not init.report.left_alone


def _ddp(rank):
    torch.manual_seed(rank)  # ranks that were not seeded alike
    model = Net()
    quiet_trainer(max_steps=1, callbacks=[WeightInit(seed=5)], strategy="ddp", devices=2).fit(model, data())
    return {name: p.numpy() for name, p in weights(model).items()}


def test_two_ranks_hold_what_one_process_holds():
    first, second = run_ranks(_ddp)
    assert_equal(first, expected())
    assert_equal(second, expected())


def _sharded(rank):
    model = Net("configure_model", shard=True)
    strategy = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)
    quiet_trainer(max_steps=1, callbacks=[WeightInit(seed=5)], strategy=strategy, devices=2).fit(model, data())
    return {name: p.detach().full_tensor().numpy() for name, p in model.named_parameters()}


def test_sharded_meta_parameters_hold_what_one_process_holds():
    for values in run_ranks(_sharded):
        assert_equal(values, expected())


def _sharded_after_init(rank, world_size):
    model = Net(shard=True)
    strategy = ModelParallelStrategy(data_parallel_size=world_size, tensor_parallel_size=1)
    callbacks = [WeightInit(seed=5), NormMonitor(every_n_steps=1), Diagnosis(report_path=None)]
    trainer = quiet_trainer(max_steps=1, callbacks=callbacks, strategy=strategy, devices=world_size)
    trainer.fit(model, data())
    return {name: p.detach().full_tensor().numpy() for name, p in model.named_parameters()}


@pytest.mark.parametrize("world_size", [1, 2])
def test_parameters_made_in_init_and_sharded_later_hold_what_one_process_holds(world_size):
    for values in run_ranks(_sharded_after_init, world_size, world_size=world_size):
        assert_equal(values, expected())


def _deviation_of_a_sharded_output(rank):
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    mesh = torch.distributed.init_device_mesh("cpu", (2,))
    return _std(distribute_tensor(torch.arange(6.0), mesh, [Shard(0)]))


def test_the_deviation_of_a_sharded_output_is_that_of_the_whole():
    assert run_ranks(_deviation_of_a_sharded_output) == [pytest.approx((35 / 12) ** 0.5)] * 2


def test_a_resumed_run_ends_where_the_uninterrupted_one_ends():
    def run(epochs, **options):
        torch.manual_seed(0)
        model, init = Net(), WeightInit()
        trainer = quiet_trainer(max_epochs=epochs, callbacks=[init])
        trainer.fit(model, data(), **options)
        return trainer, model, init

    _, straight, _ = run(4)
    trainer, _, _ = run(2)
    trainer.save_checkpoint("half.ckpt")
    torch.load("half.ckpt", weights_only=True)
    _, resumed, init = run(4, ckpt_path="half.ckpt")
    assert init.report is None
    assert_equal(weights(straight), weights(resumed))


@pytest.mark.parametrize("how", ["loaded", "custom", "trained"])
def test_nobodys_weights_are_touched(how):
    model = Net()
    if how == "loaded":
        trained = Net()
        quiet_trainer(max_epochs=2).fit(trained, data())
        model.load_state_dict(trained.state_dict())
    elif how == "custom":
        for module in model.modules():
            if isinstance(module, nn.Linear):
                nn.init.orthogonal_(module.weight)
    else:
        quiet_trainer(max_epochs=2).fit(model, data())
    before = weights(model)
    init = WeightInit()
    quiet_trainer(max_steps=1, callbacks=[init]).fit(model, data())
    assert_equal(before, weights(model))
    kept = {row.parameter for row in init.report.left_alone}
    assert {name for name in before if "layers.1" in name} <= kept


def test_what_setup_or_configure_model_loads_is_not_touched_even_if_small():
    class Loads(Net):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(8, 3)

        def configure_model(self):
            nn.init.constant_(self.net.bias, 0.1)

    model = Loads()
    before = weights(model)["net.weight"]
    quiet_trainer(max_steps=1, callbacks=[WeightInit()]).fit(model, data())
    assert torch.equal(before, model.net.weight)


def test_a_small_new_net_is_initialised_under_ddp_too():
    first, second = run_ranks(_small_ddp)
    model = Net()
    model.net = nn.Linear(8, 3)
    init_weights(model, generator=torch.Generator().manual_seed(5))
    assert (first == model.net.weight.detach().numpy()).all()
    assert (first == second).all()


def _small_ddp(rank):
    torch.manual_seed(rank)
    model = Net()
    model.net = nn.Linear(8, 3)
    quiet_trainer(max_steps=1, callbacks=[WeightInit(seed=5)], strategy="ddp", devices=2).fit(model, data())
    return model.net.weight.detach().numpy()


def test_only_new_false_draws_once_and_a_second_fit_goes_on():
    model, init = Net(), WeightInit("orthogonal", only_new=False)
    nn.init.zeros_(model.net.layers[1].weight)
    trainer = quiet_trainer(max_epochs=1, callbacks=[init])
    trainer.fit(model, data())
    after = weights(model)
    assert after["net.layers.1.weight"].abs().min() > 0
    quiet_trainer(max_steps=1, callbacks=[init]).fit(model, data())
    assert_equal(after, weights(model))
    other = Net()
    quiet_trainer(max_steps=1, callbacks=[init]).fit(other, data())
    matrix = other.net.layers[4].weight.detach()
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(64), atol=1e-5, rtol=0)


def test_the_seed_follows_from_the_global_stream_which_does_not_move():
    class Stream(Callback):
        def on_fit_start(self, trainer, pl_module):
            self.state = torch.get_rng_state()

    def draw(seed):
        torch.manual_seed(seed)
        before, after, model = Stream(), Stream(), Net()
        quiet_trainer(max_steps=1, callbacks=[before, WeightInit(), after]).fit(model, data())
        assert torch.equal(before.state, after.state)
        return weights(model)

    assert_equal(draw(0), draw(0))
    assert not torch.equal(draw(0)["net.layers.1.weight"], draw(1)["net.layers.1.weight"])


def test_report_and_picture_are_logged():
    logger, model = CSVLogger("."), Net()
    model.example_input_array = torch.zeros(4, 8)
    init = WeightInit(class_counts=[1, 2, 3])
    quiet_trainer(max_steps=1, callbacks=[init], logger=logger).fit(Wrapped(model), data())
    folder = Path(logger.log_dir)
    assert "kaiming_normal" in next(folder.rglob("init_parameters*.csv")).read_text()
    assert list(folder.rglob("init_signal*.png"))
    signal = init.report.signals[0]
    assert signal.output_after == pytest.approx(2**0.5, rel=0.2), "a constant example is replaced by unit noise"


def test_an_example_with_values_is_taken_as_it_is():
    model = Net()
    model.example_input_array = 10 * torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    init = WeightInit()
    quiet_trainer(max_steps=1, callbacks=[init]).fit(Wrapped(model), data())
    assert init.report.signals[0].output_after == pytest.approx(10 * 2**0.5, rel=0.2)


def test_a_strategy_that_flattens_weights_is_told():
    init, model = WeightInit(), Net()
    trainer = SimpleNamespace(strategy=FSDPStrategy.__new__(FSDPStrategy), ckpt_path=None)
    before = weights(model)
    with pytest.warns(UserWarning, match=r"WeightInit does nothing under FSDPStrategy.*Call init_weights in the modu"):
        init.on_fit_start(trainer, model)
    assert_equal(weights(model), before)
    assert init.report is None


class Wrapped(LightningModule):
    """Has a forward, so that the example can run through it."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner
        self.example_input_array = inner.example_input_array

    def forward(self, x):
        return self.inner.net(x)

    def training_step(self, batch, batch_idx):
        return self(batch[0]).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def test_copies_and_pickles():
    init = WeightInit("normal", std=0.3, skip="*.bias")
    quiet_trainer(max_steps=1, callbacks=[init]).fit(Net(), data())
    for again in (copy.deepcopy(init), pickle.loads(pickle.dumps(init))):
        model = Net()
        quiet_trainer(max_steps=1, callbacks=[again]).fit(model, data())
        assert float(model.net.layers[4].weight.detach().std()) == pytest.approx(0.3, rel=0.1)


class NoReset(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.empty(3, device="meta"))


def test_bad_input_gets_a_sentence():
    with pytest.raises(UserInputError, match="Did you mean 'auto'"):
        WeightInit("atuo")
    model = Net()
    model.extra = NoReset()
    with pytest.raises(UserInputError, match=r"must define reset_parameters\(\), but 'extra' \(NoReset\)"):
        quiet_trainer(callbacks=[WeightInit()]).fit(model, data())
    with pytest.raises(UserInputError, match=r"'head' fits none of net\.layers"):
        quiet_trainer(callbacks=[WeightInit(match="head")]).fit(Net(), data())


def test_names_not_positions_seed_the_draws():
    assert derive_seed(1, "a.weight") != derive_seed(1, "b.weight")
