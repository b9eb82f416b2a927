"""The demo's screen: a `Snapshot` as rich renderables, and as one line where there is no terminal."""

from collections.abc import Iterable, Sequence
from functools import partial
from itertools import groupby

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from agent.demo.view import Segment, Snapshot, TaskLine, Trace, WorkerLine

TRACES = 12
WORKERS = 5
"""Lines of the panel of workers, as many as those beside it have; more if there are, and the screen is high enough."""
_AROUND, _MOST_LINES = 11, 18
"""Lines that are no waterfall: headline, panels, borders, and one for the cursor; and lines that are, at most."""
_PANELS = (40, 37, 33)
"""Shares of the width, which on the narrowest screen (110) are columns: so wide are the usual contents."""
_ID_WIDTH, _NAME_WIDTH, _TOOK_WIDTH, _STATES_WIDTH = 8, 22, 6, 24
_MARKS = {
    "wait": ("░", "cyan"),
    "back-off": ("·", "yellow"),
    "succeeded": ("█", "green"),
    "retried": ("▚", "yellow"),
    "failed": ("X", "red"),
    "cancelled": ("/", "magenta"),
    "lost": ("!", "bold red"),
    "unknown": ("?", "white"),
}
"""A character each, for those who see no colours."""


def line(snapshot: Snapshot) -> str:
    """Return the snapshot as a plain line of at most 80 columns."""
    when = "the end" if snapshot.over else f"{snapshot.elapsed_s:5.0f} s"
    did = f"{snapshot.attempts:6} attempts {snapshot.spans:7} spans {snapshot.log_records:7} logs"
    return f"{when} {did} {snapshot.signals_lost} signals lost, {snapshot.repaired} repaired"


def screen(snapshot: Snapshot, headline: str, *, width: int, height: int) -> RenderableType:
    """Return the whole screen, made for so many columns and lines: nothing wraps, what is too long is cut."""
    top = Table.grid(expand=True)
    for ratio in _PANELS:
        top.add_column(ratio=ratio)
    spare = height - _AROUND - _MOST_LINES
    lines = min(max(len(snapshot.workers), WORKERS), WORKERS + max(spare, 0))
    panel = partial(Panel, border_style="blue", height=lines + 2)
    top.add_row(
        panel(_indicators(snapshot), title="key indicators"),
        panel(_workers(snapshot.workers, lines, over=snapshot.over), title="workers"),
        panel(_agent(snapshot), title="the agent"),
    )
    waterfalls = _waterfalls(snapshot.traces, width=width, lines=min(max(height - _AROUND, 1), _MOST_LINES))
    return Group(Text(headline, style="bold", no_wrap=True, overflow="ellipsis"), top, waterfalls)


def seconds(value: float | None) -> str:
    """Return `35 ms`, `1.2 s`, `135 s`, or `-` for what nobody knows."""
    if value is None:
        return "-"
    if round(value * 1000) < 1000:  # noqa: PLR2004 - a second
        return f"{value * 1000:.0f} ms"
    return f"{value:.{int(round(value, 1) < 100)}f} s"  # noqa: PLR2004 - three digits are enough


