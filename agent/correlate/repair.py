"""Repair from Stem's result records: which tasks to ask for, and what an answer says about an attempt. Pure.

A record is the last word of a worker about a task, written just before the signal. It is one record for all attempts
and deliveries, and the last writer wins, so it must be read with care (Stem's traps): `queued` may be a publisher's
late write over an end; `retried` may mean that a delivery was only sent back (rate limit, pause), and names neither
worker nor start; `cancelled` may mean expired; and any later attempt hides what became of the ones before.
"""

from collections.abc import Callable, Iterable
from datetime import datetime, tzinfo
from enum import Enum, auto
from typing import NamedTuple

from agent.core.clock import NANOSECONDS
from agent.correlate.attempt import Attempt, Ending, EndKind
from agent.stem.catalogue import TaskState
from agent.stem.status import TaskStatus
from agent.stem.timestamps import MAX_NS, epoch_ns

SAME_START_NS = NANOSECONDS
"""A record's `startedAt` is taken between `task-received` and `task-prerun`, by their clock. On the wrong side of one
of them, or so far from it, it is another delivery's: those of a short task may follow within milliseconds."""
LONGEST_WAIT_NS = 60 * NANOSECONDS
"""How long an answer is waited for: so long may Redis be away, or the questions before it take."""
_MILLISECOND_NS = 1_000_000


class RepairQueue:
    """Tasks whose records are wanted, oldest first, each once; bounded by `most`. One not `enabled` wants nothing."""

    def __init__(self, most: int, *, enabled: bool = True) -> None:
        self.enabled = enabled
        self._most = most
        self._wanted: dict[str, int] = {}  # since when
        self._asked: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._wanted)

    def want(self, task_id: str, now_ns: int) -> None:
        """Ask for a task's record."""
        if task_id in self._wanted or not self.enabled:
            return
        if len(self._wanted) >= self._most:
            del self._wanted[next(iter(self._wanted))]
        self._wanted[task_id] = now_ns

    def wants(self, task_id: str) -> bool:
        """Whether a task's record is still to be asked for: what is being answered just now was read before."""
        return task_id in self._wanted

    def waits(self, task_id: str, now_ns: int) -> bool:
        """Whether an answer may still come, and is worth waiting for."""
        since_ns = self._wanted.get(task_id) or self._asked.get(task_id)
        return since_ns is not None and now_ns - since_ns < LONGEST_WAIT_NS

    def state(self) -> list[str]:
        """Return the tasks whose records are still to be read, those that were being asked for first."""
        return [*self._asked, *self._wanted]

    def restore(self, state: list[str], now_ns: int) -> None:
        """Ask for what was not answered: the patience for it begins anew."""
        for task_id in state:
            self.want(task_id, now_ns)

    def take(self, most: int) -> list[str]:
        """Return up to `most` task ids, which are being asked for from now on."""
        taken = [task_id for task_id, _ in zip(self._wanted, range(most), strict=False)]
        for task_id in taken:
            self._asked[task_id] = self._wanted.pop(task_id)
        return taken

    def answered(self, task_id: str) -> None:
        """Note that a task's record was read."""
        self._asked.pop(task_id, None)

    def unanswered(self, task_ids: Iterable[str], still: Callable[[str], bool]) -> None:
        """Ask again for what could not be answered, if it `still` matters."""
        for task_id in task_ids:
            since_ns = self._asked.pop(task_id, 0)
            if still(task_id):
                self._wanted.setdefault(task_id, since_ns)


class Says(Enum):
    """What a record says about an attempt."""

    NOTHING = auto()
    RUNS = auto()
    ENDED = auto()
    OVER = auto()  # a later attempt exists: this one has ended, and nobody knows how


class Reading(NamedTuple):
    """A record, read for one attempt; `started_ns` is 0 where it does not tell."""

    says: Says
    started_ns: int = 0
    kind: EndKind | None = None
    ending: Ending | None = None


