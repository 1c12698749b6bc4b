"""Rules about inputs, labels and loaders. Pure: tensors and loaders in, findings out."""

import hashlib
import math
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, SequentialSampler

from lightning_tricks.diagnosis._finding import Finding

_STANDARDISE = "Standardise with mean and standard deviation of the training part (mean 0, standard deviation 1)."


def input_values(x: Tensor, where: str = "inputs") -> list[Finding]:
    """Check a batch of inputs ``(B, ...)``: type, NaN, constancy, scale.

    Example:
        >>> [finding.rule for finding in input_values(torch.arange(24.0).view(6, 4) * 100)]
        ['input-scale']
    """
    if x.dtype == torch.uint8:
        what, cure = "values are bytes in [0, 255]", "Convert to float and divide by 255, then standardise."
        return [Finding("input-dtype", "warning", where, what, cure)]
    if not x.is_floating_point():
        return []
    if not x.isfinite().all():
        bad = 1 - x.isfinite().double().mean().item()
        what, cure = f"{bad:.2%} of the values are NaN or infinite", "Remove such samples, or fill the gaps in."
        return [Finding("input-nonfinite", "error", where, what, cure)]
    findings = []
    if x.dtype == torch.float64:
        cure = "Convert to float32, which is what the layers have."
        findings.append(Finding("input-dtype", "info", where, "values are float64", cure))
    if len(x) > 1:
        findings += _constant(x, where) or _scale(x.double(), where)
    return findings


def _constant(x: Tensor, where: str) -> list[Finding]:
    same = (x == x[:1]).all()
    if not same:
        return []
    what = f"all {len(x)} samples are equal"
    return [Finding("input-constant", "error", where, what, "Look at the Dataset: it returns the same sample always.")]


def _scale(x: Tensor, where: str) -> list[Finding]:
    mean, std = x.mean().item(), x.std().item()
    if abs(mean) > 5 * std or std > 20 or std < 1e-3:
        what = f"values have mean {mean:.3g} and standard deviation {std:.3g}"
        return [Finding("input-scale", "warning", where, what, _STANDARDISE)]
    if x.ndim == 2 and x.shape[1] > 1:
        each = x.std(dim=0)
        each = each[each > 1e-8]
        if len(each) > 1 and each.max() > 1000 * each.min() and each.max() > 10:
            what = f"standard deviations of the features reach from {each.min().item():.2g} to {each.max().item():.2g}"
            return [Finding("input-scale", "warning", where, what, _STANDARDISE)]
    return []


def labels_range(labels: Tensor, num_classes: int, *, ignore_index: int = -100) -> list[Finding]:
    """Check class labels against the number of outputs.

    Example:
        >>> print(labels_range(torch.tensor([1, 2, 3]), 3)[0].what)
        labels reach from 1 to 3, but there are 3 outputs
    """
    labels = labels[labels != ignore_index]
    if not len(labels):
        return []
    low, high = int(labels.min()), int(labels.max())
    if low >= 0 and high < num_classes:
        return []
    what = f"labels reach from {low} to {high}, but there are {num_classes} outputs"
    return [Finding("labels-range", "error", "labels", what, "Number the classes from 0, one output for each.")]


def binary_labels_range(labels: Tensor) -> list[Finding]:
    """Check that labels for a binary loss are probabilities.

    Example:
        >>> print(binary_labels_range(torch.tensor([-1.0, 1.0]))[0].what)
        labels reach from -1 to 1, but a binary loss wants 0 to 1
    """
    if not len(labels) or (labels.min() >= 0 and labels.max() <= 1):
        return []
    what = f"labels reach from {labels.min().item():.3g} to {labels.max().item():.3g}, but a binary loss wants 0 to 1"
    return [Finding("labels-range", "error", "labels", what, "Use labels 0 and 1.")]


def samples_finite(inputs: Sequence[Tensor]) -> list[Finding]:
    """Look for NaN and infinity in many samples.

    Example:
        >>> samples_finite([torch.zeros(2), torch.tensor([torch.nan, 1])])[0].severity
        'error'
    """
    bad = sum(not x.isfinite().all() for x in inputs if x.is_floating_point())
    if not bad:
        return []
    what = f"{bad} of {len(inputs)} samples hold values that are NaN or infinite"
    return [Finding("input-nonfinite", "error", "inputs", what, "Remove such samples, or fill the gaps in.")]


def class_imbalance(labels: Tensor, *, weighted: bool = False) -> list[Finding]:
    """Compare the most frequent with the least frequent of the classes that occur, if there are enough labels.

    Args:
        labels: one axis.
        weighted: whether the loss has weights, which is the cure: then it is a note.
    """
    counts = torch.unique(labels, return_counts=True)[1]
    if not len(labels):
        return []
    if len(counts) == 1:
        what, cure = f"all {labels.numel()} labels are the same", "Look at the labels, and shuffle the training data."
        return [Finding("class-imbalance", "warning", "labels", what, cure)] if labels.numel() >= 16 else []
    if labels.numel() < 20 * len(counts) or counts.max() <= 10 * counts.min():
        return []
    what = f"the most frequent class is {counts.max().item() / counts.min().item():.0f} times the rarest"
    cure = "Weigh the loss by class or sample evenly, and look at more than accuracy."
    return [Finding("class-imbalance", "info" if weighted else "warning", "labels", what, cure)]


