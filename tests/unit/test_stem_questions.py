"""Questions as they are asked and answered, without a server: whatever comes back, they answer or say what is wrong."""

import contextlib
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.stem.keys import Keys
from agent.stem.questions.backlog import read_next_due
from agent.stem.questions.dead_letters import LetterWatch, read_dead_letters
from agent.stem.questions.deliveries import read_delayed, read_pending
from agent.stem.questions.discovery import QueueWalk
from agent.stem.questions.pauses import read_pauses
from agent.stem.questions.query import Command, Query, QueryRefusedError, ServerError, read_clock
from agent.stem.questions.queues import QueueState, QueueWatch, is_control
from agent.stem.questions.schedules import HistoryWatch, read_schedules
from agent.stem.questions.streams import read_groups
from agent.stem.questions.workers import CHUNK, read_heartbeats
from agent.stem.questions.workflows import WorkflowWalk

KEYS = Keys()
NOW = datetime(2026, 4, 23, 10, tzinfo=UTC)
NOW_MS = int(NOW.timestamp() * 1000)
NO_KEY = ServerError("ERR no such key (XINFO GROUPS stem:stream:email)")
WRONG_TYPE = ServerError("WRONGTYPE Operation against a key holding the wrong kind of value (ZCARD stem:delayed:email)")

MAKE: dict[str, Callable[[], Callable[[], Query[Any]]]] = {
    "queue": lambda: partial(QueueWatch(KEYS, "email").read, NOW_MS, UTC),
    "walk": lambda: partial(QueueWalk(KEYS).read, 100),
    "workflows": lambda: partial(WorkflowWalk(KEYS).read, 100),
    "history": lambda: partial(HistoryWatch(KEYS, "daily").read, 10),
    "letters": lambda: partial(LetterWatch(KEYS, "email").read),
    "heartbeats": lambda: lambda: read_heartbeats(KEYS, 10),
    "schedules": lambda: lambda: read_schedules(KEYS, 10),
    "pauses": lambda: lambda: read_pauses(KEYS, ["email", "sms"], NOW),
    "dead letters": lambda: lambda: read_dead_letters(KEYS, "email", 10),
    "pending": lambda: lambda: read_pending(KEYS, "email", 10),
    "delayed": lambda: lambda: read_delayed(KEYS, "email", 10),
    "next due": lambda: lambda: read_next_due(KEYS, "email"),
    "time": lambda: read_clock,
}
"""For each question what makes one, or one after another that remember."""

scalars = st.one_of(
    st.none(),
    st.integers(-(1 << 63), (1 << 63) - 1),
    st.binary(max_size=20),
    st.sampled_from([b"0", b"0-0", b"5-1", b"1e15", b"inf", b"nan", b"-inf", b"{}", b"null", b"[]", b"true", b"\xff"]),
    st.sampled_from([b'{"workerId":"w","timestamp":"2026-04-23T10:00:00Z"}', b'{"deadAt":"2026-04-23T10:00:00Z"}']),
)
errors = st.sampled_from([NO_KEY, WRONG_TYPE, ServerError("NOPERM no"), ServerError("ERR")])
anything = st.recursive(scalars, lambda inner: st.lists(inner, max_size=4), max_leaves=12)
entries = st.lists(st.tuples(scalars, st.lists(scalars, max_size=4)).map(list), max_size=3)
groups = st.lists(
    st.fixed_dictionaries(
        {
            b"name": st.sampled_from([b"stem:group:email", b"stem:group:email:p3", b"other"]) | scalars,
            b"pending": st.integers(0, 9) | scalars,
            b"last-delivered-id": st.sampled_from([b"0-0", b"5-0", b"5-1"]) | scalars,
        },
        optional={b"entries-read": scalars, b"lag": st.integers(0, 3) | scalars, b"new": anything},
    ).map(lambda told: [part for pair in told.items() for part in pair]),
    max_size=2,
)
LIKELY: dict[str, st.SearchStrategy[Any]] = {
    "XINFO": groups | st.just(NO_KEY),
    "XRANGE": entries,
    "XREVRANGE": entries,
    "SCAN": st.tuples(st.sampled_from([b"0", b"7"]) | scalars, st.lists(scalars, max_size=4)).map(list),
    "TIME": st.lists(scalars, min_size=2, max_size=2),
    **{name: st.integers(0, 9) for name in ("ZCARD", "ZCOUNT", "LLEN", "PTTL")},
    **{name: st.lists(scalars, max_size=17) for name in ("HMGET", "MGET", "SMEMBERS", "ZRANGE", "LRANGE", "XPENDING")},
    "LINDEX": scalars,
}


