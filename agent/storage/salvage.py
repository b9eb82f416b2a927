"""What becomes of a file that cannot be read: it is set aside under a dated name, and what can be read is taken over.

Runs in the thread of the database.
"""

import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from agent.storage.database import Database
from agent.storage.rows import QueueName, Stored

_PARTS = ("", "-wal", "-shm")
MOST_SET_ASIDE = 64
"""Batches set aside; beyond that they are only counted, so that a bad disk is not filled with what is bad."""


def _dated(name: str, now: datetime) -> str:
    return f"{name}.set-aside-{now.astimezone(UTC):%Y%m%dT%H%M%S.%fZ}"


def set_aside(path: Path, now: datetime) -> Path:
    """Rename the file of a database and its log; return the new name. Raises `OSError`."""
    aside = path.with_name(_dated(path.name, now))
    for part in _PARTS:
        found = path.with_name(path.name + part)
        if found.exists():
            found.rename(aside.with_name(aside.name + part))
    return aside


def set_aside_row(directory: Path, queue: QueueName, raw: bytes, now: datetime) -> Path | None:
    """Write what is left of a batch into a file of its own; None if there are too many. Raises `OSError`."""
    if sum(1 for _ in directory.glob("batch-*.set-aside-*")) >= MOST_SET_ASIDE:
        return None
    name = f"batch-{queue.exporter.replace('/', '-')}-{queue.kind}"
    path = directory / _dated(name, now)
    path.write_bytes(raw)
    return path


def readable(path: Path) -> Iterator[tuple[QueueName, Stored]]:
    """Yield the batches that can still be read, as far as the file lets us come from either end."""
    last = 0
    try:
        damaged = Database(path, read_only=True)
    except (sqlite3.Error, OSError, UnicodeDecodeError):
        return
    try:
        for newest_first in (False, True):
            try:
                for queue, stored in damaged.all(newest_first=newest_first):
                    if newest_first and stored.id <= last:
                        return
                    if not newest_first:
                        last = stored.id
                    if stored.row:
                        yield queue, stored
            except (sqlite3.Error, TypeError, ValueError):
                continue
            return
    finally:
        damaged.close()
