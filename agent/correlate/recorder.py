"""What is told of the facts: spans, log records and measurements, made here and collected until they are taken."""

from typing import NamedTuple

from agent.core.clock import NANOSECONDS
from agent.correlate import ids, logs, spans
from agent.correlate.attempt import Attempt, EndKind
from agent.correlate.config import CorrelateConfig
from agent.correlate.labels import LabelCache, Labels
from agent.correlate.metrics import task_instruments
from agent.correlate.origin import Origin, unknown_origin
from agent.correlate.spans import Settled
from agent.otlp.log_record import Severity, encode_context
from agent.otlp.metrics import Aggregator, Exemplar
from agent.stem.error_text import error_type
from agent.stem.wire import Gap, Signal

# Bits of Attempt.told.
_RECEIVED, _STARTED, _START_COUNTED = 1, 2, 4


class Publish(NamedTuple):
    """A publish of a task, about to happen or (`done`) happened."""

    task_id: str
    task: str
    queue: str
    namespace: str
    origin: Origin
    done: bool


class Recorder:
    """Turns decisions into telemetry; it makes none itself."""

    def __init__(self, config: CorrelateConfig, now_ns: int) -> None:
        severity = config.logs.min_severity
        self.spans: list[bytes] = []
        self.log = logs.LogWriter(None if severity == "off" else Severity[severity])
        self.metrics = Aggregator(
            now_ns=now_ns, cardinality_limit=config.cardinality_limit, series_ttl=config.series_ttl
        )
        self._config = config
        self._labels = LabelCache(semconv_names=config.span_name == "semconv", per_worker=config.per_worker)
        self._instruments = task_instruments(per_worker=config.per_worker)

    def started(self, attempt: Attempt, now_ns: int, *, settling: bool = False) -> None:
        """Tell of the start, once each: the count as soon as it is known, the logs as soon as the trace is."""
        if attempt.started_ns and not attempt.told & _START_COUNTED and (attempt.task or settling):
            attempt.told |= _START_COUNTED
            self.metrics.add(self._instruments.started, self._labels_of(attempt).series, now_ns)
        origin = attempt.origin
        if origin is None:
            if not settling:
                return
            origin = unknown_origin(attempt.task_id)
        if attempt.received_ns and not attempt.told & _RECEIVED:
            attempt.told |= _RECEIVED
            if self.log.wants(logs.RECEIVED):
                body = f"task {attempt.task} received by {attempt.worker}"
                self._log(logs.RECEIVED, attempt, origin, time_ns=attempt.received_ns, now_ns=now_ns, body=body)
        if attempt.started_ns and not attempt.told & _STARTED:
            attempt.told |= _STARTED
            if self.log.wants(logs.STARTED):
                body = logs.started_body(attempt, origin)
                self._log(logs.STARTED, attempt, origin, time_ns=attempt.started_ns, now_ns=now_ns, body=body)

    def settled(self, settled: Settled, now_ns: int, *, with_send: bool) -> None:
        """Tell of a settled attempt: spans (with the trace's root, if nobody made it yet), measurements, end logs."""
        self.started(settled.attempt, now_ns, settling=True)
        labels = self._labels_of(settled.attempt)
        exemplar = None
        if settled.origin.sampled or not self._config.honor_sampled:
            exemplar = Exemplar(settled.origin.trace_id, settled.attempt.span_id)
            if with_send:
                self.spans.append(spans.send_span(settled, labels))
            if settled.ready_ns and self._config.wait_spans:
                self.spans.append(spans.wait_span(settled, labels))
            self.spans.append(spans.process_span(settled, labels, exemplar.span_id))
        self._measure(settled, labels.series, now_ns, exemplar)
        self._log_end(settled, now_ns)

    def published(self, publish: Publish, time_ns: int, now_ns: int) -> None:
        """Tell of a publish, before and after it."""
        labels = self._labels.get(publish.task, publish.queue, "", publish.namespace)
        origin, done = publish.origin, publish.done
        if done:
            self.metrics.add(self._instruments.published, labels.series, now_ns)
        log_event = logs.PUBLISHED if done else logs.PUBLISHING
        if self.log.wants(log_event):
            span = origin.parent_id or ids.span_id("send", publish.task_id)
            self.log.write(
                log_event,
                subject=(publish.task_id,),
                time_ns=time_ns,
                now_ns=now_ns,
                body=f"task {publish.task} {'published' if done else 'is being published'} to {publish.queue}",
                attributes=labels.log + logs.task_attributes(publish.task_id),
                context=encode_context(origin.trace_id, span, origin.flags),
            )

    def gap(self, gap: Gap, now_ns: int) -> None:
        """Tell of signals that never came."""
        if self.log.wants(logs.SIGNALS_GAP):
            self.log.write(
                logs.SIGNALS_GAP,
                subject=(gap.namespace, gap.emitter, gap.boot, str(gap.first), str(gap.last)),
                time_ns=gap.noticed_ns,
                now_ns=now_ns,
                body=f"{gap.count} signals of {gap.emitter} were lost ({gap.first} to {gap.last})",
                attributes=logs.gap_attributes(gap),
            )

    def unknown(self, signal: Signal, time_ns: int, now_ns: int) -> None:
        """Tell of a signal that the catalogue does not have."""
        if self.log.wants(logs.UNKNOWN_SIGNAL):
            name, emitter = signal.event_name[:200], signal.emitter or ""
            self.log.write(
                logs.UNKNOWN_SIGNAL,
                subject=(name, emitter, signal.boot or "", str(signal.seq)),
                time_ns=time_ns,
                now_ns=now_ns,
                body=f"unknown signal {name} from {emitter}",
                attributes=logs.unknown_attributes(name, emitter),
            )

    def _measure(self, settled: Settled, series: tuple[str, ...], now_ns: int, exemplar: Exemplar | None) -> None:
        instruments, kind = self._instruments, settled.kind
        if kind is EndKind.SUCCEEDED:
            self.metrics.add(instruments.succeeded, series, now_ns)
        elif kind is EndKind.REVOKED:
            self.metrics.add(instruments.revoked, series, now_ns)
        elif kind is not None:
            instrument = instruments.failed if kind is EndKind.FAILED else instruments.retried
            self.metrics.add(instrument, (*series, error_type(settled.ending.error)), now_ns)
        if not settled.attempt.started_ns:
            return
        if kind is not None:
            run_s = (settled.end_ns - settled.start_ns) / NANOSECONDS
            self.metrics.record(instruments.duration, (*series, kind.value), now_ns, run_s, exemplar)
        if settled.ready_ns:
            wait_s = (settled.start_ns - settled.ready_ns) / NANOSECONDS
            self.metrics.record(instruments.latency, series, now_ns, wait_s, exemplar)

    def _log_end(self, settled: Settled, now_ns: int) -> None:
        attempt, origin, kind, ending = settled.attempt, settled.origin, settled.kind, settled.ending
        if kind is not None and self.log.wants(log_event := logs.ENDED[kind]):
            body = logs.ended_body(settled)
            extra = logs.exception_attributes(ending, typed=kind is EndKind.FAILED) if settled.failed else b""
            self._log(log_event, attempt, origin, time_ns=ending.time_ns, now_ns=now_ns, body=body, extra=extra)
        if attempt.finished_ns and self.log.wants(logs.FINISHED):
            body = f"task {attempt.task} finished on {attempt.worker}"
            self._log(logs.FINISHED, attempt, origin, time_ns=attempt.finished_ns, now_ns=now_ns, body=body)

    def _log(
        self,
        log_event: logs.LogEvent,
        attempt: Attempt,
        origin: Origin,
        *,
        time_ns: int,
        now_ns: int,
        body: str,
        extra: bytes = b"",
    ) -> None:
        if attempt.log_frame is None:
            attributes = self._labels_of(attempt).log + logs.attempt_attributes(attempt)
            attempt.log_frame = (attributes, encode_context(origin.trace_id, attempt.span_id, origin.flags))
        attributes, context = attempt.log_frame
        self.log.write(
            log_event,
            subject=attempt.key,
            time_ns=time_ns,
            now_ns=now_ns,
            body=body,
            attributes=attributes + extra,
            context=context,
        )

    def _labels_of(self, attempt: Attempt) -> Labels:
        return self._labels.get(attempt.task, attempt.queue, attempt.worker, attempt.namespace)
