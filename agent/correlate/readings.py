"""What is read of those who say nothing, merged into attempts. Pure; time is an argument.

Whoever reads knows each delivery by the exact start that its record names, and tells of a task in order. So nothing is
waited for here: what is known of an attempt when its end is read is all that will be known.
"""

from datetime import datetime
from sys import intern
from typing import TYPE_CHECKING

from agent.core.limits import MAX_NAME
from agent.correlate.attempt import TOLD, Attempt, Ending, EndKind, Ends, Mark
from agent.correlate.counters import LATE, REPAIRS, Counters
from agent.correlate.process import Process, Processes
from agent.correlate.recorder import Recorder
from agent.correlate.repair import ending_of, same_start
from agent.correlate.tasks import Tasks
from agent.stem.catalogue import UNREGISTERED, TaskState
from agent.stem.envelope import Envelope
from agent.stem.timestamps import epoch_ns
from agent.stem.wire import DeadLettered, EndTold, Enqueued, LostAttempt, QueueEvent, Recorded, Tailed, Unended

if TYPE_CHECKING:
    from collections.abc import Callable

_READ = "read"
"""In place of a `boot`: records name each delivery exactly."""


class Readings:
    """Takes what was read; `mend` instead takes it for attempts whose signals may have been lost."""

    def __init__(self, tasks: Tasks, processes: Processes, recorder: Recorder, counters: Counters) -> None:
        self._tasks = tasks
        self._processes = processes
        self._recorder = recorder
        self._counters = counters
        self._readers: dict[str, Process] = {}
        self._takes: dict[type, Callable[..., None]] = {
            Enqueued: self._enqueued,
            Recorded: self._recorded,
            Unended: self._unended,
            EndTold: self._end_told,
            DeadLettered: self._dead_lettered,
            QueueEvent: recorder.queue_event,
            LostAttempt: tasks.lost,
        }

    def take(self, fact: Tailed, now_ns: int) -> None:
        """Merge one fact, which nobody else tells."""
        self._takes[type(fact)](fact, now_ns)

    def _enqueued(self, fact: Enqueued, now_ns: int) -> None:
        if fact.published:
            told = self._ns(fact.envelope.enqueued_at) or fact.ready_ns
            self._tasks.publishes.read(fact, told, self._tasks.zone, now_ns)

    def _recorded(self, fact: Recorded, now_ns: int) -> None:
        record, started_ns = fact.record, self._ns(fact.record.started_at)
        kind, ending = (None, None) if record.state is TaskState.RUNNING else ending_of(record, self._tasks.zone)
        never_ran = bool(record.expired or record.security)
        attempt = self._find(fact.namespace, record.id, record.attempt or 0, record.worker, started_ns, now_ns)
        if attempt is None:
            self._counters[LATE, "record"] += 1
            return
        attempt.task = attempt.task or intern((record.task or "")[:MAX_NAME])
        attempt.queue = attempt.queue or intern((record.queue or "")[:MAX_NAME])
        self._begin(attempt, fact.envelope, start_told=fact.start_told)
        if never_ran:
            attempt.marks |= Mark.NUMBERED  # that it has no start is known, not missing
        if kind and ending:
            attempt.ends(kind, ending)
            if kind is EndKind.RETRIED:
                self._tasks.attempts.retried(attempt, ending.next_retry_ns, now_ns, read=True)
        self._tell(attempt, now_ns)

    def _unended(self, fact: Unended, now_ns: int) -> None:
        task_id, started_ns = fact.envelope.id or "", self._ns(fact.started_at)
        attempt = self._find(fact.namespace, task_id, fact.attempt, fact.worker, started_ns, now_ns)
        if attempt is None or attempt.end is not None:
            self._counters[LATE, "record"] += 1
            return
        self._begin(attempt, fact.envelope, start_told=fact.start_told)
        attempt.end = Ends(over_ns=max(fact.over_ns, started_ns))
        if fact.retried:
            attempt.end.finished_state = TaskState.RETRIED
            self._tasks.attempts.retried(attempt, 0, now_ns)
        self._tell(attempt, now_ns)

    def _end_told(self, fact: EndTold, now_ns: int) -> None:
        attempt = self._find(
            *(fact.namespace, fact.task_id, fact.attempt, fact.worker), self._ns(fact.started_at), now_ns
        )
        if attempt is None:
            return
        if fact.retried:
            self._tasks.attempts.retried(attempt, fact.next_retry_ns, now_ns, read=True)
        attempt.end = Ends(over_ns=fact.over_ns)
        self._tasks.attempts.told_elsewhere(attempt, now_ns)

    def _dead_lettered(self, fact: DeadLettered, now_ns: int) -> None:
        dead_ns = self._ns(fact.dead_at) or now_ns
        envelope, task_id = fact.envelope, fact.envelope.id or ""
        publish = self._tasks.publishes.of(
            *(envelope, task_id, envelope.name, fact.queue, fact.namespace), time_ns=dead_ns, zone=self._tasks.zone
        )
        self._recorder.dead_lettered(publish, fact.reason, fact.error, now_ns)
        if fact.reason != UNREGISTERED:
            return
        attempt = self._find(fact.namespace, task_id, envelope.attempt or 0, None, 0, now_ns)
        if attempt is None or attempt.end is not None:
            return
        attempt.queue = attempt.queue or intern(fact.queue)
        self._begin(attempt, envelope, start_told=False)
        attempt.marks |= Mark.NUMBERED
        error = f"no handler is registered for task {(envelope.name or '')[:MAX_NAME]}"
        attempt.ends(EndKind.FAILED, Ending(dead_ns, error, error_type=UNREGISTERED, reason="unregistered"))
        self._tell(attempt, now_ns)

    # --- beside signals ----------------------------------------------------------------------------------------------

    def mend(self, fact: Recorded, now_ns: int) -> None:
        """Take an end of which a signal should have told by now, if none did."""
        record, started_ns = fact.record, self._ns(fact.record.started_at)
        process = self._processes.of_worker(fact.namespace, record.worker or "")
        if process is None or not started_ns or record.state is TaskState.RUNNING:
            return
        if process.taken_ns and started_ns <= process.taken_ns:
            return  # the agent before us may have told it
        attempts, number, worker = self._tasks.attempts, record.attempt or 0, intern(record.worker or "")
        mine = [each for each in attempts.of(record.id) if each.number == number and each.worker == worker]
        attempt = next((each for each in mine if same_start(started_ns, each)), None)
        if attempt is None:
            if mine or attempts.remembers(record.id, number, worker):
                return  # told, or another delivery beside one that was: which of them, nobody can say
            attempt = attempts.find(
                *(record.id, number, worker, process), started_ns=0, never_started_ns=0, now_ns=now_ns
            )
            if attempt is None:
                return
            self._tasks.opened(attempt, now_ns)
        if attempt.end_known and not attempt.doubtful:
            return
        if not attempt.started_ns:
            attempt.started_ns = started_ns
            attempt.marks |= Mark.START_READ
        attempt.marks |= Mark.REPAIRED
        self._tasks.learn(attempt, fact.envelope)
        kind, ending = ending_of(record, self._tasks.zone)
        attempt.ends(kind, ending)
        if kind is EndKind.RETRIED:
            attempts.retried(attempt, ending.next_retry_ns, now_ns, read=True)
        self._counters[REPAIRS, "tailed"] += 1
        self._tell(attempt, now_ns)

    # --- attempts ----------------------------------------------------------------------------------------------------

    def _find(
        self, namespace: str, task_id: str, number: int, worker: str | None, started_ns: int, now_ns: int
    ) -> Attempt | None:
        reader = self._reader(namespace, now_ns)
        attempts, name = self._tasks.attempts, intern((worker or "")[:MAX_NAME])
        before = len(attempts)
        attempt = attempts.find(
            *(task_id, number, name, reader), started_ns=started_ns, never_started_ns=0, now_ns=now_ns
        )
        if attempt and len(attempts) != before:
            attempt.marks |= Mark.TAILED | (Mark.ROOTED if attempts.is_rooted(task_id) else 0)
            attempt.started_ns = started_ns
            self._tasks.opened(attempt, now_ns)
        return attempt

    def _reader(self, namespace: str, now_ns: int) -> Process:
        reader = self._readers.get(namespace)
        if reader is None:
            reader = self._readers[namespace] = Process(namespace, "", _READ, now_ns)
        return reader

    def _begin(self, attempt: Attempt, envelope: Envelope, *, start_told: bool) -> None:
        if start_told:
            attempt.marks |= TOLD
        if attempt.origin is None:
            self._tasks.learn(attempt, envelope)
            _part_from_publish(attempt)

    def _tell(self, attempt: Attempt, now_ns: int) -> None:
        self._recorder.started(attempt, now_ns)
        if attempt.end is not None:
            self._tasks.settler.settle(attempt, now_ns)

    def _ns(self, time: datetime | None) -> int:
        return epoch_ns(time, self._tasks.zone) if time else 0


def _part_from_publish(attempt: Attempt) -> None:
    """Forget the publish of what is the copy of a lease: it was due long after that."""
    origin, before = attempt.origin, attempt.before
    if origin and before and not attempt.number and origin.not_before_ns != before.due_ns:
        attempt.before = None
