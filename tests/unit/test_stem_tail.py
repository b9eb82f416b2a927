"""What is read of streams, in which order it is told, and what is left to whoever reads on. Nothing is asked."""

from typing import Any

import pytest

from agent.core.kept import KeptStateError
from agent.core.ledger import Ledger
from agent.core.ownership import Ownership
from agent.receivers.stem_tail import notes as tail_notes
from agent.receivers.stem_tail.config import StemTailConfig
from agent.receivers.stem_tail.hold import ACQUAINTANCE_NS, Hold
from agent.receivers.stem_tail.journal import MOST_CLOSED, REFRESHED_NS, Journal
from agent.receivers.stem_tail.listener import tells_of_writes
from agent.receivers.stem_tail.memory import Memory
from agent.receivers.stem_tail.notes import Notes, Standing
from agent.receivers.stem_tail.positions import Positions
from agent.receivers.stem_tail.session import Session
from agent.stem.catalogue import TaskState
from agent.stem.envelope import Envelope
from agent.stem.heartbeat import Heartbeat, HeartbeatExtras
from agent.stem.keys import Keys
from agent.stem.questions.dead_letters import DeadLetter
from agent.stem.questions.entries import Entry, Event, read_entries
from agent.stem.questions.workers import Heartbeats, WorkerHeartbeat
from agent.stem.wire import DeadLettered, EndTold, Enqueued, QueueEvent, Recorded, Tailed, Unended
from agent.telemetry.events import Telemetry
from tests.notebooks import MemoryNotebook
from tests.support import SECOND, TASK_ID, nanoseconds
from tests.tails import NOW_MS, NOW_NS, at, entry, on_stream, running, succeeded

CONFIG = StemTailConfig()
STREAM = Keys().stream("default")
TOTALS = {"a": b"total"}


def totals(*, everything: bool = False) -> dict[str, bytes | None]:
    return {"a": b"total"} if everything else {"a": b"total", "b": None}


# --- streams ---------------------------------------------------------------------------------------------------------


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


# --- order -----------------------------------------------------------------------------------------------------------


def event(name: str) -> QueueEvent:
    return QueueEvent("stem", "default", name, "1-0", NOW_NS, Envelope())


def names(facts: Any) -> list[str]:
    return [fact.name for fact in facts]


def hold(*facts: tuple[str | None, str], now_ns: int = NOW_NS) -> Hold:
    held = Hold()
    for worker, name in facts:
        held.is_new(worker, now_ns)
        held.take(worker, lambda name=name: event(name), now_ns)  # type: ignore[misc]
    return held


def test_facts_about_nobody_are_told_at_once() -> None:
    held = hold((None, "a"), (None, "b"))
    assert names(held.ready(NOW_NS)) == ["a", "b"]
    assert len(held) == 0


def test_a_worker_that_was_just_met_has_everybody_behind_it_wait() -> None:
    held = hold((None, "before"), ("worker-1", "start"), (None, "behind"))
    assert names(held.ready(NOW_NS)) == ["before"]
    assert held.next_ns() == NOW_NS + ACQUAINTANCE_NS
    assert names(held.ready(NOW_NS + ACQUAINTANCE_NS - 1)) == []
    assert names(held.ready(NOW_NS + ACQUAINTANCE_NS)) == ["start", "behind"]
    assert held.next_ns() is None


def test_a_worker_that_is_known_waits_no_more() -> None:
    held, later_ns = hold(("worker-1", "a")), NOW_NS + ACQUAINTANCE_NS
    assert names(held.ready(later_ns)) == ["a"]
    assert not held.is_new("worker-1", later_ns)
    held.take("worker-1", lambda: event("b"), later_ns)
    assert names(held.ready(later_ns)) == ["b"]


def test_at_the_end_nobody_waits() -> None:
    assert names(hold(("worker-1", "a"), ("worker-2", "b")).ready(NOW_NS, everything=True)) == ["a", "b"]


def test_a_fact_says_what_is_known_when_it_is_told() -> None:
    held, known = Hold(), ["early"]
    held.take(None, lambda: event(known[-1]), NOW_NS)
    known.append("late")
    assert names(held.ready(NOW_NS)) == ["late"]


# --- a session -------------------------------------------------------------------------------------------------------


def session(notes: Notes | None = None) -> Session:
    found = Session(CONFIG, NOW_MS, notes, NOW_NS)
    found.positions.follow(["default"])
    return found


