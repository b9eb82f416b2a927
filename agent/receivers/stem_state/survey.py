"""One subject of the fleet's state: what is asked about it, and the metrics that the answers become. Pure."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from datetime import tzinfo
from typing import Any

from msgspec import Struct

from agent.core.limits import MAX_NAME
from agent.otlp.levels import Levels
from agent.otlp.metrics import Aggregator, Instrument, Values
from agent.receivers.stem_state.notes import Total
from agent.stem.questions.query import Query, QueryRefusedError

_FOR_EVER_S = 1e9
_NO_LIMIT = 1 << 31
"""What is asked about is limited where it is asked."""


class Moment(Struct, frozen=True):
    """When answers came: by Redis' clock (Unix milliseconds), and by ours (Unix nanoseconds)."""

    redis_ms: int
    now_ns: int


class Survey(ABC):
    """Levels are told as they were last read, and not told at all where they could not be; totals go on."""

    def __init__(
        self,
        namespace: str,
        zone: tzinfo,
        now_ns: int,
        *,
        cardinality_limit: int = _NO_LIMIT,
        series_ttl: float = _FOR_EVER_S,
    ) -> None:
        self.namespace = namespace
        self.zone = zone
        self.troubles: list[str] = []
        self._totals = Aggregator(now_ns=now_ns, cardinality_limit=cardinality_limit, series_ttl=series_ttl)
        self._levels = Levels(now_ns)
        self._last: dict[tuple[Instrument, Values], int | None] = {}

    @abstractmethod
    def ask(self, redis_ms: int) -> list[Query[Any]]:
        """Return the questions of this turn; `redis_ms` is the server's time as far as it is known."""

    @abstractmethod
    def take(self, answers: Sequence[Any], moment: Moment) -> None:
        """Take the answers, in the order of the questions; one that was refused is a `QueryRefusedError`."""

    def told(self, answers: Sequence[Any], moment: Moment) -> tuple[list[bytes], list[int]]:
        """Return the metrics that the answers make, encoded, and how many data points each has.

        `troubles` then says in plain words what could not be told.
        """
        self.troubles = []
        self._levels = Levels(moment.now_ns)
        self.take(answers, moment)
        parts = [self._levels.collect(), self._totals.collect(moment.now_ns)]
        return [item for items, _ in parts for item in items], [count for _, counts in parts for count in counts]

    def level(self, instrument: Instrument, values: Values, value: float) -> None:
        """Tell a level as it is now."""
        self._levels.set(instrument, _cut(values), value)

    def reached(
        self, instrument: Instrument, values: Values, total: int | None, moment: Moment, *, new: bool = False
    ) -> None:
        """Tell a total that the server counts; None where it does not know.

        What it counted before this agent looked is not told, unless it is `new`: then it began from nothing. When it is
        less than before, it began anew.
        """
        series = instrument, values
        if total is None:
            self._totals.remove(instrument, _cut(values))
            if series in self._last:  # what was told once must not be told again
                self._last[series] = None
            return
        before = self._last.get(series, 0 if new else total)
        before = total if before is None else before
        self._last[series] = total
        self._totals.add(instrument, _cut(values), moment.now_ns, total - before if total >= before else total)

    def add(self, instrument: Instrument, values: Values, moment: Moment, amount: int = 1) -> None:
        """Move a counter that is counted here."""
        self._totals.add(instrument, _cut(values), moment.now_ns, amount)

    def record(self, instrument: Instrument, values: Values, value: float, moment: Moment) -> None:
        """Record one value of a histogram."""
        self._totals.record(instrument, _cut(values), moment.now_ns, value)

    def ended(self, instruments: Sequence[Instrument], values: Values) -> None:
        """End the series of what is gone."""
        for instrument in instruments:
            self._totals.remove(instrument, _cut(values))
            self._last.pop((instrument, values), None)

    def totals(self) -> list[Total]:
        """Return what the server had counted when it was read last."""
        return [(instrument.name, values, total) for (instrument, values), total in self._last.items()]

    def restore_totals(self, totals: Iterable[Total], instruments: Iterable[Instrument]) -> None:
        """Go on from there: what was counted since is still to be told."""
        by_name = {instrument.name: instrument for instrument in instruments}
        self._last = {(by_name[name], values): total for name, values, total in totals if name in by_name}

    def answered(self, answer: Any, what: str) -> bool:
        """Whether there is an answer; if it was refused, note of what."""
        if isinstance(answer, QueryRefusedError):
            self.troubles.append(f"{what}: {answer}")
            return False
        return True


def _cut(values: Values) -> Values:
    """Return values with names of a length that people give; the first of them is whatever somebody wrote."""
    return values if len(values[0]) <= MAX_NAME else (values[0][:MAX_NAME], *values[1:])
