"""Publishing as Stem does: `Stem.enqueue` with its signals and its record, the canvas without signals."""

import asyncio
from datetime import datetime
from typing import TYPE_CHECKING, Any

from agent.demo.fleet.backend import ENCODER
from agent.demo.fleet.envelopes import Envelope, epoch_us, new_envelope, trace_of, traceparent, uuid7
from agent.demo.fleet.kinds import GALLERY_SIZE, Kind
from agent.demo.truth import TaskTruth, Via
from agent.emit import iso, utc_now
from agent.stem.catalogue import TaskState

if TYPE_CHECKING:
    from agent.demo.fleet.faults import FaultyEmitter
    from agent.demo.fleet.fleet import Fleet


class Client:
    """What a process publishes with: the fleet's broker and backend, and the emitter that speaks for the process."""

    def __init__(self, fleet: "Fleet", emitter: "FaultyEmitter") -> None:
        self.broker = fleet.broker
        self.backend = fleet.backend
        self.emitter = emitter
        self.truth = fleet.truth
        self._expect = fleet.expect

    async def enqueue(self, envelope: Envelope, *, traced: bool) -> None:
        """`Stem.enqueue`: signals before and after; the `queued` record only once the broker has the task.

        A fast worker's record can therefore be overwritten by a late `queued`, as in Stem.
        """
        if traced:
            envelope["headers"]["traceparent"] = traceparent(trace_of(envelope))
        await self.emitter.before_publish(envelope)
        await self._publish(envelope, Via.STEM, traced=traced)
        meta = {"queue": envelope["queue"], "maxRetries": envelope["maxRetries"], "__stemResultEncoder": ENCODER}
        await self.backend.write(envelope, TaskState.QUEUED, meta)
        await self.emitter.after_publish(envelope)

    async def send(self, envelope: Envelope, meta: dict[str, Any]) -> None:
        """Publish as the canvas does: no signals, no span; `meta` is what its record says beside the queue."""
        await self._publish(envelope, Via.CANVAS)
        await self.backend.write(envelope, TaskState.QUEUED, {"queue": envelope["queue"], **meta})

    async def dispatch(self, envelope: Envelope) -> None:
        """Publish as Beat does: no signals, no span, no record."""
        await self._publish(envelope, Via.BEAT)

    async def chord(self, member: Kind, callback: Kind) -> None:
        """Publish a group of tasks with a callback for when all of them succeeded."""
        group_id, chord_id = f"grp-{uuid7(utc_now())}", f"chord-{uuid7(utc_now())}"
        last = new_envelope(
            callback.name, callback.queue, headers={"stem-chord-id": chord_id}, meta={"chordId": chord_id}
        )
        await self.backend.init_group(group_id, GALLERY_SIZE, {"stem.chord.callbackEnvelope": last})
        for _ in range(GALLERY_SIZE):
            envelope = new_envelope(
                *(member.name, member.queue),
                headers={"stem-group-id": group_id},
                meta={"groupId": group_id},
            )
            await self.send(envelope, {"groupId": group_id})

    async def call_back(self, callback: Envelope) -> None:
        """Publish a chord's callback: enqueued now, whatever its envelope said when the chord was made."""
        now = iso(utc_now())
        callback["enqueuedAt"] = now
        await self.send(callback, {"chordId": callback["meta"]["chordId"], "dispatchedAt": now})

    async def _publish(self, envelope: Envelope, via: Via, *, traced: bool = False) -> None:
        """Publish, and write the task down: both, or neither, even when the process is killed meanwhile."""

        async def whole() -> None:
            self._record(envelope, via, traced=traced)
            await self.broker.publish(envelope)

        await asyncio.shield(asyncio.ensure_future(whole()))

    def _record(self, envelope: Envelope, via: Via, *, traced: bool) -> None:
        headers, meta = envelope["headers"], envelope["meta"]
        root, parent = meta.get("stem.rootTaskId"), meta.get("stem.parentTaskId")
        run_id = meta.get("stem.workflow.runId")
        derived = (root or parent or run_id or envelope["id"]).replace("-", "")
        task = TaskTruth(
            task_id=envelope["id"],
            name=envelope["name"],
            queue=envelope["queue"],
            via=via,
            trace_id=trace_of(envelope) or derived,
            span_id=headers["traceparent"].split("-")[2] if traced else "",
            enqueued_us=epoch_us(datetime.fromisoformat(envelope["enqueuedAt"])),
            parent_task_id=parent,
            root_task_id=root,
            group_id=headers.get("stem-group-id"),
            workflow_run_id=run_id,
            schedule_id=headers.get("schedule-id"),
        )
        self.truth.tasks[task.task_id] = task
        self._expect(task.task_id)
