"""Sending with a disk: nothing that was sealed is lost, whatever the disk, the destination and the process do."""

import asyncio
import contextlib
import random
import sqlite3
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.core.clock import SteadyClock
from agent.core.errors import StartupError
from agent.core.ledger import Account, Ledger
from agent.core.pressure import Pressure
from agent.core.status import Reports, StatusBoard
from agent.exporters.sending import disk_queue as queues
from agent.exporters.sending.config import BatchConfig, QueueConfig, RetryConfig
from agent.exporters.sending.outcome import Delivered, Drop, Outcome, Retry
from agent.exporters.sending.sealed import IDENTITY, Sealed
from agent.exporters.sending.sender import Sender
from agent.otlp.batch import Batch, Kind
from agent.otlp.resource import Resource
from agent.storage.config import FileStorageConfig
from agent.storage.database import Database
from agent.storage.disk import AWAY, FILE
from agent.storage.file_storage import FileStorage
from agent.storage.rows import Books, QueueName
from agent.telemetry.events import Telemetry
from tests.conftest import until
from tests.unit.test_storage import TRACES, damaged, row

NAME = QueueName("otlp_http", "traces")
RESOURCE = Resource({"service.name": "shop"})
KEPT = {"max_elapsed_time": 0.001}  # which would drop at once, were there no disk


def batch(count: int = 1, size: int = 100) -> Batch:
    return Batch(Kind.TRACES, RESOURCE, [b"\x0a" * size] * count, count)


def reports() -> Reports:
    return StatusBoard(SteadyClock()).of("exporters", "otlp_http")


class Server:
    """A destination that remembers what it accepted, each batch once."""

    def __init__(self) -> None:
        self.accepted: dict[str, int] = {}
        self.rejected: Counter[str] = Counter()
        self.repeats = 0
        self.order: list[str] = []
        self.up = asyncio.Event()
        self.up.set()
        self.answers: list[Outcome] = []

    async def __call__(self, sealed: Sealed) -> Outcome:
        if not self.up.is_set():
            return Retry("connection", "refused")
        outcome = self.answers.pop() if self.answers else Delivered()
        if isinstance(outcome, Delivered):
            self.repeats += sealed.batch_id in self.accepted
            self.accepted[sealed.batch_id] = sealed.count - min(outcome.rejected, sealed.count)
            self.rejected[sealed.batch_id] = min(outcome.rejected, sealed.count)
            self.order.append(sealed.batch_id)
        return outcome


class Process:
    """A sender with its storage, as one process has them."""

    def __init__(self, directory: Path, server: Server, **options: Any) -> None:
        self.telemetry = Telemetry()
        self.account: Account = Ledger().account(*NAME)
        self.file = directory / FILE
        config = FileStorageConfig.model_validate({"directory": str(directory), **options.pop("storage", {})})
        self.storage = FileStorage("file_storage", config, self.telemetry, SteadyClock(), reports())
        self._executor = ThreadPoolExecutor(1)
        self.pressure = Pressure()
        self.sender = Sender(
            queue=QueueConfig(batch=BatchConfig(flush_timeout=0.001, max_items=5), storage="file_storage", **options),
            retry=RetryConfig(initial_interval=0.001, max_interval=0.002, **KEPT),
            coding=IDENTITY,
            transport=server,
            account=self.account,
            telemetry=self.telemetry,
            executor=self._executor,
            storage=self.storage,
            reports=reports(),
            pressure=self.pressure,
        )

    async def start(self) -> None:
        await self.storage.start()
        await self.sender.start()

    async def stop(self, seconds: float = 5) -> None:
        await self.sender.stop(seconds)
        await self.storage.stop(5)
        self._executor.shutdown()

    def check(self) -> None:
        """The books add up, and say what really is where."""
        assert self.account.held == self.sender.held

    @property
    def on_disk(self) -> Books:
        database = Database(self.file, read_only=True)
        try:
            return database.books().get(NAME, Books(0, 0, 0, {}, 0))
        finally:
            database.close()


