"""What the result records mend, and what they must not be believed to say (Stem's traps)."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from msgspec.structs import replace
from opentelemetry.proto.trace.v1.trace_pb2 import Status

from agent.correlate.config import CorrelateConfig
from agent.correlate.repair import RepairQueue
from agent.correlate.tasks import REPAIR_PATIENCE_SECONDS
from agent.emit import iso
from agent.stem.catalogue import SignalName, TaskState
from agent.stem.status import TaskError, TaskStatus
from agent.stem.wire import Gap, Outage
from tests.support import EPOCH, TASK_ID, Heard, Story, ToldTime, envelope, found, nanoseconds

STARTED = EPOCH + timedelta(milliseconds=1)
ENDED = EPOCH + timedelta(milliseconds=36)
SOCKET = TaskError(type="SocketException", message="SocketException: Connection refused", stack="#0 main")


def record(state: TaskState, **meta: Any) -> TaskStatus:
    return TaskStatus(**{"id": TASK_ID, "state": state, "attempt": 0, "updated_at": ENDED, **meta})


def succeeded(**meta: Any) -> TaskStatus:
    return record(
        TaskState.SUCCEEDED,
        **{"worker": "worker-1", "started_at": STARTED, "completed_at": ENDED, "attempt": 0, **meta},
    )


def opened(**config: Any) -> tuple[Story, Heard]:
    """An attempt of which the start was heard."""
    story = Story()
    heard = Heard(CorrelateConfig(**config), with_repair=True).hear(story.run()[:2])
    return story, heard


def gap(story: Story, heard: Heard) -> Heard:
    """Signals of this process were lost."""
    composer = story.recorded.composer
    heard.fact(Gap("stem", composer.emitter, composer.boot, 3, 4, heard.now_ns))
    return heard.pass_time(0.1)


@pytest.mark.parametrize(
    ("status", "state", "reason", "error"),
    [
        (succeeded(), "succeeded", "success", None),
        (
            record(TaskState.FAILED, worker="worker-1", started_at=STARTED, failed_at=ENDED, error=SOCKET),
            *("failed", "error", "SocketException"),
        ),
        (
            record(TaskState.FAILED, failed_at=ENDED, retry_exhausted=True, error=TaskError(type="RetryExhausted")),
            *("failed", "max-retries-exhausted", "RetryExhausted"),
        ),
        (record(TaskState.RETRIED, retry_delay_ms=8000, error=SOCKET), "retried", "retry", "SocketException"),
        (record(TaskState.CANCELLED, worker="worker-1", revoked=True), "cancelled", "revoked", None),
        (record(TaskState.CANCELLED, expired=True, expired_at=ENDED), "cancelled", "expired", "TaskExpired"),
    ],
)
def test_a_lost_end_is_read_from_the_record(status: TaskStatus, state: str, reason: str, error: str | None) -> None:
    heard = gap(*opened()).answer(status)
    span = heard.span("process")
    told = found(span)
    assert (told["stem.task.state"], told["stem.task.end_reason"], told.get("error.type")) == (state, reason, error)
    assert told["stem.source"] == "repair"
    assert "stem.incomplete" not in told
    assert span.end_time_unix_nano == nanoseconds(ENDED)
    assert heard.logs[-1].event_name != "stem.task.started"
    assert found(heard.logs[-1])["stem.source"] == "repair"


def test_a_retry_from_the_record_tells_the_back_off_to_the_next_attempt() -> None:
    story, heard = opened()
    gap(story, heard).answer(record(TaskState.RETRIED, retry_delay_ms=8000, error=SOCKET))
    assert heard.counts()["stem.task.retry.delay"] == 1
    story.time.now = ENDED + timedelta(seconds=9)
    heard.hear(story.run(task=envelope(attempt=1)))
    wait = next(s for s in heard.spans if s.name.startswith("wait") and found(s)["stem.task.attempt"] == 1)
    assert wait.start_time_unix_nano == nanoseconds(ENDED + timedelta(seconds=8))
    first, second = (s for s in heard.spans if s.name.startswith("process"))
    assert first.span_id in {link.span_id for link in second.links}


@pytest.mark.parametrize(
    "status",
    [
        record(TaskState.QUEUED),  # a publisher's late write over whatever was there
        record(TaskState.RUNNING, worker="worker-1", started_at=STARTED),
        record(TaskState.RETRIED, rate_limited=True, retry_after_ms=300),
        record(TaskState.RETRIED, queue_paused=True, retry_after_ms=250),
        succeeded(worker="worker-2"),  # another delivery's
        succeeded(started_at=STARTED + timedelta(seconds=30)),
        succeeded(completed_at=STARTED - timedelta(seconds=30), started_at=None),  # an earlier delivery's
        record(TaskState.RETRIED, attempt=-1),
        None,  # expired, or never written
    ],
)
def test_what_a_record_does_not_prove_is_not_told(status: TaskStatus | None) -> None:
    heard = gap(*opened())
    heard.answer(*filter(None, [status])).pass_time(10)
    assert heard.spans == []
    assert len(heard.correlator.tasks.attempts) == 1


def test_the_record_of_a_second_delivery_says_nothing_of_a_first_that_was_only_received() -> None:
    story = Story()
    heard = gap(story, Heard(with_repair=True).hear(story.run()[:1]))
    again = STARTED + timedelta(seconds=4)
    heard.answer(succeeded(started_at=again, completed_at=again + timedelta(seconds=1))).pass_time(10)
    assert heard.spans == []


def test_a_later_attempt_in_the_record_proves_only_that_this_one_is_over() -> None:
    heard = gap(*opened()).answer(record(TaskState.RUNNING, attempt=1)).pass_time(1)
    told = found(heard.span("process"))
    assert told["stem.missing"] == ["end"]
    assert told["stem.task.end_reason"] == "unknown"
    assert "stem.task.state" not in told
    assert heard.counts() == {"stem.tasks.started": 1, "stem.queue.latency": 1}


def test_a_later_attempt_that_is_heard_ends_the_one_before_it() -> None:
    story, heard = opened()
    gap(story, heard).answer()
    story.time.now = EPOCH + timedelta(seconds=9)
    heard.hear(story.run(task=envelope(attempt=1))[:2]).pass_time(1).answer().pass_time(REPAIR_PATIENCE_SECONDS)
    told = found(heard.span("process"))
    assert (told["stem.task.attempt"], told["stem.missing"]) == (0, ["end"])
    assert heard.span("process").end_time_unix_nano <= nanoseconds(EPOCH + timedelta(seconds=9.001))


def test_a_later_attempt_says_nothing_of_one_whose_process_would_have_told() -> None:
    """A copy of the task was delivered elsewhere, and retried there, while the first delivery runs on."""
    story, elsewhere = Story(), Story("worker-2", "pod-2")
    payloads = story.run(run_s=60)
    heard = Heard(with_repair=True).hear(payloads[:2]).hear(elsewhere.run("retry"))
    heard.hear(elsewhere.run(task=envelope(attempt=1))[:2]).pass_time(10)
    heard.answer(record(TaskState.RUNNING, attempt=1)).pass_time(10)
    assert [found(span)["stem.task.state"] for span in heard.spans if span.name.startswith("process")] == ["retried"]
    heard.hear(payloads[2:])
    assert heard.counts()["stem.tasks.succeeded"] == 1


def test_an_end_without_a_beginning_waits_for_the_record() -> None:
    """From an emitter that repeats nothing: no bridge, no start in later signals."""
    payload = (
        b'{"eventName":"task-succeeded","occurredAt":"2026-04-23T10:00:00.159456Z","attributes":'
        b'{"taskId":"'
        + TASK_ID.encode()
        + b'","taskName":"email.send","queue":"default","workerId":"worker-1","attempt":0}}'
    )
    heard = Heard(with_repair=True).hear([payload]).pass_time(1)
    assert heard.spans == []
    heard.answer(succeeded())
    span = heard.span("process")
    assert span.start_time_unix_nano == nanoseconds(STARTED)
    assert found(span)["stem.missing"] == ["enqueued"]
    assert heard.counts()["stem.tasks.started"] == 1


def test_patience_has_an_end() -> None:
    story = Story()
    payload = story.run()[2]
    payload = payload.replace(b'"startedAt"', b'"xstartedAt"')
    heard = Heard(with_repair=True).hear([payload]).pass_time(1)
    for _ in range(19):
        heard.pass_time(REPAIR_PATIENCE_SECONDS)
    assert heard.spans == [], "the question was not even asked yet"
    heard.pass_time(REPAIR_PATIENCE_SECONDS).pass_time(REPAIR_PATIENCE_SECONDS)
    assert found(heard.span("process"))["stem.missing"] == ["start"]


def test_without_repair_nothing_is_waited_for() -> None:
    story = Story()
    payload = story.run()[2].replace(b'"startedAt"', b'"xstartedAt"')
    heard = Heard().hear([payload]).pass_time(1)
    assert found(heard.span("process"))["stem.missing"] == ["start"]
    assert len(heard.correlator.repairs) == 0


def test_a_signal_that_was_heard_knows_better_than_the_record() -> None:
    story = Story()
    payloads = story.run()
    heard = gap(story, Heard(with_repair=True).hear(payloads[:3]))
    heard.correlator.repairs.want(TASK_ID, heard.now_ns)
    heard.answer(succeeded(completed_at=ENDED - timedelta(milliseconds=9)))
    span = heard.span("process")
    assert span.end_time_unix_nano == nanoseconds(ENDED)
    assert found(span)["stem.source"] == "signals"


def test_the_envelope_knows_better_than_the_record_when_the_back_off_was_over() -> None:
    story, heard = opened()
    gap(story, heard).answer(record(TaskState.RETRIED, retry_delay_ms=8000, error=SOCKET))
    due = ENDED + timedelta(seconds=8, milliseconds=-3)  # the record was written three milliseconds after the retry
    story.time.now = ENDED + timedelta(seconds=9)
    heard.hear(story.run(task=envelope(attempt=1, notBefore=iso(due))))
    assert wait_of(heard, 1).start_time_unix_nano == nanoseconds(due)
    assert not [span for span in heard.spans if "stem.task.wait.lower_bound" in found(span)]


def test_two_deliveries_under_way_are_not_both_retried_by_one_record() -> None:
    story, other = Story(), Story("worker-2", "pod-2")
    heard = Heard(with_repair=True).hear([*story.run()[:2], *other.run()[:2]])
    gap(story, heard)
    gap(other, heard).answer(record(TaskState.RETRIED, retry_delay_ms=10, error=SOCKET))
    assert heard.spans == []


def test_an_outage_asks_for_everything_that_is_open() -> None:
    _, heard = opened()
    heard.fact(Outage("stem", (), heard.now_ns, 0)).pass_time(5)
    assert len(heard.correlator.repairs) == 0
    heard.fact(Outage("stem", (), heard.now_ns, heard.now_ns)).pass_time(1).answer(succeeded())
    assert found(heard.span("process"))["stem.task.state"] == "succeeded"


@pytest.mark.parametrize(
    ("heard_from", "ms", "own"),
    [
        (1, 0, True),  # from the start on: the record's lies just before it
        (1, -5, True),
        (1, -999, True),
        (1, 1, False),
        (1, 40, False),
        (1, -1001, False),
        (0, 999, True),  # received only: the record's lies just after it
        (0, -1, False),
        (0, 1001, False),
    ],
)
def test_a_record_of_another_delivery_to_the_same_worker_is_told_by_its_start(
    heard_from: int, ms: int, own: bool
) -> None:
    story = Story()
    signals = story.run()
    heard = Heard(with_repair=True).hear(signals[heard_from : heard_from + 1])
    (attempt,) = heard.correlator.tasks.attempts
    began_ns = attempt.started_ns or attempt.received_ns
    started_at = datetime.fromtimestamp(began_ns // 1000 / 1e6, UTC) + timedelta(milliseconds=ms)
    gap(story, heard)
    heard.pass_time(1).answer(succeeded(started_at=started_at, completed_at=started_at + timedelta(seconds=2)))
    heard.pass_time(5)
    assert bool([span for span in heard.spans if span.name.startswith("process ")]) is own


def test_what_a_lost_worker_had_finished_is_no_loss() -> None:
    story = Story()
    story.recorded.heartbeat()
    heard = Heard(with_repair=True).hear([*story.payloads, *story.run()[:2]]).pass_time(31)
    assert heard.spans == [], "the record is asked for first"
    heard.answer(succeeded())
    assert found(heard.span("process"))["stem.task.state"] == "succeeded"
    assert "stem.tasks.lost" not in heard.counts()


@pytest.mark.parametrize("answers", [True, False])
def test_what_a_lost_worker_had_not_finished_is_lost(answers: bool) -> None:
    story = Story()
    story.recorded.heartbeat()
    heard = Heard(with_repair=True).hear([*story.payloads, *story.run()[:2]]).pass_time(31)
    if answers:
        heard.answer(record(TaskState.RUNNING, worker="worker-1", started_at=STARTED))
    for _ in range(21):  # or the result backend is away for long
        heard.pass_time(REPAIR_PATIENCE_SECONDS)
    span = heard.span("process")
    assert found(span)["stem.task.state"] == "lost"
    assert span.status.code == Status.STATUS_CODE_ERROR


@pytest.mark.parametrize("still_had_it_running", [True, False])
def test_what_may_have_ended_unheard_before_its_worker_vanished_is_lost_only_if_its_record_says_so(
    still_had_it_running: bool,
) -> None:
    story = Story()
    story.recorded.heartbeat()
    heard = Heard(with_repair=True).hear([*story.payloads, *story.run()[:2]])
    heard.fact(Outage("stem", (), heard.now_ns, 0)).pass_time(1)
    heard.fact(Outage("stem", (), heard.now_ns, heard.now_ns)).pass_time(1)
    of_another_delivery = record(TaskState.RUNNING, worker="worker-2", started_at=STARTED)
    of_this = record(TaskState.RUNNING, worker="worker-1", started_at=STARTED)
    heard.answer(of_this if still_had_it_running else of_another_delivery)
    assert heard.spans == []
    heard.pass_time(31).answer(of_this if still_had_it_running else of_another_delivery)
    for _ in range(21):
        heard.pass_time(REPAIR_PATIENCE_SECONDS)
    told = found(heard.span("process"))
    if still_had_it_running:
        assert told["stem.task.state"] == "lost"
    else:
        assert told["stem.missing"] == ["end"]
        assert "stem.task.state" not in told


@pytest.mark.parametrize("read_in_between", [False, True])
def test_what_ran_before_signals_were_lost_once_more_may_have_ended_since(read_in_between: bool) -> None:
    """And the copy of its lease, delivered elsewhere, wrote over the record of its end."""
    story = Story()
    story.recorded.heartbeat()
    heard = Heard(with_repair=True).hear([*story.payloads, *story.run()[:2]])
    running = record(TaskState.RUNNING, worker="worker-1", started_at=STARTED)
    gap(story, heard)
    if read_in_between:
        taken = heard.correlator.repairs.take(10)
        heard.pass_time(1)
        gap(story, heard)
        heard.correlator.answered(dict.fromkeys(taken, running), heard.now_ns)
    else:
        heard.answer(running).pass_time(1)
        gap(story, heard)
    heard.answer(succeeded(worker="worker-2")).pass_time(31).answer(succeeded(worker="worker-2"))
    told = found(heard.span("process"))
    assert told["stem.missing"] == ["end"]
    assert "stem.task.state" not in told


def test_the_attempt_before_is_waited_for_when_its_end_was_lost() -> None:
    """So that the retry gets its link, although its own signals are complete first."""
    story, heard = opened()
    gap(story, heard)
    story.time.now = EPOCH + timedelta(seconds=2)
    heard.hear(story.run(task=envelope(attempt=1)))
    assert heard.spans == []
    heard.answer(record(TaskState.RETRIED, retry_delay_ms=100, error=SOCKET)).pass_time(1).pass_time(
        REPAIR_PATIENCE_SECONDS
    )
    first, second = (span for span in heard.spans if span.name.startswith("process"))
    assert found(first)["stem.task.state"] == "retried"
    assert first.span_id in {link.span_id for link in second.links}


def test_a_publish_is_told_from_its_announcement_when_its_task_is_worked_on() -> None:
    story = Story()
    story.recorded.before_publish(envelope())
    heard = Heard(with_repair=True).hear(story.payloads)
    assert "stem.tasks.published" not in heard.counts(), "the broker may refuse it"
    heard.hear(story.run())
    assert heard.counts()["stem.tasks.published"] == 1
    story.recorded.after_publish(envelope())
    heard.hear(story.payloads[-1:])
    assert heard.counts()["stem.tasks.published"] == 1
    assert heard.correlator.counters["stem_agent.signals.late", SignalName.AFTER_TASK_PUBLISH] == 1


def test_unanswered_questions_are_asked_again_while_they_matter() -> None:
    story, heard = opened()
    gap(story, heard)
    taken = heard.correlator.repairs.take(10)
    heard.correlator.unanswered([*taken, "forgotten"])
    assert heard.correlator.repairs.take(10) == [TASK_ID]


def test_the_queue_of_questions_is_bounded_and_asks_once() -> None:
    queue = RepairQueue(3)
    for task_id in "abcab":
        queue.want(task_id, 1)
    assert queue.take(2) == ["a", "b"]
    for task_id in "defg":
        queue.want(task_id, 1)
    assert queue.take(9) == ["e", "f", "g"]


def test_times_without_a_zone_are_in_the_receivers() -> None:
    heard = gap(*opened())
    local = datetime(2026, 4, 23, 10, 0, 0, 159456)  # noqa: DTZ001 - as Stem 0.1 writes it
    heard.answer(succeeded(completed_at=local, started_at=None))
    assert heard.span("process").end_time_unix_nano == nanoseconds(EPOCH + timedelta(milliseconds=36))


# --- when an attempt was ready -------------------------------------------------------------------------------------


def wait_of(heard: Heard, number: int = 0) -> Any:
    return next(s for s in heard.spans if s.name.startswith("wait") and found(s)["stem.task.attempt"] == number)


LATER = envelope(notBefore=iso(EPOCH - timedelta(seconds=0.3)))
"""As after a rate limit, a pause, or a lease that was extended: the envelope's own `notBefore` was written over."""


