"""What becomes of an attempt's signals: the contract's sections 2 to 4, row by row."""

from datetime import timedelta
from typing import Any

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from agent.correlate.config import CorrelateConfig, LogsConfig
from agent.correlate.counters import CLOCK_ADJUSTED, EVICTED, LATE, UNATTRIBUTED
from agent.correlate.logs import duration
from agent.demo.sink import attributes
from agent.emit import iso
from agent.stem.wire import Gap
from tests.support import (
    EPOCH,
    SECOND,
    TASK_ID,
    TRACEPARENT,
    UTC_ZONE,
    Heard,
    Story,
    envelope,
    found,
    nanoseconds,
)

DEBUG = CorrelateConfig(logs=LogsConfig(min_severity="DEBUG"))


def test_a_whole_attempt_is_one_process_span() -> None:
    span = Heard().hear(Story().run()).span("process")
    assert span.name == "process email.send"
    assert span.kind == Span.SPAN_KIND_CONSUMER
    assert span.trace_id.hex() == "01a20a2fd00c7e5ca83e04bca63517cf"
    assert span.span_id.hex() == "91c497b69b448dbc"
    assert span.parent_span_id.hex() == "d7843494fa6a944d"
    assert span.start_time_unix_nano == nanoseconds(EPOCH + timedelta(milliseconds=1))
    assert span.end_time_unix_nano == nanoseconds(EPOCH + timedelta(milliseconds=36))
    assert span.status.code == Status.STATUS_CODE_UNSET
    assert found(span) == {
        "messaging.system": "stem",
        "messaging.operation.type": "process",
        "messaging.operation.name": "process",
        "messaging.destination.name": "default",
        "messaging.message.id": TASK_ID,
        "messaging.client.id": "worker-1",
        "stem.task": "email.send",
        "stem.task.id": TASK_ID,
        "stem.task.attempt": 0,
        "stem.task.max_retries": 3,
        "stem.task.priority": 0,
        "stem.task.state": "succeeded",
        "stem.task.end_reason": "success",
        "stem.queue": "default",
        "stem.worker.id": "worker-1",
        "stem.namespace": "stem",
        "stem.task.wait": pytest.approx(1.201),
        "stem.task.run": pytest.approx(0.035),
        "stem.source": "signals",
    }


def test_the_wait_is_from_enqueued_to_started() -> None:
    heard = Heard().hear(Story().run())
    wait, process = heard.span("wait"), heard.span("process")
    assert wait.name == "wait default"
    assert wait.kind == Span.SPAN_KIND_INTERNAL
    assert wait.span_id.hex() == "6d9d855229118977"
    assert wait.start_time_unix_nano == nanoseconds(EPOCH - timedelta(seconds=1.2))
    assert wait.end_time_unix_nano == process.start_time_unix_nano
    assert wait.parent_span_id == process.parent_span_id


def test_a_delayed_task_waits_from_when_it_was_due() -> None:
    task = envelope(notBefore=iso(EPOCH - timedelta(seconds=0.2)))
    wait = Heard().hear(Story().run(task=task)).span("wait")
    assert wait.start_time_unix_nano == nanoseconds(EPOCH - timedelta(seconds=0.2))


def test_an_untraced_task_gets_its_root_from_us() -> None:
    send = Heard().hear(Story().run()).span("send")
    assert send.name == "send default"
    assert send.kind == Span.SPAN_KIND_PRODUCER
    assert send.span_id.hex() == "d7843494fa6a944d"
    assert send.parent_span_id == b""
    assert send.start_time_unix_nano == send.end_time_unix_nano == nanoseconds(EPOCH - timedelta(seconds=1.2))


def test_a_traced_task_hangs_from_its_producers_span() -> None:
    task = envelope(headers={"traceparent": TRACEPARENT, "tracestate": "vendor=1"})
    heard = Heard().hear(Story().run(task=task))
    span = heard.span("process")
    assert span.trace_id.hex() == "0af7651916cd43dd8448eb211c80319c"
    assert span.parent_span_id.hex() == "b7ad6b7169203331"
    assert span.trace_state == "vendor=1"
    assert span.flags == 0x301
    (link,) = span.links
    assert link.span_id.hex() == "b7ad6b7169203331"
    assert not [span for span in heard.spans if span.name.startswith("send")]


