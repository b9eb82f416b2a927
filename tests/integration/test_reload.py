"""Reloading under a constant stream of signals: nothing missing, nothing doubled; a bad file changes nothing."""

import asyncio
import contextlib
import os
import signal
import socket
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio
from aiohttp import web
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.metrics.v1.metrics_pb2 import AGGREGATION_TEMPORALITY_DELTA

from tests.conftest import YAML, ObservedSink
from tests.integration.conftest import Child, Start
from tests.integration.test_whole_path import publish
from tests.support import Story, envelope, tell_end

Write = Callable[[str], Path]
_OPEN = 30
"""Attempts that are open at every moment of the stream."""
_PACE_SECONDS = 0.002


class Stream:
    """Publishes attempts for as long as it is open; each is told to start, and thirty attempts later to end."""

    def __init__(self, client: "redis.asyncio.Redis", namespace: str) -> None:
        self._client = client
        self._namespace = namespace
        self._story = Story(namespace=namespace)
        self._open: deque[Any] = deque()
        self._task: asyncio.Task[None] | None = None
        self.begun = 0

    @contextlib.asynccontextmanager
    async def flowing(self) -> AsyncIterator[None]:
        """Publish all the while, and at last end what is open."""
        self._task = asyncio.create_task(self._flow())
        try:
            yield
        finally:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            await self.close()

    async def _flow(self) -> None:
        while True:
            await self.step()
            await asyncio.sleep(_PACE_SECONDS)  # a pace, so that nothing is shed; nothing depends on it

    async def step(self) -> None:
        """Begin an attempt, and end the oldest if enough are open."""
        self.begin()
        if len(self._open) > _OPEN:
            self._end()
        await self.tell()

    def begin(self) -> None:
        """Begin an attempt."""
        attempt = self._story.attempt(envelope(id=f"task-{self.begun}"))
        self.begun += 1
        attempt.received()
        self._story.time.advance(0.001)
        attempt.prerun()
        self._open.append(attempt)

    def _end(self) -> None:
        attempt = self._open.popleft()
        self._story.time.advance(0.03)
        tell_end(attempt, "succeeded", self._story.time)
        attempt.postrun("succeeded")

    async def tell(self) -> None:
        """Publish what was told since the last time: shielded, so that what was numbered is published."""
        payloads = list(self._story.payloads)
        self._story.payloads.clear()
        await asyncio.shield(asyncio.ensure_future(publish(self._client, self._namespace, payloads)))

    async def close(self) -> None:
        """End what is open."""
        while self._open:
            self._end()
        await self.tell()


@pytest.fixture
def stream(client: "redis.asyncio.Redis", namespace: str) -> Stream:
    return Stream(client, namespace)


@pytest.fixture
async def other() -> AsyncIterator[ObservedSink]:
    sink = ObservedSink()
    await sink.start()
    yield sink
    await sink.stop()


async def reload(agent: Child, file: Path, text: str, told: str = "reloaded the configuration") -> str:
    file.write_text(text, encoding="utf-8")
    agent.process.send_signal(signal.SIGHUP)
    return await agent.until(told)


def everything_once(stream: Stream, sinks: Sequence[ObservedSink]) -> None:
    """Assert that each attempt was told once, in spans, log records and counters."""
    spans = Counter(span.span_id for sink in sinks for span in sink.named("process"))
    assert len(spans) == stream.begun
    assert set(spans.values()) == {1}
    for event in ("stem.task.started", "stem.task.succeeded"):
        records = [log.attributes for sink in sinks for log in sink.logs if log.event_name == event]
        uids = Counter(pair.value.string_value for pairs in records for pair in pairs if pair.key == "log.record.uid")
        assert len(uids) == stream.begun
        assert set(uids.values()) == {1}
    for name in ("stem.tasks.started", "stem.tasks.succeeded"):
        assert max(sink.sums(name).total() for sink in sinks) == stream.begun


async def subscribers(client: "redis.asyncio.Redis") -> set[str]:
    return {each["id"] for each in await client.client_list(_type="pubsub") if each["name"] == "stem-agent"}


def through(text: str, sink: ObservedSink) -> str:
    """Return a configuration whose exporter leads to a sink."""
    head, _, rest = text.partition("    endpoint: ")
    return f"{head}    endpoint: {sink.url}\n{rest.partition(chr(10))[2]}"


