"""A worker as Stem's: it takes whatever its queues have, and every state it stores and every signal it sends is Stem's.

The order of each ending is that of `worker.dart`: acknowledge, store, signal, follow up, `task-postrun`.
"""

import asyncio
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from agent.core.tasks import cancel
from agent.demo.fleet.backend import task_error
from agent.demo.fleet.broker import Delivery
from agent.demo.fleet.client import Client
from agent.demo.fleet.envelopes import due_at, epoch_us, lineage_of, new_envelope, trace_of
from agent.demo.fleet.heartbeat import Heart
from agent.demo.fleet.kinds import KIND, QUEUES, STACK, WORKFLOW_TASK, Kind
from agent.demo.fleet.workflows import WorkflowRuntime
from agent.demo.truth import LOST, AttemptTruth, Outcome
from agent.emit import AttemptSignals, iso, utc_now
from agent.stem.catalogue import SignalName, TaskState

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from agent.demo.fleet.faults import FaultyEmitter
    from agent.demo.fleet.fleet import Fleet

CONCURRENCY = 40
PREFETCH = 80
BLOCK_SECONDS = 0.25
CLAIM_SECONDS = 4.0
"""Stem's default is 30 s: too long for a demo in which a killed worker's tasks are to be taken over."""
LEASE_SECONDS = 30.0
MAX_RUN_SECONDS = 2.5
LIMIT_SECONDS = 0.3
RETRY_SECONDS = 0.3


@dataclass(slots=True, eq=False)
class Run:
    """An attempt under way: what a kill would cut off. `leaving`: it is being acknowledged, for good."""

    delivery: Delivery
    signals: "AttemptSignals[Awaitable[None]]"
    state: str = LOST
    leaving: bool = False


class TaskFailed(Exception):  # noqa: N818 - not an error of ours
    """What a handler throws; `final` when no retry may follow."""

    def __init__(self, text: str, *, final: bool) -> None:
        super().__init__(text)
        self.final = final


class TaskRevoked(Exception):  # noqa: N818
    """The task was revoked while it ran."""


