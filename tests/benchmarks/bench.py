"""What a signal costs: `make bench`. The agent beside a plain SDK script and the least work conceivable.

Valkey, one counting OTLP endpoint for each candidate, and the three candidates run as processes of their own. Rounds
take turns: in each, every candidate gets the same signals, and what the kernel counted for its process between the
first signal and the last delivered item is its cost. Ratios are taken within a round, so what slows the machine down
slows all of them; medians are printed. The agent makes every span, every log record from DEBUG up and every metric.

Nothing is asserted: machines differ. `--write` keeps the figures in `results.json` and in the README.
"""

import argparse
import asyncio
import contextlib
import platform
import statistics
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from os import cpu_count
from pathlib import Path
from typing import Any

import redis.asyncio

from agent.demo.process import Process, spawn
from agent.demo.valkey import embedded_valkey
from tests.benchmarks import fleet_state, report
from tests.benchmarks.signals import SIGNALS_PER_TASK, SPANS_PER_TASK, Story, Told, publish
from tests.generated import write_results

AGENT, PLAIN, LEAST = "agent", "plain_sdk", "least_work"
CANDIDATES = (AGENT, PLAIN, LEAST)
PATIENCE_SECONDS = 120.0
STARTS = 3
POLL_SECONDS = 0.005
WARM_UP_TASKS = 1000
OPEN_ATTEMPTS = 100_000
OPEN_CHUNK = 2000

YAML = """
receivers:
  stem_signals: {{url: "{redis}", namespace: {namespace}}}
connectors:
  correlate: {{metrics_interval: 1s, logs: {{min_severity: {severity}}}, results: {{url: "{redis}"}}}}
exporters:
  otlp_http: {{endpoint: "{endpoint}"}}
service:
  telemetry: {{metrics: {{exporter: none}}}}
  pipelines:
    signals: {{receivers: [stem_signals], exporters: [correlate]}}
    traces: {{receivers: [correlate], exporters: [otlp_http]}}
    metrics: {{receivers: [correlate], exporters: [otlp_http]}}
    logs: {{receivers: [correlate], exporters: [otlp_http]}}
"""


@dataclass(slots=True)
class Candidate:
    """A process under measurement, and how much of its work has arrived at its endpoint."""

    name: str
    process: Process
    client: "redis.asyncio.Redis"
    tasks: int = 0
    idle_mib: float = 0.0

    async def work(self, told: Told) -> float:
        """Give it signals; return the CPU seconds it took until everything was delivered."""
        before = self.process.usage()[0]
        self.tasks += len(told) // SIGNALS_PER_TASK
        await publish(self.client, self.name, told)
        await self.delivered({"traces": self.tasks * SPANS_PER_TASK, "logs": self.tasks * SIGNALS_PER_TASK})
        return self.process.usage()[0] - before

    async def delivered(self, wanted: Mapping[str, int]) -> None:
        """Wait until its endpoint has so many items of each kind."""
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                for kind, count in wanted.items():
                    while int(await self.client.get(f"bench:{self.name}:{kind}") or 0) < count:
                        self.process.check()
                        await asyncio.sleep(POLL_SECONDS)
        except TimeoutError:
            sys.exit(f"{self.name} did not deliver {wanted} in {PATIENCE_SECONDS:g} s:\n{self.process.output()}")


class Stage:
    """Valkey, the endpoints, and whatever is started on them."""

    def __init__(self, url: str, directory: Path) -> None:
        self.url = url
        self.directory = directory
        self.client = redis.asyncio.Redis.from_url(url)

    async def endpoint(self, name: str) -> str:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not (url := await self.client.get(f"bench:{name}:url")):
                await asyncio.sleep(POLL_SECONDS)
        return str(url.decode())

    @contextlib.asynccontextmanager
    async def candidate(self, name: str, *, severity: str = "DEBUG") -> AsyncIterator[Candidate]:
        """Start a candidate and wait until it listens."""
        endpoint = await self.endpoint(name)
        command = [f"tests.benchmarks.{name}", self.url, name, endpoint]
        if name == AGENT:
            config = self.directory / "agent.yaml"
            text = YAML.format(redis=self.url, namespace=name, endpoint=endpoint, severity=severity)
            config.write_text(text, encoding="utf-8")
            command = ["agent", "run", "--config", str(config)]
        listening = await self.client.pubsub_numpat()
        async with spawn(name, command, self.directory) as process:
            async with asyncio.timeout(PATIENCE_SECONDS):
                while await self.client.pubsub_numpat() == listening:
                    process.check()
                    await asyncio.sleep(POLL_SECONDS)
            yield Candidate(name, process, self.client)


@contextlib.asynccontextmanager
async def stage(names: Sequence[str]) -> AsyncIterator[Stage]:
    with tempfile.TemporaryDirectory(prefix="stem-agent-bench-") as name, embedded_valkey() as server:
        built = Stage(server.connection_url, Path(name))
        # Pub/sub disconnects whoever lags behind by 32 MB; here everybody is to work the same pile off.
        await built.client.config_set("client-output-buffer-limit", "pubsub 0 0 0")
        async with spawn("sink", ["tests.benchmarks.counting_sink", built.url, *names], built.directory):
            yield built
        await built.client.aclose()


