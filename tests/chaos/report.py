"""The last run of `make chaos`: `python -m tests.chaos.report [--check|--write]` keeps the README's table in step."""

import sys
from pathlib import Path
from typing import Any

from tests.chaos.audit import Line
from tests.generated import keep_table, write_results

RESULTS = Path(__file__).with_name("results.json")
HEADINGS = (
    *("items", "accepted", "delivered", "rejected", "dropped", "held"),
    *("counted by the endpoint", "told late", "memory only", "lost in memory", "repeated batches"),
)


def columns(line: Line) -> dict[str, Any]:
    """Return what the ledger says of a kind, in the order of the headings."""
    return {
        "accepted": line.accepted,
        "delivered": line.delivered,
        "rejected": line.rejected,
        "dropped": dict(line.dropped),
        "held": line.held,
        "counted": line.counted,
        "told_late": line.told_late,
        "memory_only": line.memory_only,
        "lost_in_memory": line.lost_in_memory,
        "repeats": f"{line.repeats:,} of {line.batches:,}",
    }


def texts(found: dict[str, Any]) -> list[str]:
    """Return the columns for people."""
    return [_text(value) for value in found.values()]


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"`{reason}` {items:,}" for reason, items in sorted(value.items())) or "0"
    return f"{value:,}" if isinstance(value, int) else str(value)


def table(result: dict[str, Any]) -> str:
    faults = result["faults"]
    rows = [f"| {kind} | {' | '.join(texts(found))} |" for kind, found in result["signals"].items()]
    return "\n".join(
        (
            f"On {result['machine']}; {result['minutes']:g} minutes, seed {result['seed']}; faults of the backend "
            f"{faults['backend']}, of Redis {faults['redis']}, of the disk {faults['disk']}, of the process "
            f"{faults['process']}; {result['agents']} agent processes, {result['damaged']} damaged rows:",
            "",
            f"| {' | '.join(HEADINGS)} |",
            f"| {' | '.join('---' for _ in HEADINGS)} |",
            *rows,
            "",
            f"Beside it a process was killed {result['kills']} times while it sent with a disk: all "
            f"{result['kill_batches']:,} batches that were safe were delivered, {result['kill_repeats']:,} of them "
            "more than once.",
            "",
        )
    )


def keep_results(result: dict[str, Any]) -> None:
    write_results(RESULTS, result)
    keep_table("chaos", RESULTS, table, ("--write",))


if __name__ == "__main__":
    keep_table("chaos", RESULTS, table, sys.argv[1:])
