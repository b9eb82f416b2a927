"""From what a store says to what the client answers. Pure: `now_ms` is Unix milliseconds by Redis' clock."""

from collections.abc import Sequence
from datetime import UTC, datetime, tzinfo

from agent.stem.client.values import DeadLetter, Queue, Schedule, Worker
from agent.stem.questions.dead_letters import DeadLetter as Letter
from agent.stem.questions.queues import QueueState
from agent.stem.questions.schedules import ScheduleEntry
from agent.stem.questions.workers import Heartbeats, WorkerHeartbeat
from agent.stem.timestamps import EPOCH, epoch_ns

_NS_PER_MS = 1_000_000
_LAST = datetime.max.replace(tzinfo=UTC)


def queue_of(state: QueueState, now_ms: int, *, next_due_ms: int | None, paused: bool | None, why: str | None) -> Queue:
    """Return what a queue holds; `why` its depth is not known, where it is not."""
    dead = state.oldest_dead
    return Queue(
        queue=state.queue,
        depth=state.depth,
        inflight=state.inflight,
        delayed=state.delayed,
        dead=state.dead,
        overdue=state.overdue,
        oldest_age_ms=None if state.oldest_ready_ms is None else max(0, now_ms - state.oldest_ready_ms),
        next_due_in_ms=None if next_due_ms is None else next_due_ms - now_ms,
        oldest_dead_age_ms=age_ms(dead, now_ms, UTC) if dead else None,
        paused=paused,
        depth_unknown=why,
        enqueued=state.enqueued,
        delivered=state.delivered,
    )


def workers_of(found: Heartbeats, now_ms: int, zone: tzinfo) -> list[Worker]:
    """Return every worker that the index names, by id."""
    told = [_worker(beat, now_ms, zone) for beat in found.alive]
    told += [Worker(worker_id=worker) for worker in found.gone]
    told += [Worker(worker_id=worker, unreadable=reason) for worker, reason in found.unreadable.items()]
    return sorted(told, key=lambda worker: worker.worker_id)


def _worker(beat: WorkerHeartbeat, now_ms: int, zone: tzinfo) -> Worker:
    heartbeat, extras = beat.heartbeat, beat.heartbeat.extras
    written_ms = epoch_ns(heartbeat.timestamp, zone) // _NS_PER_MS
    by_key = beat.age_ms
    return Worker(
        worker_id=heartbeat.worker_id,
        up=True,
        namespace=heartbeat.own_namespace,
        age_ms=max(0, now_ms - written_ms) if by_key is None else by_key,
        timestamp=aware(heartbeat.timestamp, zone),
        clock_skew_ms=None if by_key is None else written_ms + by_key - now_ms,
        inflight=heartbeat.inflight,
        isolate_count=heartbeat.isolate_count,
        concurrency=extras.concurrency,
        max_concurrency=extras.max_concurrency,
        prefetch=extras.prefetch,
        queues={queue.name: queue.inflight for queue in heartbeat.queues if queue.inflight is not None},
        subscriptions=extras.subscriptions,
        host=extras.host,
        pid=extras.pid,
        memory_bytes=extras.memory_bytes,
        started_at=aware(extras.started_at, zone),
        started=extras.started,
        completed=extras.completed,
        failed=extras.failed,
    )


def queues_of(workers: Sequence[Worker]) -> set[str]:
    """Return the queues that workers read, or hold tasks of."""
    return {queue for worker in workers for queue in (*worker.queues, *worker.subscriptions.queues)}


def schedule_of(entry: ScheduleEntry, now_ms: int, zone: tzinfo) -> Schedule:
    """Return an entry of the schedule store, and how late it is."""
    return Schedule(
        id=entry.id,
        task=entry.task_name,
        queue=entry.queue,
        spec=entry.spec,
        enabled=entry.enabled,
        expired=entry.expire_at is not None and epoch_ns(entry.expire_at, zone) <= now_ms * _NS_PER_MS,
        next_run_at=moment(entry.next_run_ms),
        overdue_ms=entry.overdue_ms(now_ms, zone),
        last_run_at=aware(entry.last_run_at, zone),
        last_success_at=aware(entry.last_success_at, zone),
        last_error_at=aware(entry.last_error_at, zone),
        last_error=entry.last_error,
        drift_ms=entry.drift_ms,
        total_run_count=entry.total_run_count,
        timezone=entry.timezone,
        jitter_ms=entry.jitter_ms,
        expire_at=aware(entry.expire_at, zone),
    )


def dead_letter_of(queue: str, letter: Letter | str, now_ms: int, zone: tzinfo) -> DeadLetter:
    """Return a dead letter of a queue; a text says why it could not be read."""
    if isinstance(letter, str):
        return DeadLetter(queue=queue, unreadable=letter)
    envelope = letter.envelope
    return DeadLetter(
        queue=queue,
        id=envelope.id,
        task=envelope.name,
        reason=letter.reason,
        error=letter.error,
        attempt=envelope.attempt,
        max_retries=envelope.max_retries,
        enqueued_at=aware(envelope.enqueued_at, zone),
        dead_at=aware(letter.dead_at, zone),
        age_ms=age_ms(letter.dead_at, now_ms, zone) if letter.dead_at else None,
    )


def aware(time: datetime | None, zone: tzinfo) -> datetime | None:
    """Return a time with an offset: without one, it is in `zone`."""
    return time.replace(tzinfo=zone) if time and time.tzinfo is None else time


def age_ms(time: datetime, now_ms: int, zone: tzinfo) -> int:
    """Return for how long ago a time is, at least 0."""
    return max(0, now_ms - epoch_ns(time, zone) // _NS_PER_MS)


def moment(unix_ms: int) -> datetime:
    """Return a time in UTC; one that no calendar has becomes the nearest that it has."""
    try:
        return datetime.fromtimestamp(unix_ms / 1000, UTC)
    except (OverflowError, ValueError, OSError):
        return _LAST if unix_ms > 0 else EPOCH
