"""The life of every attempt: facts are merged, ends are waited for, asked for and concluded. Pure; time is an argument.

The state machine is told as a table in the package's docstring.
"""

from collections.abc import Collection
from datetime import UTC, datetime, tzinfo
from sys import intern

from msgspec import Struct

from agent.core.limits import MAX_NAME
from agent.correlate.attempt import END_SIGNALS, TOLD, Attempt, Ending, EndKind, Mark
from agent.correlate.attempts import AttemptTable, TableState
from agent.correlate.config import CorrelateConfig
from agent.correlate.counters import LATE, UNATTRIBUTED, Counters
from agent.correlate.family import Family, FamilyState
from agent.correlate.mender import Mender, MenderState
from agent.correlate.origin import read_origin
from agent.correlate.process import Life, Process, Processes
from agent.correlate.publishes import Publishes, Waiting
from agent.correlate.recorder import Recorder
from agent.correlate.repair import RepairQueue
from agent.correlate.settler import Settler
from agent.correlate.shift import Shift
from agent.correlate.workflows import Workflows
from agent.stem.catalogue import SignalName, TaskState
from agent.stem.envelope import Envelope, decode_envelope
from agent.stem.timestamps import epoch_ns
from agent.stem.wire import LostAttempt, Signal

REPAIR_PATIENCE_SECONDS = 3.0
"""How long an attempt waits for what its task's record says: many reads, or one outage of Redis that is short."""
MOST_DUE = 5000
"""Attempts concluded in one tick: about 150 ms, so that a great loss does not stop us from listening."""

MAX_SPEAKERS = 10_000
_NOT_DELAYED = b'"notBefore":null'


class TasksState(Struct, array_like=True):
    """Attempts and what is remembered beside them."""

    attempts: TableState
    publishes: list[Waiting]
    family: FamilyState
    mender: MenderState


