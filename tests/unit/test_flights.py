"""What changes of a record mean for the tasks that were seen on a stream, and when each is read. Nothing is asked."""

import pytest
from msgspec import structs

from agent.receivers.stem_tail.flight import News, Told, Unseen
from agent.stem.catalogue import TaskState
from agent.stem.envelope import Envelope
from agent.stem.questions.deliveries import Place
from tests.support import SECOND, TASK_ID
from tests.tails import NOW_NS, PACE, Tail, at, entry, failed, queued, record, retried, running, sent_back, succeeded

# --- entries ---------------------------------------------------------------------------------------------------------


def test_a_first_entry_is_the_publish_and_what_follows_is_not() -> None:
    tail = Tail()
    assert tail.entered(entry(), entry(not_before=at(30)), entry(1, not_before=at(8))) == [True, False, False]


def test_what_may_have_been_on_a_stream_before_we_looked_is_no_publish() -> None:
    tail = Tail()
    old = entry(not_before=at(3), enqueued_at=at(-1))
    new = entry(id="task-2", not_before=at(3), enqueued_at=at(1))
    assert tail.entered(old, new, entry(2, id="task-3")) == [False, True, False]


# --- records ---------------------------------------------------------------------------------------------------------


def test_a_task_that_was_seen_to_start_and_to_end_is_under_way_no_more() -> None:
    tail, done = Tail(), succeeded()
    tail.entered(entry())
    start, end = tail.told(running(), running(), done)
    assert isinstance(start, Told)
    assert isinstance(end, Told)
    assert (start.record.state, end.record) == (TaskState.RUNNING, done)
    assert len(tail.flights) == 0
    assert tail.told(done) == [], "and is told once"


def test_a_retry_is_that_of_the_one_delivery_that_runs() -> None:
    tail = Tail()
    tail.entered(entry())
    _, end = tail.told(running(), retried())
    assert isinstance(end, Told)
    assert (end.record.worker, end.record.started_at) == ("worker-1", at(0))
    assert tail.flights.unended == [TASK_ID], "it will come again"


@pytest.mark.parametrize("why", ["a copy of the lease waits", "another worker could have claimed it", "two run"])
def test_a_retry_of_nobody_knows_which_delivery_is_told_of_none(why: str) -> None:
    tail = Tail()
    tail.entered(entry())
    tail.told(running())
    ended = 1.0
    if why == "a copy of the lease waits":
        tail.entered(entry(not_before=at(30)))
    elif why == "two run":
        tail.entered(entry(not_before=at(0.1)))
        tail.told(running(0.2, "worker-2"))
    else:
        ended = 31
    assert tail.told(retried(ended)) == []
    assert tail.flights.counts["ambiguous"] == 1


def test_a_retry_whose_start_was_never_seen_has_none() -> None:
    tail = Tail()
    tail.entered(entry())
    (end,) = tail.told(retried())
    assert isinstance(end, Told)
    assert (end.record.started_at, end.record.worker) == (None, None)


def test_a_late_queued_hides_nothing_and_answers_nothing() -> None:
    tail = Tail()
    tail.entered(entry())
    assert len(tail.told(running())) == 1
    assert tail.told(queued()) == []
    assert len(tail.told(succeeded())) == 1


def test_a_copy_of_a_lease_is_another_delivery_and_an_end_that_was_read_is_not_told_again() -> None:
    tail, done = Tail(), succeeded()
    tail.entered(entry())
    tail.told(running(), done)
    tail.entered(entry(not_before=at(2)), seconds=2)
    assert tail.told(done) == []
    (told,) = tail.told(succeeded(2.1, 2.2, "worker-2"))
    assert told.envelope.not_before == at(2)


def test_of_several_entries_a_start_answers_the_newest_that_was_there() -> None:
    tail = Tail()
    tail.entered(entry())
    tail.entered(entry(not_before=at(2)), seconds=2)
    tail.entered(entry(not_before=at(9)), seconds=9)
    (told,) = tail.told(running(5))
    assert told.envelope.not_before == at(2)


