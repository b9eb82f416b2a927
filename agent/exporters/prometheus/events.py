"""What can happen to a scrape endpoint, in the words of logs and counters."""

import logging
from dataclasses import dataclass
from typing import ClassVar

from agent.telemetry.events import Event


@dataclass(frozen=True, slots=True)
class SeriesShadowed(Event):
    """Two sources tell the same series: an exposition may have one of them only."""

    exporter: str
    series: int

    phrase: ClassVar[str] = "several sources tell the same series; the newest is shown"
    counter: ClassVar[str | None] = "stem_agent.exporter.series_shadowed"
    labels: ClassVar[tuple[str, ...]] = ("exporter",)
    amount_in: ClassVar[str] = "series"


@dataclass(frozen=True, slots=True)
class ScrapeFailed(Event):
    """An exposition could not be made: a fault of ours, which must not cost the other scrapes."""

    exporter: str
    path: str
    error: str

    phrase: ClassVar[str] = "failed to answer a scrape; please report this"
    level: ClassVar[int] = logging.ERROR
    counter: ClassVar[str | None] = "stem_agent.exporter.scrape_failures"
    labels: ClassVar[tuple[str, ...]] = ("exporter", "path")
