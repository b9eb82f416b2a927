"""Stem's Beat with its schedule store: what is due is locked, dispatched, and written into its history."""

import asyncio
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from agent.demo.fleet.client import Client
from agent.demo.fleet.envelopes import epoch_ms, epoch_us, new_envelope, to_json, uuid7
from agent.demo.fleet.kinds import KIND, SCHEDULES, Schedule
from agent.demo.truth import DispatchTruth
from agent.emit import iso

if TYPE_CHECKING:
    from agent.demo.fleet.fleet import Fleet

TICK_SECONDS = 0.1
LOCK_TTL = timedelta(seconds=5)
HISTORY_LENGTH = 1000
SKEW = 0.8


class Beat:
    """Fires the schedules; one that is broken fails each time, and is scheduled anew all the same."""

    def __init__(self, fleet: "Fleet") -> None:
        self._fleet = fleet
        self._redis = fleet.redis
        self._keys = fleet.keys
        self._client = Client(fleet, "beat-1", skew=SKEW)
        self._clock = self._client.clock
        self.emitter = self._client.emitter
        self._owner = uuid7(self._clock())
        self._fired: dict[str, int] = {}

    async def run(self) -> None:
        """Enter the schedules, then fire them until the fleet is told to stop."""
        for schedule in SCHEDULES:
            await self._enter(schedule)
        entries = {schedule.entry_id: schedule for schedule in SCHEDULES}
        while not self._fleet.stop.is_set():
            now = self._clock()
            for entry_id in await self._redis.zrangebyscore(self._keys.schedules, "-inf", epoch_ms(now)):
                # What is disabled stays in the index, overdue for ever.
                if entries[entry_id].enabled and await self._take(entry_id):
                    await self._fire(entries[entry_id], now)
            await asyncio.sleep(TICK_SECONDS)

    async def _enter(self, schedule: Schedule) -> None:
        now = self._clock()
        due = now + timedelta(seconds=schedule.every_s)
        fields = {
            "taskName": schedule.task,
            "queue": self._queue(schedule),
            "spec": to_json({"kind": "interval", "everyMs": round(schedule.every_s * 1000)}),
            "args": "{}",
            "kwargs": "{}",
            "enabled": str(schedule.enabled).lower(),
            "jitterMs": "",
            "nextRunAt": iso(due),
            "totalRunCount": "0",
            "timezone": "",
            "expireAt": "",
            "meta": "{}",
            "version": "1",
        }
        fields |= dict.fromkeys(
            ("lastRunAt", "lastJitterMs", "lastError", "lastSuccessAt", "lastErrorAt", "driftMs"), ""
        )
        await self._redis.hset(self._keys.schedule(schedule.entry_id), mapping=fields)
        await self._redis.zadd(self._keys.schedules, {schedule.entry_id: epoch_ms(due)})

    async def _take(self, entry_id: str) -> bool:
        lock = self._keys.schedule_lock(entry_id)
        return bool(await self._redis.set(lock, "1", nx=True, px=LOCK_TTL))

    async def _fire(self, schedule: Schedule, tick: datetime) -> None:
        entry_id = schedule.entry_id
        await self.emitter.schedule_due(entry_id, tick)
        lock = self._keys.lock(f"stem:schedule:{entry_id}")
        await self._redis.set(lock, self._owner, nx=True, px=LOCK_TTL)
        due = datetime.fromisoformat(str(await self._redis.hget(self._keys.schedule(entry_id), "nextRunAt")))
        task_id = None if schedule.broken else await self._dispatch(schedule)
        executed = self._clock()
        error = None if task_id else "RoutingError: no queue for task billing.close"
        await self._mark_executed(schedule, due, executed, error)
        if error:
            await self.emitter.schedule_failed(entry_id, due, error)
        else:
            await self.emitter.schedule_dispatched(entry_id, due, executed)
        dispatch = DispatchTruth(entry_id, epoch_us(due), epoch_us(executed), task_id)
        self._fleet.truth.dispatches.append(dispatch)
        await self._redis.delete(lock)

    async def _dispatch(self, schedule: Schedule) -> str:
        headers = {"scheduled-from": "beat", "schedule-id": schedule.entry_id}
        envelope = new_envelope(
            schedule.task, self._queue(schedule), headers=headers, meta={"kwargs": {}}, now=self._clock()
        )
        task_id = str(envelope["id"])
        await self._client.dispatch(envelope)
        return task_id

    async def _mark_executed(self, schedule: Schedule, due: datetime, executed: datetime, error: str | None) -> None:
        entry_id = schedule.entry_id
        count = self._fired[entry_id] = self._fired.get(entry_id, 0) + 1
        following = max(due, executed - timedelta(seconds=schedule.every_s)) + timedelta(seconds=schedule.every_s)
        fields = {
            "lastRunAt": iso(executed),
            "nextRunAt": iso(following),
            "totalRunCount": str(count),
            "driftMs": str(round((executed - due).total_seconds() * 1000)),
            "lastError": error or "",
            "lastErrorAt" if error else "lastSuccessAt": iso(executed),
            "version": str(count + 1),
        }
        await self._redis.hset(self._keys.schedule(entry_id), mapping=fields)
        await self._redis.zadd(self._keys.schedules, {entry_id: epoch_ms(following)})
        history = {
            "scheduledAt": iso(due),
            "executedAt": iso(executed),
            "success": str(error is None).lower(),
            "durationMs": str(round((self._clock() - executed).total_seconds() * 1000)),
            "error": error or "",
        }
        key = self._keys.schedule_history(entry_id)
        await self._redis.xadd(key, history, maxlen=HISTORY_LENGTH)
        await self._redis.delete(self._keys.schedule_lock(entry_id))

    @staticmethod
    def _queue(schedule: Schedule) -> str:
        return KIND[schedule.task].queue if schedule.task in KIND else "billing"