@pytest.mark.parametrize("end", [{"expired": True, "worker": "worker-1"}, {"security": "signature-invalid"}])
def test_what_was_refused_before_it_ran_is_the_end_of_an_entry_and_not_of_what_runs(end: dict[str, object]) -> None:
    tail = Tail()
    tail.entered(entry())
    tail.told(running())
    tail.entered(entry(not_before=at(2)), seconds=2)
    state = TaskState.CANCELLED if "expired" in end else TaskState.FAILED
    (refused,) = tail.told(record(state, **end))
    assert refused.envelope.not_before == at(2)
    (ended,) = tail.told(succeeded(0, 3))
    assert isinstance(ended, Told)
    assert ended.record.started_at == at(0)


def test_a_revocation_while_it_runs_is_the_end_of_what_its_worker_runs() -> None:
    tail = Tail()
    tail.entered(entry())
    tail.told(running())
    assert tail.told(record(TaskState.CANCELLED, revoked=True, worker="worker-2")) == []
    tail.entered(entry(id="task-2"))
    tail.told(structs.replace(running(), id="task-2"))
    (ended,) = tail.told(record(TaskState.CANCELLED, id="task-2", revoked=True, worker="worker-1"))
    assert isinstance(ended, Told)
    assert ended.record.started_at == at(0)


def test_a_task_that_nobody_is_registered_for_ends_with_its_dead_letter() -> None:
    tail = Tail()
    tail.entered(entry())
    tail.flights.unregistered(TASK_ID)
    assert len(tail.flights) == 0


def test_what_runs_is_not_given_up_because_another_worker_does_not_know_its_task() -> None:
    tail = Tail()
    tail.entered(entry())
    tail.told(running())
    tail.flights.unregistered(TASK_ID)
    assert len(tail.told(succeeded())) == 1


# --- what was sent back ----------------------------------------------------------------------------------------------


def test_what_was_sent_back_is_no_attempt_and_comes_again() -> None:
    tail = Tail()
    tail.entered(entry())
    assert tail.told(sent_back()) == []
    assert tail.flights.unended == [TASK_ID]
    assert tail.entered(entry(not_before=at(1.3)), seconds=1.3) == [False]


def test_what_was_sent_back_keeps_the_time_at_which_it_was_due_first() -> None:
    tail = Tail()
    tail.entered(entry(not_before=at(0.1), enqueued_at=at(0)), seconds=0.1)
    for turn in range(1, 4):
        tail.told(sent_back(turn))
        tail.entered(entry(not_before=at(turn + 0.3)), seconds=turn + 0.3)
    (start,) = tail.told(running(4))
    assert start.envelope.not_before == at(0.1)


def test_a_retry_is_due_when_it_says_though_the_attempt_before_it_was_sent_back() -> None:
    tail = Tail()
    tail.entered(entry())
    tail.told(sent_back(1))
    tail.entered(entry(not_before=at(1.3)), seconds=1.3)
    tail.entered(entry(1, not_before=at(5)), seconds=5)
    (_, start) = tail.told(running(6, number=1))
    assert start.envelope.not_before == at(5)


def test_what_was_sent_back_and_delivered_again_before_its_record_was_read_is_awaited_once() -> None:
    tail = Tail()
    tail.entered(entry())
    tail.entered(entry(not_before=at(1.3)), seconds=1.3)
    tail.told(sent_back(1))
    (start, end) = tail.told(running(1.4), succeeded(1.4, 1.5))
    assert start.envelope.not_before is None, "it waits since it was due first"
    assert isinstance(end, Told)
    assert len(tail.flights) == 0


# --- what no record tells --------------------------------------------------------------------------------------------


def test_an_attempt_of_which_nothing_was_seen_is_over_when_the_one_after_it_starts() -> None:
    tail = Tail()
    tail.entered(entry(), entry(1))
    over, start = tail.told(running(2, number=1))
    assert isinstance(over, Unseen)
    assert over == Unseen(entry(), 0, None, None, NOW_NS + 2 * SECOND, retried=True, start_told=False)
    assert isinstance(start, Told)
    assert tail.flights.counts["overlooked"] == 1