async def starts_and_stops(built: Stage) -> tuple[float, float]:
    """Return the seconds from start to listening, and from SIGTERM to exit, of an agent with nothing to do."""
    loop = asyncio.get_running_loop()
    up, down = [], []
    for _ in range(STARTS):
        began = loop.time()
        async with built.candidate(AGENT) as agent:
            up.append(loop.time() - began)
            began = loop.time()
            if code := await agent.process.stop():
                sys.exit(f"the agent ended with exit code {code}:\n{agent.process.output()}")
            down.append(loop.time() - began)
    return statistics.median(up), statistics.median(down)


async def open_attempts(built: Stage, tasks: int) -> float:
    """Return the resident MiB of an agent, with its default logs, that holds so many attempts open."""
    story = Story()
    async with built.candidate(AGENT, severity="INFO") as agent:
        logs = int(await built.client.get(f"bench:{AGENT}:logs") or 0)
        for begun in range(OPEN_CHUNK, tasks + 1, OPEN_CHUNK):  # in turns, or its queues are what is measured
            await publish(built.client, AGENT, story.begin(OPEN_CHUNK))
            await agent.delivered({"logs": logs + begun})  # one for each start
        return agent.process.usage()[1]


async def idle_share(agent: Candidate, seconds: float) -> float:
    """Return the share of a core that an agent takes while nobody speaks."""
    before = threads_s(agent.process.pid)
    await asyncio.sleep(seconds)
    return (threads_s(agent.process.pid) - before) / seconds


def threads_s(pid: int) -> float:
    """Return the seconds its living threads were on a core: finer than the kernel's ticks of 10 ms."""
    files = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(file.read_text(encoding="ascii").split()[0]) for file in files) / 1e9


async def measure(tasks: int, rounds: int, idle_s: float) -> dict[str, Any]:
    costs: dict[str, list[float]] = {name: [] for name in CANDIDATES}
    async with stage(CANDIDATES) as built, contextlib.AsyncExitStack() as stack:
        print("starting and stopping ...", file=sys.stderr)
        up_s, down_s = await starts_and_stops(built)
        candidates = [await stack.enter_async_context(built.candidate(name)) for name in CANDIDATES]
        print(f"idling for {idle_s:g} s ...", file=sys.stderr)
        idle = await idle_share(candidates[0], idle_s)
        story = Story()
        for candidate in candidates:
            candidate.idle_mib = candidate.process.usage()[1]
        warm_up = story.tell(WARM_UP_TASKS)  # caches, connections, lazy imports
        for candidate in candidates:
            await candidate.work(warm_up)
        for number in range(rounds):
            told = story.tell(tasks)
            for candidate in candidates:
                costs[candidate.name].append(await candidate.work(told) / len(told) * 1e6)
            figures = ", ".join(f"{name} {cost[-1]:.1f}" for name, cost in costs.items())
            print(f"round {number + 1} of {rounds}, us per signal: {figures}", file=sys.stderr)
        memory = {
            candidate.name: {"idle": round(candidate.idle_mib, 1), "loaded": round(candidate.process.usage()[1], 1)}
            for candidate in candidates
        }
        if code := await candidates[0].process.stop():
            sys.exit(f"the agent ended with exit code {code}:\n{candidates[0].process.output()}")
        print(f"holding {OPEN_ATTEMPTS:,} attempts open ...", file=sys.stderr)
        open_mib = await open_attempts(built, OPEN_ATTEMPTS)
    print(f"polling {fleet_state.QUEUES} queues and {fleet_state.WORKERS:,} workers ...", file=sys.stderr)
    polling = await fleet_state.measure()
    return {
        "machine": f"{cpu_count()} cores, {platform.machine()}, CPython {platform.python_version()}",
        "rounds": rounds,
        "signals_per_round": tasks * SIGNALS_PER_TASK,
        "cpu_us_per_signal": {name: round(statistics.median(each), 1) for name, each in costs.items()},
        "cpu_us_per_signal_by_round": {name: [round(cost, 1) for cost in each] for name, each in costs.items()},
        "times_the_agent": {
            name: round(statistics.median(cost / own for cost, own in zip(costs[name], costs[AGENT], strict=True)), 2)
            for name in (PLAIN, LEAST)
        },
        "signals_per_core_second": {name: round(1e6 / statistics.median(each)) for name, each in costs.items()},
        "rss_mib": memory,
        "open_attempts": {"count": OPEN_ATTEMPTS, "rss_mib": round(open_mib, 1)},
        "idle_core_share": round(idle, 5),
        "cold_start_s": round(up_s, 2),
        "shutdown_s": round(down_s, 2),
        "fleet_state": polling,
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--tasks", type=int, default=10_000, help="tasks per round; each is four signals")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--idle", type=float, default=10.0, help="seconds to watch the agent idle")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--write", action="store_true", help="keep the figures: results.json, and the README's table")
    options = parser.parse_args()
    result = asyncio.run(measure(options.tasks, options.rounds, options.idle))
    print(report.table(result))
    if options.json:
        write_results(options.json, result)
    if options.write:
        report.keep_results(result)


if __name__ == "__main__":
    main()
