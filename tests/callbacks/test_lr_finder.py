"""The learning-rate finder: rules by hand-made curves, nothing left behind, the rate arrives everywhere."""

import copy
from pathlib import Path

import pytest
import torch
from helpers import quiet_trainer, run_ranks
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MeanSquaredError

from lightning_tricks import LRFinder, WeightInit, lr_find
from lightning_tricks._base import UserInputError
from lightning_tricks.callbacks import suggest_lr
from lightning_tricks.callbacks.learning_rate._lr_finder import _generators


class Net(LightningModule):
    """Regression with everything that a range test could leave behind: buffers, dropout, a metric, a frozen norm."""

    def __init__(self, lr=1e-3, optimizers=1, manual=False, groups=False):
        super().__init__()
        torch.manual_seed(0)
        self.lr = lr
        self.net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 1))
        self.register_buffer("calls", torch.zeros(()), persistent=False)
        self.metric = MeanSquaredError()
        self.optimizers_wanted = optimizers
        self.automatic_optimization = not manual
        self.groups = groups

    def training_step(self, batch, batch_idx):
        x, y = batch
        self.calls += 1
        prediction = self.net(x)
        self.metric.update(prediction.detach(), y)
        self.log("train_loss", (loss := (prediction - y).square().mean()))
        return loss

    def configure_optimizers(self):
        parts = [{"params": self.net[0].parameters(), "lr": self.lr / 10}, {"params": self.net[4].parameters()}]
        optimizers = [torch.optim.Adam(parts if self.groups else self.parameters(), lr=self.lr)]
        optimizers *= self.optimizers_wanted
        schedulers = [torch.optim.lr_scheduler.StepLR(optimizer, 1000) for optimizer in optimizers]
        return optimizers, schedulers


def data():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(64, 4, generator=generator)
    return DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), 8, shuffle=True, generator=generator)


def state_of(model):
    return [t.clone() for t in (*model.parameters(), *model.buffers())]


def assert_equal(a, b):
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        assert torch.equal(x, y)


@pytest.mark.filterwarnings("ignore:Found 1 module.* in eval mode")
def test_lr_find_changes_nothing():
    model, loader = Net(), data()
    model.net[1].eval()
    before, modes = state_of(model), [m.training for m in model.modules()]
    stream, own = torch.get_rng_state(), loader.generator.get_state()
    trainer = quiet_trainer()
    result = lr_find(trainer, model, loader, steps=30)
    assert_equal(before, state_of(model))
    assert modes == [m.training for m in model.modules()]
    assert torch.equal(stream, torch.get_rng_state())
    assert torch.equal(own, loader.generator.get_state())
    assert all(p.grad is None for p in model.parameters())
    assert model.lr == 1e-3
    assert model.metric.update_count == 0
    assert len(result.rates) == len(result.losses) >= 20
    assert trainer.callback_metrics == {}
    assert trainer.ckpt_path is None
    assert not list(Path().rglob("*.ckpt"))


@pytest.mark.parametrize("own_generator", [True, False])
def test_training_after_a_look_is_the_training_without(own_generator):
    def train(*callbacks):
        torch.manual_seed(7)
        model, loader = Net(), data()
        if not own_generator:  # setting up and shuffling then draw from the global stream
            loader = DataLoader(loader.dataset, 8, shuffle=True)
        quiet_trainer(max_epochs=2, callbacks=list(callbacks)).fit(model, loader)
        return state_of(model)

    assert_equal(train(), train(LRFinder(update=False, steps=20, stop_factor=None)))


def test_the_rate_reaches_groups_in_proportion_scheduler_and_attribute():
    finder, model = LRFinder("minimum", steps=30), Net(groups=True)
    trainer = quiet_trainer(max_epochs=2, callbacks=[finder])
    trainer.fit(model, data())
    rate = finder.result.suggestion
    assert rate != 1e-3
    assert model.lr == rate
    # The scheduler has stepped twice: with its old base rates it would have put 1e-3 back.
    rates = [group["lr"] for group in trainer.optimizers[0].param_groups]
    assert rates == pytest.approx([rate / 10, rate])


def test_the_test_goes_on_over_epochs_and_does_not_validate():
    class Validated(Net):
        validations = 0

        def validation_step(self, batch, batch_idx):
            self.validations += 1

        def val_dataloader(self):
            return data()

    model = Validated()
    result = lr_find(quiet_trainer(max_epochs=1, num_sanity_val_steps=0), model, data(), steps=30, stop_factor=None)
    assert len(result.rates) == 30  # an epoch has 8 batches
    assert model.validations == 0


