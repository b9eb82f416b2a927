"""Asking workers over Stem's control streams: who answers, who does not, and what is left on Redis: nothing."""

import asyncio
import contextlib
import json
import re
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio

from agent.core.tasks import cancel
from agent.demo.fleet.client import Client
from agent.demo.fleet.control import Answers, ControlPlane, Payload
from agent.demo.fleet.envelopes import to_json
from agent.demo.fleet.fleet import Fleet
from agent.demo.fleet.kinds import QUEUES
from agent.demo.fleet.worker import Worker
from agent.demo.valkey import embedded_valkey
from agent.emit import iso, utc_now
from agent.settings.redis_tls import RedisTls
from agent.stem.client.errors import RefusedError, UnreachableError
from agent.stem.client.store import Store
from agent.stem.control.addressees import NotLiveError, addressees
from agent.stem.control.asking import ask_workers
from agent.stem.control.inquiry import LATE_MS, Inquiry, NoReply
from agent.stem.control.protocol import (
    ControlCommand,
    Inspection,
    Ping,
    Stats,
    broadcast_queue,
    request,
    request_fields,
)
from agent.stem.keys import Keys
from agent.stem.questions.workers import read_heartbeats
from tests.conftest import until
from tests.integration.conftest import Start

KEYS = Keys()
REQUEST = "request-1"
REPLIES = "stem:stream:{}.control.reply.request-1"


@pytest.fixture
async def url(redis_url: str) -> str:
    return redis_url.replace("/0", "/6")


@pytest.fixture
async def store(url: str) -> AsyncIterator["redis.asyncio.Redis"]:
    client = redis.asyncio.Redis.from_url(url, decode_responses=True)
    await client.flushdb()
    yield client
    await client.aclose()


@pytest.fixture
async def fleet(url: str, namespace: str, store: object) -> AsyncIterator[Fleet]:
    """A fleet of which only single parts are started."""
    fleet = Fleet(url, namespace=namespace, rate=1, workers=0, seed=1)
    yield fleet
    await fleet.redis.aclose()


@pytest.fixture
async def broker(url: str) -> AsyncIterator[Store]:
    store = Store("broker", url, namespace="stem", tls=RedisTls(), timeout=5.0)
    yield store
    await store.close()


async def beat(fleet: Fleet, worker_id: str, namespace: str | None = None) -> None:
    heartbeat = {"workerId": worker_id, "namespace": namespace or fleet.namespace, "timestamp": iso(utc_now())}
    await fleet.redis.set(fleet.keys.heartbeat(worker_id), to_json(heartbeat), px=60_000)
    await fleet.redis.sadd(fleet.keys.heartbeats, worker_id)


@contextlib.asynccontextmanager
async def living(fleet: Fleet, *numbers: int) -> AsyncIterator[list[Worker]]:
    """Whole workers of the fleet, `worker-1` and so on."""
    workers = [Worker(fleet, number) for number in numbers]
    for worker in workers:
        await worker.start()
        await beat(fleet, worker.worker_id)
    yield workers
    for worker in workers:
        await worker.close()


@contextlib.asynccontextmanager
async def answering(fleet: Fleet, worker_id: str, answers: Answers | None = None) -> AsyncIterator[ControlPlane]:
    """A worker's control plane alone; without `answers` it listens, and never reads."""
    client = Client(fleet, f"pod-{abs(hash(worker_id))}", worker_id, skew=0)
    plane = ControlPlane(client, worker_id, fleet.namespace, answers or {})
    await plane.listen()
    await beat(fleet, worker_id)
    loops = [asyncio.create_task(loop) for loop in (plane.loops() if answers is not None else ())]
    if answers is None:
        for loop in plane.loops():
            loop.close()
    try:
        yield plane
    finally:
        await cancel(loops)
        await client.emitter.close()


async def pong(_: Payload) -> Payload:
    return {"timestamp": iso(utc_now()), "queue": "default", "inflight": 0, "subscriptions": {"queues": ["default"]}}


def held(event: asyncio.Event) -> Callable[[Payload], Awaitable[Payload]]:
    async def answer(payload: Payload) -> Payload:
        await event.wait()
        return await pong(payload)

    return answer


