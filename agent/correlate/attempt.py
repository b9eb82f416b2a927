"""One attempt's facts, and rules to merge them that do not depend on the order of arrival."""

from enum import Enum
from typing import NamedTuple

from agent.correlate import ids
from agent.correlate.origin import Origin
from agent.stem.catalogue import SignalName, TaskState

Key = tuple[str, ...]
"""(task id, attempt, worker id), and the start in nanoseconds for a further delivery of the same attempt."""


def process_id(key: Key) -> bytes:
    """Return the span id of an attempt; it also stands for the attempt once that is settled."""
    return ids.span_id("process", *key)


class EndKind(Enum):
    """How an attempt can end, as a signal says it. Value: `stem.task.state`."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    REVOKED = "cancelled"
    RETRIED = "retried"


END_SIGNALS: dict[str, EndKind] = {
    SignalName.TASK_SUCCEEDED: EndKind.SUCCEEDED,
    SignalName.TASK_FAILED: EndKind.FAILED,
    SignalName.TASK_RETRY: EndKind.RETRIED,
    SignalName.TASK_REVOKED: EndKind.REVOKED,
}
_BY_STATE: dict[str, EndKind] = {
    TaskState.SUCCEEDED: EndKind.SUCCEEDED,
    TaskState.FAILED: EndKind.FAILED,
    TaskState.RETRIED: EndKind.RETRIED,
    TaskState.CANCELLED: EndKind.REVOKED,
}
# When two endings contradict each other and no postrun decides. Stem's own SignalMiddleware sends `task-failed` for
# errors that are then retried, so a retry outranks a failure; a success said beside anything else is the least likely.
_RANK = (EndKind.RETRIED, EndKind.REVOKED, EndKind.FAILED, EndKind.SUCCEEDED)


class Ending(NamedTuple):
    """An ending with its time and details; comparable, so that of two reports the same one always wins."""

    time_ns: int
    error: str = ""
    stack: str = ""
    next_retry_ns: int = 0


class Retry(NamedTuple):
    """A retry that was heard: which worker ran the attempt before, and when the next was due (0: unknown)."""

    worker: str
    next_retry_ns: int


class Outcome(NamedTuple):
    """The end that was decided on. `kind` is None when only the time is known."""

    kind: EndKind | None
    ending: Ending
    from_signal: bool


class Attempt:
    """Everything known about one attempt; times are Unix nanoseconds, 0 when unknown."""

    __slots__ = (
        "ending",
        "endings",
        "finished_ns",
        "finished_state",
        "key",
        "log_frame",
        "namespace",
        "number",
        "numbered",
        "opened_ns",
        "origin",
        "postrun_ending",
        "previous",
        "queue",
        "received_ns",
        "settled",
        "span_id",
        "started_ns",
        "task",
        "task_id",
        "told",
        "worker",
    )

    def __init__(self, key: Key, number: int, namespace: str, now_ns: int) -> None:
        self.key = key
        self.task_id = key[0]
        self.number = number
        self.worker = key[2]
        self.namespace = namespace
        self.task = ""
        self.queue = ""
        self.origin: Origin | None = None
        self.opened_ns = now_ns
        self.received_ns = 0
        self.started_ns = 0
        self.endings: dict[EndKind, Ending] = {}
        self.finished_ns = 0
        self.finished_state: str | None = None
        self.postrun_ending: Ending | None = None
        self.ending = False
        self.previous: Retry | None = None
        # A bridge repeats the start in every later signal, so from a bridge no start means: it never started.
        self.numbered = False
        self.told = 0
        self.settled = False
        self.span_id = process_id(key)
        self.log_frame: tuple[bytes, bytes] | None = None  # attributes and context that all its log records share

    def end(self, kind: EndKind, ending: Ending) -> None:
        """Merge an ending signal; of two reports of the same ending the earlier one holds."""
        known = self.endings.get(kind)
        if known is None or ending < known:
            self.endings[kind] = ending

    def finish(self, time_ns: int, state: str | None, ending: Ending | None) -> None:
        """Merge `task-postrun`: its time, the state it names, and the ending it repeats."""
        if not self.finished_ns or time_ns < self.finished_ns:
            self.finished_ns = time_ns
            self.finished_state = state
            self.postrun_ending = ending

    @property
    def has_end(self) -> bool:
        """Whether any fact says that the attempt is over."""
        return bool(self.endings or self.finished_ns)

    @property
    def complete(self) -> bool:
        """Whether start, end and postrun are known: nothing that would change the telemetry is still expected."""
        if not (self.started_ns and self.endings and self.finished_ns):
            return False
        said = _BY_STATE.get(self.finished_state or "")
        return said is None or said in self.endings

    def outcome(self) -> Outcome:
        """Decide how the attempt ended; call it only when `has_end`.

        `task-postrun` comes last and names the state, so it decides; the ending signal of that state has the details.
        """
        said = _BY_STATE.get(self.finished_state or "")
        if said in self.endings:
            return Outcome(said, self.endings[said], from_signal=True)
        if said is not None or not self.endings:
            return Outcome(said, self.postrun_ending or Ending(self.finished_ns), from_signal=False)
        kind = next(kind for kind in _RANK if kind in self.endings)
        return Outcome(kind, self.endings[kind], from_signal=True)

    @property
    def missing_start(self) -> bool:
        """Whether the attempt must have started, but nothing says when."""
        if self.started_ns:
            return False
        if self.finished_ns or EndKind.SUCCEEDED in self.endings or EndKind.RETRIED in self.endings:
            return True  # only what ran can succeed, ask for a retry, or reach postrun
        return not self.numbered


def ready_time(attempt: Attempt, origin: Origin) -> tuple[int, bool]:
    """Return when a started attempt could have started (0: unknown), and whether it had to be clamped to its start.

    Ready is the latest of: enqueued, due (`notBefore`), and the back-off after the attempt before being over.
    """
    if not origin.enqueued_ns:
        return 0, False
    next_retry_ns = attempt.previous.next_retry_ns if attempt.previous else 0
    ready_ns = max(origin.enqueued_ns, origin.not_before_ns, next_retry_ns)
    return (attempt.started_ns, True) if ready_ns > attempt.started_ns else (ready_ns, False)
