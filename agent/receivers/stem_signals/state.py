"""What a receiver knows of the numbering, as bytes that the next process goes on from. Pure."""

from msgspec import Struct

from agent.core import kept
from agent.receivers.stem_signals.sequence import Numbering

VERSION = 1
"""Another one for every change of the structs here and of `Numbering`; a test holds their shapes against it."""


class State(Struct, array_like=True):
    """The numbering of every boot, when that was written down, and since when nobody listened (nanoseconds)."""

    taken_ns: int
    deaf_since_ns: int
    boots: list[Numbering]


def encode(state: State) -> bytes:
    """Return the bytes."""
    return kept.encode([state], VERSION)


def decode(state: bytes, now_ns: int) -> tuple[State, int]:
    """Return the state, and by how much (ns) the clock was set back since: its times are still to be moved.

    Raises `KeptStateError`.
    """
    known = kept.decode(kept.parts_of(state, VERSION)[0], State)
    return known, max(0, known.taken_ns - now_ns)
