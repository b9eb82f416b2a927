"""Truth against sink: what the fleet did, and what arrived, item by item."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from opentelemetry.proto.trace.v1.trace_pb2 import Status

from agent.demo.sink import Sink, attributes, points
from agent.demo.truth import LOST, AttemptTruth, TaskTruth, Truth, Via
from agent.stem.catalogue import TaskState

END_EVENTS = {
    TaskState.SUCCEEDED: "stem.task.succeeded",
    TaskState.FAILED: "stem.task.failed",
    TaskState.RETRIED: "stem.task.retried",
    TaskState.CANCELLED: "stem.task.revoked",
}
END_COUNTERS = {state: event.replace(".task.", ".tasks.") for state, event in END_EVENTS.items()}
ERRORS = {TaskState.FAILED, TaskState.RETRIED}
TOLERANCE_SECONDS = 1e-6
"""Per observation: a histogram's sum is of floats."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the comparison: how many there were, how many arrived, and of those how many say too little.

    `incomplete` items say so themselves (`stem.incomplete`); `wrong` ones contradict the fleet, or came twice.
    """

    what: str
    expected: int
    received: int
    incomplete: int = 0
    wrong: int = 0

    @property
    def exact(self) -> bool:
        """Whether everything arrived, and is right."""
        return self.expected == self.received and not self.incomplete and not self.wrong

    @property
    def true(self) -> bool:
        """Whether nothing is wrong or invented, though something may be missing."""
        return self.received <= self.expected and not self.wrong


def compare(truth: Truth, sink: Sink) -> list[Row]:
    """Return one row per kind of thing that can be counted."""
    return [
        *_spans(truth, sink),
        *_counters(truth, sink),
        *_logs(truth, sink),
        Row("signals lost, and noticed", truth.signals.noticeable, sink.own("stem_agent.signals.lost").total()),
    ]


# --- spans -----------------------------------------------------------------------------------------------------------

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
        return self.found["stem.task.id"], self.found["stem.task.attempt"], self.found["stem.worker.id"]

    @property
    def incomplete(self) -> bool:
        """Whether the span says that it does not know everything."""
        return "stem.incomplete" in self.found


def _seen(sink: Sink, role: str) -> list[Seen]:
    return [Seen(span, attributes(span.attributes)) for span in sink.named(role)]


def _spans(truth: Truth, sink: Sink) -> Iterator[Row]:
    """Compare spans: each once, in its trace, under its parent, with its state and its times."""
    sends = _seen(sink, "send")
    yield from _attempts(truth, _seen(sink, "process"), _parents(truth, sends))
    yield _waits(truth, _seen(sink, "wait"), _parents(truth, sends))
    yield _sends(truth, sends)


def _parents(truth: Truth, sends: Iterable[Seen]) -> dict[str, bytes]:
    """Return the span from which each task's spans hang: the publisher's own, or the `send` that was made for it."""
    parents = {task_id: bytes.fromhex(task.span_id) for task_id, task in truth.tasks.items() if task.traced}
    return parents | {each.found["stem.task.id"]: each.span.span_id for each in sends}


def _attempts(truth: Truth, processes: list[Seen], parents: dict[str, bytes]) -> Iterator[Row]:
    left: dict[AttemptKey, list[Seen]] = {}
    siblings: dict[tuple[str, int], set[bytes]] = {}
    for seen in processes:
        left.setdefault(seen.key, []).append(seen)
        siblings.setdefault(seen.key[:2], set()).add(seen.span.span_id)
    rows: dict[str, Counter[str]] = {state: Counter() for state in truth.states()}
    unmatched = []
    lossy = truth.signals.lost > 0  # then the attempt before may not have been known when the link was made
    for attempt in truth.attempts:
        row = rows[attempt.state]
        row["expected"] += 1
        same = left.get(_key(attempt), [])
        match = next((seen for seen in same if seen.span.start_time_unix_nano == _start_ns(attempt)), None)
        if match is None:
            unmatched.append(attempt)
            continue
        same.remove(match)
        row["received"] += 1
        if match.incomplete:
            row["incomplete"] += 1
        else:
            before = set() if lossy else siblings.get((attempt.task_id, attempt.number - 1), set())
            row["wrong"] += not _right(truth.tasks[attempt.task_id], attempt, match, parents, before)
    # A span without its right start may say that it does not know it; if it claims to know, it is wrong.
    for attempt in unmatched:
        if same := left.get(_key(attempt), []):
            rows[attempt.state]["received"] += 1
            rows[attempt.state]["incomplete" if same.pop().incomplete else "wrong"] += 1
    for state, row in sorted(rows.items()):
        what = "attempts cut off by a kill" if state == LOST else f"attempts {state}"
        yield Row(what, row["expected"], row["received"], row["incomplete"], row["wrong"])
    invented = sum(len(spans) for spans in left.values())
    yield Row("attempts invented or doubled", 0, invented, wrong=invented)


def _key(attempt: AttemptTruth) -> AttemptKey:
    return attempt.task_id, attempt.number, attempt.worker


def _start_ns(attempt: AttemptTruth) -> int:
    return (attempt.started_us or attempt.ended_us) * 1000


def _right(task: TaskTruth, attempt: AttemptTruth, seen: Seen, parents: dict[str, bytes], before: set[bytes]) -> bool:
    """Whether a span says what happened; `before` are the spans of the attempts that its retry link may point to."""
    span, found = seen.span, seen.found
    linked = {link.span_id for link in span.links}
    status = Status.STATUS_CODE_ERROR if attempt.state in ERRORS else Status.STATUS_CODE_UNSET
    return (
        found.get("stem.task.state") == attempt.state
        and found.get("stem.queue") == task.queue
        and span.name == f"process {task.name}"
        and span.status.code == status
        and span.trace_id.hex() == task.trace_id
        and span.end_time_unix_nano == attempt.ended_us * 1000
        and span.parent_span_id == parents.get(attempt.task_id, span.parent_span_id)
        and span.parent_span_id in linked
        and (not before or bool(before & linked))
    )


def _waits(truth: Truth, waits: list[Seen], parents: dict[str, bytes]) -> Row:
    """Compare `wait` spans: one for every attempt that started, from when it could have to when it did."""
    ready = {
        (*_key(attempt), attempt.started_us): attempt.ready_us
        for attempt in truth.attempts
        if attempt.started_us and attempt.state != LOST
    }
    count, wrong = len(ready), 0
    for seen in waits:
        span, task_id = seen.span, seen.key[0]
        # Each is expected once: a double finds nothing.
        expected_us = ready.pop((*seen.key, span.end_time_unix_nano // 1000), None)
        wrong += (
            expected_us is None
            or span.start_time_unix_nano != expected_us * 1000
            or span.trace_id.hex() != truth.tasks[task_id].trace_id
            or span.parent_span_id != parents.get(task_id, span.parent_span_id)
        )
    return Row("wait spans", count, len(waits), wrong=wrong)


def _sends(truth: Truth, sends: list[Seen]) -> Row:
    """Compare `send` spans: one for every task that was attempted, and whose publisher made none."""
    firsts = {attempt.task_id for attempt in truth.attempts if attempt.number == 0 and attempt.state != LOST}
    expected = {task_id: truth.tasks[task_id] for task_id in firsts if not truth.tasks[task_id].traced}
    count, wrong = len(expected), 0
    for seen in sends:
        task = expected.pop(seen.found["stem.task.id"], None)
        span = seen.span
        wrong += (
            task is None or span.trace_id.hex() != task.trace_id or span.start_time_unix_nano != task.enqueued_us * 1000
        )
    return Row("send spans", count, len(sends), wrong=wrong)


# --- metrics ---------------------------------------------------------------------------------------------------------

Series = tuple[str, str]
"""Task and queue."""


def _counters(truth: Truth, sink: Sink) -> Iterator[Row]:
    expected: dict[str, Counter[Series]] = {
        name: Counter() for name in ("stem.tasks.published", "stem.tasks.started", *END_COUNTERS.values())
    }
    durations: dict[Series, list[float]] = {}
    latencies: dict[Series, list[float]] = {}
    for task in truth.tasks.values():
        if task.via is Via.STEM:
            expected["stem.tasks.published"][task.name, task.queue] += 1
    for attempt in truth.attempts:
        task = truth.tasks[attempt.task_id]
        series = (task.name, task.queue)
        if attempt.started_us:
            expected["stem.tasks.started"][series] += 1
        if attempt.state == LOST:
            continue
        expected[END_COUNTERS[TaskState(attempt.state)]][series] += 1
        if attempt.started_us:
            durations.setdefault(series, []).append((attempt.ended_us - attempt.started_us) / 1e6)
            latencies.setdefault(series, []).append((attempt.started_us - attempt.ready_us) / 1e6)
    for name, counts in expected.items():
        received = sink.sums(name, "task", "queue")
        wrong = sum(1 for series in received if received[series] > counts[series])
        yield Row(f"counter {name}", counts.total(), received.total(), wrong=wrong)
    yield _histogram("stem.task.duration", durations, sink)
    yield _histogram("stem.queue.latency", latencies, sink)


def _histogram(name: str, expected: dict[Series, list[float]], sink: Sink) -> Row:
    """Compare a histogram's counts, and where they are complete its sums."""
    counts: Counter[Series] = Counter()
    sums: dict[Series, float] = {}
    metric = sink.metrics.get(name)
    for point in points(metric) if metric else ():
        found = attributes(point.attributes)
        series = (found["task"], found["queue"])
        counts[series] += point.count
        sums[series] = sums.get(series, 0.0) + point.sum
    wrong = 0
    for series, count in counts.items():
        values = expected.get(series, [])
        off = abs(sums[series] - sum(values)) > TOLERANCE_SECONDS * max(count, 1)
        wrong += count > len(values) or (count == len(values) and off)
    return Row(f"histogram {name}", sum(map(len, expected.values())), counts.total(), wrong=wrong)


