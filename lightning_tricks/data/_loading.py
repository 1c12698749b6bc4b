"""Batches as a pure function of (seed, epoch, rank): what makes runs repeatable, resumable and equal on all ranks.

A sampler yields the keys of whole batches, ``(positions, epoch)``; a part of the data turns such a key into a batch.
So the epoch travels with the samples into persistent workers, and everything random can be keyed by it.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any, Protocol, TypedDict

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, SequentialSampler

from lightning_tricks._base import UserInputError, derive_seed, warn_once

BatchKey = tuple[list[int], int]  # positions within the part, epoch
POOL = 50  # global batches that are sorted by length together: enough for little padding, little enough to mix


class Source(Protocol):
    """Where samples come from: reads many rows at once."""

    def __len__(self) -> int: ...

    def read(self, rows: Sequence[int], epoch: int) -> Any:
        """Return a batch; random only as a function of row and epoch."""


class TensorSource:
    """Columns of equal length, held in memory; a batch is a tuple of their rows."""

    def __init__(self, *columns: Tensor) -> None:
        self.columns = columns

    def __len__(self) -> int:
        return len(self.columns[0])

    def read(self, rows: Sequence[int], epoch: int) -> tuple[Tensor, ...]:
        """Return the rows of every column."""
        index = torch.as_tensor(rows)
        return tuple(column[index] for column in self.columns)


class Part(Dataset[Any]):
    """One part of the data (train, val or test), read by whole batches.

    Args:
        source: all of the data.
        rows: the rows of ``source`` that belong to the part.
        finish: what is done to a batch in the worker, given the batch, its rows and the epoch.
    """

    def __init__(
        self,
        source: Source,
        rows: Sequence[int],
        finish: Callable[[Any, list[int], int], Any] | None = None,
    ) -> None:
        self.source = source
        self.rows = list(rows)
        self.finish = finish

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, positions: Sequence[int], epoch: int = 0) -> Any:
        """Return the samples at these positions of the part, as one batch."""
        rows = [self.rows[position] for position in positions]
        batch = self.source.read(rows, epoch)
        return batch if self.finish is None else self.finish(batch, rows, epoch)

    def __getitem__(self, key: int | BatchKey) -> Any:
        if isinstance(key, tuple):
            return self.batch(*key)
        if not -len(self) <= key < len(self):
            raise IndexError(f"the part has {len(self)} samples, there is none at {key}")
        return tuple(column[0] for column in self.batch([key]))

    def __getitems__(self, positions: list[int]) -> Any:
        """Return a batch (the name is the one that torch's fetcher looks for)."""
        return self.batch(positions)


def training_batches(order: Sequence[int], batch_size: int, *, rank: int = 0, ranks: int = 1) -> list[list[int]]:
    """Deal an order out in batches such that all ranks get equally many and no batch holds a lone sample.

    Every sample is dealt once; only if a rank's last batch would hold one sample (which BatchNorm cannot normalise)
    are the last, incomplete batches left out: fewer than ``2 * ranks`` samples, others in every epoch.

    Example:
        >>> training_batches(range(5), 2)
        [[0, 1], [2, 3]]
        >>> training_batches(range(5), 2, rank=1, ranks=2)
        [[1, 3]]
    """
    fewest, most = len(order) // ranks, math.ceil(len(order) / ranks)
    if fewest == 0:
        raise UserInputError(f"{ranks} ranks need at least {ranks} training samples, but there are {len(order)}.")
    lone = batch_size > 1 and 1 in (fewest % batch_size, most % batch_size)
    if (lone and fewest >= batch_size) or batch_size == 1:
        order = order[: fewest // batch_size * batch_size * ranks]
    mine = order[rank::ranks]
    return [list(mine[i : i + batch_size]) for i in range(0, len(mine), batch_size)]


def evaluation_batches(size: int, batch_size: int, *, rank: int = 0, ranks: int = 1) -> list[list[int]]:
    """Deal out all samples in order, each once, equally many batches on all ranks.

    On several ranks batch sizes are balanced rather than full. Only if there are too few samples to give every rank
    equally many batches is a sample repeated.

    Example:
        >>> evaluation_batches(5, 2)
        [[0, 1], [2, 3], [4]]
        >>> evaluation_batches(5, 2, rank=0, ranks=2), evaluation_batches(5, 2, rank=1, ranks=2)
        ([[0, 2], [4]], [[1], [3]])
    """
    mine = list(range(rank, size, ranks))
    if ranks == 1:
        return [mine[i : i + batch_size] for i in range(0, size, batch_size)]
    most = math.ceil(size / ranks)
    batches = math.ceil(most / batch_size)
    mine += [size - 1] * (batches - len(mine))
    quotient, remainder = divmod(len(mine), batches)
    ends = [i * quotient + min(i, remainder) for i in range(batches + 1)]
    return [mine[start:end] for start, end in pairwise(ends)]


def shuffled(size: int, *, seed: int, epoch: int) -> list[int]:
    """Return a permutation that is a pure function of seed and epoch."""
    generator = torch.Generator().manual_seed(derive_seed(seed, "order", epoch))
    order: list[int] = torch.randperm(size, generator=generator).tolist()
    return order


def bucketed(order: Sequence[int], lengths: Sequence[int], batch: int, *, seed: int, epoch: int) -> list[int]:
    """Rearrange an order so that samples of similar length share a batch.

    Pools of ``POOL`` batches are sorted by length, and the batches shuffled; an incomplete batch stays last.

    Args:
        order: positions, shuffled.
        lengths: length of the sample at each position.
        batch: samples per batch, over all ranks.
        seed: of the shuffling of batches.
        epoch: likewise.
    """
    pool = POOL * batch
    near: list[int] = []
    for start in range(0, len(order), pool):
        near += sorted(order[start : start + pool], key=lambda position: lengths[position])
    full = len(near) // batch
    generator = torch.Generator().manual_seed(derive_seed(seed, "buckets", epoch))
    batches = [near[i * batch : (i + 1) * batch] for i in torch.randperm(full, generator=generator).tolist()]
    return [position for some in batches for position in some] + near[full * batch :]


class BatchKeys(DistributedSampler[BatchKey], SequentialSampler):
    """Yields the keys of batches.

    It is a ``DistributedSampler`` so that Lightning does not put another one around it, and is told the epoch. It is a
    ``SequentialSampler`` so that ``overfit_batches`` does not replace it: then ``shuffle=False`` is passed instead.

    Args:
        size: number of samples.
        batch_size: samples per batch and rank.
        shuffle: whether to train (shuffled, no lone sample) or to evaluate (in order, all samples).
        lengths: length of every sample, to put similar ones together.
        seed: of the order.
        epoch: to begin with.
        rank: of this process among those that share the data.
        ranks: how many share the data.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        *,
        shuffle: bool,
        lengths: Sequence[int] | None = None,
        seed: int = 0,
        epoch: int = 0,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        self.size = size
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.lengths = lengths
        self.seed = seed
        self.epoch = epoch
        self.rank = rank
        self.num_replicas = ranks
        self.first = 0  # batches to leave out at the start: those that were trained on before a resume

    def batches(self) -> list[list[int]]:
        """Return all batches of the present epoch."""
        place = {"rank": self.rank, "ranks": self.num_replicas}
        if not self.shuffle:
            return evaluation_batches(self.size, self.batch_size, **place)
        order = shuffled(self.size, seed=self.seed, epoch=self.epoch)
        if self.lengths is not None:
            together = self.batch_size * self.num_replicas
            order = bucketed(order, self.lengths, together, seed=self.seed, epoch=self.epoch)
        return training_batches(order, self.batch_size, **place)

    def __iter__(self) -> Iterator[BatchKey]:  # type: ignore[override]  # of DistributedSampler, not of the other
        epoch = self.epoch if self.shuffle else 0
        return ((positions, epoch) for positions in self.batches()[self.first :])

    def __len__(self) -> int:
        if self.shuffle:
            return len(training_batches(range(self.size), self.batch_size, ranks=self.num_replicas))
        return len(evaluation_batches(self.size, self.batch_size, ranks=self.num_replicas))


class LoaderState(TypedDict):
    """Where a pass through the training data stands."""

    epoch: int
    batches: int
    batch_size: int
    ranks: int


class PartLoader(DataLoader[Any]):
    """A ``DataLoader`` over a :class:`Part` that can stop and go on within an epoch.

    A pass begins with its first batch, not with ``iter()``: Lightning calls that before it sets the epoch. Outside of
    a Trainer every complete pass is followed by the next epoch.
    """

    sampler: BatchKeys
    _began = 0
    _given = 0
    _resume: LoaderState | None = None

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        self._began = epoch = self.sampler.epoch
        self._given = self.sampler.first = self._first_batch()
        # The workers' seed would otherwise be drawn from the global stream, and move it.
        self.generator.manual_seed(derive_seed(self.sampler.seed, "workers", epoch, self.sampler.rank))
        for batch in super().__iter__():
            self._given += 1
            yield batch
        if self.sampler.epoch == epoch:
            self.sampler.set_epoch(epoch + 1)

    def state_dict(self) -> dict[str, Any]:
        """Return the epoch and the number of batches given out."""
        return dict(
            LoaderState(
                epoch=self._began,
                batches=self._given,
                batch_size=self.sampler.batch_size,
                ranks=self.sampler.num_replicas,
            )
        )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on behind the last batch that was given out, if the next pass is of the same epoch."""
        self._resume = LoaderState(**{key: int(state_dict[key]) for key in LoaderState.__annotations__})  # type: ignore[typeddict-item]
        self.sampler.set_epoch(max(self.sampler.epoch, self._resume["epoch"]))

    def _first_batch(self) -> int:
        state, self._resume = self._resume, None
        if state is None or state["epoch"] != self.sampler.epoch:
            return 0
        before = state["batch_size"] * state["ranks"]
        now = self.sampler.batch_size * self.sampler.num_replicas
        if before != now:
            warn_once(
                f"The interrupted epoch had {before} samples per step, now there are {now}. It goes on at the same "
                "sample, rounded down to a whole batch; the result is not bit-equal to the uninterrupted run."
            )
        return state["batches"] * before // now


def make_loader(part: Part, keys: BatchKeys, *, num_workers: int, pin_memory: bool) -> PartLoader:
    """Return the loader of a part."""
    return PartLoader(
        part,
        batch_size=None,
        sampler=keys,
        num_workers=num_workers,
        pin_memory=pin_memory,
        persistent_workers=num_workers > 0,
        generator=torch.Generator(),
        collate_fn=unchanged,
    )


def unchanged(batch: Any) -> Any:
    """Return the batch: parts give out whole batches already."""
    return batch
