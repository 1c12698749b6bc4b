"""What all DataModules share: order, ranks, resume, parts."""

import math

import pytest
import torch
from helpers import quiet_trainer, run_ranks
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import Dataset

from lightning_tricks import MLP, Classifier, DigitsDataModule, ExactResume, ImageDataModule
from lightning_tricks._base import UserInputError, isolated_rng
from lightning_tricks.data._datamodule import SplitDataModule
from lightning_tricks.data._loading import (
    BatchKeys,
    Part,
    TensorSource,
    bucketed,
    evaluation_batches,
    make_loader,
    shuffled,
    training_batches,
)


class Rows(SplitDataModule):
    """Each sample is its own row number."""

    def __init__(self, n=50, **options):
        super().__init__(**options)
        self.n = n

    def _open(self):
        return TensorSource(torch.arange(self.n), torch.zeros(self.n))

    def _fit(self, opened, train):
        return opened


class Recorder(LightningModule):
    """Remembers which rows it was trained on, epoch by epoch, and has one weight that depends on their order."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen = []
        self.evaluated = []

    def training_step(self, batch):
        rows = batch[0]
        self.seen.append((self.trainer.current_epoch, rows.tolist()))
        return (self.weight * 0.9 - rows.float().mean()) ** 2

    def validation_step(self, batch):
        self.evaluated.append(batch[0].tolist())

    def test_step(self, batch):
        self.evaluated.append(batch[0].tolist())

    def predict_step(self, batch):
        return batch[0]

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


def flat(batches):
    return [row for batch in batches for row in batch]


sizes = st.tuples(st.integers(1, 300), st.integers(1, 40), st.integers(1, 4))


@settings(max_examples=150, deadline=None)
@given(sizes)
def test_training_deals_each_sample_once_and_never_one_alone(given_sizes):
    n, batch_size, ranks = given_sizes
    if n < ranks:
        with pytest.raises(UserInputError, match=f"at least {ranks} training samples"):
            training_batches(range(n), batch_size, ranks=ranks)
        return
    dealt = [training_batches(range(n), batch_size, rank=r, ranks=ranks) for r in range(ranks)]
    assert len({len(batches) for batches in dealt}) == 1, "a rank with fewer batches hangs the others"
    rows = [row for batches in dealt for row in flat(batches)]
    assert len(rows) == len(set(rows))
    assert n - len(rows) < 2 * ranks
    sizes = [len(batch) for batches in dealt for batch in batches]
    assert max(sizes) <= batch_size
    if batch_size > 1 and n // ranks >= batch_size:
        assert min(sizes) > 1
    if 1 not in {n // ranks % batch_size, math.ceil(n / ranks) % batch_size} and batch_size > 1:
        assert len(rows) == n


@settings(max_examples=150, deadline=None)
@given(sizes)
def test_evaluation_deals_all_samples_with_equally_many_batches(given_sizes):
    n, batch_size, ranks = given_sizes
    dealt = [evaluation_batches(n, batch_size, rank=r, ranks=ranks) for r in range(ranks)]
    assert len({len(batches) for batches in dealt}) == 1
    rows = [row for batches in dealt for row in flat(batches)]
    assert set(rows) == set(range(n))
    assert max(len(batch) for batches in dealt for batch in batches) <= batch_size
    assert min(len(batch) for batches in dealt for batch in batches) >= 1
    if n >= ranks and batch_size > 1:
        assert len(rows) == n, "a sample counts twice"


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=400), st.integers(1, 16))
def test_buckets_are_a_permutation(lengths, batch):
    order = shuffled(len(lengths), seed=0, epoch=3)
    assert sorted(bucketed(order, lengths, batch, seed=0, epoch=3)) == list(range(len(lengths)))


def test_buckets_hold_similar_lengths():
    lengths = torch.randint(1, 100, (1000,)).tolist()
    order = shuffled(1000, seed=0, epoch=0)

    def padding(rows):
        chunks = [[lengths[i] for i in rows[start : start + 20]] for start in range(0, 1000, 20)]
        return sum(max(chunk) * len(chunk) - sum(chunk) for chunk in chunks) / sum(lengths)

    assert padding(order) > 0.8
    assert padding(bucketed(order, lengths, 20, seed=0, epoch=0)) < 0.1


def test_the_order_depends_on_seed_and_epoch_alone():
    torch.manual_seed(1)
    first = shuffled(20, seed=0, epoch=1)
    torch.manual_seed(2)
    assert shuffled(20, seed=0, epoch=1) == first
    assert shuffled(20, seed=0, epoch=2) != first
    assert shuffled(20, seed=1, epoch=1) != first
    assert len({shuffled(20, seed=0, epoch=1)[0], *first}) == 20


def test_loading_moves_no_global_stream():
    data = Rows(num_workers=0)
    before = torch.get_rng_state()
    for loader in (data.train_dataloader(), data.val_dataloader(), data.predict_dataloader()):
        list(loader)
    assert torch.equal(before, torch.get_rng_state())


def test_without_a_trainer_the_next_pass_is_the_next_epoch():
    loader = Rows(batch_size=10).train_dataloader()
    first, second = (flat(rows.tolist() for rows, _ in loader) for _ in range(2))
    assert sorted(first) == sorted(second)
    assert first != second


class WorkerNoise(Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, key):
        return torch.rand(1)


def test_workers_are_seeded():
    def draws(seed):
        keys = BatchKeys(8, 2, shuffle=True, seed=seed)
        return torch.stack(list(make_loader(WorkerNoise(), keys, num_workers=2, pin_memory=False)))

    first = draws(0)
    assert torch.equal(draws(0), first)
    assert not torch.equal(draws(1), first)


# Resume.

without_the_saver = pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")


def fit(path=None, *, callbacks=(), epochs=4, **options):
    model = Recorder()
    trainer = quiet_trainer(
        max_epochs=epochs,
        callbacks=list(callbacks),
        enable_checkpointing=bool(callbacks),
        **{key: options.pop(key) for key in ("limit_train_batches", "val_check_interval") if key in options},
    )
    trainer.fit(model, Rows(batch_size=7, **options), ckpt_path=path)
    return model


@without_the_saver
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    "when", [{"every_n_train_steps": 6}, {"every_n_epochs": 1, "save_on_train_epoch_end": True}, {"every_n_epochs": 1}]
)
def test_a_resumed_run_sees_what_the_uninterrupted_one_saw(tmp_path, when, workers):
    saver = ModelCheckpoint(dirpath=tmp_path, save_top_k=-1, filename="{step}", **when)
    whole = fit(callbacks=[saver], num_workers=workers)
    assert len({tuple(flat(rows for e, rows in whole.seen if e == epoch)) for epoch in range(4)}) == 4
    for step in (6, 12) if "every_n_train_steps" in when else (5, 10):
        rest = fit(tmp_path / f"step={step}.ckpt", num_workers=workers)
        assert rest.seen == whole.seen[step:], f"resumed at step {step}"
        assert torch.equal(rest.weight, whole.weight)


@without_the_saver
def test_resume_with_half_epochs_and_validation_in_between(tmp_path):
    options = {"limit_train_batches": 4, "val_check_interval": 0.5}
    saver = ModelCheckpoint(dirpath=tmp_path, save_top_k=-1, every_n_train_steps=3, filename="{step}")
    whole = fit(callbacks=[saver], **options)
    for step in (3, 6, 9):
        assert fit(tmp_path / f"step={step}.ckpt", **options).seen == whole.seen[step:]


def test_checkpoint_loads_with_weights_only(tmp_path):
    trainer = quiet_trainer()
    data = DigitsDataModule()
    trainer.fit(Recorder(), data)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    state = torch.load(tmp_path / "a.ckpt", weights_only=True)
    assert state["DigitsDataModule"]["parts"] == data.fingerprint()


def test_resume_with_another_split_is_said(tmp_path):
    trainer = quiet_trainer()
    trainer.fit(Recorder(), Rows())
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    with pytest.warns(UserWarning, match=r"another split .* \(it had seed=0\)"):
        quiet_trainer(max_epochs=2).fit(Recorder(), Rows(seed=1), ckpt_path=tmp_path / "a.ckpt")


def test_resume_in_mid_epoch_with_another_batch_size_goes_on_at_the_same_sample():
    loader = Rows(batch_size=10).train_dataloader()
    seen = []
    for rows, _ in loader:
        seen += rows.tolist()
        if len(seen) == 20:
            break
    other = Rows(batch_size=5).train_dataloader()
    other.load_state_dict(loader.state_dict())
    with pytest.warns(UserWarning, match="had 10 samples per step, now there are 5"):
        seen += flat(rows.tolist() for rows, _ in other)
    assert sorted(seen) == sorted(flat(rows.tolist() for rows, _ in Rows(batch_size=10).train_dataloader()))


@without_the_saver
@pytest.mark.parametrize("step", [5, 17, 20])
def test_exact_resume_with_dropout_and_augmentation(tmp_path, step):
    images = torch.randint(256, (100, 1, 6, 6), dtype=torch.uint8)

    def go(path=None, *callbacks):
        data = ImageDataModule.from_arrays(images, torch.arange(100) % 2, batch_size=6, augment="standard")
        with isolated_rng(seed=1):
            model = Classifier(MLP(36, 2, hidden_features=(8,), dropout=0.5), num_classes=2)
        trainer = quiet_trainer(
            max_epochs=3,
            limit_val_batches=0,  # Lightning skips a validation that is due right behind a checkpoint
            callbacks=[ExactResume(), *callbacks],
            enable_checkpointing=bool(callbacks),
        )
        trainer.fit(model, data, ckpt_path=path)
        return torch.nn.utils.parameters_to_vector(model.parameters())

    whole = go(None, ModelCheckpoint(dirpath=tmp_path, save_top_k=-1, every_n_train_steps=1, filename="{step}"))
    torch.manual_seed(99)
    assert torch.equal(go(tmp_path / f"step={step}.ckpt"), whole)


# Lightning's switches.


def test_overfit_batches_repeats_the_same_samples():
    model = Recorder()
    quiet_trainer(overfit_batches=1, max_epochs=3).fit(model, Rows(batch_size=5))
    assert len({tuple(rows) for _, rows in model.seen}) == 1
    assert len(model.seen) == 3


def test_predict_gives_every_test_row_with_its_index():
    data = Rows(batch_size=4)
    trainer = quiet_trainer()
    rows = torch.cat(trainer.predict(Recorder(), data))
    assert rows.tolist() == data.parts["test"].rows


def two_ranks(rank, batch_size, workers):
    data = Rows(51, batch_size=batch_size, num_workers=workers)
    model = Recorder()
    trainer = quiet_trainer(strategy="ddp", devices=2, max_epochs=2, num_sanity_val_steps=0)
    trainer.fit(model, data)
    trained, model.evaluated[:] = model.seen, []
    trainer.test(model, data)
    predicted = torch.cat(trainer.predict(model, data)).tolist()
    return trained, model.evaluated, predicted, data.parts["train"].rows, data.parts["test"].rows


@pytest.mark.parametrize(("batch_size", "workers"), [(4, 0), (5, 1)])
def test_two_ranks_share_the_data(batch_size, workers):
    one, two = run_ranks(two_ranks, batch_size, workers)
    train, test = one[3], one[4]
    assert two[3:] == (train, test)
    for epoch in range(2):
        rows = [flat(batch for e, batch in result[0] if e == epoch) for result in (one, two)]
        together = rows[0] + rows[1]
        assert len(set(together)) == len(together), "a sample was trained on twice in an epoch"
        assert set(together) <= set(train)
        assert len(train) - len(together) < 4
    assert sorted(flat(one[1]) + flat(two[1])) == sorted(test), "each sample is tested on once"
    assert sorted(one[2] + two[2]) == sorted(test), "each sample is predicted once"


# Parts.


def test_given_rows_are_kept():
    data = Rows(10, split={"train": [0, 2, 4], "val": [1, 3]})
    data.setup()
    assert {name: part.rows for name, part in data.parts.items()} == {"train": [0, 2, 4], "val": [1, 3]}
    with pytest.raises(UserInputError, match="no test part, only train, val"):
        data.test_dataloader()


def test_with_split_learns_anew():
    data = DigitsDataModule()
    data.setup()
    fold = data.with_split(train=range(100), val=range(100, 200))
    fold.setup()
    assert fold.parts["train"].rows == list(range(100))
    x = fold.parts["train"].batch(range(100))[0]
    assert abs(x.mean()) < 1e-5
    assert abs(x.std() - 1) < 1e-5
    assert len(data.parts["train"]) == 1077


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": (0.6, 0.3)}, r"must sum to 1, but \(0.6, 0.3\) sum to 0.9"),
        ({"split": (1.0,)}, "2 or 3 fractions"),
        ({"split": (0.7, 0.2, 0.2)}, "sum to 1.1"),
        ({"split": {"train": [0], "valid": [1]}}, "Did you mean 'val'"),
        ({"split": {"train": [0]}}, "val is missing"),
        ({"batch_size": 0}, r"batch_size must be in \[1"),
        ({"num_workers": -1}, "num_workers"),
        ({"split_by": "klass"}, "Did you mean 'class'"),
    ],
)
def test_bad_options_get_a_sentence(options, message):
    with pytest.raises(UserInputError, match=message):
        Rows(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": {"train": [0, 1], "val": [1]}}, r"must not overlap, but train and val share 1 row \(first: 1\)"),
        ({"split": {"train": [0, 50], "val": [1]}}, r"in \[0, 49\], but train has 50"),
        ({"split": {"train": [], "val": [1]}}, "train is empty"),
        ({"split": {"train": [1, 1], "val": [0]}}, "train and train share"),
        ({"split_by": "group"}, "needs groups=..., one value per row"),
        ({"split_by": "class"}, "needs class labels"),
        ({"groups": [1, 2]}, "50 rows, but got 2 values"),
    ],
)
def test_bad_splits_get_a_sentence(options, message):
    with pytest.raises(UserInputError, match=message):
        Rows(**options).setup()


def test_folds_in_order_of_time_come_once():
    with pytest.raises(
        UserInputError, match=r"in order of time cannot be repeated: there is one order\. Use repeats=1"
    ):
        Rows(split_by="time", time=range(50)).folds(3, repeats=2)


def test_an_epoch_that_was_set_meanwhile_stays():
    loader = Rows(split={"train": range(40), "val": range(40, 50)}, batch_size=10).train_dataloader()
    for i, _ in enumerate(loader):
        if i == 1:
            loader.sampler.set_epoch(7)
    assert loader.sampler.epoch == 7
    assert len(list(loader)) == 4
    assert loader.sampler.epoch == 8


def test_sizes_are_said_once(caplog):
    caplog.set_level("INFO", logger="lightning.pytorch.utilities.rank_zero")
    data = DigitsDataModule()
    data.setup("fit")
    data.setup("test")
    said = [record.message for record in caplog.records if "DigitsDataModule" in record.message]
    assert len(said) == 1
    assert said[0].startswith("DigitsDataModule: train 1077, val 360, test 360\n  train  0: 107, 1: 109")


def test_many_classes_are_summed_up():
    images = torch.zeros(100, 1, 2, 2, dtype=torch.uint8)
    data = ImageDataModule.from_arrays(images, torch.arange(100) % 25, normalize="none", split_by="random")
    assert "of each of 25 classes" in data.describe()
    assert "3: " not in data.describe()


@without_the_saver
def test_a_second_fit_is_not_compared_with_the_first_ones_checkpoint(tmp_path):
    trainer = quiet_trainer()
    trainer.fit(Recorder(), Rows())
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    data = Rows()
    quiet_trainer(max_epochs=2).fit(Recorder(), data, ckpt_path=tmp_path / "a.ckpt")
    data.split, data.parts = {"train": range(40), "val": range(40, 50)}, {}
    quiet_trainer().fit(Recorder(), data)  # a warning would be an error here


def test_a_part_is_indexed_by_sample():
    part = Part(TensorSource(torch.arange(10), torch.arange(10) ** 2), [3, 5])
    assert [tuple(map(int, sample)) for sample in part] == [(3, 9), (5, 25)]
    assert tuple(map(int, part[-1])) == (5, 25)
