"""Models, options and data that cannot be stacked are refused with the reason."""

import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from stack_models import CPU, Chatty, Handmade, Loaders, Own, digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MeanMetric

import lightning_tricks as lt
from lightning_tricks._base import MissingMetricError, UserInputError


class Scheduled(lt.Classifier):
    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]


class Noisy(lt.Classifier):
    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx) * 2


class Hooked(Handmade):
    def on_train_epoch_end(self):
        pass


class Manual(Handmade):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False


class Factor(Handmade):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx)["loss"] * self.factor


class Looking(Handmade):
    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)["loss"]
        return loss if loss.item() < 9 else -loss


class Metrical(Handmade):
    def validation_step(self, batch, batch_idx):
        self.log("val_loss", MeanMetric())


class Lossless(Handmade):
    def training_step(self, batch, batch_idx):
        return None


class Activated(nn.Module):
    """An attribute that is a function."""

    def __init__(self, activation):
        super().__init__()
        self.layer, self.activation = nn.Linear(64, 10), activation

    def forward(self, x):
        return self.activation(self.layer(x.flatten(1)))


class WithMore(Handmade):
    def __init__(self):
        super().__init__()
        self.more = nn.Linear(2, 2)

    def configure_optimizers(self):
        return torch.optim.AdamW([*self.parameters(), nn.Parameter(torch.ones(1))])


class Amsgrad(lt.Classifier):
    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), amsgrad=True)


class Halves(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.shift = nn.Linear(64, 10), nn.Parameter(torch.zeros(10, dtype=torch.float64))

    def forward(self, x):
        return self.layer(x.flatten(1)) + self.shift.float()


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.GRU(64, 10)

    def forward(self, x):
        return self.rnn(x.flatten(1))[0]


def of(net, cls=lt.Classifier, **options):
    return cls(net, 10, **options)


def mlp(**options):
    return lt.MLP(64, 10, hidden_features=(4,), **options)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: [of(lt.MLP(64, 10, hidden_features=(w,))) for w in (4, 5)], "must share their architecture.*layers.1"),
        (lambda: [of(mlp(dropout=d)) for d in (0.0, 0.5)], "must share their architecture.*Dropout"),
        (lambda: [of(Own(s)) for s in (1.0, 2.0)], r"slope = 1\.0 and net 1 has 2\.0"),
        (lambda: [of(mlp(), optimizer=o) for o in ("adam", "sgd")], "must be of one class, but model 0 uses Adam"),
        (
            lambda: [of(mlp(), optimizer=o) for o in ("momentum", "nesterov")],
            "same nesterov, but model 0 has nesterov=False and model 1 nesterov=True",
        ),
        (lambda: [of(mlp(), optimizer="rmsprop")], "only SGD, Adam and AdamW can be stacked.*RMSprop"),
        (lambda: [of(mlp(), Scheduled)], "one optimizer and nothing else"),
        (lambda: [of(mlp(), Noisy)], "Noisy cannot be stacked, because it changes training_step of Classifier"),
        (lambda: [Hooked()], "Hooked cannot be stacked, because it changes on_train_epoch_end"),
        (lambda: [Manual()], "Manual optimizes by hand"),
        (lambda: [Factor(1.0), Factor(2.0)], "net 1 gives another output than by itself"),
        (lambda: [Looking()], "vmap cannot run this net"),
        (lambda: [Metrical()], "needs plain numbers to be logged"),
        (lambda: [of(Recurrent())], "recurrent layers cannot be stacked, but rnn is one"),
        (lambda: [Lossless()], "training_step must return a loss, but it returned NoneType"),
        (lambda: [of(Activated(f)) for f in (torch.tanh, torch.relu)], r"activation = \S*tanh and net 1 has \S*relu"),
        (lambda: [WithMore()], "may only hold parameters of its net, but has others"),
        (lambda: [of(mlp(), Amsgrad)], "a stack knows no amsgrad=True of Adam, which must be False"),
        (lambda: [of(Halves())], "must be of one type and device, but there are"),
        (lambda: [lt.Regressor(lt.MLP(64, 2))], r"must return \(B, 1\), but got \(50, 2\)"),
        (lambda: [of(mlp()), of(mlp(), task="multilabel")], "must share task"),
        (lambda: [of(mlp()), of(mlp(), class_weights=[1.0] * 10)], "must share class_weights"),
        (lambda: [of(mlp()), lt.Regressor(lt.MLP(64, 1))], "must be of one class, but model 0 is a Classifier"),
        (list, "at least one model"),
        (lambda: [of(mlp())] * 2, "the same came twice"),
        (lambda: [mlp()], "must be LightningModules"),
    ],
)
def test_what_cannot_be_stacked_is_refused_with_the_reason(make, sentence):
    with pytest.raises(UserInputError, match=sentence):
        lt.fit_stacked(make(), digits(), trainer={**CPU, "max_epochs": 1})


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"callbacks": lambda: [Chatty()]}, "the callback Chatty needs a Trainer for each model"),
        ({"callbacks": lambda: [lt.EarlyStopping("val_loss", patience=1, unit="minutes")]}, "share the time"),
        (
            {"callbacks": lambda: [lt.EarlyStopping("val_loss", patience=1, nan="restore")]},
            "go back to earlier weights",
        ),
        ({"callbacks": lambda: [lt.EarlyStopping("val_acc", patience=1)]}, "asks for those with the best 'val_acc'"),
        ({"callbacks": lambda: [lt.ReduceLROnPlateau("val_loss", restore_best=True)]}, "restore_best=True"),
        ({"callbacks": [[]]}, "there are 2 and 1 lists"),
        ({"callbacks": [[lt.ExactResume()] * 2, []]}, "the same one came twice"),
        ({"trainer": {"detect_anomaly": True, **CPU}}, "detect_anomaly ends the training of all"),
        ({"trainer": {"devices": 2, "strategy": "ddp_fork", **CPU}}, "trains on one device"),
        ({"monitor": "val_los"}, "'val_los' is not logged in validation; logged are val_loss"),
        ({"trainer": {"callbacks": [Chatty()]}}, "callbacks belong to each model"),
        (
            {"trainer": {"plugins": [MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))], **CPU}},
            "bf16-mixed",
        ),
    ],
)
def test_options_that_a_stack_cannot_keep_are_refused(options, sentence):
    with pytest.raises(UserInputError, match=sentence):
        lt.fit_stacked([of(mlp()), of(mlp())], digits(), **{"trainer": {**CPU, "max_epochs": 1}, **options})