_NOTHING = Reading(Says.NOTHING)


def read_record(record: TaskStatus, attempt: Attempt, zone: tzinfo) -> Reading:
    """Return what a record says about an attempt; its times without an offset are in `zone`."""
    if record.attempt is None or record.attempt != attempt.number:
        return Reading(Says.OVER) if (record.attempt or 0) > attempt.number else _NOTHING
    if record.state is TaskState.RETRIED:
        return _retried(record, attempt, zone)
    started_ns = _ns(record.started_at, zone)
    same_worker = record.worker in {None, attempt.worker}
    if record.state is TaskState.QUEUED or not (same_worker and same_start(started_ns, attempt)):
        return _NOTHING  # a publisher's late write, or another delivery's
    if record.state is TaskState.RUNNING:
        return Reading(Says.RUNS, started_ns)
    kind, ending = ending_of(record, zone)
    # Worker and start prove whose end it is, though a clock that was set back may have it before its start.
    proved = record.worker and started_ns and attempt.started_ns
    if not ending.time_ns or (not proved and _before(ending.time_ns, attempt)):
        return _NOTHING
    return Reading(Says.ENDED, started_ns, kind, ending)


def same_start(read_ns: int, attempt: Attempt) -> bool:
    """Whether a record's start may be that of an attempt; unknown ones may be any."""
    if not read_ns:
        return True
    if attempt.started_ns:
        return 0 <= attempt.started_ns - read_ns < SAME_START_NS
    return not attempt.received_ns or 0 <= read_ns - attempt.received_ns < SAME_START_NS


def _retried(record: TaskStatus, attempt: Attempt, zone: tzinfo) -> Reading:
    if record.rate_limited or record.queue_paused:
        return _NOTHING  # a delivery was sent back; the attempt is still to come
    kind, ending = ending_of(record, zone)
    return _NOTHING if _before(ending.time_ns, attempt) else Reading(Says.ENDED, 0, kind, ending)


def ending_of(record: TaskStatus, zone: tzinfo) -> tuple[EndKind, Ending]:
    """Return the end that a record tells, which is neither `queued` nor `running`."""
    if record.state is TaskState.RETRIED:
        ended_ns = _ns(record.updated_at, zone)
        delay_ms = record.retry_delay_ms
        next_retry_ns = min(MAX_NS, ended_ns + delay_ms * _MILLISECOND_NS) if delay_ms is not None else 0
        return EndKind.RETRIED, _ending(record, ended_ns, next_retry_ns=next_retry_ns)
    if record.state is TaskState.SUCCEEDED:
        return EndKind.SUCCEEDED, Ending(_ns(record.completed_at or record.updated_at, zone))
    if record.state is TaskState.FAILED:
        reason = "signature-invalid" if record.security else "max-retries-exhausted" if record.retry_exhausted else ""
        return EndKind.FAILED, _ending(record, _ns(record.failed_at or record.updated_at, zone), reason=reason)
    if record.expired:
        return EndKind.EXPIRED, Ending(_ns(record.expired_at or record.updated_at, zone))
    return EndKind.REVOKED, Ending(_ns(record.updated_at, zone), record.revoked_reason or "")


def _ending(record: TaskStatus, time_ns: int, *, next_retry_ns: int = 0, reason: str = "") -> Ending:
    error = record.error
    if error is None:
        return Ending(time_ns, next_retry_ns=next_retry_ns, reason=reason)
    return Ending(time_ns, error.message or "", error.stack or "", next_retry_ns, error.type or "", reason)


def _before(ended_ns: int, attempt: Attempt) -> bool:
    """Whether an end lies before the attempt's start: then it is that of an earlier delivery."""
    return not ended_ns or ended_ns < (attempt.started_ns or attempt.received_ns)


def _ns(time: datetime | None, zone: tzinfo) -> int:
    return epoch_ns(time, zone) if time else 0