# --- logs ------------------------------------------------------------------------------------------------------------


def _logs(truth: Truth, sink: Sink) -> Iterator[Row]:
    """Compare log records: one for each start and each end, in the task's trace."""
    expected: dict[str, Counter[AttemptKey]] = {
        event: Counter() for event in ("stem.task.started", *END_EVENTS.values())
    }
    for attempt in truth.attempts:
        if attempt.started_us:
            expected["stem.task.started"][_key(attempt)] += 1
        if attempt.state != LOST:
            expected[END_EVENTS[TaskState(attempt.state)]][_key(attempt)] += 1
    received: dict[str, Counter[AttemptKey]] = {event: Counter() for event in expected}
    astray: Counter[str] = Counter()
    for record in sink.logs:
        if record.event_name in received:
            found = attributes(record.attributes)
            key = (found["stem.task.id"], found["stem.task.attempt"], found["stem.worker.id"])
            received[record.event_name][key] += 1
            task = truth.tasks.get(key[0])
            astray[record.event_name] += not task or record.trace_id.hex() != task.trace_id
    for event, keys in expected.items():
        doubled_or_invented = (received[event] - keys).total()
        row = (keys.total(), received[event].total())
        yield Row(f"logs {event}", *row, wrong=doubled_or_invented + astray[event])
    uids = Counter(attributes(record.attributes).get("log.record.uid") for record in sink.logs)
    doubled = sum(count - 1 for count in uids.values())
    yield Row("logs of any kind doubled", 0, doubled, wrong=doubled)