async def test_exporters_are_replaced_under_a_constant_stream_and_bad_files_change_nothing(
    start: Start,
    write: Write,
    yaml: str,
    sink: ObservedSink,
    other: ObservedSink,
    stream: Stream,
    client: "redis.asyncio.Redis",
) -> None:
    file = write(yaml)
    agent = await start("run", "-c", str(file))
    await agent.until("stem-agent running")
    before = await subscribers(client)
    async with stream.flowing():
        for turn in range(4):
            target = (other, sink)[turn % 2]
            seen = len(target.spans)
            line = await reload(agent, file, through(yaml, target))
            assert "replaced=otlp_http" in line
            await target.until(lambda target=target, seen=seen: len(target.spans) > seen + 20)  # type: ignore[misc]
            for broken in ("receivers: [", "service: {}", yaml.replace("endpoint:", "endpont:")):
                line = await reload(agent, file, broken, "failed to reload the configuration")
                assert "the one before stays in use" in line
                assert "agent.yaml:" in line
    assert await subscribers(client) == before, "the subscription is the one of the start"
    assert await agent.end(signal.SIGTERM) == 0
    assert "lost=0" in agent.lines[-1]
    everything_once(stream, [sink, other])
    assert len(sink.spans) > 20
    assert len(other.spans) > 20


async def test_an_exporter_of_differences_that_is_replaced_loses_none(
    start: Start, write: Write, yaml: str, sink: ObservedSink, stream: Stream
) -> None:
    told: Counter[str] = Counter()

    async def note(request: web.Request) -> None:
        if request.path == "/v1/metrics":
            for entry in ExportMetricsServiceRequest.FromString(await request.read()).resource_metrics:
                for metric in (metric for scope in entry.scope_metrics for metric in scope.metrics):
                    assert metric.sum.aggregation_temporality in {0, AGGREGATION_TEMPORALITY_DELTA}
                    told[metric.name] += sum(point.as_int for point in metric.sum.data_points)

    sink.answer = note
    exporter = "    temporality: delta\n    compression: {}\n    endpoint: "
    first, second = (yaml.replace("    endpoint: ", exporter.format(each), 1) for each in ("none", "gzip"))
    file = write(first)
    agent = await start("run", "-c", str(file))
    await agent.until("stem-agent running")
    async with stream.flowing():
        for turn in range(4):
            seen = told["stem.tasks.succeeded"]
            await sink.until(lambda seen=seen: told["stem.tasks.succeeded"] > seen)  # type: ignore[misc]
            assert "replaced=otlp_http" in await reload(agent, file, (second, first)[turn % 2])
    assert await agent.end(signal.SIGTERM) == 0
    assert told["stem.tasks.started"] == told["stem.tasks.succeeded"] == stream.begun


async def test_a_connector_that_is_replaced_goes_on_with_open_attempts_and_series(
    start: Start, write: Write, yaml: str, sink: ObservedSink, stream: Stream, client: "redis.asyncio.Redis"
) -> None:
    file = write(yaml)
    agent = await start("run", "-c", str(file))
    await agent.until("stem-agent running")
    before = await subscribers(client)
    async with stream.flowing():
        for settle in ("210ms", "220ms", "230ms"):
            seen = len(sink.spans)
            line = await reload(agent, file, yaml.replace("settle: 200ms", f"settle: {settle}"))
            assert "replaced=correlate" in line
            await sink.until(lambda seen=seen: len(sink.spans) > seen + 20)  # type: ignore[misc]
    assert await subscribers(client) == before
    assert await agent.end(signal.SIGTERM) == 0
    everything_once(stream, [sink])


async def test_a_receiver_that_is_replaced_keeps_its_numbering_and_open_attempts(
    start: Start, write: Write, yaml: str, sink: ObservedSink, stream: Stream, client: "redis.asyncio.Redis"
) -> None:
    file = write(yaml)
    agent = await start("run", "-c", str(file))
    await agent.until("stem-agent running")
    for _ in range(_OPEN + 5):
        await stream.step()
    await sink.until(lambda: len(list(sink.named("process"))) == 5)
    before = await subscribers(client)
    line = await reload(agent, file, yaml.replace("ping_interval: 1s", "ping_interval: 2s"))
    assert 'replaced="correlate stem_signals"' in line
    assert await subscribers(client) != before
    for _ in range(5):
        await stream.step()
    await stream.close()
    assert await agent.end(signal.SIGTERM) == 0
    assert "signals are missing" not in agent.output
    everything_once(stream, [sink])


