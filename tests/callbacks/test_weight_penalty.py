"""WeightPenalty: the same weights as with the penalty in the loss, however training is run."""

import copy
import csv
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import quiet_trainer, run_ranks
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch import LightningModule
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from torch import nn
from torch.distributed.tensor import Shard, distribute_tensor
from torch.utils.data import DataLoader, TensorDataset

from lightning_tricks import WeightPenalty
from lightning_tricks._base import UserInputError
from lightning_tricks.callbacks._penalty import _PIECE, add_penalty_gradient, limit_rows, penalty_sums, soft_threshold

L1, L2 = 0.01, 0.03


class Net(LightningModule):
    """Regression with a norm and biases; the penalty is a term of the loss if ``in_loss``."""

    def __init__(self, *, in_loss=False, optimizer=torch.optim.SGD, manual=False, **options):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, 1))
        self.unused = nn.Linear(2, 2)
        self.in_loss = in_loss
        self.options = {"lr": 0.1, **options}
        self.optimizer = optimizer
        self.automatic_optimization = not manual

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = (self.net(x) - y).square().mean()
        if self.in_loss:
            weights = [self.net[0].weight, self.net[3].weight, self.unused.weight]
            loss = loss + sum(L1 * w.abs().sum() + L2 * w.square().sum() for w in weights)
        if self.automatic_optimization:
            return loss
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        return None

    def configure_optimizers(self):
        return self.optimizer(self.parameters(), **self.options)


def data(batch_size=8, rows=32):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(rows, 4, generator=generator)
    return DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), batch_size)


def fitted(model, *callbacks, loader=None, **options):
    trainer = quiet_trainer(max_epochs=3, callbacks=list(callbacks), **options)
    trainer.fit(model, loader or data())
    return model


def assert_same(a, b, tolerance=1e-6):
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(p.detach(), q.detach(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"accumulate_grad_batches": 2},
        {"gradient_clip_val": 0.1},
        {"precision": "bf16-mixed"},
    ],
)
def test_equals_a_term_of_the_loss(how):
    ours = fitted(Net(), WeightPenalty(L1, L2), **how)
    assert_same(ours, fitted(Net(in_loss=True), **how), tolerance=1e-2 if "precision" in how else 1e-6)
    plain = fitted(Net(), **how)
    assert not torch.allclose(ours.net[0].weight, plain.net[0].weight, atol=1e-4, rtol=0), "the penalty did something"


def test_equals_a_term_of_the_loss_in_manual_optimization():
    assert_same(fitted(Net(manual=True), WeightPenalty(L1, L2)), fitted(Net(manual=True, in_loss=True)))


def test_l2_is_half_of_sgd_weight_decay():
    class Decayed(Net):
        def configure_optimizers(self):
            weights = [p for p in self.parameters() if p.ndim > 1]
            rest = [p for p in self.parameters() if p.ndim < 2]
            return torch.optim.SGD([{"params": weights, "weight_decay": 2 * L2}, {"params": rest}], lr=0.1)

    ours, decayed = fitted(Net(), WeightPenalty(l2=L2)), fitted(Decayed())
    assert_same(ours.net, decayed.net)


def _on_rank(rank):
    ours = fitted(Net(), WeightPenalty(L1, L2), loader=data(16), strategy="ddp_find_unused_parameters_true", devices=2)
    return [p.detach().numpy().copy() for p in ours.net.parameters()]


def test_two_ranks_move_as_one_process_with_the_whole_batch():
    first, second = run_ranks(_on_rank)
    alone = fitted(Net(in_loss=True), loader=data(32))  # one step per epoch, so that the order of rows is no matter
    for a, b, p in zip(first, second, alone.net.parameters(), strict=True):
        assert (a == b).all()
        torch.testing.assert_close(torch.from_numpy(a), p.detach(), rtol=1e-5, atol=1e-6)


class Sharded(Net):
    def configure_model(self):
        from torch.distributed.fsdp import fully_shard

        fully_shard(self.net[0], mesh=self.device_mesh["data_parallel"])
        fully_shard(self.net, mesh=self.device_mesh["data_parallel"])
        fully_shard(self.unused, mesh=self.device_mesh["data_parallel"])


def _sharded_on_rank(rank):
    strategy = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)
    logger = CSVLogger(".", name=f"rank{rank}", flush_logs_every_n_steps=1)
    trainer = quiet_trainer(
        max_epochs=3,
        strategy=strategy,
        devices=2,
        logger=logger,
        log_every_n_steps=1,
        callbacks=[WeightPenalty(L1, L2)],
    )
    model = Sharded()
    trainer.fit(model, data(16))
    value = float(penalty_sums([p for p in model.parameters() if p.ndim > 1])[0])
    return [p.detach().full_tensor().numpy().copy() for p in model.net.parameters()], value


