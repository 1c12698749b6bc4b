"""Our pruning callback: any trial, one report per validation, all ranks together."""

import optuna
import pytest
import torch
from helpers import quiet_trainer, run_ranks
from lightning.pytorch import LightningModule
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from torch.utils.data import DataLoader, TensorDataset

from lightning_tricks import PruningCallback
from lightning_tricks._base import MissingMetricError, UserInputError

optuna.logging.set_verbosity(optuna.logging.ERROR)


class Scripted(LightningModule):
    """Logs given values, one per validation."""

    def __init__(self, values, only_rank=None):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.values, self.at, self.only_rank = values, 0, only_rank

    def training_step(self, batch, batch_idx):
        return self.weight * batch[0].sum()

    def validation_step(self, batch, batch_idx):
        pass

    def on_validation_epoch_end(self):
        if self.trainer.sanity_checking or self.only_rank not in (None, self.trainer.global_rank):
            return
        self.log("val_loss", torch.tensor(self.values[self.at]), sync_dist=False)
        self.at += 1

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


class TrainOnly(Scripted):
    validation_step = LightningModule.validation_step
    on_validation_epoch_end = LightningModule.on_validation_epoch_end

    def training_step(self, batch, batch_idx):
        self.log("train_loss", torch.tensor(5.0 - self.trainer.current_epoch), on_step=False, on_epoch=True)
        return self.weight * batch[0].sum()


class Recorder:
    def __init__(self, prune_at=None):
        self.reports, self.prune_at = [], prune_at

    def report(self, value, step):
        self.reports.append((step, round(value, 4)))

    def should_prune(self):
        return len(self.reports) == self.prune_at


def batches():
    return DataLoader(TensorDataset(torch.zeros(8, 1)), 2)


def fit(values, callback, **options):
    trainer = quiet_trainer(max_epochs=len(values), callbacks=[callback], **options)
    trainer.fit(Scripted(values), batches(), batches())
    return trainer


def test_one_report_per_validation_without_the_sanity_check_and_the_best_counts():
    callback = PruningCallback(Recorder(), "val_loss")
    fit([3.0, float("nan"), 1.0, 2.0], callback, num_sanity_val_steps=1)
    steps = [step for step, _ in callback.trial.reports]
    assert steps == [0, 1, 2, 3]
    assert [value for _, value in callback.trial.reports][2:] == [1.0, 2.0]
    assert (callback.best_value, callback.best_epoch, callback.pruned) == (1.0, 2, False)
    callback.raise_if_pruned()


def test_several_validations_in_an_epoch_are_steps_of_their_own():
    callback = PruningCallback(Recorder(), "val_loss")
    trainer = quiet_trainer(max_epochs=2, callbacks=[callback], val_check_interval=0.5)
    trainer.fit(Scripted([4.0, 3.0, 2.0, 1.0]), batches(), batches())
    assert callback.trial.reports == [(0, 4.0), (1, 3.0), (2, 2.0), (3, 1.0)]


def test_pruned_run_stops_and_tells_optuna():
    callback = PruningCallback(Recorder(prune_at=2), "val_loss")
    trainer = fit([1.0, 2.0, 3.0, 4.0], callback)
    assert trainer.current_epoch == 2
    with pytest.raises(optuna.TrialPruned, match="after 2 validations"):
        callback.raise_if_pruned()


def test_larger_may_be_better():
    callback = PruningCallback(Recorder(), "val_loss", mode="max")
    fit([3.0, 5.0, 1.0], callback)
    assert (callback.best_value, callback.best_epoch) == (5.0, 1)


def test_second_fit_starts_fresh_and_a_resumed_one_goes_on(tmp_path):
    callback = PruningCallback(Recorder(), "val_loss")
    fit([3.0, 1.0], callback)
    fit([2.0], callback)
    assert (callback.validations, callback.best_value) == (1, 2.0)
    trainer = fit([3.0, 1.0], callback)
    trainer.save_checkpoint(tmp_path / "c.ckpt")
    torch.load(tmp_path / "c.ckpt", weights_only=True)
    resumed = PruningCallback(Recorder(), "val_loss")
    trainer = quiet_trainer(max_epochs=3, callbacks=[resumed])
    trainer.fit(Scripted([2.0]), batches(), batches(), ckpt_path=tmp_path / "c.ckpt", weights_only=True)
    assert resumed.trial.reports == [(2, 2.0)]
    assert resumed.best_value == 1.0


