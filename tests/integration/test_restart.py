"""An agent that stops while tasks run, and the next one: on a real server, with whatever keeps the state in between."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
import redis.asyncio

from agent.configuration import parse
from agent.core.clock import SteadyClock
from agent.core.ledger import Ledger
from agent.core.status import StatusBoard
from agent.demo.sink import points
from agent.emit import AsyncSignalEmitter, AttemptSignals, Composer, iso
from agent.otlp.resource import Resource
from agent.pipeline import Graph
from agent.registry import Host
from agent.stem.keys import Keys
from agent.telemetry.events import Telemetry
from tests.conftest import ObservedSink, until
from tests.support import envelope, found


class MemoryStore:
    """Keeps state in this process; `stuck` takes nothing and never says so, `broken` says so."""

    def __init__(self) -> None:
        self.kept: dict[str, bytes] = {}
        self.stuck = False
        self.broken = False
        self.asked = asyncio.Event()

    async def put(self, key: str, value: bytes) -> bool:
        self.asked.set()
        if self.stuck:
            await asyncio.Event().wait()
        if not self.broken:
            self.kept[key] = value
        return not self.broken

    async def take(self, key: str) -> bytes | None:
        return self.kept.pop(key, None)


class Kept:
    """Agents that follow one another, with one store; `telemetry` is that of the last."""

    def __init__(self, text: str, store: MemoryStore, directory: Path) -> None:
        for component in ("correlate: {", "stem_signals: {"):
            text = text.replace(component, f"{component}storage: file_storage, ")
        text = text.replace("service:\n", f"extensions: {{file_storage: {{directory: {directory}}}}}\nservice:\n")
        text = text.replace("  telemetry:", "  extensions: [file_storage]\n  telemetry:")
        self._config = parse(text, {})
        self.directory = directory
        self.store = store
        self.telemetry = Telemetry()

    @contextlib.asynccontextmanager
    async def agent(self, instance: str = "instance-1", within: float = 5.0) -> AsyncIterator[Graph]:
        self.telemetry = Telemetry()
        resource = Resource({"service.name": "stem", "service.instance.id": instance})
        clock = SteadyClock()
        host = Host(self.telemetry, Ledger(), clock, resource, StatusBoard(clock))
        graph = Graph(self._config, host)
        await graph.start()
        try:
            yield graph
        finally:
            await graph.stop(within)

    def counted(self, name: str, **labels: str) -> int:
        return self.telemetry.counted(f"stem_agent.{name}", **labels)


@pytest.fixture
def kept(yaml: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kept:
    """The storage runs, and its states are in memory instead: what a disk does to them is the storage's own test."""
    store = MemoryStore()
    monkeypatch.setattr(Host, "storage", lambda _, identity: store if identity else None)
    return Kept(yaml, store, tmp_path)


@pytest.fixture
async def worker(client: "redis.asyncio.Redis", namespace: str) -> AsyncSignalEmitter:
    return AsyncSignalEmitter(client, Composer(worker_id="worker-1", namespace=namespace, emitter="pod-1"))


def task(task_id: str = "task-1", **changes: Any) -> dict[str, Any]:
    return envelope(id=task_id, enqueuedAt=iso(datetime.now(UTC)), **changes)


async def begin(worker: AsyncSignalEmitter, kept: Kept, task_id: str = "task-1") -> "AttemptSignals[Any]":
    """Begin an attempt, and wait until the agent heard it."""
    attempt = worker.attempt(task(task_id))
    heard = kept.counted("signals.received", event="task-prerun")
    await attempt.received()
    await attempt.prerun()
    await until(lambda: kept.counted("signals.received", event="task-prerun") > heard)
    return attempt


async def end(attempt: "AttemptSignals[Any]") -> None:
    await attempt.succeeded()
    await attempt.postrun("succeeded")


def spans(sink: ObservedSink, task_id: str = "task-1") -> list[Any]:
    return [span for span in sink.named("process") if found(span)["stem.task.id"] == task_id]


def logged(sink: ObservedSink, event: str) -> list[str]:
    return [found(record)["stem.task.id"] for record in sink.logs if record.event_name == event]


def counter(sink: ObservedSink, name: str) -> Any:
    return points(sink.metrics[name])[0]


async def test_a_task_that_spans_a_restart_is_one_span_with_one_start(
    kept: Kept, worker: AsyncSignalEmitter, sink: ObservedSink
) -> None:
    async with kept.agent():
        attempt = await begin(worker, kept)
    assert not kept.counted("correlate.evicted")
    assert logged(sink, "stem.task.started") == ["task-1"]
    assert not spans(sink)
    before = counter(sink, "stem.tasks.started")
    async with kept.agent():
        await end(attempt)
        await sink.until(lambda: bool(spans(sink)))
    [span] = spans(sink)
    assert "stem.incomplete" not in found(span)
    assert found(span)["stem.source"] == "signals"
    assert logged(sink, "stem.task.started") == logged(sink, "stem.task.succeeded") == ["task-1"]
    after = counter(sink, "stem.tasks.started")
    assert (before.as_int, after.as_int) == (1, 1)
    assert before.start_time_unix_nano == after.start_time_unix_nano
    assert not kept.counted("signals.lost")


async def test_counters_go_on(kept: Kept, worker: AsyncSignalEmitter, sink: ObservedSink) -> None:
    starts = []
    for number in range(3):
        async with kept.agent():
            await end(await begin(worker, kept, f"task-{number}"))
        point = counter(sink, "stem.tasks.succeeded")
        starts.append((point.as_int, point.start_time_unix_nano))
    assert starts == [(number, starts[0][1]) for number in (1, 2, 3)]