def test_a_first_attempt_was_ready_when_its_publish_said_so() -> None:
    story = Story()
    story.recorded.after_publish(envelope())
    story.run(task=LATER)
    heard = Heard().hear(story.payloads)
    assert wait_of(heard).start_time_unix_nano == nanoseconds(EPOCH - timedelta(seconds=1.2))
    assert "stem.task.wait.lower_bound" not in found(heard.span("process"))


def test_without_its_publish_the_wait_is_at_least_what_the_envelope_says() -> None:
    heard = Heard().hear(Story().run(task=LATER))
    assert wait_of(heard).start_time_unix_nano == nanoseconds(EPOCH - timedelta(seconds=0.3))
    assert found(heard.span("process"))["stem.task.wait.lower_bound"] is True


def test_a_publish_may_come_after_the_start() -> None:
    story = Story()
    payloads = story.run(task=LATER)
    story.recorded.before_publish(envelope())
    heard = Heard().hear([*payloads[:2], story.payloads[-1], *payloads[2:]])
    assert wait_of(heard).start_time_unix_nano == nanoseconds(EPOCH - timedelta(seconds=1.2))


def test_a_retry_was_ready_when_its_back_off_was_over() -> None:
    story = Story()
    heard = Heard().hear(story.run("retry"))
    due = EPOCH + timedelta(seconds=8, milliseconds=36)
    story.time.now = EPOCH + timedelta(seconds=10)
    heard.hear(story.run(task=envelope(attempt=1, notBefore=iso(due + timedelta(seconds=1)))))
    assert wait_of(heard, 1).start_time_unix_nano == nanoseconds(due)


