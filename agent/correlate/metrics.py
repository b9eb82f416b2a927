"""The metrics made from signals (telemetry contract, section 4)."""

from collections.abc import Iterator
from dataclasses import dataclass, fields

from agent.instruments import (
    DEAD_LETTERED,
    DISPATCH_FAILED,
    DISPATCH_SUCCESS,
    SCHEDULER_DRIFT,
    WORKER_AGE,
    WORKER_CONCURRENCY,
    WORKER_INFLIGHT,
    WORKER_MEMORY,
    WORKER_SKEW,
    WORKER_UP,
)
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
    expired: Instrument
    lost: Instrument
    active: Instrument
    oldest_age: Instrument
    duration: Instrument
    latency: Instrument
    retry_delay: Instrument
    total_duration: Instrument

    def __iter__(self) -> Iterator[Instrument]:
        return (getattr(self, each.name) for each in fields(self))


def task_instruments(*, per_worker: bool) -> TaskInstruments:
    """Return the instruments with the attribute keys that the operator chose."""
    keys: tuple[str, ...] = ("task", "queue", "namespace", "worker") if per_worker else ("task", "queue", "namespace")
    errors, outcomes = (*keys, "error.type"), (*keys, "outcome")

    def counter(name: str, text: str, keys: tuple[str, ...] = keys) -> Instrument:
        return Instrument(f"stem.tasks.{name}", COUNTER, "{task}", keys, text)

    def seconds(name: str, text: str, keys: tuple[str, ...] = keys) -> Instrument:
        return Instrument(f"stem.{name}", HISTOGRAM, "s", keys, text)

    return TaskInstruments(
        published=counter("published", "Publishes seen; retries and replays are not counted"),
        started=counter("started", "Attempts started"),
        succeeded=counter("succeeded", "Attempts that succeeded"),
        failed=counter("failed", "Attempts that failed for good, exhausted explicit retries included", errors),
        retried=counter("retried", "Attempts that ended in a retry", errors),
        revoked=counter("revoked", "Attempts ended by a revocation"),
        expired=counter("expired", "Tasks that expired before they ran"),
        lost=counter("lost", "Attempts whose worker vanished"),
        active=Instrument("stem.tasks.active", GAUGE, "{task}", keys, "Attempts started and not ended"),
        oldest_age=Instrument("stem.tasks.active.oldest_age", GAUGE, "s", keys, "How long the oldest of them runs"),
        duration=seconds("task.duration", "From start to end of an attempt", outcomes),
        latency=seconds("queue.latency", "From ready (enqueued, due, or back-off over) to start"),
        retry_delay=seconds("task.retry.delay", "From a retry to when the next attempt is due"),
        total_duration=seconds("task.total_duration", "From first enqueue to final end, retries included", outcomes),
    )


OF_WORKERS = (WORKER_UP, WORKER_AGE, WORKER_INFLIGHT, WORKER_CONCURRENCY, WORKER_MEMORY, WORKER_SKEW)
OF_SCHEDULES = (SCHEDULER_DRIFT, DISPATCH_SUCCESS, DISPATCH_FAILED)
OF_LETTERS = (DEAD_LETTERED,)
OTHERS = (*OF_WORKERS, *OF_SCHEDULES, *OF_LETTERS)
"""Instruments that are told of nobody's task."""
