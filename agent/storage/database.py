"""One SQLite file of batches, books and states. Every method is one transaction; all run in one thread.

Raises `sqlite3.Error` for what a disk does; who calls decides what that means.
"""

import sqlite3
import zlib
from collections.abc import Collection, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from agent.storage.rows import NOTHING, PAGE_SIZE, Books, End, Gone, QueueName, Row, Stock, Stored

VERSION = 1
FULL, TOO_OLD = "storage_full", "too_old"

_LOG_BYTES = 8 << 20  # the write-ahead log is cut to this when it was written back
_PAGES_GIVEN_BACK = 1024
_SPARE = 64  # pages of the file that no batch may use: the other tables, and the roots of the trees
_SYNCHRONOUS = {"batch": "FULL", "interval": "NORMAL", "off": "OFF"}
_ROW = "batch_id, count, size, encoding, created_ns, since_ns, body"
_SCHEMA = f"""
CREATE TABLE batches (
    id INTEGER PRIMARY KEY AUTOINCREMENT, exporter TEXT NOT NULL, kind TEXT NOT NULL, cost INTEGER NOT NULL,
    crc INTEGER NOT NULL, batch_id TEXT NOT NULL, count INTEGER NOT NULL, size INTEGER NOT NULL,
    encoding TEXT NOT NULL, created_ns INTEGER NOT NULL, since_ns INTEGER NOT NULL, body BLOB NOT NULL
);
CREATE INDEX batches_by_queue ON batches (exporter, kind, id, count, cost);
CREATE TABLE books (
    exporter TEXT NOT NULL, kind TEXT NOT NULL, accepted INTEGER NOT NULL DEFAULT 0,
    delivered INTEGER NOT NULL DEFAULT 0, rejected INTEGER NOT NULL DEFAULT 0, PRIMARY KEY (exporter, kind)
) WITHOUT ROWID;
CREATE TABLE drops (
    exporter TEXT NOT NULL, kind TEXT NOT NULL, reason TEXT NOT NULL, items INTEGER NOT NULL,
    PRIMARY KEY (exporter, kind, reason)
) WITHOUT ROWID;
CREATE TABLE states (key TEXT PRIMARY KEY, crc INTEGER NOT NULL, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE synced (times INTEGER NOT NULL);
INSERT INTO synced VALUES (0);
PRAGMA user_version = {VERSION};
"""  # noqa: S608 - constants


class NewerVersionError(Exception):
    """The file was written by a later version of the agent."""


