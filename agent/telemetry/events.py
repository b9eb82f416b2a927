"""One type per thing that can happen; emitting it writes the log line and moves the counter, so they cannot disagree.

Lines are rate-limited per event type and place: a flood costs one line an interval, and the next line says how
many were left out. Counters are never limited.
"""

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import ClassVar

from agent.core.clock import NANOSECONDS, Clock, SteadyClock
from agent.core.histogram import Histogram
from agent.core.masking import Masker

logger = logging.getLogger("agent")
LINE_INTERVAL_NS = 10 * NANOSECONDS


@dataclass(frozen=True, slots=True)
class Event:
    """Base of all events: subclasses name their phrase, level, counter and the fields that label it.

    Fields become the log line's fields; those in `labels` label the counter and separate the rate limits, so
    they must be few-valued.
    """

    phrase: ClassVar[str]
    level: ClassVar[int] = logging.WARNING
    counter: ClassVar[str | None] = None
    labels: ClassVar[tuple[str, ...]] = ()
    constant: ClassVar[tuple[tuple[str, str], ...]] = ()

    @property
    def amount(self) -> int:
        """How much the counter moves."""
        return 1


LabelSet = tuple[tuple[str, str], ...]


class Telemetry:
    """The agent's own counters, gauges and histograms, and the one gate through which events pass.

    `mask` is what texts that leave the agent some other way have to pass.
    """

    def __init__(self, clock: Clock | None = None, mask: Masker | None = None) -> None:
        self.clock = clock or SteadyClock()
        self.mask = mask or Masker()
        self.began_ns = self.clock()
        self.counters: Counter[tuple[str, LabelSet]] = Counter()
        self.gauges: dict[tuple[str, LabelSet], Callable[[], float]] = {}
        self.histograms: dict[tuple[str, LabelSet], Histogram] = {}
        self._next_line_ns: dict[tuple[object, ...], int] = {}
        self._suppressed: Counter[tuple[object, ...]] = Counter()

    def count(self, name: str, amount: int = 1, **labels: str) -> None:
        """Move the counter `name` without a log line, for what is not worth one."""
        self.counters[name, tuple(sorted(labels.items()))] += amount

    def counted(self, name: str, **labels: str) -> int:
        """Return the sum of the counter over all label sets that contain `labels`."""
        wanted = set(labels.items())
        return sum(n for (key, pairs), n in self.counters.items() if key == name and wanted <= set(pairs))

    def gauge(self, name: str, read: Callable[[], float], **labels: str) -> None:
        """Register a gauge that is read when metrics are collected."""
        self.gauges[name, tuple(sorted(labels.items()))] = read

    def histogram(self, name: str, **labels: str) -> Histogram:
        """Return the histogram of these labels, to be filled by whoever measures."""
        return self.histograms.setdefault((name, tuple(sorted(labels.items()))), Histogram())

    def emit(self, event: Event) -> None:
        """Move the event's counter, and write its line unless the same line was written a moment ago."""
        kind = type(event)
        labels = {name: str(getattr(event, name)) for name in kind.labels} | dict(kind.constant)
        if kind.counter:
            self.count(kind.counter, event.amount, **labels)
        now = self.clock()
        limit = (kind, *sorted(labels.items()))
        if now < self._next_line_ns.get(limit, 0):
            self._suppressed[limit] += 1
            return
        self._next_line_ns[limit] = now + LINE_INTERVAL_NS
        detail: dict[str, object] = {f.name: getattr(event, f.name) for f in fields(event)}
        if suppressed := self._suppressed.pop(limit, 0):
            detail["suppressed"] = suppressed
        log(kind.level, kind.phrase, detail)


def log(level: int, phrase: str, detail: Mapping[str, object]) -> None:
    """Write one line: a fixed phrase plus fields."""
    logger.log(level, phrase, extra={"fields": dict(detail)})
