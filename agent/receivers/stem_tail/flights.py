"""Which tasks are under way, whose record is to be read when, and what a change of it means. Pure; time is an argument.

A task is under way from an entry on a stream of its queue on: each entry is a delivery that is owed an answer by the
task's record. What begins there is open until the record tells of its end.

| a record that | answers an entry of its attempt | what it proves |
| --- | --- | --- |
| is `queued` | no: a publisher writes it late, also over an end | nothing |
| names a start that is open | no | that delivery's state |
| names another start | the oldest | another delivery: a copy of a lease, or taken over |
| was sent back (rate limit, pause) | the oldest | no attempt; another entry will come |
| names no start, and never had one (expired, signature) | the oldest | that delivery's end |
| names no start, though it ran | the oldest, if nothing is open | that of the open one, if no other can be it |

An entry is read before a record that was written because of it, so the records are to be asked for first.
"""

import heapq
from collections import Counter
from collections.abc import Iterable
from datetime import datetime, tzinfo
from typing import NamedTuple

from msgspec import Struct
from msgspec.structs import replace

from agent.stem.catalogue import TaskState
from agent.stem.envelope import Envelope
from agent.stem.status import TaskStatus
from agent.stem.timestamps import epoch_ns

_AGE_PARTS = 10
"""A record is read again after a tenth of the time for which it has not changed."""
_REMEMBERED_PER_TASK = 2

Mark = tuple[str, int | None, datetime | None, datetime | None, str | None]
"""By what a record is told from the one before."""


class Pace(NamedTuple):
    """How often records are read (nanoseconds), how many tasks are followed, for how long, and when one is claimed."""

    young_ns: int
    old_ns: int
    most: int
    ttl_ns: int
    claim_ns: int


class Owed(Struct, array_like=True):
    """A delivery that the record has not answered yet."""

    attempt: int
    ready_ms: int
    envelope: Envelope


class Open(Struct, array_like=True):
    """A delivery that began and is not known to have ended."""

    attempt: int
    worker: str | None
    started_at: datetime | None
    envelope: Envelope


class Flight(Struct, array_like=True):
    """A task under way; `changed_ns` is when news of it was last seen, `due_ns` when its record is to be read."""

    owed: list[Owed]
    open: list[Open]
    mark: Mark | None
    changed_ns: int
    due_ns: int


class FlightsState(Struct, array_like=True):
    """Everything that is known of the tasks."""

    flights: dict[str, Flight]
    known: dict[str, Mark | None]
    since_ms: int


class Told(NamedTuple):
    """A record and the envelope of the delivery that it is about."""

    record: TaskStatus
    envelope: Envelope


