"""PredictionWriter: one file, dataset order, every row once, or no file at all."""

import csv
import os
import resource
import signal

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from helpers import quiet_trainer, run_ranks
from lightning.pytorch import LightningModule
from torch.utils.data import DataLoader, Dataset, IterableDataset, SequentialSampler

from lightning_tricks import PredictionWriter
from lightning_tricks._base import UserInputError
from lightning_tricks.callbacks.predictions import _store as _prediction_store
from lightning_tricks.callbacks.predictions._store import ColumnStore, MergedRows, StoredColumns


class Rows(Dataset):
    """Row i holds i and i²."""

    def __init__(self, n):
        self.n = n

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        return torch.tensor([float(i), float(i) ** 2])


class Echo(LightningModule):
    """Predicts its input, and a 2×3 map per row."""

    def __init__(self, fail_at=None, widen_at=None):
        super().__init__()
        self.fail_at, self.widen_at = fail_at, widen_at

    def predict_step(self, batch, batch_idx, dataloader_idx=0):
        if batch_idx == self.fail_at:
            raise RuntimeError("killed")
        width = 4 if batch_idx == self.widen_at else 3
        return {"mean": batch / 3, "label": batch[:, 0].long(), "map": batch[:, :1, None].expand(-1, 2, width)}


def predict(path, n=10, *, model=None, loaders=None, batch_size=4, **options):
    trainer = quiet_trainer(callbacks=[PredictionWriter(path, **options)])
    loaders = DataLoader(Rows(n), batch_size=batch_size) if loaders is None else loaders
    trainer.predict(model or Echo(), loaders, return_predictions=False)


def read(path):
    if path.suffix == ".npz":
        return dict(np.load(path))
    if path.suffix == ".parquet":
        table = pq.read_table(path)
        return {name: np.array(table[name].to_pylist()) for name in table.column_names}
    with path.open() as file:
        head, *lines = csv.reader(file)
    flat = {name: np.array([float(line[at]) for line in lines]) for at, name in enumerate(head)}
    return {
        "index": flat["index"],
        "mean": np.stack([flat["mean_0"], flat["mean_1"]], 1),
        "label": flat["label"],
        "map": np.stack([flat[f"map_{i}_{j}"] for i in range(2) for j in range(3)], 1).reshape(-1, 2, 3),
    }


def expected(n):
    x = np.stack([np.arange(n), np.arange(n) ** 2], 1).astype(np.float32)
    return {
        "index": np.arange(n),
        "mean": (torch.tensor(x) / 3).numpy(),
        "label": np.arange(n),
        "map": np.broadcast_to(x[:, :1, None], (n, 2, 3)),
    }


def assert_same(columns, n):
    want = expected(n)
    assert list(columns) == list(want)
    for name, values in want.items():
        np.testing.assert_array_equal(columns[name].astype(values.dtype), values, err_msg=name)


@pytest.mark.parametrize("suffix", ["npz", "csv", "parquet"])
@pytest.mark.parametrize("shuffled", [False, True])
def test_rows_come_in_dataset_order(tmp_path, suffix, shuffled, monkeypatch):
    monkeypatch.setattr(_prediction_store, "BLOCK_BYTES", 150)  # several blocks, of three rows
    rows = Rows(10)
    sampler = [3, 9, 0, 1, 8, 2, 7, 4, 6, 5] if shuffled else SequentialSampler(rows)
    loader = DataLoader(rows, batch_size=4, sampler=sampler)
    path = tmp_path / f"deep/er/out.{suffix}"
    predict(path, loaders=loader)
    assert_same(read(path), 10)
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def _ranked(rank, path, n):
    trainer = quiet_trainer(strategy="ddp", devices=2, callbacks=[PredictionWriter(path)])
    trainer.predict(Echo(), DataLoader(Rows(n), batch_size=2), return_predictions=False)


@pytest.mark.parametrize("n", [2, 9])
def test_two_ranks_write_one_file(tmp_path, n):
    path = tmp_path / "out.npz"
    run_ranks(_ranked, path, n)
    assert_same(read(path), n)


def test_an_old_file_is_not_touched(tmp_path):
    path = tmp_path / "out.npz"
    predict(path)
    before = path.read_bytes()
    with pytest.raises(UserInputError, match="does not append to it"):
        predict(path, 6)
    assert path.read_bytes() == before
    predict(path, 6, overwrite=True)
    assert_same(read(path), 6)


def _ranked_refusal(rank, path):
    try:
        _ranked(rank, path, 4)
    except UserInputError as error:
        return str(error)


