"""Log records: one for each start and one for each end, in the task's trace, and no fact twice."""

from collections import Counter
from collections.abc import Sequence

from agent.demo.compare.attempts import AttemptKey, Seen, Told
from agent.demo.compare.rows import Row
from agent.demo.sink import Sink, attributes
from agent.demo.truth import LOST, Truth
from agent.stem.catalogue import TaskState

STARTED = "stem.task.started"
END_EVENTS = {
    TaskState.SUCCEEDED: "stem.task.succeeded",
    TaskState.FAILED: "stem.task.failed",
    TaskState.RETRIED: "stem.task.retried",
    TaskState.CANCELLED: "stem.task.revoked",
    LOST: "stem.task.lost",
}


def compare_logs(truth: Truth, sink: Sink, told: Sequence[Told], unattempted: Sequence[Seen] = ()) -> list[Row]:
    """Return the rows; note what attempts lack."""
    received: dict[str, Counter[AttemptKey]] = {event: Counter() for event in (STARTED, *END_EVENTS.values())}
    astray: dict[str, list[str]] = {event: [] for event in received}
    uids: set[str] = set()
    doubled = 0
    for record in sink.logs:
        found = attributes(record.attributes)
        uid, event = found.get("log.record.uid", ""), record.event_name
        doubled += uid in uids
        uids.add(uid)
        if event in received:
            task = truth.tasks.get(found.get("stem.task.id", ""))
            key = (found.get("stem.task.id", ""), found.get("stem.task.attempt", 0), found.get("stem.worker.id", ""))
            received[event][key] += 1
            if not task or record.trace_id.hex() != task.trace_id:
                astray[event].append(f"{found} in trace {record.trace_id.hex()}, not {task and task.trace_id}")
    rows = []
    expected = _expected(told, received)
    for seen in unattempted:
        expected[END_EVENTS[TaskState.FAILED]][seen.key] += seen.found["stem.task.state"] == TaskState.FAILED
    for event, keys in expected.items():
        excess = received[event] - keys
        notes = (*astray[event], *(f"{key} {count} too many" for key, count in excess.items()))
        wrong = excess.total() + len(astray[event])
        rows.append(Row(f"logs {event}", keys.total(), received[event].total(), wrong=wrong, notes=notes))
    return [*rows, Row("logs of any kind doubled", 0, doubled, wrong=doubled)]


def _expected(told: Sequence[Told], received: dict[str, Counter[AttemptKey]]) -> dict[str, Counter[AttemptKey]]:
    """Return what there is to be by event, and note on each attempt what it lacks."""
    expected: dict[str, Counter[AttemptKey]] = {event: Counter() for event in received}
    # Those that were told first: a copy on the same worker may have the same key, and only its own start was told.
    for each in sorted(told, key=lambda candidate: candidate.seen is None):
        if each.read and each.seen is None:
            # Its start may have been read, though no record of its end ever was.
            each.start_told = received[STARTED][each.key] > expected[STARTED][each.key]
            expected[STARTED][each.key] += each.start_told
            continue
        for event in (STARTED if each.started_us else None, END_EVENTS[each.state] if each.state else None):
            if event is None:
                continue
            if expected[event][each.key] >= received[event][each.key] and each.counts:
                each.lacks(f"log {event}")
            expected[event][each.key] += 1
    return expected
