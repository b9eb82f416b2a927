"""Tasks in workers' hands, read from the lists of what is pending, and from the copies that a lease leaves. Pure.

What a worker was given and has not acknowledged is pending under its consumer's name: what runs, and what it
prefetched and has not begun. A task that outlives half its lease is no longer pending: Stem acknowledges it and leaves
a copy of its envelope among the delayed ones (`redis_broker.dart`, `extendLease`).
"""

from collections.abc import Iterator, Sequence
from typing import Any

from msgspec import Raw, Struct

from agent.stem.envelope import Envelope, decode_envelope, envelope_of
from agent.stem.keys import Keys
from agent.stem.questions.query import Query, Reply, ServerError, entry_id, milliseconds, pairs, shaped, text
from agent.stem.questions.streams import read_groups


class Pending(Struct, frozen=True):
    """An entry that `consumer` was given `idle_ms` ago, for the so manieth time; no envelope if somebody deleted it."""

    stream: str
    entry: str
    consumer: str
    idle_ms: int
    deliveries: int
    envelope: Envelope | None = None


class Delayed(Struct, frozen=True):
    """An envelope in the delayed set, and when it is due (Unix milliseconds)."""

    envelope: Envelope
    due_ms: int


def read_pending(keys: Keys, queue: str, most: int, consumer: str | None = None) -> Query[list[Pending]]:
    """Ask for what is pending of a queue, longest first: `most`, of the `most` oldest of each priority.

    With a `consumer`, for what is pending under its name. Two round trips.

    Raises `QueryRefusedError` if the server refuses.
    """
    streams = keys.streams(queue)
    whose = (consumer,) if consumer else ()
    replies = yield [("XPENDING", stream, keys.group(queue), "-", "+", most, *whose) for stream in streams]
    told = [pending for stream, reply in zip(streams, replies, strict=True) for pending in pending_of(stream, reply)]
    longest = sorted(told, key=lambda pending: -pending.idle_ms)[:most]
    entries = yield [("XRANGE", pending.stream, pending.entry, pending.entry) for pending in longest]
    return [
        _with_envelope(pending, shaped(reply, list[tuple[bytes, Any]]))
        for pending, reply in zip(longest, entries, strict=True)
    ]


def pending_of(stream: str, reply: Reply) -> Iterator[Pending]:
    """Yield what `XPENDING` in its long form tells; nothing where there is no such stream or group.

    Raises `QueryRefusedError` for every other error.
    """
    if isinstance(reply, ServerError) and ("NOGROUP" in reply or "No such key" in reply):
        return
    for entry, consumer, idle_ms, deliveries in shaped(reply, list[tuple[bytes, bytes, int, int]]):
        yield Pending(stream, text(entry), text(consumer), idle_ms, deliveries)


def _with_envelope(pending: Pending, entries: Sequence[Sequence[Reply]]) -> Pending:
    envelope = envelope_of(pairs(entries[0][1])) if entries else None
    return Pending(pending.stream, pending.entry, pending.consumer, pending.idle_ms, pending.deliveries, envelope)


def read_delayed(keys: Keys, queue: str, most: int) -> Query[list[Delayed]]:
    """Ask for the delayed tasks of a queue that are due first, `most` of them; one round trip.

    What is no envelope is left out: it is Stem's to stumble over. Raises `QueryRefusedError` if the server refuses.
    """
    (reply,) = yield [("ZRANGE", keys.delayed(queue), 0, most - 1, "WITHSCORES")]
    return list(delayed_of(shaped(reply, list[bytes])))


def delayed_of(members: Sequence[Reply]) -> Iterator[Delayed]:
    """Yield the envelopes among members and their scores, which alternate."""
    for member, score in zip(members[::2], members[1::2], strict=False):
        if envelope := decode_envelope(Raw(member)):
            yield Delayed(envelope, milliseconds(score))


class Place(Struct, frozen=True, array_like=True):
    """Where an entry is."""

    queue: str
    stream: str
    entry: str


def read_acknowledged(keys: Keys, places: Sequence[Place]) -> Query[set[Place]]:
    """Ask which of these entries a worker was given and has acknowledged; two round trips.

    Raises `QueryRefusedError` if the server refuses.
    """
    streams = list(dict.fromkeys(place.stream for place in places))
    replies = yield [("XINFO", "GROUPS", stream) for stream in streams]
    given: dict[tuple[str, str], tuple[int, int]] = {}
    for stream, reply in zip(streams, replies, strict=True):
        given |= {(stream, group.name): entry_id(group.last_delivered) for group in read_groups(reply) or ()}
    asked = [
        place for place in places if entry_id(place.entry) <= given.get((place.stream, keys.group(place.queue)), (0, 0))
    ]
    replies = yield [
        ("XPENDING", place.stream, keys.group(place.queue), place.entry, place.entry, 1) for place in asked
    ]
    found = zip(asked, replies, strict=True)
    return {place for place, reply in found if not list(pending_of(place.stream, reply))}
