"""`stem-agent observe tasks`."""

from typing import TYPE_CHECKING, Annotated

import typer
from msgspec import Struct

from agent.cli.drawing import NONE, milliseconds, number, table
from agent.cli.observe.dead_letters import attempts
from agent.cli.observe.finding import FoundQueues, find_queues
from agent.cli.probe import Queues, Shown, Watch, probe
from agent.cli.stores import Stores, with_stores
from agent.cli.verdict import Limit, Verdict, age_limit
from agent.stem.client.values import TaskInFlight

if TYPE_CHECKING:
    from agent.stem.client.stem_client import StemClient

_HEADINGS = ("task", "id", "queue", "attempt", "worker", "state", ">running", ">held", ">deliveries", "lease")


class _Found(Struct, frozen=True):
    queues: FoundQueues
    tasks: list[TaskInFlight]


@with_stores
def tasks(
    stores: Stores,
    queue: Queues = None,
    limit: Annotated[int, typer.Option(help="Tasks to show, longest first.", min=1)] = 50,
    max_age: Annotated[
        str | None, typer.Option(metavar="DURATION", help="How long a task may run, or be held.")
    ] = None,
    watch: Watch = None,
) -> None:
    """Show the tasks in workers' hands, longest first; arguments are never shown.

    They come from Redis' pending lists: what a worker was given and has not acknowledged. That is not the same as what
    runs. It has what the worker prefetched and has not begun: there `state`, from the result record, is not `running`
    (nor is it where a producer's own `queued` came too late, and hides that it runs).
    It keeps what a dead worker held, until another takes it over after 30 s. And it lacks what runs for longer than
    half its lease (15 s unless set otherwise), which Stem takes off the list: such a task is found by the copy that it
    leaves among the delayed ones, and its lease is `extended`.

    running: since the record's start, by the worker's clock. held: since the worker was given it.

    JSON: an array of one object a task.

    Exit codes: 0 ok; 2 a task is older than --max-age; 3 no answer.
    """
    most = age_limit("--max-age", max_age)

    async def question(client: "StemClient") -> _Found:
        found = await find_queues(client, queue)
        return _Found(found, await client.tasks_in_flight(found.names, limit))

    probe(stores, watch, question, lambda found: _show(found, most, limit))


def _show(found: _Found, most: Limit | None, limit: int) -> Shown:
    verdict = Verdict()
    notes = found.queues.tell(verdict, judged=most is not None)
    for task in found.tasks:
        age = max(task.running_ms or 0, task.held_ms or 0)
        verdict.at_most(f"task {task.task} {task.id} on {task.worker}:", age, most, shown=milliseconds(age))
    held = sum(state.inflight for state in found.queues.states)
    if not found.tasks:
        notes = [*notes, "no task is in a worker's hands"]
    elif held > len(found.tasks) or len(found.tasks) == limit:
        notes = [*notes, f"{held} tasks are pending, {len(found.tasks)} shown (--limit)"]
    rows = [_row(task) for task in found.tasks]
    return Shown(found.tasks, lambda: [table(_HEADINGS, rows)], verdict, notes)


def _row(task: TaskInFlight) -> tuple[str, ...]:
    return (
        task.task or NONE,
        task.id or "deleted",
        task.queue,
        attempts(task.attempt, task.max_retries),
        task.worker or NONE,
        task.state or NONE,
        milliseconds(task.running_ms),
        milliseconds(task.held_ms),
        NONE if task.deliveries is None else number(task.deliveries),
        "extended" if task.lease_extended else "",
    )
