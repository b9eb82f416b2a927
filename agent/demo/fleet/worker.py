"""A worker as Stem's: it takes whatever its queues have, and every state it stores and every signal it sends is Stem's.

The order of each ending is that of `worker.dart`: acknowledge, store, signal, follow up, `task-postrun`.
"""

import asyncio
import time
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import msgspec

from agent.core.tasks import cancel
from agent.demo.fleet.backend import Status, task_error
from agent.demo.fleet.broker import Delivery
from agent.demo.fleet.client import Client
from agent.demo.fleet.control import ControlPlane, Desk
from agent.demo.fleet.envelopes import due_at, epoch_us, lineage_of, new_envelope, trace_of
from agent.demo.fleet.handler import RetryRequested, TaskFailed, TaskRevoked, see_that_it_was_done, work
from agent.demo.fleet.heartbeat import Heart
from agent.demo.fleet.kinds import FORGED, KIND, QUEUES, STACK, WORKFLOW_TASK, Kind
from agent.demo.fleet.workflows import WorkflowRuntime
from agent.demo.truth import LOST, AttemptTruth, Outcome
from agent.emit import AttemptSignals, iso
from agent.stem.catalogue import SignalName, TaskState

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from agent.demo.fleet.fleet import Fleet

CONCURRENCY = 40
PREFETCH = 80
BLOCK_SECONDS = 0.25
CLAIM_SECONDS = 4.0
"""Stem's default is 30 s: too long for a demo in which a killed worker's tasks are to be taken over."""
LEASE_SECONDS = 2.0
"""Stem's default is 30 s too, and half of it the least run time of a task that is delivered again."""
LIMIT_SECONDS = 0.3
PAUSED_SECONDS = 0.25
RETRY_SECONDS = 0.3
UNTRACED_SHARE = 0.35
"""Of the children of traced tasks: their worker runs no OpenTelemetry, and they inherit the header unchanged."""


@dataclass(slots=True, eq=False)
class Run:
    """An attempt under way: what a kill would cut off.

    `leaving`: it is being acknowledged, for good. `running_at` and `stored` are what its result record was to say;
    `written_us` (of the machine's clock) when it said that; `named` if it told the start, too.
    `active`: its handler has the word, or waits for an isolate.
    """

    delivery: Delivery
    signals: "AttemptSignals[Awaitable[None]]"
    state: str = LOST
    leaving: bool = False
    active: bool = False
    lease_renewed_at: datetime | None = None
    next_retry: datetime | None = None
    running_at: datetime | None = None
    stored: str = ""
    stored_at: datetime | None = None
    written_us: int = 0
    named: bool = False


