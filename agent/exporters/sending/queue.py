"""What sealed batches wait in: memory alone, or a file on disk as well (`disk_queue.py`). One per exporter and kind.

Every item is counted in `items` from the call of `put` until `take` has returned it, whatever the disk does meanwhile.
"""

from collections import deque
from dataclasses import dataclass
from typing import Protocol

from agent.core.pressure import Priority
from agent.exporters.sending.sealed import Sealed
from agent.storage.rows import End


@dataclass(frozen=True, slots=True, eq=False)
class Taken:
    """A batch on its way; `identity` is its row on the disk, 0 where it is in memory alone."""

    sealed: Sealed
    identity: int = 0


class Keeper(Protocol):
    """Whose queue it is."""

    def restored(self, items: int) -> None:
        """Take note of items that an earlier process left on the disk."""

    def dropped(self, reason: str, items: int, detail: str) -> None:
        """Take note of items that will never be sent."""

    def ready(self) -> None:
        """Take note that there may be something to take."""


class BatchQueue(Protocol):
    """Batches, oldest first."""

    @property
    def keeps(self) -> bool:
        """Whether what waits survives the end of the process."""

    @property
    def items(self) -> int:
        """Items that wait."""

    @property
    def memory(self) -> "MemoryQueue":
        """The batches that are in memory alone."""

    @property
    def spillable_bytes(self) -> int:
        """Bytes of the batches that are in memory and on a disk."""

    @property
    def oldest_ns(self) -> int:
        """When the oldest batch that waits was begun, or before (Unix nanoseconds); 0 if none waits."""

    async def open(self) -> None:
        """Find what an earlier process left."""

    async def put(self, sealed: Sealed) -> None:
        """Take a batch in; when this returns, it is as safe as it gets. A caller that is cancelled loses nothing."""

    async def take(self) -> Taken | None:
        """Hand out the oldest batch; None if there is none."""

    async def done(self, taken: Taken, end: End) -> None:
        """Forget a batch that was taken, because this became of it."""

    async def put_back(self, taken: Taken) -> None:
        """Take a batch in again whose way was cut short."""

    def shed(self, priority: Priority = Priority.SIGNALS) -> Sealed | None:
        """Give up the oldest batch of at most this priority that is in memory alone; None if there is none."""

    def spill(self) -> None:
        """Forget what is on a disk, too, and let the disk have the rest."""

    async def close(self) -> int:
        """End; return the items that end with it."""


class MemoryQueue:
    """Batches in memory."""

    keeps = False
    spillable_bytes = 0

    def __init__(self) -> None:
        self._line: deque[Sealed] = deque()
        self.items = 0
        self.bytes = 0

    @property
    def memory(self) -> "MemoryQueue":
        """All of it."""
        return self

    @property
    def batches(self) -> int:
        """Batches that wait."""
        return len(self._line)

    @property
    def oldest_ns(self) -> int:
        """When the oldest batch was begun."""
        line = tuple(self._line)  # asked for in another thread, too
        return line[0].begun_ns if line else 0

    async def open(self) -> None:
        """Do nothing: nobody left anything."""

    async def put(self, sealed: Sealed) -> None:
        """Take a batch in."""
        self.add(sealed)

    def add(self, sealed: Sealed) -> None:
        """Take a batch in."""
        self._line.append(sealed)
        self.items += sealed.count
        self.bytes += len(sealed.body)

    async def take(self) -> Taken | None:
        """Hand out the oldest batch."""
        sealed = self.shed()
        return Taken(sealed) if sealed else None

    async def done(self, taken: Taken, end: End) -> None:
        """Do nothing: it was forgotten when it was taken."""

    async def put_back(self, taken: Taken) -> None:
        """Take a batch in again."""
        self.add(taken.sealed)

    def shed(self, priority: Priority = Priority.SIGNALS) -> Sealed | None:
        """Give up the oldest batch of at most this priority."""
        for index, sealed in enumerate(self._line):
            if sealed.priority <= priority:
                del self._line[index]
                self.items -= sealed.count
                self.bytes -= len(sealed.body)
                return sealed
        return None

    def spill(self) -> None:
        """Do nothing: there is no disk."""

    async def close(self) -> int:
        """End; everything ends with it."""
        items = self.items
        while self.shed():
            pass
        return items
