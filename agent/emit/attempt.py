"""The signals of one attempt, each repeating what the ones before it said."""

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from agent.emit.composer import Envelope, iso
from agent.stem.catalogue import SignalName, TaskState

if TYPE_CHECKING:
    from agent.emit.emitter import Emitter

Sent = TypeVar("Sent")
"""What sending a signal returns: nothing, or something to await."""


class AttemptSignals(Generic[Sent]):
    """The signals of one attempt, each repeating what the ones before it said.

    `received_at`, `started_at` and `ended_at` are the times that were signalled, None until then.
    """

    def __init__(self, emitter: "Emitter[Sent]", envelope: Envelope) -> None:
        self._emitter = emitter
        self._envelope = envelope
        self._number = int(envelope.get("attempt", 0))
        self.received_at: datetime | None = None
        self.started_at: datetime | None = None
        self.ended_at: datetime | None = None
        self._error: str | None = None

    def received(self) -> Sent:
        """`task-received`: the worker took the task. Stem's own attributes lack the attempt here."""
        now = self._emitter.composer.clock()
        self.received_at = self.received_at or now  # the first time is the truth, should it be said again
        return self._emit(SignalName.TASK_RECEIVED, {}, at=now, numbered=False, repeat=False)

    def prerun(self) -> Sent:
        """`task-prerun`: the handler is about to run."""
        now, again = self._emitter.composer.clock(), self.started_at is not None
        self.started_at = self.started_at or now
        return self._emit(SignalName.TASK_PRERUN, {}, at=now, started=again)

    def succeeded(self) -> Sent:
        """`task-succeeded`."""
        return self._end(SignalName.TASK_SUCCEEDED, {})

    def failed(self, error: str, stack_trace: str | None = None) -> Sent:
        """`task-failed`: for good. `error` is the error's text, beginning with its class."""
        self._error = error
        return self._end(SignalName.TASK_FAILED, {"error": error, "stackTrace": stack_trace})

    def retry(self, reason: str, next_retry_at: datetime) -> Sent:
        """`task-retry`: the attempt failed, the next is due at `next_retry_at`."""
        self._error = reason
        emitted = iso(self._emitter.composer.clock())
        details = {"reason": reason, "emittedAt": emitted, "nextRetryAt": iso(next_retry_at)}
        return self._end(SignalName.TASK_RETRY, details)

    def revoked(self, reason: str) -> Sent:
        """`task-revoked`: before or while it ran. Stem's own attributes lack the attempt here."""
        self._error = reason
        return self._end(SignalName.TASK_REVOKED, {"reason": reason}, numbered=False)

    def postrun(self, state: TaskState | str) -> Sent:
        """`task-postrun`: always last for an attempt that ran; it repeats the end."""
        ended = iso(self.ended_at) if self.ended_at else None
        return self._emit(
            SignalName.TASK_POSTRUN, {"state": str(state)}, extra={"endedAt": ended, "error": self._error}
        )

    def _end(self, name: SignalName, details: Mapping[str, Any], *, numbered: bool = True) -> Sent:
        self.ended_at = now = self._emitter.composer.clock()
        return self._emit(name, details, at=now, numbered=numbered)

    def _emit(
        self,
        name: SignalName,
        details: Mapping[str, Any],
        *,
        at: datetime | None = None,
        numbered: bool = True,
        started: bool = True,
        repeat: bool = True,
        extra: Mapping[str, Any] | None = None,
    ) -> Sent:
        worker_id = self._emitter.composer.worker_id or None
        attributes = {
            "taskId": self._envelope.get("id"),
            "taskName": self._envelope.get("name"),
            "queue": self._envelope.get("queue"),
            "workerId": worker_id,
            "attempt": self._number if numbered else None,
            **details,
        }
        repeated = {
            "attempt": self._number,
            "workerId": worker_id,
            "receivedAt": iso(self.received_at) if self.received_at and repeat else None,
            "startedAt": iso(self.started_at) if self.started_at and started else None,
        }
        return self._emitter.emit(
            name, attributes, occurred_at=at, envelope=self._envelope, extra={**repeated, **(extra or {})}
        )