class Flights:
    """The tasks under way. `since_ms`: of everything enqueued later every entry was seen, by Redis' clock.

    `counts` has what is worth telling: `ambiguous`, `overlooked`, `max_tasks`, `task_ttl`.
    """

    def __init__(self, pace: Pace, zone: tzinfo, since_ms: int) -> None:
        self._pace = pace
        self._zone = zone
        self._since_ms = since_ms
        self._flights: dict[str, Flight] = {}
        self._known: dict[str, Mark | None] = {}  # tasks that were seen, and what their records said last
        self._queue: list[tuple[int, str]] = []
        self._newest_ms = since_ms
        self.counts: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._flights)

    # --- entries -----------------------------------------------------------------------------------------------------

    def entered(self, envelope: Envelope, ready_ms: int, now_ns: int) -> bool:
        """Take an entry of a stream; return whether it is the publish of its task."""
        task_id, number = envelope.id or "", envelope.attempt or 0
        new = task_id not in self._known
        self._newest_ms = max(self._newest_ms, ready_ms)
        published = new and not number and (envelope.not_before is None or self._is_recent(envelope))
        flight = self._flights.get(task_id)
        if flight is None:
            flight = self._flights[task_id] = Flight([], [], self._known.get(task_id), now_ns, 0)
        flight.owed.append(Owed(number, ready_ms, envelope))
        flight.changed_ns = now_ns
        self._schedule(task_id, flight, now_ns)
        self._remember(task_id, flight.mark)
        self._bound()
        return published

    def _is_recent(self, envelope: Envelope) -> bool:
        """Whether a task that was not due at first cannot have been on a stream before it was seen there."""
        enqueued = envelope.enqueued_at
        return enqueued is not None and epoch_ns(enqueued, self._zone) // 1_000_000 >= self._since_ms

    def _remember(self, task_id: str, mark: Mark | None) -> None:
        self._known.pop(task_id, None)
        self._known[task_id] = mark
        if len(self._known) > _REMEMBERED_PER_TASK * self._pace.most:
            oldest = next(iter(self._known))
            del self._known[oldest]
            self._since_ms = max(self._since_ms, self._newest_ms)

    def _bound(self) -> None:
        while len(self._flights) > self._pace.most:
            del self._flights[next(iter(self._flights))]
            self.counts["max_tasks"] += 1

    def dead(self, task_id: str) -> None:
        """Note that a task was given up: of one that nobody is registered for the record says nothing."""
        if (flight := self._flights.get(task_id)) and not flight.open:
            del self._flights[task_id]

    # --- time --------------------------------------------------------------------------------------------------------

    def due(self, now_ns: int, most: int) -> list[str]:
        """Return up to `most` tasks whose records are to be read now; `told` is to be called with each answer."""
        found: list[str] = []
        while self._queue and self._queue[0][0] <= now_ns and len(found) < most:
            due_ns, task_id = heapq.heappop(self._queue)
            flight = self._flights.get(task_id)
            if flight is None or flight.due_ns != due_ns:
                continue
            if now_ns - flight.changed_ns > self._pace.ttl_ns:
                del self._flights[task_id]
                self.counts["task_ttl"] += 1
                continue
            flight.due_ns = 0
            found.append(task_id)
        return found

    def next_ns(self) -> int | None:
        """Return when the next record is to be read; None while no task is under way."""
        return self._queue[0][0] if self._queue else None

    def again(self, task_ids: Iterable[str], now_ns: int) -> None:
        """Read these records later: they could not be read, or there is none."""
        for task_id in task_ids:
            if flight := self._flights.get(task_id):
                self._schedule(task_id, flight, now_ns + self._interval_ns(flight, now_ns))

    def changed(self, task_id: str, now_ns: int) -> None:
        """Read a task's record at once: somebody says that it changed."""
        if (flight := self._flights.get(task_id)) and not 0 < flight.due_ns <= now_ns:
            self._schedule(task_id, flight, now_ns)

    def at_once(self, now_ns: int) -> None:
        """Read every record at once, because there will be no later."""
        for task_id, flight in self._flights.items():
            self._schedule(task_id, flight, now_ns)

    def _schedule(self, task_id: str, flight: Flight, due_ns: int) -> None:
        flight.due_ns = due_ns
        heapq.heappush(self._queue, (due_ns, task_id))

    def _interval_ns(self, flight: Flight, now_ns: int) -> int:
        age_ns = now_ns - flight.changed_ns
        return min(self._pace.old_ns, max(self._pace.young_ns, age_ns // _AGE_PARTS))

    # --- records -----------------------------------------------------------------------------------------------------

    def told(self, record: TaskStatus, now_ns: int) -> Told | None:
        """Take a record that was due; return it, if it tells anything new, with all that is known of its delivery."""
        flight = self._flights.get(record.id)
        if flight is None:
            return None
        mark = (record.state.value, record.attempt, record.updated_at, record.started_at, record.worker)
        found = None
        if mark != flight.mark and record.attempt is not None:
            flight.mark, flight.changed_ns = mark, now_ns
            self._remember(record.id, mark)
            if record.state is not TaskState.QUEUED:
                self._pass_over(flight, record.attempt)
                found = self._judge(flight, record, record.attempt)
        if flight.owed or flight.open:
            self.again([record.id], now_ns)
        else:
            del self._flights[record.id]
        return found

    def _pass_over(self, flight: Flight, number: int) -> None:
        """Forget the attempts before the one that a record is of: it will say nothing more of them."""
        overlooked = {owed.attempt for owed in flight.owed if owed.attempt < number}
        overlooked -= {each.attempt for each in flight.open}
        self.counts["overlooked"] += len(overlooked)
        flight.owed = [owed for owed in flight.owed if owed.attempt >= number]
        flight.open = [each for each in flight.open if each.attempt >= number]

    def _judge(self, flight: Flight, record: TaskStatus, number: int) -> Told | None:
        if record.rate_limited or record.queue_paused:
            self._answer(flight, number)
            return None
        if record.started_at is not None:
            return self._with_start(flight, record, number)
        if record.expired or record.security:
            envelope = self._answer(flight, number)
            return Told(record, envelope) if envelope else None
        return self._without_start(flight, record, number)

    def _with_start(self, flight: Flight, record: TaskStatus, number: int) -> Told | None:
        delivery = (number, record.worker, record.started_at)
        known = next((each for each in flight.open if (each.attempt, each.worker, each.started_at) == delivery), None)
        if known is None:
            others = [each for each in flight.open if each.attempt == number]
            envelope = self._answer(flight, number) or (others[-1].envelope if others else None)
            if envelope is None:
                return None  # read before: nothing of this attempt is awaited
            known = Open(number, record.worker, record.started_at, envelope)
            flight.open.append(known)
        if record.state is not TaskState.RUNNING:
            flight.open.remove(known)
        return Told(record, known.envelope)

    def _without_start(self, flight: Flight, record: TaskStatus, number: int) -> Told | None:
        """Find the delivery that ended: a record of a retry names neither start nor worker."""
        running = [each for each in flight.open if each.attempt == number]
        if record.worker is not None:
            running = [each for each in running if each.worker == record.worker]
        owed = any(each.attempt == number for each in flight.owed)
        if not running:
            envelope = self._answer(flight, number)
            return Told(record, envelope) if envelope else None
        (first, *more) = running
        if more or owed or not self._is_soon(first, record):
            self.counts["ambiguous"] += 1
            return None
        flight.open.remove(first)
        return Told(replace(record, worker=first.worker, started_at=first.started_at), first.envelope)

    def _is_soon(self, delivery: Open, record: TaskStatus) -> bool:
        """Whether a delivery ended before another worker could have taken it over, and ended it unseen."""
        if record.updated_at is None or delivery.started_at is None:
            return False
        run_ns = epoch_ns(record.updated_at, self._zone) - epoch_ns(delivery.started_at, self._zone)
        return 0 <= run_ns < self._pace.claim_ns

    @staticmethod
    def _answer(flight: Flight, number: int) -> Envelope | None:
        """Take the oldest entry of an attempt as answered, and return its envelope.

        Where several are owed nobody knows which it was: then that of the newest, which was due last, so that the wait
        is told as no longer than it was.
        """
        owed = [each for each in flight.owed if each.attempt == number]
        if not owed:
            return None
        flight.owed.remove(owed[0])
        return owed[-1].envelope

    # --- from one process to the next --------------------------------------------------------------------------------

    def state(self) -> FlightsState:
        """Return what is known."""
        return FlightsState(self._flights, self._known, self._since_ms)

    def restore(self, state: FlightsState, now_ns: int) -> None:
        """Go on from a state; every record is read at once."""
        self._flights, self._known, self._since_ms = state.flights, state.known, state.since_ms
        self.at_once(now_ns)
