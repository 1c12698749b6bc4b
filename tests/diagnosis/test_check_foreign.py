"""Programs as their users write them: check asks what a Trainer would answer, and is silent about healthy ones."""

import pytest
import torch
from helpers import quiet_trainer
from lightning.pytorch import LightningDataModule, LightningModule, seed_everything
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_tricks import MLP, Diagnosis, check
from lightning_tricks._base import UserInputError
from lightning_tricks.diagnosis import run_rules


def loader(count=96, batch_size=16):
    generator = torch.Generator().manual_seed(7)
    y = torch.arange(count) % 4
    x = torch.randn(count, 6, generator=generator) + F.one_hot(y, 6)
    return DataLoader(TensorDataset(x, y), batch_size, shuffle=True)


class Data(LightningDataModule):
    def train_dataloader(self):
        return loader()


class Plain(LightningModule):
    def __init__(self, net=None):
        super().__init__()
        self.net = net or nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4))

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.01)


class OneCycle(Plain):
    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        steps = self.trainer.estimated_stepping_batches
        assert steps == self.trainer.max_epochs * self.trainer.num_training_batches
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, total_steps=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class ParametersOfTheTrainersModel(Plain):
    def configure_optimizers(self):
        return torch.optim.Adam(self.trainer.model.parameters(), lr=0.01)


class BoundEarly(Plain):
    def __init__(self):
        super().__init__()
        self.make = lambda: torch.optim.Adam(self.net.parameters(), lr=0.01)

    def configure_optimizers(self):
        return self.make()


class Compiled(Plain):
    def __init__(self):
        super().__init__()
        self.net = torch.compile(self.net, backend="eager")

    def configure_optimizers(self):
        return torch.optim.Adam(self.net._orig_mod.parameters(), lr=0.01)


class WithoutIndex(Plain):
    def training_step(self, batch):
        return F.cross_entropy(self.net(batch[0]), batch[1])


class DiceLoss(nn.modules.loss._Loss):
    """As of a segmentation package: a module, with no function of torch behind it."""

    def forward(self, output, y):
        probs, target = output.softmax(dim=1), F.one_hot(y, output.shape[1])
        return 1 - (2 * (probs * target).sum() / (probs + target).sum())


class WithLossObject(Plain):
    def __init__(self):
        super().__init__()
        self.criterion = DiceLoss()

    def training_step(self, batch, batch_idx):
        return self.criterion(self.net(batch[0]), batch[1])


def found(model, data=None, **options):
    seed_everything(0, verbose=False)
    return list(check(model, data or loader(), progress=False, **options))


def serious(findings):
    return [str(f) for f in findings if f.severity != "info" or "could not run" in f.what]


@pytest.mark.parametrize(
    "program",
    [OneCycle, ParametersOfTheTrainersModel, BoundEarly, Compiled, WithoutIndex, WithLossObject],
)
def test_a_healthy_program_gets_no_alarm(program):
    assert serious(found(program())) == []


ANSWERS = []


class Asks(Plain):
    def configure_optimizers(self):
        trainer = self.trainer
        kind = type(trainer.datamodule)
        ANSWERS.append((trainer.estimated_stepping_batches, trainer.max_epochs, trainer.num_training_batches, kind))
        return super().configure_optimizers()


@pytest.mark.parametrize(
    "options",
    [
        {"max_epochs": 3},
        {"max_epochs": 5, "limit_train_batches": 4},
        {"max_epochs": 4, "limit_train_batches": 0.5},
        {"max_epochs": 4, "accumulate_grad_batches": 4},
        {"max_epochs": 4, "max_steps": 7},
    ],
)
def test_the_trainer_answers_as_it_would_in_training(options):
    ANSWERS.clear()
    assert serious(found(Asks(), Data(), trainer=quiet_trainer(**options))) == []
    checked = set(ANSWERS)
    ANSWERS.clear()
    quiet_trainer(**options).fit(Asks(), datamodule=Data())
    assert checked == set(ANSWERS)


