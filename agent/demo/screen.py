"""The demo's screen: a `Snapshot` as rich renderables, and as one line where there is no terminal."""

from collections.abc import Iterable

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from agent.demo.view import Segment, Snapshot, TaskLine, Trace

BAR_WIDTH = 44
TRACES = 12
_LINES = 18
_NAME_WIDTH = 17
_STYLES = {
    "wait": ("░", "cyan"),
    "back-off": ("·", "yellow"),
    "succeeded": ("█", "green"),
    "retried": ("█", "yellow"),
    "failed": ("█", "red"),
    "cancelled": ("█", "magenta"),
    "unknown": ("█", "white"),
}


def line(snapshot: Snapshot) -> str:
    """Return the snapshot as a plain line."""
    return (
        f"{snapshot.elapsed_s:5.0f} s   {snapshot.attempts:6} attempts traced   {snapshot.spans:6} spans   "
        f"{snapshot.log_records:6} log records   {snapshot.signals_lost} signals lost"
    )


def screen(snapshot: Snapshot, headline: str) -> RenderableType:
    """Return the whole screen."""
    top = Table.grid(expand=True, padding=(0, 1))
    for ratio in (5, 5, 4):
        top.add_column(ratio=ratio)
    top.add_row(
        Panel(_indicators(snapshot), title="key indicators", border_style="blue"),
        Panel(_workers(snapshot), title="workers", border_style="blue"),
        Panel(_agent(snapshot), title="the agent", border_style="blue"),
    )
    return Group(Text(headline, style="bold"), top, _waterfalls(snapshot.traces))


def seconds(value: float | None) -> str:
    """Return `35 ms`, `1.2 s`, or `-` for what nobody knows."""
    if value is None:
        return "-"
    return f"{value * 1000:.0f} ms" if round(value * 1000) < 1000 else f"{value:.1f} s"  # noqa: PLR2004 - a second


def bar(segments: Iterable[Segment], start_ns: int, end_ns: int, width: int) -> Text:
    """Draw segments to scale; each has at least one cell, and later ones are drawn over earlier ones."""
    cells = [(" ", "")] * width
    scale = width / max(end_ns - start_ns, 1)
    for segment in segments:
        first = min(int((segment.start_ns - start_ns) * scale), width - 1)
        last = min(max(int((segment.end_ns - start_ns) * scale), first + 1), width)
        cells[first:last] = [_STYLES.get(segment.what, _STYLES["unknown"])] * (last - first)
    return Text.assemble(*cells)


def _indicators(snapshot: Snapshot) -> Table:
    ends = snapshot.ends
    share = "-" if snapshot.retry_share is None else f"{snapshot.retry_share:.1%}"
    grid = _pairs(
        ("throughput", f"{snapshot.attempts_per_s:.0f} attempts/s"),
        ("queue latency", f"p50 {seconds(snapshot.wait_p50_s)}  p95 {seconds(snapshot.wait_p95_s)}"),
        ("retry rate", share),
        ("succeeded", f"{ends['succeeded']:,}"),
    )
    failed, revoked = ends["failed"], ends["revoked"]
    grid.add_row("failed", Text.assemble((f"{failed}", "red" if failed else ""), f"   revoked {revoked}"))
    return grid


def _workers(snapshot: Snapshot) -> Table:
    table = Table.grid(padding=(0, 1))
    for _ in range(4):
        table.add_column(no_wrap=True)
    for worker in snapshot.workers[:5]:
        up = Text("up", style="green") if worker.up else Text("down", style="bold red")
        running = "-" if worker.inflight is None else f"{worker.inflight:2} running"
        table.add_row(worker.name, up, running, f"beat {seconds(worker.heartbeat_age_s)}")
    if not snapshot.workers:
        table.add_row(Text("no heartbeat yet", style="dim"))
    if len(snapshot.workers) > 5:  # noqa: PLR2004 - the panel's height
        table.add_row(Text(f"and {len(snapshot.workers) - 5} more", style="dim"))
    return table


def _agent(snapshot: Snapshot) -> Table:
    doubled = snapshot.duplicates
    grid = _pairs(
        ("signals", f"{snapshot.signals_per_s:.0f}/s" + (f", {doubled} doubled" if doubled else "")),
        ("CPU, memory", f"{snapshot.cpu_share:.1%}, {snapshot.rss_mib:.0f} MiB"),
        ("delivered", f"{snapshot.spans:,} spans"),
        ("", f"{snapshot.log_records:,} log records"),
    )
    lost = f"{snapshot.signals_lost} signals, {snapshot.items_dropped} items"
    style = "bold red" if snapshot.signals_lost or snapshot.items_dropped else "green"
    grid.add_row("lost", Text(lost, style=style))
    return grid


def _pairs(*rows: tuple[str, str]) -> Table:
    grid = Table.grid(padding=(0, 1))
    grid.add_column(style="dim")
    grid.add_column()
    for row in rows:
        grid.add_row(*row)
    return grid


def _waterfalls(traces: list[Trace]) -> Panel:
    table = Table.grid(padding=(0, 1))
    for width in (8, _NAME_WIDTH, BAR_WIDTH, 8):
        table.add_column(min_width=width, no_wrap=True, justify="right" if width == 8 else "left")  # noqa: PLR2004
    table.add_column(no_wrap=True)
    left = _LINES
    for trace in traces:
        lines = trace.lines
        if len(lines) > left:
            break
        left -= len(lines)
        for index, task in enumerate(lines):
            table.add_row(*_task(trace, task, index))
    for _ in range(left):
        table.add_row("")
    legend = Text.assemble(
        *(
            part
            for what, (char, style) in _STYLES.items()
            if what != "unknown"
            for part in ((char, style), f" {what}  ")
        )
    )
    return Panel(table, title="newest traces", subtitle=legend, border_style="blue")


def _task(trace: Trace, task: TaskLine, index: int) -> tuple[RenderableType, ...]:
    start_ns, end_ns = trace.bounds
    segments = task.with_back_offs()
    took = (segments[-1].end_ns - segments[0].start_ns) / 1e9
    label = Text(trace.trace_id[-8:] if index == 0 else "", style="dim")
    name = Text(f"{'└ ' if index else ''}{task.name}"[:_NAME_WIDTH])
    states = Text(" → ").join(Text(state, style=_STYLES.get(state, _STYLES["unknown"])[1]) for state in task.states)
    return label, name, bar(segments, start_ns, end_ns, BAR_WIDTH), seconds(took), states
