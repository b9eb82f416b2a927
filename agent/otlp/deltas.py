"""From what was counted since a series began to what was counted since it was told last (delta temporality). Pure.

Specification: OpenTelemetry metrics data model, "Temporality", "Resets and Gaps". Differences are state of the exporter
that needs them: one agent may tell Prometheus totals and a vendor differences. A difference is taken once: where the
road has no queue that keeps it, it is taken only when it was delivered, and else is in the next one.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from opentelemetry.proto.metrics.v1 import metrics_pb2 as pb

from agent.core.clock import NANOSECONDS
from agent.otlp.batch import Batch
from agent.otlp.reading import is_recorded, kind_of, number_of, points_of

_PATIENCE_NS = 600 * NANOSECONDS
"""For how long a series is remembered that its source leaves out: a store of the fleet may be away for minutes."""


@dataclass(frozen=True, slots=True)
class Total:
    """What a series had counted at `time_ns`, since `start_ns` (Unix nanoseconds).

    `value` is a counter's, or a histogram's sum; `buckets` are empty for a counter, and so are `bounds`.
    """

    start_ns: int
    time_ns: int
    value: float
    count: int = 0
    buckets: tuple[int, ...] = ()
    bounds: tuple[float, ...] = ()

    def since(self, before: "Total") -> "Total":
        """Return what came since `before`, of the same series, which must not have counted more."""
        return Total(
            before.time_ns,
            self.time_ns,
            self.value - before.value,
            self.count - before.count,
            tuple(now - then for now, then in zip(self.buckets, before.buckets, strict=True)),
            self.bounds,
        )

    def goes_on(self, before: "Total") -> bool:
        """Tell whether it counts on from `before`: else the series began anew (a reset)."""
        return (
            self.start_ns == before.start_ns
            and self.bounds == before.bounds
            and len(self.buckets) == len(before.buckets)
            and (self.value >= before.value or bool(self.buckets))
            and all(now >= then for now, then in zip(self.buckets, before.buckets, strict=True))
        )

    @property
    def is_nothing(self) -> bool:
        """Whether nothing was counted."""
        return not (self.count if self.buckets else self.value)


Key = tuple[str, bytes]
"""The name of a metric, and the attributes of a series."""


@dataclass(slots=True)
class Difference:
    """A point of a metric, and what came since it was told last; `key` is what it is taken by."""

    metric: pb.Metric
    point: Any
    key: Key
    came: Total


@dataclass(slots=True)
class _Source:
    """What is known of one source under one resource; times are Unix nanoseconds, by the clock of the source.

    `told_ns` is when it told last, and `names` when it told each metric: its parts may be read at different times.
    """

    told_ns: int
    names: dict[str, int] = field(default_factory=dict)
    totals: dict[Key, Total] = field(default_factory=dict)
    seen_ns: dict[Key, int] = field(default_factory=dict)

    def begun(self, name: str, total: Total) -> bool:
        """Tell whether a series began since the source told this metric last, so that nobody told it before."""
        return total.start_ns >= self.names.get(name, self.told_ns)

    def done(self, seen: Mapping[Key, Total]) -> None:
        """Note what was in a batch; forget series that were left out for long."""
        before_ns, self.told_ns = self.told_ns, min((total.time_ns for total in seen.values()), default=self.told_ns)
        for key, total in seen.items():
            self.names[key[0]] = self.seen_ns[key] = total.time_ns
        horizon_ns = min(before_ns, self.told_ns - _PATIENCE_NS)
        for key in [key for key, seen_ns in self.seen_ns.items() if seen_ns < horizon_ns]:
            del self.seen_ns[key], self.totals[key]


class Deltas:
    """The totals that were told last. `began_ns` is when this began to listen (Unix nanoseconds).

    A series that is not known counts from zero if it began since its source told last. If it began earlier, what it had
    counted by then was told by somebody: it is remembered, and only what comes later is told. So it is with all series
    of a batch that `goes_on`, with which a source begins that takes up what another process counted, so that nothing is
    told twice and nothing is missing in between. `unknown` counts such series.
    """

    def __init__(self, began_ns: int) -> None:
        self._began_ns = began_ns
        self._sources: dict[tuple[str, bytes], _Source] = {}
        self.unknown = 0

    def differences(self, batch: Batch, metrics: Iterable[pb.Metric]) -> Iterator[Difference]:
        """Yield what came of every series of a batch that counts, also if that is nothing.

        Each has to be taken (`take`), or comes again with the next batch of the source. A batch without items ends the
        source: if it tells again, others may have told meanwhile.
        """
        source, seen = self._source(batch), dict[Key, Total]()
        if not batch.items:
            source.totals, source.seen_ns, source.names = {}, {}, {}
            return
        for metric in filter(is_cumulative, metrics):
            for point in filter(is_recorded, points_of(metric)):
                key = (metric.name, b"".join(sorted(pair.SerializeToString() for pair in point.attributes)))
                total = seen[key] = total_of(point)
                if batch.goes_on:
                    source.totals[key] = total
                    self.unknown += 1
                    continue
                before = source.totals.get(key)
                if before is None or not total.goes_on(before):
                    before = source.totals[key] = self._beginning(source, key, total, is_known=before is not None)
                yield Difference(metric, point, key, total.since(before))
        source.done(seen)

    def take(self, batch: Batch, difference: Difference) -> None:
        """Remember that a difference was told."""
        self._source(batch).totals[difference.key] = total_of(difference.point)

    def converted(self, batch: Batch) -> Batch:
        """Return a batch of metrics with what came since the last one; series of which nothing came are left out.

        Raises `DecodeError` for what is no metric.
        """
        metrics = list(map(pb.Metric.FromString, batch.items))
        changed: dict[int, list[Difference]] = {}
        for difference in self.differences(batch, metrics):
            self.take(batch, difference)
            if not difference.came.is_nothing:
                changed.setdefault(id(difference.metric), []).append(difference)
        told: list[tuple[bytes, int]] = []
        for item, metric in zip(batch.items, metrics, strict=True):
            if not is_cumulative(metric):
                told.append((item, len(points_of(metric))))
            elif differences := changed.get(id(metric)):
                told.append((_encoded(metric, differences), len(differences)))
        counts = [count for _, count in told]
        return replace(batch, items=[item for item, _ in told], count=sum(counts), counts=counts)

    def _source(self, batch: Batch) -> _Source:
        key = (batch.source, batch.resource.encoded)
        if key not in self._sources:
            self._sources[key] = _Source(self._began_ns)
        return self._sources[key]

    def _beginning(self, source: _Source, key: Key, total: Total, *, is_known: bool) -> Total:
        """Return what a series that is not known, or began anew, had told: nothing, or all of it by somebody else."""
        if is_known or source.begun(key[0], total):
            nothing = (0,) * len(total.buckets)
            return Total(total.start_ns, total.start_ns, 0, 0, nothing, total.bounds)
        self.unknown += 1
        return total


def is_cumulative(metric: pb.Metric) -> bool:
    """Tell whether a metric counts up and is told as a total; others have no differences."""
    kind = kind_of(metric)
    if kind == "sum":
        return metric.sum.is_monotonic and metric.sum.aggregation_temporality == _CUMULATIVE
    return kind == "histogram" and metric.histogram.aggregation_temporality == _CUMULATIVE


_CUMULATIVE = pb.AGGREGATION_TEMPORALITY_CUMULATIVE


def total_of(point: Any) -> Total:
    """Return what the point of a counter or histogram says."""
    if isinstance(point, pb.NumberDataPoint):
        return Total(point.start_time_unix_nano, point.time_unix_nano, number_of(point))
    return Total(
        *(point.start_time_unix_nano, point.time_unix_nano, point.sum, point.count),
        tuple(point.bucket_counts) or (point.count,),
        tuple(point.explicit_bounds),
    )


def _encoded(metric: pb.Metric, differences: Sequence[Difference]) -> bytes:
    """Return a metric with differences in place of its totals; of a histogram the extremes go, which were of all."""
    told = pb.Metric(name=metric.name, unit=metric.unit, description=metric.description, metadata=metric.metadata)
    data = getattr(told, kind_of(metric))
    data.aggregation_temporality = pb.AGGREGATION_TEMPORALITY_DELTA
    if kind_of(metric) == "sum":
        data.is_monotonic = True
    for each in differences:
        point, came = data.data_points.add(), each.came
        point.CopyFrom(each.point)
        point.start_time_unix_nano = came.start_ns
        if isinstance(point, pb.NumberDataPoint):
            if isinstance(came.value, int):
                point.as_int = came.value
            else:
                point.as_double = came.value
            continue
        point.count, point.sum = came.count, came.value
        if point.bucket_counts:
            point.bucket_counts[:] = came.buckets
        point.ClearField("min")
        point.ClearField("max")
    return told.SerializeToString()