def test_picture_and_numbers_are_logged():
    logger = CSVLogger(".")
    quiet_trainer(max_epochs=1, callbacks=[LRFinder(steps=30)], logger=logger).fit(Net(), data())
    assert list(Path(logger.log_dir).rglob("lr_find_curve*.png"))
    assert "lr_find/valley" in Path(logger.log_dir, "metrics.csv").read_text()


def test_a_resumed_run_keeps_its_rate():
    trainer = quiet_trainer(max_epochs=1, callbacks=[LRFinder("minimum", steps=20)])
    trainer.fit(Net(), data())
    trainer.save_checkpoint("a.ckpt")
    finder = LRFinder("minimum", steps=20)
    resumed = quiet_trainer(max_epochs=2, callbacks=[finder])
    resumed.fit(Net(), data(), ckpt_path="a.ckpt")
    assert finder.result is None
    assert resumed.optimizers[0].param_groups[0]["lr"] == trainer.optimizers[0].param_groups[0]["lr"]


def test_a_test_run_is_no_resume_for_the_callbacks_after_it():
    init = WeightInit(seed=0)
    quiet_trainer(callbacks=[LRFinder(steps=20), init]).fit(Net(), data())
    assert init.report is not None


def _on_rank(rank):
    finder, model = LRFinder(steps=20), Net()
    quiet_trainer(callbacks=[finder], strategy="ddp", devices=2).fit(model, data())
    return finder.result.rates, finder.result.losses, model.lr


@pytest.mark.parametrize("kind", ["sequence", "plateau"])
def test_every_kind_of_scheduler_counts_from_the_new_rate(kind):
    class Scheduled(Net):
        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), lr=self.lr)
            if kind == "plateau":
                scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.1, patience=0, threshold=9e9)
                return [optimizer], [{"scheduler": scheduler, "monitor": "train_loss"}]
            parts = [torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma) for gamma in (0.5, 0.1)]
            return [optimizer], [torch.optim.lr_scheduler.SequentialLR(optimizer, parts, milestones=[2])]

    def rates(lr, callbacks):
        seen = []

        class Look(Callback):
            def on_train_epoch_end(self, trainer, pl_module):
                seen.append(trainer.optimizers[0].param_groups[0]["lr"])

        quiet_trainer(max_epochs=4, callbacks=[*callbacks, Look()]).fit(Scheduled(lr), data())
        return seen

    finder = LRFinder("minimum", steps=20)
    found = rates(1e-3, [finder])
    assert found == pytest.approx(rates(finder.result.suggestion, []))
    assert found[-1] < finder.result.suggestion


@pytest.mark.filterwarnings("ignore:All-NaN")
def test_a_test_without_a_suggestion_is_said_and_changes_no_rate():
    model, finder = Net(), LRFinder(steps=20)
    model.net[4].weight.data.fill_(torch.nan)
    with pytest.warns(UserWarning, match=r"ended too early to suggest a rate; raise steps= or lower min_lr="):
        quiet_trainer(callbacks=[finder], logger=CSVLogger(".")).fit(model, data())
    assert set(finder.result.suggestions.values()) == {None}
    assert model.lr == 1e-3


def test_a_dry_run_finds_nothing_even_if_asked():
    class Asked(LRFinder):
        def on_fit_start(self, trainer, pl_module):
            self.lr_find(trainer, pl_module)

    finder, model = Asked(steps=20), Net()
    with pytest.warns(UserWarning, match="Skipping learning rate finder"):
        quiet_trainer(fast_dev_run=True, callbacks=[finder]).fit(model, data())
    assert (finder.result, model.lr) == (None, 1e-3)


def test_a_model_without_an_attribute_for_the_rate_keeps_its_own():
    class Nameless(Net):
        def configure_optimizers(self):
            del self.lr
            return torch.optim.SGD(self.parameters(), lr=1e-3)

    finder, model = LRFinder("minimum", steps=20), Nameless()
    trainer = quiet_trainer(callbacks=[finder])
    trainer.fit(model, data())
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(finder.result.suggestion)
    assert not hasattr(model, "lr")


def test_streams_of_combined_loaders_are_found():
    own, other = data(), data()
    plain = DataLoader([1, 2])
    assert _generators({"a": own, "b": [plain, other]}) == [own.generator] * 2 + [other.generator] * 2