# --- attempts of which nothing was heard ---------------------------------------------------------------------------


def published(task: dict[str, Any] | None = None) -> tuple[Story, Heard]:
    """A worker that is known, and a task of which only the publish was heard."""
    story = Story()
    story.recorded.heartbeat()
    story.recorded.after_publish(task or envelope())
    return story, Heard(with_repair=True).hear(story.payloads)


def outage(heard: Heard) -> Heard:
    heard.fact(Outage("stem", (), heard.now_ns, 0)).pass_time(2)
    return heard.fact(Outage("stem", (), heard.now_ns, heard.now_ns)).pass_time(0.1)


def test_an_attempt_of_which_nothing_was_heard_is_read_from_its_record() -> None:
    _, heard = published()
    outage(heard).answer(succeeded())
    span = heard.span("process")
    assert (span.start_time_unix_nano, span.end_time_unix_nano) == (nanoseconds(STARTED), nanoseconds(ENDED))
    told = found(span)
    assert "stem.incomplete" not in told
    assert told["stem.source"] == "repair"
    assert [name for name in names(heard) if name.startswith("stem.task")] == [
        "stem.task.started",
        "stem.task.succeeded",
    ]
    assert heard.counts()["stem.tasks.started"] == heard.counts()["stem.tasks.succeeded"] == 1