def test_every_rank_refuses(tmp_path):
    path = tmp_path / "out.npz"
    path.write_bytes(b"old")
    assert all("does not append" in answer for answer in run_ranks(_ranked_refusal, path))


class Killed(Echo):
    """Is killed outright: no handler of ours runs."""

    def predict_step(self, batch, batch_idx, dataloader_idx=0):
        if batch_idx == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().predict_step(batch, batch_idx)


def _killed(rank, path):
    predict(path, 12, model=Killed())


def test_after_a_kill_there_is_no_file_and_the_next_run_starts_clean(tmp_path):
    path = tmp_path / "out.parquet"
    with pytest.raises(AssertionError, match=r"died: \[-9\]"):
        run_ranks(_killed, path, world_size=1)
    assert [p.name for p in tmp_path.iterdir()] == ["out.parquet.parts"]
    with pytest.warns(
        UserWarning, match=r"out\.parquet\.parts is what an unfinished run left; it is deleted, all rows"
    ):
        predict(path, 6)
    assert_same(read(path), 6)
    assert [p.name for p in tmp_path.iterdir()] == ["out.parquet"]


class Wide(Echo):
    """Two kilobytes per row."""

    def predict_step(self, batch, batch_idx, dataloader_idx=0):
        return {"wide": batch[:, :1].expand(-1, 512)}


def _memory_grown(rank, folder, suffix):
    def peak_after(name, n):
        predict(folder / f"{name}.{suffix}", n, model=Wide(), batch_size=500)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    small = peak_after("small", 4000)
    return peak_after("large", 34000) - small


@pytest.mark.parametrize("suffix", ["npz", "parquet"])
def test_memory_does_not_grow_with_the_dataset(tmp_path, suffix):
    (grown,) = run_ranks(_memory_grown, tmp_path, suffix, world_size=1)
    added = (tmp_path / f"large.{suffix}").stat().st_size - (tmp_path / f"small.{suffix}").stat().st_size
    assert suffix == "parquet" or added > 60e6  # which parquet compresses
    assert grown < 61 / 3  # megabytes, of 61 that were written more; allocators keep some of what they had


def test_a_failed_run_leaves_no_file_and_the_next_starts_clean(tmp_path):
    path = tmp_path / "out.npz"
    with pytest.raises(RuntimeError, match="killed"):
        predict(path, 12, model=Echo(fail_at=2))
    assert not path.exists()
    with pytest.warns(UserWarning, match="all rows are predicted anew"):
        predict(path, 6)
    assert_same(read(path), 6)


def test_one_file_per_dataloader(tmp_path):
    path = tmp_path / "out.npz"
    loaders = [DataLoader(Rows(n), batch_size=2) for n in (3, 5)]
    predict(path, loaders=loaders)
    assert_same(read(tmp_path / "out-0.npz"), 3)
    assert_same(read(tmp_path / "out-1.npz"), 5)
    with pytest.raises(UserInputError, match=r"out-0\.npz from an earlier run"):
        predict(path, loaders=loaders)


def test_an_unrelated_numbered_file_is_no_obstacle(tmp_path):
    (tmp_path / "out-2024.npz").write_bytes(b"mine")
    predict(tmp_path / "out.npz")
    assert (tmp_path / "out-2024.npz").read_bytes() == b"mine"


def test_a_changed_shape_is_said(tmp_path):
    with pytest.raises(UserInputError, match=r"'map' was .* shape \(2, 3\) and now is .* shape \(2, 4\)"):
        predict(tmp_path / "out.npz", model=Echo(widen_at=1))


def of(answer):
    """Return a model that answers with ``answer(batch)``."""

    class Answering(Echo):
        def predict_step(self, batch, batch_idx, dataloader_idx=0):
            return answer(batch)

    return Answering()


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda batch: [1.0, 2.0], "a dict of tensors .*, but predict_step returned a list"),
        (lambda batch: {"a": batch, "b": batch[1:]}, r"one entry per row, but their lengths are .*'a': 4, 'b': 3"),
        (lambda batch: {"a": batch, "index": batch[:2, 0].long()}, r"each of the 4 rows, but has shape \(2,\)"),
        (lambda batch: {"a": torch.zeros(len(batch), 20_000)}, "CSV would need 20001 columns. Write to .parquet or"),
        (lambda batch: {"a": batch} if batch[0, 0] < 4 else {"b": batch}, "'a' was float32 of .* and now is missing"),
    ],
)
def test_what_cannot_be_written_is_told(tmp_path, answer, message):
    with pytest.raises(UserInputError, match=message):
        predict(tmp_path / "out.csv", model=of(answer))
    assert not (tmp_path / "out.csv").exists()


