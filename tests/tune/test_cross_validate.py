"""Cross-validation: what a loop by hand gives, in dataset order, also after a kill and on two ranks."""

import gc
import weakref
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import quiet_trainer, run_ranks
from lightning.pytorch import Callback, LightningModule, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from sklearn.model_selection import (
    KFold,
    LeaveOneOut,
    LeavePGroupsOut,
    RepeatedKFold,
    ShuffleSplit,
    TimeSeriesSplit,
    cross_val_predict,
)
from sklearn.neighbors import KNeighborsClassifier
from wandb_file import WandbRun

from lightning_tricks import MLP, Classifier, TabularDataModule, cross_validate
from lightning_tricks._base import UserInputError, derive_seed
from lightning_tricks.tune.cross_validation._cross_validate import _gather
from lightning_tricks.tune.cross_validation._result import CVResult, FoldResult, count_rows

N = 60
X = np.random.default_rng(0).normal(size=(N, 4))
Y = np.arange(N) % 3
QUARTERS = np.arange(N) % 4
CPU = {"accelerator": "cpu", "devices": 1, "max_epochs": 1, "num_sanity_val_steps": 0, "enable_model_summary": False}
run = partial(cross_validate, trainer=CPU, progress=False)


@pytest.fixture(autouse=True, scope="module")
def _quick_collection():
    """Leave what is imported out of the collections between folds: they take longer than the folds here."""
    gc.freeze()
    yield
    gc.unfreeze()


def table(**options):
    return TabularDataModule(X, Y, batch_size=16, **options)


def classifier():
    return Classifier(MLP(4, 3, hidden_features=(8,), dropout=0.2), num_classes=3)


