"""The exposition, from OTLP metrics to what a scraper reads: names, labels, targets, exemplars, what ends when."""

from collections.abc import Iterable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.metrics.v1 import metrics_pb2 as pb
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as text

from agent.core.clock import NANOSECONDS
from agent.exporters.prometheus.accept import Format, accepts_gzip, chosen
from agent.exporters.prometheus.exposition import SCOPE_LABELS, Exposition
from agent.exporters.prometheus.names import family_name, label_name, labels_of, target_of, unit_name
from agent.exporters.prometheus.snapshots import EXEMPLAR_TTL_NS, Snapshots
from agent.otlp.batch import Batch, Kind
from agent.otlp.levels import Levels
from agent.otlp.metrics import Aggregator, Exemplar, Instrument, InstrumentKind
from agent.otlp.resource import Resource

NOW_NS = 1_800_000_000 * NANOSECONDS
TASKS = Instrument(
    "stem.tasks.succeeded", InstrumentKind.COUNTER, "{task}", ("task", "queue"), "Attempts that succeeded"
)
LATENCY = Instrument("stem.queue.latency", InstrumentKind.HISTOGRAM, "s", ("task", "queue"), "From ready to start")
DEPTH = Instrument("stem.queue.depth", InstrumentKind.GAUGE, "{message}", ("queue",), "Waiting and ready")
POD = Resource({"service.name": "shop", "service.namespace": "eu", "service.instance.id": "pod-7", "host.name": "n1"})
FLEET = POD.of_the_fleet()
SPAN = Exemplar(bytes(range(16)), bytes(range(8)))


def batch(items: Sequence[bytes], counts: Sequence[int] = (), resource: Resource = POD, source: str = "a") -> Batch:
    return Batch(Kind.METRICS, resource, items, sum(counts), counts=counts, source=source)


def counted(values: Iterable[tuple[tuple[str, ...], int]], resource: Resource = POD, source: str = "a") -> Batch:
    aggregator = Aggregator(now_ns=NOW_NS, cardinality_limit=1000, series_ttl=60)
    for labels, amount in values:
        aggregator.add(TASKS, labels, NOW_NS, amount)
    return batch(*aggregator.collect(NOW_NS), resource, source)


def shown(snapshots: Snapshots, wanted: Format = Format.OPENMETRICS, now_ns: int = NOW_NS, **options: Any) -> str:
    return Exposition(wanted, snapshots.at(now_ns), {}, **options).encode().decode()


def families(exposition: str) -> dict[str, Any]:
    """Parse as OpenMetrics, strictly."""
    return {family.name: family for family in openmetrics(exposition)}


def kept(*batches: Batch, seconds: float = 60) -> Snapshots:
    snapshots = Snapshots(int(seconds * NANOSECONDS))
    for each in batches:
        assert not snapshots.tell(each, NOW_NS)
    return snapshots


@pytest.mark.parametrize(
    ("name", "unit", "kind", "expected"),
    [
        ("stem.tasks.succeeded", "{task}", "counter", ("stem_tasks_succeeded", "")),
        ("stem.queue.latency", "s", "histogram", ("stem_queue_latency_seconds", "seconds")),
        ("stem.worker.memory", "By", "gauge", ("stem_worker_memory_bytes", "bytes")),
        ("stem.worker.up", "{worker}", "gauge", ("stem_worker_up", "")),
        ("process.cpu.time", "s", "counter", ("process_cpu_time_seconds", "seconds")),
        ("requests.total", "", "counter", ("requests", "")),
        ("io", "By/s", "gauge", ("io_bytes_per_second", "bytes_per_second")),
        ("cpu.used", "1", "gauge", ("cpu_used_ratio", "ratio")),
        ("tries", "1", "counter", ("tries", "")),
        ("bytes.read", "By", "counter", ("bytes_read", "")),
        ("wait.seconds", "s", "gauge", ("wait_seconds", "seconds")),
        ("2xx--answers", "", "counter", ("_2xx_answers", "")),
        ("größe", "", "gauge", ("gr_e", "")),
        ("§", "", "gauge", ("_", "")),
    ],
)
def test_names_follow_the_compatibility_rules(name: str, unit: str, kind: str, expected: tuple[str, str]) -> None:
    assert family_name(name, unit, counter=kind == "counter", gauge=kind == "gauge") == expected


