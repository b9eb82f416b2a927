"""What can happen to batches, in the words of logs and counters."""

import logging
from dataclasses import dataclass
from typing import ClassVar

from agent.telemetry.events import Event


@dataclass(frozen=True, slots=True)
class DeliveryRetried(Event):
    """The destination could not take a batch now."""

    exporter: str
    signal: str
    reason: str
    detail: str
    retry_in: float

    phrase: ClassVar[str] = "delivery failed; will retry"
    counter: ClassVar[str | None] = "stem_agent.exporter.retries"
    labels: ClassVar[tuple[str, ...]] = ("exporter", "signal", "reason")


@dataclass(frozen=True, slots=True)
class ItemsDropped(Event):
    """Accepted items will never arrive."""

    exporter: str
    signal: str
    reason: str
    items: int
    detail: str

    phrase: ClassVar[str] = "dropped telemetry"
    level: ClassVar[int] = logging.ERROR
    labels: ClassVar[tuple[str, ...]] = ("exporter", "signal", "reason")
    amount_in: ClassVar[str] = "items"


@dataclass(frozen=True, slots=True)
class ItemsRejected(Event):
    """The destination took the request but refused some of its items."""

    exporter: str
    signal: str
    items: int
    detail: str

    phrase: ClassVar[str] = "destination rejected items"
    level: ClassVar[int] = logging.ERROR
    labels: ClassVar[tuple[str, ...]] = ("exporter", "signal")
    amount_in: ClassVar[str] = "items"


@dataclass(frozen=True, slots=True)
class DestinationWarned(Event):
    """The destination accepted everything, with a message."""

    exporter: str
    signal: str
    detail: str

    phrase: ClassVar[str] = "destination accepted with a warning"
    labels: ClassVar[tuple[str, ...]] = ("exporter", "signal")


@dataclass(frozen=True, slots=True)
class SeriesTakenUp(Event):
    """Series had counted before this exporter heard of them, and somebody else told what: differences begin now."""

    exporter: str
    series: int

    phrase: ClassVar[str] = "series go on from another process; what they counted before is told by nobody twice"
    level: ClassVar[int] = logging.INFO
    counter: ClassVar[str | None] = "stem_agent.exporter.series_taken_up"
    labels: ClassVar[tuple[str, ...]] = ("exporter",)
    amount_in: ClassVar[str] = "series"
