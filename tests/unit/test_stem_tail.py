"""What changes of a record mean for the tasks that were seen on a stream, and when each is read. Nothing is asked."""

from datetime import datetime, timedelta
from typing import Any

import pytest
from agent.receivers.stem_tail.state import restore, snapshot

from agent.receivers.stem_tail.flights import Flights, Pace, Told
from agent.receivers.stem_tail.listener import tells_of_writes
from agent.receivers.stem_tail.positions import Positions
from agent.stem.catalogue import TaskState
from agent.stem.envelope import Envelope
from agent.stem.keys import Keys
from agent.stem.questions.entries import Entries, Entry, read_entries
from agent.stem.status import TaskStatus
from tests.support import EPOCH, SECOND, TASK_ID, UTC_ZONE, nanoseconds

NOW_NS = nanoseconds(EPOCH)
NOW_MS = NOW_NS // 1_000_000
PACE = Pace(young_ns=SECOND // 20, old_ns=5 * SECOND, most=3, ttl_ns=60 * SECOND, claim_ns=30 * SECOND)


def at(seconds: float) -> datetime:
    return EPOCH + timedelta(seconds=seconds)


def entry(number: int = 0, *, not_before: datetime | None = None, **changes: Any) -> Envelope:
    told = {"id": TASK_ID, "name": "email.send", "queue": "default", "enqueued_at": at(-1)}
    return Envelope(**{**told, **changes}, attempt=number, not_before=not_before)


def record(state: TaskState, number: int = 0, **changes: Any) -> TaskStatus:
    return TaskStatus(**{"id": TASK_ID, "updated_at": at(1), **changes}, state=state, attempt=number)


def running(started: float = 0.0, worker: str = "worker-1", number: int = 0) -> TaskStatus:
    return record(TaskState.RUNNING, number, worker=worker, started_at=at(started), updated_at=at(started))


def retried(ended: float = 1.0, number: int = 0, **changes: Any) -> TaskStatus:
    return record(TaskState.RETRIED, number, updated_at=at(ended), retry_delay_ms=300, **changes)


class Tail:
    """Flights, and the seconds that have passed."""

    def __init__(self, pace: Pace = PACE) -> None:
        self.flights = Flights(pace, UTC_ZONE, NOW_MS)
        self.seconds = 0.0

    @property
    def now_ns(self) -> int:
        return NOW_NS + int(self.seconds * SECOND)

    def entered(self, *entries: Envelope) -> list[bool]:
        return [self.flights.entered(each, NOW_MS + int(self.seconds * 1000), self.now_ns) for each in entries]

    def told(self, *records: TaskStatus) -> list[Told | None]:
        return [self.flights.told(each, self.now_ns) for each in records]


def test_a_first_entry_is_the_publish_and_what_follows_is_not() -> None:
    tail = Tail()
    assert tail.entered(entry(), entry(not_before=at(30)), entry(1, not_before=at(8))) == [True, False, False]


def test_what_may_have_been_on_a_stream_before_we_looked_is_no_publish() -> None:
    tail = Tail()
    old = entry(not_before=at(3))
    new = entry(id="task-2", not_before=at(3), enqueued_at=at(1))
    assert tail.entered(old, new, entry(2, id="task-3")) == [False, True, False]


def test_a_task_that_was_seen_to_start_and_to_end_is_under_way_no_more() -> None:
    tail = Tail()
    tail.entered(entry())
    done = record(TaskState.SUCCEEDED, worker="worker-1", started_at=at(0), completed_at=at(1))
    start, again, end = tail.told(running(), running(), done)
    assert start
    assert again is None
    assert end
    assert end.record is done
    assert len(tail.flights) == 0


def test_a_retry_is_that_of_the_one_delivery_that_runs() -> None:
    tail = Tail()
    tail.entered(entry())
    _, end = tail.told(running(), retried())
    assert end
    assert (end.record.worker, end.record.started_at) == ("worker-1", at(0))
    assert len(tail.flights) == 0


@pytest.mark.parametrize("why", ["a copy of the lease waits", "another worker could have claimed it"])
def test_a_retry_of_nobody_knows_which_delivery_is_told_of_none(why: str) -> None:
    tail = Tail()
    tail.entered(entry())
    tail.told(running())
    if why == "a copy of the lease waits":
        tail.entered(entry(not_before=at(30)))
        assert tail.told(retried()) == [None]
    else:
        assert tail.told(retried(31)) == [None]
    assert tail.flights.counts["ambiguous"] == 1


def test_a_retry_whose_start_was_never_seen_has_none() -> None:
    tail = Tail()
    tail.entered(entry())
    (end,) = tail.told(retried())
    assert end
    assert end.record.started_at is None
    assert end.record.worker is None


def test_a_late_queued_hides_nothing_and_answers_nothing() -> None:
    tail = Tail()
    tail.entered(entry())
    done = record(TaskState.SUCCEEDED, worker="worker-1", started_at=at(0))
    assert tail.told(running(), record(TaskState.QUEUED))[1] is None
    assert tail.told(done)[0]


def test_what_was_sent_back_is_no_attempt_and_comes_again() -> None:
    tail = Tail()
    tail.entered(entry())
    assert tail.told(retried(rate_limited=True)) == [None]
    assert len(tail.flights) == 0
    assert tail.entered(entry(not_before=at(0.3))) == [False]
    assert tail.told(retried(rate_limited=True)) == [None]
    (start,) = tail.told(running(1))
    assert start
    assert start.envelope.not_before == at(0.3)


def test_a_copy_of_a_lease_is_another_delivery_and_an_end_that_was_read_is_not_told_again() -> None:
    tail = Tail()
    tail.entered(entry())
    done = record(TaskState.SUCCEEDED, worker="worker-1", started_at=at(0))
    assert tail.told(running(), done)[1]
    tail.entered(entry(not_before=at(2)))
    assert tail.told(done) == [None]
    copy = record(TaskState.SUCCEEDED, worker="worker-2", started_at=at(2.1), updated_at=at(2.2))
    (told,) = tail.told(copy)
    assert told
    assert told.envelope.not_before == at(2)


def test_attempts_of_which_nothing_was_seen_are_counted() -> None:
    tail = Tail()
    tail.entered(entry(), entry(1))
    tail.told(running(2, number=1))
    assert tail.flights.counts["overlooked"] == 1


def test_a_task_that_nobody_is_registered_for_ends_with_its_dead_letter() -> None:
    tail = Tail()
    tail.entered(entry())
    tail.flights.dead(TASK_ID)
    assert len(tail.flights) == 0


def test_records_are_read_often_at_first_and_seldom_later() -> None:
    tail = Tail()
    tail.entered(entry())
    waits = []
    while tail.seconds < 59:
        assert tail.flights.due(tail.now_ns, 10) == [TASK_ID]
        tail.flights.again([TASK_ID], tail.now_ns)
        next_ns = tail.flights.next_ns()
        assert next_ns
        waits.append((next_ns - tail.now_ns) / SECOND)
        tail.seconds = (next_ns - NOW_NS + 1) / SECOND  # not a rounding before it
    assert waits == sorted(waits)
    assert waits[0] == pytest.approx(0.05)
    assert max(waits) <= 5
    tail.seconds = 66
    assert tail.flights.due(tail.now_ns, 10) == []
    assert tail.flights.counts["task_ttl"] == 1


def test_a_record_that_is_said_to_have_changed_is_read_at_once() -> None:
    tail = Tail()
    tail.entered(entry())
    tail.flights.due(tail.now_ns, 1)
    tail.flights.again([TASK_ID], tail.now_ns)
    assert tail.flights.due(tail.now_ns, 1) == []
    tail.flights.changed(TASK_ID, tail.now_ns)
    assert tail.flights.due(tail.now_ns, 1) == [TASK_ID]


def test_too_many_tasks_cost_the_oldest_and_are_counted() -> None:
    tail = Tail()
    tail.entered(*(entry(id=f"task-{index}") for index in range(5)))
    assert len(tail.flights) == 3
    assert tail.flights.counts["max_tasks"] == 2


def test_another_process_goes_on_from_where_the_one_before_was() -> None:
    tail, positions = Tail(), Positions(Keys(), 10, NOW_MS)
    positions.follow(["default"])
    tail.entered(entry())
    tail.told(running())
    stream = Keys().stream("default")
    positions.passed(Entries([Entry(stream, f"{NOW_MS + 5}-0", NOW_MS + 5, entry())], []))
    known = restore(snapshot(positions, tail.flights))
    assert known.at[stream] == f"{NOW_MS + 5}-0"
    assert known.at[Keys().stream("default", 9)] == f"{NOW_MS}-0"
    other = Tail()
    other.flights.restore(known.flights, other.now_ns)
    assert other.entered(entry(not_before=at(30), enqueued_at=at(1))) == [False]
    assert other.told(running()) == [None]


def test_queues_beyond_the_limit_and_control_queues_are_not_followed() -> None:
    positions = Positions(Keys(), 1, NOW_MS)
    positions.follow(["default", "media", "stem.control.broadcast"])
    assert list(positions.queues) == ["default"]
    assert positions.left_out == {"media"}


def test_what_is_no_envelope_is_an_entry_without_one() -> None:
    query = read_entries({"stem:stream:default": "0-0"}, 2)
    assert next(query) == [("XREAD", "COUNT", 2, "STREAMS", "stem:stream:default", "0-0")]
    fields = [b"id", b"task-1", b"name", b"email.send", b"enqueuedAt", b"2026-04-23T10:00:00Z"]
    with pytest.raises(StopIteration) as end:
        query.send([[[b"stem:stream:default", [[b"7-0", fields], [b"8-0", [b"foo", b"bar"]]]]]])
    entries = end.value.value
    assert [each.envelope and each.envelope.id for each in entries.found] == ["task-1", None]
    assert entries.more == ["stem:stream:default"]


@pytest.mark.parametrize(
    ("setting", "tells"), [("", False), ("K$", True), ("AK", True), ("E$", False), ("Kx", False), ("g$lshzxeK", True)]
)
def test_the_servers_setting_is_understood(setting: str, *, tells: bool) -> None:
    assert tells_of_writes(setting) is tells
