"""What a queue holds, told rightly where it is easily told wrongly: on a real Valkey and on every real Redis there is.

Everything is written by raw commands as Stem writes, and every reading is shown to leave all keys as they were.
"""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from agent.stem.keys import PRIORITIES, Keys
from agent.stem.questions.query import LOOK_AGAIN, Query, QueryRefusedError, count
from agent.stem.questions.queues import QueueWatch
from tests.stores import Stores

DEAD_AT = datetime(2026, 4, 23, 10, 0, 0, 123456, tzinfo=UTC)


def watch(stores: Stores, queue: str = "email") -> QueueWatch:
    return QueueWatch(stores.keys, queue)


def known(stores: Stores, number: int) -> int | None:
    """What is told of a number where something waits."""
    return number if stores.server.knows_lag else None


async def test_a_queue_that_does_not_exist_holds_nothing_and_is_not_made(stores: Stores) -> None:
    queue = watch(stores)
    state = await stores.read(queue)
    assert (state.depth, state.inflight, state.delayed, state.overdue, state.dead) == (0, 0, 0, 0, 0)
    assert (state.enqueued, state.delivered, state.oldest_ready_ms, state.oldest_dead) == (0, 0, None, None)
    assert not queue.exists
    assert await stores("DBSIZE") == 0


async def test_what_waits_is_told_before_the_first_delivery_and_after_each(stores: Stores) -> None:
    queue = watch(stores)
    await stores.broker.listen("email")
    assert (await stores.read(queue)).depth == 0
    await stores.publish("email", 3)
    state = await stores.read(queue)
    assert (state.depth, state.inflight, state.enqueued, state.delivered) == (
        known(stores, 3), 0, known(stores, 3), known(stores, 0),
    )  # fmt: skip
    (first,) = await stores.deliver("email")
    state = await stores.read(queue)
    assert (state.depth, state.inflight, state.delivered) == (known(stores, 2), 1, known(stores, 1))
    await stores.broker.ack(first)
    await stores.deliver("email", 2)
    state = await stores.read(queue)
    assert (state.depth, state.inflight, state.oldest_ready_ms) == (0, 2, None)
    assert (state.enqueued, state.delivered) == (known(stores, 3), known(stores, 3))


async def test_the_oldest_that_waits_is_the_next_of_any_priority(stores: Stores) -> None:
    queue = watch(stores)
    low = await _published(stores)
    high = await _published(stores, priority=9)
    assert (await stores.read(queue)).oldest_ready_ms == low
    await stores.deliver("email")
    assert (await stores.read(queue)).oldest_ready_ms == high


async def _published(stores: Stores, priority: int = 0) -> int:
    """Publish, and return the id's time; what comes next comes at least a millisecond later."""
    await stores.publish("email", priority=priority)
    ((entry, _),) = await stores("XREVRANGE", stores.keys.stream("email", priority), "+", "-", "COUNT", 1)
    milliseconds = int(entry.partition(b"-")[0])
    async with asyncio.timeout(5):
        while await stores.now_ms() <= milliseconds:
            pass
    return milliseconds


async def test_a_group_that_began_in_the_middle_is_unknown_while_something_waits(stores: Stores) -> None:
    entries = [await stores.add("email") for _ in range(4)]
    await stores("XGROUP", "CREATE", stores.keys.stream("email"), stores.keys.group("email"), entries[1])
    queue = watch(stores)
    for waiting in (2, 1):
        state = await stores.read(queue)
        assert (state.depth, state.inflight) == (None, 2 - waiting)
        assert state.oldest_ready_ms == int(entries[-waiting].partition("-")[0])
        await stores.deliver("email")
    assert (await stores.read(queue)).depth == 0
    await stores.publish("email")
    assert (await stores.read(queue)).depth == known(stores, 1)


async def test_a_group_that_began_at_the_end_has_nothing_waiting(stores: Stores) -> None:
    await stores.add("email")
    await stores("XGROUP", "CREATE", stores.keys.stream("email"), stores.keys.group("email"), "$")
    assert (await stores.read(watch(stores))).depth == 0


