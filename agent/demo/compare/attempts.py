"""Attempts and their spans: which is whose, and whether it says what happened."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from opentelemetry.proto.trace.v1.trace_pb2 import Status

from agent.correlate import ids
from agent.demo.compare.rows import Verdict
from agent.demo.sink import Sink, attributes
from agent.demo.truth import LOST, AttemptTruth, TaskTruth, Truth
from agent.stem.catalogue import TaskState

OUTCOMES = ("expired", "unregistered")
"""Ends of tasks that nobody attempted, as `stem.task.end_reason` names them."""
RAN = {TaskState.SUCCEEDED, TaskState.FAILED, TaskState.RETRIED}
ERRORS = {TaskState.FAILED, TaskState.RETRIED, LOST}
TOLERANCE_US = 2_000
REPAIR_TOLERANCE_US = 50_000
"""A result record is written a few milliseconds before the signal of the same end."""
READ_TOLERANCE_US = 10_000
"""A record's times are taken just before it is written: a busy worker is interrupted in between."""
LOST_WITHIN_US = 6_000_000
"""`heartbeat_timeout` of the demo's agent: it knows the end of what was cut off no better."""

AttemptKey = tuple[str, int, str]
"""Task id, attempt, worker: whose attempt a span or a record is about."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A span with its attributes as Python has them."""

    span: Any
    found: dict[str, Any]

    @property
    def key(self) -> AttemptKey:
        """Whose attempt it is about."""
        found = self.found
        return found.get("stem.task.id", ""), found.get("stem.task.attempt", 0), found.get("stem.worker.id", "")

    @property
    def incomplete(self) -> bool:
        """Whether the span says that it does not know everything."""
        return "stem.incomplete" in self.found

    @property
    def missing(self) -> set[str]:
        """What it says it does not know."""
        return set(self.found.get("stem.missing", ()))

    @property
    def repaired(self) -> bool:
        """Whether it says that some of it was read from the result record."""
        return self.found.get("stem.source") == "repair"

    @property
    def tolerance_us(self) -> int:
        """How far its times may be off."""
        if self.found.get("stem.source") == "tail":
            return READ_TOLERANCE_US
        return REPAIR_TOLERANCE_US if self.repaired else TOLERANCE_US

    @property
    def start_us(self) -> int:
        """Start in Unix microseconds."""
        return int(self.span.start_time_unix_nano) // 1000

    @property
    def end_us(self) -> int:
        """End in Unix microseconds."""
        return int(self.span.end_time_unix_nano) // 1000

    def near(self, said_us: int, true_us: int) -> bool:
        """Whether a time is right, as far as this span can know it."""
        return abs(said_us - true_us) <= self.tolerance_us

    def describe(self) -> str:
        """Return what an example says of it."""
        return f"{self.span.name} {self.found}"


@dataclass(slots=True, eq=False)
class Told:
    """An attempt, the span that tells of it, and what differs. `wait_us` is where its `wait` span begins.

    `read`: its fleet is silent, so nothing is known of it but what records say.
    """

    attempt: AttemptTruth
    task: TaskTruth
    read: bool = False
    seen: Seen | None = None
    verdict: Verdict = Verdict.MISSING
    differs: list[str] = field(default_factory=lambda: ["no span"])
    wait_us: int | None = None
    start_told: bool = False

    @property
    def key(self) -> AttemptKey:
        """Whose it is; as it was told, where a record does not name the worker."""
        if self.read and self.seen:
            return self.seen.key
        return self.attempt.task_id, self.attempt.number, self.attempt.worker

    @property
    def series(self) -> tuple[str, str]:
        """Task and queue, as metrics have them."""
        return self.task.name, self.task.queue

    @property
    def counts(self) -> bool:
        """Whether anybody could know of it."""
        return self.attempt.heard or self.seen is not None

    @property
    def state(self) -> str | None:
        """How it ended; where it was cut off: what the agent made of it, None if it made nothing."""
        if not self.attempt.cut and not self.read:
            return self.attempt.state
        return self.seen.found.get("stem.task.state") if self.seen else None

    @property
    def started(self) -> bool:
        """Whether its start is counted: also where nothing says when, but how it ended says that it did."""
        if not self.read:
            return bool(self.started_us)
        if self.seen is None:
            return self.start_told
        return self.state in RAN if "start" in self.seen.missing else bool(self.started_us)

    @property
    def endless(self) -> bool:
        """Whether nothing says when it ended."""
        return self.seen is not None and "end" in self.seen.missing

    @property
    def started_us(self) -> int:
        """When it started, 0 if it did not; what its record told the agent, where that is what the span has."""
        attempt, seen = self.attempt, self.seen
        if self.read and seen and "start" in seen.missing:
            return 0
        if seen is None or "start" in seen.missing or not (attempt.cut or (attempt.started_us and seen.repaired)):
            return attempt.started_us
        told = {attempt.started_us, attempt.running_us} - {0}
        near = [start_us for start_us in told if seen.near(seen.start_us, start_us)]
        return min(near, key=lambda start_us: abs(start_us - seen.start_us), default=attempt.started_us)

    def starts_us(self, seen: Seen) -> set[int]:
        """Return where a span of it may start: of what was cut off, `task-prerun` may not have been out.

        A record has its own start: from there to `task-prerun` a busy worker takes its time.
        """
        attempt = self.attempt
        starts = {attempt.started_us or attempt.received_us or attempt.ended_us}
        if attempt.cut:
            starts |= {attempt.received_us, attempt.running_us}
        elif seen.repaired and attempt.started_us:
            starts |= {attempt.running_us}
        return starts - {0}

    @property
    def end_us(self) -> int:
        """When it ended; where only the record can have told, when that was written."""
        attempt = self.attempt
        return attempt.stored_us if self.state == attempt.stored and attempt.state == LOST else attempt.ended_us

    def lacks(self, what: str) -> None:
        """Note that something beside the span was not told."""
        self.differs.append(f"no {what}")
        if self.verdict is Verdict.EXACT:
            self.verdict = Verdict.INCOMPLETE

    def describe(self) -> str:
        """Return what an example says of it."""
        attempt = self.attempt
        cut = f", cut off, stored {attempt.stored or 'nothing'}" if attempt.cut else ""
        which = f"attempt {attempt.number} of {self.task.name} {attempt.task_id} on {attempt.worker}"
        return f"{self.verdict}: {which} ({attempt.state}{cut}): {'; '.join(self.differs)}"


