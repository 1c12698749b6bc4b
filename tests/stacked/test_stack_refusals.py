"""Stacks whose models hide something: each ends as by its own ``Trainer.fit``, or the stack says why it cannot."""

import copy

import pytest
import torch
from helpers import quiet_trainer
from lightning.pytorch import LightningDataModule, LightningModule
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import lightning_tricks as lt
from lightning_tricks._base import UserInputError
from lightning_tricks.stacked._equivalence import check_stack
from lightning_tricks.stacked._net import StackedNet

OPTIONS = {"accelerator": "cpu", "num_sanity_val_steps": 0, "max_epochs": 2, "precision": "64-true"}


class Rows(LightningDataModule):
    """Four batches, the last one shorter."""

    def __init__(self):
        super().__init__()
        x = torch.randn(60, 6, generator=torch.Generator().manual_seed(0))
        self.rows = TensorDataset(x, (x.sum(1) > 0).long())

    def train_dataloader(self):
        return DataLoader(self.rows, 16)

    val_dataloader = train_dataloader


def distances(models, **options):
    """Return how far each model ends from where a Trainer of its own brings it."""
    alone = [copy.deepcopy(model) for model in models]
    lt.fit_stacked(models, Rows(), trainer={**OPTIONS, **options})
    for model in alone:
        quiet_trainer(**{**OPTIONS, **options}).fit(model, Rows())
    return [distance(model, other) for model, other in zip(models, alone, strict=True)]


def distance(one, other):
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return max(float((a - b).abs().max()) for a, b in pairs)


class GoesThrough(nn.Module):
    """A forward of its own, so that only vmap can run it."""

    def __init__(self, net):
        super().__init__()
        self.net, self.scale = net, nn.Parameter(torch.ones(()))

    def forward(self, x):
        return self.net(x * self.scale)


# Layers that occur twice, and layers that only look like dropout.


def shared_norm():
    norm = nn.LayerNorm(6)
    nn.init.normal_(norm.weight)
    return nn.Sequential(nn.Linear(6, 6), norm, nn.Tanh(), nn.Linear(6, 6), norm, nn.Linear(6, 2))


def test_a_layer_that_occurs_twice_is_applied_twice():
    assert max(distances([lt.Classifier(shared_norm(), 2, lr=rate) for rate in (0.1, 0.01)])) < 1e-9


def test_a_dropout_layer_that_occurs_twice_drops_twice():
    drop = nn.Dropout(0.5)
    net = nn.Sequential(nn.Linear(6, 500), drop, nn.Flatten(), drop)
    out = StackedNet([net, copy.deepcopy(net)])(torch.ones(50, 6))
    assert (out == 0).float().mean((1, 2)).tolist() == pytest.approx([0.75, 0.75], abs=0.02)


def test_activations_that_occur_twice_leave_a_chain_a_chain():
    act = nn.ReLU()
    assert StackedNet([nn.Sequential(nn.Linear(6, 6), act, nn.Linear(6, 6), act)]).way == "chain"


class GaussianDropout(nn.Dropout):
    """Multiplies with normal numbers around 1, as Keras's layer of that name does."""

    def forward(self, x):
        return x * (1 + torch.randn_like(x) * (self.p / (1 - self.p)) ** 0.5) if self.training else x


def test_a_layer_derived_from_dropout_does_what_it_does_alone():
    nets = [GoesThrough(GaussianDropout(0.2)) for _ in range(2)]
    out = StackedNet(nets)(torch.ones(20_000))
    assert out.mean(1).tolist() == pytest.approx([1, 1], abs=0.02)
    assert out.std(1).tolist() == pytest.approx([0.5, 0.5], abs=0.02)
    assert not torch.equal(*out)


def test_rates_of_a_layer_derived_from_dropout_must_agree():
    with pytest.raises(UserInputError, match=r"net 0 has p = 0\.2 and net 1 has 0\.3"):
        StackedNet([GaussianDropout(0.2), GaussianDropout(0.3)])


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda drop: nn.Sequential(nn.Linear(6, 6), drop), (4, 6)),
        (lambda drop: nn.Sequential(nn.Conv1d(6, 6, 1), drop), (4, 6, 3)),
        (lambda drop: GoesThrough(drop), (4, 6)),
    ],
    ids=["dense", "maps", "vmap"],
)
def test_a_dropout_rate_of_one_leaves_nothing(make, shape):
    out = StackedNet([make(nn.Dropout(1.0)), make(nn.Dropout(0.5))])(torch.ones(shape))
    assert not out[0].any()
    assert out[1].any()


# Parameters without a gradient.