def test_an_invalid_traceparent_starts_a_trace_of_its_own() -> None:
    heard = Heard().hear(Story().run(task=envelope(headers={"traceparent": "00-zz", "tracestate": "a=b"})))
    assert heard.span("process").trace_id.hex() == "01a20a2fd00c7e5ca83e04bca63517cf"
    assert heard.span("process").trace_state == ""


@pytest.mark.parametrize(
    ("meta", "subject"),
    [
        ({"stem.rootTaskId": "order-77", "stem.parentTaskId": "x"}, "dad448082f7883e063cb29985459e56b"),
        ({"stem.parentTaskId": "order-77"}, "dad448082f7883e063cb29985459e56b"),
        ({"stem.workflow.runId": "order-77"}, "dad448082f7883e063cb29985459e56b"),
    ],
)
def test_an_untraced_task_joins_the_trace_of_its_family(meta: dict[str, str], subject: str) -> None:
    assert Heard().hear(Story().run(task=envelope(meta=meta))).span("process").trace_id.hex() == subject


def test_lineage_is_told() -> None:
    meta = {"stem.rootTaskId": "r", "stem.parentTaskId": "p", "stem.workflow.runId": "w", "stem.workflow.name": "n"}
    task = envelope(meta=meta, headers={"stem-group-id": "g", "schedule-id": "s"})
    told = found(Heard().hear(Story().run(task=task)).span("process"))
    assert told["stem.root_task_id"] == "r"
    assert told["stem.parent_task_id"] == "p"
    assert told["stem.workflow.run_id"] == "w"
    assert told["stem.workflow.name"] == "n"
    assert told["stem.group.id"] == "g"
    assert told["stem.schedule.id"] == "s"


def test_an_unsampled_trace_makes_no_spans_but_all_metrics_and_logs() -> None:
    task = envelope(headers={"traceparent": TRACEPARENT[:-2] + "00"})
    heard = Heard().hear(Story().run(task=task))
    assert heard.spans == []
    assert heard.counts()["stem.tasks.succeeded"] == 1
    assert [record.event_name for record in heard.logs] == ["stem.task.started", "stem.task.succeeded"]
    ignoring = Heard(CorrelateConfig(honor_sampled=False)).hear(Story().run(task=task))
    assert len(ignoring.spans) == 2


@pytest.mark.parametrize(
    ("end", "state", "reason", "status", "error"),
    [
        ("failed", "failed", "error", Status.STATUS_CODE_ERROR, "SocketException"),
        ("retry", "retried", "retry", Status.STATUS_CODE_ERROR, "TimeoutException"),
        ("revoked", "cancelled", "revoked", Status.STATUS_CODE_UNSET, None),
    ],
)
def test_each_end_is_told_apart(end: str, state: str, reason: str, status: int, error: str | None) -> None:
    span = Heard().hear(Story().run(end)).span("process")
    assert found(span)["stem.task.state"] == state
    assert found(span)["stem.task.end_reason"] == reason
    assert found(span).get("error.type") == error
    assert span.status.code == status


def test_a_failure_after_the_last_retry_says_so() -> None:
    heard = Heard().hear(Story().run("failed", envelope(attempt=3))).pass_time(1)
    assert found(heard.span("process"))["stem.task.end_reason"] == "max-retries-exhausted"


def test_a_task_revoked_before_its_run_is_a_span_without_length_and_complete() -> None:
    story = Story()
    story.attempt().revoked("no longer wanted")
    heard = Heard().hear(story.payloads)
    assert heard.spans == []
    span = heard.pass_time(1).span("process")
    assert span.start_time_unix_nano == span.end_time_unix_nano == nanoseconds(EPOCH)
    assert "stem.incomplete" not in found(span)
    assert heard.counts()["stem.tasks.revoked"] == 1
    assert "stem.tasks.started" not in heard.counts()


