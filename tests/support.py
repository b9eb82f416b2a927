"""What many tests need: a time that is told, stories of attempts, and OTLP read back by the official messages."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from agent.correlate.config import CorrelateConfig
from agent.correlate.correlator import Correlator
from agent.demo.sink import attributes, points
from agent.emit import AttemptSignals, Composer, Emitter, iso
from agent.stem.status import TaskStatus
from agent.stem.wire import Fact, Signal, Tailed, decode_signal

UTC_ZONE = ZoneInfo("UTC")
EPOCH = datetime(2026, 4, 23, 10, 0, 0, 123456, tzinfo=UTC)
TASK_ID = "01a20a2f-d00c-7e5c-a83e-04bca63517cf"
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
SECOND = 1_000_000_000


def nanoseconds(moment: datetime) -> int:
    return round(moment.timestamp() * 1_000_000) * 1000


@dataclass
class ToldTime:
    """A clock that says what it is told."""

    now: datetime = EPOCH

    def __call__(self) -> datetime:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


class Recorded(Emitter[None]):
    """An emitter that keeps its payloads instead of sending them."""

    def __init__(self, composer: Composer) -> None:
        super().__init__(composer)
        self.payloads: list[bytes] = []

    def send(self, payload: bytes | None) -> None:
        if payload is not None:
            self.payloads.append(payload)


def envelope(**changes: Any) -> dict[str, Any]:
    return {
        "id": TASK_ID,
        "name": "email.send",
        "args": {"to": "alice@example.com"},
        "headers": {},
        "enqueuedAt": iso(EPOCH - timedelta(seconds=1.2)),
        "notBefore": None,
        "priority": 0,
        "attempt": 0,
        "maxRetries": 3,
        "visibilityTimeout": None,
        "queue": "default",
        "meta": {},
        **changes,
    }


@dataclass
class Story:
    """Signals of one emitter as they happen, told with a clock of their own."""

    worker_id: str = "worker-1"
    emitter: str = "pod-1"
    namespace: str = "stem"
    time: ToldTime = field(default_factory=ToldTime)

    def __post_init__(self) -> None:
        composer = Composer(worker_id=self.worker_id, namespace=self.namespace, emitter=self.emitter, clock=self.time)
        self.recorded = Recorded(composer)

    @property
    def payloads(self) -> list[bytes]:
        return self.recorded.payloads

    def attempt(self, task: dict[str, Any] | None = None) -> AttemptSignals[None]:
        return self.recorded.attempt(task or envelope())

    def run(self, end: str = "succeeded", task: dict[str, Any] | None = None, *, run_s: float = 0.035) -> list[bytes]:
        """Tell a whole attempt; return its payloads."""
        before = len(self.payloads)
        signals = self.attempt(task)
        signals.received()
        self.time.advance(0.001)
        signals.prerun()
        self.time.advance(run_s)
        tell_end(signals, end, self.time)
        self.time.advance(0.001)
        signals.postrun({"revoked": "cancelled", "retry": "retried"}.get(end, end))
        return self.payloads[before:]


def tell_end(signals: AttemptSignals[None], end: str, time: ToldTime) -> None:
    if end == "succeeded":
        signals.succeeded()
    elif end == "failed":
        signals.failed("SocketException: Connection refused", "#0 main (package:app/main.dart:1:1)")
    elif end == "retry":
        signals.retry("TimeoutException after 0:00:05.000000", time.now + timedelta(seconds=8))
    else:
        signals.revoked("no longer wanted")


def signals_of(payloads: Iterable[bytes], namespace: str = "stem") -> list[Signal]:
    decoded = [decode_signal(payload) for payload in payloads]
    for signal in decoded:
        signal.namespace = namespace
    return decoded


@dataclass
class Heard:
    """A correlator and everything it has made so far."""

    config: CorrelateConfig = field(default_factory=CorrelateConfig)
    now_ns: int = nanoseconds(EPOCH)
    with_repair: bool = False

    def __post_init__(self) -> None:
        self.correlator = Correlator(self.config, self.now_ns, with_repair=self.with_repair)

    def fact(self, fact: Fact) -> "Heard":
        self.correlator.handle(fact, UTC_ZONE, self.now_ns)
        return self

    def read(self, *facts: Tailed) -> "Heard":
        """Take what is read, and nobody else tells."""
        for fact in facts:
            self.correlator.read(fact, UTC_ZONE, self.now_ns)
        return self

    def answer(self, *records: TaskStatus) -> "Heard":
        """Answer what is wanted; tasks without a record among these have none."""
        known = {record.id: record for record in records}
        wanted = self.correlator.repairs.take(1000)
        self.correlator.answered({task_id: known.get(task_id) for task_id in wanted}, self.now_ns)
        return self

    def hear(self, payloads: Sequence[bytes], *, zone: ZoneInfo = UTC_ZONE) -> "Heard":
        for signal in signals_of(payloads):
            self.correlator.handle(signal, zone, self.now_ns)
        return self

    def pass_time(self, seconds: float) -> "Heard":
        self.now_ns += int(seconds * SECOND)
        self.correlator.tick(self.now_ns)
        return self

    def restart(self, seconds: float = 0.0, *, at_ns: int | None = None, resource: bytes = b"") -> "Heard":
        """Another process goes on from a snapshot, so many seconds later; what was made so far stays with us."""
        before = self.correlator
        state = before.snapshot(self.now_ns)
        self.now_ns = at_ns or self.now_ns + int(seconds * SECOND)
        self.correlator = Correlator(self.config, self.now_ns, with_repair=self.with_repair)
        self.correlator.restore(state, self.now_ns, resource)
        for mine, told in (
            (self.correlator.recorder.spans, before.recorder.spans),
            (self.correlator.recorder.log.records, before.recorder.log.records),
        ):
            for lane in told.take():
                for item in lane.items:
                    mine.add(item, lane.since_ns, lane.priority)
        self.correlator.counters.update(before.counters)
        return self

    @property
    def spans(self) -> list[Any]:
        return [Span.FromString(span) for span in self.correlator.recorder.spans]

    @property
    def logs(self) -> list[Any]:
        return [LogRecord.FromString(record) for record in self.correlator.recorder.log.records]

    def span(self, role: str) -> Any:
        found = [span for span in self.spans if span.name.startswith(f"{role} ")]
        assert len(found) == 1, f"{len(found)} {role} spans"
        return found[0]

    def metrics(self) -> dict[str, Any]:
        self.correlator.collect(self.now_ns)
        found = [Metric.FromString(item) for item in self.correlator.recorder.metrics.collect(self.now_ns)[0]]
        return {metric.name: metric for metric in found}

    def counts(self) -> dict[str, float]:
        """Every counter's total, and every histogram's count."""
        totals: dict[str, float] = {}
        for name, metric in self.metrics().items():
            kind = metric.WhichOneof("data")
            for point in points(metric) if kind != "gauge" else ():
                value = point.count if kind == "histogram" else point.as_int or point.as_double
                totals[name] = totals.get(name, 0) + value
        return totals


def found(item: Any) -> dict[str, Any]:
    """The attributes of a span, log record or data point."""
    return attributes(item.attributes)