class Nearest(LightningModule):
    """Nearest neighbour: needs no training, so its predictions are known exactly."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.x, self.y = [], []

    def training_step(self, batch):
        self.x.append(batch[0])
        self.y.append(batch[1])
        return self.weight * 0

    def validation_step(self, batch):
        if self.x:
            self.log("val_acc", (self.predict_step(batch) == batch[1]).float().mean(), batch_size=len(batch[1]))

    def predict_step(self, batch):
        return torch.cat(self.y)[torch.cdist(batch[0], torch.cat(self.x)).argmin(dim=1)]

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_predictions_are_those_of_scikit_learn():
    data = table(scale="none", split_by="random", split=(0.8, 0.2))
    splitter = KFold(5)
    result = cross_validate(Nearest, data, splitter=splitter, trainer=CPU, progress=False)
    # one training sample less may be seen per fold, where a batch would hold it alone
    expected = cross_val_predict(KNeighborsClassifier(1), X, Y, cv=splitter)
    assert result.rows == list(range(N))
    assert result.predictions.tolist() == expected.tolist()
    assert result.mean("val_acc") == pytest.approx((expected == Y).mean())


def test_a_fold_is_the_run_by_hand():
    data = table(seed=3)
    result = run(classifier, data, k=3, seed=5)
    fold = data.folds(3, seed=5)[1]
    seed_everything(derive_seed(5, "fold", 1) % 2**32, verbose=False)
    torch.manual_seed(derive_seed(5, "fold", 1))
    model = classifier()
    trainer = quiet_trainer()
    trainer.fit(model, data.with_split(train=fold.train, val=fold.val))
    by_hand = trainer.validate(model, data.with_split(train=fold.train, val=fold.val), verbose=False)[0]
    assert result.folds[1].scores == by_hand


def test_every_row_is_held_out_once_and_the_test_part_never():
    data = table()
    result = run(classifier, data, k=3)
    held_out = [row for fold in result.folds for row in fold.rows]
    pool = sorted(data.parts["train"].rows + data.parts["val"].rows)
    assert sorted(held_out) == pool == result.rows
    assert result.predictions.shape == (48, 3)
    assert {fold.train_size + len(fold.rows) for fold in result.folds} == {48}
    folds = data.folds(3, include_test=True)
    assert sorted(row for fold in folds for row in fold.val) == list(range(N))


def test_scales_are_learnt_in_each_fold():
    seen = []

    class Look(Callback):
        def on_fit_start(self, trainer, pl_module):
            part = trainer.datamodule.parts["train"]
            seen.append(part.batch(range(len(part)))[0].mean(dim=0))

    run(classifier, table(), k=3, callbacks=lambda: [Look()])
    assert len(seen) == 3
    assert all(mean.abs().max() < 1e-6 for mean in seen)


def test_groups_stay_whole():
    groups = [i // 5 for i in range(N)]
    data = table(groups=groups)
    for fold in data.folds(3):
        assert not {groups[row] for row in fold.train} & {groups[row] for row in fold.val}


def test_time_order_is_kept():
    data = table(time=np.arange(N)[::-1])
    result = run(classifier, data, k=2)
    for fold in data.folds(2):
        assert min(fold.train) > max(fold.val)
    assert len(result.rows) == 32, "the oldest block is only trained on"


def test_repeats_and_repeated_splitters():
    data = table()
    result = run(classifier, data, k=2, repeats=2)
    assert result.predictions.shape == (2, 48, 3)
    assert len(result.folds) == 4
    assert not torch.equal(result.predictions[0], result.predictions[1])
    assert set(result.folds[0].rows) != set(result.folds[2].rows)
    splitter = RepeatedKFold(n_splits=2, n_repeats=2)
    assert run(classifier, data, splitter=splitter).predictions.shape == (2, 48, 3)
    assert run(classifier, data, splitter=splitter, predict=False).repeats == 2


@pytest.mark.parametrize("splitter", [ShuffleSplit(3, random_state=0), LeavePGroupsOut(2)])
def test_scores_alone_may_come_from_any_splitter(splitter):
    data = table(groups=QUARTERS if isinstance(splitter, LeavePGroupsOut) else None, split=(0.5, 0.5))
    folds = data.folds(splitter=splitter)
    result = run(Nearest, data, splitter=splitter, predict=False)
    assert [fold.rows for fold in result.folds] == [fold.val for fold in folds]
    assert result.rows == sorted({row for fold in folds for row in fold.val})
    assert len(result.scores("val_acc")) == len(folds)
    assert (result.predictions, result.repeats) == (None, 1)


def test_a_splitter_in_order_of_time_holds_the_newest_rows_out():
    data = table(split=(0.5, 0.5))
    result = run(Nearest, data, splitter=TimeSeriesSplit(3))
    assert result.rows == list(range(15, N))
    assert len(result.predictions) == 45


def test_global_streams_and_order_of_folds_do_not_matter():
    torch.manual_seed(9)
    before = torch.get_rng_state()
    first = run(classifier, table(), k=2)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(10)
    assert torch.equal(run(classifier, table(), k=2).predictions, first.predictions)
    assert not torch.equal(run(classifier, table(), k=2, seed=1).predictions, first.predictions)


# Resume.


class Killed(BaseException):
    """As a signal: no handler saves anything."""


def test_folds_kept_without_predictions_are_trained_again_for_them(tmp_path):
    whole = run(classifier, table(), k=2)
    assert run(classifier, table(), k=2, predict=False, folder=tmp_path).predictions is None
    assert torch.equal(run(classifier, table(), k=2, folder=tmp_path).predictions, whole.predictions)
    assert run(classifier, table(), k=2, predict=False, folder=tmp_path).predictions is None


def test_a_killed_run_goes_on_with_the_next_fold(tmp_path):
    whole = run(classifier, table(), k=3)
    made = []

    def dies():
        if len(made) == 2:
            raise Killed
        made.append(1)
        return classifier()

    with pytest.raises(Killed):
        run(dies, table(), k=3, folder=tmp_path)
    again = []

    def counts():
        again.append(1)
        return classifier()

    resumed = run(counts, table(), k=3, folder=tmp_path)
    assert len(again) == 1, "the two finished folds are not trained again"
    assert [fold.scores for fold in resumed.folds] == [fold.scores for fold in whole.folds]
    assert torch.equal(resumed.predictions, whole.predictions)


def test_results_of_another_cross_validation_are_refused(tmp_path):
    run(classifier, table(), k=2, folder=tmp_path)
    for options in ({"k": 3}, {"k": 2, "seed": 1}):
        with pytest.raises(UserInputError, match="holds the folds of another cross-validation"):
            run(classifier, table(), folder=tmp_path, **options)


def test_files_load_with_weights_only(tmp_path):
    run(classifier, table(), k=2, folder=tmp_path)
    assert sorted(path.name for path in tmp_path.glob("fold-*.pt")) == ["fold-0.pt", "fold-1.pt"]
    assert torch.load(tmp_path / "fold-0.pt", weights_only=True)["train_size"] == 24


# Fresh things.


def test_callbacks_and_loggers_are_made_anew(tmp_path):
    made = []

    def callbacks():
        made.append(ModelCheckpoint())
        return [made[-1]]

    run(classifier, table(), k=2, callbacks=callbacks, logger=lambda fold: CSVLogger(tmp_path, version=fold))
    assert len(made) == 2
    assert made[0].best_model_path != made[1].best_model_path
    assert len(list(tmp_path.glob("**/metrics.csv"))) == 2


def test_wandb_gets_one_run_per_fold_in_one_group(tmp_path):
    run(classifier, table(), k=2, logger={"project": "p", "save_dir": tmp_path, "group": "mine", "offline": True})
    runs = [WandbRun(folder) for folder in sorted(tmp_path.glob("wandb/offline-run-*"))]
    assert len(runs) == 2
    assert {(one.run.run_group, one.run.display_name) for one in runs} == {("mine", "fold-0"), ("mine", "fold-1")}
    assert all(any("val_loss" in row for row in one.history) for one in runs)


def test_memory_is_given_back_between_folds():
    alive = []

    def make():
        assert sum(ref() is not None for ref in alive) == 0, "the model of the fold before is still there"
        model = classifier()
        alive.append(weakref.ref(model))
        return model

    run(make, table(), k=3)


# Two ranks.


def on_rank(rank):
    options = {"accelerator": "cpu", "devices": 2, "strategy": "ddp", "max_epochs": 2, "num_sanity_val_steps": 0}
    result = cross_validate(classifier, table(), k=2, trainer=options, progress=False)
    scores = [fold.scores for fold in result.folds]
    return scores, result.rows, result.predictions.numpy(), [fold.rows for fold in result.folds]


def test_two_ranks_agree():
    one, two = run_ranks(on_rank)
    assert one[0] == two[0]
    assert one[1] == two[1]
    assert np.array_equal(one[2], two[2])
    probabilities = one[2]
    assert probabilities.shape == (48, 3)
    # accuracy computed from the gathered predictions is the one that the ranks logged together
    rows = one[1]
    correct = {row: probabilities[i].argmax() == Y[row] for i, row in enumerate(rows)}
    for scores, held_out in zip(one[0], one[3], strict=True):
        assert scores["val_acc"] == pytest.approx(np.mean([correct[row] for row in held_out]))


# The result.


def test_standard_errors():
    folds = [FoldResult({"a": score}, list(range(10 * i, 10 * i + 10)), 40, None) for i, score in enumerate((1, 2, 4))]
    result = CVResult.of(folds)
    sd = np.std([1, 2, 4], ddof=1)
    assert result.standard_error("a") == pytest.approx(sd / np.sqrt(3))
    assert result.standard_error("a", corrected=True) == pytest.approx(sd * np.sqrt(1 / 3 + 10 / 40))
    assert result.predictions is None
    with pytest.raises(UserInputError, match="metric must be one of a, but got 'b'"):
        result.mean("b")


def test_one_fold_has_no_standard_error_and_rows_are_counted():
    result = CVResult.of([FoldResult({"val_acc": 1.0}, [0], 1, torch.tensor([1]))], repeats=1)
    with pytest.raises(UserInputError, match="a standard error needs at least 2 folds, but there is 1"):
        result.standard_error("val_acc")
    rows = torch.zeros(3, 2)
    assert [count_rows(each) for each in (rows, {"mean": rows}, (rows, rows))] == [3, 3, 3]


def test_ranks_that_share_a_model_are_refused():
    trainer = SimpleNamespace(world_size=2, distributed_sampler_kwargs={"num_replicas": 1, "rank": 0})
    with pytest.raises(UserInputError, match=r"several ranks share a model\. Use strategy='ddp', or one device"):
        _gather(trainer, {}, [], None)


def test_predictions_may_be_dicts_and_tuples():
    def folds(wrap):
        return [FoldResult({}, rows, 2, wrap(torch.tensor(rows))) for rows in ([3, 1], [0, 2])]

    assert CVResult.of(folds(lambda t: {"mean": t, "std": -t})).predictions["std"].tolist() == [0, -1, -2, -3]
    assert CVResult.of(folds(lambda t: (t, t + 1))).predictions[1].tolist() == [1, 2, 3, 4]


def test_without_predictions():
    result = run(classifier, table(), k=2, predict=False)
    assert result.predictions is None
    assert {"val_acc", "val_loss"} <= set(result.metrics)


# Bad input.


class Silent(Nearest):
    predict_step = LightningModule.predict_step


class Wordy(Nearest):
    def validation_step(self, batch):
        pass

    def predict_step(self, batch):
        return "yes"


class Short(Wordy):
    def predict_step(self, batch):
        return batch[1][:1]


model = classifier()
QUARTERED = table(groups=QUARTERS, split=(0.5, 0.5))


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (classifier(), {}, "must be a function that returns a new model, but got Classifier"),
        (lambda: model, {}, "it returned the same one twice"),
        (lambda: None, {}, "must return a LightningModule, but it returned a NoneType"),
        (Silent, {}, "Silent has no predict_step"),
        (Wordy, {}, "it returned a str"),
        (Short, {}, "it returned 1 for 24 samples|it returned 2 for 24 samples"),
        (classifier, {"data": X}, "but got ndarray. Wrap datasets"),
        (classifier, {"callbacks": [ModelCheckpoint()]}, "callbacks must be a function"),
        (classifier, {"logger": CSVLogger("x")}, "logger must be a function .* but got CSVLogger"),
        (classifier, {"logger": True}, "logger must be a function"),
        (classifier, {"trainer": {"callbacks": []}}, "callbacks are made anew for each fold"),
        (classifier, {"k": 1}, r"k must be in \[2"),
        (classifier, {"k": 20}, "20 stratified folds need at least 20 samples of each class, but class 0 has 16"),
        (classifier, {"splitter": 3}, r"needs a method split\(X, y, groups\)"),
        (classifier, {"splitter": ShuffleSplit(3, random_state=0)}, "every row out exactly once.* but ShuffleSplit"),
        (Nearest, {"splitter": LeavePGroupsOut(2), "data": QUARTERED}, "but LeavePGroupsOut does not.* predict=False"),
    ],
)
def test_bad_input_gets_a_sentence(make, options, message):
    options = {"data": table(), "k": 2, **options}
    data = options.pop("data")
    with pytest.raises(UserInputError, match=message):
        run(make, data, **options)


def test_a_bar_counts_the_folds(capsys):
    cross_validate(Nearest, table(), k=2, trainer=CPU)
    shown = capsys.readouterr().err
    assert "folds: 100%" in shown
    assert "2/2" in shown
    run(Nearest, table(), k=2)
    assert "folds" not in capsys.readouterr().err


def test_leave_one_out_is_allowed():
    data = TabularDataModule(X[:4], Y[:4], split=(0.5, 0.5), split_by="random")
    assert len(run(Nearest, data, splitter=LeaveOneOut(), include_test=True).folds) == 4


def test_wandb_logger_instances_are_refused():
    with pytest.raises(UserInputError, match="but got WandbLogger"):
        run(classifier, table(), logger=WandbLogger(offline=True))