def test_a_lost_postrun_settles_after_its_time() -> None:
    heard = Heard().hear(Story().run()[:-1])
    assert heard.spans == []
    assert heard.pass_time(0.999).spans == []
    assert found(heard.pass_time(0.001).span("process"))["stem.task.state"] == "succeeded"


def test_postrun_alone_restores_the_whole_attempt() -> None:
    whole, restored = Heard(), Heard()
    payloads = Story().run("failed")
    whole.hear(payloads)
    restored.hear(payloads[-1:]).pass_time(1)
    assert restored.spans == whole.spans
    assert restored.counts() == whole.counts()
    assert [record.event_name for record in restored.logs] == [record.event_name for record in whole.logs]


def test_an_attempt_without_any_start_is_marked_incomplete() -> None:
    payload = b"""{"eventName": "task-succeeded", "occurredAt": "2026-04-23T10:00:00Z",
        "attributes": {"taskId": "t", "taskName": "n", "queue": "q", "workerId": "w", "attempt": 0}}"""
    heard = Heard().hear([payload]).pass_time(1)
    told = found(heard.span("process"))
    assert told["stem.incomplete"] is True
    assert told["stem.missing"] == ["start", "enqueued"]
    assert "stem.tasks.started" not in heard.counts()
    assert "stem.task.duration" not in heard.counts()


def test_an_open_attempt_is_not_told_until_it_ends() -> None:
    heard = Heard().hear(Story().run()[:2]).pass_time(3600)
    assert heard.spans == []
    assert heard.counts() == {"stem.tasks.started": 1}
    heard.correlator.close(heard.now_ns)
    assert heard.spans == []
    assert heard.correlator.counters[EVICTED, "shutdown"] == 1


def test_closing_settles_what_was_only_waiting() -> None:
    heard = Heard().hear(Story().run()[:-1])
    heard.correlator.close(heard.now_ns)
    assert heard.span("process")
    assert not heard.correlator.counters[EVICTED, "shutdown"]


def test_repeats_after_settlement_change_nothing() -> None:
    payloads = Story().run()
    heard = Heard().hear(payloads)
    spans, logs, counts = heard.spans, heard.logs, heard.counts()
    heard.hear(payloads).pass_time(5)
    assert (heard.spans, heard.logs, heard.counts()) == (spans, logs, counts)
    assert sum(n for (name, _), n in heard.correlator.counters.items() if name == LATE) == 4


def test_a_retried_task_is_one_trace_with_linked_attempts_and_no_back_off_in_its_wait() -> None:
    story, heard = Story(), Heard()
    heard.hear(story.run("retry"))
    due = story.time.now - timedelta(milliseconds=1) + timedelta(seconds=8)
    story.time.now = due + timedelta(seconds=0.5)
    heard.hear(story.run(task=envelope(attempt=1, notBefore=iso(due))))
    first, second = (span for span in heard.spans if span.name.startswith("process"))
    assert first.trace_id == second.trace_id
    assert first.parent_span_id == second.parent_span_id
    assert second.span_id.hex() == "59c420332469cd2f"
    link = second.links[1]
    assert link.span_id == first.span_id
    assert attributes(link.attributes) == {"stem.link": "retry"}
    waits = [span for span in heard.spans if span.name.startswith("wait")]
    assert waits[1].end_time_unix_nano - waits[1].start_time_unix_nano == int(0.501 * SECOND)
    assert len([span for span in heard.spans if span.name.startswith("send")]) == 1


def test_a_retry_whose_predecessor_is_unknown_waits_for_it_and_then_goes_without() -> None:
    heard = Heard().hear(Story().run(task=envelope(attempt=1)))
    assert heard.spans == []
    assert len(heard.pass_time(1).span("process").links) == 1


