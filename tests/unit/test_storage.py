"""The file of the storage: rows, books, room, age, and what becomes of a file that cannot be read. Real SQLite."""

import random
import sqlite3
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from agent.storage.database import Database, NewerVersionError
from agent.storage.rows import PAGE_SIZE, End, QueueName, Row, Stock
from agent.storage.salvage import MOST_SET_ASIDE, readable, set_aside, set_aside_row

TRACES, LOGS = QueueName("otlp_http", "traces"), QueueName("otlp_http/backup", "logs")
LEAST = 16 << 20


def row(size: int = 1000, *, count: int = 3, created_ns: int = 5, seed: int = 0) -> Row:
    body = random.Random(seed).randbytes(size)
    return Row(f"batch-{seed}", count, 2 * size, "gzip", created_ns, 1, body)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "test.db"


@pytest.fixture
def database(path: Path) -> Iterator[Database]:
    database = Database(path, max_bytes=LEAST)
    yield database
    database.close()


def test_batches_come_back_as_they_were_oldest_first_and_by_queue(database: Database) -> None:
    written = [row(size, seed=size) for size in (0, 10, 5_000, 300_000)]
    ids = [database.insert(TRACES, each)[0] for each in written]
    database.insert(LOGS, row(seed=99))
    taken: set[int] = set()
    for identity, each in zip(ids, written, strict=True):
        stored = database.next(TRACES, but=taken)
        assert stored
        assert (stored.id, stored.row) == (identity, each)
        taken.add(identity)
    assert database.next(TRACES, but=taken) is None
    assert database.stock()[TRACES].items == 12
    assert database.stock()[LOGS].batches == 1


def test_what_was_written_is_there_for_the_next_process_and_ids_go_on(path: Path) -> None:
    first = Database(path)
    identity, _ = first.insert(TRACES, row())
    first.remove(TRACES, identity, End(delivered=3))
    first.close()
    second = Database(path)
    assert second.insert(TRACES, row())[0] > identity, "an id that somebody may still know is not given again"
    assert second.books()[TRACES].delivered == 3
    second.close()


def test_the_file_keeps_its_limit_and_the_oldest_has_to_go(database: Database, path: Path) -> None:
    ids, gone = [], []
    for number in range(400):
        identity, had_to_go = database.insert(TRACES if number % 2 else LOGS, row(100_000, seed=number), under_way={1})
        ids.append(identity)
        gone += [each.id for each in had_to_go]
    assert gone == ids[1 : 1 + len(gone)], "oldest first, but for what is under way"
    assert path.stat().st_size <= LEAST
    assert database.cost <= LEAST
    assert all(books.exact for books in database.books().values())
    assert sum(books.dropped["storage_full"] for books in database.books().values()) == 3 * len(gone)


def test_what_is_too_old_goes_and_its_room_is_given_back(database: Database, path: Path) -> None:
    for number in range(150):
        database.insert(TRACES, row(100_000, created_ns=number, seed=number))
    full = path.stat().st_size
    gone = database.expire(140, under_way={2})
    assert len(gone) == 139
    assert database.books()[TRACES].dropped == {"too_old": 139 * 3}
    while database.give_back():
        pass
    database.close()
    assert path.stat().st_size < full / 2


def test_a_batch_that_is_not_what_was_written_is_recognised(database: Database, path: Path) -> None:
    identity, _ = database.insert(TRACES, row(50_000))
    other = sqlite3.connect(path)
    other.execute("UPDATE batches SET body = CAST(substr(body, 1, 100) || x'00' || substr(body, 102) AS BLOB)")
    other.commit()
    other.close()
    stored = database.next(TRACES)
    assert stored
    assert (stored.id, stored.items, stored.row) == (identity, 3, None)
    assert len(stored.raw) == 50_000