class Plain(LightningModule):
    """As people write them."""

    def __init__(self, lr=0.05, **own):
        super().__init__()
        self.back, self.head, self.lr = nn.Linear(6, 8), nn.Linear(8, 2), lr
        vars(self).update(own)

    def forward(self, x):
        return self.head(self.back(x).relu())

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", F.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr)


def sgd(parameters, rate):
    return torch.optim.SGD(parameters, lr=rate, momentum=0.9, weight_decay=0.5)


def adam(parameters, rate):
    return torch.optim.Adam(parameters, lr=rate, betas=(1 - rate, 0.99), weight_decay=0.5)


def adamw(parameters, rate):
    return torch.optim.AdamW(parameters, lr=rate, weight_decay=1.0)


class Idle(Plain):
    """Has parameters that are frozen, never used, or used in every other batch."""

    def __init__(self, lr, make):
        super().__init__(lr)
        self.make, self.unused, self.often = make, nn.Linear(3, 3), nn.Parameter(torch.ones(2))
        self.back.requires_grad_(False)

    def training_step(self, batch, batch_idx):
        out = self(batch[0])
        return F.cross_entropy(out * self.often if batch_idx % 2 else out, batch[1])

    def configure_optimizers(self):
        return self.make(self.parameters(), self.lr)


@pytest.mark.parametrize("make", [sgd, adam, adamw])
@pytest.mark.parametrize("options", [{}, {"accumulate_grad_batches": 2, "gradient_clip_val": 0.1}])
def test_a_parameter_without_a_gradient_stays_where_it_is(make, options):
    assert max(distances([Idle(rate, make) for rate in (0.1, 0.02)], **options)) < 1e-9


def test_models_that_leave_take_nobody_s_gradients_along():
    def made():
        torch.manual_seed(0)
        return [Idle(rate, adamw) for rate in (0.1, 0.02)]

    stop = [[lt.EarlyStopping("val_loss", patience=1, stopping_threshold=9.0, restore_best=False)], []]
    together, alone = made(), made()[1]
    runs = lt.fit_stacked(together, Rows(), callbacks=stop, trainer={**OPTIONS, "val_check_interval": 1})
    assert [run.epochs for run in runs] == [1, 2]
    quiet_trainer(**OPTIONS, val_check_interval=1).fit(alone, Rows())
    assert distance(together[1], alone) < 1e-9


# What a model has for itself and no stack keeps.


class Penalised(Plain):
    """Asks a hyperparameter of its own in every step."""

    def __init__(self, l2, lr=0.05):
        super().__init__(lr)
        self.save_hyperparameters()

    def training_step(self, batch, batch_idx):
        penalty = sum(p.square().sum() for p in self.parameters())
        return super().training_step(batch, batch_idx) + self.hparams.l2 * penalty


class Dropping(Plain):
    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(F.dropout(batch[0], self.p, self.training)), batch[1])


class Weighted(Plain):
    """The same loss, another gradient."""

    def training_step(self, batch, batch_idx):
        out = self(batch[0])
        return F.cross_entropy(out.detach() + self.factor * (out - out.detach()), batch[1])


class Scored(Plain):
    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.factor * F.cross_entropy(self(batch[0]), batch[1]))


class Later(Plain):
    """Differs from the second epoch on."""

    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx) * (self.factor if self.current_epoch else 1.0)


class Hidden(nn.Module):
    def __init__(self, rate):
        super().__init__()
        self.layer, self._rate = nn.Linear(6, 2), rate

    def forward(self, x):
        return F.dropout(self.layer(x), self._rate, self.training)


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda i: Penalised((0.0, 1e-4)[i]), r"hparams\.l2"),
        (lambda i: Dropping(p=(0.1, 0.9)[i]), "p"),
        (lambda i: Weighted(factor=(1.0, 2.0)[i]), "factor"),
        (lambda i: Scored(factor=(1.0, 2.0)[i]), "factor"),
        (lambda i: Later(factor=(1.0, 2.0)[i]), "factor"),
        (lambda i: lt.Classifier(Hidden((0.1, 0.9)[i]), 2), "_rate"),
    ],
    ids=["hparams", "dropout", "gradient", "validation", "second epoch", "net"],
)
def test_a_number_that_a_step_uses_is_found_by_its_name(make, names):
    with pytest.raises(UserInputError, match=rf"net 1 gives another output than net 0.*differ in {names}\)"):
        lt.fit_stacked([make(0), make(1)], Rows(), trainer=OPTIONS)


