"""Look up a monitored metric, and say what exists when it does not."""

import re
from difflib import get_close_matches
from typing import Literal

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from lightning_tricks._base._messages import UserInputError

# Words of metrics that shrink when the model gets better; they win over those that grow ("iou_loss").
_SMALLER = """
    augrc aurc bce bpc bpd brier ce cer cost crps deviance distance divergence ece eer entropy err error errors fid
    fnr fpr hamming hinge kl loss losses lpips mae mape medae mse nll perplexity ppl regret rmse smape violation
    wer xent
"""
_LARGER = """
    acc accuracy ap auc aupr auprc auroc bleu corr correlation dice elbo f1 f2 fbeta fscore iou jaccard kappa
    likelihood map match matthews mcc miou mrr ndcg npv pearson ppv prauc precision psnr r2 recall return returns
    reward rewards rouge score sensitivity similarity snr spearman specificity ssim success tnr top tpr
"""
_SMALLER_IS_BETTER, _LARGER_IS_BETTER = frozenset(_SMALLER.split()), frozenset(_LARGER.split())
_NEGATED = frozenset({"neg", "negative"})  # neg_log_loss, as scikit-learn names it; negative_log_likelihood
# Areas under curves that say how well errors are told apart: "error_auroc" grows, "auroc_error" is an error.
_DETECTION = frozenset(["ap", "auc", "aupr", "auprc", "auroc", "prauc"])
_ERRORS = frozenset(["err", "error", "errors"])
_WORD = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+\d*|[A-Z]+\d*")


class MissingMetricError(UserInputError):
    """The monitored metric was not logged."""


def monitored_value(trainer: Trainer, monitor: str, *, who: str) -> Tensor:
    """Return the latest value of a logged metric as a 0-d tensor.

    Args:
        trainer: the trainer whose ``callback_metrics`` to read.
        monitor: the metric's name.
        who: who asks, for the message ("EarlyStopping").

    Raises:
        MissingMetricError: with the names that do exist.
    """
    if monitor in trainer.callback_metrics:
        return trainer.callback_metrics[monitor]
    known = ", ".join(sorted(map(str, trainer.callback_metrics))) or "none yet"
    raise MissingMetricError(
        f"{who} monitors {monitor!r}, but that metric was not logged. Logged so far: {known}. "
        f"Log it with self.log({monitor!r}, value), or monitor one of these."
    )


def check_monitor_early(trainer: Trainer, monitor: str, *, who: str) -> None:
    """Look for a monitored validation metric right after the sanity check, before training starts.

    A metric may well be logged in training only, or be left out of the sanity check, so a missing one is an error only
    where the validation logged a name that it seems to be misspelt from.

    Args:
        trainer: the trainer, at ``on_sanity_check_end``.
        monitor: the metric's name.
        who: who asks, for the message ("EarlyStopping").

    Raises:
        MissingMetricError: with the names that do exist.
    """
    logged = sorted(map(str, trainer.callback_metrics))
    if monitor in logged or monitor.startswith("train"):
        return
    if nearest := get_close_matches(monitor, logged, n=1, cutoff=0.8):
        raise MissingMetricError(
            f"{who} monitors {monitor!r}, but the sanity check's validation logged {', '.join(logged)}. "
            f"Did you mean {nearest[0]!r}?"
        )


def infer_mode(monitor: str, mode: Literal["auto", "min", "max"] = "auto") -> Literal["min", "max"]:
    """Whether smaller or larger is better, from the words of the name unless said.

    A name that says nothing is taken for a loss, which the log tells.

    Example:
        >>> infer_mode("val_loss"), infer_mode("val_acc"), infer_mode("val_acc", "min")
        ('min', 'max', 'min')
        >>> infer_mode("val_top5"), infer_mode("val/MulticlassF1Score"), infer_mode("val_brier_score")
        ('max', 'max', 'min')
        >>> infer_mode("error_auroc"), infer_mode("val_mIoU")
        ('max', 'max')
    """
    if mode != "auto":
        return mode
    found = [word.lower() for word in _WORD.findall(monitor.replace("IoU", "Iou"))]
    if any(word in _DETECTION and _ERRORS & set(found[:place]) for place, word in enumerate(found)):
        found = [word for word in found if word not in _ERRORS]
    words = {*found, *(word.rstrip("0123456789") for word in found)}
    losses, gains = words & _SMALLER_IS_BETTER, words & _LARGER_IS_BETTER
    if losses or gains:
        is_loss = bool(losses)
        if words & _NEGATED and not (losses and gains - {"score"}):
            is_loss = not is_loss
        return "min" if is_loss else "max"
    rank_zero_info(
        f"The name {monitor!r} does not tell whether smaller or larger is better; smaller is taken to be. "
        "Say mode='min' or mode='max' to be sure."
    )
    return "min"