class Worker:
    """One worker process: its queues, its isolates, its heart, and the workflow runtime inside it."""

    def __init__(self, fleet: "Fleet", index: int) -> None:
        self.fleet = fleet
        self.worker_id = f"worker-{index}"
        self.emitter: FaultyEmitter = fleet.emitter(f"pod-{index}", self.worker_id)
        self.client = Client(fleet, self.emitter)
        self.workflows = WorkflowRuntime(fleet, self.client, self.worker_id)
        self.heart = Heart(self.worker_id, fleet.namespace, CONCURRENCY, PREFETCH)
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
            await self.fleet.broker.listen(queue)
            self._loops.append(self.fleet.spawn(self._take(queue)))
        self._loops += [self.fleet.spawn(loop) for loop in (self._claim(), self._beat(), self.workflows.poll())]

    async def close(self) -> None:
        """Stop gracefully, as Stem does: take nothing more, finish what runs."""
        await self.emitter.worker(SignalName.WORKER_STOPPING, queues=QUEUES, reason="warm")
        await cancel(self._loops)
        await asyncio.gather(*self._handling)
        await self.emitter.worker(SignalName.WORKER_SHUTDOWN, queues=QUEUES, reason="warm")
        await self.emitter.close()

    async def kill(self) -> None:
        """Vanish without a farewell; what was pending stays pending until another worker claims it."""
        await cancel([*self._loops, *self._handling])
        await self.emitter.kill()
        self.fleet.truth.killed_workers.append(self.worker_id)
        for run in list(self._runs):
            self._record(run)
            # Acknowledged, and not sent on: Stem forgets such a task. A workflow's runner comes back when the copy of
            # its lease falls due: too late to wait for.
            if run.leaving or run.delivery.envelope["name"] == WORKFLOW_TASK:
                self.fleet.abandoned(run.delivery.envelope)

    async def _take(self, queue: str) -> None:
        while True:
            for delivery in await self.fleet.broker.read(queue, self.worker_id, count=PREFETCH, block_s=BLOCK_SECONDS):
                self._begin(delivery)

    async def _claim(self) -> None:
        while True:
            await asyncio.sleep(CLAIM_SECONDS)
            for queue in QUEUES:
                for delivery in await self.fleet.broker.claim(queue, self.worker_id, idle_s=CLAIM_SECONDS):
                    self._begin(delivery)

    async def _beat(self) -> None:
        async for beat in self.heart.beats(self.fleet.broker):
            await self.emitter.heartbeat(queues=QUEUES)
            await self.fleet.redis.publish(self.heart.channel, beat)
            await self.fleet.backend.heartbeat(self.worker_id, beat)

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
        if kind is None and envelope["name"] != WORKFLOW_TASK:
            self._outcome(delivery, "unregistered")
            fleet.truth.dead_letters.append(envelope["id"])
            fleet.finished(envelope["id"])
            await fleet.broker.dead_letter(delivery, "unregistered-task", None)
        elif kind and not delivery.claimed and fleet.chance.random() < kind.revoke / 2:
            # Nobody revokes what was cut off: `task-revoked` names neither attempt nor start, so that one for the
            # second delivery to a worker cannot be told from one for the first.
            await self._revoke(delivery, "revoked by the demo")
        elif _expired(envelope["meta"].get("stem.expiresAt")):
            self._outcome(delivery, "expired")
            fleet.finished(envelope["id"])
            await fleet.broker.ack(delivery)
            error = task_error("TaskExpired", "task expired before it ran")
            meta = {"worker": self.worker_id, "expiredAt": iso(utc_now()), "stem.expired": True}
            await fleet.backend.write(envelope, TaskState.CANCELLED, meta, error=error)
        elif kind and fleet.chance.random() < kind.limited:
            await fleet.broker.send_back(delivery, LIMIT_SECONDS)
            meta = {"rateLimited": True, "retryAfterMs": round(LIMIT_SECONDS * 1000)}
            await fleet.backend.write(envelope, TaskState.RETRIED, meta)
            self._outcome(delivery, "rate-limited")
        else:
            await self._execute(delivery, kind)

    async def _revoke(self, delivery: Delivery, reason: str) -> None:
        envelope = delivery.envelope
        run = self._run(delivery)
        await self.fleet.backend.revoke(self.fleet.namespace, envelope["id"], reason)
        run.leaving, run.state = True, TaskState.CANCELLED
        await self.fleet.broker.ack(delivery)
        await self._store_revoked(run, reason)
        await run.signals.revoked(reason)
        self._record(run)

    async def _store_revoked(self, run: Run, reason: str) -> None:
        meta = {"worker": self.worker_id, "revoked": True, "revokedReason": reason, "revokedBy": "demo"}
        await self.fleet.backend.write(run.delivery.envelope, TaskState.CANCELLED, meta)

    # --- execution -------------------------------------------------------------------------------------------------

    async def _execute(self, delivery: Delivery, kind: Kind | None) -> None:
        run = self._run(delivery)
        envelope, signals = delivery.envelope, run.signals
        await signals.received()
        meta = {
            "task": envelope["name"],
            "stem.task": envelope["name"],
            "queue": envelope["queue"],
            "stem.queue": envelope["queue"],
            "worker": self.worker_id,
            "startedAt": iso(utc_now()),
        }
        await self.fleet.backend.write(envelope, TaskState.RUNNING, meta)
        await signals.prerun()
        self.heart.started(delivery.queue)
        lease = asyncio.create_task(self._hold_lease(delivery))
        try:
            async with self._isolates:
                await self._call(delivery, kind)
        except TaskFailed as error:
            if not error.final and envelope["attempt"] < envelope["maxRetries"]:
                await self._retry(run, str(error))
            else:
                await self._fail(run, str(error), meta)
        except TaskRevoked as error:
            run.leaving, run.state = True, TaskState.CANCELLED
            await self.fleet.broker.ack(delivery)
            await self._store_revoked(run, str(error))
            await signals.revoked(str(error))
        else:
            await self._succeed(run, kind, meta)
        finally:
            lease.cancel()
            self.heart.ended(delivery.queue, run.state)
        await signals.postrun(run.state)
        self._record(run)

    async def _call(self, delivery: Delivery, kind: Kind | None) -> None:
        """Be the handler."""
        chance, envelope = self.fleet.chance, delivery.envelope
        if kind is None:
            if error := await self.workflows.advance(delivery, chance):
                raise TaskFailed(error, final=False)
            return
        await asyncio.sleep(min(chance.lognormvariate(0, 0.5) * kind.run_s, MAX_RUN_SECONDS))
        if chance.random() < kind.revoke / 2:
            await self.fleet.backend.revoke(self.fleet.namespace, envelope["id"], "revoked while running")
            raise TaskRevoked("revoked while running")
        harder = 1 + 4 * int(envelope["attempt"])  # what failed once is likely to fail again
        if chance.random() < kind.retry * harder:
            raise TaskFailed(kind.error, final=False)
        if chance.random() < kind.fail * harder:
            raise TaskFailed(kind.error, final=True)

    async def _succeed(self, run: Run, kind: Kind | None, meta: dict[str, str]) -> None:
        delivery, envelope = run.delivery, run.delivery.envelope
        run.leaving, run.state = True, TaskState.SUCCEEDED
        await self.fleet.broker.ack(delivery)
        meta = {**meta, "completedAt": iso(utc_now())}
        status = await self.fleet.backend.write(envelope, TaskState.SUCCEEDED, meta, payload={"ok": True})
        group = envelope["meta"].get("groupId")
        callback = await self.fleet.backend.add_group_result(group, status) if group else None
        await run.signals.succeeded()
        if callback:
            await self.client.call_back(callback)
        if kind and kind.then:
            await self._enqueue_child(delivery, KIND[kind.then])

    async def _enqueue_child(self, delivery: Delivery, kind: Kind) -> None:
        """`TaskContext.enqueue`. Half of the applications run OpenTelemetry, in producer and worker alike."""
        inherited = lineage_of(delivery.envelope)
        child = new_envelope(kind.name, kind.queue, headers=inherited.headers, meta=inherited.meta)
        await self.client.enqueue(child, traced=trace_of(delivery.envelope) is not None)

    async def _retry(self, run: Run, reason: str) -> None:
        envelope = run.delivery.envelope
        run.state = TaskState.RETRIED
        number, delay = envelope["attempt"], RETRY_SECONDS * 2 ** envelope["attempt"]
        due = await self.fleet.broker.send_back(run.delivery, delay, attempt=number + 1)
        meta = {"retryDelayMs": round(delay * 1000)}
        error = task_error(reason.partition(":")[0], reason, retryable=True, stack=STACK)
        await self.fleet.backend.write(envelope, TaskState.RETRIED, meta, error=error)
        await run.signals.retry(reason, due)

    async def _fail(self, run: Run, reason: str, meta: dict[str, str]) -> None:
        envelope = run.delivery.envelope
        run.leaving, run.state = True, TaskState.FAILED
        await self.fleet.broker.dead_letter(run.delivery, "max-retries-exhausted", {"error": reason})
        self.fleet.truth.dead_letters.append(envelope["id"])
        failed = {"worker": self.worker_id, "startedAt": meta["startedAt"], "failedAt": iso(utc_now())}
        error = task_error(reason.partition(":")[0], reason, stack=STACK)
        status = await self.fleet.backend.write(envelope, TaskState.FAILED, failed, error=error)
        if group := envelope["meta"].get("groupId"):
            await self.fleet.backend.add_group_result(group, status)
        await run.signals.failed(reason, STACK)

    async def _hold_lease(self, delivery: Delivery) -> None:
        while True:
            await asyncio.sleep(LEASE_SECONDS / 2)
            await self.fleet.broker.send_back(delivery, LEASE_SECONDS)

    # --- truth -----------------------------------------------------------------------------------------------------

    def _run(self, delivery: Delivery) -> Run:
        run = Run(delivery, self.emitter.attempt(delivery.envelope))
        self._runs.add(run)
        return run

    def _outcome(self, delivery: Delivery, what: str) -> None:
        self.fleet.truth.outcomes.append(Outcome(delivery.envelope["id"], what, epoch_us(utc_now())))

    def _record(self, run: Run) -> None:
        """Write down what happened to an attempt: cut off, if it began and signalled no end."""
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
                ended_us=epoch_us(signals.ended_at),
            )
        )
        if state == TaskState.FAILED:
            self.fleet.abandoned(envelope)
        elif state not in {TaskState.RETRIED, LOST}:
            self.fleet.finished(envelope["id"])


def _expired(at: str | None) -> bool:
    return at is not None and datetime.fromisoformat(at) < utc_now()
