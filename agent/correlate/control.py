"""What workers say of the control commands they get: log records; their payloads are never decoded. Pure."""

from agent.correlate import logs
from agent.correlate.logs import LogWriter, event
from agent.otlp.log_record import Severity
from agent.stem.catalogue import SignalName
from agent.stem.wire import Signal

_RECEIVED = event("stem.control.received", Severity.INFO)
_COMPLETED = event("stem.control.completed", Severity.INFO)
_REQUEST, _TYPE = logs.key("stem.control.request_id"), logs.key("stem.control.type")
_STATUS, _WORKER = logs.key("stem.control.status"), logs.key("stem.worker.id")
_NAMESPACE = logs.key("stem.namespace")


def log_command(signal: Signal, log: LogWriter, time_ns: int, now_ns: int) -> None:
    """Tell of a `control-command-*` signal."""
    attributes = signal.attributes
    worker = attributes.worker_id or signal.worker_id or ""
    request, command = attributes.request_id or "", attributes.type or "unknown"
    if signal.event_name == SignalName.CONTROL_COMMAND_RECEIVED:
        log_event, body, extra = _RECEIVED, f"worker {worker} received the command {command}", b""
    else:
        status = attributes.status or "unknown"
        log_event, body, extra = _COMPLETED, f"worker {worker} answered the command {command}: {status}", b""
        extra = _STATUS.text(status)
    if log.wants(log_event):
        known = _REQUEST.text(request) + _TYPE.text(command) + _WORKER.text(worker)
        log.write(
            log_event,
            subject=(request, worker),
            time_ns=time_ns,
            now_ns=now_ns,
            body=body,
            attributes=known + _NAMESPACE.text(signal.namespace) + extra,
        )
