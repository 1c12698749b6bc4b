"""What always holds, for every public DataModule. A new one is one line in DATAMODULES."""

import pickle
from collections import Counter

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import quiet_trainer, run_ranks
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import Dataset

import lightning_tricks as lt
from lightning_tricks._base import UserInputError, rng_state
from lightning_tricks.data.augment import RandomSwap

N = 52  # of which 31 are trained on: batches of 10 would leave one over
LABELS = [i % 3 for i in range(N)]


class Jittered(Dataset):
    """Pictures that a random transform has changed whenever they are read."""

    def __getitem__(self, row):
        return pictures()[row] ^ torch.randint(2, (1, 6, 6), dtype=torch.uint8), LABELS[row]

    def __len__(self):
        return N


def pictures():
    return torch.randint(256, (N, 1, 6, 6), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def numbers():
    return torch.rand(N, 3, generator=torch.Generator().manual_seed(0))


def texts():
    return [" ".join(f"w{i * j % 17}" for j in range(1, 3 + i % 7)) + f" text{i}" for i in range(N)]


def images_of_datasets(**options):
    return lt.ImageDataModule.from_datasets(Jittered(), **options)


DATAMODULES = {
    "DigitsDataModule": lt.DigitsDataModule,
    "ImageDataModule": lambda **o: lt.ImageDataModule.from_arrays(pictures(), LABELS, augment="standard", **o),
    "ImageDataModule.from_datasets": images_of_datasets,
    "TabularDataModule": lambda **o: lt.TabularDataModule(numbers(), numbers()[:, 0], **o),
    "TabularDataModule of classes": lambda **o: lt.TabularDataModule(numbers(), np.array(LABELS), **o),
    "TextDataModule": lambda **o: lt.TextDataModule(texts(), LABELS, augment=[RandomSwap()], word_dropout=0.2, **o),
}
every_datamodule = pytest.mark.parametrize("name", DATAMODULES)


def make(name, **options):
    options.setdefault("batch_size", 150 if name == "DigitsDataModule" else 10)
    return DATAMODULES[name](**options)


def seen(batch):
    """Return for each sample of a batch what is in it, whatever the padding."""
    x, y = batch
    rows = [row.numpy() for row in x]
    if not x.is_floating_point():
        rows = [np.trim_zeros(row, "b") for row in rows]
    return [row.tobytes() + label.numpy().tobytes() for row, label in zip(rows, y, strict=True)]


class Recorder(LightningModule):
    """Remembers what came; its one weight depends on the order."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.trained, self.evaluated = [], []

    def training_step(self, batch):
        self.trained.append((self.trainer.current_epoch, seen(batch)))
        return (self.weight - batch[0].float().mean()) ** 2

    def validation_step(self, batch):
        self.evaluated.append(seen(batch))

    def test_step(self, batch):
        self.evaluated.append(seen(batch))

    def predict_step(self, batch):
        return seen(batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def flat(batches):
    return [sample for batch in batches for sample in batch]


def fitted(data, path=None, **options):
    model = Recorder()
    trainer = quiet_trainer(**{"max_epochs": 2, "num_sanity_val_steps": 0, **options})
    trainer.fit(model, data, ckpt_path=path)
    return model, trainer


def test_every_public_datamodule_is_listed():
    public = {
        n for n in lt.__all__ if isinstance(getattr(lt, n), type) and issubclass(getattr(lt, n), LightningDataModule)
    }
    made = {name.split(".")[0].split(" ")[0] for name in DATAMODULES}
    assert public == {*made, "SplitDataModule"}, "the abstract base is tested through its subclasses"


@every_datamodule
def test_parts_are_60_20_20_made_once_and_said_once(name, caplog):
    caplog.set_level("INFO", logger="lightning.pytorch.utilities.rank_zero")
    data = make(name)
    data.setup("fit")
    rows = {part: list(data.parts[part].rows) for part in ("train", "val", "test")}
    total = sorted(rows["train"] + rows["val"] + rows["test"])
    assert total == list(range(len(total)))
    for part, share in (("train", 0.6), ("val", 0.2), ("test", 0.2)):
        assert abs(len(rows[part]) - share * len(total)) < 2
    data.setup("test")
    assert {part: list(data.parts[part].rows) for part in rows} == rows
    said = [record.message for record in caplog.records if type(data).__name__ in record.message]
    assert len(said) == 1
    assert f"train {len(rows['train'])}, val {len(rows['val'])}, test {len(rows['test'])}" in said[0]
    assert make(name).fingerprint() == data.fingerprint()
    assert make(name, seed=1).fingerprint() != data.fingerprint()


@every_datamodule
def test_no_global_stream_is_read_or_moved(name):
    before = rng_state()
    data = make(name)
    first = flat(seen(batch) for batch in data.train_dataloader())
    for loader in (data.val_dataloader(), data.test_dataloader()):
        list(loader)
    after = rng_state()
    assert torch.equal(before["torch"], after["torch"])
    assert np.array_equal(before["numpy"][1], after["numpy"][1])
    assert before["python"] == after["python"]
    torch.manual_seed(99)
    assert flat(seen(batch) for batch in make(name).train_dataloader()) == first


@every_datamodule
def test_every_epoch_has_its_own_order_and_no_lone_sample(name):
    data = make(name)
    data.setup("fit")
    size = len(data.parts["train"])
    data.batch_size = size - 1  # one would be left over
    model, _ = fitted(data)
    assert [len(batch) for _, batch in model.trained] == [size - 1, size - 1]
    data = make(name)
    model, _ = fitted(data)
    assert all(len(batch) > 1 for _, batch in model.trained)
    epochs = [[batch for e, batch in model.trained if e == epoch] for epoch in (0, 1)]
    assert epochs[0] != epochs[1]
    assert size - 1 <= len(flat(epochs[0])) <= size


@every_datamodule
def test_workers_make_no_difference(name):
    alone, _ = fitted(make(name))
    data = make(name)
    data.num_workers = 2
    model, _ = fitted(data)
    assert model.trained == alone.trained
    assert model.evaluated == alone.evaluated
    assert torch.equal(model.weight, alone.weight)


@every_datamodule
def test_a_second_fit_starts_fresh(name):
    data = make(name)
    model, _ = fitted(data)
    again, _ = fitted(data)
    assert again.trained == model.trained


@every_datamodule
@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_a_resumed_run_goes_on_with_the_next_batch(name, tmp_path):
    saver = ModelCheckpoint(dirpath=tmp_path, save_top_k=-1, every_n_train_steps=1, filename="{step}")
    whole, _ = fitted(make(name), callbacks=[saver], enable_checkpointing=True)
    for step in (2, 4):
        path = tmp_path / f"step={step}.ckpt"
        torch.load(path, weights_only=True)
        rest, _ = fitted(make(name), path)
        assert rest.trained == whole.trained[step:]
        assert torch.equal(rest.weight, whole.weight)


@every_datamodule
def test_every_row_is_tested_and_predicted_once_in_order(name):
    data = make(name)
    model, trainer = Recorder(), quiet_trainer()
    predicted = flat(trainer.predict(model, data))
    trainer.test(model, data)
    assert flat(model.evaluated) == predicted
    assert len(predicted) == len(data.parts["test"])
    small = make(name, batch_size=3)
    assert flat(quiet_trainer().predict(model, small)) == predicted


def two_ranks(rank):
    """Return what each DataModule gives to this rank: trained on, tested, predicted."""
    found = {}
    for name in DATAMODULES:
        data = make(name)
        model, trainer = fitted(data, strategy="ddp", devices=2)
        trained, model.evaluated[:] = model.trained, []
        trainer.test(model, data)
        found[name] = trained, flat(model.evaluated), flat(trainer.predict(model, data))
    return found


@pytest.fixture(scope="module")
def ranks():
    return run_ranks(two_ranks)


@every_datamodule
def test_two_ranks_share_every_epoch(name, ranks):
    results = [rank[name] for rank in ranks]
    data = make(name)
    alone = flat(quiet_trainer().predict(Recorder(), data))
    for kind in (1, 2):  # tested, predicted
        assert Counter(results[0][kind] + results[1][kind]) == Counter(alone)
    model, _ = fitted(data)
    size = len(data.parts["train"])
    for epoch in (0, 1):
        trained = Counter(sample for result in results for e, batch in result[0] if e == epoch for sample in batch)
        assert size - 4 < trained.total() <= size
        everything = Counter(flat(batch for e, batch in model.trained if e == epoch))
        assert (trained - everything).total() <= size - everything.total(), "a sample came twice"
    assert len(results[0][0]) == len(results[1][0]), "ranks must make equally many steps"


@every_datamodule
def test_other_parts_can_be_given(name):
    data = make(name)
    other = data.with_split(train=[0, 1, 2, 3, 4, 5, 6, 7], val=[8, 9, 10, 11])
    other.setup("fit")
    assert {part: other.parts[part].rows for part in other.parts} == {"train": list(range(8)), "val": [8, 9, 10, 11]}
    assert len(flat(quiet_trainer().predict(Recorder(), other))) == 4
    assert len(data.parts["train"]) > 8


@every_datamodule
@pytest.mark.parametrize("index", [range(N)[::-1], range(7, N + 7)], ids=["shuffled", "filtered"])
@pytest.mark.parametrize("by", ["groups", "time"])
def test_a_series_is_taken_by_position(name, index, by):
    if name == "DigitsDataModule":
        pytest.skip("it has no such option")
    values = [row // 4 for row in range(N)]
    data, expected = make(name, **{by: pd.Series(values, index)}), make(name, **{by: values})
    assert data.fingerprint() == expected.fingerprint() == make(name, **{by: torch.tensor(values)}).fingerprint()
    assert data.folds(3) == expected.folds(3)


@pytest.mark.parametrize(
    "of_labels",
    [
        lambda y: lt.TabularDataModule(numbers(), y),
        lambda y: lt.ImageDataModule.from_arrays(pictures(), y),
        lambda y: lt.TextDataModule(pd.Series(texts(), range(N)[::-1]), y),
    ],
)
def test_a_series_of_labels_is_taken_by_position(of_labels):
    one, other = (of_labels(labels).test_dataloader() for labels in (pd.Series(LABELS, range(N)[::-1]), LABELS))
    assert [seen(batch) for batch in one] == [seen(batch) for batch in other]


@every_datamodule
def test_it_travels_to_another_process(name):
    data = make(name)
    data.setup("fit")
    copied = pickle.loads(pickle.dumps(data))
    assert [seen(b) for b in copied.train_dataloader()] == [seen(b) for b in data.train_dataloader()]


@every_datamodule
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, r"batch_size must be in \[1, inf\), but got 0"),
        ({"num_workers": -1}, r"num_workers must be in \[0, inf\), but got -1"),
        ({"split": (0.5, 0.2, 0.2)}, "sum"),
        ({"split": {"train": [0, 1], "val": [1, 2]}}, "overlap|both"),
        ({"split": {"train": [0, 1], "val": [5000]}}, "5000"),
        ({"split_by": "group"}, "needs groups=..., one value per row"),
    ],
)
def test_bad_options_get_a_sentence(name, options, message):
    if name == "DigitsDataModule" and "batch_size" not in options:
        pytest.skip("it has no such option")
    with pytest.raises(UserInputError, match=message):
        make(name, **options).setup("fit")


@every_datamodule
def test_a_part_that_is_not_there_is_named(name):
    with pytest.raises(UserInputError, match="has no test part, only train, val"):
        make(name).with_split(train=[0, 1, 2, 3, 4, 5], val=[6, 7]).test_dataloader()