def unshuffled_training(loader: DataLoader[Any]) -> list[Finding]:
    """Check that the training loader shuffles."""
    if isinstance(loader.dataset, IterableDataset) or type(loader.sampler) is not SequentialSampler:
        return []
    batches = math.ceil(len(loader.dataset) / (loader.batch_size or 1))  # type: ignore[arg-type]
    if batches <= 1:
        return []
    what = f"its {batches} batches come in the same order in every epoch"
    return [Finding("unshuffled-training", "warning", "train_dataloader", what, "Pass shuffle=True to the DataLoader.")]


def batchnorm_batch_of_one(model: nn.Module, loader: DataLoader[Any]) -> list[Finding]:
    """Check that batch norm never sees a single sample in training."""
    norms = [name for name, m in model.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    if not norms or isinstance(loader.dataset, IterableDataset) or loader.batch_size is None:
        return []  # a batch sampler of one's own decides for itself
    rest = len(loader.dataset) % loader.batch_size  # type: ignore[arg-type]
    if loader.batch_size != 1 and (rest != 1 or loader.drop_last):
        return []
    last = "" if loader.batch_size == 1 else "the last "
    what = f"{last}batch holds 1 sample, whose mean and variance say nothing"
    cure = "Pass drop_last=True or another batch size, or use LayerNorm or GroupNorm."
    return [Finding("batchnorm-batch-of-one", "error", norms[0], what, cure)]


def split_overlap(train: Iterable[Any], val: Iterable[Any]) -> list[Finding]:
    """Look for validation samples that are in the training part, bit by bit.

    Args:
        train: inputs of training samples.
        val: inputs of validation samples.

    Example:
        >>> x = torch.rand(10, 3)
        >>> split_overlap(x, x[5:])[0].severity
        'error'
    """
    counts = Counter(_digest(x) for x in train)
    checked = [_digest(x) in counts for x in val]
    share = sum(checked) / len(checked) if checked else 0.0
    # Short texts and the like repeat themselves by chance, inside the training part as well.
    by_chance = sum(count for count in counts.values() if count > 1) / max(1, sum(counts.values()))
    if share < 0.01 or share < 3 * by_chance:
        return []
    what = f"{share:.1%} of {len(checked)} validation samples are training samples as well"
    cure = "Split once, before augmenting, and by group where samples belong together."
    severity = "error" if share > 0.2 else "warning"
    return [Finding("split-overlap", severity, "val_dataloader", what, cure)]  # type: ignore[arg-type]


def unseeded() -> list[Finding]:
    """Note a run that nobody can repeat: Lightning's ``seed_everything`` was not called."""
    if os.environ.get("PL_GLOBAL_SEED"):
        return []
    cure = "Call seed_everything(0, workers=True) first."
    return [Finding("unseeded", "info", "run", "no global seed was set, so that the run cannot be repeated", cure)]


def sample_input(sample: Any) -> Any:
    """Return the input of a sample or batch: the first of a sequence, the likeliest entry of a dict, or itself."""
    if isinstance(sample, dict):
        keys: Sequence[str] = [k for k in ("x", "input", "inputs", "image", "images", "input_ids") if k in sample]
        return sample[keys[0]] if keys else next(iter(sample.values()), None)
    return sample[0] if isinstance(sample, (tuple, list)) and sample else sample


def sample_label(sample: Any) -> Any:
    """Return what must be the label of a sample: the second of two items, the likeliest entry of a dict, or None.

    Example:
        >>> sample_label(("text", 3)), sample_label(("text", 17, 3))
        (3, None)
    """
    if isinstance(sample, dict):
        return next((sample[k] for k in ("y", "target", "targets", "label", "labels") if k in sample), None)
    return sample[1] if isinstance(sample, (tuple, list)) and len(sample) == 2 else None


def first_rows(batch: Any, count: int) -> Any:
    """Return a batch of its first rows.

    Example:
        >>> first_rows({"x": torch.arange(4), "name": "a"}, 2)
        {'x': tensor([0, 1]), 'name': 'a'}
    """
    if isinstance(batch, dict):
        return {key: first_rows(value, count) for key, value in batch.items()}
    if isinstance(batch, (tuple, list)):
        return [first_rows(value, count) for value in batch]
    return batch[:count] if isinstance(batch, Tensor) and batch.ndim else batch


def _digest(x: Any) -> bytes:
    tensor = torch.as_tensor(x).detach().cpu().contiguous()
    return hashlib.blake2b(tensor.numpy().tobytes(), digest_size=16).digest()
