"""Log records of what happens (telemetry contract, section 3): an event name, a severity, one sentence for people."""

from typing import NamedTuple

from agent.core.clock import NANOSECONDS
from agent.core.limits import MAX_MESSAGE, MAX_NAME, MAX_STACK
from agent.core.pressure import Priority
from agent.correlate import ids
from agent.correlate.attempt import Attempt, EndKind, ready_time
from agent.correlate.origin import Origin
from agent.correlate.outbox import Outbox
from agent.correlate.settlement import Settled
from agent.otlp.log_record import LOG_ATTRIBUTE_FIELD, Severity, encode_kind, encode_log
from agent.otlp.wire import Attribute
from agent.stem.wire import Gap, QueueEvent

MAX_BODY_ERROR = 200
_MILLISECOND, _SECOND, _MINUTE = 1e-3, 1.0, 60.0


class LogEvent(NamedTuple):
    """An event name with its severity, encoded once, and what that is worth when memory is short."""

    name: str
    severity: Severity
    kind: bytes
    priority: Priority


def event(name: str, severity: Severity) -> LogEvent:
    """Declare a log event."""
    priority = Priority.ERRORS if severity >= Severity.WARN else Priority.LOGS
    if severity < Severity.INFO:
        priority = Priority.DEBUG_LOGS
    return LogEvent(name, severity, encode_kind(name, severity), priority)


PUBLISHING = event("stem.task.publishing", Severity.DEBUG)
PUBLISHED = event("stem.task.published", Severity.DEBUG)
RECEIVED = event("stem.task.received", Severity.DEBUG)
STARTED = event("stem.task.started", Severity.INFO)
FINISHED = event("stem.task.finished", Severity.DEBUG)
ENDED = {
    EndKind.SUCCEEDED: event("stem.task.succeeded", Severity.INFO),
    EndKind.FAILED: event("stem.task.failed", Severity.ERROR),
    EndKind.RETRIED: event("stem.task.retried", Severity.WARN),
    EndKind.REVOKED: event("stem.task.revoked", Severity.WARN),
    EndKind.EXPIRED: event("stem.task.expired", Severity.WARN),
    EndKind.LOST: event("stem.task.lost", Severity.ERROR),
}
DEAD_LETTERED = event("stem.task.dead_lettered", Severity.ERROR)
QUEUE_EVENT = event("stem.queue.event", Severity.INFO)
LONG_RUNNING = event("stem.task.long_running", Severity.WARN)
SIGNALS_GAP = event("stem.signals.gap", Severity.WARN)
UNKNOWN_SIGNAL = event("stem.signal.unknown", Severity.INFO)


def key(name: str) -> Attribute:
    """Declare an attribute of log records."""
    return Attribute(name, LOG_ATTRIBUTE_FIELD)


_UID = key("log.record.uid")
_TASK_ID = key("stem.task.id")
_ATTEMPT = key("stem.task.attempt")
_NAMESPACE = key("stem.namespace")
_EMITTER = key("stem.emitter")
_GAP_FROM = key("stem.signals.from")
_GAP_TO = key("stem.signals.to")
_GAP_COUNT = key("stem.signals.count")
_SIGNAL_NAME = key("stem.signal.name")
_EVENT_NAME = key("stem.event.name")
_QUEUE = key("stem.queue")
_REASON = key("stem.dead_letter.reason")
SOURCE_REPAIR = key("stem.source").text("repair")
SOURCE_TAIL = key("stem.source").text("tail")
_EXCEPTION_TYPE = key("exception.type")
_EXCEPTION_MESSAGE = key("exception.message")
_EXCEPTION_STACK = key("exception.stacktrace")


class LogWriter:
    """Encodes records from a minimum severity up; collects them until they are taken."""

    def __init__(self, min_severity: Severity | None) -> None:
        self._minimum = min_severity
        self.records = Outbox()

    def wants(self, log_event: LogEvent) -> bool:
        """Whether records of this event are exported."""
        return self._minimum is not None and log_event.severity >= self._minimum

    def write(
        self,
        log_event: LogEvent,
        *,
        subject: tuple[str, ...],
        time_ns: int,
        now_ns: int,
        body: str,
        attributes: bytes = b"",
        context: bytes = b"",
    ) -> None:
        """Add one record; `subject` and its time identify the fact, and make `log.record.uid`."""
        uid = _UID.text(ids.log_uid(log_event.name, *subject, str(time_ns)))
        record = encode_log(
            time_ns=time_ns,
            observed_ns=now_ns,
            kind=log_event.kind,
            body=body,
            context=context,
            attributes=attributes + uid,
        )
        self.records.add(record, time_ns, log_event.priority)


def task_attributes(task_id: str) -> bytes:
    """Encode the attributes that a record about a task has beside its labels."""
    return _TASK_ID.text(task_id)


