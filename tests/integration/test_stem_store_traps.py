"""Workers, schedules, pauses, the search for queues: told rightly where it is easily told wrongly, on real servers."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from agent.demo.fleet.backend import Backend
from agent.demo.fleet.envelopes import to_json
from agent.emit import iso, utc_now
from agent.stem.keys import Keys
from agent.stem.questions.discovery import STEPS, QueueWalk
from agent.stem.questions.pauses import read_pauses
from agent.stem.questions.query import QueryRefusedError
from agent.stem.questions.queues import QueueWatch
from agent.stem.questions.schedules import HistoryWatch, ScheduleEntry, read_schedules
from agent.stem.questions.workers import CHUNK, Heartbeats, read_heartbeats
from agent.stem.questions.workflows import WorkflowWalk
from tests.servers import Server
from tests.stores import Stores, empty_stores

MINUTE_MS = 60_000
SLACK_MS = 5_000
"""Between writing and reading, on a busy machine."""


def beat(worker: str, **changes: Any) -> str:
    told = {"workerId": worker, "namespace": "stem", "timestamp": iso(utc_now()), "inflight": 3, "extras": {}}
    return to_json({**told, **changes})


async def heard(stores: Stores, worker: str, ttl_ms: int = MINUTE_MS, payload: str | None = None) -> None:
    """Write a heartbeat of which `ttl_ms` are left."""
    await stores("SET", stores.keys.heartbeat(worker), payload or beat(worker), "PX", ttl_ms)
    await stores("SADD", stores.keys.heartbeats, worker)


def ids(found: Heartbeats) -> list[str]:
    return [each.heartbeat.worker_id for each in found.alive]


# --- workers ------------------------------------------------------------------------------------------------------


async def test_a_heartbeats_age_is_what_its_time_to_live_tells(stores: Stores) -> None:
    await stores.broker._redis.ping()
    await Backend(stores.broker._redis, stores.keys, utc_now).heartbeat("fresh", beat("fresh"))
    await heard(stores, "20s", MINUTE_MS - 20_000)
    await heard(stores, "longer", 2 * MINUTE_MS)
    await heard(stores, "for ever")
    await stores("PERSIST", stores.keys.heartbeat("for ever"))
    found = await stores.answer(read_heartbeats(stores.keys, 100))
    ages = {each.heartbeat.worker_id: each.age_ms for each in found.alive}
    assert 0 <= ages["fresh"] < SLACK_MS
    assert 20_000 <= ages["20s"] < 20_000 + SLACK_MS
    assert (ages["longer"], ages["for ever"]) == (None, None)


async def test_only_the_ages_that_are_wanted_are_asked_for(stores: Stores) -> None:
    for worker in ("a", "b"):
        await heard(stores, worker)
    found = await stores.answer(read_heartbeats(stores.keys, 100, ["b", "nobody"]))
    assert [(each.heartbeat.worker_id, each.age_ms is None) for each in found.alive] == [("a", True), ("b", False)]


async def test_a_worker_whose_heartbeat_expired_is_gone_and_stays_in_the_index(stores: Stores) -> None:
    await heard(stores, "alive")
    await stores("SADD", stores.keys.heartbeats, "dead")
    found = await stores.answer(read_heartbeats(stores.keys, 100))
    assert (ids(found), found.gone) == (["alive"], ["dead"])
    assert sorted(await stores("SMEMBERS", stores.keys.heartbeats)) == [b"alive", b"dead"]


async def test_the_dead_do_not_crowd_out_the_living(stores: Stores) -> None:
    await stores("SADD", stores.keys.heartbeats, *(f"a-dead-{number}" for number in range(3 * CHUNK)))
    for number in range(5):
        await heard(stores, f"worker-{number}")
    found = await stores.answer(read_heartbeats(stores.keys, 5))
    assert (len(found.alive), len(found.gone), found.left_out) == (5, 3 * CHUNK, 0)
    found = await stores.answer(read_heartbeats(stores.keys, 3))
    assert (ids(found), found.left_out) == (["worker-0", "worker-1", "worker-2"], 2)


async def test_a_heartbeat_that_is_none_is_named_and_costs_only_itself(stores: Stores) -> None:
    await heard(stores, "good")
    await heard(stores, "text", payload="nonsense")
    await heard(stores, "nameless", payload="{}")
    await stores("HSET", stores.keys.heartbeat("hash"), "a", "1")
    await stores("SADD", stores.keys.heartbeats, "hash")
    found = await stores.answer(read_heartbeats(stores.keys, 100))
    assert (ids(found), found.gone) == (["good"], ["hash"])
    assert found.unreadable == {"text": "not_json", "nameless": "missing_workerId"}


async def test_a_worker_may_have_colons_in_its_id(stores: Stores) -> None:
    await heard(stores, "eu:pod-1:7")
    found = await stores.answer(read_heartbeats(stores.keys, 100))
    assert [(each.heartbeat.worker_id, each.age_ms is None) for each in found.alive] == [("eu:pod-1:7", False)]


async def test_no_workers_are_no_workers(stores: Stores) -> None:
    assert await stores.answer(read_heartbeats(stores.keys, 100)) == Heartbeats([], [], {})


# --- schedules ----------------------------------------------------------------------------------------------------


async def overdue(stores: Stores) -> dict[str, int]:
    entries = await stores.answer(read_schedules(stores.keys, 100))
    now_ms = await stores.now_ms()
    return {entry.id: entry.overdue_ms(now_ms, UTC) // MINUTE_MS for entry in entries}


async def test_only_what_is_to_be_dispatched_can_be_late(stores: Stores) -> None:
    now_ms = await stores.now_ms()
    late, now = now_ms - 10 * MINUTE_MS, datetime.now(UTC)
    await stores.enter("on time", now_ms + MINUTE_MS)
    await stores.enter("late", late)
    await stores.enter("jittery", late, jitterMs=str(8 * MINUTE_MS))
    await stores.enter("within its jitter", late, jitterMs=str(11 * MINUTE_MS))
    await stores.enter("disabled", late, enabled="false")
    await stores.enter("expired", late, expireAt=iso(now - timedelta(minutes=20)))
    await stores.enter("expired by local time", late, expireAt=iso(now - timedelta(minutes=20)).removesuffix("Z"))
    await stores.enter("expires later", late, expireAt=iso(now + timedelta(minutes=20)))
    await stores("ZADD", stores.keys.schedules, late, "in the index only")
    assert await overdue(stores) == {
        "on time": 0,
        "late": 10,
        "jittery": 2,
        "within its jitter": 0,
        "disabled": 0,
        "expired": 0,
        "expired by local time": 0,
        "expires later": 10,
        "in the index only": 0,
    }


async def test_odd_scores_and_fields_cost_only_themselves(stores: Stores) -> None:
    await stores.enter("never", "inf")
    await stores.enter("always", "-inf")
    await stores.enter("far", "1e15", enabled="perhaps", jitterMs="-5", totalRunCount="many", driftMs="9" * 30)
    await stores("SET", stores.keys.schedule("no hash"), "text")
    await stores("ZADD", stores.keys.schedules, 5, "no hash")
    found = {entry.id: entry for entry in await stores.answer(read_schedules(stores.keys, 100))}
    assert [found[name].next_run_ms for name in ("never", "always", "far")] == [1 << 53, -(1 << 53), 10**15]
    assert found["far"] == ScheduleEntry(
        id="far", next_run_ms=10**15, task_name="billing.close", queue="billing", enabled=True
    )
    assert found["no hash"] == ScheduleEntry(id="no hash", next_run_ms=5)


async def test_an_entry_is_read_as_it_stands_and_those_due_first(stores: Stores) -> None:
    spec = json.dumps({"kind": "interval", "everyMs": 60_000})
    fields = {
        "spec": spec, "timezone": "Europe/Berlin", "nextRunAt": "2026-04-23T10:00:00.123456Z",
        "lastRunAt": "2026-04-23T09:59:00.000Z", "lastError": "null", "totalRunCount": "7", "driftMs": "-12",
        "args": '{"secret": 1}',
    }  # fmt: skip
    await stores.enter("a:b", 2, **fields)
    await stores.enter("first", 1)
    first, second = await stores.answer(read_schedules(stores.keys, 100))
    assert first.id == "first"
    assert (second.id, second.spec, second.timezone, second.last_error) == ("a:b", spec, "Europe/Berlin", "null")
    assert (second.total_run_count, second.drift_ms, second.jitter_ms) == (7, -12, None)
    assert second.next_run_at == datetime(2026, 4, 23, 10, 0, 0, 123456, tzinfo=UTC)
    assert "secret" not in repr(second)
    assert [entry.id for entry in await stores.answer(read_schedules(stores.keys, 1))] == ["first"]


async def test_runs_are_told_once_each_and_none_of_before(stores: Stores) -> None:
    history = HistoryWatch(stores.keys, "a:b")
    await stores.ran("a:b", "2026-04-23T10:00:00.000Z", "2026-04-23T10:00:09.000Z")
    assert await stores.answer(history.read(10)) == []
    assert await stores.answer(history.read(10)) == []
    await stores.ran("a:b", "2026-04-23T10:01:00.000Z", "2026-04-23T10:01:00.250Z")
    await stores.ran("a:b", "2026-04-23T10:02:00.000Z", "2026-04-23T10:01:59.500000Z", success="false")
    await stores.ran("a:b", "2026-04-23T10:03:00.000Z", "2026-04-23T10:03:00.500")
    runs = await stores.answer(history.read(2))
    assert [(run.success, run.late_s) for run in runs] == [(True, 0.25), (False, -0.5)]
    assert [(run.success, run.late_s) for run in await stores.answer(history.read(2))] == [(True, None)]
    assert await stores.answer(history.read(2)) == []


async def test_the_first_run_of_a_new_entry_and_those_after_a_trim_are_told(stores: Stores) -> None:
    history, key = HistoryWatch(stores.keys, "new"), stores.keys.schedule_history("new")
    assert await stores.answer(history.read(10)) == []
    await stores.ran("new", "2026-04-23T10:00:00Z", "2026-04-23T10:00:01Z")
    assert len(await stores.answer(history.read(10))) == 1
    for _ in range(5):
        await stores.ran("new", "2026-04-23T10:00:00Z", "2026-04-23T10:00:01Z")
    await stores("XTRIM", key, "MAXLEN", 2)
    assert len(await stores.answer(history.read(10))) == 2
    await stores("XTRIM", key, "MAXLEN", 0)
    assert await stores.answer(history.read(10)) == []
    await stores.ran("new", "2026-04-23T10:00:00Z", "2026-04-23T10:00:01Z")
    assert len(await stores.answer(history.read(10))) == 1


async def test_a_history_of_another_type_refuses_itself_only(stores: Stores) -> None:
    await stores("SET", stores.keys.schedule_history("odd"), "text")
    await stores.enter("odd", 1)
    refused, entries = await stores.ask(HistoryWatch(stores.keys, "odd").read(10), read_schedules(stores.keys, 10))
    assert isinstance(refused, QueryRefusedError)
    assert stores.keys.schedule_history("odd") in str(refused)
    assert [entry.id for entry in entries] == ["odd"]


# --- pauses -------------------------------------------------------------------------------------------------------


async def test_a_pause_is_in_force_until_it_expires(stores: Stores) -> None:
    backend = Backend(stores.broker._redis, stores.keys, utc_now)
    now = datetime.now(UTC)
    for queue in ("paused", "a:b", "gone"):
        await backend.pause(stores.keys.namespace, queue)
    await backend.resume(stores.keys.namespace, "gone")

    async def revoke(queue: str, entry: str) -> None:
        await stores("HSET", stores.keys.revokes, f"__stem.queue.pause__:{queue}", entry)

    for queue, expires in (("resumed", iso(now - timedelta(seconds=1))), ("for now", iso(now + timedelta(hours=1)))):
        await revoke(queue, to_json({"taskId": queue, "expiresAt": expires}))
    await revoke("cut", '{"reason":"cut \\ud83d","expiresAt":"2026-04-23T10:00:00.000Z"}')
    await revoke("local", '{"expiresAt":"2026-04-23T10:00:00.000"}')
    await revoke("unreadable", "nonsense")
    queues = ["paused", "a:b", "gone", "resumed", "for now", "cut", "local", "unreadable", "other"]
    told = await stores.answer(read_pauses(stores.keys, queues, now))
    assert [queue for queue, paused in told.items() if paused] == ["paused", "a:b", "for now", "unreadable"]
    assert list(told) == queues


# --- the search for queues -----------------------------------------------------------------------------------------


async def walked(stores: Stores, walk: QueueWalk, budget: int = 10_000) -> set[str]:
    """Walk to the end once."""
    found: set[str] = set()
    rounds = walk.rounds
    while walk.rounds == rounds:
        found |= await stores.answer(walk.read(budget))
    return found


async def test_queues_are_known_by_any_of_their_keys_and_control_streams_are_none(stores: Stores) -> None:
    for queue in ("email", "a:b", "x:p3"):
        await stores.broker.listen(queue)
    await stores("ZADD", stores.keys.delayed("delayed only"), 1, "{}")
    await stores("LPUSH", stores.keys.dead("dead only"), "{}")
    for control in ("worker.w1", "worker.eu:7", "broadcast", "reply.0190"):
        await stores.broker.listen(f"customer-experience.control.{control}")
    await stores("XADD", f"{stores.keys.namespace}:broadcast:stem:events:email", "*", "a", "1")
    await stores("ZADD", stores.keys.schedules, 1, "daily")
    await stores.enter("stream", 1)
    await stores("SET", f"{stores.keys.namespace}:dead:", "text")
    assert await walked(stores, QueueWalk(stores.keys)) == {"email", "a:b", "x", "x:p3", "delayed only", "dead only"}


async def test_the_search_keeps_to_its_budget_and_finds_everything_among_foreign_keys(stores: Stores) -> None:
    pipeline = stores.broker._redis.pipeline(transaction=False)
    for number in range(5_000):
        pipeline.set(f"foreign:{number}", "")
    await pipeline.execute()
    for number in range(20):
        await stores.add(f"queue-{number}")
    walk, budget, readings = QueueWalk(stores.keys), 500, 0
    found: set[str] = set()
    async with stores.unchanged():
        while not walk.rounds:
            before = stores.reader.round_trips
            found |= await stores.answer(walk.read(budget))
            readings += 1
            assert stores.reader.round_trips - before <= STEPS
    assert found == {f"queue-{number}" for number in range(20)}
    assert readings >= 5_000 / budget / 2  # SCAN may return twice as many keys as it is asked for, never all
    await stores.add("later")
    async with stores.unchanged():
        assert "later" in await walked(stores, walk, budget)


async def test_what_a_failed_search_had_found_is_found_again(stores: Stores) -> None:
    pipeline = stores.broker._redis.pipeline(transaction=False)
    for number in range(1_000):
        pipeline.xadd(stores.keys.stream(f"queue-{number}"), {"a": "1"})
    await pipeline.execute()
    walk = QueueWalk(stores.keys)
    cut = walk.read(200)
    cut.send([await stores(*next(cut)[0])])
    cut.close()  # as when the server goes away between two round trips
    async with stores.unchanged():
        assert len(await walked(stores, walk, 200)) == 1_000


async def test_a_count_of_workflow_runs_that_was_cut_off_counts_none_twice_and_none_never(stores: Stores) -> None:
    for number in range(300):
        await stores("HSET", stores.keys.workflow(f"run-{number}"), "workflow", "onboarding", "status", "running")
    walk = WorkflowWalk(stores.keys)
    cut = walk.read(100)
    cut.send([await stores(*next(cut)[0])])
    cut.close()
    async with stores.unchanged():
        while walk.counts is None:
            await stores.answer(walk.read(100))
    assert walk.counts == {("onboarding", "running"): 300}


@pytest.mark.parametrize("namespace", ["st*m", "st?m", "[stem]", "st\\em", "st^em", "a:b"])
async def test_a_namespace_may_have_characters_of_a_pattern(server: Server, namespace: str) -> None:
    async with empty_stores(server, namespace) as stores:
        for other in ("stem", "stXm", "s", "steXm", "a"):
            await stores("XADD", Keys(other).stream("theirs"), "*", "a", "1")
        await stores.publish("ours", 2)
        assert await walked(stores, QueueWalk(stores.keys)) == {"ours"}
        state = await stores.read(QueueWatch(stores.keys, "ours"))
        assert state.depth == (2 if server.knows_lag else None)


async def test_a_user_that_may_not_search_is_told_so(stores: Stores) -> None:
    reader = await stores.user("+@all", "-scan")
    (refused,) = await stores.ask(QueueWalk(stores.keys).read(100), reader=reader)
    assert isinstance(refused, QueryRefusedError)
    assert "'scan'" in str(refused)
    await reader.close()


# --- places -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("missing", "question"),
    [
        ("smembers", "workers"), ("mget", "workers"), ("pttl", "workers"), ("zrange", "schedules"),
        ("hmget", "schedules"), ("hmget", "pauses"), ("xrevrange", "history"),
    ],
)  # fmt: skip
async def test_a_missing_permission_is_named_and_costs_one_question(
    stores: Stores, missing: str, question: str
) -> None:
    await heard(stores, "w1")
    await stores.enter("daily", 1)
    await stores.publish("email")
    reader = await stores.user("+@all", f"-{missing}")
    queries: dict[str, Any] = {
        "workers": read_heartbeats(stores.keys, 10),
        "schedules": read_schedules(stores.keys, 10),
        "pauses": read_pauses(stores.keys, ["email"], datetime.now(UTC)),
        "history": HistoryWatch(stores.keys, "daily").read(10),
    }
    watch = QueueWatch(stores.keys, "email").read(await stores.now_ms(), UTC)
    refused, state = await stores.ask(queries[question], watch, reader=reader)
    assert isinstance(refused, QueryRefusedError)
    assert str(refused).startswith("NOPERM ")
    assert f"'{missing}'" in str(refused).lower()
    assert state.oldest_ready_ms is not None
    await reader.close()


async def test_a_user_that_may_not_see_the_keys_is_told_which(stores: Stores) -> None:
    reader = await stores.user("+@all", "resetkeys", "~other:*")
    (refused,) = await stores.ask(read_heartbeats(stores.keys, 10), reader=reader)
    assert isinstance(refused, QueryRefusedError)
    assert str(refused).startswith("NOPERM ")
    assert stores.keys.heartbeats in str(refused)
    await reader.close()


async def test_three_databases_are_three_stores(server: Server) -> None:
    async with empty_stores(server) as broker:
        results, schedules = Stores(server, "results", 1), Stores(server, "stem", 2)
        await broker.publish("email", 2)
        await heard(results, "w1")
        await schedules.enter("daily", 5)
        assert (await broker.read(QueueWatch(broker.keys, "email"))).oldest_ready_ms is not None
        assert ids(await results.answer(read_heartbeats(results.keys, 10))) == ["w1"]
        assert [entry.id for entry in await schedules.answer(read_schedules(schedules.keys, 10))] == ["daily"]
        for store in (results, schedules):
            assert await walked(store, QueueWalk(store.keys)) == set()
            assert not (await store.read(QueueWatch(store.keys, "email"))).depth
        assert ids(await broker.answer(read_heartbeats(broker.keys, 10))) == []
        await results.close()
        await schedules.close()
