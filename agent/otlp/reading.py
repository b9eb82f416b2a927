"""Reading OTLP messages back, for exporters that do not send them as they are. Pure."""

import json
from collections.abc import Iterable, Iterator
from typing import Any

from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.metrics.v1 import metrics_pb2 as pb

NUMBERS = ("sum", "gauge")
"""The kinds of metrics whose points are single numbers."""


def plain(value: AnyValue) -> Any:
    """Return an `AnyValue` as a plain value; bytes as their hexadecimal digits."""
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [plain(each) for each in value.array_value.values]
    if kind == "kvlist_value":
        return {each.key: plain(each.value) for each in value.kvlist_value.values}
    if kind == "bytes_value":
        return value.bytes_value.hex()
    return getattr(value, kind) if kind else None


def text(value: AnyValue) -> str:
    """Return an `AnyValue` as text (specification, "Attribute", non-string values): strings as they are, else JSON."""
    if value.WhichOneof("value") == "string_value":
        return value.string_value
    return json.dumps(plain(value), ensure_ascii=False)


def texts(attributes: Iterable[KeyValue]) -> Iterator[tuple[str, str]]:
    """Yield keys and values of attributes, as text."""
    return ((each.key, text(each.value)) for each in attributes)


def kind_of(metric: pb.Metric) -> str:
    """Return which data a metric has: `sum`, `gauge`, `histogram`, `exponential_histogram`, `summary`, or nothing."""
    return metric.WhichOneof("data") or ""


def points_of(metric: pb.Metric) -> Any:
    """Return the data points of a metric, whatever its kind."""
    kind = kind_of(metric)
    return getattr(metric, kind).data_points if kind else ()


def number_of(point: pb.NumberDataPoint) -> float:
    """Return the value of a point that is a number; whole ones stay whole."""
    return point.as_int if point.WhichOneof("value") == "as_int" else point.as_double


def is_recorded(point: Any) -> bool:
    """Tell whether a point has a value at all (`FLAG_NO_RECORDED_VALUE`)."""
    return not point.flags & pb.DATA_POINT_FLAGS_NO_RECORDED_VALUE_MASK
