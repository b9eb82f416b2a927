"""How true is what the agent tells? `make fidelity`: a fleet, an agent and an endpoint for each thing that goes wrong.

Every attempt of the fleet is held against what arrived. *Exact*: the one right span, counted once, one log record for
its start and one for its end. *Incomplete*: it says itself that it does not know everything. *Missing*: no span.
Nothing may be wrong, doubled or invented, whatever goes wrong; exit code 1 where a target is missed, with examples.
"""

import argparse
import asyncio
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from os import cpu_count
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from agent.demo.compare import Fidelity, Verdict
from agent.demo.fleet.faults import parse_faults
from agent.demo.stage import Plot, Result, Stage
from tests.fidelity import report

DURATION_SECONDS = 33.0
"""Longer than a workflow's lease: the copies that it leaves on Redis are delivered, too."""
RATE = 100.0
EXAMPLES = 10
INTERVAL_SECONDS = 0.5
WIDTH = 100
ALL = "loss=1%,dup=2%,shuffle=80ms,skew=90s,kill-worker=5s,restart-agent=7s"


@dataclass(frozen=True, slots=True)
class Scenario:
    """What goes wrong, and the share of attempts that are to be told exactly all the same."""

    name: str
    faults: str
    exact: float = 0.0


SCENARIOS = (
    Scenario("none", "", exact=1.0),
    Scenario("loss=1%", "loss=1%,dup=2%,shuffle=80ms", exact=0.999),
    Scenario("loss=5%", "loss=5%"),
    Scenario("skew", "skew=90s"),
    Scenario("kill-worker", "kill-worker=5s"),
    Scenario("cut", "cut=3s"),
    Scenario("restart-agent", "restart-agent=7s"),
    Scenario("all", ALL),
)


@dataclass(frozen=True, slots=True)
class Played:
    """A scenario, and what it came to."""

    scenario: Scenario
    result: Result

    @property
    def fidelity(self) -> Fidelity:
        return self.result.fidelity

    @property
    def undisturbed(self) -> bool:
        """Whether everything is exact, or something went wrong on purpose."""
        return self.result.plot.faults.any or all(row.exact for row in self.result.rows)

    def missed(self) -> list[str]:
        """Say which targets were missed."""
        name, exact = self.scenario.name, self.fidelity.share(Verdict.EXACT)
        targets = {
            f"{report.percent(exact)} exact, not {self.scenario.exact:.1%}": exact >= self.scenario.exact,
            f"{self.fidelity.wrong} attempts wrong": not self.fidelity.wrong,
            f"{self.fidelity.invented} items doubled, invented or otherwise wrong": not self.fidelity.invented,
            f"inexact: {', '.join(row.what for row in self.result.rows if not row.exact)}": self.undisturbed,
            "the fleet dropped signals": not self.result.truth.signals.dropped,
        }
        return [f"{name}: {text}" for text, reached in targets.items() if not reached]

    def figures(self, duration: float) -> dict[str, Any]:
        """Return what is kept of it."""
        counts = self.fidelity
        shares = {verdict.value: round(counts.share(verdict), 6) for verdict in Verdict if verdict != Verdict.WRONG}
        cpu = {"cpu_share": round(self.result.cpu_s / duration, 4)}
        return {"attempts": counts.attempts, **shares, "wrong": counts.wrong, "invented": counts.invented, **cpu}


async def play(scenario: Scenario, *, duration: float, rate: float, seed: int = 1) -> Played:
    faults = parse_faults(scenario.faults)
    plot = Plot(duration=duration, rate=rate, seed=seed, faults=faults, fault_text=scenario.faults)
    stage = Stage(plot, say=lambda _: None, show=lambda _: None, interval=INTERVAL_SECONDS)
    return Played(scenario, await stage.play())


async def play_all(scenarios: Sequence[Scenario], options: argparse.Namespace) -> list[Played]:
    played = []
    for scenario in scenarios:
        print(f"{scenario.name}: {scenario.faults or 'nothing goes wrong'} ...", file=sys.stderr)
        played.append(await play(scenario, duration=options.duration, rate=options.rate, seed=options.seed))
    return played


def table(played: Sequence[Played], duration: float) -> Table:
    drawn = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    drawn.add_column("what goes wrong", no_wrap=True)
    for heading in ("attempts", "exact", "incomplete", "missing", "wrong", "invented", "CPU"):
        drawn.add_column(heading, justify="right", no_wrap=True)
    for each in played:
        run = each.figures(duration)
        shares = (report.percent(run[verdict]) for verdict in (Verdict.EXACT, Verdict.INCOMPLETE, Verdict.MISSING))
        counts = (str(run["wrong"]), str(run["invented"]), f"{run['cpu_share']:.1%}")
        drawn.add_row(each.scenario.name, str(run["attempts"]), *shares, *counts)
    return drawn


def explain(console: Console, each: Played) -> None:
    """Print what a developer needs to begin with."""
    for text in each.missed():
        console.print(f"missed: {text}", style="bold", highlight=False, markup=False)
    for row in each.result.rows:
        if not row.exact:
            counts = f"{row.received} of {row.expected}, {row.incomplete} incomplete, {row.wrong} wrong"
            console.print(f"  {row.what}: {counts}", highlight=False, markup=False)
    for text in each.result.examples[:EXAMPLES]:
        console.print(f"  {text}", highlight=False, soft_wrap=True, markup=False)
    if len(each.result.examples) > EXAMPLES:
        console.print(f"  and {len(each.result.examples) - EXAMPLES} more", highlight=False)


def main() -> None:
    parser = argparse.ArgumentParser(prog="make fidelity", description=__doc__.splitlines()[0] if __doc__ else None)
    names = [scenario.name for scenario in SCENARIOS]
    parser.add_argument("--scenario", choices=names, action="append", help="only this one; may be repeated")
    parser.add_argument("--duration", type=float, default=DURATION_SECONDS, help="seconds of each")
    parser.add_argument("--rate", type=float, default=RATE, help="tasks published per second")
    parser.add_argument("--seed", type=int, default=1, help="what chance begins with")
    parser.add_argument("--write", action="store_true", help="keep the figures: results.json, and the README's table")
    options = parser.parse_args()
    chosen = [scenario for scenario in SCENARIOS if scenario.name in (options.scenario or names)]
    if options.write and len(chosen) < len(SCENARIOS):
        parser.error("--write keeps all scenarios, so all have to be played")
    played = asyncio.run(play_all(chosen, options))
    console = Console()
    console.width = max(console.width, WIDTH)
    console.print(table(played, options.duration))
    failed = [each for each in played if each.missed()]
    for each in failed:
        explain(console, each)
    if options.write:
        report.keep_results(
            {
                "machine": f"{cpu_count()} cores, {platform.machine()}, CPython {platform.python_version()}",
                "duration_s": options.duration,
                "rate": options.rate,
                "scenarios": {each.scenario.name: each.figures(options.duration) for each in played},
            }
        )
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