def test_a_module_of_the_separate_package_is_refused_with_what_to_change():
    kind = type("Lit", (nn.Module,), {"__module__": "pytorch_lightning.core.module"})
    with pytest.raises(UserInputError, match=r"import lightning\.pytorch as pl"):
        check(type("Mine", (kind,), {})(), loader())


def test_a_check_that_crashes_bears_the_name_of_its_rule():
    def crash():
        raise RuntimeError("no such thing")

    (finding,) = run_rules({"negated loss": crash}, progress=False)
    assert finding.rule == "cannot-overfit"


class OwnRate(torch.optim.SGD):
    """Chooses its learning rate itself and keeps None in its groups, as Adafactor does."""

    def __init__(self, params):
        super().__init__(params, lr=0.01)
        for group in self.param_groups:
            group["lr"] = None

    def step(self, closure=None):
        loss = None if closure is None else closure()
        with torch.no_grad():
            for group in self.param_groups:
                for p in group["params"]:
                    if p.grad is not None:
                        p -= 0.01 * p.grad
        return loss


class ChoosesItsRate(Plain):
    def configure_optimizers(self):
        return OwnRate(self.parameters())


def test_an_optimizer_without_a_learning_rate(tmp_path):
    assert serious(found(ChoosesItsRate())) == []
    diagnosis = Diagnosis(report_path=tmp_path / "report.html")
    quiet_trainer(max_epochs=2, callbacks=[diagnosis]).fit(ChoosesItsRate(), loader())
    assert "found by the optimizer" in (tmp_path / "report.html").read_text()


class VAE(Plain):
    def __init__(self):
        super().__init__(nn.Linear(6, 4))
        self.decode = nn.Linear(2, 6)

    def training_step(self, batch, batch_idx):
        mean, log_variance = self.net(batch[0]).chunk(2, dim=1)
        z = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
        divergence = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).sum(1).mean()
        return F.mse_loss(self.decode(z), batch[0]) + 0.1 * divergence


class LayerScaled(nn.Module):
    """A residual branch that begins at a millionth, as those of ConvNeXt and CaiT do."""

    def __init__(self, gain=1e-6):
        super().__init__()
        self.inside, self.gain = nn.Linear(6, 6), nn.Parameter(torch.full((6,), gain))

    def forward(self, x):
        return x + self.gain * torch.tanh(self.inside(x))


class LowRank(nn.Module):
    """A frozen layer with an update of low rank that begins at zero."""

    def __init__(self):
        super().__init__()
        self.base = nn.Linear(6, 6).requires_grad_(False)
        nn.init.normal_(self.base.weight, std=0.4)
        self.lora_A, self.lora_B = nn.Linear(6, 2, bias=False), nn.Linear(2, 6, bias=False)
        nn.init.zeros_(self.lora_B.weight)

    def forward(self, x):
        return self.base(x) + self.lora_B(self.lora_A(x))


class MultiTask(Plain):
    """Two tasks; the second begins far away from its target, which its loss weight makes up for."""

    def training_step(self, batch, batch_idx):
        output = self.net(batch[0])
        return F.cross_entropy(output, batch[1]) + 1e-4 * F.mse_loss(output[:, 0], 50.0 + batch[1])


@pytest.mark.parametrize(
    "program",
    [
        VAE,
        MultiTask,
        lambda: Plain(nn.Sequential(LayerScaled(), LayerScaled(), nn.Linear(6, 4))),
        lambda: Plain(nn.Sequential(LowRank(), nn.ReLU(), LowRank(), nn.Linear(6, 4))),
        lambda: Plain(MLP(6, 4, hidden_features=(16, 16), dropout=0.5)),
    ],
    ids=["VAE", "multi-task", "LayerScale", "LoRA", "MLP with dropout"],
)
def test_what_is_meant_is_no_fault(program):
    findings = found(program())
    assert serious(findings) == []
    assert not {"bias-not-zero", "dropout-before-batchnorm"} & {finding.rule for finding in findings}
