"""What polling a large fleet costs, in the agent and in Redis: a part of `make bench`, or alone.

In every queue something waits, is in flight, delayed and dead, and between two turns something moves in each of them,
so that nothing can be left out because it is known. All heartbeats are read in every turn.
"""

import argparse
import asyncio
import contextlib
import json
import sys
import tempfile
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import redis.asyncio

from agent.demo.fleet.envelopes import new_envelope, to_fields, to_json
from agent.demo.process import Process, spawn
from agent.demo.sink import Sink
from agent.demo.valkey import embedded_valkey
from agent.emit import iso
from agent.stem.keys import Keys

QUEUES, WORKERS = 200, 2000
INTERVAL_SECONDS = 1.0
WARM_UP_TURNS = 3
TURNS = 12
WAITING, DELAYED, DEAD = 5, 3, 1


YAML = """
receivers:
  stem_state: {{url: "{redis}", interval: {interval}s, results: {{url: "{redis}"}}}}
exporters:
  otlp_http: {{endpoint: "{endpoint}"}}
service:
  telemetry: {{metrics: {{exporter: none}}}}
  pipelines:
    metrics: {{receivers: [stem_state], exporters: [otlp_http]}}
"""


class Fleet:
    """Queues and workers as Stem leaves them in Redis."""

    def __init__(self, client: Any) -> None:
        self._redis = client
        self._keys = Keys()
        self._queues = [f"queue-{number}" for number in range(QUEUES)]

    async def fill(self) -> None:
        """Make everything that there is."""
        for queue in self._queues:
            pipeline = self._redis.pipeline(transaction=False)
            for stream in self._keys.streams(queue):
                pipeline.xgroup_create(stream, self._keys.group(queue), id="0", mkstream=True)
            envelope = new_envelope("email.send", queue, args={"text": "x" * 200})
            for _ in range(WAITING):
                pipeline.xadd(self._keys.stream(queue), to_fields(envelope))
            for number in range(DELAYED):
                pipeline.zadd(self._keys.delayed(queue), {to_json({**envelope, "id": str(number)}): 2_000_000_000_000})
            for _ in range(DEAD):
                pipeline.lpush(
                    self._keys.dead(queue), to_json({"envelope": envelope, "deadAt": iso(datetime.now(UTC))})
                )
            await pipeline.execute()
        await self.beat()

    async def beat(self) -> None:
        """Write every worker's heartbeat."""
        pipeline = self._redis.pipeline(transaction=False)
        for number in range(WORKERS):
            worker = f"worker-{number}"
            pipeline.set(self._keys.heartbeat(worker), _heartbeat(worker, self._queues[number % QUEUES]), px=60_000)
            pipeline.sadd(self._keys.heartbeats, worker)
        await pipeline.execute()

    async def move(self) -> None:
        """Let something happen in each queue."""
        pipeline = self._redis.pipeline(transaction=False)
        for queue in self._queues:
            stream, group = self._keys.stream(queue), self._keys.group(queue)
            pipeline.xadd(stream, to_fields(new_envelope("email.send", queue, args={"text": "x" * 200})))
            pipeline.xreadgroup(group, "worker-1", {stream: ">"}, count=1)
        await pipeline.execute()


def _heartbeat(worker: str, queue: str) -> str:
    now = iso(datetime.now(UTC))
    extras = {
        "host": f"pod-{worker}",
        "hostname": f"pod-{worker}",
        "pid": 1,
        "concurrency": 4,
        "maxConcurrency": 4,
        "prefetch": 8,
        "autoscale": False,
        "startedAt": now,
        "uptimeMs": 7_380_000,
        "uptime": "2h 3m",
        "memoryBytes": 123_456_789,
        "memoryMaxBytes": 223_456_789,
        "memoryPercent": 55,
        "loadAvg": [1.0, 1.1, 1.2],
        "cpuCount": 4,
        "started": 100_000,
        "completed": 99_000,
        "failed": 12,
        "queueDepth": 7,
        "subscriptions": {"queues": [queue, "default"]},
    }
    beat = {"workerId": worker, "namespace": "stem", "timestamp": now, "isolateCount": 3, "inflight": 3}
    return json.dumps({**beat, "queues": [{"name": queue, "inflight": 3}], "version": "1", "extras": extras})


async def _redis_ms(client: Any) -> float:
    cpu = await client.info("cpu")
    return float(cpu["used_cpu_user"] + cpu["used_cpu_sys"]) * 1000


@contextlib.asynccontextmanager
async def _polling(url: str, sink: Sink) -> AsyncIterator[Process]:
    with tempfile.TemporaryDirectory(prefix="stem-agent-bench-") as name:
        config = Path(name) / "agent.yaml"
        config.write_text(YAML.format(redis=url, interval=INTERVAL_SECONDS, endpoint=sink.url), encoding="utf-8")
        async with spawn("agent", ["agent", "run", "--config", str(config)], Path(name)) as process:
            yield process


async def measure() -> dict[str, Any]:
    """Return CPU milliseconds of a turn, of the agent (export included) and of Redis, and the agent's memory."""
    sink, asked = Sink(), asyncio.Event()
    sink.on_request = asked.set
    await sink.start()
    with embedded_valkey() as server:
        client: Any = redis.asyncio.Redis.from_url(server.connection_url)
        fleet = Fleet(client)
        await fleet.fill()
        async with _polling(server.connection_url, sink) as agent:
            spent, theirs = 0.0, 0.0
            for turn in range(WARM_UP_TURNS + TURNS):
                before, redis_before = agent.usage()[0], await _redis_ms(client)
                asked.clear()
                await asyncio.wait_for(asked.wait(), 20 * INTERVAL_SECONDS)
                after, redis_after = agent.usage()[0], await _redis_ms(client)
                if turn >= WARM_UP_TURNS:
                    spent += (after - before) * 1000
                    theirs += redis_after - redis_before
                await fleet.move()
            resident = agent.usage()[1]
        await client.aclose()
    await sink.stop()
    return {
        "queues": QUEUES,
        "workers": WORKERS,
        "agent_ms": round(spent / TURNS, 1),
        "redis_ms": round(theirs / TURNS, 1),
        "rss_mib": round(resident, 1),
    }


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    print(json.dumps(asyncio.run(measure())), file=sys.stdout)


if __name__ == "__main__":
    main()