def facts(found: Session, seconds: float = 9.0) -> list[Tailed]:
    return list(found.ready(NOW_NS + round(seconds * SECOND)))


def test_a_task_is_told_from_its_entry_to_its_end() -> None:
    tail = session()
    assert tail.entered(on_stream(entry()), NOW_NS)
    assert tail.recorded(running(), NOW_NS), "its worker is new"
    assert not tail.recorded(succeeded(), NOW_NS)
    enqueued, start, end = facts(tail)
    assert enqueued == Enqueued("stem", "default", entry(), NOW_MS * 1_000_000, published=True, claimed=False)
    assert start == Recorded("stem", running(), entry(), claimed=False)
    assert end == Recorded("stem", succeeded(), entry(), claimed=False)
    assert tail.told


def test_what_is_no_entry_is_said_to_be_none() -> None:
    assert not session().entered(Entry(STREAM, "1-0", 1, None), NOW_NS)


def test_an_applications_event_is_told_with_its_name_and_headers_alone() -> None:
    tail, envelope = session(), Envelope(name="__stem.queue.event__", enqueued_at=at(1))
    stream = Keys().events("default")
    tail.entered(Entry(stream, "7-0", 7, envelope, Event("order.paid", at(2))), NOW_NS)
    tail.entered(Entry(stream, "8-0", 8, envelope, Event("order.paid")), NOW_NS)
    (first, second) = facts(tail)
    assert first == QueueEvent("stem", "default", "order.paid", "7-0", nanoseconds(at(2)), envelope)
    assert isinstance(second, QueueEvent)
    assert second.time_ns == nanoseconds(at(1))
    assert len(tail.flights) == 0, "and is no task"


def test_an_end_that_no_record_tells_is_told_as_such() -> None:
    tail = session()
    tail.entered(on_stream(entry()), NOW_NS)
    tail.recorded(running(), NOW_NS)
    tail.entered(on_stream(entry(1), ready=2), NOW_NS + 2 * SECOND)
    tail.recorded(running(3, number=1), NOW_NS + 3 * SECOND)
    (over,) = [fact for fact in facts(tail) if isinstance(fact, Unended)]
    assert over == Unended(
        *("stem", entry(), 0, "worker-1", at(0), NOW_NS + 3 * SECOND), retried=True, claimed=False, start_told=False
    )


def test_a_dead_letter_is_told_and_ends_a_task_that_nobody_knows() -> None:
    tail = session()
    tail.entered(on_stream(entry()), NOW_NS)
    letter = DeadLetter(envelope=entry(), reason="unregistered-task", dead_at=at(1))
    tail.dead("default", letter, NOW_NS)
    assert facts(tail)[-1] == DeadLettered("stem", "default", entry(), "unregistered-task", None, at(1))
    assert len(tail.flights) == 0


# --- notes -----------------------------------------------------------------------------------------------------------


UNDER_WAY = {TASK_ID, "task-2"}


def under_way(*, noted: bool = False) -> Session:
    """Of three tasks one runs, one waits, and one has ended; `noted`: the last notes have all of them."""
    tail = session()
    for task_id in (TASK_ID, "task-2", "task-3"):
        tail.entered(on_stream(entry(id=task_id), ready=5), NOW_NS + 5 * SECOND)
    if noted:
        tail.changes()
    tail.recorded(running(6), NOW_NS + 6 * SECOND)
    tail.recorded(succeeded(6, 6.1, id="task-3"), NOW_NS + 7 * SECOND)
    tail.positions.at[STREAM] = f"{NOW_MS + 5000}-2"
    return tail


def test_notes_come_back_as_they_were_left() -> None:
    tail = under_way()
    notes = tail_notes.decode(noted_everything(tail))
    assert notes
    assert notes.totals == TOTALS
    assert notes.standing == tail.standing()
    assert notes.flights == tail.flights.all()
    assert tail_notes.unpack(tail_notes.pack(noted_everything(tail))) == notes


def noted_everything(tail: Session) -> dict[str, bytes]:
    encoded = tail_notes.encode(tail.standing(), tail.changes(everything=True), TOTALS)
    return {key: note for key, note in encoded.items() if note is not None}


