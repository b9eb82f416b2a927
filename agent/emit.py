"""The other end of the wire: a worker's signal emitter, for Python workers, tests and the demo.

    emitter = SignalEmitter.connect("redis://localhost:6379/0", worker_id="worker-1", emitter="pod-7")
    task = emitter.attempt(envelope)          # Stem's Envelope.toJson as a dict; `args` never leave
    task.received()
    task.prerun()
    task.succeeded()
    task.postrun("succeeded")

`AsyncSignalEmitter` is the same with `await` before every signal. Each signal carries every field of the wire format:
later signals of an attempt repeat what the earlier ones said, and `seq` is assigned before anything can be dropped, so
that the agent notices every loss. A worker must never suffer from its telemetry: what Redis does not take within two
seconds, and everything in the five seconds after that, is dropped, counted in `dropped`, and told of once a minute.
"""

import itertools
import json
import logging
import os
import secrets
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Generic, Self, TypeVar

import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.retry import Retry

from agent.stem.catalogue import SignalName, TaskState
from agent.stem.channels import signal_channel

logger = logging.getLogger("agent.emit")

Envelope = Mapping[str, Any]
Sent = TypeVar("Sent")
"""What sending a signal returns: nothing, or something to await."""

_WARN_SECONDS = 60.0
_TIMEOUT_SECONDS = 2.0
_SILENCE_SECONDS = 5.0


def utc_now() -> datetime:
    """Return the time as signals write it."""
    return datetime.now(UTC)


def iso(moment: datetime) -> str:
    """Return Dart's ISO-8601: six fraction digits and `Z`."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


class Composer:
    """Composes payloads and numbers them: everything about the wire but the sending.

    `emitter` names the process that speaks; it is `STEM_EMITTER`, else the host's name (a pod's name in Kubernetes).
    Raises `ValueError` for an emitter name with a colon.
    """

    def __init__(
        self,
        *,
        worker_id: str = "",
        namespace: str = "stem",
        emitter: str | None = None,
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        self.worker_id = worker_id
        self.namespace = namespace
        self.emitter = emitter or os.environ.get("STEM_EMITTER") or socket.gethostname()
        self.clock = clock
        self._begin_boot()
        if hasattr(os, "register_at_fork"):  # a child is another process: it must not go on with its parent's numbers
            os.register_at_fork(after_in_child=self._begin_boot)
        self.channel = signal_channel(namespace, self.emitter)

    def _begin_boot(self) -> None:
        self.boot = secrets.token_hex(8)
        self._numbers = itertools.count(1)
        self._process = {"pid": os.getpid(), "host": socket.gethostname()}

    def compose(
        self,
        name: SignalName | str,
        attributes: Mapping[str, Any],
        *,
        occurred_at: datetime | None = None,
        envelope: Envelope | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> bytes:
        """Return the next payload: one JSON object, UTF-8. Safe to call from several threads.

        Raises `ValueError`, `TypeError` or `KeyError` for what JSON cannot say; the number is taken all the same.
        """
        seq = next(self._numbers)
        signal: dict[str, Any] = {
            "eventName": str(name),
            "occurredAt": iso(occurred_at or self.clock()),
            "attributes": {key: value for key, value in attributes.items() if value is not None},
        }
        if envelope is not None:
            signal["envelope"] = {key: value for key, value in envelope.items() if key != "args"}
        if str(name).startswith("worker-"):
            signal |= self._process
        signal |= {key: value for key, value in (extra or {}).items() if value is not None}
        signal |= {"emitter": self.emitter, "boot": self.boot, "seq": seq}
        text = json.dumps(signal, separators=(",", ":"), ensure_ascii=False, allow_nan=False, default=str)
        return text.encode("utf-8", "replace")


class _Emitter(ABC, Generic[Sent]):
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

    def attempt(self, envelope: Envelope) -> "AttemptSignals[Sent]":
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
            "workerId": self.composer.worker_id,
            "queues": list(queues),
            "broadcasts": list(broadcasts),
            "reason": reason,
        }
        return self.emit(name, attributes)

    def heartbeat(self, *, queues: Sequence[str] = (), broadcasts: Sequence[str] = ()) -> Sent:
        """`worker-heartbeat`: numbered, so that a loss at the end of a burst is noticed within one beat."""
        now = self.composer.clock()
        attributes = {
            "workerId": self.composer.worker_id,
            "queues": list(queues),
            "broadcasts": list(broadcasts),
            "timestamp": iso(now),
        }
        return self.emit(SignalName.WORKER_HEARTBEAT, attributes, occurred_at=now)

    def worker_child(self, name: SignalName | str, isolate_id: int) -> Sent:
        """`worker-child-init` or `worker-child-shutdown`."""
        return self.emit(name, {"workerId": self.composer.worker_id, "isolateId": isolate_id})

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
        """`control-command-received` (`targets`, `payload`) or `-completed` (`status`, `response`, `error`)."""
        attributes = {"workerId": self.composer.worker_id, "requestId": request_id, "type": kind, **details}
        return self.emit(name, attributes)


class AttemptSignals(Generic[Sent]):
    """The signals of one attempt, each repeating what the ones before it said.

    `received_at`, `started_at` and `ended_at` are the times that were signalled, None until then.
    """

    def __init__(self, emitter: _Emitter[Sent], envelope: Envelope) -> None:
        self._emitter = emitter
        self._envelope = envelope
        self._number = int(envelope.get("attempt", 0))
        self.received_at: datetime | None = None
        self.started_at: datetime | None = None
        self.ended_at: datetime | None = None
        self._error: str | None = None

    def received(self) -> Sent:
        """`task-received`: the worker took the task. Stem's own attributes lack the attempt here."""
        self.received_at = now = self._emitter.composer.clock()
        return self._emit(SignalName.TASK_RECEIVED, {}, at=now, numbered=False, repeat=False)

    def prerun(self) -> Sent:
        """`task-prerun`: the handler is about to run."""
        self.started_at = now = self._emitter.composer.clock()
        return self._emit(SignalName.TASK_PRERUN, {}, at=now, started=False)

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
        worker_id = self._emitter.composer.worker_id
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


