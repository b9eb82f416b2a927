"""`make chaos`: everything goes wrong with everything, at random, and at the end the books must be exact.

A fleet, a Redis, an endpoint and the agent with a disk; faults of all four overlap. Beside it, a process that sends
with a disk is killed again and again. Then the ledger is printed; exit code 1 with what does not add up.
"""

import argparse
import asyncio
import platform
import random
import sys
import tempfile
from collections import Counter
from os import cpu_count
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from tests.chaos import report
from tests.chaos.audit import Evidence, Line, differences, ledger
from tests.chaos.faults import LANES, What
from tests.chaos.stage import play
from tests.kills import Heard, kill_often

MINUTES = 3.0
KILLS = 300
WIDTH = 130
MOST_SHOWN = 30


async def everything(seconds: float, *, seed: int, kills: int) -> tuple[Evidence, Counter[What], Heard]:
    """Play it, and kill processes beside it."""
    with tempfile.TemporaryDirectory(prefix="stem-agent-kills-") as directory:
        async with asyncio.TaskGroup() as both:
            playing = both.create_task(play(seconds, seed=seed))
            killing = both.create_task(kill_often(Path(directory), kills, random.Random(seed)))
    return *playing.result(), killing.result()


def figures(lines: list[Line], happened: Counter[What], heard: Heard, evidence: Evidence) -> dict[str, Any]:
    """Return what is kept of a run."""
    return {
        "signals": {line.kind: report.columns(line) for line in lines},
        "faults": {lane: sum(happened[what] for what in LANES[lane].kinds) for lane in LANES},
        "agents": len(evidence.lives),
        "damaged": len(evidence.damaged),
        "kills": heard.kills,
        "kill_batches": len(heard.safe),
        "kill_repeats": heard.repeats,
    }


def table(lines: list[Line]) -> Table:
    drawn = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    drawn.add_column("items")
    for heading in report.HEADINGS[1:]:
        drawn.add_column(heading, justify="right")
    for line in lines:
        drawn.add_row(line.kind, *report.texts(report.columns(line)))
    return drawn


def show(console: Console, lines: list[Line], happened: Counter[What], heard: Heard, evidence: Evidence) -> None:
    console.print(table(lines))
    for name, lane in LANES.items():
        told = ", ".join(f"{what} {happened[what]}" for what in lane.kinds)
        console.print(f"{name}: {told}", highlight=False, soft_wrap=True)
    ends = Counter("SIGKILL" if life.exit_code is None else f"exit {life.exit_code}" for life in evidence.lives)
    console.print(f"agents: {', '.join(f'{end} {n}' for end, n in sorted(ends.items()))}", highlight=False)
    console.print(
        f"killed {heard.kills} times beside it: {len(heard.safe)} batches were safe, and all of them were delivered; "
        f"{heard.repeats} of {len(heard.delivered)} more than once",
        highlight=False,
        soft_wrap=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="make chaos", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--minutes", type=float, default=MINUTES)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1_000_000), help="default: any")
    parser.add_argument("--kills", type=int, default=KILLS, help="processes killed beside it")
    parser.add_argument("--write", action="store_true", help="keep the figures: results.json, and the README's table")
    options = parser.parse_args()
    print(f"{options.minutes:g} minutes of chaos, seed {options.seed} ...", file=sys.stderr)
    found, happened, heard = asyncio.run(everything(options.minutes * 60, seed=options.seed, kills=options.kills))
    lines, wrong, console = ledger(found), differences(found), Console()
    console.width = max(console.width, WIDTH)
    show(console, lines, happened, heard, found)
    for text in wrong[:MOST_SHOWN]:
        console.print(f"difference: {text}", style="bold", highlight=False, markup=False, soft_wrap=True)
    console.print(f"{len(wrong)} differences, seed {options.seed}" if wrong else "exact", style="bold", highlight=False)
    if options.write and not wrong:
        machine = f"{cpu_count()} cores, {platform.machine()}, CPython {platform.python_version()}"
        kept = figures(lines, happened, heard, found)
        report.keep_results({"machine": machine, "minutes": options.minutes, "seed": options.seed, **kept})
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
