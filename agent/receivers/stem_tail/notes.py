"""What was told of a fleet, up to where, and what is under way: from one agent, or one process, to the next. Pure.

| key | note |
| --- | --- |
| `standing` | how far each stream and each list of dead letters was read |
| `total:{name}` | one series of the metrics of what was told |
| `task:{id}` | one task under way |
"""

from collections.abc import Mapping
from typing import NamedTuple

from msgspec import Struct

from agent.core import kept
from agent.receivers.stem_tail.flight import Flight

VERSION = 1
"""Another one for every change of the structs that are reached from here, or that totals are made of."""
_STANDING, _TOTAL, _TASK = "standing", "total:", "task:"

Letters = dict[str, tuple[int, list[bytes]]]
"""Of each queue, how many dead letters there were, and the marks of the newest."""


class Standing(Struct, array_like=True):
    """Since when the tail looks (Redis' milliseconds), the queues that it follows, and up to where each was read.

    Of every task enqueued after `since_ms` all entries were seen.
    """

    begin_ms: int
    since_ms: int
    queues: list[str]
    at: dict[str, str]
    letters: Letters


class _All(Struct, array_like=True):
    notes: dict[str, bytes]


class Notes(NamedTuple):
    """Everything that was left."""

    standing: Standing
    flights: dict[str, Flight]
    totals: dict[str, bytes]


def encode(
    standing: Standing, flights: Mapping[str, Flight | None], totals: Mapping[str, bytes | None]
) -> dict[str, bytes | None]:
    """Return the notes of where reading stands, of these tasks (None: under way no more), and of these totals."""
    notes: dict[str, bytes | None] = {
        f"{_TASK}{task_id}": kept.encode((flight,), VERSION) if flight else None for task_id, flight in flights.items()
    }
    notes[_STANDING] = kept.encode((standing,), VERSION)
    notes |= {f"{_TOTAL}{name}": total for name, total in totals.items()}
    return notes


def decode(notes: Mapping[str, bytes]) -> Notes | None:
    """Return what was noted, None where nothing was; raises `KeptStateError` for what is no such notes."""
    if _STANDING not in notes:
        return None
    standing = kept.decode(kept.parts_of(notes[_STANDING], VERSION)[0], Standing)
    totals = {key.removeprefix(_TOTAL): total for key, total in notes.items() if key.startswith(_TOTAL)}
    flights = {
        key.removeprefix(_TASK): kept.decode(kept.parts_of(note, VERSION)[0], Flight)
        for key, note in notes.items()
        if key.startswith(_TASK)
    }
    return Notes(standing, flights, totals)


def pack(notes: Mapping[str, bytes | None]) -> bytes:
    """Return all notes as one."""
    return kept.encode((_All({key: note for key, note in notes.items() if note is not None}),), VERSION)


def unpack(packed: bytes) -> Notes | None:
    """Return the notes that were packed; raises `KeptStateError`."""
    return decode(kept.decode(kept.parts_of(packed, VERSION)[0], _All).notes)