@dataclass(frozen=True, slots=True)
class Matched:
    """All attempts, the spans that are nobody's, and those of tasks that nobody attempted: no signal tells of these."""

    told: list[Told]
    invented: list[Seen]
    unattempted: list[Seen]


def match(truth: Truth, sink: Sink) -> Matched:
    """Find each attempt's span, and judge it."""
    left: dict[AttemptKey, list[Seen]] = {}
    for span in sink.named("process"):
        seen = Seen(span, attributes(span.attributes))
        left.setdefault(seen.key, []).append(seen)
    told = [Told(attempt, truth.tasks[attempt.task_id], truth.silent) for attempt in truth.attempts]
    _assign(told, left, exact=truth.silent)
    retried: dict[tuple[str, int], set[bytes]] = {}
    for each in told:
        if each.seen and each.seen.found.get("stem.task.state") == TaskState.RETRIED and not each.attempt.cut:
            retried.setdefault(each.key[:2], set()).add(each.seen.span.span_id)
    for each in told:
        if each.seen:
            before = retried.get((each.attempt.task_id, each.attempt.number - 1), set())
            each.differs = list(_differences(each, each.seen, before, blind=truth.blind))
            right = Verdict.INCOMPLETE if each.seen.incomplete else Verdict.EXACT
            each.verdict = Verdict.WRONG if each.differs else right
    expired, invented = _nobodys(truth, [seen for spans in left.values() for seen in spans])
    return Matched(told, invented, expired)


def _assign(told: list[Told], left: dict[AttemptKey, list[Seen]], *, exact: bool) -> None:
    """Give each attempt its span, and take it from those that are left."""
    # What has the right start first; then what does not know its start, or not even its worker.
    for close in (True, False) if exact else (False,):
        for candidate in told:
            if candidate.seen is None:
                _take(candidate, left.get(candidate.key, []), by_start=True, exact=close)
    for worker in (None, ""):
        for candidate in told:
            if candidate.seen is None:
                task_id, number, own = candidate.key
                _take(candidate, left.get((task_id, number, own if worker is None else worker), []), by_start=False)


def _nobodys(truth: Truth, spans: list[Seen]) -> tuple[list[Seen], list[Seen]]:
    """Return which spans tell of tasks that ended without an attempt, and which tell of nothing that was."""
    ended = {what: {each.task_id for each in truth.outcomes if each.what == what} for what in OUTCOMES}
    expired, invented = [], []
    for seen in spans:
        reason = seen.found.get("stem.task.end_reason", "")
        if seen.key[0] in ended.get(reason, ()):
            ended[reason].remove(seen.key[0])
            expired.append(seen)
        else:
            invented.append(seen)
    return expired, invented


