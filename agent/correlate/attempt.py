"""One attempt's facts, and rules to merge them that do not depend on the order of arrival."""

from collections.abc import Iterator
from enum import StrEnum
from sys import intern
from typing import NamedTuple

from msgspec import Struct

from agent.core.clock import NANOSECONDS
from agent.correlate import ids
from agent.correlate.origin import Kin, Origin, shared
from agent.correlate.process import Process
from agent.stem.catalogue import SignalName, TaskState

Key = tuple[str, ...]
"""(task id, attempt, worker id), and for a further delivery of the same attempt to the same worker what tells it."""


class EndKind(StrEnum):
    """How an attempt can end. Value: the verb in the names of its log event and counter."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    REVOKED = "revoked"
    EXPIRED = "expired"
    RETRIED = "retried"
    LOST = "lost"

    @property
    def state(self) -> str:
        """`stem.task.state`: Stem's own word, where it has one."""
        return "cancelled" if self in {EndKind.REVOKED, EndKind.EXPIRED} else self.value


ERRORS = frozenset({EndKind.FAILED, EndKind.RETRIED, EndKind.LOST})
"""Ends that make a span's status Error."""
RAN = frozenset({EndKind.SUCCEEDED, EndKind.FAILED, EndKind.RETRIED})
"""Ends that only an attempt comes to that ran."""
FINAL = frozenset({EndKind.SUCCEEDED, EndKind.FAILED, EndKind.REVOKED, EndKind.EXPIRED})
"""Ends after which the task goes on no further."""

END_SIGNALS: dict[str, EndKind] = {
    SignalName.TASK_SUCCEEDED: EndKind.SUCCEEDED,
    SignalName.TASK_FAILED: EndKind.FAILED,
    SignalName.TASK_RETRY: EndKind.RETRIED,
    SignalName.TASK_REVOKED: EndKind.REVOKED,
}
BY_STATE: dict[str, EndKind] = {
    TaskState.SUCCEEDED: EndKind.SUCCEEDED,
    TaskState.FAILED: EndKind.FAILED,
    TaskState.RETRIED: EndKind.RETRIED,
    TaskState.CANCELLED: EndKind.REVOKED,
}
# When two endings contradict each other and no postrun decides. Stem's own SignalMiddleware sends `task-failed` for
# errors that are then retried, so a retry outranks a failure; a success said beside anything else is the least likely,
# and what we concluded ourselves gives way to whatever anybody said.
_RANK = (EndKind.RETRIED, EndKind.REVOKED, EndKind.EXPIRED, EndKind.FAILED, EndKind.SUCCEEDED, EndKind.LOST)


class Ending(NamedTuple):
    """An ending with its time and details; comparable, so that of two reports the same one always wins.

    `reason` is `stem.task.end_reason` where the kind of ending alone does not tell it.
    """

    time_ns: int
    error: str = ""
    stack: str = ""
    next_retry_ns: int = 0
    error_type: str = ""
    reason: str = ""


class Before(NamedTuple):
    """What was heard to come before an attempt: its publish, or the retry (`span_id`: the attempt that asked for it).

    `due_ns` is when the attempt was to begin: 0 after a publish is at once, after a retry unknown. `read`: a record
    told, which knows the delay, but its own time instead of the retry's.
    """

    span_id: bytes
    due_ns: int
    read: bool = False


PUBLISHED = Before(b"", 0)
"""What comes before the first attempt of a task that was not delayed: nearly always this."""


class Outcome(NamedTuple):
    """The end that was decided on. `kind` is None when only the time is known; `told`: somebody said so."""

    kind: EndKind | None
    ending: Ending
    told: bool