def inquiry(fleet: Fleet, workers: Sequence[str], command: ControlCommand = ControlCommand.PING) -> Inquiry:
    where = {"keys": fleet.keys, "namespace": fleet.namespace}
    return Inquiry(command, workers, **where, request_id=REQUEST, timeout_ms=1000)  # type: ignore[arg-type]


async def keyspace(store: "redis.asyncio.Redis") -> dict[str, Any]:
    """Everything there is; of streams the entries and what is pending, of heartbeats that they are there."""
    found: dict[str, Any] = {}
    for key in await store.keys("*"):
        if await store.type(key) != "stream":
            found[key] = await store.ttl(key) > 0
            continue
        groups = [(group["name"], group["pending"]) for group in await store.xinfo_groups(key)]
        found[key] = groups, await store.xrange(key), await store.ttl(key)
    return found


# --- who answers -----------------------------------------------------------------------------------------------------


async def test_every_worker_answers_for_itself_and_nothing_is_left(
    fleet: Fleet, store: "redis.asyncio.Redis", broker: Store
) -> None:
    async with living(fleet, 1, 2, 3) as workers:
        before = await keyspace(store)
        for command, shape in (
            (ControlCommand.PING, Ping),
            (ControlCommand.STATS, Stats),
            (ControlCommand.INSPECT, Inspection),
        ):
            asked = inquiry(fleet, [worker.worker_id for worker in workers], command)
            await ask_workers(broker, asked, 10.0)
            assert sorted(asked.answers) == ["worker-1", "worker-2", "worker-3"]
            assert asked.all_well
            assert not asked.silent
            assert not asked.odd
            for answer in asked.answers.values():
                assert isinstance(answer.reply.payload, shape)
                assert None not in {answer.reply.payload.timestamp, answer.reply.payload.inflight}
        await asyncio.gather(*(drained(store, fleet, worker.worker_id) for worker in workers))
        assert await keyspace(store) == before


async def drained(store: "redis.asyncio.Redis", fleet: Fleet, worker_id: str) -> None:
    """Wait until a worker has acknowledged what it read."""
    queue = f"{fleet.namespace}.control.worker.{worker_id}"
    async with asyncio.timeout(20):
        while (await store.xpending(KEYS.stream(queue), KEYS.group(queue)))["pending"]:  # noqa: ASYNC110 - it tells nobody
            await asyncio.sleep(0.005)


async def test_stats_are_those_of_the_worker(fleet: Fleet, store: "redis.asyncio.Redis", broker: Store) -> None:
    fleet.paused.add("media")
    async with living(fleet, 1) as (worker,):
        asked = inquiry(fleet, ["worker-1"], ControlCommand.STATS)
        await ask_workers(broker, asked, 10.0)
        told = asked.answers["worker-1"].reply.payload
        assert isinstance(told, Stats)
        assert (told.namespace, told.concurrency, told.prefetch) == (fleet.namespace, 40, 80)
        assert told.paused_queues == ("media",)
        assert told.active == ()
        assert told.subscriptions
        assert told.subscriptions.queues == QUEUES
        fleet.namespace = "stem"
        await worker.backend.revoke(worker.fleet.namespace, "task-1", "not wanted")
        await worker.backend.pause(worker.fleet.namespace, "media")
        told_of = await worker.control._answers["inspect"]({"namespace": "stem"})
        assert [entry["taskId"] for entry in told_of["revoked"]] == ["task-1"]


async def test_colons_and_priorities_in_a_worker_id_are_part_of_it(
    fleet: Fleet, store: "redis.asyncio.Redis", broker: Store
) -> None:
    async with answering(fleet, "host:1:p3", {"ping": pong}), answering(fleet, "host:1", {"ping": pong}):
        before = await keyspace(store)
        asked = inquiry(fleet, ["host:1"])
        await ask_workers(broker, asked, 10.0)
        assert list(asked.answers) == ["host:1"]
        await drained(store, fleet, "host:1")
        assert await keyspace(store) == before


