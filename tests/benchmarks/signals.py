"""The signals that every candidate gets: four a task, from 8 workers, 5 queues, 20 task names, unique trace ids."""

import random
import secrets
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import redis.asyncio

from agent.emit import Composer, Emitter, iso
from agent.stem.channels import signal_channel

WORKERS, QUEUES, TASKS = 8, 5, 20
SIGNALS_PER_TASK = 4
SPANS_PER_TASK = 2
_PIPELINE = 1000

Told = list[tuple[str, bytes]]
"""(emitter, payload) in the order of publishing."""


class _Payloads(Emitter[None]):
    """Keeps payloads instead of sending them."""

    def __init__(self, index: int) -> None:
        self.now = datetime.now(UTC)
        super().__init__(Composer(worker_id=f"worker-{index}", emitter=f"pod-{index}", clock=lambda: self.now))
        self.payloads: list[bytes] = []

    def send(self, payload: bytes | None) -> None:
        assert payload is not None
        self.payloads.append(payload)


class Story:
    """Tells tasks, each received, started, succeeded and finished; its workers are the same processes throughout."""

    def __init__(self) -> None:
        self._chance = random.Random(1)
        self._workers = [_Payloads(index) for index in range(WORKERS)]
        self._told = 0

    def tell(self, tasks: int) -> Told:
        return self._tell(tasks, whole=True)

    def begin(self, tasks: int) -> Told:
        """Tell the beginnings of tasks: each received and started, and then nothing."""
        return self._tell(tasks, whole=False)

    def _tell(self, tasks: int, *, whole: bool) -> Told:
        told: Told = []
        for worker in self._workers:
            worker.now = datetime.now(UTC)
        for _ in range(tasks):
            worker = self._workers[self._told % WORKERS]
            self._told += 1
            signals = worker.attempt(self._envelope(worker.now))
            signals.received()
            signals.prerun()
            worker.now += timedelta(milliseconds=self._chance.randrange(5, 500))
            if whole:
                signals.succeeded()
                signals.postrun("succeeded")
            told += [(worker.composer.emitter, payload) for payload in worker.payloads]
            worker.payloads.clear()
        return told

    def _envelope(self, now: datetime) -> dict[str, Any]:
        return {
            "id": str(uuid.UUID(bytes=secrets.token_bytes(16))),
            "name": f"shop.task_{self._chance.randrange(TASKS)}",
            "headers": {"traceparent": f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-01"},
            "enqueuedAt": iso(now - timedelta(seconds=0.5)),
            "notBefore": None,
            "priority": 0,
            "attempt": 0,
            "maxRetries": 3,
            "visibilityTimeout": None,
            "queue": f"queue-{self._chance.randrange(QUEUES)}",
            "meta": {"stem.task": "x"},
        }


async def publish(client: "redis.asyncio.Redis", namespace: str, told: Told) -> None:
    channels = {emitter: signal_channel(namespace, emitter) for emitter, _ in told}
    for start in range(0, len(told), _PIPELINE):
        async with client.pipeline(transaction=False) as pipe:
            for emitter, payload in told[start : start + _PIPELINE]:
                pipe.publish(channels[emitter], payload)
            await pipe.execute()
