"""A flood while the backend is away: the agent stays below its limit, alive, and loses what matters least, if anything.

The agent is a process of its own, on a real Valkey; memory is the kernel's high-water mark.
"""

import json
import signal
import socket
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import redis.asyncio

from agent.stem.channels import signal_channel
from tests.conftest import ObservedSink
from tests.integration.conftest import Child, Start
from tests.support import Story, envelope

TASKS, AT_ONCE, FAILS = 12_000, 500, 20
"""Tasks of about 8 kB of telemetry each, of which every twentieth fails, told some at once."""
NAME = "report.build." + "x" * 220
YAML = """
receivers:
  stem_signals: {{url: "{url}", namespace: {namespace}}}
connectors:
  correlate: {{settle: 200ms, metrics_interval: 500ms, logs: {{min_severity: DEBUG}}, results: {{enabled: false}}}}
exporters:
  otlp_http:
    endpoint: {endpoint}
    compression: none
    retry_on_failure: {{initial_interval: 20ms, max_interval: 100ms}}
    sending_queue: {{queue_size: 1GiB, {storage} batch: {{flush_timeout: 100ms, max_bytes: 256KiB}}}}
extensions:
  health: {{endpoint: "127.0.0.1:{port}"}}
  memory_limiter: {{limit_mib: {limit}, check_interval: 100ms}}
  file_storage: {{directory: "{directory}"}}
service:
  extensions: [health, memory_limiter, file_storage]
  telemetry: {{metrics: {{exporter: none}}, logs: {{format: json}}}}
  pipelines:
    signals: {{receivers: [stem_signals], exporters: [correlate]}}
    traces: {{receivers: [correlate], exporters: [otlp_http]}}
    metrics: {{receivers: [correlate], exporters: [otlp_http]}}
    logs: {{receivers: [correlate], exporters: [otlp_http]}}
"""


def peak_mib(child: Child) -> float:
    """The largest resident set that the process ever had (proc(5): VmHWM)."""
    status = Path(f"/proc/{child.process.pid}/status").read_text(encoding="ascii")
    (line,) = [line for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) / 1024


@dataclass
class Flood:
    """An agent whose backend is away, and a fleet that does not stop working for that."""

    agent: Child
    client: "redis.asyncio.Redis"
    namespace: str
    port: int
    sent: int = 0
    states: set[str] = field(default_factory=set)
    floors: set[float] = field(default_factory=set)
    code: int = -1
    lost: int = -1
    drops: list[str] = field(default_factory=list)

    async def ask(self) -> dict[str, Any]:
        async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{self.port}/status") as answer:
            status: dict[str, Any] = await answer.json()
        limiter = status["components"]["extensions"].get("memory_limiter", {})
        self.states.add(limiter.get("state", "absent"))
        self.floors.add(status["gauges"].get("stem_agent.memory.floor", 0.0))
        return status

    async def rise(self, tasks: int) -> None:
        """Tell of tasks, no faster than the agent hears of them."""
        for start in range(0, tasks, AT_ONCE):
            story = Story(namespace=self.namespace, emitter=f"pod-{self.sent}")
            for number in range(start, start + AT_ONCE):
                end = "failed" if number % FAILS == 0 else "succeeded"
                story.run(end, envelope(id=str(uuid.uuid4()), name=NAME, queue="q" * 220))
            async with self.client.pipeline(transaction=False) as pipe:
                for payload in story.payloads:
                    pipe.publish(signal_channel(self.namespace, story.emitter), payload)
                await pipe.execute()
            self.sent += len(story.payloads)
            while (await self.ask())["counters"].get("stem_agent.signals.received", 0) < self.sent:
                pass

    async def books(self) -> dict[str, dict[str, Any]]:
        """Stop the agent, and return the last lines about each signal; they must add up."""
        self.code = await self.agent.end(signal.SIGTERM)
        told = [json.loads(line) for line in self.agent.lines]
        books = {line["signal"]: line for line in told if line["message"] == "ledger"}
        for line in books.values():
            dropped = sum(int(part.partition(":")[2]) for part in line["dropped"].split(",") if part != "0")
            assert line["accepted"] == line["delivered"] + dropped + line["held"]
        self.lost = told[-1]["lost"]
        self.drops = [line["detail"] for line in told if line["message"] == "dropped telemetry" and "detail" in line]
        return books


Begin = Callable[..., Awaitable[Flood]]


@pytest.fixture
def begin(
    start: Start,
    write: Callable[[str], Path],
    redis_url: str,
    namespace: str,
    client: "redis.asyncio.Redis",
    sink: ObservedSink,
    tmp_path: Path,
) -> Begin:
    """Starts an agent with this limit, whose backend is away."""

    async def run(limit_mib: int, storage: str = "") -> Flood:
        await sink.stop()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        text = YAML.format(
            url=redis_url,
            namespace=namespace,
            endpoint=sink.url,
            storage=storage,
            port=port,
            limit=limit_mib,
            directory=tmp_path / "storage",
        )
        agent = await start("run", "-c", str(write(text)))
        await agent.until("stem-agent running")
        return Flood(agent, client, namespace, port)

    return run


async def test_a_flood_into_memory_costs_what_matters_least_and_never_the_process(
    begin: Begin, sink: ObservedSink
) -> None:
    flood = await begin(limit_mib=128)
    await flood.rise(TASKS)
    status = await flood.ask()
    assert peak_mib(flood.agent) < 128
    assert "degraded" in flood.states
    assert status["components"]["extensions"]["memory_limiter"]["healthy"]
    assert status["gauges"]["stem_agent.memory.limit"] == 128 << 20
    assert status["signals_lost"] == {}, "what was heard was read"
    await sink.start(sink.port)
    books = await flood.books()
    assert flood.code == 4
    assert flood.drops[0] == "memory is short: the oldest debug_logs had to go"

    arrived = Counter(record.severity_text for record in sink.logs)
    assert arrived.total() == books["logs"]["delivered"]
    assert len(sink.spans) == books["traces"]["delivered"]
    assert flood.lost == sum(line["accepted"] - line["delivered"] for line in books.values()) > 0
    assert arrived["ERROR"] == TASKS // FAILS, "errors go last, and they did not have to"
    assert sum(span.status.code == 2 for span in sink.spans) == TASKS // FAILS
    assert arrived["DEBUG"] < TASKS // 2, "of two a task"
    assert arrived["DEBUG"] / books["logs"]["accepted"] < len(sink.spans) / books["traces"]["accepted"]


async def test_a_flood_onto_a_disk_costs_nothing(begin: Begin, sink: ObservedSink) -> None:
    flood = await begin(limit_mib=120, storage="storage: file_storage,")
    await flood.rise(TASKS)
    assert peak_mib(flood.agent) < 120
    assert "degraded" in flood.states, "it had to spill"
    assert flood.floors == {0}
    await sink.start(sink.port)
    books = await flood.books()
    assert (flood.code, flood.lost) == (0, 0)
    assert {name: line["dropped"] for name, line in books.items()} == dict.fromkeys(books, "0")
    assert (len(sink.logs), len(sink.spans)) == (books["logs"]["delivered"], books["traces"]["delivered"])
    assert len(sink.logs) == 4 * TASKS
