"""What an augmentation makes of pictures."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Shaped
from matplotlib.figure import Figure

from lightning_tricks.plots._data import plot_image_rows


def plot_augmented(
    before: Shaped[np.ndarray, "N C H W"], after: Sequence[Shaped[np.ndarray, "N C H W"]], captions: Sequence[str] = ()
) -> Figure:
    """Draw each picture on a row of its own: as it is, and beside it what it became.

    Args:
        before: uint8 or floats in [0, 1], of 1 or 3 channels.
        after: one batch per column, such as one per epoch, of the same pictures.
        captions: one line over each of these columns; ``draw 1``, ``draw 2``, ... if not given.

    Example:
        >>> figure = plot_augmented(np.zeros((3, 1, 8, 8)), [np.ones((3, 1, 8, 8))] * 2)
        >>> len(figure.axes), [ax.get_title() for ax in figure.axes[:3]]
        (9, ['original', 'draw 1', 'draw 2'])
    """
    columns = [_unit(before), *(_unit(batch) for batch in after)]
    names = captions or [f"draw {number}" for number in range(1, len(after) + 1)]
    rows = [("", np.stack([batch[i] for batch in columns])) for i in range(len(before))]
    return plot_image_rows(rows, ["original", *names])


def _unit(pictures: Shaped[np.ndarray, "N C H W"]) -> Shaped[np.ndarray, "N C H W"]:
    # Rounding may take floats a little beyond [0, 1].
    return pictures / np.float32(255) if pictures.dtype == np.uint8 else np.clip(pictures, 0, 1)
