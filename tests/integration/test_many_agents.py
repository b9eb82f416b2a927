"""Three agents of mixed kinds, each a process with an endpoint of its own: what all of them tell is the truth, once."""

import asyncio
import contextlib
import signal
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import redis.asyncio
from aiohttp import web
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from agent.core.tasks import cancel
from agent.demo.sink import attributes
from agent.emit import AsyncSignalEmitter
from tests.conftest import ObservedSink
from tests.integration.conftest import Child, Start
from tests.support import envelope

PODS = tuple(f"pod-{number}" for number in range(1, 7))
OPEN = 3
"""Attempts that each emitter holds open, so that every hand-over has some."""

YAML = """
receivers:
  stem_signals: {{url: "{url}", namespace: {namespace}, emitters: [{emitters}]}}
  stem_state: {{url: "{url}", namespace: {namespace}, store_namespace: {namespace}, interval: 200ms, queues: [default]}}
connectors:
  correlate: {{settle: 200ms, metrics_interval: 100ms, results: {{url: "{url}", namespace: {namespace}}}}}
exporters:
  otlp_http: {{endpoint: "{endpoint}", sending_queue: {{batch: {{flush_timeout: 50ms}}}}}}
extensions:
  ownership: {{url: "{url}", namespace: {namespace}, lease: 2s, timeout: 600ms}}
service:
  extensions: [ownership]
  telemetry: {{metrics: {{exporter: none}}}}
  pipelines:
    signals: {{receivers: [stem_signals, stem_state], exporters: [correlate]}}
    traces: {{receivers: [correlate], exporters: [otlp_http]}}
    metrics: {{receivers: [correlate, stem_state], exporters: [otlp_http]}}
    logs: {{receivers: [correlate], exporters: [otlp_http]}}
"""