def reply(command: Command) -> st.SearchStrategy[Any]:
    return st.one_of(LIKELY[str(command[0])], anything, errors)


def answer(query: Query[Any], replies: Callable[[Command], Any]) -> Any:
    sent: Sequence[Any] | None = None
    while True:
        try:
            commands = next(query) if sent is None else query.send(sent)
        except StopIteration as end:
            return end.value
        sent = [replies(command) for command in commands]


@pytest.mark.parametrize("name", MAKE)
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_whatever_comes_back_a_question_answers_or_says_that_it_cannot(name: str, data: st.DataObject) -> None:
    ask = MAKE[name]()
    for _ in range(3):
        try:
            answer(ask(), lambda command: data.draw(reply(command)))
        except QueryRefusedError as refused:
            assert str(refused).startswith(("WRONGTYPE ", "NOPERM ", "ERR", "unexpected reply: "))


@pytest.mark.parametrize("name", MAKE)
def test_what_is_refused_is_told_in_the_servers_words(name: str) -> None:
    with pytest.raises(QueryRefusedError, match=r"^NOPERM this user has no permissions$"):
        answer(MAKE[name]()(), lambda _: ServerError("NOPERM this user has no permissions"))


@pytest.mark.parametrize("name", [name for name in MAKE if name not in {"pending", "time"}])
def test_only_commands_that_change_nothing_are_sent(name: str) -> None:
    sent: set[str] = set()

    def note(command: Command) -> Any:
        sent.add(str(command[0]))
        return {"SMEMBERS": [b"w"], "ZRANGE": [b"daily", b"5"], "SCAN": [b"0", [b"stem:wf:1"]]}.get(str(command[0]), 1)

    with contextlib.suppress(QueryRefusedError):
        answer(MAKE[name]()(), note)
    assert sent
    assert sent <= LIKELY.keys()


@pytest.mark.parametrize(
    ("told", "why"),
    [
        (b"text", "expected `array`, got `bytes`"),
        ([[b"name"]], "expected names with values"),
        ([[b"name", b"g", b"pending", 1]], "object missing required field `last-delivered-id`"),
        ([[b"name", b"g", b"pending", b"x", b"last-delivered-id", b"0-0"]], "expected `int`, got `bytes`"),
        ([[b"name", b"g", b"pending", 1, b"last-delivered-id", b"soon"]], "expected the id of a stream entry"),
    ],
)
def test_a_reply_that_no_redis_gives_is_told_without_what_it_holds(told: Any, why: str) -> None:
    with pytest.raises(QueryRefusedError, match=f"^unexpected reply: {why}"):
        read_groups(told)


def test_fields_of_groups_are_found_by_name_whatever_their_order_and_number() -> None:
    (old,) = read_groups([[b"name", b"g", b"consumers", 2, b"pending", 1, b"last-delivered-id", b"5-1"]]) or ()
    assert (old.lag, old.read, old.added, old.deleted_ahead) == (None, None, None, False)
    told = [
        b"lag",
        3,
        b"last-delivered-id",
        b"0-0",
        b"entries-read",
        None,
        b"new",
        [b"x"],
        b"pending",
        0,
        b"name",
        b"g",
    ]
    (new,) = read_groups([told]) or ()
    assert (new.lag, new.read, new.added, new.deleted_ahead) == (3, 0, 3, False)
    assert read_groups(NO_KEY) is None
    with pytest.raises(QueryRefusedError, match="WRONGTYPE"):
        read_groups(WRONG_TYPE)


def test_a_reading_that_failed_is_made_up_for() -> None:
    """The server goes away between the two round trips of the first reading: the next looks at all streams again."""
    watch = QueueWatch(KEYS, "email")
    query = watch.read(NOW_MS, UTC)
    commands = next(query)
    query.send([NO_KEY] * 10 + [0, 0, 0])
    query.close()
    again = watch.read(NOW_MS, UTC)
    assert next(again) == commands
    again.close()


