"""A long run at a steady rate: `make soak`. Does memory grow, and is anything lost?

The same parts as the bench, signals published evenly. Memory is sampled every few seconds; its slope is a least-squares
line through the second half, when what the agent remembers by time (a settled attempt for a minute) has filled up; a
run whose second half begins before that is too short to tell.
Exit code 1 if a span or log record is missing, or the agent says that it lost something.
"""

import argparse
import asyncio
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from tests.benchmarks.bench import AGENT, Candidate, stage
from tests.benchmarks.signals import SIGNALS_PER_TASK, SPANS_PER_TASK, Story, publish

TICK_SECONDS = 0.1
SAMPLE_SECONDS = 5.0
PROGRESS_SECONDS = 60.0
WARM_UP_SECONDS = 60.0
"""The default of `correlate`'s `settled_ttl`."""
MIB_PER_SECOND_TO_PER_HOUR = 3600
TOO_SHORT = "too short to tell"


class Memory:
    """Samples of (seconds, MiB)."""

    def __init__(self) -> None:
        self.samples: list[tuple[float, float]] = []

    def slope(self) -> float | None:
        """Return MiB per hour over the second half, None if that has something of the warm-up."""
        late = self.samples[len(self.samples) // 2 :]
        if len(late) < 2 or late[0][0] < WARM_UP_SECONDS:
            return None
        return statistics.linear_regression(*zip(*late, strict=True)).slope * MIB_PER_SECOND_TO_PER_HOUR


async def publish_evenly(agent: Candidate, seconds: float, rate: float, memory: Memory) -> int:
    """Publish for so long; return the number of tasks."""
    loop, story, tasks = asyncio.get_running_loop(), Story(), 0
    began = loop.time()
    next_sample, next_progress = 0.0, PROGRESS_SECONDS
    while (elapsed := loop.time() - began) < seconds:
        due = int(elapsed * rate / SIGNALS_PER_TASK) - tasks
        if due > 0:
            await publish(agent.client, AGENT, story.tell(due))
            tasks += due
        if elapsed >= next_sample:
            agent.process.check()
            memory.samples.append((elapsed, agent.process.usage()[1]))
            next_sample += SAMPLE_SECONDS
        if elapsed >= next_progress:
            next_progress += PROGRESS_SECONDS
            print(f"{elapsed:5.0f} s   {tasks:8} tasks   {memory.samples[-1][1]:.1f} MiB", file=sys.stderr)
        await asyncio.sleep(TICK_SECONDS)
    return tasks


async def soak(minutes: float, rate: float) -> dict[str, Any]:
    memory = Memory()
    async with stage([AGENT]) as built, built.candidate(AGENT) as agent:
        before = agent.process.usage()[0]
        tasks = await publish_evenly(agent, minutes * 60, rate, memory)
        cpu_s = agent.process.usage()[0] - before
        code = await agent.process.stop()
        received = {kind: int(await built.client.get(f"bench:{AGENT}:{kind}") or 0) for kind in ("traces", "logs")}
        if code:
            print(agent.process.output(), file=sys.stderr)
    signals, slope = tasks * SIGNALS_PER_TASK, memory.slope()
    return {
        "minutes": minutes,
        "signals": signals,
        "signals_per_second": round(signals / (minutes * 60)),
        "cpu_us_per_signal": round(cpu_s / signals * 1e6, 1),
        "core_share": round(cpu_s / (minutes * 60), 4),
        "rss_mib_first": round(memory.samples[0][1], 1),
        "rss_mib_last": round(memory.samples[-1][1], 1),
        "rss_mib_per_hour": None if slope is None else round(slope, 2),
        "spans_missing": tasks * SPANS_PER_TASK - received["traces"],
        "log_records_missing": signals - received["logs"],
        "agent_exit_code": code,
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="make soak", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--rate", type=float, default=1000.0, help="signals per second")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    result = asyncio.run(soak(options.minutes, options.rate))
    for name, value in result.items():
        print(f"{name:22} {TOO_SHORT if value is None else value}")
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    sys.exit(1 if result["spans_missing"] or result["log_records_missing"] or result["agent_exit_code"] else 0)


if __name__ == "__main__":
    main()
