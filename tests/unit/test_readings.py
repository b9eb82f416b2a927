"""What is read of those who say nothing, fact by fact: what becomes of it in spans, log records and metrics."""

from datetime import timedelta
from typing import Any

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Status

from agent.correlate.config import CorrelateConfig, LogsConfig
from agent.correlate.correlator import BESIDE_NS
from agent.correlate.counters import LATE, REPAIRS
from agent.emit import iso
from agent.stem.catalogue import TaskState
from agent.stem.envelope import Envelope, Headers
from agent.stem.status import TaskError, TaskStatus
from agent.stem.wire import (
    DeadLettered,
    EndTold,
    Enqueued,
    LostAttempt,
    QueueEvent,
    Recorded,
    TakenOver,
    Unended,
)
from tests.support import EPOCH, SECOND, TASK_ID, TRACEPARENT, UTC_ZONE, Heard, Story, ToldTime, found, nanoseconds
from tests.support import envelope as envelope_json
from tests.tails import at, entry, failed, record, retried, running, succeeded

TRACE = CorrelateConfig(logs=LogsConfig(min_severity="TRACE"))
BOOM = TaskError("SocketException", "SocketException: Connection refused", "#0 main")


def recorded(told: TaskStatus, envelope: Envelope | None = None, **changes: Any) -> Recorded:
    return Recorded("stem", told, envelope or entry(told.attempt or 0), **{"claimed": False, **changes})


def unended(number: int = 0, over: float = 3.0, started: float | None = 0.0, **changes: Any) -> Unended:
    worker, began = (None, None) if started is None else ("worker-1", at(started))
    told = {"retried": True, "claimed": False, **changes}
    return Unended("stem", entry(number), number, worker, began, nanoseconds(at(over)), **told)


def enqueued(envelope: Envelope | None = None, **changes: Any) -> Enqueued:
    told = {"published": True, "claimed": False, **changes}
    return Enqueued("stem", "default", envelope or entry(), nanoseconds(at(0.25)), **told)


def heard(*facts: Any) -> Heard:
    return Heard(TRACE).read(*facts)


def process_spans(told: Heard) -> list[Any]:
    return [span for span in told.spans if span.name.startswith("process ")]


def events(told: Heard) -> list[str]:
    return [log.event_name.removeprefix("stem.") for log in told.logs]


# --- a task from end to end ------------------------------------------------------------------------------------------


def test_a_task_that_was_read_from_end_to_end_is_told_as_if_it_had_spoken() -> None:
    told = heard(enqueued(), recorded(running(2)), recorded(succeeded(2, 2.5)))
    span, wait, send = told.span("process"), told.span("wait"), told.span("send")
    assert (span.start_time_unix_nano, span.end_time_unix_nano) == (nanoseconds(at(2)), nanoseconds(at(2.5)))
    assert (wait.start_time_unix_nano, wait.end_time_unix_nano) == (nanoseconds(at(0)), nanoseconds(at(2)))
    assert send.start_time_unix_nano == send.end_time_unix_nano == nanoseconds(at(0))
    assert span.span_id.hex() == "91c497b69b448dbc", "the contract's vector"
    assert span.parent_span_id == wait.parent_span_id == send.span_id
    attributes = found(span)
    assert attributes["stem.source"] == found(wait)["stem.source"] == found(send)["stem.source"] == "tail"
    assert (attributes["stem.task.wait"], attributes["stem.task.run"]) == (2.0, 0.5)
    assert (attributes["stem.task.state"], attributes["stem.task.end_reason"]) == ("succeeded", "success")
    assert "stem.incomplete" not in attributes
    assert events(told) == ["task.published", "task.started", "task.succeeded"]
    assert {found(log).get("stem.source") for log in told.logs} == {"tail", None}
    counts = told.counts()
    for name in ("published", "started", "succeeded"):
        assert counts[f"stem.tasks.{name}"] == 1
    for name in ("stem.task.duration", "stem.queue.latency", "stem.task.total_duration"):
        assert counts[name] == 1
    assert not len(told.correlator.tasks.attempts)


def test_a_start_is_told_when_it_is_read_and_counted_once() -> None:
    told = heard(recorded(running()), recorded(running()))
    assert events(told) == ["task.started"]
    assert told.counts()["stem.tasks.started"] == 1
    assert told.spans == []
    told.read(recorded(succeeded()))
    assert told.counts()["stem.tasks.started"] == 1
    assert events(told).count("task.started") == 1