class Worker:
    """One worker process: its queues, its isolates, its heart, and the workflow runtime inside it."""

    def __init__(self, fleet: "Fleet", index: int) -> None:
        self.fleet = fleet
        self.worker_id = f"worker-{index}"
        # The first is the fastest of all clocks, so that nothing another delayed has to wait for the true time.
        self.client = Client(fleet, f"pod-{index}", self.worker_id, skew=(1 if index % 2 else -1) / index)
        self.clock, self.emitter = self.client.clock, self.client.emitter
        self.broker, self.backend = self.client.broker, self.client.backend
        self.workflows = WorkflowRuntime(fleet, self.client, self.worker_id)
        self.heart = Heart(self.worker_id, fleet.namespace, CONCURRENCY, PREFETCH, self.clock)
        self.control = ControlPlane(self.client, self.worker_id, fleet.namespace, Desk(self).answers)
        self._isolates = asyncio.Semaphore(CONCURRENCY)
        self._loops: list[asyncio.Task[None]] = []
        self._handling: set[asyncio.Task[None]] = set()
        self._runs: set[Run] = set()

    # --- life ------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Announce the worker and begin to take tasks."""
        for name in (SignalName.WORKER_INIT, SignalName.WORKER_READY):
            await self.emitter.worker(name, queues=QUEUES)
        for queue in QUEUES:
            await self.broker.listen(queue)
            self._loops.append(self.fleet.spawn(self._take(queue)))
        await self.control.listen()
        loops = (self._claim(), self._beat(), self.workflows.poll(), *self.control.loops())
        self._loops += [self.fleet.spawn(loop) for loop in loops]

    async def close(self) -> None:
        """Stop gracefully, as Stem does: take nothing more, finish what runs."""
        await self.emitter.worker(SignalName.WORKER_STOPPING, queues=QUEUES, reason="warm")
        await cancel(self._loops)
        await asyncio.gather(*self._handling)
        await self.emitter.worker(SignalName.WORKER_SHUTDOWN, queues=QUEUES, reason="warm")
        await self.emitter.close()

    async def kill(self) -> None:
        """Vanish without a farewell; what was pending stays pending until another worker claims it."""
        await cancel(self._loops)
        await cancel(self._handling)  # only now: a loop that is being cancelled may begin one more
        on_their_way = await self.emitter.kill()
        self.fleet.truth.killed_workers.append(self.worker_id)
        self._cut_off(on_their_way)
        for run in list(self._runs):
            self._record(run, cut=True)
            # Acknowledged, and not sent on: Stem forgets such a task. A workflow's runner comes back when the copy of
            # its lease falls due: too late to wait for.
            if run.leaving or run.delivery.envelope["name"] == WORKFLOW_TASK:
                self.fleet.abandoned(run.delivery.envelope)

    @property
    def active(self) -> list[Run]:
        """Attempts whose handler runs, or waits for an isolate."""
        return [run for run in self._runs if run.active]

    def _cut_off(self, on_their_way: set[tuple[str, int]]) -> None:
        """Mark the attempts that had ended, but of which signals were still on their way."""
        attempts = self.fleet.truth.attempts
        for index, attempt in enumerate(attempts):
            key = (attempt.task_id, attempt.number)
            if attempt.worker == self.worker_id and key in on_their_way:
                attempts[index] = msgspec.structs.replace(attempt, cut=True, heard=key in self.emitter.heard)

    async def _take(self, queue: str) -> None:
        while True:
            for delivery in await self.broker.read(queue, self.worker_id, count=PREFETCH, block_s=BLOCK_SECONDS):
                self._begin(delivery)

    async def _claim(self) -> None:
        while True:
            await asyncio.sleep(CLAIM_SECONDS)
            for queue in QUEUES:
                for delivery in await self.broker.claim(queue, self.worker_id, idle_s=CLAIM_SECONDS):
                    self._begin(delivery)

    async def _beat(self) -> None:
        async for beat in self.heart.beats(self.broker):
            await self.emitter.heartbeat(queues=QUEUES)
            await self.fleet.redis.publish(self.heart.channel, beat)
            await self.backend.heartbeat(self.worker_id, beat)

    def _begin(self, delivery: Delivery) -> None:
        # No limit: Stem's worker starts on every delivery at once, and only the isolates queue.
        task = self.fleet.spawn(self._handle(delivery))
        self._handling.add(task)
        task.add_done_callback(self._handling.discard)

    # --- gates -----------------------------------------------------------------------------------------------------

    async def _handle(self, delivery: Delivery) -> None:
        """Let a delivery pass the gates in Stem's order, then execute it."""
        envelope, fleet = delivery.envelope, self.fleet
        kind = KIND.get(envelope["name"])
        fleet.first_due.setdefault(_key(delivery), epoch_us(due_at(envelope)))
        if kind is None and envelope["name"] != WORKFLOW_TASK:
            self._outcome(delivery, "unregistered")
            fleet.truth.dead_letters.append(envelope["id"])
            fleet.finished(envelope["id"], succeeded=False)
            await self.broker.dead_letter(delivery, "unregistered-task", None)
        elif kind and not self._again(delivery) and fleet.chance.random() < kind.revoke / 2:
            # Nobody revokes what is delivered again: `task-revoked` names neither attempt nor start, so that one for
            # the second delivery to a worker cannot be told from one for the first.
            await self._revoke(delivery, "revoked by the demo")
        elif envelope["headers"].get("stem-signature") == FORGED:
            await self._refuse(delivery)
        elif self._expired(envelope["meta"].get("stem.expiresAt")):
            self._outcome(delivery, "expired")
            fleet.finished(envelope["id"])
            await self.broker.ack(delivery)
            error = task_error("TaskExpired", "task expired before it ran")
            meta = {"worker": self.worker_id, "expiredAt": iso(self.clock()), "stem.expired": True}
            await self.backend.write(envelope, TaskState.CANCELLED, meta, error=error)
        elif delivery.queue in fleet.paused:
            await self._send_back(delivery, "paused", PAUSED_SECONDS, {"queuePaused": True})
        elif kind and fleet.chance.random() < kind.limited:
            await self._send_back(delivery, "rate-limited", LIMIT_SECONDS, {"rateLimited": True})
        else:
            await self._execute(delivery, kind)

    def _again(self, delivery: Delivery) -> bool:
        return delivery.claimed or _key(delivery) in self.fleet.extended

    async def _send_back(self, delivery: Delivery, what: str, seconds: float, meta: dict[str, Any]) -> None:
        """Let a delivery wait: no attempt, no signal."""
        await self.broker.send_back(delivery, seconds)
        meta = {**meta, "retryAfterMs": round(seconds * 1000)}
        await self.backend.write(delivery.envelope, TaskState.RETRIED, meta)
        self._outcome(delivery, what)

    async def _revoke(self, delivery: Delivery, reason: str) -> None:
        run = self._run(delivery)
        await self.backend.revoke(self.fleet.namespace, delivery.envelope["id"], reason)
        await self._end_revoked(run, reason)
        self._record(run)

    async def _refuse(self, delivery: Delivery) -> None:
        """Fail for good what is badly signed: Stem signals only `task-failed`."""
        run, reason = self._run(delivery), "SignatureVerificationException: signature mismatch"
        run.leaving, run.state = True, TaskState.FAILED
        await self.broker.dead_letter(delivery, "signature-invalid", {"error": reason, "keyId": "demo"})
        self.fleet.truth.dead_letters.append(delivery.envelope["id"])
        error = task_error("SignatureVerificationException", reason)
        error["meta"] = {"reason": "mismatch", "keyId": "demo"}
        meta = {"failedAt": iso(self.clock()), "security": "signature-invalid"}
        await self._store(run, meta, error=error)
        await run.signals.failed(reason)
        self._record(run)

    # --- execution -------------------------------------------------------------------------------------------------

    async def _execute(self, delivery: Delivery, kind: Kind | None) -> None:
        run = self._run(delivery)
        envelope, signals = delivery.envelope, run.signals
        await signals.received()
        run.running_at = self.clock()
        meta = {
            "task": envelope["name"],
            "stem.task": envelope["name"],
            "queue": envelope["queue"],
            "stem.queue": envelope["queue"],
            "worker": self.worker_id,
            "startedAt": iso(run.running_at),
        }
        await self.backend.write(envelope, TaskState.RUNNING, meta)
        await signals.prerun()
        self.heart.started(delivery.queue)
        run.active = True
        lease = asyncio.create_task(self._hold_lease(run))
        may_retry = envelope["attempt"] < envelope["maxRetries"]
        try:
            async with self._isolates:
                await self._call(delivery, kind)
        except RetryRequested as error:
            if may_retry:
                await self._retry(run, str(error), "RetryRequested")
            else:
                await self._exhaust(run, str(error))
        except TaskFailed as error:
            if may_retry and not error.final:
                await self._retry(run, str(error), _class_of(error))
            else:
                await self._fail(run, str(error), meta)
        except TaskRevoked as error:
            await self.backend.revoke(self.fleet.namespace, envelope["id"], str(error))
            await self._end_revoked(run, str(error))
        else:
            await self._succeed(run, kind, meta)
        finally:
            lease.cancel()
            self.heart.ended(delivery.queue, run.state)
            run.active = False
        await signals.postrun(run.state)
        self._record(run)

    async def _call(self, delivery: Delivery, kind: Kind | None) -> None:
        """Be the handler."""
        if kind is None:
            if error := await self.workflows.advance(delivery, self.fleet.chance):
                raise TaskFailed(error, final=False)
        elif _key(delivery) in self.fleet.extended:
            await see_that_it_was_done()
        else:
            await work(kind, delivery.envelope["attempt"], self.fleet.chance)

    async def _hold_lease(self, run: Run) -> None:
        while run in self._runs:  # a cancellation may be lost
            await asyncio.sleep(LEASE_SECONDS / 2)
            self.fleet.extended.add(_key(run.delivery))
            await self.broker.send_back(run.delivery, LEASE_SECONDS)
            run.lease_renewed_at = self.heart.lease_renewed_at = self.clock()

    async def _enqueue_child(self, delivery: Delivery, kind: Kind) -> None:
        """`TaskContext.enqueue`. Half of the applications run OpenTelemetry, most of them in their workers, too."""
        inherited = lineage_of(delivery.envelope)
        child = new_envelope(*(kind.name, kind.queue), headers=inherited.headers, meta=inherited.meta, now=self.clock())
        traced = trace_of(delivery.envelope) is not None and self.fleet.chance.random() >= UNTRACED_SHARE
        await self.client.enqueue(child, traced=traced)

    # --- endings ---------------------------------------------------------------------------------------------------

    async def _succeed(self, run: Run, kind: Kind | None, meta: dict[str, str]) -> None:
        delivery, envelope = run.delivery, run.delivery.envelope
        run.leaving, run.state = True, TaskState.SUCCEEDED
        await self.broker.ack(delivery)
        status = await self._store(run, {**meta, "completedAt": iso(self.clock())}, payload={"ok": True})
        group = envelope["meta"].get("groupId")
        callback = await self.backend.add_group_result(group, status) if group else None
        await run.signals.succeeded()
        if callback:
            await self.client.call_back(callback)
        if kind and kind.then and self.fleet.chance.random() < kind.follow:
            await self._enqueue_child(delivery, KIND[kind.then])

    async def _retry(self, run: Run, reason: str, error_type: str) -> None:
        number = run.delivery.envelope["attempt"]
        delay = RETRY_SECONDS * 2**number
        run.state = TaskState.RETRIED
        run.next_retry = await self.broker.send_back(run.delivery, delay, attempt=number + 1)
        error = task_error(error_type, reason, retryable=True, stack=STACK)
        await self._store(run, {"retryDelayMs": round(delay * 1000)}, error=error)
        await run.signals.retry(reason, run.next_retry)

    async def _fail(self, run: Run, reason: str, meta: dict[str, str]) -> None:
        envelope = run.delivery.envelope
        run.leaving, run.state = True, TaskState.FAILED
        await self.broker.dead_letter(run.delivery, "max-retries-exhausted", {"error": reason})
        self.fleet.truth.dead_letters.append(envelope["id"])
        failed = {"worker": self.worker_id, "startedAt": meta["startedAt"], "failedAt": iso(self.clock())}
        status = await self._store(run, failed, error=task_error(_class_of(reason), reason, stack=STACK))
        if group := envelope["meta"].get("groupId"):
            await self.backend.add_group_result(group, status)
        await run.signals.failed(reason, STACK)

    async def _exhaust(self, run: Run, reason: str) -> None:
        """End what asked for one retry too many: Stem acknowledges it, and leaves no dead letter."""
        run.leaving, run.state = True, TaskState.FAILED
        await self.broker.ack(run.delivery)
        failed = {"failedAt": iso(self.clock()), "retryExhausted": True}
        await self._store(run, failed, error=task_error("RetryExhausted", reason, stack=STACK))
        await run.signals.failed(reason, STACK)

    async def _end_revoked(self, run: Run, reason: str) -> None:
        run.leaving, run.state = True, TaskState.CANCELLED
        await self.broker.ack(run.delivery)
        meta = {"worker": self.worker_id, "revoked": True, "revokedReason": reason, "revokedBy": "demo"}
        await self._store(run, meta)
        await run.signals.revoked(reason)

    async def _store(
        self, run: Run, meta: dict[str, Any], *, payload: Any = None, error: dict[str, Any] | None = None
    ) -> Status:
        """Store an attempt's end; a kill on the way leaves nobody who knows whether the record says it."""
        run.stored, run.stored_at, run.named = run.state, self.clock(), "startedAt" in meta
        envelope, state = run.delivery.envelope, TaskState(run.state)
        status = await self.backend.write(envelope, state, meta, payload=payload, error=error)
        run.written_us = time.monotonic_ns() // 1000
        return status

    # --- truth -----------------------------------------------------------------------------------------------------

    def _run(self, delivery: Delivery) -> Run:
        run = Run(delivery, self.emitter.attempt(delivery.envelope))
        self._runs.add(run)
        return run

    def _outcome(self, delivery: Delivery, what: str) -> None:
        self.fleet.truth.outcomes.append(Outcome(delivery.envelope["id"], what, epoch_us(self.clock())))

    def _record(self, run: Run, *, cut: bool = False) -> None:
        """Write down what happened to an attempt; `cut` off, it may have told nothing of its end, or nothing at all."""
        self._runs.discard(run)
        envelope, signals = run.delivery.envelope, run.signals
        state = run.state if signals.ended_at else LOST
        if not signals.received_at and not signals.ended_at:
            return
        self.fleet.truth.attempts.append(
            AttemptTruth(
                task_id=envelope["id"],
                number=envelope["attempt"],
                worker=self.worker_id,
                state=state,
                ready_us=epoch_us(due_at(envelope)),
                started_us=epoch_us(signals.started_at),
                ended_us=epoch_us(signals.ended_at or self.clock()),
                received_us=epoch_us(signals.received_at),
                due_us=self.fleet.first_due[_key(run.delivery)],
                next_retry_us=epoch_us(run.next_retry),
                cut=cut,
                heard=not cut or _key(run.delivery) in self.emitter.heard,
                running_us=epoch_us(run.running_at),
                stored=run.stored,
                stored_us=epoch_us(run.stored_at),
                stood_us=run.written_us,
                named=run.named,
            )
        )
        if state == TaskState.FAILED:
            self.fleet.abandoned(envelope)
        elif state not in {TaskState.RETRIED, LOST}:
            self.fleet.finished(envelope["id"])

    def _expired(self, at: str | None) -> bool:
        return at is not None and datetime.fromisoformat(at) < self.clock()


def _key(delivery: Delivery) -> tuple[str, int]:
    return delivery.envelope["id"], delivery.envelope["attempt"]


def _class_of(error: object) -> str:
    return str(error).partition(":")[0]
