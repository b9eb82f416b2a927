"""What an envelope tells about a task: its trace, its times, its lineage."""

import re
from dataclasses import dataclass
from datetime import datetime, tzinfo

from agent.correlate import ids
from agent.otlp.span import FLAG_SAMPLED, SPAN_ATTRIBUTE_FIELD
from agent.otlp.wire import Attribute
from agent.stem.timestamps import epoch_ns
from agent.stem.wire import Envelope

# W3C Trace Context, section 3.2: lower-case hex; a version above 00 may append fields.
_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.DOTALL)
_MAX_TRACE_STATE = 512  # section 3.3.1.5: what a vendor should propagate at least
_FORBIDDEN_VERSION = "ff"


@dataclass(frozen=True, slots=True)
class TraceParent:
    """A valid W3C `traceparent`."""

    trace_id: bytes
    span_id: bytes
    flags: int


def parse_traceparent(text: str | None) -> TraceParent | None:
    """Return the context, or None when it is absent or invalid (W3C: then the trace starts here)."""
    if not text or not (match := _TRACEPARENT.fullmatch(text.strip())):
        return None
    version, trace, span, flags, rest = match.groups()
    if version == _FORBIDDEN_VERSION or (version == "00" and rest) or not int(trace, 16) or not int(span, 16):
        return None
    return TraceParent(bytes.fromhex(trace), bytes.fromhex(span), int(flags, 16))


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a task comes from. Times are Unix nanoseconds, 0 when unknown.

    `parent_id` is the span that `wait` and `process` hang from: the creator's, or our `send`. `traced` says that
    the creator made a span itself; `parent_id` is empty when no envelope told.
    """

    trace_id: bytes
    parent_id: bytes
    traced: bool
    flags: int
    trace_state: str = ""
    enqueued_ns: int = 0
    not_before_ns: int = 0
    max_retries: int | None = None
    parent_task_id: str | None = None
    attributes: bytes = b""

    @property
    def sampled(self) -> bool:
        """Whether the creator's sampler kept the trace."""
        return bool(self.flags & FLAG_SAMPLED)


def read_origin(task_id: str, envelope: Envelope, zone: tzinfo) -> Origin:
    """Return what an envelope tells; times without an offset are in `zone`."""
    meta, headers = envelope.meta, envelope.headers
    context = parse_traceparent(headers.traceparent)
    trace_state = headers.tracestate or ""
    if context is None:
        subject = meta.root_task_id or meta.parent_task_id or meta.workflow_run_id or task_id
        context = TraceParent(ids.trace_id(subject), b"", FLAG_SAMPLED)
        trace_state = ""
    return Origin(
        trace_id=context.trace_id,
        parent_id=context.span_id or ids.span_id("send", task_id),
        traced=bool(context.span_id),
        flags=context.flags,
        trace_state=trace_state if len(trace_state) <= _MAX_TRACE_STATE else "",
        enqueued_ns=_nanoseconds(envelope.enqueued_at, zone),
        not_before_ns=_nanoseconds(envelope.not_before, zone),
        max_retries=envelope.max_retries,
        parent_task_id=meta.parent_task_id,
        attributes=_attributes(envelope),
    )


def unknown_origin(task_id: str) -> Origin:
    """Return the origin of a task whose envelope never came: a trace of its own, without a parent."""
    return Origin(ids.trace_id(task_id), b"", traced=False, flags=FLAG_SAMPLED)


def _nanoseconds(time: datetime | None, zone: tzinfo) -> int:
    return epoch_ns(time, zone) if time else 0


def _key(name: str) -> Attribute:
    return Attribute(name, SPAN_ATTRIBUTE_FIELD)


_PRIORITY = _key("stem.task.priority")
_MAX_RETRIES = _key("stem.task.max_retries")
_GROUP = _key("stem.group.id")
_LINEAGE = (
    (_key("stem.parent_task_id"), "parent_task_id"),
    (_key("stem.root_task_id"), "root_task_id"),
    (_key("stem.workflow.run_id"), "workflow_run_id"),
    (_key("stem.workflow.name"), "workflow_name"),
    (_key("stem.workflow.step"), "workflow_step"),
)
_SCHEDULE = _key("stem.schedule.id")


def _attributes(envelope: Envelope) -> bytes:
    meta, headers = envelope.meta, envelope.headers
    parts = []
    if envelope.priority is not None:
        parts.append(_PRIORITY(envelope.priority))
    if envelope.max_retries is not None:
        parts.append(_MAX_RETRIES(envelope.max_retries))
    if group := headers.group_id or meta.group_id:
        parts.append(_GROUP(group))
    parts.extend(key(value) for key, field in _LINEAGE if (value := getattr(meta, field)))
    if headers.schedule_id:
        parts.append(_SCHEDULE(headers.schedule_id))
    return b"".join(parts)
