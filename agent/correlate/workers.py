"""The life of workers, from their heartbeats and lifecycle signals: pure, time is an argument."""

from agent.core.clock import NANOSECONDS
from agent.correlate import logs, metrics
from agent.correlate.logs import LogEvent, LogWriter, event
from agent.otlp.log_record import Severity
from agent.otlp.metrics import Aggregator
from agent.stem.catalogue import SignalName

_WORKER_ID = logs.key("stem.worker.id")
_NAMESPACE = logs.key("stem.namespace")
_REASON = logs.key("stem.worker.shutdown.reason")

LIFECYCLE = {
    SignalName.WORKER_INIT: (event("stem.worker.init", Severity.INFO), "worker {} is starting"),
    SignalName.WORKER_READY: (event("stem.worker.ready", Severity.INFO), "worker {} is ready"),
    SignalName.WORKER_STOPPING: (event("stem.worker.stopping", Severity.INFO), "worker {} is stopping"),
    SignalName.WORKER_SHUTDOWN: (event("stem.worker.shutdown", Severity.INFO), "worker {} has stopped"),
    SignalName.WORKER_CHILD_INIT: (
        event("stem.worker.child_init", Severity.DEBUG),
        "worker {} started an isolate",
    ),
    SignalName.WORKER_CHILD_SHUTDOWN: (
        event("stem.worker.child_shutdown", Severity.DEBUG),
        "worker {} disposed of an isolate",
    ),
}

WorkerKey = tuple[str, str]
"""Worker id and namespace, as the metrics' attributes have them."""


class Worker:
    """What is known of one worker."""

    __slots__ = ("last_seen_ns", "stopped", "up")

    def __init__(self, now_ns: int) -> None:
        self.last_seen_ns = now_ns
        self.up = True
        self.stopped = False


class Workers:
    """All workers heard of: fresh for `timeout` seconds after a beat, forgotten after `ttl`."""

    def __init__(self, log: LogWriter, aggregator: Aggregator, *, timeout: float, ttl: float) -> None:
        self._log = log
        self._metrics = aggregator
        self._timeout_ns = int(timeout * NANOSECONDS)
        self._ttl_ns = int(ttl * NANOSECONDS)
        self._workers: dict[WorkerKey, Worker] = {}
        self._stopped: dict[WorkerKey, int] = {}  # when each said goodbye

    def heartbeat(self, key: WorkerKey, *, time_ns: int, now_ns: int) -> None:
        """Note a beat: from Stem's own channel, or the signal `worker-heartbeat`."""
        if time_ns <= self._stopped.get(key, 0):
            return  # it was sent before the worker said goodbye
        self._stopped.pop(key, None)
        worker = self._workers.setdefault(key, Worker(now_ns))
        worker.last_seen_ns = now_ns
        if not worker.up:
            worker.up = True
            self._write(logs.WORKER_RECOVERED, key, time_ns, now_ns, "worker {} is heard again")
        worker.stopped = False
        self._write(logs.WORKER_HEARTBEAT, key, time_ns, now_ns, "worker {} is alive")

    def load(
        self, key: WorkerKey, now_ns: int, *, inflight: int | None, concurrency: int | None, memory: int | None
    ) -> None:
        """Set the gauges that only Stem's own heartbeat can tell; bytes, and counts."""
        for instrument, value in (
            (metrics.WORKER_INFLIGHT, inflight),
            (metrics.WORKER_CONCURRENCY, concurrency),
            (metrics.WORKER_MEMORY, memory),
        ):
            if value is not None:
                self._metrics.set(instrument, key, now_ns, value)

    def lifecycle(self, name: SignalName, key: WorkerKey, *, time_ns: int, now_ns: int, reason: str | None) -> None:
        """Note that a worker started or stopped; a graceful stop is no alarm."""
        log_event, sentence = LIFECYCLE[name]
        extra = _REASON.text(reason) if reason else b""
        self._write(log_event, key, time_ns, now_ns, sentence, extra)
        if name is SignalName.WORKER_SHUTDOWN:
            self._forget(key)
            self._stopped[key] = time_ns
        elif worker := self._workers.get(key):
            # one that never beat is not watched: its silence would mean nothing
            worker.stopped = name is SignalName.WORKER_STOPPING
            worker.last_seen_ns = now_ns

    def tick(self, now_ns: int) -> None:
        """Tell which workers fell silent; forget those that stay so."""
        for gone in [key for key, at_ns in self._stopped.items() if now_ns - at_ns > self._ttl_ns]:
            del self._stopped[gone]
        for key, worker in list(self._workers.items()):
            silence_ns = now_ns - worker.last_seen_ns
            if (worker.stopped and silence_ns > self._timeout_ns) or silence_ns > self._ttl_ns:
                self._forget(key)
            elif worker.up and silence_ns > self._timeout_ns:
                worker.up = False
                silent = logs.duration(silence_ns / NANOSECONDS)
                self._write(logs.WORKER_LOST, key, now_ns, now_ns, f"worker {{}} has been silent for {silent}")

    def collect(self, now_ns: int) -> None:
        """Bring the gauges of every worker up to date."""
        for key, worker in self._workers.items():
            self._metrics.set(metrics.WORKER_UP, key, now_ns, int(worker.up))
            self._metrics.set(metrics.WORKER_AGE, key, now_ns, (now_ns - worker.last_seen_ns) / NANOSECONDS)

    def _forget(self, key: WorkerKey) -> None:
        self._workers.pop(key, None)
        for instrument in (
            metrics.WORKER_UP,
            metrics.WORKER_AGE,
            metrics.WORKER_INFLIGHT,
            metrics.WORKER_CONCURRENCY,
            metrics.WORKER_MEMORY,
        ):
            self._metrics.remove(instrument, key)

    def _write(
        self, log_event: LogEvent, key: WorkerKey, time_ns: int, now_ns: int, sentence: str, extra: bytes = b""
    ) -> None:
        if self._log.wants(log_event):
            worker, namespace = key
            self._log.write(
                log_event,
                subject=key,
                time_ns=time_ns,
                now_ns=now_ns,
                body=sentence.format(worker),
                attributes=_WORKER_ID.text(worker) + _NAMESPACE.text(namespace) + extra,
            )