class Own(Penalised):
    """What the refusal advises: the number is a buffer. And rows of its own, dropout, batch norm."""

    def __init__(self, l2, lr, seed):
        super().__init__(l2, lr)
        self.register_buffer("l2", torch.tensor(l2))
        self.register_buffer("rows", torch.randn(60, 6, generator=torch.Generator().manual_seed(seed)))
        self.norm, self.drop = nn.BatchNorm1d(8), nn.Dropout(0.0)

    def forward(self, x):
        return self.head(self.drop(self.norm(self.back(x + self.rows[: len(x)])).relu()))

    def training_step(self, batch, batch_idx):
        penalty = sum(p.square().sum() for p in self.parameters())
        return F.cross_entropy(self(batch[0]), batch[1]) + self.l2 * penalty


def test_tensors_of_its_own_and_numbers_of_the_optimizer_are_a_model_s_right():
    assert max(distances([Own(0.0, 0.1, seed=1), Own(1e-2, 0.01, seed=2)])) < 1e-9


def test_the_check_leaves_nets_stack_and_random_numbers_as_they_were():
    nets = [GoesThrough(nn.Sequential(nn.BatchNorm1d(6), nn.Dropout(rate))) for rate in (0.2, 0.4)]
    stack, state = StackedNet(nets), torch.get_rng_state()
    tensors, modes = [t.clone() for t in stack.tensors()], [m.training for net in nets for m in net.modules()]
    check_stack(stack, nets, torch.randn(8, 6, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(one, other) for one, other in zip(tensors, stack.tensors(), strict=True))
    assert [m.training for net in nets for m in net.modules()] == modes
    assert [net.net[1].p for net in nets] == [0.2, 0.4]
    assert stack.training


def test_layers_in_eval_mode_must_be_the_same():
    nets = [GoesThrough(nn.BatchNorm1d(6)) for _ in range(2)]
    nets[1].net.eval()
    with pytest.raises(UserInputError, match=r"net 0 has net\.training = True and net 1 has False"):
        StackedNet(nets)


# What a step may know and keep.


class Timed(Plain):
    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx) * (1 + self.current_epoch + 0.1 * self.global_step)


class Centred(Plain):
    """Keeps running means in buffers, one of which it assigns anew."""

    def __init__(self, lr):
        super().__init__(lr)
        self.register_buffer("centre", torch.zeros(2))
        self.register_buffer("scale", torch.ones(2))
        self.register_buffer("seen", torch.zeros(()))

    def training_step(self, batch, batch_idx):
        out = self(batch[0])
        loss = F.cross_entropy((out - self.centre) * self.scale, batch[1])
        self.centre = 0.9 * self.centre + 0.1 * out.detach().mean(0)
        self.scale = 0.9 * self.scale + 0.1 * out.detach().std(0)
        self.seen += 1
        return loss

    def validation_step(self, batch, batch_idx):
        super().validation_step(batch, batch_idx)
        self.centre = 0.5 * self.centre


@pytest.mark.parametrize("make", [Timed, Centred])
def test_the_time_and_buffers_are_those_of_a_training_alone(make):
    assert max(distances([make(0.1), make(0.02)], max_epochs=3)) < 1e-9


class Growing(Centred):
    def training_step(self, batch, batch_idx):
        self.seen = torch.zeros(3, dtype=self.seen.dtype)
        return super().training_step(batch, batch_idx)


class Asking(Plain):
    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx) * self.trainer.optimizers[0].param_groups[0]["lr"]


def spectral():
    return nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(6, 8)), nn.Tanh(), nn.Linear(8, 2))


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Growing(0.1), r"must keep shape and type, but model\.seen was \(\), .* made it \(3,\)"),
        (Asking, "the trainer of a stack has no optimizers of a single model"),
        (lambda: lt.Classifier(spectral(), 2), "vmap cannot run this net: Batching rule not implemented"),
    ],
)
def test_steps_that_no_stack_can_run_are_refused(make, sentence):
    with pytest.raises(UserInputError, match=sentence):
        lt.fit_stacked([make(), make()], Rows(), trainer=OPTIONS)


# Searches.


def make_model(lr):
    return lt.Classifier(nn.Linear(6, 2), 2, lr=lr)


def make_rows(batch_size=16):
    return Rows()


def suggest(trial):
    return {"lr": trial.suggest_float("lr", 0.01, 0.1), "batch_size": trial.suggest_categorical("batch_size", [8, 16])}


def find(folder, data, space, **options):
    given = {"trials": 2, "method": "random", "trainer": OPTIONS, "retrain": 0, "start_method": "fork", **options}
    return lt.search(make_model, data, space, folder=folder, report=False, progress=False, **given)


def test_hyperparameters_of_the_data_that_a_function_suggests_are_refused(tmp_path):
    with pytest.raises(UserInputError, match="share their batches, but the data takes the hyperparameter 'batch_size'"):
        find(tmp_path, make_rows, suggest, vectorize=True)
    assert not (tmp_path / "stacks").exists()
    assert len(find(tmp_path, make_rows, suggest).runs) == 2, "the point is given back, so that the search can go on"
