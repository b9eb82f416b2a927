"""Publishing as Stem does: `Stem.enqueue` with its signals and its record, the canvas without signals."""

import asyncio
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from agent.correlate import ids
from agent.demo.fleet.backend import ENCODER, Backend
from agent.demo.fleet.broker import Broker
from agent.demo.fleet.envelopes import Envelope, epoch_us, new_envelope, span_of, trace_of, traceparent, uuid7
from agent.demo.fleet.faults import skewed
from agent.demo.fleet.kinds import GALLERY_SIZE, Kind
from agent.demo.truth import TaskTruth, Via
from agent.emit import iso
from agent.stem.catalogue import TaskState

if TYPE_CHECKING:
    from agent.demo.fleet.fleet import Fleet


class Client:
    """What a process has: a clock that may be wrong, broker and backend by that clock, an emitter that speaks for it.

    `skew` is the share of the fleet's skew by which the clock is fast.
    """

    def __init__(self, fleet: "Fleet", emitter: str, worker_id: str = "", *, skew: float) -> None:
        self.skew_s = skew * fleet.faults.skew_s
        self.clock = skewed(self.skew_s)
        self.broker = Broker(fleet.redis, fleet.keys, self.clock)
        self.backend = Backend(fleet.redis, fleet.keys, self.clock, fleet.wrote)
        self.emitter = fleet.emitter(emitter, worker_id, self.clock)
        self._fleet = fleet

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
        group_id, chord_id = f"grp-{uuid7(self.clock())}", f"chord-{uuid7(self.clock())}"
        last = new_envelope(
            *(callback.name, callback.queue),
            headers={"stem-chord-id": chord_id},
            meta={"chordId": chord_id},
            now=self.clock(),
        )
        await self.backend.init_group(group_id, GALLERY_SIZE, {"stem.chord.callbackEnvelope": last})
        for _ in range(GALLERY_SIZE):
            envelope = new_envelope(
                *(member.name, member.queue),
                headers={"stem-group-id": group_id},
                meta={"groupId": group_id},
                now=self.clock(),
            )
            await self.send(envelope, {"groupId": group_id})

    async def call_back(self, callback: Envelope) -> None:
        """Publish a chord's callback: enqueued now, whatever its envelope said when the chord was made."""
        now = iso(self.clock())
        callback["enqueuedAt"] = now
        await self.send(callback, {"chordId": callback["meta"]["chordId"], "dispatchedAt": now})

    async def chain(self, links: Sequence[Kind]) -> None:
        """Publish tasks one after the other, each when the one before has succeeded."""
        chain_id = f"chain-{uuid7(self.clock())}"
        self._fleet.expect(chain_id)
        before: dict[str, Any] = {}
        for index, kind in enumerate(links):
            envelope = new_envelope(
                *(kind.name, kind.queue),
                headers={"stem-chain-id": chain_id, "stem-chain-index": str(index)},
                meta={"chainId": chain_id, "chainIndex": index, **before},
                now=self.clock(),
            )
            end = self._fleet.end_of(envelope["id"])
            await self.send(envelope, {})
            if not await end:
                break
            before = {"chainPrevResult": {"ok": True}}
        self._fleet.finished(chain_id)

    async def _publish(self, envelope: Envelope, via: Via, *, traced: bool = False) -> None:
        """Publish, and write the task down: both, or neither, even when the process is killed meanwhile."""

        async def whole() -> None:
            self._record(envelope, via, traced=traced)
            await self.broker.publish(envelope)

        await asyncio.shield(asyncio.ensure_future(whole()))

    def _record(self, envelope: Envelope, via: Via, *, traced: bool) -> None:
        meta, header = envelope["meta"], span_of(envelope)
        root, parent_id = meta.get("stem.rootTaskId"), meta.get("stem.parentTaskId")
        run_id = meta.get("stem.workflow.runId")
        derived = (root or parent_id or run_id or envelope["id"]).replace("-", "")
        task = TaskTruth(
            task_id=envelope["id"],
            name=envelope["name"],
            queue=envelope["queue"],
            via=via,
            trace_id=trace_of(envelope) or derived,
            span_id=header if traced else "",
            enqueued_us=epoch_us(datetime.fromisoformat(envelope["enqueuedAt"])),
            parent_task_id=parent_id,
            root_task_id=root,
            group_id=envelope["headers"].get("stem-group-id"),
            workflow_run_id=run_id,
            schedule_id=envelope["headers"].get("schedule-id"),
            send_parent="" if traced else self._send_parent(parent_id, header),
            inherited="" if traced else header,
        )
        self._fleet.truth.tasks[task.task_id] = task
        self._fleet.expect(task.task_id)

    def _send_parent(self, parent_id: str | None, inherited: str) -> str:
        """Return the span under which the agent puts the `send` of a task whose publisher made no span."""
        if parent_id is None:
            return ""
        traced = self._fleet.truth.tasks[parent_id].traced
        return inherited if traced else ids.span_id("send", parent_id).hex()
