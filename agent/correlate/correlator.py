"""The state machine: facts in, decisions out. Pure; time is an argument."""

from collections import Counter
from collections.abc import Callable
from datetime import datetime, tzinfo

from agent.correlate.attempt import END_SIGNALS, Attempt, Ending, EndKind, ready_time
from agent.correlate.attempts import AttemptTable
from agent.correlate.config import CorrelateConfig
from agent.correlate.origin import Origin, read_origin, unknown_origin
from agent.correlate.recorder import Publish, Recorder
from agent.correlate.spans import Settled
from agent.correlate.workers import LIFECYCLE, Workers
from agent.stem.catalogue import SIGNAL_NAMES, SignalName, TaskState
from agent.stem.timestamps import epoch_ns
from agent.stem.wire import Envelope, Fact, Gap, Heartbeat, Signal, decode_envelope

LATE = "stem_agent.signals.late"
EVICTED = "stem_agent.correlate.evicted"
CLOCK_ADJUSTED = "stem_agent.correlate.clock_adjusted"
UNATTRIBUTED = "stem_agent.signals.unattributed"

Handler = Callable[[Signal, int, tzinfo, int], None]


class Correlator:
    """Facts in through `handle`, time through `tick`; the recorder collects what they make.

    `counters` counts what is worth telling about correlation itself, by (name, label): late and unattributed facts,
    evictions, clock corrections.
    """

    def __init__(self, config: CorrelateConfig, now_ns: int) -> None:
        self.recorder = Recorder(config, now_ns)
        self.workers = Workers(
            self.recorder.log, self.recorder.metrics, timeout=config.heartbeat_timeout, ttl=config.worker_ttl
        )
        self.counters: Counter[tuple[str, str]] = Counter()
        self.attempts = AttemptTable(
            settle=config.settle,
            settled_ttl=config.settled_ttl,
            task_ttl=config.task_ttl,
            max_tasks=config.max_tasks,
        )
        self._handlers: dict[str, Handler] = {
            SignalName.BEFORE_TASK_PUBLISH: self._publish,
            SignalName.AFTER_TASK_PUBLISH: self._publish,
            SignalName.TASK_RECEIVED: self._task,
            SignalName.TASK_PRERUN: self._task,
            SignalName.TASK_POSTRUN: self._task,
            **dict.fromkeys(END_SIGNALS, self._task),
            SignalName.WORKER_HEARTBEAT: self._worker_heartbeat,
            **dict.fromkeys(LIFECYCLE, self._worker_lifecycle),
        }

    def handle(self, fact: Fact, zone: tzinfo, now_ns: int) -> None:
        """Merge one fact; its times without an offset are in `zone`."""
        if isinstance(fact, Signal):
            if handler := self._handlers.get(fact.event_name):
                handler(fact, epoch_ns(fact.occurred_at, zone), zone, now_ns)
            elif fact.event_name not in SIGNAL_NAMES:
                self.recorder.unknown(fact, epoch_ns(fact.occurred_at, zone), now_ns)
        elif isinstance(fact, Heartbeat):
            self._heartbeat(fact, zone, now_ns)
        elif isinstance(fact, Gap):
            self.recorder.gap(fact, now_ns)

    def tick(self, now_ns: int) -> None:
        """Settle what is due, forget what may be forgotten."""
        for attempt in self.attempts.due(now_ns):
            self._settle(attempt, now_ns)
        for attempt, reason in self.attempts.surplus(now_ns):
            self._evict(attempt, reason, now_ns)
        self.attempts.forget(now_ns)
        self.workers.tick(now_ns)

    def close(self, now_ns: int) -> None:
        """Settle every attempt whose end was heard; drop and count the others."""
        for attempt in self.attempts:
            self._evict(attempt, "shutdown", now_ns)

    # --- attempts --------------------------------------------------------------------------------------------------

    def _task(self, signal: Signal, time_ns: int, zone: tzinfo, now_ns: int) -> None:
        name = signal.event_name
        starts = name == SignalName.TASK_PRERUN
        started_ns = time_ns if starts else _epoch_ns(signal.started_at, zone)
        attempt = self._attempt_of(signal, started_ns, now_ns, starts=starts)
        if attempt is None:
            return
        self._merge_identity(attempt, signal, zone)
        if started_ns and (not attempt.started_ns or started_ns < attempt.started_ns):
            attempt.started_ns = started_ns
        received_ns = time_ns if name == SignalName.TASK_RECEIVED else _epoch_ns(signal.received_at, zone)
        if received_ns and (not attempt.received_ns or received_ns < attempt.received_ns):
            attempt.received_ns = received_ns
        if name in END_SIGNALS or name == SignalName.TASK_POSTRUN:
            self._merge_end(attempt, signal, time_ns, zone, now_ns)
        self.recorder.started(attempt, now_ns)
        # A retried attempt links to the one before: if that is unknown, it may still be on its way.
        if attempt.complete and (not attempt.number or self.attempts.recall(attempt)):
            self._settle(attempt, now_ns)

    def _attempt_of(self, signal: Signal, started_ns: int, now_ns: int, *, starts: bool) -> Attempt | None:
        """Return the attempt that a signal is about; None, after counting why, if there is none to change."""
        attributes = signal.attributes
        task_id = attributes.task_id
        number = attributes.attempt if attributes.attempt is not None else signal.attempt
        worker = attributes.worker_id or signal.worker_id or ""
        if not task_id or number is None:
            envelope = decode_envelope(signal.envelope) or Envelope()
            task_id = task_id or envelope.id
            if number is None:
                number = envelope.attempt
        if task_id and number is None:
            number = self.attempts.probe(task_id, worker)
        if not task_id or number is None:
            self.counters[UNATTRIBUTED, signal.event_name] += 1
            return None
        key = (task_id, str(number), worker)
        attempt = self.attempts.find(key, started_ns, starts=starts, namespace=signal.namespace, now_ns=now_ns)
        if attempt is None:
            self.counters[LATE, signal.event_name] += 1
        return attempt

    @staticmethod
    def _merge_identity(attempt: Attempt, signal: Signal, zone: tzinfo) -> None:
        attributes = signal.attributes
        attempt.numbered = attempt.numbered or signal.boot is not None
        attempt.task = attributes.task_name or attempt.task
        attempt.queue = attributes.queue or attempt.queue
        # Each signal carries the whole envelope; one decoding serves them all.
        if attempt.origin is None and (envelope := decode_envelope(signal.envelope)) and _tells(envelope):
            attempt.origin = read_origin(attempt.task_id, envelope, zone)
            attempt.task = attempt.task or envelope.name or ""
            attempt.queue = attempt.queue or envelope.queue or ""

    def _merge_end(self, attempt: Attempt, signal: Signal, time_ns: int, zone: tzinfo, now_ns: int) -> None:
        attributes = signal.attributes
        kind = END_SIGNALS.get(signal.event_name)
        if kind is None:
            ended_ns = _epoch_ns(signal.ended_at, zone)
            ending = Ending(ended_ns, signal.error or "") if ended_ns else None
            attempt.finish(time_ns, attributes.state, ending)
            if attributes.state == TaskState.RETRIED:
                self.attempts.retried(attempt, 0, now_ns)
        else:
            error = attributes.error or attributes.reason or signal.error or ""
            next_retry_ns = _epoch_ns(attributes.next_retry_at, zone)
            attempt.end(kind, Ending(time_ns, error, attributes.stack_trace or "", next_retry_ns))
            if kind is EndKind.RETRIED:
                self.attempts.retried(attempt, next_retry_ns, now_ns)
        self.attempts.ending(attempt, now_ns)

    def _settle(self, attempt: Attempt, now_ns: int) -> None:
        if attempt.number:
            self.attempts.recall(attempt)
        self.attempts.bury(attempt, now_ns)
        settled = _decide(attempt)
        if settled.adjusted:
            self.counters[CLOCK_ADJUSTED, ""] += 1
        origin = settled.origin
        rootless = attempt.number == 0 and origin.enqueued_ns and not origin.traced
        with_send = bool(rootless and self.attempts.once(("send", attempt.task_id), now_ns))
        self.recorder.settled(settled, now_ns, with_send=with_send)

    def _evict(self, attempt: Attempt, reason: str, now_ns: int) -> None:
        if attempt.has_end:  # it was only waiting for stragglers: it can be told
            self._settle(attempt, now_ns)
            return
        self.attempts.evict(attempt, now_ns)
        self.counters[EVICTED, reason] += 1

    # --- everything else ---------------------------------------------------------------------------------------------

    def _publish(self, signal: Signal, time_ns: int, zone: tzinfo, now_ns: int) -> None:
        envelope = decode_envelope(signal.envelope)
        task_id = signal.attributes.task_id or (envelope.id if envelope else None)
        if not task_id:
            self.counters[UNATTRIBUTED, signal.event_name] += 1
        elif not self.attempts.once((signal.event_name, task_id), now_ns):
            self.counters[LATE, signal.event_name] += 1
        else:
            origin = read_origin(task_id, envelope, zone) if envelope else unknown_origin(task_id)
            done = signal.event_name == SignalName.AFTER_TASK_PUBLISH
            task = signal.attributes.task_name or (envelope.name if envelope else None) or ""
            queue = signal.attributes.queue or (envelope.queue if envelope else None) or ""
            publish = Publish(task_id, task, queue, signal.namespace, origin, done=done)
            self.recorder.published(publish, time_ns, now_ns)

    def _worker_lifecycle(self, signal: Signal, time_ns: int, _zone: tzinfo, now_ns: int) -> None:
        worker = (signal.attributes.worker_id or signal.worker_id or "", signal.namespace)
        name, reason = SignalName(signal.event_name), signal.attributes.reason
        self.workers.lifecycle(name, worker, time_ns=time_ns, now_ns=now_ns, reason=reason)

    def _worker_heartbeat(self, signal: Signal, time_ns: int, _zone: tzinfo, now_ns: int) -> None:
        # A process without a worker (a producer, a Beat) beats for the number in its signal alone.
        if worker_id := signal.attributes.worker_id or signal.worker_id:
            self.workers.heartbeat((worker_id, signal.namespace), time_ns=time_ns, now_ns=now_ns)

    def _heartbeat(self, heartbeat: Heartbeat, zone: tzinfo, now_ns: int) -> None:
        worker, extras = (heartbeat.worker_id, heartbeat.namespace), heartbeat.extras
        self.workers.heartbeat(worker, time_ns=epoch_ns(heartbeat.timestamp, zone), now_ns=now_ns)
        self.workers.load(
            worker,
            now_ns,
            inflight=heartbeat.inflight,
            concurrency=extras.concurrency,
            memory=extras.memory_bytes,
        )