class SignalEmitter(_Emitter[None]):
    """Sends signals from plain code; each call returns when Redis has the signal, or has been given up on."""

    def __init__(self, client: "redis.Redis", composer: Composer) -> None:
        super().__init__(composer)
        self._client = client

    @classmethod
    def connect(cls, url: str, **names: Any) -> Self:
        """Return an emitter on its own connection; `names` are those of `Composer`."""
        client = redis.Redis.from_url(
            url,
            socket_timeout=_TIMEOUT_SECONDS,
            socket_connect_timeout=_TIMEOUT_SECONDS,
            retry=Retry(NoBackoff(), 0),
            single_connection_client=True,
        )
        return cls(client, Composer(**names))

    def send(self, payload: bytes | None) -> None:
        """Publish; drop and count what Redis does not take."""
        if payload is None:
            return
        if self._silent:
            self.dropped += 1
            return
        try:
            self._client.publish(self.composer.channel, payload)
        except (redis.RedisError, OSError) as error:
            self._lose(error)

    def close(self) -> None:
        """Close the connection."""
        self._client.close()


class AsyncSignalEmitter(_Emitter[Awaitable[None]]):
    """Sends signals from asyncio code: await every call. Numbers are assigned by the call, not by the await."""

    def __init__(self, client: "redis.asyncio.Redis", composer: Composer) -> None:
        super().__init__(composer)
        self._client = client

    @classmethod
    def connect(cls, url: str, **names: Any) -> Self:
        """Return an emitter on its own connection; `names` are those of `Composer`."""
        client = redis.asyncio.Redis.from_url(
            url,
            socket_timeout=_TIMEOUT_SECONDS,
            socket_connect_timeout=_TIMEOUT_SECONDS,
            retry=AsyncRetry(NoBackoff(), 0),
            single_connection_client=True,  # a pool could overtake itself
        )
        return cls(client, Composer(**names))

    async def send(self, payload: bytes | None) -> None:
        """Publish; drop and count what Redis does not take."""
        if payload is None:
            return
        if self._silent:
            self.dropped += 1
            return
        try:
            await self._client.publish(self.composer.channel, payload)
        except (redis.RedisError, OSError) as error:
            self._lose(error)

    async def close(self) -> None:
        """Close the connection."""
        await self._client.aclose()