def test_an_attempt_that_was_seen_to_start_and_not_to_end_keeps_its_start() -> None:
    tail = Tail()
    tail.entered(entry())
    tail.told(running(0.5, "worker-7"))
    tail.entered(entry(1), seconds=3)
    over, _ = tail.told(running(3.5, number=1))
    assert isinstance(over, Unseen)
    assert (over.worker, over.started_at, over.retried) == ("worker-7", at(0.5), True)
    assert tail.flights.counts["overlooked"] == 0, "something was seen of it"


def test_each_attempt_that_was_passed_over_is_told_once() -> None:
    tail = Tail()
    tail.entered(entry(), entry(not_before=at(1)), entry(1), entry(2))
    tail.told(running())
    news = tail.told(succeeded(5, 5.5, number=2))
    unseen = [each for each in news if isinstance(each, Unseen)]
    assert [(each.attempt, each.started_at) for each in unseen] == [(0, at(0)), (1, None)]
    assert isinstance(news[-1], Told)
    assert tail.flights.unended == []


def test_the_last_attempt_that_was_allowed_failed_and_what_follows_is_a_replay() -> None:
    tail = Tail()
    tail.entered(entry(2, max_retries=2), entry(3, max_retries=2))
    over, _ = tail.told(running(2, number=3))
    assert isinstance(over, Unseen)
    assert not over.retried


@pytest.mark.parametrize(("seconds", "asked"), [(29, True), (30, False)])
def test_who_may_have_been_taken_over_is_not_said_to_have_asked_for_the_next_attempt(
    seconds: float, *, asked: bool
) -> None:
    tail = Tail()
    tail.entered(entry())
    tail.told(running(0))
    tail.entered(entry(1), seconds=seconds)
    over, _ = tail.told(running(seconds, number=1))
    assert isinstance(over, Unseen)
    assert over.retried is asked


def test_of_two_that_run_nobody_knows_which_asked_for_the_next_attempt() -> None:
    tail = Tail()
    tail.entered(entry())
    tail.told(running(0))
    tail.told(running(31, "worker-2"), seconds=31)
    tail.entered(entry(1), seconds=33)
    assert len(tail.told(running(34, number=1), seconds=34)) == 1, "neither is said to be over"
    done = succeeded(34, 35, number=1)
    tail.told(done, seconds=35)
    over = tail.told(done, seconds=120)
    assert [(each.started_at, each.retried) for each in over if isinstance(each, Unseen)] == [
        (at(0), False),
        (at(31), False),
    ]


def copied() -> Tail:
    """A task whose first attempt ran for so long that the copy of its lease comes after the second has begun."""
    tail = Tail()
    tail.entered(entry())
    tail.told(running(0))
    tail.told(retried(40), seconds=40)
    tail.entered(entry(1), seconds=41)
    tail.entered(entry(not_before=at(45)), seconds=45)
    return tail


def test_the_copy_of_an_earlier_attempts_lease_is_told_exactly_though_a_later_one_began() -> None:
    tail = copied()
    assert len(tail.told(running(46, "worker-3", number=1), seconds=46)) == 1
    start, end = tail.told(running(47, "worker-2"), succeeded(47, 49, "worker-2"), seconds=49)
    assert isinstance(start, Told)
    assert isinstance(end, Told)
    assert (end.record.attempt, end.envelope.not_before) == (0, at(45))
    (last,) = tail.told(succeeded(46, 50, "worker-3", number=1), seconds=50)
    assert isinstance(last, Told)
    assert last.record.attempt == 1


