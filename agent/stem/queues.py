"""A queue's numbers, read and never touched: what waits, is in flight, is delayed, is dead. Pure.

Stem's own `pendingCount` makes the groups that it asks about; this reads `XINFO GROUPS` of the streams that there are.
A depth is the lag of the queue's group over ten priority streams, and unknown where the server knows none: before
Redis 7, after somebody deleted entries, for a group that began in the middle. That nothing follows what was delivered
last is certain all the same, and so is a lag that is wrong for ever from then on.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, tzinfo
from typing import Any

from msgspec import Struct

from agent.stem.dead_letters import decode_dead_letter
from agent.stem.keys import PRIORITIES, Keys
from agent.stem.lenient import DecodeError
from agent.stem.query import LOOK_AGAIN, Command, Query, Reply, ServerError, count, needed, pairs, text

_CONTROL = re.compile(r"\.control\.(worker\..+|broadcast|reply\..+)$")
_START = "0-0"


class QueueState(Struct, frozen=True, kw_only=True, rename="camel"):
    """What a queue holds. Times are Unix milliseconds by Redis' clock, except `oldest_dead` (by a worker's).

    `depth` is what waits and is ready, None where the server cannot tell; `inflight` what was delivered and not
    acknowledged: prefetched work too, but not what runs for longer than its lease. `overdue` of the `delayed` are past
    due. `enqueued` and `delivered` count since the queue exists, None where that is not known. `paused` is None where
    nobody could say.
    """

    queue: str
    depth: int | None
    inflight: int
    delayed: int
    overdue: int
    dead: int
    enqueued: int | None
    delivered: int | None
    oldest_ready_ms: int | None = None
    oldest_dead: datetime | None = None
    paused: bool | None = None


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
    def used(self) -> bool:
        """Whether its stream ever had anything in it."""
        return bool(self.pending or self.lag or self.lag is None) or self.last_delivered != _START


def is_control(queue: str) -> bool:
    """Whether a queue carries Stem's control commands and not tasks."""
    return _CONTROL.search(queue) is not None


def read_groups(reply: Reply) -> list[GroupState] | None:
    """Return the groups that `XINFO GROUPS` tells of, None for a stream that does not exist.

    Raises `QueryRefusedError` for every other error.
    """
    if isinstance(reply, ServerError) and "no such key" in reply:
        return None
    return [
        GroupState(text(told["name"]), told["pending"], text(told["last-delivered-id"]), told.get("lag"), _read(told))
        for told in map(pairs, needed(reply))
    ]


def _read(told: Any) -> int | None:
    """Return how many entries a group was handed: null before the first, which is none."""
    read: int | None = told.get("entries-read")
    return 0 if read is None and text(told["last-delivered-id"]) == _START and "lag" in told else read


