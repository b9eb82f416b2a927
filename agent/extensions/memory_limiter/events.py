"""What the limiter has to say."""

import logging
from dataclasses import dataclass
from typing import ClassVar

from agent.core.pressure import Level
from agent.telemetry.events import Event


@dataclass(frozen=True, slots=True)
class MemoryLevel(Event):
    """Memory is on another level than at the look before; `held_mib` are in queues, in memory alone."""

    used_mib: int
    held_mib: int
    limit_mib: int


class MemoryCalm(MemoryLevel):
    """Memory is below the soft limit again."""

    phrase: ClassVar[str] = "memory is below its limits again"
    level: ClassVar[int] = logging.INFO


class MemorySpilling(MemoryLevel):
    """Memory is above the soft limit."""

    phrase: ClassVar[str] = "memory gets short; queues that have a disk spill to it"


class MemoryShedding(MemoryLevel):
    """Memory would reach the hard limit before the next look."""

    phrase: ClassVar[str] = "memory is about to reach its limit; dropping telemetry, lowest priority first"
    level: ClassVar[int] = logging.ERROR


class MemoryCramped(MemoryLevel):
    """Memory is at the hard limit, and the queues are not what needs it."""

    phrase: ClassVar[str] = "the memory limit is too small for what the agent needs beside its queues; raise it"
    level: ClassVar[int] = logging.ERROR


@dataclass(frozen=True, slots=True)
class MemoryUnwatched(Event):
    """A look failed: a fault of ours."""

    limiter: str
    error: str

    phrase: ClassVar[str] = "failed to look at the memory in use; please report this"
    level: ClassVar[int] = logging.ERROR


@dataclass(frozen=True, slots=True)
class MemoryUnknown(Event):
    """The platform does not tell how much memory is in use."""

    limiter: str

    phrase: ClassVar[str] = "memory is not limited: this platform does not tell how much is in use"


LEVELS: dict[Level, type[MemoryLevel]] = {
    Level.CALM: MemoryCalm,
    Level.SPILLING: MemorySpilling,
    Level.SHEDDING: MemoryShedding,
    Level.CRAMPED: MemoryCramped,
}
