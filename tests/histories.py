"""What may become of one task of a fleet that says nothing: its entries and records in their order, and the truth."""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from operator import itemgetter

from hypothesis import strategies as st

from agent.stem.catalogue import TaskState
from agent.stem.questions.entries import Entry
from agent.stem.status import TaskStatus
from tests.tails import at, entry, failed, on_stream, queued, record, retried, running, sent_back, succeeded

WORKERS = ("worker-1", "worker-2", "worker-3")
LEASE_S, RENEWED_S = 30.0, 15.0
"""Stem's defaults."""
NEVER_RAN = ("expired", "refused")


@dataclass(frozen=True)
class Step:
    """One attempt: sent back so often, and then run for so long. `beside`: what becomes of its delivery, or beside it.

    `copies` of its lease are delivered, too; or its worker `vanishes`, and another takes it over.
    """

    returns: int
    run_s: float
    beside: str


@dataclass(frozen=True)
class History:
    """A task: attempts that are retried, and a last one that ends so. `late_s`: when its publisher writes `queued`."""

    steps: list[Step]
    end: str
    eta_s: float
    late_s: float


@dataclass(frozen=True)
class Delivery:
    """What happened to a delivery. Without a start it never ran; without an end its worker vanished."""

    attempt: int
    worker: str | None
    started: float | None
    ended: float | None
    state: str | None


steps = st.builds(
    Step,
    st.sampled_from([0, 0, 0, 1, 2]),
    st.sampled_from([0.002, 0.05, 0.7, 20.0, 50.0]),
    st.sampled_from(["", "", "", "copies", "vanishes"]),
)
histories = st.builds(
    History,
    st.lists(steps, min_size=1, max_size=3),
    st.sampled_from(["succeeded", "succeeded", "failed", "revoked", "revoked early", *NEVER_RAN]),
    st.sampled_from([0.0, 0.0, 0.5]),
    st.sampled_from([0.001, 0.001, 0.03, 1.0, 25.0]),
)


@dataclass
class Happened:
    """Everything that was written, by time (seconds), and the deliveries."""

    order: random.Random
    most: int
    entries: list[tuple[float, Entry]] = field(default_factory=list)
    records: list[tuple[float, TaskStatus]] = field(default_factory=list)
    deliveries: list[Delivery] = field(default_factory=list)
    acknowledged: dict[str, float] = field(default_factory=dict)
    """When, by the id of the entry."""

    @property
    def over(self) -> float:
        """When the last thing happened."""
        return max(time for time, _ in [*self.entries, *self.records])

    def sort(self) -> "Happened":
        self.entries.sort(key=itemgetter(0))
        self.records.sort(key=itemgetter(0))
        return self

    def read(self, time: float) -> TaskStatus | None:
        """The record as it is then."""
        return next((told for written, told in reversed(self.records) if written <= time), None)

    def soon(self, time: float, most: float = 0.02) -> float:
        """Some moments later, to the millisecond; never at the same time as anything else."""
        return round(time + self.order.uniform(0.001, most), 3)

    def enter(self, time: float, number: int, *, due: float | None) -> float:
        not_before = None if due is None else at(due)
        envelope = entry(number, not_before=not_before, enqueued_at=at(0), max_retries=self.most)
        self.entries.append((time, on_stream(envelope, ready=time)))
        return time

    def acknowledge(self, ready: float, time: float) -> None:
        """A worker acknowledges what it sends back, ends, or renews the lease of."""
        entry_id = next(entry.entry for entered, entry in self.entries if entered == ready)
        self.acknowledged[entry_id] = time

    def write(self, time: float, told: TaskStatus) -> float:
        self.records.append((time, told))
        return time


def happen(history: History, order: random.Random) -> Happened:
    """Let a task run."""
    last = len(history.steps) - 1
    told = Happened(order, last)
    ready = told.enter(max(0.0, history.eta_s), 0, due=history.eta_s or None)
    told.write(told.soon(history.late_s, 0.002), queued(history.late_s))
    for number, step in enumerate(history.steps):
        for _ in range(step.returns):
            back = told.soon(ready)
            told.acknowledge(ready, back)
            told.write(back, sent_back(back, number))
            ready = told.enter(told.soon(back + 0.3), number, due=back + 0.3)
        end = history.end if number == last else "retried"
        ended = _run(told, number, ready, step, end)
        if number < last:
            ready = told.enter(told.soon(ended + 0.3), number + 1, due=ended + 0.3)
    return told.sort()


def _run(told: Happened, number: int, ready: float, step: Step, end: str) -> float:
    """Let an attempt run; return when its delivery ended."""
    worker, started = told.order.choice(WORKERS), told.soon(ready)
    if end in NEVER_RAN or end == "revoked early":
        told.acknowledge(ready, started)
        return _end(told, number, None, worker, started, end)
    told.write(started, running(started, worker, number))
    if step.beside == "vanishes":
        told.deliveries.append(Delivery(number, worker, started, None, None))
        other = told.order.choice([each for each in WORKERS if each != worker])
        worker, started = other, told.soon(started + 30, 30)
        told.write(started, running(started, worker, number))
    ended = round(started + step.run_s, 3)
    told.acknowledge(ready, min(ended, started + RENEWED_S))
    if step.beside == "copies":
        _copies(told, number, started, step.run_s)
    return _end(told, number, started, worker, ended, end)


def _copies(told: Happened, number: int, started: float, run_s: float) -> None:
    """Renew the lease of what runs: each time leaves a copy, which is delivered a lease later."""
    for renewed in range(1, int(run_s / RENEWED_S) + 1):
        due = round(started + renewed * RENEWED_S + LEASE_S, 3)
        ready = told.enter(told.soon(due), number, due=due)
        began, worker = told.soon(ready, 5), told.order.choice(WORKERS)
        ended = round(began + told.order.choice([0.01, run_s]), 3)
        told.write(began, running(began, worker, number))
        told.acknowledge(ready, min(ended, began + RENEWED_S))
        _end(told, number, began, worker, ended, "succeeded")


def _end(told: Happened, number: int, started: float | None, worker: str, ended: float, end: str) -> float:
    ran = started is not None
    state = _STATES.get(end, end)
    delivery = Delivery(number, worker if ran or end != "refused" else None, started, ended, state)
    if ended == started:
        return _end(told, number, started, worker, ended + 0.001, end)
    told.deliveries.append(delivery)
    records = {
        "retried": retried(ended, number),
        "revoked": record(TaskState.CANCELLED, number, revoked=True, worker=worker, updated_at=at(ended)),
        "expired": record(
            TaskState.CANCELLED, number, expired=True, worker=worker, expired_at=at(ended), updated_at=at(ended)
        ),
        "refused": record(
            TaskState.FAILED, number, security="signature-invalid", failed_at=at(ended), updated_at=at(ended)
        ),
    }
    if end == "succeeded":
        return told.write(ended, succeeded(started or 0.0, ended, worker, number))
    if end == "failed":
        return told.write(ended, failed(started or 0.0, ended, worker, number))
    return told.write(ended, records["revoked" if end == "revoked early" else end])


_STATES = {"revoked": "cancelled", "revoked early": "cancelled", "expired": "cancelled", "refused": "failed"}


def moments(order: random.Random, since: float, until: float, most: int) -> Iterator[float]:
    """When somebody reads: here and there, and often for a while."""
    for _ in range(order.randint(0, most)):
        time = order.uniform(since, until)
        yield time
        if order.random() < 0.3:
            yield from (time + 0.01 * step for step in range(order.randint(1, 20)))