def test_a_second_delivery_to_the_same_worker_is_another_span() -> None:
    story, heard = Story(), Heard()
    heard.hear(story.run())
    story.time.advance(30)
    heard.hear(story.run())
    first, second = (span for span in heard.spans if span.name.startswith("process"))
    assert first.span_id != second.span_id
    assert heard.counts()["stem.tasks.started"] == 2
    assert len([span for span in heard.spans if span.name.startswith("send")]) == 1


def test_a_delivery_to_another_worker_is_another_span() -> None:
    heard = Heard().hear(Story("worker-1").run()).hear(Story("worker-2", "pod-2").run())
    assert len([span for span in heard.spans if span.name.startswith("process")]) == 2


def test_middleware_that_calls_a_retry_a_failure_is_not_believed() -> None:
    story = Story()
    signals = story.attempt()
    signals.received()
    signals.prerun()
    signals.failed("SocketException: x")
    signals.retry("SocketException: x", story.time.now + timedelta(seconds=1))
    signals.postrun("retried")
    heard = Heard().hear(story.payloads)
    assert found(heard.span("process"))["stem.task.state"] == "retried"
    assert heard.counts()["stem.tasks.retried"] == 1
    assert "stem.tasks.failed" not in heard.counts()
    assert [record.event_name for record in heard.logs] == ["stem.task.started", "stem.task.retried"]


def test_a_negative_wait_is_clamped_marked_and_counted() -> None:
    task = envelope(enqueuedAt=iso(EPOCH + timedelta(seconds=5)))
    heard = Heard().hear(Story().run(task=task))
    assert found(heard.span("process"))["stem.clock.adjusted"] is True
    assert found(heard.span("process"))["stem.task.wait"] == 0
    assert heard.span("wait").start_time_unix_nano == heard.span("wait").end_time_unix_nano
    assert heard.correlator.counters[CLOCK_ADJUSTED, ""] == 1


def test_the_attempt_may_be_told_by_the_envelope_or_be_the_only_one_open() -> None:
    story = Story()
    signals = story.attempt()
    signals.received()
    signals.prerun()
    bare = b"""{"eventName": "task-revoked", "occurredAt": "2026-04-23T10:00:01Z",
        "attributes": {"taskId": "%s", "taskName": "email.send", "queue": "default", "workerId": "worker-1"}}"""
    heard = Heard().hear([*story.payloads, bare % TASK_ID.encode()]).pass_time(1)
    assert found(heard.span("process"))["stem.task.state"] == "cancelled"
    unknown = Heard().hear([bare % b"other"]).pass_time(1)
    assert unknown.spans == []
    assert unknown.correlator.counters[UNATTRIBUTED, "task-revoked"] == 1


def test_attempts_that_are_too_many_or_too_old_are_dropped_and_counted() -> None:
    heard = Heard(CorrelateConfig(max_tasks=2, task_ttl=10.0))
    for number in range(4):
        heard.hear(Story().run(task=envelope(id=f"t{number}"))[:2])
    heard.pass_time(0.1)
    assert len(heard.correlator.tasks.attempts) == 2
    assert heard.correlator.counters[EVICTED, "max_tasks"] == 2
    heard.pass_time(10)
    assert heard.correlator.counters[EVICTED, "task_ttl"] == 2
    assert heard.spans == []


def test_an_evicted_attempt_is_still_told_by_its_end() -> None:
    story, heard = Story(), Heard(CorrelateConfig(task_ttl=10.0))
    payloads = story.run()
    heard.hear(payloads[:2]).pass_time(11)
    heard.hear(payloads[2:])
    assert heard.counts()["stem.tasks.started"] == 1
    assert [record.event_name for record in heard.logs] == ["stem.task.started", "stem.task.succeeded"]
    assert heard.span("process").start_time_unix_nano == nanoseconds(EPOCH + timedelta(milliseconds=1))


