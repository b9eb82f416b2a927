"""What the answers of Stem's stores become: levels, totals, and what was lost with a worker. Nothing is asked here."""

from collections import Counter
from datetime import timedelta
from typing import Any

import pytest
from msgspec import structs
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric

from agent.core.clock import NANOSECONDS
from agent.core.limits import MAX_NAME
from agent.correlate.fleet_voice import FleetVoice
from agent.demo.sink import points
from agent.instruments import DEAD_LETTERED
from agent.receivers.stem_state.letters import CARDINALITY_LIMIT, SERIES_TTL_SECONDS, LetterSurvey
from agent.receivers.stem_state.queues import PauseSurvey, QueueSurvey
from agent.receivers.stem_state.survey import Moment, Survey
from agent.receivers.stem_state.vanished import Vanishing
from agent.receivers.stem_state.workers import WorkerSurvey
from agent.receivers.stem_state.workflows import MOST_SERIES, WorkflowSurvey
from agent.stem.catalogue import TaskState
from agent.stem.envelope import Envelope, Headers
from agent.stem.heartbeat import Heartbeat, HeartbeatExtras, Subscriptions
from agent.stem.keys import Keys
from agent.stem.questions.dead_letters import DeadLetter
from agent.stem.questions.deliveries import Pending
from agent.stem.questions.query import QueryRefusedError
from agent.stem.questions.queues import QueueState
from agent.stem.questions.workers import Heartbeats, WorkerHeartbeat
from agent.stem.status import TaskStatus
from agent.stem.wire import LostAttempt
from tests.support import EPOCH, TASK_ID, UTC_ZONE, Heard, Story, found, nanoseconds

NOW_NS = nanoseconds(EPOCH)
NOW_MS = NOW_NS // 1_000_000
COMMON = ("stem", UTC_ZONE, NOW_NS)


def at(seconds: float) -> Moment:
    return Moment(NOW_MS + int(seconds * 1000), NOW_NS + int(seconds * NANOSECONDS))


def told(survey: Survey, answers: list[Any], seconds: float = 0.0) -> dict[tuple[str, ...], float]:
    """The value of each series: a metric's name, and the values of its attributes."""
    items, counts = survey.told(answers, at(seconds))
    metrics = [Metric.FromString(item) for item in items]
    assert counts == [len(points(metric)) for metric in metrics]
    series = {}
    for metric in metrics:
        for point in points(metric):
            value = point.as_int if point.WhichOneof("value") == "as_int" else point.as_double
            series[metric.name, *found(point).values()] = value
    return series


def queue_state(**changes: Any) -> QueueState:
    numbers = {"depth": 3, "inflight": 2, "delayed": 5, "overdue": 1, "dead": 4, "enqueued": 100, "delivered": 97}
    return QueueState(**{"queue": "default", **numbers, **changes})


def queues(*names: str, most: int = 10) -> QueueSurvey:
    return QueueSurvey(Keys(), names, *COMMON, budget=100, most=most)


# --- queues ----------------------------------------------------------------------------------------------------------


def test_a_queue_is_told_number_by_number() -> None:
    survey = queues("default")
    survey.ask(NOW_MS)
    state = queue_state(oldest_ready_ms=NOW_MS - 2500, oldest_dead=EPOCH - timedelta(seconds=90))
    assert told(survey, [state]) == {
        ("stem.queue.depth", "default", "stem"): 3,
        ("stem.queue.depth.known", "default", "stem"): 1,
        ("stem.queue.inflight", "default", "stem"): 2,
        ("stem.queue.delayed", "default", "stem"): 5,
        ("stem.queue.overdue", "default", "stem"): 1,
        ("stem.queue.oldest_age", "default", "stem"): 2.5,
        ("stem.queue.enqueued", "default", "stem"): 0,
        ("stem.queue.delivered", "default", "stem"): 0,
        ("stem.dlq.depth", "default", "stem"): 4,
        ("stem.dlq.oldest_age", "default", "stem"): pytest.approx(90, abs=0.001),
    }
    assert survey.troubles == []


