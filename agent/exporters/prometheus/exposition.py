"""From snapshots to an exposition: pure. The formats themselves are prometheus_client's."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate

from opentelemetry.proto.metrics.v1 import metrics_pb2 as pb
from prometheus_client.exposition import generate_latest as text_format
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.exposition import generate_latest as openmetrics_format
from prometheus_client.samples import Exemplar, Sample, Timestamp
from prometheus_client.utils import floatToGoString

from agent import __version__
from agent.core.clock import NANOSECONDS
from agent.exporters.prometheus import snapshots
from agent.exporters.prometheus.accept import Format
from agent.exporters.prometheus.names import labels_of, target_of
from agent.exporters.prometheus.snapshots import Family, Snapshot, labels_key
from agent.otlp.reading import is_recorded, number_of
from agent.otlp.resource import SCOPE_NAME

SCOPE_LABELS = {"otel_scope_name": SCOPE_NAME, "otel_scope_version": __version__}
"""The instrumentation scope of everything that the agent tells."""


class Exposition:
    """All families of some snapshots, as prometheus_client wants them: a collector.

    `constant` labels are on every series. With `created`, OpenMetrics also says when each count began; the older format
    has no place for that. `shadowed` counts series that another source tells too: of those with the same name and
    labels one is shown, the newest.
    """

    def __init__(
        self, wanted: Format, told: Sequence[Snapshot], constant: Mapping[str, str], *, created: bool = False
    ) -> None:
        self._format = wanted
        self._created = created and wanted is Format.OPENMETRICS
        self._seen: set[tuple[str, snapshots.Labels]] = set()
        self.shadowed = 0
        self._families: dict[str, Metric] = {}
        targets = Metric("target", "Target metadata", "info")
        for snapshot in told:
            target = target_of(snapshot.resource)
            if self._is_new("target_info", tuple(target.items())):
                attributes = labels_of((key, _text(value)) for key, value in snapshot.resource.items())
                targets.add_sample("target_info", {**attributes, **target}, 1)
            else:
                self.shadowed -= 1  # two sources of one target are no mistake
            for family in snapshot.families:
                self._add(family, snapshot, {**target, **constant})
        if targets.samples:
            self._families["target"] = targets

    def collect(self) -> Iterator[Metric]:
        """Yield the families, in the order of their names."""
        return (family for _, family in sorted(self._families.items()))

    def encode(self) -> bytes:
        """Return the whole exposition."""
        return _ENCODERS[self._format](self)

    def _is_new(self, family: str, labels: snapshots.Labels) -> bool:
        key = (family, labels)
        is_new = key not in self._seen
        self._seen.add(key)
        self.shadowed += not is_new
        return is_new

    def _add(self, family: Family, snapshot: Snapshot, constant: Mapping[str, str]) -> None:
        name, unit = family.name
        told = self._families.get(name)
        if told is None:
            told = self._families[name] = Metric(name, family.metric.description or name, family.kind, unit)
        data = getattr(family.metric, family.metric.WhichOneof("data") or "")
        for point in filter(is_recorded, data.data_points):
            own = labels_key(point)
            labels = {**dict(own), **constant}
            if not self._is_new(name, tuple(labels.items())):
                continue
            if family.kind == "histogram":
                told.samples.extend(_histogram(name, labels, point, snapshot.exemplars.get((name, own), {})))
            else:
                suffix = "_total" if family.kind == "counter" else ""
                told.samples.append(Sample(f"{name}{suffix}", labels, number_of(point)))
            if self._created and family.kind != "gauge" and point.start_time_unix_nano:
                told.samples.append(Sample(f"{name}_created", labels, point.start_time_unix_nano / NANOSECONDS))


def _histogram(
    name: str, labels: Mapping[str, str], point: pb.HistogramDataPoint, exemplars: Mapping[int, snapshots.Exemplar]
) -> Iterator[Sample]:
    bounds = [*map(floatToGoString, point.explicit_bounds), "+Inf"]
    counts = list(accumulate(point.bucket_counts)) or [point.count]
    for index, (bound, count) in enumerate(zip(bounds[-len(counts) :], counts, strict=True)):
        exemplar = exemplars.get(index)
        shown = _exemplar(exemplar) if exemplar else None
        yield Sample(f"{name}_bucket", {**labels, "le": bound}, count, exemplar=shown)
    yield Sample(f"{name}_count", dict(labels), point.count)
    yield Sample(f"{name}_sum", dict(labels), point.sum)


def _exemplar(exemplar: snapshots.Exemplar) -> Exemplar:
    labels = {"trace_id": exemplar.trace_id, "span_id": exemplar.span_id}
    time = Timestamp(*divmod(exemplar.time_ns, NANOSECONDS))
    return Exemplar({key: value for key, value in labels.items() if value}, exemplar.value, time)


_ENCODERS: Mapping[Format, Callable[[Exposition], bytes]] = {
    Format.OPENMETRICS: openmetrics_format,
    Format.TEXT: text_format,
}


def _text(value: object) -> str:
    return value if isinstance(value, str) else str(value).lower() if isinstance(value, bool) else str(value)