def names(heard: Heard) -> list[str]:
    return [record.event_name for record in heard.logs]


def test_an_attempt_that_is_read_while_it_runs_goes_on_by_its_signals() -> None:
    story, heard = published()
    outage(heard).answer(record(TaskState.RUNNING, worker="worker-1", started_at=EPOCH))
    assert heard.counts()["stem.tasks.started"] == 1
    heard.hear(story.run()[2:])
    assert heard.counts()["stem.tasks.started"] == heard.counts()["stem.tasks.succeeded"] == 1
    assert heard.span("process").start_time_unix_nano == nanoseconds(STARTED), "signals are exact"


@pytest.mark.parametrize("task", [envelope(), LATER], ids=["at once", "delayed"])
def test_a_retry_that_is_read_from_its_record_was_ready_nobody_knows_when(task: dict[str, Any]) -> None:
    _, heard = published(task)
    outage(heard).answer(succeeded(attempt=1))
    told = found(heard.span("process"))
    assert told["stem.task.attempt"] == 1
    assert not {"stem.task.wait", "stem.task.wait.lower_bound"} & set(told)
    assert not [span for span in heard.spans if span.name.startswith("wait ")]
    assert "stem.queue.latency" not in heard.counts()


def test_a_retry_that_is_read_while_it_runs_was_ready_when_its_own_envelope_says_so() -> None:
    story, heard = published(LATER)
    outage(heard).answer(record(TaskState.RUNNING, worker="worker-1", started_at=EPOCH, attempt=1))
    due = EPOCH - timedelta(seconds=0.1)
    heard.hear(story.run(task=envelope(attempt=1, notBefore=iso(due)))[2:]).pass_time(5)
    assert wait_of(heard, 1).start_time_unix_nano == nanoseconds(due)
    assert found(heard.span("process"))["stem.task.wait.lower_bound"] is True


