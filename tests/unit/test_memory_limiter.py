"""The memory limiter: its limits, what it has done, what it says; and what that means to those who hold telemetry."""

import asyncio
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from agent.core.clock import SteadyClock
from agent.core.errors import StartupError
from agent.core.pressure import LOWEST, Level, Limits, Pressure, Priority, Step
from agent.core.status import Part, State, StatusBoard
from agent.exporters.sending.batcher import Intake
from agent.exporters.sending.outcome import Delivered, Retry
from agent.exporters.sending.sender import MEMORY_LIMIT
from agent.extensions.memory_limiter.cgroup import available_bytes
from agent.extensions.memory_limiter.config import MIB, MemoryLimiterConfig, limits
from agent.extensions.memory_limiter.extension import MemoryLimiter
from agent.otlp.batch import Batch, Kind
from agent.otlp.resource import Resource
from agent.telemetry.events import Telemetry
from agent.telemetry.memory import give_back, resident_bytes
from tests.conftest import until
from tests.unit.test_configuration import WORKING, problem
from tests.unit.test_disk_queue import Process, Server
from tests.unit.test_sending import Script, Sending

RESOURCE = Resource({"service.name": "shop"})
DEBUG, INFO, TRACES, ERRORS = Priority.DEBUG_LOGS, Priority.LOGS, Priority.TRACES, Priority.ERRORS


def batch(priority: Priority, count: int = 1, size: int = 100) -> Batch:
    return Batch(Kind.TRACES, RESOURCE, [Span(name="x" * size).SerializeToString()] * count, count, priority=priority)


# --- limits ----------------------------------------------------------------------------------------------------------

GIB = 1024 * MIB


@pytest.mark.parametrize(
    ("options", "hard_mib", "soft_mib"),
    [
        ({}, 800, 640),
        ({"limit_mib": 500}, 500, 400),
        ({"limit_mib": 500, "spike_limit_mib": 50}, 500, 450),
        ({"limit_mib": 500, "spike_limit_percentage": 10}, 500, 400),
        ({"limit_percentage": 50, "spike_limit_percentage": 10}, 500, 400),
        ({"limit_percentage": 100, "spike_limit_mib": 1}, 1000, 999),
    ],
)
def test_limits_are_what_the_collector_makes_of_the_same_options(
    options: dict[str, Any], hard_mib: int, soft_mib: int
) -> None:
    assert limits(MemoryLimiterConfig(**options), 1000 * MIB) == Limits(hard_mib * MIB, soft_mib * MIB)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ("limit_mib: 0", "found '0', expected more than 0"),
        ("limit_percentage: 101", "found '101', expected at most 100"),
        ("limit_mib: 100, limit_percentage: 50", "found '50', expected either this or limit_mib, not both"),
        ("limit_mib: 100, spike_limit_mib: 100", "found '100', expected less than limit_mib, which is 100"),
        ("spike_limit_mib: 1, spike_limit_percentage: 1", "expected either this or spike_limit_mib, not both"),
        ("spike_limit_percentage: 80", "found '80', expected less than limit_percentage, which is 80"),
        ("check_interval: 0", "expected more than 0"),
    ],
)
def test_impossible_values_are_errors_of_the_configuration(options: str, told: str) -> None:
    text = f"extensions: {{memory_limiter: {{{options}}}}}\n" + WORKING.replace(
        "service:\n", "service:\n  extensions: [memory_limiter]\n"
    )
    assert told in problem(text)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"limit_mib": 1001}, "limit_mib is 1001, but only 1000 MiB may be used here"),
        ({"limit_percentage": 10, "spike_limit_mib": 100}, "the spike limit of 100 MiB is not below the limit of 100"),
    ],
)
async def test_limits_that_are_impossible_here_end_the_start(options: dict[str, Any], told: str) -> None:
    limiter = Watched(options).limiter
    with pytest.raises(StartupError, match=told):
        await limiter.start()
    await limiter.stop(1)


def written(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="ascii")
    return root


MACHINE = available_bytes(Path("/nonexistent"))


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({}, MACHINE),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "1048576\n"}, MIB),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "max\n"}, MACHINE),
        (
            {
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/memory.max": "4096",
                "sys/fs/cgroup/a/b/memory.max": "max",
            },
            4096,
        ),
        (
            {"proc/self/cgroup": "0::/a\n", "sys/fs/cgroup/a/memory.max": "8192", "sys/fs/cgroup/memory.max": "4096"},
            4096,
        ),
        (
            {
                "proc/self/cgroup": "5:cpu:/x\n4:memory:/x\n0::/\n",
                "sys/fs/cgroup/memory/x/memory.limit_in_bytes": "4096",
            },
            4096,
        ),
        ({"proc/self/cgroup": "4:memory:/host/path\n", "sys/fs/cgroup/memory/memory.limit_in_bytes": "4096"}, 4096),
        (
            {"proc/self/cgroup": "4:memory:/\n", "sys/fs/cgroup/memory/memory.limit_in_bytes": str(2**63 - 4096)},
            MACHINE,
        ),
    ],
)
def test_what_may_be_used_is_the_smallest_limit_around_the_process(
    tmp_path: Path, files: dict[str, str], limit: int
) -> None:
    assert available_bytes(written(tmp_path, files)) == limit


