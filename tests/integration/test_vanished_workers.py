"""The search for what vanished with workers, on each kind of server: a node's all at once, and in spite of refusals."""

from datetime import UTC, datetime, timedelta

import pytest

from agent.demo.fleet.backend import Backend
from agent.demo.fleet.envelopes import new_envelope
from agent.emit import iso, utc_now
from agent.receivers.stem_state.search import Search
from agent.stem.catalogue import TaskState
from agent.stem.client.reader import RedisReader
from agent.stem.heartbeat import Heartbeat, HeartbeatExtras, Subscriptions
from agent.stem.questions.query import QueryRefusedError
from tests.stores import Stores

QUEUES = ["default", "mail"]


async def node(stores: Stores, workers: int) -> dict[str, Heartbeat]:
    """Start a task on each of so many workers, all of one node; return their last heartbeats."""
    backend = Backend(stores._told, stores.keys, utc_now)
    await stores.broker.listen("default")
    beats = {}
    for number in range(workers):
        worker = f"worker-{number}"
        envelope = new_envelope("email.send", "default", now=utc_now() - timedelta(seconds=1))
        await stores.broker.publish(envelope)
        await stores.broker.read("default", worker, count=1, block_s=0.01)
        await backend.write(envelope, TaskState.RUNNING, {"worker": worker, "startedAt": iso(utc_now())})
        extras = HeartbeatExtras(host="pod-1", subscriptions=Subscriptions(queues=("default",)))
        beats[worker] = Heartbeat(worker_id=worker, timestamp=datetime.now(UTC), extras=extras)
    return beats


def searching(stores: Stores, reader: RedisReader | None = None) -> Search:
    return Search(reader or stores.reader, stores.reader, stores.keys, stores.keys, "stem", UTC)


async def test_a_node_of_many_workers_is_asked_about_as_quickly_as_one(stores: Stores) -> None:
    beats, search = await node(stores, 30), searching(stores)
    before = stores.reader.round_trips
    async with stores.unchanged():
        await search.look(beats, QUEUES)
        await search.look(beats, QUEUES)
        lost = await search.lost(beats)
    assert {each.worker for each in lost} == set(beats)
    assert stores.reader.round_trips - before == 2 * (2 + 2) + (1 + 2), "pending and records, twice; claims and records"
    assert await search.lost({}) == []


async def test_more_workers_than_are_asked_about_at_once_are_found_all(stores: Stores) -> None:
    beats, search = await node(stores, 120), searching(stores)
    await search.look(beats, QUEUES)
    assert {each.worker for each in await search.lost(beats)} == set(beats)


async def test_what_could_not_be_asked_is_asked_again_and_nothing_that_was_found_is_forgotten(stores: Stores) -> None:
    beats = await node(stores, 120)
    reader = await stores.user("+@all", "-exists")
    search = searching(stores, reader)
    await search.look(beats, QUEUES)
    with pytest.raises(QueryRefusedError, match="exists"):
        await search.lost(beats)
    await search.look({}, QUEUES)  # they are late no more: they are down
    await stores("ACL", "SETUSER", str(reader.url.username), "+exists")
    assert {each.worker for each in await search.lost({})} == set(beats)
    assert await search.lost({}) == []
    await reader.close()