def test_a_depth_that_is_not_known_is_not_told_but_said() -> None:
    survey = queues("default")
    survey.ask(NOW_MS)
    series = told(survey, [queue_state(depth=None, enqueued=None)])
    assert ("stem.queue.depth", "default", "stem") not in series
    assert series["stem.queue.depth.known", "default", "stem"] == 0
    assert ("stem.queue.oldest_age", "default", "stem") not in series
    assert ("stem.queue.enqueued", "default", "stem") not in series
    (trouble,) = survey.troubles
    assert trouble.startswith("the depth of queue default is unknown: the server tells no lag")


def test_totals_count_from_when_they_were_first_read_and_begin_anew_after_a_purge() -> None:
    survey = queues("default")
    values = []
    for second, enqueued in enumerate((100, 130, 130, 7, 10)):
        survey.ask(NOW_MS)
        series = told(survey, [queue_state(enqueued=enqueued)], second)
        values.append(series["stem.queue.enqueued", "default", "stem"])
    assert values == [0, 30, 30, 37, 40]


def test_a_queue_that_was_found_and_is_no_more_is_told_no_more() -> None:
    survey = queues()
    survey.met(["default"])
    survey.ask(NOW_MS)
    assert ("stem.queue.depth", "default", "stem") in told(survey, [set(), queue_state()])
    survey.ask(NOW_MS)
    survey._watches["default"].exists = False
    assert told(survey, [set(), queue_state()]) == {}
    assert survey.queues == []
    survey.ask(NOW_MS)
    assert told(survey, [set()]) == {}


def test_what_was_found_is_read_in_the_next_turn_unless_it_carries_commands() -> None:
    survey = queues()
    survey.ask(NOW_MS)
    told(survey, [{"default", "stem.control.broadcast", "a:b"}])
    assert sorted(survey.queues) == ["a:b", "default"]


def test_named_queues_are_all_that_is_read() -> None:
    survey = queues("only")
    survey.met(["another"])
    assert survey.queues == ["only"]


def test_beyond_max_queues_the_others_are_named() -> None:
    survey = queues(most=2)
    survey.met(["a", "b", "c", "d"])
    survey.ask(NOW_MS)
    told(survey, [set(), queue_state(queue="a"), queue_state(queue="b")])
    assert survey.troubles == ["queues c, d not read: there are more than max_queues"]


def test_a_queue_that_is_not_read_is_named_no_longer_than_there_is_no_room() -> None:
    survey = queues(most=2)
    survey.met(["a", "b", "c"])
    survey.ask(NOW_MS)
    survey._watches["a"].exists = False
    told(survey, [set(), queue_state(queue="a"), queue_state(queue="b")])
    assert survey.troubles == [], "if it still exists, it will be found again"
    survey.ask(NOW_MS)
    told(survey, [{"c"}, queue_state(queue="b")])
    assert survey.queues == ["b", "c"]


def test_a_new_queue_whose_total_was_not_known_for_a_while_is_not_told_twice() -> None:
    survey = queues()
    survey.ask(NOW_MS)
    survey._complete = True
    survey.met(["late"])
    values = []
    for second, enqueued in enumerate((None, 1000, None, 1000, 1003)):
        survey.ask(NOW_MS)
        series = told(survey, [set(), queue_state(queue="late", enqueued=enqueued)], second)
        values.append(series.get(("stem.queue.enqueued", "late", "stem")))
    assert values == [None, 1000, None, 0, 3]


def test_queues_that_come_and_go_leave_nothing_behind() -> None:
    survey = queues()
    survey._complete = True
    for number in range(20):
        survey.met([f"of-a-minute-{number}"])
        survey.ask(NOW_MS)
        told(survey, [set(), queue_state(queue=f"of-a-minute-{number}")], number)
        survey.ask(NOW_MS)
        survey._watches[f"of-a-minute-{number}"].exists = False
        told(survey, [set(), queue_state(queue=f"of-a-minute-{number}")], number)
    assert (survey.queues, survey.new) == ([], set())


