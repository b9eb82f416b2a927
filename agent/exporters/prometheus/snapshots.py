"""What is told at this moment, by whom, and what has ended: pure.

A source tells everything it has to tell at once (`Batch`), so its last word is all there is to keep; what it no longer
tells is gone with the next scrape, and so is what it told if it falls silent.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import repeat
from typing import NamedTuple

from google.protobuf.message import DecodeError
from opentelemetry.proto.metrics.v1 import metrics_pb2 as pb

from agent.core.clock import NANOSECONDS
from agent.exporters.prometheus.names import FamilyName, family_name, labels_of
from agent.otlp.batch import Batch
from agent.otlp.reading import kind_of, points_of, texts

EXEMPLAR_TTL_NS = 300 * NANOSECONDS
"""For how long an exemplar is shown: sources tell each once, and scrapes come when they come."""

Labels = tuple[tuple[str, str], ...]


class Exemplar(NamedTuple):
    """A measurement and its span; `time_ns` is Unix nanoseconds."""

    value: float
    time_ns: int
    trace_id: str
    span_id: str


ExemplarKey = tuple[str, Labels]
"""The name of a family, and the labels of a series."""


@dataclass(slots=True)
class Family:
    """A metric as a family of Prometheus; `kind` is `counter`, `gauge` or `histogram`."""

    name: FamilyName
    kind: str
    metric: pb.Metric


@dataclass(slots=True)
class Snapshot:
    """What one source told of one resource; `exemplars` are the last of each bucket of each series.

    `rhythm_ns` is how long it took since it told before; 0 where that is not known.
    """

    resource: Mapping[str, object]
    told_ns: int
    rhythm_ns: int = 0
    families: list[Family] = field(default_factory=list)
    exemplars: dict[ExemplarKey, dict[int, Exemplar]] = field(default_factory=dict)


_MISSED = 3
"""A source that tells rarely is silent when it left out so many turns, whatever `expiration_ns` says."""


class Snapshots:
    """The last word of every source. `expiration_ns`: for how long it counts if no other comes."""

    def __init__(self, expiration_ns: int) -> None:
        self._expiration_ns = expiration_ns
        self._snapshots: dict[tuple[str, bytes], Snapshot] = {}

    def tell(self, batch: Batch, now_ns: int) -> Counter[str]:
        """Take a batch in place of what its source told before; return by reason how many points cannot be shown."""
        key = (batch.source, batch.resource.encoded)
        before = self._snapshots.pop(key, None)
        snapshot = Snapshot(batch.resource.attributes, now_ns, now_ns - before.told_ns if before else 0)
        dropped: Counter[str] = Counter()
        kinds = {family.name.name: family.kind for each in self._snapshots.values() for family in each.families}
        for item, count in zip(batch.items, batch.counts or repeat(0, len(batch.items)), strict=True):
            if isinstance(found := _family(item), Family):
                if kinds.setdefault(found.name.name, found.kind) == found.kind:
                    snapshot.families.append(found)
                    continue
                reason = "name_conflict"
            else:
                reason = found
            dropped[reason] += count or _points_in(item)
        if snapshot.families:
            snapshot.exemplars = _exemplars(snapshot, before, now_ns)
            self._snapshots[key] = snapshot
        return dropped

    def at(self, now_ns: int) -> list[Snapshot]:
        """Return what counts at this moment, the newest first; forget the rest."""
        for key, each in list(self._snapshots.items()):
            if now_ns - each.told_ns > max(self._expiration_ns, _MISSED * each.rhythm_ns):
                del self._snapshots[key]
        return sorted(self._snapshots.values(), key=lambda snapshot: -snapshot.told_ns)


def family_of(metric: pb.Metric) -> Family | str:
    """Return a metric as a family of Prometheus, or why it cannot be one."""
    data = kind_of(metric)
    if data not in {"sum", "gauge", "histogram"}:
        return "unsupported_type"
    if data != "gauge" and getattr(metric, data).aggregation_temporality != pb.AGGREGATION_TEMPORALITY_CUMULATIVE:
        return "unsupported_temporality"
    counter = data == "sum" and metric.sum.is_monotonic
    kind = "histogram" if data == "histogram" else "counter" if counter else "gauge"
    name = family_name(metric.name, metric.unit, counter=counter, gauge=data == "gauge")
    return Family(name, kind, metric)


def labels_key(point: pb.NumberDataPoint | pb.HistogramDataPoint) -> Labels:
    """Return the labels of a point, in the order of their attributes' keys."""
    return tuple(labels_of(texts(point.attributes)).items())


def _family(item: bytes) -> Family | str:
    try:
        return family_of(pb.Metric.FromString(item))
    except DecodeError:
        return "undecodable"


def _points_in(item: bytes) -> int:
    try:
        return len(points_of(pb.Metric.FromString(item)))
    except DecodeError:
        return 1


def _exemplars(snapshot: Snapshot, before: Snapshot | None, now_ns: int) -> dict[ExemplarKey, dict[int, Exemplar]]:
    """Return the last exemplar of each bucket, of this snapshot and of those before it."""
    kept = {
        key: fresh
        for key, buckets in (before.exemplars if before else {}).items()
        if (fresh := {i: each for i, each in buckets.items() if now_ns - each.time_ns <= EXEMPLAR_TTL_NS})
    }
    for family in snapshot.families:
        if family.kind == "histogram":
            for point in family.metric.histogram.data_points:
                if point.exemplars:
                    kept.setdefault((family.name.name, labels_key(point)), {}).update(_by_bucket(point))
    return kept


def _by_bucket(point: pb.HistogramDataPoint) -> Iterator[tuple[int, Exemplar]]:
    bounds = list(point.explicit_bounds)
    for each in sorted(point.exemplars, key=lambda exemplar: exemplar.time_unix_nano):
        value = each.as_int if each.WhichOneof("value") == "as_int" else each.as_double
        told = Exemplar(value, each.time_unix_nano, each.trace_id.hex(), each.span_id.hex())
        yield bisect_left(bounds, value), told