def test_what_has_ended_is_struck_from_the_notes() -> None:
    tail = under_way(noted=True)
    encoded = tail_notes.encode(tail.standing(), tail.changes(), {"gone": None})
    assert set(encoded) == {"standing", "total:gone", f"task:{TASK_ID}", "task:task-3"}
    assert [key for key, note in encoded.items() if note is None] == ["task:task-3", "total:gone"]


def test_whoever_goes_on_stands_where_the_one_before_stood() -> None:
    before = under_way()
    notes = tail_notes.decode(noted_everything(before))
    tail = Session(CONFIG, NOW_MS + 60_000, notes, NOW_NS + 60 * SECOND)
    assert tail.standing() == before.standing()
    assert tail.positions.at[Keys().stream("default", 9)] == f"{NOW_MS}-0"
    assert set(tail.flights.due(NOW_NS + 60 * SECOND, 10)) == {TASK_ID, "task-2"}
    tail.recorded(succeeded(6, 9), NOW_NS + 60 * SECOND)
    start, end = facts(tail, 90)
    assert isinstance(start, Recorded)
    assert isinstance(end, Recorded)
    assert (start.record.state, start.start_told, end.start_told) == (TaskState.RUNNING, True, True)


def beats(*workers: str, namespace: str = "billing") -> list[Heartbeats]:
    told = {"timestamp": at(0), "own_namespace": namespace, "extras": HeartbeatExtras(host="node-1")}
    return [Heartbeats([WorkerHeartbeat(Heartbeat(worker, **told), None) for worker in workers], [], {})]


def claimed(tail: Session, *workers: str) -> None:
    """Tell the session whom other agents hear, in every namespace that it asks about."""
    asked = tail.fleet.ask_broker((), claims=True)
    tail.fleet.take_broker([set(), *([set(workers)] * (len(asked) - 1))])


def test_what_was_told_before_is_told_by_what_is_known_of_its_worker_now() -> None:
    before = under_way()
    tail = Session(CONFIG, NOW_MS, tail_notes.decode(noted_everything(before)), NOW_NS)
    tail.fleet.take_workers(beats("worker-1"))
    claimed(tail, "worker-1")
    (start,) = facts(tail)
    assert isinstance(start, Recorded)
    assert (start.namespace, start.claimed) == ("billing", True)


def test_a_worker_that_is_gone_is_still_in_its_namespace() -> None:
    tail = session()
    tail.fleet.take_workers(beats("worker-1"))
    tail.fleet.take_workers(beats())
    tail.entered(on_stream(entry()), NOW_NS)
    tail.recorded(succeeded(), NOW_NS)
    assert [fact.namespace for fact in facts(tail) if isinstance(fact, Recorded)] == ["billing"]


def test_what_began_first_is_told_first_to_whoever_goes_on() -> None:
    before = session()
    before.entered(on_stream(entry()), NOW_NS)
    before.recorded(running(0), NOW_NS)
    before.entered(on_stream(entry(not_before=at(15)), ready=15), NOW_NS + 15 * SECOND)
    before.recorded(succeeded(16, 20), NOW_NS + 20 * SECOND)
    tail = Session(CONFIG, NOW_MS, tail_notes.decode(noted_everything(before)), NOW_NS + 21 * SECOND)
    start, end = facts(tail, 90)
    assert isinstance(start, Recorded)
    assert isinstance(end, EndTold)
    assert (start.record.started_at, end.started_at) == (at(0), at(16))


def test_before_another_delivery_is_told_those_are_that_were_told_long_ago() -> None:
    tail = session()
    tail.entered(on_stream(entry()), NOW_NS)
    tail.recorded(succeeded(0, 20), NOW_NS + 20 * SECOND)
    assert [type(fact) for fact in facts(tail, 30)] == [Enqueued, Recorded]
    copy = entry(not_before=at(45))
    tail.entered(on_stream(copy, ready=45), NOW_NS + 45 * SECOND)
    tail.recorded(succeeded(46, 50, "worker-2"), NOW_NS + 50 * SECOND)
    assert [type(fact) for fact in facts(tail, 50)] == [Enqueued], "its worker is new, and so all of it waits"
    before, end = facts(tail, 53)
    assert before == EndTold(
        *("stem", TASK_ID, 0, "worker-1", at(0), nanoseconds(at(20))), retried=False, next_retry_ns=0
    )
    assert isinstance(end, Recorded)