def test_letters_that_came_before_a_failure_are_still_new() -> None:
    watch = LetterWatch(KEYS, "email")

    def replies(*letters: bytes) -> Callable[[Command], Any]:
        return lambda command: len(letters) if command[0] == "LLEN" else list(letters)[: int(command[3]) + 1]

    assert answer(watch.read(), replies(b'{"reason":"a"}')) == []
    cut = watch.read()
    next(cut)
    cut.send([3])
    cut.close()
    new = answer(watch.read(), replies(b'{"reason":"c"}', b'{"reason":"b"}', b'{"reason":"a"}'))
    assert [letter.reason for letter in new] == ["c", "b"]


def test_a_replay_of_the_newest_letters_makes_no_old_ones_new() -> None:
    watch = LetterWatch(KEYS, "email")
    letters = [b'{"reason":"%d"}' % number for number in range(50, 0, -1)]

    def replies(command: Command) -> Any:
        return len(letters) if command[0] == "LLEN" else letters[: int(command[3]) + 1]

    assert answer(watch.read(), replies) == []
    letters.insert(0, b'{"reason":"51"}')
    assert [letter.reason for letter in answer(watch.read(), replies)] == ["51"]
    del letters[:15]
    assert answer(watch.read(), replies) == []
    assert not watch.overrun


def test_of_large_letters_few_are_read_at_once_and_the_others_are_told_of() -> None:
    watch = LetterWatch(KEYS, "email")
    letters = [b'{"reason":"%d","envelope":{"args":"%b"}}' % (number, b"a" * (1 << 20)) for number in range(100)]
    sizes = []

    def replies(command: Command) -> Any:
        if command[0] == "LLEN":
            return len(letters)
        found = letters[: int(command[3]) + 1]
        sizes.append(sum(map(len, found)))
        return found

    assert answer(watch.read(), replies) == []
    letters[:0] = [letter.replace(b'"reason":"', b'"reason":"new-') for letter in letters[:2]]
    assert [letter.reason for letter in answer(watch.read(), replies)] == ["new-0", "new-1"]
    assert not watch.overrun
    letters[:0] = [letter.replace(b'"reason":"', b'"reason":"newer-') for letter in letters[:90]]
    assert answer(watch.read(), replies)
    assert watch.overrun
    assert max(sizes) <= 4 << 20


@pytest.mark.parametrize(("before", "overrun"), [([], True), ([b'{"reason":"first"}'], True)])
def test_more_letters_than_are_read_at_once_are_told_of(before: list[bytes], *, overrun: bool) -> None:
    watch = LetterWatch(KEYS, "email")
    letters = list(before)

    def replies(command: Command) -> Any:
        return len(letters) if command[0] == "LLEN" else letters[: int(command[3]) + 1]

    answer(watch.read(), replies)
    letters[:0] = [b'{"reason":"%d"}' % number for number in range(500)]
    assert len(answer(watch.read(), replies)) == 200
    assert watch.overrun is overrun


def test_many_workers_are_asked_for_in_few_commands_and_ages_beside_their_heartbeats() -> None:
    workers = [b"w%04d" % number for number in range(3 * CHUNK)]
    query = read_heartbeats(KEYS, 10_000, [worker.decode() for worker in workers[::CHUNK]])
    next(query)
    commands = query.send([workers])
    query.close()
    assert [command[0] for command in commands] == ["MGET", "PTTL"] * 3
    assert commands[3] == ("PTTL", "stem:worker:heartbeat:w0100")


def test_a_queue_with_nothing_has_all_its_numbers() -> None:
    state = answer(QueueWatch(KEYS, "email").read(NOW_MS, UTC), lambda c: NO_KEY if c[0] == "XINFO" else 0)
    assert state == QueueState(
        queue="email", depth=0, inflight=0, delayed=0, overdue=0, dead=0, enqueued=0, delivered=0
    )


@pytest.mark.parametrize(
    ("queue", "control"),
    [
        ("stem.control.broadcast", True),
        ("a.control.worker.w:1", True),
        ("a.control.worker.w\n1", True),
        ("a.control.reply.0190", True),
        ("a.control.broadcast\n", False),
        ("a.control.broadcasts", False),
        ("a.control.worker.", False),
        ("control.broadcast", False),
    ],
)
def test_control_queues_are_told_by_their_names(queue: str, *, control: bool) -> None:
    assert is_control(queue) is control
