"""Workflow runs, schedules and control commands: every other signal of the catalogue has its place."""

import random
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from agent.correlate import ids
from agent.correlate.config import CorrelateConfig, KeepConfig, LogsConfig
from agent.demo.sink import attributes
from agent.stem.catalogue import SignalName
from tests.support import EPOCH, SECOND, TRACEPARENT, Heard, Story, envelope, found, nanoseconds

DEBUG = CorrelateConfig(logs=LogsConfig(min_severity="DEBUG"))
RUN = "wf-1"


def life(end: str = "completed", *, traced: bool = False) -> list[bytes]:
    """A run: its runner's task, a step that fails, a sleep, and an end a second after the start."""
    story = Story()

    def tell(verb: str, **details: Any) -> None:
        story.time.advance(0.2)
        status = "running" if verb in {"started", "resumed"} else verb
        story.recorded.workflow(f"workflow-run-{verb}", RUN, "checkout", status, **details)

    headers = {"traceparent": TRACEPARENT} if traced else {}
    runner = envelope(headers=headers, name="stem.workflow.run", meta={"stem.workflow.runId": RUN})
    story.time.now = EPOCH - timedelta(seconds=0.2)
    tell("started")
    story.run(task=runner)
    tell("failed", step="pay", metadata={"error": "PaymentDeclined: no", "stack": "#0"})
    tell("suspended", step="pay", metadata={"type": "sleep", "resumeAt": "2026-04-23T10:00:01Z"})
    tell("resumed", step="ship")
    tell(end, metadata={"result": {"secret": "of the customer"}})
    return story.payloads


@pytest.mark.parametrize(("end", "traced"), [("completed", False), ("cancelled", True)])
def test_a_run_is_one_span_from_started_to_its_end(end: str, traced: bool) -> None:
    span = Heard().hear(life(end, traced=traced)).pass_time(1).span("workflow")
    assert span.name == "workflow checkout"
    assert span.kind == Span.SPAN_KIND_INTERNAL
    assert span.span_id == ids.span_id("run", RUN)
    assert span.trace_id.hex() == (TRACEPARENT.split("-")[1] if traced else ids.trace_id(RUN).hex())
    assert span.parent_span_id.hex() == (TRACEPARENT.split("-")[2] if traced else "")
    assert span.start_time_unix_nano == nanoseconds(EPOCH)
    assert span.end_time_unix_nano == nanoseconds(EPOCH + timedelta(seconds=0.837))
    assert [event.name for event in span.events] == [
        "stem.workflow.failed",
        "stem.workflow.suspended",
        "stem.workflow.resumed",
    ]
    assert attributes(span.events[2].attributes) == {"stem.workflow.step": "ship"}
    assert found(span) == {
        "stem.workflow.run_id": RUN,
        "stem.workflow.name": "checkout",
        "stem.namespace": "stem",
        "stem.workflow.status": end,
        "stem.workflow.failed_attempts": 1,
        "stem.source": "signals",
    }


@given(st.randoms(use_true_random=False), st.booleans())
def test_neither_order_nor_repeats_change_a_run(order: random.Random, traced: bool) -> None:
    payloads = life(traced=traced)
    shuffled = payloads + order.choices(payloads, k=5)
    order.shuffle(shuffled)
    expected = Heard().hear(payloads).pass_time(1).span("workflow")
    assert Heard().hear(shuffled).pass_time(1).span("workflow") == expected


def test_what_a_run_lacks_is_said() -> None:
    span = Heard().hear(life()[-1:]).pass_time(1).span("workflow")
    assert found(span)["stem.missing"] == ["start", "enqueued"]


def test_a_run_without_an_end_is_not_told_and_in_the_end_forgotten() -> None:
    heard = Heard(CorrelateConfig(task_ttl=10.0)).hear(life()[:-1]).pass_time(5)
    assert len(heard.correlator.workflows) == 1
    heard.pass_time(6)
    assert len(heard.correlator.workflows) == 0
    assert heard.correlator.counters["stem_agent.correlate.evicted", "workflow"] == 1
    assert not [span for span in heard.spans if span.name.startswith("workflow")]


def test_runs_are_logged_without_their_results() -> None:
    heard = Heard(DEBUG).hear(life())
    records = [record for record in heard.logs if record.event_name.startswith("stem.workflow")]
    assert [(record.event_name, record.severity_text, record.body.string_value) for record in records] == [
        ("stem.workflow.started", "INFO", "workflow checkout started"),
        ("stem.workflow.failed", "ERROR", "workflow checkout had a failing attempt at step pay: PaymentDeclined: no"),
        ("stem.workflow.suspended", "INFO", "workflow checkout was suspended at step pay (sleep)"),
        ("stem.workflow.resumed", "INFO", "workflow checkout goes on at step ship"),
        ("stem.workflow.completed", "INFO", "workflow checkout is completed"),
    ]
    assert {record.trace_id for record in records} == {ids.trace_id(RUN)}
    assert b"secret" not in b"".join([*heard.correlator.recorder.log.records, *heard.correlator.recorder.spans])


