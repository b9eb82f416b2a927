"""A fleet whose truth is known, written by the demo's own writers, and the probes that look at it."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import redis
import redis.asyncio
from click.testing import Result
from typer.testing import CliRunner

from agent.cli import app
from agent.demo.fleet.backend import Backend
from agent.demo.fleet.broker import Broker, Delivery
from agent.demo.fleet.envelopes import Envelope, epoch_ms, new_envelope, to_json
from agent.emit import iso, utc_now
from agent.stem.catalogue import TaskState
from agent.stem.keys import Keys

SECRET = "never leaves the worker"
Answer = TypeVar("Answer")


class Writers:
    """What Stem's processes write with."""

    def __init__(self, client: Any, keys: Keys) -> None:
        self.client, self.keys = client, keys
        self.broker = Broker(client, keys, utc_now)
        self.backend = Backend(client, keys, utc_now)

    async def publish(self, queue: str, count: int = 1, **options: Any) -> list[Envelope]:
        tasks = [new_envelope("email.send", queue, args={"to": SECRET}, **options) for _ in range(count)]
        for task in tasks:
            await self.broker.publish(task)
            await self.backend.write(task, TaskState.QUEUED, {"queue": queue})
        return tasks

    async def take(self, queue: str, count: int = 1) -> list[Delivery]:
        """Give `worker-1` the next tasks of a queue, as its consumer does."""
        await self.broker.listen(queue)
        return await self.broker.read(queue, "worker-1", count=count, block_s=0.1)

    async def run(self, task: Envelope, worker: str = "worker-1", **meta: Any) -> None:
        told = {"task": task["name"], "queue": task["queue"], "worker": worker, "startedAt": iso(utc_now()), **meta}
        await self.backend.write(task, TaskState.RUNNING, told)

    async def beat(self, worker: str, **changes: Any) -> None:
        await self.backend.heartbeat(worker, heartbeat(worker, **changes))

    async def now_ms(self) -> int:
        seconds, microseconds = await self.client.time()
        return int(seconds) * 1000 + int(microseconds) // 1000


def heartbeat(worker: str, **changes: Any) -> str:
    extras = {
        "host": "pod-7",
        "pid": 7,
        "concurrency": 8,
        "maxConcurrency": 8,
        "prefetch": 16,
        "memoryBytes": 64 << 20,
        "started": 12,
        "completed": 9,
        "failed": 1,
        "startedAt": "2026-04-23T10:00:00.000000Z",
        "subscriptions": {"queues": ["default"]},
    }
    beat = {
        "workerId": worker,
        "namespace": "stem",
        "timestamp": iso(utc_now()),
        "isolateCount": 1,
        "inflight": 2,
        "queues": [{"name": "default", "inflight": 2}],
        "extras": extras,
        **changes,
    }
    return to_json(beat)


@dataclass
class Known:
    """The tasks of `default`, by what became of them; `seen_ms` is Redis' time when all of it was there."""

    ready: list[Envelope] = field(default_factory=list)
    done: Envelope = field(default_factory=dict)
    dead: Envelope = field(default_factory=dict)
    running: Envelope = field(default_factory=dict)
    prefetched: Envelope = field(default_factory=dict)
    extended: Envelope = field(default_factory=dict)
    later: list[Envelope] = field(default_factory=list)
    overdue_ms: int = 0
    first_ready_ms: int = 0


async def known_fleet(writers: Writers) -> Known:
    """Queue `default`: 5 ready, 2 in flight, 4 delayed of which 1 is overdue, 1 dead, 1 done."""
    broker, known = writers.broker, Known()
    await writers.publish("default", 5)
    done, dead, running, prefetched, extended = await writers.take("default", 5)
    known.done, known.dead, known.running = done.envelope, dead.envelope, running.envelope
    known.prefetched, known.extended = prefetched.envelope, extended.envelope
    await broker.ack(done)
    await writers.backend.write(
        done.envelope, TaskState.SUCCEEDED, {"worker": "worker-1", "queue": "default"}, payload={"to": SECRET}
    )
    await broker.dead_letter(dead, "max-retries-exhausted", {"error": "SocketException: Connection refused"})
    await writers.run(known.running)
    await writers.run(known.extended)
    await broker.send_back(extended, 3600)  # its lease was extended: a copy, while it runs
    known.ready = await writers.publish("default", 3) + await writers.publish("default", 2, priority=5)
    entries = [await writers.client.xrange(stream) for stream in writers.keys.streams("default")]
    ids = {known.ready[index]["id"] for index in (0, 1, 2, 3, 4)}
    ready_ms = [int(entry.split("-")[0]) for told in entries for entry, fields in told if fields["id"] in ids]
    known.first_ready_ms = min(ready_ms)
    known.later = await writers.publish("default", 2, delay_s=3600)
    known.overdue_ms = epoch_ms(utc_now()) - 5000
    late = new_envelope("email.send", "default", args={"to": SECRET})
    await writers.client.zadd(writers.keys.delayed("default"), {to_json(late): known.overdue_ms})
    return known


@dataclass
class Scene:
    """A server, and a namespace of one's own."""

    url: str
    namespace: str

    @property
    def keys(self) -> Keys:
        return Keys(self.namespace)

    def arrange(self, work: Callable[[Writers], Awaitable[Answer]], url: str | None = None) -> Answer:
        async def arranged() -> Answer:
            async with redis.asyncio.Redis.from_url(url or self.url, decode_responses=True) as client:
                return await work(Writers(client, self.keys))

        return asyncio.run(arranged())

    def now_ms(self) -> int:
        return self.arrange(lambda writers: writers.now_ms())

    def probe(self, *words: str, **environ: str) -> Result:
        options = ("--store-namespace", self.namespace)
        env = {"STEM_BROKER_URL": self.url, **environ}
        return CliRunner().invoke(app, [*words, *options], env=env)

    def told(self, *words: str, exit_code: int = 0, **environ: str) -> Any:
        result = self.probe(*words, "--json", **environ)
        assert result.exit_code == exit_code, result.output
        return json.loads(result.stdout)

    def contents(self) -> dict[bytes, bytes]:
        """Everything that is in the databases, and how."""
        found: dict[bytes, bytes] = {}
        for database in range(3):
            with redis.Redis.from_url(f"{self.url.rpartition('/')[0]}/{database}") as client:
                found |= {b"%d %s" % (database, key): client.dump(key) for key in client.scan_iter("*")}  # type: ignore[misc]
        return found
