"""What one writes first: redis-py's `PubSub.listen`, the OpenTelemetry SDK, and its stock OTLP/HTTP exporters.

Per task two spans, per signal one log record, counters and histograms with the attributes that the agent gives them.
Queues are large enough that the batch processors drop nothing: the defaults would, and the work would look cheaper.
Run: `python -m tests.benchmarks.plain_sdk REDIS_URL NAMESPACE ENDPOINT`.
"""

import json
import sys
from datetime import UTC, datetime
from typing import Any

import redis
from opentelemetry._logs import SeverityNumber
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from agent.stem.channels import signal_pattern

_QUEUE = 1 << 20
_DELAY_MS = 1000
_SEVERITY = {
    "task-received": SeverityNumber.DEBUG,
    "task-prerun": SeverityNumber.INFO,
    "task-succeeded": SeverityNumber.INFO,
    "task-postrun": SeverityNumber.DEBUG,
}


class PlainPipeline:
    """The three providers, and the spans of the attempts under way."""

    def __init__(self, endpoint: str) -> None:
        resource = Resource.create({"service.name": "stem"})
        gzip = Compression.Gzip
        spans = OTLPSpanExporter(f"{endpoint}/v1/traces", compression=gzip)
        records = OTLPLogExporter(f"{endpoint}/v1/logs", compression=gzip)
        metrics = OTLPMetricExporter(f"{endpoint}/v1/metrics", compression=gzip)
        tracing, logging = TracerProvider(resource=resource), LoggerProvider(resource=resource)
        tracing.add_span_processor(BatchSpanProcessor(spans, _QUEUE, _DELAY_MS, 8192))
        logging.add_log_record_processor(BatchLogRecordProcessor(records, _DELAY_MS, 8192, None, _QUEUE))
        metering = MeterProvider([PeriodicExportingMetricReader(metrics, 1000)], resource)
        self._tracer, self._logger = tracing.get_tracer("plain"), logging.get_logger("plain")
        meter = metering.get_meter("plain")
        self._started = meter.create_counter("stem.tasks.started")
        self._succeeded = meter.create_counter("stem.tasks.succeeded")
        self._duration = meter.create_histogram("stem.task.duration", "s")
        self._latency = meter.create_histogram("stem.queue.latency", "s")
        self._propagator = TraceContextTextMapPropagator()
        self._open: dict[str, tuple[Span, int]] = {}

    def handle(self, payload: bytes) -> None:
        signal = json.loads(payload)
        attributes, envelope = signal["attributes"], signal["envelope"]
        now_ns = _nanoseconds(signal["occurredAt"])
        labels = {"task": attributes["taskName"], "queue": attributes["queue"], "namespace": "stem"}
        common: dict[str, Any] = {
            "stem.task": attributes["taskName"],
            "stem.queue": attributes["queue"],
            "stem.namespace": "stem",
            "stem.worker.id": attributes["workerId"],
            "stem.task.id": attributes["taskId"],
            "stem.task.attempt": signal["attempt"],
        }
        name = signal["eventName"]
        if name == "task-prerun":
            self._start(signal, envelope, common, labels, now_ns)
        open_span = self._open.get(attributes["taskId"])
        if name == "task-succeeded" and open_span:
            span, started_ns = open_span
            span.set_attributes({"stem.task.state": "succeeded", "stem.task.end_reason": "success"})
            span.set_attribute("stem.task.run", (now_ns - started_ns) / 1e9)
            span.end(now_ns)
            self._succeeded.add(1, labels)
            self._duration.record((now_ns - started_ns) / 1e9, {**labels, "outcome": "succeeded"})
        if name == "task-postrun":
            self._open.pop(attributes["taskId"], None)
        severity = _SEVERITY[name]
        self._logger.emit(
            timestamp=now_ns,
            context=set_span_in_context(open_span[0]) if open_span else self._propagator.extract(envelope["headers"]),
            severity_number=severity,
            severity_text=severity.name,
            body=f"task {attributes['taskName']} {name.partition('-')[2]} on {attributes['workerId']}",
            attributes=common,
            event_name=f"stem.{name.replace('-', '.')}",
        )

    def _start(
        self,
        signal: dict[str, Any],
        envelope: dict[str, Any],
        common: dict[str, Any],
        labels: dict[str, str],
        now_ns: int,
    ) -> None:
        parent = self._propagator.extract(envelope["headers"])
        enqueued_ns = _nanoseconds(envelope["enqueuedAt"])
        queue, task_id, worker_id = common["stem.queue"], common["stem.task.id"], common["stem.worker.id"]
        wait = self._tracer.start_span(f"wait {queue}", parent, SpanKind.INTERNAL, common, start_time=enqueued_ns)
        wait.end(now_ns)
        attributes = common | {
            "messaging.system": "stem",
            "messaging.operation.type": "process",
            "messaging.operation.name": "process",
            "messaging.destination.name": queue,
            "messaging.message.id": task_id,
            "messaging.client.id": worker_id,
            "stem.task.priority": envelope["priority"],
            "stem.task.max_retries": envelope["maxRetries"],
            "stem.task.wait": (now_ns - enqueued_ns) / 1e9,
        }
        name = f"process {common['stem.task']}"
        span = self._tracer.start_span(name, parent, SpanKind.CONSUMER, attributes, start_time=now_ns)
        self._open[signal["attributes"]["taskId"]] = span, now_ns
        self._started.add(1, labels)
        self._latency.record((now_ns - enqueued_ns) / 1e9, labels)


def _nanoseconds(text: str) -> int:
    return round(datetime.fromisoformat(text).astimezone(UTC).timestamp() * 1e6) * 1000


def main() -> None:
    url, namespace, endpoint = sys.argv[1:]
    pipeline = PlainPipeline(endpoint)
    pubsub = redis.Redis.from_url(url).pubsub()
    pubsub.psubscribe(signal_pattern(namespace))
    for message in pubsub.listen():
        if message["type"] == "pmessage":
            pipeline.handle(message["data"])


if __name__ == "__main__":
    main()
