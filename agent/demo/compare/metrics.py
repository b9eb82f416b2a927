"""Counters and histograms: every series against what the attempts come to."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from agent.demo.compare.attempts import TOLERANCE_US, Matched, Seen, Told
from agent.demo.compare.logs import END_EVENTS
from agent.demo.compare.rows import Row, Verdict
from agent.demo.sink import Sink, attributes, points
from agent.demo.truth import LOST, Truth, Via
from agent.stem.catalogue import TaskState

TASK, FINAL, SCHEDULE = ("task", "queue"), ("task", "queue", "outcome"), ("schedule",)
FINAL_STATES = {TaskState.SUCCEEDED, TaskState.FAILED, TaskState.CANCELLED}
STARTED, PUBLISHED, EXPIRED = "stem.tasks.started", "stem.tasks.published", "stem.tasks.expired"
END_COUNTERS = {state: event.replace(".task.", ".tasks.") for state, event in END_EVENTS.items()}
SUCCESS, FAILURE = "stem.scheduler.dispatch.success", "stem.scheduler.dispatch.failed"
SUM_TOLERANCE_SECONDS = 1e-6
"""Per observation: a histogram's sum is of floats."""
REPAIR_TOLERANCE_SECONDS = 0.05
DRIFT_TOLERANCE_SECONDS = 1e-3
"""Stem tells a drift in milliseconds."""

Series = tuple[Any, ...]
Values = dict[Series, list[float]]


def compare_metrics(truth: Truth, sink: Sink, matched: Matched) -> tuple[list[Row], int]:
    """Return the rows, and how many attempts lack nothing but their counts."""
    told = matched.told
    counts, schedules = _counts(truth, told), _dispatches(truth)
    if truth.silent:
        _unattempted(truth, matched.unattempted, counts)
    rows = [_counter(name, TASK, expected, sink) for name, expected in counts.items()]
    rows += [_counter(name, SCHEDULE, expected, sink) for name, expected in schedules.items()]
    repaired = any(each.seen and each.seen.tolerance_us > TOLERANCE_US for each in told)
    tolerance = REPAIR_TOLERANCE_SECONDS if repaired or truth.silent else SUM_TOLERANCE_SECONDS
    rows += [_histogram(name, keys, values, sink, tolerance) for name, keys, values in _values(truth, matched)]
    dead = Counter((task.name, task.queue) for task in map(truth.tasks.__getitem__, truth.dead_letters))
    rows.append(_counter("stem.tasks.dead_lettered", TASK, dead, sink))
    drifts: Values = {}
    for each in truth.dispatches:
        if each.task_id:
            drifts.setdefault((each.entry_id,), []).append(abs(each.executed_us - each.scheduled_us) / 1e6)
    rows.append(_histogram("stem.scheduler.drift", SCHEDULE, drifts, sink, DRIFT_TOLERANCE_SECONDS))
    return rows, _uncounted(told, counts, sink)


def _counts(truth: Truth, told: Sequence[Told]) -> dict[str, Counter[Series]]:
    counts: dict[str, Counter[Series]] = {name: Counter() for name in (PUBLISHED, STARTED, *END_COUNTERS.values())}
    for task in truth.tasks.values():
        if task.via is Via.STEM or truth.silent:
            counts[PUBLISHED][task.name, task.queue] += 1
    for each in told:
        if each.started:
            counts[STARTED][each.series] += 1
        if each.state:
            counts[END_COUNTERS[each.state]][each.series] += 1
    return counts


def _unattempted(truth: Truth, spans: Sequence[Seen], counts: dict[str, Counter[Series]]) -> None:
    """Count what ended without an attempt, where records are read: an expiry, or a failure for want of a handler."""
    expired = counts.setdefault(EXPIRED, Counter())
    for seen in spans if truth.silent else ():
        task = truth.tasks[seen.key[0]]
        failed = seen.found["stem.task.state"] == TaskState.FAILED
        (counts[END_COUNTERS[TaskState.FAILED]] if failed else expired)[task.name, task.queue] += 1


