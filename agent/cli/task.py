"""`stem-agent task`: everything that Redis knows of one task."""

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from agent.cli.drawing import NONE, milliseconds, number, short, table, utc
from agent.cli.observe.dead_letters import attempts
from agent.cli.probe import Shown, Watch, probe
from agent.cli.stores import Stores, with_stores
from agent.cli.verdict import Verdict
from agent.correlate.origin import read_origin
from agent.stem.client.values import TaskReport, TaskTrace
from agent.stem.status import TaskError

if TYPE_CHECKING:
    from agent.stem.client.stem_client import StemClient

_TRACES = ("where it was", "queue", "attempt", "at", "worker", ">held", ">deliveries", "why")


@with_stores
def task(
    stores: Stores,
    task_id: Annotated[str, typer.Argument(metavar="TASK_ID", help="The task's id.")],
    budget: Annotated[
        int, typer.Option(help="Entries to look at of each stream and list, newest first.", min=1)
    ] = 10_000,
    watch: Watch = None,
) -> None:
    """Show everything that Redis knows of one task: its record, where it is, its attempts, its trace id.

    Arguments and results are never shown. The record tells of the last change of state, and is forgotten after a day;
    streams keep every delivery. Without a record that names the queue, all queues are looked through.

    JSON: one object; `traceId` is null where no envelope was found that tells it.

    Exit codes: 0 found; 3 not found, or no answer.
    """

    async def question(client: "StemClient") -> TaskReport:
        return await client.task(task_id, budget)

    probe(stores, watch, question, _show)


def _show(found: TaskReport) -> Shown:
    verdict = Verdict()
    if not found.found:
        queues = ", ".join(found.looked_at) or "no queue: there is none"
        verdict.unknown(f"task {found.id}: not found; looked at its record and through {queues}")
    notes = [] if found.complete else ["not every entry was looked at; --budget looks at more"]
    values = {**msgspec.to_builtins(found), "traceId": trace_id_of(found)}
    return Shown(values, lambda: _draw(found) if found.found else [], verdict, notes)


def trace_id_of(found: TaskReport) -> str | None:
    """Return the trace that the task's telemetry is in (32 hex digits), as the agent derives it from the envelope."""
    if found.envelope is None:
        return None
    return read_origin(found.envelope, UTC).trace_id(found.id).hex()


def _draw(found: TaskReport) -> list[Any]:
    facts = table(("", ""), _facts(found))
    facts.show_header = False
    return [facts, "", table(_TRACES, map(_trace, found.traces))] if found.traces else [facts]


def _facts(found: TaskReport) -> list[tuple[str, str]]:
    envelope = found.envelope
    error = found.error
    told = (
        ("task", found.task),
        ("id", found.id),
        ("state", found.state or (found.record_unreadable and f"its record is unreadable: {found.record_unreadable}")),
        ("queue", found.queue),
        ("attempt", None if found.attempt is None else attempts(found.attempt, found.max_retries)),
        ("worker", found.worker),
        ("enqueued", envelope and envelope.enqueued_at),
        ("not before", envelope and envelope.not_before),
        ("started", found.started_at),
        ("waited", None if found.wait_ms is None else milliseconds(found.wait_ms)),
        ("ended", found.ended_at),
        ("ran", None if found.run_ms is None else milliseconds(found.run_ms)),
        ("record of", found.updated_at),
        ("error", short(_error(error)) if error else None),
        ("trace id", trace_id_of(found) or "not known: no envelope was found"),
        *(_lineage(found) if envelope else ()),
    )
    return [(name, utc(v, "milliseconds") if isinstance(v, datetime) else str(v)) for name, v in told if v]


def _lineage(found: TaskReport) -> list[tuple[str, str | None]]:
    if found.envelope is None:
        return []
    meta, headers = found.envelope.meta, found.envelope.headers
    return [
        ("parent task", meta.parent_task_id),
        ("root task", meta.root_task_id),
        ("workflow run", meta.workflow_run_id),
        ("group", headers.group_id or meta.group_id),
        ("chord", headers.chord_id or meta.chord_id),
        ("chain", headers.chain_id or meta.chain_id),
        ("schedule", headers.schedule_id),
    ]


def _trace(trace: TaskTrace) -> tuple[str, ...]:
    return (
        trace.where,
        trace.queue,
        NONE if trace.attempt is None else str(trace.attempt + 1),
        utc(trace.at, "milliseconds"),
        trace.consumer or NONE,
        milliseconds(trace.held_ms),
        NONE if trace.deliveries is None else number(trace.deliveries),
        short(": ".join(filter(None, (trace.reason, trace.error)))) if trace.reason else "",
    )


def _error(error: TaskError) -> str:
    """Return type and message; Dart's messages mostly begin with the type."""
    kind, message = error.type or "", error.message or ""
    return message if message.startswith(kind) else f"{kind}: {message}"
