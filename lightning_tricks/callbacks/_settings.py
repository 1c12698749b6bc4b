"""Settings of a checkpoint against settings of today."""

from collections.abc import Mapping
from typing import Any

from lightning.pytorch.utilities import rank_zero_info


def report_changes(who: str, was: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Say in the log which settings differ from the checkpoint's; today's hold."""
    changes = [f"{name} is {now[name]}, was {was[name]}" for name in now if name in was and was[name] != now[name]]
    if changes:
        rank_zero_info(f"{who}: not as in the checkpoint: {'; '.join(changes)}.")
