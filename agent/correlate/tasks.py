"""The life of every attempt: facts are merged, ends are waited for, asked for and concluded. Pure; time is an argument.

The state machine is told as a table in the package's docstring.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from datetime import UTC, datetime, tzinfo
from sys import intern

from agent.core.clock import NANOSECONDS
from agent.correlate.attempt import END_SIGNALS, Attempt, Ending, EndKind, Ends, Mark
from agent.correlate.attempts import AttemptTable
from agent.correlate.config import CorrelateConfig
from agent.correlate.family import Family
from agent.correlate.origin import UNKNOWN_ORIGIN, read_origin
from agent.correlate.process import Life, Process, Processes
from agent.correlate.publishes import Publishes
from agent.correlate.recorder import Recorder
from agent.correlate.repair import RepairQueue, Says, read_record
from agent.correlate.settlement import decide
from agent.correlate.workflows import Workflows
from agent.stem.catalogue import SignalName, TaskState
from agent.stem.status import TaskStatus
from agent.stem.timestamps import epoch_ns
from agent.stem.wire import Envelope, Signal, decode_envelope

LATE = "stem_agent.signals.late"
EVICTED = "stem_agent.correlate.evicted"
CLOCK_ADJUSTED = "stem_agent.correlate.clock_adjusted"
UNATTRIBUTED = "stem_agent.signals.unattributed"
REPAIRS = "stem_agent.repairs"

REPAIR_PATIENCE_SECONDS = 3.0
"""How long an attempt waits for what its task's record says: many reads, or one outage of Redis that is short."""
DOUBT_NS = 30 * NANOSECONDS
"""How often records are read again that proved nothing."""
MOST_DUE = 5000
"""Attempts concluded in one tick: about 150 ms, so that a great loss does not stop us from listening."""
MAX_NAME = 255
"""Characters of a task's, queue's or worker's name: they are kept for every series."""
LOOK_NS = NANOSECONDS
"""How often the open attempts are looked through for those that a gap may have left open."""

Counters = Counter[tuple[str, str]]


