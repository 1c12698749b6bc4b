"""Faults of the usual classes, each as a small run: what theirs does, what ours does, what is right.

Used by the tests, which demand ``ours == right != theirs``, and by the script that writes the page of peers.
"""

import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from helpers import quiet_trainer, run_ranks
from lightning.pytorch import Callback, seed_everything
from lightning.pytorch.callbacks import EarlyStopping as TheirStopping
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from stopping_models import Noisy, Scripted, dots, noise
from torch.optim.lr_scheduler import ReduceLROnPlateau as TheirPlateau

import lightning_tricks as lt


@dataclass(frozen=True)
class Fault:
    """One row of the table: what goes wrong, with whose class, and the three answers."""

    what: str
    peer: str
    run: Callable[[], tuple[str, str, str]]


class WithScheduler(Scripted):
    """Lightning's way to a plateau: a scheduler in ``configure_optimizers``."""

    def __init__(self, script, *, strict=False, **plateau):
        super().__init__(script)
        self.plateau, self.strict = {"factor": 0.5, **plateau}, strict

    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        self.scheduler = TheirPlateau(optimizer, **self.plateau)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": self.scheduler, "monitor": "val_loss", "strict": self.strict},
        }


def fit(module, callbacks=(), *, train=None, val=None, ckpt=None, **options):
    seed_everything(3, verbose=False)
    trainer = quiet_trainer(callbacks=list(callbacks), **{"max_epochs": 12, **options})
    trainer.fit(module, train or dots(), val or dots(), ckpt_path=ckpt)
    return trainer


def last_rate(module):
    return f"learning rate {module.optimizers().param_groups[0]['lr']:g}"


def better_and_better(module):
    return 10.0 - module.current_epoch


def stale_values():
    options = {"check_val_every_n_epoch": 3, "max_epochs": 9}
    theirs, ours = WithScheduler(better_and_better, patience=1), Scripted(better_and_better)
    fit(theirs, **options)
    fit(ours, [lt.ReduceLROnPlateau("val_loss", factor=0.5, patience=1)], **options)
    return last_rate(theirs), last_rate(ours), "learning rate 0.1"


def rare_validation_is_no_error():
    options = {"check_val_every_n_epoch": 3, "max_epochs": 6}
    try:
        fit(WithScheduler(better_and_better, strict=True), **options)
        theirs = "trained 6 epochs"
    except MisconfigurationException:
        theirs = "error in epoch 0"
    ours = Scripted(better_and_better)
    fit(ours, [lt.ReduceLROnPlateau("val_loss")], **options)
    return theirs, f"trained {ours.epochs_trained} epochs", "trained 6 epochs"


def plateau_resumed():
    def rates(make, callbacks):
        with tempfile.TemporaryDirectory() as folder:

            def saver():
                return ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1)

            whole, resumed = make(), make()
            fit(whole, [*callbacks(), saver()], max_epochs=8, enable_checkpointing=True)
            ckpt = Path(folder) / "epoch=3.ckpt"
            fit(resumed, [*callbacks(), saver()], max_epochs=8, enable_checkpointing=True, ckpt=ckpt)
        return "another curve" if resumed.rates != whole.rates[-len(resumed.rates) :] else "the same curve"

    def flat(module):
        return 1.0

    theirs = rates(lambda: WithScheduler(flat, patience=1), list)
    ours = rates(lambda: Scripted(flat), lambda: [lt.ReduceLROnPlateau("val_loss", factor=0.5, patience=1)])
    return theirs, ours, "the same curve"


def recovered_run_is_stopped():
    curve = [1.0, 2.0, 2.0, 0.9, 0.8, 0.7, 0.6, 0.5]
    theirs, ours = Scripted(curve), Scripted(curve)
    fit(theirs, [TheirStopping("val_loss", patience=2)], min_epochs=5, max_epochs=8)
    fit(ours, [lt.EarlyStopping("val_loss", patience=2)], min_epochs=5, max_epochs=8)
    return f"{theirs.epochs_trained} epochs", f"{ours.epochs_trained} epochs", "8 epochs"


def state_leaks_into_the_next_fit():
    def second(stopping):
        fit(Scripted([0.1] * 9), [stopping], max_epochs=9)
        module = Scripted(better_and_better)
        fit(module, [stopping], max_epochs=5)
        return f"{module.epochs_trained} epochs"

    return second(TheirStopping("val_loss", patience=3)), second(lt.EarlyStopping("val_loss", patience=3)), "5 epochs"


