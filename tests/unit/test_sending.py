"""Batching, retrying and the books, against a scripted transport."""

import asyncio
import io
import random
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import pytest
from google.rpc.status_pb2 import Status
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from agent.core.backoff import Backoff
from agent.core.ledger import Account, Ledger
from agent.core.pressure import Pressure
from agent.core.status import State, StatusBoard
from agent.exporters.debug import DebugConfig, DebugExporter
from agent.exporters.otlp_http.answer import interpret, retry_after
from agent.exporters.sending.batcher import AGE_GRAIN_NS, Batcher
from agent.exporters.sending.config import BatchConfig, QueueConfig, RetryConfig
from agent.exporters.sending.delivery import RETRIES_EXHAUSTED
from agent.exporters.sending.outcome import Delivered, Drop, Outcome, Refused, Retry
from agent.exporters.sending.sealed import IDENTITY, Coding, Sealed, seal
from agent.exporters.sending.sender import INTERNAL_ERROR, QUEUE_OVERFLOW, SHUTDOWN, Sender
from agent.otlp.batch import Batch, Kind
from agent.otlp.resource import Resource
from agent.telemetry.events import Telemetry
from tests.conftest import until
from tests.support import SECOND

RESOURCE = Resource({"service.name": "shop"})
NOW = datetime(2026, 4, 23, 10, 0, 0, tzinfo=UTC)


def batch(*sizes: int, counts: Sequence[int] = ()) -> Batch:
    items = [Span(name="x" * size).SerializeToString() for size in sizes]
    return Batch(Kind.TRACES, RESOURCE, items, sum(counts) or len(items), counts=counts)


@given(st.lists(st.lists(st.integers(0, 300), max_size=20), max_size=10), st.integers(1, 12), st.integers(1, 2000))
def test_batches_keep_their_limits_their_order_and_every_item(
    inputs: list[list[int]], max_items: int, max_bytes: int
) -> None:
    batcher = Batcher(max_items=max_items, max_bytes=max_bytes)
    closed = [pending for sizes in inputs for pending in batcher.add(batch(*sizes))]
    closed.append(batcher.flush())
    for pending in closed:
        items = [item for _, part in pending.parts for item in part]
        assert pending.count == len(items) <= max_items
        assert pending.size <= max_bytes or len(items) == 1
    sent = [len(Span.FromString(item).name) for pending in closed for _, part in pending.parts for item in part]
    assert sent == [size for sizes in inputs for size in sizes]


