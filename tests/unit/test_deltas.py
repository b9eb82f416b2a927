"""Delta temporality: differences of totals, told once, whatever begins anew, goes on, or is left out for a while."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.metrics.v1 import metrics_pb2 as pb

from agent.otlp.batch import Batch, Kind
from agent.otlp.deltas import Deltas
from agent.otlp.levels import Levels
from agent.otlp.metrics import Aggregator, AggregatorState, Instrument
from agent.otlp.reading import points_of
from tests.support import SECOND
from tests.unit.test_prometheus_exposition import DEPTH, LATENCY, NOW_NS, POD, SPAN, TASKS

MAIL, OTHER = ("mail", "default"), ("other", "default")


class Told:
    """A source, and an exporter that tells its differences."""

    def __init__(
        self, state: AggregatorState | None = None, now_ns: int = NOW_NS, source: str = "correlate", limit: int = 100
    ) -> None:
        self.now_ns = now_ns
        self.source = source
        self.deltas = Deltas(now_ns - 1)
        self.aggregator = Aggregator(now_ns=now_ns, cardinality_limit=limit, series_ttl=3600)
        if state:
            self.aggregator.restore(state, [TASKS, LATENCY], now_ns)

    def pass_time(self, seconds: float = 10) -> None:
        self.now_ns += int(seconds * SECOND)

    def add(self, values: tuple[str, ...], amount: int) -> None:
        self.aggregator.add(TASKS, values, self.now_ns, amount)

    def batch(self, without: Sequence[Instrument] = ()) -> Batch:
        items, counts = self.aggregator.collect(self.now_ns, without)
        return Batch(Kind.METRICS, POD, items, sum(counts), counts=counts, source=self.source)

    def go_on(self) -> dict[str, pb.Metric]:
        """Tell from where it goes on."""
        return self.read(self.deltas.converted(replace(self.batch(), goes_on=True)))

    def tell(self, without: Sequence[Instrument] = ()) -> dict[str, pb.Metric]:
        """Ten seconds later, tell what came since the last time."""
        self.pass_time()
        return self.read(self.deltas.converted(self.batch(without)))

    @staticmethod
    def read(batch: Batch) -> dict[str, pb.Metric]:
        metrics = [pb.Metric.FromString(item) for item in batch.items]
        assert list(batch.counts) == [len(points_of(metric)) for metric in metrics]
        assert batch.count == sum(batch.counts)
        return {metric.name: metric for metric in metrics}

    def counted(self, **options: Any) -> dict[str, int]:
        """Tell, and return the differences of the counter by task."""
        metric = self.tell(**options).get(TASKS.name, pb.Metric())
        return {point.attributes[0].value.string_value: point.as_int for point in metric.sum.data_points}


def test_a_counter_tells_what_came_since_the_last_time_and_when_that_was() -> None:
    told = Told()
    told.add(MAIL, 3)
    metric = told.tell()[TASKS.name]
    (point,) = metric.sum.data_points
    assert metric.sum.aggregation_temporality == pb.AGGREGATION_TEMPORALITY_DELTA
    assert metric.sum.is_monotonic
    assert (metric.unit, metric.description) == (TASKS.unit, TASKS.description)
    assert (point.as_int, point.start_time_unix_nano, point.time_unix_nano) == (3, NOW_NS, told.now_ns)
    before_ns = told.now_ns
    told.add(MAIL, 2)
    (point,) = told.tell()[TASKS.name].sum.data_points
    assert (point.as_int, point.start_time_unix_nano, point.time_unix_nano) == (2, before_ns, told.now_ns)


def test_what_did_not_change_is_not_told() -> None:
    told = Told()
    told.add(MAIL, 3)
    told.add(OTHER, 1)
    assert told.counted() == {"mail": 3, "other": 1}
    told.add(OTHER, 1)
    assert told.counted() == {"other": 1}
    assert told.tell() == {}
    told.add(MAIL, 1)
    (point,) = told.tell()[TASKS.name].sum.data_points
    assert point.time_unix_nano - point.start_time_unix_nano == 10 * SECOND, (
        "nothing came in between, and that was said"
    )


def test_a_histogram_tells_its_buckets_and_exemplars_and_no_extremes_of_other_times() -> None:
    told = Told()
    for value in (0.004, 0.3):
        told.aggregator.record(LATENCY, MAIL, told.now_ns, value)
    told.tell()
    for value in (0.3, 0.4):
        told.aggregator.record(LATENCY, MAIL, told.now_ns, value, SPAN)
    metric = told.tell()[LATENCY.name]
    (point,) = metric.histogram.data_points
    assert metric.histogram.aggregation_temporality == pb.AGGREGATION_TEMPORALITY_DELTA
    assert (point.count, round(point.sum, 9)) == (2, 0.7)
    assert dict(zip([*point.explicit_bounds, None], point.bucket_counts, strict=True))[0.5] == 2
    assert sum(point.bucket_counts) == 2
    assert not point.HasField("min")
    assert not point.HasField("max")
    assert point.exemplars[0].trace_id == SPAN.trace_id
    assert told.tell() == {}


def test_gauges_and_sums_that_may_fall_are_told_as_they_are() -> None:
    levels = Levels(NOW_NS)
    levels.set(DEPTH, ("default",), 7)
    items, counts = levels.collect()
    points = [pb.NumberDataPoint(as_int=5)]
    total = pb.Sum(data_points=points, aggregation_temporality=pb.AGGREGATION_TEMPORALITY_CUMULATIVE)
    items.append(pb.Metric(name="m", sum=total).SerializeToString())
    batch = Batch(Kind.METRICS, POD, items, 2, counts=[*counts, 1])
    converted = Deltas(NOW_NS).converted(batch)
    assert list(converted.items) == items
    assert converted.count == 2


def test_a_series_that_ended_and_came_back_counts_from_its_new_start() -> None:
    told = Told()
    told.add(MAIL, 30)
    told.tell()
    told.aggregator.remove(TASKS, MAIL)
    told.add(MAIL, 2)
    assert told.counted() == {"mail": 2}
    told.aggregator.remove(TASKS, MAIL)
    told.add(MAIL, 2)
    assert told.counted() == {"mail": 2}, "the same total, but another start"


def test_a_metric_that_is_new_counts_from_zero_also_when_others_were_told_before() -> None:
    told = Told()
    told.add(MAIL, 1)
    told.tell()
    told.aggregator.record(LATENCY, MAIL, told.now_ns, 0.3)
    (point,) = told.tell()[LATENCY.name].histogram.data_points
    assert point.count == 1
    assert told.deltas.unknown == 0


def test_what_a_process_before_had_counted_is_not_told_again_and_nothing_is_missing() -> None:
    before = Told()
    before.add(MAIL, 1000)
    assert before.counted() == {"mail": 1000}
    after = Told(before.aggregator.state(), before.now_ns + SECOND)
    assert after.go_on() == {}
    assert after.deltas.unknown == 1
    after.add(MAIL, 1)
    after.add(OTHER, 5)
    assert after.counted() == {"mail": 1, "other": 5}
    assert after.deltas.unknown == 1


def test_a_source_that_ended_here_begins_where_others_left_it() -> None:
    told = Told()
    told.add(MAIL, 3)
    told.tell()
    told.deltas.converted(Batch(Kind.METRICS, POD, [], 0, source=told.source))
    told.add(MAIL, 100)  # another agent told of them, and hands its totals back
    assert told.counted() == {}
    assert told.deltas.unknown == 1
    told.add(MAIL, 1)
    assert told.counted() == {"mail": 1}


def test_what_another_agent_told_meanwhile_is_not_told_again_by_the_one_that_takes_over_from_it() -> None:
    first, second = Told(), Told()
    first.add(MAIL, 3)
    assert first.counted() == {"mail": 3}
    first.deltas.converted(Batch(Kind.METRICS, POD, [], 0, source=first.source))
    second.aggregator.restore(first.aggregator.state(), [TASKS], first.now_ns)
    second.now_ns = first.now_ns + SECOND
    assert second.go_on() == {}
    second.add(MAIL, 1)
    second.add(OTHER, 7)  # this one began when the first did not tell
    assert second.counted() == {"mail": 1, "other": 7}
    first.now_ns = second.now_ns + SECOND
    first.aggregator.restore(second.aggregator.state(), [TASKS], first.now_ns)
    assert first.go_on() == {}
    first.add(OTHER, 2)
    assert first.counted() == {"other": 2}


def test_what_was_left_out_for_minutes_is_told_in_one_and_what_for_longer_is_somebody_elses() -> None:
    told = Told()
    told.add(MAIL, 3)
    told.tell()
    told.aggregator.record(LATENCY, MAIL, told.now_ns, 0.3)
    told.tell(without=[TASKS])
    told.add(MAIL, 4)
    assert told.counted() == {"mail": 4}
    for _ in range(70):
        told.add(MAIL, 1)
        told.aggregator.record(LATENCY, MAIL, told.now_ns, 0.3)
        told.tell(without=[TASKS])
    assert told.counted() == {}
    assert told.deltas.unknown == 1


def test_a_source_that_tells_once_an_hour_is_remembered() -> None:
    told = Told()
    told.add(MAIL, 3)
    told.tell()
    told.pass_time(3600 - 10)
    told.add(MAIL, 4)
    assert told.counted() == {"mail": 4}


def test_sources_are_kept_apart() -> None:
    first = Told()
    first.add(MAIL, 3)
    second = Told(source="other")
    second.deltas = first.deltas
    second.add(MAIL, 5)
    assert first.counted() == {"mail": 3}
    assert second.counted() == {"mail": 5}


@given(st.lists(st.tuples(st.sampled_from(["mail", "other", "third"]), st.integers(0, 5), st.sampled_from("atrx"))))
def test_differences_add_up_to_the_totals(steps: list[tuple[str, int, str]]) -> None:
    told, sums, counts = Told(), dict[str, int](), dict[str, int]()
    expected, values = dict[str, int](), dict[str, int]()

    def tell() -> None:
        metrics = told.tell()
        for point in metrics[TASKS.name].sum.data_points if TASKS.name in metrics else ():
            task = point.attributes[0].value.string_value
            sums[task] = sums.get(task, 0) + point.as_int
        for point in metrics[LATENCY.name].histogram.data_points if LATENCY.name in metrics else ():
            assert point.count == sum(point.bucket_counts)
            task = point.attributes[0].value.string_value
            counts[task] = counts.get(task, 0) + point.count

    for task, amount, step in steps:
        if step == "a":
            told.add((task, "default"), amount)
            expected[task] = expected.get(task, 0) + amount
        elif step == "r":
            told.aggregator.record(LATENCY, (task, "default"), told.now_ns, amount)
            values[task] = values.get(task, 0) + 1
        elif step == "x":  # it was told, and ends: it begins anew
            tell()
            told.aggregator.remove(TASKS, (task, "default"))
        else:
            tell()
    tell()
    assert {task: amount for task, amount in sums.items() if amount} == {k: v for k, v in expected.items() if v}
    assert counts == values


@pytest.mark.parametrize("bounds", [[1.0, 2.0], [1.0]])
def test_a_histogram_with_other_bounds_begins_anew(bounds: list[float]) -> None:
    deltas, told = Deltas(0), []
    for each in ([1.0], bounds):
        point = pb.HistogramDataPoint(
            start_time_unix_nano=1,
            time_unix_nano=5,
            count=2,
            sum=2,
            bucket_counts=[2] + [0] * len(each),
            explicit_bounds=each,
        )
        histogram = pb.Histogram(data_points=[point], aggregation_temporality=pb.AGGREGATION_TEMPORALITY_CUMULATIVE)
        item = pb.Metric(name="m", histogram=histogram).SerializeToString()
        told.append(deltas.converted(Batch(Kind.METRICS, POD, [item], 1, counts=[1])).count)
    assert told == [1, 0 if bounds == [1.0] else 1]
