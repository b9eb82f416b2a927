"""What the storage has to say."""

import logging
from dataclasses import dataclass
from typing import ClassVar

from agent.telemetry.events import Event


@dataclass(frozen=True, slots=True)
class StorageFailed(Event):
    """The disk did not take or give what it should."""

    storage: str
    file: str
    error: str

    phrase: ClassVar[str] = "failed to use the file storage; batches are held in memory until it works again"
    level: ClassVar[int] = logging.ERROR
    counter: ClassVar[str | None] = "stem_agent.storage.failures"
    labels: ClassVar[tuple[str, ...]] = ("storage",)


@dataclass(frozen=True, slots=True)
class StorageRecovered(Event):
    """The disk works again."""

    storage: str
    directory: str

    phrase: ClassVar[str] = "the file storage works again"
    level: ClassVar[int] = logging.INFO


@dataclass(frozen=True, slots=True)
class SetAside(Event):
    """A file or a batch could not be read, and was put away for a person to look at."""

    storage: str
    what: str
    kept_as: str
    error: str
    taken_over: int = 0

    phrase: ClassVar[str] = "set aside what could not be read from the file storage"
    level: ClassVar[int] = logging.ERROR
    counter: ClassVar[str | None] = "stem_agent.storage.quarantined"
    labels: ClassVar[tuple[str, ...]] = ("storage", "what")