async def test_another_prefix_of_the_stores_and_another_worker_namespace(
    fleet: Fleet, store: "redis.asyncio.Redis", broker: Store
) -> None:
    fleet.keys, fleet.namespace = Keys("shop"), "revenue"
    async with answering(fleet, "w", {"ping": pong}):
        asked = inquiry(fleet, ["w"])
        assert asked.pattern == "shop:stream:revenue.control.*"
        await ask_workers(broker, asked, 10.0)
        assert asked.all_well
        assert not await store.keys("*reply*")


async def test_the_broadcast_queue_reaches_one_worker_only(fleet: Fleet, store: "redis.asyncio.Redis") -> None:
    """What Stem does on Redis, and why each worker is asked on its own stream."""
    queue, about = broadcast_queue(fleet.namespace), {"namespace": fleet.namespace, "worker_id": "*", "timeout_ms": 1}
    async with living(fleet, 1, 2):
        asked = request(ControlCommand.PING, REQUEST, **about)  # type: ignore[arg-type]
        await store.xadd(KEYS.stream(queue), request_fields(asked, queue=queue, now=utc_now()))  # type: ignore[arg-type]
        replies = KEYS.stream(f"{fleet.namespace}.control.reply.{REQUEST}")
        answer = await store.xread({replies: "0"}, block=4000) or await store.xread({replies: "0"}, block=1000)
        assert answer
        async with asyncio.timeout(20):
            while (await store.xpending(KEYS.stream(queue), KEYS.group(queue)))["pending"]:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        assert await store.xlen(replies) == 1


async def test_workers_signal_the_commands_that_they_get_without_payloads(
    fleet: Fleet, store: "redis.asyncio.Redis", broker: Store
) -> None:
    async with store.pubsub() as heard, answering(fleet, "w", {"ping": pong}):
        await heard.psubscribe(f"stem:signals:{fleet.namespace}:*")
        asked = inquiry(fleet, ["w"])
        await ask_workers(broker, asked, 10.0)
        signals: list[dict[str, Any]] = []
        async with asyncio.timeout(20):
            while len(signals) < 2:
                if message := await heard.get_message(ignore_subscribe_messages=True, timeout=1.0):
                    signals.append(json.loads(message["data"]))
    assert [each["eventName"] for each in signals] == ["control-command-received", "control-command-completed"]
    received, completed = (each["attributes"] for each in signals)
    expected = {"workerId": "w", "requestId": REQUEST, "type": "ping"}
    assert received == {**expected, "targets": ["w"], "timeoutMs": 1000}
    assert completed == {**expected, "status": "ok"}


# --- who does not ----------------------------------------------------------------------------------------------------


async def test_an_error_is_told_and_the_others_answer(
    fleet: Fleet, store: "redis.asyncio.Redis", broker: Store
) -> None:
    async def broken(_: Payload) -> Payload:
        raise RuntimeError("isolate pool is gone")

    async with answering(fleet, "broken", {"ping": broken}), answering(fleet, "well", {"ping": pong}):
        asked = inquiry(fleet, ["broken", "well"])
        await ask_workers(broker, asked, 10.0)
        reply = asked.answers["broken"].reply
        assert (reply.status, reply.ok) == ("error", False)
        assert reply.error
        assert reply.error.message == "RuntimeError: isolate pool is gone"
        assert asked.answers["well"].reply.ok
        assert not asked.all_well
        assert not await store.keys("*reply*")


async def test_who_does_not_listen_is_told_at_once_and_no_stream_is_made(
    fleet: Fleet, store: "redis.asyncio.Redis", broker: Store
) -> None:
    await beat(fleet, "deaf")
    before = await keyspace(store)
    asked = inquiry(fleet, ["deaf"])
    await ask_workers(broker, asked, 600.0)
    assert asked.silent == {"deaf": NoReply.NOT_LISTENING}
    assert await keyspace(store) == before


async def test_what_was_never_read_is_never_obeyed(fleet: Fleet, store: "redis.asyncio.Redis", broker: Store) -> None:
    async with answering(fleet, "stands-still"):
        before = await keyspace(store)
        asked = inquiry(fleet, ["stands-still"])
        await ask_workers(broker, asked, 0.05)
        assert asked.silent == {"stands-still": NoReply.UNREAD}
        assert not asked.left_behind
        assert await keyspace(store) == before, "the next worker of that id finds nothing to obey"