def attempt_attributes(attempt: Attempt) -> bytes:
    """Encode the attributes that a record about an attempt has beside its labels."""
    return _TASK_ID.text(attempt.task_id) + _ATTEMPT(attempt.number)


def gap_attributes(gap: Gap) -> bytes:
    """Encode whose signals are missing, and which."""
    return (
        _EMITTER.text(gap.emitter)
        + _NAMESPACE.text(gap.namespace)
        + _GAP_FROM(gap.first)
        + _GAP_TO(gap.last)
        + _GAP_COUNT(gap.count)
    )


def unknown_attributes(name: str, emitter: str) -> bytes:
    """Encode what is known of a signal that the catalogue does not have."""
    return _SIGNAL_NAME.text(name) + _EMITTER.text(emitter)


def dead_letter_attributes(task_id: str, reason: str, error: str | None) -> bytes:
    """Encode why a task was given up."""
    message = _EXCEPTION_MESSAGE.text(error[:MAX_MESSAGE]) if error else b""
    return _TASK_ID.text(task_id) + _REASON.text(reason[:MAX_NAME]) + message + SOURCE_TAIL


def queue_event_attributes(event: QueueEvent) -> bytes:
    """Encode an application's own event: its name and queue, nothing of what it carries."""
    return (
        _EVENT_NAME.text(event.name[:MAX_NAME])
        + _QUEUE.text(event.queue)
        + _NAMESPACE.text(event.namespace)
        + SOURCE_TAIL
    )


def exception_attributes(settled: Settled) -> bytes:
    """Encode what is known of the error of a failed, retried or lost attempt; only a failure's log has all of it."""
    ending = settled.ending
    message = _EXCEPTION_MESSAGE.text(ending.error[:MAX_MESSAGE]) if ending.error else b""
    if settled.kind is not EndKind.FAILED:
        return message
    stack = _EXCEPTION_STACK.text(ending.stack[:MAX_STACK]) if ending.stack else b""
    return _EXCEPTION_TYPE.text(settled.error_type) + message + stack


def started_body(attempt: Attempt, origin: Origin) -> str:
    """`task email.send started on worker-1 (attempt 1 of 4, waited 1.2 s)`."""
    ready_ns = ready_time(attempt, origin).time_ns
    waited = f", waited {duration((attempt.started_ns - ready_ns) / NANOSECONDS)}" if ready_ns else ""
    return f"task {attempt.task} started on {attempt.worker} (attempt {_ordinal(attempt.number, origin)}{waited})"


def ended_body(settled: Settled) -> str:
    """Say how an attempt ended, in one sentence; call it for a known end."""
    attempt, kind, ending = settled.attempt, settled.kind, settled.ending
    first_line = ending.error.partition("\n")[0][:MAX_BODY_ERROR]
    because = f": {first_line}" if first_line else ""
    if kind is EndKind.SUCCEEDED:
        took = f" in {duration((settled.end_ns - settled.start_ns) / NANOSECONDS)}" if attempt.started_ns else ""
        return f"task {attempt.task} succeeded on {attempt.worker}{took}"
    if kind is EndKind.FAILED:
        return f"task {attempt.task} failed on {attempt.worker}{because}"
    if kind is EndKind.REVOKED:
        return f"task {attempt.task} was revoked on {attempt.worker}{because}"
    if kind is EndKind.EXPIRED:
        return f"task {attempt.task} expired before it ran"
    if kind is EndKind.LOST:
        return f"task {attempt.task} was lost on {attempt.worker}{because}"
    delay = (ending.next_retry_ns - ending.time_ns) / NANOSECONDS
    when = f" in {duration(delay)}" if ending.next_retry_ns and delay >= 0 else ""
    return f"task {attempt.task} will retry{when} (attempt {_ordinal(attempt.number + 1, settled.origin)}){because}"


def long_running_body(attempt: Attempt, now_ns: int) -> str:
    """`task report.build has been running on worker-1 for 15 m 0 s`."""
    running = duration((now_ns - attempt.started_ns) / NANOSECONDS)
    return f"task {attempt.task} has been running on {attempt.worker} for {running}"


def _ordinal(number: int, origin: Origin) -> str:
    """People count from one: `2 of 4`."""
    return f"{number + 1} of {origin.max_retries + 1}" if origin.max_retries is not None else f"{number + 1}"


def duration(seconds: float) -> str:
    """Return `35 ms`, `1.2 s`, `2 m 5 s`."""
    if round(seconds / _MILLISECOND) < _SECOND / _MILLISECOND:
        return f"{seconds / _MILLISECOND:.0f} ms"
    if round(seconds, 1) < _MINUTE:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} m {rest} s"