def test_an_attempt_of_which_only_the_entries_were_seen_is_told_at_last_where_copies_kept_that_open() -> None:
    tail = Tail()
    tail.entered(entry())
    tail.entered(entry(1), seconds=41)
    tail.entered(entry(not_before=at(45)), seconds=45)
    done = succeeded(46, 47, number=1)
    assert [each for each in tail.told(done, seconds=47) if isinstance(each, Unseen)] == []
    (over,) = tail.told(done, seconds=120)
    assert isinstance(over, Unseen)
    assert (over.attempt, over.started_at, over.retried) == (0, None, True)
    assert tail.flights.counts["overlooked"] == 1


def test_what_runs_beside_the_end_of_its_task_is_given_up_when_it_would_have_ended_too() -> None:
    tail = Tail()
    tail.entered(entry())
    tail.told(running(0))
    tail.entered(entry(not_before=at(30)), seconds=30)
    tail.told(running(31, "worker-2"), seconds=31)
    done = succeeded(31, 40, "worker-2")
    assert len(tail.told(done, seconds=40)) == 1
    assert tail.told(done, seconds=99) == []
    (over,) = tail.told(done, seconds=101)
    assert isinstance(over, Unseen)
    assert (over.worker, over.started_at, over.retried) == ("worker-1", at(0), False)
    assert over.over_ns == NOW_NS + 40 * SECOND
    assert tail.flights.unended == []


def test_what_ran_for_an_hour_is_given_up_an_hour_later() -> None:
    tail = Tail()
    tail.entered(entry())
    tail.told(running(0))
    tail.entered(entry(not_before=at(30)), seconds=30)
    tail.told(running(31, "worker-2"))
    done = succeeded(31, 3600, "worker-2")
    tail.told(done, seconds=3600)
    assert tail.told(done, seconds=7100) == []
    assert len(tail.told(done, seconds=7201)) == 1


def test_entries_that_were_there_before_the_end_of_their_task_are_answered_with_it() -> None:
    tail = Tail()
    tail.entered(entry(), entry(not_before=at(0.1)))
    done = succeeded(0.5, 1)
    assert len(tail.told(done, seconds=1)) == 1
    assert len(tail.flights) == 1, "one entry may still be answered"
    assert tail.told(done, seconds=62) == []
    assert len(tail.flights) == 0


def test_an_entry_that_came_after_the_end_of_its_task_is_still_owed_an_answer() -> None:
    tail, done = Tail(), succeeded(0.5, 1)
    tail.entered(entry(), entry(not_before=at(0.1)))
    tail.told(done, seconds=1)
    tail.entered(entry(not_before=at(30)), seconds=30)
    assert tail.told(done, seconds=200) == []
    assert len(tail.told(succeeded(201, 202))) == 1


# --- copies of leases that come late ---------------------------------------------------------------------------------


def lingers(task: Envelope, run_s: float) -> float:
    """For how long (seconds) a task is not forgotten after it ran for so long."""
    tail = Tail()
    tail.entered(task)
    tail.told(succeeded(0, run_s))
    flight = tail.flights.all().get(task.id or "")
    return (flight.due_ns - tail.now_ns) / SECOND if flight else 0.0


@pytest.mark.parametrize(
    ("visibility_ms", "run_s", "seconds"), [(None, 0.9, 0), (None, 1, 60), (10_000, 1, 20), (1 << 40, 5, 1200)]
)
def test_whose_lease_was_renewed_is_remembered_until_its_copies_have_come(
    visibility_ms: int | None, run_s: float, seconds: float
) -> None:
    assert lingers(entry(visibility_timeout=visibility_ms), run_s) == seconds


def test_who_lingers_is_awaited_no_more_and_is_forgotten_in_time() -> None:
    tail = Tail()
    tail.entered(entry())
    tail.told(succeeded(0, 2), seconds=2)
    assert (len(tail.flights), tail.flights.unended) == (1, [])
    assert tail.flights.due(NOW_NS + 61 * SECOND, 10) == []
    assert len(tail.flights) == 1
    assert tail.flights.due(NOW_NS + 62 * SECOND, 10) == []
    assert len(tail.flights) == 0
    assert tail.flights.counts.total() == 0