async def test_pipelines_begin_and_end_with_a_reload(
    start: Start, write: Write, yaml: str, sink: ObservedSink, stream: Stream
) -> None:
    logs = "    logs: {receivers: [correlate], exporters: [otlp_http]}\n"
    file = write(yaml.replace(logs, ""))
    agent = await start("run", "-c", str(file))
    await agent.until("stem-agent running")
    async with stream.flowing():
        await sink.until(lambda: len(sink.spans) > 20)
        assert sink.logs == []
        await reload(agent, file, yaml)
        await sink.until(lambda: len(sink.logs) > 20)
        processed = yaml.replace("exporters:\n", "processors: {resource: {set: {team: shop}}}\nexporters:\n", 1)
        processed = processed.replace("exporters: [otlp_http]", "processors: [resource], exporters: [otlp_http]")
        await reload(agent, file, processed)
        await sink.until(lambda: sink.resources["traces"].get("team") == "shop")
    assert await agent.end(signal.SIGTERM) == 0
    spans = Counter(span.span_id for span in sink.named("process"))
    assert (len(spans), set(spans.values())) == (stream.begun, {1})


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


async def test_what_cannot_start_is_taken_back_under_a_constant_stream(
    start: Start, write: Write, yaml: str, sink: ObservedSink, other: ObservedSink, stream: Stream, taken: int
) -> None:
    file = write(yaml)
    agent = await start("run", "-c", str(file))
    await agent.until("stem-agent running")
    health = f"extensions: {{health: {{endpoint: '127.0.0.1:{taken}'}}}}\nservice:\n  extensions: [health]\n"
    refused = through(yaml, other).replace("redis://", "redis://nobody:hunter2@")
    async with stream.flowing():
        await sink.until(lambda: len(sink.spans) > 20)
        for _ in range(2):
            line = await reload(agent, file, through(yaml, other).replace("service:\n", health), "went back to the one")
            assert "address already in use" in line
            seen = len(sink.spans)
            await sink.until(lambda seen=seen: len(sink.spans) > seen + 20)  # type: ignore[misc]
    for _ in range(_OPEN):
        stream.begin()
    await stream.tell()
    line = await reload(agent, file, refused, "went back to the one")
    assert "refused user nobody" in line
    assert "hunter2" not in agent.output
    await stream.close()
    await reload(agent, file, yaml, "the configuration is the same as before")
    assert await agent.end(signal.SIGTERM) == 0
    everything_once(stream, [sink, other])


async def test_a_queue_on_a_disk_goes_over_to_the_exporter_that_follows(
    start: Start, write: Write, yaml: str, sink: ObservedSink, other: ObservedSink, stream: Stream, tmp_path: Path
) -> None:
    async def away(_: web.Request) -> web.Response:
        return web.Response(status=503)

    sink.answer = away
    text = yaml.replace("sending_queue: {", "sending_queue: {storage: file_storage, ")
    storage = f"extensions: {{file_storage: {{directory: {tmp_path / 'disk'}}}}}\n"
    text = text.replace("service:\n", f"{storage}service:\n  extensions: [file_storage]\n")
    file = write(text)
    agent = await start("run", "-c", str(file))
    await agent.until("stem-agent running")
    for _ in range(_OPEN + 10):
        await stream.step()
    await agent.until("delivery failed; will retry")
    await reload(agent, file, through(text, other))
    await other.until(lambda: len(list(other.named("process"))) == 10)
    await stream.close()
    assert await agent.end(signal.SIGTERM) == 0
    everything_once(stream, [other])
    (books,) = [line for line in agent.lines if " ledger " in line and "signal=traces" in line]
    assert "restored=0" in books
    assert "held=0" in books


async def test_a_queue_in_memory_goes_on_to_where_it_was_going(
    start: Start, write: Write, yaml: str, sink: ObservedSink, other: ObservedSink, stream: Stream
) -> None:
    port = sink.port
    await sink.stop()
    file = write(yaml)
    agent = await start("run", "-c", str(file))
    await agent.until("stem-agent running")
    for _ in range(_OPEN + 10):
        await stream.step()
    await agent.until("delivery failed; will retry")
    await reload(agent, file, through(yaml, other))
    await stream.close()
    await other.until(lambda: len(list(other.named("process"))) >= _OPEN)
    await sink.start(port)
    assert await agent.end(signal.SIGTERM) == 0
    everything_once(stream, [sink, other])
    assert sink.spans


