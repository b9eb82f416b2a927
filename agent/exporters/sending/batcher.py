"""Closing batches by items, bytes and priority: pure. Age is the sender's timer, because time is."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import repeat

from agent.core.pressure import Priority
from agent.otlp.batch import Batch
from agent.otlp.request import ITEM_OVERHEAD
from agent.otlp.resource import Resource

AGE_GRAIN_NS = 10_000_000
"""Ages are told to the 10 ms, and rather as older: so that a batch has few of them, however mixed its signals are."""

Ages = tuple[tuple[int, int], ...]
"""When something happened (Unix nanoseconds), and how many items tell of it."""


@dataclass(slots=True, eq=False)
class Pending:
    """Items that will travel in one request, grouped by resource; `begun_ns` is when the first of them came.

    `ages` counts items by when the signals behind them happened, in units of `AGE_GRAIN_NS`. `priority` is the highest
    of its items.
    """

    parts: list[tuple[Resource, list[bytes]]] = field(default_factory=list)
    count: int = 0
    size: int = 0
    begun_ns: int = 0
    ages: dict[int, int] = field(default_factory=dict)
    priority: Priority = Priority.ERRORS

    def age(self, since_ns: int, count: int) -> None:
        """Note how old the signals behind `count` items are; 0 is unknown."""
        if since_ns and count:
            grain = since_ns // AGE_GRAIN_NS
            self.ages[grain] = self.ages.get(grain, 0) + count

    def add(self, resource: Resource, item: bytes) -> None:
        """Append one item."""
        if not self.parts or self.parts[-1][0] is not resource:
            self.parts.append((resource, []))
        self.parts[-1][1].append(item)

    def absorb(self, other: "Pending") -> None:
        """Take over the items of another one, which is of no use afterwards."""
        for resource, items in other.parts:
            mine = next((part for known, part in self.parts if known is resource), None)
            if mine is None:
                self.parts.append((resource, items))
            else:
                mine += items
        self.count += other.count
        self.size += other.size
        self.begun_ns = min(self.begun_ns, other.begun_ns)
        for grain, count in other.ages.items():
            self.ages[grain] = self.ages.get(grain, 0) + count
        self.priority = max(self.priority, other.priority)


def next_beat(now: float, interval: float) -> float:
    """Return the next multiple of an interval (seconds).

    What several senders collect goes out together: so it takes less time until everything that was told at once has
    arrived, which is what notes for another agent wait for.
    """
    return (now // interval + 1) * interval


class Batcher:
    """Collects items into requests of at most `max_items` and `max_bytes`; one item alone may exceed either."""

    def __init__(self, *, max_items: int, max_bytes: int, priority: Priority = Priority.ERRORS) -> None:
        self._max_items = max_items
        self._max_bytes = max_bytes
        self._priority = priority
        self.pending = Pending(priority=priority)

    def add(self, batch: Batch, now_ns: int = 0) -> Iterator[Pending]:
        """Take a batch at `now_ns` (Unix nanoseconds); yield every request that it filled."""
        before = self.pending.count
        if not before:
            self.pending.begun_ns = now_ns
        for item, count in zip(batch.items, batch.counts or repeat(1, len(batch.items)), strict=True):
            size = len(item) + ITEM_OVERHEAD
            pending = self.pending
            if pending.count and (pending.count + count > self._max_items or pending.size + size > self._max_bytes):
                pending.age(batch.since_ns, pending.count - before)
                yield self.flush()
                pending, before = self.pending, 0
                pending.begun_ns = now_ns
            pending.add(batch.resource, item)
            pending.count += count
            pending.size += size
        self.pending.age(batch.since_ns, self.pending.count - before)
        if self.pending.count >= self._max_items or self.pending.size >= self._max_bytes:
            yield self.flush()

    def flush(self) -> Pending:
        """Return what is pending and begin anew."""
        pending, self.pending = self.pending, Pending(priority=self._priority)
        return pending


class Intake:
    """A batcher for each priority: what has to go when memory is short must not take along what is worth more."""

    def __init__(self, *, max_items: int, max_bytes: int) -> None:
        self._max_items = max_items
        self._max_bytes = max_bytes
        self._batchers: dict[Priority, Batcher] = {}

    @property
    def count(self) -> int:
        """Items that wait for more of them."""
        return sum(batcher.pending.count for batcher in self._batchers.values())

    def add(self, batch: Batch, now_ns: int) -> Iterator[Pending]:
        """Take a batch at `now_ns` (Unix nanoseconds); yield every request that it filled."""
        batcher = self._batchers.get(batch.priority)
        if batcher is None:
            batcher = Batcher(max_items=self._max_items, max_bytes=self._max_bytes, priority=batch.priority)
            self._batchers[batch.priority] = batcher
        return batcher.add(batch, now_ns)

    def flush(self, *, together: bool) -> list[Pending]:
        """Return what is pending and begin anew; `together`, in as few requests as the limits allow."""
        flushed: list[Pending] = []
        for batcher in self._batchers.values():
            if not batcher.pending.count:
                continue
            pending = batcher.flush()
            last = flushed[-1] if flushed and together else None
            if last and last.count + pending.count <= self._max_items and last.size + pending.size <= self._max_bytes:
                last.absorb(pending)
            else:
                flushed.append(pending)
        return flushed