@pytest.fixture
async def server() -> Server:
    return Server()


async def test_what_is_delivered_leaves_the_disk(tmp_path: Path, server: Server) -> None:
    process = Process(tmp_path, server)
    await process.start()
    process.sender.consume(batch(12))
    await process.stop()
    assert sum(server.accepted.values()) == 12
    assert process.account.delivered == 12
    assert process.on_disk == Books(12, 12, 0, {}, 0)


async def test_what_a_stop_leaves_is_delivered_by_the_next_process_in_order_and_once(
    tmp_path: Path, server: Server
) -> None:
    first = Process(tmp_path, server)
    await first.start()
    server.up.clear()
    for _ in range(4):
        first.sender.consume(batch(5))
    await first.stop(0)
    assert (first.account.held, first.account.lost) == (20, 0), "held, not dropped"
    assert first.on_disk == Books(20, 0, 0, {}, 20)
    server.up.set()
    second = Process(tmp_path, server)
    await second.start()
    assert (second.account.accepted, second.account.restored) == (20, 20)
    second.sender.consume(batch(5))
    await second.stop()
    assert second.account.delivered == 25
    assert len(server.order) == 5
    assert server.repeats == 0
    assert second.on_disk == Books(25, 25, 0, {}, 0)


async def test_an_outage_has_no_budget_and_flat_memory(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queues, "HOT_BYTES", 2_000)
    process = Process(tmp_path, server, queue_size=4_000)
    await process.start()
    server.up.clear()
    for _ in range(300):
        process.sender.consume(batch(5))
        await until(lambda: process.sender._queue.items + 5 >= process.account.accepted)
        process.check()
    assert process.sender.queued_bytes == 0, "all of it is on the disk"
    assert len(process.sender._queue._hot) < 10  # type: ignore[attr-defined]
    assert process.account.lost == 0
    server.up.set()
    await process.stop()
    assert process.account.delivered == 1500
    assert server.repeats == 0
    assert len(server.order) == 300


async def test_rejected_and_refused_batches_leave_the_disk_and_the_books_say_so(tmp_path: Path, server: Server) -> None:
    server.answers = [Drop("http_400", "no"), Delivered(rejected=2, message="two are bad")]
    process = Process(tmp_path, server)
    await process.start()
    process.sender.consume(batch(10))
    await process.stop()
    assert process.on_disk == Books(10, 3, 2, {"http_400": 5}, 0)
    assert (process.account.delivered, process.account.rejected.total()) == (3, 2)


async def test_a_second_agent_is_kept_out(tmp_path: Path, server: Server) -> None:
    first, second = Process(tmp_path, server), Process(tmp_path, server)
    await first.start()
    with pytest.raises(StartupError, match=f"another agent uses {tmp_path}"):
        await second.start()
    await second.storage.stop(1)
    await first.stop()
    third = Process(tmp_path, server)
    await third.start()
    await third.stop()


async def test_a_directory_that_cannot_be_used_costs_the_disk_not_the_data(tmp_path: Path, server: Server) -> None:
    place = tmp_path / "storage"
    place.write_text("a file where the directory is to be")
    process = Process(place, server)
    await process.start()
    assert process.storage.failure
    server.up.clear()
    process.sender.consume(batch(10))
    await until(lambda: process.sender._queue.memory.bytes > 0)
    process.check()
    place.unlink()
    await process.storage.look_after()
    assert process.storage.failure is None
    await until(lambda: process.sender.queued_bytes == 0)
    process.check()
    await process.stop(0)
    assert (process.account.held, process.account.lost) == (10, 0)
    assert process.on_disk.held == 10


