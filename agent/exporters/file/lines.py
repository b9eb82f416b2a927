"""An export request as a line of JSON: pure.

Specification: OTLP, "JSON Protobuf Encoding": names in lowerCamelCase, enums as numbers, 64-bit numbers as strings,
and, unlike protobuf's own JSON, ids in hexadecimal digits.
"""

import json
from base64 import b64decode
from typing import Any

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from opentelemetry.proto.logs.v1.logs_pb2 import LogsData
from opentelemetry.proto.metrics.v1.metrics_pb2 import MetricsData
from opentelemetry.proto.trace.v1.trace_pb2 import TracesData

from agent.otlp.batch import Kind

# On the wire they are export requests, too: one field of the same number and type.
_DATA: dict[Kind, type[Message]] = {Kind.TRACES: TracesData, Kind.METRICS: MetricsData, Kind.LOGS: LogsData}
_IDS = ("traceId", "spanId", "parentSpanId")


def line_of(kind: Kind, request: bytes) -> bytes:
    """Return the line of an encoded request, line feed included."""
    told = MessageToDict(_DATA[kind].FromString(request), use_integers_for_enums=True)
    _with_hexadecimal_ids(told)
    return json.dumps(told, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def _with_hexadecimal_ids(told: Any) -> None:
    """Change ids in place. Attributes have their keys in values, so that no attribute can look like an id."""
    if isinstance(told, list):
        for each in told:
            _with_hexadecimal_ids(each)
    elif isinstance(told, dict):
        for key, value in told.items():
            if key in _IDS and isinstance(value, str):
                told[key] = b64decode(value).hex()
            elif isinstance(value, list | dict):
                _with_hexadecimal_ids(value)
