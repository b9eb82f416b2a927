"""CPU per signal and memory of the agent process: `make bench`.

A Valkey, an OTLP endpoint that only counts, and the agent, each in its own process; this one publishes a story of
`--tasks` tasks, four signals each (received, prerun, succeeded, postrun), from 8 workers, with 5 queues, 20 task names
and unique trace ids. The agent makes every span, every log record from DEBUG up and every metric, and sends gzip.
CPU is what the kernel counted for the agent's process between the first signal and the last item delivered; the median
of `--rounds` is printed. Nothing is asserted: machines differ.
"""

import argparse
import asyncio
import contextlib
import json
import random
import secrets
import statistics
import sys
import tempfile
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import redis.asyncio

from agent.demo.process import Process, spawn, subscribed
from agent.demo.valkey import embedded_valkey
from agent.emit import Composer, _Emitter, iso

WORKERS, QUEUES, TASKS = 8, 5, 20
SIGNALS_PER_TASK = 4

YAML = """
receivers:
  stem_signals: {{url: "{redis}"}}
connectors:
  correlate: {{metrics_interval: 1s, logs: {{min_severity: DEBUG}}}}
exporters:
  otlp_http: {{endpoint: "{endpoint}"}}
service:
  telemetry: {{metrics: {{exporter: none}}}}
  pipelines:
    signals: {{receivers: [stem_signals], exporters: [correlate]}}
    traces: {{receivers: [correlate], exporters: [otlp_http]}}
    metrics: {{receivers: [correlate], exporters: [otlp_http]}}
    logs: {{receivers: [correlate], exporters: [otlp_http]}}
"""


class Payloads(_Emitter[None]):
    """Keeps payloads instead of sending them."""

    def __init__(self, index: int) -> None:
        self.now = datetime.now(UTC)
        super().__init__(Composer(worker_id=f"worker-{index}", emitter=f"pod-{index}", clock=lambda: self.now))
        self.payloads: list[bytes] = []

    def send(self, payload: bytes | None) -> None:
        assert payload is not None
        self.payloads.append(payload)


def story(tasks: int) -> list[tuple[str, bytes]]:
    """Return (channel, payload) in the order of publishing."""
    chance = random.Random(1)
    workers = [Payloads(index) for index in range(WORKERS)]
    told: list[tuple[str, bytes]] = []
    for index in range(tasks):
        worker = workers[index % WORKERS]
        envelope: dict[str, Any] = {
            "id": str(uuid.UUID(bytes=secrets.token_bytes(16))),
            "name": f"shop.task_{chance.randrange(TASKS)}",
            "headers": {"traceparent": f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-01"},
            "enqueuedAt": iso(worker.now - timedelta(seconds=0.5)),
            "notBefore": None,
            "priority": 0,
            "attempt": 0,
            "maxRetries": 3,
            "visibilityTimeout": None,
            "queue": f"queue-{chance.randrange(QUEUES)}",
            "meta": {"stem.task": "x"},
        }
        signals = worker.attempt(envelope)
        signals.received()
        signals.prerun()
        worker.now += timedelta(milliseconds=chance.randrange(5, 500))
        signals.succeeded()
        signals.postrun("succeeded")
        told += [(worker.composer.channel, payload) for payload in worker.payloads]
        worker.payloads.clear()
    return told


async def publish(client: "redis.asyncio.Redis", signals: list[tuple[str, bytes]]) -> None:
    for start in range(0, len(signals), 1000):
        async with client.pipeline(transaction=False) as pipe:
            for channel, payload in signals[start : start + 1000]:
                pipe.publish(channel, payload)
            await pipe.execute()


async def delivered(client: "redis.asyncio.Redis", spans: int) -> None:
    """Wait until the counting endpoint has seen so many spans; it keeps its count in Redis."""
    async with asyncio.timeout(120):
        while int(await client.get("bench:traces") or 0) < spans:
            await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def stage() -> AsyncIterator[tuple["redis.asyncio.Redis", Process]]:
    with tempfile.TemporaryDirectory(prefix="stem-agent-bench-") as name, embedded_valkey() as server:
        directory, url = Path(name), server.connection_url
        client = redis.asyncio.Redis.from_url(url)
        async with spawn("sink", ["tests.benchmarks.counting_sink", url], directory) as sink:
            async with asyncio.timeout(20):
                while not (port := await client.get("bench:port")):
                    sink.check()
                    await asyncio.sleep(0.05)
            config = directory / "agent.yaml"
            config.write_text(YAML.format(redis=url, endpoint=f"http://127.0.0.1:{int(port)}"), encoding="utf-8")
            async with spawn("agent", ["agent", "run", "--config", str(config)], directory) as agent:
                await subscribed(url, agent)
                yield client, agent
                if code := await agent.stop():
                    sys.exit(f"the agent ended with exit code {code}:\n{agent.output()}")
        await client.aclose()


async def measure(tasks: int, rounds: int) -> dict[str, Any]:
    figures, rates = [], []
    loop = asyncio.get_running_loop()
    async with stage() as (client, agent):
        idle_mib = agent.usage()[1]
        await publish(client, story(2000))  # caches, connections, lazy imports
        expected = 2000 * 2
        await delivered(client, expected)
        for _ in range(rounds):
            signals = story(tasks)
            before, started = agent.usage()[0], loop.time()
            await publish(client, signals)
            expected += tasks * 2
            await delivered(client, expected)
            figures.append((agent.usage()[0] - before) / len(signals) * 1e6)
            rates.append(len(signals) / (loop.time() - started))
        loaded_mib = agent.usage()[1]
    return {
        "signals_per_round": tasks * SIGNALS_PER_TASK,
        "rounds": rounds,
        "cpu_us_per_signal": round(statistics.median(figures), 1),
        "cpu_us_per_signal_all": [round(figure, 1) for figure in figures],
        "signals_per_second": round(statistics.median(rates)),
        "rss_idle_mib": round(idle_mib, 1),
        "rss_loaded_mib": round(loaded_mib, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--tasks", type=int, default=25_000, help="tasks per round; each is four signals")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    result = asyncio.run(measure(options.tasks, options.rounds))
    for name, value in result.items():
        print(f"{name:24} {value}")
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