def _dispatches(truth: Truth) -> dict[str, Counter[Series]]:
    counts: dict[str, Counter[Series]] = {SUCCESS: Counter(), FAILURE: Counter()}
    for dispatch in truth.dispatches:
        counts[SUCCESS if dispatch.task_id else FAILURE][(dispatch.entry_id,)] += 1
    return counts


def _values(truth: Truth, matched: Matched) -> list[tuple[str, tuple[str, ...], Values]]:
    """Return what histograms of tasks are to have observed, in seconds."""
    durations: Values = {}
    latencies: Values = {}
    delays: Values = {}
    totals: Values = {}
    for seen in matched.unattempted:
        task = truth.tasks[seen.key[0]]
        total_s = max(0, seen.end_us - task.enqueued_us) / 1e6
        totals.setdefault((task.name, task.queue, seen.found["stem.task.state"]), []).append(total_s)
    for each in matched.told:
        attempt, state = each.attempt, each.state
        if each.seen is None and (attempt.cut or each.read):
            continue
        if started_us := each.started_us:
            ready_us = attempt.ready_us if each.wait_us is None else each.wait_us
            latencies.setdefault(each.series, []).append(max(started_us - ready_us, 0) / 1e6)
            if state not in {None, LOST} and not each.endless:
                durations.setdefault(each.series, []).append((each.end_us - started_us) / 1e6)
        if state == TaskState.RETRIED and attempt.next_retry_us and not each.endless:
            delays.setdefault(each.series, []).append((attempt.next_retry_us - each.end_us) / 1e6)
        if state in FINAL_STATES:
            total_s = max(each.end_us - each.task.enqueued_us, 0) / 1e6
            totals.setdefault((*each.series, str(state)), []).append(total_s)
    return [
        ("stem.task.duration", TASK, durations),
        ("stem.queue.latency", TASK, latencies),
        ("stem.task.retry.delay", TASK, delays),
        ("stem.task.total_duration", FINAL, totals),
    ]


def _counter(name: str, keys: tuple[str, ...], expected: Counter[Series], sink: Sink) -> Row:
    """Compare a counter, series by series."""
    received = sink.sums(name, *keys)
    excess = {series: count - expected[series] for series, count in received.items() if count > expected[series]}
    notes = tuple(f"{series} {count} too many" for series, count in excess.items())
    return Row(f"counter {name}", expected.total(), received.total(), wrong=sum(excess.values()), notes=notes)


def _histogram(name: str, keys: tuple[str, ...], expected: Values, sink: Sink, tolerance: float) -> Row:
    """Compare a histogram's counts, and where they are complete its sums."""
    counts: Counter[Series] = Counter()
    sums: dict[Series, float] = {}
    metric = sink.metrics.get(name)
    for point in points(metric) if metric else ():
        found = attributes(point.attributes)
        series = tuple(found.get(key) for key in keys)
        counts[series] += point.count
        sums[series] = sums.get(series, 0.0) + point.sum
    notes = []
    for series, count in counts.items():
        values = expected.get(series, [])
        if count > len(values):
            notes.append(f"{series} {count} observations, not {len(values)}")
        elif count == len(values) and abs(sums[series] - sum(values)) > tolerance * max(count, 1):
            notes.append(f"{series} sum {sums[series]:.6f} s, not {sum(values):.6f} s")
    total = sum(map(len, expected.values()))
    return Row(f"histogram {name}", total, counts.total(), wrong=len(notes), notes=tuple(notes))


def _uncounted(told: Sequence[Told], counts: dict[str, Counter[Series]], sink: Sink) -> int:
    """Return how many attempts, exactly told otherwise, are not counted: what the inexact ones do not explain."""
    inexact = Counter(each.series for each in told if each.verdict is not Verdict.EXACT)
    starts = counts[STARTED] - Counter(sink.sums(STARTED, *TASK))
    ends: Counter[Series] = Counter()
    for name in END_COUNTERS.values():
        ends += counts[name] - Counter(sink.sums(name, *TASK))
    return ((starts | ends) - Counter(inexact)).total()
