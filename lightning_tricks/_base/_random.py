"""Seeds from keys, and a guard that gives every random stream back untouched."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from typing import Any

import numpy as np
import torch


def derive_seed(*key: int | str) -> int:
    """Return a 63-bit seed that is a pure function of the key, the same on every machine.

    Example:
        >>> derive_seed(0, "layer.weight") == derive_seed(0, "layer.weight") != derive_seed(1, "layer.weight")
        True
    """
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in key)
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def rng_state() -> dict[str, Any]:
    """Return the state of every global random stream (Python, NumPy, torch, every initialised CUDA device).

    The result holds only tensors, numbers, strings, lists and dicts, so that it loads with ``weights_only=True``.
    """
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()  # noqa: NPY002 - the global stream is the point
    state: dict[str, Any] = {
        "python": [version, list(words), gauss],
        "numpy": [
            name,
            torch.from_numpy(np.asarray(keys).astype(np.int64)),
            int(position),
            int(has_gauss),
            float(cached),
        ],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_rng_state(state: dict[str, Any]) -> None:
    """Put back what :func:`rng_state` returned."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        for device, device_state in enumerate(state["cuda"][: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(device_state, device)


@contextmanager
def isolated_rng(seed: int | None = None) -> Iterator[None]:
    """Run a block without moving any global random stream, optionally with all of them seeded.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> before = torch.get_rng_state()
        >>> with isolated_rng(seed=1):
        ...     _ = torch.rand(3)
        >>> bool((before == torch.get_rng_state()).all())
        True
    """
    state = rng_state()
    try:
        if seed is not None:
            random.seed(seed)
            np.random.seed(seed % 2**32)  # noqa: NPY002
            torch.manual_seed(seed)
        yield
    finally:
        set_rng_state(state)
