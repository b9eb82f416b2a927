"""The disk, as its one thread sees it: a directory with a lock and a database. What fails is a value, and is told."""

import contextlib
import fcntl
import os
import sqlite3
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from typing import Protocol, TypeVar

from agent.core.errors import StartupError
from agent.storage.config import FileStorageConfig
from agent.storage.database import Database, NewerVersionError
from agent.storage.events import SetAside, StorageFailed, StorageRecovered
from agent.storage.rows import End, Gone, QueueName, Row, Stored
from agent.storage.salvage import readable, set_aside, set_aside_row
from agent.telemetry.events import Event

FILE = "stem-agent.db"
LOCK = "stem-agent.lock"
_DAMAGE = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
_PRIMARY = 0xFF  # an extended result code has its primary one in the lowest byte

Result = TypeVar("Result")
Kept = Mapping[QueueName, Mapping[int, Stored]]


class Away(Enum):
    """The disk cannot be used now; that was told, and it is tried again."""

    AWAY = "away"


AWAY = Away.AWAY


class Listener(Protocol):
    """Who is told what happens on the disk; called in its thread, before the answer to what made it happen."""

    def tell(self, event: Event) -> None:
        """Take an event for the log."""

    def gone(self, gone: Sequence[Gone]) -> None:
        """Take note of batches that had to go unsent."""

    def replaced(self, kept: Kept) -> None:
        """Take note that the file was set aside; `kept` (without bodies) are in the new one, under their ids."""

    def recovered(self) -> None:
        """Take note that the disk works again."""


class Disk:
    """Opens the database with its first use, and again after it failed."""

    def __init__(self, identity: str, config: FileStorageConfig, listener: Listener) -> None:
        self.failure: str | None = None
        self.cost = 0
        self.rows = 0
        self._id = identity
        self._config = config
        self._listener = listener
        self._directory = Path(config.directory)
        self._file = self._directory / FILE
        self._database: Database | None = None
        self._lock: int | None = None
        self._under_way: set[int] = set()  # batches that must not go: they are being sent
        self._last_id = 0

    def take_lock(self) -> None:
        """Keep other agents out. Raises `StartupError` if there is one in already."""
        if self._lock is not None:
            return
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            lock = os.open(self._directory / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError:
            return  # the database cannot be opened either, which is told
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(lock)
            raise StartupError(
                f"{self._id}: another agent uses {self._directory}; stop that one, or give each its own `directory`"
            ) from None
        self._lock = lock

    def close(self) -> None:
        """Make the disk write everything, and let others in."""
        database, self._database = self._database, None
        if database:
            with contextlib.suppress(sqlite3.Error):
                database.sync()
            with contextlib.suppress(sqlite3.Error):
                database.close()
        lock, self._lock = self._lock, None
        if lock is not None:
            os.close(lock)

    def use(self, work: Callable[[Database], Result]) -> Result | Away:
        """Do something with the database. A file that is damaged is set aside, and the new one used."""
        for again in (True, False):
            try:
                database = self._database = self._database or self._open()
                result = work(database)
            except (sqlite3.Error, NewerVersionError, UnicodeDecodeError) as error:
                # SQLite quotes what is damaged, and Python fails to decode that.
                damaged = isinstance(error, UnicodeDecodeError) or (
                    getattr(error, "sqlite_errorcode", 0) & _PRIMARY in _DAMAGE
                )
                if not (damaged or isinstance(error, NewerVersionError)):
                    self._failed(str(error))
                    return AWAY
                if not again:
                    self._failed(str(error))  # the new file, too
                elif self._replace(str(error)):
                    continue
                return AWAY
            except OSError as error:
                self._failed(os.strerror(error.errno).lower() if error.errno else str(error))
                return AWAY
            failed, self.failure = self.failure, None
            self.cost, self.rows = database.cost, database.rows
            if failed:
                self._listener.tell(StorageRecovered(self._id, str(self._directory)))
                self._listener.recovered()
            return result
        return AWAY

    # --- batches ------------------------------------------------------------------------------------------------------

    def insert(self, database: Database, queue: QueueName, row: Row) -> int:
        """Store a batch, for which older ones may have to go; return its id."""
        identity, gone = database.insert(queue, row, under_way=self._under_way)
        self._last_id = max(self._last_id, identity)
        if gone:
            self._listener.gone(gone)
        return identity

    def next(self, database: Database, queue: QueueName, but: Collection[int]) -> Stored | None:
        """Return the oldest batch `but` for some, and hold it; set aside what is left of one that cannot be read."""
        stored = database.next(queue, but=but)
        if stored:
            self._under_way.add(stored.id)
        if stored and stored.row is None:
            kept = None
            with contextlib.suppress(OSError):
                kept = set_aside_row(self._directory, queue, stored.raw, datetime.now(UTC))
            where = str(kept) if kept else "nothing: there are too many, or the disk is full"
            self._listener.tell(SetAside(self._id, "batch", where, "its checksum is not that of what was stored"))
        return stored

    def claim(self, database: Database, identity: int) -> bool:
        """Hold a batch; False if it has gone."""
        there = database.has(identity)
        if there:
            self._under_way.add(identity)
        return there

    def remove(self, database: Database, queue: QueueName, identity: int, end: End) -> bool:
        """Take a batch out; False if it has gone."""
        removed = database.remove(queue, identity, end)
        self._under_way.discard(identity)
        return removed

    def expire(self, database: Database, before_ns: int) -> None:
        """Drop what is too old."""
        if gone := database.expire(before_ns, under_way=self._under_way):
            self._listener.gone(gone)

    def take_state(self, database: Database, key: str) -> bytes | None:
        """Return a state and forget it."""
        try:
            return database.take_state(key)
        except ValueError as error:
            self._listener.tell(SetAside(self._id, "state", "nothing", f"the state of {key}: {error}"))
            return None

    # --- trouble ------------------------------------------------------------------------------------------------------

    def _open(self) -> Database:
        self._directory.mkdir(parents=True, exist_ok=True)
        return Database(self._file, sync=self._config.sync, max_bytes=self._config.max_size)

    def _failed(self, error: str) -> None:
        self.failure = error
        self._listener.tell(StorageFailed(self._id, str(self._file), error))

    def _replace(self, error: str) -> bool:
        """Set the file aside, begin a new one, and take over what can be read; return whether that worked."""
        if self._database:
            with contextlib.suppress(sqlite3.Error):
                self._database.close()
            self._database = None
        kept: dict[QueueName, dict[int, Stored]] = {}
        try:
            aside = set_aside(self._file, datetime.now(UTC))
            self._database = self._open()
            for queue, stored in readable(aside):
                if stored.row:
                    self._database.insert(queue, stored.row, identity=stored.id)
                    kept.setdefault(queue, {})[stored.id] = stored._replace(row=None, raw=b"")
            self._database.begin_after(self._last_id)
        except (OSError, sqlite3.Error, UnicodeDecodeError) as failure:
            self._failed(f"{error}; and failed to set it aside: {failure}")
            return False
        self._listener.tell(SetAside(self._id, "file", str(aside), error, sum(map(len, kept.values()))))
        self._listener.replaced(kept)
        return True
