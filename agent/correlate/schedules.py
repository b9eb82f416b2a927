"""What Beat says of its schedules: log records, drift, dispatches. Pure."""

from datetime import tzinfo

from agent import instruments
from agent.core.clock import NANOSECONDS
from agent.core.limits import MAX_MESSAGE, MAX_STACK
from agent.correlate import logs
from agent.correlate.logs import event
from agent.correlate.recorder import Recorder
from agent.otlp.log_record import Severity
from agent.stem.catalogue import SignalName
from agent.stem.timestamps import epoch_ns
from agent.stem.wire import Attributes, Signal

_DUE = event("stem.schedule.due", Severity.DEBUG)
_DISPATCHED = event("stem.schedule.dispatched", Severity.INFO)
_FAILED = event("stem.schedule.failed", Severity.ERROR)
_ID, _NAMESPACE, _DRIFT = logs.key("stem.schedule.id"), logs.key("stem.namespace"), logs.key("stem.schedule.drift")
_MESSAGE, _STACK = logs.key("exception.message"), logs.key("exception.stacktrace")
_MILLISECONDS = 1000


class Schedules:
    """Counts and tells each firing once: a repeat of the same one changes nothing."""

    def __init__(self, recorder: Recorder) -> None:
        self._log = recorder.log
        self._metrics = recorder.metrics

    def heard(self, signal: Signal, time_ns: int, zone: tzinfo, now_ns: int) -> None:
        """Take a `schedule-entry-*` signal."""
        attributes = signal.attributes
        entry, series = attributes.entry_id or "", (attributes.entry_id or "", signal.namespace)
        log_event, body, extra = _DUE, f"schedule {entry} is due", b""
        if signal.event_name == SignalName.SCHEDULE_ENTRY_DISPATCHED:
            drift_s = _drift(attributes, zone)
            log_event, body = _DISPATCHED, f"schedule {entry} was dispatched"
            self._metrics.add(instruments.DISPATCH_SUCCESS, series, now_ns)
            if drift_s is not None:
                self._metrics.record(instruments.SCHEDULER_DRIFT, series, now_ns, abs(drift_s))
                extra = _DRIFT(drift_s)
                late = "early" if drift_s < 0 else "late"
                body += f", {logs.duration(abs(drift_s))} {late}"
        elif signal.event_name == SignalName.SCHEDULE_ENTRY_FAILED:
            error = attributes.error or ""
            because = f": {error.partition(chr(10))[0][: logs.MAX_BODY_ERROR]}" if error else ""
            log_event, body = _FAILED, f"schedule {entry} failed to be dispatched{because}"
            self._metrics.add(instruments.DISPATCH_FAILED, series, now_ns)
            extra = _MESSAGE.text(error[:MAX_MESSAGE]) if error else b""
            if attributes.stack_trace:
                extra += _STACK.text(attributes.stack_trace[:MAX_STACK])
        if self._log.wants(log_event):
            self._log.write(
                log_event,
                subject=series,
                time_ns=time_ns,
                now_ns=now_ns,
                body=body,
                attributes=_ID.text(entry) + _NAMESPACE.text(signal.namespace) + extra,
            )


def _drift(attributes: Attributes, zone: tzinfo) -> float | None:
    """Return the drift in seconds: Stem's own figure knows of the jitter that was applied, the times do not."""
    if attributes.drift_ms is not None:
        return attributes.drift_ms / _MILLISECONDS
    if attributes.executed_at and attributes.scheduled_for:
        drift_ns = epoch_ns(attributes.executed_at, zone) - epoch_ns(attributes.scheduled_for, zone)
        return drift_ns / NANOSECONDS
    return None