def replaced(*, unheard: int = 0) -> tuple[Story, Heard]:
    """The worker's process was killed and replaced; so many of the new one's first signals were lost."""
    _, heard = published()
    new = Story(time=ToldTime(EPOCH + timedelta(seconds=5)))
    new.recorded.worker(SignalName.WORKER_INIT)
    new.recorded.worker(SignalName.WORKER_READY)
    return new, heard.pass_time(5).hear(new.payloads[unheard:])


def beats_for(seconds: int, new: Story, heard: Heard) -> None:
    for _ in range(seconds):
        new.time.advance(1)
        new.recorded.heartbeat()
        heard.pass_time(1).hear(new.payloads[-1:])


RUNNING = record(TaskState.RUNNING, worker="worker-1", started_at=STARTED)


@pytest.mark.parametrize("lost_before", [False, True])
def test_what_ran_unheard_in_a_process_that_was_replaced_is_lost_with_that_one(lost_before: bool) -> None:
    new, heard = replaced()
    if lost_before:
        beats_for(15, new, heard)
    outage(heard).answer(RUNNING)
    assert heard.counts()["stem.tasks.started"] == 1
    beats_for(15, new, heard)
    heard.answer(RUNNING).pass_time(1)
    span = heard.span("process")
    assert found(span)["stem.task.state"] == "lost"
    assert span.start_time_unix_nano == span.end_time_unix_nano == nanoseconds(STARTED), (
        "its process said nothing later"
    )


