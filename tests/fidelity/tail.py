"""How true is what is read of a fleet that sends no signals? `make fidelity-tail`: polled or notified, slow or fast.

At 100 tasks a second the demo's fleet lives with all that Stem does; at 1 000 a swift one, which is as hard to read.
What the agent asks of Redis is told by the server itself, against the same fleet without an agent.
"""

import argparse
import asyncio
import contextlib
import os
import platform
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import redis.asyncio

from agent.demo.compare import Comparison, Verdict, examine
from agent.demo.compare.attempts import Told, match
from agent.demo.compare.reading import as_read
from agent.demo.process import DemoError, printed, spawn, switch_notifications_on
from agent.demo.sink import Sink
from agent.demo.stage import FOLLOWING
from agent.demo.truth import Truth, read_truth
from agent.stem.catalogue import TaskState
from tests.fidelity.report import percent
from tests.fidelity.swift import SwiftFleet
from tests.generated import keep_table, write_results

RESULTS = Path(__file__).with_name("tail.json")
DURATION_SECONDS = 33.0
BASELINE_SECONDS = 8.0
EXAMPLES = 10
SWIFT_RATE = 1000.0
SHARES = ("named_exact", "final_told", "retried_told")
TARGET = 0.999
"""Copies that are delivered to one worker within a tenth of a millisecond overwrite one another."""
End = Callable[[], Awaitable[Truth]]
FINAL = frozenset({TaskState.SUCCEEDED, TaskState.FAILED, TaskState.CANCELLED})
ASKED = ("xread", "mget", "scan", "smembers", "llen", "lrange", "time", "strlen", "config|get", "psubscribe", "ping")

YAML = """
receivers:
  stem_tail: {{url: "{redis}", results: {{url: "{redis}"}}, discovery_interval: 500ms, claim_interval: 4s}}
connectors:
  correlate: {{metrics_interval: 1s, results: {{enabled: false}}}}
exporters:
  otlp_http: {{endpoint: "{sink}"}}
service:
  telemetry: {{metrics: {{exporter: none}}}}
  pipelines:
    signals: {{receivers: [stem_tail], exporters: [correlate]}}
    traces: {{receivers: [correlate], exporters: [otlp_http]}}
    metrics: {{receivers: [correlate], exporters: [otlp_http]}}
    logs: {{receivers: [correlate], exporters: [otlp_http]}}
"""


@dataclass(frozen=True, slots=True)
class Load:
    """What a server did so far: seconds of CPU, and calls by command."""

    cpu_s: float
    calls: Counter[str]

    @classmethod
    async def of(cls, client: Any) -> "Load":
        info = await client.info("cpu")
        stats = await client.info("commandstats")
        calls = Counter({name.removeprefix("cmdstat_"): told["calls"] for name, told in stats.items()})
        return cls(info["used_cpu_user"] + info["used_cpu_sys"], calls)


@dataclass(frozen=True, slots=True)
class Played:
    """A run, and what it came to; shares of a second each second."""

    name: str
    truth: Truth
    compared: Comparison
    told: list[Told]
    agent_cpu: float
    redis_cpu: float
    commands_per_s: float

    def figures(self) -> dict[str, Any]:
        known = [each for each in self.told if each.counts]
        final = [each for each in known if each.attempt.state in FINAL]
        named = [each for each in final if each.attempt.named]
        retried = [each for each in known if each.attempt.state == TaskState.RETRIED]

        def share(some: list[Told], *verdicts: Verdict) -> float:
            return round(sum(each.verdict in verdicts for each in some) / max(1, len(some)), 6)

        counts = self.compared.fidelity
        return {
            "attempts": len(known),
            "named_exact": share(named, Verdict.EXACT),
            "final_told": share(final, Verdict.EXACT, Verdict.INCOMPLETE),
            "retried_exact": share(retried, Verdict.EXACT),
            "retried_told": share(retried, Verdict.EXACT, Verdict.INCOMPLETE),
            "unreadable": sum(not each.counts for each in self.told),
            "wrong": counts.wrong,
            "invented": counts.invented,
            "agent_cpu": round(self.agent_cpu, 4),
            "redis_cpu": round(self.redis_cpu, 4),
            "commands_per_s": round(self.commands_per_s),
        }


