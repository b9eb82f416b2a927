"""The simulated fleet: what it leaves on Redis is what Stem leaves there."""

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator
from datetime import datetime

import pytest
import redis.asyncio

from agent.correlate import ids
from agent.demo.fleet.faults import Faults
from agent.demo.fleet.fleet import Fleet
from agent.demo.fleet.kinds import QUEUES
from agent.demo.truth import LOST, Truth, Via
from agent.stem.keys import Keys

KEYS = Keys()
SECONDS = 2.5


async def live(url: str, faults: Faults | None = None) -> Truth:
    fleet = Fleet(url, namespace="demo-ns", rate=150, workers=2, seed=3, faults=faults)
    asyncio.get_running_loop().call_later(SECONDS, fleet.stop.set)
    async with asyncio.timeout(40):
        return await fleet.run()


@pytest.fixture
async def store(valkey: object, redis_url: str) -> AsyncIterator["redis.asyncio.Redis"]:
    client = redis.asyncio.Redis.from_url(redis_url.replace("/0", "/5"), decode_responses=True)
    await client.flushdb()
    yield client
    await client.aclose()


@pytest.fixture
async def url(redis_url: str, store: object) -> str:
    return redis_url.replace("/0", "/5")


async def test_what_a_fleet_leaves_on_redis(url: str, store: "redis.asyncio.Redis") -> None:
    truth = await live(url)
    await everything_was_acknowledged(store)
    await results_are_as_the_truth_has_them(store, truth)
    await the_dead_are_in_their_lists(store, truth)
    await workers_and_schedules_are_known(store, truth)
    await workflows_are_completed(store, truth)
    assert {task.via for task in truth.tasks.values()} == set(Via)
    assert truth.signals.sent > len(truth.attempts) * 4
    assert not truth.signals.lost + truth.signals.dropped


async def everything_was_acknowledged(store: "redis.asyncio.Redis") -> None:
    entries = 0
    for queue in QUEUES:
        for stream in KEYS.streams(queue):
            assert await store.exists(stream), "every consumed queue owns ten streams"
            (group,) = await store.xinfo_groups(stream)
            assert group["name"] == KEYS.group(queue)
            assert group["pending"] == 0
            entries += await store.xlen(stream)
    assert entries > 100, "nothing is trimmed"
    ((_, fields),) = await store.xrange(KEYS.stream("default"), count=1)
    assert set(fields) == {
        *("id", "name", "args", "headers", "enqueuedAt", "notBefore", "priority", "attempt", "maxRetries"),
        *("visibilityTimeout", "queue", "meta"),
    }
    assert await store.xlen(KEYS.stream("payments", 5)) > 0, "priorities have streams of their own"
    for member, score in await store.zrange(KEYS.delayed("workflow"), 0, -1, withscores=True):
        copy = json.loads(member)  # leases that were extended leave copies
        assert abs(datetime.fromisoformat(copy["notBefore"]).timestamp() * 1000 - score) < 2


async def results_are_as_the_truth_has_them(store: "redis.asyncio.Redis", truth: Truth) -> None:
    last: dict[str, str] = {}
    for attempt in truth.attempts:
        last[attempt.task_id] = attempt.state
    overwritten = 0
    for task_id, state in last.items():
        status = json.loads(await store.get(KEYS.result(task_id)))
        assert set(status) == {"id", "state", "payload", "error", "meta", "attempt", "createdAt", "updatedAt"}
        # The producer's `queued` can come after a fast worker's last word, as in Stem.
        overwritten += status["state"] == "queued"
        assert status["state"] in {state, "queued"}
    assert overwritten < len(last) / 10
    assert 86_000_000 < await store.pttl(KEYS.result(task_id)) <= 86_400_000
    unregistered = [each.task_id for each in truth.outcomes if each.what == "unregistered"]
    for each in unregistered:
        assert json.loads(await store.get(KEYS.result(each)))["state"] == "queued", "Stem leaves their record alone"
    expired = [each.task_id for each in truth.outcomes if each.what == "expired"]
    for each in expired:
        assert json.loads(await store.get(KEYS.result(each)))["meta"]["stem.expired"] is True


async def the_dead_are_in_their_lists(store: "redis.asyncio.Redis", truth: Truth) -> None:
    found = {}
    for queue in QUEUES:
        for text in await store.lrange(KEYS.dead(queue), 0, -1):
            letter = json.loads(text)
            assert set(letter) == {"envelope", "reason", "meta", "deadAt"}
            found[letter["envelope"]["id"]] = letter["reason"]
    assert set(found) == set(truth.dead_letters)
    assert found
    assert set(found.values()) <= {"max-retries-exhausted", "unregistered-task", "signature-invalid"}


