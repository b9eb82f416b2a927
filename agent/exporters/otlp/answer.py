"""What both transports read in an answer: partial success, and text for people. Pure."""

from google.protobuf.message import DecodeError, Message
from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from agent.exporters.sending.outcome import Delivered, Drop
from agent.otlp.batch import Kind

# OTLP specification, "OTLP/gRPC Message Size Limits" and "OTLP/HTTP Message Size Limits": before compression.
MAX_REQUEST_BYTES = 64 << 20
MAX_RESPONSE_BYTES = 4 << 20
MAX_DETAIL = 300

_RESPONSES: dict[Kind, tuple[type[Message], str]] = {
    Kind.TRACES: (ExportTraceServiceResponse, "rejected_spans"),
    Kind.METRICS: (ExportMetricsServiceResponse, "rejected_data_points"),
    Kind.LOGS: (ExportLogsServiceResponse, "rejected_log_records"),
}

UNREADABLE = Delivered(message="accepted, with a body that is no OTLP response")
"""Accepted is accepted: the status says so, and sending again would only make duplicates."""


def accepted(kind: Kind, body: bytes) -> Delivered:
    """Return what an export response says (OTLP specification, "Partial Success")."""
    response_type, field = _RESPONSES[kind]
    try:
        response = response_type.FromString(body)
    except DecodeError:
        return UNREADABLE
    partial = response.partial_success  # type: ignore[attr-defined]
    return Delivered(max(0, getattr(partial, field)), printable(partial.error_message))


def request_too_large(size: int) -> Drop:
    """Return what becomes of a request that the specification forbids to send."""
    return Drop("request_too_large", f"{size} bytes before compression; OTLP allows {MAX_REQUEST_BYTES}")


def response_too_large() -> Drop:
    """Return what becomes of a batch whose answer was not read to its end."""
    return Drop("response_too_large", f"answer above {MAX_RESPONSE_BYTES} bytes")


def status_of(body: bytes) -> Status:
    """Return a `google.rpc.Status`; an empty one for anything else."""
    try:
        return Status.FromString(body)
    except DecodeError:
        return Status()


def printable(text: str) -> str:
    """Return foreign text as one printable line of limited length."""
    return " ".join("".join(c if c.isprintable() else " " for c in text[: 4 * MAX_DETAIL]).split())[:MAX_DETAIL]
