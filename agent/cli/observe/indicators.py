"""`stem-agent observe metrics`: the key indicators of Stem's monitoring guide, as far as Redis alone can tell them."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from msgspec import Struct

from agent.cli.drawing import UNKNOWN, milliseconds, number, table
from agent.cli.observe.finding import FoundQueues, find_queues
from agent.cli.probe import Queues, Shown, Watch, probe
from agent.cli.stores import SCHEDULES, Stores, with_stores
from agent.cli.verdict import Verdict
from agent.stem.client.values import Queue, Schedule, Worker

if TYPE_CHECKING:
    from agent.stem.client.stem_client import StemClient

_HEADINGS = ("key indicator", "metric", ">now", "of which", "from")
_MS_PER_S = 1000
_RUNNING_AGENT = "a running agent counts it from signals; Redis keeps no such number"


class Indicator(Struct, frozen=True, kw_only=True):
    """A number now, under the name that the running agent gives it; `value` is None where `unknown` says why.

    `unit` is UCUM, as the metric's. `by` has the parts of it: queues, workers, schedules.
    """

    indicator: str
    metric: str
    value: float | None
    unit: str
    by: dict[str, float | None] = {}
    source: str = ""
    unknown: str | None = None


class _Found(Struct, frozen=True):
    queues: FoundQueues
    workers: list[Worker]
    schedules: list[Schedule] | None


@with_stores
def metrics(stores: Stores, queue: Queues = None, watch: Watch = None) -> None:
    """Show the six key indicators of Stem's monitoring guide, now.

    Redis knows depth, ages, dead letters, heartbeats and schedules. It keeps no count of retries, and not how long
    finished tasks have waited: those two are told by a running agent only, and here as unknown.

    JSON: an array of one object a metric, under the name that the agent exports it with, in the same unit.

    Exit codes: 0 answered; 3 no answer, or no such queue.
    """

    async def question(client: "StemClient") -> _Found:
        found = await find_queues(client, queue)
        schedules = await client.schedules() if stores.schedules else None
        workers = [w for w in await client.workers() if w.namespace in {None, stores.namespace}]
        return _Found(found, workers, schedules)

    probe(stores, watch, question, _show)


def _show(found: _Found) -> Shown:
    told = [*_of_queues(found.queues.states), *_of_workers(found.workers), *_of_schedules(found.schedules)]
    order = list(dict.fromkeys(_ORDER))
    told.sort(key=lambda each: order.index(each.indicator))
    verdict = Verdict()
    notes = found.queues.tell(verdict, judged=False)
    return Shown(told, lambda: [table(_HEADINGS, map(_row, told))], verdict, notes)


_ORDER = ("queue depth", "queue latency", "retry rate", "dlq volume", "worker heartbeats", "scheduler drift")


def _of_queues(queues: Sequence[Queue]) -> Iterable[Indicator]:
    depths: dict[str, float | None] = {queue.queue: queue.depth for queue in queues}
    unclear = [queue.queue for queue in queues if queue.depth is None]
    yield Indicator(
        indicator="queue depth",
        metric="stem.queue.depth",
        value=None if unclear else sum(queue.depth or 0 for queue in queues),
        unit="{message}",
        by=depths,
        source="lag of the consumer groups",
        unknown=f"of {', '.join(unclear)}; observe queues says why" if unclear else None,
    )
    ages = {q.queue: q.oldest_age_ms / _MS_PER_S for q in queues if q.oldest_age_ms is not None}
    yield Indicator(
        indicator="queue latency",
        metric="stem.queue.oldest_age",
        value=max(ages.values(), default=0),
        unit="s",
        by={**ages},
        source="age of the oldest ready task",
    )
    yield Indicator(
        indicator="queue latency", metric="stem.queue.latency", value=None, unit="s", unknown=_RUNNING_AGENT
    )
    yield Indicator(
        indicator="retry rate",
        metric="stem.tasks.retried / stem.tasks.started",
        value=None,
        unit="1",
        unknown=_RUNNING_AGENT,
    )
    yield Indicator(
        indicator="dlq volume",
        metric="stem.dlq.depth",
        value=sum(queue.dead for queue in queues),
        unit="{message}",
        by={queue.queue: queue.dead for queue in queues if queue.dead},
        source="length of the dead-letter lists",
    )
    dead = {q.queue: q.oldest_dead_age_ms / _MS_PER_S for q in queues if q.oldest_dead_age_ms is not None}
    yield Indicator(
        indicator="dlq volume",
        metric="stem.dlq.oldest_age",
        value=max(dead.values(), default=0),
        unit="s",
        by={**dead},
        source="deadAt of the last element",
    )


def _of_workers(workers: Sequence[Worker]) -> Iterable[Indicator]:
    up = [worker for worker in workers if worker.up]
    yield Indicator(
        indicator="worker heartbeats",
        metric="stem.worker.up",
        value=len(up),
        unit="{worker}",
        by={worker.worker_id: int(worker.up) for worker in workers},
        source="heartbeats in the result backend",
    )
    ages = {worker.worker_id: worker.age_ms / _MS_PER_S for worker in up if worker.age_ms is not None}
    yield Indicator(
        indicator="worker heartbeats",
        metric="stem.worker.heartbeat.age",
        value=max(ages.values(), default=None),
        unit="s",
        by={**ages},
        source="what is left of the 60 s that a heartbeat is kept",
        unknown=None if ages else "no worker is up",
    )


def _of_schedules(schedules: Sequence[Schedule] | None) -> Iterable[Indicator]:
    none = f"set {SCHEDULES}, or give --schedules URL" if schedules is None else None
    drifts = {entry.id: abs(entry.drift_ms) / _MS_PER_S for entry in schedules or () if entry.drift_ms is not None}
    yield Indicator(
        indicator="scheduler drift",
        metric="stem.scheduler.drift",
        value=max(drifts.values(), default=None),
        unit="s",
        by={**drifts},
        source="" if none else "driftMs of each entry's last run",
        unknown=none or (None if drifts else "no entry has run"),
    )
    late = {entry.id: entry.overdue_ms / _MS_PER_S for entry in schedules or () if entry.overdue_ms}
    yield Indicator(
        indicator="scheduler drift",
        metric="stem.schedule.overdue",
        value=None if none else max(late.values(), default=0),
        unit="s",
        by={**late},
        source="" if none else "entries past their nextRunAt",
        unknown=none,
    )


def _row(told: Indicator) -> tuple[str, ...]:
    parts = ", ".join(f"{name} {_value(value, told.unit)}" for name, value in told.by.items())
    return (told.indicator, told.metric, _value(told.value, told.unit), parts, told.unknown or told.source)


def _value(value: float | None, unit: str) -> str:
    if value is None:
        return UNKNOWN
    return milliseconds(round(value * _MS_PER_S)) if unit == "s" else number(round(value))
