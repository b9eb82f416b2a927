"""Three agents on one Redis follow a fleet, as processes: everything is told once, through the kill of the leader."""

import asyncio
import contextlib
import signal
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import redis.asyncio

from agent.core.tasks import cancel
from agent.demo.compare import examine
from agent.demo.compare.attempts import match
from agent.demo.compare.reading import as_read
from agent.demo.fleet.fleet import Fleet
from agent.demo.truth import Truth
from agent.demo.valkey import embedded_valkey
from tests.conftest import ObservedSink
from tests.integration.conftest import Child, Start
from tests.integration.test_many_agents import eventually

LEASE_SECONDS = 2.0
LEADERLESS_US = 5_000_000
"""What stood for so long was read by somebody, though nobody led for two leases."""

YAML = """
receivers:
{signals}
  stem_tail: {{url: "{url}", results: {{url: "{url}"}}, discovery_interval: 300ms, claim_interval: 4s}}
connectors:
  correlate: {{metrics_interval: 500ms, results: {{enabled: false}}}}
exporters:
  otlp_http: {{endpoint: "{endpoint}", sending_queue: {{batch: {{flush_timeout: 200ms}}}}}}
extensions:
  ownership: {{url: "{url}", lease: 2s, timeout: 600ms}}
service:
  extensions: [ownership]
  telemetry: {{metrics: {{exporter: none}}}}
  pipelines:
    signals: {{receivers: [{receivers}], exporters: [correlate]}}
    traces: {{receivers: [correlate], exporters: [otlp_http]}}
    metrics: {{receivers: [correlate], exporters: [otlp_http]}}
    logs: {{receivers: [correlate], exporters: [otlp_http]}}
"""


class Stage:
    """Three agents that tell one endpoint, and a fleet."""

    def __init__(self, start: Start, url: str, sink: ObservedSink, directory: Path) -> None:
        self._start = start
        self.url = url
        self._client = redis.asyncio.Redis.from_url(url)
        self.sink = sink
        self._directory = directory
        self.agents: dict[str, Child] = {}

    async def begin(self, *, signals: bool) -> None:
        for name in ("first", "second", "third"):
            path = self._directory / f"{name}.yaml"
            heard = f'  stem_signals: {{url: "{self.url}"}}' if signals else ""
            receivers = "stem_signals, stem_tail" if signals else "stem_tail"
            text = YAML.format(url=self.url, endpoint=self.sink.url, signals=heard, receivers=receivers)
            path.write_text(text, encoding="utf-8")
            self.agents[name] = child = await self._start(
                "run", "--config", str(path), OTEL_RESOURCE_ATTRIBUTES=f"service.instance.id={name}"
            )
            await child.until("stem-agent running")
        await eventually(self._is_followed)

    async def _is_followed(self) -> bool:
        return bool(await self._client.exists("stem-agent:notes:stem:stem_tail"))

    async def _leader(self) -> str:
        return (await self._client.get("stem-agent:leader:stem") or b"").decode().partition(" ")[0]

    async def kill_the_leader(self) -> None:
        dead = await self._leader()
        await self.agents.pop(dead).end(signal.SIGKILL)

        async def followed() -> bool:
            return await self._leader() in self.agents

        await eventually(followed)

    async def end(self) -> None:
        for agent in self.agents.values():
            assert await agent.end(signal.SIGTERM) == 0, agent.output

    async def close(self) -> None:
        await self._client.aclose()


@pytest.fixture
async def stage(start: Start, tmp_path: Path) -> AsyncIterator[Stage]:
    sink = ObservedSink()
    await sink.start()
    with embedded_valkey() as server:
        stage = Stage(start, f"{server.connection_url}/0", sink, tmp_path)
        yield stage
        await stage.close()
    await sink.stop()


async def live(url: str, attempts: int, *, silent: bool, then: Stage | None = None) -> Truth:
    """Let a fleet live until it has made so many attempts, and, after the kill of the leader, as many again."""
    fleet = Fleet(url, namespace="stem", rate=60, workers=2, seed=3, silent=silent)
    running = asyncio.create_task(fleet.run())
    try:
        await eventually(lambda: len(fleet.truth.attempts) >= attempts)
        if then:
            await then.kill_the_leader()
            await eventually(lambda: len(fleet.truth.attempts) >= 3 * attempts)
        fleet.stop.set()
        return await running
    finally:
        with contextlib.suppress(Exception):
            await cancel([running])


async def test_each_span_and_count_appears_once_through_the_kill_of_the_leader(stage: Stage) -> None:
    await stage.begin(signals=False)
    truth = await live(stage.url, 200, silent=True, then=stage)
    await stage.end()
    sink = stage.sink
    truth.agents = 2  # whoever follows has not seen the parents of those under way
    read = as_read(truth, readable_us=LEADERLESS_US)
    matched = match(read, sink)
    verdicts = Counter(told.verdict for told in matched.told if told.counts)
    assert not verdicts["missing"], [told.describe() for told in matched.told if told.verdict == "missing"]
    assert not verdicts["wrong"], [told.describe() for told in matched.told if told.verdict == "wrong"]
    doubled = [span for span, times in Counter(span.span_id for span in sink.spans).items() if times > 1]
    uids = Counter(span.span_id for span in sink.spans)
    assert all(times <= 2 for times in uids.values())
    assert len(doubled) <= len(uids) // 20, "more than what was under way to the endpoint at the kill was told twice"
    by_metric = {row.what.removeprefix("counter "): row for row in examine(read, sink).rows}
    for name in ("stem.tasks.published", "stem.tasks.started", "stem.tasks.succeeded", "stem.tasks.failed"):
        assert not by_metric[name].wrong, by_metric[name]
        assert by_metric[name].received >= by_metric[name].expected - 1, by_metric[name]


async def test_who_signals_is_told_by_signals_and_what_nobody_signals_by_the_tail(stage: Stage) -> None:
    await stage.begin(signals=True)
    truth = await live(stage.url, 300, silent=False)
    await stage.end()
    sink = stage.sink
    assert max(Counter(span.span_id for span in sink.spans).values()) == 1
    matched = match(truth, sink)
    assert not matched.invented, [seen.describe() for seen in matched.invented]
    assert all(told.seen for told in matched.told)
    assert {seen.found["stem.source"] for seen in matched.unattempted} <= {"tail"}
    assert sum(sink.sums("stem.tasks.started").values()) == sum(told.started for told in matched.told)