def test_a_refusal_costs_what_was_refused_and_says_so() -> None:
    survey = queues("a", "b")
    survey.ask(NOW_MS)
    series = told(survey, [QueryRefusedError("no permissions"), queue_state(queue="b")])
    assert {key[1] for key in series} == {"b"}
    assert survey.troubles == ["queue a: no permissions"]


def test_a_queue_is_paused_if_it_is_in_any_worker_namespace() -> None:
    survey = PauseSurvey(*COMMON)
    survey.queues, survey.namespaces = ["a", "b"], {"billing"}
    assert len(survey.ask(NOW_MS)) == 2
    series = told(survey, [{"a": False, "b": False}, {"a": True, "b": False}])
    assert series == {("stem.queue.paused", "a", "stem"): 1, ("stem.queue.paused", "b", "stem"): 0}


def test_dead_letters_are_counted_by_task_and_reason() -> None:
    survey = LetterSurvey(Keys(), *COMMON)
    survey.queues = ["default"]
    letters = [DeadLetter(envelope=Envelope(name="email.send"), reason="max-retries-exhausted")] * 2
    survey.ask(NOW_MS)
    assert told(survey, [letters]) == {
        (DEAD_LETTERED.name, "email.send", "default", "stem", "max-retries-exhausted"): 2
    }


def test_letters_of_ever_other_tasks_and_queues_are_counted_in_a_bounded_number_of_series() -> None:
    survey = LetterSurvey(Keys(), *COMMON)
    survey.queues = ["default"]
    for turn in range(3):
        survey.ask(NOW_MS)
        letters = [DeadLetter(envelope=Envelope(name=f"report-{turn}-{number}")) for number in range(1000)]
        series = told(survey, [letters], turn)
    assert len(series) == CARDINALITY_LIMIT
    assert sum(series.values()) == 3000
    survey.ask(NOW_MS)
    assert told(survey, [[]], SERIES_TTL_SECONDS + 3) == {}


def test_a_name_of_a_length_that_nobody_gives_is_cut() -> None:
    survey = queues("x" * 10_000)
    survey.ask(NOW_MS)
    series = told(survey, [queue_state(queue="x" * 10_000, enqueued=7)])
    assert {len(key[1]) for key in series} == {MAX_NAME}
    assert series["stem.queue.depth", "x" * MAX_NAME, "stem"] == 3


def test_of_too_many_kinds_of_workflow_runs_the_commonest_are_told() -> None:
    survey = WorkflowSurvey(Keys(), *COMMON, budget=10)
    survey._walk.counts = Counter({(f"workflow-{number}", "running"): number + 1 for number in range(MOST_SERIES + 5)})
    survey.ask(NOW_MS)
    series = told(survey, [None])
    assert len(series) == MOST_SERIES
    assert min(series.values()) == 6
    assert survey.troubles == [f"of {MOST_SERIES + 5} kinds of runs only the {MOST_SERIES} commonest are told"]


# --- workers ---------------------------------------------------------------------------------------------------------


def beat(worker: str, seconds: float, *, age_s: float | None = None, skew_s: float = 0.0) -> WorkerHeartbeat:
    """A heartbeat written so many seconds after the epoch, by a clock that is `skew_s` fast."""
    heartbeat = Heartbeat(
        worker_id=worker,
        timestamp=EPOCH + timedelta(seconds=seconds + skew_s),
        inflight=3,
        own_namespace="billing",
        extras=HeartbeatExtras(concurrency=4, memory_bytes=1 << 20, subscriptions=Subscriptions(queues=("default",))),
    )
    return WorkerHeartbeat(heartbeat, None if age_s is None else int(age_s * 1000))


def workers() -> WorkerSurvey:
    return WorkerSurvey(Keys(), *COMMON, timeout=30, ttl=100, most=10)


