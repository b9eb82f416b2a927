"""`stem-agent observe queues`."""

from typing import Annotated

import typer

from agent.cli.drawing import NONE, UNKNOWN, milliseconds, number, table
from agent.cli.observe.finding import FoundQueues, find_queues
from agent.cli.probe import Queues, Shown, Watch, probe
from agent.cli.stores import Stores, with_stores
from agent.cli.verdict import Limit, Verdict, age_limit, limit
from agent.stem.client.values import Queue

_HEADINGS = ("queue", ">depth", ">inflight", ">delayed", ">overdue", ">dead", ">oldest", ">next due", "paused")
_PAUSED = {True: "yes", False: "no", None: UNKNOWN}


@with_stores
def queues(
    stores: Stores,
    queue: Queues = None,
    max_depth: Annotated[int | None, typer.Option(help="Tasks that may wait in a queue.", min=0)] = None,
    max_age: Annotated[
        str | None, typer.Option(metavar="DURATION", help="How long the oldest ready task may have waited.")
    ] = None,
    max_overdue: Annotated[int | None, typer.Option(help="Delayed tasks that may be past due.", min=0)] = None,
    max_inflight: Annotated[int | None, typer.Option(help="Tasks that workers may hold.", min=0)] = None,
    max_dead: Annotated[int | None, typer.Option(help="Dead letters that there may be.", min=0)] = None,
    watch: Watch = None,
) -> None:
    """Show each queue: what is ready, in workers' hands, delayed, dead.

    depth: tasks that are ready and wait, over all ten priorities; `?` where Redis cannot tell, and then standard error
    says why. inflight: given to a worker and not acknowledged, prefetched ones too. delayed: for later, retries and
    extended leases too; overdue: those past due, for a moment as a rule, for long where no worker reads the queue.
    oldest: how long the oldest ready task has waited.

    JSON: an array of one object a queue.

    Exit codes: 0 ok; 2 a queue is above a threshold; 3 no answer, or a depth that a threshold needs is unknown.
    """
    limits = {
        "depth": limit("--max-depth", max_depth),
        "age": age_limit("--max-age", max_age),
        "overdue": limit("--max-overdue", max_overdue),
        "inflight": limit("--max-inflight", max_inflight),
        "dead": limit("--max-dead", max_dead),
    }
    probe(stores, watch, lambda client: find_queues(client, queue), lambda found: _show(found, limits))


def _show(found: FoundQueues, limits: dict[str, Limit | None]) -> Shown:
    verdict = Verdict()
    notes = found.tell(verdict, judged=any(limits.values()))
    for state in found.states:
        _judge(state, limits, verdict)
    why = [f"queue {s.queue}: depth is not known: {s.depth_unknown}" for s in found.states if s.depth is None]
    notes = [*notes, *(line for line in why if f"unknown: {line}" not in verdict.lines)]
    return Shown(found.states, lambda: [table(_HEADINGS, map(_row, found.states))], verdict, notes)


def _judge(state: Queue, limits: dict[str, Limit | None], verdict: Verdict) -> None:
    name = f"queue {state.queue}"
    verdict.at_most(f"{name}: depth", state.depth, limits["depth"], why=state.depth_unknown)
    age = 0 if state.oldest_age_ms is None and state.depth == 0 else state.oldest_age_ms
    verdict.at_most(f"{name}: age of the oldest ready task", age, limits["age"], shown=milliseconds(age))
    verdict.at_most(f"{name}: overdue", state.overdue, limits["overdue"])
    verdict.at_most(f"{name}: inflight", state.inflight, limits["inflight"])
    verdict.at_most(f"{name}: dead", state.dead, limits["dead"])


def _row(state: Queue) -> tuple[str, ...]:
    return (
        state.queue,
        number(state.depth),
        number(state.inflight),
        number(state.delayed),
        number(state.overdue),
        number(state.dead),
        milliseconds(state.oldest_age_ms, NONE if state.depth == 0 else UNKNOWN),
        milliseconds(state.next_due_in_ms),
        _PAUSED[state.paused],
    )
