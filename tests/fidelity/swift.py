"""A fleet of 1 000 tasks a second in one process: what Stem's workers leave on Redis, without workers that do anything.

Entries and records are written when they are due, a hundred times a second, many at once. It has what is hard to read:
late `queued` records, retries, long tasks whose leases leave copies, explicit retries that are exhausted.
"""

import asyncio
import heapq
import random
from collections.abc import Callable
from datetime import datetime, timedelta
from itertools import count
from typing import Any

import redis.asyncio
from msgspec.structs import replace

from agent.demo.fleet.backend import task_error
from agent.demo.fleet.envelopes import Envelope, due_at, epoch_us, new_envelope, to_fields, to_json
from agent.demo.truth import FOR_EVER_US, AttemptTruth, TaskTruth, Truth, Via
from agent.emit import iso, utc_now
from agent.stem.catalogue import TaskState
from agent.stem.keys import Keys

TICK_SECONDS = 0.01
TASKS = ("order.charge", "email.send", "image.resize", "search.index")
QUEUES = ("default", "payments", "media")
WORKERS = 20
LATE_QUEUED, LONG, RETRIED, EXHAUSTED, FAILED = 0.2, 0.005, 0.08, 0.005, 0.02
LEASE_SECONDS = 2.0
RETRY_SECONDS = 0.3
DAY_MS = 86_400_000

Step = Callable[[datetime, Any], None]


