"""The demo's pure parts: envelopes, faults, comparison, what is seen and how it is drawn."""

import io
import random
import re
from collections import Counter
from dataclasses import replace
from datetime import datetime, timedelta
from types import SimpleNamespace
from typing import Any

import aiohttp
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from rich.console import Console

from agent.demo.compare import Fidelity, Verdict, compare, examine
from agent.demo.fleet.envelopes import due_at, epoch_us, from_fields, lineage_of, new_envelope, to_fields, uuid7
from agent.demo.fleet.faults import Faults, FaultyEmitter, parse_faults
from agent.demo.screen import bar, line, screen, seconds
from agent.demo.sink import Sink, points
from agent.demo.truth import LOST, AttemptTruth, RunTruth, SignalsTruth, TaskTruth, Truth, Via
from agent.demo.view import Segment, Snapshot, TaskLine, Trace, View, WorkerLine, quantile
from agent.emit import Composer, iso, utc_now
from tests.support import EPOCH, SECOND, TASK_ID, Heard, Story, ToldTime, envelope, nanoseconds

json_text = st.text(st.characters(exclude_categories=["Cs"]))


# --- envelopes -----------------------------------------------------------------------------------------------------


@given(
    name=json_text,
    args=st.dictionaries(json_text, st.one_of(st.none(), st.integers(), json_text), max_size=3),
    headers=st.dictionaries(json_text, json_text, max_size=3),
    priority=st.integers(-1, 12),
    delay=st.floats(0, 10),
)
def test_an_envelope_survives_the_stream(
    name: str, args: dict[str, Any], headers: dict[str, str], priority: int, delay: float
) -> None:
    made = new_envelope(name, "default", args=args, headers=headers, priority=priority, delay_s=delay)
    assert from_fields(to_fields(made)) == made
    assert due_at(made) >= due_at({**made, "notBefore": None})


def test_ids_are_version_7_and_in_order() -> None:
    early, late = uuid7(EPOCH), uuid7(utc_now())
    assert early < late
    assert early[14] == "7"
    assert early[19] in "89ab"


def test_a_child_inherits_everything_but_the_name_and_knows_its_root() -> None:
    parent = new_envelope("a", "q", headers={"tenant": "t"}, meta={"groupId": "g"})
    child = lineage_of(parent)
    assert child.headers == {"tenant": "t"}
    assert child.meta == {
        "groupId": "g",
        "stem.parentTaskId": parent["id"],
        "stem.parentAttempt": 0,
        "stem.rootTaskId": parent["id"],
    }
    grandchild = lineage_of(new_envelope("b", "q", meta=child.meta))
    assert grandchild.meta["stem.rootTaskId"] == parent["id"]


# --- faults --------------------------------------------------------------------------------------------------------


def test_faults_are_read() -> None:
    assert parse_faults("") == Faults()
    assert parse_faults("loss=1%, dup=0.5,shuffle=80ms,kill-worker") == Faults(0.01, 0.5, 0.08, 5.0)
    assert parse_faults("kill-worker=2s").kill_every_s == 2.0
    assert not parse_faults("shuffle=0s").any
    assert parse_faults("kill-worker=2s,restart-agent") == Faults(kill_every_s=2.0, restart_every_s=7.0)
    assert parse_faults("skew=90s").skew_s == 90.0


@pytest.mark.parametrize("text", ["kill-worker=0s", "kill-worker=0ms", "kill-worker=inf", "shuffle=nan", "shuffle=-1s"])
def test_a_fault_that_cannot_be_is_refused_with_what_was_expected(text: str) -> None:
    with pytest.raises(ValueError, match=rf"found '{text}'; expected a list such as"):
        parse_faults(text)


class _Publisher:
    """Stands in for redis-py's client: remembers, so that a loss can be told from a delay."""

    def __init__(self) -> None:
        self.payloads: list[bytes] = []

    async def publish(self, _channel: str, payload: bytes) -> None:
        self.payloads.append(payload)

    async def aclose(self) -> None:
        return


