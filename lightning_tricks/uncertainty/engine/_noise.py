"""Random numbers that are a pure function of (seed, call site, sample, row): the heart of reproducible masks.

NumPy's Philox is a counter-based generator (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"): any
part of any stream is reached at once, so a row's numbers do not depend on which batch, chunk or rank it is drawn in.
It is drawn outside torch, so no global stream moves and functorch has nothing to object to.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_tricks._base import derive_seed

Kind = Literal["uniform", "normal", "exponential"]

# Philox4x64 makes four 64-bit words per step of its counter.
_WORDS_PER_STEP = 4
# The row of numbers that all rows of a batch share; dataset indices are never negative.
SHARED_ROW = -1


@lru_cache(maxsize=4096)
def _site_key(seed: int, site: str) -> tuple[int, int]:
    return derive_seed(seed, site, 0), derive_seed(seed, site, 1)


class KeyedNoise:
    """Streams of random numbers, one per call site and row.

    Args:
        seed: of all streams.

    Example:
        >>> noise = KeyedNoise(seed=0)
        >>> both = noise.draw("uniform", "head", samples=range(2), rows=[7, 8], size=3)  # (S, B, 3)
        >>> one = noise.draw("uniform", "head", samples=range(1, 2), rows=[8], size=3)
        >>> bool((both[1, 1] == one[0, 0]).all())
        True
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._philox = np.random.Philox(key=0)
        self._state = self._philox.state

    def draw(self, kind: Kind, site: str, *, samples: range, rows: Sequence[int], size: int) -> Tensor:
        """Return float32 numbers of shape ``(S, B, size)``."""
        uniform = np.empty((len(samples), len(rows), size), dtype=np.float32)
        for position, row in enumerate(rows):
            # 23 bits and a half, which float32 holds exactly: never 0 or 1, so logarithms and quantiles stay finite
            words = self._words(site, row, samples, size, np.uint32) >> 9
            np.multiply(words + np.float32(0.5), np.float32(2**-23), out=uniform[:, position])
        return _SHAPED[kind](torch.from_numpy(uniform))

    def keep(self, site: str, keep: float, *, samples: range, rows: Sequence[int], size: int) -> Tensor:
        """Return a mask of zeros and ones, uint8 ``(S, B, size)``, one with probability ``keep``.

        ``keep`` is rounded to a multiple of 2⁻¹⁶, or of 2⁻²³ within 0.01 of 0 or 1.
        """
        if not 0.01 <= keep <= 0.99:
            return (self.draw("uniform", site, samples=samples, rows=rows, size=size) < keep).view(torch.uint8)
        mask = np.empty((len(samples), len(rows), size), dtype=np.bool_)
        below = round(keep * 65536) - 32768
        for position, row in enumerate(rows):
            np.less(self._words(site, row, samples, size, np.int16), below, out=mask[:, position])
        return torch.from_numpy(mask).view(torch.uint8)

    def _words(self, site: str, row: int, samples: range, size: int, dtype: type) -> NDArray[Any]:
        """Return random words ``(S, size)`` of one row; each sample starts at a step of the counter of its own."""
        per_step = _WORDS_PER_STEP * 8 // np.dtype(dtype).itemsize
        steps = -(-size // per_step)
        self._seek(site, row, samples.start * steps)
        words: NDArray[Any] = self._philox.random_raw(len(samples) * steps * _WORDS_PER_STEP)
        return words.view(dtype).reshape(len(samples), -1)[:, :size]

    def _seek(self, site: str, row: int, step: int) -> None:
        state = self._state
        state["state"]["key"][:] = _site_key(self.seed, site)
        state["state"]["counter"][:] = (step, 0, row % 2**64, 0)
        state["buffer_pos"] = _WORDS_PER_STEP  # what is left of the last step's words is stale
        self._philox.state = state


_SHAPED: dict[Kind, Callable[[Tensor], Tensor]] = {
    "uniform": lambda u: u,
    "normal": torch.special.ndtri,
    "exponential": lambda u: -torch.log(u),
}