def test_a_worker_is_up_then_down_then_forgotten() -> None:
    survey, seen = workers(), []
    for second in (5, 15, 25, 31, 45, 61, 101):
        survey.ask(NOW_MS)
        alive = [beat("w", 0, age_s=second)] if second < 60 else []
        series = told(survey, [Heartbeats(alive, [] if alive else ["w"], {})], second)
        up, age = (series.get((name, "w", "billing")) for name in ("stem.worker.up", "stem.worker.heartbeat.age"))
        seen.append(
            (up, age, "w" in survey.late, "w" in survey.down, ("stem.worker.inflight", "w", "billing") in series)
        )
    assert seen == [
        (1, 5, False, False, True),
        (1, 15, False, False, True),
        (1, 25, True, False, True),
        (0, 31, False, True, False),
        (0, 45, False, False, False),
        (0, 61, False, False, False),
        (None, None, False, False, False),
    ]


def test_a_clock_that_is_wrong_is_told_apart_from_silence() -> None:
    survey = workers()
    survey.ask(NOW_MS)
    first = told(survey, [Heartbeats([beat("w", 0, age_s=4, skew_s=90)], [], {})], 4)
    assert first["stem.worker.clock_skew", "w", "billing"] == pytest.approx(90, abs=0.001)
    survey.ask(NOW_MS)  # no age this time: what was learnt about the clock tells it
    second = told(survey, [Heartbeats([beat("w", 10, skew_s=90)], [], {})], 16)
    assert second["stem.worker.heartbeat.age", "w", "billing"] == pytest.approx(6, abs=0.002)


def test_workers_that_were_gone_before_we_came_are_not_told_of() -> None:
    survey = workers()
    survey.ask(NOW_MS)
    assert told(survey, [Heartbeats([], ["long", "gone"], {"odd": "not_json"})]) == {}
    assert survey.troubles == ["1 heartbeats that are none, as that of worker odd: not_json"]


def test_workers_tell_of_queues_and_namespaces() -> None:
    survey = workers()
    survey.ask(NOW_MS)
    told(survey, [Heartbeats([beat("w", 0, age_s=0)], [], {})])
    assert (survey.queues, survey.namespaces) == ({"default"}, {"billing"})


# --- what was lost with a worker -------------------------------------------------------------------------------------

STARTED = EPOCH - timedelta(seconds=3)
ENVELOPE = Envelope(id=TASK_ID, name="email.send", queue="default", enqueued_at=EPOCH - timedelta(seconds=9), attempt=1)


def record(state: TaskState, worker: str | None = "w", **changes: Any) -> TaskStatus:
    return TaskStatus(id=TASK_ID, state=state, attempt=1, worker=worker, started_at=STARTED, **changes)


def lost_with(*, seen: TaskStatus | str | None, at_last: TaskStatus | str | None) -> list[LostAttempt]:
    vanishing = Vanishing(UTC_ZONE)
    pending = [Pending("stem:stream:default", "1-0", "w", 20_000, 1, ENVELOPE)]
    vanishing.saw("w", pending, {TASK_ID: seen} if seen else {})
    wanted = vanishing.wanted("w")
    assert wanted in ([], [TASK_ID])
    last_beat = beat("w", 0).heartbeat
    return list(vanishing.gone("w", last_beat, "stem", {TASK_ID: at_last} if at_last and wanted else {}))


RUNS = record(TaskState.RUNNING)