class Tasks:
    """Attempts by what is heard of them.

    `left` collects the workers that are gone already when something of theirs is heard; `speakers` are those of which
    attempts were heard, by namespace, and when last.
    """

    def __init__(
        self,
        config: CorrelateConfig,
        recorder: Recorder,
        counters: Counters,
        workflows: Workflows,
        processes: Processes,
        repairs: RepairQueue,
    ) -> None:
        self._workflows = workflows
        self._recorder = recorder
        self._counters = counters
        self._family = Family()
        self.left: list[tuple[Process, str]] = []
        self.speakers: dict[tuple[str, str], int] = {}
        self.zone: tzinfo = UTC
        self.attempts = AttemptTable(
            settle=config.settle,
            patience=REPAIR_PATIENCE_SECONDS,
            settled_ttl=config.settled_ttl,
            task_ttl=config.task_ttl,
            max_tasks=config.max_tasks,
        )
        self.publishes = Publishes(recorder, self.attempts, self._family)
        self.settler = Settler(recorder, self.attempts, self._family, counters)
        self.mender = Mender(
            *(repairs, self.attempts, self.publishes, processes, recorder, self.opened),
            settler=self.settler,
            counters=counters,
        )

    # --- signals ---------------------------------------------------------------------------------------------------

    def heard(self, signal: Signal, process: Process, time_ns: int, now_ns: int) -> None:
        """Take a signal of an attempt."""
        name = signal.event_name
        # Stem's SignalMiddleware sends some signals twice; a bridge then repeats the first time in the second.
        started_ns = self._ns(signal.started_at) or (time_ns if name == SignalName.TASK_PRERUN else 0)
        received_ns = self._ns(signal.received_at) or (time_ns if name == SignalName.TASK_RECEIVED else 0)
        attempt = self._attempt_of(signal, process, time_ns, started_ns, received_ns, now_ns)
        if attempt is None or self._told_before(attempt, signal, process, started_ns, now_ns):
            return
        starts = bool(started_ns and (not attempt.started_ns or attempt.marks & Mark.START_READ))
        self._merge_identity(attempt, signal, process, starts=starts)
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
            self.settler.settle(attempt, now_ns)

    def lost(self, fact: LostAttempt, now_ns: int) -> None:
        """Tell of an attempt that nobody else can tell of; its start was for those to tell that vanished with it."""
        envelope, worker = fact.envelope, intern(fact.worker[:MAX_NAME])
        if not envelope.id:
            return
        nobody = Process(fact.namespace, "", "", now_ns)
        attempt = self.attempts.find(
            *(envelope.id, fact.attempt, worker, nobody),
            started_ns=fact.started_ns,
            never_started_ns=0,
            now_ns=now_ns,
        )
        if attempt is None or attempt.end is not None:
            return
        attempt.started_ns = attempt.started_ns or fact.started_ns
        attempt.marks |= TOLD if attempt.marks & Mark.TAILED else TOLD | Mark.REPAIRED
        self.learn(attempt, envelope)
        attempt.ends(EndKind.LOST, Ending(max(fact.lost_ns, fact.started_ns), f"worker {worker} vanished"))
        self.settler.settle(attempt, now_ns)

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
            self.opened(attempt, now_ns)
            self.speakers[process.namespace, worker] = now_ns
            if len(self.speakers) > MAX_SPEAKERS:
                del self.speakers[next(iter(self.speakers))]
            if process.taken_ns:
                _note_told(attempt, process, name, time_ns, started_ns=started_ns, received_ns=received_ns)
        return attempt

    def _told_before(self, attempt: Attempt, signal: Signal, process: Process, started_ns: int, now_ns: int) -> bool:
        """Whether the agent before us told how an attempt ended, of which only `task-postrun` came to us."""
        if not process.taken_ns or signal.event_name != SignalName.TASK_POSTRUN or attempt.end is not None:
            return False
        ended_ns = self._ns(signal.ended_at)
        if (ended_ns or started_ns) > process.taken_ns or (attempt.started_ns and not ended_ns):
            return False
        self.attempts.evict(attempt, now_ns)
        self._counters[LATE, signal.event_name] += 1
        return True

    def opened(self, attempt: Attempt, now_ns: int) -> None:
        """Note that an attempt was met: its publish, and what it proves of those before it."""
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
        origin = attempt.origin
        if origin is None or (starts and (origin.not_before_ns or _NOT_DELAYED not in bytes(signal.envelope))):
            self._read_envelope(attempt, signal)

    def _read_envelope(self, attempt: Attempt, signal: Signal) -> None:
        envelope = decode_envelope(signal.envelope)
        if envelope is not None:
            self.learn(attempt, envelope)

    def learn(self, attempt: Attempt, envelope: Envelope) -> None:
        """Take what an envelope tells of where its task comes from; a thin one tells nothing."""
        if not _tells(envelope):
            return
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
            if self.mender.waits(attempt, now_ns):
                self.attempts.defer(attempt, now_ns)
            elif attempt.end is not None or attempt.marks & (Mark.OVER | Mark.ABANDONED):
                self.settler.conclude(attempt, now_ns)
        self.mender.tick(now_ns)
        for attempt, reason in self.attempts.surplus(now_ns):
            self.settler.evict(attempt, reason, now_ns)
        self.attempts.forget(now_ns)
        self.publishes.forget(now_ns)

    def close(self, now_ns: int, *, keep: bool) -> None:
        """Settle every attempt whose end was heard; drop and count the others.

        With `keep` the others stay, and so do those of which a later signal or a record may still tell something.
        """
        for attempt in self.attempts:
            if not (keep and self._may_learn(attempt)):
                self.settler.evict(attempt, "shutdown", now_ns)

    def _may_learn(self, attempt: Attempt) -> bool:
        return not attempt.end_known or attempt.missing_start or attempt.doubtful or self._awaits_others(attempt)

    def state(self) -> TasksState:
        """Return what is known."""
        return TasksState(self.attempts.state(), self.publishes.state(), self._family.state(), self.mender.state())

    def restore(self, state: TasksState, shift: Shift, now_ns: int) -> None:
        """Go on from a state."""
        self.attempts.restore(state.attempts, shift, now_ns)
        self.publishes.restore(state.publishes, shift)
        self._family.restore(state.family)
        self.mender.restore(state.mender, now_ns)

    def part(self, namespace: str, emitters: Collection[str], now_ns: int) -> int:
        """Leave these emitters to another agent: what has ended is told, the rest is dropped; return how many."""
        dropped = 0
        for attempt in self.attempts:
            if attempt.process.emitter in emitters and attempt.namespace == namespace:
                if attempt.end is not None:
                    self.settler.conclude(attempt, now_ns)
                else:
                    self.attempts.evict(attempt, now_ns)
                    dropped += 1
        self.publishes.part(namespace, emitters)
        return dropped

    def abandon(self, left: Collection[tuple[Process, str | None]], now_ns: int) -> None:
        """Conclude what processes, or single workers in them, held open when they left.

        It is lost, unless a record knows more.
        """
        for attempt in self.attempts if left else ():
            process = attempt.process
            if attempt.end is None and ((process, None) in left or (process, attempt.worker) in left):
                attempt.marks |= Mark.ABANDONED
                self.mender.ask(attempt, now_ns)
                self.attempts.over(attempt, now_ns)

    def reclaim(self, process: Process) -> None:
        """Take back what was concluded of a process that is heard again, as far as nothing was told of it."""
        for attempt in self.attempts:
            if attempt.process is process and attempt.end is None:
                attempt.marks &= ~(Mark.ABANDONED | Mark.ASKED)


def _note_told(
    attempt: Attempt, process: Process, name: str, time_ns: int, *, started_ns: int, received_ns: int
) -> None:
    """Note what the agent before us told of an attempt: everything before the first signal that was ours."""
    if started_ns and started_ns <= process.taken_ns and not (name == SignalName.TASK_PRERUN and started_ns == time_ns):
        attempt.marks |= TOLD
    elif received_ns and received_ns <= process.taken_ns and name != SignalName.TASK_RECEIVED:
        attempt.marks |= Mark.RECEIVED_TOLD


def _tells(envelope: Envelope) -> bool:
    """Whether an envelope says where its task comes from; a thin one must not keep a better one from being read."""
    return envelope.enqueued_at is not None or envelope.headers.traceparent is not None