def test_sharded_parameters_move_like_whole_ones():
    (first, value), (second, other) = run_ranks(_sharded_on_rank)
    alone = fitted(Net(in_loss=True), loader=data(32))
    for a, b, p in zip(first, second, alone.net.parameters(), strict=True):
        assert (a == b).all()
        torch.testing.assert_close(torch.from_numpy(a), p.detach(), rtol=1e-5, atol=1e-6)
    whole = sum(float(p.detach().abs().sum()) for p in alone.parameters() if p.ndim > 1)
    assert value == other == pytest.approx(whole, rel=1e-4)


def test_proximal_makes_exact_zeros_and_the_lasso_solution():
    """One linear layer, orthonormal inputs: the lasso's closed form is the soft-thresholded least-squares solution."""
    x = 2 * torch.eye(4)
    y = x @ torch.tensor([[1.0], [0.02], [-0.5], [0.0]])
    loader = DataLoader(TensorDataset(x, y), 4)

    class Lasso(Net):
        def __init__(self):
            super().__init__(lr=0.2)
            self.net = nn.Linear(4, 1, bias=False)

    model = Lasso()
    quiet_trainer(max_epochs=200, callbacks=[WeightPenalty(l1=0.1, method="proximal")]).fit(model, loader)
    # mean squared error over 4 rows with x = 2·1: (w - w0)² + 0.1 |w|, so a threshold of 0.05
    expected = torch.tensor([[0.95, 0.0, -0.45, 0.0]])
    torch.testing.assert_close(model.net.weight.detach(), expected, atol=1e-5, rtol=0)
    assert (model.net.weight == 0).sum() == 2


def test_max_norm_bounds_every_unit_and_only_weights():
    model = fitted(Net(lr=0.5), WeightPenalty(max_norm=0.3))
    for weight in (model.net[0].weight, model.net[3].weight):
        assert weight.norm(dim=1).max() <= 0.3 * (1 + 1e-6)
    assert model.net[0].weight.norm(dim=1).max() > 0.29, "it binds"


def test_max_norm_of_a_transposed_convolution_is_per_output():
    weight = torch.ones(2, 3, 1)
    weight[:, 0] = 5.0
    limit_rows(weight, 2.0, axis=1)
    torch.testing.assert_close(weight.norm(dim=(0, 2)), torch.tensor([2.0, 2**0.5, 2**0.5]))


@pytest.mark.parametrize("options", [{"l2": 0.1}, {"l1": 0.1, "method": "proximal"}, {"max_norm": 0.01}])
def test_frozen_weights_stay_as_they_are(options):
    model = Net(optimizer=torch.optim.Adam)
    model.unused.requires_grad_(False)
    before = model.unused.weight.clone()
    fitted(model, WeightPenalty(**options))
    assert torch.equal(model.unused.weight, before)


def test_match_and_skip_choose_weights_and_a_second_optimizer_is_left_alone():
    penalty = WeightPenalty(l2=1.0, match="net", skip="net.3")
    model = fitted(Net(), penalty)
    plain = fitted(Net())
    assert set(penalty._names.values()) == {"net.0.weight"}
    assert torch.equal(model.unused.weight, plain.unused.weight)


def test_an_optimizer_of_others_is_left_alone():
    class Two(Net):
        def configure_optimizers(self):
            return [torch.optim.SGD(part.parameters(), lr=0.1) for part in (self.net, self.unused)]

        def training_step(self, batch, batch_idx):
            optimizers = self.optimizers()
            for optimizer in optimizers:
                optimizer.zero_grad()
            self.manual_backward((self.net(batch[0]) - batch[1]).square().mean() + self.unused.weight.sum())
            for optimizer in optimizers:
                optimizer.step()

    plain = fitted(Two(manual=True))
    penalised = fitted(Two(manual=True), WeightPenalty(l2=1.0, match="net"))
    assert torch.equal(penalised.unused.weight, plain.unused.weight)
    assert penalised.net[0].weight.norm() < plain.net[0].weight.norm()


def _cut_across_on_rank(rank):
    torch.distributed.init_process_group("gloo")
    mesh = torch.distributed.init_device_mesh("cpu", (2,))
    full = torch.arange(1.0, 9.0).view(4, 2)
    rows, across = (distribute_tensor(full, mesh, [Shard(axis)]) for axis in (0, 1))
    limit_rows(rows, 1.0)
    with pytest.raises(UserInputError, match="max_norm needs whole units on every rank: shard weights along axis 0"):
        limit_rows(across, 1.0)
    return rows.full_tensor().norm(dim=1).tolist()


def test_max_norm_of_sharded_weights_needs_whole_units():
    assert run_ranks(_cut_across_on_rank) == [pytest.approx([1.0] * 4)] * 2


def test_a_strategy_that_flattens_weights_is_refused():
    trainer = SimpleNamespace(strategy=FSDPStrategy.__new__(FSDPStrategy))
    with pytest.raises(UserInputError, match=r"which FSDPStrategy takes away\. Use ModelParallelStrategy"):
        WeightPenalty(l2=1.0).on_fit_start(trainer, Net())


