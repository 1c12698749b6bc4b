"""Faults in the data and in the way they are loaded."""

import torch
from torch import Tensor

from benchmarks.faults._case import Case, DictDataset, DoesNotFit, Stream
from benchmarks.faults._registry import fault
from benchmarks.faults._surgery import needs_norm, needs_task, self_taught


def change_inputs(case: Case, change) -> None:
    """Change the inputs of both parts alike; targets that are the inputs change with them."""
    x, _ = case.tensors
    if not x.is_floating_point():
        raise DoesNotFit("its inputs are integers")
    if self_taught(case):
        raise DoesNotFit("its targets are its inputs")
    case.train = (change(case.train[0]), case.train[1])
    case.val = (change(case.val[0]), case.val[1])


def no_stream(case: Case) -> None:
    case.tensors  # noqa: B018 - raises where there are none
    if case.dataset is Stream:
        raise DoesNotFit("its data are a stream")


@fault("labels shuffled", "not-learning", "overfitting", "cannot-overfit", "input-ignored", proof="score")
def labels_shuffled(case: Case) -> None:
    x, y = case.tensors
    case.train = (x, y[torch.randperm(len(y))])


@fault("labels from 1 to C", "labels-range")
def labels_from_one(case: Case) -> None:
    needs_task(case, "multiclass")
    case.train, case.val = ((x, y + 1) for x, y in (case.tensors, case.val))


@fault("binary labels -1 and 1", "labels-range")
def labels_minus_one(case: Case) -> None:
    needs_task(case, "binary")
    if not hasattr(case.model, "loss"):
        raise DoesNotFit("our Classifier refuses such labels")
    case.train, case.val = ((x, 2 * y - 1) for x, y in (case.tensors, case.val))


@fault("inputs from 0 to 255", "input-scale", "input-dtype", "loss-at-init", "lr-too-high", "diverging", proof="score")
def inputs_raw(case: Case) -> None:
    x, _ = case.tensors
    low, high = x.min(), x.max()
    change_inputs(case, lambda v: (v - low) / (high - low) * 255)


@fault("bytes as inputs", "input-dtype", "input-scale", proof="score")
def inputs_bytes(case: Case) -> None:
    x, _ = case.tensors
    if x.ndim != 4:
        raise DoesNotFit("its inputs are no pictures")
    low, high = x.min(), x.max()
    change_inputs(case, lambda v: ((v - low) / (high - low) * 255).to(torch.uint8))
    forward = type(case.model).forward
    case.override(forward=lambda self, batch: forward(self, batch.float()))


@fault("one feature in units 10,000 times smaller", "input-scale", proof="score")
def feature_unscaled(case: Case) -> None:
    x, _ = case.tensors
    if x.ndim != 2:
        raise DoesNotFit("its inputs are no table")
    factor = torch.ones(x.shape[1])
    factor[0] = 1e4
    change_inputs(case, lambda v: v * factor)


@fault("inputs 100,000 times too small", "input-scale", "not-learning", "activation-scale", proof="score")
def inputs_tiny(case: Case) -> None:
    change_inputs(case, lambda v: v * 1e-5)


@fault("1 % of the samples hold NaN", "input-nonfinite", "nonfinite")
def inputs_nan(case: Case) -> None:
    def poison(x: Tensor) -> Tensor:
        x = x.clone().flatten(1)
        x[:: len(x) // max(1, len(x) // 100), 0] = torch.nan
        return x

    shape = case.tensors[0].shape[1:]
    change_inputs(case, lambda v: poison(v).view(-1, *shape))


@fault("always the same sample", "input-constant", "input-ignored")
def inputs_constant(case: Case) -> None:
    x, y = case.tensors
    case.train = (x[:1].expand_as(x).contiguous(), y)


@fault("sorted by label, not shuffled", "unshuffled-training")
def sorted_by_label(case: Case) -> None:
    no_stream(case)
    x, y = case.tensors
    order = y.flatten(1).float().mean(1).argsort() if y.ndim > 1 else y.argsort()
    case.train = (x[order], y[order])
    case.loader = {**case.loader, "shuffle": False}


@fault("validation samples in the training part", "split-overlap")
def overlap(case: Case) -> None:
    no_stream(case)
    (x, y), (x_val, y_val) = case.tensors, case.val
    half = len(x_val) // 2
    case.val = (torch.cat([x_val[:half], x[:half]]), torch.cat([y_val[:half], y[:half]]))


@fault("other classes 50 times rarer", "class-imbalance", proof="score")
def imbalanced(case: Case) -> None:
    x, y = case.tensors
    if case.task not in ("multiclass", "binary") or y.ndim != 1:
        raise DoesNotFit("it has no classes")
    counts = y.long().bincount()
    common = int(counts.argmax())
    keep = y == common
    for label in range(len(counts)):
        rows = torch.nonzero(y == label).flatten()
        if label != common:
            keep[rows[: max(2, int(counts[common]) // 50)]] = True
    rows = torch.nonzero(keep).flatten()
    rows = rows.repeat(-(-len(y) // len(rows)))[: len(y)]  # as many steps as before
    case.train = (x[rows], y[rows])


@fault("trained on 16 samples", "overfitting", proof="score")
def tiny_data(case: Case) -> None:
    x, y = case.tensors
    steps = case.epochs * len(x) // case.batch_size
    case.train, case.batch_size = (x[:16], y[:16]), 8
    case.epochs = min(max(case.epochs, steps // 2), 100)


@fault("BatchNorm and batches of 1", "batchnorm-batch-of-one")
def batch_of_one(case: Case) -> None:
    needs_norm(case)
    no_stream(case)
    case.batch_size, case.epochs = 1, 1


@fault("BatchNorm and a last batch of 1", "batchnorm-batch-of-one")
def last_batch_of_one(case: Case) -> None:
    needs_norm(case)
    no_stream(case)
    x, y = case.tensors
    size = len(x) // case.batch_size * case.batch_size - case.batch_size + 1
    case.train = (x[:size], y[:size])
    case.loader = {**case.loader, "drop_last": False}


@fault("targets not standardised", "output-bias", "loss-at-init", proof="score")
def targets_raw(case: Case) -> None:
    needs_task(case, "regression")
    if self_taught(case):
        raise DoesNotFit("its targets are its inputs")
    case.train, case.val = ((x, y * 20 + 500) for x, y in (case.tensors, case.val))


@fault("no seed", "unseeded", note=True)
def unseeded(case: Case) -> None:
    case.seeded = False


@fault("one sample is infinite", "input-nonfinite", "nonfinite")
def one_infinite(case: Case) -> None:
    x, y = case.tensors
    if not x.is_floating_point() or case.dataset is DictDataset:
        raise DoesNotFit("its inputs are integers or dicts")
    x = x.clone()
    x.view(len(x), -1)[len(x) // 2, 0] = torch.inf
    case.train = (x, y)
