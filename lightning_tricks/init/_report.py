"""What an initialisation did."""

from dataclasses import dataclass, field
from typing import NamedTuple

COLUMNS = ("parameter", "shape", "module", "rule", "why", "std")
SIGNAL_COLUMNS = ("layer", "output std before", "output std after", "gradient std before", "gradient std after")


class InitRow(NamedTuple):
    """One parameter: what was done to it and why; ``rule`` is ``"left alone"`` where nothing was."""

    parameter: str
    shape: tuple[int, ...]
    module: str
    rule: str
    why: str
    std: float


class Signal(NamedTuple):
    """Standard deviations at one layer, before and after; NaN where there was no weight to measure with."""

    layer: str
    output_before: float
    output_after: float
    gradient_before: float
    gradient_after: float


@dataclass(frozen=True)
class InitReport:
    """What :func:`init_weights` matched by which rule and why, and what it did to the signal.

    Attributes:
        scheme: the scheme asked for.
        source: how it was found out what follows each layer.
        rows: one :class:`InitRow` per parameter, in order of registration.
        signals: one :class:`Signal` per layer in order of execution; empty without an example.

    Example:
        >>> from torch import nn
        >>> from lightning_tricks import init_weights
        >>> report = init_weights(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)))
        >>> [(row.parameter, row.rule, row.why) for row in report.matched if "weight" in row.parameter]
        [('0.weight', 'kaiming_normal', 'relu follows, gain 1.414'), ('2.weight', 'xavier_normal', 'linear head')]
    """

    scheme: str
    source: str
    rows: list[InitRow] = field(repr=False)
    signals: list[Signal] = field(default_factory=list, repr=False)

    @property
    def matched(self) -> list[InitRow]:
        """The parameters that were drawn or set anew."""
        return [row for row in self.rows if row.rule != "left alone"]

    @property
    def left_alone(self) -> list[InitRow]:
        """The parameters that were not touched, each with its reason."""
        return [row for row in self.rows if row.rule == "left alone"]

    def table(self) -> list[tuple[str, str, str, str, str, float]]:
        """Return the rows with the shape as text, under :data:`COLUMNS`."""
        return [(r.parameter, "x".join(map(str, r.shape)) or "1", r.module, r.rule, r.why, r.std) for r in self.rows]

    def __str__(self) -> str:
        """Return what was done as aligned text."""
        lines = [
            f"init_weights({self.scheme!r}): {len(self.matched)} parameters set, {len(self.left_alone)} left alone",
            self.source,
        ]
        body = [(*(str(cell) for cell in row[:5]), f"{row[5]:.4g}") for row in self.table()]
        lines += _aligned([COLUMNS, *body])
        if self.signals:
            lines += ["", *_aligned([SIGNAL_COLUMNS, *((s[0], *(f"{x:.3g}" for x in s[1:])) for s in self.signals)])]
        return "\n".join(lines)


def _aligned(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
