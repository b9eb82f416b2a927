"""A fleet, an agent with a disk, an endpoint, a Redis: and everything goes wrong with all of them at once."""

import asyncio
import contextlib
import os
import signal
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import aiohttp
import redis.asyncio

from agent.demo.process import Process, spawn
from agent.demo.valkey import free_port
from agent.storage.disk import FILE
from tests.chaos import journal
from tests.chaos.audit import Evidence
from tests.chaos.endpoint import RUN, Endpoint
from tests.chaos.faults import LANES, Fault, What, faults_of
from tests.chaos.process import Agent, Life

HELD_SECONDS = 1.5
"""Before a row is damaged nothing is accepted for so long: so that there are rows."""
LOOK_SECONDS = 0.5
LOOK_TIMEOUT_SECONDS = 2.0
TIMEOUT_SECONDS = 2.0
"""The exporter's, for one request."""
RATE = 60.0
VARIABLE = "CHAOS_RUN"

AGENT_YAML = """
receivers:
  stem_signals:
    {{url: "{redis}", initial_backoff: 20ms, max_backoff: 500ms, ping_interval: 1s, storage: file_storage}}
connectors:
  correlate:
    {{metrics_interval: 500ms, heartbeat_timeout: 6s, results: {{url: "{redis}"}}, storage: file_storage}}
exporters:
  otlp_http:
    endpoint: {endpoint}
    timeout: {timeout}s
    headers: {{{header}: "${{env:{variable}}}"}}
    retry_on_failure: {{initial_interval: 50ms, max_interval: 500ms}}
    sending_queue: {{storage: file_storage, batch: {{flush_timeout: 100ms, max_items: 200}}}}
extensions:
  file_storage: {{directory: "{directory}"}}
  health: {{endpoint: "127.0.0.1:{health}"}}
service:
  extensions: [file_storage, health]
  telemetry: {{metrics: {{exporter: none}}, logs: {{format: json}}}}
  pipelines:
    signals: {{receivers: [stem_signals], exporters: [correlate]}}
    traces: {{receivers: [correlate], exporters: [otlp_http]}}
    metrics: {{receivers: [correlate], exporters: [otlp_http]}}
    logs: {{receivers: [correlate], exporters: [otlp_http]}}
"""