async def test_after_somebody_deleted_what_waits_the_depth_is_unknown_until_all_is_delivered(stores: Stores) -> None:
    queue = watch(stores)
    await stores.publish("email", 5)
    entries = [entry for entry, _ in await stores("XRANGE", stores.keys.stream("email"), "-", "+")]
    await stores.deliver("email")
    assert (await stores.read(queue)).depth == known(stores, 4)
    await stores("XDEL", stores.keys.stream("email"), entries[1])
    assert (await stores.read(queue)).depth is None
    await stores.deliver("email")
    assert (await stores.read(queue)).depth is None  # Redis 7.0 says 3 here, and 2 wait
    await stores.deliver("email", 2)
    assert (await stores.read(queue)).depth == 0
    for _ in range(2 * LOOK_AGAIN):  # Redis 7.0's lag is one too high from now on
        await stores.publish("email", 2)
        assert (await stores.read(queue)).depth == known(stores, 2)
        await stores.deliver("email")
        state = await stores.read(queue)
        assert (state.depth, state.enqueued) == (known(stores, 1), state.enqueued)
        await stores.deliver("email")
        for _ in range(2):
            assert (await stores.read(queue)).depth == 0


async def test_a_group_that_had_read_nothing_is_counted_rightly_after_a_deletion(stores: Stores) -> None:
    queue = watch(stores)
    await stores.publish("email", 3)
    entries = [entry for entry, _ in await stores("XRANGE", stores.keys.stream("email"), "-", "+")]
    await stores("XDEL", stores.keys.stream("email"), entries[1])
    assert (await stores.read(queue)).depth is None
    await stores.deliver("email", 2)
    await stores.publish("email", 2)
    assert (await stores.read(queue)).depth == known(stores, 2)


async def test_a_lag_that_was_wrong_and_is_right_again_is_believed(stores: Stores) -> None:
    queue = watch(stores)
    await _counted_one_too_many(stores, queue)
    await stores.publish("email", 3)
    entries = [entry for entry, _ in await stores("XREVRANGE", stores.keys.stream("email"), "+", "-", "COUNT", 2)]
    await stores("XDEL", stores.keys.stream("email"), entries[1])
    for _ in range(2):  # with a deletion ahead, the server forgets what it counted; at the end, it counts anew
        await stores.deliver("email")
    await stores.publish("email")
    assert (await stores.read(queue)).depth == known(stores, 1)


async def test_who_comes_later_learns_of_a_wrong_lag_when_nothing_waits(stores: Stores) -> None:
    await stores.publish("email", 3)
    entries = [entry for entry, _ in await stores("XRANGE", stores.keys.stream("email"), "-", "+")]
    await stores.deliver("email")
    await stores("XDEL", stores.keys.stream("email"), entries[1])
    await stores.deliver("email")
    queue = watch(stores)
    assert (await stores.read(queue)).depth == 0
    await stores.publish("email", 2)
    assert (await stores.read(queue)).depth == known(stores, 2)


async def test_when_the_only_one_that_waits_is_deleted_nothing_waits(stores: Stores) -> None:
    queue = watch(stores)
    await stores.publish("email", 2)
    entries = [entry for entry, _ in await stores("XRANGE", stores.keys.stream("email"), "-", "+")]
    await stores.deliver("email")
    assert (await stores.read(queue)).depth == known(stores, 1)
    await stores("XDEL", stores.keys.stream("email"), entries[1])
    state = await stores.read(queue)
    assert (state.depth, state.oldest_ready_ms) == (0, None)


async def test_a_stream_emptied_by_hand_has_nothing_waiting_and_counts_rightly_from_then_on(stores: Stores) -> None:
    queue = watch(stores)
    await stores.publish("email", 5)
    await stores.deliver("email")
    assert (await stores.read(queue)).depth == known(stores, 4)
    await stores("XTRIM", stores.keys.stream("email"), "MAXLEN", 0)
    state = await stores.read(queue)
    assert (state.depth, state.oldest_ready_ms) == (0, None)  # every server's lag is 4 for ever, or until it delivers
    await stores.publish("email", 7)
    assert (await stores.read(queue)).depth == known(stores, 7)
    await stores.deliver("email")
    assert (await stores.read(queue)).depth is None  # Valkey has counted anew, Redis 7.0 has not
    await stores.deliver("email", 6)
    assert (await stores.read(queue)).depth == 0
    await stores.publish("email", 7)
    assert (await stores.read(queue)).depth == known(stores, 7)
    await stores.deliver("email", 2)
    assert (await stores.read(queue)).depth == known(stores, 5)


