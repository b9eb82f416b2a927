"""Log records: one for each start and one for each end, in the task's trace, and no fact twice."""

from collections import Counter
from collections.abc import Sequence

from agent.demo.compare.attempts import AttemptKey, Told
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
TOLD_TWICE = "starts told by a second agent, too"


def compare_logs(truth: Truth, sink: Sink, told: Sequence[Told]) -> tuple[list[Row], Counter[tuple[str, str]]]:
    """Return the rows, and by task and queue how many starts two agents told of; note what attempts lack."""
    received: dict[str, Counter[AttemptKey]] = {event: Counter() for event in (STARTED, *END_EVENTS.values())}
    astray: dict[str, list[str]] = {event: [] for event in received}
    both: Counter[tuple[str, str]] = Counter()
    uids: set[str] = set()
    doubled = 0
    for record in sink.logs:
        found = attributes(record.attributes)
        uid, event = found.get("log.record.uid", ""), record.event_name
        twice = uid in uids
        uids.add(uid)
        task = truth.tasks.get(found.get("stem.task.id", ""))
        if twice and event == STARTED and task and truth.agents > 1:
            both[task.name, task.queue] += 1
            continue
        doubled += twice
        if event in received:
            key = (found.get("stem.task.id", ""), found.get("stem.task.attempt", 0), found.get("stem.worker.id", ""))
            received[event][key] += 1
            if not task or record.trace_id.hex() != task.trace_id:
                astray[event].append(f"{found} in trace {record.trace_id.hex()}, not {task and task.trace_id}")
    expected = _expected(told, received)
    rows = []
    for event, keys in expected.items():
        excess = received[event] - keys
        if event == STARTED and truth.agents > 1:
            # A new agent does not know that a copy is one, so that its record has another uid.
            for key, count in excess.items():
                task = truth.tasks.get(key[0])
                if task:
                    both[task.name, task.queue] += count
            received[event] -= excess
            excess = Counter()
        notes = (*astray[event], *(f"{key} {count} too many" for key, count in excess.items()))
        wrong = excess.total() + len(astray[event])
        rows.append(Row(f"logs {event}", keys.total(), received[event].total(), wrong=wrong, notes=notes))
    rows.append(Row("logs of any kind doubled", 0, doubled, wrong=doubled))
    if truth.agents > 1:
        rows.append(Row(TOLD_TWICE, both.total(), both.total()))
    return rows, both


def _expected(told: Sequence[Told], received: dict[str, Counter[AttemptKey]]) -> dict[str, Counter[AttemptKey]]:
    """Return what there is to be by event, and note on each attempt what it lacks."""
    expected: dict[str, Counter[AttemptKey]] = {event: Counter() for event in received}
    for each in told:
        for event in (STARTED if each.started_us else None, END_EVENTS[each.state] if each.state else None):
            if event is None:
                continue
            if expected[event][each.key] >= received[event][each.key] and each.counts:
                each.lacks(f"log {event}")
            expected[event][each.key] += 1
    return expected
