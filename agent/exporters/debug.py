"""`debug`: shows on standard output what passes by."""

import sys
from collections.abc import Callable, Iterator
from typing import Any, Literal, TextIO

from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from pydantic import Field

from agent.core.component import Passive
from agent.core.ledger import Ledger
from agent.core.status import Reports
from agent.otlp.batch import Batch, Kind
from agent.settings.model import Config

_NOUNS = {Kind.TRACES: "spans", Kind.METRICS: "data points", Kind.LOGS: "log records"}


class DebugConfig(Config):
    """Print what passes by, for people who are setting up."""

    verbosity: Literal["basic", "normal", "detailed"] = Field(
        "normal",
        description="`basic`: a count per batch; `normal`: a line per item; `detailed`: every field, and the resource",
    )


class DebugExporter(Passive):
    """Writes each batch at once; everything it was given counts as delivered."""

    def __init__(
        self, identity: str, config: DebugConfig, ledger: Ledger, reports: Reports, stream: TextIO | None = None
    ) -> None:
        self._id = identity
        self._config = config
        self._ledger = ledger
        self._output = reports.part("output")
        self._stream = stream

    def consume(self, batch: Batch) -> None:
        """Print the batch, if there is anything in it."""
        if not batch.items:
            return
        account = self._ledger.account(self._id, batch.kind)
        account.accepted += batch.count
        stream = self._stream or sys.stdout
        try:
            stream.write(f"{self._id}: {batch.count} {_NOUNS[batch.kind]}\n")
            if self._config.verbosity != "basic":
                stream.writelines(f"  {line}\n" for line in self._lines(batch))
            stream.flush()
        except (OSError, ValueError) as error:  # the disk is full, the reader is gone, the encoding is too narrow
            account.dropped["output_failed"] += batch.count
            reason = getattr(error, "strerror", None) or type(error).__name__
            self._output.failed(f"failed to write: {reason.lower()}")
        else:
            account.delivered += batch.count
            self._output.ok()
        account.ended()

    def _lines(self, batch: Batch) -> Iterator[str]:
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
    points = metric.sum.data_points or metric.gauge.data_points or metric.histogram.data_points
    return f"{metric.name} {{{len(points)} points}} {metric.unit}"


_FORMATS: dict[Kind, tuple[Callable[[bytes], Any], Callable[[Any], str]]] = {
    Kind.TRACES: (Span.FromString, _span),
    Kind.METRICS: (Metric.FromString, _metric),
    Kind.LOGS: (LogRecord.FromString, _record),
}