def test_an_end_that_was_read_alone_tells_of_the_start_in_it() -> None:
    told = heard(recorded(succeeded(2, 2.5)))
    assert events(told) == ["task.started", "task.succeeded"]
    assert told.counts()["stem.tasks.started"] == 1
    assert "stem.incomplete" not in found(told.span("process"))


def test_an_end_that_is_read_again_is_late() -> None:
    told = heard(recorded(succeeded()), recorded(succeeded()))
    assert len(process_spans(told)) == 1
    assert told.counts()["stem.tasks.succeeded"] == 1
    assert told.correlator.counters[LATE, "record"] == 1


def test_a_start_that_another_agent_told_is_not_told_again() -> None:
    told = heard(recorded(running(), start_told=True), recorded(succeeded(), start_told=True))
    assert events(told) == ["task.succeeded"]
    assert "stem.tasks.started" not in told.counts()
    assert len(process_spans(told)) == 1, "its span is still to be told"


def test_an_end_that_another_agent_told_is_known_and_not_told() -> None:
    told = heard(EndTold("stem", TASK_ID, 0, "worker-1", at(0), nanoseconds(at(1)), retried=False, next_retry_ns=0))
    assert (told.spans, told.logs) == ([], [])
    assert told.counts() == {}
    told.read(recorded(succeeded(30, 31), entry(not_before=at(29))))
    (again,) = process_spans(told)
    assert again.span_id.hex() != "91c497b69b448dbc", "it is another delivery than the one that was told"
    assert [span.name for span in told.spans if span.name.startswith("send")] == [], "the root was told with the first"


def test_a_retry_that_another_agent_told_is_linked() -> None:
    due = nanoseconds(at(8))
    told = heard(EndTold("stem", TASK_ID, 0, "worker-1", at(0), nanoseconds(at(5)), retried=True, next_retry_ns=due))
    told.read(recorded(succeeded(9, 9.5, number=1), entry(1, not_before=at(8))))
    span = told.span("process")
    assert [link.span_id.hex() for link in span.links if found(link)] == ["91c497b69b448dbc"]
    assert found(span)["stem.task.wait"] == 1.0
    assert "stem.task.wait.lower_bound" not in found(span)


@pytest.mark.parametrize("first", ["the end", "the start"])
def test_the_root_that_another_agent_told_is_not_told_however_long_the_other_delivery_runs(first: str) -> None:
    end = EndTold("stem", TASK_ID, 0, "worker-2", at(31), nanoseconds(at(32)), retried=False, next_retry_ns=0)
    start = recorded(running(0), start_told=True)
    told = heard(*([end, start] if first == "the end" else [start, end])).pass_time(200)
    told.read(recorded(succeeded(0, 199)))
    assert len(process_spans(told)) == 1
    assert [span.name for span in told.spans if span.name.startswith("send")] == []


def test_what_starts_after_the_end_that_another_agent_told_without_a_start_is_another_delivery() -> None:
    told = heard(EndTold("stem", TASK_ID, 0, "worker-1", None, nanoseconds(at(20)), retried=False, next_retry_ns=0))
    told.read(recorded(succeeded(46, 50), entry(not_before=at(45))))
    (again,) = process_spans(told)
    assert again.span_id.hex() != "91c497b69b448dbc"


# --- ends ------------------------------------------------------------------------------------------------------------


def test_a_failure_has_its_error_and_reason() -> None:
    told = heard(recorded(failed(error=BOOM), entry(3)))
    span = told.span("process")
    assert (span.status.code, span.status.message) == (Status.STATUS_CODE_ERROR, BOOM.message)
    assert found(span)["error.type"] == "SocketException"
    assert found(span)["stem.task.end_reason"] == "max-retries-exhausted"
    assert told.counts()["stem.tasks.failed"] == 1
    (log,) = [log for log in told.logs if log.event_name == "stem.task.failed"]
    assert found(log)["exception.stacktrace"] == BOOM.stack


def test_a_retry_is_told_and_the_attempt_after_it_is_linked_and_waits_from_when_it_was_due() -> None:
    first = recorded(retried(2, worker="worker-1", started_at=at(1), error=BOOM))
    told = heard(first, recorded(succeeded(4, 5, number=1), entry(1, not_before=at(2.3))))
    before, after = process_spans(told)
    assert found(before)["stem.task.end_reason"] == "retry"
    assert [link.span_id for link in after.links if found(link)] == [before.span_id]
    assert found(after)["stem.task.wait"] == pytest.approx(1.7)
    assert told.counts()["stem.tasks.retried"] == told.counts()["stem.task.retry.delay"] == 1


