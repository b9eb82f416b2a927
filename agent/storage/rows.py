"""What is kept of a batch, what it costs, and whether it is still what was written. Pure."""

import zlib
from dataclasses import dataclass
from typing import NamedTuple

PAGE_SIZE = 4096
_OVERFLOW = PAGE_SIZE - 4  # what a page holds of a large value: the rest is the number of the next one


class QueueName(NamedTuple):
    """Whose batches: an exporter's id in the YAML, and a kind of telemetry."""

    exporter: str
    kind: str


@dataclass(frozen=True, slots=True)
class Row:
    """A sealed batch: `count` items, `size` bytes before `encoding` (an HTTP content coding) made `body` of them.

    `created_ns` is when it was sealed and `since_ns` the time of the oldest signal that it tells of (0: unknown), both
    Unix nanoseconds.
    """

    batch_id: str
    count: int
    size: int
    encoding: str
    created_ns: int
    since_ns: int
    body: bytes

    @property
    def cost(self) -> int:
        """Bytes that it takes in the file at the most: pages for the body, and one for all that is around it."""
        return (-(-len(self.body) // _OVERFLOW) + 1) * PAGE_SIZE

    @property
    def crc(self) -> int:
        """Checksum of everything that it says."""
        head = f"{self.batch_id} {self.count} {self.size} {self.encoding} {self.created_ns} {self.since_ns}"
        return zlib.crc32(self.body, zlib.crc32(head.encode()))


class Stock(NamedTuple):
    """What a queue has on the disk; `oldest_ns` is when the oldest batch of it was sealed (Unix nanoseconds)."""

    batches: int = 0
    items: int = 0
    cost: int = 0
    oldest_ns: int = 0


class Stored(NamedTuple):
    """A row as it was read; `row` is None if it is not what was written, and `raw` the body as it is now."""

    id: int
    items: int
    cost: int
    row: Row | None
    raw: bytes = b""


class Gone(NamedTuple):
    """A batch that had to go unsent, and why: `storage_full` or `too_old`."""

    queue: QueueName
    id: int
    items: int
    cost: int
    reason: str


class End(NamedTuple):
    """What became of a batch, in items."""

    delivered: int = 0
    rejected: int = 0
    dropped: int = 0
    reason: str = ""


NOTHING = End()


class Books(NamedTuple):
    """Items of a queue since the file was made: `accepted = delivered + rejected + dropped + held`, after each commit.

    `accepted` counts what was sealed and stored; `held` what is stored now.
    """

    accepted: int
    delivered: int
    rejected: int
    dropped: dict[str, int]
    held: int

    @property
    def exact(self) -> bool:
        """Whether every item is accounted for."""
        return self.accepted == self.delivered + self.rejected + sum(self.dropped.values()) + self.held
