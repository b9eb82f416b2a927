"""`stem-agent observe schedules`."""

from typing import TYPE_CHECKING, Annotated

import typer

from agent.cli.drawing import NONE, milliseconds, number, short, table, utc
from agent.cli.probe import Shown, Watch, probe
from agent.cli.stores import SCHEDULES, BadOption, Stores, with_stores
from agent.cli.verdict import Limit, Verdict, age_limit
from agent.stem.client.values import Schedule

if TYPE_CHECKING:
    from agent.stem.client.stem_client import StemClient

_HEADINGS = (
    *("schedule", "task", "queue", "state", "next run", ">overdue", "last run", ">drift", ">runs"),
    "last error",
)


@with_stores
def schedules(
    stores: Stores,
    max_overdue: Annotated[str | None, typer.Option(metavar="DURATION", help="How late an entry may be.")] = None,
    limit: Annotated[int, typer.Option(help="Entries to show, next first.", min=1)] = 1000,
    watch: Watch = None,
) -> None:
    """Show each entry of the schedule store: when it runs next, and how late it is.

    overdue: an enabled entry that should have run already, jitter allowed for: no Beat fires it. drift: by how much the
    last run was late. Disabled and expired entries stay in the store, and are never overdue.

    JSON: an array of one object an entry.

    Exit codes: 0 ok; 2 an entry is overdue for longer than --max-overdue; 3 no answer,
    no store was named, or no entry is there that a threshold could be about.
    """
    if not stores.schedules:
        raise BadOption(f"no schedule store is named: set {SCHEDULES}, or give --schedules URL")
    most = age_limit("--max-overdue", max_overdue)

    async def question(client: "StemClient") -> list[Schedule]:
        return await client.schedules(limit)

    probe(stores, watch, question, lambda found: _show(found, stores.store_namespace, most))


def _show(found: list[Schedule], namespace: str, most: Limit | None) -> Shown:
    verdict = Verdict()
    for entry in found:
        late = entry.overdue_ms
        verdict.at_most(f"schedule {entry.id}: overdue", late, most, shown=milliseconds(late))
    notes = list[str]()
    if not found:
        (verdict.unknown if most else notes.append)(f"there is no schedule under {namespace}:")
    return Shown(found, lambda: [table(_HEADINGS, map(_row, found))], verdict, notes)


def _row(entry: Schedule) -> tuple[str, ...]:
    return (
        entry.id,
        entry.task or NONE,
        entry.queue or NONE,
        "expired" if entry.expired else "enabled" if entry.enabled else "disabled",
        utc(entry.next_run_at),
        milliseconds(entry.overdue_ms or None),
        utc(entry.last_run_at) if entry.last_run_at else "never",
        milliseconds(entry.drift_ms),
        number(entry.total_run_count),
        short(entry.last_error),
    )
