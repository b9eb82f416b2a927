"""Encoding of `opentelemetry.proto.logs.v1.LogRecord`."""

from enum import IntEnum
from struct import Struct

from agent.otlp.wire import any_value, delimited, tag, utf8, varint


class Severity(IntEnum):
    """`SeverityNumber`, the first of each range; the names are the severity texts."""

    TRACE = 1
    DEBUG = 5
    INFO = 9
    WARN = 13
    ERROR = 17


LOG_ATTRIBUTE_FIELD = 6

_TIMES = Struct("<BQBQ").pack
_TIME = tag(1, 1)[0]
_OBSERVED = tag(11, 1)[0]
_SEVERITY_NUMBER = tag(2, 0)
_SEVERITY_TEXT = tag(3, 2)
_BODY = tag(5, 2)
_FLAGS = Struct("<BI").pack
_FLAGS_TAG = tag(8, 5)[0]
_TRACE_ID = tag(9, 2) + b"\x10"
_SPAN_ID = tag(10, 2) + b"\x08"
_EVENT_NAME = tag(12, 2)


def encode_kind(event_name: str, severity: Severity) -> bytes:
    """Encode what is the same for all records of one event: its name and severity."""
    return (
        _SEVERITY_NUMBER
        + varint(severity)
        + delimited(_SEVERITY_TEXT, utf8(severity.name))
        + delimited(_EVENT_NAME, utf8(event_name))
    )


def encode_context(trace_id: bytes, span_id: bytes, flags: int) -> bytes:
    """Encode the span that a record belongs to; without `span_id`, only its trace."""
    span = _SPAN_ID + span_id if span_id else b""
    return _TRACE_ID + trace_id + span + _FLAGS(_FLAGS_TAG, flags)


def encode_log(*, time_ns: int, observed_ns: int, kind: bytes, body: str, context: bytes, attributes: bytes) -> bytes:
    """Encode one record from its parts; `kind` and `context` come from the functions above (`context` may be empty)."""
    times = _TIMES(_TIME, time_ns, _OBSERVED, observed_ns)
    return b"".join((times, kind, delimited(_BODY, any_value(body)), attributes, context))