@given(st.text(), st.text(), st.booleans(), st.booleans())
def test_every_name_and_label_is_one_that_prometheus_takes(name: str, unit: str, counter: bool, gauge: bool) -> None:
    family = family_name(name, unit, counter=counter, gauge=gauge).name
    assert family.isascii()
    assert family.replace(":", "_").isidentifier()
    assert label_name(name).isascii()
    assert label_name(name).isidentifier()


def test_a_unit_in_braces_is_a_comment() -> None:
    assert unit_name("By{compressed}", ratio=False) == "bytes"
    assert unit_name("{task}/s", ratio=True) == "per_second"


def test_labels_that_become_one_are_joined_in_the_order_of_their_keys() -> None:
    assert labels_of([("a_b", "2"), ("a.b", "1"), ("error.type", "X")]) == {"a_b": "1;2", "error_type": "X"}


def test_job_and_instance_are_the_service() -> None:
    assert target_of(POD.attributes) == {"job": "eu/shop", "instance": "pod-7"}
    assert target_of({"service.name": "shop"}) == {"job": "shop", "instance": ""}


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("", Format.TEXT),
        ("*/*", Format.TEXT),
        ("application/openmetrics-text", Format.OPENMETRICS),
        ("application/openmetrics-text;version=2.0.0", Format.TEXT),
        ("text/plain;q=0.9, application/openmetrics-text;version=1.0.0;q=0.2", Format.TEXT),
        ("application/openmetrics-text;q=0", Format.TEXT),
        ("application/openmetrics-text;q=soon", Format.TEXT),
        # What Prometheus 2.42 and 3 say.
        (
            "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
            "text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
            Format.OPENMETRICS,
        ),
        (
            "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
            "application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,"
            "text/plain;version=0.0.4;q=0.3,*/*;q=0.2",
            Format.OPENMETRICS,
        ),
    ],
)
def test_the_scraper_chooses_the_format(accept: str, expected: Format) -> None:
    assert chosen(accept) is expected


def test_gzip_is_for_those_who_want_it() -> None:
    assert accepts_gzip("gzip")
    assert accepts_gzip("br, x-gzip;q=0.1")
    assert not accepts_gzip("")
    assert not accepts_gzip("gzip;q=0, identity")


def test_a_counter_has_its_suffix_and_its_target() -> None:
    snapshots = kept(counted([(("mail", "default"), 3)]))
    assert shown(snapshots, Format.TEXT) == (
        "# HELP stem_tasks_succeeded_total Attempts that succeeded\n"
        "# TYPE stem_tasks_succeeded_total counter\n"
        'stem_tasks_succeeded_total{instance="pod-7",job="eu/shop",queue="default",task="mail"} 3.0\n'
        "# HELP target_info Target metadata\n"
        "# TYPE target_info gauge\n"
        'target_info{host_name="n1",instance="pod-7",job="eu/shop",service_instance_id="pod-7",service_name="shop",'
        'service_namespace="eu"} 1.0\n'
    )
    (sample,) = families(shown(snapshots))["stem_tasks_succeeded"].samples
    assert (sample.name, sample.value) == ("stem_tasks_succeeded_total", 3)