def test_signals_of_a_run_that_was_told_are_late() -> None:
    heard = Heard().hear(life()).pass_time(1).hear(life()[-1:])
    assert heard.correlator.counters["stem_agent.signals.late", SignalName.WORKFLOW_RUN_COMPLETED] == 1


# --- schedules -------------------------------------------------------------------------------------------------------


def test_schedules_are_counted_with_their_drift() -> None:
    story = Story("", "beat-1")
    story.recorded.schedule_due("nightly", EPOCH)
    story.recorded.schedule_dispatched("nightly", EPOCH, EPOCH + timedelta(seconds=1.5))
    story.recorded.schedule_dispatched("nightly", EPOCH, EPOCH - timedelta(seconds=0.5))
    story.recorded.schedule_failed("broken", EPOCH, "RoutingError: no queue", "#0 main")
    heard = Heard(DEBUG).hear(story.payloads)
    metrics = heard.metrics()
    drift = metrics["stem.scheduler.drift"].histogram.data_points[0]
    assert found(drift) == {"schedule": "nightly", "namespace": "stem"}
    assert (drift.count, drift.sum) == (2, pytest.approx(2.0))
    assert heard.counts()["stem.scheduler.dispatch.success"] == 2
    assert heard.counts()["stem.scheduler.dispatch.failed"] == 1
    assert [(record.event_name, record.severity_text, record.body.string_value) for record in heard.logs] == [
        ("stem.schedule.due", "DEBUG", "schedule nightly is due"),
        ("stem.schedule.dispatched", "INFO", "schedule nightly was dispatched, 1.5 s late"),
        ("stem.schedule.dispatched", "INFO", "schedule nightly was dispatched, 500 ms early"),
        ("stem.schedule.failed", "ERROR", "schedule broken failed to be dispatched: RoutingError: no queue"),
    ]
    assert found(heard.logs[3])["exception.stacktrace"] == "#0 main"


# --- control ---------------------------------------------------------------------------------------------------------


def test_control_commands_are_logged_without_their_payloads() -> None:
    story = Story()
    story.recorded.control(SignalName.CONTROL_COMMAND_RECEIVED, "r-1", "revoke", payload={"secret": 1}, targets=["*"])
    story.recorded.control(SignalName.CONTROL_COMMAND_COMPLETED, "r-1", "revoke", status="ok", response={"secret": 1})
    heard = Heard().hear(story.payloads)
    assert [(record.event_name, record.body.string_value) for record in heard.logs] == [
        ("stem.control.received", "worker worker-1 received the command revoke"),
        ("stem.control.completed", "worker worker-1 answered the command revoke: ok"),
    ]
    assert found(heard.logs[1])["stem.control.status"] == "ok"
    assert b"secret" not in b"".join(heard.correlator.recorder.log.records)


# --- what runs now ---------------------------------------------------------------------------------------------------


def test_what_runs_now_is_counted_with_its_age_and_its_absence_too() -> None:
    story = Story()
    payloads = story.run()
    heard = Heard().hear(payloads[:2])
    heard.now_ns += 60 * SECOND
    assert heard.metrics()["stem.tasks.active"].gauge.data_points[0].as_int == 1
    assert heard.metrics()["stem.tasks.active.oldest_age"].gauge.data_points[0].as_double == pytest.approx(59.999)
    heard.hear(payloads[2:])
    assert heard.metrics()["stem.tasks.active"].gauge.data_points[0].as_int == 0
    assert heard.metrics()["stem.tasks.active.oldest_age"].gauge.data_points[0].as_double == 0


def test_an_attempt_that_runs_for_long_is_reported_once() -> None:
    heard = Heard(CorrelateConfig(report_after=300.0)).hear(Story().run()[:2])
    for _ in range(3):
        heard.pass_time(200).metrics()
    (record,) = [record for record in heard.logs if record.event_name == "stem.task.long_running"]
    assert record.severity_text == "WARN"
    assert record.body.string_value == "task email.send has been running on worker-1 for 6 m 40 s"
    assert record.span_id


def test_every_signal_of_the_catalogue_is_handled() -> None:
    assert set(Heard().correlator._handlers) == set(SignalName)


@pytest.mark.parametrize(("failed", "state"), [(True, "ot=th:0"), (False, None)])
def test_a_run_with_failing_attempts_is_kept_where_failures_are(*, failed: bool, state: str | None) -> None:
    keep = KeepConfig(ratio=0.0, failed=failed, slow=0.0, rare=0.0)
    heard = Heard(CorrelateConfig(keep=keep)).hear(life()).pass_time(1)
    runs = [span for span in heard.spans if span.name.startswith("workflow")]
    assert [span.trace_state for span in runs] == ([state] if state else [])
