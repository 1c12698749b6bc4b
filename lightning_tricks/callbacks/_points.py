"""Which measured steps become points in a logger, each exactly once, whatever checkpoints come between."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

Metrics = Mapping[str, float]


class _Point(NamedTuple):
    step: int
    owner: int
    metrics: Callable[[], Metrics]


class Points:
    """Measured steps on their way to the loggers.

    Every measured step is a point. Where more steps are measured than logged, it is the last one of each logging
    interval instead, so that ``log_every_n_steps`` bounds what a logger gets.

    Args:
        measure_every: steps between two measurements, at least 1.
        log_every: the trainer's ``log_every_n_steps``, at least 1.

    Example:
        >>> points = Points(measure_every=1, log_every=2)
        >>> for step in range(5):
        ...     points.add(step, lambda step=step: {"norm": float(step)})
        >>> list(points.ready(now=5))
        [(1, {'norm': 1.0}), (3, {'norm': 3.0})]
        >>> list(points.ready(now=None))
        [(4, {'norm': 4.0})]
    """

    def __init__(self, measure_every: int = 1, log_every: int = 1) -> None:
        self._interval = log_every if measure_every < log_every else 1
        self._queue: list[_Point] = []

    def add(self, step: int, metrics: Callable[[], Metrics], *, owner: int = 0) -> None:
        """Take a measured step; its numbers are asked for only if it becomes a point.

        Args:
            step: steps come in ascending order.
            metrics: makes the numbers by name.
            owner: the optimizer it belongs to; each has points of its own.
        """
        self._queue.append(_Point(step, owner, metrics))

    def ready(self, now: int | None) -> Iterator[tuple[int, Metrics]]:
        """Yield what is due, as (step, numbers), and forget it.

        Args:
            now: the step that comes next: the interval that it lies in is not over. None if nothing comes any more.
        """
        last = {(point.owner, point.step // self._interval): point for point in self._queue}
        points = sorted(last.values(), key=lambda point: point.step)
        self._queue = [] if now is None else [p for p in points if self._is_open(p.step, now)]
        for point in points:
            if now is None or not self._is_open(point.step, now):
                yield point.step, point.metrics()

    def _is_open(self, step: int, now: int) -> bool:
        return self._interval > 1 and step // self._interval >= now // self._interval

    def state_dict(self) -> list[Any]:
        """Return what is not due yet, as plain numbers."""
        return [[point.step, point.owner, dict(point.metrics())] for point in self._queue]

    def load_state_dict(self, state: Sequence[Sequence[Any]]) -> None:
        """Take over what an interrupted run had not logged yet."""
        for step, owner, metrics in state:
            self.add(step, dict(metrics).copy, owner=owner)
