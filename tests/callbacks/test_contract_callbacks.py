"""What always holds, for every public callback. A new callback is one line in CALLBACKS."""

import copy
import pickle

import pytest
import torch
from helpers import quiet_trainer, run_ranks
from lightning.pytorch import Callback, LightningModule
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_tricks as lt
from lightning_tricks._base import UserInputError, rng_state

# The loader below is in order on purpose, which Preflight says rightly.
pytestmark = pytest.mark.filterwarnings("ignore:Preflight. warning unshuffled-training")


class QuietTrial:
    """A trial that is told everything and never prunes."""

    def report(self, value, step): ...

    def should_prune(self):
        return False


CALLBACKS = {
    "ActivationMonitor": lambda: lt.ActivationMonitor(every_n_steps=1),
    "Diagnosis": lambda: lt.Diagnosis(every_n_steps=1),
    "EarlyStopping": lambda: lt.EarlyStopping("val_loss", patience=50),
    "ExactResume": lambda: lt.ExactResume(),
    "LRFinder": lambda: lt.LRFinder(steps=10, update=False),
    "NormMonitor": lambda: lt.NormMonitor(every_n_steps=2),
    "PredictionWriter": lambda: lt.PredictionWriter("out.npz", overwrite=True),
    "Preflight": lambda: lt.Preflight(on_finding="warn"),
    "PruningCallback": lambda: lt.PruningCallback(QuietTrial(), "val_loss"),
    "ReduceLROnPlateau": lambda: lt.ReduceLROnPlateau("val_loss", patience=1, cooldown=1),
    "WeightInit": lambda: lt.WeightInit("auto"),
    "WeightPenalty": lambda: lt.WeightPenalty(l1=1e-3, l2=1e-2, max_norm=3.0),
}
VARIANTS = {
    "EarlyStopping on disk": lambda: lt.EarlyStopping("val_loss", patience=2, keep="disk", restore_optimizer=True),
    "ReduceLROnPlateau restoring": lambda: lt.ReduceLROnPlateau("val_loss", patience=1, restore_best=True),
}
# Those that only look: a run with them ends bit-equal to the run without.
MONITORS = [
    "ActivationMonitor",
    "Diagnosis",
    "EarlyStopping",
    "ExactResume",
    "LRFinder",
    "NormMonitor",
    "Preflight",
    "PruningCallback",
]
MAKE = CALLBACKS | VARIANTS
every_callback = pytest.mark.parametrize("name", MAKE)


def test_every_public_callback_is_listed():
    public = {n for n in lt.__all__ if isinstance(getattr(lt, n), type) and issubclass(getattr(lt, n), Callback)}
    assert public == set(CALLBACKS)


class Module(LightningModule):
    """Dropout and batch norm, so that random streams and buffers matter; the same whatever was run before."""

    def __init__(self, automatic=True, optimizers=1, compiled=False):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.body = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3))
            self.head = nn.Linear(8, 2)
        if compiled:
            self.body = torch.compile(self.body, backend="eager")
        self.automatic_optimization = automatic
        self.number = optimizers

    def forward(self, x):
        return self.head(self.body(x))

    def training_step(self, batch, batch_idx):
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
        self.log("train_loss", loss, on_epoch=True, on_step=False)
        if self.automatic_optimization:
            return loss
        optimizers = self.optimizers()
        optimizers = optimizers if isinstance(optimizers, list) else [optimizers]
        for optimizer in optimizers:
            optimizer.zero_grad()
        self.manual_backward(loss)
        for optimizer in optimizers:
            optimizer.step()
        return None

    def validation_step(self, batch, batch_idx):
        # sync_dist is left out on purpose: decisions must agree all the same.
        self.log("val_loss", nn.functional.cross_entropy(self(batch[0]), batch[1]), on_epoch=True)

    def configure_optimizers(self):
        if self.number == 1:
            return torch.optim.Adam(self.parameters(), lr=0.05)
        return [torch.optim.Adam(self.body.parameters(), lr=0.05), torch.optim.SGD(self.head.parameters(), lr=0.05)]


def loader(seed=0, shuffle=False, batch_size=8):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(32, 4, generator=g)
    return DataLoader(TensorDataset(x, (x[:, 0] > 0).long()), batch_size, shuffle=shuffle)


def fit(callbacks, *, module=None, val=True, ckpt_path=None, **options):
    torch.manual_seed(7)
    module = Module() if module is None else module
    trainer = quiet_trainer(**{"max_epochs": 4, "callbacks": callbacks, **options})
    trainer.fit(module, loader(), loader(1, batch_size=16) if val else None, ckpt_path=ckpt_path)
    return trainer, module


