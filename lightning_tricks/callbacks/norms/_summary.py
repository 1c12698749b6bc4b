"""The few numbers of many that a logger gets."""

import math
from collections.abc import Sequence

from lightning_tricks.callbacks.norms._history import TOTAL, Block, NormHistory, Row, block_rows

_QUANTILES = {"q10": 0.1, "median": 0.5, "q90": 0.9}


def step_metrics(block: Block, record: int, *, several: bool) -> dict[str, float]:
    """Return totals and quantiles over the layers of one measured step.

    Args:
        block: what was measured.
        record: which step of the block.
        several: whether the names say which optimizer it was.
    """
    total, *layers = block_rows(block, record)
    prefix = f"norms/optimizer{block.optimizers[record]}/" if several else "norms/"
    numbers = {
        "gradient": total.gradient_norm,
        "gradient_clipped": total.clipped_gradient_norm,
        "weight": total.weight_norm,
        "update": total.update_norm,
        "nonfinite_gradients": total.nonfinite_gradients,
        "clipped": float(total.clipped),
        **quantiles("gradient", [row.gradient_norm for row in layers]),
        **quantiles("update_ratio", [row.update_ratio for row in layers]),
    }
    return {prefix + name: number for name, number in numbers.items() if not math.isnan(number)}


def quantiles(name: str, values: Sequence[float]) -> dict[str, float]:
    """Return the 10 %, 50 % and 90 % quantiles of the finite values.

    Example:
        >>> quantiles("gradient", [1.0, 2.0, 3.0, float("nan")])["gradient/median"]
        2.0
    """
    finite = sorted(value for value in values if math.isfinite(value))
    return {f"{name}/{key}": _at(finite, q * (len(finite) - 1)) for key, q in _QUANTILES.items()} if finite else {}


def _at(ranked: Sequence[float], place: float) -> float:
    low = math.floor(place)
    high = min(low + 1, len(ranked) - 1)
    return ranked[low] + (place - low) * (ranked[high] - ranked[low])


def layer_table(history: NormHistory, worst: int) -> tuple[list[str], list[list[str | int | float | None]]]:
    """Return head and rows of the layers with the largest and the smallest update ratio in the last record."""
    rows = [row for row in history.rows(len(history) - 1) if row.layer != TOTAL]

    def value(row: Row) -> float:
        return row.gradient_norm if math.isnan(row.update_ratio) else row.update_ratio

    ranked = sorted((row for row in rows if not math.isnan(value(row))), key=value)
    chosen = dict.fromkeys(row.layer for row in [*ranked[:worst], *ranked[-worst:]])
    head = ["layer", "step", "gradient_norm", "weight_norm", "update_ratio", "nonfinite_gradients"]
    body = [[_cell(getattr(row, name)) for name in head] for row in ranked if row.layer in chosen]
    return head, body


def _cell(value: float | str | int) -> float | str | int | None:
    return None if isinstance(value, float) and math.isnan(value) else value
