"""Which slot belongs to which round, and where in the unit interval each slot's point lies: pure functions of keys."""

from dataclasses import dataclass

import numpy as np

from lightning_tricks._base import derive_seed

# Below this many trials, rounds of one or two points decide nothing: all of them go into the coarse round.
FEWEST_FOR_ROUNDS = 16


@dataclass(frozen=True)
class Place:
    """Where a slot lies: in round ``round`` (0 is the coarse one), as point ``index`` of ``size``."""

    round: int
    index: int
    size: int


@dataclass(frozen=True)
class RoundPlan:
    """The sizes of the rounds.

    Args:
        n_trials: budget.
        coarse: share of the budget that the coarse round gets.
        rounds: number of fine rounds that share the rest.

    Example:
        >>> RoundPlan(64, 0.5, 4).sizes, RoundPlan(27, 0.5, 4).sizes, RoundPlan(10, 0.5, 4).sizes
        ((32, 8, 8, 8, 8), (14, 4, 3, 3, 3), (10,))
        >>> RoundPlan(64, 0.5, 4).locate(33)
        Place(round=1, index=1, size=8)
    """

    n_trials: int
    coarse: float
    rounds: int

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of points in each round; together ``n_trials``."""
        first = max(1, int(self.n_trials * self.coarse + 0.5))
        rest = self.n_trials - first
        if self.n_trials < FEWEST_FOR_ROUNDS or rest <= 0 or self.rounds == 0:
            return (self.n_trials,)
        rounds = min(self.rounds, rest)
        return (first, *(rest // rounds + (number < rest % rounds) for number in range(rounds)))

    def locate(self, slot: int) -> Place:
        """Return the place of a slot. Slots past the budget go on in rounds as large as the last one."""
        start = 0
        for number, size in enumerate(self.sizes):
            if slot < start + size:
                return Place(number, slot - start, size)
            start += size
        size = self.sizes[-1]
        return Place(len(self.sizes) + (slot - start) // size, (slot - start) % size, size)


def latin_hypercube(seed: int, round_number: int, name: str, index: int, size: int) -> float:
    """Return one coordinate in [0, 1) of one point of a Latin hypercube.

    Each parameter has its own stream, found by its name, so that parameters need not be known beforehand: of the
    ``size`` points of a round exactly one falls into each of ``size`` equal parts of every axis (McKay et al. 1979).

    Example:
        >>> sorted(int(4 * latin_hypercube(0, 0, "lr", index, 4)) for index in range(4))
        [0, 1, 2, 3]
    """
    rng = np.random.default_rng(derive_seed(seed, "latin hypercube", round_number, name))
    cells, offsets = rng.permutation(size), rng.random(size)
    return float((cells[index] + offsets[index]) / size)


def uniform(seed: int, kind: str, number: int, name: str) -> float:
    """Return a number in [0, 1) that depends on the key alone.

    Example:
        >>> uniform(0, "random", 3, "lr") == uniform(0, "random", 3, "lr") != uniform(0, "random", 4, "lr")
        True
    """
    return float(np.random.default_rng(derive_seed(seed, kind, number, name)).random())