def _resumed(module, before, after, *, length, max_epochs, epoch):
    with tempfile.TemporaryDirectory() as folder:
        saver = ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1)
        fit(module(), [before, saver], max_epochs=length, enable_checkpointing=True)
        again = module()
        again.epochs_trained = 0
        fit(again, [after], max_epochs=max_epochs, ckpt=Path(folder) / f"epoch={epoch}.ckpt")
    return again


def resume_overwrites_new_patience():
    def patience(make):
        stopping = make(50)
        _resumed(lambda: Scripted([1.0] * 9), make(3), stopping, length=2, max_epochs=3, epoch=1)
        return f"patience {stopping.patience}"

    theirs = patience(lambda n: TheirStopping("val_loss", patience=n))
    return theirs, patience(lambda n: lt.EarlyStopping("val_loss", patience=n)), "patience 50"


def resume_overwrites_new_factor():
    scheduler = TheirPlateau(torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1), factor=0.5)
    scheduler.load_state_dict(
        TheirPlateau(torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1), factor=0.1).state_dict()
    )
    ours = lt.ReduceLROnPlateau("val_loss", factor=0.5)
    ours.load_state_dict(lt.ReduceLROnPlateau("val_loss", factor=0.1).state_dict())
    return f"factor {scheduler.factor}", f"factor {ours.factor}", "factor 0.5"


def stopped_run_goes_on():
    def epochs_more(make):
        module = _resumed(lambda: Scripted([1.0] * 20), make(), make(), length=20, max_epochs=20, epoch=3)
        return f"{max(0, module.epochs_trained - 4)} epochs more"

    theirs = epochs_more(lambda: TheirStopping("val_loss", patience=3))
    return theirs, epochs_more(lambda: lt.EarlyStopping("val_loss", patience=3)), "0 epochs more"


class LocalValues(Scripted):
    def on_validation_epoch_end(self):
        if not self.trainer.sanity_checking:
            curves = ([3.0, 2.0, 1.0, math.nan], [3.0, 1.0, 2.0, 2.0])
            self.log("val_loss", torch.tensor(curves[self.global_rank][self.current_epoch]))


def _on_a_rank(rank):
    import warnings

    warnings.simplefilter("ignore")
    answers = []
    for stopping in (TheirStopping("val_loss", patience=5), lt.EarlyStopping("val_loss", patience=5)):
        fit(LocalValues([]), [stopping], max_epochs=4, strategy="ddp", devices=2, num_sanity_val_steps=0)
        answers.append((float(stopping.best_score), stopping.stopping_reason.name))
    return answers


def ranks_disagree():
    one, other = run_ranks(_on_a_rank)
    theirs, ours = ("agree" if a == b else "disagree" for a, b in zip(one, other, strict=True))
    return theirs, ours, "agree"


class Late(Scripted):
    """Logs where Lightning lets only early stopping and checkpoints see it in time."""

    def on_train_epoch_end(self):
        self.log("late", torch.tensor([3.0, 2.0, 9.0, 9.0][self.current_epoch]))


def values_of_the_epoch_before():
    class Reader(Callback):
        def __init__(self):
            self.seen = []

        def on_train_epoch_end(self, trainer, module):
            self.seen.append(float(trainer.callback_metrics.get("late", math.nan)))

    reader, plateau = Reader(), lt.ReduceLROnPlateau("late", patience=0, factor=0.5)
    module = Late(lambda m: None)
    fit(module, [reader, plateau], max_epochs=4)
    theirs = "in time" if reader.seen[2] == 9.0 else "one epoch late"
    return theirs, "in time" if module.rates[6] == 0.05 else "too late", "in time"


class NaiveBest(Callback):
    """What a first draft of restore-best looks like."""

    def __init__(self):
        self.score, self.weights = math.inf, {}

    def on_validation_end(self, trainer, module):
        value = float(trainer.callback_metrics.get("val_loss", math.inf))
        if not trainer.sanity_checking and value < self.score:
            self.score, self.weights = value, {k: v.clone() for k, v in module.state_dict().items()}

    def on_train_end(self, trainer, module):
        module.load_state_dict(self.weights)