class Mark:
    """Bits: what has been done with an attempt, or is known of it. No IntFlag: its `&` costs a microsecond a signal."""

    RECEIVED_TOLD = 1
    STARTED_TOLD = 2
    STARTED_COUNTED = 4
    NUMBERED = 8  # a bridge repeats the start in every later signal, so from a bridge no start means: it never started
    ENDING = 16  # its settlement is due
    SETTLED = 32
    ASKED = 64  # the result record of its task is being read
    REPAIRED = 128  # some of its facts come from there
    OVER = 256  # a later attempt of the same task exists, so this one has ended somehow
    ABANDONED = 512  # its process is gone
    REPORTED = 1024  # as running for long
    START_READ = 2048  # its start comes from the record, which is a few milliseconds off
    UNSURE = 4096  # its record was read and proves nothing
    ROOTED = 8192  # the root of its trace was told with another delivery
    TAILED = 32768  # nobody tells of it, so it was read
    RUNS_READ = 16384  # its record said that it runs, and no signals of its process were lost since


_MOST_NS = (1 << 63) - 1
"""The year 2262: what a negative number of 64 bits can say."""
NEVER_STARTED = -1
"""Start of a delivery that was revoked, or refused, before it ran."""
TOLD = Mark.RECEIVED_TOLD | Mark.STARTED_TOLD | Mark.STARTED_COUNTED


class Ends(Struct, gc=False, array_like=True):
    """What is known of an attempt's end; `over_ns` is when it was over at the latest, if nothing tells how it ended."""

    kinds: dict[EndKind, Ending] = {}
    over_ns: int = 0
    finished_ns: int = 0
    finished_state: str | None = None
    postrun: Ending | None = None


class Attempt(Struct, gc=False, array_like=True):
    """Everything known about one attempt; times are Unix nanoseconds, 0 when unknown.

    A hundred thousand may be open at once, so it is small: `end` comes with the first fact about it, and other
    deliveries of the same task hang from it as `sibling`s.
    """

    task_id: str
    number: int
    worker: str
    process: Process
    opened_ns: int
    delivery: str = ""
    task: str = ""
    queue: str = ""
    origin: Origin | None = None
    received_ns: int = 0
    started_ns: int = 0
    end: Ends | None = None
    before: Before | None = None
    marks: int = 0
    sibling: "Attempt | None" = None

    @property
    def key(self) -> Key:
        """Its identity."""
        own = (self.task_id, str(self.number), self.worker)
        return (*own, self.delivery) if self.delivery else own

    @property
    def span_id(self) -> bytes:
        """The id of its `process` span, which also stands for it once it is settled."""
        return ids.span_id("process", *self.key)

    @property
    def start_mark(self) -> int:
        """Its start, by which another delivery is told; negative where it is only about right, or never was.

        Of what was read without a start, its end.
        """
        if not self.started_ns and self.end is not None:
            if self.marks & Mark.TAILED:  # what starts after its end was read is another one
                return self.outcome().ending.time_ns
            if not self.missing_start:
                return NEVER_STARTED
        return -min(self.started_ns, _MOST_NS) if self.marks & Mark.START_READ else self.started_ns

    @property
    def namespace(self) -> str:
        """The worker namespace."""
        return self.process.namespace

    def share(self, kins: dict[Kin, Kin]) -> None:
        """Hold in common with others, once it was read back, what they had in common when it was written."""
        self.task, self.queue, self.worker = intern(self.task), intern(self.queue), intern(self.worker)
        if self.origin:
            self.origin = shared(self.origin, kins)
        if self.before == PUBLISHED:
            self.before = PUBLISHED

    def ends(self, kind: EndKind, ending: Ending) -> None:
        """Merge an ending; of two reports of the same kind the earlier one holds."""
        kinds = self._end().kinds
        known = kinds.get(kind)
        if known is None or ending < known:
            kinds[kind] = ending

    def finishes(self, time_ns: int, state: str | None, ending: Ending | None) -> None:
        """Merge `task-postrun`: its time, the state it names, and the ending it repeats."""
        end = self._end()
        if not end.finished_ns or time_ns < end.finished_ns:
            end.finished_ns, end.finished_state, end.postrun = time_ns, state, ending

    def _end(self) -> Ends:
        if self.end is None:
            self.end = Ends()
        return self.end

    @property
    def complete(self) -> bool:
        """Whether start, end and postrun are known: nothing that would change the telemetry is still expected."""
        end = self.end
        if end is None or not (self.started_ns and end.kinds and end.finished_ns):
            return False
        said = BY_STATE.get(end.finished_state or "")
        return said is None or said in end.kinds

    def outcome(self) -> Outcome:
        """Decide how the attempt ended; call it only when it has an `end`.

        `task-postrun` comes last and names the state, so it decides; the ending signal of that state has the details.
        """
        end = self._end()
        said = BY_STATE.get(end.finished_state or "")
        if said in end.kinds:
            return Outcome(said, end.kinds[said], told=True)
        if said is not None or not end.kinds:
            return Outcome(said, end.postrun or Ending(end.finished_ns or end.over_ns), told=end.postrun is not None)
        kind = next(kind for kind in _RANK if kind in end.kinds)
        return Outcome(kind, end.kinds[kind], told=True)

    @property
    def end_known(self) -> bool:
        """Whether somebody said how and when the attempt ended."""
        if self.end is None:
            return False
        kind, _, told = self.outcome()
        return told and kind is not None

    @property
    def doubtful(self) -> bool:
        """Whether its end may be no end: Stem's SignalMiddleware calls a failure what is then retried."""
        end = self.end
        return bool(end and self.started_ns and not end.finished_ns and EndKind.FAILED in end.kinds)

    @property
    def doubted(self) -> bool:
        """Whether signals of it may be missing: its process is gone, was not heard for a while, or does not number."""
        process = self.process
        if self.marks & (Mark.ASKED | Mark.ABANDONED | Mark.UNSURE) or not process.boot:
            return True
        return process.gapped_ns >= self.opened_ns

    @property
    def cut_off(self) -> bool:
        """Whether it cannot have ended before its process was gone: nothing was missed since it was opened, or read."""
        return self.process.gapped_ns < self.opened_ns or bool(self.marks & Mark.RUNS_READ)

    @property
    def missing_start(self) -> bool:
        """Whether the attempt must have started, but nothing says when."""
        if self.started_ns:
            return False
        end = self.end
        if end and (end.finished_ns or EndKind.SUCCEEDED in end.kinds or EndKind.RETRIED in end.kinds):
            return True  # only what ran can succeed, ask for a retry, or reach postrun
        # What is received runs next; and what is neither was revoked, expired or refused before.
        return bool(self.received_ns) or not self.marks & Mark.NUMBERED


