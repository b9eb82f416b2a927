"""`stem-agent demo`: the main job on an embedded Valkey, and a comparison of what was done with what arrived."""

import asyncio
import contextlib
import signal
from textwrap import wrap
from typing import TYPE_CHECKING

import typer

from agent.cli.report import tell
from agent.core.errors import EXIT_LOST
from agent.settings.types import parse_duration, parse_endpoint

if TYPE_CHECKING:
    from rich.console import Console

    from agent.demo.stage import Plot, Result
    from agent.demo.truth import Truth
    from agent.demo.view import Snapshot

_DEFAULT_DURATION = "30s"
_EXIT_DISAGREES = 1
_LIVE_SECONDS = 0.5
_PLAIN_SECONDS = 2.0
_MIN_WIDTH, _MIN_HEIGHT = 110, 30
_REPORT_WIDTH = 80
_EXAMPLES = 5
_SILENT = (
    "partial: marked `stem.incomplete`, because the record that names worker and start was overwritten before it could "
    "be read (a retry's, a revocation's, that of an exhausted explicit retry do not name them)"
)
_UNCUT_WIDTH = 200
"""Wider than any table: where no terminal says how wide it is, nothing is cut."""


def _duration(text: str) -> float | None:
    if text == "forever":
        return None
    try:
        if seconds := float(parse_duration(text)):
            return seconds
    except ValueError:
        pass  # told with zero, below
    expected = "expected a duration such as 20s or 2m, above zero, or `forever`"
    raise typer.BadParameter(f"found {text!r}; {expected}", param_hint="--duration")


def _endpoint(text: str | None) -> str | None:
    try:
        return None if text is None else str(parse_endpoint(text))
    except ValueError as error:
        # What was found is not repeated: it may have a password in it.
        raise typer.BadParameter(f"expected {error}", param_hint="--endpoint") from None


def demo(  # noqa: PLR0913, PLR0917 - one parameter a flag
    duration: str = typer.Option(
        _DEFAULT_DURATION,
        help="How long, such as 20s or 2m. `forever`: until Ctrl-C; memory grows, as the comparison needs every item.",
    ),
    rate: float = typer.Option(100.0, min=0.1, help="Tasks published per second."),
    workers: int = typer.Option(3, min=1, help="Simulated workers."),
    faults: str = typer.Option(
        "",
        help="What goes wrong, such as loss=1%,dup=1%,shuffle=80ms of the signals, skew=90s of the clocks, cut, "
        "kill-worker, restart-agent; cut=3s, kill-worker=5s, restart-agent=7s say how often.",
    ),
    endpoint: str | None = typer.Option(
        None, help="Also send to this OTLP/HTTP base URL; OTEL_EXPORTER_OTLP_HEADERS is sent along."
    ),
    no_signals: bool = typer.Option(  # noqa: FBT001
        False,  # noqa: FBT003
        "--no-signals",
        help="Workers without a bridge: everything is read from Redis.",
    ),
    keep: bool = typer.Option(False, "--keep", help="Leave Redis running at the end, and print its URL."),  # noqa: FBT001, FBT003 - typer's form of a flag
    plain: bool = typer.Option(False, "--plain", help="Lines instead of a screen, also on a terminal."),  # noqa: FBT001, FBT003
    seed: int = typer.Option(1, help="What chance begins with."),
) -> None:
    """Run a simulated fleet, the agent and a local OTLP endpoint, and compare.

    Exit code 0 only if every task is accounted for, exactly. Under faults something may be missing; then exit code 0
    says that nothing that arrived is wrong, doubled or invented.
    """
    from agent.demo.fleet.faults import parse_faults  # noqa: PLC0415 - the agent must not pay for the demo's imports
    from agent.demo.process import DemoError  # noqa: PLC0415
    from agent.demo.stage import Plot  # noqa: PLC0415

    try:
        wrongs = parse_faults(faults)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--faults") from None
    if no_signals and wrongs.of_signals:
        raise typer.BadParameter("no signals are sent, so none can be lost, doubled or cut", param_hint="--no-signals")
    plot = Plot(_duration(duration), rate, workers, seed, wrongs, faults, _endpoint(endpoint), keep, no_signals)
    from rich.console import Console  # noqa: PLC0415

    console = Console()
    try:
        result = asyncio.run(_play(plot, console, plain=plain))
    except DemoError as error:
        tell(f"error: {error}")
        raise typer.Exit(_EXIT_DISAGREES) from None
    good = result.agrees and result.delivered
    if not good:
        tell(result.agent_log)
    _report(console, result)
    raise typer.Exit(0 if good else _EXIT_DISAGREES)


async def _play(plot: "Plot", console: "Console", *, plain: bool) -> "Result":
    from agent.demo.screen import line, screen  # noqa: PLC0415 - see above
    from agent.demo.stage import Stage  # noqa: PLC0415

    big_enough = console.is_terminal and console.width >= _MIN_WIDTH and console.height >= _MIN_HEIGHT
    with contextlib.ExitStack() as stack:
        if plain or not big_enough:
            stage = Stage(plot, say=typer.echo, show=lambda seen: typer.echo(line(seen)), interval=_PLAIN_SECONDS)
        else:
            from rich.live import Live  # noqa: PLC0415

            live = Live(console=console, auto_refresh=False, transient=False)

            def show(seen: "Snapshot") -> None:
                if not live.is_started:
                    stack.enter_context(live)
                frame = screen(seen, _headline(plot, seen), width=console.width, height=console.height)
                live.update(frame, refresh=True)

            def say(text: str) -> None:
                console.print(text, highlight=False)

            stage = Stage(plot, say=say, show=show, interval=_LIVE_SECONDS)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                continue  # nohup: it is to go on without its terminal
            loop.add_signal_handler(number, stage.stopped.set)
        return await stage.play()


