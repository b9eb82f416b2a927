"""Closing batches by items and bytes: pure. Age is the sender's timer, because time is."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from agent.otlp.batch import Batch
from agent.otlp.request import ITEM_OVERHEAD
from agent.otlp.resource import Resource

AGE_GRAIN_NS = 10_000_000
"""Ages are told to the 10 ms, and rather as older: so that a batch has few of them, however mixed its signals are."""

Ages = tuple[tuple[int, int], ...]
"""When something happened (Unix nanoseconds), and how many items tell of it."""


@dataclass(slots=True)
class Pending:
    """Items that will travel in one request, grouped by resource; `begun_ns` is when the first of them came.

    `ages` counts items by when the signals behind them happened, in units of `AGE_GRAIN_NS`.
    """

    parts: list[tuple[Resource, list[bytes]]] = field(default_factory=list)
    count: int = 0
    size: int = 0
    begun_ns: int = 0
    ages: dict[int, int] = field(default_factory=dict)

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


class Batcher:
    """Collects items into requests of at most `max_items` and `max_bytes`; one item alone may exceed either."""

    def __init__(self, *, max_items: int, max_bytes: int) -> None:
        self._max_items = max_items
        self._max_bytes = max_bytes
        self.pending = Pending()

    def add(self, batch: Batch, now_ns: int = 0) -> Iterator[Pending]:
        """Take a batch at `now_ns` (Unix nanoseconds); yield every request that it filled."""
        # A metric is one item with many data points: they are counted evenly, the last item takes the rest.
        per_item, rest = divmod(batch.count, len(batch.items)) if batch.items else (0, 0)
        before = self.pending.count
        if not before:
            self.pending.begun_ns = now_ns
        for index, item in enumerate(batch.items):
            count = per_item + (rest if index == len(batch.items) - 1 else 0)
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
        pending, self.pending = self.pending, Pending()
        return pending
