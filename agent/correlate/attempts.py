"""The table of attempts: who is open, who is due, who was settled a moment ago. Pure; time is an argument."""

from collections import deque
from collections.abc import Iterator
from typing import Any

from msgspec import Struct

from agent.core.clock import NANOSECONDS
from agent.correlate import ids
from agent.correlate.attempt import TOLD, Attempt, Before, Mark, chain
from agent.correlate.deliveries import another_delivery, further_delivery
from agent.correlate.origin import Origin
from agent.correlate.process import Process
from agent.correlate.shift import Shift

MEMORIES_PER_TASK = 4
"""A task leaves up to four marks: two publishes, its root span, and the attempt."""

GivenUp = tuple[int, int, Process | None, int]
"""What stays of an attempt whose end may still come: the same, and what was told of it."""

Retries = tuple[int, tuple[Before, ...]]
"""When to forget them, and the retries that deliveries of one attempt asked for."""
MAX_RETRIES_KNOWN = 4

MAX_SIBLINGS = 100
"""Open attempts of one task; nobody has so many, and whoever claims to must not cost the others."""

RECORDS_FIRST_NS = 60 * NANOSECONDS
"""After a restart nobody is too old for so long: what ended meanwhile can still be read."""

Buried = tuple[int, int, Process | None]
"""What stays of a settled attempt: when to forget it, its start, and the process that told of it."""

_NOBODY = Process("", "", "", 0)

Line = list[tuple[int, int]]
"""Attempts that wait for a time (nanoseconds), by their place in the table."""


class TableState(Struct, array_like=True):
    """Everything that a table knows. `heads` are the first open attempts of each task; a place counts all of them."""

    heads: list[Attempt]
    due: Line
    soon: Line
    deferred: Line
    crowd: list[int]
    buried: dict[bytes, Buried]
    given_up: dict[bytes, GivenUp]
    withheld: dict[bytes, tuple[int]]
    retries: dict[bytes, Retries]
    followed: dict[bytes, Retries]


