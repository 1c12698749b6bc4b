"""ActivationMonitor against the activations themselves."""

import math

import pytest
import torch
from helpers import quiet_trainer
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch import LightningModule, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

from lightning_tricks import ActivationMonitor
from lightning_tricks._base import UserInputError
from lightning_tricks.callbacks.activations._activation_monitor import _CALLS
from lightning_tricks.callbacks.activations._stats import DEAD, MEAN, SATURATED, STD, ZEROS, activation_stats, watchable
from lightning_tricks.plots import new_figure


class Module(LightningModule):
    def __init__(self, net, lr=0.0):
        super().__init__()
        self.net, self.lr = net, lr

    def training_step(self, batch, batch_idx):
        return self.net(batch[0]).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr)


def inputs(count=48, *shape):
    return torch.randn(count, *(shape or (4,)), generator=torch.Generator().manual_seed(1))


def fit(net, monitor=None, x=None, *, lr=0.0, **options):
    monitor = ActivationMonitor(every_n_steps=1) if monitor is None else monitor
    module = net if isinstance(net, LightningModule) or hasattr(net, "_orig_mod") else Module(net, lr)
    trainer = quiet_trainer(callbacks=[monitor], **options)
    trainer.fit(module, DataLoader(TensorDataset(inputs() if x is None else x), 8))
    return monitor, trainer


def rows(monitor, layer=None):
    table = monitor.table()
    found = [dict(zip(table, cells, strict=True)) for cells in zip(*table.values(), strict=True)]
    return [row for row in found if layer in (None, row["layer"])]


def test_numbers_are_those_of_the_activation():
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Linear(6, 3), nn.Tanh())
    with torch.no_grad():
        net[3].weight *= 20
    monitor, _ = fit(net, max_steps=1)
    x = inputs()[:8]
    hidden = net[0](x)
    first, relu = rows(monitor, "net.0")[0], rows(monitor, "net.1")[0]
    assert first["mean"] == pytest.approx(hidden.mean().item())
    assert first["std"] == pytest.approx(hidden.std(correction=0).item()), "seen before the in-place ReLU"
    assert relu["zeros"] == pytest.approx((hidden <= 0).float().mean().item())
    assert (first["units"], relu["units"], relu["kind"]) == (6, 6, "ReLU")
    assert math.isnan(relu["saturated"])
    assert rows(monitor, "net.4")[0]["saturated"] > 0.1
    assert [row["layer"] for row in rows(monitor)] == ["net.0", "net.1", "net.3", "net.4"], "no dropout"


SATURATING = {
    "tanh": (nn.Tanh(), 1.0),
    "sigmoid": (nn.Sigmoid(), 0.25),
    "softsign": (nn.Softsign(), 1.0),
    "elu": (nn.ELU(alpha=0.7), 1.0),
    "celu": (nn.CELU(alpha=1.0), 1.0),
    "selu": (nn.SELU(), 1.0507009873554805),
    "hardtanh": (nn.Hardtanh(-2, 3), 1.0),
    "hardsigmoid": (nn.Hardsigmoid(), 1 / 6),
}


@pytest.mark.parametrize("name", SATURATING)
@given(values=st.lists(st.floats(-12, 12, width=32), min_size=1, max_size=20))
def test_saturated_means_a_derivative_below_one_percent(name, values):
    module, largest = SATURATING[name]
    x = torch.tensor(values, dtype=torch.float64, requires_grad=True)
    y = module(x)
    (slope,) = torch.autograd.grad(y.sum(), x)
    relative = slope / largest
    if name in ("elu", "celu", "selu"):  # their slope below zero starts where alpha says
        relative = slope / torch.autograd.grad(module(start := torch.tensor([-1e-9], requires_grad=True)), start)[0]
        relative = torch.where(x > 0, 1.0, relative)
    if ((relative - 0.01).abs() < 1e-4).any():
        return  # on the line, rounding decides
    assert activation_stats(module, y.detach())[SATURATED].item() == pytest.approx(
        (relative < 0.01).float().mean().item()
    )


class Validated(Module):
    def validation_step(self, batch, batch_idx):
        self.net(batch[0] + 100)


class Dying(nn.Module):
    """Five ReLU units: one always dead, one that dies at step 3, three that live."""

    def __init__(self, conv):
        super().__init__()
        self.layer = nn.Conv2d(4, 5, 1) if conv else nn.Linear(4, 5)
        nn.init.zeros_(self.layer.bias)
        with torch.no_grad():
            self.layer.bias[0] = -1000
        self.relu = nn.ReLU()
        self.step = 0

    def forward(self, x):
        if self.step == 3:
            with torch.no_grad():
                self.layer.bias[1] = -1000
        self.step += 1
        return self.relu(self.layer(x))