def test_the_memory_of_this_process_is_known_and_free_memory_goes_back() -> None:
    before = resident_bytes()
    assert before
    kept = [b"%d" % number * 25_000 for number in range(1000, 3000)]
    most = resident_bytes()
    assert most
    assert most > before + 100_000_000
    del kept
    give_back()
    assert (resident_bytes() or 0) < most - 100_000_000


# --- the watch -------------------------------------------------------------------------------------------------------


class Watched:
    """A limiter of 1000 MiB with a soft limit of 800, where memory is what it is told; and one who holds some of it."""

    def __init__(self, options: dict[str, Any] | None = None) -> None:
        self.used_mib: int | None = 0
        self.held_bytes = self.spillable_bytes = 0
        self.spilt = 0
        self.shed_bytes: list[int] = []
        self.pressure = Pressure()
        self.pressure.join(self)
        self.telemetry = Telemetry()
        self.board = StatusBoard(SteadyClock())
        self.limiter = MemoryLimiter(
            "memory_limiter",
            MemoryLimiterConfig.model_validate({"check_interval": "1ms", **(options or {"limit_percentage": 100})}),
            self.pressure,
            self.telemetry,
            self.board.of("extensions", "memory_limiter"),
            used=lambda: None if self.used_mib is None else self.used_mib * MIB,
            available=lambda: 1000 * MIB,
        )

    def spill(self) -> None:
        self.spilt += 1

    def shed(self, priority: Priority, size: int) -> int:
        if priority < TRACES:
            return 0
        self.shed_bytes.append(size)
        self.held_bytes -= size
        return size

    async def look(self, used_mib: int, held_mib: int = 0) -> Part:
        self.used_mib, self.held_bytes = used_mib, held_mib * MIB
        await self.limiter.look()
        return self.board.components["extensions", "memory_limiter"].parts["memory"]

    def gauge(self, name: str) -> float:
        return self.telemetry.gauges[f"stem_agent.memory.{name}", ()]()


@pytest.fixture
async def watched() -> Any:
    watched = Watched()
    watched.limiter._limits = limits(watched.limiter._config, 1000 * MIB)
    return watched


