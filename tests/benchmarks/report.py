"""The bench's figures as a table: `python -m tests.benchmarks.report [--check|--write]` keeps the README's in step."""

import sys
from pathlib import Path
from typing import Any

from tests.generated import keep_table, write_results

RESULTS = Path(__file__).with_name("results.json")


def table(result: dict[str, Any]) -> str:
    cost, per_core, memory = result["cpu_us_per_signal"], result["signals_per_core_second"], result["rss_mib"]
    times = {"agent": 1.0, **result["times_the_agent"]}
    names = {
        "agent": "**stem-agent**",
        "plain_sdk": "a plain script on the OpenTelemetry SDK",
        "least_work": "the least work conceivable",
    }
    rows = [
        f"| {label} | {cost[name]:.1f} us | {times[name]:.2f} | {per_core[name]:,} | "
        f"{memory[name]['idle']:.0f} / {memory[name]['loaded']:.0f} MiB |"
        for name, label in names.items()
    ]
    held, polled = result["open_attempts"], result["fleet_state"]
    signals = result["rounds"] * result["signals_per_round"]
    return "\n".join(
        (
            f"On {result['machine']}; median of {result['rounds']} rounds of {result['signals_per_round']:,} signals:",
            "",
            f"| | CPU per signal | times the agent | signals/s per core | memory: idle / after {signals:,} signals |",
            "| --- | --- | --- | --- | --- |",
            *rows,
            "",
            f"The agent idle: {result['idle_core_share'] * 1000:.1f} ms of CPU a second. From start to listening: "
            f"{result['cold_start_s']:.2f} s. From SIGTERM to exit, idle: {result['shutdown_s']:.2f} s. With "
            f"{held['count']:,} attempts open, and logs from INFO up: {held['rss_mib']:.0f} MiB in all.",
            "",
            f"Polling {polled['queues']} queues, in each of which something moves, and {polled['workers']:,} workers: "
            f"{polled['agent_ms']:.0f} ms of CPU a turn in the agent, export included, and {polled['redis_ms']:.0f} ms "
            f"in Redis; {polled['rss_mib']:.0f} MiB in all.",
            "",
        )
    )


def keep_results(result: dict[str, Any]) -> None:
    write_results(RESULTS, result)
    keep_table("bench", RESULTS, table, ("--write",))


if __name__ == "__main__":
    keep_table("bench", RESULTS, table, sys.argv[1:])