@pytest.mark.parametrize(
    ("end", "reason", "state", "counted"),
    [
        pytest.param(
            record(TaskState.CANCELLED, expired=True, expired_at=at(9), worker="worker-1"),
            *("expired", "cancelled", "expired"),
            id="expired",
        ),
        pytest.param(
            record(TaskState.FAILED, security="signature-invalid", failed_at=at(9)),
            *("signature-invalid", "failed", "failed"),
            id="refused",
        ),
    ],
)
def test_what_was_refused_never_ran_and_misses_nothing(end: TaskStatus, reason: str, state: str, counted: str) -> None:
    told = heard(recorded(end))
    attributes = found(told.span("process"))
    assert (attributes["stem.task.end_reason"], attributes["stem.task.state"]) == (reason, state)
    assert "stem.incomplete" not in attributes
    assert "stem.task.run" not in attributes
    assert told.counts()[f"stem.tasks.{counted}"] == 1
    assert "stem.tasks.started" not in told.counts()
    assert "stem.task.duration" not in told.counts()
    assert [span.name for span in told.spans if span.name.startswith("wait")] == []


def test_a_revocation_without_a_start_may_have_had_one() -> None:
    told = heard(recorded(record(TaskState.CANCELLED, revoked=True, revoked_reason="no", worker="worker-1")))
    attributes = found(told.span("process"))
    assert attributes["stem.missing"] == ["start"]
    assert attributes["stem.task.end_reason"] == "revoked"
    assert "stem.tasks.started" not in told.counts(), "nobody knows whether it ran"


def test_a_revocation_of_what_ran_is_whole() -> None:
    end = record(TaskState.CANCELLED, revoked=True, worker="worker-1", started_at=at(0))
    told = heard(recorded(running()), recorded(end))
    assert "stem.incomplete" not in found(told.span("process"))
    assert told.counts()["stem.tasks.revoked"] == 1


@pytest.mark.parametrize("end", [succeeded(0, 1, started_at=None), retried(1)])
def test_what_must_have_run_is_counted_as_started_though_nobody_saw_when(end: TaskStatus) -> None:
    told = heard(recorded(end))
    assert found(told.span("process"))["stem.missing"] == ["start"]
    counts = told.counts()
    assert counts["stem.tasks.started"] == 1
    assert "stem.task.duration" not in counts
    assert "stem.queue.latency" not in counts
    assert "task.started" not in events(told)


# --- ends that no record tells ---------------------------------------------------------------------------------------


def test_an_end_that_no_record_tells_is_known_to_have_been_by_then_and_no_more() -> None:
    told = heard(recorded(running(1)), unended(over=3, started=1))
    span = told.span("process")
    attributes = found(span)
    assert attributes["stem.missing"] == ["end"]
    assert (span.start_time_unix_nano, span.end_time_unix_nano) == (nanoseconds(at(1)), nanoseconds(at(3)))
    counts = told.counts()
    assert (counts["stem.tasks.started"], counts["stem.tasks.retried"]) == (1, 1)
    assert "stem.task.duration" not in counts, "nobody knows when it ended"


def test_an_attempt_of_which_only_its_entry_was_seen_misses_start_and_end() -> None:
    told = heard(unended(started=None))
    attributes = found(told.span("process"))
    assert attributes["stem.missing"] == ["start", "end"]
    assert attributes["stem.task.state"] == "retried"
    assert told.counts()["stem.tasks.started"] == 1, "it asked for a retry, so it ran"


def test_of_an_end_that_nobody_knows_nothing_is_counted() -> None:
    told = heard(recorded(running()), unended(retried=False))
    attributes = found(told.span("process"))
    assert "stem.task.state" not in attributes
    assert attributes["stem.task.end_reason"] == "unknown"
    assert {name for name in told.counts() if name.startswith("stem.tasks.")} == {"stem.tasks.started"}


def test_the_attempt_after_one_whose_end_was_not_seen_is_linked_to_it() -> None:
    told = heard(recorded(running(1)), unended(started=1), recorded(succeeded(4, 5, number=1)))
    before, after = process_spans(told)
    assert [link.span_id for link in after.links if found(link)] == [before.span_id]


