"""Writing to a Datadog agent with Datadog's client, and knowing of every point what became of it."""

import logging
from collections import Counter
from collections.abc import Callable
from typing import Any

from datadog.dogstatsd.base import DogStatsd
from google.protobuf.message import DecodeError
from opentelemetry.proto.metrics.v1 import metrics_pb2 as pb

from agent.exporters.datadog.config import DatadogConfig
from agent.exporters.datadog.points import INSTANCE, metric_name, packed, resource_tags, spread, tag
from agent.otlp.batch import Batch
from agent.otlp.deltas import Deltas, Difference, Total, is_cumulative, total_of
from agent.otlp.reading import is_recorded, kind_of, number_of, points_of, texts

OUTPUT_FAILED = "output_failed"
_NEVER_SECONDS = 1e9
_library = logging.getLogger("datadog.dogstatsd")


class _Last(logging.Handler):
    """Keeps the last thing that the client had to say; it says so for each packet."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said = ""

    def emit(self, record: logging.LogRecord) -> None:
        error = record.args[0] if isinstance(record.args, tuple) and record.args else None
        self.said = (error.strerror or str(error)) if isinstance(error, OSError) else record.getMessage()


class Writer:
    """Writes batches, one at a time, in one thread; never raises for what a socket does.

    A batch is given up at the first packet that cannot be written: what came to its counters and histograms is in the
    next one, since a difference is taken only when it was written.
    """

    def __init__(self, config: DatadogConfig, began_ns: int) -> None:
        self._config = config
        self.deltas = Deltas(began_ns)
        self._last = _Last()
        _library.handlers[:], _library.propagate = [self._last], False
        host, port = config.udp or (None, None)
        self._client = DogStatsd(
            host=host,
            port=port,
            socket_path=None if config.udp else config.address,
            constant_tags=list(config.tags),
            socket_timeout=config.timeout,
            # Its books say what became of each packet; it would send them, and begin anew.
            telemetry_min_flush_interval=int(_NEVER_SECONDS),
            flush_interval=0,  # no thread of its own
            track_instance=False,
        )
        # What DD_SERVICE, DD_ENV and DD_VERSION say wins over the resource, as everywhere in Datadog.
        self._settled = {each.partition(":")[0] for each in self._client.constant_tags}

    def succeed(self, before: "Writer") -> None:
        """Go on with the differences of a writer that writes no more."""
        self.deltas = before.deltas

    @property
    def unknown(self) -> int:
        """How many series went on from before this exporter heard of them."""
        return self.deltas.unknown

    @property
    def failure(self) -> str:
        """Why the last packet could not be written."""
        return self._last.said.lower() or "it takes nothing"

    def write(self, batch: Batch) -> Counter[str]:
        """Write a batch; return by reason how many of its points were not."""
        try:
            metrics = list(map(pb.Metric.FromString, batch.items))
        except DecodeError:
            return Counter(undecodable=batch.count)
        self._last.said = ""
        common = [
            each
            for each in resource_tags(batch.resource.attributes, self._config.resource_tags)
            if each.partition(":")[0] not in self._settled
        ]
        passage = _Passage(self._client)
        with self._client:  # many lines a packet; the last one goes at the end
            dropped = self._metrics(batch, metrics, common, passage)
        return dropped + Counter({OUTPUT_FAILED: passage.settled()})

    def close(self) -> None:
        """Close the socket."""
        self._client.close_socket()

    def _metrics(self, batch: Batch, metrics: list[pb.Metric], common: list[str], passage: "_Passage") -> Counter[str]:
        unsupported: Counter[str] = Counter()
        for difference in self.deltas.differences(batch, metrics):
            passage.send(
                lambda difference=difference: self._came(difference, common),  # type: ignore[misc]
                lambda difference=difference: self.deltas.take(batch, difference),  # type: ignore[misc]
            )
        instance = resource_tags(batch.resource.attributes, [INSTANCE])
        for metric in metrics:
            if is_cumulative(metric):
                continue
            if kind_of(metric) not in {"sum", "gauge", "histogram"}:
                unsupported["unsupported_type"] += len(points_of(metric))
                continue
            for point in filter(is_recorded, points_of(metric)):
                passage.send(lambda metric=metric, point=point: self._as_it_is(metric, point, common, instance))  # type: ignore[misc]
        return unsupported

    def _came(self, difference: Difference, common: list[str]) -> None:
        if not difference.came.is_nothing:
            self._count(difference.metric, difference.point, difference.came, common)

    def _count(self, metric: pb.Metric, point: Any, came: Total, common: list[str]) -> None:
        name, tags = metric_name(metric.name), _tags(point, common)
        if kind_of(metric) == "sum":
            self._client.count(name, came.value, tags)
            return
        least = point.min if point.HasField("min") else None
        most = point.max if point.HasField("max") else None
        for values in packed(spread(came, least=least, most=most)):
            self._client.distribution(name, values, tags)  # type: ignore[arg-type] # several values in one

    def _as_it_is(self, metric: pb.Metric, point: Any, common: list[str], instance: list[str]) -> None:
        """Write a level, or what its source tells as a difference already."""
        kind = kind_of(metric)
        if kind == "histogram" or (kind == "sum" and metric.sum.is_monotonic):
            self._count(metric, point, total_of(point), common)
        else:
            # Two agents that tell the same level would overwrite one another; counts add up.
            self._client.gauge(metric_name(metric.name), number_of(point), _tags(point, [*common, *instance]))


class _Passage:
    """Points on their way: which were written, which not, and which are still in the client's buffer."""

    def __init__(self, client: DogStatsd) -> None:
        self._client = client
        self._books = self._read()
        self._buffered: list[Callable[[], None]] = []
        self._lost = 0
        self._broken = False

    def send(self, write: Callable[[], None], taken: Callable[[], None] = lambda: None) -> None:
        """Write a point, unless one before it could not be; `taken` is called when it was."""
        if self._broken:
            self._lost += 1
            return
        write()
        if self._settle():
            self._buffered.append(taken)
        else:
            self._lost += 1

    def settled(self) -> int:
        """Return how many points were not written, now that the buffer is empty."""
        self._settle()
        for taken in self._buffered:
            taken()
        self._buffered = []
        return self._lost

    def _settle(self) -> bool:
        """Look what became of what was in the buffer, if a packet went since; return False if that was lost."""
        before, (sent, lost) = self._books, self._read()
        if (sent, lost) == before:
            return True
        buffered, self._books, self._buffered = self._buffered, (sent, lost), []
        if lost > before[1]:
            self._broken = True
            self._lost += len(buffered)
            return False
        for taken in buffered:
            taken()
        return True

    def _read(self) -> tuple[int, int]:
        return self._client.packets_sent, self._client.packets_dropped_writer


def _tags(point: Any, common: list[str]) -> list[str]:
    return [*(tag(key, value) for key, value in texts(point.attributes)), *common]