@pytest.mark.parametrize("body", ["NULL", "12", "CAST(x'c3' AS TEXT)"])
def test_a_batch_whose_columns_are_not_of_their_types_is_recognised(database: Database, path: Path, body: str) -> None:
    identity, _ = database.insert(TRACES, row(50_000))
    other = sqlite3.connect(path)
    other.execute("PRAGMA ignore_check_constraints = ON")
    other.execute("PRAGMA writable_schema = ON")
    other.execute("UPDATE sqlite_schema SET sql = replace(sql, 'body BLOB NOT NULL', 'body BLOB')")
    other.commit()
    other.close()
    other = sqlite3.connect(path)
    other.execute(f"UPDATE batches SET body = {body}")
    other.commit()
    other.close()
    assert database.next(TRACES) == (identity, 3, row(50_000).cost, None, b"")


@pytest.mark.parametrize("column", ["count", "size", "created_ns", "since_ns"])
def test_the_checksum_is_of_every_column(database: Database, path: Path, column: str) -> None:
    database.insert(TRACES, row())
    other = sqlite3.connect(path)
    other.execute(f"UPDATE batches SET {column} = {column} + 1")
    other.commit()
    other.close()
    stored = database.next(TRACES)
    assert stored
    assert stored.row is None


def test_a_state_is_given_out_once(database: Database) -> None:
    assert database.take_state("correlate") is None
    database.put_state("correlate", b"one")
    database.put_state("correlate", b"two")
    assert database.take_state("correlate") == b"two"
    assert database.take_state("correlate") is None


def test_a_broken_state_is_not_given_out(database: Database, path: Path) -> None:
    database.put_state("correlate", b"one")
    other = sqlite3.connect(path)
    other.execute("UPDATE states SET value = x'00'")
    other.commit()
    other.close()
    with pytest.raises(ValueError, match="checksum"):
        database.take_state("correlate")
    assert database.take_state("correlate") is None


def test_a_file_of_a_later_version_is_refused(path: Path) -> None:
    Database(path).close()
    later = sqlite3.connect(path)
    later.execute("PRAGMA user_version = 99")
    later.close()
    with pytest.raises(NewerVersionError, match="version 99"):
        Database(path)


def test_a_file_can_be_read_while_an_agent_uses_it(database: Database, path: Path) -> None:
    database.insert(TRACES, row())
    reader = Database(path, read_only=True)
    assert reader.stock() == {TRACES: Stock(1, 3, PAGE_SIZE * 2, 5)}
    database.insert(TRACES, row())
    assert reader.stock()[TRACES].batches == 2
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        reader.insert(TRACES, row())
    reader.close()


# --- damage ----------------------------------------------------------------------------------------------------------


def damaged(path: Path, at: int, length: int = 8192) -> None:
    """Write noise over a part of a file."""
    with path.open("r+b") as file:
        file.seek(at)
        file.write(random.Random(at).randbytes(length))


def test_a_file_is_set_aside_with_its_log_under_a_dated_name(path: Path) -> None:
    database = Database(path)
    database.insert(TRACES, row())
    aside = set_aside(path, datetime(2026, 4, 23, 10, 0, 0, tzinfo=UTC))
    database.close()
    assert aside.name == "test.db.set-aside-20260423T100000.000000Z"
    assert aside.exists()
    assert not path.exists()
    assert [stored.row for _, stored in readable(aside)] == [row()]


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(at=st.floats(0, 1), count=st.integers(1, 60))
@example(at=0.02, count=8)  # SQLite quotes a page's noise in its error
def test_of_a_damaged_file_what_can_be_read_is_what_was_written(tmp_path: Path, at: float, count: int) -> None:
    path = tmp_path / "damaged.db"
    path.unlink(missing_ok=True)
    database = Database(path)
    rows = [row(20_000, seed=number) for number in range(count)]
    written = {database.insert(TRACES, each)[0]: each for each in rows}
    database.close()
    damaged(path, int(at * path.stat().st_size))
    found = [(stored.id, stored.row) for _, stored in readable(path)]
    assert len({identity for identity, _ in found}) == len(found), "none twice"
    assert all(written[identity] == each for identity, each in found), "none that is not what was written"