def test_of_nothing_there_are_no_notes() -> None:
    assert tail_notes.decode({}) is None


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        pytest.param(lambda note: note[:4] + b"\x00\x63" + note[6:], "version", id="another version"),
        pytest.param(lambda note: b"else" + note[4:], "foreign", id="somebody else's"),
        pytest.param(lambda note: note[:-1] + b"?", "broken", id="damaged"),
        pytest.param(lambda note: note[:9], "broken", id="cut off"),
    ],
)
@pytest.mark.parametrize("key", ["standing", f"task:{TASK_ID}"])
def test_notes_that_do_not_fit_are_refused_with_the_reason(key: str, change: Any, reason: str) -> None:
    notes = noted_everything(under_way())
    notes[key] = change(notes[key])
    with pytest.raises(KeptStateError) as refused:
        tail_notes.decode(notes)
    assert refused.value.reason == reason


# --- the journal -----------------------------------------------------------------------------------------------------


def test_a_journal_is_due_after_news_and_now_and_then_without() -> None:
    journal = Journal(MemoryNotebook(), "stem_tail", Ledger())
    journal.close({}, NOW_NS)
    times = (0, REFRESHED_NS - 1, REFRESHED_NS)
    assert [journal.is_due(NOW_NS + time, news=True) for time in times] == [True, True, True]
    assert [journal.is_due(NOW_NS + time, news=False) for time in times] == [False, False, True]


async def test_while_nothing_arrives_no_more_notes_are_taken_than_can_be_kept() -> None:
    ledger = Ledger()
    account, journal = ledger.account("otlp_http", "traces"), Journal(MemoryNotebook(), "stem_tail", ledger)
    account.accepted = 1
    for _ in range(MOST_CLOSED):
        assert journal.is_due(NOW_NS, news=True)
        journal.close({}, NOW_NS)
    assert not journal.is_due(NOW_NS, news=True)
    account.delivered = 1
    await journal.write()
    assert journal.is_due(NOW_NS, news=True)


async def test_what_has_arrived_is_noted_and_what_was_told_later_is_not() -> None:
    notebook, ledger = MemoryNotebook(), Ledger()
    account, journal = ledger.account("otlp_http", "logs"), Journal(notebook, "stem_tail", ledger)
    for number in range(3):
        account.accepted += 10
        journal.close({"standing": b"%d" % number, f"task:{number}": b"x"}, NOW_NS)
    account.delivered = 29
    await journal.write()
    assert notebook.amended["stem_tail"] == {"standing": b"1", "task:0": b"x", "task:1": b"x"}


async def test_notes_are_written_once_everything_that_was_told_before_has_found_its_end() -> None:
    notebook, ledger = MemoryNotebook(), Ledger()
    account, journal = ledger.account("otlp_http", "traces"), Journal(notebook, "stem_tail", ledger)
    account.accepted = 5
    journal.close({"standing": b"1"}, NOW_NS)
    account.accepted = 9
    account.delivered = 4
    await journal.write()
    assert notebook.amended == {}
    account.dropped["queue_overflow"] += 1  # also an end
    await journal.write()
    assert notebook.amended == {"stem_tail": {"standing": b"1"}}


async def test_at_the_end_notes_are_written_at_once() -> None:
    notebook, ledger = MemoryNotebook(), Ledger()
    ledger.account("otlp_http", "traces").accepted = 5
    journal = Journal(notebook, "stem_tail", ledger)
    journal.close({"standing": b"1"}, NOW_NS)
    await journal.write(everything=True)
    assert notebook.amended == {"stem_tail": {"standing": b"1"}}


async def test_notes_that_could_not_be_written_are_written_later() -> None:
    notebook = MemoryNotebook()
    journal = Journal(notebook, "stem_tail", Ledger())
    journal.close({"standing": b"1"}, NOW_NS)
    notebook.broken = True
    with pytest.raises(ConnectionRefusedError):
        await journal.write()
    notebook.broken = False
    await journal.write()
    assert notebook.amended == {"stem_tail": {"standing": b"1"}}


# --- memory ----------------------------------------------------------------------------------------------------------


class Store:
    """Keeps one value for each key."""

    def __init__(self) -> None:
        self.kept: dict[str, bytes] = {}

    async def put(self, key: str, value: bytes) -> bool:
        self.kept[key] = value
        return True

    async def take(self, key: str) -> bytes | None:
        return self.kept.pop(key, None)


