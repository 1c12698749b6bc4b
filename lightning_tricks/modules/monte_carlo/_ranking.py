"""The rows that the model is least sure of, kept while a set streams by."""

import math
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from lightning_tricks._base import log_figure, log_table
from lightning_tricks.modules.monte_carlo._batches import Task
from lightning_tricks.modules.monte_carlo._pictures import wants_pictures

# As many rows as a table shows without scrolling, and pictures as fit into two lines.
_KEPT = 32
_PICTURES = 8


class UncertainRows:
    """Keeps the most and the least uncertain rows; memory for a few dozen rows.

    Uncertainty is the mutual information for classes (epistemic), the standard deviation for a regression, averaged
    over what follows the batch axis.

    Args:
        task: what the predictions are.
    """

    def __init__(self, task: Task) -> None:
        self.name = "std" if task == "regression" else "mutual_info"
        self._rows: list[dict[str, Any]] = []

    def update(self, summary: dict[str, Tensor], index: Tensor, target: Any, inputs: Any) -> None:
        """Look at a batch."""
        each = summary[self.name]
        values = each.flatten(1).mean(1) if each.dim() > 1 else each
        answers = summary.get("label", summary["mean"])
        pictures = inputs if isinstance(inputs, Tensor) and inputs.dim() == 4 and inputs.shape[1] in (1, 3) else None
        order = values.argsort()
        for at in {*order[:_KEPT].tolist(), *order[-_KEPT:].tolist()}:
            row = {
                "index": int(index[at]),
                self.name: float(values[at]),
                "prediction": _cell(answers[at]),
                "target": _cell(target[at]),
            }
            if pictures is not None:
                row["picture"] = _copied(pictures[at])
            if pictures is not None and each.dim() == 3:
                row["map"] = _copied(each[at])  # uncertainty pixel by pixel
            self._rows.append(row)
        self._rows = _both_ends(self._rows, self.name)

    def log(self, trainer: Trainer, prefix: str) -> None:
        """Write the table, and pictures of both ends, of all ranks' rows to the loggers; start anew."""
        rows, self._rows = _both_ends(_of_all_ranks(self._rows, trainer.world_size), self.name), []
        if not rows or not wants_pictures(trainer):
            return
        columns = list(rows[0])
        log_table(trainer, f"{prefix}/most_uncertain", columns, [[row[c] for c in columns] for row in rows[:_KEPT]])
        same = len({row["picture"].shape for row in rows if "picture" in row}) == 1
        if not same or all(math.isnan(row[self.name]) for row in rows):
            return
        from lightning_tricks.plots import most_uncertain_pictures

        told = not isinstance(rows[0]["prediction"], Tensor)
        figure = most_uncertain_pictures(
            torch.stack([row["picture"] for row in rows]),
            torch.tensor([row[self.name] for row in rows]),
            labels=[row["target"] for row in rows] if told else None,
            predictions=[row["prediction"] for row in rows] if told else None,
            count=_PICTURES,
            name=self.name.replace("_", " ") + (" (nats)" if self.name == "mutual_info" else ""),
        )
        log_figure(trainer, f"{prefix}/most_uncertain_pictures", figure)


def _both_ends(rows: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    # What is NaN comes first: nobody is less sure.
    rows = sorted(rows, key=lambda row: (row[name] == row[name], -row[name], row["index"]))
    return rows[:_KEPT] + rows[_KEPT:][-_PICTURES:]


def _of_all_ranks(rows: list[dict[str, Any]], world_size: int) -> list[dict[str, Any]]:
    if world_size == 1:
        return rows
    gathered: list[Any] = [None] * world_size
    torch.distributed.all_gather_object(gathered, rows)
    together = {row["index"]: row for part in gathered for row in part}  # a sampler may give a row to two ranks
    return list(together.values())


def _copied(picture: Tensor) -> Tensor:
    # A copy, since a view would hold its whole batch.
    return picture.detach().float().cpu().clone()


def _cell(value: Any) -> str | int | float | Tensor:
    if not isinstance(value, Tensor):
        return str(value)
    if value.numel() == 1:
        return value.item()
    if value.dim() == 2:  # a map of labels or values
        return _copied(value)
    return " ".join(f"{x:.4g}" for x in value.flatten()[:8].tolist())
