"""Stem's `RedisResultBackend` and `RedisRevokeStore`: result records, groups, heartbeats, revocations."""

import json
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

from agent.demo.fleet.envelopes import Envelope, epoch_us, to_json
from agent.demo.fleet.faults import Clock
from agent.emit import iso
from agent.stem.catalogue import TaskState
from agent.stem.keys import Keys

RESULT_TTL = timedelta(days=1)
HEARTBEAT_TTL = timedelta(seconds=60)
ENCODER = "stem.encoder.json"
_PAUSE = "__stem.queue.pause__:"

Status = dict[str, Any]
"""`TaskStatus.toJson`."""


def task_error(kind: str, message: str, *, retryable: bool = False, stack: str | None = None) -> dict[str, Any]:
    """Return `TaskError.toJson`."""
    return {"type": kind, "message": message, "stack": stack, "retryable": retryable, "meta": {}}


class Backend:
    """Writes what Stem writes: the last writer wins, and every write renews the time to live.

    `wrote` is told of each record, by its task.
    """

    def __init__(self, client: Any, keys: Keys, clock: Clock, wrote: Callable[[str], None] = lambda _: None) -> None:
        self._wrote = wrote
        self._redis = client  # redis-py's types know neither text answers nor plain dicts
        self._keys = keys
        self._clock = clock

    async def write(
        self,
        envelope: Envelope,
        state: TaskState,
        meta: dict[str, Any],
        *,
        payload: Any = None,
        error: dict[str, Any] | None = None,
    ) -> Status:
        """Store a task's state; `meta` comes on top of the envelope's. Only `createdAt` is carried over."""
        key, now = self._keys.result(envelope["id"]), iso(self._clock())
        known = await self._redis.get(key)
        status = {
            "id": envelope["id"],
            "state": state.value,
            "payload": payload,
            "error": error,
            "meta": {**envelope["meta"], **meta},
            "attempt": envelope["attempt"],
        }
        created = json.loads(known)["createdAt"] if known else now
        await self._redis.set(key, to_json({**status, "createdAt": created, "updatedAt": now}), px=RESULT_TTL)
        self._wrote(envelope["id"])
        return status

    async def heartbeat(self, worker_id: str, beat: str) -> None:
        """Store a worker's heartbeat, and its id among all that ever were."""
        await self._redis.set(self._keys.heartbeat(worker_id), beat, px=HEARTBEAT_TTL)
        await self._redis.sadd(self._keys.heartbeats, worker_id)

    # --- groups and chords -----------------------------------------------------------------------------------------

    async def init_group(self, group_id: str, expected: int, meta: dict[str, Any]) -> None:
        """Describe a group of tasks."""
        descriptor = to_json({"id": group_id, "expected": expected, "meta": meta})
        await self._redis.set(self._keys.task_group(group_id), descriptor, px=RESULT_TTL)

    async def add_group_result(self, group_id: str, status: Status) -> Envelope | None:
        """Add a member's result; return the chord's callback when all succeeded and this caller is to dispatch it."""
        results = self._keys.task_group_results(group_id)
        await self._redis.hset(results, status["id"], to_json(status))
        key = self._keys.task_group(group_id)
        left_ms = await self._redis.pttl(key)
        await self._redis.pexpire(results, left_ms)
        group = json.loads(await self._redis.get(key))
        statuses = [json.loads(value) for value in (await self._redis.hgetall(results)).values()]
        if len(statuses) < group["expected"] or any(each["state"] != TaskState.SUCCEEDED for each in statuses):
            return None
        if not await self._redis.set(self._keys.task_group_claim(group_id), "1", nx=True, px=left_ms):
            return None
        callback: Envelope = group["meta"]["stem.chord.callbackEnvelope"]
        group["meta"] |= {
            "stem.chord.claimed": True,
            "stem.chord.callbackTaskId": callback["id"],
            "stem.chord.dispatchedAt": iso(self._clock()),
        }
        await self._redis.set(key, to_json(group), px=left_ms)
        callback["meta"]["chordResults"] = [each["payload"] for each in statuses]
        return callback

    # --- revocations -----------------------------------------------------------------------------------------------

    async def revoke(self, namespace: str, task_id: str, reason: str) -> datetime:
        """Enter a revocation, as `stem worker revoke` does; return when it was issued."""
        now = self._clock()
        await self._redis.hset(Keys(namespace).revokes, task_id, to_json(self._entry(namespace, task_id, now, reason)))
        return now

    async def revocations(self, namespace: str) -> list[dict[str, Any]]:
        """Return the entries of revoked tasks, without the queues' pauses among them."""
        entries = await self._redis.hgetall(Keys(namespace).revokes)
        return [json.loads(entry) for subject, entry in entries.items() if not subject.startswith(_PAUSE)]

    async def pause(self, namespace: str, queue: str) -> None:
        """Enter a queue's pause, which Stem keeps among the revocations."""
        field = f"{_PAUSE}{queue}"
        entry = self._entry(namespace, field, self._clock(), "paused by the demo")
        await self._redis.hset(Keys(namespace).revokes, field, to_json(entry))

    async def resume(self, namespace: str, queue: str) -> None:
        """End a pause: Stem lets the entry expire, and its next reader prunes it."""
        await self._redis.hdel(Keys(namespace).revokes, f"{_PAUSE}{queue}")

    @staticmethod
    def _entry(namespace: str, subject: str, now: datetime, reason: str) -> dict[str, Any]:
        return {
            "namespace": namespace,
            "taskId": subject,
            "version": epoch_us(now),
            "issuedAt": iso(now),
            "terminate": False,
            "reason": reason,
            "requestedBy": "demo",
        }