# --- deliveries ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("worker", ["worker-1", "worker-2"])
def test_copies_of_a_lease_are_told_apart_however_soon_they_begin(worker: str) -> None:
    copy = entry(not_before=at(0.2))
    told = heard(
        *(recorded(running()), recorded(running(0.3, worker), copy)),
        *(recorded(succeeded(0.3, 0.6, worker), copy), recorded(succeeded(0, 0.7))),
    )
    spans = process_spans(told)
    assert len({span.span_id for span in spans}) == 2
    times = {(span.start_time_unix_nano, span.end_time_unix_nano) for span in spans}
    assert times == {(nanoseconds(at(a)), nanoseconds(at(b))) for a, b in ((0, 0.7), (0.3, 0.6))}
    assert told.counts()["stem.tasks.started"] == told.counts()["stem.tasks.succeeded"] == 2
    assert len([span for span in told.spans if span.name.startswith("send")]) == 1


def test_the_copy_of_a_lease_waits_from_when_it_was_due_and_not_since_the_publish() -> None:
    copy = entry(not_before=at(30))
    told = heard(enqueued(), recorded(running()), recorded(running(31, "worker-2"), copy))
    told.read(recorded(succeeded(31, 33, "worker-2"), copy))
    assert found(told.span("process"))["stem.task.wait"] == 1.0


def test_a_worker_that_vanished_has_lost_what_it_was_seen_to_run() -> None:
    lost = LostAttempt("stem", "worker-1", 0, entry(), nanoseconds(at(0)), nanoseconds(at(20)))
    told = heard(recorded(running()), lost)
    span = told.span("process")
    assert (found(span)["stem.task.end_reason"], found(span)["stem.source"]) == ("worker-lost", "tail")
    assert span.end_time_unix_nano == nanoseconds(at(20))
    assert "stem.incomplete" not in found(span)
    assert (told.counts()["stem.tasks.started"], told.counts()["stem.tasks.lost"]) == (1, 1)
    told.read(recorded(succeeded(21, 22, "worker-2")))
    assert len(process_spans(told)) == 2


# --- publishes, dead letters, events ---------------------------------------------------------------------------------


def test_a_publish_is_told_once_and_a_retry_is_none() -> None:
    told = heard(enqueued(), enqueued(), enqueued(entry(1, not_before=at(3)), published=False))
    assert told.counts()["stem.tasks.published"] == 1
    assert events(told) == ["task.published"]


def test_a_publish_that_its_signals_tell_of_is_remembered_until_its_task_begins() -> None:
    told = heard(enqueued(claimed=True))
    assert told.counts() == {}
    told.read(recorded(running()))
    assert told.counts()["stem.tasks.published"] == 1


def test_a_publish_is_in_the_trace_of_its_task() -> None:
    told = heard(enqueued(entry(headers=Headers(traceparent=TRACEPARENT))))
    (log,) = told.logs
    assert (log.trace_id.hex(), log.span_id.hex()) == tuple(TRACEPARENT.split("-")[1:3])


def test_a_dead_letter_is_a_log_record_and_a_count() -> None:
    told = heard(DeadLettered("stem", "default", entry(3), "max-retries-exhausted", "boom", at(7)))
    (log,) = told.logs
    assert (log.event_name, log.severity_text) == ("stem.task.dead_lettered", "ERROR")
    assert log.time_unix_nano == nanoseconds(at(7))
    assert found(log)["stem.task.id"] == TASK_ID
    assert "boom" in found(log).values()
    assert log.body.string_value == "task email.send in default was given up: max-retries-exhausted"
    assert told.counts() == {"stem.tasks.dead_lettered": 1}
    assert told.spans == [], "its attempt was told with its record"


def test_a_task_that_nobody_is_registered_for_is_told_by_its_dead_letter() -> None:
    told = heard(enqueued(), DeadLettered("stem", "default", entry(), "unregistered-task", None, at(7)))
    span = told.span("process")
    attributes = found(span)
    assert (attributes["stem.task.end_reason"], attributes["stem.task.state"]) == ("unregistered", "failed")
    assert "stem.incomplete" not in attributes
    assert span.status.message == "no handler is registered for task email.send"
    assert span.start_time_unix_nano == span.end_time_unix_nano == nanoseconds(at(7))
    assert "stem.tasks.started" not in told.counts()
    assert (told.counts()["stem.tasks.failed"], told.counts()["stem.tasks.dead_lettered"]) == (1, 1)