async def test_a_late_reply_finds_a_stream_that_expires(
    fleet: Fleet, store: "redis.asyncio.Redis", broker: Store
) -> None:
    go_on = asyncio.Event()
    async with answering(fleet, "slow", {"ping": held(go_on)}), answering(fleet, "well", {"ping": pong}):
        before = await keyspace(store)
        asked = inquiry(fleet, ["slow", "well"])
        asking = asyncio.create_task(ask_workers(broker, asked, 600.0))
        await until(lambda: "well" in asked.answers)
        await read_by(store, fleet, "slow")
        asking.cancel()  # as its timeout, Ctrl-C and SIGTERM do
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert asked.silent == {"slow": NoReply.UNANSWERED}
        replies = REPLIES.format(fleet.namespace)
        now = await keyspace(store)
        assert set(now) - set(before) == {replies}
        assert {key: told for key, told in now.items() if key != replies} == before, "nothing is pending, either"
        go_on.set()
        async with asyncio.timeout(20):
            while await store.xlen(replies) < 2:  # noqa: ASYNC110 - it tells nobody
                await asyncio.sleep(0.005)
        assert 0 < await store.pttl(replies) <= 1000 + LATE_MS, "the late reply did not make it last"
        assert len(await store.xinfo_groups(replies)) == 1, "made as the worker would"


async def read_by(store: "redis.asyncio.Redis", fleet: Fleet, worker_id: str) -> None:
    queue = f"{fleet.namespace}.control.worker.{worker_id}"
    async with asyncio.timeout(20):
        while (await store.xinfo_groups(KEYS.stream(queue)))[0]["last-delivered-id"] == "0-0":  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def test_a_reply_that_comes_with_the_timeout_counts(
    fleet: Fleet, store: "redis.asyncio.Redis", broker: Store
) -> None:
    asked = inquiry(fleet, ["w"])
    async with answering(fleet, "w", {"ping": pong}):
        await broker.answer(asked.prepare())
        await broker.answer(asked.send(utc_now()))
        async with asyncio.timeout(20):
            while not await store.xlen(REPLIES.format(fleet.namespace)):  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        await broker.answer(asked.withdraw())
    assert asked.all_well
    assert not await store.keys("*reply*")


async def test_who_was_not_asked_and_what_is_no_reply_are_counted_and_change_nothing(
    fleet: Fleet, store: "redis.asyncio.Redis", broker: Store
) -> None:
    async def says_another_name(payload: Payload) -> Payload:
        stream = REPLIES.format(fleet.namespace)
        args = to_json({"requestId": REQUEST, "workerId": "another", "status": "ok", "payload": {}})
        await store.xadd(stream, {"name": "__stem.control.reply__", "args": args})
        await store.xadd(stream, {"name": "email.send", "args": "{}"})
        await store.xadd(stream, {"name": "__stem.control.reply__", "args": "["})
        return await pong(payload)

    async with answering(fleet, "w", {"ping": says_another_name}):
        asked = inquiry(fleet, ["w"])
        await ask_workers(broker, asked, 10.0)
    assert asked.all_well
    assert asked.odd == ["not_asked", "not_a_reply", "not_json"]


async def test_the_dead_the_unknown_and_those_of_other_namespaces_are_refused_by_name(
    fleet: Fleet, store: "redis.asyncio.Redis", broker: Store
) -> None:
    for worker in ("worker-1", "worker-2", "mail:1"):
        await beat(fleet, worker)
    await beat(fleet, "elsewhere-1", "revenue")
    await store.delete(KEYS.heartbeat("worker-2"))  # as after 60 s
    before = await keyspace(store)
    found = await broker.answer(read_heartbeats(KEYS, 100, ages=()))
    assert addressees(found, fleet.namespace, []) == ["mail:1", "worker-1"]
    assert addressees(found, fleet.namespace, ["mail:1", "mail:1"]) == ["mail:1"]
    with pytest.raises(NotLiveError) as refused:
        addressees(found, fleet.namespace, ["worker-1", "worker-2", "wroker-1", "elsewhere-1", "x"])
    assert refused.value.problems == (
        "worker worker-2 is dead: its heartbeat has expired; live are mail:1, worker-1",
        "worker wroker-1 is unknown: it has no heartbeat; did you mean worker-1? live are mail:1, worker-1",
        "worker elsewhere-1 is in namespace revenue: ask it with --namespace revenue",
        "worker x is unknown: it has no heartbeat; live are mail:1, worker-1",
    )
    with pytest.raises(NotLiveError, match=r"no live worker in namespace nobody.*namespace ns-.*, revenue"):
        addressees(found, "nobody", [])
    assert await keyspace(store) == before


