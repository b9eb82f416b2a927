"""The metrics made from signals (telemetry contract, section 4)."""

from dataclasses import dataclass

from agent.otlp.metrics import Instrument, InstrumentKind

COUNTER, GAUGE, HISTOGRAM = InstrumentKind.COUNTER, InstrumentKind.GAUGE, InstrumentKind.HISTOGRAM


@dataclass(frozen=True, slots=True)
class TaskInstruments:
    """Instruments whose attributes begin with task, queue and namespace, and worker where the operator asked."""

    published: Instrument
    started: Instrument
    succeeded: Instrument
    failed: Instrument
    retried: Instrument
    revoked: Instrument
    duration: Instrument
    latency: Instrument


def task_instruments(*, per_worker: bool) -> TaskInstruments:
    """Return the instruments with the attribute keys that the operator chose."""
    keys: tuple[str, ...] = ("task", "queue", "namespace", "worker") if per_worker else ("task", "queue", "namespace")
    errors = (*keys, "error.type")

    def counter(name: str, text: str, keys: tuple[str, ...] = keys) -> Instrument:
        return Instrument(f"stem.tasks.{name}", COUNTER, "{task}", keys, text)

    return TaskInstruments(
        published=counter("published", "Publishes seen; retries and replays are not counted"),
        started=counter("started", "Attempts started"),
        succeeded=counter("succeeded", "Attempts that succeeded"),
        failed=counter("failed", "Attempts that failed for good, exhausted explicit retries included", errors),
        retried=counter("retried", "Attempts that ended in a retry", errors),
        revoked=counter("revoked", "Attempts ended by a revocation"),
        duration=Instrument(
            "stem.task.duration", HISTOGRAM, "s", (*keys, "outcome"), "From start to end of an attempt"
        ),
        latency=Instrument(
            "stem.queue.latency", HISTOGRAM, "s", keys, "From ready (enqueued, due, or back-off over) to start"
        ),
    )


_WORKER = ("worker", "namespace")

WORKER_UP = Instrument("stem.worker.up", GAUGE, "{worker}", _WORKER, "1 while heartbeats are fresh, else 0")
WORKER_AGE = Instrument("stem.worker.heartbeat.age", GAUGE, "s", _WORKER, "Time since the last heartbeat")
WORKER_INFLIGHT = Instrument("stem.worker.inflight", GAUGE, "{task}", _WORKER, "Tasks the worker holds")
WORKER_CONCURRENCY = Instrument("stem.worker.concurrency", GAUGE, "{isolate}", _WORKER, "Tasks it can run at once")
WORKER_MEMORY = Instrument("stem.worker.memory", GAUGE, "By", _WORKER, "Resident memory")
