"""Is the worker that holds a trial still alive? By its process on the same machine, by its pulse elsewhere."""

import os
import platform
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def this_worker() -> dict[str, Any]:
    """Return who we are: machine (with its process namespace, for containers), process and the process's start."""
    return {"host": _host(), "pid": os.getpid(), "started": _start_of(os.getpid())}


def is_dead_here(worker: dict[str, Any]) -> bool | None:
    """Whether a worker of this machine is dead; None for a worker of another machine.

    A zombie is dead, and so is a process whose number was given to a younger one.
    """
    if worker.get("host") != _host():
        return None
    try:
        os.kill(worker["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return _start_of(worker["pid"]) != worker.get("started")


def _host() -> str:
    try:
        return f"{platform.node()}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:  # no /proc, as on macOS and Windows
        return platform.node()


def _start_of(pid: int) -> str | None:
    """Return the start of a process in clock ticks since boot; None where there is no /proc; "dead" for a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return None
    return "dead" if fields[0] in "ZX" else fields[19]  # proc(5): state is field 3, starttime field 22


def beat(folder: Path, count: int) -> None:
    """Leave a sign of life in a run's folder: a count, because clocks of machines differ."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "heartbeat").write_text(f"{platform.node()} {os.getpid()} {count}\n", encoding="utf-8")


def read_beat(folder: Path) -> str | None:
    """Return a run's last sign of life, if there is one that this machine can see."""
    try:
        return (folder / "heartbeat").read_text(encoding="utf-8")
    except OSError:
        return None


class Pulse:
    """A daemon thread that beats for every trial of this process, as long as there are any.

    Args:
        interval: seconds between beats.
    """

    def __init__(self, interval: float) -> None:
        self.interval = interval
        self._beats: dict[int, Callable[[int], None]] = {}
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def start(self, trial_id: int, beat: Callable[[int], None]) -> None:
        """Call ``beat(count)`` every interval until :meth:`stop` or an exception of the call."""
        with self._lock:
            self._beats[trial_id] = beat
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="trial-pulse", daemon=True)
                self._thread.start()

    def stop(self, trial_id: int) -> None:
        """Stop beating for a trial."""
        with self._lock:
            self._beats.pop(trial_id, None)

    def _run(self) -> None:
        count = 0
        while True:
            time.sleep(self.interval)
            count += 1
            with self._lock:
                beats = dict(self._beats)
                if not beats:
                    self._thread = None
                    return
            for trial_id, beat in beats.items():
                self._beat(trial_id, beat, count)

    def _beat(self, trial_id: int, beat: Callable[[int], None], count: int) -> None:
        try:
            beat(count)
        except Exception:  # the trial was finished, or the storage is away: a missing pulse says so
            self.stop(trial_id)


class Watch:
    """Finds signs of life that stopped changing, by this process's own clock (clocks of machines differ).

    Args:
        grace: seconds without a change after which something counts as dead.
    """

    def __init__(self, grace: float) -> None:
        self.grace = grace
        self._seen: dict[int, tuple[Any, float]] = {}

    def is_dead(self, key: int, worker: dict[str, Any] | None, sign_of_life: Any) -> bool:
        """Whether a worker is dead: by its process on this machine, by its sign of life elsewhere.

        Args:
            key: whose sign of life it is.
            worker: what :func:`this_worker` said there; empty or None if it is not known.
            sign_of_life: anything that changes as long as the worker lives.
        """
        dead = is_dead_here(worker or {})
        return self.is_stale(key, (worker, sign_of_life)) if dead is None else dead

    def is_stale(self, key: int, sign_of_life: Any, patience: float = 1.0) -> bool:
        """Whether the sign has been the same for longer than ``patience`` times the grace time."""
        now = time.monotonic()
        last, since = self._seen.setdefault(key, (sign_of_life, now))
        if last != sign_of_life:
            self._seen[key] = (sign_of_life, now)
            return False
        return now - since > patience * self.grace
