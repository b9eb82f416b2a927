"""Which tasks are under way, and whose record is to be read when. Pure; time is an argument.

A task is under way from an entry on a stream of its queue on, until its record has answered all of its deliveries
(`judge`). An entry is read before a record that was written because of it, so the records are to be asked for first.
"""

import heapq
import itertools
from collections.abc import Collection, Iterable
from datetime import tzinfo
from typing import NamedTuple

from agent.receivers.stem_tail.flight import Ended, Flight, Mark, News, Owed, lease_ns
from agent.receivers.stem_tail.judge import Judge
from agent.stem.catalogue import TaskState
from agent.stem.envelope import Envelope
from agent.stem.questions.deliveries import Place
from agent.stem.status import TaskStatus
from agent.stem.timestamps import epoch_ns

_AGE_PARTS, _OLD_AGE_PARTS = 10, 60
"""A record is read again after a tenth of the time for which it has not changed, but at least once in `old`; where
that would be more often than sixty times its age, after a sixtieth of that."""
_REMEMBERED_PER_TASK = 2
_MS_NS = 1_000_000


class Pace(NamedTuple):
    """How often records are read (nanoseconds), how many tasks are followed, for how long, and when one is claimed."""

    young_ns: int
    old_ns: int
    most: int
    ttl_ns: int
    claim_ns: int


