"""Spans, kind by kind: attempts by state, waits, the roots of traces whose publisher made none, workflow runs."""

from collections import Counter
from collections.abc import Iterator, Sequence

from opentelemetry.proto.trace.v1.trace_pb2 import Span

from agent.correlate import ids
from agent.demo.compare.attempts import AttemptKey, Matched, Seen, Told, parents
from agent.demo.compare.rows import Row, Verdict
from agent.demo.sink import Sink, attributes
from agent.demo.truth import LOST, RunTruth, TaskTruth, Truth

SUSPENDED, RESUMED = "stem.workflow.suspended", "stem.workflow.resumed"


def attempt_rows(matched: Matched) -> Iterator[Row]:
    """Return a row for each state in which attempts ended, and one for spans that are nobody's."""
    by_state: dict[str, list[Told]] = {}
    for told in matched.told:
        if told.counts:
            by_state.setdefault(told.attempt.state, []).append(told)
    for state, attempts in sorted(by_state.items()):
        what = "attempts cut off by a kill" if state == LOST else f"attempts {state}"
        verdicts = Counter(told.verdict for told in attempts)
        received = len(attempts) - verdicts[Verdict.MISSING]
        yield Row(what, len(attempts), received, verdicts[Verdict.INCOMPLETE], verdicts[Verdict.WRONG])
    count = len(matched.invented)
    yield Row("attempts invented or doubled", 0, count, wrong=count)


def compare_spans(truth: Truth, sink: Sink, matched: Matched) -> Iterator[Row]:
    """Compare what there is beside the attempts: each once, in its trace, under its parent, with its times."""
    yield _waits(sink, matched.told, blind=truth.blind, skewed=any(truth.skews.values()))
    yield from _roots(truth, sink, matched)
    yield _workflows(truth, sink)


def _seen(sink: Sink, role: str) -> list[Seen]:
    return [Seen(span, attributes(span.attributes)) for span in sink.named(role)]


def _waits(sink: Sink, told: Sequence[Told], *, blind: bool, skewed: bool) -> Row:
    """Compare `wait` spans: one for every attempt that started, from when it could have to when it did."""
    left: dict[AttemptKey, list[Seen]] = {}
    waits = _seen(sink, "wait")
    for seen in waits:
        left.setdefault(seen.key, []).append(seen)
    dues = {each.seen.span.span_id: each.attempt.next_retry_us for each in told if each.seen} if skewed else {}
    expected, notes = 0, []
    for each in told:
        if not each.started_us or (each.seen is None and (each.attempt.cut or not each.counts)):
            continue
        expected += 1
        near = [seen for seen in left.get(each.key, []) if seen.near(seen.end_us, each.started_us)]
        if not near:
            continue
        # Copies of a task may start within a millisecond of each other: a wait ends where its own attempt starts.
        start_us = each.seen.start_us if each.seen else each.started_us
        seen = min(near, key=lambda candidate: abs(candidate.end_us - start_us))
        left[each.key].remove(seen)
        each.wait_us = seen.start_us
        linked = {dues.get(link.span_id, 0) for link in each.seen.span.links} if each.seen else set()
        if differs := list(_wrong_wait(each, seen, linked - {0}, blind=blind, skewed=skewed)):
            notes.append(f"{seen.describe()}: {'; '.join(differs)}")
    invented = [seen.describe() for spans in left.values() for seen in spans]
    return Row("wait spans", expected, len(waits), wrong=len(notes) + len(invented), notes=(*notes, *invented))


def _wrong_wait(told: Told, seen: Seen, linked: set[int], *, blind: bool, skewed: bool) -> Iterator[str]:
    """Say what is not as it was; `linked` is when the retries were due that the attempt is said to follow.

    Copies of the attempt before may each have asked for it, by clocks that differ: nobody can say which was due first.
    """
    attempt = told.attempt
    dues = (attempt.ready_us, attempt.due_us or attempt.ready_us, *(max(due, told.task.enqueued_us) for due in linked))
    ready = {min(ready_us, told.started_us) for ready_us in dues}
    # A first due time that another clock told may lie behind the start, which is then all there is to say.
    clamped = skewed and seen.start_us == seen.end_us and "stem.clock.adjusted" in seen.found
    # What was sent back was due before it was delivered again, and the truth has only the first and the last of that.
    between = told.read and min(ready) <= seen.start_us <= max(ready)
    # Of copies that are delivered at once nobody knows which is which: then the wait says that it is at least so long.
    at_least = told.seen is not None and "stem.task.wait.lower_bound" in told.seen.found
    shorter = told.read and at_least and max(ready) <= seen.start_us <= told.started_us
    if not (clamped or between or shorter) and not any(seen.near(seen.start_us, ready_us) for ready_us in ready):
        yield f"start off by {(seen.start_us - max(ready)) / 1000:.3f} ms"
    if seen.span.trace_id.hex() != told.task.trace_id:
        yield f"not in trace {told.task.trace_id}"
    if seen.span.parent_span_id not in parents(told.task, blind=blind):
        yield f"under {seen.span.parent_span_id.hex()}"