@pytest.mark.parametrize("conv", [False, True])
def test_dead_units_are_those_that_stay_silent_over_several_batches(conv):
    x = inputs(64, 4, 3, 3) if conv else inputs(64)
    monitor, _ = fit(Dying(conv), ActivationMonitor(every_n_steps=1, dead_after=3), x)
    found = rows(monitor, "net.relu")
    assert [row["units"] for row in found] == [5] * 8
    assert [row["dead"] for row in found][:2] == pytest.approx([math.nan] * 2, nan_ok=True)
    assert [row["dead"] for row in found][2:] == pytest.approx([0.2, 0.2, 0.2, 0.4, 0.4, 0.4])
    assert min(row["zeros"] for row in found) > 0.3, "many zeros are not many dead units"


class Sequences(nn.Module):
    def __init__(self, channels_first):
        super().__init__()
        self.layer = nn.Conv1d(4, 5, 1) if channels_first else nn.Linear(4, 5)
        self.relu = nn.ReLU()

    def forward(self, x):
        return self.relu(self.layer(x))


@pytest.mark.parametrize("channels_first", [False, True])
def test_units_of_sequences_follow_the_layer_before(channels_first):
    x = inputs(16, 4, 7) if channels_first else inputs(16, 7, 4)
    monitor, _ = fit(Sequences(channels_first), x=x)
    assert {row["units"] for row in rows(monitor)} == {5}


def test_repeated_and_nested_modules_have_their_own_rows():
    relu = nn.ReLU()
    net = nn.Sequential(nn.Linear(4, 4), relu, nn.Linear(4, 4), relu, nn.GRU(4, 3))
    module = Module(net)
    module.training_step = lambda batch, batch_idx: net(batch[0])[0].square().mean()
    monitor, _ = fit(module, max_steps=1)
    assert [row["layer"] for row in rows(monitor)] == ["net.0", "net.1", "net.2", "net.1#2", "net.4"]


class Checkpointed(Module):
    def training_step(self, batch, batch_idx):
        return checkpoint(self.net, batch[0], use_reentrant=False).square().mean()


def test_recomputation_in_the_backward_pass_is_not_seen():
    monitor, _ = fit(Checkpointed(nn.Sequential(nn.Linear(4, 4), nn.ReLU())), max_steps=1)
    assert len(rows(monitor)) == 2


class Counting(Module):
    """Keeps how many hooks its first layer has, at every batch and in between."""

    def __init__(self, net):
        super().__init__(net)
        self.inside, self.between = [], []

    def training_step(self, batch, batch_idx):
        self.inside.append(len(self.net[0]._forward_hooks))
        return super().training_step(batch, batch_idx)

    def on_train_batch_end(self, *args):
        self.between.append(len(self.net[0]._forward_hooks))


def test_hooks_exist_only_during_sampled_batches():
    module = Counting(nn.Sequential(nn.Linear(4, 2)))
    fit(module, ActivationMonitor(every_n_steps=3), max_epochs=2)
    assert module.inside == [1, 1, 1, 0, 0, 1, 0, 0, 1, 0, 0, 1]
    assert set(module.between) == {0}


def test_hooks_are_removed_after_an_exception():
    class Failing(Module):
        def training_step(self, batch, batch_idx):
            self.net(batch[0])
            raise RuntimeError("disk full")

    module = Failing(nn.Sequential(nn.Linear(4, 2)))
    monitor = ActivationMonitor(every_n_steps=1)
    with pytest.raises(RuntimeError, match="disk full"):
        fit(module, monitor)
    assert not module.net[0]._forward_hooks
    assert len(rows(monitor)) == 1


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_training_is_bit_identical(precision):
    def run(callbacks):
        seed_everything(0, verbose=False)
        net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 2))
        trainer = quiet_trainer(callbacks=callbacks, max_epochs=2, precision=precision, accumulate_grad_batches=2)
        data = DataLoader(TensorDataset(inputs()), 8)
        trainer.fit(Validated(net, lr=0.1), data, data)
        return [*net.state_dict().values(), torch.get_rng_state()]

    for with_, without in zip(run([ActivationMonitor(every_n_steps=1)]), run([]), strict=True):
        assert torch.equal(with_, without)


def test_compiled_parts_count_as_one_layer():
    inner = torch.compile(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), backend="eager")
    monitor, _ = fit(nn.Sequential(inner, nn.Linear(4, 1)), max_steps=2)
    assert [row["layer"] for row in rows(monitor)] == ["net.0", "net.1"] * 2


def test_compiled_lightning_module_is_said_to_be_opaque():
    with pytest.warns(UserWarning, match="cannot look into a compiled LightningModule"):
        monitor, _ = fit(torch.compile(Module(nn.Sequential(nn.Linear(4, 1))), backend="eager"), max_steps=1)
    assert rows(monitor) == []


def test_nonfinite_activations_are_seen_where_they_begin():
    class Half(nn.Module):
        def forward(self, x):
            return x / torch.tensor([1.0, 0.0, 1.0, 0.0])

    monitor, _ = fit(nn.Sequential(nn.Linear(4, 4), Half(), nn.Linear(4, 2)), max_steps=1)
    assert [row["nonfinite"] for row in rows(monitor)] == [0.0, 0.5, 1.0]