REVOKED = record(TaskState.CANCELLED, worker="worker-1", revoked=True)


@pytest.mark.parametrize(("seconds", "own"), [(4, True), (6, False)])
def test_what_was_revoked_after_its_process_was_replaced_is_another_delivery(seconds: int, own: bool) -> None:
    story, heard = opened()
    new = Story(time=ToldTime(EPOCH + timedelta(seconds=5)))
    new.recorded.worker(SignalName.WORKER_INIT)
    heard.pass_time(5).hear(new.payloads)
    gap(story, heard).answer(replace(REVOKED, updated_at=EPOCH + timedelta(seconds=seconds))).pass_time(5)
    assert bool([span for span in heard.spans if span.name.startswith("process ")]) is own


def test_whether_what_was_revoked_had_started_its_record_does_not_tell() -> None:
    _, heard = published()
    outage(heard).answer(REVOKED)
    assert found(heard.span("process"))["stem.missing"] == ["start"]


def test_what_expired_had_not_started() -> None:
    _, heard = published()
    outage(heard).answer(record(TaskState.CANCELLED, worker="worker-1", expired=True, expired_at=ENDED))
    assert "stem.missing" not in found(heard.span("process"))


def test_what_runs_in_the_process_that_took_another_s_place_is_lost_with_that_one() -> None:
    new, heard = replaced()
    running = record(TaskState.RUNNING, worker="worker-1", started_at=new.time.now + timedelta(milliseconds=1))
    outage(heard).answer(running)
    beats_for(15, new, heard)
    heard.answer(running).pass_time(1)
    assert "stem.tasks.lost" not in heard.counts()
    heard.pass_time(31).answer(running).pass_time(1)
    assert heard.span("process").end_time_unix_nano == nanoseconds(new.time.now)