def test_logs_tell_people_what_happened() -> None:
    heard = Heard(DEBUG)
    story = Story()
    heard.hear(story.run("failed"))
    told = [(record.event_name, record.severity_text, record.body.string_value) for record in heard.logs]
    assert told == [
        ("stem.task.received", "DEBUG", "task email.send received by worker-1"),
        ("stem.task.started", "INFO", "task email.send started on worker-1 (attempt 1 of 4, waited 1.2 s)"),
        ("stem.task.failed", "ERROR", "task email.send failed on worker-1: SocketException: Connection refused"),
        ("stem.task.finished", "DEBUG", "task email.send finished on worker-1"),
    ]
    failed = found(heard.logs[2])
    assert failed["exception.type"] == "SocketException"
    assert failed["exception.message"] == "SocketException: Connection refused"
    assert failed["exception.stacktrace"].startswith("#0 main")
    assert {record.trace_id.hex() for record in heard.logs} == {"01a20a2fd00c7e5ca83e04bca63517cf"}
    assert {record.span_id.hex() for record in heard.logs} == {"91c497b69b448dbc"}
    assert len({found(record)["log.record.uid"] for record in heard.logs}) == 4


@pytest.mark.parametrize(
    ("end", "body"),
    [
        ("succeeded", "task email.send succeeded on worker-1 in 35 ms"),
        ("retry", "task email.send will retry in 8.0 s (attempt 2 of 4): TimeoutException after 0:00:05.000000"),
        ("revoked", "task email.send was revoked on worker-1: no longer wanted"),
    ],
)
def test_each_end_is_one_sentence(end: str, body: str) -> None:
    assert Heard().hear(Story().run(end)).logs[-1].body.string_value == body


@pytest.mark.parametrize(("severity", "count"), [("TRACE", 4), ("DEBUG", 4), ("INFO", 2), ("ERROR", 1), ("off", 0)])
def test_logs_below_the_minimum_are_not_made(severity: Any, count: int) -> None:
    config = CorrelateConfig(logs=LogsConfig(min_severity=severity))
    assert len(Heard(config).hear(Story().run("failed")).logs) == count


def test_the_payload_never_leaves() -> None:
    heard = Heard(DEBUG).hear(Story().run("failed"))
    made = b"".join([*heard.correlator.recorder.spans, *heard.correlator.recorder.log.records])
    assert b"alice@example.com" not in made


def test_counters_and_histograms_have_the_attributes_of_the_contract() -> None:
    metrics = Heard().hear(Story().run("failed")).metrics()
    assert found(metrics["stem.tasks.failed"].sum.data_points[0]) == {
        "task": "email.send",
        "queue": "default",
        "namespace": "stem",
        "error.type": "SocketException",
    }
    duration = metrics["stem.task.duration"].histogram.data_points[0]
    assert found(duration) == {"task": "email.send", "queue": "default", "namespace": "stem", "outcome": "failed"}
    assert duration.sum == pytest.approx(0.035)
    assert duration.exemplars[0].span_id.hex() == "91c497b69b448dbc"
    assert metrics["stem.queue.latency"].histogram.data_points[0].sum == pytest.approx(1.201)


def test_per_worker_adds_the_worker() -> None:
    story = Story()
    story.recorded.after_publish(envelope())
    story.run()
    metrics = Heard(CorrelateConfig(per_worker=True)).hear(story.payloads).metrics()
    assert found(metrics["stem.tasks.succeeded"].sum.data_points[0])["worker"] == "worker-1"
    assert "worker" not in found(metrics["stem.tasks.published"].sum.data_points[0])


def test_a_publish_is_counted_once_and_logged_in_the_producers_span() -> None:
    story = Story()
    task = envelope(headers={"traceparent": TRACEPARENT})
    story.recorded.before_publish(task)
    story.recorded.after_publish(task)
    heard = Heard(DEBUG).hear(story.payloads).hear(story.payloads)
    assert heard.counts() == {"stem.tasks.published": 1}
    assert [record.event_name for record in heard.logs] == ["stem.task.publishing", "stem.task.published"]
    assert {record.span_id.hex() for record in heard.logs} == {"b7ad6b7169203331"}


