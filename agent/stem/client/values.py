"""What `StemClient` answers: frozen values, whose JSON (`msgspec.json.encode`) has Stem's own field names.

Ages and durations are whole milliseconds (`...Ms`) by Redis' clock, so that no other clock can make them wrong. Times
are aware; one that was written without an offset is taken to be in the client's `assume_timezone`. What nobody can know
is None. Arguments and results of tasks are in none of them.
"""

from datetime import datetime

from msgspec import Struct, field

from agent.stem.catalogue import TaskState
from agent.stem.envelope import Envelope
from agent.stem.heartbeat import Subscriptions
from agent.stem.status import TaskError


class Queue(Struct, frozen=True, kw_only=True, rename="camel"):
    """What a queue holds.

    `depth` is what is ready and waits, over all ten priorities; None where the server cannot tell, and then
    `depth_unknown` says why. `inflight` was delivered and not acknowledged: it has what a worker prefetched, and not
    what runs for longer than its lease. `delayed` is for later, `overdue` of it past due: nobody drains it. `dead` are
    dead letters. `oldest_age_ms` is how long the oldest ready task has waited, `oldest_dead_age_ms` how long the oldest
    dead letter has lain; `next_due_in_ms` is when the next delayed task is due, negative if it is overdue. `paused` is
    None where the server would not say. `enqueued` and `delivered` count since the queue exists.
    """

    queue: str
    depth: int | None
    inflight: int
    delayed: int
    dead: int
    overdue: int
    oldest_age_ms: int | None = None
    next_due_in_ms: int | None = None
    oldest_dead_age_ms: int | None = None
    paused: bool | None = None
    depth_unknown: str | None = None
    enqueued: int | None = None
    delivered: int | None = None


class QueueNames(Struct, frozen=True):
    """Queues that were found; `complete` is False if the keyspace has more keys than were looked at."""

    names: tuple[str, ...]
    complete: bool


class Worker(Struct, frozen=True, kw_only=True, rename="camel"):
    """A worker's last heartbeat.

    One that is not `up` has an id and nothing else: its heartbeat has expired, 60 s after the last, whether it was
    stopped or died. `unreadable` says what is wrong with one that is not what Stem writes. `queues` has the tasks held,
    by queue. `clock_skew_ms` is the worker's clock minus Redis'; None where the age is not known by Redis' clock.
    Replicas that share an id, as in containers, look like one worker.
    """

    worker_id: str
    up: bool = False
    namespace: str | None = None
    age_ms: int | None = None
    timestamp: datetime | None = None
    clock_skew_ms: int | None = None
    inflight: int | None = None
    isolate_count: int | None = None
    concurrency: int | None = None
    max_concurrency: int | None = None
    prefetch: int | None = None
    queues: dict[str, int] = field(default_factory=dict)
    subscriptions: Subscriptions = field(default_factory=Subscriptions)
    host: str | None = None
    pid: int | None = None
    memory_bytes: int | None = None
    started_at: datetime | None = None
    started: int | None = None
    completed: int | None = None
    failed: int | None = None
    unreadable: str | None = None


class Schedule(Struct, frozen=True, kw_only=True, rename="camel"):
    """An entry of the schedule store.

    `next_run_at` is without jitter. `overdue_ms` is for how long an enabled entry should have run, jitter allowed for;
    0 for one that is on time, disabled or `expired`. `drift_ms` is by how much the last run was late. `spec` is Stem's
    JSON, such as `{"kind":"interval","everyMs":60000}`.
    """

    id: str
    task: str | None
    queue: str | None
    spec: str | None
    enabled: bool
    expired: bool
    next_run_at: datetime
    overdue_ms: int
    last_run_at: datetime | None = None
    last_success_at: datetime | None = None
    last_error_at: datetime | None = None
    last_error: str | None = None
    drift_ms: int | None = None
    total_run_count: int | None = None
    timezone: str | None = None
    jitter_ms: int | None = None
    expire_at: datetime | None = None


class DeadLetter(Struct, frozen=True, kw_only=True, rename="camel"):
    """A task that was given up: `reason` is Stem's word, `error` what the last attempt failed with.

    `attempt` counts from 0. `age_ms` is Redis' clock minus the worker's `dead_at`, at least 0. `unreadable` says what
    is wrong with an entry that is not what Stem writes.
    """

    queue: str
    id: str | None = None
    task: str | None = None
    reason: str | None = None
    error: str | None = None
    attempt: int | None = None
    max_retries: int | None = None
    enqueued_at: datetime | None = None
    dead_at: datetime | None = None
    age_ms: int | None = None
    unreadable: str | None = None


class TaskInFlight(Struct, frozen=True, kw_only=True, rename="camel"):
    """A task in a worker's hands, or one whose lease was extended: that leaves a copy among the delayed ones.

    `consumer` was given it `held_ms` ago, for the `deliveries`th time; all three are None of an extended lease.
    `worker` is what its record says, else the consumer. `state` is the record's: `running`, or `queued` and `retried`
    while the worker has not begun with it, or where the producer's own `queued` came last. `running_ms` is since
    `started_at`, which is before an isolate is free.
    """

    id: str | None
    task: str | None
    queue: str
    priority: int | None
    attempt: int | None
    max_retries: int | None
    worker: str | None
    consumer: str | None
    held_ms: int | None
    deliveries: int | None
    lease_extended: bool
    state: TaskState | None = None
    started_at: datetime | None = None
    running_ms: int | None = None
    enqueued_at: datetime | None = None


class TaskTrace(Struct, frozen=True, kw_only=True, rename="camel"):
    """One trace of a task in the queues.

    `where` is `waiting` (ready on a stream since `at`), `pending` (given to `consumer` `held_ms` ago), `acknowledged`
    (ready at `at`, and done with), `delayed` (due at `at`) or `dead` (given up at `at`, for a `reason`). An attempt
    that was retried, or delivered again, has one each.
    """

    where: str
    queue: str
    attempt: int | None = None
    at: datetime | None = None
    entry: str | None = None
    consumer: str | None = None
    held_ms: int | None = None
    deliveries: int | None = None
    reason: str | None = None
    error: str | None = None


class TaskReport(Struct, frozen=True, kw_only=True, rename="camel"):
    """Everything that Redis knows of one task; `found` is False where it knows nothing.

    `state` and what follows up to `error` is from the record, which tells of the last change only and is forgotten
    after a day; `record_unreadable` says what is wrong with one that cannot be read. `wait_ms` is from when the attempt
    was due to its start, by two clocks, and `run_ms` from there to its end, or to now. `envelope` is the newest that
    was found, without arguments. `traces` are in the order of their times. `looked_at` says which queues were looked
    through, and `complete` whether the whole of them was, as far as the task could be in it.
    """

    id: str
    found: bool
    state: TaskState | None = None
    task: str | None = None
    queue: str | None = None
    attempt: int | None = None
    max_retries: int | None = None
    worker: str | None = None
    created_at: datetime | None = None
    updated_at: datetime | None = None
    started_at: datetime | None = None
    ended_at: datetime | None = None
    wait_ms: int | None = None
    run_ms: int | None = None
    error: TaskError | None = None
    record_unreadable: str | None = None
    envelope: Envelope | None = None
    traces: tuple[TaskTrace, ...] = ()
    looked_at: tuple[str, ...] = ()
    complete: bool = True
