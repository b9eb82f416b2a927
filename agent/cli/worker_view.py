"""What workers answered, as JSON in Stem's own words and as tables for people."""

from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any

import msgspec

from agent.cli.drawing import NONE, UNKNOWN, console, milliseconds, number, short, table, utc
from agent.stem.control.inquiry import Answer, Inquiry
from agent.stem.control.protocol import (
    ActiveTask,
    ControlCommand,
    InspectedTask,
    Inspection,
    Payload,
    Ping,
    Revocation,
    Stats,
)

NO_REPLY = "no reply"
_COLUMNS: dict[ControlCommand, tuple[str, ...]] = {
    ControlCommand.PING: (">answered after", ">in flight", "reads queues", "its time"),
    ControlCommand.STATS: (
        *(">in flight", ">at most", ">prefetch", "by queue"),
        *(">waits in its queues", "paused", "host", ">pid"),
    ),
    ControlCommand.INSPECT: (">in flight", ">running", "paused", ">revoked"),
}
_ACTIVE = ("running on", "task", "queue", ">attempt", ">for", "id")
_REVOKED = ("revoked task", "when", "by", "why", "known to")


# --- JSON ------------------------------------------------------------------------------------------------------------


def as_json(inquiry: Inquiry) -> str:
    """Return one array with an object a worker, by worker id.

    `workerId`, `status` (`ok`, `error`, `no reply`), and then: the keys of the reply's payload and `afterMs`; `error`
    and `afterMs`; `reason`.
    """
    return msgspec.json.encode([_as_object(inquiry, worker) for worker in inquiry.workers]).decode()


def _as_object(inquiry: Inquiry, worker: str) -> dict[str, Any]:
    answer = inquiry.answers.get(worker)
    if answer is None:
        return {"workerId": worker, "status": NO_REPLY, "reason": inquiry.silent[worker]}
    told = {"workerId": worker, "status": answer.reply.status, "afterMs": answer.after_ms}
    if not answer.reply.ok:
        return {**told, "error": answer.reply.error}
    payload: dict[str, Any] = msgspec.to_builtins(answer.reply.payload)
    return {**told, **payload}


# --- tables ----------------------------------------------------------------------------------------------------------


def draw(inquiry: Inquiry) -> str:
    """Return the answers as text: `?` is what a worker did not tell."""
    told = {worker: answer.reply.payload for worker, answer in inquiry.answers.items() if answer.reply.ok}
    tables = [(("worker", "status", *_COLUMNS[inquiry.command]), list(_rows(inquiry)))]
    if active := list(_active(told)):
        inspected = inquiry.command is ControlCommand.INSPECT
        tables.append(((*_ACTIVE, *([">lease renewed"] if inspected else ())), active))
    if revoked := list(_revoked(told)):
        tables.append((_REVOKED, revoked))
    drawn = console()
    with drawn.capture() as capture:
        for headings, rows in tables:
            drawn.print(table(headings, ([_printable(cell) for cell in row] for row in rows)), "")
    return "\n".join(line.rstrip() for line in capture.get().rstrip("\n").splitlines())


def _printable(text: str) -> str:
    """Return a text that moves no cursor and changes no colour, whoever wrote it."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


def _rows(inquiry: Inquiry) -> Iterator[list[str]]:
    for worker in inquiry.workers:
        answer = inquiry.answers.get(worker)
        if answer is None:
            yield [worker, f"{NO_REPLY}: {inquiry.silent[worker]}"]
        elif not answer.reply.ok:
            error = answer.reply.error
            yield [worker, f"{answer.reply.status}: {short(error.message if error else None)}"]
        else:
            yield [worker, answer.reply.status, *_cells(answer)]


def _cells(answer: Answer) -> list[str]:
    match answer.reply.payload:
        case Ping() as ping:
            queues = _listed(ping.subscriptions.queues if ping.subscriptions else None)
            return [milliseconds(answer.after_ms), number(ping.inflight), queues, _time(ping.timestamp)]
        case Stats() as stats:
            counts = (stats.inflight, stats.concurrency, stats.prefetch)
            by_queue, waits, paused = _by_queue(stats), number(stats.last_queue_depth), _listed(stats.paused_queues)
            pid = UNKNOWN if stats.pid is None else str(stats.pid)
            return [*map(number, counts), _listed(by_queue), waits, paused, stats.host or UNKNOWN, pid]
        case Inspection() as seen:
            revoked = NONE if seen.revoked is None else str(len(seen.revoked))
            running = UNKNOWN if seen.active is None else str(len(seen.active))
            return [number(seen.inflight), running, _listed(seen.paused_queues), revoked]


def _by_queue(stats: Stats) -> list[str] | None:
    queues = stats.queues
    return None if queues is None else [f"{queue} {count}" for queue, count in sorted(queues.items()) if count]


def _active(told: Mapping[str, Payload]) -> Iterator[list[str]]:
    """Yield a row for each task that runs, the longest first."""
    tasks: list[tuple[str, ActiveTask]] = [
        (worker, task)
        for worker, payload in told.items()
        if not isinstance(payload, Ping)
        for task in payload.active or ()
    ]
    for worker, task in sorted(tasks, key=lambda each: (-(each[1].runtime_ms or 0), each[0])):
        names = task.task or UNKNOWN, task.queue or UNKNOWN
        lasts = milliseconds(task.runtime_ms, UNKNOWN)
        yield [worker, *names, number(task.attempt), lasts, task.id or UNKNOWN, *_lease(task)]


def _lease(task: ActiveTask) -> list[str]:
    if not isinstance(task, InspectedTask):
        return []
    ago = task.last_lease_renewal_ms_ago
    return [NONE if ago is None else f"{milliseconds(ago)} ago"]


def _revoked(told: Mapping[str, Payload]) -> Iterator[list[str]]:
    """Yield a row for each revoked task, the newest first, with how many workers know of it."""
    known: dict[str, tuple[Revocation, list[str]]] = {}
    for worker, payload in told.items():
        for entry in (isinstance(payload, Inspection) and payload.revoked) or ():
            known.setdefault(entry.task_id or UNKNOWN, (entry, []))[1].append(worker)
    for task_id, (entry, workers) in sorted(known.items(), key=lambda each: -(each[1][0].version or 0)):
        who, why = entry.requested_by or NONE, short(entry.reason)
        yield [task_id, _time(entry.issued_at), who, why, f"{len(workers)} of {len(told)} workers"]


def _listed(names: Iterable[str] | None) -> str:
    return UNKNOWN if names is None else ", ".join(names) or NONE


def _time(moment: datetime | None) -> str:
    return UNKNOWN if moment is None else utc(moment)
