"""What an envelope tells about a task: its trace, its times, its lineage."""

import re
from datetime import datetime, tzinfo
from typing import NamedTuple

from msgspec import Struct

from agent.correlate import ids
from agent.otlp.span import FLAG_SAMPLED, SPAN_ATTRIBUTE_FIELD
from agent.otlp.wire import Attribute
from agent.stem.envelope import Envelope, Headers, Meta
from agent.stem.timestamps import epoch_ns

# W3C Trace Context, section 3.2: lower-case hex; a version above 00 may append fields.
_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.DOTALL)
_MAX_TRACE_STATE = 512  # section 3.3.1.5: what a vendor should propagate at least
_FORBIDDEN_VERSION = "ff"
_TRACE_BYTES = 16


class TraceParent(NamedTuple):
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


class Lineage(Struct, frozen=True, gc=False, array_like=True):
    """Where a task belongs, if it belongs anywhere: most do not, and then have none of this."""

    parent_task_id: str | None = None
    workflow_run_id: str | None = None
    continuation: bool = False
    schedule_id: str | None = None
    trace_state: str = ""
    attributes: bytes = b""


_NO_LINEAGE = Lineage()
_NO_META = Meta()


class Kin(Struct, frozen=True, gc=False, array_like=True):
    """What many tasks have in common: flags, retries, encoded attributes, and mostly no lineage."""

    flags: int = FLAG_SAMPLED
    max_retries: int | None = None
    attributes: bytes = b""
    lineage: Lineage = _NO_LINEAGE


_ORDINARY = Kin()


class Origin(Struct, frozen=True, gc=False, array_like=True):
    """Where a task comes from. Times are Unix microseconds, as fine as Dart tells them, 0 when unknown.

    Held for every open attempt, so it holds little: `trace_context` is a trace id and the creator's span id, a trace id
    alone where the envelope names no span, and empty where it is that of the task's own id. `kin` is shared.
    """

    trace_context: bytes = b""
    enqueued_us: int = 0
    not_before_us: int = 0
    kin: Kin = _ORDINARY

    @property
    def enqueued_ns(self) -> int:
        """When it was published, in nanoseconds."""
        return self.enqueued_us * 1000

    @property
    def not_before_ns(self) -> int:
        """When its last delivery was due, in nanoseconds."""
        return self.not_before_us * 1000

    def trace_id(self, task_id: str) -> bytes:
        """Return the trace that the task (or run) belongs to."""
        return self.trace_context[:_TRACE_BYTES] or ids.trace_id(task_id)

    @property
    def context(self) -> bytes:
        """The span that the creator made, or that its header names all the same; empty if there is none."""
        return self.trace_context[_TRACE_BYTES:]

    @property
    def flags(self) -> int:
        """W3C trace flags."""
        return self.kin.flags

    @property
    def sampled(self) -> bool:
        """Whether the creator's sampler kept the trace."""
        return bool(self.kin.flags & FLAG_SAMPLED)

    @property
    def max_retries(self) -> int | None:
        """How often the task may be retried."""
        return self.kin.max_retries

    @property
    def attributes(self) -> bytes:
        """Encoded attributes of its spans, beside the lineage's."""
        return self.kin.attributes

    @property
    def lineage(self) -> Lineage:
        """Where the task belongs."""
        return self.kin.lineage


UNKNOWN_ORIGIN = Origin()
"""Of a task whose envelope never came: a trace of its own, without a parent."""


def read_origin(envelope: Envelope, zone: tzinfo) -> Origin:
    """Return what an envelope tells; times without an offset are in `zone`."""
    context = parse_traceparent(envelope.headers.traceparent)
    if context is None:
        meta = envelope.meta
        subject = meta.root_task_id or meta.parent_task_id or meta.workflow_run_id
        context = TraceParent(ids.trace_id(subject) if subject else b"", b"", FLAG_SAMPLED)
    return Origin(
        trace_context=context.trace_id + context.span_id,
        enqueued_us=_microseconds(envelope.enqueued_at, zone),
        not_before_us=_microseconds(envelope.not_before, zone),
        kin=_kin(context.flags, envelope, _lineage(envelope, traced=bool(context.span_id))),
    )


def _microseconds(time: datetime | None, zone: tzinfo) -> int:
    return epoch_ns(time, zone) // 1000 if time else 0


def _key(name: str) -> Attribute:
    return Attribute(name, SPAN_ATTRIBUTE_FIELD)


_PRIORITY = _key("stem.task.priority")
_MAX_RETRIES = _key("stem.task.max_retries")
_PARENT, _ROOT = _key("stem.parent_task_id"), _key("stem.root_task_id")
_GROUP, _CHORD = _key("stem.group.id"), _key("stem.chord.id")
_CHAIN, _CHAIN_INDEX = _key("stem.chain.id"), _key("stem.chain.index")
_RUN, _WORKFLOW, _STEP = _key("stem.workflow.run_id"), _key("stem.workflow.name"), _key("stem.workflow.step")
_SCHEDULE = _key("stem.schedule.id")


def shared(origin: Origin, known: dict[Kin, Kin]) -> Origin:
    """Return an origin that was read back, with the `kin` that others read back have, too."""
    kin = origin.kin
    return Origin(origin.trace_context, origin.enqueued_us, origin.not_before_us, known.setdefault(kin, kin))


_MAX_KNOWN = 4096
_known: dict[tuple[int, int | None, int | None], Kin] = {}


def _kin(flags: int, envelope: Envelope, lineage: Lineage) -> Kin:
    """Return what few combinations of values exist of, each once."""
    priority, max_retries = envelope.priority, envelope.max_retries
    kin = _known.get((flags, priority, max_retries))
    if kin is None:
        attributes = b"" if priority is None else _PRIORITY(priority)
        attributes += b"" if max_retries is None else _MAX_RETRIES(max_retries)
        kin = Kin(flags, max_retries, attributes)
        if len(_known) < _MAX_KNOWN:
            _known[flags, priority, max_retries] = kin
    return kin if lineage is _NO_LINEAGE else Kin(flags, max_retries, kin.attributes, lineage)


def _lineage(envelope: Envelope, *, traced: bool) -> Lineage:
    meta, headers = envelope.meta, envelope.headers
    trace_state = (headers.tracestate or "") if traced else ""
    if envelope.meta == _NO_META and not trace_state and headers == Headers(traceparent=headers.traceparent):
        return _NO_LINEAGE
    told = (
        (_PARENT, meta.parent_task_id),
        (_ROOT, meta.root_task_id),
        (_GROUP, headers.group_id or meta.group_id),
        (_CHORD, headers.chord_id or meta.chord_id),
        (_CHAIN, headers.chain_id or meta.chain_id),
        (_CHAIN_INDEX, headers.chain_index),
        (_RUN, meta.workflow_run_id),
        (_WORKFLOW, meta.workflow_name),
        (_STEP, meta.workflow_step),
        (_SCHEDULE, headers.schedule_id),
    )
    attributes = b"".join(key(value) for key, value in told if value)
    if not attributes and not trace_state:
        return _NO_LINEAGE
    return Lineage(
        parent_task_id=meta.parent_task_id,
        workflow_run_id=meta.workflow_run_id,
        continuation=bool(meta.continuation),
        schedule_id=headers.schedule_id,
        trace_state=trace_state if len(trace_state) <= _MAX_TRACE_STATE else "",
        attributes=attributes,
    )