def test_the_copy_of_a_lease_that_comes_to_whoever_goes_on_is_no_publish() -> None:
    tail = Tail()
    tail.entered(entry(enqueued_at=at(1)), seconds=1)
    tail.told(succeeded(2, 9), seconds=9)
    other = tail.handed_over()
    assert other.entered(entry(enqueued_at=at(1), not_before=at(30)), seconds=30) == [False]
    (told,) = other.told(succeeded(31, 38, "worker-2"))
    assert told.envelope.not_before == at(30)


def test_who_lingers_makes_room_for_who_is_under_way_and_is_not_counted_as_dropped() -> None:
    tail = Tail()
    tail.entered(*(entry(id=f"task-{index}") for index in range(3)))
    tail.told(*(succeeded(0, 2, id=f"task-{index}") for index in (1, 2)))
    tail.entered(entry(id="task-3"), entry(id="task-4"))
    assert set(tail.flights.all()) == {"task-0", "task-3", "task-4"}
    assert tail.flights.counts.total() == 0
    tail.entered(entry(id="task-5"))
    assert (tail.flights.counts["max_tasks"], tail.flights.dropped) == (1, "task-0")


# --- answers that a late `queued` hides ------------------------------------------------------------------------------


def asked(tail: Tail, *, seconds: float) -> list[Place]:
    tail.seconds = seconds
    return tail.flights.unanswered(tail.now_ns, 10)


def acknowledged(tail: Tail, places: list[Place]) -> list[News]:
    return tail.flights.acknowledged(set(places), tail.now_ns)


def hidden(*entries: Envelope) -> Tail:
    """A task whose publisher wrote `queued` over every answer."""
    tail = Tail()
    for seconds, each in enumerate(entries):
        tail.entered(each, seconds=seconds)
    tail.told(queued())
    return tail


def test_what_says_nothing_for_two_leases_is_asked_for_and_over_when_it_is_acknowledged_for_the_second_time() -> None:
    tail = hidden(entry())
    assert asked(tail, seconds=59) == []
    places = asked(tail, seconds=60)
    assert len(places) == 1
    assert acknowledged(tail, places) == [], "a worker acknowledges before it writes"
    (over,) = acknowledged(tail, asked(tail, seconds=61))
    assert over == Unseen(entry(), 0, None, None, NOW_NS + 61 * SECOND, retried=False, start_told=False)
    assert (tail.flights.unended, tail.flights.counts["hidden"]) == ([], 1)


def test_what_was_not_acknowledged_still_waits() -> None:
    tail = hidden(entry())
    asked(tail, seconds=60)
    assert acknowledged(tail, []) == []
    assert tail.flights.unended == [TASK_ID]
    assert len(asked(tail, seconds=65)) == 1


def test_of_the_entries_of_an_attempt_all_but_one_were_sent_back() -> None:
    tail = hidden(entry(), entry(not_before=at(1)), entry(1, not_before=at(2)))
    for seconds in (100, 101):
        news = acknowledged(tail, asked(tail, seconds=seconds))
    assert [(each.attempt, each.retried) for each in news if isinstance(each, Unseen)] == [(0, True), (1, False)]
    assert tail.flights.unended == []


def test_an_attempt_that_was_told_is_not_told_again_because_its_other_entry_is_over_too() -> None:
    tail = Tail()
    tail.entered(entry(), entry(not_before=at(0.3)))
    assert len(tail.told(retried(0.5))) == 1
    tail.told(queued(0.6))
    for seconds in (100, 101):
        news = acknowledged(tail, asked(tail, seconds=seconds))
    assert news == []


def test_what_was_sent_back_before_its_answer_was_hidden_is_asked_for() -> None:
    tail = Tail()
    tail.entered(entry())
    tail.entered(entry(not_before=at(0.3)), seconds=0.3)
    tail.told(sent_back(0.1), queued(0.4))
    for seconds in (100, 101):
        news = acknowledged(tail, asked(tail, seconds=seconds))
    assert [each.attempt for each in news if isinstance(each, Unseen)] == [0]