def test_two_ranks_agree():
    first, second = run_ranks(_on_rank)
    assert first == second


LOSSES = st.lists(st.one_of(st.floats(0, 10), st.just(float("nan")), st.just(float("inf"))), min_size=1, max_size=60)


@given(LOSSES, st.sampled_from(["steepest", "minimum", "valley"]))
@settings(max_examples=60, deadline=None)
def test_suggestions_lie_in_the_range_whatever_the_losses(losses, rule):
    rates = [1e-6 * 1.2**i for i in range(len(losses))]
    rate = suggest_lr(rates, losses, rule)
    if rate is not None:
        assert rates[0] / 10 <= rate <= rates[-1]


def test_rules_on_a_curve_with_known_landmarks():
    """A flat start, a fall whose steepest point is at 1e-3, the least loss at 1e-2, then divergence."""
    exponents = torch.linspace(-6, 0, 121, dtype=torch.float64)
    losses = 2 - torch.sigmoid((exponents + 3) * 6) - 0.02 * exponents + torch.relu(exponents + 2) * 5
    rates, losses = (10**exponents).tolist(), losses.tolist()
    assert suggest_lr(rates, losses, "steepest") == pytest.approx(1e-3, rel=0.15)
    assert suggest_lr(rates, losses, "minimum") == pytest.approx(1e-3, rel=0.15)
    lowest = min(range(121), key=losses.__getitem__)
    assert suggest_lr(rates, losses, "minimum") == rates[lowest] / 10
    # everything from the first considered point to the minimum falls: the valley's middle is halfway in the exponent
    assert suggest_lr(rates, losses, "valley") == pytest.approx(rates[(12 + lowest) // 2], rel=0.15)


def test_steepest_is_per_decade_however_the_rates_are_spaced():
    """0.3 in each of two whole decades, then twice 0.2 in a third of a decade."""
    rates, losses = [1e-6, 1e-5, 1e-4, 2e-4, 4e-4, 1e-3, 1e-2], [2.0, 1.7, 1.4, 1.2, 1.0, 1.0, 9.0]
    assert suggest_lr(rates, losses, "steepest") == 2e-4


def test_valley_falls_from_step_to_step_and_takes_the_first_of_equals():
    rates = [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1]
    assert suggest_lr(rates, [3.0, 2.0, 2.0, 2.0, 1.0, 9.0], "valley") == 1e-5
    assert suggest_lr(rates, [4.0, 3.0, 2.0, 1.0, 5.0, 9.0], "valley") == 1e-5, "the upper of the two in the middle"


def test_too_few_points_suggest_nothing():
    assert suggest_lr([1e-3, 1e-2], [1.0, float("nan")], "valley") is None
    rates, losses = [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1], [5.0, 4.0, 3.0, 2.0, 1.0, 9.0]
    assert suggest_lr(rates, losses, "minimum") == 1e-3, "the last one left out, five are enough"
    assert suggest_lr(rates, [*losses[:4], float("nan"), 9.0], "minimum") is None


def test_as_many_losses_as_rates_are_wanted():
    with pytest.raises(ValueError, match="shorter"):
        suggest_lr([1e-3] * 9, [1.0] * 8, "minimum")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LRFinder("deepest"), "Did you mean 'steepest'"),
        (lambda: LRFinder(min_lr=0), r"min_lr must be in \(0"),
        (lambda: LRFinder(min_lr=1.0, max_lr=0.1), r"max_lr must be in \(1"),
        (lambda: LRFinder(steps=3), r"steps must be in \[10"),
        (lambda: LRFinder(stop_factor=1.0), r"stop_factor must be in \(1"),
        (lambda: lr_find(quiet_trainer(), Net(manual=True), data()), "automatic optimization with one optimizer"),
        (lambda: lr_find(quiet_trainer(fast_dev_run=True), Net(), data()), "without fast_dev_run"),
        (
            lambda: quiet_trainer(callbacks=[LRFinder(steps=20, attr_name="rate")]).fit(Net(), data()),
            "'rate' is no attribute of Net",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:Skipping learning rate finder")
def test_bad_input_gets_a_sentence(make, message):
    with pytest.raises(UserInputError, match=message):
        make()


def test_a_copy_is_fresh():
    finder = copy.deepcopy(LRFinder(steps=20))
    quiet_trainer(callbacks=[finder]).fit(Net(), data())
    assert finder.result is not None
