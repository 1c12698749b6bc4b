"""Who of several searches trains what: a file that only one of them can create."""

import json
from pathlib import Path
from typing import Any

from lightning_tricks.tune.execution._heartbeat import Watch, beat, read_beat, this_worker


class Claim:
    """The right to train in a folder.

    Args:
        folder: of the training; seen by all who might want it.
        watch: finds heartbeats that stopped.
    """

    def __init__(self, folder: Path, watch: Watch) -> None:
        self.folder = folder
        self.path = folder / "claim"
        self.watch = watch

    def take(self) -> bool:
        """Take the folder if nobody alive has it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        holder = self._holder()
        if holder is not None and self._is_dead(holder):
            self._withdraw(holder)
        try:
            with self.path.open("x", encoding="utf-8") as file:  # exclusive on local disks and on NFS 3 and newer
                json.dump(this_worker(), file)
        except FileExistsError:
            return False
        beat(self.folder, 0)
        return True

    def release(self) -> None:
        """Give the folder back."""
        self.path.unlink(missing_ok=True)

    def _holder(self) -> dict[str, Any] | None:
        try:
            text = self.path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        try:
            return dict(json.loads(text))
        except ValueError:  # being written, or its writer died while writing: only time tells
            return {}

    def _is_dead(self, holder: dict[str, Any]) -> bool:
        return self.watch.is_dead(hash(self.folder), holder, read_beat(self.folder))

    def _withdraw(self, holder: dict[str, Any]) -> None:
        """Remove a dead worker's claim, and nobody else's."""
        mine = this_worker()
        aside = self.path.with_name(f"claim.{mine['pid']}")
        try:
            self.path.rename(aside)
        except FileNotFoundError:  # somebody else was faster
            return
        taken = Claim(self.folder, self.watch)
        taken.path = aside
        if taken._holder() != holder and not self.path.exists():
            aside.rename(self.path)  # in between somebody else had claimed it
        else:
            aside.unlink()
