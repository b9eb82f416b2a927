"""A queue's numbers, read and never touched: what waits, is in flight, is delayed, is dead. Pure.

Stem's own `pendingCount` makes the groups that it asks about; this reads `XINFO GROUPS` of the streams that there are.
A depth is the sum over ten priority streams, and unknown where one of them is (`streams.py`).
"""

import re
from collections.abc import Iterable
from datetime import datetime, tzinfo

from msgspec import Struct

from agent.stem.keys import PRIORITIES, Keys
from agent.stem.lenient import DecodeError
from agent.stem.questions.dead_letters import decode_dead_letter
from agent.stem.questions.query import LOOK_AGAIN, Command, Query, Reply, count, needed, shaped
from agent.stem.questions.streams import StreamWatch

_CONTROL = re.compile(r"\.control\.(worker\..+|broadcast|reply\..+)\Z", re.DOTALL)
_PRIORITY = re.compile(r":p[1-9]\Z")


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


def is_control(queue: str) -> bool:
    """Whether a queue carries Stem's control commands and not tasks."""
    return _CONTROL.search(queue) is not None


class QueueWatch:
    """Reads one queue, again and again, and does not ask again for what cannot have changed.

    `neighbours` are queues whose groups were met on this queue's streams: stream `x:p3` is priority 3 of queue `x`, or
    queue `x:p3` itself, or both, and only the groups on it tell. `exists` says whether there was anything of this queue
    at the last reading.
    """

    def __init__(self, keys: Keys, queue: str) -> None:
        self.queue = queue
        self.exists = True
        self.neighbours: set[str] = set()
        self._others = {priority: _other(queue, priority) for priority in PRIORITIES}
        self._streams = {priority: _watch(keys, queue, priority, self._others[priority]) for priority in PRIORITIES}
        self._delayed, self._dead = keys.delayed(queue), keys.dead(queue)
        self._readings = 0
        self._letter: tuple[int, datetime | None] = (0, None)

    def read(self, now_ms: int, zone: tzinfo) -> Query[QueueState]:
        """Read the queue in two round trips; `now_ms` is Redis' time, `zone` that of times without an offset.

        Raises `QueryRefusedError` if the server refuses one of the commands.
        """
        streams = [stream for priority, stream in self._streams.items() if self._is_due(priority, stream)]
        replies = yield [*(stream.ask for stream in streams), *self._counts(now_ms)]
        for stream, reply in zip(streams, replies, strict=False):
            stream.take(reply)
        delayed, overdue, dead = map(count, replies[-3:])
        asked = {stream: command for stream in streams if (command := stream.ask_next)}
        wants_letter = bool(dead) and (self._letter[0] != dead or self._readings % LOOK_AGAIN == 0)
        replies = yield [*asked.values(), *([("LINDEX", self._dead, -1)] if wants_letter else ())]
        found = dict(zip(asked, replies, strict=False))
        for stream in streams:
            stream.take_next(found.get(stream))
        if wants_letter:
            self._letter = dead, _dead_at(replies[-1], zone)
        self._readings += 1
        self.exists = bool(delayed or dead) or any(stream.exists for stream in self._streams.values())
        self.neighbours = {other for p, other in self._others.items() if other and self._streams[p].other_met}
        return self._state(delayed, overdue, dead)

    def _state(self, delayed: int, overdue: int, dead: int) -> QueueState:
        streams = self._streams.values()
        return QueueState(
            queue=self.queue,
            depth=_sum(stream.depth for stream in streams),
            inflight=sum(stream.pending for stream in streams),
            delayed=delayed,
            overdue=overdue,
            dead=dead,
            enqueued=_sum(stream.added for stream in streams),
            delivered=_sum(stream.read for stream in streams),
            oldest_ready_ms=min((s.next_ms for s in streams if s.next_ms is not None), default=None),
            oldest_dead=self._letter[1] if dead else None,
        )

    def _is_due(self, priority: int, stream: StreamWatch) -> bool:
        """Whether to look at a stream: at all of them at first, then at those ever used, and at the others in turn."""
        return not priority or not self._readings or stream.used or (self._readings + priority) % LOOK_AGAIN == 0

    def _counts(self, now_ms: int) -> list[Command]:
        return [("ZCARD", self._delayed), ("ZCOUNT", self._delayed, "-inf", now_ms), ("LLEN", self._dead)]


def _other(queue: str, priority: int) -> str | None:
    """Return the other queue whose stream it would be: `x:p3` of priority 3 of `x`, and the other way round."""
    if priority:
        return f"{queue}:p{priority}"
    shorter = _PRIORITY.sub("", queue)
    return shorter if shorter != queue else None


def _watch(keys: Keys, queue: str, priority: int, other: str | None) -> StreamWatch:
    return StreamWatch(keys.stream(queue, priority), keys.group(queue), None if other is None else keys.group(other))


def _sum(numbers: Iterable[int | None]) -> int | None:
    """Return the sum, None if one of the numbers is not known."""
    found = list(numbers)
    return None if None in found else sum(number for number in found if number is not None)


def _dead_at(reply: Reply, zone: tzinfo) -> datetime | None:
    if needed(reply) is None:  # purged meanwhile
        return None
    try:
        dead_at = decode_dead_letter(shaped(reply, bytes)).dead_at
    except DecodeError:
        return None
    return dead_at.replace(tzinfo=zone) if dead_at and dead_at.tzinfo is None else dead_at
