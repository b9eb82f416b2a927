"""`stem-agent demo`: the main job on an embedded Valkey, and a comparison of what was done with what arrived."""

import asyncio
import signal
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.table import Table

from agent.cli.report import tell
from agent.settings.types import parse_duration

if TYPE_CHECKING:
    from agent.demo.stage import Result

_DEFAULT_DURATION = "30s"
_EXIT_DISAGREES = 1


def _duration(text: str) -> float | None:
    if text == "forever":
        return None
    try:
        return float(parse_duration(text))
    except ValueError:
        raise typer.BadParameter("expected a duration such as 20s or 2m, or `forever`") from None


def demo(
    duration: str = typer.Option(_DEFAULT_DURATION, help="How long, such as 20s or 2m; `forever` until Ctrl-C."),
    rate: float = typer.Option(100.0, min=0.1, help="Tasks published per second."),
    workers: int = typer.Option(3, min=1, help="Simulated workers."),
    seed: int = typer.Option(1, help="What chance begins with."),
) -> None:
    """Run a simulated fleet, the agent and a local OTLP endpoint, and compare.

    Exit code 0 only if every task is accounted for, exactly.
    """
    from agent.demo.stage import DemoError, Stage  # noqa: PLC0415 - the agent must not pay for the demo's imports

    stage = Stage(_duration(duration), rate, workers, seed, say=typer.echo)

    async def play() -> "Result":
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stage.stopped.set)
        return await stage.play()

    try:
        result = asyncio.run(play())
    except DemoError as error:
        tell(f"error: {error}")
        raise typer.Exit(_EXIT_DISAGREES) from None
    _show(result)
    if not result.agrees:
        tell(result.agent_log)
    raise typer.Exit(0 if result.agrees else _EXIT_DISAGREES)


def _show(result: "Result") -> None:
    table = Table(title="what the fleet did, and what the endpoint received")
    for heading in ("", "fleet", "endpoint", "wrong", ""):
        table.add_column(heading, justify="left" if not heading else "right")
    for row in result.rows:
        mark = "ok" if row.agrees else "DIFFERS"
        table.add_row(row.what, str(row.expected), str(row.received), str(row.wrong), mark)
    console = Console()
    console.print(table)
    signals = f"{result.truth.dropped_signals} signals dropped by the emitters"
    console.print(
        f"agent: exit code {result.agent_exit}, {result.cpu_s:.2f} s of CPU, {result.rss_mib:.0f} MiB; {signals}"
    )
    attempts = len(result.truth.attempts)
    if result.agrees:
        console.print(f"every one of {len(result.truth.published)} tasks and {attempts} attempts is accounted for")
    else:
        console.print("fleet and endpoint disagree")