def test_whose_record_speaks_is_not_asked_for() -> None:
    tail = hidden(entry())
    tail.told(running(1))
    tail.entered(entry(not_before=at(2)), seconds=2)
    assert asked(tail, seconds=100) == []


# --- tasks that were there before we looked --------------------------------------------------------------------------


def known_in_part() -> Tail:
    """A task that ran before we looked: the first that is seen of it is the copy of its lease."""
    tail = Tail()
    tail.entered(entry(not_before=at(45), enqueued_at=at(-5)), seconds=45)
    return tail


def test_a_start_long_before_the_first_entry_that_was_seen_is_not_of_that() -> None:
    tail = known_in_part()
    assert tail.told(succeeded(-1, 44)) == []
    (told,) = tail.told(succeeded(46, 46.5, "worker-2"))
    assert told.envelope.not_before == at(45)


@pytest.mark.parametrize("late", [-1.0, -90.0])
def test_a_clock_that_is_late_costs_nothing_of_a_task_that_was_seen_from_the_beginning(late: float) -> None:
    tail = Tail()
    tail.entered(entry())
    tail.told(sent_back(late - 1))
    tail.entered(entry(not_before=at(1)), seconds=1)
    assert len(tail.told(succeeded(late, late + 1))) == 1


def test_an_end_without_a_start_that_was_written_before_the_first_entry_is_not_of_that() -> None:
    tail = known_in_part()
    assert tail.told(record(TaskState.CANCELLED, revoked=True, worker="worker-1", updated_at=at(44))) == []
    assert len(tail.told(succeeded(46, 46.5))) == 1


def test_a_retry_may_be_of_the_delivery_that_was_not_seen() -> None:
    tail = known_in_part()
    tail.told(running(46))
    assert tail.told(retried(47)) == []
    assert tail.flights.counts["ambiguous"] == 1


# --- time ------------------------------------------------------------------------------------------------------------