async def test_it_says_what_it_does_and_in_which_state_it_is(
    watched: Watched, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    assert (await watched.look(790, 100)).state is State.OK
    part = await watched.look(850, 100)
    assert (part.state, part.reason) == (State.DEGRADED, "850 of 1000 MiB are used, 100 of them by queues in memory")
    assert (watched.spilt, watched.shed_bytes) == (1, [])
    part = await watched.look(960, 400)
    assert watched.shed_bytes == [160 * MIB]
    assert part.reason == (
        "960 of 1000 MiB are used, 240 of them by queues in memory; nothing below traces is taken"
        "; dropped 160 MiB of what waited"
    )
    assert watched.gauge("floor") == TRACES
    assert (watched.gauge("limit"), watched.gauge("soft_limit")) == (1000 * MIB, 800 * MIB)
    reasons = [(await watched.look(500)).reason for _ in range(3)]
    assert reasons[0] == "500 of 1000 MiB are used, 0 of them by queues in memory; nothing below metrics is taken"
    assert reasons[2] == ""
    assert [record.getMessage() for record in caplog.records] == [
        "memory gets short; queues that have a disk spill to it",
        "memory is about to reach its limit; dropping telemetry, lowest priority first",
        "memory is below its limits again",
    ]


async def test_a_limit_too_small_for_the_rest_is_said_and_costs_no_more_than_what_was_held(
    watched: Watched, caplog: pytest.LogCaptureFixture
) -> None:
    part = await watched.look(1200, 150)
    assert watched.shed_bytes == [100 * MIB], "a twentieth of the limit may always be held"
    for _ in range(5):
        part = await watched.look(1200, 50)
    assert part.state is State.DEGRADED
    assert part.reason.endswith("; the limit is too small for the rest (open attempts, code): raise it")
    assert watched.shed_bytes == [100 * MIB]
    assert watched.pressure.floor == LOWEST
    (line,) = [record for record in caplog.records if "too small" in record.getMessage()]
    assert line.levelname == "ERROR"


async def test_it_looks_by_itself_and_takes_everything_again_when_it_stops() -> None:
    watched = Watched()
    await watched.limiter.start()
    watched.used_mib, watched.held_bytes = 999, 500 * MIB
    await until(lambda: bool(watched.shed_bytes))
    assert watched.pressure.guarded
    await watched.limiter.stop(1)
    assert (watched.pressure.floor, watched.pressure.guarded) == (LOWEST, False)


async def test_a_fault_does_not_end_the_watch(caplog: pytest.LogCaptureFixture) -> None:
    watched = Watched()
    watched.used_mib, watched.held_bytes = 850, -1
    looks = iter([1, 1])

    def spill() -> None:
        if next(looks, None):
            raise ValueError("hunter2")
        watched.spilt += 1

    watched.spill = spill  # type: ignore[method-assign]
    await watched.limiter.start()
    await until(lambda: watched.spilt > 0)
    await watched.limiter.stop(1)
    (line,) = [record for record in caplog.records if "failed to look" in record.getMessage()]
    assert "hunter2" not in str(vars(line))


async def test_one_limiter_is_enough() -> None:
    watched = Watched()
    await watched.limiter.start()
    second = Watched().limiter
    second._pressure = watched.pressure
    with pytest.raises(StartupError, match="another memory_limiter runs"):
        await second.start()
    await second.stop(1)
    assert watched.pressure.guarded
    await watched.limiter.stop(1)


async def test_a_platform_that_does_not_tell_is_no_reason_not_to_start(caplog: pytest.LogCaptureFixture) -> None:
    watched = Watched()
    watched.used_mib = None
    await watched.limiter.start()
    await watched.limiter.look()
    assert not watched.pressure.guarded
    assert "memory is not limited" in caplog.text
    await watched.limiter.stop(1)


# --- those who hold --------------------------------------------------------------------------------------------------


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as pool:
        yield pool


class Away:
    """A sender whose destination is away until it is let through; what arrives is counted by priority."""

    def __init__(self, executor: ThreadPoolExecutor, **options: Any) -> None:
        self.up = asyncio.Event()
        self.arrived: list[bytes] = []
        self.pressure = Pressure()
        script = Script(lambda _: Delivered() if self.up.is_set() else Retry("connection", "refused"))
        self.sending = Sending(script, executor, self.pressure, **options)
        self.sender, self.account = self.sending.sender, self.sending.account

    def take(self, *priorities: Priority) -> None:
        for priority in priorities:
            self.sender.consume(batch(priority))

    def check(self) -> None:
        assert self.sender.held == self.account.held


def step(shed: int, floor: Priority = LOWEST) -> Step:
    return Step(Level.SHEDDING, floor, spill=True, shed=shed)


async def test_what_is_below_the_floor_is_accepted_and_dropped(executor: ThreadPoolExecutor) -> None:
    away = Away(executor)
    await away.sender.start()
    away.pressure.floor = TRACES
    away.take(DEBUG, INFO, Priority.METRICS, TRACES, ERRORS)
    assert (away.account.accepted, away.account.held) == (5, 2)
    assert away.account.dropped == Counter({MEMORY_LIMIT: 3})
    away.up.set()
    await away.sender.stop(5)
    assert away.sending.books() == (5, 2, {}, {MEMORY_LIMIT: 3}, 0)


@pytest.mark.parametrize("sealed", [True, False])
async def test_the_oldest_of_the_lowest_go_first_wherever_they_wait(
    executor: ThreadPoolExecutor, *, sealed: bool
) -> None:
    away = Away(executor)
    if sealed:
        await away.sender.start()
        away.take(ERRORS)
        await until(lambda: bool(away.sender._under_way))
    away.take(ERRORS, INFO, DEBUG, TRACES, DEBUG, ERRORS)
    if sealed:
        await until(lambda: not away.sender._unsealed)
    one = away.sender.held_bytes // 6
    assert away.pressure.held_bytes == (6 * one if sealed else 0), "who is not started holds nothing"
    away.pressure.join(away.sender)
    assert away.pressure.follow(step(1)) == one
    assert away.account.dropped == Counter({MEMORY_LIMIT: 1})
    assert away.pressure.floor is DEBUG
    assert away.pressure.follow(step(3 * one)) == 3 * one
    away.check()
    assert away.account.dropped == Counter({MEMORY_LIMIT: 4})
    assert away.pressure.floor is TRACES
    waiting = [*away.sender._queue._line, *away.sender._unsealed]  # type: ignore[attr-defined]
    assert [each.priority for each in waiting] == [ERRORS, ERRORS]
    away.up.set()
    await away.sender.stop(5)
    left = away.account.accepted - 4
    assert (away.account.delivered, away.account.held) == ((left, 0) if sealed else (0, 0))


async def test_a_batch_that_is_being_sealed_may_go_too(executor: ThreadPoolExecutor) -> None:
    away = Away(executor)
    await away.sender.start()
    go = threading.Event()
    executor.submit(go.wait, 10)
    away.take(DEBUG, ERRORS)
    await asyncio.sleep(0)
    assert away.pressure.follow(step(1)) > 0
    away.check()
    go.set()
    await until(lambda: bool(away.sender._under_way))
    away.up.set()
    await away.sender.stop(5)
    assert away.sending.books() == (2, 1, {}, {MEMORY_LIMIT: 1}, 0)


async def test_what_has_to_wait_is_kept_apart_and_what_is_sent_at_once_goes_together(
    executor: ThreadPoolExecutor,
) -> None:
    away = Away(executor, batch={"max_items": 100, "flush_timeout": 3600.0})
    away.pressure.guarded = True
    await away.sender.start()
    away.take(DEBUG, INFO, ERRORS)
    away.sender._flush()
    await until(lambda: bool(away.sender._under_way))
    (taken,) = away.sender._under_way.values()
    assert (taken.sealed.count, taken.sealed.priority) == (3, ERRORS), "one request for all of them"
    away.take(DEBUG, INFO, ERRORS, DEBUG)
    away.sender._flush()
    waiting = [(pending.priority, pending.count) for pending in away.sender._unsealed]
    assert waiting == [(DEBUG, 2), (INFO, 1), (ERRORS, 1)]
    away.pressure.guarded = False
    away.take(DEBUG, INFO, ERRORS)
    away.sender._flush()
    assert [pending.count for pending in away.sender._unsealed] == [2, 1, 1, 3], "nobody sheds: no need to"
    away.up.set()
    await away.sender.stop(5)
    assert away.account.delivered == 10


@given(
    st.lists(st.tuples(st.sampled_from([DEBUG, INFO, ERRORS]), st.integers(1, 8), st.integers(0, 300)), max_size=30),
    st.integers(1, 12),
    st.integers(1, 2000),
    st.booleans(),
)
def test_every_item_is_taken_in_once_within_the_limits(
    told: Sequence[tuple[Priority, int, int]], max_items: int, max_bytes: int, together: bool
) -> None:
    intake = Intake(max_items=max_items, max_bytes=max_bytes)
    closed = [
        pending
        for now_ns, (priority, count, size) in enumerate(told, start=1)
        for pending in intake.add(
            Batch(Kind.LOGS, RESOURCE, [bytes([priority]) * size] * count, count, 5, priority), now_ns
        )
    ]
    assert all(len({item[:1] for _, part in pending.parts for item in part} - {b""}) <= 1 for pending in closed)
    closed += intake.flush(together=together)
    assert intake.count == 0
    for pending in closed:
        items = [item for _, part in pending.parts for item in part]
        assert pending.count == len(items) == sum(pending.ages.values()) <= max_items
        assert pending.size <= max_bytes or len(items) == 1
        assert all(item[:1] <= bytes([pending.priority]) for item in items)
        assert pending.begun_ns
    sent = Counter(len(item) for pending in closed for _, part in pending.parts for item in part)
    expected = Counter[int]()
    for _, count, size in told:
        expected[size] += count
    assert sent == +expected


async def test_what_is_on_the_disk_is_forgotten_and_read_when_its_turn_comes(tmp_path: Path) -> None:
    server = Server()
    server.up.clear()
    process = Process(tmp_path, server)
    await process.start()
    process.sender.consume(batch(DEBUG, 20))
    await until(lambda: process.sender._queue.items == 15)
    assert process.sender.spillable_bytes > 0
    assert process.sender.held_bytes == 0
    assert process.pressure.follow(step(10**9)) == 0, "nothing of it has to go"
    assert process.sender.spillable_bytes == 0
    process.check()
    assert process.account.dropped == Counter()
    server.up.set()
    await process.stop()
    assert (process.account.delivered, process.account.held) == (20, 0)
    assert server.repeats == 0


async def test_what_the_disk_does_not_take_has_to_go_like_any_other(tmp_path: Path) -> None:
    place, server = tmp_path / "storage", Server()
    place.write_text("a file where the directory is to be")
    server.up.clear()
    process = Process(place, server)
    await process.start()
    process.sender.consume(batch(ERRORS, 5))
    await until(lambda: bool(process.sender._under_way))
    process.sender.consume(batch(DEBUG, 5))
    process.sender.consume(batch(ERRORS, 5))
    await until(lambda: process.sender._queue.items == 10 and not process.sender._unsealed)
    assert process.sender.held_bytes > 0
    process.pressure.follow(step(1))
    process.check()
    assert process.account.dropped == Counter({MEMORY_LIMIT: 5})
    place.unlink()
    await process.storage.look_after()
    await until(lambda: process.sender.held_bytes == 0)
    process.check()
    server.up.set()
    await process.stop()
    assert process.account.delivered == 10
