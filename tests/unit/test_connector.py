"""The shell around the correlator: what it hands on, and what it says of itself."""

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord

from agent.core.pressure import Priority
from agent.core.status import State, StatusBoard
from agent.correlate.config import CorrelateConfig
from agent.correlate.connector import _CALM_NS, CorrelateConnector
from agent.otlp.batch import Batch, Kind
from agent.otlp.resource import Resource
from agent.processors.resource import ResourceConfig, ResourceProcessor
from agent.telemetry.events import Telemetry
from tests.support import EPOCH, SECOND, UTC_ZONE, Story, envelope, nanoseconds, signals_of


class Kept:
    """A next step that keeps what it is given."""

    def __init__(self) -> None:
        self.batches: list[Batch] = []

    def consume(self, batch: Batch) -> None:
        self.batches.append(batch)


class Shell:
    """A connector whose time is told."""

    def __init__(self, **options: Any) -> None:
        self.now_ns = nanoseconds(EPOCH)
        self.outputs = {kind: Kept() for kind in Kind}
        self.status = StatusBoard(lambda: self.now_ns)
        config = CorrelateConfig.model_validate({"results": {"enabled": False}, **options})
        self.connector = CorrelateConnector(
            "correlate",
            config,
            self.outputs,
            Resource({}),
            Telemetry(lambda: self.now_ns),
            lambda: self.now_ns,
            self.status.of("connectors", "correlate"),
        )
        self.status.started("connectors", "correlate")
        (self.component,) = self.status

    def hear(self, payloads: Sequence[bytes]) -> None:
        self.connector.consume_facts(signals_of(payloads), UTC_ZONE)

    def since(self, kind: Kind) -> list[int]:
        return [batch.since_ns for batch in self.outputs[kind].batches]


def test_a_batch_knows_when_the_oldest_signal_it_tells_of_happened() -> None:
    shell, story = Shell(), Story()
    began_ns = nanoseconds(story.time.now)
    payloads = [*story.run(), *story.run(task=envelope(id="task-2"))]
    shell.now_ns += 2 * SECOND
    shell.hear(payloads)
    assert shell.since(Kind.TRACES) == [began_ns + 36_000_000], "when the first attempt ended"
    assert shell.since(Kind.LOGS) == [began_ns + 1_000_000], "when the first attempt started"
    story.time.advance(0.5)
    shell.hear(story.run(task=envelope(id="task-3")))
    assert shell.since(Kind.TRACES)[1] > shell.since(Kind.TRACES)[0] + SECOND // 2, "and the next begins anew"


def test_what_is_worth_more_is_handed_on_apart() -> None:
    shell, story = Shell(logs={"min_severity": "DEBUG"}), Story()
    shell.hear([*story.run("succeeded"), *story.run("failed", envelope(id="task-2"))])
    logs, traces = shell.outputs[Kind.LOGS].batches, shell.outputs[Kind.TRACES].batches
    ranked = {
        batch.priority: sorted(LogRecord.FromString(item).severity_text for item in batch.items) for batch in logs
    }
    assert ranked == {
        Priority.DEBUG_LOGS: ["DEBUG"] * 4,  # two were received, two finished
        Priority.LOGS: ["INFO"] * 3,
        Priority.ERRORS: ["ERROR"],
    }
    assert {batch.priority: batch.count for batch in traces} == {Priority.TRACES: 3, Priority.ERRORS: 3}
    assert sum(batch.count for batch in [*logs, *traces]) == sum(len(batch.items) for batch in [*logs, *traces])


def test_a_processor_hands_the_priority_on() -> None:
    kept = Kept()
    ResourceProcessor(ResourceConfig(), kept).consume(
        Batch(Kind.LOGS, Resource({}), [b"x"], 1, priority=Priority.DEBUG_LOGS)
    )
    assert kept.batches[0].priority is Priority.DEBUG_LOGS


def test_a_clock_that_is_days_behind_tells_of_no_latency() -> None:
    shell, story = Shell(), Story()
    shell.now_ns += int(timedelta(days=2).total_seconds()) * SECOND
    shell.hear(story.run())
    assert shell.since(Kind.TRACES) == [0]
    assert shell.since(Kind.LOGS) == [0]


async def test_metrics_tell_of_no_one_signal() -> None:
    shell = Shell()
    shell.hear(Story().run())
    await shell.connector.stop(0)
    assert shell.since(Kind.METRICS) == [0]


async def test_that_there_is_nothing_to_tell_any_more_is_said_once() -> None:
    shell = Shell(series_ttl=1.0)
    shell.hear(Story().run())
    shell.connector._hand_on_metrics()
    shell.now_ns += 3600 * SECOND
    shell.connector._hand_on_metrics()
    shell.connector._hand_on_metrics()
    batches = shell.outputs[Kind.METRICS].batches
    assert [bool(batch.items) for batch in batches] == [True, False]
    assert {batch.source for batch in batches} == {"correlate"}


def test_a_processor_hands_the_age_on() -> None:
    kept = Kept()
    ResourceProcessor(ResourceConfig(), kept).consume(Batch(Kind.LOGS, Resource({}), [b""], 1, 77))
    assert kept.batches[0].since_ns == 77


async def test_dropped_attempts_show_until_none_was_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.correlate.connector.TICK_SECONDS", 0)
    shell = Shell(max_tasks=1)
    story = Story()
    shell.hear([*story.run(task=envelope(id="a"))[:2], *story.run(task=envelope(id="b"))[:2]])
    assert shell.component.state is State.OK
    await shell.connector.start()
    await _turn()
    assert shell.component.state is State.DEGRADED
    assert shell.component.reason == "open attempts are dropped: max_tasks"
    shell.now_ns += _CALM_NS
    await _turn()
    assert shell.component.state is State.OK
    assert shell.component.last_error[0] == "open attempts are dropped: max_tasks"
    await shell.connector.stop(0)


async def _turn() -> None:
    for _ in range(10):
        await asyncio.sleep(0)