class Database:
    """Opens the file, or makes it; `sync` as in the configuration.

    `max_bytes` is the size of the file at the most, but for its log (8 MiB).
    """

    def __init__(
        self, path: Path, *, sync: str = "interval", max_bytes: int = 1 << 30, read_only: bool = False
    ) -> None:
        self._budget = max_bytes - _SPARE * PAGE_SIZE
        uri = f"{path.absolute().as_uri()}{'?mode=ro' if read_only else ''}"
        # A busy writer is another process, and only `read_only` ones may be: the extension holds a lock.
        self._sql = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=1.0, check_same_thread=False)
        try:
            if not read_only:
                self._prepare(sync, max_bytes)
            self._cost = self._value("SELECT coalesce(sum(cost), 0) FROM batches")
            self.rows = self._value("SELECT count(*) FROM batches")
        except BaseException:
            self.close()
            raise

    def _prepare(self, sync: str, max_bytes: int) -> None:
        for setting in (
            f"page_size = {PAGE_SIZE}",
            "auto_vacuum = INCREMENTAL",
            "journal_mode = WAL",
            f"journal_size_limit = {_LOG_BYTES}",
            f"synchronous = {_SYNCHRONOUS[sync]}",
            f"max_page_count = {max_bytes // PAGE_SIZE}",
        ):
            self._sql.execute(f"PRAGMA {setting}")
        version = self._value("PRAGMA user_version")
        if version > VERSION:
            raise NewerVersionError(f"it is of version {version}, this agent knows {VERSION}")
        if not version:
            self._sql.executescript(f"BEGIN;{_SCHEMA}COMMIT;")

    def close(self) -> None:
        """Close the file; its log is written back."""
        self._sql.close()

    @property
    def cost(self) -> int:
        """Bytes that all batches take."""
        return self._cost

    # --- batches -----------------------------------------------------------------------------------------------------

    def stock(self) -> dict[QueueName, Stock]:
        """Return what each queue has."""
        rows = self._all(
            "SELECT exporter, kind, count(*), sum(count), sum(cost), min(created_ns) FROM batches"
            " GROUP BY exporter, kind"
        )
        return {QueueName(exporter, kind): Stock(*totals) for exporter, kind, *totals in rows}

    def insert(
        self, queue: QueueName, row: Row, *, under_way: Collection[int] = (), identity: int | None = None
    ) -> tuple[int, list[Gone]]:
        """Store a batch and return its id, with what had to go for it: the oldest of all, but for what is under way.

        Ids grow, and none is given twice; `identity` is that of a batch that is taken over from another file.
        """
        with self._transaction():
            gone = self._make_room(row.cost, under_way)
            columns = "id, exporter, kind, cost, crc, " + _ROW
            values = (
                *(identity, *queue, row.cost, row.crc, row.batch_id, row.count, row.size),
                *(row.encoding, row.created_ns, row.since_ns, row.body),
            )
            marks = ", ".join("?" * len(values))
            cursor = self._sql.execute(f"INSERT INTO batches ({columns}) VALUES ({marks})", values)  # noqa: S608 - constants
            self._book(queue, accepted=row.count)
        self._cost += row.cost - sum(each.cost for each in gone)
        self.rows += 1 - len(gone)
        return int(cursor.lastrowid or 0), gone

    def has(self, identity: int) -> bool:
        """Return whether a batch is there."""
        return self._one("SELECT 1 FROM batches WHERE id = ?", (identity,)) is not None

    def begin_after(self, identity: int) -> None:
        """Give no id up to this one: it is known to somebody."""
        with self._transaction():
            self._sql.execute("DELETE FROM sqlite_sequence WHERE name = 'batches' AND seq < ?", (identity,))
            self._sql.execute(
                "INSERT INTO sqlite_sequence SELECT 'batches', ?"
                " WHERE NOT EXISTS (SELECT 1 FROM sqlite_sequence WHERE name = 'batches')",
                (identity,),
            )

    def next(self, queue: QueueName, *, but: Collection[int] = ()) -> Stored | None:
        """Return the oldest batch of a queue `but` for some."""
        query = "SELECT id, count, cost FROM batches WHERE exporter = ? AND kind = ? ORDER BY id LIMIT ?"
        oldest = self._all(query, (*queue, len(but) + 1))
        identity, items, cost = next((found for found in oldest if found[0] not in but), (0, 0, 0))
        if not identity:
            return None
        try:
            found = self._one(f"SELECT id, cost, crc, {_ROW} FROM batches WHERE id = ?", (identity,))  # noqa: S608 - constants
            return _stored(*found) if found else Stored(identity, items, cost, None)
        except (sqlite3.Error, TypeError, ValueError) as error:
            if hasattr(error, "sqlite_errorcode"):
                raise
            return Stored(identity, items, cost, None)  # its columns are not even of their types

    def all(self, *, newest_first: bool = False) -> Iterator[tuple[QueueName, Stored]]:
        """Yield every batch."""
        order = "DESC" if newest_first else "ASC"
        query = f"SELECT exporter, kind, id, cost, crc, {_ROW} FROM batches ORDER BY id {order}"  # noqa: S608
        for exporter, kind, *found in self._sql.execute(query):
            yield QueueName(exporter, kind), _stored(*found)

    def remove(self, queue: QueueName, identity: int, end: End) -> bool:
        """Take a batch out and write down what became of it; False if it is not there any more."""
        with self._transaction():
            found = self._one("DELETE FROM batches WHERE id = ? RETURNING cost", (identity,))
            if found:
                self._book(queue, end=end)
        self._cost -= found[0] if found else 0
        self.rows -= found is not None
        return found is not None

    def expire(self, before_ns: int, *, under_way: Collection[int] = ()) -> list[Gone]:
        """Drop what was sealed before a time, but for what is under way."""
        gone = []
        with self._transaction():
            for found in self._oldest(under_way):
                if found[-1] >= before_ns:
                    break
                gone.append(self._drop(*found[:-1], reason=TOO_OLD))
        self._cost -= sum(each.cost for each in gone)
        self.rows -= len(gone)
        return gone

    def drop(self, queue: QueueName, reason: str) -> Stock:
        """Drop everything that a queue has; return what that was."""
        with self._transaction():
            stock = self.stock().get(queue, Stock())
            self._sql.execute("DELETE FROM batches WHERE exporter = ? AND kind = ?", queue)
            self._book(queue, end=End(dropped=stock.items, reason=reason))
        self._cost -= stock.cost
        self.rows -= stock.batches
        return stock

    def _make_room(self, cost: int, under_way: Collection[int]) -> list[Gone]:
        gone: list[Gone] = []
        too_much = self._cost + cost - self._budget
        for found in self._oldest(under_way) if too_much > 0 else ():
            gone.append(self._drop(*found[:-1], reason=FULL))
            too_much -= gone[-1].cost
            if too_much <= 0:
                break
        return gone

    def _oldest(self, under_way: Collection[int]) -> Iterator[tuple[Any, ...]]:
        """Yield id, exporter, kind, items, cost and time of batches, a few at a time: they may be deleted meanwhile."""
        after = 0
        query = "SELECT id, exporter, kind, count, cost, created_ns FROM batches WHERE id > ? ORDER BY id LIMIT 64"
        while found := self._all(query, (after,)):
            after = found[-1][0]
            yield from (each for each in found if each[0] not in under_way)

    def _drop(self, identity: int, exporter: str, kind: str, items: int, cost: int, *, reason: str) -> Gone:
        queue = QueueName(exporter, kind)
        self._sql.execute("DELETE FROM batches WHERE id = ?", (identity,))
        self._book(queue, end=End(dropped=items, reason=reason))
        return Gone(queue, identity, items, cost, reason)

    # --- books -------------------------------------------------------------------------------------------------------

    def books(self) -> dict[QueueName, Books]:
        """Return the books of every queue that ever had a batch."""
        held = {queue: stock.items for queue, stock in self.stock().items()}
        dropped: dict[QueueName, dict[str, int]] = {}
        for exporter, kind, reason, items in self._all("SELECT exporter, kind, reason, items FROM drops"):
            dropped.setdefault(QueueName(exporter, kind), {})[reason] = items
        books = {}
        for exporter, kind, *counts in self._all("SELECT exporter, kind, accepted, delivered, rejected FROM books"):
            queue = QueueName(exporter, kind)
            books[queue] = Books(counts[0], counts[1], counts[2], dropped.get(queue, {}), held.get(queue, 0))
        return books

    def _book(self, queue: QueueName, *, accepted: int = 0, end: End = NOTHING) -> None:
        self._sql.execute(
            "INSERT INTO books VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET"
            " accepted = accepted + excluded.accepted, delivered = delivered + excluded.delivered,"
            " rejected = rejected + excluded.rejected",
            (*queue, accepted, end.delivered, end.rejected),
        )
        if end.dropped:
            self._sql.execute(
                "INSERT INTO drops VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET items = items + excluded.items",
                (*queue, end.reason, end.dropped),
            )

    # --- states ------------------------------------------------------------------------------------------------------

    def put_state(self, key: str, value: bytes) -> None:
        """Keep a state in place of the one that was kept."""
        with self._transaction():
            self._sql.execute("INSERT OR REPLACE INTO states VALUES (?, ?, ?)", (key, zlib.crc32(value), value))

    def take_state(self, key: str) -> bytes | None:
        """Return a state and forget it; None if there is none. Raises `ValueError` if it is not what was written."""
        with self._transaction():
            found = self._one("DELETE FROM states WHERE key = ? RETURNING crc, value", (key,))
        if found and zlib.crc32(found[1]) != found[0]:
            raise ValueError("checksum differs")
        return found[1] if found else None

    # --- the disk ----------------------------------------------------------------------------------------------------

    def sync(self) -> None:
        """Make the disk write what was committed: one more commit, that waits for it and for all before it."""
        self._sql.execute("PRAGMA synchronous = FULL")
        try:
            self._sql.execute("UPDATE synced SET times = times + 1")
        finally:
            self._sql.execute("PRAGMA synchronous = NORMAL")

    def give_back(self) -> bool:
        """Give some free pages back to the file system; return whether there may be more."""
        if self._value("PRAGMA freelist_count") < _PAGES_GIVEN_BACK:
            return False
        self._sql.execute(f"PRAGMA incremental_vacuum({_PAGES_GIVEN_BACK})").fetchall()
        return True

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._sql.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._sql.execute("COMMIT")
        except BaseException:
            if self._sql.in_transaction:  # some errors have rolled it back already
                self._sql.execute("ROLLBACK")
            raise

    def _all(self, query: str, values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        with closing(self._sql.execute(query, values)) as cursor:
            return cursor.fetchall()

    def _one(self, query: str, values: tuple[Any, ...] = ()) -> tuple[Any, ...] | None:
        with closing(self._sql.execute(query, values)) as cursor:
            found: tuple[Any, ...] | None = cursor.fetchone()
            return found

    def _value(self, query: str) -> int:
        found = self._one(query)
        return int(found[0]) if found else 0


def _stored(identity: int, cost: int, crc: int, *columns: Any) -> Stored:
    row = Row(*columns)
    return Stored(identity, row.count, cost, row if row.crc == crc else None, raw=row.body)
