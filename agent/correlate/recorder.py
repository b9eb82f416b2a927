"""What is told of the facts: spans, log records and measurements, made here and collected until they are taken."""

from collections.abc import Iterable
from datetime import UTC
from typing import NamedTuple

from msgspec import Struct

from agent.core.clock import NANOSECONDS
from agent.core.limits import MAX_NAME
from agent.core.pressure import Priority
from agent.correlate import logs, spans
from agent.correlate.attempt import ERRORS, FINAL, RAN, Attempt, EndKind, Key, Mark
from agent.correlate.config import CorrelateConfig
from agent.correlate.keep import Keeper, KeeperState
from agent.correlate.labels import LabelCache, Labels
from agent.correlate.metrics import OTHERS, task_instruments
from agent.correlate.origin import UNKNOWN_ORIGIN, Origin, read_origin
from agent.correlate.outbox import Outbox
from agent.correlate.settlement import Settled
from agent.correlate.shift import Shift
from agent.instruments import DEAD_LETTERED
from agent.otlp.log_record import Severity, encode_context
from agent.otlp.metrics import Aggregator, AggregatorState, Exemplar, Values
from agent.stem.wire import Gap, QueueEvent, Signal

_UNSAMPLED = 0


class Publish(NamedTuple):
    """A publish of a task; `span_id` is the span in which it happened."""

    task_id: str
    task: str
    queue: str
    namespace: str
    origin: Origin
    span_id: bytes
    time_ns: int


class _Frame(NamedTuple):
    """What the records of one attempt share. Only the last one's is kept: they come in pairs."""

    attempt: Attempt
    origin: Origin | None
    key: Key
    attributes: bytes
    context: bytes


class RecorderState(Struct, array_like=True):
    """What goes on where it ended: the keeper's memory, and by the resource that tells them the metrics.

    `active` are the series in which something ran when it was looked last.
    """

    keeper: KeeperState
    resource: bytes
    active: list[Values]
    metrics: AggregatorState