def equal_state(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


SITUATIONS = {
    "plain": {},
    "no validation": {"val": False},
    "mid-epoch validation": {"val_check_interval": 0.5},
    "rare validation": {"check_val_every_n_epoch": 2, "max_epochs": 4},
    "accumulation": {"accumulate_grad_batches": 2, "gradient_clip_val": 0.1},
    "bf16": {"precision": "bf16-mixed"},
    "manual, two optimizers": {"module": lambda: Module(automatic=False, optimizers=2)},
    "compiled": {"module": lambda: Module(compiled=True), "max_epochs": 2},
    "max_steps": {"max_epochs": -1, "max_steps": 5},
    "fast_dev_run": {"fast_dev_run": 2},
}
NEEDS_VALIDATION = {"EarlyStopping", "PruningCallback", "ReduceLROnPlateau"}


@pytest.mark.filterwarnings("ignore:.*You defined a `validation_step` but have no")
@pytest.mark.parametrize("situation", SITUATIONS)
@every_callback
def test_works_in_every_situation(name, situation):
    options = dict(SITUATIONS[situation])
    if situation == "no validation" and name.split()[0] in NEEDS_VALIDATION:
        with pytest.raises(ValueError, match=r"val_loss.*train_loss"):
            fit([MAKE[name]()], **options)
        return
    if situation == "manual, two optimizers" and name == "LRFinder":
        with pytest.raises(UserInputError, match="automatic optimization with one optimizer"):
            fit([MAKE[name]()], **{**options, "module": options["module"]()})
        return
    module = options.pop("module", Module)()
    trainer, module = fit([MAKE[name]()], module=module, **{"max_epochs": 3, **options})
    assert all(torch.isfinite(p).all() for p in module.parameters())
    assert trainer.global_step > 0


@pytest.mark.parametrize("name", MONITORS)
def test_a_monitor_leaves_weights_streams_and_modes_alone(name):
    callback = MAKE[name]()
    if name == "EarlyStopping":
        callback = lt.EarlyStopping("val_loss", patience=50, restore_best=False)
    trainer, watched = fit([callback])
    streams, flags = rng_state(), [m.training for m in watched.modules()]
    bare_trainer, bare = fit([])
    assert equal_state(watched, bare)
    assert flags == [m.training for m in bare.modules()]
    after = rng_state()
    assert torch.equal(streams["torch"], after["torch"])
    assert streams["python"] == after["python"]
    assert torch.equal(streams["numpy"][1], after["numpy"][1])
    a, b = (t.optimizers[0].state_dict()["state"] for t in (trainer, bare_trainer))
    assert all(torch.equal(a[i][key], b[i][key]) for i in b for key in b[i])


@every_callback
def test_a_second_fit_starts_fresh(name):
    used = MAKE[name]()
    fit([used])
    _, again = fit([used])
    _, fresh = fit([MAKE[name]()])
    assert equal_state(again, fresh)


@every_callback
def test_it_pickles_and_copies_before_and_after_a_fit(name):
    callback = MAKE[name]()
    pickle.loads(pickle.dumps(callback))
    fit([callback])
    pickle.loads(pickle.dumps(callback))
    copy.deepcopy(callback)


@every_callback
def test_resume_is_exact_and_the_checkpoint_holds_plain_data(name, tmp_path):
    def callbacks():
        return [MAKE[name](), *([] if name == "ExactResume" else [lt.ExactResume()])]

    _, whole = fit(callbacks(), max_epochs=4)
    trainer, _ = fit(callbacks(), max_epochs=2)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    torch.load(tmp_path / "half.ckpt", weights_only=True)
    torch.manual_seed(99)  # a resumed process starts with other streams
    _, resumed = fit(callbacks(), max_epochs=4, ckpt_path=tmp_path / "half.ckpt")
    assert equal_state(resumed, whole)


@pytest.mark.parametrize("name", [name for name in MAKE if MAKE[name]().state_dict()])
def test_looking_at_another_checkpoint_leaves_what_the_fit_found(name, tmp_path):
    trainer, _ = fit([MAKE[name]()], max_epochs=1)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    callback = MAKE[name]()
    trainer, module = fit([callback], max_epochs=2)
    found = str(callback.state_dict())
    trainer.validate(module, loader(1), ckpt_path=tmp_path / "half.ckpt", verbose=False)
    assert str(callback.state_dict()) == found


def fit_on_rank(rank, name):
    trainer, module = fit([MAKE[name]()], strategy="ddp", devices=2)
    return trainer.global_step, [p.detach().numpy().tolist() for p in module.parameters()]


@every_callback
def test_two_ranks_agree_without_sync_dist(name):
    first, second = run_ranks(fit_on_rank, name)
    assert first == second


def test_all_together_in_any_order():
    names = list(CALLBACKS)
    _, forward = fit([CALLBACKS[n]() for n in names])
    _, backward = fit([CALLBACKS[n]() for n in reversed(names)])
    assert equal_state(forward, backward)