class Remembering:
    """Memories of agents that follow each other."""

    def __init__(self, notebook: MemoryNotebook | None) -> None:
        self.ownership, self.store, self.telemetry, self.ledger = Ownership(), Store(), Telemetry(), Ledger()
        self.ownership.notebook = notebook

    async def __call__(self) -> Memory:
        memory = Memory("stem_tail", self.ownership, self.ledger, self.telemetry, self.store)
        await memory.open()
        return memory


@pytest.fixture
def alone() -> Remembering:
    return Remembering(None)


@pytest.fixture
def among_others() -> Remembering:
    return Remembering(MemoryNotebook())


async def test_who_is_alone_leaves_its_notes_on_the_disk(alone: Remembering) -> None:
    first = await alone()
    assert await first.recall() is None
    assert await first.leave(under_way(), totals, NOW_NS, 1.0)
    second = await alone()
    found = await second.recall()
    assert found
    assert (set(found.flights), found.totals) == (UNDER_WAY, TOTALS)
    assert await second.recall() == found, "also at the second try, if something else failed at the first"
    third = await alone()
    assert await third.recall() is None, "and they are told once"


async def test_who_is_alone_without_a_storage_leaves_nothing() -> None:
    memory = Memory("stem_tail", Ownership(), Ledger(), Telemetry())
    await memory.open()
    assert await memory.recall() is None
    assert not await memory.leave(under_way(), totals, NOW_NS, 1.0)


async def test_among_others_the_notes_are_in_the_notebook_and_not_on_the_disk(among_others: Remembering) -> None:
    memory = await among_others()
    assert await memory.recall() is None
    assert await memory.leave(under_way(), totals, NOW_NS, 1.0)
    assert among_others.store.kept == {}
    found = await (await among_others()).recall()
    assert found
    assert (set(found.flights), found.totals) == (UNDER_WAY, TOTALS)


async def test_notes_are_taken_once_nothing_waits_to_be_told(among_others: Remembering) -> None:
    memory, tail = await among_others(), under_way()
    await memory.recall()
    notebook: Any = among_others.ownership.notebook
    memory.close(tail, totals, NOW_NS)
    await memory.write()
    assert notebook.amended == {}, "somebody's acquaintance is awaited"
    facts(tail)
    memory.close(tail, totals, NOW_NS)
    await memory.write()
    assert set(notebook.amended["stem_tail"]) == {
        "standing",
        "total:a",
        *(f"task:{each}" for each in tail.flights.all()),
    }
    memory.close(tail, totals, NOW_NS)
    notebook.amended.clear()
    await memory.write()
    assert notebook.amended == {}, "nothing was told since"


async def test_whoever_writes_notes_is_told_when_something_has_arrived(among_others: Remembering) -> None:
    memory = await among_others()
    for _ in range(2):
        await memory.recall()
    assert not memory.delivered.is_set()
    among_others.ledger.account("otlp_http", "traces").ended()
    assert memory.delivered.is_set()


@pytest.mark.parametrize("key", ["standing", f"task:{TASK_ID}"])
async def test_notes_that_cannot_be_used_are_told_of_and_struck(among_others: Remembering, key: str) -> None:
    memory = await among_others()
    await memory.recall()
    await memory.leave(under_way(), totals, NOW_NS, 1.0)
    notebook: Any = among_others.ownership.notebook
    notebook.amended["stem_tail"][key] = b"stem\x00\x63 of another version"
    assert await (await among_others()).recall() is None
    assert notebook.amended["stem_tail"] == {}, "so that nothing of them is taken for the next ones"
    assert among_others.telemetry.counted("stem_agent.state.refused") == 1


async def test_leavings_without_a_place_are_struck(among_others: Remembering) -> None:
    notebook: Any = among_others.ownership.notebook
    notebook.amended["stem_tail"] = {"task:task-9": b"?"}
    assert await (await among_others()).recall() is None
    assert notebook.amended["stem_tail"] == {}
    assert among_others.telemetry.counted("stem_agent.state.refused") == 0


def test_a_place_says_up_to_where_each_stream_was_read() -> None:
    tail = session()
    tail.positions.at[STREAM] = "7-1"
    standing: Standing = tail.standing()
    assert (standing.begin_ms, standing.since_ms, standing.queues) == (NOW_MS, NOW_MS, ["default"])
    assert standing.at[STREAM] == "7-1"