class QueueWatch:
    """Reads one queue, again and again, and does not ask again for what cannot have changed.

    `neighbours` are queues whose groups were met on this queue's streams: stream `x:p3` is priority 3 of queue `x`, or
    queue `x:p3` itself, and only the group on it tells. `exists` says whether the last reading found anything at all.
    """

    def __init__(self, keys: Keys, queue: str) -> None:
        self.queue = queue
        self.exists = True
        self.neighbours: set[str] = set()
        self._streams = [keys.stream(queue, priority) for priority in reversed(PRIORITIES)]
        self._delayed, self._dead = keys.delayed(queue), keys.dead(queue)
        self._groups, self._group = keys.group(""), keys.group(queue)
        self._readings = 0
        self._empty: set[str] = set()
        self._next: dict[str, tuple[str, int]] = {}  # after which entry, when (ms) the next one was added
        self._excess: dict[str, int] = {}
        self._letter: tuple[int, datetime | None] = (0, None)

    def read(self, now_ms: int, zone: tzinfo) -> Query[QueueState]:
        """Read the queue in two round trips; `now_ms` is Redis' time, `zone` that of times without an offset.

        Raises `QueryRefusedError` if the server refuses one of the commands.
        """
        streams = list(self._due())
        replies = yield self._first(streams, now_ms)
        groups = self._take_groups(streams, replies)
        delayed, overdue, dead = map(count, replies[-3:])
        self.exists = self.exists or bool(delayed or dead)
        asked = {stream: group for stream, group in groups.items() if group and self._wants_next(stream, group)}
        wants_letter = bool(dead) and (self._letter[0] != dead or self._readings % LOOK_AGAIN == 0)
        replies = yield [
            *(_after(stream, group.last_delivered) for stream, group in asked.items()),
            *([("LINDEX", self._dead, -1)] if wants_letter else ()),
        ]
        if wants_letter:
            self._letter = dead, _dead_at(needed(replies[-1]), zone)
        for (stream, group), reply in zip(asked.items(), replies, strict=False):
            self._note_next(stream, group, needed(reply))
        self._readings += 1
        told = [group for group in groups.values() if group]
        return QueueState(
            queue=self.queue,
            depth=_sum(self._depth(stream, group) for stream, group in groups.items()),
            inflight=sum(group.pending for group in told),
            delayed=delayed,
            overdue=overdue,
            dead=dead,
            enqueued=_sum(
                None if g is None or g.read is None or g.lag is None else g.read + g.lag for g in groups.values()
            ),
            delivered=_sum(None if g is None else g.read for g in groups.values()),
            oldest_ready_ms=min((self._next[s][1] for s, g in groups.items() if g and self._waits(s, g)), default=None),
            oldest_dead=self._letter[1] if dead else None,
        )

    def _due(self) -> Iterator[str]:
        """Yield the streams to look at: all at first, then those ever used, and the others in turn."""
        for priority, stream in enumerate(self._streams):
            in_turn = (self._readings + priority) % LOOK_AGAIN == 0
            if not priority or not self._readings or stream not in self._empty or in_turn:
                yield stream

    def _first(self, streams: Iterable[str], now_ms: int) -> list[Command]:
        return [
            *(("XINFO", "GROUPS", stream) for stream in streams),
            ("ZCARD", self._delayed),
            ("ZCOUNT", self._delayed, "-inf", now_ms),
            ("LLEN", self._dead),
        ]

    def _take_groups(self, streams: Sequence[str], replies: Sequence[Reply]) -> dict[str, GroupState | None]:
        """Return the queue's group on each stream that is its own; None where entries wait and nobody made a group."""
        own: dict[str, GroupState | None] = {}
        self.exists = False
        for stream, reply in zip(streams, replies, strict=False):
            found = read_groups(reply)
            if found is None:
                self._empty.add(stream)
                continue
            names = {group.name for group in found if group.name.startswith(self._groups)}
            self.neighbours |= {name.removeprefix(self._groups) for name in names - {self._group}}
            group = next((group for group in found if group.name == self._group), None)
            if group or not names:
                own[stream], self.exists = group, True
            (self._empty.discard if group is None or group.used else self._empty.add)(stream)
        return own

    def _wants_next(self, stream: str, group: GroupState) -> bool:
        """Whether to ask which entry is the next to be delivered."""
        if group.lag == self._excess.get(stream, 0):
            return False
        after, _ = self._next.get(stream, ("", 0))
        return after != group.last_delivered or self._readings % LOOK_AGAIN == 0

    def _note_next(self, stream: str, group: GroupState, entries: Sequence[Sequence[Reply]]) -> None:
        if entries:
            self._next[stream] = group.last_delivered, int(text(entries[0][0]).partition("-")[0])
            return
        self._next.pop(stream, None)
        if group.lag:  # nothing waits, whatever the server counts: somebody deleted entries
            self._excess[stream] = group.lag

    def _waits(self, stream: str, group: GroupState) -> bool:
        return self._next.get(stream, ("", 0))[0] == group.last_delivered and group.lag != 0

    def _depth(self, stream: str, group: GroupState | None) -> int | None:
        if group is None:
            return None
        if group.lag is None:
            return None if self._waits(stream, group) else 0
        if group.lag < self._excess.get(stream, 0):
            del self._excess[stream]  # the server counts anew
        return group.lag - self._excess.get(stream, 0)


def _after(stream: str, entry: str) -> Command:
    return ("XRANGE", stream, f"({entry}", "+", "COUNT", 1)


def _sum(numbers: Iterable[int | None]) -> int | None:
    """Return the sum, None if one of the numbers is not known."""
    found = list(numbers)
    return None if None in found else sum(number for number in found if number is not None)


def _dead_at(letter: bytes | None, zone: tzinfo) -> datetime | None:
    if letter is None:  # purged meanwhile
        return None
    try:
        dead_at = decode_dead_letter(letter).dead_at
    except DecodeError:
        return None
    return dead_at.replace(tzinfo=zone) if dead_at and dead_at.tzinfo is None else dead_at