@pytest.mark.parametrize(
    ("seen", "at_last", "is_lost"),
    [
        pytest.param(RUNS, RUNS, True, id="it still runs there, says its record"),
        pytest.param(RUNS, record(TaskState.RUNNING, "other"), True, id="another took it over"),
        pytest.param(RUNS, record(TaskState.SUCCEEDED, "other"), True, id="another took it over and succeeded"),
        pytest.param(RUNS, record(TaskState.QUEUED), True, id="its publisher wrote late"),
        pytest.param(RUNS, record(TaskState.SUCCEEDED), False, id="it succeeded after all"),
        pytest.param(RUNS, record(TaskState.FAILED), False, id="it failed after all"),
        pytest.param(RUNS, record(TaskState.RETRIED, None), False, id="it was retried, by whom is not told"),
        pytest.param(RUNS, None, False, id="its record is gone"),
        pytest.param(RUNS, "not_json", False, id="its record cannot be read"),
        pytest.param(record(TaskState.QUEUED, None), RUNS, False, id="it was only pending"),
        pytest.param(record(TaskState.RUNNING, "other"), RUNS, False, id="it ran elsewhere"),
        pytest.param(record(TaskState.SUCCEEDED), RUNS, False, id="it had ended and was not acknowledged yet"),
        pytest.param(None, RUNS, False, id="nothing said that it ran"),
    ],
)
def test_only_what_surely_ran_there_and_did_not_end_is_lost(
    seen: TaskStatus | None, at_last: TaskStatus | str | None, *, is_lost: bool
) -> None:
    lost = lost_with(seen=seen, at_last=at_last)
    expected = LostAttempt("billing", "w", 1, ENVELOPE, nanoseconds(STARTED), NOW_NS)
    assert lost == ([expected] if is_lost else [])


def test_a_worker_that_is_heard_again_has_lost_nothing() -> None:
    vanishing = Vanishing(UTC_ZONE)
    vanishing.saw("w", [Pending("stem:stream:default", "1-0", "w", 1, 1, ENVELOPE)], {TASK_ID: RUNS})
    vanishing.only([])
    assert vanishing.wanted("w") == []


LOST = LostAttempt(
    "stem",
    "worker-9",
    1,
    Envelope(
        id=TASK_ID,
        name="email.send",
        queue="default",
        enqueued_at=EPOCH - timedelta(seconds=9),
        attempt=1,
        headers=Headers(traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
    ),
    nanoseconds(EPOCH - timedelta(seconds=3)),
    NOW_NS,
)


def test_what_was_lost_becomes_a_span_a_log_record_and_a_count() -> None:
    heard = Heard().read(LOST)
    span = heard.span("process")
    assert span.trace_id.hex() == "0af7651916cd43dd8448eb211c80319c"
    assert span.end_time_unix_nano - span.start_time_unix_nano == 3 * NANOSECONDS
    said = found(span)
    assert (said["stem.task.state"], said["stem.task.end_reason"]) == ("lost", "worker-lost")
    assert (said["stem.worker.id"], said["stem.source"]) == ("worker-9", "repair")
    assert [record.event_name for record in heard.logs] == ["stem.task.lost"]
    counts = heard.counts()
    assert counts["stem.tasks.lost"] == 1
    assert "stem.tasks.started" not in counts, "those told it that vanished with the worker"


def test_what_was_lost_is_told_once() -> None:
    heard = Heard().read(LOST, LOST)
    assert len([span for span in heard.spans if span.name.startswith("process")]) == 1
    assert heard.counts()["stem.tasks.lost"] == 1


@pytest.mark.parametrize(("worker", "judged"), [("worker-9", 0), ("worker-8", 1)])
def test_a_worker_that_is_heard_here_is_judged_here(worker: str, judged: int) -> None:
    story, voice = Story(worker_id="worker-9"), FleetVoice(lambda: pytest.fail("nobody leads"))
    story.recorded.heartbeat()
    heard = Heard().hear(story.payloads)
    lost = structs.replace(LOST, worker=worker)
    for step in voice.take("stem_state", [lost], UTC_ZONE, heard.correlator, heard.now_ns):
        step()
    assert len(heard.spans) == judged


def test_times_of_a_lost_attempt_are_those_of_its_worker_even_if_they_contradict_each_other() -> None:
    odd = LostAttempt(LOST.namespace, LOST.worker, LOST.attempt, LOST.envelope, LOST.started_ns, LOST.started_ns - 1)
    span = Heard().read(odd).span("process")
    assert span.end_time_unix_nano == span.start_time_unix_nano == LOST.started_ns