def test_a_tensor_alone_is_the_column_prediction(tmp_path):
    predict(tmp_path / "out.npz", model=of(lambda batch: batch[:, 0] * 2))
    assert read(tmp_path / "out.npz")["prediction"].tolist() == [2.0 * i for i in range(10)]


def test_the_order_of_the_columns_in_a_batch_does_not_matter(tmp_path):
    def turning(batch):
        pair = [("a", batch[:, 0]), ("b", batch[:, 1])]
        return dict(pair if batch[0, 0] < 4 else reversed(pair))

    predict(tmp_path / "out.npz", model=of(turning))
    assert read(tmp_path / "out.npz")["b"].tolist() == [float(i) ** 2 for i in range(10)]


@pytest.mark.filterwarnings("ignore:Couldn't infer the batch indices")
def test_a_stream_must_tell_the_places_of_its_rows(tmp_path):
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(Rows(10)[i] for i in range(10))

    loader = DataLoader(Stream(), batch_size=4)
    with pytest.raises(UserInputError, match=r"Return it from predict_step as 'index', an integer tensor \(B,\)"):
        predict(tmp_path / "out.npz", loaders=loader)
    predict(tmp_path / "told.npz", loaders=loader, model=of(lambda batch: {"x": batch, "index": batch[:, 0].long()}))
    assert read(tmp_path / "told.npz")["index"].tolist() == list(range(10))


def test_ranks_that_predict_different_columns_are_told(tmp_path):
    parts = []
    for rank, width in enumerate((2, 3)):
        store = ColumnStore(tmp_path / str(rank))
        store.append({"index": np.arange(4), "x": np.zeros((4, width))})
        store.close()
        parts.append(StoredColumns(store.folder))
    with pytest.raises(UserInputError, match="the ranks predicted different columns or shapes per row"):
        MergedRows(parts)


def test_columns_are_chosen_and_checked(tmp_path):
    predict(tmp_path / "out.npz", columns=["label"])
    assert list(read(tmp_path / "out.npz")) == ["index", "label"]
    with pytest.raises(UserInputError, match="columns names 'lable', but a prediction holds mean, label, map"):
        predict(tmp_path / "other.npz", columns=["lable"])


def test_padding_rows_are_written_once(tmp_path):
    class Padded(Echo):
        def predict_step(self, batch, batch_idx, dataloader_idx=0):
            return {**super().predict_step(batch, batch_idx), "index": batch[:, 0].long()}

    class Twice(torch.utils.data.Sampler):
        def __iter__(self):
            return iter([0, 1, 2, 0, 1])

        def __len__(self):
            return 5

    predict(tmp_path / "out.npz", model=Padded(), loaders=DataLoader(Rows(3), batch_size=2, sampler=Twice()))
    assert_same(read(tmp_path / "out.npz"), 3)


def test_a_gap_is_said(tmp_path):
    loader = DataLoader(Rows(9), batch_size=2, sampler=[0, 1, 5])
    with pytest.warns(UserWarning, match="lacks 3 of the first 6 rows"):
        predict(tmp_path / "out.npz", loaders=loader)
    assert read(tmp_path / "out.npz")["index"].tolist() == [0, 1, 5]


def test_suffixes_are_checked():
    with pytest.raises(UserInputError, match=r"one of \.csv, \.npz, \.parquet, but got '\.txt'"):
        PredictionWriter("out.txt")


def test_text_is_refused_in_a_sentence(tmp_path):
    class Text(Echo):
        def predict_step(self, batch, batch_idx, dataloader_idx=0):
            return {"name": ["a"] * len(batch)}

    with pytest.raises(UserInputError, match=r"writes numbers.*'name'"):
        predict(tmp_path / "out.npz", model=Text())


def test_csv_brings_floats_back_exactly(tmp_path):
    class Odd(Echo):
        def predict_step(self, batch, batch_idx, dataloader_idx=0):
            return {"x": torch.full((len(batch),), 1 / 3), "y": torch.full((len(batch),), 1 / 3, dtype=torch.float64)}

    predict(tmp_path / "out.csv", 1, model=Odd())
    _, x, y = (tmp_path / "out.csv").read_text().splitlines()[1].split(",")
    assert np.float32(x) == np.float32(1 / 3)
    assert float(y) == 1 / 3
