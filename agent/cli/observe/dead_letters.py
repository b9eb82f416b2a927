"""`stem-agent observe dlq`."""

from typing import TYPE_CHECKING, Annotated

import typer
from msgspec import Struct

from agent.cli.drawing import NONE, milliseconds, short, table
from agent.cli.observe.finding import FoundQueues, find_queues
from agent.cli.probe import Queues, Shown, Watch, probe
from agent.cli.stores import Stores, with_stores
from agent.cli.verdict import Limit, Verdict, age_limit, limit
from agent.stem.client.values import DeadLetter

if TYPE_CHECKING:
    from agent.stem.client.stem_client import StemClient

_HEADINGS = ("queue", "task", "id", "reason", "attempt", "dead for", "error")


class _Found(Struct, frozen=True):
    queues: FoundQueues
    letters: list[DeadLetter]


@with_stores
def dlq(
    stores: Stores,
    queue: Queues = None,
    limit_: Annotated[int, typer.Option("--limit", help="Dead letters to show of each queue.", min=1)] = 50,
    max_dead: Annotated[int | None, typer.Option(help="Dead letters that a queue may have.", min=0)] = None,
    max_age: Annotated[
        str | None, typer.Option(metavar="DURATION", help="How long the oldest may have lain there.")
    ] = None,
    watch: Watch = None,
) -> None:
    """Show the dead letters of each queue, newest first: tasks that were given up.

    They stay until somebody replays them. What is revoked, expired, or ran out of retries that its handler itself
    asked for is not among them.

    JSON: an array of one object a dead letter. Thresholds are about all of a queue's, shown or not.

    Exit codes: 0 ok; 2 a queue is above a threshold; 3 no answer.
    """
    most, oldest = limit("--max-dead", max_dead), age_limit("--max-age", max_age)

    async def question(client: "StemClient") -> _Found:
        found = await find_queues(client, queue)
        full = [state.queue for state in found.states if state.dead]
        return _Found(found, [letter for name in full for letter in await client.dead_letters(name, limit_)])

    probe(stores, watch, question, lambda found: _show(found, most, oldest))


def _show(found: _Found, most: Limit | None, oldest: Limit | None) -> Shown:
    verdict = Verdict()
    gaps = found.queues.tell(verdict, judged=bool(most or oldest))
    for state in found.queues.states:
        verdict.at_most(f"queue {state.queue}: dead", state.dead, most)
        age = state.oldest_dead_age_ms if state.dead else 0
        verdict.at_most(f"queue {state.queue}: age of the oldest dead letter", age, oldest, shown=milliseconds(age))
    shown = {name: sum(letter.queue == name for letter in found.letters) for name in found.queues.names}
    notes = [
        f"queue {state.queue}: {state.dead} dead letters, the newest {shown[state.queue]} of them shown (--limit)"
        for state in found.queues.states
        if state.dead > shown[state.queue]
    ]
    if not found.letters:
        notes.append("no dead letters")
    rows = [_row(letter) for letter in found.letters]
    return Shown(found.letters, lambda: [table(_HEADINGS, rows)], verdict, [*gaps, *notes])


def _row(letter: DeadLetter) -> tuple[str, ...]:
    if letter.unreadable:
        return (letter.queue, NONE, NONE, f"unreadable: {letter.unreadable}", NONE, NONE, NONE)
    return (
        letter.queue,
        letter.task or NONE,
        letter.id or NONE,
        letter.reason or NONE,
        attempts(letter.attempt, letter.max_retries),
        milliseconds(letter.age_ms),
        short(letter.error),
    )


def attempts(attempt: int | None, retries: int | None) -> str:
    """Return which attempt it is for people, who count from 1: `2 of 4`."""
    if attempt is None:
        return NONE
    return f"{attempt + 1}" if retries is None else f"{attempt + 1} of {retries + 1}"