def test_an_applications_event_is_told_without_what_it_carries() -> None:
    envelope = Envelope(headers=Headers(traceparent=TRACEPARENT))
    told = heard(QueueEvent("stem", "orders", "order.paid", "7-0", nanoseconds(at(2)), envelope))
    (log,) = told.logs
    assert (log.event_name, log.severity_text) == ("stem.queue.event", "INFO")
    assert log.body.string_value == "event order.paid in orders"
    attributes = found(log)
    attributes.pop("log.record.uid")
    assert attributes == {
        "stem.event.name": "order.paid",
        "stem.queue": "orders",
        "stem.namespace": "stem",
        "stem.source": "tail",
    }
    assert (log.trace_id.hex(), log.span_id.hex()) == tuple(TRACEPARENT.split("-")[1:3])


def test_an_applications_event_without_a_trace_is_in_none() -> None:
    (log,) = heard(QueueEvent("stem", "orders", "order.paid", "7-0", 1, Envelope())).logs
    assert (log.trace_id, log.span_id) == (b"", b"")


# --- beside signals --------------------------------------------------------------------------------------------------


def speaking() -> tuple[Heard, Story]:
    """Somebody who speaks, and has begun to work."""
    story = Story()
    story.recorded.heartbeat()
    attempt = story.attempt(envelope_json(enqueuedAt=iso(EPOCH)))
    attempt.received()
    attempt.prerun()
    return Heard(TRACE).hear(story.payloads), story


def beside(told: Heard, fact: Recorded) -> Heard:
    told.correlator.read_beside(fact, UTC_ZONE, told.now_ns)
    return told


def test_an_end_that_no_signal_told_is_told_once_and_marked_as_repair() -> None:
    told, _ = speaking()
    beside(told, recorded(succeeded(0, 2)))
    assert process_spans(told) == []
    told.pass_time(BESIDE_NS / SECOND)
    assert found(told.span("process"))["stem.source"] == "repair"
    assert told.span("process").end_time_unix_nano == nanoseconds(at(2))
    assert told.correlator.counters[REPAIRS, "tailed"] == 1
    assert told.counts()["stem.tasks.started"] == told.counts()["stem.tasks.succeeded"] == 1
    beside(told, recorded(succeeded(0, 2))).pass_time(10)
    assert len(process_spans(told)) == 1


def test_an_end_that_a_signal_told_is_not_told_again() -> None:
    told, _ = speaking()
    whole = Story(time=ToldTime(EPOCH + timedelta(seconds=10)))
    task = envelope_json(id="task-2", enqueuedAt=iso(EPOCH))
    whole.recorded.heartbeat()
    told.hear(whole.payloads)
    told.hear(whole.run(task=task, run_s=0.5))
    before = len(process_spans(told))
    end = succeeded(10.001, 10.5, id="task-2")
    beside(told, recorded(end, entry(id="task-2"))).pass_time(BESIDE_NS / SECOND)
    assert len(process_spans(told)) == before
    assert (REPAIRS, "tailed") not in told.correlator.counters


def test_an_attempt_of_which_no_signal_came_at_all_is_told_whole() -> None:
    told, _ = speaking()
    end = succeeded(5, 6, id="task-2")
    beside(told, recorded(end, entry(id="task-2"))).pass_time(BESIDE_NS / SECOND)
    (span,) = process_spans(told)
    assert (span.start_time_unix_nano, span.end_time_unix_nano) == (nanoseconds(at(5)), nanoseconds(at(6)))
    assert found(span)["stem.source"] == "repair"
    assert "stem.incomplete" not in found(span)


def test_a_start_is_never_mended() -> None:
    told, _ = speaking()
    beside(told, recorded(running(5, id="task-2"), entry(id="task-2"))).pass_time(BESIDE_NS / SECOND)
    assert len(told.correlator.tasks.attempts) == 1, "the one that was heard"


def test_what_began_before_its_signals_came_here_is_left_to_the_agent_that_heard_them() -> None:
    story = Story()
    story.recorded.heartbeat()
    told = Heard(TRACE).fact(TakenOver("stem", "pod-1")).hear(story.payloads)
    for started in (-1, 0):
        end = succeeded(started, 6, id=f"task-{started}")
        beside(told, recorded(end, entry(id=end.id))).pass_time(BESIDE_NS / SECOND)
    assert process_spans(told) == []
    end = succeeded(1, 6, id="task-1")
    beside(told, recorded(end, entry(id=end.id))).pass_time(BESIDE_NS / SECOND)
    assert len(process_spans(told)) == 1
