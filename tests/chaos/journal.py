"""What was ever on the agent's disk, batch by batch: triggers in its own file write it down, in its own transactions.

So the journal says what really was committed, whatever the agent believes, and a kill cannot part them.
"""

import sqlite3
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agent.storage.database import Database
from agent.storage.rows import Books, End

_TRIGGERS = """
CREATE TABLE journal (
    number INTEGER PRIMARY KEY, what TEXT NOT NULL, kind TEXT NOT NULL, batch_id TEXT, items INTEGER NOT NULL,
    delivered INTEGER, rejected INTEGER, reason TEXT
);
CREATE TRIGGER stored AFTER INSERT ON batches BEGIN
    INSERT INTO journal (what, kind, batch_id, items) VALUES ('stored', new.kind, new.batch_id, new.count);
END;
CREATE TRIGGER removed AFTER DELETE ON batches BEGIN
    INSERT INTO journal (what, kind, batch_id, items) VALUES ('removed', old.kind, old.batch_id, old.count);
END;
CREATE TRIGGER began AFTER INSERT ON books BEGIN
    INSERT INTO journal (what, kind, items, delivered, rejected)
    VALUES ('booked', new.kind, new.accepted, new.delivered, new.rejected);
END;
CREATE TRIGGER booked AFTER UPDATE ON books BEGIN
    INSERT INTO journal (what, kind, items, delivered, rejected) VALUES (
        'booked', new.kind, new.accepted - old.accepted, new.delivered - old.delivered, new.rejected - old.rejected
    );
END;
CREATE TRIGGER dropped_first AFTER INSERT ON drops BEGIN
    INSERT INTO journal (what, kind, items, reason) VALUES ('dropped', new.kind, new.items, new.reason);
END;
CREATE TRIGGER dropped AFTER UPDATE ON drops BEGIN
    INSERT INTO journal (what, kind, items, reason) VALUES ('dropped', new.kind, new.items - old.items, new.reason);
END;
"""


@dataclass(slots=True)
class Entry:
    """A batch that was on the disk: the numbers of the lines that say so, and what became of it."""

    kind: str
    items: int
    stored: int
    removed: int = 0
    end: End | None = None


@dataclass(slots=True)
class Journal:
    """Batches by their ids, and what of the journal contradicts itself."""

    entries: dict[str, Entry] = field(default_factory=dict)
    strange: list[str] = field(default_factory=list)
    _subject: str = ""
    _unbooked: int = 0

    def take(self, number: int, what: str, kind: str, batch_id: str | None, items: int, *booked: Any) -> None:
        """Read a line: each batch that comes or goes is followed by what that did to the books."""
        if batch_id is not None:
            self.settle(number)
            self._moved(number, what, kind, batch_id, items)
            return
        entry = self.entries.get(self._subject)
        delivered, rejected, reason = booked
        if what == "booked":
            self._unbooked -= items + delivered + rejected
        else:
            self._unbooked -= items
        if entry and entry.end is not None:
            dropped = entry.end._replace(dropped=items, reason=reason)
            entry.end = End(delivered, rejected) if what == "booked" else dropped
        if self._unbooked < 0:
            self.strange.append(f"line {number}: more was booked than batch {self._subject} has")
            self._unbooked = 0

    def _moved(self, number: int, what: str, kind: str, batch_id: str, items: int) -> None:
        self._subject, self._unbooked = batch_id, items
        entry = self.entries.get(batch_id)
        if what == "stored":
            if entry:
                self.strange.append(f"line {number}: batch {batch_id} was stored twice")
            self.entries[batch_id] = Entry(kind, items, number)
        elif entry:
            entry.removed, entry.end = number, End()
        else:
            self.strange.append(f"line {number}: {what} {kind} {batch_id} is about nothing that was stored")

    def settle(self, number: int) -> None:
        """Note what should have been booked before this line."""
        if self._unbooked:
            self.strange.append(f"line {number}: {self._unbooked} items of batch {self._subject} were not booked")


def begin(file: Path) -> None:
    """Make the agent's file before its first start, with the triggers."""
    file.parent.mkdir(parents=True)
    Database(file).close()
    with _open(file) as sql:
        sql.executescript(_TRIGGERS)
    sql.close()


def read(lines: Iterable[tuple[Any, ...]]) -> Journal:
    """Make sense of the lines."""
    journal, number = Journal(), 0
    for number, *line in lines:
        journal.take(number, *line)
    journal.settle(number + 1)
    return journal


def journal_of(file: Path) -> Journal:
    """Read the journal."""
    with _open(file) as sql:
        lines = sql.execute("SELECT * FROM journal ORDER BY number").fetchall()
    sql.close()
    return read(lines)


@dataclass(frozen=True, slots=True)
class Moment:
    """The disk at one time: the last line of the journal, and the items that it holds by kind."""

    line: int
    held: Mapping[str, int]


def moment_of(file: Path) -> Moment:
    """Look at the disk."""
    with _open(file) as sql:
        (line,) = sql.execute("SELECT coalesce(max(number), 0) FROM journal").fetchone()
        held = sql.execute("SELECT kind, sum(count) FROM batches GROUP BY kind").fetchall()
    sql.close()
    return Moment(line, Counter(dict(held)))


def books_of(file: Path) -> dict[str, Books]:
    """Return the books by kind."""
    database = Database(file, read_only=True)
    try:
        return {queue.kind: books for queue, books in database.books().items()}
    finally:
        database.close()


def damage(file: Path) -> str | None:
    """Change one byte of the oldest batch, as a bad disk does; return its id, None if there is none."""
    with _open(file) as sql:
        found = sql.execute("SELECT id, batch_id, body FROM batches ORDER BY id LIMIT 1").fetchone()
        if found:
            identity, _, body = found
            changed = body[:-1] + bytes((body[-1] ^ 0xFF,))
            sql.execute("UPDATE batches SET body = ? WHERE id = ?", (changed, identity))
    sql.close()
    return found[1] if found else None


def lock(file: Path) -> sqlite3.Connection:
    """Keep everybody else from writing, as somebody does who looks after the file; until the connection is closed."""
    sql = _open(file)
    sql.execute("BEGIN IMMEDIATE")
    return sql


def _open(file: Path) -> sqlite3.Connection:
    return sqlite3.connect(file, timeout=10)
