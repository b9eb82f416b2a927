"""From what the stores say about tasks to what the client answers. Pure: `now_ms` is Unix ms by Redis' clock."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, tzinfo

from msgspec.structs import replace

from agent.stem.catalogue import TaskState
from agent.stem.client.reports import age_ms, aware, moment
from agent.stem.client.values import TaskInFlight, TaskReport, TaskTrace
from agent.stem.envelope import Envelope
from agent.stem.questions.deliveries import Delayed, Pending
from agent.stem.questions.trail import Delivery, Found
from agent.stem.status import TaskStatus

_NO_ENVELOPE = Envelope()
_NO_TIME = datetime.min.replace(tzinfo=UTC)
_MILLISECOND_S = 0.001
Records = Mapping[str, TaskStatus | str]


# --- in flight -------------------------------------------------------------------------------------------------------


def in_flight(
    queue: str, pending: Sequence[Pending], delayed: Sequence[Delayed], records: Records, now_ms: int, zone: tzinfo
) -> list[TaskInFlight]:
    """Return a queue's tasks in workers' hands: what is pending, and what runs on an extended lease."""
    told = [_task(queue, each, each.envelope or _NO_ENVELOPE, records, now_ms, zone) for each in pending]
    held = {task.id for task in told}
    for each in delayed:
        record = records.get(each.envelope.id or "")
        if each.envelope.id not in held and isinstance(record, TaskStatus) and _runs(record, each.envelope):
            told.append(_task(queue, None, each.envelope, records, now_ms, zone))
            held.add(each.envelope.id)
    return told


def _runs(record: TaskStatus, envelope: Envelope) -> bool:
    """Whether a delayed envelope is the copy of what runs now: a retry's has another attempt."""
    return record.state is TaskState.RUNNING and record.attempt == envelope.attempt


def _task(
    queue: str, pending: Pending | None, envelope: Envelope, records: Records, now_ms: int, zone: tzinfo
) -> TaskInFlight:
    record = records.get(envelope.id or "")
    status = record if isinstance(record, TaskStatus) else None
    runs = status is not None and _runs(status, envelope)
    started = status.started_at if status and runs else None
    consumer = pending.consumer if pending else None
    return TaskInFlight(
        id=envelope.id,
        task=envelope.name,
        queue=queue,
        priority=envelope.priority,
        attempt=envelope.attempt,
        max_retries=envelope.max_retries,
        worker=(status.worker if status and runs else None) or consumer,
        consumer=consumer,
        held_ms=pending.idle_ms if pending else None,
        deliveries=pending.deliveries if pending else None,
        lease_extended=pending is None,
        state=status.state if status else None,
        started_at=aware(started, zone),
        running_ms=age_ms(started, now_ms, zone) if started else None,
        enqueued_at=aware(envelope.enqueued_at, zone),
    )


# --- one task --------------------------------------------------------------------------------------------------------


def task_report(
    task_id: str, record: TaskStatus | str | None, found: Sequence[Found], now_ms: int, zone: tzinfo, *, whole: bool
) -> TaskReport:
    """Return all that was found of a task; `whole`: every queue that there is was looked through."""
    status = record if isinstance(record, TaskStatus) else TaskStatus(id=task_id, state=TaskState.QUEUED)
    traces = sorted((trace for each in found for trace in _traces(each, zone)), key=lambda trace: trace.at or _NO_TIME)
    envelopes = [envelope for each in found for envelope in _envelopes(each)]
    envelope = max(envelopes, key=lambda each: each.attempt or 0, default=None)
    of_attempt = next((each for each in envelopes if each.attempt == status.attempt), None)
    ended = status.completed_at or status.failed_at or status.expired_at
    if ended is None and status.state is TaskState.CANCELLED:
        ended = status.updated_at
    known = envelope or _NO_ENVELOPE
    return TaskReport(
        id=task_id,
        found=record is not None or bool(traces),
        state=status.state if isinstance(record, TaskStatus) else None,
        task=status.task or known.name,
        queue=status.queue or known.queue,
        attempt=known.attempt if status.attempt is None else status.attempt,
        max_retries=known.max_retries,
        worker=status.worker,
        created_at=aware(status.created_at, zone),
        updated_at=aware(status.updated_at, zone),
        started_at=aware(status.started_at, zone),
        ended_at=aware(ended, zone),
        wait_ms=_between(_due(of_attempt, zone), aware(status.started_at, zone)),
        run_ms=_between(aware(status.started_at, zone), aware(ended, zone) or _now(status, now_ms)),
        error=replace(status.error, stack=None) if status.error else None,
        record_unreadable=record if isinstance(record, str) else None,
        envelope=envelope,
        traces=tuple(traces),
        looked_at=tuple(each.queue for each in found),
        complete=whole and all(each.complete for each in found),
    )


def _traces(found: Found, zone: tzinfo) -> Iterator[TaskTrace]:
    for delivery in found.deliveries:
        yield _on_stream(delivery)
    for delayed in found.delayed:
        yield TaskTrace(where="delayed", queue=found.queue, attempt=delayed.envelope.attempt, at=moment(delayed.due_ms))
    for letter in found.dead:
        yield TaskTrace(
            where="dead",
            queue=found.queue,
            attempt=letter.envelope.attempt,
            at=aware(letter.dead_at, zone),
            reason=letter.reason,
            error=letter.error,
        )


def _on_stream(delivery: Delivery) -> TaskTrace:
    pending = delivery.pending
    where = "pending" if pending else "acknowledged" if delivery.delivered else "waiting"
    return TaskTrace(
        where=where,
        queue=delivery.queue,
        attempt=delivery.envelope.attempt,
        at=moment(int(delivery.entry.partition("-")[0])),
        entry=delivery.entry,
        consumer=pending.consumer if pending else None,
        held_ms=pending.idle_ms if pending else None,
        deliveries=pending.deliveries if pending else None,
    )


def _envelopes(found: Found) -> Iterator[Envelope]:
    yield from (delivery.envelope for delivery in found.deliveries)
    yield from (delayed.envelope for delayed in found.delayed)
    yield from (letter.envelope for letter in found.dead)


def _due(envelope: Envelope | None, zone: tzinfo) -> datetime | None:
    """Return when an attempt was to start: as soon as it was published, or when its back-off was over."""
    if envelope is None:
        return None
    times = (aware(envelope.enqueued_at, zone), aware(envelope.not_before, zone))
    return max((time for time in times if time), default=None)


def _now(status: TaskStatus, now_ms: int) -> datetime | None:
    return moment(now_ms) if status.state is TaskState.RUNNING else None


def _between(start: datetime | None, end: datetime | None) -> int | None:
    """Return milliseconds, at least 0; None if one of the times is not known."""
    return max(0, round((end - start).total_seconds() / _MILLISECOND_S)) if start and end else None
