"""What was added to streams since they were last read: `XREAD` without a group, which leaves no trace. Pure."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from msgspec import Struct

from agent.stem.envelope import Envelope, envelope_of
from agent.stem.lenient import DecodeError, members, salvage
from agent.stem.questions.query import Query, entry_id, pairs, shaped, text

STREAMS = 100
"""Streams asked for in one command."""
EVENT = "__stem.queue.event__"
"""Name of the envelopes in which applications' events travel."""


class Event(Struct, frozen=True, rename="camel", gc=False):
    """An application's own event, without its payload, which is never decoded (Stem: `core/queue_events.dart`)."""

    event_name: str
    emitted_at: datetime | None = None


class Entry(Struct, frozen=True):
    """An envelope that became ready at `ready_ms` (Unix milliseconds by Redis' clock); None where it is none.

    `event` is what the envelope of an application's event carries.
    """

    stream: str
    entry: str
    ready_ms: int
    envelope: Envelope | None
    event: Event | None = None


class Entries(Struct, frozen=True):
    """What was added, by stream and in its order. `more`: streams of which there may be more than was asked for."""

    found: list[Entry]
    more: list[str]


def read_entries(positions: Mapping[str, str], most: int) -> Query[Entries]:
    """Ask for what follows these positions: `most` entries of each stream, in one round trip.

    Raises `QueryRefusedError` if the server refuses.
    """
    streams = list(positions)
    chunks = [streams[start : start + STREAMS] for start in range(0, len(streams), STREAMS)]
    replies = yield [
        ("XREAD", "COUNT", most, "STREAMS", *chunk, *(positions[stream] for stream in chunk)) for chunk in chunks
    ]
    found: list[Entry] = []
    more: list[str] = []
    for reply in replies:
        for name, entries in shaped(reply, list[tuple[bytes, list[tuple[bytes, Any]]]] | None) or ():  # type: ignore[arg-type]
            stream = text(name)
            found += [_entry(stream, entry, fields) for entry, fields in entries]
            more += [stream] if len(entries) >= most else []
    return Entries(found, more)


def _entry(stream: str, entry: bytes, fields: Any) -> Entry:
    try:
        told = pairs(fields)
        envelope = envelope_of(told)
    except (DecodeError, AttributeError):
        return Entry(stream, text(entry), entry_id(entry)[0], None)
    event = _event_of(told) if envelope.name == EVENT else None
    named = envelope if envelope.id and envelope.name else None
    return Entry(stream, text(entry), entry_id(entry)[0], named, event)


def _event_of(fields: Mapping[str, bytes]) -> Event | None:
    try:
        return salvage(members(fields.get("args", b"")), Event, required=("eventName",))
    except DecodeError:
        return None