def rows_of(*columns, batch_size=4):
    return Loaders(DataLoader(TensorDataset(*columns), batch_size) if len(columns) > 1 else DataLoader(columns[0], 4))


@pytest.mark.filterwarnings("ignore:Total length of `.*` across ranks is zero")
@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (lambda: rows_of(torch.zeros(8, 64)), "a train batch must hold inputs and targets, but got inputs only"),
        (
            lambda: Loaders(rows_of(torch.zeros(0, 64), torch.zeros(0)).train, digits().val),
            "the training set must hold at least one batch, but its loader is empty",
        ),
    ],
)
def test_data_that_a_stack_cannot_learn_from_is_refused(data, sentence):
    with pytest.raises(UserInputError, match=sentence):
        lt.fit_stacked([of(mlp()), of(mlp())], data(), trainer={**CPU, "max_epochs": 1})


def test_rules_about_metrics_that_nobody_logs_name_those_that_are():
    callbacks = [[lt.EarlyStopping("val_los", patience=1, restore_best=False)]]
    with pytest.raises(
        MissingMetricError, match=r"monitors 'val_los', but .* Logged in validation: val_loss, val_right"
    ):
        lt.fit_stacked([Handmade()], digits(), callbacks=callbacks, trainer={**CPU, "max_epochs": 1})


class Secretive(nn.Module):
    """Depends on something that no comparison of attributes finds."""

    def __init__(self, factor):
        super().__init__()
        self.layer, self._factor = nn.Linear(64, 10), factor

    def forward(self, x):
        return self.layer(x.flatten(1)) * self._factor


class Branching(Secretive):
    def forward(self, x):
        x = self.layer(x.flatten(1))
        return x if x.mean() > 0 else -x


@pytest.mark.parametrize(
    ("net", "sentence"), [(Secretive, "net 1 gives another output than by itself"), (Branching, "vmap cannot run this")]
)
def test_nets_that_only_seem_alike_are_found_on_the_first_batch(net, sentence):
    with pytest.raises(UserInputError, match=sentence):
        lt.fit_stacked([of(net(1)), of(net(2))], digits(), trainer={**CPU, "max_epochs": 1})