async def test_a_faulty_emitter_knows_what_can_be_noticed() -> None:
    published = _Publisher()
    emitter = FaultyEmitter(published, Composer(emitter="pod-1"))  # type: ignore[arg-type]
    lost_first_and_last = [0.0, 0.9, 0.9, 0.0, 0.0, 0.9, 0.9, 0.0]
    emitter.faults = Faults(loss=0.5)
    draws = iter(lost_first_and_last)
    emitter.chance = SimpleNamespace(random=lambda: next(draws))  # type: ignore[assignment]
    for _ in range(6):
        await emitter.send(b"x")
    assert len(published.payloads) == 2
    # Not to be noticed: the first (nobody knew of the process), and the last (nothing came after it).
    assert emitter.did() == SignalsTruth(sent=6, lost=4, noticeable=2)


async def test_doubles_and_delays_reach_redis() -> None:
    published = _Publisher()
    emitter = FaultyEmitter(published, Composer(emitter="pod-1"))  # type: ignore[arg-type]
    emitter.faults, emitter.chance = Faults(dup=1.0, shuffle_s=0.001), random.Random(1)
    for number in range(20):
        await emitter.send(bytes([number]))
    await emitter.close()
    assert Counter(published.payloads) == {bytes([number]): 2 for number in range(20)}
    assert emitter.did().doubled == 20


# --- comparison ----------------------------------------------------------------------------------------------------