async def play(name: str, *, notified: bool, rate: float, duration: float, seed: int) -> Played:
    async with contextlib.AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="stem-agent-tail-")))
        address = directory / "valkey.url"
        valkey = spawn("valkey", ["agent.demo.valkey", str(address)], directory, dying=signal.SIGTERM)
        url = await (await stack.enter_async_context(valkey)).announced(address)
        if notified:
            await switch_notifications_on(url)
        sink = Sink()
        await sink.start()
        stack.push_async_callback(sink.stop)
        client = redis.asyncio.Redis.from_url(url)
        stack.push_async_callback(client.aclose)
        if rate >= SWIFT_RATE:
            fleets = partial(swift, url, rate, seed)
        else:
            fleets = partial(demo, stack, directory, url, rate, seed)
        end = await fleets()
        began = await Load.of(client)
        await asyncio.sleep(BASELINE_SECONDS)
        alone = (await Load.of(client)).cpu_s - began.cpu_s
        await end()
        await client.flushall()  # copies of leases, which the next fleet would find
        config = directory / "agent.yaml"
        config.write_text(YAML.format(redis=url, sink=sink.url), encoding="utf-8")
        agent = await stack.enter_async_context(spawn("agent", ["agent", "run", "--config", str(config)], directory))
        await printed(agent, FOLLOWING)
        end = await fleets()
        began, cpu_s = await Load.of(client), agent.usage()[0]
        await asyncio.sleep(duration)
        ended, used_s = await Load.of(client), agent.usage()[0] - cpu_s
        truth = await end()
        await agent.stop()
        asked = sum((ended.calls - began.calls)[command] for command in ASKED)
        return Played(
            *(name, truth, examine(truth, sink), match(as_read(truth), sink).told),
            agent_cpu=used_s / duration,
            redis_cpu=(ended.cpu_s - began.cpu_s) / duration - alone / BASELINE_SECONDS,
            commands_per_s=asked / duration,
        )


async def swift(url: str, rate: float, seed: int) -> End:
    """Begin a swift fleet in this process; return what ends it, and has the truth."""
    fleet = SwiftFleet(url, rate, seed)
    running = asyncio.create_task(fleet.run())

    async def end() -> Truth:
        fleet.stop.set()
        return await running

    return end


async def demo(stack: contextlib.AsyncExitStack, directory: Path, url: str, rate: float, seed: int) -> End:
    """Begin the demo's fleet in a process of its own."""
    truth = directory / f"truth-{time.monotonic_ns()}.json"
    options = ["--url", url, "--rate", str(rate), "--seed", str(seed), "--truth", str(truth), "--no-signals"]
    fleet = await stack.enter_async_context(spawn("fleet", ["agent.demo.fleet", *options], directory))
    await fleet.announced(truth.with_suffix(".ready"))

    async def end() -> Truth:
        if code := await fleet.stop():
            raise DemoError(f"the fleet ended with exit code {code}:\n{fleet.output()}")
        return read_truth(truth)

    return end


def table(result: dict[str, Any]) -> str:
    rows = [
        f"| {name} | {run['attempts']:,} | {percent(run['named_exact'])} | {percent(run['final_told'])} | "
        f"{percent(run['retried_exact'])} | {percent(run['retried_told'])} | {run['wrong']} | {run['invented']} | "
        f"{run['commands_per_s']:,} | {run['redis_cpu'] * 100:.1f} % | {run['agent_cpu'] * 100:.0f} % |"
        for name, run in result["runs"].items()
    ]
    head = (
        "| | attempts | final, its start named: exact | final: exact or marked | retried: exact | "
        "retried: exact or marked | wrong | doubled or invented | commands/s | more CPU of Redis | CPU of the agent |"
    )
    return "\n".join(
        (f"On {result['machine']}; {result['duration_s']:g} s each:", "", head, f"|{' --- |' * 11}", *rows, "")
    )


def explain(played: Played) -> None:
    counts = played.figures()
    print(played.name, counts)
    for row in played.compared.rows:
        if not row.accounted:
            print(f"  {row.what}: {row.received} of {row.expected}, {row.incomplete} incomplete, {row.wrong} wrong")
    worst = [each for each in played.compared.examples if not each.startswith("incomplete")]
    for text in worst[:EXAMPLES]:
        print(f"  {text}")


def missed(played: Played) -> bool:
    """Whether anything is wrong or doubled, or too many records that could be read were not."""
    run = played.figures()
    return bool(run["wrong"] or run["invented"]) or min(run[share] for share in SHARES) < TARGET


async def play_all(options: argparse.Namespace) -> list[Played]:
    played = []
    for rate in options.rate or [100.0, SWIFT_RATE]:
        for notified in (False, True):
            name = f"{'notifications' if notified else 'polling'}, {rate:,.0f} tasks/s"
            print(f"{name} ...", file=sys.stderr)
            played.append(await play(name, notified=notified, rate=rate, duration=options.duration, seed=options.seed))
            explain(played[-1])
    return played


def main() -> None:
    parser = argparse.ArgumentParser(prog="make fidelity-tail", description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rate", type=float, action="append", help="tasks published per second; may be repeated")
    parser.add_argument("--duration", type=float, default=DURATION_SECONDS, help="seconds of each")
    parser.add_argument("--seed", type=int, default=1, help="what chance begins with")
    parser.add_argument("--write", action="store_true", help="keep the figures: tail.json, and the README's table")
    options = parser.parse_args()
    if options.write and options.rate:
        parser.error("--write keeps all runs, so all have to be played")
    played = asyncio.run(play_all(options))
    result = {
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, CPython {platform.python_version()}",
        "duration_s": options.duration,
        "runs": {each.name: each.figures() for each in played},
    }
    print(table(result))
    if options.write:
        write_results(RESULTS, result)
        keep_table("tail", RESULTS, table, ("--write",))
    sys.exit(any(map(missed, played)))


if __name__ == "__main__":
    if {"--check", "--keep"} & set(sys.argv):
        keep_table("tail", RESULTS, table, ("--check" if "--check" in sys.argv else "--write",))
    else:
        main()
