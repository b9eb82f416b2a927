"""The spans of a settled attempt (telemetry contract, section 2)."""

from agent.core.limits import MAX_MESSAGE, MAX_STACK
from agent.correlate import ids
from agent.correlate.attempt import Ending, Mark
from agent.correlate.labels import Labels
from agent.correlate.settlement import Settled
from agent.otlp.span import (
    EVENT_ATTRIBUTE_FIELD,
    LINK_ATTRIBUTE_FIELD,
    SPAN_ATTRIBUTE_FIELD,
    SpanKind,
    encode_error_status,
    encode_event,
    encode_link,
    encode_name,
    encode_span,
    encode_trace_state,
    span_flags,
)
from agent.otlp.wire import Attribute

MAX_STATUS_MESSAGE = 1024
_NANOSECONDS = 1e9


def _key(name: str) -> Attribute:
    return Attribute(name, SPAN_ATTRIBUTE_FIELD)


_TASK_ID = _key("stem.task.id")
_MESSAGE_ID = _key("messaging.message.id")
_ATTEMPT = _key("stem.task.attempt")
_STATE = _key("stem.task.state")
_END_REASON = _key("stem.task.end_reason")
_ERROR_TYPE = _key("error.type")
_WAIT = _key("stem.task.wait")
_WAIT_AT_LEAST = _key("stem.task.wait.lower_bound")(value=True)
_RUN = _key("stem.task.run")
_INCOMPLETE = _key("stem.incomplete")(value=True)
_MISSING = _key("stem.missing")
_ADJUSTED = _key("stem.clock.adjusted")(value=True)
_SIGNALS = _key("stem.source")("signals")
_REPAIR = _key("stem.source")("repair")
_TAIL = _key("stem.source")("tail")
_EXCEPTION_TYPE = Attribute("exception.type", EVENT_ATTRIBUTE_FIELD)
_EXCEPTION_MESSAGE = Attribute("exception.message", EVENT_ATTRIBUTE_FIELD)
_EXCEPTION_STACK = Attribute("exception.stacktrace", EVENT_ATTRIBUTE_FIELD)
_RETRY_LINK = Attribute("stem.link", LINK_ATTRIBUTE_FIELD)("retry")


def process_span(settled: Settled, labels: Labels, trace_state: str, *, exception_event: bool) -> bytes:
    """Encode `process {task}`: the attempt itself."""
    attempt, origin = settled.attempt, settled.origin
    task_id = attempt.task_id
    parts = [
        labels.process,
        _TASK_ID.text(task_id),
        _MESSAGE_ID.text(task_id),
        _ATTEMPT(attempt.number),
        _END_REASON.text(settled.end_reason),
        _source(settled),
        origin.attributes,
        origin.lineage.attributes,
        encode_trace_state(trace_state),
    ]
    if settled.kind:
        parts.append(_STATE.text(settled.kind.state))
    if attempt.started_ns:
        parts.append(_RUN((settled.end_ns - settled.start_ns) / _NANOSECONDS))
        if settled.ready_ns:
            parts.append(_WAIT((settled.start_ns - settled.ready_ns) / _NANOSECONDS))
        if settled.wait_at_least:
            parts.append(_WAIT_AT_LEAST)
    if settled.missing:
        parts += (_INCOMPLETE, _MISSING(list(settled.missing)))
    if settled.adjusted:
        parts.append(_ADJUSTED)
    if error := settled.error_type:
        parts.append(_ERROR_TYPE.text(error))
    if settled.failed:
        parts.append(_error_status(settled.ending))
        if exception_event:
            parts.append(_exception(settled))
    parts.extend(_links(settled))
    body = b"".join(parts)
    return _encode(settled, settled.span_id, start_ns=settled.start_ns, end_ns=settled.end_ns, body=body)


def wait_span(settled: Settled, labels: Labels, trace_state: str) -> bytes:
    """Encode `wait {queue}`: from ready to started."""
    attempt = settled.attempt
    parts = [labels.wait, _TASK_ID.text(attempt.task_id), _ATTEMPT(attempt.number), _source(settled)]
    parts.append(encode_trace_state(trace_state))
    if settled.adjusted:
        parts.append(_ADJUSTED)
    span_id = ids.span_id("wait", *attempt.key)
    return _encode(settled, span_id, start_ns=settled.ready_ns, end_ns=settled.start_ns, body=b"".join(parts))


def send_span(settled: Settled, labels: Labels, trace_state: str) -> bytes:
    """Encode the root of a trace whose producer made none, `send {queue}`, or `schedule {entryId}` where Beat was it.

    It has no length: only one time is known.
    """
    origin, task_id, ancestry = settled.origin, settled.attempt.task_id, settled.ancestry
    lineage = origin.lineage
    scheduled = lineage.schedule_id if lineage.schedule_id and not lineage.parent_task_id else None
    name = encode_name(f"schedule {scheduled}", SpanKind.PRODUCER) if scheduled else labels.send_name
    body = b"".join(
        (
            name,
            labels.send,
            _TASK_ID.text(task_id),
            _MESSAGE_ID.text(task_id),
            _source(settled),
            origin.attributes,
            lineage.attributes,
            encode_trace_state(trace_state),
        )
    )
    return encode_span(
        settled.trace_id,
        ancestry.parent_id,
        parent_id=ancestry.send_parent_id,
        start_ns=origin.enqueued_ns,
        end_ns=origin.enqueued_ns,
        flags=span_flags(origin.flags, remote_parent=False),
        body=body,
    )


def _source(settled: Settled) -> bytes:
    if settled.attempt.marks & Mark.TAILED:
        return _TAIL
    return _REPAIR if settled.repaired else _SIGNALS


def _encode(settled: Settled, span_id: bytes, *, start_ns: int, end_ns: int, body: bytes) -> bytes:
    return encode_span(
        settled.trace_id,
        span_id,
        parent_id=settled.ancestry.parent_id,
        start_ns=start_ns,
        end_ns=end_ns,
        flags=span_flags(settled.origin.flags, remote_parent=settled.ancestry.traced),
        body=body,
    )


def _links(settled: Settled) -> list[bytes]:
    origin, parent_id = settled.origin, settled.ancestry.parent_id
    links = []
    if parent_id:
        state = origin.lineage.trace_state
        links.append(encode_link(settled.trace_id, parent_id, flags=origin.flags, trace_state=state))
    if (before := settled.attempt.before) and before.span_id:
        links.append(encode_link(settled.trace_id, before.span_id, flags=origin.flags, attributes=_RETRY_LINK))
    return links


def _exception(settled: Settled) -> bytes:
    """Encode the span event that log records have taken the place of (semantic conventions, "Exceptions on spans")."""
    ending = settled.ending
    attributes = _EXCEPTION_TYPE.text(settled.error_type)
    attributes += _EXCEPTION_MESSAGE.text(ending.error[:MAX_MESSAGE]) if ending.error else b""
    attributes += _EXCEPTION_STACK.text(ending.stack[:MAX_STACK]) if ending.stack else b""
    return encode_event(ending.time_ns, "exception", attributes)


def _error_status(ending: Ending) -> bytes:
    return encode_error_status(ending.error[:MAX_STATUS_MESSAGE])