async def _counted_one_too_many(stores: Stores, queue: QueueWatch) -> None:
    """Let nothing wait, and Redis 7.0 count one entry all the same."""
    await stores.publish("email", 3)
    entries = [entry for entry, _ in await stores("XRANGE", stores.keys.stream("email"), "-", "+")]
    await stores.deliver("email")
    await stores.read(queue)
    await stores("XDEL", stores.keys.stream("email"), entries[1])
    await stores.deliver("email")
    assert (await stores.read(queue)).depth == 0


@pytest.mark.parametrize("seen", [True, False])
async def test_a_queue_that_was_purged_counts_anew(stores: Stores, *, seen: bool) -> None:
    queue = watch(stores)
    await _counted_one_too_many(stores, queue)
    await stores("DEL", *stores.keys.streams("email"))
    if seen:
        assert (await stores.read(queue)).depth == 0
        assert not queue.exists
    stores.broker._groups.clear()
    await stores.publish("email", 2)
    state = await stores.read(queue)
    assert (state.depth, state.enqueued) == (known(stores, 2), known(stores, 2))
    assert queue.exists


async def test_a_stream_without_a_group_waits_for_somebody_to_make_one(stores: Stores) -> None:
    entry = await stores.add("email")
    queue = watch(stores)
    state = await stores.read(queue)
    assert (state.depth, state.inflight, state.enqueued, state.delivered) == (None, 0, None, None)
    assert state.oldest_ready_ms == int(entry.partition("-")[0])
    assert queue.exists
    await stores("XDEL", stores.keys.stream("email"), entry)
    assert (await stores.read(queue)).depth == 0


async def test_another_programs_group_is_not_the_queues(stores: Stores) -> None:
    await stores.publish("email", 2)
    await stores("XGROUP", "CREATE", stores.keys.stream("email"), "stem-dashboard-control", "0")
    await stores("XGROUP", "CREATE", stores.keys.stream("email"), stores.keys.group("elsewhere"), "0")
    await stores("XREADGROUP", "GROUP", "stem-dashboard-control", "d", "STREAMS", stores.keys.stream("email"), ">")
    queue = watch(stores)
    state = await stores.read(queue)
    assert (state.depth, state.inflight, queue.neighbours) == (known(stores, 2), 0, set())


# --- names ------------------------------------------------------------


async def test_a_queue_named_as_a_priority_of_another_is_told_apart_by_its_group(stores: Stores) -> None:
    await stores.publish("x", 2)
    await stores.publish("x:p3", 3)
    shorter, longer = watch(stores, "x"), watch(stores, "x:p3")
    states = await stores.read(shorter), await stores.read(longer)
    assert [state.depth for state in states] == [known(stores, 2), known(stores, 3)]
    assert (shorter.neighbours, longer.neighbours) == ({"x:p3"}, set())


async def test_a_priority_is_no_queue_of_its_own(stores: Stores) -> None:
    await stores.publish("x", 2, priority=3)
    shorter, longer = watch(stores, "x"), watch(stores, "x:p3")
    states = await stores.read(shorter), await stores.read(longer)
    assert [state.depth for state in states] == [known(stores, 2), 0]
    assert (shorter.neighbours, longer.neighbours) == (set(), {"x"})
    assert (shorter.exists, longer.exists) == (True, False)


async def test_a_queue_that_only_its_longer_namesake_suggests_does_not_exist(stores: Stores) -> None:
    await stores.publish("x:p3", 2, priority=2)
    await stores.publish("x:p3")
    shorter, longer = watch(stores, "x"), watch(stores, "x:p3")
    states = await stores.read(shorter), await stores.read(longer)
    assert [(state.depth, state.oldest_ready_ms is None) for state in states] == [(0, True), (known(stores, 3), False)]
    assert (shorter.exists, shorter.neighbours, longer.exists) == (False, {"x:p3"}, True)


async def test_a_stream_that_two_queues_share_is_delivered_to_both_and_told_of_both(stores: Stores) -> None:
    """Stem hands each of these entries to both, because both groups stand on the stream that both names make."""
    await stores.broker.listen("x")
    stores.broker._groups.clear()  # as in a process of its own
    await stores.broker.listen("x:p3")
    await stores.publish("x", priority=3)
    await stores.publish("x:p3")
    states = await stores.read(watch(stores, "x")), await stores.read(watch(stores, "x:p3"))
    assert [state.depth for state in states] == [known(stores, 2), known(stores, 2)]
    assert await stores.deliver("x:p3", 5) != []
    states = await stores.read(watch(stores, "x")), await stores.read(watch(stores, "x:p3"))
    assert [(state.depth, state.inflight) for state in states] == [(known(stores, 2), 0), (0, 2)]