async def test_an_agent_of_another_identity_counts_anew(
    kept: Kept, worker: AsyncSignalEmitter, sink: ObservedSink
) -> None:
    async with kept.agent("instance-1"):
        await end(await begin(worker, kept, "task-1"))
    before = counter(sink, "stem.tasks.succeeded")
    async with kept.agent("instance-2"):
        await end(await begin(worker, kept, "task-2"))
    _, after = points(sink.metrics["stem.tasks.succeeded"])
    assert after.as_int == 1
    assert after.start_time_unix_nano > before.start_time_unix_nano


async def test_what_ends_while_no_agent_listens_is_read_from_its_record(
    kept: Kept, yaml: str, worker: AsyncSignalEmitter, client: "redis.asyncio.Redis", sink: ObservedSink, redis_url: str
) -> None:
    kept = Kept(yaml.replace("settle:", f"results: {{url: '{redis_url}'}}, settle:"), kept.store, kept.directory)
    async with kept.agent():
        attempt = await begin(worker, kept)
    await end(attempt)
    now = iso(datetime.now(UTC))
    record = {"id": "task-1", "state": "succeeded", "attempt": 0, "updatedAt": now}
    meta = {"task": "email.send", "worker": "worker-1", "completedAt": now}
    await client.set(Keys("stem").result("task-1"), msgspec.json.encode({**record, "payload": None, "meta": meta}))
    async with kept.agent():
        await sink.until(lambda: bool(spans(sink)))
        await worker.heartbeat()
        await until(lambda: kept.counted("signals.lost", reason="gap") == 2)
    [span] = spans(sink)
    assert found(span)["stem.task.state"] == "succeeded"
    assert found(span)["stem.source"] == "repair"
    assert logged(sink, "stem.task.started") == ["task-1"]


async def test_an_agent_that_cannot_subscribe_keeps_what_it_was_handed(
    kept: Kept, yaml: str, worker: AsyncSignalEmitter, sink: ObservedSink, redis_url: str, unused_tcp_port: int
) -> None:
    async with kept.agent():
        attempt = await begin(worker, kept)
    away = Kept(yaml.replace(redis_url, f"redis://127.0.0.1:{unused_tcp_port}/0"), kept.store, kept.directory)
    async with away.agent():
        assert not kept.store.kept
    await end(attempt)
    await worker.heartbeat()
    async with kept.agent():
        await worker.heartbeat()
        await until(lambda: kept.counted("signals.lost", reason="gap") == 3)
    assert not kept.counted("correlate.evicted")


async def test_a_state_that_cannot_be_read_costs_that_state_and_not_the_agent(
    kept: Kept, worker: AsyncSignalEmitter, sink: ObservedSink
) -> None:
    async with kept.agent():
        await begin(worker, kept)
    kept.store.kept = {key: state[:-1] for key, state in kept.store.kept.items()}
    async with kept.agent():
        assert kept.counted("state.refused", reason="broken") == 2
        await end(await begin(worker, kept, "task-2"))
        await sink.until(lambda: bool(spans(sink, "task-2")))


async def test_a_fault_of_ours_in_reading_a_state_does_not_keep_the_agent_from_starting(
    kept: Kept, worker: AsyncSignalEmitter, sink: ObservedSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with kept.agent():
        await begin(worker, kept)
    with monkeypatch.context() as patched:
        patched.setattr("agent.correlate.correlator.decode", lambda *_: {}["no such key"])
        async with kept.agent():
            assert kept.counted("state.refused", reason="internal_error") == 1
            await end(await begin(worker, kept, "task-2"))
            await sink.until(lambda: bool(spans(sink, "task-2")))


async def test_a_storage_that_hangs_does_not_hold_up_the_stop_and_what_it_should_have_kept_is_counted(
    kept: Kept, worker: AsyncSignalEmitter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.telemetry.keeping.KEEP_SECONDS", 0.05)
    kept.store.stuck = True
    async with kept.agent(within=0.05):
        await begin(worker, kept)
    assert kept.counted("state.not_kept") == 2
    assert kept.counted("correlate.evicted", reason="shutdown") == 1


async def test_what_a_storage_refuses_is_counted_as_lost(kept: Kept, worker: AsyncSignalEmitter) -> None:
    kept.store.broken = True
    async with kept.agent():
        await begin(worker, kept)
    assert kept.counted("state.not_kept") == 2
    assert kept.counted("correlate.evicted", reason="shutdown") == 1


async def test_a_stop_that_was_cut_off_still_keeps_the_state(kept: Kept, worker: AsyncSignalEmitter) -> None:
    kept.store.stuck = True
    async with kept.agent(within=0.0) as graph:
        await begin(worker, kept)
        stopping = asyncio.create_task(graph.stop(30))
        await kept.store.asked.wait()
        stopping.cancel()
        await asyncio.gather(stopping, return_exceptions=True)
        kept.store.stuck = False
    assert sorted(kept.store.kept) == ["connectors/correlate", "receivers/stem_signals"]
    assert not kept.counted("correlate.evicted")


async def test_a_component_that_was_never_started_leaves_the_state_alone(kept: Kept) -> None:
    async with kept.agent() as graph:
        pass
    before = dict(kept.store.kept)
    for _, components in graph.stages:
        for component in components.values():
            await component.stop(1)
    assert kept.store.kept == before
