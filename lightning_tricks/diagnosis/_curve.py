"""The training loss as windows of steps, with its noise; fed step by step, bounded in size."""

import itertools
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

_MOST_WINDOWS, _RECENT = 256, 200


@dataclass(frozen=True)
class Window:
    """Losses of neighbouring steps.

    Attributes:
        end: number of steps until its end.
        count: finite losses in it.
        mean: their mean.
        median: their median.
        noise: standard deviation of one step's loss about the trend, from differences of neighbours, robust.
    """

    end: int
    count: int
    mean: float
    median: float
    noise: float

    @property
    def error(self) -> float:
        """Standard error of the mean."""
        return self.noise / math.sqrt(self.count)


class LossCurve:
    """What the loss did so far.

    Args:
        window: steps per window. When there are too many windows, neighbours are joined.

    Example:
        >>> curve = LossCurve(window=10)
        >>> curve.add(1 / step for step in range(1, 41))
        >>> len(curve.windows), round(curve.level, 3), curve.steps
        (4, 0.028, 40)
    """

    def __init__(self, window: int = 25) -> None:
        self.window = window
        self.steps = 0
        self.first: list[float] = []  # as many as a window has
        self.recent: list[float] = []
        self.windows: list[Window] = []
        self.first_nonfinite: int | None = None
        self._open: list[float] = []

    def add(self, losses: Iterable[float]) -> None:
        """Take the losses of further steps."""
        for loss in losses:
            self.steps += 1
            if not math.isfinite(loss):
                if self.first_nonfinite is None:
                    self.first_nonfinite = self.steps - 1
                continue
            if len(self.first) < self.window:
                self.first.append(loss)
            self.recent.append(loss)
            self._open.append(loss)
            if len(self._open) == self.window:
                self._close()
        del self.recent[:-_RECENT]

    def _close(self) -> None:
        self.windows.append(window_of(self._open, self.steps))
        self._open = []
        if len(self.windows) > _MOST_WINDOWS:
            pairs = zip(self.windows[::2], self.windows[1::2], strict=False)
            rest = self.windows[len(self.windows) // 2 * 2 :]
            self.windows = [_joined(a, b) for a, b in pairs] + rest

    def start(self, count: int = 5) -> float:
        """Return the median of the first losses; NaN before there are any."""
        return statistics.median(self.first[:count]) if self.first else math.nan

    @property
    def noise(self) -> float:
        """Standard deviation of one step's loss at the beginning."""
        return noise_of(self.first)

    @property
    def level(self) -> float:
        """Median of the last window; NaN before there is one."""
        return self.windows[-1].median if self.windows else math.nan

    @property
    def best(self) -> Window | None:
        """The window with the smallest mean."""
        return min(self.windows, key=lambda window: window.mean, default=None)

    def points(self) -> tuple[list[int], list[float]]:
        """Return steps and means of the windows, for a picture; the first losses one by one."""
        steps = [*range(1, len(self.first) + 1), *(window.end for window in self.windows[1:])]
        values = [*self.first, *(window.mean for window in self.windows[1:])]
        if self._open and self.steps > len(self.first):
            steps.append(self.steps)
            values.append(statistics.fmean(self._open))
        return steps, values

    def state_dict(self) -> dict[str, Any]:
        """Return plain data."""
        plain = {name: getattr(self, name) for name in ("window", "steps", "first_nonfinite")}
        lists = {name: list(getattr(self, name)) for name in ("first", "recent", "_open")}
        return {**plain, **lists, "windows": [asdict(window) for window in self.windows]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`state_dict` returned."""
        for name, value in state.items():
            setattr(self, name, list(value) if isinstance(value, list) else value)
        self.windows = [Window(**window) for window in state["windows"]]


def window_of(losses: Sequence[float], end: int) -> Window:
    """Sum up the losses of neighbouring steps."""
    return Window(end, len(losses), statistics.fmean(losses), statistics.median(losses), noise_of(losses))


def noise_of(losses: Sequence[float]) -> float:
    """Return the standard deviation of single losses about their trend: robust, and blind to a slow fall.

    Example:
        >>> noise_of([3.0, 2.0, 1.0]), noise_of([1.0])
        (0.0, 0.0)
    """
    steps = [b - a for a, b in itertools.pairwise(losses)]
    if not steps:
        return 0.0
    middle = statistics.median(steps)
    return 1.4826 * statistics.median(abs(step - middle) for step in steps) / math.sqrt(2)


def _joined(a: Window, b: Window) -> Window:
    count = a.count + b.count
    mean = (a.count * a.mean + b.count * b.mean) / count
    return Window(b.end, count, mean, (a.median + b.median) / 2, math.hypot(a.noise, b.noise) / math.sqrt(2))


def alternation(losses: Sequence[float]) -> float:
    """Return the lag-one autocorrelation of losses about their straight line: about 0 for noise, -1 for zigzag.

    Example:
        >>> round(alternation([1.0, 2.0] * 20), 1), alternation([1.0, 1.0])
        (-1.0, 0.0)
    """
    n = len(losses)
    if n < 8:
        return 0.0
    middle, mean = (n - 1) / 2, statistics.fmean(losses)
    weight = sum((i - middle) ** 2 for i in range(n))
    slope = sum((i - middle) * loss for i, loss in enumerate(losses)) / weight
    rest = [loss - mean - slope * (i - middle) for i, loss in enumerate(losses)]
    total = sum(r * r for r in rest)
    return sum(a * b for a, b in itertools.pairwise(rest)) / total if total > 0 else 0.0