def test_sparse_gradients_are_refused():
    class Words(Net):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(9, 4, sparse=True)

        def training_step(self, batch, batch_idx):
            return self.net(self.table(torch.tensor([1, 2]))).square().mean()

    with pytest.raises(UserInputError, match=r"sparse gradient of 'table\.weight'\. Leave it out"):
        fitted(Words(), WeightPenalty(l2=0.1))
    fitted(Words(), WeightPenalty(l2=0.1, skip="table"))


def test_values_are_logged_on_logging_steps(tmp_path):
    logger = CSVLogger(tmp_path)
    model = Net(lr=0.0)
    fitted(model, WeightPenalty(L1, L2), logger=logger, log_every_n_steps=4)
    with Path(logger.log_dir, "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["penalty/l1"]]
    weights = [p.detach() for p in model.parameters() if p.ndim > 1]
    assert len(rows) == 3
    assert float(rows[0]["penalty/l1"]) == pytest.approx(L1 * sum(float(w.abs().sum()) for w in weights), rel=1e-5)
    assert float(rows[0]["penalty/l2"]) == pytest.approx(L2 * sum(float(w.square().sum()) for w in weights), rel=1e-5)


def test_fused_optimizers_under_fp16_get_the_penalty_times_the_loss_scale():
    from lightning_tricks.callbacks._weight_penalty import _loss_scale

    scaler = SimpleNamespace(get_scale=lambda: 8.0)
    trainer = SimpleNamespace(precision_plugin=SimpleNamespace(scaler=scaler))
    assert _loss_scale(trainer, SimpleNamespace(_step_supports_amp_scaling=True)) == 8.0
    assert _loss_scale(trainer, SimpleNamespace()) == 1.0


def test_hooks_are_gone_after_a_fit_and_a_copy_works():
    penalty = WeightPenalty(max_norm=0.1)
    fitted(Net(), penalty)
    assert penalty._handles == []
    again = copy.deepcopy(penalty)
    assert fitted(Net(), again).net[0].weight.norm(dim=1).max() <= 0.1 * (1 + 1e-6)


def test_doubled_decay_is_mentioned():
    with pytest.warns(UserWarning, match="both shrink the same weights"):
        fitted(Net(weight_decay=0.1), WeightPenalty(l2=0.1))


@given(
    st.lists(st.sampled_from([1, 7, _PIECE, 2 * _PIECE + 5]), min_size=1, max_size=3),
    st.sampled_from([0.0, 0.5]),
    st.sampled_from([0.0, 0.25]),
    st.booleans(),
)
@settings(max_examples=20, deadline=None)
def test_gradient_equals_autograd(sizes, l1, l2, transposed):
    weights = [torch.randn(2, n).t() if transposed else torch.randn(n) for n in sizes]
    gradients = [torch.ones_like(w) for w in weights]
    leaves = [w.clone().requires_grad_() for w in weights]
    (sum(l1 * w.abs().sum() + l2 * w.square().sum() + w.sum() for w in leaves)).backward()
    add_penalty_gradient(weights, gradients, l1, l2)
    add_penalty_gradient([], [], l1, l2)
    for ours, leaf in zip(gradients, leaves, strict=True):
        torch.testing.assert_close(ours, leaf.grad)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: WeightPenalty(), "needs l1, l2 or max_norm above 0"),
        (lambda: WeightPenalty(l1=-1), r"l1 must be in \[0, inf\), but got -1"),
        (lambda: WeightPenalty(l2=float("nan")), r"l2 must be in \[0, inf\), but got nan"),
        (lambda: WeightPenalty(l2=1, method="proximal"), "give l1 above 0"),
        (lambda: WeightPenalty(l1=1, method="prox"), "Did you mean 'proximal'"),
        (lambda: WeightPenalty(max_norm=0), r"max_norm must be in \(0"),
        (lambda: fitted(Net(), WeightPenalty(l1=1, match="conv*")), "found no weight.*net.0.weight, net.3.weight"),
    ],
)
def test_bad_input_gets_a_sentence(make, message):
    with pytest.raises(UserInputError, match=message):
        make()


def test_complex_weights_are_penalised_by_their_magnitude():
    weight = torch.tensor([[3 + 4j, 0j]], requires_grad=True)
    (0.5 * weight.abs().sum() + 2.0 * weight.abs().square().sum()).backward()
    gradient = torch.zeros(1, 2, dtype=torch.complex64)
    add_penalty_gradient([weight.detach()], [gradient], 0.5, 2.0)
    torch.testing.assert_close(gradient, weight.grad)
    assert [float(total) for total in penalty_sums([weight])] == pytest.approx([5.0, 25.0])
    shrunk = weight.detach().clone()
    soft_threshold(shrunk, 1.0)
    torch.testing.assert_close(shrunk, torch.tensor([[2.4 + 3.2j, 0j]]))
