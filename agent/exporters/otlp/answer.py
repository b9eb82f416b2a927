"""What an HTTP answer means (OTLP specification, "OTLP/HTTP Response"): pure."""

from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from google.protobuf.message import DecodeError, Message
from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from agent.exporters.sending.outcome import Delivered, Drop, Outcome, Retry
from agent.otlp.batch import Kind

RETRYABLE = frozenset({429, 502, 503, 504})
MAX_RESPONSE_BYTES = 4 << 20  # "4 MiB is recommended", counted after decompression
MAX_DETAIL = 300
_OK, _REDIRECT, _CLIENT_ERROR = 200, 300, 400

_RESPONSES: dict[Kind, tuple[type[Message], str]] = {
    Kind.TRACES: (ExportTraceServiceResponse, "rejected_spans"),
    Kind.METRICS: (ExportMetricsServiceResponse, "rejected_data_points"),
    Kind.LOGS: (ExportLogsServiceResponse, "rejected_log_records"),
}


def interpret(kind: Kind, status: int, headers: Mapping[str, str], body: bytes, *, now: datetime) -> Outcome:
    """Decide what becomes of a batch; `headers` keys in lower case, `now` for dates in `Retry-After`."""
    if _OK <= status < _REDIRECT:
        return _accepted(kind, headers, body)
    detail = f"http {status}" + (f": {text}" if (text := _text(headers, body)) else "")
    if status in RETRYABLE:
        return Retry(f"http_{status}", detail, retry_after(headers.get("retry-after"), now))
    if _REDIRECT <= status < _CLIENT_ERROR:
        # Following one could carry secret headers to another host.
        return Drop("redirect", f"{detail}; redirects are not followed: set the endpoint to its target")
    return Drop(f"http_{status}", detail)


def retry_after(value: str | None, now: datetime) -> float:
    """Return the seconds a server asked to wait: `7`, or an HTTP-date; 0 for the past and for nonsense."""
    if not value:
        return 0.0
    text = value.strip()
    if text.isascii() and text.isdigit():
        return float(text)
    try:
        date = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return 0.0
    return max(0.0, (date.replace(tzinfo=date.tzinfo or UTC) - now).total_seconds())


def _accepted(kind: Kind, headers: Mapping[str, str], body: bytes) -> Delivered:
    response_type, field = _RESPONSES[kind]
    if not body or "json" in headers.get("content-type", ""):
        return Delivered()
    try:
        response = response_type.FromString(body)
    except DecodeError:
        # Accepted is accepted: the status says so, and sending again would only make duplicates.
        return Delivered(message="accepted, with a body that is no OTLP response")
    partial = response.partial_success  # type: ignore[attr-defined]
    return Delivered(max(0, getattr(partial, field)), partial.error_message[:MAX_DETAIL])


def _text(headers: Mapping[str, str], body: bytes) -> str:
    """Return what a server says about an error, in one printable line."""
    if "protobuf" in headers.get("content-type", ""):
        try:
            text = Status.FromString(body).message
        except DecodeError:
            text = ""
    else:
        text = body[: 4 * MAX_DETAIL].decode("utf-8", "replace")
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:MAX_DETAIL]