async def test_a_name_may_have_colons(stores: Stores) -> None:
    await stores.publish("tenant:eu:email", 2)
    await stores.publish("tenant:eu", 5)
    assert (await stores.read(watch(stores, "tenant:eu:email"))).depth == known(stores, 2)
    assert (await stores.read(watch(stores, "tenant:eu"))).depth == known(stores, 5)


# --- priorities ------------------------------------------------------------


async def test_every_priority_counts_and_those_beyond_nine_are_nine(stores: Stores) -> None:
    for priority in (*PRIORITIES, 12, -1):
        await stores.publish("email", priority=priority)
    state = await stores.read(watch(stores))
    assert (state.depth, state.enqueued) == (known(stores, 12), known(stores, 12))


@pytest.mark.parametrize("listened", [True, False])
async def test_an_empty_priority_is_looked_at_in_turn_and_found_within_six_readings(
    stores: Stores, *, listened: bool
) -> None:
    await stores.publish("email")
    if listened:
        await stores.broker.listen("email")
    for priority in range(1, 10):
        queue = watch(stores)
        await stores.read(queue)
        await stores.publish("email", priority=priority)
        seen = [(await stores.read(queue)).oldest_ready_ms is not None for _ in range(LOOK_AGAIN)]
        assert seen[-1]
        await stores("DEL", stores.keys.stream("email", priority))
        if listened:
            await stores(
                "XGROUP", "CREATE", stores.keys.stream("email", priority), stores.keys.group("email"), "0", "MKSTREAM"
            )
        else:
            stores.broker._groups.discard(stores.keys.stream("email", priority))


async def test_empty_priorities_cost_one_command_in_six_readings(stores: Stores) -> None:
    await stores.publish("email")
    await stores.broker.listen("email")
    queue = watch(stores)
    await stores.read(queue)
    asked = []
    for _ in range(2 * LOOK_AGAIN):
        query = queue.read(await stores.now_ms(), UTC)
        asked += [command[2] for command in next(query) if command[0] == "XINFO"]
        query.close()
        await stores.read(queue)
    assert {stream: asked.count(stream) for stream in stores.keys.streams("email")} == {
        stream: 2 if priority else 12 for priority, stream in zip(PRIORITIES, stores.keys.streams("email"), strict=True)
    }


async def test_a_priority_that_ever_held_something_is_looked_at_each_time(stores: Stores) -> None:
    await stores.publish("email", priority=5)
    queue = watch(stores)
    await stores.read(queue)
    await stores("XREADGROUP", "GROUP", stores.keys.group("email"), "w", "STREAMS", stores.keys.stream("email", 5), ">")
    for _ in range(LOOK_AGAIN):
        assert (await stores.read(queue)).depth == 0
        await stores.publish("email", priority=5)
        assert (await stores.read(queue)).depth == known(stores, 1)
        await stores(
            *("XREADGROUP", "GROUP", stores.keys.group("email"), "w", "STREAMS", stores.keys.stream("email", 5), ">")
        )


# --- in flight, delayed, dead ------------------------------------------------------------


async def test_what_dead_consumers_held_is_still_in_flight(stores: Stores) -> None:
    await stores.publish("email", 3)
    await stores.deliver("email", 2, consumer="dead")
    await stores.deliver("email", 1, consumer="alive")
    assert (await stores.read(watch(stores))).inflight == 3


async def test_the_copy_of_an_extended_lease_is_delayed_and_no_longer_in_flight(stores: Stores) -> None:
    await stores.broker.listen("email")
    await stores.publish("email")
    (delivery,) = await stores.broker.read("email", "worker-1", count=1, block_s=0.001)
    await stores.broker.send_back(delivery, 30)
    state = await stores.read(watch(stores))
    assert (state.depth, state.inflight, state.delayed, state.overdue) == (0, 0, 1, 0)


