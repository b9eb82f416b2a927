"""Counters, gauges and histograms with few-valued attributes, and their encoding as OTLP metrics.

Own aggregation, because it runs per signal: 0.2 us a measurement against 5 to 7 us in the SDK. The encoding, once
an interval, fills the official protobuf messages. Temporality is cumulative; each series keeps its own start time,
so one that ended and came back is seen as a reset, not as a jump.
"""

from bisect import bisect_left
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum, auto

from msgspec import Struct
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.metrics.v1 import metrics_pb2 as pb

from agent.core.clock import NANOSECONDS
from agent.core.histogram import DURATION_BOUNDS

OVERFLOW = "otel.metric.overflow"

Values = tuple[str, ...]


class InstrumentKind(Enum):
    """What an instrument's points mean."""

    COUNTER = auto()
    GAUGE = auto()
    HISTOGRAM = auto()


@dataclass(frozen=True, slots=True, eq=False)  # compared and hashed by identity: it is looked up per signal
class Instrument:
    """Name, kind, UCUM unit, attribute keys and meaning of one metric."""

    name: str
    kind: InstrumentKind
    unit: str
    keys: tuple[str, ...]
    description: str


@dataclass(frozen=True, slots=True)
class Exemplar:
    """A measurement's span; only of spans that were kept."""

    trace_id: bytes
    span_id: bytes


class SeriesState(Struct, array_like=True):
    """A series as it is kept; `values` is None for what came above the cardinality limit."""

    values: Values | None
    start_ns: int
    seen_ns: int
    value: int | float
    count: int
    minimum: float
    maximum: float
    buckets: list[int]


class Series:
    """The state of one instrument for one set of attribute values."""

    __slots__ = ("buckets", "count", "exemplars", "maximum", "minimum", "seen_ns", "start_ns", "value")

    def __init__(self, start_ns: int, *, histogram: bool) -> None:
        self.start_ns = start_ns
        self.seen_ns = start_ns
        self.value: float = 0  # a counter's or gauge's value, a histogram's sum
        self.count = 0
        self.minimum = float("inf")
        self.maximum = float("-inf")
        self.buckets = [0] * (len(DURATION_BOUNDS) + 1) if histogram else []
        self.exemplars: dict[int, tuple[float, int, Exemplar]] = {}

    def state(self, values: Values | None) -> SeriesState:
        """Return everything but the exemplars."""
        return SeriesState(
            *(values, self.start_ns, self.seen_ns, self.value),
            *(self.count, self.minimum, self.maximum, self.buckets),
        )

    def restored(self, state: SeriesState, now_ns: int) -> "Series":
        """Go on from a state, and return itself."""
        self.seen_ns = min(state.seen_ns, now_ns)
        self.value, self.count, self.buckets = state.value, state.count, state.buckets
        self.minimum, self.maximum = state.minimum, state.maximum
        return self


class InstrumentState(Struct, array_like=True):
    """The series of an instrument; its name, attribute keys and bounds say whether they are still those of today."""

    name: str
    keys: tuple[str, ...]
    bounds: tuple[float, ...]
    series: list[SeriesState]


MAX_ENDED = 10_000
"""Names of series that ended, remembered until somebody asks for changes."""


class AggregatorState(Struct, array_like=True):
    """All series; exemplars are not kept, because every collection tells and forgets them."""

    collected_ns: int
    instruments: list[InstrumentState]


