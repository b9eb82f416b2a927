"""The least that anything in CPython can do for the same spans and log records: no settling, no repair, no accounting.

hiredis on the socket, msgspec, the official protobuf messages filled directly (what never changes is copied from a
message made once), one gzip pass at level 1, one blocking connection to the endpoint. It takes the order of the signals
for granted, and forgets what it cannot deliver. Metrics are summed up but not sent; they are not where the time goes.
Run: `python -m tests.benchmarks.least_work REDIS_URL NAMESPACE ENDPOINT`.
"""

import gzip
import http.client
import socket
import sys
from datetime import UTC, datetime
from functools import lru_cache
from hashlib import blake2b
from typing import Any
from urllib.parse import urlsplit

import hiredis
import msgspec
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.logs.v1.logs_pb2 import SeverityNumber
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from agent.correlate.logs import duration
from agent.otlp.resource import SCHEMA_URL
from agent.stem.channels import signal_pattern

BATCH = 4096
QUIET_SECONDS = 0.2
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
DEBUG, INFO = SeverityNumber.SEVERITY_NUMBER_DEBUG, SeverityNumber.SEVERITY_NUMBER_INFO


class Attributes(msgspec.Struct, rename="camel", gc=False):
    task_id: str
    task_name: str
    queue: str
    worker_id: str


class Headers(msgspec.Struct, gc=False):
    traceparent: str


class Envelope(msgspec.Struct, rename="camel", gc=False):
    enqueued_at: datetime
    priority: int
    max_retries: int
    headers: Headers


class Signal(msgspec.Struct, rename="camel", gc=False):
    event_name: str
    occurred_at: datetime
    attributes: Attributes
    attempt: int
    envelope: msgspec.Raw


_signal = msgspec.json.Decoder(Signal).decode
_envelope = msgspec.json.Decoder(Envelope).decode


def text(key: str, value: str) -> KeyValue:
    pair = KeyValue(key=key)
    pair.value.string_value = value
    return pair


def number(key: str, value: float) -> KeyValue:
    pair = KeyValue(key=key)
    if isinstance(value, int):
        pair.value.int_value = value
    else:
        pair.value.double_value = value
    return pair


@lru_cache(4096)
def log_labels(task: str, queue: str, worker: str) -> tuple[KeyValue, ...]:
    pairs = {"stem.task": task, "stem.queue": queue, "stem.worker.id": worker, "stem.namespace": "stem"}
    return tuple(text(key, value) for key, value in pairs.items())


@lru_cache(4096)
def wait_labels(task: str, queue: str, worker: str, attempt: int) -> tuple[KeyValue, ...]:
    pairs = {"stem.task": task, "stem.queue": queue, "stem.namespace": "stem", "stem.worker.id": worker}
    return (
        *(text(key, value) for key, value in pairs.items()),
        number("stem.task.attempt", attempt),
        text("stem.source", "signals"),
    )


@lru_cache(4096)
def process_labels(
    task: str, queue: str, worker: str, attempt: int, priority: int, max_retries: int
) -> tuple[KeyValue, ...]:
    pairs = {
        "messaging.system": "stem",
        "messaging.operation.type": "process",
        "messaging.operation.name": "process",
        "messaging.destination.name": queue,
        "messaging.client.id": worker,
        "stem.task.end_reason": "success",
        "stem.task.state": "succeeded",
    }
    return (
        *wait_labels(task, queue, worker, attempt),
        *(text(key, value) for key, value in pairs.items()),
        number("stem.task.priority", priority),
        number("stem.task.max_retries", max_retries),
    )


def digest(size: int, *parts: str) -> "blake2b":
    return blake2b("\0".join(parts).encode(), digest_size=size)


