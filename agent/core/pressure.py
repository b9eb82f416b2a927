"""Memory that gets short: who holds how much of it, what goes first, and what is not taken any more. Pure.

| priority | what it is |
| --- | --- |
| debug_logs | log records below INFO; they go first |
| logs | log records of INFO |
| metrics | data points; most are cumulative, so the next ones tell what these would have |
| traces | spans |
| errors | log records from WARN up, and the spans of attempts that failed, were retried or lost |
| signals | what was heard and is not read yet: it may be anything, so it goes last |

Below the soft limit everything is taken. From there on whoever has a disk forgets what is there, too. Before the hard
limit is reached, the oldest of the lowest priority is given up until the rest is at the soft limit, and nothing below
the floor is taken; the floor is never below the highest priority of which something was given up.
"""

from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import Protocol


class Priority(IntEnum):
    """The order in which telemetry goes when memory is short; see the table above."""

    DEBUG_LOGS = 0
    LOGS = 1
    METRICS = 2
    TRACES = 3
    ERRORS = 4
    SIGNALS = 5


LOWEST, HIGHEST_FLOOR = Priority.DEBUG_LOGS, Priority.ERRORS
"""The floor's range. Errors are always taken: where even they are too many, the oldest of them go."""
_LEAST_SHARE = 20


class Level(StrEnum):
    """How short memory is."""

    CALM = "calm"
    SPILLING = "spilling"
    SHEDDING = "shedding"
    CRAMPED = "cramped"
    """At the limit, though all that is held would not bring it below: the rest of the process is too large for it."""


@dataclass(frozen=True, slots=True)
class Limits:
    """In bytes; `soft` is below `hard`."""

    hard: int
    soft: int

    @property
    def least(self) -> int:
        """Bytes that may always be held: memory is not given back to the last byte, and shedding must come to an end.

        A twentieth of the limit, so that telemetry goes on flowing whatever else the memory is used for.
        """
        return self.hard // _LEAST_SHARE


@dataclass(frozen=True, slots=True)
class Step:
    """What is to be done now: the floor from now on, whether to spill, and how many bytes to shed after that."""

    level: Level
    floor: Priority
    spill: bool = False
    shed: int = 0


def decide(limits: Limits, *, floor: Priority, used: int, rise: int, spillable: int, held: int) -> Step:
    """Return what `used` bytes of memory ask for, which are `rise` more than at the last look.

    Of them `spillable` are on a disk, too, and `held` nowhere else. Shedding begins where the next look would come too
    late: at the hard limit, less another such rise. The floor rises and falls by one a step.
    """
    if used < limits.soft:
        return Step(Level.CALM, _lower(floor))
    excess = used - spillable - limits.soft
    near = used + max(rise, limits.least) >= limits.hard
    shed = max(0, min(excess, held - limits.least)) if near else 0
    if excess <= 0 or (used < limits.hard and not shed):
        # Where next to nothing is held, refusing more helps nobody: it is the rest that is large.
        return Step(Level.SPILLING, floor if held > limits.least else _lower(floor), spill=True)
    if not shed or used - spillable - held >= limits.hard:
        return Step(Level.CRAMPED, floor if shed else _lower(floor), spill=True, shed=shed)
    return Step(Level.SHEDDING, min(HIGHEST_FLOOR, Priority(floor + 1)), spill=True, shed=shed)


def _lower(floor: Priority) -> Priority:
    return Priority(max(LOWEST, floor - 1))


class Holder(Protocol):
    """Whoever keeps telemetry in memory for longer than a moment."""

    @property
    def spillable_bytes(self) -> int:
        """Bytes that are on a disk, too."""

    @property
    def held_bytes(self) -> int:
        """Bytes that are in memory alone, and may be given up."""

    def spill(self) -> None:
        """Forget what is on a disk, too, and let the disk have the rest."""

    def shed(self, priority: Priority, size: int) -> int:
        """Give up the oldest of at most this priority, until that is `size` bytes; return how many it was."""


class Pressure:
    """What all holders share with whoever watches the memory. Without a watcher everything is taken, always."""

    def __init__(self) -> None:
        self.floor = LOWEST
        self.guarded = False
        self._holders: list[Holder] = []

    def join(self, holder: Holder) -> None:
        """Take part, until `leave`."""
        if holder not in self._holders:
            self._holders.append(holder)

    def leave(self, holder: Holder) -> None:
        """Hold nothing any more."""
        if holder in self._holders:
            self._holders.remove(holder)

    @property
    def spillable_bytes(self) -> int:
        """Bytes in memory that are on a disk, too."""
        return sum(holder.spillable_bytes for holder in self._holders)

    @property
    def held_bytes(self) -> int:
        """Bytes that are in memory alone, and may be given up."""
        return sum(holder.held_bytes for holder in self._holders)

    def follow(self, step: Step) -> int:
        """Do what was decided; return how many bytes were given up."""
        self.floor = step.floor
        if step.spill:
            for holder in self._holders:
                holder.spill()
        shed = 0
        for priority in Priority:
            for holder in self._holders:
                if shed < step.shed and (freed := holder.shed(priority, step.shed - shed)):
                    shed += freed
                    self.floor = max(self.floor, min(priority, HIGHEST_FLOOR))
        return shed
