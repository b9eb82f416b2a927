"""One priority stream of a queue, as its consumer group stands on it. Pure.

A depth is the group's `lag` (`XINFO GROUPS`, Redis 7 and Valkey), which is null while entries that somebody deleted lie
ahead, and for a group that began in the middle. Redis 7.0 counts on as if deleted or trimmed entries were still to be
read, and so its lag is too high for ever; Valkey counts anew with the next delivery. What tells all of these is that
nothing follows the entry that was delivered last: then the depth is 0, and the lag is what it is too high by.
"""

from typing import Any

from msgspec import UNSET, Struct, UnsetType

from agent.stem.questions.query import Command, Reply, ServerError, entry_id, pairs, shaped, text

_START = "0-0"


class GroupState(Struct, frozen=True):
    """A consumer group of one stream; `lag` and `read` are None where the server does not know."""

    name: str
    pending: int
    last_delivered: str
    lag: int | None
    read: int | None

    @property
    def added(self) -> int | None:
        """How many entries its stream was given since it exists."""
        return None if self.read is None or self.lag is None else self.read + self.lag

    @property
    def deleted_ahead(self) -> bool:
        """Whether the server does not know the lag, and may think that it does once this has passed.

        Who did not count either what was read will count anew, and rightly.
        """
        return self.lag is None and self.read is not None and self.last_delivered != _START


class _Group(Struct, frozen=True, rename="kebab"):
    name: bytes
    pending: int
    last_delivered_id: bytes
    entries_read: int | None = None
    lag: int | UnsetType | None = UNSET


def read_groups(reply: Reply) -> list[GroupState] | None:
    """Return the groups that `XINFO GROUPS` tells of, None for a stream that does not exist.

    Raises `QueryRefusedError` for every other error.
    """
    if isinstance(reply, ServerError) and "no such key" in reply:
        return None
    return [_state(shaped(dict(pairs(told)), _Group)) for told in shaped(reply, list[list[Any]])]


def _state(told: _Group) -> GroupState:
    last, read = text(told.last_delivered_id), told.entries_read
    entry_id(last)
    if read is None and last == _START and told.lag is not UNSET:
        read = 0  # null before the first, which is none
    lag = None if told.lag is UNSET else told.lag
    return GroupState(text(told.name), told.pending, last, lag, read)


class StreamWatch:
    """Reads one stream of a queue, by the queue's `group`; `other` is that of the queue whose stream it may also be.

    As of the last reading: `exists` says whether there is such a stream and the queue has a part in it, `used` whether
    the queue ever had anything in it, `other_met` whether the other queue has a part in it.
    """

    def __init__(self, key: str, group: str, other: str | None) -> None:
        self.key = key
        self.exists = False
        self.used = False
        self.other_met = False
        self._names = group, other
        self._group: GroupState | None = None
        self.next_ms: int | None = None
        """When the entry that is to be delivered next was added (Unix milliseconds by Redis' clock)."""
        self._last: tuple[int, int] | None = None
        self._moved = False
        self._excess: int | None = 0
        self._lasting = False

    @property
    def ask(self) -> Command:
        """The first question: what groups are there."""
        return ("XINFO", "GROUPS", self.key)

    def take(self, reply: Reply) -> None:
        """Take the answer; raises `QueryRefusedError`."""
        found = {group.name: group for group in read_groups(reply) or ()}
        mine, other = self._names
        self.other_met = other in found
        self._group = found.get(mine)
        self.next_ms = None
        # A stream without a group is the queue's too, and waits for somebody to make one.
        self.exists = self._group is not None or (not self.other_met and not isinstance(reply, ServerError))
        self._compare()

    def _compare(self) -> None:
        """Note whether anything was delivered since the last reading; a stream that began anew is another."""
        last = entry_id(self._group.last_delivered) if self._group else None
        if last is None or (self._last and last < self._last):
            self._excess = 0
        self._moved = self._last is not None and last != self._last
        self._last = last

    @property
    def ask_next(self) -> Command | None:
        """The second question: which entry is to be delivered next; None where nothing can be."""
        if not self.exists or (self._group and self._group.lag == 0):
            return None
        return ("XRANGE", self.key, f"({self._group.last_delivered if self._group else _START}", "+", "COUNT", 1)

    def take_next(self, reply: Reply) -> None:
        """Take the answer, None where it was not asked; raises `QueryRefusedError`."""
        entries = shaped(reply, list[tuple[bytes, Any]]) if reply is not None else ()
        self.next_ms = entry_id(entries[0][0])[0] if entries else None
        group = self._group
        self.used = bool(entries) or (group is not None and bool(group.pending or group.last_delivered != _START))
        if group:
            self._weigh(group)

    def _weigh(self, group: GroupState) -> None:
        """Learn by how much the server's lag is too high, or that this cannot be known now."""
        if group.lag is None:
            self._excess = None if group.deleted_ahead else 0
        elif self.next_ms is None:
            # Who has delivered all that was left, and still counts some of it, goes on so.
            self._lasting = self._moved or (self._lasting and group.lag == self._excess)
            self._excess = group.lag
        elif self._excess and self._moved and not self._lasting:
            self._excess = None
        elif self._excess and group.lag <= self._excess:  # but something waits: the server counted anew
            self._excess = 0

    # --- what was read -----------------------------------------------------------------------------------------------

    @property
    def depth(self) -> int | None:
        """How many entries wait; None where that is not known."""
        if self.next_ms is None:
            return 0
        if self._group is None or self._group.lag is None or self._excess is None:
            return None
        return max(0, self._group.lag - self._excess)

    @property
    def pending(self) -> int:
        """How many entries were delivered and not acknowledged."""
        return self._group.pending if self._group else 0

    @property
    def added(self) -> int | None:
        """How many entries were added since the stream exists; None where that is not known."""
        return self._group.added if self._group else self._without_group

    @property
    def read(self) -> int | None:
        """How many entries were delivered since the stream exists; None where that is not known."""
        return self._group.read if self._group else self._without_group

    @property
    def _without_group(self) -> int | None:
        return None if self.exists else 0