@given(st.lists(st.tuples(st.integers(1, 20), st.integers(0, 2 * SECOND)), max_size=10), st.integers(1, 12))
def test_every_item_travels_with_the_age_of_its_signal(inputs: list[tuple[int, int]], max_items: int) -> None:
    batcher = Batcher(max_items=max_items, max_bytes=1 << 20)
    closed, expected = [], Counter[int]()
    for number, (count, since_ns) in enumerate(inputs):
        told = Batch(Kind.TRACES, RESOURCE, [b"x"] * count, count, since_ns)
        closed += batcher.add(told, number + 1)
        if since_ns:
            expected[since_ns // AGE_GRAIN_NS * AGE_GRAIN_NS] += count
    closed.append(batcher.flush())
    sealed = [seal(pending, IDENTITY) for pending in closed]
    told_ages = Counter[int]()
    for batch_of_one in sealed:
        told_ages.update(dict(batch_of_one.ages))
        assert sum(count for _, count in batch_of_one.ages) <= batch_of_one.count
        assert (batch_of_one.begun_ns > 0) is (batch_of_one.count > 0)
    assert told_ages == +expected
    begun = [batch_of_one.begun_ns for batch_of_one in sealed if batch_of_one.count]
    assert begun == sorted(begun)


def test_data_points_are_counted_not_metrics() -> None:
    batcher = Batcher(max_items=100, max_bytes=1 << 20)
    assert list(batcher.add(batch(1, 1, 1, counts=(7, 2, 1)))) == []
    assert batcher.flush().count == 10


def test_a_batch_that_is_parted_counts_the_data_points_that_each_part_has() -> None:
    batcher = Batcher(max_items=8, max_bytes=1 << 20)
    (first,) = batcher.add(batch(1, 1, 1, 1, counts=(7, 1, 1, 3)))
    assert (first.count, batcher.flush().count) == (8, 4)


@given(st.floats(0.001, 10), st.floats(0.001, 100), st.integers(1, 30), st.randoms(use_true_random=False))
def test_back_off_stays_within_its_ceiling_and_never_spins(
    initial: float, maximum: float, tries: int, chance: random.Random
) -> None:
    backoff = Backoff(initial, maximum, source=chance)
    for _ in range(tries):
        delay = backoff.next()
        assert 0 < delay <= maximum


def test_back_off_honours_the_server_up_to_its_own_maximum() -> None:
    backoff = Backoff(1.0, 30.0)
    assert 7.0 <= backoff.next(7.0) <= 8.0
    assert backoff.next(1e9) == 30.0


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_retryable_codes_are_retried(status: int) -> None:
    outcome = interpret(Kind.TRACES, status, {"retry-after": "7"}, b"slow down", now=NOW)
    assert outcome == Retry(f"http_{status}", f"http {status}: slow down", 7.0)


@pytest.mark.parametrize("status", [401, 403, 404])
def test_what_refuses_us_is_not_the_batchs_fault(status: int) -> None:
    assert interpret(Kind.LOGS, status, {}, b"", now=NOW) == Refused(f"http_{status}", f"http {status}")


@pytest.mark.parametrize("status", [400, 413, 500, 501])
def test_all_other_errors_are_dropped(status: int) -> None:
    outcome = interpret(Kind.LOGS, status, {}, b"", now=NOW)
    assert outcome == Drop(f"http_{status}", f"http {status}")


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_redirects_are_not_followed(status: int) -> None:
    outcome = interpret(Kind.LOGS, status, {"location": "http://elsewhere"}, b"", now=NOW)
    assert isinstance(outcome, Drop)
    assert outcome.reason == "redirect"


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, 0),
        ("", 0),
        ("7", 7),
        ("Thu, 23 Apr 2026 10:00:30 GMT", 30),
        ("Thu, 23 Apr 2026 09:00:00 GMT", 0),
        ("soon", 0),
        ("-5", 0),
        ("1e9", 0),
        ("999999999", 999999999),
        ("²", 0),
        ("21 Oct 99999999999 10:00:00 GMT", 0),
    ],
)
def test_retry_after_in_all_its_forms(value: str | None, seconds: float) -> None:
    assert retry_after(value, NOW) == seconds


def test_partial_success_is_counted_and_not_retried() -> None:
    response = ExportTraceServiceResponse()
    response.partial_success.rejected_spans = 3
    response.partial_success.error_message = "too old"
    assert interpret(Kind.TRACES, 200, {}, response.SerializeToString(), now=NOW) == Delivered(3, "too old")


def test_a_success_that_cannot_be_read_is_still_a_success() -> None:
    outcome = interpret(Kind.TRACES, 200, {}, b"\xff\xff\xff", now=NOW)
    assert isinstance(outcome, Delivered)
    assert outcome.rejected == 0
    assert outcome.message


def test_a_protobuf_status_is_read_for_people() -> None:
    body = Status(message="quota\nexceeded").SerializeToString()
    outcome = interpret(Kind.TRACES, 400, {"content-type": "application/x-protobuf"}, body, now=NOW)
    assert outcome == Drop("http_400", "http 400: quota exceeded")


@given(st.binary(max_size=200), st.integers(200, 599), st.dictionaries(st.just("retry-after"), st.text(max_size=20)))
def test_no_answer_ever_raises(body: bytes, status: int, headers: dict[str, str]) -> None:
    outcome = interpret(Kind.METRICS, status, headers, body, now=NOW)
    assert isinstance(outcome, Delivered | Retry | Refused | Drop)


class Script:
    """A transport that answers by a script, and remembers what was delivered."""

    def __init__(self, answer: Callable[[Sealed], Outcome | Exception | None]) -> None:
        self.answer = answer
        self.attempts: list[Sealed] = []
        self.spans: list[Span] = []
        self.called = asyncio.Event()

    async def __call__(self, sealed: Sealed) -> Outcome:
        self.attempts.append(sealed)
        self.called.set()
        answer = self.answer(sealed)
        if answer is None:
            await asyncio.Event().wait()  # never answers
        if isinstance(answer, Exception):
            raise answer
        assert isinstance(answer, Delivered | Retry | Drop)
        if isinstance(answer, Delivered):
            request = ExportTraceServiceRequest.FromString(sealed.body)
            self.spans += [s for r in request.resource_spans for scope in r.scope_spans for s in scope.spans]
        return answer