def test_records_are_read_often_at_first_and_seldom_later() -> None:
    tail = Tail()
    tail.entered(entry())
    waits = []
    while tail.seconds < 590:
        assert tail.flights.due(tail.now_ns, 10) == [TASK_ID]
        tail.flights.again([TASK_ID], tail.now_ns)
        next_ns = tail.flights.next_ns()
        assert next_ns
        waits.append((next_ns - tail.now_ns) / SECOND)
        tail.seconds = (next_ns - NOW_NS + 1) / SECOND  # not a rounding before it
    assert waits == sorted(waits)
    assert waits[0] == pytest.approx(0.05)
    assert waits[len(waits) // 2] <= 5
    assert max(waits) == pytest.approx(590 / 60, abs=0.5), "a task without news for long is read every sixtieth of that"


def test_a_task_without_news_for_too_long_is_dropped_and_counted() -> None:
    tail = Tail()
    tail.entered(entry())
    assert tail.flights.due(NOW_NS + PACE.ttl_ns + 1, 10) == []
    assert (len(tail.flights), tail.flights.counts["task_ttl"], tail.flights.dropped) == (0, 1, TASK_ID)


def test_a_task_that_has_ended_is_dropped_without_a_word() -> None:
    tail, done = Tail(), succeeded(2, 9)
    tail.entered(entry())
    tail.entered(entry(not_before=at(4)), seconds=4)
    tail.entered(entry(not_before=at(5)), seconds=5)
    tail.told(done, seconds=9)
    tail.told(done, seconds=100)
    assert len(tail.flights) == 1, "another delivery may still come of the last entry"
    tail.flights.again([TASK_ID], tail.now_ns)
    assert tail.flights.due(NOW_NS + 100 * SECOND + PACE.ttl_ns, 10) == []
    assert (len(tail.flights), tail.flights.counts["task_ttl"]) == (0, 0)


def test_news_make_a_task_young_again() -> None:
    tail = Tail()
    tail.entered(entry())
    for seconds in (590, 1180):
        tail.seconds = seconds
        assert tail.flights.due(tail.now_ns, 1) == [TASK_ID]
        tail.told(running(seconds))
    next_ns = tail.flights.next_ns()
    assert next_ns
    assert next_ns - tail.now_ns == PACE.young_ns


def test_a_record_that_is_said_to_have_changed_is_read_at_once() -> None:
    tail = Tail()
    tail.entered(entry())
    tail.flights.due(tail.now_ns, 1)
    tail.flights.again([TASK_ID], tail.now_ns)
    assert tail.flights.due(tail.now_ns, 1) == []
    tail.flights.changed(TASK_ID, tail.now_ns)
    assert tail.flights.due(tail.now_ns, 1) == [TASK_ID]


def test_no_more_records_are_due_at_once_than_are_asked_for() -> None:
    tail = Tail()
    tail.entered(*(entry(id=f"task-{index}") for index in range(3)))
    assert [tail.flights.due(tail.now_ns, 2) for _ in range(3)] == [["task-0", "task-1"], ["task-2"], []]


def test_too_many_tasks_cost_the_oldest_and_are_counted() -> None:
    tail = Tail()
    tail.entered(*(entry(id=f"task-{index}") for index in range(5)))
    assert len(tail.flights) == 3
    assert (tail.flights.counts["max_tasks"], tail.flights.dropped) == (2, "task-1")


def test_a_task_that_was_forgotten_is_not_published_a_second_time() -> None:
    tail = Tail()
    tail.entered(*(entry(id=f"task-{index}", enqueued_at=at(index)) for index in range(7)), seconds=7)
    assert tail.flights.since_ms > 0
    assert tail.entered(entry(id="task-0", not_before=at(8), enqueued_at=at(0)), seconds=8) == [False]


# --- from one process to the next ------------------------------------------------------------------------------------


def test_changes_are_told_once_and_what_is_under_way_no_more_is_struck() -> None:
    tail = Tail()
    tail.entered(entry(), entry(id="task-2"))
    assert set(tail.flights.changes()) == {TASK_ID, "task-2"}
    assert tail.flights.changes() == {}
    tail.told(running())
    assert [flight and len(flight.open) for flight in tail.flights.changes().values()] == [1]
    tail.told(succeeded())
    assert tail.flights.changes() == {TASK_ID: None}


def test_what_was_never_noted_is_not_struck() -> None:
    tail = Tail()
    tail.entered(entry())
    tail.told(succeeded())
    assert tail.flights.changes() == {}


def test_what_was_dropped_is_struck() -> None:
    tail = Tail()
    tail.entered(entry(id="task-0"))
    tail.flights.changes()
    tail.entered(*(entry(id=f"task-{index}") for index in range(1, 5)))
    assert tail.flights.changes() == {"task-0": None, "task-2": tail.flights.all()["task-2"]} | {
        f"task-{index}": tail.flights.all()[f"task-{index}"] for index in (3, 4)
    }


def test_whoever_goes_on_reads_every_record_at_once_and_knows_which_starts_were_told() -> None:
    tail = Tail()
    tail.entered(entry())
    tail.told(running())
    other = tail.handed_over()
    assert other.flights.due(other.now_ns, 10) == [TASK_ID]
    assert other.told(running()) == [], "its start was told"
    (end,) = other.told(succeeded())
    assert end.start_told
    assert other.flights.changes() == {TASK_ID: None}


def test_whoever_goes_on_tells_of_an_attempt_that_ended_unseen_that_its_start_was_told() -> None:
    tail = Tail()
    tail.entered(entry())
    tail.told(running())
    other = tail.handed_over()
    other.entered(entry(1), seconds=2)
    over, start = other.told(running(3, number=1))
    assert (over.start_told, start.start_told) == (True, False)


def test_failures_are_ends() -> None:
    tail = Tail()
    tail.entered(entry(3))
    (end,) = tail.told(failed())
    assert isinstance(end, Told)
    assert end.record.state is TaskState.FAILED
    assert len(tail.flights) == 0