def _headline(plot: "Plot", seen: "Snapshot") -> str:
    if seen.over:
        now = f"over after {seen.elapsed_s:.0f} s, drained; rates of the whole run"
    else:
        of = "" if plot.duration is None else f" of {plot.duration:.0f} s"
        now = f"{seen.elapsed_s:.0f} s{of}; Ctrl-C ends it"
    faults = f", with {plot.fault_text}" if plot.fault_text else ""
    return f"stem-agent demo: {now}   {plot.scene}{faults}"


def _report(console: "Console", result: "Result") -> None:
    # No borders: it is to fit 80 columns.
    from rich.box import SIMPLE_HEAD  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    table = Table(
        title="what the fleet did, and what the endpoint received",
        box=SIMPLE_HEAD,
        show_edge=False,
        collapse_padding=True,
        pad_edge=False,
    )
    for heading in ("", "fleet", "endpoint", "partial", "wrong", ""):
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    if not console.is_terminal:
        console.width = _UNCUT_WIDTH
    shown = [row for row in result.rows if row.expected or row.received or not row.exact]
    for row in shown:
        mark = "ok" if row.exact or (result.plot.silent and row.accounted) else "DIFFERS"
        if result.plot.faults.any and row.true and not row.exact:
            mark = "missing" if row.received < row.expected else "ok"
        table.add_row(_label(row.what), str(row.expected), str(row.received), str(row.incomplete), str(row.wrong), mark)
    console.print(table)
    if hidden := len(result.rows) - len(shown):
        console.print(f"rows that are 0 on both sides, and not shown: {hidden}", highlight=False)
    for text in _summary(result):
        console.print(text, highlight=False, soft_wrap=True)


def _label(what: str) -> str:
    """Return what a row is about, short enough for 80 columns."""
    return what.removeprefix("counter ").removeprefix("histogram ")  # a metric's name says it


def _summary(result: "Result") -> list[str]:
    """Return what there is to say, within 80 columns but for URLs; the last of it is what the user must know."""
    from agent.demo.screen import many  # noqa: PLC0415 - see above

    truth, faults, signals = result.truth, result.plot.faults, result.truth.signals
    lines = [f"agent: exit code {result.agent_exit}, {result.cpu_s:.2f} s of CPU, {result.rss_mib:.0f} MiB"]
    if result.agent_exit == EXIT_LOST:
        why = ", as it should under faults" if faults.any else "; its log above says what"
        lines.append(f"exit code {EXIT_LOST}: the agent knows that something was lost{why}")
    if result.plot.silent:
        lines.append("no signals: everything was read from the streams and records on redis")
    else:
        lines.append(f"{many(signals.sent, 'signal')}, {signals.dropped} of them dropped by the emitters")
    if faults.any:
        lines += wrap(f"faults: {_happened(truth)}", _REPORT_WIDTH, subsequent_indent="  ")
    if result.repaired:
        lines.append(f"{many(result.repaired, 'attempt')} repaired: their ends were read from the result records")
    if result.kept:
        lines.append(f"redis is left running: {result.kept}")
    of = f"{many(len(truth.tasks), 'task')} and {many(len(truth.attempts), 'attempt')}"
    if not result.agrees:
        bad = [row.what for row in result.rows if not result.is_fit(row)]
        lines += wrap(f"fleet and endpoint disagree: {', '.join(bad)}", _REPORT_WIDTH, subsequent_indent="  ")
        lines += [f"  {text}" for text in result.examples[:_EXAMPLES]]
    elif faults.any:
        lines.append(f"{of}: nothing that arrived is wrong, doubled or invented")
    else:
        lines.append(f"every one of {of} is accounted for")
    if result.plot.silent and result.agrees:
        lines += wrap(_SILENT, _REPORT_WIDTH, subsequent_indent="  ")
    return lines + _backend(result)


def _happened(truth: "Truth") -> str:
    """Return which faults there were: chance may have had none of those that were asked for."""
    from agent.demo.screen import many  # noqa: PLC0415 - see above

    signals, off_s = truth.signals, max(map(abs, truth.skews.values()), default=0)
    counts = {
        f"{many(signals.lost, 'signal')} lost": signals.lost,
        f"{many(signals.doubled, 'signal')} doubled": signals.doubled,
        f"{many(len(truth.killed_workers), 'worker')} killed": len(truth.killed_workers),
        f"{many(truth.cuts, 'connection')} cut": truth.cuts,
        many(truth.agents - 1, "agent restart"): truth.agents - 1,
        f"clocks off by up to {off_s:.0f} s": round(off_s),
    }
    return ", ".join(text for text, count in counts.items() if count) or "none happened"


def _backend(result: "Result") -> list[str]:
    """Return what became of the items for the user's own endpoint."""
    if not (url := result.plot.endpoint):
        return []
    counts = result.backend
    told = f"{counts['delivered']} of {counts['accepted']} items delivered"
    lines = [f"{url}: {told}, {counts['rejected']} rejected, {counts['dropped']} dropped"]
    return lines + ([f"nothing answers at {url}: {result.refusal}"] if result.refusal else [])
