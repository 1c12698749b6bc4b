"""Scripts that are not ours, run unchanged with our callbacks.

Lightning imports this subpackage in every program (see ``_entry_point``), so it loads nothing until a name is touched.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_tricks.doctor._launch import run_script as run_script

__all__ = ["run_script"]


def __getattr__(name: str) -> Any:
    if name != "run_script":
        raise AttributeError(f"module 'lightning_tricks.doctor' has no attribute {name!r}")
    from lightning_tricks.doctor._launch import run_script

    return run_script