class Sending:
    """A sender on a script, with its account."""

    def __init__(
        self, script: Script, executor: ThreadPoolExecutor, pressure: Pressure | None = None, **options: Any
    ) -> None:
        self.account: Account = Ledger().account("otlp_http", "traces")
        self.telemetry = Telemetry()
        self.status = StatusBoard(self.telemetry.clock)
        self.script = script
        limits = {"flush_timeout": 0.001, "max_items": 1, **options.pop("batch", {})}
        retry = {"initial_interval": 0.001, "max_interval": 0.002, **options.pop("retry", {})}
        self.sender = Sender(
            queue=QueueConfig(batch=BatchConfig(**limits), **options),
            retry=RetryConfig(**retry),
            coding=IDENTITY,
            transport=script,
            account=self.account,
            telemetry=self.telemetry,
            executor=executor,
            reports=self.status.of("exporters", "otlp_http"),
            pressure=pressure,
        )

    def books(self) -> tuple[int, int, dict[str, int], dict[str, int], int]:
        account = self.account
        return account.accepted, account.delivered, dict(account.rejected), dict(account.dropped), account.held


@pytest.fixture
def executor() -> Any:
    with ThreadPoolExecutor(1) as pool:
        yield pool


async def test_what_is_delivered_is_booked(executor: ThreadPoolExecutor) -> None:
    sending = Sending(Script(lambda _: Delivered()), executor)
    await sending.sender.start()
    sending.sender.consume(batch(1, 2, 3))
    assert sending.account.held == 3
    await sending.sender.stop(5)
    assert sending.books() == (3, 3, {}, {}, 0)
    assert [len(span.name) for span in sending.script.spans] == [1, 2, 3]


async def test_a_failed_attempt_is_repeated_with_the_same_bytes(executor: ThreadPoolExecutor) -> None:
    outcomes: list[Outcome] = [Retry("http_503", "busy"), Retry("connection", "refused"), Delivered()]
    sending = Sending(Script(lambda _: outcomes.pop(0)), executor)
    await sending.sender.start()
    sending.sender.consume(batch(1))
    await sending.sender.stop(5)
    assert sending.books() == (1, 1, {}, {}, 0)
    assert len({attempt.body for attempt in sending.script.attempts}) == 1
    assert sending.telemetry.counted("stem_agent.exporter.retries", exporter="otlp_http") == 2


@pytest.mark.parametrize(
    ("answer", "options", "rejected", "dropped"),
    [
        (Drop("http_400", ""), {}, {}, {"http_400": 1}),
        (Delivered(rejected=1), {}, {"partial_success": 1}, {}),
        (Delivered(rejected=99), {}, {"partial_success": 1}, {}),
        (Retry("http_503", ""), {"retry": {"enabled": False}}, {}, {RETRIES_EXHAUSTED: 1}),
        (Retry("http_503", ""), {"retry": {"max_elapsed_time": 0.0001}}, {}, {RETRIES_EXHAUSTED: 1}),
        (RuntimeError("a fault of ours"), {}, {}, {INTERNAL_ERROR: 1}),
    ],
)
async def test_every_other_end_has_its_reason(
    executor: ThreadPoolExecutor, answer: Any, options: Any, rejected: Any, dropped: Any
) -> None:
    sending = Sending(Script(lambda _: answer), executor, **options)
    await sending.sender.start()
    sending.sender.consume(batch(1))
    await sending.sender.stop(5)
    assert sending.books() == (1, 0, rejected, dropped, 0)


async def test_a_full_queue_drops_the_oldest_and_counts(executor: ThreadPoolExecutor) -> None:
    gate = asyncio.Event()
    script = Script(lambda _: Delivered() if gate.is_set() else None)
    sending = Sending(script, executor, queue_size=3000)
    await sending.sender.start()
    sending.sender.consume(batch(1))
    await script.called.wait()  # the first is under way and hangs; the others have to share the queue
    for size in range(1000, 1010):
        sending.sender.consume(batch(size))
    assert sending.sender.queued_bytes <= 3000
    assert sending.account.dropped == {QUEUE_OVERFLOW: 8}
    assert sending.account.held == 3
    gate.set()
    await sending.sender.stop(0.05)
    assert sending.account.held == 0