class AttemptTable:
    """Open attempts in the order of their opening, tombstones of settled ones, and the retries between them.

    `settle`, `patience` (for an answer from the result records), `settled_ttl` and `task_ttl` are seconds. Open
    attempts above `max_tasks` leave through `surplus`; the memory of retries is bounded by the same number, that of
    what was told by `MEMORIES_PER_TASK` times as many.
    """

    def __init__(self, *, settle: float, patience: float, settled_ttl: float, task_ttl: float, max_tasks: int) -> None:
        self._settle_ns = int(settle * NANOSECONDS)
        self._patience_ns = int(patience * NANOSECONDS)
        self._settled_ttl_ns = int(settled_ttl * NANOSECONDS)
        self._task_ttl_ns = int(task_ttl * NANOSECONDS)
        self._max = max_tasks
        self._count = 0
        self._open: dict[str, Attempt] = {}  # the first of each task's; the others hang from it
        self._due: deque[tuple[int, Attempt]] = deque()
        self._soon: deque[tuple[int, Attempt]] = deque()
        self._deferred: deque[tuple[int, Attempt]] = deque()
        # All in the order of expiry, because each has one time to live: digest -> (forget at, ...).
        # There are many tombstones: 8 bytes of digest instead of the key halve what each costs.
        self._buried: dict[bytes, Buried] = {}
        self._given_up: dict[bytes, GivenUp] = {}  # evicted and lost attempts, whose end may still come
        self._withheld: dict[bytes, tuple[int]] = {}  # roots of traces of which nothing was kept yet
        self._crowd: list[Attempt] = []
        self._retries: dict[bytes, Retries] = {}
        self._followed: dict[bytes, Retries] = {}

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Attempt]:
        for head in list(self._open.values()):
            yield from chain(head)

    def of(self, task_id: str) -> list[Attempt]:
        """Return the open attempts of a task."""
        return list(chain(self._open.get(task_id)))

    # --- finding ---------------------------------------------------------------------------------------------------

    def find(
        self,
        task_id: str,
        number: int,
        worker: str,
        process: Process,
        *,
        started_ns: int,
        never_started_ns: int,
        now_ns: int,
    ) -> Attempt | None:
        """Return the attempt that a fact belongs to, opening it if it is new; None if it is settled.

        Another delivery of the same attempt to the same worker is told by its process, by a start (0: not told) that
        differs from the known one, or by never having started at all (`never_started_ns`, its end, else 0) where the
        known one did.
        """
        first = base = self._open.get(task_id)
        while base and not (base.number == number and base.worker == worker and not base.delivery):
            base = base.sibling
        if base and not another_delivery(base.start_mark, base.process, process, started_ns, never_started_ns):
            return base
        new = Attempt(task_id, number, worker, process, now_ns)
        mark = started_ns or never_started_ns
        if mark and first and (further := further_delivery(first, new, mark)):
            return further
        if base is None:
            known = self._known(new)
            if known is None:
                return self._add(first, new)
            if not another_delivery(known[1], known[2], process, started_ns, never_started_ns):
                return (
                    self._add(first, new) if new.span_id in self._given_up and new.span_id not in self._buried else None
                )
        if not mark:
            return None  # received, and nothing that would name it yet: its later signals repeat that
        new.delivery = str(mark)
        return None if new.span_id in self._buried else self._add(first, new)

    def remembers(self, task_id: str, number: int, worker: str) -> bool:
        """Whether a first delivery of an attempt to a worker was told, or given up."""
        return self._known(Attempt(task_id, number, worker, _NOBODY, 0)) is not None

    def _known(self, attempt: Attempt) -> "Buried | GivenUp | None":
        """Return what is remembered of an attempt that is not open."""
        span_id = attempt.span_id
        return self._buried.get(span_id) or self._given_up.get(span_id)

    def _add(self, first: Attempt | None, attempt: Attempt) -> Attempt:
        if first is None:
            self._open[attempt.task_id] = attempt
        else:
            attempt.sibling, first.sibling = first.sibling, attempt
            if sum(1 for _ in chain(first)) > MAX_SIBLINGS:
                self._crowd.append(first)
        self._count += 1
        if self._given_up and (given_up := self._given_up.pop(attempt.span_id, None)):
            attempt.marks |= given_up[3]
        if attempt.number:
            self.recall(attempt)
        return attempt

    def latest(self, task_id: str, worker: str) -> int | None:
        """Return the number of the latest open attempt of a task on a worker, for facts that do not tell it."""
        return max((a.number for a in chain(self._open.get(task_id)) if a.worker == worker), default=None)

    # --- time ------------------------------------------------------------------------------------------------------

    def ending(self, attempt: Attempt, now_ns: int) -> None:
        """Note the first fact that says an attempt is over: it will be due."""
        if not attempt.marks & Mark.ENDING:
            attempt.marks |= Mark.ENDING
            self._due.append((now_ns + self._settle_ns, attempt))

    def over(self, attempt: Attempt, now_ns: int) -> None:
        """Note that nothing more will be heard of an attempt: it is due at once."""
        self._soon.append((now_ns, attempt))

    def defer(self, attempt: Attempt, now_ns: int) -> None:
        """Let an attempt wait for an answer; it is due again when patience is over."""
        self._deferred.append((now_ns + self._patience_ns, attempt))

    def due(self, now_ns: int) -> Iterator[Attempt]:
        """Yield attempts whose time for stragglers is over; settle or defer each before asking for the next."""
        for line in (self._due, self._soon, self._deferred):
            while line and (line[0][0] <= now_ns or line[0][1].marks & Mark.SETTLED):
                attempt = line.popleft()[1]
                if not attempt.marks & Mark.SETTLED:
                    yield attempt

    def surplus(self, now_ns: int) -> Iterator[tuple[Attempt, str]]:
        """Yield the open attempts that are too many or too old, with the reason; remove each before the next."""
        while self._crowd:
            if not (crowded := self._crowd.pop()).marks & Mark.SETTLED:
                yield crowded, "max_siblings"
        while self._open:
            oldest = next(iter(self._open.values()))
            if self._count > self._max:
                yield oldest, "max_tasks"
            elif now_ns - oldest.opened_ns >= self._task_ttl_ns:
                yield oldest, "task_ttl"
            else:
                return

    # --- leaving ---------------------------------------------------------------------------------------------------

    def evict(self, attempt: Attempt, now_ns: int) -> None:
        """Drop an open attempt; should its end still come, what was told of its start is not told again."""
        self._remove(attempt)
        self._give_up(attempt, attempt.span_id, now_ns)

    def _give_up(self, attempt: Attempt, span_id: bytes, now_ns: int) -> None:
        expires_ns, told = now_ns + self._task_ttl_ns, attempt.marks & TOLD
        self._given_up[span_id] = (expires_ns, attempt.start_mark, _of_boot(attempt.process), told)

    def bury(self, attempt: Attempt, span_id: bytes, now_ns: int, *, may_return: bool) -> None:
        """Close an attempt and leave a tombstone, so that what comes late is recognised.

        One that `may_return` was given up, not heard to end: should it end after all, its start is not told again.
        """
        if may_return:
            self._give_up(attempt, span_id, now_ns)
        self._remove(attempt)
        self._buried[span_id] = (now_ns + self._settled_ttl_ns, attempt.start_mark, _of_boot(attempt.process))
        if attempt.number and (retry := self._retries.pop(_retry(attempt.task_id, attempt.number - 1), None)):
            # Its work is done, but for a second delivery of the attempt, which is about to come or never will.
            self._followed[_retry(attempt.task_id, attempt.number - 1)] = (now_ns + self._settled_ttl_ns, retry[1])

    def told_elsewhere(self, attempt: Attempt, now_ns: int) -> None:
        """Close an attempt that another agent told, and the root of its trace with it."""
        self.bury(attempt, attempt.span_id, now_ns, may_return=False)
        if not (attempt.number or attempt.delivery):
            self.once(("send", attempt.task_id), now_ns)
            for other in self.of(attempt.task_id):
                other.marks |= Mark.ROOTED

    def is_rooted(self, task_id: str) -> bool:
        """Return whether the root of a trace was told a moment ago."""
        return ids.span_id("send", task_id) in self._buried

    def _remove(self, attempt: Attempt) -> None:
        attempt.marks |= Mark.SETTLED
        self._count -= 1
        head: Attempt | None = self._open[attempt.task_id]
        if head is attempt:
            if attempt.sibling is None:
                del self._open[attempt.task_id]
            else:
                self._open[attempt.task_id] = attempt.sibling
            return
        while head and head.sibling is not attempt:
            head = head.sibling
        if head:
            head.sibling = attempt.sibling

    # --- memory ----------------------------------------------------------------------------------------------------

    def once(self, key: tuple[str, ...], now_ns: int) -> bool:
        """Return whether `key` is new; it is remembered as long as a settled attempt is."""
        mark = ids.span_id(*key)
        if mark in self._buried:
            return False
        self._buried[mark] = (now_ns + self._settled_ttl_ns, 0, None)
        return True

    def withhold(self, task_id: str, now_ns: int) -> None:
        """Note that the root of a trace was not told, because nothing of it was kept."""
        self._withheld[ids.span_id("send", task_id)] = (now_ns + self._task_ttl_ns,)

    def withheld(self, task_id: str) -> bool:
        """Return whether the root of a trace is still to be told."""
        return bool(self._withheld) and ids.span_id("send", task_id) in self._withheld

    def release(self, task_id: str) -> None:
        """Note that the root of a trace was told."""
        self._withheld.pop(ids.span_id("send", task_id), None)

    def knows_retry(self, task_id: str, number: int) -> bool:
        """Return whether it was heard which delivery of an attempt ended in a retry."""
        mark = _retry(task_id, number)
        return mark in self._retries or mark in self._followed

    def retried(self, attempt: Attempt, next_retry_ns: int, now_ns: int, *, read: bool = False) -> None:
        """Remember that an attempt ended in a retry, for the one that follows; 0 where its time was not told."""
        mark, span_id = _retry(attempt.task_id, attempt.number), attempt.span_id
        _, known = self._retries.get(mark) or self._followed.get(mark) or (0, ())
        if next_retry_ns or not any(before.span_id == span_id for before in known):
            others = tuple(before for before in known if before.span_id != span_id)[-MAX_RETRIES_KNOWN + 1 :]
            self._retries[mark] = (now_ns + self._task_ttl_ns, (*others, Before(span_id, next_retry_ns, read)))

    def recall(self, attempt: Attempt) -> bool:
        """Tell an attempt about the one before it, if that was heard to retry; return whether it knows everything."""
        mark = _retry(attempt.task_id, attempt.number - 1)
        if remembered := self._retries.get(mark) or self._followed.get(mark):
            attempt.before = _which(remembered[1], attempt.origin)
        return attempt.before is not None and attempt.before.due_ns > 0

    # --- from one process to the next ------------------------------------------------------------------------------

    def state(self) -> TableState:
        """Return what is known; it shares everything with the table, so it must be encoded before that goes on."""
        lines = (self._due, self._soon, self._deferred)
        waiting = {id(attempt) for line in lines for _, attempt in line} | {id(attempt) for attempt in self._crowd}
        places = {id(attempt): place for place, attempt in enumerate(self) if id(attempt) in waiting}
        due, soon, deferred = (
            [(time_ns, places[id(attempt)]) for time_ns, attempt in line if id(attempt) in places] for line in lines
        )
        return TableState(
            heads=list(self._open.values()),
            due=due,
            soon=soon,
            deferred=deferred,
            crowd=[places[id(attempt)] for attempt in self._crowd if id(attempt) in places],
            buried=self._buried,
            given_up=self._given_up,
            withheld=self._withheld,
            retries=self._retries,
            followed=self._followed,
        )

    def restore(self, state: TableState, shift: Shift, now_ns: int) -> None:
        """Go on from a state; raises `IndexError` for places that do not exist.

        Nobody is too old before the result records can be asked, which also know of what ended meanwhile.
        """
        self._open = {head.task_id: head for head in state.heads}
        attempts = list(self)
        self._count = len(attempts)
        oldest_ns = min(now_ns, now_ns - self._task_ttl_ns + RECORDS_FIRST_NS)
        for attempt in attempts:
            attempt.opened_ns = max(shift(attempt.opened_ns), oldest_ns) if shift.away else attempt.opened_ns
        lines = ((self._due, state.due), (self._soon, state.soon), (self._deferred, state.deferred))
        for line, kept in lines:
            line.extend((shift(time_ns), attempts[place]) for time_ns, place in kept)
        self._crowd = [attempts[place] for place in state.crowd]
        self._buried = _shifted(state.buried, shift)
        self._given_up = _shifted(state.given_up, shift)
        self._withheld = _shifted(state.withheld, shift)
        self._retries = _shifted(state.retries, shift)
        self._followed = _shifted(state.followed, shift)

    def forget(self, now_ns: int) -> None:
        """Drop expired tombstones and retries."""
        _expire(self._buried, now_ns, MEMORIES_PER_TASK * self._max)
        _expire(self._given_up, now_ns, self._max)
        _expire(self._withheld, now_ns, self._max)
        _expire(self._retries, now_ns, self._max)
        _expire(self._followed, now_ns, self._max)


def _of_boot(process: Process) -> Process | None:
    return process if process.boot else None


def _which(retries: tuple[Before, ...], origin: Origin | None) -> Before:
    """Return the retry that an attempt follows: copies of the one before it may each have asked for one.

    It is the one whose due time the attempt's envelope has, else the first that was due.
    """
    if origin and (exact := next((each for each in retries if each.due_ns == origin.not_before_ns), None)):
        return exact
    return min(retries, key=lambda each: (not each.due_ns, each.due_ns))


def _retry(task_id: str, number: int) -> bytes:
    return ids.span_id("retry", task_id, str(number))


def _shifted(memory: dict[bytes, Any], shift: Shift) -> dict[bytes, Any]:
    """Move the times of expiry, where a clock was set back."""
    if not shift.back_ns:
        return memory
    return {key: (shift(value[0]), *value[1:]) for key, value in memory.items()}


def _expire(memory: dict[bytes, Any], now_ns: int, most: int) -> None:
    """Delete from the front what expired (its first value) or is too much: who came first expires first."""
    while memory:
        key = next(iter(memory))
        if memory[key][0] > now_ns and len(memory) <= most:
            return
        del memory[key]
