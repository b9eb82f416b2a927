"""A worker's heartbeat as Stem composes it."""

import asyncio
import os
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

from agent.demo.fleet.broker import Broker
from agent.demo.fleet.envelopes import to_json
from agent.demo.fleet.faults import Clock
from agent.demo.fleet.kinds import QUEUES
from agent.emit import iso
from agent.stem.catalogue import TaskState
from agent.stem.channels import heartbeat_channel

if TYPE_CHECKING:
    from datetime import datetime

HEARTBEAT_SECONDS = 2.0


class Heart:
    """Counts what a worker does, and says it every `HEARTBEAT_SECONDS`; there is no farewell.

    `depth` is how much waited in all its queues at the last beat.
    """

    def __init__(self, worker_id: str, namespace: str, concurrency: int, prefetch: int, clock: Clock) -> None:
        self.channel = heartbeat_channel(namespace)
        self._worker_id = worker_id
        self._namespace = namespace
        self.concurrency = concurrency
        self.prefetch = prefetch
        self._clock = clock
        self._inflight: Counter[str] = Counter()
        self._done: Counter[str] = Counter()
        self.depth: int | None = None
        self.lease_renewed_at: datetime | None = None
        self._began = time.monotonic()
        self._started_at = iso(self._clock())

    @property
    def inflight(self) -> dict[str, int]:
        """How many attempts are under way, by queue; only queues that have any."""
        return {queue: count for queue, count in self._inflight.items() if count}

    def started(self, queue: str) -> None:
        """Note that an attempt of a task of `queue` began."""
        self._inflight[queue] += 1
        self._done["started"] += 1

    def ended(self, queue: str, state: str) -> None:
        """Note that it ended."""
        self._inflight[queue] -= 1
        self._done[state] += 1

    async def beats(self, broker: Broker) -> AsyncIterator[str]:
        """Yield the heartbeat (JSON) whenever it is time for one."""
        while True:
            depth = 0
            for queue in QUEUES:
                depth += await broker.pending_count(queue)
            self.depth = depth
            yield self._compose(depth)
            await asyncio.sleep(HEARTBEAT_SECONDS)

    def _compose(self, depth: int) -> str:
        inflight = self._inflight.total()
        uptime = time.monotonic() - self._began
        memory, peak = _memory()
        extras = {
            "host": socket.gethostname(),
            "hostname": socket.gethostname(),
            "pid": os.getpid(),
            "concurrency": self.concurrency,
            "maxConcurrency": self.concurrency,
            "prefetch": self.prefetch,
            "autoscale": False,
            "startedAt": self._started_at,
            "uptimeMs": round(uptime * 1000),
            "uptime": f"{uptime:.0f}s",
            "memoryBytes": memory,
            "memoryMaxBytes": peak,
            "memoryPercent": round(100 * memory / peak) if peak else 0,
            "loadAvg": list(os.getloadavg()),
            "cpuCount": os.cpu_count(),
            "started": self._done["started"],
            "completed": self._done[TaskState.SUCCEEDED],
            "failed": self._done[TaskState.FAILED],
            "queueDepth": depth,
            "subscriptions": {"queues": list(QUEUES)},
        }
        beat = {
            "workerId": self._worker_id,
            "namespace": self._namespace,
            "timestamp": iso(self._clock()),
            "isolateCount": min(inflight, self.concurrency),
            "inflight": inflight,
            "lastLeaseRenewal": iso(self.lease_renewed_at) if self.lease_renewed_at else None,
            "version": "1",
            "queues": [{"name": queue, "inflight": count} for queue, count in self.inflight.items()],
            "extras": extras,
        }
        return to_json(beat)


def _memory() -> tuple[int, int]:
    """Return this process's resident bytes now and at their peak; zeros where the platform does not tell."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0, 0
    found = {line.partition(":")[0]: line.split() for line in lines}
    return int(found["VmRSS"][1]) << 10, int(found["VmHWM"][1]) << 10