@pytest.mark.parametrize(
    ("sizer", "size", "kept"),
    [("items", 4, 4), ("requests", 3, 6), ("bytes", 1000, 6)],
)
async def test_a_queue_is_measured_in_what_its_sizer_says(
    executor: ThreadPoolExecutor, sizer: str, size: int, kept: int
) -> None:
    script = Script(lambda _: None)  # the first batch is under way for ever
    sending = Sending(script, executor, sizer=sizer, queue_size=size, batch={"max_items": 2})
    await sending.sender.start()
    for _ in range(10):
        sending.sender.consume(batch(100, 100))
        await until(lambda: not sending.sender._unsealed)
    assert sending.account.dropped == {QUEUE_OVERFLOW: 18 - kept}
    assert sending.account.held == sending.sender.held == kept + 2
    await sending.sender.stop(0)


async def test_a_stop_under_a_hanging_destination_keeps_its_deadline(executor: ThreadPoolExecutor) -> None:
    sending = Sending(Script(lambda _: None), executor)
    await sending.sender.start()
    sending.sender.consume(batch(1, 2, 3))
    await sending.script.called.wait()
    await sending.sender.stop(0.01)
    assert sending.books() == (3, 0, {}, {SHUTDOWN: 3}, 0)


async def test_a_stop_tries_a_waiting_batch_once_more_at_once(executor: ThreadPoolExecutor) -> None:
    outcomes: list[Outcome] = [Retry("http_503", "", after=3600.0), Delivered()]
    sending = Sending(
        Script(lambda _: outcomes.pop(0)), executor, retry={"max_interval": 3600.0, "max_elapsed_time": 0.0}
    )
    await sending.sender.start()
    sending.sender.consume(batch(1))
    await sending.script.called.wait()
    await sending.sender.stop(5)
    assert sending.books() == (1, 1, {}, {}, 0)


async def test_age_alone_closes_a_batch(executor: ThreadPoolExecutor) -> None:
    sending = Sending(Script(lambda _: Delivered()), executor, batch={"max_items": 1000})
    await sending.sender.start()
    sending.sender.consume(batch(1))
    await sending.script.called.wait()
    await sending.sender.stop(5)
    assert sending.books() == (1, 1, {}, {}, 0)


@settings(max_examples=60, deadline=None)
@given(st.integers(), st.booleans(), st.integers(200, 5000), st.integers(1, 3), st.integers(1, 5), st.integers(0, 20))
def test_the_ledger_always_adds_up(
    seed: int,
    hangs: bool,
    queue_size: int,
    num_consumers: int,
    max_items: int,
    batches: int,
) -> None:
    """Random answers, sizes, queue limits and a stop at a random moment: the sum holds, and agrees with the server."""

    async def play() -> None:
        chance = random.Random(seed)
        answers: list[Outcome | Exception | None] = [
            Delivered(),
            Delivered(rejected=1),
            Retry("http_503", ""),
            Drop("http_400", ""),
            RuntimeError("oops"),
            None,
        ]
        weights = (10, 2, 5, 2, 1, int(hangs))
        script = Script(lambda _: chance.choices(answers, weights)[0])
        with ThreadPoolExecutor(2) as executor:
            sending = Sending(
                script,
                executor,
                queue_size=queue_size,
                num_consumers=num_consumers,
                batch={"max_items": max_items},
            )
            await sending.sender.start()
            accepted = 0
            for _ in range(batches):
                sizes = [chance.randrange(200) for _ in range(chance.randrange(1, 6))]
                sending.sender.consume(batch(*sizes))
                accepted += len(sizes)
                assert sending.account.held == sending.sender.held
                await asyncio.sleep(0)
            await sending.sender.stop(0.02)
        account = sending.account
        assert account.accepted == accepted
        assert account.held == 0
        assert account.delivered + account.lost == accepted
        assert account.delivered == len(script.spans) - account.rejected.total()

    asyncio.run(play())