def _epoch_ns(time: datetime | None, zone: tzinfo) -> int:
    return epoch_ns(time, zone) if time else 0


def _tells(envelope: Envelope) -> bool:
    """Whether an envelope says where its task comes from; a thin one must not keep a better one from being read."""
    return envelope.enqueued_at is not None or envelope.headers.traceparent is not None


def _decide(attempt: Attempt) -> Settled:
    """Turn what was heard into what is told."""
    origin = attempt.origin or unknown_origin(attempt.task_id)
    kind, ending, from_signal = attempt.outcome()
    missing = []
    if attempt.missing_start:
        missing.append("start")
    if kind is None or not (from_signal or attempt.postrun_ending):
        missing.append("end")
    if not origin.enqueued_ns:
        missing.append("enqueued")
    start_ns = attempt.started_ns or min(attempt.received_ns or ending.time_ns, ending.time_ns)
    ready_ns, waited_backwards = ready_time(attempt, origin) if attempt.started_ns else (0, False)
    return Settled(
        attempt=attempt,
        origin=origin,
        kind=kind,
        ending=ending,
        start_ns=start_ns,
        end_ns=max(ending.time_ns, start_ns),
        ready_ns=ready_ns,
        adjusted=waited_backwards or ending.time_ns < start_ns,
        missing=tuple(missing),
        end_reason=_end_reason(kind, attempt, origin),
    )


_END_REASONS: dict[EndKind | None, str] = {
    EndKind.SUCCEEDED: "success",
    EndKind.RETRIED: "retry",
    EndKind.REVOKED: "revoked",
    None: "unknown",
}


def _end_reason(kind: EndKind | None, attempt: Attempt, origin: Origin) -> str:
    if kind is EndKind.FAILED:
        # Stem gives the dead letter the same reason, also where no retries were allowed.
        exhausted = origin.max_retries is not None and attempt.number >= origin.max_retries
        return "max-retries-exhausted" if exhausted else "error"
    return _END_REASONS[kind]
