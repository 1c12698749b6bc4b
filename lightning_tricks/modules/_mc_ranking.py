"""The rows that the model is least sure of, kept while a set streams by."""

from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from lightning_tricks._base import log_figure, log_table
from lightning_tricks.modules._mc_batches import Task

# As many rows as a table shows without scrolling, and pictures as fit into two lines.
_KEPT = 32
_PICTURES = 8


class UncertainRows:
    """Keeps the most and the least uncertain rows of this rank; memory for a few dozen rows.

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
        values = summary[self.name].flatten(1).mean(1) if summary[self.name].dim() > 1 else summary[self.name]
        answers = summary.get("label", summary["mean"])
        pictures = inputs if isinstance(inputs, Tensor) and inputs.dim() == 4 and inputs.shape[1] in (1, 3) else None
        order = values.argsort()
        for at in {*order[:_KEPT].tolist(), *order[-_KEPT:].tolist()}:
            self._rows.append(
                {
                    "index": int(index[at]),
                    self.name: float(values[at]),
                    "prediction": _cell(answers[at]),
                    "target": _cell(target[at]),
                    "picture": None if pictures is None else pictures[at].detach().float().cpu(),
                }
            )
        self._rows.sort(key=lambda row: -row[self.name])
        self._rows = self._rows[:_KEPT] + self._rows[_KEPT:][-_PICTURES:]

    def log(self, trainer: Trainer, stage: str) -> None:
        """Write the table, and pictures of both ends, to the loggers; start anew."""
        rows, self._rows = self._rows, []
        if not rows or trainer.sanity_checking:
            return
        columns = ["index", self.name, "prediction", "target"]
        log_table(trainer, f"{stage}/most_uncertain", columns, [[row[c] for c in columns] for row in rows[:_KEPT]])
        if rows[0]["picture"] is None or len({row["picture"].shape for row in rows}) > 1:
            return
        from lightning_tricks.plots import most_uncertain_pictures

        figure = most_uncertain_pictures(
            torch.stack([row["picture"] for row in rows]),
            torch.tensor([row[self.name] for row in rows]),
            labels=[row["target"] for row in rows],
            predictions=[row["prediction"] for row in rows],
            count=_PICTURES,
            name=self.name.replace("_", " "),
        )
        log_figure(trainer, f"{stage}/most_uncertain_pictures", figure)


def _cell(value: Any) -> str | int | float:
    if not isinstance(value, Tensor):
        return str(value)
    if value.numel() == 1:
        return value.item()
    return " ".join(f"{x:.4g}" for x in value.flatten()[:8].tolist())
