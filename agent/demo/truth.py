"""What the fleet did: the ground truth, written as one JSON file that anything can be compared with.

Times are Unix microseconds, 0 for what did not happen. The file is one object with the lists below.
"""

from collections import Counter
from enum import StrEnum
from pathlib import Path

import msgspec

LOST = "lost"
"""State of an attempt that was cut off: its worker was killed before the handler came to an end."""


FOR_EVER_US = 1 << 62


class Via(StrEnum):
    """Who published a task. Only `Stem.enqueue` signals it."""

    STEM = "stem"
    CANVAS = "canvas"
    BEAT = "beat"


class TaskTruth(msgspec.Struct, frozen=True):
    """A task as its publisher made it; `span_id` is that of the publisher's own span for it, empty without one.

    Without one, the agent makes a `send` span, whose parent is `send_parent`: the parent task's `send`, or the span of
    the header that a child of an untraced worker `inherited`.
    """

    task_id: str
    name: str
    queue: str
    via: Via
    trace_id: str
    span_id: str
    enqueued_us: int
    parent_task_id: str | None = None
    root_task_id: str | None = None
    group_id: str | None = None
    workflow_run_id: str | None = None
    schedule_id: str | None = None
    send_parent: str = ""
    inherited: str = ""

    @property
    def traced(self) -> bool:
        """Whether the publisher made a span."""
        return bool(self.span_id)

    @property
    def root_span_name(self) -> str:
        """Name of the span that the agent makes for a task whose publisher made none."""
        return f"schedule {self.schedule_id}" if self.schedule_id and not self.parent_task_id else f"send {self.queue}"


class AttemptTruth(msgspec.Struct, frozen=True):
    """One delivery of a task that became an attempt, as the worker lived it, in times of that worker's clock.

    `state` is a `TaskState`, or `lost`: then `ended_us` is when its worker was killed. `ready_us` is when it could
    have started, as its delivery says: enqueued, due, back-off over; a pause, a rate limit and the copy of a lease
    say later than `due_us`, when that attempt was due first. What is revoked before its run or badly signed was never
    started.

    `cut`: its worker was killed before its last signal was out; an agent may know no more than that, or what the
    result record has: that it runs since `running_us`, or the state `stored` at `stored_us`. Without `heard` it may
    know nothing at all. `stood_us` is how long the record of its end stood before another took its place;
    `named`: it names the start.
    """

    task_id: str
    number: int
    worker: str
    state: str
    ready_us: int
    started_us: int
    ended_us: int
    received_us: int = 0
    due_us: int = 0
    next_retry_us: int = 0
    cut: bool = False
    heard: bool = True
    running_us: int = 0
    stored: str = ""
    stored_us: int = 0
    stood_us: int = 0
    named: bool = False


class Outcome(msgspec.Struct, frozen=True):
    """A delivery that became no attempt: `expired`, `unregistered`, `rate-limited`, `paused`: none is signalled."""

    task_id: str
    what: str
    at_us: int


class DispatchTruth(msgspec.Struct, frozen=True):
    """One firing of a schedule's entry; without `task_id` it failed."""

    entry_id: str
    scheduled_us: int
    executed_us: int
    task_id: str | None = None


class RunTruth(msgspec.Struct):
    """A workflow run. `task_id` is its first runner; `resumptions` counts the signals: one before each step, too."""

    run_id: str
    workflow: str
    task_id: str
    started_us: int
    state: str = "running"
    ended_us: int = 0
    suspensions: int = 0
    resumptions: int = 0
    failures: int = 0


class SignalsTruth(msgspec.Struct):
    """What became of the signals.

    `dropped` by the emitters, because Redis did not take them; `lost` and `doubled` on purpose. `noticeable` are those
    of the lost that lie between two numbers that arrived; nobody can miss what was lost before the first or after the
    last signal of a process.
    """

    sent: int = 0
    dropped: int = 0
    lost: int = 0
    noticeable: int = 0
    doubled: int = 0

    def add(self, other: "SignalsTruth") -> None:
        """Add the counts of another emitter."""
        for name in self.__struct_fields__:
            setattr(self, name, getattr(self, name) + getattr(other, name))


class Truth(msgspec.Struct):
    """Everything the fleet did; `silent`: without any signal.

    `skews` are the seconds by which each worker's clock is fast. `agents` counts those that followed one another: more
    than one if whoever runs the agent restarted it; `cuts` how often Redis closed its connection.
    """

    tasks: dict[str, TaskTruth] = msgspec.field(default_factory=dict)
    attempts: list[AttemptTruth] = msgspec.field(default_factory=list)
    outcomes: list[Outcome] = msgspec.field(default_factory=list)
    dead_letters: list[str] = msgspec.field(default_factory=list)
    dispatches: list[DispatchTruth] = msgspec.field(default_factory=list)
    runs: dict[str, RunTruth] = msgspec.field(default_factory=dict)
    killed_workers: list[str] = msgspec.field(default_factory=list)
    skews: dict[str, float] = msgspec.field(default_factory=dict)
    signals: SignalsTruth = msgspec.field(default_factory=SignalsTruth)
    agents: int = 1
    cuts: int = 0
    silent: bool = False

    @property
    def blind(self) -> bool:
        """Whether there were moments in which no agent heard anything, so that none can know everything."""
        return self.agents > 1 or self.cuts > 0

    def states(self) -> Counter[str]:
        """Return the number of attempts by state."""
        return Counter(attempt.state for attempt in self.attempts)

    def write(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        partial = path.with_suffix(".partial")
        partial.write_bytes(msgspec.json.encode(self))
        partial.replace(path)


def read_truth(path: Path) -> Truth:
    """Read the file that a fleet wrote."""
    return msgspec.json.decode(path.read_bytes(), type=Truth)
