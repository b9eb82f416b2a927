"""Truth against sink: what the fleet did, and what arrived, exactly."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from agent.demo.sink import Sink, attributes
from agent.demo.truth import LOST, AttemptTruth, Truth, Via

END_EVENTS = {
    "succeeded": "stem.task.succeeded",
    "failed": "stem.task.failed",
    "retried": "stem.task.retried",
    "cancelled": "stem.task.revoked",
}


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
    published = sum(1 for task in truth.tasks.values() if task.via is Via.STEM)
    return [
        Row("tasks published", published, sink.sums("stem.tasks.published").total()),
        *_attempts(truth, sink),
        *_counters(truth, sink),
        *_logs(truth, sink),
        Row("signals lost, and noticed", truth.signals.noticeable, sink.own("stem_agent.signals.lost").total()),
    ]


AttemptKey = tuple[str, int, str]


def _key(span: Any) -> tuple[AttemptKey, dict[str, Any]]:
    found = attributes(span.attributes)
    return (found["stem.task.id"], found["stem.task.attempt"], found["stem.worker.id"]), found


def _attempts(truth: Truth, sink: Sink) -> Iterator[Row]:
    """Compare attempts with `process` spans: each once, in its trace, with its state and its times."""
    spans: dict[AttemptKey, list[Any]] = {}
    for span in sink.named("process"):
        key, found = _key(span)
        spans.setdefault(key, []).append((span, found))
    counts: dict[str, Counter[str]] = {state: Counter() for state in truth.states()}
    # A task can be delivered twice to one worker: what began first is paired first.
    for attempt in sorted(truth.attempts, key=lambda attempt: attempt.started_us):
        count = counts[attempt.state]
        count["expected"] += 1
        candidates = spans.get((attempt.task_id, attempt.number, attempt.worker), [])
        pair = min(candidates, key=lambda pair: abs(pair[0].start_time_unix_nano - _start_ns(attempt)), default=None)
        if pair is None or (len(candidates) == 1 and _belongs_to_another(attempt, pair[0])):
            continue
        candidates.remove(pair)
        count["received"] += 1
        if "stem.incomplete" in pair[1]:
            count["incomplete"] += 1
        elif not _right(truth, attempt, *pair):
            count["wrong"] += 1
    for state, count in sorted(counts.items()):
        what = "attempts cut off by a kill" if state == LOST else f"attempts {state}"
        yield Row(what, count["expected"], count["received"], count["incomplete"], count["wrong"])
    left = sum(len(candidates) for candidates in spans.values())
    yield Row("attempts invented or doubled", 0, left, wrong=left)
    yield _waits(truth, sink)
    yield _sends(truth, sink)


def _start_ns(attempt: AttemptTruth) -> int:
    return (attempt.started_us or attempt.ended_us) * 1000


def _belongs_to_another(attempt: AttemptTruth, span: Any) -> bool:
    """Whether the only span left is a later delivery's: this attempt's own never came."""
    return bool(attempt.state == LOST and span.start_time_unix_nano != _start_ns(attempt))


def _right(truth: Truth, attempt: AttemptTruth, span: Any, found: dict[str, Any]) -> bool:
    return (
        found.get("stem.task.state") == attempt.state
        and span.trace_id.hex() == truth.tasks[attempt.task_id].trace_id
        and span.start_time_unix_nano == _start_ns(attempt)
        and span.end_time_unix_nano == attempt.ended_us * 1000
    )


def _waits(truth: Truth, sink: Sink) -> Row:
    """Compare `wait` spans: one for every attempt that started, from when it could have to when it did."""
    started = {
        (attempt.task_id, attempt.number, attempt.worker, attempt.started_us * 1000): attempt.ready_us * 1000
        for attempt in truth.attempts
        if attempt.started_us and attempt.state != LOST
    }
    waits = list(sink.named("wait"))
    wrong = sum(
        1 for span in waits if started.get((*_key(span)[0], span.end_time_unix_nano)) != span.start_time_unix_nano
    )
    return Row("wait spans", len(started), len(waits), wrong=wrong)


def _sends(truth: Truth, sink: Sink) -> Row:
    """Compare `send` spans: one for every task that was attempted, and whose publisher made none."""
    firsts = {attempt.task_id for attempt in truth.attempts if attempt.number == 0 and attempt.state != LOST}
    expected = {task_id for task_id in firsts if not truth.tasks[task_id].traced}
    sends = [attributes(span.attributes)["stem.task.id"] for span in sink.named("send")]
    wrong = sum(1 for task_id in sends if task_id not in expected)
    return Row("send spans", len(expected), len(set(sends)), wrong=wrong)


def _counters(truth: Truth, sink: Sink) -> Iterator[Row]:
    by_state = {"succeeded": "succeeded", "failed": "failed", "retried": "retried", "cancelled": "revoked"}
    expected: dict[str, Counter[tuple[Any, ...]]] = {name: Counter() for name in ("started", *by_state.values())}
    ran = 0
    for attempt in truth.attempts:
        task = truth.tasks[attempt.task_id]
        series = (task.name, task.queue)
        if attempt.state != LOST:
            expected[by_state[attempt.state]][series] += 1
            ran += bool(attempt.started_us)
        if attempt.started_us:
            expected["started"][series] += 1
    for name, counts in expected.items():
        received = sink.sums(f"stem.tasks.{name}", "task", "queue")
        wrong = sum(1 for series in received if received[series] > counts[series])
        yield Row(f"counter stem.tasks.{name}", counts.total(), received.total(), wrong=wrong)
    yield Row("histogram stem.task.duration", ran, sink.sums("stem.task.duration").total())
    yield Row("histogram stem.queue.latency", ran, sink.sums("stem.queue.latency").total())


def _logs(truth: Truth, sink: Sink) -> Iterator[Row]:
    records = Counter(record.event_name for record in sink.logs)
    uids = Counter(attributes(record.attributes).get("log.record.uid") for record in sink.logs)
    started = sum(1 for attempt in truth.attempts if attempt.started_us)
    yield Row("logs stem.task.started", started, records["stem.task.started"])
    states = truth.states()
    for state, event in END_EVENTS.items():
        yield Row(f"logs {event}", states[state], records[event])
    doubled = sum(count - 1 for count in uids.values() if count > 1)
    yield Row("logs doubled", 0, doubled, wrong=doubled)