def test_real_trial_in_a_journal_is_pruned(tmp_path):
    storage = JournalStorage(JournalFileBackend(str(tmp_path / "j")))
    study = optuna.create_study(storage=storage, pruner=optuna.pruners.ThresholdPruner(upper=2.5))

    def objective(trial):
        callback = PruningCallback(trial, "val_loss")
        fit([1.0 + trial.number, 2.0 + trial.number, 3.0 + trial.number], callback)
        callback.raise_if_pruned()
        return callback.best_value

    study.optimize(objective, n_trials=2)
    assert [t.state.name for t in study.trials] == ["PRUNED", "PRUNED"]
    assert [len(t.intermediate_values) for t in study.trials] == [3, 2]


def rank_stops(rank):
    callback = PruningCallback(Recorder(prune_at=2) if rank == 0 else Untouchable(), "val_loss")
    trainer = quiet_trainer(max_epochs=4, callbacks=[callback], strategy="ddp", devices=2)
    trainer.fit(Scripted([1.0 + rank, 2.0, 3.0, 4.0]), batches(), batches())
    return trainer.current_epoch, callback.pruned, callback.best_value


class Untouchable:
    """The trial of a rank that must not talk to it."""

    def report(self, value, step):
        raise AssertionError("rank 1 reported")

    should_prune = report


def test_ranks_stop_together_by_what_rank_zero_says():
    assert run_ranks(rank_stops) == [(2, True, 1.0)] * 2


def rank_misses(rank):
    callback = PruningCallback(Recorder(), "val_loss")
    trainer = quiet_trainer(max_epochs=2, callbacks=[callback], strategy="ddp", devices=2)
    try:
        trainer.fit(Scripted([1.0, 2.0], only_rank=1), batches(), batches())
    except MissingMetricError as error:
        return str(error)
    return "no error"


def test_metric_missing_on_rank_zero_is_an_error_on_both():
    first, second = run_ranks(rank_misses)
    assert first == second
    assert "was not logged" in first


def test_bad_input_gets_a_sentence():
    with pytest.raises(UserInputError, match="trial must have report"):
        PruningCallback(None, "val_loss")
    with pytest.raises(UserInputError, match="mode must be one of"):
        PruningCallback(Recorder(), "val_loss", mode="less")
    with pytest.raises(
        MissingMetricError, match=r"'val_acc', but that metric was not logged\. Logged so far: val_loss"
    ):
        fit([1.0], PruningCallback(Recorder(), "val_acc"))


def test_without_a_validation_loop_epochs_are_reported_or_the_metrics_named():
    callback = PruningCallback(Recorder(prune_at=2), "train_loss")
    trainer = quiet_trainer(max_epochs=4, callbacks=[callback])
    trainer.fit(TrainOnly([]), batches())
    assert callback.trial.reports == [(0, 5.0), (1, 4.0)]
    assert (callback.pruned, trainer.current_epoch) == (True, 2)
    with pytest.raises(MissingMetricError, match=r"'val_loss', but .* not logged\. Logged so far: train_loss"):
        quiet_trainer(callbacks=[PruningCallback(Recorder(), "val_loss")]).fit(TrainOnly([]), batches())
    trainer = quiet_trainer(callbacks=[PruningCallback(Recorder(), "val_loss")], limit_val_batches=0)
    with pytest.raises(MissingMetricError, match=r"not logged\. Logged so far: none yet"):
        trainer.fit(Scripted([1.0]), batches(), batches())


def test_run_that_ends_before_its_first_validation_is_an_error():
    callback = PruningCallback(Recorder(), "val_loss")
    trainer = quiet_trainer(max_epochs=2, callbacks=[callback], check_val_every_n_epoch=5)
    with pytest.raises(MissingMetricError, match="ended before any validation"):
        trainer.fit(Scripted([1.0]), batches(), batches())