class Stage:
    """One run. `evidence` is complete when `play` has returned."""

    def __init__(self, directory: Path, url: str, *, seed: int, health: int) -> None:
        self.endpoint = Endpoint(seed)
        self.lives: list[Life] = []
        self.damaged: dict[str, float] = {}
        self.happened: Counter[What] = Counter()
        self.unhealthy: list[str] = []
        self._seed = seed
        self._directory = directory
        self._file = directory / "storage" / FILE
        self._config = directory / "agent.yaml"
        self._url = url
        self._health = health
        self._redis: Any = redis.asyncio.Redis.from_url(url)
        self._agent: Agent | None = None
        self._handling = asyncio.Lock()  # one thing at a time is done to the agent's process
        self._failing = 0  # how many things keep the disk from working now
        self._unwritable = False

    @property
    def agent(self) -> Agent:
        assert self._agent
        return self._agent

    async def play(self, seconds: float, fleet: Process) -> Evidence:
        """Let things go wrong for so long, then let everything come to its end."""
        loop = asyncio.get_running_loop()
        looking = asyncio.create_task(self._look_at_health())
        try:
            deadline = loop.time() + seconds
            async with asyncio.TaskGroup() as lanes:
                for lane in LANES:
                    lanes.create_task(self._trouble(faults_of(lane, self._seed), deadline))
            if code := await fleet.stop():
                raise AssertionError(f"the fleet ended with exit code {code}:\n{fleet.output()}")
            await self.agent.ready()
            await self._end()
        finally:
            looking.cancel()
            await asyncio.gather(looking, return_exceptions=True)
        return self._evidence()

    def _evidence(self) -> Evidence:
        for receipt in self.endpoint.receipts.values():  # a slow one may be overtaken by its own repeat
            receipt.acceptances.sort(key=lambda acceptance: acceptance.at)
        return Evidence(
            journal=journal.journal_of(self._file),
            books=journal.books_of(self._file),
            receipts=self.endpoint.receipts,
            differing=self.endpoint.differing,
            lives=self.lives,
            damaged=self.damaged,
            unhealthy=self.unhealthy,
            timeout=TIMEOUT_SECONDS,
        )

    # --- life ---------------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Start what listens, and the first agent."""
        journal.begin(self._file)
        await self.endpoint.start()
        text = AGENT_YAML.format(
            redis=self._url,
            endpoint=self.endpoint.url,
            timeout=TIMEOUT_SECONDS,
            header=RUN,
            variable=VARIABLE,
            directory=self._file.parent,
            health=self._health,
        )
        self._config.write_text(text, encoding="utf-8")
        await self._start()
        await self.agent.ready()

    async def close(self) -> None:
        """End whatever still runs."""
        if self._agent:
            await self._agent.discard()
        await self.endpoint.stop()
        await self._redis.aclose()

    async def _start(self) -> None:
        life = Life(len(self.lives) + 1, journal.moment_of(self._file))
        self.lives.append(life)
        self._agent = await Agent.start(self._config, life, VARIABLE)
        self._note_disk()
        if self._unwritable:
            self._agent.allow_writes(allowed=False)

    def _note_disk(self) -> None:
        if self._failing and self._agent and self.agent.life.disk_failed_at is None:
            self.agent.life.disk_failed_at = asyncio.get_running_loop().time()

    async def _kill(self) -> None:
        self.agent.life.failing = bool(self._failing)
        await self.agent.kill()
        self.agent.life.ended = journal.moment_of(self._file)

    async def _end(self) -> None:
        failing = bool(self._failing)
        await self.agent.end()
        self.agent.life.failing = failing or bool(self._failing)
        self.agent.life.ended = journal.moment_of(self._file)

    async def _look_at_health(self) -> None:
        """Ask whether the agent lives: it may be silent, while it is down or stopped, but never say no."""
        timeout = aiohttp.ClientTimeout(total=LOOK_TIMEOUT_SECONDS)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            while True:
                with contextlib.suppress(aiohttp.ClientError, TimeoutError, OSError):
                    async with session.get(f"http://127.0.0.1:{self._health}/livez") as answer:
                        if answer.status != 200:
                            self.unhealthy.append(f"/livez of agent {self.agent.life.run} said {answer.status}")
                await asyncio.sleep(LOOK_SECONDS)

    # --- trouble ------------------------------------------------------------------------------------------------------

    async def _trouble(self, faults: Iterable[Fault], deadline: float) -> None:
        loop = asyncio.get_running_loop()
        for fault in faults:
            if loop.time() + fault.after + fault.seconds > deadline:
                return
            await asyncio.sleep(fault.after)
            self.happened[fault.what] += 1
            async with self._while(fault.what, fault.seconds):
                await asyncio.sleep(fault.seconds)

    @contextlib.asynccontextmanager
    async def _while(self, what: What, seconds: float) -> AsyncIterator[None]:
        """Have something go wrong as long as the context lasts, which is so many seconds."""
        match what:
            case What.CUT:
                await self._redis.client_kill_filter(_type="pubsub")
                yield
            case What.PAUSED:
                await self._redis.client_pause(int(seconds * 1000))  # of everybody, who could end it, too
                yield
            case What.STILL:
                server = (await self._redis.info("server"))["process_id"]
                os.kill(server, signal.SIGSTOP)
                try:
                    yield
                finally:
                    os.kill(server, signal.SIGCONT)
            case What.UNWRITABLE | What.LOCKED | What.DAMAGED:
                async with self._disk(what):
                    yield
            case What.KILLED | What.ENDED | What.FROZEN:
                async with self._process(what):
                    yield
            case _:
                await self.endpoint.turn(what)
                yield
                await self.endpoint.turn(None)

    @contextlib.asynccontextmanager
    async def _disk(self, what: What) -> AsyncIterator[None]:
        if what is What.DAMAGED:
            await self._damage()
            yield
            return
        self._failing += 1
        self._note_disk()
        try:
            if what is What.LOCKED:
                async with self._handling:  # else one that is stopped may have it locked itself
                    lock = contextlib.closing(journal.lock(self._file))
                with lock:
                    yield
                return
            async with self._handling:
                self._unwritable = True
                self.agent.allow_writes(allowed=False)
            yield
            async with self._handling:
                self._unwritable = False
                self.agent.allow_writes(allowed=True)
        finally:
            self._failing -= 1

    async def _damage(self) -> None:
        self.endpoint.busy = True
        await asyncio.sleep(HELD_SECONDS)
        async with self._handling:
            await self._kill()
            if batch_id := journal.damage(self._file):
                self.damaged[batch_id] = asyncio.get_running_loop().time()
            await self._start()
        self.endpoint.busy = False

    @contextlib.asynccontextmanager
    async def _process(self, what: What) -> AsyncIterator[None]:
        async with self._handling:
            if what is What.FROZEN:
                self.agent.send(signal.SIGSTOP)
                yield
                self.agent.send(signal.SIGCONT)
                return
            if what is What.KILLED:
                await self._kill()
            else:
                await self.agent.ready()
                await self._end()
            await self._start()
        yield


async def play(seconds: float, *, seed: int, rate: float = RATE) -> tuple[Evidence, Counter[What]]:
    """Play it all in a directory of its own; return what is known at the end, and what went wrong how often."""
    async with contextlib.AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="stem-agent-chaos-")))
        address = directory / "valkey.url"
        valkey = await stack.enter_async_context(
            spawn("valkey", ["agent.demo.valkey", str(address)], directory, dying=signal.SIGTERM)
        )
        url = await valkey.announced(address)
        stage = Stage(directory, url, seed=seed, health=free_port())
        stack.push_async_callback(stage.close)
        await stage.open()
        truth = directory / "truth.json"
        options = ["--url", url, "--rate", str(rate), "--seed", str(seed), "--truth", str(truth)]
        fleet = await stack.enter_async_context(spawn("fleet", ["agent.demo.fleet", *options], directory))
        await fleet.announced(truth.with_suffix(".ready"))
        return await stage.play(seconds, fleet), stage.happened