def test_damage_in_the_middle_costs_what_lies_there(path: Path) -> None:
    database = Database(path)
    for number in range(100):
        database.insert(TRACES, row(20_000, seed=number))
    database.close()
    damaged(path, path.stat().st_size // 2)
    assert len(list(readable(path))) > 50


def test_what_is_no_database_has_nothing_to_read(path: Path) -> None:
    path.write_bytes(b"this is no database" * 1000)
    assert list(readable(path)) == []
    with pytest.raises(sqlite3.DatabaseError):
        Database(path)


def test_only_so_many_batches_are_set_aside(tmp_path: Path) -> None:
    kept = [set_aside_row(tmp_path, LOGS, b"x", datetime.fromtimestamp(number, UTC)) for number in range(70)]
    assert sum(1 for each in kept if each) == MOST_SET_ASIDE
    assert kept[-1] is None
    assert kept[0]
    assert kept[0].name.startswith("batch-otlp_http-backup-logs.set-aside-1970")


# --- the books -------------------------------------------------------------------------------------------------------


class Books(RuleBasedStateMachine):
    """Whatever is done, and wherever the process is cut off: the books add up, and hold what the model holds."""

    @initialize(directory=st.uuids())
    def begin(self, directory: object) -> None:
        self.directory = tempfile.TemporaryDirectory(prefix=f"books-{directory}-")
        self.path = Path(self.directory.name) / "test.db"
        self.database = Database(self.path, max_bytes=LEAST)
        self.held: dict[QueueName, dict[int, int]] = {TRACES: {}, LOGS: {}}
        self.delivered = 0
        self.number = 0

    @rule(queue=st.sampled_from([TRACES, LOGS]), size=st.sampled_from([10, 5_000, 900_000]), count=st.integers(1, 9))
    def insert(self, queue: QueueName, size: int, count: int) -> None:
        self.number += 1
        identity, gone = self.database.insert(queue, row(size, count=count, created_ns=self.number, seed=self.number))
        self.held[queue][identity] = count
        for each in gone:
            assert self.held[each.queue].pop(each.id) == each.items

    @rule(queue=st.sampled_from([TRACES, LOGS]), rejected=st.integers(0, 1))
    def deliver_the_oldest(self, queue: QueueName, rejected: int) -> None:
        if stored := self.database.next(queue):
            assert stored.id == min(self.held[queue])
            assert self.database.remove(queue, stored.id, End(delivered=stored.items - rejected, rejected=rejected))
            assert not self.database.remove(queue, stored.id, End(delivered=stored.items)), "only once"
            self.delivered += self.held[queue].pop(stored.id) - rejected
        else:
            assert not self.held[queue]

    @rule(age=st.integers(0, 3))
    def grow_old(self, age: int) -> None:
        for each in self.database.expire(self.number - age):
            assert self.held[each.queue].pop(each.id) == each.items

    @precondition(lambda self: self.number)
    @rule()
    def be_killed_and_start_again(self) -> None:
        """No close, no checkpoint: what a killed process leaves."""
        copy = self.path.with_name(f"killed-{self.number}-{random.random()}.db")
        for part in ("", "-wal"):
            source = self.path.with_name(self.path.name + part)
            if source.exists():
                copy.with_name(copy.name + part).write_bytes(source.read_bytes())
        self.database.close()
        self.path, self.database = copy, Database(copy, max_bytes=LEAST)

    @invariant()
    def the_books_add_up(self) -> None:
        books = self.database.books()
        assert all(each.exact for each in books.values())
        assert sum(each.delivered for each in books.values()) == self.delivered
        assert self.database.rows == sum(map(len, self.held.values()))
        for queue, held in self.held.items():
            assert books[queue].held == sum(held.values()) if queue in books else not held

    def teardown(self) -> None:
        self.database.close()
        self.directory.cleanup()


TestBooks = Books.TestCase
TestBooks.settings = settings(max_examples=30, stateful_step_count=40, deadline=None)
