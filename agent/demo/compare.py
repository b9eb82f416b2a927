"""Truth against sink: what the fleet did, and what arrived, exactly."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from agent.demo.sink import Sink, attributes
from agent.demo.truth import Truth

END_EVENTS = {
    "succeeded": "stem.task.succeeded",
    "failed": "stem.task.failed",
    "retried": "stem.task.retried",
    "cancelled": "stem.task.revoked",
}


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the comparison."""

    what: str
    expected: int
    received: int
    wrong: int = 0

    @property
    def agrees(self) -> bool:
        """Whether the line is exact."""
        return self.expected == self.received and not self.wrong


def compare(truth: Truth, sink: Sink) -> list[Row]:
    """Return one row per kind of thing that can be counted."""
    rows = [Row("tasks published", len(truth.published), sink.sums("stem.tasks.published").total())]
    rows.extend(_attempts(truth, sink))
    rows.extend(_counters(truth, sink))
    rows.extend(_logs(truth, sink))
    return rows


def _attempts(truth: Truth, sink: Sink) -> Iterator[Row]:
    """Compare attempts with `process` spans: each once, in its trace, with its state and its times."""
    spans: dict[tuple[Any, ...], list[Any]] = {}
    for span in sink.named("process"):
        found = attributes(span.attributes)
        key = (found["stem.task.id"], found["stem.task.attempt"], found["stem.worker.id"])
        spans.setdefault(key, []).append((span, found))
    for state, expected in sorted(truth.states().items()):
        received = wrong = 0
        for attempt in truth.attempts:
            if attempt.state != state:
                continue
            matches = spans.get((attempt.task_id, attempt.number, attempt.worker), [])
            received += len(matches)
            for span, found in matches:
                start_ns = (attempt.started_us or attempt.ended_us) * 1000
                wrong += (
                    found.get("stem.task.state") != state
                    or "stem.incomplete" in found
                    or span.trace_id.hex() != attempt.trace_id
                    or span.start_time_unix_nano != start_ns
                    or span.end_time_unix_nano != attempt.ended_us * 1000
                )
        yield Row(f"attempts {state}", expected, received, wrong)
    known = {(a.task_id, a.number, a.worker) for a in truth.attempts}
    yield Row("attempts invented", 0, sum(len(found) for key, found in spans.items() if key not in known))
    yield _waits(truth, sink)
    untraced = {a.task_id for a in truth.attempts if a.number == 0 and not a.traced}
    sends = [attributes(span.attributes)["stem.task.id"] for span in sink.named("send")]
    yield Row("send spans", len(untraced), len(sends), sum(1 for task_id in sends if task_id not in untraced))


def _waits(truth: Truth, sink: Sink) -> Row:
    """Compare `wait` spans: one for every attempt that started, ending when it did, never before it began."""
    started = {(a.task_id, a.number, a.worker): a.started_us * 1000 for a in truth.attempts if a.started_us}
    waits = list(sink.named("wait"))
    wrong = 0
    for span in waits:
        found = attributes(span.attributes)
        key = (found["stem.task.id"], found["stem.task.attempt"], found["stem.worker.id"])
        wrong += started.get(key) != span.end_time_unix_nano or span.start_time_unix_nano > span.end_time_unix_nano
    return Row("wait spans", len(started), len(waits), wrong)


def _counters(truth: Truth, sink: Sink) -> Iterator[Row]:
    by_state = {"succeeded": "succeeded", "failed": "failed", "retried": "retried", "cancelled": "revoked"}
    expected: dict[str, Counter[tuple[Any, ...]]] = {name: Counter() for name in ("started", *by_state.values())}
    for attempt in truth.attempts:
        series = (attempt.task, attempt.queue)
        expected[by_state[attempt.state]][series] += 1
        if attempt.started_us:
            expected["started"][series] += 1
    for name, counts in expected.items():
        received = sink.sums(f"stem.tasks.{name}", "task", "queue")
        wrong = sum(1 for series in counts | received if counts[series] != received[series])
        yield Row(f"counter stem.tasks.{name}", counts.total(), received.total(), wrong)
    ran = expected["started"].total()
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
    yield Row("logs doubled", 0, sum(count - 1 for count in uids.values() if count > 1))
