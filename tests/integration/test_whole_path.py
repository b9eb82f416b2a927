"""From a published signal to the OTLP endpoint, through a real Valkey and a real HTTP server."""

import random
from collections.abc import Sequence
from typing import Any

import pytest
import redis.asyncio

from agent.demo.sink import attributes
from agent.emit import AsyncSignalEmitter
from agent.otlp.resource import SCHEMA_URL
from agent.stem.channels import heartbeat_channel, signal_channel
from tests.conftest import ObservedSink, Running, receiver_of
from tests.support import TASK_ID, Story, envelope, found


async def publish(
    client: "redis.asyncio.Redis", namespace: str, payloads: Sequence[bytes], emitter: str = "pod-1"
) -> None:
    async with client.pipeline(transaction=False) as pipe:
        for payload in payloads:
            pipe.publish(signal_channel(namespace, emitter), payload)
        await pipe.execute()


def story_of(namespace: str, tasks: int) -> list[bytes]:
    story = Story(namespace=namespace)
    for index in range(tasks):
        story.run(random.Random(index).choice(["succeeded", "failed", "revoked"]), envelope(id=f"task-{index}"))
    return story.payloads


def lost(agent: Any, reason: str) -> int:
    return agent.telemetry.counted("stem_agent.signals.lost", reason=reason)


async def test_a_task_arrives_as_traces_metrics_and_logs(
    yaml: str, running: Running, sink: ObservedSink, client: "redis.asyncio.Redis", namespace: str, redis_url: str
) -> None:
    async with running(yaml) as agent:
        emitter = AsyncSignalEmitter.connect(redis_url, namespace=namespace, emitter="pod-1", worker_id="worker-1")
        task = envelope()
        await emitter.before_publish(task)
        await emitter.after_publish(task)
        attempt = emitter.attempt(task)
        await attempt.received()
        await attempt.prerun()
        await attempt.failed("SocketException: refused", "#0 main")
        await attempt.postrun("failed")
        await emitter.close()
        await sink.until(lambda: len(sink.spans) == 3 and len(sink.logs) == 6 and "stem.tasks.failed" in sink.metrics)
    assert sorted(span.name for span in sink.spans) == ["process email.send", "send default", "wait default"]
    assert sink.sums("stem.tasks.failed", "task", "queue") == {("email.send", "default"): 1}
    assert sink.sums("stem.tasks.published", "task") == {("email.send",): 1}
    assert sink.scopes == {("stem-agent", SCHEMA_URL)}
    assert sink.resources["traces"]["service.name"] == namespace
    assert sink.resources["traces"]["telemetry.distro.name"] == "stem-otel-agent"
    assert {header["Content-Type"] for header in sink.headers} == {"application/x-protobuf"}
    assert {header["Content-Encoding"] for header in sink.headers} == {"gzip"}
    assert sink.headers[0]["User-Agent"].startswith("stem-agent/")
    assert agent.ledger.lost == 0


async def test_a_burst_is_counted_exactly(
    yaml: str, running: Running, sink: ObservedSink, client: "redis.asyncio.Redis", namespace: str
) -> None:
    payloads = story_of(namespace, 2000)
    async with running(yaml) as agent:
        await publish(client, namespace, payloads)
        await sink.until(lambda: sum(1 for _ in sink.named("process")) == 2000)
    assert len({span.span_id for span in sink.spans}) == len(sink.spans)
    assert sink.sums("stem.tasks.started").total() == 2000
    for account in agent.ledger.accounts.values():
        assert account.delivered == account.accepted
        assert account.held == 0


async def test_shuffled_and_doubled_signals_make_the_same_telemetry(
    yaml: str, running: Running, sink: ObservedSink, client: "redis.asyncio.Redis", namespace: str
) -> None:
    payloads = story_of(namespace, 200)
    shuffled = payloads + payloads[::7]
    random.Random(1).shuffle(shuffled)
    async with running(yaml) as agent:
        await publish(client, namespace, shuffled)
        await sink.until(lambda: sum(1 for _ in sink.named("process")) >= 200)
    processes = list(sink.named("process"))
    assert len(processes) == len({span.span_id for span in processes}) == 200
    assert not [span for span in processes if "stem.incomplete" in found(span)]
    assert agent.telemetry.counted("stem_agent.signals.duplicates") == len(payloads[::7])
    assert lost(agent, "gap") == 0


BAD = [
    (b"nonsense", "decode"),
    (b"[1, 2]", "decode"),
    (b'{"eventName": "task-prerun", "attributes": {}}', "decode"),
    (b'{"eventName": 5, "occurredAt": "2026-04-23T10:00:00Z", "attributes": {}}', "decode"),
    (b"\xff\xfe\xfd", "decode"),
    (b'{"eventName": "x", "occurredAt": "' + b"x" * (5 << 20) + b'", "attributes": {}}', "oversize"),
]


