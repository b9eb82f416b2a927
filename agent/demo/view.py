"""What there is to see of a running demo, drawn from what the endpoint received: pure, time is an argument."""

from collections import Counter, OrderedDict, deque
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from agent.demo.sink import Sink, attributes, points

WINDOW_SECONDS = 5.0
MAX_TRACES = 4000
"""Traces remembered for the screen; the comparison remembers all."""
SETTLED_SECONDS = 1.5
"""A trace that got nothing new for so long is shown; what is still growing would jump."""


class Segment(NamedTuple):
    """A piece of a task's life: `wait`, `back-off`, or the state in which an attempt ended. Times in nanoseconds."""

    what: str
    start_ns: int
    end_ns: int
    attempt: int = 0


@dataclass(slots=True)
class TaskLine:
    """One task of a trace."""

    name: str
    worker: str = ""
    segments: list[Segment] = field(default_factory=list)
    parent: str = ""

    @property
    def ordered(self) -> list[Segment]:
        """The segments as they were lived, which need not be as they arrived, nor as differing clocks have it."""
        return sorted(self.segments, key=lambda segment: (segment.attempt, segment.what != "wait", segment.start_ns))

    @property
    def start_ns(self) -> int:
        """Its first moment."""
        return min(segment.start_ns for segment in self.segments)

    @property
    def states(self) -> list[str]:
        """How its attempts ended, in order."""
        return [segment.what for segment in self.ordered if segment.what != "wait"]

    def with_back_offs(self) -> list[Segment]:
        """Return the segments in order, with what lies between a retry and the next wait."""
        filled: list[Segment] = []
        for segment in self.ordered:
            if filled and filled[-1].what == "retried" and segment.start_ns > filled[-1].end_ns:
                filled.append(Segment("back-off", filled[-1].end_ns, segment.start_ns))
            filled.append(segment)
        return filled


@dataclass(slots=True)
class Trace:
    """A trace as far as its spans arrived."""

    trace_id: str
    updated: float
    tasks: dict[str, TaskLine] = field(default_factory=dict)

    @property
    def lines(self) -> list[TaskLine]:
        """The tasks in the order in which they began, but none before its parent: clocks may differ."""
        return [self.tasks[task_id] for task_id in sorted(self.tasks, key=self._descent)]

    def _descent(self, task_id: str) -> list[tuple[int, str]]:
        """Return when each began, from the first ancestor that is known down to the task: parents sort first."""
        path: list[tuple[int, str]] = []
        while len(path) < len(self.tasks) and (line := self.tasks.get(task_id)):
            path.append((line.start_ns, task_id))
            task_id = line.parent
        return path[::-1]

    @property
    def interest(self) -> int:
        """How much there is to see: other tasks, attempts, ends that are no success."""
        lines = self.tasks.values()
        return len(lines) + sum(len(line.states) + 3 * (set(line.states) != {"succeeded"}) for line in lines)

    @property
    def bounds(self) -> tuple[int, int]:
        """First and last moment, in nanoseconds."""
        lines = self.tasks.values()
        return min(line.start_ns for line in lines), max(each.end_ns for line in lines for each in line.segments)


