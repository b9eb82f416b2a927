"""`console`: what happens, for people: one line per log record, span and series, on standard output."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import accumulate
from typing import Any, TextIO

from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord
from opentelemetry.proto.metrics.v1.metrics_pb2 import HistogramDataPoint, Metric, SummaryDataPoint
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from pydantic import Field

from agent.core.clock import NANOSECONDS
from agent.core.ledger import Ledger
from agent.core.status import Reports
from agent.exporters.printing import Printer
from agent.otlp.batch import Batch, Kind
from agent.otlp.reading import is_recorded, kind_of, number_of, points_of, text, texts
from agent.settings.model import Config
from agent.settings.types import Flag

_SHOWN = {
    "stem.task.state": "state",
    "stem.task.end_reason": "reason",
    "stem.task.attempt": "attempt",
    "stem.queue": "queue",
    "stem.worker.id": "worker",
    "stem.workflow.run_id": "run",
    "stem.schedule.id": "schedule",
    "stem.incomplete": "incomplete",
}
"""Attributes of a span that are worth their place on a line."""
_MAX_TEXT = 500  # characters of one value: a line is to be read
_SHARE = 0.95

Series = tuple[str, bytes]


class ConsoleConfig(Config):
    """Print what happens, one line each, for people who read along; `debug` shows OTLP as it is."""

    unchanged: Flag = Field(
        default=False, description="print every series every time, also those that are as they were when printed last"
    )


class ConsoleExporter(Printer):
    """Writes a sentence per item, with the time it tells of in UTC."""

    def __init__(
        self, identity: str, config: ConsoleConfig, ledger: Ledger, reports: Reports, stream: TextIO | None = None
    ) -> None:
        super().__init__(identity, ledger, reports, stream)
        self._unchanged = config.unchanged
        self._printed: dict[tuple[str, bytes], dict[Series, float]] = {}

    def lines(self, batch: Batch) -> Iterator[str]:
        """Yield a line for each item, or for each series that changed."""
        if batch.kind is Kind.METRICS:
            yield from self._metrics(batch)
            return
        for item in batch.items:
            yield _span(Span.FromString(item)) if batch.kind is Kind.TRACES else _record(LogRecord.FromString(item))

    def _metrics(self, batch: Batch) -> Iterator[str]:
        """Compare with what the same source told before, which is the only thing that is kept of it."""
        source = (batch.source, batch.resource.encoded)
        before, now = self._printed.get(source, {}), dict[Series, float]()
        of = {"of": "fleet"} if batch.resource.attributes.get("service.instance.id") == "fleet" else {}
        for metric in map(Metric.FromString, batch.items):
            for point in filter(is_recorded, points_of(metric)):
                series = (metric.name, b"".join(pair.SerializeToString() for pair in point.attributes))
                now[series] = point.count if hasattr(point, "count") else number_of(point)
                if self._unchanged or before.get(series) != now[series]:
                    told = _point(metric, point, before.get(series, 0.0))
                    yield _line(point.time_unix_nano, "METRIC", told, {**dict(texts(point.attributes)), **of})
        self._printed[source] = now


def _record(record: LogRecord) -> str:
    fields = {"event": record.event_name, "trace": record.trace_id.hex(), "span": record.span_id.hex()}
    return _line(record.time_unix_nano, record.severity_text, text(record.body), fields)


def _span(span: Span) -> str:
    attributes = dict(texts(span.attributes))
    fields = {name: attributes[key] for key, name in _SHOWN.items() if key in attributes}
    if span.status.code == span.status.STATUS_CODE_ERROR:
        fields["error"] = span.status.message or attributes.get("error.type", "true")
    fields |= {"trace": span.trace_id.hex(), "span": span.span_id.hex()}
    took = (span.end_time_unix_nano - span.start_time_unix_nano) / NANOSECONDS
    return _line(span.start_time_unix_nano, "SPAN", f"{span.name} took {_seconds(took)}", fields)


def _point(metric: Metric, point: Any, before: float) -> str:
    unit = "" if metric.unit.startswith("{") or metric.unit == "1" else f" {metric.unit}"
    if hasattr(point, "count"):
        return f"{metric.name}: {point.count} (+{_number(point.count - before)}){_distribution(point, unit)}"
    value = number_of(point)
    if kind_of(metric) == "sum":
        return f"{metric.name}: {_number(value)}{unit} ({value - before:+.10g})"
    return f"{metric.name}: {_number(value)}{unit}"


def _distribution(point: Any, unit: str) -> str:
    """Say of a distribution what its buckets tell: mean, the bound below which 95 % are, the largest value."""
    told = f", mean {_number(point.sum / point.count)}{unit}" if point.count else ""
    if isinstance(point, HistogramDataPoint) and point.count:
        reached = (i for i, count in enumerate(accumulate(point.bucket_counts)) if count >= point.count * _SHARE)
        bound = next(reached, len(point.explicit_bounds))
        if bound < len(point.explicit_bounds):
            told += f", 95 % within {_number(point.explicit_bounds[bound])}{unit}"
    has_max = not isinstance(point, SummaryDataPoint) and point.HasField("max")
    return told + (f", at most {_number(point.max)}{unit}" if has_max else "")


def _line(time_ns: int, level: str, told: str, fields: dict[str, str]) -> str:
    moment = datetime.fromtimestamp(time_ns / NANOSECONDS, UTC).isoformat(timespec="milliseconds")
    pairs = " ".join(f"{key}={_value(value)}" for key, value in fields.items() if value)
    return f"{moment.replace('+00:00', 'Z')} {level:<6} {_printable(told)}" + (f"  {pairs}" if pairs else "")


def _value(value: str) -> str:
    shown = _printable(value)
    return json.dumps(shown, ensure_ascii=False) if any(c in shown for c in ' "=') else shown


def _printable(told: str) -> str:
    """Return foreign text on one line, without anything that a terminal would obey."""
    cut = f"{told[:_MAX_TEXT]}..." if len(told) > _MAX_TEXT else told
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" if c not in "\r\n\t" else " " for c in cut)


def _number(value: float) -> str:
    return f"{value:.10g}" if isinstance(value, int) else f"{value:.4g}"


def _seconds(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"
