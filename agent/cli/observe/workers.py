"""`stem-agent observe workers`."""

from collections import Counter
from typing import TYPE_CHECKING, Annotated

import typer

from agent.cli.drawing import NONE, UNKNOWN, milliseconds, number, size, table
from agent.cli.probe import Shown, Watch, probe
from agent.cli.stores import Stores, with_stores
from agent.cli.verdict import Limit, Verdict, age_limit, limit
from agent.stem.client.values import Worker

if TYPE_CHECKING:
    from agent.stem.client.stem_client import StemClient

_HEADINGS = (
    *("worker", "state", ">heartbeat", ">inflight", ">isolates", ">concurrency", "queues", "host", ">pid"),
    *(">memory", ">clock skew"),
)


@with_stores
def workers(
    stores: Stores,
    max_age: Annotated[str | None, typer.Option(metavar="DURATION", help="How old a heartbeat may be.")] = None,
    min_workers: Annotated[int | None, typer.Option(help="Workers that must have a heartbeat.", min=0)] = None,
    max_gone: Annotated[int | None, typer.Option(help="Workers whose heartbeat may have expired.", min=0)] = None,
    watch: Watch = None,
) -> None:
    """Show each worker of the namespace by its last heartbeat, which Stem keeps for 60 s.

    gone: the heartbeat has expired. A worker that was stopped leaves no other trace than one that died, and its id
    stays until somebody forgets it, as Stem's own `observe workers` does: so --max-age is about those that are up.
    Replicas that share an id, as containers do unless they are named, look like one worker. Heartbeats sent every 60 s
    or less often expire in between. heartbeat: its age by Redis' clock. clock skew: the worker's clock minus Redis'.

    JSON: an array of one object a worker, gone ones too (`up` false).

    Exit codes: 0 ok; 2 a threshold is passed; 3 no answer, or no worker that a threshold could be about.
    """
    limits = {
        "age": age_limit("--max-age", max_age),
        "workers": limit("--min-workers", min_workers),
        "gone": limit("--max-gone", max_gone),
    }

    async def question(client: "StemClient") -> list[Worker]:
        return await client.workers()

    probe(stores, watch, question, lambda found: _show(found, stores.namespace, limits))


def _show(found: list[Worker], namespace: str, limits: dict[str, Limit | None]) -> Shown:
    ours = [worker for worker in found if worker.namespace in {None, namespace}]
    others = Counter(worker.namespace for worker in found if worker.namespace not in {None, namespace})
    verdict = Verdict()
    for worker in ours:
        if worker.up:
            age = worker.age_ms
            verdict.at_most(f"worker {worker.worker_id}: heartbeat", age, limits["age"], shown=milliseconds(age))
        elif worker.unreadable:
            verdict.unknown(f"worker {worker.worker_id}: heartbeat is not what Stem writes: {worker.unreadable}")
    verdict.at_least("workers that are up", sum(worker.up for worker in ours), limits["workers"])
    gone = sum(not (worker.up or worker.unreadable) for worker in ours)
    verdict.at_most("workers that are gone", gone, limits["gone"], shown=str(gone))
    notes = [f"left out, of namespace {name}: {count} (--namespace {name})" for name, count in sorted(others.items())]
    if not ours:
        tell = verdict.unknown if limits["age"] or limits["gone"] else notes.append
        tell(f"no worker of namespace {namespace} has left a heartbeat")
    elif limits["age"] and not any(worker.up for worker in ours):
        verdict.unknown(f"no worker of namespace {namespace} is up, whose heartbeat could be held against --max-age")
    return Shown(ours, lambda: [table(_HEADINGS, map(_row, ours))], verdict, notes)


def _row(worker: Worker) -> tuple[str, ...]:
    if not worker.up:
        return (worker.worker_id, "unreadable" if worker.unreadable else "gone", *([NONE] * (len(_HEADINGS) - 2)))
    return (
        worker.worker_id,
        "up",
        milliseconds(worker.age_ms),
        number(worker.inflight),
        number(worker.isolate_count),
        number(worker.concurrency),
        ", ".join(worker.subscriptions.queues) or NONE,
        worker.host or NONE,
        NONE if worker.pid is None else str(worker.pid),
        size(worker.memory_bytes),
        milliseconds(worker.clock_skew_ms, UNKNOWN),
    )