async def test_bad_payloads_are_counted_told_and_cost_nothing_else(
    yaml: str,
    running: Running,
    sink: ObservedSink,
    client: "redis.asyncio.Redis",
    namespace: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    story = Story(namespace=namespace)
    good = story.run(task=envelope(headers={"traceparent": "00-nonsense"}))
    async with running(yaml) as agent:
        await publish(client, namespace, [payload for payload, _ in BAD] * 3)
        await publish(client, namespace, good)
        await sink.until(lambda: len(sink.spans) == 3)
        assert lost(agent, "decode") == 15
        assert lost(agent, "oversize") == 3
    lines = [record for record in caplog.records if record.getMessage() == "signal could not be decoded"]
    assert len(lines) == 1
    assert lines[0].fields == {"receiver": "stem_signals", "emitter": "pod-1", "detail": "not_json"}  # type: ignore[attr-defined]
    assert "nonsense" not in caplog.text


async def test_an_unknown_signal_is_logged_and_counted(
    yaml: str, running: Running, sink: ObservedSink, client: "redis.asyncio.Redis", namespace: str
) -> None:
    story = Story(namespace=namespace)
    story.recorded.emit("task-teleported", {})
    async with running(yaml) as agent:
        await publish(client, namespace, story.payloads)
        await sink.until(lambda: len(sink.logs) == 1)
        assert agent.telemetry.counted("stem_agent.signals.received", event="unknown") == 1
    assert sink.logs[0].event_name == "stem.signal.unknown"


async def test_missing_numbers_are_a_gap_in_log_and_counter(
    yaml: str, running: Running, sink: ObservedSink, client: "redis.asyncio.Redis", namespace: str
) -> None:
    payloads = story_of(namespace, 5)
    async with running(yaml) as agent:
        await publish(client, namespace, payloads[:3] + payloads[7:])
        await sink.until(lambda: any(record.event_name == "stem.signals.gap" for record in sink.logs))
        assert lost(agent, "gap") == 4
    (gap,) = [record for record in sink.logs if record.event_name == "stem.signals.gap"]
    told = attributes(gap.attributes)
    assert (told["stem.signals.from"], told["stem.signals.to"], told["stem.emitter"]) == (4, 7, "pod-1")


async def test_a_sidecar_hears_its_own_emitter_only(
    yaml: str, running: Running, sink: ObservedSink, client: "redis.asyncio.Redis", namespace: str
) -> None:
    text = yaml.replace(f"namespace: {namespace}", f"namespace: {namespace}, emitters: [pod-1]")
    async with running(text):
        await publish(client, namespace, Story("worker-2", "pod-2").run(task=envelope(id="other")), emitter="pod-2")
        await client.publish(heartbeat_channel(namespace), HEARTBEAT)
        await publish(client, namespace, Story().run())
        await sink.until(lambda: len(sink.spans) == 3)
    assert {found(span)["stem.task.id"] for span in sink.spans} == {TASK_ID}
    assert "stem.worker.up" not in sink.metrics


async def test_a_namespace_hears_neither_deeper_nor_other_namespaces(
    yaml: str, running: Running, sink: ObservedSink, client: "redis.asyncio.Redis", namespace: str
) -> None:
    async with running(yaml) as agent:
        await publish(client, f"{namespace}:deeper", Story().run(task=envelope(id="deeper")))
        await publish(client, f"{namespace}x", Story().run(task=envelope(id="other")))
        await publish(client, namespace, Story().run())
        await sink.until(lambda: len(sink.spans) == 3)
        assert agent.telemetry.counted("stem_agent.signals.received") == 4


HEARTBEAT = b"""{"workerId":"worker-1","namespace":"stem","timestamp":"2026-04-23T10:00:00.123456Z","isolateCount":1,
 "inflight":3,"lastLeaseRenewal":null,"version":"1","queues":[{"name":"default","inflight":3}],
 "extras":{"host":"h","pid":1,"concurrency":8,"memoryBytes":1048576,"loadAvg":[0.1,0.1,0.1]}}"""


async def test_stems_own_heartbeats_become_worker_metrics_in_a_gateway(
    yaml: str, running: Running, sink: ObservedSink, client: "redis.asyncio.Redis", namespace: str
) -> None:
    async with running(yaml) as agent:
        await client.publish(heartbeat_channel(namespace), b"not a heartbeat")
        await client.publish(heartbeat_channel(namespace), HEARTBEAT)
        await sink.until(lambda: "stem.worker.inflight" in sink.metrics)
        assert lost(agent, "decode") == 1
    values = {
        name: sink.metrics[f"stem.worker.{name}"].gauge.data_points[0]
        for name in ("up", "inflight", "concurrency", "memory")
    }
    assert {name: point.as_int for name, point in values.items()} == {
        "up": 1,
        "inflight": 3,
        "concurrency": 8,
        "memory": 1048576,
    }
    assert found(values["up"]) == {"worker": "worker-1", "namespace": namespace}


async def test_a_full_backlog_sheds_the_oldest_and_counts_each_once(
    yaml: str, running: Running, sink: ObservedSink, client: "redis.asyncio.Redis", namespace: str
) -> None:
    payloads = story_of(namespace, 50)
    text = yaml.replace(f"namespace: {namespace}", f"namespace: {namespace}, backlog: 20KiB")
    async with running(text) as agent:
        receiver = receiver_of(agent.graph)
        receiver._hear(signal_channel(namespace, "pod-1").encode(), b'{"a":' + b"[" * 5000 + b"]" * 5000 + b"}")
        channel = signal_channel(namespace, "pod-1").encode()
        for payload in payloads:  # faster than any socket: nothing is decoded in between
            receiver._hear(channel, payload)
        shed = lost(agent, "shed")
        assert shed > 100
    assert lost(agent, "gap") == 0
    assert agent.telemetry.counted("stem_agent.signals.received") == len(payloads) + 1 - shed