class WorkerLine(NamedTuple):
    """A worker as the agent reports it; None is unknown."""

    name: str
    up: bool
    heartbeat_age_s: float | None = None
    inflight: int | None = None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything on the screen at one moment; None is what nobody knows yet.

    Rates are of the last few seconds; when the run is `over`, and nothing more will arrive, of the whole run.
    """

    elapsed_s: float
    attempts: int
    spans: int
    log_records: int
    attempts_per_s: float
    signals_per_s: float
    wait_p50_s: float | None
    wait_p95_s: float | None
    retry_share: float | None
    depth: int | None
    dead_letters: int | None
    ends: Counter[str]
    workers: list[WorkerLine]
    signals_lost: int
    repaired: int
    duplicates: int
    items_dropped: int
    cpu_share: float
    rss_mib: float
    traces: list[Trace]
    over: bool = False


class _Sample(NamedTuple):
    """Running totals at one moment."""

    at: float
    attempts: int
    signals: int
    started: int
    retried: int
    cpu_s: float
    waits: tuple[int, ...]


class View:
    """Follows a sink: `look` takes in what is new."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._seen = 0
        self._attempts = 0
        self._traces: OrderedDict[str, Trace] = OrderedDict()
        self._first: _Sample | None = None
        self._samples: deque[_Sample] = deque()
        self._workers: dict[str, WorkerLine] = {}

    def look(self, now: float, *, cpu_s: float, rss_mib: float, traces: int, over: bool = False) -> Snapshot:
        """Return what there is to see `now` seconds after the start, with up to `traces` of the newest traces."""
        sink = self._sink
        for span in sink.spans[self._seen :]:
            self._take(span, now)
        self._seen = len(sink.spans)
        bounds, waits = _buckets(sink.metrics.get("stem.queue.latency"))
        sample = _Sample(
            at=now,
            attempts=self._attempts,
            signals=sink.own("stem_agent.signals.received").total(),
            started=sink.sums("stem.tasks.started").total(),
            retried=sink.sums("stem.tasks.retried").total(),
            cpu_s=cpu_s,
            waits=waits,
        )
        self._samples.append(sample)
        while self._samples[0].at < now - WINDOW_SECONDS:
            self._samples.popleft()
        self._first = self._first or sample
        first = self._first if over else self._samples[0]
        seconds = max(now - first.at, 1e-9)
        started = sample.started - first.started
        recent = [count - (first.waits[index] if first.waits else 0) for index, count in enumerate(waits)]
        return Snapshot(
            elapsed_s=now,
            attempts=self._attempts,
            spans=len(sink.spans),
            log_records=len(sink.logs),
            attempts_per_s=(sample.attempts - first.attempts) / seconds,
            signals_per_s=(sample.signals - first.signals) / seconds,
            wait_p50_s=quantile(0.5, bounds, recent),
            wait_p95_s=quantile(0.95, bounds, recent),
            retry_share=(sample.retried - first.retried) / started if started else None,
            depth=_level(sink, "stem.queue.depth"),
            dead_letters=_level(sink, "stem.dlq.depth"),
            ends=_ends(sink),
            workers=self._look_at_workers(over=over),
            signals_lost=sink.own("stem_agent.signals.lost").total(),
            repaired=repaired(sink),
            duplicates=sink.own("stem_agent.signals.duplicates").total(),
            items_dropped=sink.own("stem_agent.items.dropped").total(),
            cpu_share=(cpu_s - first.cpu_s) / seconds,
            rss_mib=rss_mib,
            traces=self._newest(now, traces, settled=0 if over else SETTLED_SECONDS),
            over=over,
        )

    def _take(self, span: Any, now: float) -> None:
        role, _, name = span.name.partition(" ")
        self._attempts += role == "process"
        if role not in {"process", "wait"}:
            return
        found = attributes(span.attributes)
        trace = self._traces.setdefault(span.trace_id.hex(), Trace(span.trace_id.hex(), now))
        trace.updated = now
        line = trace.tasks.setdefault(found["stem.task.id"], TaskLine(found.get("stem.task", "")))
        what = "wait"
        if role == "process":
            what = found.get("stem.task.state", "unknown")
            line.name, line.worker = name, found.get("stem.worker.id", "")
        line.parent = found.get("stem.parent_task_id", line.parent)
        number = found.get("stem.task.attempt", 0)
        line.segments.append(Segment(what, span.start_time_unix_nano, span.end_time_unix_nano, number))
        while len(self._traces) > MAX_TRACES:
            self._traces.popitem(last=False)

    def _look_at_workers(self, *, over: bool) -> list[WorkerLine]:
        """Return the workers that the agent reports; when all is over, those that took their leave before, too."""
        reported = _workers(self._sink)
        self._workers.update(reported)
        shown = self._workers if over else reported
        return [shown[name] for name in sorted(shown, key=lambda name: (len(name), name))]  # worker-2 before worker-10

    def _newest(self, now: float, count: int, *, settled: float) -> list[Trace]:
        """Return traces that have come to rest, the newest of each kind; the most interesting if there are many."""
        newest: dict[tuple[Any, ...], Trace] = {}
        for trace in self._traces.values():
            if now - trace.updated >= settled:
                kind = tuple((line.name, *line.states) for line in trace.lines)
                newest[kind] = trace
        chosen = sorted(newest.values(), key=lambda trace: trace.interest, reverse=True)[:count]
        return sorted(chosen, key=lambda trace: trace.bounds[1], reverse=True)


def quantile(share: float, bounds: tuple[float, ...], counts: list[int]) -> float | None:
    """Return the value below which `share` of a histogram's observations lie, linear within a bucket; None if empty."""
    rank = share * sum(counts)
    if not rank:
        return None
    below = 0
    for index, count in enumerate(counts):
        if count and below + count >= rank:
            low = bounds[index - 1] if index else 0.0
            high = bounds[index] if index < len(bounds) else low
            return low + (high - low) * (rank - below) / count
        below += count
    raise AssertionError("the ranks end with the counts")


def repaired(sink: Sink) -> int:
    """Return of how many attempts the agent read the end from the result record, as no signal of it came."""
    return sink.own("stem_agent.repairs", "result")[("ended",)]


def _buckets(metric: Any) -> tuple[tuple[float, ...], tuple[int, ...]]:
    """Return a histogram's bounds, and its counts over all series."""
    series = list(points(metric)) if metric else []
    if not series:
        return (), ()
    return tuple(series[0].explicit_bounds), tuple(
        map(sum, zip(*(point.bucket_counts for point in series), strict=True))
    )


def _level(sink: Sink, name: str) -> int | None:
    """Return a gauge's sum over all series; None while it was not told."""
    return sink.sums(name).total() if name in sink.metrics else None


def _ends(sink: Sink) -> Counter[str]:
    names = ("succeeded", "retried", "failed", "revoked")
    return Counter({name: sink.sums(f"stem.tasks.{name}").total() for name in names})


def _workers(sink: Sink) -> dict[str, WorkerLine]:
    def by_worker(name: str) -> dict[str, float]:
        metric = sink.metrics.get(name)
        found = ((attributes(point.attributes), point) for point in (points(metric) if metric else ()))
        return {str(values.get("worker")): point.as_double or point.as_int for values, point in found}

    up = by_worker("stem.worker.up")
    age, inflight = by_worker("stem.worker.heartbeat.age"), by_worker("stem.worker.inflight")
    return {
        name: WorkerLine(name, bool(up[name]), age.get(name), int(inflight[name]) if name in inflight else None)
        for name in up
    }