async def test_what_is_past_due_and_not_drained_is_overdue(stores: Stores) -> None:
    now = await stores.now_ms()
    for score, member in (
        (now + 60_000, "later"),
        (now - 1, "due"),
        ("-inf", "long ago"),
        ("inf", "never"),
        ("1e15", "?"),
    ):
        await stores("ZADD", stores.keys.delayed("email"), score, member)
    queue = watch(stores)
    state = await stores.read(queue)
    assert (state.depth, state.delayed, state.overdue) == (0, 5, 2)
    assert queue.exists


async def test_dead_letters_are_counted_and_the_oldest_is_at_the_tail(stores: Stores) -> None:
    queue = watch(stores)
    await stores.kill("email", at=DEAD_AT)
    assert ((await stores.read(queue)).dead, queue.exists) == (1, True)
    await stores.kill("email", at=DEAD_AT + timedelta(hours=1))
    state = await stores.read(queue)
    assert (state.dead, state.oldest_dead) == (2, DEAD_AT)
    await stores("RPOP", stores.keys.dead("email"))
    assert (await stores.read(queue)).oldest_dead == DEAD_AT + timedelta(hours=1)


async def test_a_dead_letter_whose_place_another_took_is_noticed_within_six_readings(stores: Stores) -> None:
    queue = watch(stores)
    await stores.kill("email", at=DEAD_AT)
    await stores.read(queue)
    await stores("RPOP", stores.keys.dead("email"))
    await stores.kill("email", at=DEAD_AT + timedelta(hours=1))
    states = [await stores.read(queue) for _ in range(LOOK_AGAIN)]
    assert states[-1].oldest_dead == DEAD_AT + timedelta(hours=1)


@pytest.mark.parametrize(
    ("letter", "dead_at"),
    [
        ("nonsense", None),
        ("[]", None),
        ('{"deadAt":"2026-04-23T10:00:00.123456"}', DEAD_AT),
        ('{"deadAt":5}', None),
        ('{"meta":{"error":"cut \\ud83d"},"deadAt":"2026-04-23T10:00:00.123456Z"}', DEAD_AT),
    ],
)
async def test_an_odd_dead_letter_is_counted_all_the_same(
    stores: Stores, letter: str, dead_at: datetime | None
) -> None:
    await stores("LPUSH", stores.keys.dead("email"), letter)
    state = await stores.read(watch(stores))
    assert (state.dead, state.oldest_dead) == (1, dead_at)


# --- refusals ------------------------------------------------------------


@pytest.mark.parametrize("place", ["stream", "delayed", "dead"])
async def test_a_key_of_another_type_refuses_that_queue_only_and_is_named(stores: Stores, place: str) -> None:
    key = getattr(stores.keys, place)("email")
    await stores("SET", key, "text")
    await stores.publish("sms", 2)
    now = await stores.now_ms()
    refused, answered = await stores.ask(watch(stores).read(now, UTC), QueueWatch(stores.keys, "sms").read(now, UTC))
    assert isinstance(refused, QueryRefusedError)
    assert str(refused).startswith("WRONGTYPE ")
    assert key in str(refused)
    assert answered.depth == known(stores, 2)


@pytest.mark.parametrize("command", ["xinfo", "xrange", "zcard", "zcount", "llen", "lindex"])
async def test_a_user_that_lacks_one_command_is_told_which(stores: Stores, command: str) -> None:
    await stores.publish("email")
    await stores.kill("email", at=DEAD_AT)
    reader = await stores.user("+@all", f"-{command}")
    now = await stores.now_ms()
    refused, time = await stores.ask(watch(stores).read(now, UTC), _other_question(stores.keys), reader=reader)
    assert isinstance(refused, QueryRefusedError)
    assert str(refused).startswith("NOPERM ")
    assert command in str(refused).lower()
    assert stores.keys.namespace in str(refused)
    assert time == 0
    await reader.close()


def _other_question(keys: Keys) -> Query[int]:
    (length,) = yield [("SCARD", keys.heartbeats)]
    return count(length)


async def test_a_user_that_may_run_the_listed_commands_only_can_read_a_queue(stores: Stores) -> None:
    await stores.publish("email", 2)
    await stores.kill("email", at=DEAD_AT)
    reader = await stores.user(
        "-@all", *(f"+{name}" for name in ("xinfo", "xrange", "zcard", "zcount", "llen", "lindex"))
    )
    (state,) = await stores.ask(watch(stores).read(await stores.now_ms(), UTC), reader=reader)
    assert (state.depth, state.dead, state.oldest_dead) == (known(stores, 2), 1, DEAD_AT)
    await reader.close()
