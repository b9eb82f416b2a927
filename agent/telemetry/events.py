"""One type per thing that can happen; emitting it writes the log line and moves the counter, so they cannot disagree.

Lines are rate-limited per event type and place: a flood costs one line an interval, and the next line says how many
were left out, and of how much they would have told; where no next line comes, a line of its own does. Counters are
never limited.
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
    they must be few-valued. `amount_in` is the field that says of how many things an event tells, where it is not of
    one. What people ask for themselves is not `limited`: each time costs a line.
    """

    phrase: ClassVar[str]
    level: ClassVar[int] = logging.WARNING
    counter: ClassVar[str | None] = None
    labels: ClassVar[tuple[str, ...]] = ()
    constant: ClassVar[tuple[tuple[str, str], ...]] = ()
    amount_in: ClassVar[str] = ""
    limited: ClassVar[bool] = True

    @property
    def amount(self) -> int:
        """How much the counter moves, and how much a line left out would have told of."""
        return int(getattr(self, self.amount_in)) if self.amount_in else 1


@dataclass(frozen=True, slots=True)
class FileUnusable(Event):
    """A secret or certificate file changed, and cannot be used as it is; the last value that could be stays in use."""

    component: str
    reason: str

    phrase: ClassVar[str] = "failed to reload a file; what it held before stays in use"
    level: ClassVar[int] = logging.ERROR
    counter: ClassVar[str | None] = "stem_agent.reload.failures"
    labels: ClassVar[tuple[str, ...]] = ("component",)


LabelSet = tuple[tuple[str, str], ...]
_Limit = tuple[type[Event], LabelSet]


@dataclass(slots=True)
class _LeftOut:
    """Lines of one kind that were not written, and how much they would have told of."""

    lines: int = 0
    amount: int = 0

    def told(self) -> dict[str, object]:
        amount = {"suppressed_amount": self.amount} if self.amount != self.lines else {}
        return {"suppressed": self.lines, **amount}


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
        self._next_line_ns: dict[_Limit, int] = {}
        self._left_out: dict[_Limit, _LeftOut] = {}

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
        limit = (kind, tuple(sorted(labels.items())))
        if kind.limited and now < self._next_line_ns.get(limit, 0):
            left_out = self._left_out.setdefault(limit, _LeftOut())
            left_out.lines += 1
            left_out.amount += event.amount
            return
        self._next_line_ns[limit] = now + LINE_INTERVAL_NS
        detail: dict[str, object] = {f.name: getattr(event, f.name) for f in fields(event)}
        if before := self._left_out.pop(limit, None):
            detail |= before.told()
        log(kind.level, kind.phrase, detail)

    def tell_left_out(self, *, all_of_it: bool = False) -> None:
        """Say how many lines were left out where none came after them; before their time if it is `all_of_it`."""
        now = self.clock()
        for (kind, labels), left_out in list(self._left_out.items()):
            if all_of_it or now >= self._next_line_ns[kind, labels]:
                self._next_line_ns[kind, labels] = now + LINE_INTERVAL_NS
                del self._left_out[kind, labels]
                log(kind.level, kind.phrase, {**dict(labels), **left_out.told()})


def log(level: int, phrase: str, detail: Mapping[str, object]) -> None:
    """Write one line: a fixed phrase plus fields."""
    logger.log(level, phrase, extra={"fields": dict(detail)})
