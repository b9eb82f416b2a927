"""Our wire encoding against the official protobuf messages."""

import gzip as stdlib_gzip

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from agent.demo.sink import attributes, plain
from agent.exporters.sending.sealed import gzip
from agent.otlp import wire
from agent.otlp.levels import Levels
from agent.otlp.log_record import Severity, encode_context, encode_kind, encode_log
from agent.otlp.metrics import DURATION_BOUNDS, OVERFLOW, Aggregator, Exemplar, Instrument, InstrumentKind
from agent.otlp.request import encode_request
from agent.otlp.resource import SCHEMA_URL, Resource
from agent.otlp.span import (
    SpanKind,
    encode_error_status,
    encode_link,
    encode_name,
    encode_span,
    encode_trace_state,
    span_flags,
)

uint64 = st.integers(0, (1 << 64) - 1)
text = st.text(st.characters(exclude_categories=["Cs"]))


@given(uint64)
def test_varints_are_read_back(value: int) -> None:
    message = Span.FromString(wire.tag(10, 0) + wire.varint(value & 0xFFFFFFFF))
    assert message.dropped_attributes_count == value & 0xFFFFFFFF


@given(st.one_of(text, st.booleans(), st.integers(-(1 << 63), (1 << 63) - 1), st.floats(allow_nan=False)))
def test_attribute_values_are_read_back(value: str | bool | float) -> None:
    read = plain(AnyValue.FromString(wire.any_value(value)))
    assert read == value
    assert type(read) is type(value)


@given(st.lists(text))
def test_lists_of_text_are_read_back(values: list[str]) -> None:
    assert plain(AnyValue.FromString(wire.any_value(values))) == values


@given(text, text)
def test_attributes_are_read_back_by_either_path(key: str, value: str) -> None:
    attribute = wire.Attribute(key, 9)
    assert attribute(value) == attribute.text(value)
    assert attributes(Span.FromString(attribute(value)).attributes) == {key: value}


def test_lone_surrogates_do_not_break_the_encoding() -> None:
    assert plain(AnyValue.FromString(wire.any_value("a\ud800b"))) == "a?b"


@given(st.binary(min_size=16, max_size=16), st.binary(min_size=8, max_size=8), uint64, uint64, text)
def test_spans_are_read_back(trace_id: bytes, span_id: bytes, start: int, end: int, name: str) -> None:
    body = encode_name(name, SpanKind.CONSUMER) + encode_trace_state("a=b") + encode_error_status("it broke")
    body += encode_link(trace_id, span_id, flags=1, trace_state="c=d")
    encoded = encode_span(
        trace_id,
        span_id,
        parent_id=b"parentid",
        start_ns=start,
        end_ns=end,
        flags=span_flags(1, remote_parent=True),
        body=body,
    )
    expected = Span(
        trace_id=trace_id,
        span_id=span_id,
        parent_span_id=b"parentid",
        name=name,
        kind=Span.SPAN_KIND_CONSUMER,
        start_time_unix_nano=start,
        end_time_unix_nano=end,
        trace_state="a=b",
        flags=0x301,
        status=Status(code=Status.STATUS_CODE_ERROR, message="it broke"),
        links=[Span.Link(trace_id=trace_id, span_id=span_id, flags=1, trace_state="c=d")],
    )
    assert Span.FromString(encoded) == expected


def test_a_root_span_has_no_parent() -> None:
    encoded = encode_span(b"t" * 16, b"s" * 8, parent_id=b"", start_ns=1, end_ns=2, flags=1, body=b"")
    assert Span.FromString(encoded).parent_span_id == b""


@given(uint64, uint64, text)
def test_log_records_are_read_back(time: int, observed: int, body: str) -> None:
    encoded = encode_log(
        time_ns=time,
        observed_ns=observed,
        kind=encode_kind("stem.task.started", Severity.INFO),
        body=body,
        context=encode_context(b"t" * 16, b"s" * 8, 1),
        attributes=wire.Attribute("k", 6)("v"),
    )
    expected = LogRecord(
        time_unix_nano=time,
        observed_time_unix_nano=observed,
        severity_number=LogRecord.DESCRIPTOR.fields_by_name["severity_number"]
        .enum_type.values_by_name["SEVERITY_NUMBER_INFO"]
        .number,
        severity_text="INFO",
        body=AnyValue(string_value=body),
        attributes=[KeyValue(key="k", value=AnyValue(string_value="v"))],
        flags=1,
        trace_id=b"t" * 16,
        span_id=b"s" * 8,
        event_name="stem.task.started",
    )
    assert LogRecord.FromString(encoded) == expected


@pytest.mark.parametrize(
    ("request_type", "entries", "scopes", "items", "item"),
    [
        (ExportTraceServiceRequest, "resource_spans", "scope_spans", "spans", Span(name="a")),
        (ExportLogsServiceRequest, "resource_logs", "scope_logs", "log_records", LogRecord(event_name="a")),
        (ExportMetricsServiceRequest, "resource_metrics", "scope_metrics", "metrics", Metric(name="a")),
    ],
)
def test_one_request_encoder_serves_all_kinds(
    request_type: type, entries: str, scopes: str, items: str, item: Span | LogRecord | Metric
) -> None:
    encoded = encode_request([(Resource({"service.name": "shop", "n": 1}), [item.SerializeToString()] * 2)])
    (entry,) = getattr(request_type.FromString(encoded), entries)
    assert attributes(entry.resource.attributes) == {"service.name": "shop", "n": 1}
    assert entry.schema_url == SCHEMA_URL
    (scope,) = getattr(entry, scopes)
    assert scope.scope.name == "stem-agent"
    assert scope.schema_url == SCHEMA_URL
    assert list(getattr(scope, items)) == [item, item]