def test_each_resource_is_a_target_of_its_own() -> None:
    levels = Levels(NOW_NS)
    levels.set(DEPTH, ("default",), 7)
    snapshots = kept(counted([(("mail", "default"), 3)]), batch(*levels.collect(), FLEET, "stem_state"))
    found = families(shown(snapshots))
    assert [sample.labels["instance"] for sample in found["stem_queue_depth"].samples] == ["fleet"]
    assert [sample.labels["instance"] for sample in found["stem_tasks_succeeded"].samples] == ["pod-7"]
    targets = {sample.labels["instance"]: sample.labels for sample in found["target"].samples}
    assert targets.keys() == {"pod-7", "fleet"}
    assert "host_name" not in targets["fleet"]


def test_buckets_add_up_and_carry_the_exemplar_that_fell_into_them() -> None:
    aggregator = Aggregator(now_ns=NOW_NS, cardinality_limit=10, series_ttl=60)
    for value in (0.004, 0.03, 0.03, 20_000.0):
        aggregator.record(LATENCY, ("mail", "default"), NOW_NS, value, SPAN if value > 0.004 else None)
    found = families(shown(kept(batch(*aggregator.collect(NOW_NS)))))["stem_queue_latency_seconds"]
    buckets = {s.labels["le"]: s for s in found.samples if s.name.endswith("_bucket")}
    assert found.unit == "seconds"
    assert [buckets[le].value for le in ("0.005", "0.025", "0.05", "14400.0", "+Inf")] == [1, 1, 3, 3, 4]
    assert {le for le, sample in buckets.items() if sample.exemplar} == {"0.05", "+Inf"}
    exemplar = buckets["0.05"].exemplar
    assert exemplar.labels == {"trace_id": bytes(range(16)).hex(), "span_id": bytes(range(8)).hex()}
    assert (exemplar.value, float(exemplar.timestamp)) == (0.03, NOW_NS / NANOSECONDS)
    assert {s.name[26:]: s.value for s in found.samples if "_bucket" not in s.name} == {"_count": 4, "_sum": 20_000.064}
    plain = list(text(shown(kept(batch(*aggregator.collect(NOW_NS))), Format.TEXT)))
    assert {family.name for family in plain} == {"stem_queue_latency_seconds", "target_info"}


def test_an_exemplar_stays_until_another_comes_or_it_is_old() -> None:
    aggregator = Aggregator(now_ns=NOW_NS, cardinality_limit=10, series_ttl=3600)
    aggregator.record(LATENCY, ("mail", "default"), NOW_NS, 0.03, SPAN)
    snapshots = kept(batch(*aggregator.collect(NOW_NS)), batch(*aggregator.collect(NOW_NS)), seconds=3600)
    assert "trace_id" in shown(snapshots)
    snapshots.tell(batch(*aggregator.collect(NOW_NS)), NOW_NS + EXEMPLAR_TTL_NS + 1)
    assert "trace_id" not in shown(snapshots)


def test_what_a_source_no_longer_tells_is_gone_at_once() -> None:
    snapshots = kept(counted([(("mail", "a"), 1), (("mail", "b"), 1)]), counted([(("mail", "b"), 2)]))
    assert [s.labels["queue"] for s in families(shown(snapshots))["stem_tasks_succeeded"].samples] == ["b"]
    snapshots.tell(batch([]), NOW_NS)
    assert shown(snapshots) == "# EOF\n"


def test_a_source_that_falls_silent_counts_until_it_expires() -> None:
    snapshots = kept(counted([(("mail", "a"), 1)]), seconds=30)
    assert "stem_tasks_succeeded" in shown(snapshots, now_ns=NOW_NS + 30 * NANOSECONDS)
    assert shown(snapshots, now_ns=NOW_NS + 30 * NANOSECONDS + 1) == "# EOF\n"


def test_a_source_that_tells_rarely_is_silent_when_it_left_out_three_turns() -> None:
    snapshots = kept(counted([(("mail", "a"), 1)]), seconds=30)
    hour_ns = 3600 * NANOSECONDS
    snapshots.tell(counted([(("mail", "a"), 2)]), NOW_NS + hour_ns)
    assert "stem_tasks_succeeded" in shown(snapshots, now_ns=NOW_NS + 4 * hour_ns)
    assert shown(snapshots, now_ns=NOW_NS + 4 * hour_ns + 1) == "# EOF\n"