class Aggregator:
    """All series of one resource.

    `cardinality_limit` bounds the series of each instrument; what comes above it is kept in one series with the
    attribute `otel.metric.overflow` (OpenTelemetry metrics SDK specification, "Cardinality limits"). A series that
    no measurement touched for `series_ttl` seconds ends.
    """

    def __init__(self, *, now_ns: int, cardinality_limit: int, series_ttl: float) -> None:
        self._limit = cardinality_limit
        self._ttl_ns = int(series_ttl * NANOSECONDS)
        self._series: dict[Instrument, dict[Values | None, Series]] = {}
        self._last_collect_ns = now_ns
        self._ended: deque[str] = deque(maxlen=MAX_ENDED)

    def add(self, instrument: Instrument, values: Values, now_ns: int, amount: float = 1) -> None:
        """Move a counter."""
        series = self._find(instrument, values)
        series.value += amount
        series.seen_ns = now_ns

    def set(self, instrument: Instrument, values: Values, now_ns: int, value: float) -> None:
        """Set a gauge."""
        series = self._find(instrument, values)
        series.value = value
        series.seen_ns = now_ns

    def record(
        self, instrument: Instrument, values: Values, now_ns: int, value: float, exemplar: Exemplar | None = None
    ) -> None:
        """Record one value (seconds) of a histogram."""
        series = self._find(instrument, values)
        bucket = bisect_left(DURATION_BOUNDS, value)
        series.buckets[bucket] += 1
        series.count += 1
        series.value += value
        series.minimum = min(series.minimum, value)
        series.maximum = max(series.maximum, value)
        series.seen_ns = now_ns
        if exemplar:
            series.exemplars[bucket] = (value, now_ns, exemplar)

    def remove(self, instrument: Instrument, values: Values) -> None:
        """End one series, for what is known to be gone."""
        self._series.get(instrument, {}).pop(values, None)

    def _find(self, instrument: Instrument, values: Values) -> Series:
        table = self._series.get(instrument)
        if table is None:
            table = self._series[instrument] = {}
        return table.get(values) or self._create(instrument, table, values)

    def _create(self, instrument: Instrument, table: dict[Values | None, Series], values: Values) -> Series:
        # One place under the limit is the overflow's.
        key = values if len(table) < self._limit - 1 or values in table else None
        if (series := table.get(key)) is None:
            histogram = instrument.kind is InstrumentKind.HISTOGRAM
            # The first measurement came after the last collection: that is the true start for a rate.
            series = table[key] = Series(self._last_collect_ns, histogram=histogram)
        return series

    def state(self) -> AggregatorState:
        """Return all series."""
        return AggregatorState(
            self._last_collect_ns,
            [
                InstrumentState(
                    *(instrument.name, instrument.keys, _bounds(instrument)),
                    [series.state(values) for values, series in table.items()],
                )
                for instrument, table in self._series.items()
            ],
        )

    def changes(self, since_ns: int) -> Iterator[tuple[str, InstrumentState | None]]:
        """Yield each series of counters and histograms that moved since then, by a name; None for what ended."""
        for name in self._ended:
            yield name, None
        self._ended.clear()
        for instrument, table in self._series.items():
            if instrument.kind is InstrumentKind.GAUGE:
                continue
            about = (instrument.name, instrument.keys, _bounds(instrument))
            for values, series in table.items():
                if series.seen_ns >= since_ns:
                    yield _name(instrument, values), InstrumentState(*about, [series.state(values)])

    def restore(self, state: AggregatorState, instruments: Iterable[Instrument], now_ns: int) -> None:
        """Go on counting: each series with its value and its start time.

        What is told under other attributes or bounds today begins anew, and so does what began later than now (a clock
        was set back): both are resets, which a start time tells.
        """
        self._last_collect_ns = min(state.collected_ns, now_ns)
        known = {(instrument.name, instrument.keys, _bounds(instrument)): instrument for instrument in instruments}
        for kept in state.instruments:
            instrument = known.get((kept.name, kept.keys, kept.bounds))
            fits = [each for each in kept.series if each.start_ns <= now_ns] if instrument else []
            if instrument and fits:
                histogram = instrument.kind is InstrumentKind.HISTOGRAM
                table = self._series.setdefault(instrument, {})
                for each in fits[: self._limit - len(table)]:
                    table[each.values] = Series(each.start_ns, histogram=histogram).restored(each, now_ns)

    def collect(self, now_ns: int, without: Collection[Instrument] = ()) -> tuple[list[bytes], list[int]]:
        """End stale series; return the encoded `Metric` messages, and how many data points each has.

        Instruments in `without` go on and are left out: another agent tells them.
        """
        metrics, points = [], []
        for instrument, table in self._series.items():
            stale = [key for key, series in table.items() if now_ns - series.seen_ns > self._ttl_ns]
            for key in stale:
                del table[key]
                self._ended.append(_name(instrument, key))
            if table and instrument not in without:
                metrics.append(_encode(instrument, table, now_ns).SerializeToString())
                points.append(len(table))
        self._last_collect_ns = now_ns
        return metrics, points


def _name(instrument: Instrument, values: Values | None) -> str:
    return "\0".join((instrument.name, *(values or ())))


def _bounds(instrument: Instrument) -> tuple[float, ...]:
    return DURATION_BOUNDS if instrument.kind is InstrumentKind.HISTOGRAM else ()


def _encode(instrument: Instrument, table: dict[Values | None, Series], now_ns: int) -> pb.Metric:
    metric = pb.Metric(name=instrument.name, unit=instrument.unit, description=instrument.description)
    if instrument.kind is InstrumentKind.HISTOGRAM:
        metric.histogram.aggregation_temporality = pb.AGGREGATION_TEMPORALITY_CUMULATIVE
        metric.histogram.data_points.extend(_histogram_points(instrument, table, now_ns))
        return metric
    if instrument.kind is InstrumentKind.GAUGE:
        metric.gauge.data_points.extend(_number_points(instrument, table, now_ns))
        return metric
    metric.sum.aggregation_temporality = pb.AGGREGATION_TEMPORALITY_CUMULATIVE
    metric.sum.is_monotonic = True
    metric.sum.data_points.extend(_number_points(instrument, table, now_ns))
    return metric


def _number_points(
    instrument: Instrument, table: dict[Values | None, Series], now_ns: int
) -> Iterator[pb.NumberDataPoint]:
    for values, series in table.items():
        point = pb.NumberDataPoint(attributes=_attributes(instrument.keys, values), time_unix_nano=now_ns)
        if instrument.kind is InstrumentKind.COUNTER:
            point.start_time_unix_nano = series.start_ns
        if isinstance(series.value, int):
            point.as_int = series.value
        else:
            point.as_double = series.value
        yield point


def _histogram_points(
    instrument: Instrument, table: dict[Values | None, Series], now_ns: int
) -> Iterator[pb.HistogramDataPoint]:
    for values, series in table.items():
        point = pb.HistogramDataPoint(
            attributes=_attributes(instrument.keys, values),
            start_time_unix_nano=series.start_ns,
            time_unix_nano=now_ns,
            count=series.count,
            sum=series.value,
            bucket_counts=series.buckets,
            explicit_bounds=DURATION_BOUNDS,
            min=series.minimum,
            max=series.maximum,
        )
        for value, time_ns, exemplar in series.exemplars.values():
            point.exemplars.add(
                as_double=value, time_unix_nano=time_ns, trace_id=exemplar.trace_id, span_id=exemplar.span_id
            )
        series.exemplars.clear()
        yield point


def _attributes(keys: Sequence[str], values: Values | None) -> list[KeyValue]:
    if values is None:
        return [KeyValue(key=OVERFLOW, value=AnyValue(bool_value=True))]
    return [
        KeyValue(key=key, value=AnyValue(string_value=value)) for key, value in zip(keys, values, strict=True) if value
    ]