@given(st.binary(max_size=5000))
def test_gzip_is_read_back_by_the_standard_library(data: bytes) -> None:
    assert stdlib_gzip.decompress(gzip(data)) == data


COUNTER = Instrument("c", InstrumentKind.COUNTER, "{task}", ("task",), "")
HISTOGRAM = Instrument("h", InstrumentKind.HISTOGRAM, "s", ("task",), "")
GAUGE = Instrument("g", InstrumentKind.GAUGE, "s", ("task",), "")


def aggregator(limit: int = 2000, ttl: float = 3600.0) -> Aggregator:
    return Aggregator(now_ns=1000, cardinality_limit=limit, series_ttl=ttl)


def collected(source: Aggregator, now_ns: int) -> dict[str, Metric]:
    return {metric.name: metric for metric in map(Metric.FromString, source.collect(now_ns)[0])}


def test_a_counter_is_cumulative_and_starts_before_its_first_measurement() -> None:
    source = aggregator()
    source.add(COUNTER, ("a",), 2000)
    source.add(COUNTER, ("a",), 2001)
    first = collected(source, 3000)["c"].sum
    source.add(COUNTER, ("b",), 3500)
    second = collected(source, 4000)["c"].sum
    assert first.is_monotonic
    assert (first.data_points[0].as_int, first.data_points[0].start_time_unix_nano) == (2, 1000)
    assert (second.data_points[0].as_int, second.data_points[0].start_time_unix_nano) == (2, 1000)
    assert second.data_points[1].start_time_unix_nano == 3000


@given(st.lists(st.floats(0, 1e5), min_size=1))
def test_a_histogram_agrees_with_its_values(values: list[float]) -> None:
    source = aggregator()
    for value in values:
        source.record(HISTOGRAM, ("a",), 2000, value, Exemplar(b"t" * 16, b"s" * 8))
    (point,) = collected(source, 3000)["h"].histogram.data_points
    assert point.count == len(values) == sum(point.bucket_counts)
    assert len(point.bucket_counts) == len(point.explicit_bounds) + 1
    assert (point.min, point.max) == (min(values), max(values))
    assert point.sum == pytest.approx(sum(values))
    for bucket, bound in enumerate(DURATION_BOUNDS):
        assert sum(point.bucket_counts[: bucket + 1]) == sum(1 for value in values if value <= bound)
    assert {example.trace_id for example in point.exemplars} == {b"t" * 16}


def test_series_above_the_limit_share_one_overflow_point() -> None:
    source = aggregator(limit=3)
    for index in range(10):
        source.add(COUNTER, (f"task-{index}",), 2000)
    found = collected(source, 3000)["c"].sum.data_points
    assert len(found) == 3
    overflow = [point for point in found if attributes(point.attributes) == {OVERFLOW: True}]
    assert [point.as_int for point in overflow] == [8]


def test_a_series_that_nothing_touches_ends_and_comes_back_as_a_reset() -> None:
    source = aggregator(ttl=1.0)
    source.add(COUNTER, ("a",), 2000)
    assert collected(source, 3000)
    assert not collected(source, 2_000_000_000)
    source.add(COUNTER, ("a",), 2_000_000_001)
    (point,) = collected(source, 2_000_000_002)["c"].sum.data_points
    assert (point.as_int, point.start_time_unix_nano) == (1, 2_000_000_000)


def test_a_gauge_that_is_removed_is_gone() -> None:
    source = aggregator()
    source.set(GAUGE, ("a",), 2000, 1.5)
    assert collected(source, 3000)["g"].gauge.data_points[0].as_double == 1.5
    source.remove(GAUGE, ("a",))
    assert not collected(source, 4000)


@given(st.lists(st.tuples(text, text, st.integers(-(1 << 63), (1 << 63) - 1) | st.floats(allow_nan=False)), min_size=1))
def test_levels_are_read_back(told: list[tuple[str, str, float]]) -> None:
    instrument = Instrument("stem.queue.depth", InstrumentKind.GAUGE, "{message}", ("queue", "namespace"), "what waits")
    levels = Levels(42)
    for queue, namespace, value in told:
        levels.set(instrument, (queue, namespace), value)
    (item,), (count,) = levels.collect()
    metric = Metric.FromString(item)
    assert (metric.name, metric.unit, metric.description) == ("stem.queue.depth", "{message}", "what waits")
    assert count == len(told) == len(metric.gauge.data_points)
    for point, (queue, namespace, value) in zip(metric.gauge.data_points, told, strict=True):
        named = {"queue": queue, "namespace": namespace}
        assert attributes(point.attributes) == {key: text for key, text in named.items() if text}
        assert point.time_unix_nano == 42
        assert (point.as_int if isinstance(value, int) else point.as_double) == value
