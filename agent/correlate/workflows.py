"""Workflow runs: one span each, from started to completed or cancelled. Pure; time is an argument.

Stem's traps: `resumed` is sent before every step, `failed` on every failing attempt of the runner task, after which the
run goes on; neither is an end. The signals carry no envelope, so the trace is learnt from the runner's tasks.
"""

from collections import deque
from collections.abc import Iterator

from msgspec import Struct

from agent.core.clock import NANOSECONDS
from agent.core.limits import MAX_MESSAGE, MAX_NAME
from agent.correlate import ids, logs
from agent.correlate.config import CorrelateConfig
from agent.correlate.logs import event
from agent.correlate.origin import Origin
from agent.correlate.recorder import Recorder
from agent.correlate.shift import Shift
from agent.otlp.log_record import Severity, encode_context
from agent.otlp.span import (
    EVENT_ATTRIBUTE_FIELD,
    SPAN_ATTRIBUTE_FIELD,
    SpanKind,
    encode_event,
    encode_name,
    encode_span,
    encode_trace_state,
    span_flags,
)
from agent.otlp.wire import Attribute
from agent.stem.catalogue import SignalName
from agent.stem.wire import Attributes, Signal

STARTED, SUSPENDED = SignalName.WORKFLOW_RUN_STARTED, SignalName.WORKFLOW_RUN_SUSPENDED
RESUMED, FAILED = SignalName.WORKFLOW_RUN_RESUMED, SignalName.WORKFLOW_RUN_FAILED
COMPLETED, CANCELLED = SignalName.WORKFLOW_RUN_COMPLETED, SignalName.WORKFLOW_RUN_CANCELLED
_ENDS = {COMPLETED: "completed", CANCELLED: "cancelled"}

_LOGS = {
    STARTED: (event("stem.workflow.started", Severity.INFO), "started"),
    SUSPENDED: (event("stem.workflow.suspended", Severity.INFO), "was suspended"),
    RESUMED: (event("stem.workflow.resumed", Severity.INFO), "goes on"),
    COMPLETED: (event("stem.workflow.completed", Severity.INFO), "is completed"),
    FAILED: (event("stem.workflow.failed", Severity.ERROR), "had a failing attempt"),
    CANCELLED: (event("stem.workflow.cancelled", Severity.INFO), "was cancelled"),
}
MAX_EVENTS = 128
"""Events of a span (the SDKs' default limit); a run of many steps keeps its first ones."""
MAX_ORIGINS = 10_000
"""Runs whose tasks were heard and no signal yet; beyond that the one heard of first is forgotten."""

RunKey = tuple[str, str]
"""Namespace and run id."""


def _key(name: str) -> Attribute:
    return Attribute(name, SPAN_ATTRIBUTE_FIELD)


_RUN_ID, _NAME, _NAMESPACE = _key("stem.workflow.run_id"), _key("stem.workflow.name"), _key("stem.namespace")
_STATUS, _FAILURES = _key("stem.workflow.status"), _key("stem.workflow.failed_attempts")
_INCOMPLETE, _MISSING = _key("stem.incomplete")(value=True), _key("stem.missing")
_ADJUSTED = _key("stem.clock.adjusted")(value=True)
_SOURCE = _key("stem.source")("signals")
_EVENT_STEP = Attribute("stem.workflow.step", EVENT_ATTRIBUTE_FIELD)
_LOG_RUN_ID, _LOG_NAME = logs.key("stem.workflow.run_id"), logs.key("stem.workflow.name")
_LOG_STEP, _LOG_NAMESPACE = logs.key("stem.workflow.step"), logs.key("stem.namespace")
_LOG_REASON, _LOG_MESSAGE = logs.key("stem.workflow.reason"), logs.key("exception.message")


class Run(Struct, gc=False, array_like=True):
    """One run; times are Unix nanoseconds, 0 when unknown. `trace` is that of its runner's tasks, `parent` its span."""

    run_id: str
    namespace: str
    opened_ns: int
    workflow: str = ""
    started_ns: int = 0
    first_ns: int = 0
    ended_ns: int = 0
    status: str = ""
    failures: int = 0
    events: tuple[tuple[int, str, str], ...] = ()
    origin: Origin | None = None


