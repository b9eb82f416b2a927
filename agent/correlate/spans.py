"""The spans of a settled attempt (telemetry contract, section 2)."""

from typing import NamedTuple

from agent.correlate import ids
from agent.correlate.attempt import Attempt, Ending, EndKind
from agent.correlate.labels import Labels
from agent.correlate.origin import Origin
from agent.otlp.span import (
    LINK_ATTRIBUTE_FIELD,
    SPAN_ATTRIBUTE_FIELD,
    encode_error_status,
    encode_link,
    encode_span,
    encode_trace_state,
    span_flags,
)
from agent.otlp.wire import Attribute
from agent.stem.error_text import error_type

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
_RUN = _key("stem.task.run")
_INCOMPLETE = _key("stem.incomplete")(value=True)
_MISSING = _key("stem.missing")
_ADJUSTED = _key("stem.clock.adjusted")(value=True)
_SOURCE = _key("stem.source")("signals")
_RETRY_LINK = Attribute("stem.link", LINK_ATTRIBUTE_FIELD)("retry")


class Settled(NamedTuple):
    """An attempt with everything that was decided about it.

    Times are Unix nanoseconds with start <= end; `ready_ns` (0 when unknown) is when it could have started.
    `adjusted` says that a clock had to be corrected for that.
    """

    attempt: Attempt
    origin: Origin
    kind: EndKind | None
    ending: Ending
    start_ns: int
    end_ns: int
    ready_ns: int
    adjusted: bool
    missing: tuple[str, ...]
    end_reason: str

    @property
    def failed(self) -> bool:
        """Whether the span's status is Error."""
        return self.kind in {EndKind.FAILED, EndKind.RETRIED}


def process_span(settled: Settled, labels: Labels, span_id: bytes) -> bytes:
    """Encode `process {task}`: the attempt itself."""
    attempt, origin = settled.attempt, settled.origin
    task_id = attempt.task_id
    parts = [
        labels.process,
        _TASK_ID.text(task_id),
        _MESSAGE_ID.text(task_id),
        _ATTEMPT(attempt.number),
        _END_REASON.text(settled.end_reason),
        _SOURCE,
        origin.attributes,
        encode_trace_state(origin.trace_state),
    ]
    if settled.kind:
        parts.append(_STATE.text(settled.kind.value))
    if attempt.started_ns:
        parts.append(_RUN((settled.end_ns - settled.start_ns) / _NANOSECONDS))
        if settled.ready_ns:
            parts.append(_WAIT((settled.start_ns - settled.ready_ns) / _NANOSECONDS))
    if settled.missing:
        parts += (_INCOMPLETE, _MISSING(list(settled.missing)))
    if settled.adjusted:
        parts.append(_ADJUSTED)
    if settled.failed:
        parts += (_ERROR_TYPE.text(error_type(settled.ending.error)), _error_status(settled.ending))
    parts.extend(_links(settled))
    return _encode(settled, span_id, start_ns=settled.start_ns, end_ns=settled.end_ns, body=b"".join(parts))


def wait_span(settled: Settled, labels: Labels) -> bytes:
    """Encode `wait {queue}`: from ready to started."""
    attempt = settled.attempt
    parts = [labels.wait, _TASK_ID.text(attempt.task_id), _ATTEMPT(attempt.number), _SOURCE]
    parts.append(encode_trace_state(settled.origin.trace_state))
    if settled.adjusted:
        parts.append(_ADJUSTED)
    span_id = ids.span_id("wait", *attempt.key)
    return _encode(settled, span_id, start_ns=settled.ready_ns, end_ns=settled.start_ns, body=b"".join(parts))


def send_span(settled: Settled, labels: Labels) -> bytes:
    """Encode `send {queue}`: the root of a trace whose producer made none. It has no length: only one time is known."""
    origin, task_id = settled.origin, settled.attempt.task_id
    parent = ids.span_id("send", origin.parent_task_id) if origin.parent_task_id else b""
    body = labels.send + _TASK_ID.text(task_id) + _MESSAGE_ID.text(task_id) + _SOURCE + origin.attributes
    return encode_span(
        origin.trace_id,
        origin.parent_id,
        parent_id=parent,
        start_ns=origin.enqueued_ns,
        end_ns=origin.enqueued_ns,
        flags=span_flags(origin.flags, remote_parent=False),
        body=body,
    )


def _encode(settled: Settled, span_id: bytes, *, start_ns: int, end_ns: int, body: bytes) -> bytes:
    origin = settled.origin
    return encode_span(
        origin.trace_id,
        span_id,
        parent_id=origin.parent_id,
        start_ns=start_ns,
        end_ns=end_ns,
        flags=span_flags(origin.flags, remote_parent=origin.traced),
        body=body,
    )


def _links(settled: Settled) -> list[bytes]:
    attempt, origin = settled.attempt, settled.origin
    links = []
    if origin.parent_id:
        links.append(encode_link(origin.trace_id, origin.parent_id, flags=origin.flags, trace_state=origin.trace_state))
    if attempt.previous:
        previous = ids.span_id("process", attempt.task_id, str(attempt.number - 1), attempt.previous.worker)
        links.append(encode_link(origin.trace_id, previous, flags=origin.flags, attributes=_RETRY_LINK))
    return links


def _error_status(ending: Ending) -> bytes:
    return encode_error_status(ending.error[:MAX_STATUS_MESSAGE])
