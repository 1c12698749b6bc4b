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
        position += 7 + length
        parts = [chunk] if kind in (FULL, FIRST) else [*parts, chunk]
        if kind in (FULL, LAST):
            yield b"".join(parts)


class WandbRun:
    """What one run recorded: history rows, alerts, config, summary, files, artifacts."""

    def __init__(self, folder: Path) -> None:
        from wandb.proto import wandb_internal_pb2

        (path,) = folder.glob("**/*.wandb")
        self.history, self.alerts, self.config, self.summary, self.artifacts = [], [], {}, {}, []
        self.run = None
        for record in _complete(path, wandb_internal_pb2.Record):
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

    def rows(self, name: str) -> list[tuple[int | None, object]]:
        """Return (trainer/global_step, value) for each time that ``name`` was logged."""
        return [(row.get("trainer/global_step"), row[name]) for row in self.history if name in row]


def _complete(path: Path, kind) -> list:
    """Return all records, once the last one is there: on a busy machine W&B's own process may still be writing."""
    end = time.monotonic() + 10
    while True:
        records = [kind.FromString(payload) for payload in payloads(path.read_bytes())]
        if any(record.HasField("exit") for record in records) or time.monotonic() > end:
            return records
        time.sleep(0.05)


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
