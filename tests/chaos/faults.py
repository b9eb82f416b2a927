"""What goes wrong, in what order and for how long: pure, all of it from a seed."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum


class What(StrEnum):
    """Each for some seconds, but for what is over at once."""

    REFUSES = "refuses connections"
    HANGS = "never answers"
    BUSY = "503"
    LATER = "503 with Retry-After"
    DENIES = "401"
    LOSES = "accepts, and the answer is lost"
    PARTLY = "rejects a part"
    SLOW = "slow"
    CUT = "subscribers cut off"
    PAUSED = "clients paused"
    STILL = "server stopped for a moment"
    UNWRITABLE = "no write succeeds"
    LOCKED = "file locked by another process"
    DAMAGED = "a row damaged between two processes"
    KILLED = "SIGKILL"
    ENDED = "SIGTERM and restart"
    FROZEN = "SIGSTOP for a while"


@dataclass(frozen=True, slots=True)
class Fault:
    """Comes `after` seconds of peace on its lane, and lasts so many `seconds`."""

    lane: str
    what: What
    after: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Lane:
    """Faults that follow one another; those of different lanes overlap. Ranges are in seconds."""

    peace: tuple[float, float]
    kinds: dict[What, tuple[float, float]]


_NOW = (0.0, 0.0)
LANES = {
    "backend": Lane(
        (0.2, 1.5),
        {
            What.REFUSES: (0.5, 3.0),
            What.HANGS: (0.5, 4.0),  # longer and shorter than the exporter's timeout of 2 s
            What.BUSY: (0.5, 3.0),
            What.LATER: (0.5, 3.0),
            What.DENIES: (0.5, 3.0),
            What.LOSES: (0.5, 2.0),
            What.PARTLY: (0.5, 2.0),
            What.SLOW: (0.5, 3.0),
        },
    ),
    "redis": Lane((1.0, 5.0), {What.CUT: _NOW, What.PAUSED: (0.3, 1.5), What.STILL: (0.3, 1.0)}),
    "disk": Lane((1.0, 5.0), {What.UNWRITABLE: (0.5, 4.0), What.LOCKED: (0.5, 3.0), What.DAMAGED: _NOW}),
    "process": Lane((0.2, 5.0), {What.KILLED: _NOW, What.ENDED: _NOW, What.FROZEN: (0.5, 3.0)}),
}


def faults_of(lane: str, seed: int) -> Iterator[Fault]:
    """Yield the faults of a lane, for ever: every kind once, in a random order, then all of them again."""
    chance = random.Random(f"{seed} {lane}")
    while True:
        for what in chance.sample(list(LANES[lane].kinds), len(LANES[lane].kinds)):
            yield Fault(lane, what, chance.uniform(*LANES[lane].peace), chance.uniform(*LANES[lane].kinds[what]))