async def workers_and_schedules_are_known(store: "redis.asyncio.Redis", truth: Truth) -> None:
    assert await store.smembers(KEYS.heartbeats) == {"worker-1", "worker-2"}
    beat = json.loads(await store.get(KEYS.heartbeat("worker-1")))
    assert beat["namespace"] == "demo-ns"
    assert {"concurrency", "pid", "startedAt", "subscriptions", "queueDepth"} <= set(beat["extras"])
    assert 50_000 < await store.pttl(KEYS.heartbeat("worker-1")) <= 60_000
    fired = [each for each in truth.dispatches if each.entry_id == "clean-sessions"]
    entry = await store.hgetall(KEYS.schedule("clean-sessions"))
    assert int(entry["totalRunCount"]) == len(fired) > 0
    assert await store.xlen(KEYS.schedule_history("clean-sessions")) == len(fired)
    score = await store.zscore(KEYS.schedules, "clean-sessions")
    assert score == int(datetime.fromisoformat(entry["nextRunAt"]).timestamp() * 1000)
    assert (await store.hgetall(KEYS.schedule("old-newsletter")))["enabled"] == "false"


async def workflows_are_completed(store: "redis.asyncio.Redis", truth: Truth) -> None:
    assert truth.runs
    for run in truth.runs.values():
        record = await store.hgetall(KEYS.workflow(run.run_id))
        assert record["status"] == run.state
        assert await store.ttl(KEYS.workflow(run.run_id)) == -1, "workflow keys have no time to live"
        if run.state == "completed":
            assert await store.zrange(KEYS.workflow_order(run.run_id), 0, -1) == ["reserve", "pay", "ship"]
            assert run.suspensions >= 1


async def test_every_process_has_a_clock_of_its_own(url: str, store: "redis.asyncio.Redis") -> None:
    began = time.time()
    truth = await live(url, Faults(skew_s=90.0))
    assert truth.skews == {"worker-1": 90.0, "worker-2": -45.0}
    for worker, skew in truth.skews.items():
        own = [attempt.started_us for attempt in truth.attempts if attempt.worker == worker and attempt.started_us]
        assert own
        assert all(began < started / 1e6 - skew < time.time() for started in own), "as its own clock told it"
        beat = json.loads(await store.get(KEYS.heartbeat(worker)))
        assert abs(datetime.fromisoformat(beat["timestamp"]).timestamp() - skew - time.time()) < 10
    assert any(0 < attempt.started_us < attempt.ready_us for attempt in truth.attempts), "before they were enqueued"


async def test_what_runs_for_long_is_delivered_again(
    url: str, store: "redis.asyncio.Redis", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.demo.fleet.worker.LEASE_SECONDS", 0.3)
    truth = await live(url)
    deliveries = Counter((attempt.task_id, attempt.number) for attempt in truth.attempts)
    again = {key for key, count in deliveries.items() if count > 1}
    assert again, "a lease that was extended left a copy"
    attempts = [attempt for attempt in truth.attempts if (attempt.task_id, attempt.number) in again]
    assert len({attempt.started_us for attempt in attempts}) == len(attempts)
    assert all(attempt.due_us <= attempt.ready_us for attempt in attempts)


async def test_children_of_untraced_workers_inherit_their_header(url: str, store: "redis.asyncio.Redis") -> None:
    truth = await live(url)
    inherited = [task for task in truth.tasks.values() if task.inherited]
    assert inherited
    for task in inherited:
        assert task.parent_task_id
        parent = truth.tasks[task.parent_task_id]
        assert task.trace_id == parent.trace_id
        if parent.traced:
            assert task.send_parent == task.inherited == parent.span_id
        else:
            assert task.send_parent == ids.span_id("send", parent.task_id).hex()


async def test_the_tasks_of_a_killed_worker_are_claimed_by_another(url: str, store: "redis.asyncio.Redis") -> None:
    truth = await live(url, Faults(kill_every_s=0.3))
    assert truth.killed_workers
    cut_off = [attempt for attempt in truth.attempts if attempt.state == LOST]
    ended = {attempt.task_id for attempt in truth.attempts if attempt.state != LOST}
    assert cut_off
    assert {attempt.task_id for attempt in cut_off} & ended, "claimed, and brought to an end"
    for queue in QUEUES:
        for stream in KEYS.streams(queue):
            (group,) = await store.xinfo_groups(stream)
            assert group["pending"] == 0