class Recorder:
    """Turns decisions into telemetry; the only ones it takes are about what is kept (`Keeper`)."""

    def __init__(self, config: CorrelateConfig, now_ns: int) -> None:
        severity = config.logs.min_severity
        self.spans = Outbox()
        self.log = logs.LogWriter(None if severity == "off" else Severity[severity])
        self.metrics = Aggregator(
            now_ns=now_ns, cardinality_limit=config.cardinality_limit, series_ttl=config.series_ttl
        )
        self._config = config
        self.keeper = Keeper(config.keep)
        self._labels = LabelCache(semconv_names=config.span_name == "semconv", per_worker=config.per_worker)
        self._instruments = instruments = task_instruments(per_worker=config.per_worker)
        self._end_counters = {
            EndKind.SUCCEEDED: instruments.succeeded,
            EndKind.FAILED: instruments.failed,
            EndKind.REVOKED: instruments.revoked,
            EndKind.EXPIRED: instruments.expired,
            EndKind.RETRIED: instruments.retried,
            EndKind.LOST: instruments.lost,
        }
        self._active: set[Values] = set()
        self._frame: _Frame | None = None

    # --- tasks -----------------------------------------------------------------------------------------------------

    def started(self, attempt: Attempt, now_ns: int, *, settled: Settled | None = None) -> None:
        """Tell of the start, once each: the count as soon as it is known, the logs as soon as the trace is.

        What is not known by the time the attempt is `settled` is told without.
        """
        marks = attempt.marks
        if attempt.started_ns and not marks & Mark.STARTED_COUNTED and (attempt.task or settled):
            attempt.marks |= Mark.STARTED_COUNTED
            self.metrics.add(self._instruments.started, self._labels_of(attempt).series, now_ns)
        if attempt.origin is None and settled is None:
            return
        if attempt.received_ns and not marks & Mark.RECEIVED_TOLD:
            attempt.marks |= Mark.RECEIVED_TOLD
            if self.log.wants(logs.RECEIVED):
                body = f"task {attempt.task} received by {attempt.worker}"
                self._log(logs.RECEIVED, attempt, settled, time_ns=attempt.received_ns, now_ns=now_ns, body=body)
        if attempt.started_ns and not marks & Mark.STARTED_TOLD:
            attempt.marks |= Mark.STARTED_TOLD
            if self.log.wants(logs.STARTED):
                body = logs.started_body(attempt, attempt.origin or UNKNOWN_ORIGIN)
                self._log(logs.STARTED, attempt, settled, time_ns=attempt.started_ns, now_ns=now_ns, body=body)

    def settled(self, settled: Settled, now_ns: int, *, with_send: bool) -> bool:
        """Tell of a settled attempt: spans (with the trace's root, if nobody made it yet), measurements, end logs.

        Returns whether its spans were kept.
        """
        labels = self._labels_of(settled.attempt)
        exemplar = None
        trace_state = None
        if settled.origin.sampled or not self._config.honor_sampled:
            trace_state = self.keeper.keep(settled, now_ns)
        if trace_state is not None:
            exemplar = Exemplar(settled.trace_id, settled.span_id)
            priority = Priority.ERRORS if settled.kind in ERRORS else Priority.TRACES
            if with_send:
                self.add_span(spans.send_span(settled, labels, trace_state), settled.end_ns, priority)
            if settled.ready_ns and self._config.wait_spans:
                self.add_span(spans.wait_span(settled, labels, trace_state), settled.end_ns, priority)
            event = self._config.exceptions == "span_events"
            process = spans.process_span(settled, labels, trace_state, exception_event=event)
            self.add_span(process, settled.end_ns, priority)
        self._count_unseen_start(settled, labels.series, now_ns)
        self.started(settled.attempt, now_ns, settled=settled)
        self._measure(settled, labels.series, now_ns, exemplar)
        self._log_end(settled, now_ns, kept=trace_state is not None)
        return trace_state is not None

    def add_span(self, span: bytes, told_ns: int, priority: Priority = Priority.TRACES) -> None:
        """Add one span, which is told because of what happened at `told_ns` (Unix nanoseconds)."""
        self.spans.add(span, told_ns, priority)

    def _count_unseen_start(self, settled: Settled, series: Values, now_ns: int) -> None:
        """Count the start of what was read, where nothing says when it was, but the end says that it was."""
        attempt = settled.attempt
        unseen = settled.kind in RAN and attempt.marks & Mark.TAILED and attempt.missing_start
        if unseen and not attempt.marks & Mark.STARTED_COUNTED:
            attempt.marks |= Mark.STARTED_COUNTED
            self.metrics.add(self._instruments.started, series, now_ns)

    def _measure(self, settled: Settled, series: Values, now_ns: int, exemplar: Exemplar | None) -> None:
        instruments, kind, record = self._instruments, settled.kind, self.metrics.record
        if kind is not None:
            values = (*series, settled.error_type) if kind in {EndKind.FAILED, EndKind.RETRIED} else series
            self.metrics.add(self._end_counters[kind], values, now_ns)
        if kind in FINAL and settled.origin.enqueued_ns:
            total_s = max(0, settled.end_ns - settled.origin.enqueued_ns) / NANOSECONDS
            record(instruments.total_duration, (*series, kind.state), now_ns, total_s, exemplar)
        if kind is EndKind.RETRIED and settled.ending.next_retry_ns:
            delay_s = max(0, settled.ending.next_retry_ns - settled.ending.time_ns) / NANOSECONDS
            record(instruments.retry_delay, series, now_ns, delay_s, exemplar)
        if not settled.attempt.started_ns:
            return
        if kind is not None and kind is not EndKind.LOST and not settled.ended_unseen:  # nobody knows when those ended
            run_s = (settled.end_ns - settled.start_ns) / NANOSECONDS
            record(instruments.duration, (*series, kind.state), now_ns, run_s, exemplar)
        if settled.ready_ns:
            wait_s = (settled.start_ns - settled.ready_ns) / NANOSECONDS
            record(instruments.latency, series, now_ns, wait_s, exemplar)

    def _log_end(self, settled: Settled, now_ns: int, *, kept: bool) -> None:
        attempt, kind = settled.attempt, settled.kind
        if kind is not None and self.log.wants(log_event := logs.ENDED[kind]):
            body = logs.ended_body(settled)
            extra = logs.exception_attributes(settled) if kind in ERRORS else b""
            time_ns = settled.ending.time_ns
            self._log(log_event, attempt, settled, time_ns=time_ns, now_ns=now_ns, body=body, extra=extra, kept=kept)
        if attempt.end and attempt.end.finished_ns and self.log.wants(logs.FINISHED):
            body, time_ns = f"task {attempt.task} finished on {attempt.worker}", attempt.end.finished_ns
            self._log(logs.FINISHED, attempt, settled, time_ns=time_ns, now_ns=now_ns, body=body, kept=kept)

    def _log(
        self,
        log_event: logs.LogEvent,
        attempt: Attempt,
        settled: Settled | None,
        *,
        time_ns: int,
        now_ns: int,
        body: str,
        extra: bytes = b"",
        kept: bool | None = None,
    ) -> None:
        frame = self._frame
        if frame is None or frame.attempt is not attempt or frame.origin is not attempt.origin or not self.keeper.all:
            frame = self._frame = self._frame_of(attempt, settled, kept=kept)
        if attempt.marks & Mark.TAILED:
            extra += logs.SOURCE_TAIL
        elif attempt.marks & Mark.REPAIRED:
            extra += logs.SOURCE_REPAIR
        self.log.write(
            log_event,
            subject=frame.key,
            time_ns=time_ns,
            now_ns=now_ns,
            body=body,
            attributes=frame.attributes + extra,
            context=frame.context,
        )

    def _frame_of(self, attempt: Attempt, settled: Settled | None, *, kept: bool | None) -> "_Frame":
        origin = attempt.origin or UNKNOWN_ORIGIN
        trace_id = settled.trace_id if settled else origin.trace_id(attempt.task_id)
        span_id, flags = settled.span_id if settled else attempt.span_id, origin.flags
        if not self.keeper.all:
            if kept is None:  # not decided yet: only the trace id promises anything
                kept = origin.sampled and self.keeper.by_trace(trace_id, origin.lineage.trace_state)
            if not kept:  # a record must not point to a span that nobody has
                span_id, flags = b"", _UNSAMPLED
        attributes = self._labels_of(attempt).log + logs.attempt_attributes(attempt)
        return _Frame(attempt, attempt.origin, attempt.key, attributes, encode_context(trace_id, span_id, flags))

    def publishing(self, publish: Publish, now_ns: int) -> None:
        """Tell that a task is about to be published."""
        self._publish(logs.PUBLISHING, publish, "is being published", now_ns)

    def published(self, publish: Publish, now_ns: int) -> None:
        """Tell that a task was published."""
        labels = self._labels.get(publish.task, publish.queue, "", publish.namespace)
        self.metrics.add(self._instruments.published, labels.series, now_ns)
        self._publish(logs.PUBLISHED, publish, "published", now_ns)

    def _publish(self, log_event: logs.LogEvent, publish: Publish, verb: str, now_ns: int) -> None:
        if self.log.wants(log_event):
            labels = self._labels.get(publish.task, publish.queue, "", publish.namespace)
            self.log.write(
                log_event,
                subject=(publish.task_id,),
                time_ns=publish.time_ns,
                now_ns=now_ns,
                body=f"task {publish.task} {verb} to {publish.queue}",
                attributes=labels.log + logs.task_attributes(publish.task_id),
                context=encode_context(publish.origin.trace_id(publish.task_id), publish.span_id, publish.origin.flags),
            )

    def dead_lettered(self, publish: Publish, reason: str, error: str | None, now_ns: int) -> None:
        """Tell that a task was given up."""
        labels = self._labels.get(publish.task, publish.queue, "", publish.namespace)
        self.metrics.add(DEAD_LETTERED, (publish.task, publish.queue, publish.namespace, reason), now_ns)
        if self.log.wants(logs.DEAD_LETTERED):
            because = f": {reason}" if reason else ""
            self.log.write(
                logs.DEAD_LETTERED,
                subject=(publish.task_id,),
                time_ns=publish.time_ns,
                now_ns=now_ns,
                body=f"task {publish.task} in {publish.queue} was given up{because}",
                attributes=labels.log + logs.dead_letter_attributes(publish.task_id, reason, error),
                context=encode_context(publish.origin.trace_id(publish.task_id), publish.span_id, publish.origin.flags),
            )

    # --- what is told by nobody's attempt --------------------------------------------------------------------------

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

    def queue_event(self, event: QueueEvent, now_ns: int) -> None:
        """Tell of an event that an application told to whoever listens to a queue."""
        if self.log.wants(logs.QUEUE_EVENT):
            origin = read_origin(event.envelope, UTC)
            has_context = bool(origin.context)
            self.log.write(
                logs.QUEUE_EVENT,
                subject=(event.namespace, event.queue, event.entry),
                time_ns=event.time_ns,
                now_ns=now_ns,
                body=f"event {event.name[:MAX_NAME]} in {event.queue}",
                attributes=logs.queue_event_attributes(event),
                context=encode_context(origin.trace_id(event.entry), origin.context, origin.flags)
                if has_context
                else b"",
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

    # --- what runs now ---------------------------------------------------------------------------------------------

    def running(self, attempts: Iterable[Attempt], now_ns: int) -> None:
        """Bring the gauges of running attempts up to date, and report those that run for long.

        A queue in which nothing runs any more says so, until its series ends.
        """
        counts: dict[Values, int] = {}
        oldest: dict[Values, int] = {}
        report_ns = int(self._config.report_after * NANOSECONDS)
        for attempt in attempts:
            if not attempt.started_ns or attempt.end:
                continue
            series = self._labels_of(attempt).series
            counts[series] = counts.get(series, 0) + 1
            oldest[series] = min(oldest.get(series, attempt.started_ns), attempt.started_ns)
            if report_ns and now_ns - attempt.started_ns >= report_ns and not attempt.marks & Mark.REPORTED:
                attempt.marks |= Mark.REPORTED
                if self.log.wants(logs.LONG_RUNNING):
                    body = logs.long_running_body(attempt, now_ns)
                    self._log(logs.LONG_RUNNING, attempt, None, time_ns=now_ns, now_ns=now_ns, body=body)
        for series in self._active | counts.keys():
            age_s = max(0, now_ns - oldest.get(series, now_ns)) / NANOSECONDS
            self.metrics.set(self._instruments.active, series, now_ns, counts.get(series, 0))
            self.metrics.set(self._instruments.oldest_age, series, now_ns, age_s)
        self._active = set(counts)

    # --- from one process to the next ------------------------------------------------------------------------------

    def state(self, resource: bytes) -> RecorderState:
        """Return what goes on; `resource` (encoded) is who tells it."""
        return RecorderState(self.keeper.state(), resource, list(self._active), self.metrics.state())

    def restore(self, state: RecorderState, resource: bytes, shift: Shift, now_ns: int) -> bool:
        """Go on from a state; return whether the metrics do, too.

        A cumulative series belongs to the resource that tells it: told on by another one, a backend would see
        everything counted twice. So under another resource (a random `service.instance.id`) counting begins anew.
        """
        self.keeper.restore(state.keeper, shift)
        if state.resource != resource:
            return False
        self._active = set(state.active)
        self.go_on(state.metrics, now_ns)
        return True

    def go_on(self, totals: AggregatorState, now_ns: int) -> None:
        """Go on counting from totals."""
        self.metrics.restore(totals, (*self._instruments, *OTHERS), now_ns)

    def _labels_of(self, attempt: Attempt) -> Labels:
        return self._labels.get(attempt.task, attempt.queue, attempt.worker, attempt.process.namespace)
