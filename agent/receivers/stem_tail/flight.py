"""One task under way: its deliveries, and what is told of them. Pure shapes, which notes for others have, too."""

from datetime import datetime
from typing import NamedTuple

from msgspec import Struct

from agent.stem.catalogue import TaskState
from agent.stem.envelope import Envelope
from agent.stem.questions.deliveries import Place
from agent.stem.status import TaskStatus

LEASE_MS, MOST_LEASE_MS = 30_000, 600_000
_MS_NS = 1_000_000

Mark = tuple[str, int | None, datetime | None, datetime | None, str | None]
"""By what a record is told from the one before."""


def lease_ns(envelope: Envelope) -> int:
    """Return for how long a worker holds a task until it renews the lease, or another may take it over."""
    return min(envelope.visibility_timeout or LEASE_MS, MOST_LEASE_MS) * _MS_NS


class Owed(Struct, array_like=True):
    """A delivery that the record has not answered yet; `done`: it was acknowledged, so an answer was written."""

    attempt: int
    ready_ms: int
    envelope: Envelope
    place: Place
    done: bool = False


class Open(Struct, array_like=True):
    """A delivery that began and is not known to have ended; `told`: an agent before this one told that it began."""

    attempt: int
    worker: str | None
    started_at: datetime | None
    envelope: Envelope
    told: bool = False


class Ended(Struct, array_like=True):
    """A delivery that was told to have ended by `over_ns`.

    `retried`: to begin again at `next_ns`, 0 where no record told when.
    """

    attempt: int
    worker: str | None
    started_at: datetime | None
    over_ns: int
    retried: bool = False
    next_ns: int = 0


class Flight(Struct, array_like=True):
    """A task under way; `changed_ns` is when news of it was last seen, `due_ns` when its record is to be read.

    `returns` is what was sent back, and will be delivered again: an attempt that waits since it was due first. `ended`
    are deliveries told of: whoever goes on from here is to know them, too. `over`: its record names a final state, but
    until `lingers_ns` the copy of a lease may still be delivered.
    """

    owed: list[Owed]
    open: list[Open]
    mark: Mark | None
    changed_ns: int
    due_ns: int
    returns: Envelope | None = None
    over: bool = False
    ended: list[Ended] = []
    lingers_ns: int = 0

    @property
    def awaited(self) -> bool:
        """Whether anything is still to be told of it."""
        return bool(self.owed or self.open or self.returns or (self.ended and self.ended[-1].retried and not self.over))

    @property
    def is_unended(self) -> bool:
        """Whether an end is still to come; after that of its task another delivery may, of which nobody knows."""
        return bool(self.open) or (self.awaited and not self.over)

    @property
    def says_nothing(self) -> bool:
        """Whether there is no record, or one that says `queued`, which a publisher may write late."""
        return not self.open and (self.mark is None or self.mark[0] == TaskState.QUEUED)


class Told(NamedTuple):
    """A record and the envelope of the delivery that it is about; `start_told` as in `Open`."""

    record: TaskStatus
    envelope: Envelope
    start_told: bool = False


class Unseen(NamedTuple):
    """A delivery that is over by `over_ns`, and of which no record will tell the end any more.

    `retried`: it asked for the attempt that took its place. Without a start nothing was seen but its entry.
    """

    envelope: Envelope
    attempt: int
    worker: str | None
    started_at: datetime | None
    over_ns: int
    retried: bool
    start_told: bool


News = Told | Unseen
