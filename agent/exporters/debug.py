"""`debug`: shows on standard output what passes by, as it is: batches, their sizes, every field of OTLP."""

from collections.abc import Callable, Iterator
from typing import Any, Literal, TextIO

from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from pydantic import Field

from agent.core.ledger import Ledger
from agent.core.status import Reports
from agent.exporters.printing import Printer
from agent.otlp.batch import Batch, Kind
from agent.otlp.reading import points_of
from agent.settings.model import Config

_NOUNS = {Kind.TRACES: "spans", Kind.METRICS: "data points", Kind.LOGS: "log records"}


class DebugConfig(Config):
    """Print what passes by as it is, for people who are setting up; `console` is for reading along."""

    verbosity: Literal["basic", "normal", "detailed"] = Field(
        "normal",
        description="`basic`: a count per batch; `normal`: a line per item; `detailed`: every field, and the resource",
    )


class DebugExporter(Printer):
    """Writes a line per batch, and as much of its items as `verbosity` says."""

    def __init__(
        self, identity: str, config: DebugConfig, ledger: Ledger, reports: Reports, stream: TextIO | None = None
    ) -> None:
        super().__init__(identity, ledger, reports, stream)
        self._config = config

    def lines(self, batch: Batch) -> Iterator[str]:
        """Yield the batch's line, and those of its items."""
        yield f"{self.identity}: {batch.count} {_NOUNS[batch.kind]}"
        if self._config.verbosity != "basic":
            yield from (f"  {line}" for line in self._items(batch))

    def _items(self, batch: Batch) -> Iterator[str]:
        parse, summarise = _FORMATS[batch.kind]
        if self._config.verbosity == "detailed":
            yield f"resource: {', '.join(f'{key}={value}' for key, value in sorted(batch.resource.attributes.items()))}"
        for item in batch.items:
            message = parse(item)
            yield summarise(message)
            if self._config.verbosity == "detailed":
                yield from (f"    {line}" for line in str(message).splitlines())


def _span(span: Any) -> str:
    run_ms = (span.end_time_unix_nano - span.start_time_unix_nano) / 1e6
    status = " error" if span.status.code == span.status.STATUS_CODE_ERROR else ""
    return f"{span.trace_id.hex()} {span.span_id.hex()} {span.name} {run_ms:.1f} ms{status}"


def _record(record: Any) -> str:
    return f"{record.severity_text} {record.event_name}: {record.body.string_value}"


def _metric(metric: Any) -> str:
    return f"{metric.name} {{{len(points_of(metric))} points}} {metric.unit}"


_FORMATS: dict[Kind, tuple[Callable[[bytes], Any], Callable[[Any], str]]] = {
    Kind.TRACES: (Span.FromString, _span),
    Kind.METRICS: (Metric.FromString, _metric),
    Kind.LOGS: (LogRecord.FromString, _record),
}