async def test_a_batch_that_cannot_be_sealed_costs_itself_only(executor: ThreadPoolExecutor) -> None:
    sending = Sending(Script(lambda _: Delivered()), executor)

    def compress(data: bytes) -> bytes:
        if b"bad" in data:
            raise MemoryError
        return data

    sending.sender._coding = Coding("identity", compress)
    await sending.sender.start()
    for name in ("good", "bad", "good"):
        sending.sender.consume(Batch(Kind.TRACES, RESOURCE, [Span(name=name).SerializeToString()], 1))
    await sending.sender.stop(5)
    assert sending.books() == (3, 2, {}, {INTERNAL_ERROR: 1}, 0)


def test_a_debug_exporter_that_cannot_write_drops_and_raises_nothing() -> None:
    class Full(io.StringIO):
        def write(self, _: str) -> int:
            raise OSError(28, "No space left on device")

    ledger, status = Ledger(), StatusBoard(lambda: 0)
    DebugExporter("debug", DebugConfig(), ledger, status.of("exporters", "debug"), Full()).consume(batch(1, 2))
    status.started("exporters", "debug")
    (component,) = status
    assert (component.state, component.reason) == (State.FAILED, "failed to write: no space left on device")
    account = ledger.account("debug", "traces")
    assert (account.delivered, dict(account.dropped), account.held) == (0, {"output_failed": 2}, 0)


@pytest.mark.parametrize(("verbosity", "lines"), [("basic", 1), ("normal", 3)])
def test_the_debug_exporter_shows_what_passes(verbosity: Any, lines: int) -> None:
    stream, ledger = io.StringIO(), Ledger()
    reports = StatusBoard(lambda: 0).of("exporters", "debug")
    DebugExporter("debug", DebugConfig(verbosity=verbosity), ledger, reports, stream).consume(batch(1, 2))
    assert stream.getvalue().splitlines()[0] == "debug: 2 spans"
    assert len(stream.getvalue().splitlines()) == lines
    assert ledger.account("debug", "traces").delivered == 2


def test_the_debug_exporter_shows_in_detail_whose_the_items_are() -> None:
    stream, reports = io.StringIO(), StatusBoard(lambda: 0).of("exporters", "debug")
    DebugExporter("debug", DebugConfig(verbosity="detailed"), Ledger(), reports, stream).consume(batch(1))
    assert stream.getvalue().splitlines()[:2] == ["debug: 1 spans", "  resource: service.name=shop"]


async def test_a_cancellation_that_a_library_mistakes_for_its_own_timeout_is_not_the_last(
    executor: ThreadPoolExecutor,
) -> None:
    class Swallows(Script):
        async def __call__(self, sealed: Sealed) -> Outcome:
            self.attempts.append(sealed)
            self.called.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                if len(self.attempts) > 1:
                    raise
            return Retry("timeout", "")

    sending = Sending(Swallows(lambda _: None), executor)
    await sending.sender.start()
    sending.sender.consume(batch(1))
    await sending.script.called.wait()
    await sending.sender.stop(0.01)
    assert sending.books() == (1, 0, {}, {SHUTDOWN: 1}, 0)


async def test_a_queue_tells_how_old_and_how_full_it_is(executor: ThreadPoolExecutor) -> None:
    sending = Sending(Script(lambda _: Retry("http_503", "busy")), executor, queue_size=1000, num_consumers=1)
    prefix = "stem_agent.exporter.queue."
    gauges = {name.removeprefix(prefix): read for (name, _), read in sending.telemetry.gauges.items()}
    assert (gauges["size"](), gauges["capacity"](), gauges["oldest_age"]()) == (0, 1000, 0)
    await sending.sender.start()
    sending.sender.consume(batch(100))
    await sending.script.called.wait()
    assert gauges["size"]() == 0, "what is under way waits no more"
    assert 0 < gauges["oldest_age"]() < 20
    (component,) = sending.status
    for _ in range(9):
        sending.sender.consume(batch(100))
    assert component.parts["traces"].state is State.RECOVERING
    assert component.parts["traces.queue"].state is State.DEGRADED
    assert gauges["size"]() > 800
    sending.script.answer = lambda _: Delivered()
    await sending.sender.stop(5)
    assert component.parts["traces"].state is State.OK
    assert component.parts["traces.queue"].state is State.OK
    assert gauges["oldest_age"]() == 0
