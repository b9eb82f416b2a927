"""The agent with a disk, as a process: what a stop or a kill leaves is delivered, looked at, or given up."""

import json
import signal
import uuid
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio
from aiohttp import web

from tests.conftest import ObservedSink
from tests.integration.conftest import Child, Start
from tests.integration.test_whole_path import publish
from tests.support import Story, envelope


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "storage"


@pytest.fixture
def config(yaml: str, place: Path, tmp_path: Path) -> Path:
    text = yaml.replace("sending_queue: {", "sending_queue: {storage: file_storage, ")
    text = text.replace("service:\n", f"extensions:\n  file_storage: {{directory: {place}}}\nservice:\n")
    text = text.replace("  telemetry:", "  extensions: [file_storage]\n  shutdown_timeout: 2s\n  telemetry:")
    file = tmp_path / "agent.yaml"
    file.write_text(text)
    return file


async def printed(start: Start, *arguments: str, expect: int = 0) -> str:
    child = await start(*arguments, COLUMNS="200")
    assert child.process.stdout
    text = (await child.process.stdout.read()).decode()
    assert await child.end() == expect, child.output + text
    return text


async def held(start: Start, place: Path) -> dict[str, Any]:
    """What the disk has, by kind of telemetry."""
    found = json.loads(await printed(start, "queue", "inspect", "--json", "-d", str(place)))
    return {queue["signal"]: queue for queue in found["queues"]}


async def refuse(_request: web.Request) -> web.StreamResponse:
    return web.Response(status=503)


class Lived:
    """Agents that heard of tasks, while nothing takes what they tell."""

    def __init__(self, start: Start, config: Path, place: Path, client: "redis.asyncio.Redis", namespace: str) -> None:
        self._start, self._config, self._place = start, config, place
        self._client, self._namespace = client, namespace

    async def __call__(self, tasks: int) -> Child:
        agent = await self._start("run", "-c", str(self._config))
        await agent.until("stem-agent running")
        for _ in range(tasks):
            story = Story(namespace=self._namespace)
            await publish(self._client, self._namespace, story.run("succeeded", envelope(id=str(uuid.uuid4()))))
        while (waiting := await held(self._start, self._place)).get("traces", {}).get("held") != 3 * tasks:
            assert waiting.get("traces", {}).get("held", 0) < 3 * tasks
        return agent


@pytest.fixture
def lived(start: Start, config: Path, place: Path, client: "redis.asyncio.Redis", namespace: str) -> Lived:
    return Lived(start, config, place, client, namespace)


async def test_what_a_stop_leaves_on_the_disk_is_delivered_by_the_next_start(
    start: Start, config: Path, place: Path, sink: ObservedSink, lived: Lived
) -> None:
    sink.answer = refuse
    agent = await lived(3)
    assert await agent.end(signal.SIGTERM) == 3
    assert "lost=0" in agent.lines[-1]
    assert (await held(start, place))["traces"]["held"] == 9
    sink.answer = None
    agent = await start("run", "-c", str(config))
    await sink.until(lambda: len(sink.spans) == 9)
    assert await agent.end(signal.SIGTERM) == 0
    assert (await held(start, place))["traces"]["delivered"] == 9


async def test_what_a_kill_leaves_on_the_disk_is_delivered_by_the_next_start(
    start: Start, config: Path, place: Path, sink: ObservedSink, lived: Lived
) -> None:
    sink.answer = refuse
    agent = await lived(3)
    await agent.end(signal.SIGKILL)
    sink.answer = None
    agent = await start("run", "-c", str(config))
    await sink.until(lambda: len(sink.spans) == 9)
    assert await agent.end(signal.SIGTERM) == 0


async def test_the_queue_is_shown_sent_and_dropped_from_the_command_line(
    start: Start, config: Path, place: Path, sink: ObservedSink, lived: Lived
) -> None:
    assert "nothing was ever stored here" in await printed(start, "queue", "inspect", "-c", str(config))
    sink.answer = refuse
    agent = await lived(2)
    busy = await start("queue", "replay", "-c", str(config))
    assert await busy.end() == 78
    assert f"another agent uses {place}" in busy.output
    assert await agent.end(signal.SIGTERM) == 3
    assert "6 " in await printed(start, "queue", "inspect", "-c", str(config))
    still = await printed(start, "queue", "replay", "-c", str(config), "--timeout", "100ms", expect=3)
    assert "traces: 6 items: 0 delivered, 0 rejected, 0 dropped, 6 still held" in still
    dropped = await printed(start, "queue", "drop", "-c", str(config), "--signal", "logs", "--yes")
    assert "of otlp_http: logs" in dropped
    assert "traces" not in dropped
    sink.answer = None
    sent = await printed(start, "queue", "replay", "-c", str(config))
    assert "traces: 6 items: 6 delivered, 0 rejected, 0 dropped, 0 still held" in sent
    assert len(sink.spans) == 6
    assert sink.logs == []
    assert "nothing waits" in await printed(start, "queue", "replay", "-c", str(config))
    books = await held(start, place)
    assert books["logs"]["dropped"] == {"dropped_by_operator": books["logs"]["accepted"]}


async def test_a_storage_that_is_not_there_or_does_not_run_is_an_error(start: Start, config: Path) -> None:
    text = config.read_text()
    config.write_text(text.replace("  extensions: [file_storage]\n", ""))
    agent = await start("validate", "-c", str(config))
    assert await agent.end() == 78
    assert "sending_queue.storage: found 'file_storage', which does not run" in agent.output
    config.write_text(text.replace("storage: file_storage", "storage: file_storag"))
    agent = await start("validate", "-c", str(config))
    assert await agent.end() == 78
    assert "expected the id of a file_storage under extensions; did you mean 'file_storage'?" in agent.output
