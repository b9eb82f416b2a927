"""A simulated fleet: producers and workers on asyncio that live through Stem's lifecycles and signal them.

It runs in a process of its own, so that the agent's figures are the agent's. The orders of signals are Stem's
(`received`, `prerun`, an ending, `postrun`; only `revoked` for a task revoked before its run).
"""

import argparse
import asyncio
import json
import random
import secrets
import signal
import uuid
from collections.abc import Awaitable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import redis.asyncio

from agent.demo.truth import AttemptTruth, Truth
from agent.demo.valkey import announce
from agent.emit import AsyncSignalEmitter, AttemptSignals, iso, utc_now
from agent.stem.catalogue import SignalName, TaskState
from agent.stem.channels import heartbeat_channel

HEARTBEAT_SECONDS = 2.0
CONCURRENCY = 40
MAX_RETRIES = 3

STACK = """#0      SmtpClient.send (package:mailer/src/smtp.dart:118:7)
#1      EmailTask.run (package:shop/tasks/email.dart:42:5)
#2      Worker._execute (package:stem/src/worker/worker.dart:912:20)"""


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of task, and how it behaves: probabilities, and the median run time in seconds."""

    name: str
    queue: str
    run_s: float
    retry: float = 0.0
    fail: float = 0.0
    revoke: float = 0.0
    delay_s: float = 0.0
    error: str = "Exception: something went wrong"


KINDS = (
    Kind("email.send", "default", 0.020, retry=0.06, fail=0.01, error="SocketException: Connection refused"),
    Kind("order.charge", "payments", 0.045, retry=0.03, fail=0.02, error="PaymentDeclined: insufficient funds"),
    Kind("image.resize", "media", 0.120, fail=0.01, error="Bad state: unsupported colour profile"),
    Kind("report.build", "default", 0.800, revoke=0.10, error="TimeoutException after 0:00:30.000000"),
    Kind("cart.remind", "default", 0.010, delay_s=0.4, revoke=0.05),
    Kind("search.index", "media", 0.015),
)
WEIGHTS = (40, 20, 10, 2, 8, 20)


@dataclass(slots=True)
class Fleet:
    """Producers, queues and workers; `run` ends when `stop` was set and every task found its end."""

    url: str
    namespace: str
    rate: float
    workers: int
    seed: int
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    truth: Truth = field(default_factory=Truth)
    queues: dict[str, "asyncio.Queue[dict[str, Any]]"] = field(default_factory=dict)
    unfinished: int = 0
    idle: asyncio.Event = field(default_factory=asyncio.Event)
    chance: random.Random = field(default_factory=random.Random)
    later: set["asyncio.Task[None]"] = field(default_factory=set)

    async def run(self) -> Truth:
        """Live; return what was done."""
        self.chance.seed(self.seed)
        self.queues = {kind.queue: asyncio.Queue() for kind in KINDS}
        producer = AsyncSignalEmitter.connect(self.url, namespace=self.namespace, emitter="producer-1")
        workers = [Worker(self, index) for index in range(1, self.workers + 1)]
        for worker in workers:
            await worker.start()
        await self._produce(producer)
        if self.unfinished:
            self.idle.clear()
            await self.idle.wait()
        for worker in workers:
            await worker.close()
        self.truth.dropped_signals = producer.dropped + sum(worker.emitter.dropped for worker in workers)
        await producer.close()
        return self.truth

    async def _produce(self, producer: AsyncSignalEmitter) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time()
        while not self.stop.is_set():
            due += self.chance.expovariate(self.rate)
            if (delay := due - loop.time()) > 0:
                try:
                    async with asyncio.timeout(delay):
                        await self.stop.wait()
                except TimeoutError:
                    pass
                else:
                    return
            await self._publish(producer, self.chance.choices(KINDS, WEIGHTS)[0])

    async def _publish(self, producer: AsyncSignalEmitter, kind: Kind) -> None:
        envelope = self._envelope(kind)
        await producer.before_publish(envelope)
        self.unfinished += 1
        self.truth.published.append((envelope["id"], kind.name, kind.queue))
        self.enqueue(envelope)
        await producer.after_publish(envelope)

    def _envelope(self, kind: Kind) -> dict[str, Any]:
        now = utc_now()
        traced = self.chance.random() < 0.5  # noqa: PLR2004 - half of the producers run OpenTelemetry
        headers = {"tenant": "demo"}
        if traced:
            headers["traceparent"] = f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-01"
        not_before = now + timedelta(seconds=self.chance.uniform(0.5, 1.5) * kind.delay_s) if kind.delay_s else None
        return {
            "id": str(uuid.UUID(int=(int(now.timestamp() * 1000) << 80) | 7 << 76 | secrets.randbits(76))),
            "name": kind.name,
            "args": {"secret": "never leaves the worker"},
            "headers": headers,
            "enqueuedAt": iso(now),
            "notBefore": iso(not_before) if not_before else None,
            "priority": 0,
            "attempt": 0,
            "maxRetries": MAX_RETRIES,
            "visibilityTimeout": None,
            "queue": kind.queue,
            "meta": {"stem.task": kind.name},
        }

    def enqueue(self, envelope: dict[str, Any]) -> None:
        """Put a task into its queue when it is due."""
        not_before = envelope["notBefore"]
        delay = (datetime.fromisoformat(not_before) - utc_now()).total_seconds() if not_before else 0.0
        task = asyncio.get_running_loop().create_task(self._put(envelope, max(0.0, delay)))
        self.later.add(task)
        task.add_done_callback(self.later.discard)

    async def _put(self, envelope: dict[str, Any], delay: float) -> None:
        await asyncio.sleep(delay)
        await self.queues[envelope["queue"]].put(envelope)

    def finished(self) -> None:
        """Note that a task found its final end."""
        self.unfinished -= 1
        if not self.unfinished:
            self.idle.set()


class Worker:
    """One simulated worker: takes from every queue, runs up to `CONCURRENCY` tasks at once, beats."""

    def __init__(self, fleet: Fleet, index: int) -> None:
        self.fleet = fleet
        self.worker_id = f"worker-{index}"
        self.emitter = AsyncSignalEmitter.connect(
            fleet.url, namespace=fleet.namespace, emitter=f"pod-{index}", worker_id=self.worker_id
        )
        self.heartbeats = redis.asyncio.Redis.from_url(fleet.url)
        self.inflight = 0
        self.tasks: list[asyncio.Task[None]] = []
        self.slots = asyncio.Semaphore(CONCURRENCY)
        self.running: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Announce the worker and begin to take tasks."""
        queues = sorted(self.fleet.queues)
        await self.emitter.worker(SignalName.WORKER_INIT, queues=queues)
        await self.emitter.worker(SignalName.WORKER_READY, queues=queues)
        self.tasks = [asyncio.create_task(self._take(queue)) for queue in queues]
        self.tasks.append(asyncio.create_task(self._beat(queues)))

    async def close(self) -> None:
        """Stop gracefully, as Stem does."""
        await self.emitter.worker(SignalName.WORKER_STOPPING, reason="warm")
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        await self.emitter.worker(SignalName.WORKER_SHUTDOWN, reason="warm")
        await self.emitter.close()
        await self.heartbeats.aclose()

    async def _beat(self, queues: list[str]) -> None:
        channel = heartbeat_channel(self.fleet.namespace)
        while True:
            await self.emitter.heartbeat(queues=queues)
            beat = {
                "workerId": self.worker_id,
                "namespace": self.fleet.namespace,
                "timestamp": iso(utc_now()),
                "isolateCount": min(self.inflight, CONCURRENCY),
                "inflight": self.inflight,
                "lastLeaseRenewal": None,
                "version": "1",
                "queues": [],
                "extras": {"concurrency": CONCURRENCY, "memoryBytes": 96 << 20, "subscriptions": {"queues": queues}},
            }
            await self.heartbeats.publish(channel, json.dumps(beat))
            await asyncio.sleep(HEARTBEAT_SECONDS)

    async def _take(self, queue: str) -> None:
        while True:
            await self.slots.acquire()
            envelope = await self.fleet.queues[queue].get()
            task = asyncio.create_task(self._execute(envelope))
            self.running.add(task)
            task.add_done_callback(self.running.discard)

    async def _execute(self, envelope: dict[str, Any]) -> None:
        self.inflight += 1
        try:
            await self._attempt(envelope)
        finally:
            self.inflight -= 1
            self.slots.release()

    async def _attempt(self, envelope: dict[str, Any]) -> None:
        kind = next(kind for kind in KINDS if kind.name == envelope["name"])
        chance, signals = self.fleet.chance, self.emitter.attempt(envelope)
        if chance.random() < kind.revoke / 2:
            await signals.revoked("revoked by the demo")
            self._record(signals, envelope, TaskState.CANCELLED)
            return
        await signals.received()
        await signals.prerun()
        await asyncio.sleep(chance.lognormvariate(0, 0.5) * kind.run_s)
        number = int(envelope["attempt"])
        if chance.random() < kind.revoke / 2:
            state = TaskState.CANCELLED
            await signals.revoked("revoked while running")
        elif number < MAX_RETRIES and chance.random() < kind.retry * (1 + 4 * number):
            state = TaskState.RETRIED
            due = utc_now() + timedelta(seconds=0.3 * 2**number)
            await signals.retry(kind.error, due)
        elif chance.random() < kind.fail * (1 + 4 * number):
            state = TaskState.FAILED
            await signals.failed(kind.error, STACK)
        else:
            state = TaskState.SUCCEEDED
            await signals.succeeded()
        await signals.postrun(state)
        self._record(signals, envelope, state)
        if state is TaskState.RETRIED:
            self.fleet.enqueue({**envelope, "attempt": number + 1, "notBefore": iso(due)})

    def _record(self, signals: AttemptSignals[Awaitable[None]], envelope: dict[str, Any], state: TaskState) -> None:
        traceparent = envelope["headers"].get("traceparent")
        self.fleet.truth.attempts.append(
            AttemptTruth(
                task_id=envelope["id"],
                number=envelope["attempt"],
                worker=self.worker_id,
                task=envelope["name"],
                queue=envelope["queue"],
                state=state,
                trace_id=traceparent.split("-")[1] if traceparent else uuid.UUID(envelope["id"]).hex,
                traced=traceparent is not None,
                started_us=_microseconds(signals.started_at),
                ended_us=_microseconds(signals.ended_at),
            )
        )
        if state is not TaskState.RETRIED:
            self.fleet.finished()


def _microseconds(moment: datetime | None) -> int:
    return round(moment.timestamp() * 1e6) if moment else 0


async def _main(options: argparse.Namespace) -> None:
    fleet = Fleet(options.url, options.namespace, options.rate, options.workers, options.seed)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, fleet.stop.set)
    announce(options.truth.with_suffix(".ready"), "")
    (await fleet.run()).write(options.truth)


def main() -> None:
    """Run the fleet until SIGTERM, let every task end, write the truth."""
    parser = argparse.ArgumentParser(description="a simulated Stem fleet")
    parser.add_argument("--url", required=True)
    parser.add_argument("--namespace", default="stem")
    parser.add_argument("--rate", type=float, default=100.0, help="tasks published per second")
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--truth", type=Path, required=True, help="file to write")
    asyncio.run(_main(parser.parse_args()))


if __name__ == "__main__":
    main()
