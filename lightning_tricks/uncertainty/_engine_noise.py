"""Random numbers that are a pure function of (seed, call site, sample, row): the heart of reproducible masks.

NumPy's Philox is a counter-based generator (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"): any
part of any stream is reached at once, so a row's numbers do not depend on which batch, chunk or rank it is drawn in.
It is drawn outside torch, so no global stream moves and functorch has nothing to object to.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_tricks._base import derive_seed

Kind = Literal["halves", "uniform", "normal", "exponential"]

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
        """Return random numbers of shape ``(S, B, size)``: int16 for ``"halves"``, float32 otherwise."""
        per_word = 4 if kind == "halves" else 2
        steps = -(-size // (per_word * _WORDS_PER_STEP))
        words = np.empty((len(rows), len(samples), steps * _WORDS_PER_STEP), dtype=np.uint64)
        for row, into in zip(rows, words, strict=True):
            self._seek(site, row, samples.start * steps)
            into.reshape(-1)[:] = self._philox.random_raw(into.size)
        if kind == "halves":
            numbers = torch.from_numpy(words.view(np.int16)[..., :size])
        else:
            numbers = _SHAPED[kind](_open_uniform(words.view(np.uint32)[..., :size]))
        return numbers.transpose(0, 1)

    def keep(self, site: str, keep: float, *, samples: range, rows: Sequence[int], size: int) -> Tensor:
        """Return a Boolean mask of shape ``(S, B, size)``, true with probability ``keep``.

        ``keep`` is rounded to a multiple of 2⁻¹⁶, or of 2⁻²⁴ within 0.01 of 0 or 1.
        """
        if not 0.01 <= keep <= 0.99:
            return self.draw("uniform", site, samples=samples, rows=rows, size=size) < keep
        halves = self.draw("halves", site, samples=samples, rows=rows, size=size)
        return halves < round(keep * 65536) - 32768

    def _seek(self, site: str, row: int, step: int) -> None:
        state = self._state
        state["state"]["key"][:] = _site_key(self.seed, site)
        state["state"]["counter"][:] = (step, 0, row % 2**64, 0)
        state["buffer_pos"] = _WORDS_PER_STEP  # what is left of the last step's words is stale
        self._philox.state = state


def _open_uniform(words: NDArray[np.uint32]) -> Tensor:
    """Map 32-bit words to float32 in the open interval (0, 1), 24 bits deep."""
    return torch.from_numpy(((words >> 8).astype(np.float32) + np.float32(0.5)) * np.float32(2**-24))


_SHAPED = {
    "uniform": lambda u: u,
    "normal": torch.special.ndtri,
    "exponential": lambda u: -torch.log(u),
}
