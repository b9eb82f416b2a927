"""A worker's control plane: it answers the commands on its own queue, and those on the one that all workers share.

It answers what asks (`ping`, `stats`, `inspect`), and says of everything else that it cannot do that. As in Stem
(`worker.dart`, `_startControlPlane`), neither targets nor timeouts are looked at, and the reply goes to the queue that
follows from the request's id.
"""

import os
import socket
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

from agent.demo.fleet.envelopes import new_envelope
from agent.demo.fleet.kinds import QUEUES
from agent.emit import iso
from agent.stem.catalogue import SignalName
from agent.stem.control.protocol import OK, REPLY_NAME, REQUEST_NAME, broadcast_queue, reply_queue, worker_queue

if TYPE_CHECKING:
    from agent.demo.fleet.client import Client
    from agent.demo.fleet.worker import Run, Worker

Payload = dict[str, Any]
Answers = Mapping[str, Callable[[Payload], Awaitable[Payload]]]
"""By type of command: from the payload of a request to that of its reply."""

BLOCK_SECONDS = 1.0


class ControlPlane:
    """Takes a worker's commands, one after the other."""

    def __init__(self, client: "Client", worker_id: str, namespace: str, answers: Answers) -> None:
        self._client = client
        self._worker_id = worker_id
        self._namespace = namespace
        self._answers = answers
        self._queues = worker_queue(namespace, worker_id), broadcast_queue(namespace)

    async def listen(self) -> None:
        """Make the streams and groups of both queues."""
        for queue in self._queues:
            await self._client.broker.listen(queue)

    def loops(self) -> list[Coroutine[Any, Any, None]]:
        """Return what is to run as long as the worker does."""
        return [self._take(queue) for queue in self._queues]

    async def _take(self, queue: str) -> None:
        broker = self._client.broker
        while True:
            for delivery in await broker.read(queue, self._worker_id, count=1, block_s=BLOCK_SECONDS):
                if delivery.envelope["name"] == REQUEST_NAME:
                    await self._obey(delivery.envelope["args"])
                await broker.ack(delivery)

    async def _obey(self, request: Payload) -> None:
        """Signal, answer, signal."""
        emitter, request_id, kind = self._client.emitter, request["requestId"], request["type"]
        about = {"targets": request["targets"], "timeoutMs": request.get("timeoutMs")}
        await emitter.control(SignalName.CONTROL_COMMAND_RECEIVED, request_id, kind, **about)
        told = await self._answer(kind, request["payload"])
        now = self._client.clock()
        reply = {"requestId": request_id, "workerId": self._worker_id, **told}
        queue = reply_queue(self._namespace, request_id)
        headers = {"stem-control-reply": "1"}
        await self._client.broker.publish(new_envelope(REPLY_NAME, queue, args=reply, headers=headers, now=now))
        about = {"status": told["status"], "error": told.get("error")}
        await emitter.control(SignalName.CONTROL_COMMAND_COMPLETED, request_id, kind, **about)

    async def _answer(self, kind: str, payload: Payload) -> Payload:
        answer = self._answers.get(kind)
        if answer is None:
            return {"status": "error", "payload": {}, "error": {"message": f"unsupported control command {kind}"}}
        try:
            return {"status": OK, "payload": await answer(payload)}
        except Exception as error:  # noqa: BLE001 - whatever it is, the asker is to know
            return {"status": "error", "payload": {}, "error": {"message": f"{type(error).__name__}: {error}"}}


class Desk:
    """What a worker of the fleet says of itself."""

    def __init__(self, worker: "Worker") -> None:
        self._worker = worker
        self.answers: Answers = {"ping": self._ping, "stats": self._stats, "inspect": self._inspect}

    async def _ping(self, _: Payload) -> Payload:
        return {
            "timestamp": self._now(),
            "queue": QUEUES[0],
            "inflight": sum(self._worker.heart.inflight.values()),
            "subscriptions": {"queues": list(QUEUES)},
        }

    async def _stats(self, payload: Payload) -> Payload:
        worker, heart = self._worker, self._worker.heart
        return {
            **await self._ping(payload),
            "namespace": worker.fleet.namespace,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "concurrency": heart.concurrency,
            "maxConcurrency": heart.concurrency,
            "autoscaleEnabled": False,
            "prefetch": heart.prefetch,
            "queues": heart.inflight,
            "pausedQueues": sorted(worker.fleet.paused),
            "active": [self._active(run) for run in worker.active],
            "lastLeaseRenewalMsAgo": self._ago(heart.lease_renewed_at),
            "lastQueueDepth": heart.depth,
        }

    async def _inspect(self, payload: Payload) -> Payload:
        worker = self._worker
        active = [
            {
                **self._active(run),
                "lastLeaseRenewalMsAgo": self._ago(run.lease_renewed_at),
                "status": "running",
            }
            for run in worker.active
        ]
        told = {
            "timestamp": self._now(),
            "inflight": sum(worker.heart.inflight.values()),
            "active": active,
            "pausedQueues": sorted(worker.fleet.paused),
        }
        if payload.get("includeRevoked", True):
            told["revoked"] = await worker.backend.revocations(payload.get("namespace", worker.fleet.namespace))
        return told

    def _active(self, run: "Run") -> Payload:
        envelope, started_at = run.delivery.envelope, run.running_at
        return {
            "id": envelope["id"],
            "task": envelope["name"],
            "queue": envelope["queue"],
            "attempt": envelope["attempt"],
            "runtimeMs": self._ago(started_at),
            "startedAt": iso(started_at) if started_at else None,
        }

    def _now(self) -> str:
        return iso(self._worker.clock())

    def _ago(self, moment: datetime | None) -> int | None:
        """Return milliseconds since then, by the worker's clock."""
        return int((self._worker.clock() - moment).total_seconds() * 1000) if moment else None