def many(number: int, noun: str) -> str:
    """Return `1 worker`, `2 workers`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def bar(segments: Sequence[Segment], start_ns: int, end_ns: int, width: int) -> Text:
    """Draw segments to scale, in order; each keeps at least its first cell, where there are as many cells as segments.

    What is shorter than a cell pushes its successor on: an attempt of 2 ms before a back-off of 10 s is to be seen.
    """
    cells = [(" ", "")] * width
    scale = width / max(end_ns - start_ns, 1)
    free = 0
    for index, segment in enumerate(segments):
        room = width - (len(segments) - index)
        first = max(min(max(int((segment.start_ns - start_ns) * scale), free), room), 0)
        last = min(max(int((segment.end_ns - start_ns) * scale), first + 1), width)
        cells[first:last] = [_mark(segment.what)] * (last - first)
        free = first + 1
    return Text.assemble(*cells)


def _mark(what: str) -> tuple[str, str]:
    return _MARKS.get(what, _MARKS["unknown"])


def _indicators(snapshot: Snapshot) -> Table:
    ends = snapshot.ends
    share = "-" if snapshot.retry_share is None else f"{snapshot.retry_share:.1%}"
    depth, dead = ("-" if level is None else f"{level:,}" for level in (snapshot.depth, snapshot.dead_letters))
    grid = _pairs(
        ("throughput", f"{snapshot.attempts_per_s:.0f} attempts/s"),
        ("queue latency", f"p50 {seconds(snapshot.wait_p50_s)}  p95 {seconds(snapshot.wait_p95_s)}"),
        ("queue depth", f"{depth}   dead letters {dead}"),
        ("retry rate", f"{share}   revoked {ends['revoked']}"),
    )
    failed = ends["failed"]
    grid.add_row("succeeded", Text.assemble(f"{ends['succeeded']:,}   failed ", (f"{failed}", "red" if failed else "")))
    return grid


def _workers(workers: list[WorkerLine], lines: int, *, over: bool) -> Table:
    table = _grid(4)
    shown = workers
    if len(workers) > lines:
        shown = sorted(workers, key=lambda worker: (worker.up, -(worker.inflight or 0)))[: lines - 1]
    for worker in shown:
        if over and worker.up:  # it took its leave: what was last heard of it is no longer so
            table.add_row(worker.name, Text("stopped", style="dim"))
            continue
        up = Text("up", style="green") if worker.up else Text("lost", style="bold red")
        busy = "-" if worker.inflight is None else f"{worker.inflight:2} busy"
        table.add_row(worker.name, up, busy, f"beat {seconds(worker.heartbeat_age_s)}")
    if not workers:
        table.add_row(Text("no heartbeat yet", style="dim"))
    if more := len(workers) - len(shown):
        lost = sum(not worker.up for worker in workers) - sum(not worker.up for worker in shown)
        table.add_row(Text(f"+{more} more", style="dim"), Text(f"{lost} lost", style="bold red") if lost else "")
    return table


def _agent(snapshot: Snapshot) -> Table:
    doubled = snapshot.duplicates
    grid = _pairs(
        ("signals", f"{snapshot.signals_per_s:.0f}/s" + (f", {doubled} doubled" if doubled else "")),
        ("cost", f"{snapshot.cpu_share:.1%} CPU, {snapshot.rss_mib:.0f} MiB"),
        ("spans", f"{snapshot.spans:,}  logs {snapshot.log_records:,}"),
    )
    lost = f"{snapshot.signals_lost} signals, {snapshot.items_dropped} items"
    style = "bold red" if snapshot.signals_lost or snapshot.items_dropped else "green"
    grid.add_row("lost", Text(lost, style=style))
    grid.add_row("repaired", many(snapshot.repaired, "attempt"))
    return grid


def _grid(columns: int) -> Table:
    grid = Table.grid(padding=(0, 1))
    for _ in range(columns):
        grid.add_column(no_wrap=True)
    return grid


def _pairs(*rows: tuple[str, str]) -> Table:
    grid = _grid(2)
    grid.columns[0].style = "dim"
    for row in rows:
        grid.add_row(*row)
    return grid


def _waterfalls(traces: list[Trace], *, width: int, lines: int) -> Panel:
    table = Table.grid(padding=(0, 1))
    # The bar takes what the borders and the other columns leave.
    bar_width = max(width - 8 - _ID_WIDTH - _NAME_WIDTH - _TOOK_WIDTH - _STATES_WIDTH, 1)
    table.add_column(width=_ID_WIDTH, no_wrap=True)
    table.add_column(width=_NAME_WIDTH, no_wrap=True)
    table.add_column(width=bar_width, no_wrap=True)
    table.add_column(width=_TOOK_WIDTH, no_wrap=True, justify="right")
    table.add_column(width=_STATES_WIDTH, no_wrap=True)
    left = lines
    for trace in traces:
        tasks = trace.lines
        if len(tasks) > left:
            continue
        left -= len(tasks)
        for index, task in enumerate(tasks):
            table.add_row(*_task(trace, task, index, bar_width))
    for _ in range(left):
        table.add_row("")
    legend = Text("  ").join(Text.assemble(mark, f" {what}") for what, mark in _MARKS.items())
    return Panel(table, title="newest traces", subtitle=legend, border_style="blue")


def _task(trace: Trace, task: TaskLine, index: int, bar_width: int) -> tuple[RenderableType, ...]:
    segments = task.with_back_offs()
    took = (max(each.end_ns for each in segments) - min(each.start_ns for each in segments)) / 1e9
    label = Text(trace.trace_id[-_ID_WIDTH:] if index == 0 else "", style="dim")
    name = Text(f"{'└ ' if index else ''}{task.name}")
    return label, name, bar(segments, *trace.bounds, bar_width), seconds(took), states(task.states)


def states(ends: Iterable[str]) -> Text:
    """Return how the attempts of a task ended, in order: `retried x2 → succeeded`."""
    runs = ((state, len(list(run))) for state, run in groupby(ends))
    return Text(" → ").join(
        Text(state if count == 1 else f"{state} x{count}", style=_mark(state)[1]) for state, count in runs
    )
