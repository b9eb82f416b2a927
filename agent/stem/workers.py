"""Which workers there are, from the heartbeats that Stem keeps for a minute. Pure.

Stem's own `listWorkerHeartbeats` removes ids whose key has expired from the index; this leaves them.
"""

from collections.abc import Iterator, Sequence

from msgspec import Struct

from agent.stem.heartbeat import TTL_MS, Heartbeat, decode_heartbeat
from agent.stem.keys import Keys
from agent.stem.lenient import DecodeError
from agent.stem.query import Command, Query, needed, text

CHUNK = 500
"""Heartbeats asked for in one command: one is about 1 kB."""


class WorkerHeartbeat(Struct, frozen=True):
    """A worker's last heartbeat, written `age_ms` ago by Redis' clock; None where that was not asked for."""

    heartbeat: Heartbeat
    age_ms: int | None


class Heartbeats(Struct, frozen=True):
    """All heartbeats that can be read; ids in the index without one (`gone`), and why others cannot be read.

    `left_out` is how many workers there are beyond those that were asked for.
    """

    alive: list[WorkerHeartbeat]
    gone: list[str]
    unreadable: dict[str, str]
    left_out: int = 0


def read_heartbeats(keys: Keys, most: int, ages: Sequence[str] | None = None) -> Query[Heartbeats]:
    """Ask for the heartbeats of `most` workers, and for the ages of those in `ages` (None: all). Two round trips.

    Raises `QueryRefusedError` if the server refuses.
    """
    (reply,) = yield [("SMEMBERS", keys.heartbeats)]
    index = sorted(map(text, needed(reply)))
    workers = index[:most]
    if not workers:
        return Heartbeats([], [], {})
    aged = workers if ages is None else [worker for worker in ages if worker in set(workers)]
    chunks = [workers[start : start + CHUNK] for start in range(0, len(workers), CHUNK)]
    replies = yield [*_beats(keys, chunks), *(("PTTL", keys.heartbeat(worker)) for worker in aged)]
    beats = [beat for answer in replies[: len(chunks)] for beat in needed(answer)]
    left = dict(zip(aged, map(needed, replies[len(chunks) :]), strict=True))
    found = Heartbeats([], [], {}, len(index) - len(workers))
    for worker, beat in zip(workers, beats, strict=True):
        if beat is None:
            found.gone.append(worker)
            continue
        try:
            heartbeat = decode_heartbeat(beat)
        except DecodeError as error:
            found.unreadable[worker] = error.reason
            continue
        left_ms = left.get(worker, -1)
        found.alive.append(WorkerHeartbeat(heartbeat, TTL_MS - left_ms if 0 <= left_ms <= TTL_MS else None))
    return found


def _beats(keys: Keys, chunks: Sequence[Sequence[str]]) -> Iterator[Command]:
    return (("MGET", *map(keys.heartbeat, chunk)) for chunk in chunks)
