"""What a leader leaves to the next one: up to where the totals were told. Pure.

Notes are written before what they say is told. So whoever goes on from them never tells anything twice; what a kill
can cost is what was noted and not delivered: a turn.
"""

from msgspec import Struct

from agent.core import kept

VERSION = 1

Total = tuple[str, tuple[str, ...], int | None]
"""An instrument's name, attribute values, and what the server had counted; None where it did not know."""


class QueueNotes(Struct, array_like=True):
    """The queues there were, whether they were all, and what the server had counted of each."""

    complete: bool = False
    queues: list[str] = []
    totals: list[Total] = []


class LetterNotes(Struct, array_like=True):
    """Of each queue, how many dead letters there were, and the marks of the newest."""

    seen: dict[str, tuple[int, list[bytes]]] = {}


class ScheduleNotes(Struct, array_like=True):
    """Whether all entries were known, and up to where the history of each was read."""

    complete: bool = False
    positions: dict[str, str] = {}


class Notes(Struct, array_like=True):
    """Notes `about` one fleet's stores, taken at a time of the writer's clock (Unix nanoseconds)."""

    about: str
    taken_ns: int
    queues: QueueNotes
    letters: LetterNotes
    schedules: ScheduleNotes


def encode(notes: Notes) -> bytes:
    """Return the bytes to keep."""
    return kept.encode((notes,), VERSION)


def decode(text: bytes) -> Notes:
    """Return the notes; raises `KeptStateError` for what is none, or of another version."""
    return kept.decode(kept.parts_of(text, VERSION)[0], Notes)