def _roots(truth: Truth, sink: Sink, matched: Matched) -> Iterator[Row]:
    """Compare `send` and `schedule` spans: one for every task that was attempted, and whose publisher made none."""
    told = matched.told
    expected = {
        each.task.task_id: each.task
        for each in told
        if not each.task.traced and each.attempt.number == 0 and (each.seen or not (each.attempt.cut or each.read))
    }
    attempted = {each.task.task_id: each.task for each in told if not each.task.traced}
    attempted |= {seen.key[0]: truth.tasks[seen.key[0]] for seen in matched.unattempted}
    for role in ("send", "schedule"):
        spans, notes, known = _seen(sink, role), [], set()
        wanted = {task_id for task_id, task in expected.items() if task.root_span_name.startswith(f"{role} ")}
        doubled = 0
        for seen in spans:
            task = attempted.get(task_id := seen.key[0])
            if task_id in known:
                doubled += 1
            elif task is None or not _right_root(task, seen, blind=truth.blind):
                notes.append(f"{seen.describe()} is not as {task}")
            known.add(task_id)
        wrong, received = len(notes) + doubled, len(known) + doubled
        yield Row(f"{role} spans", len(wanted | known & set(attempted)), received, wrong=wrong, notes=tuple(notes))


def _right_root(task: TaskTruth, seen: Seen, *, blind: bool) -> bool:
    span = seen.span
    # A new agent may have seen the parent, but not the grandparent, and then believes the parent's header.
    above = {task.send_parent, task.inherited} if blind else {task.send_parent}
    return (
        span.name == task.root_span_name
        and span.kind == Span.SPAN_KIND_PRODUCER
        and span.span_id == ids.span_id("send", task.task_id)
        and span.trace_id.hex() == task.trace_id
        and span.parent_span_id.hex() in above
        and seen.start_us == seen.end_us == task.enqueued_us
    )


def _workflows(truth: Truth, sink: Sink) -> Row:
    """Compare `workflow` spans: one for every run that was completed, with its suspensions and resumptions."""
    runs = {run.run_id: run for run in truth.runs.values() if run.state == "completed" and not truth.silent}
    spans, expected, incomplete, notes = _seen(sink, "workflow"), len(runs), 0, []
    for seen in spans:
        run = runs.pop(seen.found.get("stem.workflow.run_id", ""), None)
        if run is None:
            notes.append(f"{seen.describe()} is doubled or invented")
        elif differs := list(_wrong_run(truth, run, seen)):
            notes.append(f"{seen.describe()}: {'; '.join(differs)}")
        else:
            incomplete += seen.incomplete
    return Row("workflow spans", expected, len(spans), incomplete, len(notes), tuple(notes))


def _wrong_run(truth: Truth, run: RunTruth, seen: Seen) -> Iterator[str]:
    runner, span = truth.tasks.get(run.task_id), seen.span
    traced = runner is not None and runner.traced
    trace_id = runner.trace_id if runner else run.run_id.replace("-", "")
    parent = runner.span_id if runner and traced else ""
    if "start" not in seen.missing and not seen.near(seen.start_us, run.started_us):
        yield f"start off by {(seen.start_us - run.started_us) / 1000:.3f} ms"
    ended_us = max(run.ended_us, seen.start_us)  # two clocks may have it end before it began
    if "end" not in seen.missing and not seen.near(seen.end_us, ended_us):
        yield f"end off by {(seen.end_us - ended_us) / 1000:.3f} ms"
    if span.name != f"workflow {run.workflow}" or span.kind != Span.SPAN_KIND_INTERNAL:
        yield f"kind {span.kind}"
    place = (span.trace_id.hex(), span.parent_span_id.hex())
    if not seen.missing & {"start", "enqueued"} and place != (trace_id, parent):
        yield f"trace and parent {place}, not {(trace_id, parent)}"
    events = Counter(event.name for event in span.events)
    lossy = truth.signals.lost or truth.killed_workers or truth.blind
    least = 0 if lossy else run.suspensions
    # Stem says `resumed` before every step, too: an agent may tell of all of them, or of those after a suspension.
    for name, most in ((SUSPENDED, run.suspensions), (RESUMED, run.resumptions)):
        if not least <= events[name] <= most:
            yield f"{events[name]} events {name}, not {least} to {most}"