async def test_a_disk_that_works_again_unnoticed_takes_what_a_stop_leaves(tmp_path: Path, server: Server) -> None:
    place = tmp_path / "storage"
    place.write_text("a file where the directory is to be")
    process = Process(place, server)
    await process.start()
    server.up.clear()
    process.sender.consume(batch(15))
    await until(lambda: process.sender._queue.items == 10)
    place.unlink()
    await process.stop(0)
    assert (process.account.held, process.account.lost) == (15, 0)
    assert process.on_disk == Books(15, 0, 0, {}, 15)


async def test_what_the_disk_did_not_take_is_lost_with_the_process_and_counted(tmp_path: Path, server: Server) -> None:
    place = tmp_path / "storage"
    place.write_text("a file where the directory is to be")
    process = Process(place, server)
    await process.start()
    server.up.clear()
    process.sender.consume(batch(10))
    await process.stop(0)
    assert process.account.dropped == {"shutdown": 10}


async def test_a_batch_that_is_not_what_was_written_is_set_aside_and_the_others_are_sent(
    tmp_path: Path, server: Server
) -> None:
    first = Process(tmp_path, server)
    await first.start()
    server.up.clear()
    first.sender.consume(batch(15))
    await first.stop(0)
    with contextlib.closing(sqlite3.connect(first.file)) as other:
        other.execute("UPDATE batches SET body = x'00' WHERE id = (SELECT min(id) + 1 FROM batches)")
        other.commit()
    server.up.set()
    second = Process(tmp_path, server)
    await second.start()
    await second.stop()
    assert second.account.delivered == 10
    assert second.account.dropped == {"storage_corrupt": 5}
    assert second.on_disk == Books(15, 10, 0, {"storage_corrupt": 5}, 0)
    assert second.telemetry.counted("stem_agent.storage.quarantined", what="batch") == 1
    assert len(list(tmp_path.glob("batch-*"))) == 1


@pytest.mark.parametrize("content", [b"this is no database" * 500, b"SQLite format 3\x00" + bytes(8000)])
async def test_a_file_that_is_no_database_is_set_aside_and_the_agent_starts(
    tmp_path: Path, server: Server, content: bytes
) -> None:
    (tmp_path / FILE).write_bytes(content)
    process = Process(tmp_path, server)
    await process.start()
    process.sender.consume(batch(5))
    await process.stop()
    assert process.account.delivered == 5
    (aside,) = tmp_path.glob(f"{FILE}.set-aside-*Z")
    assert aside.read_bytes() == content
    assert process.telemetry.counted("stem_agent.storage.quarantined", what="file") == 1


async def test_a_file_whose_noise_sqlite_quotes_in_its_error_is_set_aside_too(tmp_path: Path, server: Server) -> None:
    file = tmp_path / FILE
    database = Database(file)
    for number in range(8):
        database.insert(TRACES, row(20_000, seed=number))
    database.close()
    damaged(file, int(0.02 * file.stat().st_size))
    process = Process(tmp_path, server)
    await process.start()
    process.sender.consume(batch(5))
    await process.stop()
    assert process.account.delivered == 5
    assert process.telemetry.counted("stem_agent.storage.quarantined", what="file") == 1


async def test_a_file_of_a_later_version_is_set_aside(tmp_path: Path, server: Server) -> None:
    Database(tmp_path / FILE).close()
    with contextlib.closing(sqlite3.connect(tmp_path / FILE)) as later:
        later.execute("PRAGMA user_version = 99")
    process = Process(tmp_path, server)
    await process.start()
    await process.stop()
    assert len(list(tmp_path.glob(f"{FILE}.set-aside-*Z"))) == 1


