"""Stem's workflow runtime, as far as its traces on Redis go: runs, steps, a sleep, wake-ups, failing steps."""

import asyncio
import json
import random
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from agent.demo.fleet.broker import Delivery
from agent.demo.fleet.client import Client
from agent.demo.fleet.envelopes import Envelope, epoch_ms, epoch_us, new_envelope, to_json, uuid7
from agent.demo.fleet.kinds import ORDER, STACK, STEPS, WORKFLOW_QUEUE, WORKFLOW_RETRIES, WORKFLOW_TASK
from agent.demo.truth import RunTruth
from agent.emit import iso
from agent.stem.catalogue import SignalName

if TYPE_CHECKING:
    from agent.demo.fleet.fleet import Fleet

POLL_SECONDS = 0.5
LEASE_SECONDS = 30.0


class WorkflowRuntime:
    """Starts runs, advances them step by step inside runner tasks, wakes those that slept long enough."""

    def __init__(self, fleet: "Fleet", publisher: Client, owner: str) -> None:
        self._redis = fleet.redis
        self._keys = fleet.keys
        self._publisher = publisher
        self._clock = publisher.clock
        self._fleet = fleet
        self._owner = owner

    async def start(self, *, traced: bool) -> None:
        """Create a run, signal it, and enqueue its first runner."""
        now = self._clock()
        run_id = uuid7(now)
        run = {
            "workflow": ORDER.name,
            "status": "running",
            "params": to_json({"__stem.workflow.runtime": {"workflowId": ORDER.name, **_queues()}}),
            "created_at": iso(now),
            "updated_at": iso(now),
        }
        await self._redis.hset(self._keys.workflow(run_id), mapping=run)
        self._fleet.expect(run_id)
        runner = self._runner(run_id, "start")
        self._fleet.truth.runs[run_id] = RunTruth(run_id, ORDER.name, runner["id"], epoch_us(now))
        await self._signal(SignalName.WORKFLOW_RUN_STARTED, run_id, "running", at=now)
        await self._publisher.enqueue(runner, traced=traced)

    async def advance(self, delivery: Delivery, chance: random.Random) -> str | None:
        """Run a run's steps until it sleeps or is completed; return the error of a step that fails."""
        run_id = delivery.envelope["args"]["runId"]
        key, steps = self._keys.workflow(run_id), self._keys.workflow_steps(run_id)
        truth = self._fleet.truth.runs[run_id]
        if await self._redis.hget(key, "status") != "running":
            return None  # a lease's copy, delivered long after
        for index in range(await self._redis.hlen(steps), len(STEPS)):
            step = STEPS[index]
            lease = epoch_ms(self._clock() + timedelta(seconds=LEASE_SECONDS))
            await self._update(key, owner_id=self._owner, lease_expires_at=str(lease))
            await self._publisher.broker.send_back(delivery, LEASE_SECONDS)
            await self._resumed(run_id, step.name)
            await asyncio.sleep(step.run_s)
            if chance.random() < step.fail:
                error = f"PaymentDeclined: step {step.name} failed"
                truth.failures += 1
                await self._update(key, last_error=to_json({"error": error, "stack": STACK}))
                metadata = {"error": error, "stack": STACK}
                await self._signal(SignalName.WORKFLOW_RUN_FAILED, run_id, "failed", step=step.name, metadata=metadata)
                return error
            await self._redis.hset(steps, step.name, to_json({"ok": True}))
            await self._redis.zadd(self._keys.workflow_order(run_id), {step.name: index})
            if step.then_sleep_s:
                await self._suspend(run_id, step.name, step.then_sleep_s)
                return None
        await self._update(key, status="completed", result=to_json({"ok": True}))
        if truth.state == "completed":
            return None  # two copies of a lease at once: Stem's own lease lets only one of them end the run
        now = self._clock()
        truth.state, truth.ended_us = "completed", epoch_us(now)
        done = {"result": {"ok": True}}
        await self._signal(SignalName.WORKFLOW_RUN_COMPLETED, run_id, "completed", metadata=done, at=now)
        self._fleet.finished(run_id)
        return None

    async def poll(self) -> None:
        """Wake what is due, for ever: whoever takes a run out of the set enqueues its runner."""
        while True:
            await asyncio.sleep(POLL_SECONDS)
            for run_id in await self._redis.zrangebyscore(self._keys.workflows_due, "-inf", epoch_ms(self._clock())):
                if await self._redis.zrem(self._keys.workflows_due, run_id):
                    # Shielded, as the broker's drain is: a run between set and queue would be nowhere.
                    await asyncio.shield(asyncio.ensure_future(self._wake(run_id)))

    async def _wake(self, run_id: str) -> None:
        key = self._keys.workflow(run_id)
        if self._fleet.truth.runs[run_id].state == "completed":
            return
        suspension = json.loads(await self._redis.hget(key, "suspension_data") or "{}")
        await self._update(key, status="running", resume_at="", suspension_data="")
        await self._publisher.enqueue(self._runner(run_id, "due"), traced=False)
        await self._resumed(run_id, suspension.get("step"))

    async def _suspend(self, run_id: str, step: str, seconds: float) -> None:
        self._fleet.truth.runs[run_id].suspensions += 1
        due = self._clock() + timedelta(seconds=seconds)
        data = {"type": "sleep", "step": step, "resumeAt": iso(due)}
        key = self._keys.workflow(run_id)
        await self._update(key, status="suspended", resume_at=str(epoch_ms(due)), suspension_data=to_json(data))
        metadata = {"type": "sleep", "resumeAt": iso(due)}
        await self._signal(SignalName.WORKFLOW_RUN_SUSPENDED, run_id, "suspended", step=step, metadata=metadata)
        await self._redis.zadd(self._keys.workflows_due, {run_id: epoch_ms(due)})

    async def _resumed(self, run_id: str, step: str | None) -> None:
        self._fleet.truth.runs[run_id].resumptions += 1
        await self._signal(SignalName.WORKFLOW_RUN_RESUMED, run_id, "running", step=step)

    async def _update(self, key: str, **fields: str) -> None:
        await self._redis.hset(key, mapping={**fields, "updated_at": iso(self._clock())})

    async def _signal(
        self,
        name: SignalName,
        run_id: str,
        status: str,
        *,
        step: str | None = None,
        metadata: dict[str, Any] | None = None,
        at: datetime | None = None,
    ) -> None:
        attributes = {"runId": run_id, "workflow": ORDER.name, "status": status, "step": step, "metadata": metadata}
        await self._publisher.emitter.emit(name, attributes, occurred_at=at)

    def _runner(self, run_id: str, reason: str) -> Envelope:
        meta = {
            "stem.workflow.runId": run_id,
            "stem.workflow.id": ORDER.name,
            "stem.workflow.name": ORDER.name,
            "stem.workflow.channel": "orchestration",
            "stem.workflow.continuation": reason != "start",
            "stem.workflow.continuationReason": reason,
            **{f"stem.workflow.{name}": queue for name, queue in _queues().items()},
        }
        return new_envelope(
            *(WORKFLOW_TASK, WORKFLOW_QUEUE),
            args={"runId": run_id},
            meta=meta,
            max_retries=WORKFLOW_RETRIES,
            now=self._clock(),
        )


def _queues() -> dict[str, str]:
    return {"orchestrationQueue": WORKFLOW_QUEUE, "continuationQueue": WORKFLOW_QUEUE, "executionQueue": "default"}