async def test_a_file_that_changed_is_reloaded_only_where_that_is_asked_for(
    start: Start, write: Write, yaml: str, other: ObservedSink, stream: Stream
) -> None:
    file = write(yaml)
    agent = await start("run", "-c", str(file), "--watch-config")
    await agent.until("stem-agent running")
    new = file.with_suffix(".new")
    new.write_text(through(yaml, other), encoding="utf-8")
    os.replace(new, file)  # noqa: PTH105 - as Kubernetes and editors do it
    assert 'why="file changed"' in await agent.until("reloaded the configuration")
    await stream.step()
    await stream.close()
    await other.until(lambda: len(list(other.named("process"))) == 1)
    file.write_text("service: {", encoding="utf-8")
    await agent.until("failed to reload the configuration")
    assert await agent.end(signal.SIGTERM) == 0


async def test_a_removed_exporter_and_a_new_one_are_told_and_counted(
    start: Start, write: Write, yaml: str, sink: ObservedSink
) -> None:
    text = yaml.replace("metrics: {exporter: none}", "metrics: {interval: 100ms}")
    file = write(text)
    agent = await start("run", "-c", str(file))
    await agent.until("stem-agent running")
    more = text.replace("exporters:\n", f"exporters:\n  otlp_http/b: {{endpoint: '{sink.url}'}}\n", 1)
    head, _, rest = more.rpartition("[otlp_http]")
    more = f"{head}[otlp_http/b]{rest}"
    assert "added=otlp_http/b" in await reload(agent, file, more)
    assert "removed=otlp_http/b" in await reload(agent, file, text)
    await reload(agent, file, text, "the configuration is the same as before")
    await reload(agent, file, "x: 1", "failed to reload")
    expected = {("applied",): 2, ("unchanged",): 1, ("rejected",): 1}
    await sink.until(lambda: sink.own("stem_agent.config.reloads", "result") == expected)
    assert await agent.end(signal.SIGTERM) == 0


async def test_a_stop_during_a_reload_ends_it_first(
    start: Start, write: Write, yaml: str, sink: ObservedSink, other: ObservedSink, stream: Stream
) -> None:
    file = write(yaml)
    agent = await start("run", "-c", str(file))
    await agent.until("stem-agent running")
    for _ in range(_OPEN + 10):
        await stream.step()
    await stream.close()
    await sink.until(lambda: len(list(sink.named("process"))) == stream.begun)
    file.write_text(through(yaml, other), encoding="utf-8")
    assert await agent.end(signal.SIGHUP, signal.SIGTERM) == 0
    everything_once(stream, [sink, other])


async def test_where_neither_configuration_can_start_the_agent_says_so_and_stops(
    start: Start, write: Write, yaml: str, sink: ObservedSink, client: "redis.asyncio.Redis", namespace: str
) -> None:
    user = f"u-{namespace}"
    await client.acl_setuser(user, enabled=True, nopass=True, keys=["*"], channels=["*"], categories=["+@all"])
    text = yaml.replace("redis://", f"redis://{user}:x@")
    file = write(text)
    agent = await start("run", "-c", str(file))
    await agent.until("stem-agent running")
    await publish(client, namespace, Story().run())
    await sink.until(lambda: len(sink.spans) == 3)
    await client.acl_deluser(user)
    file.write_text(text.replace("ping_interval: 1s", "ping_interval: 2s"), encoding="utf-8")
    assert await agent.end(signal.SIGHUP) == 78
    assert "and going back failed: stem_signals: redis" in agent.lines[-1]
    assert "Traceback" not in agent.output
    assert "lost=0" in agent.output


def test_the_yaml_of_these_tests_has_one_endpoint() -> None:
    assert YAML.count("    endpoint: ") == 1


async def test_among_agents_receivers_and_claims_are_taken_up_again(
    start: Start, write: Write, yaml: str, sink: ObservedSink, stream: Stream, redis_url: str, namespace: str
) -> None:
    claims = f"extensions: {{ownership: {{url: '{redis_url}', namespace: {namespace}, lease: 1s, timeout: 500ms}}}}\n"
    text = yaml.replace("service:\n", f"{claims}service:\n  extensions: [ownership]\n")
    file = write(text)
    agent = await start("run", "-c", str(file))
    await agent.until("stem-agent running")
    for _ in range(_OPEN + 5):
        await stream.step()
    await sink.until(lambda: len(list(sink.named("process"))) == 5)
    line = await reload(agent, file, text.replace("ping_interval: 1s", "ping_interval: 2s"))
    assert 'replaced="correlate ownership stem_signals"' in line
    for _ in range(5):
        await stream.step()
    await sink.until(lambda: len(list(sink.named("process"))) == 10)
    await stream.close()
    assert await agent.end(signal.SIGTERM) == 0
    everything_once(stream, [sink])