class Flights:
    """The tasks under way. `since_ms`: of everything enqueued later every entry was seen, by Redis' clock.

    `counts` has what is worth telling: `ambiguous`, `overlooked`, `hidden`, `max_tasks`, `task_ttl`; `dropped` is the
    last task that was.
    """

    def __init__(self, pace: Pace, zone: tzinfo, since_ms: int) -> None:
        self._pace = pace
        self._zone = zone
        self._since_ms = since_ms
        self._flights: dict[str, Flight] = {}
        self._known: dict[str, Mark | None] = {}  # tasks that were seen, and what their records said last
        self._queue: list[tuple[int, str]] = []
        self._newest_ms = since_ms
        self._quiet: dict[str, None] = {}  # tasks of which no record said anything, as far as was read
        self._touched: set[str] = set()
        self._noted: set[str] = set()
        self._judge = Judge(pace.claim_ns, zone, self._is_recent)
        self.counts = self._judge.counts
        self._lingering: dict[str, None] = {}  # nothing is awaited of them
        self.dropped = ""

    def __len__(self) -> int:
        return len(self._flights)

    @property
    def since_ms(self) -> int:
        """Since when every entry was seen (Redis' milliseconds)."""
        return self._since_ms

    # --- entries -----------------------------------------------------------------------------------------------------

    def entered(self, envelope: Envelope, ready_ms: int, place: Place, now_ns: int) -> bool:
        """Take an entry of a stream; return whether it is the publish of its task."""
        task_id, number = envelope.id or "", envelope.attempt or 0
        new = task_id not in self._known
        self._newest_ms = max(self._newest_ms, ready_ms)
        published = new and not number and (envelope.not_before is None or self._is_recent(envelope))
        flight = self._flights.get(task_id)
        if flight is None:
            flight = self._flights[task_id] = Flight([], [], self._known.get(task_id), now_ns, 0)
        returned = flight.returns if flight.returns and flight.returns.attempt == envelope.attempt else None
        flight.owed.append(Owed(number, ready_ms, returned or envelope, place))
        flight.changed_ns, flight.returns, flight.over = now_ns, None, False
        self._lingering.pop(task_id, None)
        self._touched.add(task_id)
        self._quiet[task_id] = None
        self._schedule(task_id, flight, now_ns)
        self._remember(task_id, flight.mark)
        self._bound()
        return published

    def _is_recent(self, envelope: Envelope) -> bool:
        """Whether a task that was not due at first cannot have been on a stream before it was seen there."""
        enqueued = envelope.enqueued_at
        return enqueued is not None and epoch_ns(enqueued, self._zone) // _MS_NS >= self._since_ms

    def _remember(self, task_id: str, mark: Mark | None) -> None:
        self._known.pop(task_id, None)
        self._known[task_id] = mark
        if len(self._known) > _REMEMBERED_PER_TASK * self._pace.most:
            oldest = next(iter(self._known))
            del self._known[oldest]
            self._since_ms = max(self._since_ms, self._newest_ms)

    def _bound(self) -> None:
        while len(self._flights) > self._pace.most:
            if self._lingering:
                self._drop(next(iter(self._lingering)))
                continue
            self.dropped = next(iter(self._flights))
            self._drop(self.dropped)
            self.counts["max_tasks"] += 1

    def _drop(self, task_id: str) -> None:
        del self._flights[task_id]
        self._quiet.pop(task_id, None)
        self._lingering.pop(task_id, None)
        if task_id in self._noted:
            self._touched.add(task_id)
        else:
            self._touched.discard(task_id)  # whoever reads the notes knows nothing of it

    def unregistered(self, task_id: str) -> None:
        """Note that a task was given up because nobody knows it: its record will never say so."""
        if (flight := self._flights.get(task_id)) and not flight.open:
            self._drop(task_id)

    # --- answers that were hidden ------------------------------------------------------------------------------------

    def unanswered(self, now_ns: int, most: int) -> list[Place]:
        """Return where entries are whose task's record says nothing: it may have been hidden by a late `queued`.

        Each time those that were not returned for longest. What runs all along renews its lease, and so has a new
        entry before it is asked for.
        """
        places: list[Place] = []
        for task_id in itertools.islice(list(self._quiet), most):
            self._quiet.pop(task_id)
            flight = self._flights.get(task_id)
            if flight is None or not flight.owed or not flight.says_nothing:
                continue
            self._quiet[task_id] = None
            if now_ns - flight.changed_ns >= max(2 * lease_ns(owed.envelope) for owed in flight.owed):
                places += [owed.place for owed in flight.owed]
        return places

    def acknowledged(self, done: Collection[Place], now_ns: int) -> list[News]:
        """Take note of entries that were acknowledged; return what is over, and what no record will tell.

        A worker acknowledges before it writes, so it has until the next time.
        """
        found: list[News] = []
        for task_id in list(self._quiet) if done else ():
            flight = self._flights.get(task_id)
            if flight is None or not flight.says_nothing:
                continue
            over = [owed for owed in flight.owed if owed.done and owed.place in done]
            flight.owed = [owed for owed in flight.owed if owed not in over]
            for owed in flight.owed:
                owed.done = owed.place in done
            if over:
                self._touched.add(task_id)
                found += self._judge.hidden(flight, over, now_ns)
            self._schedule(task_id, flight, now_ns)
        return found

    # --- time --------------------------------------------------------------------------------------------------------

    def due(self, now_ns: int, most: int) -> list[str]:
        """Return up to `most` tasks whose records are to be read now; `told` is to be called with each answer."""
        found: list[str] = []
        while self._queue and self._queue[0][0] <= now_ns and len(found) < most:
            due_ns, task_id = heapq.heappop(self._queue)
            flight = self._flights.get(task_id)
            if flight is None or flight.due_ns != due_ns:
                continue
            if not flight.awaited and flight.lingers_ns <= now_ns:
                self._drop(task_id)
                continue
            if now_ns - flight.changed_ns > self._pace.ttl_ns:
                self._drop(task_id)
                if flight.is_unended:
                    self.dropped = task_id
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
        return max(self._pace.young_ns, min(self._pace.old_ns, age_ns // _AGE_PARTS), age_ns // _OLD_AGE_PARTS)

    # --- records -----------------------------------------------------------------------------------------------------

    def told(self, record: TaskStatus, now_ns: int) -> list[News]:
        """Take a record that was due; return what is new about its task, with all that is known of each delivery."""
        flight = self._flights.get(record.id)
        if flight is None:
            return []
        mark = (record.state.value, record.attempt, record.updated_at, record.started_at, record.worker)
        found: list[News] = []
        if mark != flight.mark and record.attempt is not None:
            flight.mark, flight.changed_ns = mark, now_ns
            self._touched.add(record.id)
            self._remember(record.id, mark)
            if record.state is not TaskState.QUEUED:
                self._quiet.pop(record.id, None)
                found = self._judge.changed(flight, record, record.attempt, now_ns)
            elif flight.owed and flight.says_nothing:
                self._quiet[record.id] = None
        else:
            held = len(flight.open) + len(flight.owed)
            found = self._judge.unchanged(flight, record, now_ns)
            if len(flight.open) + len(flight.owed) != held:
                self._touched.add(record.id)
        if flight.awaited:
            self.again([record.id], now_ns)
        elif flight.lingers_ns > now_ns:
            self._lingering[record.id] = None
            self._schedule(record.id, flight, flight.lingers_ns)
        else:
            self._drop(record.id)
        return found

    # --- from one process to the next --------------------------------------------------------------------------------

    def changes(self) -> dict[str, Flight | None]:
        """Return the tasks that changed since this was asked last; None for those that are under way no more."""
        touched, self._touched = self._touched, set()
        changes = {task_id: self._flights.get(task_id) for task_id in touched}
        for task_id, flight in changes.items():
            (self._noted.add if flight else self._noted.discard)(task_id)
        return changes

    def all(self) -> dict[str, Flight]:
        """Return every task under way."""
        return self._flights

    def ended(self, task_id: str) -> list[Ended]:
        """Return the deliveries of a task that were told to have ended."""
        flight = self._flights.get(task_id)
        return list(flight.ended) if flight else []

    @property
    def unended(self) -> list[str]:
        """The tasks of which an end is still to come."""
        return [task_id for task_id, flight in self._flights.items() if flight.is_unended]

    def restore(self, flights: dict[str, Flight], since_ms: int, now_ns: int) -> None:
        """Go on from what an agent before this one left; every record is read at once.

        What had begun was told to have begun by that one.
        """
        self._flights, self._since_ms, self._noted = flights, since_ms, set(flights)
        for task_id, flight in flights.items():
            if flight.owed and flight.says_nothing:
                self._quiet[task_id] = None
            for each in flight.open:
                each.told = True
            self._known[task_id] = flight.mark
        self.at_once(now_ns)
