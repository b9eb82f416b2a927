"""The demo's pure parts: envelopes, faults, comparison, what is seen and how it is drawn."""

import io
import random
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from agent.demo.compare import compare
from agent.demo.fleet.envelopes import due_at, from_fields, lineage_of, new_envelope, to_fields, uuid7
from agent.demo.fleet.faults import Faults, FaultyEmitter, parse_faults
from agent.demo.screen import bar, line, screen
from agent.demo.sink import Sink
from agent.demo.truth import AttemptTruth, SignalsTruth, TaskTruth, Truth, Via
from agent.demo.view import Segment, Snapshot, TaskLine, Trace, View, WorkerLine, quantile
from agent.emit import Composer, utc_now
from tests.support import EPOCH, Heard, Story, envelope, nanoseconds

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
        lambda span: setattr(span, "start_time_unix_nano", span.start_time_unix_nano + 1000),
        lambda span: setattr(span, "end_time_unix_nano", span.end_time_unix_nano + 1000),
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
        ("wait", lambda span: setattr(span, "start_time_unix_nano", span.start_time_unix_nano - 1000), "wait spans"),
        ("wait", lambda span: setattr(span, "parent_span_id", b"12345678"), "wait spans"),
        ("send", lambda span: setattr(span, "trace_id", bytes(16)), "send spans"),
    ],
)
def test_every_kind_of_span_is_looked_at(role: str, change: Any, row: str) -> None:
    truth, sink = told()
    change(next(span for span in sink.spans if span.name.startswith(role)))
    assert row in wrong(truth, sink)


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
    span.attributes.add(key="stem.incomplete").value.bool_value = True
    span.start_time_unix_nano += 1000
    (row,) = (row for row in compare(truth, sink) if row.what == "attempts succeeded")
    assert (row.incomplete, row.wrong, row.exact, row.true) == (1, 0, False, True)


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
    assert [each.what for each in task_line.with_back_offs()] == ["wait", "retried", "back-off", "wait", "succeeded"][
        :5
    ]
    assert seen.attempts == 2
    assert seen.cpu_share == pytest.approx(0.1)
    assert seen.ends["retried"] == 1


def snapshot(**changes: Any) -> Snapshot:
    start = nanoseconds(EPOCH)
    segments = [Segment("wait", start, start + 10), Segment("retried", start + 10, start + 40)]
    segments.append(Segment("succeeded", start + 80, start + 100))
    lines = {"t": TaskLine("email.send", "worker-1", ["retried", "succeeded"], segments)}
    known = Snapshot(
        *(12.0, 100, 300, 200, 25.0, 100.0, 0.003, 1.25, 0.05, Counter(succeeded=95, failed=5)),
        workers=[WorkerLine("worker-1", up=True, heartbeat_age_s=1.0, inflight=3), WorkerLine("worker-2", up=False)],
        signals_lost=7,
        duplicates=2,
        items_dropped=0,
        cpu_share=0.07,
        rss_mib=66.0,
        traces=[Trace("ab" * 16, 0.0, lines)],  # type: ignore[arg-type]
    )
    return replace(known, **changes)


def drawn(seen: Snapshot) -> str:
    console = Console(file=io.StringIO(), width=110, height=40)
    console.print(screen(seen, "headline"))
    return str(console.file.getvalue())  # type: ignore[attr-defined]


def test_the_screen_shows_what_is_known_and_a_dash_for_what_is_not() -> None:
    text = drawn(snapshot())
    parts = ("p50 3 ms  p95 1.2 s", "5.0%", "worker-2", "down", "7 signals", "retried → succeeded", "abababab")
    for part in parts:
        assert part in text, text
    assert "·" in next(each for each in text.splitlines() if "abababab" in each), "the back-off"
    unknown = drawn(snapshot(wait_p50_s=None, wait_p95_s=None, retry_share=None, workers=[], traces=[]))
    assert "p50 -  p95 -" in unknown
    assert "no heartbeat yet" in unknown


def test_the_line_without_a_terminal_tells_losses() -> None:
    assert line(snapshot()).split() == [
        "12",
        "s",
        "100",
        "attempts",
        "traced",
        "300",
        "spans",
        "200",
        "log",
        "records",
        "7",
        "signals",
        "lost",
    ]


spans_of_time = st.lists(st.tuples(st.integers(0, 10**12), st.integers(0, 10**12)), min_size=1, max_size=8)


@given(spans_of_time, st.integers(1, 80))
def test_a_bar_has_its_width_and_shows_every_piece(pieces: list[tuple[int, int]], width: int) -> None:
    segments = [Segment("wait", min(piece), max(piece)) for piece in pieces]
    start, end = min(each.start_ns for each in segments), max(each.end_ns for each in segments)
    text = bar(segments, start, end, width).plain
    assert len(text) == width
    assert set(text) <= {"░", " "}
    assert "░" in text