class WorkflowsState(Struct, array_like=True):
    """Open runs, when those that ended are due, what was told, and where tasks of runs without a signal come from."""

    runs: list[Run]
    due: list[tuple[int, RunKey]]
    buried: list[tuple[RunKey, int]]
    origins: list[tuple[RunKey, Origin]]


class Workflows:
    """Runs by what is heard of them, and by the tasks that work for them."""

    def __init__(self, config: CorrelateConfig, recorder: Recorder) -> None:
        self._recorder = recorder
        self._honor_sampled = config.honor_sampled
        self._settle_ns = int(config.settle * NANOSECONDS)
        self._settled_ttl_ns = int(config.settled_ttl * NANOSECONDS)
        self._ttl_ns = int(config.task_ttl * NANOSECONDS)
        self._max = config.max_tasks
        self._open: dict[RunKey, Run] = {}
        self._due: deque[tuple[int, Run]] = deque()
        self._buried: dict[RunKey, int] = {}
        self._origins: dict[RunKey, Origin] = {}  # of runs that no signal told of yet
        self.evicted = 0

    def __len__(self) -> int:
        return len(self._open)

    def heard(self, signal: Signal, time_ns: int, now_ns: int) -> bool:
        """Take a `workflow-run-*` signal; return False if it comes too late, or names no run."""
        attributes, name = signal.attributes, SignalName(signal.event_name)
        key = (signal.namespace, attributes.run_id or "")
        if not attributes.run_id or key in self._buried:
            return False
        run = self._open.get(key)
        if run is None:
            run = self._open[key] = Run(
                attributes.run_id, signal.namespace, now_ns, origin=self._origins.pop(key, None)
            )
        run.workflow = run.workflow or (attributes.workflow or "")[:MAX_NAME]
        run.first_ns = min(run.first_ns or time_ns, time_ns)
        fact = (time_ns, name.value.removeprefix("workflow-run-"), attributes.step or "")
        if name is STARTED:
            run.started_ns = min(run.started_ns or time_ns, time_ns)
        elif name in _ENDS:
            if not run.ended_ns:
                self._due.append((now_ns + self._settle_ns, run))
            if not run.ended_ns or time_ns < run.ended_ns:
                run.ended_ns, run.status = time_ns, _ENDS[name]
        elif fact not in run.events:
            run.failures += name is FAILED
            if len(run.events) < MAX_EVENTS:
                run.events = (*run.events, fact)
        self._log(name, run, attributes, time_ns, now_ns)
        return True

    def learn(self, run_id: str, namespace: str, origin: Origin) -> None:
        """Note the trace of a task that works for a run; the run's own is that of the earliest of them."""
        key = (namespace, run_id)
        run = self._open.get(key)
        known = run.origin if run else self._origins.get(key)
        if key in self._buried or (known and not _earlier(origin, known)):
            return
        if run:
            run.origin = origin
            return
        if len(self._origins) >= MAX_ORIGINS and key not in self._origins:
            del self._origins[next(iter(self._origins))]
        self._origins[key] = origin

    def tick(self, now_ns: int) -> None:
        """Settle the runs that have ended; forget what may be forgotten."""
        while self._due and self._due[0][0] <= now_ns:
            self._settle(self._due.popleft()[1], now_ns)
        for run in self._surplus(now_ns):
            del self._open[run.namespace, run.run_id]
            self.evicted += 1
        while self._buried and next(iter(self._buried.values())) <= now_ns:
            del self._buried[next(iter(self._buried))]

    def _surplus(self, now_ns: int) -> Iterator[Run]:
        while self._open:
            oldest = next(iter(self._open.values()))
            if len(self._open) <= self._max and now_ns - oldest.opened_ns < self._ttl_ns:
                return
            yield oldest

    def close(self, now_ns: int, *, keep: bool) -> None:
        """Settle the runs whose end was heard; with `keep` not those of which more may still be heard."""
        for _ in range(len(self._due)):
            due_ns, run = self._due.popleft()
            if keep and not (run.started_ns and run.origin):
                self._due.append((due_ns, run))
            else:
                self._settle(run, now_ns)

    def state(self) -> WorkflowsState:
        """Return what is known."""
        return WorkflowsState(
            list(self._open.values()),
            [(due_ns, (run.namespace, run.run_id)) for due_ns, run in self._due],
            *(list(self._buried.items()), list(self._origins.items())),
        )

    def restore(self, state: WorkflowsState, shift: Shift) -> None:
        """Go on from a state."""
        self._open = {(run.namespace, run.run_id): run for run in state.runs}
        for run in state.runs:
            run.opened_ns = shift(run.opened_ns)
        self._due.extend((shift(due_ns), self._open[key]) for due_ns, key in state.due if key in self._open)
        self._buried = {key: shift(until_ns) for key, until_ns in state.buried}
        self._origins = dict(state.origins)

    def _settle(self, run: Run, now_ns: int) -> None:
        if self._open.pop((run.namespace, run.run_id), None) is None:
            return
        self._buried[run.namespace, run.run_id] = now_ns + self._settled_ttl_ns
        origin = run.origin or Origin()
        trace_id = origin.trace_id(run.run_id)
        if not origin.sampled and self._honor_sampled:
            return
        failed = run.failures > 0 or run.status != _ENDS[COMPLETED]
        trace_state = self._recorder.keeper.keep_run(trace_id, origin.lineage.trace_state, failed=failed)
        if trace_state is not None:
            self._recorder.add_span(_span(run, origin, trace_id, trace_state), run.ended_ns)

    def _log(self, name: SignalName, run: Run, attributes: Attributes, time_ns: int, now_ns: int) -> None:
        log_event, verb = _LOGS[name]
        if not self._recorder.log.wants(log_event):
            return
        step, metadata = attributes.step or "", attributes.metadata
        origin = run.origin or Origin()
        extra = _LOG_STEP.text(step) if step else b""
        because = ""
        if metadata and (reason := metadata.topic or metadata.policy or metadata.type):
            extra += _LOG_REASON.text(reason)
            because = f" ({reason})"
        if metadata and metadata.error:
            extra += _LOG_MESSAGE.text(metadata.error[:MAX_MESSAGE])
            because = ": " + metadata.error.partition("\n")[0][: logs.MAX_BODY_ERROR]
        at = f" at step {step}" if step else ""
        self._recorder.log.write(
            log_event,
            subject=(run.run_id, step),
            time_ns=time_ns,
            now_ns=now_ns,
            body=f"workflow {run.workflow} {verb}{at}{because}",
            attributes=_LOG_RUN_ID.text(run.run_id)
            + _LOG_NAME.text(run.workflow)
            + _LOG_NAMESPACE.text(run.namespace)
            + extra,
            # Only its trace: the run's span exists when the run has ended.
            context=encode_context(origin.trace_id(run.run_id), b"", origin.flags),
        )