def told(*, ends: str = "succeeded") -> tuple[Truth, Sink]:
    """A truth of one attempt, and a sink that got everything right."""
    story, heard = Story(), Heard()
    task = envelope()
    heard.hear(story.run(ends, task)).pass_time(5)
    sink = Sink()
    sink.spans, sink.logs, sink.metrics = heard.spans, heard.logs, heard.metrics()
    (span,) = (span for span in heard.spans if span.name.startswith("process "))
    (wait,) = (span for span in heard.spans if span.name.startswith("wait "))
    (send,) = (span for span in heard.spans if span.name.startswith("send "))
    truth = Truth()
    identity, name, queue = task["id"], task["name"], task["queue"]
    enqueued_us = send.start_time_unix_nano // 1000
    truth.tasks[identity] = TaskTruth(identity, name, queue, Via.CANVAS, span.trace_id.hex(), "", enqueued_us)
    times = (wait.start_time_unix_nano, span.start_time_unix_nano, span.end_time_unix_nano)
    truth.attempts.append(AttemptTruth(identity, 0, "worker-1", ends, *(time // 1000 for time in times)))
    return truth, sink


def differing(truth: Truth, sink: Sink) -> set[str]:
    return {row.what for row in compare(truth, sink) if not row.exact}


def wrong(truth: Truth, sink: Sink) -> set[str]:
    return {row.what for row in compare(truth, sink) if not row.true}


def test_what_is_right_agrees() -> None:
    assert not differing(*told())


def test_a_missing_span_differs_but_is_not_wrong() -> None:
    truth, sink = told()
    sink.spans = [span for span in sink.spans if not span.name.startswith("process")]
    assert differing(truth, sink) == {"attempts succeeded"}
    assert not wrong(truth, sink)


@pytest.mark.parametrize(
    "change",
    [
        lambda span: setattr(span, "trace_id", bytes(16)),
        lambda span: setattr(span, "start_time_unix_nano", span.start_time_unix_nano + 3_000_000),
        lambda span: setattr(span, "end_time_unix_nano", span.end_time_unix_nano + 3_000_000),
        lambda span: next(pair for pair in span.attributes if pair.key == "stem.task.state").value.Clear(),
    ],
)
def test_a_span_that_says_something_else_is_wrong(change: Any) -> None:
    truth, sink = told()
    change(next(span for span in sink.spans if span.name.startswith("process")))
    assert wrong(truth, sink) == {"attempts succeeded"}


@pytest.mark.parametrize(
    ("role", "change", "row"),
    [
        ("process", lambda span: setattr(span, "parent_span_id", b"12345678"), "attempts succeeded"),
        ("process", lambda span: span.links.pop(), "attempts succeeded"),
        ("process", lambda span: setattr(span.status, "code", 2), "attempts succeeded"),
        ("process", lambda span: setattr(span, "name", "process other"), "attempts succeeded"),
        (
            "wait",
            lambda span: setattr(span, "start_time_unix_nano", span.start_time_unix_nano - 3_000_000),
            "wait spans",
        ),
        ("wait", lambda span: setattr(span, "parent_span_id", b"12345678"), "wait spans"),
        ("send", lambda span: setattr(span, "trace_id", bytes(16)), "send spans"),
    ],
)
def test_every_kind_of_span_is_looked_at(role: str, change: Any, row: str) -> None:
    truth, sink = told()
    change(next(span for span in sink.spans if span.name.startswith(role)))
    assert row in wrong(truth, sink)


def followed() -> tuple[Truth, Sink]:
    """Copies of an attempt asked for a retry, on workers whose clocks differ; the fleet had the first one's first.

    What follows is itself a copy, in whose envelope its lease wrote over when it was due.
    """
    enqueued, slow_by = EPOCH - timedelta(seconds=100), timedelta(seconds=40)
    fast, slow = Story(), Story("worker-2", "pod-2", time=ToldTime(EPOCH - slow_by))
    heard, task = Heard(), envelope(enqueuedAt=iso(enqueued))
    heard.hear(fast.run("retry", task)).hear(slow.run("retry", task))
    fast.time.advance(10)
    leased = EPOCH + timedelta(seconds=9)
    heard.hear(fast.run("succeeded", {**task, "attempt": 1, "notBefore": iso(leased)})).pass_time(5)
    sink, truth = Sink(), Truth(skews={"worker-1": 0.0, "worker-2": -slow_by.total_seconds()})
    sink.spans = heard.spans
    trace_id = process(sink).trace_id.hex()
    truth.tasks[TASK_ID] = TaskTruth(TASK_ID, task["name"], task["queue"], Via.CANVAS, trace_id, "", epoch_us(enqueued))

    def attempt(number: int, worker: str, state: str, ready: datetime, began: datetime, **more: int) -> AttemptTruth:
        times = (ready, began + timedelta(milliseconds=1), began + timedelta(milliseconds=36))
        return AttemptTruth(TASK_ID, number, worker, state, *map(epoch_us, times), **more)

    due = EPOCH + timedelta(seconds=8, milliseconds=36)
    truth.attempts = [
        attempt(0, "worker-1", "retried", enqueued, EPOCH, next_retry_us=epoch_us(due)),
        attempt(0, "worker-2", "retried", enqueued, EPOCH - slow_by, next_retry_us=epoch_us(due - slow_by)),
        attempt(1, "worker-1", "succeeded", leased, EPOCH + timedelta(seconds=10.037), due_us=epoch_us(due)),
    ]
    return truth, sink


def test_a_wait_may_begin_when_the_retry_was_due_that_its_attempt_links_to() -> None:
    truth, sink = followed()
    assert "wait spans" not in wrong(truth, sink)
    truth.skews = {}
    assert "wait spans" in wrong(truth, sink), "without skew it is known which was due first"
    truth, sink = followed()
    for span in sink.spans:
        del span.links[:]
    assert "wait spans" in wrong(truth, sink)


def test_a_log_record_in_another_trace_is_wrong() -> None:
    truth, sink = told()
    record = next(record for record in sink.logs if record.event_name == "stem.task.succeeded")
    record.trace_id = bytes(16)
    assert wrong(truth, sink) == {"logs stem.task.succeeded"}


@pytest.mark.parametrize("name", ["stem.task.duration", "stem.queue.latency"])
def test_a_histogram_of_other_values_is_wrong(name: str) -> None:
    truth, sink = told()
    sink.metrics[name].histogram.data_points[0].sum += 0.001
    assert wrong(truth, sink) == {f"histogram {name}"}


def test_a_doubled_wait_and_a_doubled_send_are_wrong() -> None:
    truth, sink = told()
    sink.spans += [span for span in sink.spans if not span.name.startswith("process")]
    assert wrong(truth, sink) == {"wait spans", "send spans"}


def test_a_doubled_span_and_a_doubled_log_are_wrong() -> None:
    truth, sink = told()
    sink.spans.append(next(span for span in sink.spans if span.name.startswith("process")))
    sink.logs.append(next(record for record in sink.logs if record.event_name == "stem.task.succeeded"))
    assert {"attempts invented or doubled", "logs stem.task.succeeded", "logs of any kind doubled"} == wrong(
        truth, sink
    )


def test_an_attempt_that_never_was_is_wrong() -> None:
    truth, sink = told()
    truth.attempts.clear()
    assert {"attempts invented or doubled", "counter stem.tasks.succeeded"} <= wrong(truth, sink)


def test_an_incomplete_span_is_no_lie() -> None:
    truth, sink = told()
    span = next(span for span in sink.spans if span.name.startswith("process"))
    does_not_know(span, "start")
    span.start_time_unix_nano += 3_000_000
    (row,) = (row for row in compare(truth, sink) if row.what == "attempts succeeded")
    assert (row.incomplete, row.wrong, row.exact, row.true) == (1, 0, False, True)


@pytest.mark.parametrize(
    ("missing", "change"),
    [
        ("end", lambda span: setattr(span, "start_time_unix_nano", span.start_time_unix_nano + 3_000_000)),
        ("start", lambda span: setattr(span, "end_time_unix_nano", span.end_time_unix_nano + 3_000_000)),
        ("start", lambda span: setattr(span, "trace_id", bytes(16))),
        ("start", lambda span: says(span, "stem.task.state", "failed")),
    ],
)
def test_what_an_incomplete_span_claims_must_be_true(missing: str, change: Any) -> None:
    truth, sink = told()
    span = process(sink)
    does_not_know(span, missing)
    change(span)
    assert "attempts succeeded" in wrong(truth, sink)


def process(sink: Sink) -> Any:
    return next(span for span in sink.spans if span.name.startswith("process"))


def says(item: Any, key: str, value: str) -> None:
    for pair in [pair for pair in item.attributes if pair.key == key]:
        item.attributes.remove(pair)
    item.attributes.add(key=key).value.string_value = value


def does_not_know(span: Any, *missing: str) -> None:
    span.attributes.add(key="stem.incomplete").value.bool_value = True
    values = span.attributes.add(key="stem.missing").value.array_value.values
    for name in missing:
        values.add(string_value=name)


def test_what_was_read_from_a_record_may_be_a_little_early() -> None:
    truth, sink = told()
    span = process(sink)
    span.end_time_unix_nano -= 30_000_000
    assert "attempts succeeded" in wrong(truth, sink)
    says(span, "stem.source", "repair")
    assert "attempts succeeded" not in wrong(truth, sink)


def cut_off(*, stored: str = "") -> tuple[Truth, Sink]:
    """An attempt whose worker was killed, and a sink that tells of it as lost."""
    truth, sink = told()
    (attempt,) = truth.attempts
    fields = {"state": LOST, "cut": True, "stored": stored, "stored_us": attempt.ended_us}
    truth.attempts = [msgspec.structs.replace(attempt, **fields)]
    span = process(sink)
    for key, value in (("state", LOST), ("end_reason", "worker-lost")):
        says(span, f"stem.task.{key}", value)
    says(span, "error.type", "worker-lost")
    span.status.code = 2
    return truth, sink


def test_a_lost_attempt_ends_when_its_worker_was_last_heard() -> None:
    truth, sink = cut_off()
    assert "attempts cut off by a kill" not in wrong(truth, sink)
    process(sink).end_time_unix_nano += 7_000_000_000
    assert "attempts cut off by a kill" in wrong(truth, sink)


@pytest.mark.parametrize(("stored", "right"), [("succeeded", True), ("failed", False), ("", False)])
def test_a_lost_attempt_may_be_told_as_its_record_has_it(stored: str, right: bool) -> None:
    truth, sink = cut_off(stored=stored)
    _, as_recorded = told()
    sink.spans = as_recorded.spans
    assert ("attempts cut off by a kill" not in wrong(truth, sink)) is right


def test_a_start_that_only_the_record_told_of_was_one() -> None:
    truth, sink = cut_off()
    started_us = truth.attempts[0].started_us
    never_said = {"received_us": started_us - 100, "started_us": 0, "running_us": started_us - 50}
    truth.attempts = [msgspec.structs.replace(truth.attempts[0], **never_said)]
    says(process(sink), "stem.source", "repair")
    for span in sink.spans:
        if span.name.startswith("wait"):
            says(span, "stem.source", "repair")
    of_starts = {"wait spans", "counter stem.tasks.started", "logs stem.task.started", "histogram stem.queue.latency"}
    assert not of_starts & wrong(truth, sink)
    truth.attempts = [msgspec.structs.replace(truth.attempts[0], running_us=0)]
    assert of_starts <= wrong(truth, sink)


def test_what_was_read_from_a_record_may_start_when_that_says_it_runs() -> None:
    truth, sink = told()
    (attempt,) = truth.attempts
    busy_us = 200_000
    truth.attempts = [msgspec.structs.replace(attempt, running_us=attempt.started_us - busy_us)]
    process(sink).start_time_unix_nano -= busy_us * 1000
    (wait,) = (span for span in sink.spans if span.name.startswith("wait"))
    wait.end_time_unix_nano -= busy_us * 1000
    for name, longer_s in (("stem.queue.latency", -busy_us / 1e6), ("stem.task.duration", busy_us / 1e6)):
        sink.metrics[name].histogram.data_points[0].sum += longer_s
    rows = {"attempts succeeded", "wait spans", "histogram stem.queue.latency", "histogram stem.task.duration"}
    assert rows <= wrong(truth, sink)
    for span in (process(sink), wait):
        says(span, "stem.source", "repair")
    assert not wrong(truth, sink)
    process(sink).start_time_unix_nano += 100_000_000
    assert "attempts succeeded" in wrong(truth, sink), "neither the one nor the other"


async def test_a_kill_tells_whose_signals_were_still_on_their_way() -> None:
    published = _Publisher()
    emitter = FaultyEmitter(published, Composer(emitter="pod-1", worker_id="worker-1"))  # type: ignore[arg-type]
    emitter.faults = Faults(shuffle_s=60)
    late, early = new_envelope("a", "q"), new_envelope("b", "q")
    await emitter.attempt(late).received()
    emitter.faults = Faults()
    await emitter.attempt(early).received()
    assert await emitter.kill() == {(late["id"], 0)}
    assert len(published.payloads) == 1


def test_what_nobody_could_hear_of_is_not_missed() -> None:
    truth, _ = cut_off()
    truth.attempts = [msgspec.structs.replace(truth.attempts[0], heard=False)]
    assert examine(truth, Sink()).fidelity == Fidelity(0, 0, 0, 0, 0, 0)


def test_every_attempt_has_one_verdict() -> None:
    truth, sink = told()
    assert examine(truth, sink).fidelity == Fidelity(1, 1, 0, 0, 0, 0)
    record = next(record for record in sink.logs if record.event_name == "stem.task.succeeded")
    sink.logs.remove(record)
    compared = examine(truth, sink)
    assert compared.fidelity == Fidelity(1, 0, 1, 0, 0, 0)
    assert "no log stem.task.succeeded" in compared.examples[0]
    sink.spans = []
    assert examine(truth, sink).fidelity.missing == 1
    truth.attempts = []
    assert not examine(truth, sink).fidelity.share(Verdict.MISSING)


def test_an_attempt_that_was_not_counted_is_not_exact() -> None:
    truth, sink = told()
    del sink.metrics["stem.tasks.succeeded"]
    assert examine(truth, sink).fidelity == Fidelity(1, 0, 1, 0, 0, 0)


def test_a_start_told_twice_is_a_double_also_where_one_agent_followed_another() -> None:
    truth, sink = told()
    sink.logs.append(next(record for record in sink.logs if record.event_name == "stem.task.started"))
    sink.metrics["stem.tasks.started"].sum.data_points[0].as_int += 1
    rows = {"logs stem.task.started", "logs of any kind doubled", "counter stem.tasks.started"}
    assert wrong(truth, sink) == rows
    truth.agents = 2
    assert wrong(truth, sink) == rows


def test_a_workflow_run_is_one_span_with_its_suspensions() -> None:
    truth, sink = told()
    run = truth.runs["wf"] = RunTruth("wf", "order", "runner", 1_000_000, "completed", 2_000_000, 1, 3)
    truth.tasks["runner"] = replace_task(truth, "runner", trace_id="ab" * 16, span_id="cd" * 8)
    assert "workflow spans" in differing(truth, sink)
    span = Span(name="workflow order", kind=Span.SPAN_KIND_INTERNAL, trace_id=b"\xab" * 16)
    span.parent_span_id = b"\xcd" * 8
    span.start_time_unix_nano, span.end_time_unix_nano = run.started_us * 1000, run.ended_us * 1000
    for name in ("suspended", "resumed"):
        span.events.add(name=f"stem.workflow.{name}")
    says(span, "stem.workflow.run_id", "wf")
    sink.spans.append(span)
    assert "workflow spans" not in differing(truth, sink)
    del span.events[0]
    assert "workflow spans" in wrong(truth, sink)


def replace_task(truth: Truth, task_id: str, **changes: Any) -> TaskTruth:
    (task,) = truth.tasks.values()
    return msgspec.structs.replace(task, task_id=task_id, **changes)


def test_a_scheduled_task_has_a_schedule_span_in_place_of_send() -> None:
    truth, sink = told()
    (task_id,) = truth.tasks
    truth.tasks[task_id] = replace_task(truth, task_id, schedule_id="nightly")
    assert "send spans" in wrong(truth, sink)
    next(span for span in sink.spans if span.name.startswith("send")).name = "schedule nightly"
    assert not wrong(truth, sink)
    assert not differing(truth, sink) & {"send spans", "schedule spans"}


# --- the sink ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("goes_on", "total"), [(False, 2), (True, 1)])
async def test_what_an_earlier_agent_counted_is_added_unless_the_next_one_goes_on(goes_on: bool, total: int) -> None:
    _, earlier = told()
    sink = Sink()
    await sink.start()
    try:
        async with aiohttp.ClientSession() as session:
            for _ in range(2):
                request = ExportMetricsServiceRequest()
                scope = request.resource_metrics.add().scope_metrics.add()
                scope.metrics.extend(earlier.metrics.values())
                for _ in range(2):  # cumulative: said twice is counted once
                    await session.post(f"{sink.url}/v1/metrics", data=request.SerializeToString())
                sink.next_sender()
                for metric in () if goes_on else earlier.metrics.values():
                    for point in points(metric):
                        point.start_time_unix_nano += SECOND
    finally:
        await sink.stop()
    for name in ("stem.tasks.succeeded", "stem.task.duration"):
        assert sink.sums(name).total() == total
    (point,) = sink.metrics["stem.task.duration"].histogram.data_points
    assert sum(point.bucket_counts) == total


# --- what is seen --------------------------------------------------------------------------------------------------


def test_quantiles_are_linear_within_a_bucket() -> None:
    assert quantile(0.5, (1.0, 2.0), [0, 0, 0]) is None
    assert quantile(0.5, (1.0, 2.0), [10, 0, 0]) == 0.5
    assert quantile(0.95, (1.0, 2.0), [50, 50, 0]) == pytest.approx(1.9)
    assert quantile(1.0, (1.0, 2.0), [1, 0, 1]) == 2.0, "above the last bound nobody knows more"


def test_a_view_shows_a_retried_task_with_its_back_off() -> None:
    story, heard, task = Story(), Heard(), envelope()
    payloads = story.run("retry", task)
    story.time.advance(8)
    payloads += story.run("succeeded", {**task, "attempt": 1})
    heard.hear(payloads).pass_time(20)
    sink = Sink()
    sink.spans, sink.metrics = heard.spans, heard.metrics()
    view = View(sink)
    assert view.look(1.0, cpu_s=0.1, rss_mib=64, traces=5).traces == [], "it may still grow"
    seen = view.look(3.0, cpu_s=0.3, rss_mib=64, traces=5)
    (trace,) = seen.traces
    (task_line,) = trace.tasks.values()
    assert task_line.states == ["retried", "succeeded"]
    assert [each.what for each in task_line.with_back_offs()] == ["wait", "retried", "back-off", "wait", "succeeded"]
    assert seen.attempts == 2
    assert seen.cpu_share == pytest.approx(0.1)
    assert seen.ends["retried"] == 1


def test_when_the_run_is_over_nothing_needs_to_come_to_rest_and_rates_are_of_all_of_it() -> None:
    sink = Sink()
    view = View(sink)
    view.look(0.0, cpu_s=0.0, rss_mib=64, traces=5)
    heard = Heard()
    heard.hear(Story().run("succeeded", envelope())).pass_time(5)
    sink.spans = heard.spans
    assert not view.look(100.0, cpu_s=1.0, rss_mib=64, traces=5).traces
    seen = view.look(100.5, cpu_s=2.0, rss_mib=64, traces=5, over=True)
    assert seen.over
    assert len(seen.traces) == 1
    assert seen.attempts_per_s == pytest.approx(1 / 100.5)
    assert seen.cpu_share == pytest.approx(2 / 100.5)


def test_attempts_are_in_the_order_of_their_lives_however_they_arrived() -> None:
    late_first = [Segment("succeeded", 80, 100, 1), Segment("wait", 70, 80, 1), Segment("retried", 10, 40)]
    assert TaskLine("email.send", segments=late_first).states == ["retried", "succeeded"]


def test_attempts_and_children_keep_their_order_where_clocks_differ() -> None:
    slow = [Segment("succeeded", 5, 9, 1), Segment("wait", 1, 5, 1), Segment("retried", 90, 95)]
    tasks = {
        "grandchild": TaskLine("grandchild", segments=[Segment("succeeded", 0, 1)], parent="child"),
        "child": TaskLine("child", segments=[Segment("succeeded", 2, 3)], parent="parent"),
        "parent": TaskLine("parent", segments=slow, parent="unheard"),
    }
    trace = Trace("ab" * 16, 0.0, tasks)
    assert [each.name for each in trace.lines] == ["parent", "child", "grandchild"]
    assert trace.lines[0].states == ["retried", "succeeded"]


@pytest.mark.parametrize(
    ("value", "text"), [(0.0351, "35 ms"), (1.24, "1.2 s"), (99.94, "99.9 s"), (99.96, "100 s"), (135.1, "135 s")]
)
def test_a_time_has_three_digits(value: float, text: str) -> None:
    assert seconds(value) == text


def test_workers_that_took_their_leave_are_there_when_the_run_is_over() -> None:
    sink = Sink()
    view = View(sink)

    def seen(*, over: bool = False, **up: int) -> list[tuple[str, bool]]:
        sink.metrics["stem.worker.up"] = metric = Metric(name="stem.worker.up")
        for name, value in up.items():
            metric.gauge.data_points.add(as_int=value).attributes.add(key="worker").value.string_value = name
        workers = view.look(1.0, cpu_s=0, rss_mib=0, traces=1, over=over).workers
        return [(worker.name, worker.up) for worker in workers]

    assert seen(a=1, b=1) == [("a", True), ("b", True)]
    assert seen(b=0) == [("b", False)]
    assert seen(c=1, over=True) == [("a", True), ("b", False), ("c", True)]


def snapshot(**changes: Any) -> Snapshot:
    start = nanoseconds(EPOCH)
    segments = [Segment("wait", start, start + 10), Segment("retried", start + 10, start + 40)]
    segments.append(Segment("succeeded", start + 80, start + 100))
    lines = {"t": TaskLine("email.send", "worker-1", segments)}
    known = Snapshot(
        *(12.0, 100, 300, 200, 25.0, 100.0, 0.003, 1.25, 0.05),
        depth=17,
        dead_letters=3,
        ends=Counter(succeeded=95, failed=5),
        workers=[WorkerLine("worker-1", up=True, heartbeat_age_s=1.0, inflight=3), WorkerLine("worker-2", up=False)],
        signals_lost=7,
        repaired=4,
        duplicates=2,
        items_dropped=0,
        cpu_share=0.07,
        rss_mib=66.0,
        traces=[Trace("ab" * 16, 0.0, lines)],  # type: ignore[arg-type]
    )
    return replace(known, **changes)


def drawn(seen: Snapshot, width: int = 110, height: int = 30, headline: str = "headline") -> str:
    console = Console(file=io.StringIO(), width=width, height=height)
    console.print(screen(seen, headline, width=width, height=height))
    return str(console.file.getvalue())  # type: ignore[attr-defined]


def test_the_screen_shows_what_is_known_and_a_dash_for_what_is_not() -> None:
    text = drawn(snapshot())
    parts = (
        "p50 3 ms  p95 1.2 s",
        "5.0%",
        "17   dead letters 3",
        "worker-2",
        "lost",
        "7 signals",
        "4 attempts",
        "retried → succeeded",
        "abababab",
    )
    for part in parts:
        assert part in text, text
    assert "·" in next(each for each in text.splitlines() if "abababab" in each), "the back-off"
    unknown = drawn(snapshot(wait_p50_s=None, wait_p95_s=None, retry_share=None, depth=None, workers=[], traces=[]))
    assert "-   dead letters 3" in unknown
    assert "p50 -  p95 -" in unknown
    assert "no heartbeat yet" in unknown


@pytest.mark.parametrize(("width", "height"), [(110, 30), (124, 33), (250, 80), (80, 24)])
@pytest.mark.parametrize("over", [False, True])
def test_the_screen_fits_whatever_there_is_to_see(width: int, height: int, over: bool) -> None:
    workers = [WorkerLine(f"worker-{number}", number % 2 == 0, 1234.5, 1000) for number in range(500)]
    segments = [Segment("retried", start, start + 1) for start in range(0, 900, 9)]
    lines = {str(number): TaskLine("a.task.of.a.very.long.name" * 9, "worker-1", segments) for number in range(3)}
    big = snapshot(
        workers=workers,
        over=over,
        traces=[Trace("ab" * 16, 0.0, lines)] * 40,  # type: ignore[arg-type]
        **dict.fromkeys(("attempts_per_s", "signals_per_s", "wait_p50_s", "wait_p95_s", "rss_mib"), 1e9),
        **dict.fromkeys(
            ("depth", "dead_letters", "spans", "log_records", "signals_lost", "duplicates", "items_dropped"), 10**12
        ),
        ends=Counter(succeeded=10**12, failed=10**12, revoked=10**12),
    )
    text = drawn(big, width, height, headline="a headline that goes on " * 20).splitlines()
    assert len(text) < height, "the cursor needs a line too"
    assert max(map(len, text)) <= width
    assert "newest traces" in text[8 + max(height - 29, 0)], "headline and panels take what no waterfall needs"


def test_of_many_workers_the_lost_and_the_busiest_are_shown_and_the_others_counted() -> None:
    seven = [WorkerLine(f"worker-{number}", up=number != 5, inflight=number) for number in range(7)]
    everybody = drawn(snapshot(workers=seven), height=31)
    assert all(worker.name in everybody for worker in seven)
    text = drawn(snapshot(workers=seven), height=24)
    assert re.findall(r"worker-\d", text.split("newest traces")[0]) == ["worker-5", "worker-6", "worker-4", "worker-3"]
    assert re.search(r"\+3 more +\s", text)
    all_lost = [worker._replace(up=False) for worker in seven]
    assert re.search(r"\+3 more +3 lost", drawn(snapshot(workers=all_lost), height=24))


def test_when_the_run_is_over_no_worker_is_up() -> None:
    text = drawn(snapshot(over=True))
    assert "worker-1 stopped" in text
    assert "worker-2 lost" in text
    assert not re.search(r"\bup\b", text)


def test_every_state_has_a_character_of_its_own_and_the_legend_says_which() -> None:
    kinds = ["wait", "back-off", "succeeded", "retried", "failed", "cancelled", "lost", "unknown"]
    marks = [bar([Segment(kind, 0, 1)], 0, 1, 1).plain for kind in kinds]
    assert len(set(marks)) == len(kinds)
    legend = drawn(snapshot()).splitlines()[-1]
    assert "  ".join(f"{mark} {kind}" for mark, kind in zip(marks, kinds, strict=True)) in legend


def test_a_name_has_room_and_attempts_that_ended_alike_share_a_word() -> None:
    segments = [Segment(state, start, start + 1) for start, state in enumerate(["retried"] * 3 + ["succeeded"])]
    lines = {"a": TaskLine("gallery.publish", "", segments), "b": TaskLine("gallery.thumbnail", "", segments)}
    text = drawn(snapshot(traces=[Trace("ab" * 16, 0.0, lines)]))  # type: ignore[arg-type]
    assert "└ gallery.thumbnail " in text
    assert "retried x3 → succeeded " in text


def test_a_short_first_attempt_is_not_drawn_over() -> None:
    pieces = [("wait", 0, 1), ("retried", 1, 2), ("back-off", 2, 900), ("wait", 900, 901), ("succeeded", 901, 902)]
    drawing = bar([Segment(*piece) for piece in pieces], 0, 902, 10).plain
    assert drawing == "░▚······░█"


def test_the_line_without_a_terminal_tells_losses_and_the_end() -> None:
    told = "100 attempts 300 spans 200 logs 7 signals lost, 4 repaired"
    assert " ".join(line(snapshot()).split()) == f"12 s {told}"
    assert " ".join(line(snapshot(over=True)).split()) == f"the end {told}"
    assert len(line(snapshot(elapsed_s=86_400, attempts=8_640_000, spans=25_920_000, log_records=25_920_000))) <= 80


spans_of_time = st.lists(st.tuples(st.integers(0, 10**12), st.integers(0, 10**12)), min_size=1, max_size=8)


@given(spans_of_time, st.integers(1, 80))
def test_a_bar_has_its_width_and_shows_every_piece(pieces: list[tuple[int, int]], width: int) -> None:
    kinds = ["wait", "retried", "back-off", "cancelled", "failed", "unknown", "succeeded", "wait"]
    times = sorted((min(piece), max(piece)) for piece in pieces)
    segments = [Segment(kind, *piece) for kind, piece in zip(kinds, times, strict=False)]
    start, end = times[0][0], max(end for _, end in times)
    text = bar(segments, start, end, width).plain
    assert len(text) == width
    if width >= len(segments):
        assert set(text) - {" "} == set("░▚·/X?█░"[: len(segments)])
