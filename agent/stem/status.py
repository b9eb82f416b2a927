"""A task's record in Stem's result backend (`{ns}:result:{id}`), decoded; its `payload` never is.

Written by `packages/stem/lib/src/worker/worker.dart` and `core/stem.dart`, stored by
`packages/stem_redis/lib/src/backend/redis_backend.dart`. The last writer wins, and `meta` is replaced as a whole:
a record tells of the last change of state, and nothing of those before it.
"""

from datetime import datetime

import msgspec
from msgspec import Struct, field

from agent.stem.catalogue import TaskState
from agent.stem.lenient import Count, DecodeError, members, mended, salvage

_STATES = {state.value: state for state in TaskState}


class TaskError(Struct, frozen=True, gc=False):
    """`TaskError` of a record: `type` is Dart's runtime type, or Stem's own word such as `RetryExhausted`."""

    type: str | None = None
    message: str | None = None
    stack: str | None = None
    retryable: bool | None = None


class TaskStatus(Struct, frozen=True, kw_only=True, gc=False):
    """What a record says. Times are as their writer put them: without an offset, in its local time.

    `created_at` is the time of the first record of this task, `updated_at` that of this one. After `retried`,
    `attempt` is the one that ended, not the next. `rate_limited` and `queue_paused` tell a `retried` that is no
    error: its attempt never ran.
    """

    id: str
    state: TaskState
    attempt: int | None = None
    created_at: datetime | None = None
    updated_at: datetime | None = None
    error: TaskError | None = None
    task: str | None = None
    queue: str | None = None
    worker: str | None = None
    started_at: datetime | None = None
    completed_at: datetime | None = None
    failed_at: datetime | None = None
    expired_at: datetime | None = None
    expired: bool = False
    revoked: bool = False
    revoked_reason: str | None = None
    retry_delay_ms: int | None = None
    retry_after_ms: int | None = None
    rate_limited: bool = False
    queue_paused: bool = False
    retry_exhausted: bool = False
    security: str | None = None


class _Meta(Struct, rename="camel", gc=False):
    task: str | None = None
    stem_task: str | None = field(default=None, name="stem.task")
    queue: str | None = None
    stem_queue: str | None = field(default=None, name="stem.queue")
    worker: str | None = None
    started_at: datetime | None = None
    completed_at: datetime | None = None
    failed_at: datetime | None = None
    expired_at: datetime | None = None
    expired: bool | None = field(default=None, name="stem.expired")
    revoked: bool | None = None
    revoked_reason: str | None = None
    retry_delay_ms: Count | None = None
    retry_after_ms: Count | None = None
    rate_limited: bool | None = None
    group_rate_limited: bool | None = None
    rate_limiter_unavailable: bool | None = None
    queue_paused: bool | None = None
    retry_exhausted: bool | None = None
    security: str | None = None


class _Record(Struct, rename="camel", gc=False):
    id: str
    state: str
    attempt: Count | None = None
    created_at: datetime | None = None
    updated_at: datetime | None = None
    error: TaskError | None = None
    meta: _Meta | None = None


_record = msgspec.json.Decoder(_Record)


def decode_status(payload: bytes) -> TaskStatus:
    """Decode a record.

    Raises `DecodeError` with reason `not_json`, `not_an_object`, `missing_<key>` or `invalid_<key>`, where the key is
    `id` or `state`. A state that is not in the catalogue is `queued`, as it is to Stem.
    """
    try:
        record = _record.decode(payload)
    except msgspec.ValidationError:
        record = salvage(members(payload), _Record, required=("id", "state"))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        if whole := mended(payload):
            return decode_status(whole)
        raise DecodeError("not_json") from None
    meta = record.meta or _Meta()
    return TaskStatus(
        id=record.id,
        state=_STATES.get(record.state, TaskState.QUEUED),
        attempt=record.attempt,
        created_at=record.created_at,
        updated_at=record.updated_at,
        error=record.error,
        task=meta.task or meta.stem_task,
        queue=meta.queue or meta.stem_queue,
        worker=meta.worker,
        started_at=meta.started_at,
        completed_at=meta.completed_at,
        failed_at=meta.failed_at,
        expired_at=meta.expired_at,
        expired=bool(meta.expired),
        revoked=bool(meta.revoked),
        revoked_reason=meta.revoked_reason,
        retry_delay_ms=meta.retry_delay_ms,
        retry_after_ms=meta.retry_after_ms,
        rate_limited=bool(meta.rate_limited or meta.group_rate_limited or meta.rate_limiter_unavailable),
        queue_paused=bool(meta.queue_paused),
        retry_exhausted=bool(meta.retry_exhausted),
        security=meta.security,
    )
