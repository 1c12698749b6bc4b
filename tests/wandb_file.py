"""Read an offline W&B run back.

Recent wandb has no Python reader any more. The file is LevelDB's log format (blocks of 32 KiB; each chunk has a
checksum, a little-endian length and a type) behind a header of 7 bytes; the payloads are protobuf records.
"""

import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path

BLOCK = 32 * 1024
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def payloads(data: bytes) -> Iterator[bytes]:
    position, parts = 7, []
    while position + 7 <= len(data):
        left = BLOCK - position % BLOCK
        if left < 7:
            position += left  # a header does not fit: the rest of the block is padding
            continue
        length, kind = struct.unpack_from("<HB", data, position + 4)
        chunk = data[position + 7 : position + 7 + length]
        if len(chunk) < length:
            return  # still being written
        position += 7 + length
        parts = [chunk] if kind in (FULL, FIRST) else [*parts, chunk]
        if kind in (FULL, LAST):
            yield b"".join(parts)


def _whole(path: Path, timeout: float = 30) -> list[bytes]:
    """Return the payloads once the last one, which says how the run ended, is on the disk; `finish` returns before."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        records = list(payloads(path.read_bytes()))
        if records and _is_exit(records[-1]):
            return records
        time.sleep(0.05)
    raise AssertionError(f"{path} was not finished in {timeout} s")


def _is_exit(payload: bytes) -> bool:
    from wandb.proto import wandb_internal_pb2

    record = wandb_internal_pb2.Record()
    record.ParseFromString(payload)
    return record.HasField("exit")


def _bare(name: str) -> str:
    return "".join(c for c in name if c.isalnum())


class WandbRun:
    """What one run recorded: history rows, alerts, config, summary, files, artifacts."""

    def __init__(self, folder: Path) -> None:
        from wandb.proto import wandb_internal_pb2

        (path,) = folder.glob("**/*.wandb")
        self.history, self.alerts, self.config, self.summary, self.artifacts = [], [], {}, {}, []
        self.run = None
        for payload in _whole(path):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(payload)
            self._add(record)

    def _add(self, record) -> None:
        if record.HasField("history"):
            self.history.append(_items(record.history.item))
        elif record.HasField("alert"):
            self.alerts.append((record.alert.title, record.alert.text, record.alert.level))
        elif record.HasField("summary"):
            self.summary.update(_items(record.summary.update))
        elif record.HasField("run"):
            self.run = record.run
            self.config.update(_items(record.run.config.update))
        elif record.HasField("config"):
            self.config.update(_items(record.config.update))
        elif record.HasField("artifact"):
            self.artifacts.append(record.artifact)

    def table(self, name: str) -> dict:
        """Return a table with everything in its cells; a picture is a dict with its file's ``"local_path"``."""
        (artifact,) = [one for one in self.artifacts if _bare(name) in _bare(one.name)]
        files = {entry.path: entry.local_path for entry in artifact.manifest.contents}
        (path,) = [local for file, local in files.items() if file.endswith(".table.json")]
        table = json.loads(Path(path).read_text())
        for cell in (cell for row in table["data"] for cell in row if isinstance(cell, dict)):
            cell["local_path"] = files[cell["path"]]
        return table

    def rows(self, name: str) -> list[tuple[int | None, object]]:
        """Return (trainer/global_step, value) for each time that ``name`` was logged."""
        return [(row.get("trainer/global_step"), row[name]) for row in self.history if name in row]


def _items(items) -> dict:
    """Turn flat records into nested dicts: the path of an item is its key or its list of nested keys."""
    tree: dict = {}
    for item in items:
        *parents, leaf = list(item.nested_key) or [item.key]
        branch = tree
        for parent in parents:
            branch = branch.setdefault(parent, {})
        branch[leaf] = json.loads(item.value_json)
    return tree