class Endpoint(ObservedSink):
    """The endpoint of one agent; `polls` are the times (Unix nanoseconds) of what it told about the whole fleet."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.polls: list[int] = []
        self.own_gauges: set[str] = set()
        self.answer = self._note

    async def _note(self, request: web.Request) -> None:
        if request.path != "/v1/metrics":
            return
        for entry in ExportMetricsServiceRequest.FromString(await request.read()).resource_metrics:
            metrics = [metric for scope in entry.scope_metrics for metric in scope.metrics]
            if attributes(entry.resource.attributes)["service.instance.id"] == "fleet":
                self.polls += [
                    p.time_unix_nano for m in metrics if m.name == "stem.queue.depth" for p in m.gauge.data_points
                ]
            else:
                self.own_gauges |= {metric.name for metric in metrics}

    def gaps(self, emitter: str) -> int:
        found = [attributes(record.attributes) for record in self.logs if record.event_name == "stem.signals.gap"]
        return sum(gap["stem.signals.count"] for gap in found if gap["stem.emitter"] == emitter)

    def told(self, what: str, emitter: str) -> int:
        return int(self.sums(f"stem.tasks.{what}", "task")[f"work.{emitter}",])


class Fleet:
    """Emitters that speak all along; `truth` counts what they said, by counter and emitter."""

    def __init__(self, url: str, namespace: str) -> None:
        self._emitters = {
            pod: AsyncSignalEmitter.connect(url, worker_id=f"worker-{pod}", namespace=namespace, emitter=pod)
            for pod in PODS
        }
        self._open: dict[str, deque[Any]] = {pod: deque() for pod in PODS}
        self.truth: Counter[tuple[str, str]] = Counter()
        self._hush = asyncio.Event()
        self._talking: asyncio.Task[None] | None = None

    def speak(self) -> None:
        """Begin."""
        self._talking = asyncio.create_task(self._talk())

    async def _talk(self) -> None:
        while not self._hush.is_set():
            for pod, emitter in self._emitters.items():
                attempt = emitter.attempt(envelope(id=str(uuid4()), name=f"work.{pod}"))
                await attempt.received()
                await attempt.prerun()
                self.truth["started", pod] += 1
                self._open[pod].append(attempt)
                if len(self._open[pod]) > OPEN:
                    await self._finish(pod)
            await asyncio.sleep(0.005)  # a pace that leaves the agents their turn; nothing depends on it
        for pod, emitter in self._emitters.items():
            while self._open[pod]:
                await self._finish(pod)
            await emitter.heartbeat()

    async def _finish(self, pod: str) -> None:
        attempt = self._open[pod].popleft()
        await attempt.succeeded()
        await attempt.postrun("succeeded")
        self.truth["succeeded", pod] += 1

    async def says(self, count: int = 30) -> None:
        """Wait until each has begun so many more attempts."""
        wanted = self.truth["started", PODS[-1]] + count
        await eventually(lambda: self.truth["started", PODS[-1]] >= wanted)

    async def hush(self) -> None:
        """Bring everything to its end."""
        self._hush.set()
        if self._talking:
            await self._talking

    async def close(self) -> None:
        await cancel([self._talking] if self._talking else [])
        for emitter in self._emitters.values():
            await emitter.close()


async def eventually(check: Callable[[], bool | Awaitable[bool]]) -> None:
    """Wait for what other processes announce to nobody."""
    async with asyncio.timeout(40):
        while not (found if isinstance(found := check(), bool) else await found):  # noqa: ASYNC110 - see above
            await asyncio.sleep(0.02)


class Stage:
    """Agents and their endpoints, and what Redis has of their agreement."""

    def __init__(self, start: Start, client: "redis.asyncio.Redis", url: str, namespace: str, directory: Path) -> None:
        self._start = start
        self._client = client
        self._url = url
        self.namespace = namespace
        self._directory = directory
        self.agents: dict[str, Child] = {}
        self.endpoints: dict[str, Endpoint] = {}

    async def join(self, name: str, *emitters: str) -> Child:
        endpoint = self.endpoints[name] = Endpoint(name)
        await endpoint.start()
        path = self._directory / f"{name}.yaml"
        path.write_text(
            YAML.format(url=self._url, namespace=self.namespace, emitters=", ".join(emitters), endpoint=endpoint.url)
        )
        child = self.agents[name] = await self._start(
            "run", "--config", str(path), OTEL_RESOURCE_ATTRIBUTES=f"service.instance.id={name}"
        )
        await child.until("stem-agent running")
        return child

    async def owners(self) -> dict[str, str]:
        """Who has which emitter: the name of the agent."""
        values = await self._client.mget([f"stem-agent:owner:{self.namespace}:{pod}" for pod in PODS])
        return {pod: value.decode().split()[1] if value else "" for pod, value in zip(PODS, values, strict=True)}

    async def leader(self) -> str:
        return (await self._client.get(f"stem-agent:leader:{self.namespace}") or b"").decode().partition(" ")[0]

    async def settled(self, *names: str) -> dict[str, str]:
        """Wait until these have all emitters, each of them some."""

        async def shared() -> bool:
            return set((await self.owners()).values()) == set(names)

        await eventually(shared)
        return await self.owners()

    async def stop(self, *names: str) -> None:
        for name in names:
            code = await self.agents[name].end(signal.SIGTERM)
            assert code == 0, self.agents[name].output

    def told(self, what: str, pod: str) -> int:
        return sum(endpoint.told(what, pod) for endpoint in self.endpoints.values())

    def gaps(self, pod: str) -> int:
        return sum(endpoint.gaps(pod) for endpoint in self.endpoints.values())

    async def ends(self, fleet: Fleet, unsent: Counter[tuple[str, str]] | None = None) -> None:
        """Bring everything to its end. Nothing is told twice, and no more is missing than is reported.

        `unsent` died with an agent that was killed before it could tell it.
        """
        await fleet.hush()
        least = fleet.truth - (unsent or Counter())
        await eventually(lambda: all(self.told(*key) + self.gaps(key[1]) >= count for key, count in least.items()))
        for name, child in self.agents.items():
            if child.process.returncode is None:
                await self.stop(name)
        for (what, pod), truth in fleet.truth.items():
            told, missing = self.told(what, pod), self.gaps(pod)
            assert told <= truth, f"stem.tasks.{what} of {pod}: {told} instead of {truth}"
            assert told >= least[what, pod] - missing, f"stem.tasks.{what} of {pod}: {told} of {truth}, gaps: {missing}"
        self.check_spans()
        self.check_polls()

    def check_spans(self) -> None:
        spans = Counter((s.trace_id, s.span_id) for e in self.endpoints.values() for s in e.spans)
        assert set(spans.values()) == {1}, "a span was told twice"
        logs = Counter(
            attributes(r.attributes)["stem.task.id"]
            for e in self.endpoints.values()
            for r in e.logs
            if r.event_name == "stem.task.started"
        )
        assert set(logs.values()) == {1}, "a start was told twice"

    def check_polls(self) -> None:
        """The fleet has one voice at a time: whoever begins to speak of it goes on alone."""
        polls = sorted((at_ns, name) for name, endpoint in self.endpoints.items() for at_ns in endpoint.polls)
        voices = [name for index, (_, name) in enumerate(polls) if not index or polls[index - 1][1] != name]
        assert voices
        assert len(voices) == len(set(voices)), voices
        assert not {"stem.worker.up", "stem.scheduler.drift"} & set().union(
            *(endpoint.own_gauges for endpoint in self.endpoints.values())
        ), "that is the leader's to tell"


@pytest.fixture
async def stage(
    start: Start, client: "redis.asyncio.Redis", redis_url: str, namespace: str, tmp_path: Path
) -> AsyncIterator[Stage]:
    await client.xgroup_create(f"{namespace}:stream:default", f"{namespace}:group:default", id="0", mkstream=True)
    stage = Stage(start, client, redis_url, namespace, tmp_path)
    yield stage
    for child in stage.agents.values():
        with contextlib.suppress(ProcessLookupError):
            child.process.send_signal(signal.SIGCONT)
    for endpoint in stage.endpoints.values():
        await endpoint.stop()


@pytest.fixture
async def fleet(redis_url: str, namespace: str) -> AsyncIterator[Fleet]:
    fleet = Fleet(redis_url, namespace)
    yield fleet
    await fleet.close()


@pytest.mark.timeout(120)
async def test_agents_come_and_go_and_everything_is_told_once_without_a_gap(stage: Stage, fleet: Fleet) -> None:
    await stage.join("gateway-1")
    fleet.speak()
    await stage.settled("gateway-1")
    await stage.join("gateway-2")
    await stage.join("sidecar", "pod-1")
    owners = await stage.settled("gateway-1", "gateway-2", "sidecar")
    assert owners["pod-1"] == "sidecar"
    await fleet.says()
    await stage.stop("gateway-1")
    await stage.settled("gateway-2", "sidecar")
    await fleet.says()
    await stage.join("gateway-3")
    await stage.settled("gateway-2", "gateway-3", "sidecar")
    await stage.stop("sidecar")
    await stage.settled("gateway-2", "gateway-3")
    await fleet.says()
    await stage.ends(fleet)
    assert {pod: stage.gaps(pod) for pod in PODS} == dict.fromkeys(PODS, 0)


async def three(stage: Stage, fleet: Fleet) -> dict[str, str]:
    """Two gateways and a sidecar share what the fleet says from its first word on."""
    for name, emitters in (("gateway-1", ()), ("gateway-2", ()), ("sidecar", ("pod-1",))):
        await stage.join(name, *emitters)
    fleet.speak()
    owners = await stage.settled("gateway-1", "gateway-2", "sidecar")
    await fleet.says()
    return owners


@pytest.mark.timeout(120)
async def test_after_kills_no_more_is_missing_than_is_reported(stage: Stage, fleet: Fleet) -> None:
    owners = await three(stage, fleet)
    left = ["gateway-1", "sidecar", "gateway-2"]
    unsent: Counter[tuple[str, str]] = Counter()
    for victim in ("gateway-1", "sidecar"):
        led = await stage.leader() == victim
        stage.agents[victim].process.kill()
        said = {key: count for key, count in fleet.truth.items() if owners[key[1]] == victim}
        await stage.agents[victim].process.wait()
        left.remove(victim)
        await stage.settled(*left)
        if led:
            await another_leads(stage, victim)
        await fleet.says()
        unsent.update({key: count - stage.endpoints[victim].told(*key) for key, count in said.items()})
    await stage.ends(fleet, unsent)
    for pod, owner in owners.items():
        assert bool(stage.gaps(pod)) is (owner != "gateway-2"), pod


async def another_leads(stage: Stage, victim: str) -> None:
    async def found() -> bool:
        return await stage.leader() not in {"", victim}

    await eventually(found)


@pytest.mark.timeout(120)
async def test_an_agent_that_stood_still_for_longer_than_a_lease_tells_nothing_twice(
    stage: Stage, fleet: Fleet
) -> None:
    owners = await three(stage, fleet)
    stage.agents["gateway-1"].process.send_signal(signal.SIGSTOP)
    await stage.settled("gateway-2", "sidecar")
    await another_leads(stage, "gateway-1")
    await fleet.says()
    stage.agents["gateway-1"].process.send_signal(signal.SIGCONT)
    assert await stage.settled("gateway-1", "gateway-2", "sidecar") == owners, "each has its share again"
    await fleet.says()
    await stage.ends(fleet)
    for pod, owner in owners.items():
        assert bool(stage.gaps(pod)) is (owner == "gateway-1"), pod
    assert "lost emitters to another agent" in stage.agents["gateway-1"].output
