"""What waits to be handed on: encoded items in the order they were made, each with its priority."""

from collections.abc import Iterator
from typing import NamedTuple

from agent.core.pressure import Priority


class Told(NamedTuple):
    """Items of one priority; `since_ns` is when the first fact that any of their kind tells of happened."""

    priority: Priority
    items: list[bytes]
    since_ns: int


class Outbox:
    """Items of one kind."""

    __slots__ = ("_items", "_priorities", "_since_ns")

    def __init__(self) -> None:
        self._items: list[bytes] = []
        self._priorities = bytearray()
        self._since_ns = 0

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._items)

    def add(self, item: bytes, since_ns: int, priority: Priority) -> None:
        """Append an item that tells of something at `since_ns` (Unix nanoseconds)."""
        if not self._since_ns or since_ns < self._since_ns:
            self._since_ns = since_ns
        self._items.append(item)
        self._priorities.append(priority)

    def take(self) -> list[Told]:
        """Return everything by its priority, and begin anew."""
        items, priorities, since_ns = self._items, self._priorities, self._since_ns
        self._items, self._priorities, self._since_ns = [], bytearray(), 0
        present = sorted(set(priorities))
        if len(present) == 1:
            return [Told(Priority(present[0]), items, since_ns)]
        return [
            Told(Priority(one), [item for item, its in zip(items, priorities, strict=True) if its == one], since_ns)
            for one in present
        ]