def _earlier(one: Origin, other: Origin) -> bool:
    return _rank(one) < _rank(other)


def _rank(origin: Origin) -> tuple[bool, bool, int, bytes]:
    """Order the tasks of a run: the first has the run's trace.

    That is the runner's first; one that continues the run, or that a step enqueued, may have another. Their times come
    from several clocks, so they are asked last.
    """
    lineage = origin.lineage
    return lineage.parent_task_id is not None, lineage.continuation, origin.enqueued_ns, origin.trace_context


def _span(run: Run, origin: Origin, trace_id: bytes, trace_state: str) -> bytes:
    missing = [*([] if run.started_ns else ["start"]), *([] if run.origin else ["enqueued"])]
    start_ns = run.started_ns or run.first_ns
    end_ns = max(run.ended_ns, start_ns)
    parts = [
        encode_name(f"workflow {run.workflow}".rstrip(), SpanKind.INTERNAL),
        _RUN_ID.text(run.run_id),
        _NAME.text(run.workflow),
        _NAMESPACE.text(run.namespace),
        _STATUS.text(run.status),
        _SOURCE,
        encode_trace_state(trace_state),
    ]
    if run.failures:
        parts.append(_FAILURES(run.failures))
    if missing:
        parts += (_INCOMPLETE, _MISSING(missing))
    if end_ns > run.ended_ns:  # told by another clock than the start
        parts.append(_ADJUSTED)
    for time_ns, verb, step in sorted(run.events):
        parts.append(encode_event(time_ns, f"stem.workflow.{verb}", _EVENT_STEP.text(step) if step else b""))
    return encode_span(
        trace_id,
        ids.span_id("run", run.run_id),
        parent_id=origin.context,
        start_ns=start_ns,
        end_ns=end_ns,
        flags=span_flags(origin.flags, remote_parent=bool(origin.context)),
        body=b"".join(parts),
    )