def _take(told: Told, spans: list[Seen], *, by_start: bool, exact: bool = False) -> None:
    def off_us(seen: Seen) -> int:
        return min(abs(seen.start_us - start) for start in told.starts_us(seen))

    # A record names the very start: copies may be delivered to one worker within a tenth of a millisecond.
    near = [seen for seen in spans if not by_start or off_us(seen) <= (0 if exact else seen.tolerance_us)]
    if near:
        told.seen = min(near, key=off_us)  # copies of a task may start within a millisecond of each other
        spans.remove(told.seen)


def parents(task: TaskTruth, *, blind: bool) -> set[bytes]:
    """Return the spans under which a task's spans may be: the publisher's own, or the `send` that is made for it.

    Whoever has not seen the parent cannot know that a header was inherited, and believes it.
    """
    if task.traced:
        return {bytes.fromhex(task.span_id)}
    believed = {bytes.fromhex(task.inherited)} if blind and task.inherited else set()
    return {ids.span_id("send", task.task_id), *believed}


def _differences(told: Told, seen: Seen, before: set[bytes], *, blind: bool) -> Iterator[str]:
    """Say what is not as it was; `before` are the spans of the attempts that its retry link may point to."""
    span, task, attempt = seen.span, told.task, told.attempt
    state = seen.found.get("stem.task.state")
    yield from _contradictions(told, seen, state)
    if seen.incomplete:
        return
    status = Status.STATUS_CODE_ERROR if state in ERRORS else Status.STATUS_CODE_UNSET
    yield from _unlike("name", span.name, [f"process {task.name}"])
    nameless = [None] if told.read and not attempt.started_us else []  # such a record does not tell
    yield from _unlike("worker", seen.found.get("stem.worker.id"), [attempt.worker, *nameless])
    yield from _unlike("queue", seen.found.get("stem.queue"), [task.queue])
    yield from _unlike("status", span.status.code, [status])
    yield from _unlike("parent", span.parent_span_id, parents(task, blind=blind))
    if state == LOST:
        yield from _unlike("end reason", seen.found.get("stem.task.end_reason"), ["worker-lost"])
        yield from _unlike("error type", seen.found.get("error.type"), ["worker-lost"])
    linked = {link.span_id for link in span.links}
    if span.parent_span_id not in linked:
        yield "no link to what created it"
    if before and not before & linked and not blind:
        yield "no link to the attempt before"
    # Of an attempt that follows others, an agent that was away may know a due time of another clock than the truth's.
    if attempt.started_us and not attempt.cut and not (blind and attempt.number):
        yield from _misjudged_clock(attempt, seen)


def _contradictions(told: Told, seen: Seen, state: str | None) -> Iterator[str]:
    """Say what contradicts the truth; what a span says it does not know cannot."""
    attempt, missing = told.attempt, seen.missing
    states = {attempt.state, LOST, attempt.stored} if attempt.cut else {attempt.state}
    if state not in states and not (seen.incomplete and state is None):
        yield f"state {state}, not {attempt.state}"
    if "enqueued" not in missing:
        yield from _unlike("trace", seen.span.trace_id.hex(), [told.task.trace_id])
    if "start" not in missing and not any(seen.near(seen.start_us, start) for start in told.starts_us(seen)):
        yield f"start off by {(seen.start_us - min(told.starts_us(seen))) / 1000:.3f} ms"
    if "end" in missing:
        return
    if state == LOST:
        if not seen.start_us <= seen.end_us <= attempt.ended_us + LOST_WITHIN_US:
            yield f"lost {(seen.end_us - attempt.ended_us) / 1000:.3f} ms after the kill"
    elif not any(seen.near(seen.end_us, end) for end in _ends_us(told, seen)):
        yield f"end off by {(seen.end_us - told.end_us) / 1000:.3f} ms"


def _ends_us(told: Told, seen: Seen) -> list[int]:
    """Return where its span may end: two clocks may have it end before it began, and a record has its own time."""
    ends = [told.end_us, max(told.end_us, seen.start_us)]
    return [*ends, told.attempt.stored_us] if seen.tolerance_us > TOLERANCE_US and told.attempt.stored_us else ends


def _misjudged_clock(attempt: AttemptTruth, seen: Seen) -> Iterator[str]:
    """Say whether a wait that would be negative is not marked, or another is."""
    adjusted = "stem.clock.adjusted" in seen.found
    ready = (attempt.ready_us, attempt.due_us or attempt.ready_us)
    if adjusted and max(ready) <= attempt.started_us:
        yield "a clock adjusted that was right"
    if not adjusted and min(ready) > attempt.started_us:
        yield "a negative wait not marked"


def _unlike(what: str, said: Any, right: Iterable[Any]) -> Iterator[str]:
    if said not in right:
        yield f"{what} {_text(said)}, not {' or '.join(map(_text, right))}"


def _text(value: Any) -> str:
    return value.hex() if isinstance(value, bytes) else str(value)