def chain(attempt: Attempt | None) -> Iterator[Attempt]:
    """Yield an attempt and those that hang from it; each may be removed before the next."""
    while attempt is not None:
        following = attempt.sibling
        yield attempt
        attempt = following


READ_OFF_NS = NANOSECONDS
"""What a record tells of the retry's due time is late by its own writing, milliseconds as a rule."""


class Ready(NamedTuple):
    """When an attempt could have started, 0 when unknown.

    `clamped`: that had to be moved to its start, because clocks differ. `at_latest`: it may have been ready earlier.
    """

    time_ns: int
    clamped: bool = False
    at_latest: bool = False


def ready_time(attempt: Attempt, origin: Origin) -> Ready:
    """Return when a started attempt could have started: enqueued, and due.

    The envelope's `notBefore` is when its last delivery was due: a pause, a rate limit or an extended lease writes over
    it. So it counts only where neither the publish nor the retry that set the first one was heard.
    What follows a retry, and of which neither tells, was ready nobody knows when: the task was published long before.
    """
    if not origin.enqueued_ns:
        return Ready(0)
    before = attempt.before
    known = before is not None and (before.due_ns or not attempt.number)
    due_ns = before.due_ns if before and known else origin.not_before_ns
    if attempt.number and not due_ns:
        return Ready(0)
    if before and before.read and abs(origin.not_before_ns - due_ns) < READ_OFF_NS:
        due_ns = origin.not_before_ns  # the same time, told exactly
    ready_ns = max(origin.enqueued_ns, due_ns)
    if ready_ns > attempt.started_ns:
        return Ready(attempt.started_ns, clamped=True)
    return Ready(ready_ns, at_latest=not known and bool(origin.not_before_ns))