class SwiftFleet:
    """Publishes `rate` tasks a second until `stop` is set; `run` returns what was done when every task has ended."""

    def __init__(self, url: str, rate: float, seed: int = 1) -> None:
        self._redis: Any = redis.asyncio.Redis.from_url(url)
        self._keys = Keys()
        self._rate = rate
        self._chance = random.Random(seed)
        self._order = count()
        self._steps: list[tuple[datetime, int, Step]] = []
        self._writes: dict[str, list[int]] = {}
        self._due: dict[tuple[str, int], int] = {}
        self.truth = Truth(silent=True)
        self.stop = asyncio.Event()
        self.late_s = 0.0

    async def run(self) -> Truth:
        loop = asyncio.get_running_loop()
        due, owed = loop.time(), 0.0
        while self._steps or not self.stop.is_set():
            now = utc_now()
            owed = 0.0 if self.stop.is_set() else owed + self._rate * TICK_SECONDS
            async with self._redis.pipeline(transaction=False) as pipe:
                while owed >= 1:
                    owed -= 1
                    self._publish(now, pipe)
                while self._steps and self._steps[0][0] <= now:
                    heapq.heappop(self._steps)[2](now, pipe)
                if len(pipe):
                    await pipe.execute()
            due += TICK_SECONDS
            self.late_s = max(self.late_s, loop.time() - due)
            await asyncio.sleep(max(0.0, due - loop.time()))
        await self._redis.aclose()
        self.truth.attempts = [replace(each, stood_us=self._stood_us(each)) for each in self.truth.attempts]
        return self.truth

    def _stood_us(self, attempt: AttemptTruth) -> int:
        after = (written for written in self._writes[attempt.task_id] if written > attempt.stood_us)
        return next((written - attempt.stood_us for written in after), FOR_EVER_US)

    def _at(self, time: datetime, step: Step) -> None:
        heapq.heappush(self._steps, (time, next(self._order), step))

    # --- tasks -------------------------------------------------------------------------------------------------------

    def _publish(self, now: datetime, pipe: Any) -> None:
        chance = self._chance
        envelope = new_envelope(chance.choice(TASKS), chance.choice(QUEUES), now=now, max_retries=3)
        task_id = envelope["id"]
        self.truth.tasks[task_id] = TaskTruth(
            task_id=task_id,
            name=envelope["name"],
            queue=envelope["queue"],
            via=Via.STEM,
            trace_id=task_id.replace("-", ""),
            span_id="",
            enqueued_us=epoch_us(datetime.fromisoformat(envelope["enqueuedAt"])),
        )
        self._enter(envelope, pipe)
        queued = self._recording(envelope, TaskState.QUEUED, {"queue": envelope["queue"], "maxRetries": 3})
        if chance.random() < LATE_QUEUED:
            self._at(now + timedelta(seconds=chance.uniform(0.005, 0.05)), queued)
        else:
            queued(now, pipe)
        self._at(now + timedelta(seconds=chance.uniform(0, 0.05)), self._starting(envelope))

    def _enter(self, envelope: Envelope, pipe: Any) -> None:
        pipe.xadd(self._keys.stream(envelope["queue"], envelope["priority"]), to_fields(envelope))

    def _starting(self, envelope: Envelope, *, copy: bool = False) -> Step:
        worker = f"worker-{self._chance.randrange(WORKERS)}"

        def start(now: datetime, pipe: Any) -> None:
            chance = self._chance
            run_s = chance.uniform(0.005, 0.2)
            if not copy and chance.random() < LONG:
                run_s = LEASE_SECONDS * 1.2
                self._leave_copy(envelope, now + timedelta(seconds=LEASE_SECONDS * 1.5))
            name, queue = envelope["name"], envelope["queue"]
            meta = {"task": name, "stem.task": name, "queue": queue, "worker": worker, "startedAt": iso(now)}
            self._record(envelope, TaskState.RUNNING, meta, now, pipe)
            self._at(now + timedelta(seconds=run_s), self._ending(envelope, worker, now, copy=copy))

        return start

    def _leave_copy(self, envelope: Envelope, due: datetime) -> None:
        copied = {**envelope, "notBefore": iso(due)}

        def deliver(now: datetime, pipe: Any) -> None:
            self._enter(copied, pipe)
            self._at(now + timedelta(seconds=self._chance.uniform(0, 0.02)), self._starting(copied, copy=True))

        self._at(due, deliver)

    def _ending(self, envelope: Envelope, worker: str, started: datetime, *, copy: bool) -> Step:
        def end(now: datetime, pipe: Any) -> None:
            chance, number, named = self._chance.random(), envelope["attempt"], True
            meta: dict[str, Any] = {"worker": worker, "startedAt": iso(started)}
            if not copy and chance < RETRIED and number < envelope["maxRetries"]:
                state, named = TaskState.RETRIED, False
                due = now + timedelta(seconds=RETRY_SECONDS * 2**number)
                error = task_error("SocketException", "SocketException: connection refused", retryable=True)
                self._record(
                    envelope, state, {"retryDelayMs": round((due - now).total_seconds() * 1000)}, now, pipe, error
                )
                self._again({**envelope, "attempt": number + 1, "notBefore": iso(due)}, due)
            elif not copy and chance < RETRIED + EXHAUSTED:
                error = task_error("RetryExhausted", "RetryExhausted: no more")
                state, named = TaskState.FAILED, False
                self._record(envelope, state, {"failedAt": iso(now), "retryExhausted": True}, now, pipe, error)
            elif not copy and chance < RETRIED + EXHAUSTED + FAILED:
                state, error = TaskState.FAILED, task_error("StateError", "StateError: no rows")
                self._record(envelope, state, {**meta, "failedAt": iso(now)}, now, pipe, error)
            else:
                state = TaskState.SUCCEEDED
                self._record(envelope, state, {**meta, "completedAt": iso(now)}, now, pipe)
            self._ended(envelope, worker, state, started, now, named=named)

        return end

    def _again(self, envelope: Envelope, due: datetime) -> None:
        def deliver(now: datetime, pipe: Any) -> None:
            self._enter(envelope, pipe)
            self._at(now + timedelta(seconds=self._chance.uniform(0, 0.02)), self._starting(envelope))

        self._at(due, deliver)

    def _ended(
        self, envelope: Envelope, worker: str, state: TaskState, started: datetime, now: datetime, *, named: bool
    ) -> None:
        number = envelope["attempt"]
        self.truth.attempts.append(
            AttemptTruth(
                task_id=envelope["id"],
                number=number,
                worker=worker,
                state=state,
                ready_us=epoch_us(due_at(envelope)),
                started_us=epoch_us(started),
                ended_us=epoch_us(now),
                next_retry_us=epoch_us(now) + round(RETRY_SECONDS * 2**number * 1e6)
                if state == TaskState.RETRIED
                else 0,
                running_us=epoch_us(started),
                stored=state,
                stored_us=epoch_us(now),
                stood_us=self._writes[envelope["id"]][-1],
                named=named,
                due_us=self._due.setdefault((envelope["id"], number), epoch_us(due_at(envelope))),
            )
        )

    # --- records -----------------------------------------------------------------------------------------------------

    def _recording(self, envelope: Envelope, state: TaskState, meta: dict[str, Any]) -> Step:
        return lambda now, pipe: self._record(envelope, state, meta, now, pipe)

    def _record(
        self,
        envelope: Envelope,
        state: TaskState,
        meta: dict[str, Any],
        now: datetime,
        pipe: Any,
        error: dict[str, Any] | None = None,
    ) -> None:
        task_id = envelope["id"]
        writes = self._writes.setdefault(task_id, [])
        writes.append(max(epoch_us(now), writes[-1] + 1 if writes else 0))  # of those in one tick the last one stays
        status = {
            "id": task_id,
            "state": state.value,
            "payload": {"ok": True} if state is TaskState.SUCCEEDED else None,
            "error": error,
            "meta": {**envelope["meta"], **meta},
            "attempt": envelope["attempt"],
            "createdAt": envelope["enqueuedAt"],
            "updatedAt": iso(now),
        }
        pipe.set(self._keys.result(task_id), to_json(status), px=DAY_MS)