def test_loggers_get_extremes_on_logging_steps_and_one_picture(tmp_path):
    import csv

    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3), nn.Tanh())
    monitor, _ = fit(net, logger=CSVLogger(tmp_path), log_every_n_steps=3)
    folder = tmp_path / "lightning_logs" / "version_0"
    with (folder / "metrics.csv").open() as file:
        written = list(csv.DictReader(file))
    assert [int(row["step"]) for row in written] == [2, 5]
    assert set(written[0]) == {"step"} | {f"activations/{n}_max" for n in ("std", "saturated", "dead", "nonfinite")} | {
        "activations/std_min"
    }
    assert float(written[0]["activations/std_max"]) == pytest.approx(
        max(r["std"] for r in rows(monitor) if r["step"] == 2)
    )
    assert len(list((folder / "figures").iterdir())) == len(list((folder / "tables").iterdir())) == 1


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended", "ignore:Checkpoint directory")
def test_second_fit_starts_fresh_and_resume_does_not(tmp_path):
    def net():
        torch.manual_seed(2)
        return Dying(conv=False)

    def run(monitor, **options):
        saver = ModelCheckpoint(tmp_path, every_n_train_steps=4, save_top_k=-1)
        trainer = quiet_trainer(callbacks=[monitor, saver], enable_checkpointing=True, max_steps=6)
        trainer.fit(Module(net()), DataLoader(TensorDataset(inputs()), 8), **options)
        return str(rows(monitor))

    monitor = ActivationMonitor(every_n_steps=1, dead_after=2)
    whole = run(monitor)
    assert run(monitor) == whole
    path = min(tmp_path.glob("*step=4.ckpt"))
    resumed = ActivationMonitor(every_n_steps=1, dead_after=2)
    run(resumed, ckpt_path=path, weights_only=True)
    assert [row["step"] for row in rows(resumed, "net.relu")] == list(range(6))
    assert str(rows(resumed)[:8]) == str(rows(monitor)[:8]), "what was seen before the interruption"


def test_pictures_every_n_epochs_without_a_table(tmp_path, monkeypatch):
    monkeypatch.setattr(ActivationMonitor, "plot", lambda self: new_figure()[0])  # drawn quickly
    monitor = ActivationMonitor(every_n_steps=1, plot_every_n_epochs=2, worst=0)
    net = nn.Sequential(nn.Linear(4, 2))
    fit(net, monitor, max_epochs=3, logger=CSVLogger(tmp_path, name="", version=""))
    assert sorted(path.stem[-6:] for path in (tmp_path / "figures").iterdir()) == ["000012", "000018"]
    assert not (tmp_path / "tables").exists()


def test_outputs_that_hold_no_numbers_and_parts_in_evaluation_mode_are_left_out():
    class Classes(nn.Module):
        def forward(self, x):
            return x.argmax(1)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.frozen = nn.Linear(4, 4), nn.Linear(4, 4)
            self.classes, self.table = Classes(), nn.Embedding(4, 3)

        def forward(self, x):
            return self.table(self.classes(self.frozen.eval()(self.first(x))))

    monitor, _ = fit(Net(), max_steps=1)
    assert [row["layer"] for row in rows(monitor)] == ["net.first", "net.table"]


def test_a_layer_that_is_called_very_often_has_a_few_rows():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = nn.Linear(4, 4)

        def forward(self, x):
            for _ in range(2 * _CALLS):
                x = self.cell(x)
            return x

    monitor, _ = fit(Recurrent(), max_steps=1)
    assert [row["layer"] for row in rows(monitor)] == [
        "net.cell",
        *(f"net.cell#{call}" for call in range(2, _CALLS + 1)),
    ]


def test_parts_that_are_compiled_in_place_are_left_out():
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))
    net[0].compile(backend="eager")
    assert [name for name, _ in watchable(net)] == ["1"]


def test_plot_has_layers_in_forward_order():
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    monitor, _ = fit(net)
    left = monitor.plot().axes[0]
    assert [label.get_text() for label in left.get_yticklabels()] == ["net.0", "net.1", "net.2"]
    assert ActivationMonitor().plot().axes, "nothing seen yet"


def test_stats_of_a_constant():
    stats = activation_stats(nn.ReLU(), torch.zeros(3, 4))
    assert stats[[MEAN, STD, ZEROS]].tolist() == [0, 0, 1]
    assert stats[DEAD].isnan()


def test_losses_and_metrics_are_no_layers():
    from torchmetrics.classification import MulticlassAccuracy

    module = Module(nn.Sequential(nn.Linear(4, 2)))
    module.loss, module.accuracy = nn.CrossEntropyLoss(), MulticlassAccuracy(3)
    assert [name for name, _ in watchable(module)] == ["net.0"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every_n_steps": 0}, r"every_n_steps must be in \[1, inf\), but got 0"),
        ({"dead_after": 0}, r"dead_after must be in \[1, inf\)"),
        ({"plot_every_n_epochs": -1}, r"plot_every_n_epochs must be in \[0, inf\)"),
        ({"worst": -1}, r"worst must be in \[0, inf\)"),
    ],
)
def test_bad_options_get_a_sentence(options, message):
    with pytest.raises(UserInputError, match=message):
        ActivationMonitor(**options)