# --- a Redis that refuses, or goes -----------------------------------------------------------------------------------


def acl_line() -> list[str]:
    """The rights that the README asks for."""
    (line,) = re.findall(r"^ACL SETUSER (stem-probe .*)$", Path("README.md").read_text(encoding="utf-8"), re.MULTILINE)
    return str(line).split()


@pytest.fixture
async def restricted(url: str, store: "redis.asyncio.Redis") -> AsyncIterator[Store]:
    _, *rights = acl_line()
    await store.execute_command("ACL", "SETUSER", "stem-probe", *rights)
    host = url.removeprefix("redis://")
    probe = Store("broker", f"redis://stem-probe:secret@{host}", namespace="stem", tls=RedisTls(), timeout=5.0)
    yield probe
    await probe.close()
    await store.execute_command("ACL", "DELUSER", "stem-probe")


async def test_the_rights_in_the_readme_are_enough(
    fleet: Fleet, store: "redis.asyncio.Redis", restricted: Store
) -> None:
    fleet.namespace = "stem"
    async with answering(fleet, "w", {"ping": pong}), answering(fleet, "stands-still"):
        await restricted.now_ms()
        found = await restricted.answer(read_heartbeats(KEYS, 100, ages=()))
        asked = inquiry(fleet, addressees(found, "stem", []))
        await ask_workers(restricted, asked, 0.5)
        assert asked.silent == {"stands-still": NoReply.UNREAD}
        assert list(asked.answers) == ["w"]
        assert not await store.keys("*reply*")


@pytest.mark.parametrize(
    ("without", "missing"),
    [
        ("-multi", "+multi"),
        ("-xgroup", "+xgroup|create"),
        ("-pexpire", "+pexpire"),
        ("-xadd", "+xadd"),
        ("-xread", "+xread"),
        ("-xdel", "+xdel"),
        ("-xack", "+xack"),
        ("-del", "+del"),
        ("resetkeys", "~stem:stream:stem.control.*"),
    ],
)
async def test_a_right_that_is_missing_is_named_and_nothing_stays_for_ever(
    fleet: Fleet, store: "redis.asyncio.Redis", restricted: Store, without: str, missing: str
) -> None:
    fleet.namespace = "stem"
    await store.execute_command("ACL", "SETUSER", "stem-probe", without)
    async with answering(fleet, "w", {"ping": pong}):
        asked = inquiry(fleet, ["w"])
        with pytest.raises(RefusedError) as refused:
            await ask_workers(restricted, asked, 10.0)
    assert refused.value.missing == missing
    for key in await store.keys("*reply*"):
        assert await store.pttl(key) > 0
    left = await store.xrange(KEYS.stream("stem.control.worker.w"))
    assert [(KEYS.stream("stem.control.worker.w"), entry) for entry, _ in left] == asked.left_behind
    assert bool(left) == (without == "-xdel")


async def test_a_reason_is_no_more_than_redis_lets_us_know(
    fleet: Fleet, store: "redis.asyncio.Redis", restricted: Store
) -> None:
    fleet.namespace = "stem"
    await store.execute_command("ACL", "SETUSER", "stem-probe", "-xinfo")
    async with answering(fleet, "stands-still"):
        asked = inquiry(fleet, ["stands-still"])
        await ask_workers(restricted, asked, 0.05)
    assert asked.silent == {"stands-still": NoReply.UNKNOWN}
    assert await store.pttl(REPLIES.format("stem")) > 0, "it may have been read"


