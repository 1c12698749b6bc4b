"""NormMonitor against a plain training loop, in every kind of training that can run here."""

import csv
import math
import re
from types import SimpleNamespace

import pytest
import torch
from helpers import quiet_trainer, run_ranks
from lightning.pytorch import LightningModule, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, ModelParallelStrategy
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from lightning_tricks import NormMonitor
from lightning_tricks._base import UserInputError
from lightning_tricks.callbacks.norms import _norm_monitor
from lightning_tricks.callbacks.norms._measure import local_part, squared_norms
from lightning_tricks.plots import new_figure

LAYERS = ["net.0", "net.2", "net.4"]
STEPS = 4
BATCH = 16
QUANTITIES = ("gradient_norm", "clipped_gradient_norm", "weight_norm", "update_norm")


def make_net():
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, 2))


def make_data(dtype=torch.float32):
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(STEPS * BATCH, 6, generator=generator)
    return x.to(dtype), (3 * x[:, :2].sin() + 1).to(dtype)


def loader(batch=BATCH, dtype=torch.float32):
    return DataLoader(TensorDataset(*make_data(dtype)), batch)


def half_loader(rank):
    """Every other sample, in order; Lightning's own sampler would shuffle."""
    data = TensorDataset(*make_data())
    return DataLoader(data, BATCH // 2, sampler=DistributedSampler(data, 2, rank, shuffle=False))


def adam(parameters, **options):
    return torch.optim.Adam(parameters, lr=0.05, weight_decay=0.01, **options)


class Module(LightningModule):
    """Measures itself in float64, from the inside."""

    def __init__(self, net=None, optimizer=adam):
        super().__init__()
        self.net = make_net() if net is None else net
        self.optimizer = optimizer
        self.seen = []

    def training_step(self, batch, batch_idx):
        x, y = batch
        return nn.functional.mse_loss(self.net(x).float(), y.float())

    def configure_optimizers(self):
        return self.optimizer([p for p in self.net.parameters() if p.requires_grad])


def norm(tensors):
    return math.sqrt(sum(t.detach().double().square().sum().item() for t in tensors))


def reference(steps=STEPS, clip=None, optimizer=adam):
    """Return {(step, layer): (gradient, clipped gradient, weight, update)} of a plain loop in one process."""
    net, found = make_net(), {}
    optimizer = optimizer(net.parameters())
    groups = {"(total)": list(net.parameters())}
    groups |= {f"net.{i}": list(net[i].parameters()) for i in (0, 2, 4)}
    x, y = make_data()
    for step in range(steps):
        part = slice(step * BATCH, (step + 1) * BATCH)
        optimizer.zero_grad()
        nn.functional.mse_loss(net(x[part]), y[part]).backward()
        before = {name: norm(p.grad for p in group) for name, group in groups.items()}
        if clip is not None:
            nn.utils.clip_grad_norm_(net.parameters(), clip)
        after = {name: norm(p.grad for p in group) for name, group in groups.items()}
        weight = {name: norm(group) for name, group in groups.items()}
        copies = {p: p.detach().clone() for p in net.parameters()}
        optimizer.step()
        for name, group in groups.items():
            update = norm(p - copies[p] for p in group)
            found[step, name] = (before[name], after[name], weight[name], update)
    return found


def records(monitor):
    table = monitor.table()
    keys = zip(table["step"], table["layer"], strict=True)
    return dict(zip(keys, zip(*(table[name] for name in QUANTITIES), strict=True), strict=True))


def assert_same(found, expected, rtol=1e-5):
    assert found.keys() == expected.keys()
    for key, numbers in expected.items():
        assert found[key] == pytest.approx(numbers, rel=rtol), key


def fit(module=None, monitor=None, data=None, **options):
    module = Module() if module is None else module
    monitor = NormMonitor(every_n_steps=1) if monitor is None else monitor
    trainer = quiet_trainer(callbacks=[monitor], **options)
    trainer.fit(module, loader() if data is None else data)
    return module, monitor, trainer


# Right under every kind of training


@pytest.mark.parametrize("clip", [None, 0.7, 1e6])
@pytest.mark.parametrize("accumulate", [1, 4])
def test_one_process(clip, accumulate):
    _, monitor, _ = fit(data=loader(BATCH // accumulate), accumulate_grad_batches=accumulate, gradient_clip_val=clip)
    assert_same(records(monitor), reference(clip=clip))


def reducing_rank(rank):
    options = {"strategy": DDPStrategy(), "devices": 2, "gradient_clip_val": 0.7}
    return records(fit(data=half_loader(rank), use_distributed_sampler=False, **options)[1])


def test_ranks_that_reduce_gradients():
    for found in run_ranks(reducing_rank):
        assert_same(found, reference(clip=0.7))


class Sharded(Module):
    def configure_model(self):
        from torch.distributed.fsdp import fully_shard

        for layer in self.net:
            fully_shard(layer, mesh=self.device_mesh["data_parallel"])
        fully_shard(self.net, mesh=self.device_mesh["data_parallel"])


def sharding_rank(rank):
    strategy = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)
    monitor = NormMonitor(every_n_steps=1)
    calls = []
    reduce = torch.distributed.all_reduce
    torch.distributed.all_reduce = lambda *a, **k: (calls.append(tuple(a[0].shape)), reduce(*a, **k))[1]
    options = {"strategy": strategy, "devices": 2, "use_distributed_sampler": False, "log_every_n_steps": 2}
    try:
        fit(Sharded(), monitor, half_loader(rank), **options)
    finally:
        torch.distributed.all_reduce = reduce
    return records(monitor), [shape for shape in calls if len(shape) == 3]


def test_sharded_parameters():
    for found, calls in run_ranks(sharding_rank):
        assert_same(found, reference())
        assert calls == [(2, len(LAYERS) + 1, 6)] * 2, "one sum over the ranks per logging step"


def placing_rank(rank):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

    torch.distributed.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (2,))
    full = torch.arange(15.0).view(5, 3)  # 3 rows here, 2 there
    total = torch.zeros(3, dtype=torch.float64)
    tensors = [distribute_tensor(full, mesh, [Shard(0)]), distribute_tensor(full, mesh, [Replicate()]), full]
    for i, tensor in enumerate(tensors):
        part, weight = local_part(tensor, 2)
        total[i] = squared_norms([part])[0] * weight
    torch.distributed.all_reduce(total)
    halves = DTensor.from_local(full / 2, mesh, [Partial()])  # what the ranks hold is still to be added up
    part, weight = local_part(halves, 2)
    assert (weight, part.tolist()) == (0.5, full.tolist())
    return total.tolist()


def test_sharded_and_replicated_values_count_once():
    assert run_ranks(placing_rank) == [[1015.0] * 3] * 2


class Oracle(Module):
    """Measures its own gradients, clipped gradients, weights and updates in float64."""

    def on_before_optimizer_step(self, optimizer):
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        fused = getattr(optimizer, "_step_supports_amp_scaling", False)
        self.factor = 1 / scaler.get_scale() if scaler is not None and fused else 1.0
        self.numbers = {name: [self.factor * norm(p.grad for p in group)] for name, group in self.groups()}

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
        self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        for name, group in self.groups():
            self.numbers[name] += [self.factor * norm(p.grad for p in group), norm(group)]
        self.copies = {p: p.detach().clone() for p in self.net.parameters()}

    def on_train_batch_end(self, *args):
        for name, group in self.groups():
            update = norm(p.double() - self.copies[p].double() for p in group)
            self.seen.append(((self.global_step - 1, name), (*self.numbers[name], update)))

    def groups(self):
        yield "(total)", list(self.net.parameters())
        for name in LAYERS:
            yield name, list(self.net[int(name[4:])].parameters())


@pytest.mark.parametrize("precision", ["bf16-true", "bf16-mixed", "64-true"])
def test_other_precisions(precision):
    dtype = torch.float64 if precision == "64-true" else torch.float32
    data = loader(dtype=torch.bfloat16 if precision == "bf16-true" else dtype)
    module, monitor, _ = fit(Oracle(), data=data, precision=precision, gradient_clip_val=0.7)
    assert len(module.seen) == STEPS * 4
    assert_same(records(monitor), dict(module.seen))


def mixed_16(scale=2.0**10):
    return MixedPrecision("16-mixed", device="cpu", scaler=torch.amp.GradScaler("cpu", init_scale=scale))


@pytest.mark.parametrize("fused", [False, True])
def test_loss_scaling_is_taken_out(fused):
    def optimizer(parameters):
        return adam(parameters, fused=fused)

    module, monitor, _ = fit(Oracle(optimizer=optimizer), plugins=[mixed_16()])
    assert_same(records(monitor), dict(module.seen))
    expected = reference()
    for key, numbers in records(monitor).items():
        assert numbers[0] == pytest.approx(expected[key][0], rel=0.1), "fp16 is near the float32 gradient"


@pytest.mark.parametrize("fused", [False, True])
def test_steps_that_the_scaler_skips_are_marked_and_alarm_nobody(fused):
    def optimizer(parameters):
        return adam(parameters, fused=fused)

    _, monitor, _ = fit(Module(optimizer=optimizer), plugins=[mixed_16(scale=2.0**40)])
    table = monitor.table()
    assert set(table["step"]) == set(range(STEPS))
    assert all(table["skipped"])
    assert min(table["nonfinite_gradients"]) > 0
    assert {u for u in table["update_norm"] if not math.isnan(u)} <= {0.0}
    assert monitor.first_nonfinite is None
    assert all(w > 0 for w in table["weight_norm"])


class Compiled(Module):
    def __init__(self):
        super().__init__(torch.compile(make_net(), backend="eager"))


def test_compiled_module_inside():
    _, monitor, _ = fit(Compiled())
    assert_same(records(monitor), reference())


def test_compiled_lightning_module():
    _, monitor, _ = fit(torch.compile(Module(), backend="aot_eager"))
    assert_same(records(monitor), reference())


def test_optimizer_that_calls_its_closure_many_times():
    def lbfgs(parameters):
        return torch.optim.LBFGS(parameters, lr=0.1, max_iter=3)

    module, monitor, _ = fit(Module(optimizer=lbfgs))
    found = records(monitor)
    x, y = make_data()
    net = make_net()
    nn.functional.mse_loss(net(x[:BATCH]), y[:BATCH]).backward()
    expected = [norm(p.grad for p in net.parameters())] * 2 + [norm(net.parameters())]
    assert found[0, "(total)"][:3] == pytest.approx(expected, rel=1e-5), "the gradient at the start of the step"
    assert found[0, "(total)"][3] > 0
    last = found[STEPS - 1, "(total)"]
    assert last[2] == pytest.approx(norm(module.net.parameters()), rel=0.2)


class TwoOptimizers(LightningModule):
    """A generator whose gradient is polluted by the critic's loss, as in every GAN."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        torch.manual_seed(5)
        self.generator, self.critic = nn.Linear(6, 3), nn.Linear(3, 1)
        self.expected = []

    def training_step(self, batch, batch_idx):
        for i, (optimizer, part) in enumerate(zip(self.optimizers(), ("generator", "critic"), strict=True)):
            if part == "critic" and batch_idx % 2:
                continue
            optimizer.zero_grad()
            loss = self.critic(self.generator(batch[0])).square().mean() * (i + 1)
            self.manual_backward(loss)
            module = getattr(self, part)
            before = [p.detach().clone() for p in module.parameters()]
            gradient, weight, step = norm(p.grad for p in module.parameters()), norm(before), self.global_step
            optimizer.step()
            update = norm(p - q for p, q in zip(module.parameters(), before, strict=True))
            self.expected += [((step, name), (gradient, gradient, weight, update)) for name in ("(total)", part)]

    def configure_optimizers(self):
        return [torch.optim.SGD(getattr(self, part).parameters(), lr=0.1) for part in ("generator", "critic")]


def test_several_optimizers_keep_to_their_own_parameters():
    module, monitor, _ = fit(TwoOptimizers(), log_every_n_steps=3)
    assert len(module.expected) == 2 * 6
    assert_same(records(monitor), dict(module.expected))
    steps, grid = monitor._history.grid("gradient_norm", ["generator", "critic"])
    assert steps == [0, 2, 3, 5], "both optimizers of a batch share a column"
    assert grid.isnan().tolist() == [[False] * 4, [False, True, False, True]]


class Thawing(Module):
    def __init__(self):
        super().__init__(optimizer=lambda parameters: torch.optim.SGD(self.net.parameters(), lr=0.1))
        self.net[0].requires_grad_(False)

    def on_train_batch_start(self, batch, batch_idx):
        if batch_idx == 2:
            self.net[0].requires_grad_(True)


def test_frozen_layer_has_no_gradient_until_it_thaws():
    _module, monitor, _ = fit(Thawing(), NormMonitor(every_n_steps=1))
    found = records(monitor)
    for step in range(STEPS):
        gradient, clipped, weight, update = found[step, "net.0"]
        assert weight > 0
        assert math.isnan(gradient) == math.isnan(clipped) == math.isnan(update) == (step < 2)
        parts = [found[step, name][0] for name in LAYERS if not math.isnan(found[step, name][0])]
        assert found[step, "(total)"][0] == pytest.approx(math.hypot(*parts))
    assert monitor._history.layers() == LAYERS


def test_shared_parameters_count_once():
    net = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6), nn.Linear(6, 2))
    net[2].weight = net[0].weight
    _module, monitor, _ = fit(Module(net), max_steps=1)
    weight = records(monitor)[0, "(total)"][2]
    torch.manual_seed(0)
    start = records(fit(Module(net), max_steps=1)[1])[0, "(total)"][2]
    assert start == pytest.approx(norm(net.parameters()), rel=0.2)
    assert weight == pytest.approx(
        math.hypot(*[v[2] for (_, name), v in records(monitor).items() if name != "(total)"])
    )
    assert len({id(p) for p in net.parameters()}) == 5


class Grown(Module):
    def on_train_batch_start(self, batch, batch_idx):
        if batch_idx == 2:
            self.net.append(nn.Linear(2, 2))
            self.optimizers().add_param_group({"params": list(self.net[5].parameters())})


def test_layers_that_come_later_are_seen():
    _, monitor, _ = fit(Grown())
    table = monitor.table()
    steps = [step for step, layer in zip(table["step"], table["layer"], strict=True) if layer == "net.5"]
    assert steps == [2, 3]
    assert monitor._history.grid("weight_norm", ["net.0", "net.5"])[1].isnan().tolist() == [
        [False] * 4,
        [True, True, False, False],
    ]


# Clipping


@pytest.mark.parametrize(("clip", "share"), [(1e6, 0.0), (1e-6, 1.0), (None, 0.0)])
def test_share_of_clipped_steps(clip, share):
    assert fit(gradient_clip_val=clip)[1].clipped_share == share


def test_clipped_share_counts_steps():
    norms = [numbers[0] for (_, name), numbers in reference().items() if name == "(total)"]
    clip = sorted(norms)[1] * 1.0001  # two of the four are below, as long as clipping changes little
    expected = [v[0] > v[1] * (1 + 1e-6) for (_, name), v in reference(clip=clip).items() if name == "(total)"]
    monitor = fit(gradient_clip_val=clip)[1]
    assert monitor.clipped_share == sum(expected) / STEPS
    assert 0 < monitor.clipped_share < 1


def test_clipping_by_value_binds_in_single_layers():
    _, monitor, _ = fit(gradient_clip_val=0.2, gradient_clip_algorithm="value", max_steps=1)
    table = monitor.table()
    for layer, before, after, clipped in zip(
        table["layer"], table["gradient_norm"], table["clipped_gradient_norm"], table["clipped"], strict=True
    ):
        assert clipped == (after < before), layer


# The first NaN


class Breaking(Module):
    """Breaks in step 5: in the backward pass of one layer, in the loss, or in its weights."""

    def __init__(self, where):
        super().__init__(optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.01))
        self.where = where

    def training_step(self, batch, batch_idx):
        x, y = batch
        broken = self.global_step == 5
        hidden = self.net[1](self.net[0](x))
        hidden = self.net[3](self.net[2](hidden))
        if broken and self.where == "backward":
            hidden = hidden + (hidden * 0).square().sum(1, keepdim=True).sqrt()  # d sqrt(0) = inf, times 0
        loss = nn.functional.mse_loss(self.net[4](hidden), y)
        return loss / 0 if broken and self.where == "loss" else loss

    def on_train_batch_start(self, batch, batch_idx):
        if self.global_step == 5 and self.where == "weight":
            with torch.no_grad():
                self.net[4].weight[0, 0] = math.inf


@pytest.mark.parametrize(
    ("where", "layer", "quantity", "message"),
    [
        ("backward", "net.2", "weight", "layer 'net.2': the update before broke it"),
        ("loss", "(loss)", "gradient", "already the gradient of the loss was"),
        ("weight", "net.4", "weight", "layer 'net.4': the update before broke it"),
    ],
)
def test_first_nan_is_found_between_measured_steps(where, layer, quantity, message):
    monitor = NormMonitor(every_n_steps=100)
    step = 6 if where == "backward" else 5  # that step's loss was fine; its update broke the weights
    with pytest.warns(UserWarning, match=f"NormMonitor saw the first {quantity}.*in optimizer step {step}.*{message}"):
        fit(Breaking(where), monitor, max_epochs=3)
    assert monitor.first_nonfinite == {"step": step, "layer": layer, "quantity": quantity}
    table = monitor.table()
    assert sorted(set(table["step"])) == sorted({0, 1, 3, step, 7}), "the broken step is measured, once"
    share = {
        name: value
        for at, name, value in zip(table["step"], table["layer"], table[f"nonfinite_{quantity}s"], strict=True)
        if at == step
    }
    assert share[layer if layer != "(loss)" else "net.4"] > 0
    if where == "backward":
        assert share["net.4"] == 0
        assert share["net.2"] == pytest.approx(1.0)
    if where == "weight":
        assert share["net.4"] == pytest.approx(1 / 12)


def test_without_watching_the_next_measured_step_has_it():
    with pytest.warns(UserWarning, match="in optimizer step 7"):
        _, monitor, _ = fit(Breaking("backward"), NormMonitor(every_n_steps=100, find_nonfinite=False), max_epochs=3)
    assert monitor.first_nonfinite["step"] == 7


@pytest.mark.parametrize("updates", [True, False])
def test_the_step_that_breaks_is_measured_with_clipping_too(updates):
    monitor = NormMonitor(every_n_steps=100, updates=updates)
    with pytest.warns(UserWarning, match="in optimizer step 5.*already the gradient of the loss was"):
        fit(Breaking("loss"), monitor, max_epochs=2, gradient_clip_val=0.5)
    table = monitor.table()
    assert sorted(set(table["step"])) == [0, 1, 3, 5, 7]
    total = {
        step: (clipped, update)
        for step, layer, clipped, update in zip(
            table["step"], table["layer"], table["clipped_gradient_norm"], table["update_norm"], strict=True
        )
        if layer == "(total)"
    }
    assert math.isnan(total[5][0]), "that step was measured before the clipping"
    assert total[3][0] == pytest.approx(0.5, rel=1e-3)
    assert math.isnan(total[3][1]) != updates


def test_a_batch_of_more_steps_than_the_ring_holds(monkeypatch):
    class Many(Module):
        automatic_optimization = False

        def training_step(self, batch, batch_idx):
            optimizer = self.optimizers()
            for _ in range(7):
                optimizer.zero_grad()
                self.manual_backward(super().training_step(batch, batch_idx))
                optimizer.step()

    _, whole, _ = fit(Many())
    monkeypatch.setattr(_norm_monitor, "_CAPACITY", 3)
    _, parts, _ = fit(Many())
    assert sorted(set(parts.table()["step"])) == list(range(7 * STEPS))
    assert records(parts) == records(whole)


def test_weights_that_break_in_a_step_without_gradients_are_named():
    class Own(Module):
        automatic_optimization = False

        def training_step(self, batch, batch_idx):
            self.net[2].weight.data[0, 0] = math.nan
            self.optimizers().step()

    with pytest.warns(UserWarning, match="NormMonitor saw the first weight.*in optimizer step 0.*layer 'net.2'"):
        _, monitor, _ = fit(Own())
    assert monitor.first_nonfinite == {"step": 0, "layer": "net.2", "quantity": "weight"}


def test_an_update_that_fails_leaves_what_was_measured_before_it():
    class Failing(torch.optim.SGD):
        def step(self, closure=None):
            closure()
            raise RuntimeError("disk full")

    module, monitor = Module(optimizer=lambda parameters: Failing(parameters, lr=0.1)), NormMonitor(every_n_steps=1)
    with pytest.raises(RuntimeError, match="disk full"):
        fit(module, monitor)
    table = monitor.table()
    assert table["step"] == [0] * len(table["layer"])
    assert table["weight_norm"][0] == pytest.approx(norm(module.parameters()))
    assert table["skipped"][0]


def test_an_optimizer_that_came_later_is_not_measured():
    class Swapped(Module):
        def on_train_epoch_start(self):
            if self.current_epoch == 1:
                self.trainer.strategy.optimizers = [torch.optim.SGD(self.parameters(), lr=0.1)]

    _, monitor, _ = fit(Swapped(), max_epochs=2)
    assert sorted(set(monitor.table()["step"])) == list(range(STEPS))


def test_a_step_without_gradients_is_no_trouble():
    class Own(Module):
        automatic_optimization = False

        def training_step(self, batch, batch_idx):
            optimizer = self.optimizers()
            optimizer.zero_grad()
            if batch_idx:
                self.manual_backward(super().training_step(batch, batch_idx))
            optimizer.step()

    _, monitor, _ = fit(Own())
    table = monitor.table()
    first = [g for step, g in zip(table["step"], table["gradient_norm"], strict=True) if step == 0]
    assert all(math.isnan(g) for g in first)
    assert not math.isnan(table["gradient_norm"][-1])


# Training is left alone


@pytest.mark.parametrize(
    "options",
    [
        {"gradient_clip_val": 0.7, "accumulate_grad_batches": 2},
        {"precision": "bf16-mixed"},
        {"plugins": "16-mixed"},
        {"module": TwoOptimizers},
        {"optimizer": lambda parameters: torch.optim.LBFGS(parameters, max_iter=2)},
    ],
    ids=["clip", "bf16", "fp16", "manual", "lbfgs"],
)
def test_weights_and_random_streams_are_bit_identical(options):
    def run(callbacks):
        seed_everything(0, verbose=False)
        given = dict(options)
        optimizer, make = given.pop("optimizer", adam), given.pop("module", None)
        if "plugins" in given:
            given["plugins"] = [mixed_16()]
        module = make() if make else Module(nn.Sequential(make_net(), nn.Dropout(0.2)), optimizer)
        quiet_trainer(callbacks=callbacks, max_epochs=2, **given).fit(module, loader(8))
        return [*module.state_dict().values(), torch.get_rng_state()]

    for with_, without in zip(run([NormMonitor(every_n_steps=2)]), run([]), strict=True):
        assert torch.equal(with_, without)


def test_hooks_are_removed_after_an_exception():
    class Failing(Module):
        def on_train_batch_end(self, *args):
            if self.global_step == 3:
                raise RuntimeError("disk full")

    monitor = NormMonitor(every_n_steps=1)
    module = Failing()
    with pytest.raises(RuntimeError, match="disk full"):
        fit(module, monitor)
    optimizer = module.optimizers(use_pl_optimizer=False)
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
    assert sorted(set(monitor.table()["step"])) == [0, 1, 2], "what was measured is kept"


# When, and what is written


@pytest.mark.parametrize(("every", "steps"), [(1, [0, 1, 2, 3, 4, 5, 6, 7]), (3, [0, 1, 2, 5]), (100, [0, 1, 3, 7])])
def test_measured_steps(every, steps):
    _, monitor, _ = fit(monitor=NormMonitor(every_n_steps=every), max_epochs=2)
    assert sorted(set(monitor.table()["step"])) == steps


def read(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_logger_gets_few_numbers_on_logging_steps_only(tmp_path):
    logger = CSVLogger(tmp_path)
    fit(logger=logger, log_every_n_steps=2, max_epochs=2, gradient_clip_val=0.7)
    folder = tmp_path / "lightning_logs" / "version_0"
    metrics = read(folder / "metrics.csv")
    assert [int(row["step"]) for row in metrics] == [1, 3, 5, 7]
    assert not [name for name in metrics[0] if re.search(r"net\.\d", name)], "nothing per layer"
    assert len(metrics[0]) < 16
    expected = reference(clip=0.7)
    assert float(metrics[0]["norms/gradient"]) == pytest.approx(expected[1, "(total)"][0], rel=1e-5)
    assert float(metrics[0]["norms/gradient_clipped"]) == pytest.approx(expected[1, "(total)"][1], rel=1e-5)
    medians = sorted(expected[1, name][3] / expected[1, name][2] for name in LAYERS)
    assert float(metrics[0]["norms/update_ratio/median"]) == pytest.approx(medians[1], rel=1e-5)
    assert {path.name for path in (folder / "figures").iterdir()} == {
        f"norms_{kind}-step000008.png" for kind in ("gradients", "weights", "updates")
    }
    worst = read(next((folder / "tables").iterdir()))
    assert {row["layer"] for row in worst} <= set(LAYERS)


def test_csv_holds_the_table(tmp_path):
    for run in ("norms.csv", "norms-1.csv"):
        _, monitor, _ = fit(monitor=NormMonitor(every_n_steps=1, dirpath=str(tmp_path)), log_every_n_steps=3)
        rows = read(tmp_path / run)
        table = monitor.table()
        assert [row["layer"] for row in rows] == table["layer"]
        for name in ("step", *QUANTITIES, "update_ratio"):
            assert [float(row[name]) for row in rows] == table[name]


def test_parquet_holds_the_table(tmp_path):
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    _, monitor, _ = fit(monitor=NormMonitor(every_n_steps=1, table="parquet"), logger=CSVLogger(tmp_path, version=""))
    frame = pandas.read_parquet(next(tmp_path.rglob("norms.parquet")))
    pandas.testing.assert_frame_equal(frame, pandas.DataFrame(monitor.table()))


def test_nothing_is_written_without_a_logger(tmp_path):
    fit()
    assert not list(tmp_path.iterdir())


def test_pictures_every_n_epochs_and_at_the_end(tmp_path):
    fit(monitor=NormMonitor(every_n_steps=1, plot_every_n_epochs=2), max_epochs=3, logger=CSVLogger(tmp_path))
    steps = {path.stem[-6:] for path in tmp_path.rglob("norms_gradients*.png")}
    assert steps == {"000008", "000012"}
    assert list(tmp_path.rglob("norms_worst_layers*.csv"))


@pytest.mark.parametrize(("pictures", "worst"), [(0, 3), (1, 0)])
def test_pictures_and_tables_can_be_left_out(tmp_path, monkeypatch, pictures, worst):
    monkeypatch.setattr(NormMonitor, "plot", lambda self, kind: new_figure()[0])  # drawn quickly
    monitor = NormMonitor(every_n_steps=1, plot_every_n_epochs=pictures, worst=worst)
    fit(monitor=monitor, logger=CSVLogger(tmp_path))
    assert bool(list(tmp_path.rglob("norms_gradients*.png"))) == bool(pictures)
    assert not list(tmp_path.rglob("norms_worst_layers*"))


def test_table_derives_ratio_and_layers_in_forward_order():
    class Backwards(Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(*reversed(make_net()))

        def training_step(self, batch, batch_idx):
            x = batch[0]
            for layer in reversed(self.net):
                x = layer(x)
            return x.square().mean()

    _, monitor, _ = fit(Backwards(), max_steps=2)
    table = monitor.table()
    assert table["layer"] == ["(total)", "net.4", "net.2", "net.0"] * 2
    labels = [label.get_text() for label in monitor.plot().axes[0].get_yticklabels()]
    assert labels == ["net.4", "net.2", "net.0"]
    for ratio, update, weight in zip(table["update_ratio"], table["update_norm"], table["weight_norm"], strict=True):
        assert ratio == pytest.approx(update / weight)
    assert table["values"][:4] == [56 + 45 + 12, 56, 45, 12]


@pytest.mark.filterwarnings("ignore:The dirpath has changed", "ignore:You're resuming from a checkpoint that ended")
def test_second_fit_starts_fresh_and_resume_does_not(tmp_path):
    _, monitor, _ = fit(max_epochs=2)
    whole = records(monitor)
    checkpoint = ModelCheckpoint(tmp_path, every_n_train_steps=STEPS, save_top_k=-1)
    trainer = quiet_trainer(callbacks=[monitor, checkpoint], enable_checkpointing=True, max_epochs=2)
    trainer.fit(Module(), loader())
    assert records(monitor).keys() == whole.keys()

    path = min(tmp_path.glob("*step=4.ckpt"))
    resumed = NormMonitor(every_n_steps=1)
    checkpoint = ModelCheckpoint(tmp_path / "more", every_n_train_steps=STEPS)
    trainer = quiet_trainer(callbacks=[resumed, checkpoint], enable_checkpointing=True, max_epochs=2)
    trainer.fit(Module(), loader(), ckpt_path=path, weights_only=True)
    assert records(resumed) == whole


def test_checkpoint_stays_small():
    monitor = NormMonitor(every_n_steps=1)
    fit(monitor=monitor, max_epochs=3)
    block = monitor._history.blocks[0]
    many = 300
    monitor._history.add(type(block)(**{**vars(block.every(1)),
        "steps": block.steps * many, "optimizers": block.optimizers * many, "skipped": block.skipped * many,
        "sums": block.sums.repeat(many, 1, 1), "known": block.known.repeat(many, 1, 1)
    }))  # fmt: skip
    assert len(monitor._history) == 3612
    assert 900 <= len(monitor.state_dict()["history"]["blocks"][0]["steps"]) <= 1000


# Words


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every_n_steps": 0}, r"every_n_steps must be in \[1, inf\), but got 0"),
        ({"depth": 0}, r"depth must be in \[1, inf\), but got 0"),
        ({"match": "("}, r"match must be a regular expression, but got '\('"),
        ({"table": "xlsx"}, "table must be one of csv, parquet, but got 'xlsx'"),
        ({"worst": -1}, r"worst must be in \[0, inf\)"),
        ({"plot_every_n_epochs": -1}, r"plot_every_n_epochs must be in \[0, inf\)"),
    ],
)
def test_bad_options_get_a_sentence(options, message):
    with pytest.raises(UserInputError, match=message):
        NormMonitor(**options)


def test_strategies_that_hide_shards_are_refused():
    trainer = SimpleNamespace(strategy=FSDPStrategy.__new__(FSDPStrategy))
    with pytest.raises(UserInputError, match=r"under FSDPStrategy\. Use ModelParallelStrategy"):
        NormMonitor().setup(trainer, Module(), "fit")


def test_match_that_finds_nothing_fails_before_training():
    with pytest.raises(UserInputError, match=r"match=.conv. is found in none of the layers net\.0, net\.2"):
        fit(monitor=NormMonitor(match="conv"))


def test_plot_of_nothing_and_unknown_plot():
    assert NormMonitor().plot().axes
    with pytest.raises(UserInputError, match="kind must be one of gradients, updates, weights"):
        NormMonitor().plot("grads")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("fused", [False, True])
def test_loss_scaling_is_taken_out_on_a_gpu(fused):
    def optimizer(parameters):
        return adam(parameters, fused=fused)

    module, monitor, _ = fit(Oracle(optimizer=optimizer), accelerator="gpu", precision="16-mixed")
    assert_same(records(monitor), dict(module.seen))