def averaged_weights():
    def check(callback, score):
        module = Noisy()
        options = {"train": noise(0, shuffle=True), "val": noise(1)}
        trainer = fit(module, [callback, EMAWeightAveraging(decay=0.8)], max_epochs=8, **options)
        value = trainer.validate(module, noise(1), verbose=False)[0]["val_loss"]
        return "the best value" if math.isclose(value, score(), abs_tol=1e-6) else "another value"

    naive, stopping = NaiveBest(), lt.EarlyStopping("val_loss", patience=9)
    theirs = check(naive, lambda: naive.score)
    return theirs, check(stopping, lambda: float(stopping.best_score)), "the best value"


def negative_metric():
    def verdict(rate):
        return "worse" if rate < 1 else "better"

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = TheirPlateau(optimizer, patience=0, threshold=0.1)
    for value in (-1.0, -0.95):
        scheduler.step(value)
    ours = lt.ReduceLROnPlateau("val_loss", patience=0, threshold=0.1).simulate([-1.0, -0.95])
    return verdict(optimizer.param_groups[0]["lr"]), verdict(ours[-1]), "worse"


def first_value_is_nan():
    """Keras' comparison, with the first value taken as it comes, keeps a NaN for ever."""
    best = math.nan
    for value in (2.0, 1.0):
        best = value if value < best else best
    rule = lt.EarlyStopping("val_loss", patience=5, nan="count").rules["val_loss"]
    for value in (math.nan, 2.0, 1.0):
        rule.update(value)
    return f"best {best}", f"best {rule.best}", "best 1.0"


def wrong_sign_in_the_message():
    theirs = TheirStopping("val_loss", divergence_threshold=5.0)
    fit(Scripted([1.0, 9.0, 9.0]), [theirs], max_epochs=3)
    ours = lt.EarlyStopping("val_loss", patience=3, divergence_threshold=5.0)
    fit(Scripted([1.0, 9.0, 9.0]), [ours], max_epochs=3)
    says = [
        "9 < 5" if "9.0 < 5.0" in (theirs.stopping_reason_message or "") else "9 is worse than 5",
        "9 is worse than 5" if "val_loss = 9 is worse than" in ours.message else "something else",
    ]
    return says[0], says[1], "9 is worse than 5"


def min_delta_reads_back_negated():
    theirs, ours = TheirStopping("val_loss", min_delta=0.1), lt.EarlyStopping("val_loss", patience=3, min_delta=0.1)
    return f"{theirs.min_delta}", f"{ours.min_delta}", "0.1"


FAULTS = [
    Fault("Validation every 3 epochs, better each time, `patience=1`", "Lightning + torch plateau", stale_values),
    Fault("Validation every 3 epochs, default `strict`", "Lightning + torch plateau", rare_validation_is_no_error),
    Fault("Learning rates after a resume", "Lightning + torch plateau", plateau_resumed),
    Fault(
        "A run held by `min_epochs=5` recovers; 8 epochs asked for", "Lightning EarlyStopping", recovered_run_is_stopped
    ),
    Fault(
        "The callback is used for a second, improving run of 5 epochs",
        "Lightning EarlyStopping",
        state_leaks_into_the_next_fit,
    ),
    Fault("Resume with `patience=50`, saved with 3", "Lightning EarlyStopping", resume_overwrites_new_patience),
    Fault("Resume with `factor=0.5`, saved with 0.1", "torch plateau", resume_overwrites_new_factor),
    Fault("A run that had stopped early is resumed", "Lightning EarlyStopping", stopped_run_goes_on),
    Fault("Two ranks without `sync_dist`: best value and reason", "Lightning EarlyStopping", ranks_disagree),
    Fault("A metric logged in the module's `on_train_epoch_end`", "any plain `Callback`", values_of_the_epoch_before),
    Fault(
        "Restore the best with `WeightAveraging`: validating gives", "a plain restore-best callback", averaged_weights
    ),
    Fault("-0.95 after -1.0, `mode='min'`, relative threshold 0.1", "torch plateau", negative_metric),
    Fault("First value NaN, then 2.0 and 1.0", "Keras' rule", first_value_is_nan),
    Fault(
        "`divergence_threshold=5` and a loss of 9: the message says",
        "Lightning EarlyStopping",
        wrong_sign_in_the_message,
    ),
    Fault("`min_delta=0.1` reads back as", "Lightning EarlyStopping", min_delta_reads_back_negated),
]