def test_sources_do_not_take_each_others_place() -> None:
    snapshots = kept(counted([(("mail", "a"), 1)], source="one"), counted([(("mail", "b"), 1)], source="two"))
    assert len(families(shown(snapshots))["stem_tasks_succeeded"].samples) == 2


def test_one_series_of_two_sources_is_shown_once_and_counted() -> None:
    snapshots = kept(counted([(("mail", "a"), 1)], source="one"))
    snapshots.tell(counted([(("mail", "a"), 9)], source="two"), NOW_NS + 1)
    exposition = Exposition(Format.OPENMETRICS, snapshots.at(NOW_NS + 1), {})
    assert exposition.shadowed == 1
    (sample,) = families(exposition.encode().decode())["stem_tasks_succeeded"].samples
    assert sample.value == 9


def test_scope_and_start_are_told_if_wanted() -> None:
    exposition = Exposition(
        Format.OPENMETRICS, kept(counted([(("mail", "a"), 1)])).at(NOW_NS), SCOPE_LABELS, created=True
    )
    family = families(exposition.encode().decode())["stem_tasks_succeeded"]
    assert all(sample.labels["otel_scope_name"] == "stem-agent" for sample in family.samples)
    assert {s.name: s.value for s in family.samples}["stem_tasks_succeeded_created"] == NOW_NS / NANOSECONDS
    assert "_created" not in shown(kept(counted([(("mail", "a"), 1)])), Format.TEXT, created=True)


def metric(**data: Any) -> bytes:
    return pb.Metric(name="m", **data).SerializeToString()


POINT = pb.NumberDataPoint(as_int=1)


@pytest.mark.parametrize(
    ("items", "counts", "reason"),
    [
        ([b"\xff"], (), {"undecodable": 1}),
        ([metric()], (3,), {"unsupported_type": 3}),
        ([metric(summary=pb.Summary(data_points=[pb.SummaryDataPoint()]))], (), {"unsupported_type": 1}),
        (
            [metric(sum=pb.Sum(data_points=[POINT, POINT], aggregation_temporality=pb.AGGREGATION_TEMPORALITY_DELTA))],
            (2,),
            {"unsupported_temporality": 2},
        ),
        (
            [
                metric(gauge=pb.Gauge(data_points=[POINT])),
                metric(histogram=pb.Histogram(aggregation_temporality=pb.AGGREGATION_TEMPORALITY_CUMULATIVE)),
            ],
            (1, 4),
            {"name_conflict": 4},
        ),
    ],
)
def test_what_prometheus_has_no_place_for_is_told_by_reason(
    items: list[bytes], counts: tuple[int, ...], reason: dict[str, int]
) -> None:
    assert Snapshots(NANOSECONDS).tell(batch(items, counts), NOW_NS) == reason


def test_a_sum_that_may_fall_is_a_gauge_and_other_values_become_text() -> None:
    attributes = [
        KeyValue(key="on", value=AnyValue(bool_value=True)),
        KeyValue(key="n", value=AnyValue(int_value=7)),
        KeyValue(key="text", value=AnyValue(string_value='a "b"\n\\')),
    ]
    point = pb.NumberDataPoint(as_double=-1.5, attributes=attributes)
    gone = pb.NumberDataPoint(flags=pb.DATA_POINT_FLAGS_NO_RECORDED_VALUE_MASK)
    total = pb.Sum(data_points=[point, gone], aggregation_temporality=pb.AGGREGATION_TEMPORALITY_CUMULATIVE)
    family = families(shown(kept(batch([metric(sum=total)], (2,)))))["m"]
    assert family.type == "gauge"
    (sample,) = family.samples
    assert (sample.value, sample.labels["on"], sample.labels["n"]) == (-1.5, "true", "7")
    assert sample.labels["text"] == 'a "b"\n\\'