class Tasks:
    """Attempts by what is heard of them.

    `counters` counts by (name, label) what is worth telling about correlation itself. Without `repairs` nothing is
    asked of the result records. `left` collects the workers that are gone already when something of theirs is heard.
    """

    def __init__(
        self,
        config: CorrelateConfig,
        recorder: Recorder,
        counters: Counters,
        workflows: Workflows,
        processes: Processes,
        repairs: RepairQueue | None,
    ) -> None:
        self._processes = processes
        self._workflows = workflows
        self._recorder = recorder
        self._counters = counters
        self._repairs = repairs
        self._family = Family()

        self._suspects: set[Process] = set()
        self._unsure = False
        self._next_doubt_ns = 0
        self.left: list[tuple[Process, str]] = []
        self._next_look_ns = 0
        self.zone: tzinfo = UTC
        self.attempts = AttemptTable(
            settle=config.settle,
            patience=REPAIR_PATIENCE_SECONDS,
            settled_ttl=config.settled_ttl,
            task_ttl=config.task_ttl,
            max_tasks=config.max_tasks,
        )
        self.publishes = Publishes(recorder, self.attempts, self._family)

    # --- signals ---------------------------------------------------------------------------------------------------

    def heard(self, signal: Signal, process: Process, time_ns: int, now_ns: int) -> None:
        """Take a signal of an attempt."""
        name = signal.event_name
        # Stem's SignalMiddleware sends some signals twice; a bridge then repeats the first time in the second.
        started_ns = self._ns(signal.started_at) or (time_ns if name == SignalName.TASK_PRERUN else 0)
        received_ns = self._ns(signal.received_at) or (time_ns if name == SignalName.TASK_RECEIVED else 0)
        attempt = self._attempt_of(signal, process, time_ns, started_ns, received_ns, now_ns)
        if attempt is None:
            return
        self._merge_identity(attempt, signal, process, starts=bool(started_ns and not attempt.started_ns))
        if started_ns and (
            not attempt.started_ns or started_ns < attempt.started_ns or attempt.marks & Mark.START_READ
        ):
            attempt.started_ns = started_ns
            attempt.marks &= ~Mark.START_READ
        if received_ns and not attempt.marks & Mark.RECEIVED_TOLD:
            attempt.received_ns = min(received_ns, attempt.received_ns or received_ns)
        if name in END_SIGNALS or name == SignalName.TASK_POSTRUN:
            self._merge_end(attempt, signal, time_ns, now_ns)
        self._recorder.started(attempt, now_ns)
        if attempt.marks & Mark.RECEIVED_TOLD and attempt.started_ns:
            attempt.received_ns = 0  # told, and of no use beside the start: 100 000 attempts may be open
        if attempt.complete and not self._awaits_others(attempt):
            self._settle(attempt, now_ns)

    def _attempt_of(
        self, signal: Signal, process: Process, time_ns: int, started_ns: int, received_ns: int, now_ns: int
    ) -> Attempt | None:
        """Return the attempt that a signal is about; None, after counting why, if there is none to change."""
        attributes, name = signal.attributes, signal.event_name
        task_id = attributes.task_id
        number = attributes.attempt if attributes.attempt is not None else signal.attempt
        worker = intern((attributes.worker_id or signal.worker_id or "")[:MAX_NAME])
        if not task_id or number is None:
            envelope = decode_envelope(signal.envelope) or Envelope()
            task_id = task_id or envelope.id
            number = envelope.attempt if number is None else number
        if task_id and number is None:
            number = self.attempts.latest(task_id, worker)
        if not task_id or number is None:
            self._counters[UNATTRIBUTED, name] += 1
            return None
        # A bridge would repeat when the attempt was received and started: without either it did neither.
        never_ran = process.boot and name in END_SIGNALS and not (started_ns or received_ns)
        open_before = len(self.attempts)
        attempt = self.attempts.find(
            task_id,
            number,
            worker,
            process,
            started_ns=started_ns,
            never_started_ns=time_ns if never_ran else 0,
            now_ns=now_ns,
        )
        if attempt is None:
            self._counters[LATE, name] += 1
        elif len(self.attempts) != open_before:
            self._opened(attempt, now_ns)
        return attempt

    def _opened(self, attempt: Attempt, now_ns: int) -> None:
        self.publishes.begun(attempt, now_ns)
        siblings = self.attempts.of(attempt.task_id)
        if len(siblings) > 1:
            self._supersede(siblings, now_ns)
        if attempt.process.life is not Life.ALIVE:  # a straggler: nobody else will look after it
            self.left.append((attempt.process, attempt.worker))

    def _supersede(self, siblings: Collection[Attempt], now_ns: int) -> None:
        """Note what must be over, because a later attempt exists; not where its own process would have told."""
        latest = max(attempt.number for attempt in siblings)
        for attempt in siblings:
            if attempt.number < latest and attempt.end is None and attempt.doubted:
                attempt.marks |= Mark.OVER
                self.attempts.ending(attempt, now_ns)

    def _awaits_others(self, attempt: Attempt) -> bool:
        """Whether a complete attempt needs what may still be on its way: the attempt before it, or its parent."""
        if attempt.number and not self.attempts.recall(attempt):
            return True
        return attempt.origin is not None and self._family.awaits_parents(attempt.origin)

    def _merge_identity(self, attempt: Attempt, signal: Signal, process: Process, *, starts: bool) -> None:
        attributes = signal.attributes
        if process.boot:
            attempt.marks |= Mark.NUMBERED
            if attempt.process is not process:  # it had none, or was forgotten and met again
                attempt.process = process
        if not attempt.task and attributes.task_name:
            attempt.task = intern(attributes.task_name[:MAX_NAME])
        if not attempt.queue and attributes.queue:
            attempt.queue = intern(attributes.queue[:MAX_NAME])
        # Each signal carries the whole envelope; one decoding serves them all. But copies of a task have each their own
        # `notBefore`: of two that are delivered at once, the one that is told to start counts.
        if (attempt.origin is None or starts) and (envelope := decode_envelope(signal.envelope)) and _tells(envelope):
            attempt.origin = origin = read_origin(envelope, self.zone)
            self._family.remember(attempt.task_id, origin)
            if run_id := origin.lineage.workflow_run_id:
                self._workflows.learn(run_id, attempt.namespace, origin)
            attempt.task = attempt.task or intern((envelope.name or "")[:MAX_NAME])
            attempt.queue = attempt.queue or intern((envelope.queue or "")[:MAX_NAME])

    def _merge_end(self, attempt: Attempt, signal: Signal, time_ns: int, now_ns: int) -> None:
        attributes = signal.attributes
        kind = END_SIGNALS.get(signal.event_name)
        if kind is None:
            ended_ns = self._ns(signal.ended_at)
            ending = Ending(ended_ns, signal.error or "") if ended_ns else None
            attempt.finishes(time_ns, attributes.state, ending)
            if attributes.state == TaskState.RETRIED:
                self.attempts.retried(attempt, 0, now_ns)
        else:
            error = attributes.error or attributes.reason or signal.error or ""
            next_retry_ns = self._ns(attributes.next_retry_at)
            attempt.ends(kind, Ending(time_ns, error, attributes.stack_trace or "", next_retry_ns))
            if kind is EndKind.RETRIED:
                self.attempts.retried(attempt, next_retry_ns, now_ns)
        self.attempts.ending(attempt, now_ns)

    def _ns(self, time: datetime | None) -> int:
        return epoch_ns(time, self.zone) if time else 0

    # --- time ------------------------------------------------------------------------------------------------------

    def tick(self, now_ns: int) -> None:
        """Settle what is due, ask where something is missing, forget what may be forgotten."""
        for _, attempt in zip(range(MOST_DUE), self.attempts.due(now_ns), strict=False):
            if self._waits(attempt, now_ns):
                self.attempts.defer(attempt, now_ns)
            elif attempt.end is not None or attempt.marks & (Mark.OVER | Mark.ABANDONED):
                self._conclude(attempt, now_ns)
        if self._unsure and now_ns >= self._next_doubt_ns:
            self._next_doubt_ns = now_ns + DOUBT_NS
            self._ask_again(now_ns)
        if self._suspects and now_ns >= self._next_look_ns:
            self._next_look_ns = now_ns + LOOK_NS
            self._ask_after_gap(now_ns)
        for attempt, reason in self.attempts.surplus(now_ns):
            self._evict(attempt, reason, now_ns)
        self.attempts.forget(now_ns)
        self.publishes.forget(now_ns)

    def close(self, now_ns: int) -> None:
        """Settle every attempt whose end was heard; drop and count the others."""
        for attempt in self.attempts:
            self._evict(attempt, "shutdown", now_ns)

    def _waits(self, attempt: Attempt, now_ns: int) -> bool:
        """Whether an attempt that is due should wait for its record, or for the end of the attempt before it."""
        if self._repairs is None:
            return False
        if attempt.marks & Mark.ASKED:
            return self._repairs.waits(attempt.task_id, now_ns)
        incomplete = attempt.missing_start or not attempt.end_known
        unlinked = attempt.number and not self.attempts.recall(attempt) and self._before(attempt)
        if not incomplete and not unlinked and not attempt.doubtful:
            return False
        attempt.marks |= Mark.ASKED
        self._repairs.want(attempt.task_id, now_ns)
        return True

    def _before(self, attempt: Attempt) -> bool:
        return any(other.number == attempt.number - 1 for other in self.attempts.of(attempt.task_id))

    def _conclude(self, attempt: Attempt, now_ns: int) -> None:
        """Settle an attempt with what is known, now that nothing more will be."""
        if attempt.end is None and attempt.marks & Mark.ABANDONED:
            process, began_ns = attempt.process, attempt.started_ns or attempt.received_ns
            # By its own clock, but never longer ago than we know of it: clocks are set, and absurd times are told.
            time_ns = min(max(process.told_ns, began_ns), began_ns + now_ns - attempt.opened_ns)
            attempt.ends(EndKind.LOST, Ending(time_ns, f"worker {attempt.worker} vanished ({process.place})"))
        elif attempt.end is None:
            later = (other for other in self.attempts.of(attempt.task_id) if other.number > attempt.number)
            known = (other.received_ns or other.started_ns for other in later)
            over_ns = min(filter(None, known), default=0) or now_ns
            attempt.end = Ends(over_ns=max(over_ns, attempt.started_ns))
        self._settle(attempt, now_ns)

    def _settle(self, attempt: Attempt, now_ns: int) -> None:
        if attempt.number:
            self.attempts.recall(attempt)
        task_id, origin = attempt.task_id, attempt.origin or UNKNOWN_ORIGIN
        ancestry = self._family.ancestry(task_id, origin)
        settled = decide(attempt, ancestry, attempt.span_id)
        self.attempts.bury(attempt, settled.span_id, now_ns, may_return=settled.kind is EndKind.LOST)
        if settled.adjusted:
            self._counters[CLOCK_ADJUSTED, ""] += 1
        # The first delivery of the first attempt brings the trace's root along; if it is not kept, the first that is.
        with_send = bool(origin.enqueued_ns) and not ancestry.traced
        if with_send:
            first = not attempt.number and not attempt.delivery and self.attempts.once(("send", task_id), now_ns)
            with_send = first or self.attempts.withheld(task_id)
        kept = self._recorder.settled(settled, now_ns, with_send=with_send)
        if with_send and kept:
            self.attempts.release(task_id)
        elif with_send:
            self.attempts.withhold(task_id, now_ns)

    def _evict(self, attempt: Attempt, reason: str, now_ns: int) -> None:
        if attempt.end is not None:  # it was only waiting for stragglers: it can be told
            self._settle(attempt, now_ns)
            return
        self.attempts.evict(attempt, now_ns)
        self._counters[EVICTED, reason] += 1

    # --- loss and repair -------------------------------------------------------------------------------------------

    def suspect(self, processes: Iterable[Process], now_ns: int) -> None:
        """Note that signals of these processes were lost: what they hold open may have ended."""
        for process in processes:
            process.gapped_ns = now_ns
            if self._repairs is not None:
                self._suspects.add(process)

    def _ask_after_gap(self, now_ns: int) -> None:
        suspects, self._suspects = self._suspects, set()
        if (repairs := self._repairs) is not None:
            for attempt in self.attempts:
                if attempt.process in suspects and attempt.end is None:
                    repairs.want(attempt.task_id, now_ns)
            for task_id in self.publishes.overdue(now_ns):
                repairs.want(task_id, now_ns)

    def _ask_again(self, now_ns: int) -> None:
        """Ask for what a record did not prove: it may since have been written, or read from a server that lags."""
        self._unsure = False
        for attempt in self.attempts:
            if attempt.marks & Mark.UNSURE and attempt.end is None and self._repairs is not None:
                self._unsure = True
                self._repairs.want(attempt.task_id, now_ns)

    def ask_at_last(self, now_ns: int) -> None:
        """Ask for every record that would be asked for later."""
        if self._suspects:
            self._ask_after_gap(now_ns)
        for attempt in self.attempts:
            if attempt.end is not None:
                self._waits(attempt, now_ns)

    def abandon(self, left: Collection[tuple[Process, str | None]], now_ns: int) -> None:
        """Conclude what processes, or single workers in them, held open when they left.

        It is lost, unless a record knows more.
        """
        for attempt in self.attempts if left else ():
            process = attempt.process
            if attempt.end is None and ((process, None) in left or (process, attempt.worker) in left):
                attempt.marks |= Mark.ABANDONED
                if self._repairs is not None:
                    attempt.marks |= Mark.ASKED
                    self._repairs.want(attempt.task_id, now_ns)
                self.attempts.over(attempt, now_ns)

    def reclaim(self, process: Process) -> None:
        """Take back what was concluded of a process that is heard again, as far as nothing was told of it."""
        for attempt in self.attempts:
            if attempt.process is process and attempt.end is None:
                attempt.marks &= ~(Mark.ABANDONED | Mark.ASKED)

    def awaits(self, task_id: str) -> bool:
        """Whether what a task's record says could still change anything."""
        return bool(self.attempts.of(task_id)) or self.publishes.get(task_id) is not None

    def answered(self, records: Mapping[str, TaskStatus | None], now_ns: int) -> None:
        """Take what the result records say; None for a task that has none."""
        for task_id, record in records.items():
            if self._repairs is not None:
                self._repairs.answered(task_id)
            attempts = self.attempts.of(task_id) or self._unheard(task_id, record, now_ns)
            for attempt in attempts:
                if not attempt.doubted:
                    continue  # its own process would have told
                says = self._apply(record, attempt, attempts) if record else Says.NOTHING
                self._counters[REPAIRS, says.name.lower() if record else "absent"] += 1
                if attempt.marks & Mark.SETTLED:
                    continue
                if says is Says.ENDED or attempt.marks & Mark.ASKED:
                    self._conclude(attempt, now_ns)
                    continue
                self._recorder.started(attempt, now_ns)
                if says is Says.OVER:
                    attempt.marks |= Mark.OVER | Mark.ASKED
                    self.attempts.ending(attempt, now_ns)
                elif says is Says.RUNS:
                    attempt.marks &= ~Mark.UNSURE
                else:
                    attempt.marks |= Mark.UNSURE
                    self._unsure = True

    def _unheard(self, task_id: str, record: TaskStatus | None, now_ns: int) -> list[Attempt]:
        """Open the attempt of which no signal was heard at all, if the record proves it.

        Only of a worker that is heard here: another agent tells what the others do.
        """
        publish = self.publishes.get(task_id)
        if publish is None or record is None or record.attempt is None or not record.worker:
            return []
        process = self._processes.of_worker(publish.namespace, record.worker)
        if process is None or record.state is TaskState.QUEUED:
            return []
        worker = intern(record.worker)
        attempt = self.attempts.find(
            task_id, record.attempt, worker, process, started_ns=0, never_started_ns=0, now_ns=now_ns
        )
        if attempt is None:
            return []
        attempt.task, attempt.queue, attempt.origin = intern(publish.task), intern(publish.queue), publish.origin
        attempt.marks |= Mark.NUMBERED | Mark.UNSURE
        self._opened(attempt, now_ns)
        return [attempt]

    def _apply(self, record: TaskStatus, attempt: Attempt, among: Collection[Attempt]) -> Says:
        """Merge what a record proves; signals that were heard know better."""
        says, started_ns, kind, ending = read_record(record, attempt, self.zone)
        if kind and record.started_at is None and self._ambiguous(attempt, among, kind):
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
                self.attempts.retried(attempt, ending.next_retry_ns, attempt.opened_ns, read=True)
        return says

    def _ambiguous(self, attempt: Attempt, among: Collection[Attempt], kind: EndKind) -> bool:
        """Whether a record that names no start may be about another delivery of the same attempt."""
        several = sum(other.number == attempt.number for other in among) > 1
        explained = kind is EndKind.RETRIED and self.attempts.knows_retry(attempt.task_id, attempt.number)
        return several or (explained and attempt.end is None)


def _tells(envelope: Envelope) -> bool:
    """Whether an envelope says where its task comes from; a thin one must not keep a better one from being read."""
    return envelope.enqueued_at is not None or envelope.headers.traceparent is not None
