"""Which workers there are, from the heartbeats that Stem keeps for a minute. Pure.

Stem's own `listWorkerHeartbeats` removes ids whose key has expired from the index; this leaves them.
"""

from collections.abc import Collection, Iterator, Sequence
from typing import Any

from msgspec import Struct

from agent.stem.heartbeat import TTL_MS, Heartbeat, decode_heartbeat
from agent.stem.keys import Keys
from agent.stem.lenient import DecodeError
from agent.stem.questions.query import Command, Query, Reply, count, shaped, text, unexpected

CHUNK = 100
"""Heartbeats asked for in one command, with their ages right behind it: one is about 1 kB."""
_EXPIRED = -2


class WorkerHeartbeat(Struct, frozen=True):
    """A worker's last heartbeat, written `age_ms` ago by Redis' clock; None where that was not asked for."""

    heartbeat: Heartbeat
    age_ms: int | None


class Heartbeats(Struct, frozen=True):
    """All heartbeats that can be read; ids in the index without one (`gone`), and why others cannot be read.

    `left_out` is how many workers have a heartbeat beyond those that were wanted.
    """

    alive: list[WorkerHeartbeat]
    gone: list[str]
    unreadable: dict[str, str]
    left_out: int = 0


def read_heartbeats(keys: Keys, most: int, ages: Sequence[str] | None = None) -> Query[Heartbeats]:
    """Ask for the heartbeats of `most` workers, and for the ages of those in `ages` (None: all). Two round trips.

    The index is read whole: nobody takes the dead out of it, and they must not crowd out the living. Raises
    `QueryRefusedError` if the server refuses.
    """
    (reply,) = yield [("SMEMBERS", keys.heartbeats)]
    workers = sorted(map(text, shaped(reply, list[bytes])))
    aged = set(workers if ages is None else ages)
    chunks = [workers[start : start + CHUNK] for start in range(0, len(workers), CHUNK)]
    replies = iter((yield [command for chunk in chunks for command in _questions(keys, chunk, aged)]))
    found = Heartbeats([], [], {})
    left_out = 0
    for worker, beat, age_ms in (told for chunk in chunks for told in _told(chunk, aged, replies)):
        if beat is None:
            found.gone.append(worker)
        elif len(found.alive) + len(found.unreadable) >= most:
            left_out += 1
        else:
            _take(found, worker, beat, age_ms)
    return Heartbeats(found.alive, found.gone, found.unreadable, left_out)


def _questions(keys: Keys, chunk: Sequence[str], aged: Collection[str]) -> Iterator[Command]:
    # Side by side, because a worker that writes in between would make an old heartbeat look new.
    yield ("MGET", *map(keys.heartbeat, chunk))
    yield from (("PTTL", keys.heartbeat(worker)) for worker in chunk if worker in aged)


def _told(
    chunk: Sequence[str], aged: Collection[str], replies: Iterator[Reply]
) -> Iterator[tuple[str, bytes | None, int | None]]:
    """Yield each worker of a chunk with its heartbeat and age."""
    beats = shaped(next(replies), list[Any])
    if len(beats) != len(chunk):
        raise unexpected(f"expected {len(chunk)} values, got {len(beats)}")
    for worker, beat in zip(chunk, beats, strict=True):
        age_ms = _age_ms(count(next(replies))) if worker in aged else None
        yield worker, None if beat is None else shaped(beat, bytes), age_ms


def _age_ms(left_ms: int) -> int | None:
    """Return the age that a time to live tells; None where somebody else set it, or took it away."""
    if left_ms == _EXPIRED:  # since it was read, a moment ago
        return TTL_MS
    return TTL_MS - left_ms if 0 <= left_ms <= TTL_MS else None


def _take(found: Heartbeats, worker: str, beat: bytes, age_ms: int | None) -> None:
    try:
        found.alive.append(WorkerHeartbeat(decode_heartbeat(beat), age_ms))
    except DecodeError as error:
        found.unreadable[worker] = error.reason
