"""What a receiver knows of the numbering, as bytes that the next process goes on from. Pure."""

from msgspec import Struct

from agent.core import kept
from agent.receivers.stem_signals.sequence import Numbering, SequenceTracker

VERSION = 1
"""Another one for every change of the structs here and of `Numbering`; a test holds their shapes against it."""


class State(Struct, array_like=True):
    """The numbering of every boot, when that was written down, and since when nobody listened (nanoseconds)."""

    taken_ns: int
    deaf_since_ns: int
    boots: list[Numbering]


def snapshot(sequence: SequenceTracker, now_ns: int, deaf_since_ns: int | None) -> bytes:
    """Return what is known of the numbering, for `restore`; nobody listened since `deaf_since_ns`, None: until now."""
    deaf_ns = now_ns if deaf_since_ns is None else deaf_since_ns
    return kept.encode([State(now_ns, deaf_ns, sequence.state())], VERSION)


def restore(state: bytes, sequence: SequenceTracker, now_ns: int) -> int:
    """Go on from a snapshot, and return since when nobody listened, by the clock of now. Raises `KeptStateError`.

    A clock that was set back since moves all times along.
    """
    known = kept.decode(kept.parts_of(state, VERSION)[0], State)
    back_ns = max(0, known.taken_ns - now_ns)
    sequence.restore(known.boots, back_ns)
    return known.deaf_since_ns - back_ns