def nanoseconds(time: datetime) -> int:
    since = time - EPOCH
    return ((since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds) * 1000


class Attempt:
    __slots__ = ("enqueued_ns", "envelope", "parent_id", "process_id", "started_ns", "trace_id")


class LeastWork:
    """Fills two requests; `take` returns and forgets them."""

    def __init__(self) -> None:
        self._open: dict[str, Attempt] = {}
        self._counts: dict[tuple[str, str, str], float] = {}
        self._begin()

    def _begin(self) -> None:
        self._traces, self._logs = ExportTraceServiceRequest(), ExportLogsServiceRequest()
        spans = self._traces.resource_spans.add().scope_spans.add(schema_url=SCHEMA_URL)
        records = self._logs.resource_logs.add().scope_logs.add(schema_url=SCHEMA_URL)
        self.spans, self.records = spans.spans, records.log_records

    def take(self) -> tuple[bytes, bytes]:
        requests = self._traces.SerializeToString(), self._logs.SerializeToString()
        self._begin()
        return requests

    def handle(self, payload: bytes) -> None:
        signal = _signal(payload)
        facts, time_ns = signal.attributes, nanoseconds(signal.occurred_at)
        attempt = self._open.get(facts.task_id)
        if attempt is None:
            attempt = self._open[facts.task_id] = Attempt()
            attempt.envelope = envelope = _envelope(signal.envelope)
            header = envelope.headers.traceparent
            attempt.trace_id, attempt.parent_id = bytes.fromhex(header[3:35]), bytes.fromhex(header[36:52])
            attempt.enqueued_ns = nanoseconds(envelope.enqueued_at)
            parts = ("process", facts.task_id, str(signal.attempt), facts.worker_id)
            attempt.process_id = digest(8, *parts).digest()
        match signal.event_name:
            case "task-received":
                body = f"task {facts.task_name} received by {facts.worker_id}"
                self._log(signal, attempt, time_ns, DEBUG, "stem.task.received", body)
            case "task-prerun":
                attempt.started_ns = time_ns
                waited = (time_ns - attempt.enqueued_ns) / 1e9
                self._count("started", facts, 1)
                self._count("latency", facts, waited)
                tries = f"attempt {signal.attempt + 1} of {attempt.envelope.max_retries + 1}"
                body = f"task {facts.task_name} started on {facts.worker_id} ({tries}, waited {duration(waited)})"
                self._log(signal, attempt, time_ns, INFO, "stem.task.started", body)
                self._wait(signal, attempt)
            case "task-succeeded":
                took = (time_ns - attempt.started_ns) / 1e9
                self._count("succeeded", facts, 1)
                self._count("duration", facts, took)
                body = f"task {facts.task_name} succeeded on {facts.worker_id} in {duration(took)}"
                self._log(signal, attempt, time_ns, INFO, "stem.task.succeeded", body)
                self._process(signal, attempt, time_ns)
            case "task-postrun":
                body = f"task {facts.task_name} finished on {facts.worker_id}"
                self._log(signal, attempt, time_ns, DEBUG, "stem.task.finished", body)
                del self._open[facts.task_id]

    def _count(self, name: str, facts: Attributes, value: float) -> None:
        series = (name, facts.task_name, facts.queue)
        self._counts[series] = self._counts.get(series, 0) + value

    def _log(self, signal: Signal, attempt: Attempt, time_ns: int, severity: Any, event: str, body: str) -> None:
        facts = signal.attributes
        record = self.records.add()
        record.time_unix_nano = record.observed_time_unix_nano = time_ns
        record.severity_number = severity
        record.severity_text = "INFO" if severity == INFO else "DEBUG"
        record.body.string_value = body
        record.trace_id, record.span_id, record.flags = attempt.trace_id, attempt.process_id, 1
        record.event_name = event
        attributes = record.attributes
        attributes.extend(log_labels(facts.task_name, facts.queue, facts.worker_id))
        attributes.append(text("stem.task.id", facts.task_id))
        attributes.append(number("stem.task.attempt", signal.attempt))
        uid = digest(16, event, facts.task_id, str(signal.attempt), facts.worker_id, str(time_ns)).hexdigest()
        attributes.append(text("log.record.uid", uid))

    def _wait(self, signal: Signal, attempt: Attempt) -> None:
        facts = signal.attributes
        span = self.spans.add()
        span.name = f"wait {facts.queue}"
        span.kind = Span.SPAN_KIND_INTERNAL
        span.span_id = digest(8, "wait", facts.task_id, str(signal.attempt), facts.worker_id).digest()
        self._place(span, attempt, attempt.enqueued_ns, attempt.started_ns)
        span.attributes.extend(wait_labels(facts.task_name, facts.queue, facts.worker_id, signal.attempt))
        span.attributes.append(text("stem.task.id", facts.task_id))

    def _process(self, signal: Signal, attempt: Attempt, ended_ns: int) -> None:
        facts, envelope = signal.attributes, attempt.envelope
        span = self.spans.add()
        span.name = f"process {facts.task_name}"
        span.kind = Span.SPAN_KIND_CONSUMER
        span.span_id = attempt.process_id
        self._place(span, attempt, attempt.started_ns, ended_ns)
        names = (facts.task_name, facts.queue, facts.worker_id)
        attributes = span.attributes
        attributes.extend(process_labels(*names, signal.attempt, envelope.priority, envelope.max_retries))
        attributes.append(text("stem.task.id", facts.task_id))
        attributes.append(text("messaging.message.id", facts.task_id))
        attributes.append(number("stem.task.run", (ended_ns - attempt.started_ns) / 1e9))
        attributes.append(number("stem.task.wait", (attempt.started_ns - attempt.enqueued_ns) / 1e9))
        link = span.links.add()
        link.trace_id, link.span_id, link.flags = attempt.trace_id, attempt.parent_id, 1

    @staticmethod
    def _place(span: Any, attempt: Attempt, start_ns: int, end_ns: int) -> None:
        span.trace_id, span.parent_span_id, span.flags = attempt.trace_id, attempt.parent_id, 0x301
        span.start_time_unix_nano, span.end_time_unix_nano = start_ns, end_ns


def subscribe(url: str, namespace: str) -> socket.socket:
    parts = urlsplit(url)
    connection = socket.create_connection((parts.hostname, parts.port))
    connection.sendall(hiredis.pack_command(("PSUBSCRIBE", signal_pattern(namespace))))
    connection.settimeout(QUIET_SECONDS)
    return connection


def post(connection: http.client.HTTPConnection, path: str, body: bytes) -> None:
    headers = {"Content-Type": "application/x-protobuf", "Content-Encoding": "gzip"}
    connection.request("POST", path, gzip.compress(body, 1), headers)
    connection.getresponse().read()


def main() -> None:
    url, namespace, endpoint = sys.argv[1:]
    redis, reader, work = subscribe(url, namespace), hiredis.Reader(), LeastWork()
    parts = urlsplit(endpoint)
    http_connection = http.client.HTTPConnection(str(parts.hostname), parts.port)
    while True:
        try:
            received = redis.recv(1 << 20)
        except TimeoutError:
            received = b""
        reader.feed(received)
        while (message := reader.gets()) is not False:
            if message[0] == b"pmessage":
                work.handle(message[3])
        if work.records and (len(work.records) >= BATCH or not received):
            traces, logs = work.take()
            post(http_connection, "/v1/traces", traces)
            post(http_connection, "/v1/logs", logs)


if __name__ == "__main__":
    main()