async def test_a_redis_that_goes_leaves_word_of_what_could_not_be_taken_back() -> None:
    with embedded_valkey() as server:
        url = f"{server.connection_url}/0"
        fleet = Fleet(url, namespace="stem", rate=1, workers=0, seed=1)
        broker = Store("broker", url, namespace="stem", tls=RedisTls(), timeout=5.0)
        async with answering(fleet, "stands-still"):
            asked = inquiry(fleet, ["stands-still"])
            asking = asyncio.create_task(ask_workers(broker, asked, 600.0))
            await until(lambda: asked.waiting)
            server.terminate()
            with pytest.raises(UnreachableError, match="failed to ask the broker at redis"):
                await asking
            ((stream, _),) = asked.left_behind
            assert stream == "stem:stream:stem.control.worker.stands-still"
        await broker.close()
        await fleet.redis.aclose()


# --- the command -----------------------------------------------------------------------------------------------------


async def run(start: Start, url: str, *arguments: str) -> tuple[int, str, str]:
    child = await start("worker", *arguments, STEM_BROKER_URL=url)
    assert child.process.stdout
    printed = (await child.process.stdout.read()).decode()
    return await child.end(), printed, child.output


async def test_the_command_tells_people_and_machines(
    start: Start, fleet: Fleet, url: str, store: "redis.asyncio.Redis"
) -> None:
    named = ("--namespace", fleet.namespace)
    async with living(fleet, 1, 2):
        code, table, told = await run(start, url, "stats", *named)
        assert code == 0, told
        assert re.search(r"worker-1 +ok +0 +40 +80 ", table)
        assert told.startswith("note: writes into redis 127.0.0.1")
        code, text, told = await run(start, url, "inspect", "--json", "-w", "worker-2", *named)
        assert code == 0, told
        (one,) = json.loads(text)
        assert (one["workerId"], one["status"], one["inflight"], one["revoked"]) == ("worker-2", "ok", 0, [])
        assert set(one) == {
            *("workerId", "status", "afterMs"),
            *("timestamp", "inflight", "active", "pausedQueues", "revoked"),
        }
        await beat(fleet, "deaf")
        code, text, _ = await run(start, url, "ping", "--json", *named)
        assert code == 2
        deaf, *others = json.loads(text)
        assert deaf == {"workerId": "deaf", "status": "no reply", "reason": "it has no control stream"}
        assert [each["status"] for each in others] == ["ok", "ok"]
        assert not await store.keys("*reply*")


async def test_the_command_refuses_whom_it_cannot_ask_and_writes_nothing(
    start: Start, fleet: Fleet, url: str, store: "redis.asyncio.Redis"
) -> None:
    named = ("--namespace", fleet.namespace)
    code, printed, told = await run(start, url, "ping", *named)
    assert (code, printed) == (3, "")
    assert told == f"error: no live worker in namespace {fleet.namespace}: every heartbeat has expired\n"
    await beat(fleet, "w")
    code, _, told = await run(start, url, "ping", "-w", "v", *named)
    assert code == 3
    assert told == "error: worker v is unknown: it has no heartbeat; live are w\n"
    code, _, told = await run(start, url, "ping", "--timeout", "soon")
    assert code == 3
    assert "--timeout" in told
    code, _, told = await run(start, "redis://127.0.0.1:9/0", "ping")
    assert code == 3
    assert told.startswith("error: failed to ask the broker at redis 127.0.0.1:9: connection refused; --broker, ")
    assert {key for key in await store.keys("*") if "control" in key} == set()


async def test_sigterm_takes_back_what_was_written(
    start: Start, fleet: Fleet, url: str, store: "redis.asyncio.Redis"
) -> None:
    async with answering(fleet, "stands-still"):
        before = await keyspace(store)
        child = await start(
            *("worker", "ping", "--namespace", fleet.namespace, "--timeout", "10m"), STEM_BROKER_URL=url
        )
        async with asyncio.timeout(20):
            stream = KEYS.stream(f"{fleet.namespace}.control.worker.stands-still")
            while not await store.xlen(stream):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert await child.end(signal.SIGTERM) == 128 + signal.SIGTERM
        assert await keyspace(store) == before