async def test_damage_while_the_agent_runs_costs_what_it_hit_and_the_books_say_so(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queues, "HOT_BYTES", 2_000)
    process = Process(tmp_path, server)
    await process.start()
    server.up.clear()
    for _ in range(200):
        process.sender.consume(batch(5, size=4000))
    await until(lambda: not process.sender._unsealed and process.sender._queue.items + 5 >= 1000)
    await process.storage._use(lambda database: database._sql.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall())
    with process.file.open("r+b") as file:
        file.seek(process.file.stat().st_size // 2)
        file.write(random.Random(1).randbytes(200_000))
    # What SQLite has in its own memory is still good: it looks at the disk again.
    await process.storage._use(lambda database: database._sql.execute("PRAGMA shrink_memory").fetchall())
    server.up.set()
    await until(lambda: not process.sender.held)
    process.check()
    lost = process.account.dropped["storage_corrupt"]
    assert process.account.delivered + lost == 1000
    assert 0 < lost < 500
    assert process.account.dropped.total() == lost
    await process.stop()
    assert process.on_disk.exact


class Flaky:
    """A database of which every method fails while `failing`: what a full or vanished disk does, on demand."""

    failing = False

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("insert", "next", "remove", "has", "expire", "give_back"):
            monkeypatch.setattr(Database, name, self._wrapped(getattr(Database, name)))

    def _wrapped(self, method: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            if self.failing:
                raise sqlite3.OperationalError("database or disk is full")
            return method(*arguments, **options)

        return call


STEPS = st.lists(
    st.sampled_from(
        ["consume", "server down", "server up", "bad answer", "disk fails", "disk works", "wait", "restart"]
    ),
    max_size=30,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS, seed=st.integers(0, 1 << 16))
def test_the_ledger_is_the_servers_own_count(
    tmp_path_factory: pytest.TempPathFactory, steps: list[str], seed: int
) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(queues, "HOT_BYTES", 1_500)
        asyncio.run(_live(tmp_path_factory.mktemp("storage"), steps, random.Random(seed), Flaky(monkeypatch)))


async def _live(directory: Path, steps: list[str], chance: random.Random, flaky: Flaky) -> None:
    server = Server()
    process = Process(directory, server)
    await process.start()
    sent = delivered = rejected = dropped = 0
    for step in [*steps, "disk works", "server up", "wait"]:
        match step:
            case "consume":
                count = chance.randrange(1, 20)
                process.sender.consume(batch(count))
                sent += count
            case "server down":
                server.up.clear()
            case "server up":
                server.up.set()
            case "bad answer":
                server.answers = [chance.choice([Drop("http_400", ""), Delivered(rejected=1), Retry("http_503", "")])]
            case "disk fails" | "disk works":
                flaky.failing = step == "disk fails"
                await process.storage.look_after()
            case "wait":
                for _ in range(chance.randrange(20)):
                    await asyncio.sleep(0)
            case "restart":
                flaky.failing = False
                await process.storage.look_after()
                await process.stop(0)
                process.check()
                assert not process.account.dropped["shutdown"], "everything was on the disk"
                delivered, rejected = delivered + process.account.delivered, rejected + process.account.rejected.total()
                dropped += process.account.dropped.total()
                left, process = process.account.held, Process(directory, server)
                await process.start()
                assert process.account.restored == left
        process.check()
    await process.stop()
    process.check()
    account = process.account
    assert account.held == 0
    delivered, rejected = delivered + account.delivered, rejected + account.rejected.total()
    dropped += account.dropped.total()
    assert sent == delivered + rejected + dropped
    assert delivered == sum(server.accepted.values())
    assert rejected == server.rejected.total()
    assert process.on_disk.exact
    assert process.on_disk.held == 0


async def test_asked_before_its_start_or_after_its_stop_the_storage_is_away(tmp_path: Path) -> None:
    storage = FileStorage("s", FileStorageConfig(directory=str(tmp_path)), Telemetry(), SteadyClock(), reports())
    assert await storage.claim(1) is AWAY
    await storage.start()
    await storage.put("correlate", b"state")
    assert await storage.take("correlate") == b"state"
    assert await storage.take("correlate") is None
    await storage.stop(1)
    assert await storage.take("correlate") is None