def test_what_may_run_in_either_of_two_processes_is_not_read_into_being_before_it_ends() -> None:
    _, heard = replaced(unheard=1)
    outage(heard).answer(RUNNING)
    assert len(heard.correlator.tasks.attempts) == 0
    outage(heard).answer(succeeded())
    assert found(heard.span("process"))["stem.task.state"] == "succeeded"


@pytest.mark.parametrize(
    "status",
    [
        record(TaskState.QUEUED),
        record(TaskState.RETRIED, rate_limited=True, worker=None),
        record(TaskState.RETRIED, error=SOCKET),  # by whom, and from when on?
        succeeded(worker="worker-2"),  # not heard here: another agent tells what it does
        None,
    ],
)
def test_what_is_not_ours_or_not_proved_is_not_read_into_being(status: TaskStatus | None) -> None:
    _, heard = published()
    outage(heard).answer(*filter(None, [status])).pass_time(5)
    assert heard.spans == []
    assert len(heard.correlator.tasks.attempts) == 0


def test_a_task_that_was_settled_is_not_read_again() -> None:
    story, heard = published()
    heard.hear(story.run())
    story.recorded.before_publish(envelope())
    heard.hear(story.payloads[-1:])
    outage(heard).answer(succeeded())
    assert len(heard.spans) == 3


def test_publishes_are_forgotten_in_the_end() -> None:
    _, heard = published()
    heard.pass_time(601)
    assert len(heard.correlator.tasks.publishes) == 0


@pytest.mark.parametrize("first", [0, 1])
def test_of_two_copies_delivered_at_once_each_has_its_own_wait(first: int) -> None:
    story = Story()
    copies = [envelope(), LATER]
    one, two = (story.attempt(copy) for copy in (copies[first], copies[1 - first]))
    one.received()
    two.received()
    story.time.advance(0.001)
    two.prerun()
    story.time.advance(0.001)
    one.prerun()
    for signals in (one, two):
        signals.succeeded()
        signals.postrun("succeeded")
    heard = Heard().hear(story.payloads)
    waits = {span.end_time_unix_nano: span.start_time_unix_nano for span in heard.spans if span.name.startswith("wait")}
    ready = [nanoseconds(EPOCH - timedelta(seconds=1.2)), nanoseconds(EPOCH - timedelta(seconds=0.3))]
    milli = 1_000_000
    assert waits == {
        nanoseconds(EPOCH) + milli: ready[1 - first],
        nanoseconds(EPOCH) + 2 * milli: ready[first],
    }


def test_each_of_two_retries_of_one_attempt_has_its_own_back_off() -> None:
    """Copies of an attempt may both ask for a retry, and then the next attempt comes twice."""
    one, two = Story(), Story("worker-2", "pod-2")
    two.time.now = EPOCH + timedelta(seconds=1)
    heard = Heard().hear(one.run("retry")).hear(two.run("retry"))
    dues = [EPOCH + timedelta(seconds=8, milliseconds=36), EPOCH + timedelta(seconds=9, milliseconds=36)]
    for story, due in ((one, dues[0]), (two, dues[1])):
        story.time.now = due + timedelta(seconds=2)
        heard.hear(story.run(task=envelope(attempt=1, notBefore=iso(due))))
    waits = [s for s in heard.spans if s.name.startswith("wait") and found(s)["stem.task.attempt"] == 1]
    assert [wait.start_time_unix_nano for wait in waits] == [nanoseconds(due) for due in dues]
    firsts = [s.span_id for s in heard.spans if s.name.startswith("process") and found(s)["stem.task.attempt"] == 0]
    seconds = [s for s in heard.spans if s.name.startswith("process") and found(s)["stem.task.attempt"] == 1]
    assert [[link.span_id for link in second.links][1] for second in seconds] == firsts
