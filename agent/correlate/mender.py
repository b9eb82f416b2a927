"""Mending what signals were lost of: whose records are asked for, and what becomes of the answers. Pure.

What was heard is believed before what was read. A record counts only for attempts of which something may be missing.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from datetime import tzinfo
from sys import intern

from msgspec import Struct
from msgspec.structs import replace

from agent.core.clock import NANOSECONDS
from agent.correlate.attempt import Attempt, EndKind, Mark
from agent.correlate.attempts import AttemptTable
from agent.correlate.counters import REPAIRS, Counters
from agent.correlate.process import Process, Processes
from agent.correlate.publishes import Publishes
from agent.correlate.recorder import Recorder
from agent.correlate.repair import RepairQueue, Says, read_record
from agent.correlate.settler import Settler
from agent.stem.catalogue import TaskState
from agent.stem.status import TaskStatus
from agent.stem.timestamps import epoch_ns

LOOK_NS = NANOSECONDS
"""How often the open attempts are looked through for those that a gap may have left open."""
DOUBT_NS = 30 * NANOSECONDS
"""How often records are read again that proved nothing."""


class MenderState(Struct, array_like=True):
    """Whose signals were lost, whether answers proved nothing, and the tasks whose records are wanted."""

    suspects: list[Process]
    unsure: bool
    wanted: list[str]


class Mender:
    """Asks through `repairs`, which may be one that asks nothing."""

    def __init__(
        self,
        repairs: RepairQueue,
        attempts: AttemptTable,
        publishes: Publishes,
        processes: Processes,
        recorder: Recorder,
        opened: Callable[[Attempt, int], None],
        settler: Settler,
        counters: Counters,
    ) -> None:
        self._repairs = repairs
        self._attempts = attempts
        self._publishes = publishes
        self._processes = processes
        self._recorder = recorder
        self._opened = opened
        self._settler = settler
        self._counters = counters
        self._suspects: set[Process] = set()
        self._unsure = False
        self._next_look_ns = 0
        self._next_doubt_ns = 0

    def state(self) -> MenderState:
        """Return what is still to be asked for."""
        return MenderState(list(self._suspects), self._unsure, self._repairs.state())

    def restore(self, state: MenderState, now_ns: int) -> None:
        """Go on from a state."""
        self._suspects, self._unsure = set(state.suspects), state.unsure
        self._repairs.restore(state.wanted, now_ns)

    def waits(self, attempt: Attempt, now_ns: int) -> bool:
        """Whether an attempt that is due should wait for its record, or for the end of the attempt before it."""
        if not self._repairs.enabled:
            return False
        if attempt.marks & Mark.ASKED:
            return self._repairs.waits(attempt.task_id, now_ns)
        incomplete = attempt.missing_start or not attempt.end_known
        unlinked = attempt.number and not self._attempts.recall(attempt) and self._before(attempt)
        if not incomplete and not unlinked and not attempt.doubtful:
            return False
        self.ask(attempt, now_ns)
        return True

    def ask(self, attempt: Attempt, now_ns: int) -> None:
        """Ask for an attempt's record, and let it wait for the answer."""
        if self._repairs.enabled:
            attempt.marks |= Mark.ASKED
            self._repairs.want(attempt.task_id, now_ns)

    def _before(self, attempt: Attempt) -> bool:
        return any(other.number == attempt.number - 1 for other in self._attempts.of(attempt.task_id))

    def tick(self, now_ns: int) -> None:
        """Ask after gaps, and again where an answer proved nothing."""
        if self._unsure and now_ns >= self._next_doubt_ns:
            self._next_doubt_ns = now_ns + DOUBT_NS
            self._ask_again(now_ns)
        if self._suspects and now_ns >= self._next_look_ns:
            self._next_look_ns = now_ns + LOOK_NS
            self._ask_after_gap(now_ns)

    def suspect(self, processes: Iterable[Process], now_ns: int) -> None:
        """Note that signals of these processes were lost: what they hold open may have ended."""
        for process in processes:
            process.gapped_ns = now_ns
            self._suspects.add(process)

    def _ask_after_gap(self, now_ns: int) -> None:
        suspects, self._suspects = self._suspects, set()
        for attempt in self._attempts:
            if attempt.process in suspects and attempt.end is None:
                attempt.marks &= ~Mark.RUNS_READ  # it may have ended since
                self._repairs.want(attempt.task_id, now_ns)
        for task_id in self._publishes.overdue(now_ns):
            self._repairs.want(task_id, now_ns)

    def _ask_again(self, now_ns: int) -> None:
        """Ask for what a record did not prove: it may since have been written, or read from a server that lags."""
        self._unsure = False
        for attempt in self._attempts:
            if attempt.marks & Mark.UNSURE and attempt.end is None:
                self._unsure = True
                self._repairs.want(attempt.task_id, now_ns)

    def ask_at_last(self, now_ns: int) -> None:
        """Ask for every record that would be asked for later."""
        if self._suspects:
            self._ask_after_gap(now_ns)
        for attempt in self._attempts:
            if attempt.end is not None:
                self.waits(attempt, now_ns)

    def awaits(self, task_id: str) -> bool:
        """Whether what a task's record says could still change anything."""
        return bool(self._attempts.of(task_id)) or self._publishes.get(task_id) is not None

    def answered(self, records: Mapping[str, TaskStatus | None], zone: tzinfo, now_ns: int) -> None:
        """Take what the result records say; None for a task that has none. Times without an offset are in `zone`."""
        for task_id, record in records.items():
            self._repairs.answered(task_id)
            attempts = self._attempts.of(task_id) or self._unheard(task_id, record, zone, now_ns)
            for attempt in attempts:
                if not attempt.doubted:
                    continue  # its own process would have told
                says = self._apply(record, attempt, attempts, zone) if record else Says.NOTHING
                self._counters[REPAIRS, says.name.lower() if record else "absent"] += 1
                if attempt.marks & Mark.SETTLED:
                    continue
                if says is Says.RUNS and not self._repairs.wants(task_id):
                    attempt.marks |= Mark.RUNS_READ
                if says is Says.ENDED or attempt.marks & Mark.ASKED:
                    self._settler.conclude(attempt, now_ns)
                    continue
                self._recorder.started(attempt, now_ns)
                if says is Says.OVER:
                    attempt.marks |= Mark.OVER | Mark.ASKED
                    self._attempts.ending(attempt, now_ns)
                elif says is Says.RUNS:
                    attempt.marks &= ~Mark.UNSURE
                else:
                    attempt.marks |= Mark.UNSURE
                    self._unsure = True

    def _unheard(self, task_id: str, record: TaskStatus | None, zone: tzinfo, now_ns: int) -> list[Attempt]:
        """Open the attempt of which no signal was heard at all, if the record proves it.

        Only of a worker that is heard here: another agent tells what the others do.
        """
        publish = self._publishes.get(task_id)
        if publish is None or record is None or record.attempt is None or not record.worker:
            return []
        process = self._process_of(record, publish.namespace, record.worker, zone)
        if process is None or record.state is TaskState.QUEUED:
            return []
        started_ns = epoch_ns(record.started_at, zone) if record.started_at else 0
        if process.taken_ns and started_ns <= process.taken_ns:
            return []  # the agent before us may have told it
        worker = intern(record.worker)
        attempt = self._attempts.find(
            task_id, record.attempt, worker, process, started_ns=0, never_started_ns=0, now_ns=now_ns
        )
        if attempt is None:
            return []
        attempt.task, attempt.queue = intern(publish.task), intern(publish.queue)
        # A retry's envelope has another due time than the one that was published.
        attempt.origin = replace(publish.origin, not_before_us=0) if attempt.number else publish.origin
        # The record of what was revoked does not tell whether it had started; all others do.
        revoked = record.state is TaskState.CANCELLED and not record.expired
        attempt.marks |= Mark.UNSURE if revoked else Mark.NUMBERED | Mark.UNSURE
        self._opened(attempt, now_ns)
        return [attempt]

    def _process_of(self, record: TaskStatus, namespace: str, worker: str, zone: tzinfo) -> Process | None:
        """Return the process that a record is of.

        What runs must not be lost with another than its own; of what has ended, any that speaks for its worker does.
        """
        if record.started_at is not None:
            process = self._processes.in_which(namespace, worker, epoch_ns(record.started_at, zone))
            if process is not None or record.state is TaskState.RUNNING:
                return process
        return self._processes.of_worker(namespace, worker)

    def _apply(self, record: TaskStatus, attempt: Attempt, among: Collection[Attempt], zone: tzinfo) -> Says:
        """Merge what a record proves; signals that were heard know better."""
        says, started_ns, kind, ending = read_record(record, attempt, zone)
        if kind and ending and record.started_at is None:
            replaced = self._processes.replaced(attempt.process, ending.time_ns)
            if replaced or self._ambiguous(attempt, among, kind):
                return Says.NOTHING
        if started_ns and not attempt.started_ns:
            attempt.started_ns = started_ns
            attempt.marks |= Mark.REPAIRED | Mark.START_READ
        attempt.task = attempt.task or intern(record.task or "")
        attempt.queue = attempt.queue or intern(record.queue or "")
        if kind and ending and (not attempt.end_known or (attempt.doubtful and kind is EndKind.RETRIED)):
            attempt.ends(kind, ending)
            attempt.marks |= Mark.REPAIRED
            if kind is EndKind.RETRIED:
                self._attempts.retried(attempt, ending.next_retry_ns, attempt.opened_ns, read=True)
        return says

    def _ambiguous(self, attempt: Attempt, among: Collection[Attempt], kind: EndKind) -> bool:
        """Whether a record that names no start may be about another delivery of the same attempt."""
        several = sum(other.number == attempt.number for other in among) > 1
        explained = kind is EndKind.RETRIED and self._attempts.knows_retry(attempt.task_id, attempt.number)
        return several or (explained and attempt.end is None)
