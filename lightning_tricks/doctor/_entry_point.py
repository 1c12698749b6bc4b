"""What Lightning calls for every Trainer of every program: it must cost nothing unless it is switched on.

Registered in ``pyproject.toml`` under the entry-point group ``lightning.pytorch.callbacks_factory``.
"""

import json
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightning.pytorch import Callback

VARIABLE = "LIGHTNING_TRICKS_RUN"


def callbacks() -> "list[Callback]":
    """Return the callback that adds the chosen tricks, or nothing if the environment variable is not set."""
    settings = os.environ.get(VARIABLE)
    if not settings:
        return []
    from lightning_tricks.doctor._attach import AttachTricks

    return [AttachTricks(**json.loads(settings))]
