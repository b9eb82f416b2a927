"""Encoding of `opentelemetry.proto.trace.v1.Span`."""

from enum import IntEnum
from struct import Struct

from agent.otlp.wire import delimited, tag, utf8, varint


class SpanKind(IntEnum):
    """`Span.SpanKind`."""

    INTERNAL = 1
    PRODUCER = 4
    CONSUMER = 5


SPAN_ATTRIBUTE_FIELD = 9
LINK_ATTRIBUTE_FIELD = 4
EVENT_ATTRIBUTE_FIELD = 3
FLAG_SAMPLED = 0x01
_HAS_IS_REMOTE = 0x100
_IS_REMOTE = 0x200

_IDS = Struct("<2s16s2s8s").pack
_TRACE_ID = tag(1, 2) + b"\x10"
_SPAN_ID = tag(2, 2) + b"\x08"
_TRACE_STATE = tag(3, 2)
_PARENT = tag(4, 2) + b"\x08"
_NAME = tag(5, 2)
_KIND = tag(6, 0)
_TIMES = Struct("<BQBQ").pack
_START = tag(7, 1)[0]
_END = tag(8, 1)[0]
_EVENTS = tag(11, 2)
_EVENT_TIME = Struct("<BQ").pack
_EVENT_TIME_TAG = tag(1, 1)[0]
_EVENT_NAME = tag(2, 2)
_LINKS = tag(13, 2)
_STATUS = delimited(tag(15, 2), b"")[:1]
_STATUS_MESSAGE = tag(2, 2)
_STATUS_ERROR = tag(3, 0) + b"\x02"
_FLAGS = Struct("<2sI").pack
_FLAGS_TAG = tag(16, 5)
_LINK_TRACE_STATE = tag(3, 2)
_LINK_FLAGS_TAG = tag(6, 5)
_LINK_FLAGS = Struct("<BI").pack


def encode_name(name: str, kind: SpanKind) -> bytes:
    """Encode what is the same for many spans: name and kind. Put it in front of the constant attributes."""
    return delimited(_NAME, utf8(name)) + _KIND + varint(kind)


def encode_span(
    trace_id: bytes,
    span_id: bytes,
    *,
    parent_id: bytes,
    start_ns: int,
    end_ns: int,
    flags: int,
    body: bytes,
) -> bytes:
    """Encode one span.

    `trace_id` has 16 bytes, `span_id` 8, `parent_id` 8 or none for a root; times are Unix nanoseconds; `body` is
    everything else, encoded: name, kind, attributes, links, status (protobuf allows any order of fields).
    """
    head = _IDS(_TRACE_ID, trace_id, _SPAN_ID, span_id)
    parent = _PARENT + parent_id if parent_id else b""
    return b"".join((head, parent, _TIMES(_START, start_ns, _END, end_ns), body, _FLAGS(_FLAGS_TAG, flags)))


def encode_trace_state(trace_state: str) -> bytes:
    """Encode W3C `tracestate`, or nothing where there is none."""
    return delimited(_TRACE_STATE, utf8(trace_state)) if trace_state else b""


def span_flags(trace_flags: int, *, remote_parent: bool) -> int:
    """Return `Span.flags`: the W3C trace flags, and whether the parent is known to be remote."""
    return trace_flags | _HAS_IS_REMOTE | (_IS_REMOTE if remote_parent else 0)


def encode_link(
    trace_id: bytes, span_id: bytes, *, flags: int, trace_state: str = "", attributes: bytes = b""
) -> bytes:
    """Encode a link as an entry of the span's links."""
    state = delimited(_LINK_TRACE_STATE, utf8(trace_state)) if trace_state else b""
    link = _IDS(_TRACE_ID, trace_id, _SPAN_ID, span_id) + state + attributes + _LINK_FLAGS(_LINK_FLAGS_TAG[0], flags)
    return delimited(_LINKS, link)


def encode_event(time_ns: int, name: str, attributes: bytes = b"") -> bytes:
    """Encode an event as an entry of the span's events."""
    event = _EVENT_TIME(_EVENT_TIME_TAG, time_ns) + delimited(_EVENT_NAME, utf8(name)) + attributes
    return delimited(_EVENTS, event)


def encode_error_status(message: str) -> bytes:
    """Encode status Error with its description; Unset needs no bytes."""
    return delimited(_STATUS, (delimited(_STATUS_MESSAGE, utf8(message)) if message else b"") + _STATUS_ERROR)