def test_an_unknown_signal_is_a_log_record() -> None:
    story = Story()
    story.recorded.emit("task-teleported", {})
    (record,) = Heard().hear(story.payloads).logs
    assert record.event_name == "stem.signal.unknown"
    assert found(record)["stem.signal.name"] == "task-teleported"


def test_a_gap_is_a_log_record_with_its_range() -> None:
    heard = Heard()
    heard.correlator.handle(Gap("stem", "pod-1", "boot", 5, 9, EPOCH_NS), UTC_ZONE, heard.now_ns)
    (record,) = heard.logs
    assert record.event_name == "stem.signals.gap"
    assert record.severity_text == "WARN"
    assert record.body.string_value == "5 signals of pod-1 were lost (5 to 9)"
    told = found(record)
    assert (told["stem.emitter"], told["stem.signals.from"], told["stem.signals.to"]) == ("pod-1", 5, 9)


EPOCH_NS = nanoseconds(EPOCH)


def test_names_follow_the_queue_where_the_operator_wants_the_conventions() -> None:
    span = Heard(CorrelateConfig(span_name="semconv")).hear(Story().run()).span("process")
    assert span.name == "process default"


def test_wait_spans_can_be_turned_off() -> None:
    heard = Heard(CorrelateConfig(wait_spans=False)).hear(Story().run())
    assert sorted(span.name for span in heard.spans) == ["process email.send", "send default"]


def test_middleware_that_repeats_a_prerun_starts_nothing_twice() -> None:
    story = Story()
    signals = story.attempt()
    for step in (signals.received, signals.prerun, signals.prerun, signals.succeeded):
        step()
        story.time.advance(0.001)
    signals.postrun("succeeded")
    heard = Heard().hear(story.payloads)
    assert heard.counts()["stem.tasks.started"] == 1
    assert heard.span("process").start_time_unix_nano == nanoseconds(EPOCH + timedelta(milliseconds=1))
    assert len(heard.correlator.tasks.attempts) == 0


def test_a_thin_envelope_does_not_keep_a_better_one_from_being_read() -> None:
    payloads = Story().run()
    thin = payloads[0][: payloads[0].index(b'"envelope"')] + b'"envelope":{},"attempt":0,"workerId":"worker-1"}'
    assert len(Heard().hear([thin, *payloads[1:]]).spans) == 3


@pytest.mark.parametrize("seconds", [0, 59, 61, 500])
def test_a_publish_is_counted_once_however_long_its_task_waits(seconds: int) -> None:
    story, heard = Story(), Heard()
    story.recorded.before_publish(envelope())
    story.recorded.after_publish(envelope())
    heard.hear(story.payloads).pass_time(seconds)
    assert heard.counts()["stem.tasks.published"] == 1
    story.time.advance(seconds)
    heard.hear(story.run())
    assert heard.counts()["stem.tasks.published"] == 1


def test_a_publish_may_be_told_by_its_envelope_alone() -> None:
    story = Story()
    story.recorded.emit("after-task-publish", {"taskId": TASK_ID}, envelope=envelope())
    heard = Heard(DEBUG).hear(story.payloads)
    assert heard.logs[0].body.string_value == "task email.send published to default"
    assert found(heard.metrics()["stem.tasks.published"].sum.data_points[0])["queue"] == "default"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.035, "35 ms"), (0.9996, "1.0 s"), (1.23, "1.2 s"), (59.96, "1 m 0 s"), (125, "2 m 5 s")]
)
def test_durations_read_well(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_errors_may_be_told_as_span_events_too() -> None:
    span = Heard(CorrelateConfig(exceptions="span_events")).hear(Story().run("failed")).span("process")
    (event,) = span.events
    assert event.name == "exception"
    assert event.time_unix_nano == span.end_time_unix_nano
    assert attributes(event.attributes) == {
        "exception.type": "SocketException",
        "exception.message": "SocketException: Connection refused",
        "exception.stacktrace": "#0 main (package:app/main.dart:1:1)",
    }
    assert not Heard().hear(Story().run("failed")).span("process").events
