"""Handing on what a correlator makes, as the telemetry of one resource: the agent's own, or the fleet's."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from agent.core.clock import NANOSECONDS, Clock
from agent.core.pressure import Priority
from agent.correlate.correlator import Correlator
from agent.correlate.counters import CLOCK_ADJUSTED, EVICTED, HANDED_OVER, LATE, REPAIRS, UNATTRIBUTED
from agent.otlp.batch import Batch, Consumer, Kind
from agent.otlp.metrics import Instrument
from agent.otlp.resource import Resource
from agent.telemetry.events import Event, Telemetry

_MAX_AGE_NS = 86_400 * NANOSECONDS
"""A signal older than a day when it is heard tells of a clock that is wrong, not of a slow pipeline."""
_LABELS = {LATE: "event", UNATTRIBUTED: "event", EVICTED: "reason", REPAIRS: "result"}


@dataclass(frozen=True, slots=True)
class AttemptsDropped(Event):
    """Open attempts had to go before their end was heard."""

    connector: str
    reason: str
    count: int

    phrase: ClassVar[str] = "dropped open attempts; their spans will be missing"
    level: ClassVar[int] = logging.ERROR
    counter: ClassVar[str | None] = EVICTED
    labels: ClassVar[tuple[str, ...]] = ("reason",)
    amount_in: ClassVar[str] = "count"


class Teller:
    """One correlator's voice. `outputs` holds the next step of each pipeline; kinds without one are not kept.

    `dropped` is called with the reason when open attempts had to go. `source` tells its metrics from those of others.
    """

    def __init__(
        self,
        identity: str,
        correlator: Correlator,
        outputs: Mapping[Kind, Consumer],
        resource: Resource,
        telemetry: Telemetry,
        clock: Clock,
        dropped: Callable[[str], None],
    ) -> None:
        self._id = identity
        self.correlator = correlator
        self._outputs = outputs
        self.resource = resource
        self._telemetry = telemetry
        self._clock = clock
        self._dropped = dropped
        self.source = identity
        self._tells_metrics = False

    def hand_on(self) -> None:
        """Hand on spans and log records, and count what is worth telling about correlation."""
        recorder = self.correlator.recorder
        for kind, outbox in ((Kind.TRACES, recorder.spans), (Kind.LOGS, recorder.log.records)):
            for told in outbox.take() if outbox else ():
                self._send(kind, told.items, len(told.items), told.since_ns, priority=told.priority)
        if counters := self.correlator.counters:
            self._move_counters(list(counters.items()))
            counters.clear()

    def hand_on_metrics(self, without: Sequence[Instrument], *, goes_on: bool = False) -> None:
        """Hand on all metrics but those that somebody else tells; `goes_on`: as what they go on from."""
        now_ns = self._clock()
        self.correlator.collect(now_ns)
        metrics, points = self.correlator.recorder.metrics.collect(now_ns, without=without)
        if points or self._tells_metrics:
            self._tells_metrics = bool(points)  # that there is nothing any more is said once
            self._send(Kind.METRICS, metrics, sum(points), priority=Priority.METRICS, counts=points, goes_on=goes_on)

    def end(self) -> None:
        """Say that the metrics have ended here: another agent goes on with them."""
        if self._tells_metrics:
            self._tells_metrics = False
            self._send(Kind.METRICS, [], 0, priority=Priority.METRICS)

    def _send(
        self,
        kind: Kind,
        items: list[bytes],
        count: int,
        since_ns: int = 0,
        *,
        priority: Priority,
        counts: Sequence[int] = (),
        goes_on: bool = False,
    ) -> None:
        if consumer := self._outputs.get(kind):
            if since_ns and self._clock() - since_ns > _MAX_AGE_NS:
                since_ns = 0
            batch = Batch(kind, self.resource, items, count, since_ns, priority, counts, self.source, goes_on)
            consumer.consume(batch)

    def _move_counters(self, counters: list[tuple[tuple[str, str], int]]) -> None:
        for (name, value), amount in counters:
            if name == EVICTED:
                self._telemetry.emit(AttemptsDropped(self._id, value, amount))
                self._dropped(value)
            elif name in {CLOCK_ADJUSTED, HANDED_OVER}:
                self._telemetry.count(name, amount)
            else:
                self._telemetry.count(name, amount, **{_LABELS[name]: value})
