"""How far was read and what is under way, as bytes that the next process goes on from. Pure."""

from msgspec import Struct

from agent.core import kept
from agent.receivers.stem_tail.flights import Flights, FlightsState
from agent.receivers.stem_tail.positions import Positions

VERSION = 1
"""Another one for every change of the structs that are reached from `State`."""


class State(Struct, array_like=True):
    """Positions by stream, the queues that were followed, since when (Redis' milliseconds), and the tasks under way."""

    begin_ms: int
    queues: list[str]
    at: dict[str, str]
    flights: FlightsState


def snapshot(positions: Positions, flights: Flights) -> bytes:
    """Return what is known, for `restore`."""
    return kept.encode([State(positions.begin_ms, list(positions.queues), positions.at, flights.state())], VERSION)


def restore(state: bytes) -> State:
    """Return what the process before knew; raises `KeptStateError`."""
    return kept.decode(kept.parts_of(state, VERSION)[0], State)
