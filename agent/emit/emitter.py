"""The signals of Stem's catalogue, and what an emitter does with one that cannot be sent."""

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Generic

from agent.emit.attempt import AttemptSignals, Sent
from agent.emit.composer import Composer, Envelope, iso
from agent.stem.catalogue import SignalName

logger = logging.getLogger("agent.emit")

_WARN_SECONDS = 60.0
_SILENCE_SECONDS = 5.0


class Emitter(ABC, Generic[Sent]):
    """The signals of Stem's catalogue; subclasses know how to send."""

    def __init__(self, composer: Composer) -> None:
        self.composer = composer
        self.dropped = 0
        self._warn_after = 0.0
        self._silent_until = 0.0

    @abstractmethod
    def send(self, payload: bytes | None) -> Sent:
        """Publish one payload on this emitter's channel; None is one that could not be composed."""

    def emit(
        self,
        name: SignalName | str,
        attributes: Mapping[str, Any],
        *,
        occurred_at: datetime | None = None,
        envelope: Envelope | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> Sent:
        """Send any signal; the methods below know the attributes of each. Never raises for what it is given."""
        payload = None
        try:
            payload = self.composer.compose(name, attributes, occurred_at=occurred_at, envelope=envelope, extra=extra)
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            self._drop(error)
        return self.send(payload)

    @property
    def _silent(self) -> bool:
        """Whether Redis failed a moment ago, so that asking again would only delay the worker."""
        return time.monotonic() < self._silent_until

    def _lose(self, error: Exception) -> None:
        """Drop a signal that Redis did not take, and leave Redis alone for a while."""
        self._silent_until = time.monotonic() + _SILENCE_SECONDS
        self._drop(error)

    def _drop(self, error: Exception) -> None:
        self.dropped += 1
        if time.monotonic() >= self._warn_after:
            self._warn_after = time.monotonic() + _WARN_SECONDS
            logger.warning("signal dropped: %s (%d so far)", error, self.dropped)

    # --- tasks -----------------------------------------------------------------------------------------------------

    def attempt(self, envelope: Envelope) -> AttemptSignals[Sent]:
        """Return the signals of one attempt; its number is the envelope's."""
        return AttemptSignals(self, envelope)

    def before_publish(self, envelope: Envelope) -> Sent:
        """`before-task-publish`; like Stem's, it happened at `enqueuedAt`."""
        return self._publish(SignalName.BEFORE_TASK_PUBLISH, envelope)

    def after_publish(self, envelope: Envelope) -> Sent:
        """`after-task-publish`; like Stem's, it says `enqueuedAt` too."""
        return self._publish(SignalName.AFTER_TASK_PUBLISH, envelope)

    def _publish(self, name: SignalName, envelope: Envelope) -> Sent:
        attributes = {
            "taskId": envelope.get("id"),
            "taskName": envelope.get("name"),
            "queue": envelope.get("queue"),
            "attempt": envelope.get("attempt", 0),
        }
        at = datetime.fromisoformat(envelope["enqueuedAt"]) if envelope.get("enqueuedAt") else None
        return self.emit(name, attributes, occurred_at=at, envelope=envelope)

    # --- workers ---------------------------------------------------------------------------------------------------

    def worker(
        self,
        name: SignalName | str,
        *,
        queues: Sequence[str] = (),
        broadcasts: Sequence[str] = (),
        reason: str | None = None,
    ) -> Sent:
        """`worker-init`, `worker-ready`, `worker-stopping` or `worker-shutdown`."""
        attributes = {
            "workerId": self.composer.worker_id or None,
            "queues": list(queues),
            "broadcasts": list(broadcasts),
            "reason": reason,
        }
        return self.emit(name, attributes)

    def heartbeat(self, *, queues: Sequence[str] = (), broadcasts: Sequence[str] = ()) -> Sent:
        """`worker-heartbeat`: numbered, so that a loss at the end of a burst is noticed within one beat."""
        now = self.composer.clock()
        attributes = {
            "workerId": self.composer.worker_id or None,
            "queues": list(queues),
            "broadcasts": list(broadcasts),
            "timestamp": iso(now),
        }
        return self.emit(SignalName.WORKER_HEARTBEAT, attributes, occurred_at=now)

    def worker_child(self, name: SignalName | str, isolate_id: int) -> Sent:
        """`worker-child-init` or `worker-child-shutdown`."""
        return self.emit(name, {"workerId": self.composer.worker_id or None, "isolateId": isolate_id})

    # --- schedules, workflows, control -----------------------------------------------------------------------------

    def schedule_due(self, entry_id: str, tick_at: datetime) -> Sent:
        """`schedule-entry-due`."""
        attributes = {"entryId": entry_id, "tickAt": iso(tick_at)}
        return self.emit(SignalName.SCHEDULE_ENTRY_DUE, attributes, occurred_at=tick_at)

    def schedule_dispatched(self, entry_id: str, scheduled_for: datetime, executed_at: datetime) -> Sent:
        """`schedule-entry-dispatched`; the drift is what lies between the two times."""
        attributes = {
            "entryId": entry_id,
            "scheduledFor": iso(scheduled_for),
            "executedAt": iso(executed_at),
            "driftMs": round((executed_at - scheduled_for).total_seconds() * 1000),
        }
        return self.emit(SignalName.SCHEDULE_ENTRY_DISPATCHED, attributes, occurred_at=executed_at)

    def schedule_failed(self, entry_id: str, scheduled_for: datetime, error: str, stack_trace: str = "") -> Sent:
        """`schedule-entry-failed`; like Stem's, it happened when it was scheduled for."""
        attributes = {
            "entryId": entry_id,
            "scheduledFor": iso(scheduled_for),
            "error": error,
            "stackTrace": stack_trace,
        }
        return self.emit(SignalName.SCHEDULE_ENTRY_FAILED, attributes, occurred_at=scheduled_for)

    def workflow(
        self,
        name: SignalName | str,
        run_id: str,
        workflow: str,
        status: str,
        *,
        step: str | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> Sent:
        """One of the six `workflow-run-*` signals."""
        attributes = {"runId": run_id, "workflow": workflow, "status": status, "step": step, "metadata": metadata}
        return self.emit(name, attributes)

    def control(self, name: SignalName | str, request_id: str, kind: str, **details: Any) -> Sent:
        """`control-command-received` (`targets`, `timeoutMs`) or `-completed` (`status`, `error`); no payloads."""
        attributes = {"workerId": self.composer.worker_id or None, "requestId": request_id, "type": kind, **details}
        return self.emit(name, attributes)
