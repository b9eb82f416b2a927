"""The table of attempts: who is open, who is due, who was settled a moment ago. Pure; time is an argument."""

from collections import deque
from collections.abc import Iterator
from typing import TypeVar

from agent.core.clock import NANOSECONDS
from agent.correlate import ids
from agent.correlate.attempt import Attempt, Key, Retry, process_id

K = TypeVar("K")
V = TypeVar("V")

MEMORIES_PER_TASK = 4
"""A task leaves up to four marks: two publishes, its root span, and the attempt."""

MAX_PROBED = 64
"""Attempt numbers tried for a fact that does not name its own."""


class AttemptTable:
    """Open attempts in the order of their opening, tombstones of settled ones, and the retries between them.

    `settle`, `settled_ttl` and `task_ttl` are seconds. Open attempts above `max_tasks` leave through `surplus`; the
    memory of retries is bounded by the same number, that of what was told by `MEMORIES_PER_TASK` times as many.
    """

    def __init__(self, *, settle: float, settled_ttl: float, task_ttl: float, max_tasks: int) -> None:
        self._settle_ns = int(settle * NANOSECONDS)
        self._settled_ttl_ns = int(settled_ttl * NANOSECONDS)
        self._task_ttl_ns = int(task_ttl * NANOSECONDS)
        self._max = max_tasks
        self._open: dict[Key, Attempt] = {}
        self._due: deque[tuple[int, Attempt]] = deque()
        # All in the order of expiry, because each has one time to live: key -> (forget at, ...).
        # There are many tombstones: 8 bytes of digest instead of the key halve what each costs.
        self._buried: dict[bytes, tuple[int, int]] = {}
        self._evicted: dict[Key, tuple[int, int]] = {}
        self._retries: dict[tuple[str, int], tuple[int, Retry]] = {}

    def __len__(self) -> int:
        return len(self._open)

    def __iter__(self) -> Iterator[Attempt]:
        return iter(list(self._open.values()))

    def find(self, key: Key, started_ns: int, *, starts: bool, namespace: str, now_ns: int) -> Attempt | None:
        """Return the attempt that a fact belongs to, opening it if it is new; None if it is settled.

        A start (0: not told) that differs from the known one is another delivery of the same attempt to the same
        worker. But while the attempt is open, a second prerun (`starts`) is taken for a repeat, because Stem's own
        SignalMiddleware sends one; another delivery then shows by the start that its later signals repeat.
        """
        number = int(key[1])
        attempt = self._open.get(key)
        known_ns = attempt.started_ns if attempt else self._buried.get(process_id(key), (0, 0))[1]
        if started_ns and known_ns and started_ns != known_ns and not (attempt and starts):
            key = (*key, str(started_ns))
            attempt = self._open.get(key)
        if attempt is None and process_id(key) not in self._buried:
            attempt = self._open[key] = Attempt(key, number, namespace, now_ns)
            attempt.told = self._evicted.pop(key, (0, 0))[1]
            if number:
                self.recall(attempt)
        return attempt

    def probe(self, task_id: str, worker: str) -> int | None:
        """Return the number of the latest open attempt of a task on a worker, for facts that do not tell it."""
        numbers = (n for n in reversed(range(MAX_PROBED)) if (task_id, str(n), worker) in self._open)
        return next(numbers, None)

    def ending(self, attempt: Attempt, now_ns: int) -> None:
        """Note the first fact that says an attempt is over: it will be due."""
        if not attempt.ending:
            attempt.ending = True
            self._due.append((now_ns + self._settle_ns, attempt))

    def due(self, now_ns: int) -> Iterator[Attempt]:
        """Yield attempts whose time for stragglers is over; settle each before asking for the next."""
        while self._due and (self._due[0][0] <= now_ns or self._due[0][1].settled):
            attempt = self._due.popleft()[1]
            if not attempt.settled:
                yield attempt

    def surplus(self, now_ns: int) -> Iterator[tuple[Attempt, str]]:
        """Yield the open attempts that are too many or too old, with the reason; remove each before the next."""
        while self._open:
            oldest = next(iter(self._open.values()))
            if len(self._open) > self._max:
                yield oldest, "max_tasks"
            elif now_ns - oldest.opened_ns >= self._task_ttl_ns:
                yield oldest, "task_ttl"
            else:
                return

    def evict(self, attempt: Attempt, now_ns: int) -> None:
        """Drop an open attempt; should its end still come, what was told of its start is not told again."""
        self._remove(attempt)
        self._evicted[attempt.key] = (now_ns + self._task_ttl_ns, attempt.told)

    def _remove(self, attempt: Attempt) -> None:
        attempt.settled = True
        del self._open[attempt.key]

    def bury(self, attempt: Attempt, now_ns: int) -> None:
        """Close an attempt and leave a tombstone, so that what comes late is recognised."""
        self._remove(attempt)
        self._buried[attempt.span_id] = (now_ns + self._settled_ttl_ns, attempt.started_ns)
        if attempt.number:
            self._retries.pop((attempt.task_id, attempt.number - 1), None)

    def once(self, key: Key, now_ns: int) -> bool:
        """Return whether `key` is new; it is remembered as long as a settled attempt is."""
        mark = ids.span_id(*key)
        if mark in self._buried:
            return False
        self._buried[mark] = (now_ns + self._settled_ttl_ns, 0)
        return True

    def retried(self, attempt: Attempt, next_retry_ns: int, now_ns: int) -> None:
        """Remember that an attempt ended in a retry, for the one that follows; 0 where its time was not told."""
        if not next_retry_ns and (attempt.task_id, attempt.number) in self._retries:
            return
        self._retries[attempt.task_id, attempt.number] = (
            now_ns + self._task_ttl_ns,
            Retry(attempt.worker, next_retry_ns),
        )

    def recall(self, attempt: Attempt) -> bool:
        """Tell an attempt about the one before it, if that was heard to retry; return whether it knows."""
        if attempt.previous is None:
            remembered = self._retries.get((attempt.task_id, attempt.number - 1))
            attempt.previous = remembered[1] if remembered else None
        return attempt.previous is not None

    def forget(self, now_ns: int) -> None:
        """Drop expired tombstones and retries."""
        _expire(self._buried, now_ns, MEMORIES_PER_TASK * self._max)
        _expire(self._evicted, now_ns, self._max)
        _expire(self._retries, now_ns, self._max)


def _expire(memory: dict[K, tuple[int, V]], now_ns: int, most: int) -> None:
    """Delete from the front what expired or is too much; the order of insertion is the order of expiry."""
    while memory:
        key = next(iter(memory))
        if memory[key][0] > now_ns and len(memory) <= most:
            return
        del memory[key]
